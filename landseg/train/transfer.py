"""Fine-tuning: a network begins where another has ended, and may be averaged with it in the end."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from landseg.model.pspnet import PSPNet

CLASSIFIERS = ("head.4.weight", "head.4.bias", "auxiliary.4.weight", "auxiliary.4.bias")
"""The weights that have a row for each class."""


def transfer(
    network: PSPNet, trained: Mapping[str, Tensor], names: Sequence[str], trained_names: Sequence[str]
) -> None:
    """Give a network the weights of a trained one that has the same architecture but for its classes.

    The rows of classes that both have, by name, go along; those of new classes, and an auxiliary head that the trained
    one comes without, stay as they are initialised.

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
        if name in CLASSIFIERS:
            state[name][rows] = tensor[trained_rows]
        else:
            state[name].copy_(tensor)


@torch.no_grad()
def average(network: PSPNet, trained: Mapping[str, Tensor], share: float) -> None:
    """Move a fine-tuned network's weights back towards those that it began with.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3: on what neither was trained on, the
    mean of the two is often better than both.

    Parameters
    ----------
    network
        Is changed; its classes are those of the trained one.
    trained
        State of the network that it began as.
    share
        Weight of the trained network's, 0 to 1.
    """
    state = network.state_dict()
    for name, tensor in trained.items():
        if tensor.is_floating_point():
            state[name].lerp_(tensor.to(state[name]), share)
