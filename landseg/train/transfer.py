"""Fine-tuning: a network begins where another has ended, also when the classes are others."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from landseg.model.pspnet import PSPNet

CLASSIFIER = ("head.4.weight", "head.4.bias")
"""The weights that have a row for each class."""


def transfer(
    network: PSPNet, trained: Mapping[str, Tensor], names: Sequence[str], trained_names: Sequence[str]
) -> None:
    """Give a network the weights of a trained one that has the same architecture but for its classes.

    The rows of classes that both have, by name, go along; those of new classes, and the auxiliary head, which bundles
    lack, stay as they are initialised.

    Parameters
    ----------
    network
        Is changed.
    trained
        State of the trained network.
    names, trained_names
        Classes of both, in channel order.
    """
    kept = [name for name in names if name in trained_names]
    rows, trained_rows = ([list(all_names).index(name) for name in kept] for all_names in (names, trained_names))
    # The state's tensors are the network's own.
    state = network.state_dict()
    for name, tensor in trained.items():
        if name in CLASSIFIER:
            state[name][rows] = tensor[trained_rows]
        else:
            state[name].copy_(tensor)
