"""A teacher: one or several trained networks whose answers another one learns, besides the labels.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. The teacher sees the chips that its
pupil sees, varied as they are: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR
2022.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from landseg.errors import BundleError
from landseg.model.bundle import FromPixels, read_bundle

TORCHSCRIPT = (".pt", ".pth", ".torchscript")
"""Endings of a path that is taken for a TorchScript file, and not for a bundle."""


class Teacher:
    """Networks that answer and do not learn.

    It is no module of its own, so that its weights stay out of the pupil's checkpoints.

    Parameters
    ----------
    networks
        Each maps pixels, (N, C, H, W) on the scale 0-255, to logits, (N, K, H, W); the mean of their probabilities is
        the teacher's answer.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = [network.eval() for network in networks]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Map pixels, (N, C, H, W) on the scale 0-255, to probabilities, (N, K, H, W) float32."""
        answers = [network.to(image.device)(image).float().softmax(dim=1) for network in self._networks]
        return torch.stack(answers).mean(dim=0)


def open_teacher(models: Sequence[str], bands: Sequence[str], names: Sequence[str], chip_px: int) -> Teacher:
    """Open a teacher's networks and try each on a chip.

    Parameters
    ----------
    models
        Each a landseg model, or a TorchScript file of any network (ending in one of `TORCHSCRIPT`) that maps pixels,
        (N, C, ``chip_px``, ``chip_px``) on the scale 0-255, to logits of the same classes in the same order.
    bands, names
        Bands and classes of the pupil, in order.
    chip_px
        Side of the pupil's chips.

    Raises
    ------
    BundleError
        If it can't be read, or does not see these bands or tell these classes apart.
    UsageError
        If there is no model of that name.
    """
    networks = []
    expected = (1, len(names), chip_px, chip_px)
    for model in models:
        network = _scripted(Path(model)) if model.endswith(TORCHSCRIPT) else _bundled(model, bands, names)
        try:
            answer = Teacher([network])(torch.zeros(1, len(bands), chip_px, chip_px))
        except RuntimeError as error:
            raise BundleError(
                f"the teacher {model} can't read chips of {len(bands)} bands and {chip_px} px: {error}"
            ) from error
        if answer.shape != expected:
            raise BundleError(
                f"the teacher {model} answers a chip by {tuple(answer.shape)}, not {expected}",
                f"it must tell apart {', '.join(names)}, pixel by pixel",
            )
        networks.append(network)
    return Teacher(networks)


def _scripted(path: Path) -> nn.Module:
    if not path.is_file():
        raise BundleError(f"there is no teacher {path}", "train it first, or leave optimisation.teacher out")
    load: Callable[..., nn.Module] = torch.jit.load
    try:
        with warnings.catch_warnings():
            # See `landseg.model.export.export_torchscript`.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return load(str(path), map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise BundleError(f"can't read {path} as TorchScript", "write it by torch.jit.save") from error


def _bundled(model: str, bands: Sequence[str], names: Sequence[str]) -> nn.Module:
    bundle = read_bundle(model)
    card = bundle.card
    for what, own, wanted in (("bands", card.bands, bands), ("classes", card.legend.names, names)):
        if tuple(own) != tuple(wanted):
            raise BundleError(
                f"the {what} of the teacher {card.name} are {', '.join(own)}, not {', '.join(wanted)}",
                "a teacher has those of the model that it teaches, in the same order",
            )
    return FromPixels(bundle).to(memory_format=torch.channels_last)
