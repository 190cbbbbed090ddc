"""Published weights: PSPNets of three codebases and ResNets of three libraries, told apart by the names in the file.

A checkpoint's names say which codebase it is of, and so which variant of the network; its shapes say the rest. What
neither says is in the caller's ``variant``. No pickle is ever loaded.
"""

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from landseg.errors import BundleError
from landseg.hrefs import check_plain
from landseg.model.pspnet import AUXILIARY, Architecture, PSPNet
from landseg.model.resnet import LAYOUTS, STEMS, BackboneName, BasicBlock, ResNet, StemName, stage_channels

log = logging.getLogger(__name__)

Renames = tuple[tuple[str, str], ...]
"""Beginnings of landseg's names and what stands for them elsewhere; the first that fits holds."""

WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What DataParallel, Lightning modules and torch.compile put before each of the network's names."""

COUNTER = "num_batches_tracked"
"""End of the names of counters of batches, which are of use to training alone and often left out."""

FIRST_BLOCK = "layer1.0.conv1.weight"
"""A name that every ResNet has, whatever its stem and depth."""


@dataclass(frozen=True)
class Codebase:
    """How one codebase names a PSPNet's weights, and which variant it builds.

    Parameters
    ----------
    name
        For people.
    marker
        Beginning of names that no other codebase has.
    renames
        For all but a deep stem.
    deep_stem
        For a deep stem.
    variant
        Options of `Architecture` that the codebase fixes, or has by default.
    auxiliary
        Beginning of the auxiliary head's names. Like what is ``ignored``, it takes no part in the answer; one that has
        another form than landseg's is left out.
    """

    name: str
    marker: str
    renames: Renames
    deep_stem: Renames
    variant: Mapping[str, Any]
    auxiliary: str
    ignored: tuple[str, ...] = ()

    def translated(self, name: str, *, deep: bool) -> str:
        """Give the codebase's name of one of landseg's weights."""
        for ours, theirs in (*(self.deep_stem if deep else ()), *self.renames):
            if re.match(ours, name):
                return re.sub(ours, theirs, name, count=1)
        return name


SEMSEG = Codebase(
    name="semseg",
    marker="ppm.features.",
    renames=(
        (r"backbone\.", ""),
        (r"pyramid\.levels\.", "ppm.features."),
        (r"head\.", "cls."),
        (r"auxiliary\.", "aux."),
    ),
    deep_stem=((r"backbone\.conv1\.", "layer0."), (r"backbone\.bn1\.", "layer0.7.")),
    variant={"align_corners": True, "first_block_dilation": "full"},
    auxiliary="aux.",
)
"""Of the paper's first author: https://github.com/hszhao/semseg."""

MMSEGMENTATION = Codebase(
    name="mmsegmentation",
    marker="decode_head.psp_modules.",
    renames=(
        (r"pyramid\.levels\.(\d+)\.1\.", r"decode_head.psp_modules.\1.1.conv."),
        (r"pyramid\.levels\.(\d+)\.2\.", r"decode_head.psp_modules.\1.1.bn."),
        (r"head\.0\.", "decode_head.bottleneck.conv."),
        (r"head\.1\.", "decode_head.bottleneck.bn."),
        (r"head\.4\.", "decode_head.conv_seg."),
        (r"auxiliary\.0\.", "auxiliary_head.convs.0.conv."),
        (r"auxiliary\.1\.", "auxiliary_head.convs.0.bn."),
        (r"auxiliary\.4\.", "auxiliary_head.conv_seg."),
    ),
    deep_stem=((r"backbone\.conv1\.", "backbone.stem."), (r"backbone\.bn1\.", "backbone.stem.7.")),
    variant={"align_corners": False, "first_block_dilation": "contracted", "basic_block_dilation": "first"},
    auxiliary="auxiliary_head.",
)
"""https://github.com/open-mmlab/mmsegmentation, its ``PSPHead`` on ``ResNet`` or ``ResNetV1c`` at output stride 8.

Its auxiliary head is an ``FCNHead`` of one convolution on the last stage but one, as in its own configurations.
"""

SMP = Codebase(
    name="segmentation_models.pytorch",
    marker="decoder.psp.blocks.",
    renames=(
        (r"backbone\.", "encoder."),
        (r"pyramid\.levels\.(\d+)\.1\.", r"decoder.psp.blocks.\1.pool.1.0."),
        (r"pyramid\.levels\.(\d+)\.2\.", r"decoder.psp.blocks.\1.pool.1.1."),
        (r"head\.([01])\.", r"decoder.conv.\1."),
        (r"head\.4\.", "segmentation_head.0."),
    ),
    deep_stem=(),
    variant={"align_corners": True, "concatenation": "pyramid-first", "normalise_bin_1": False},
    auxiliary="auxiliary.",
    # The encoder's further stages, which nothing reads, are dropped as well; see `_unread`.
    ignored=("classification_head.",),
)
"""https://github.com/qubvel-org/segmentation_models.pytorch: fewer stages, not dilated, other heads."""

CODEBASES = (SEMSEG, MMSEGMENTATION, SMP)


def read_checkpoint(path: Path, variant: Mapping[str, Any] | None = None) -> PSPNet:
    """Read a PSPNet's checkpoint of one of `CODEBASES`.

    Law: in evaluation mode the network's logits are those of the codebase's own network; so are the auxiliary head's,
    which is left out where it is of another form than landseg's.

    Parameters
    ----------
    path
        ``.safetensors``, ``.pth`` or ``.pt``; the weights may stand under ``state_dict``.
    variant
        Options of `Architecture` in which the checkpoint departs from its codebase's defaults; nothing in the file
        would tell.

    Raises
    ------
    BundleError
        If the file can't be read without unpickling, or is no PSPNet that landseg can build; names the first weight
        that is unexpected, missing or of another shape.
    """
    stored = read_weights(path)
    found = (
        (c, weights)
        for weights in _unwrapped(stored)
        for c in CODEBASES
        if any(name.startswith(c.marker) for name in weights)
    )
    codebase, weights = next(found, (None, stored))
    if codebase is None:
        known = ", ".join(c.name for c in CODEBASES)
        raise BundleError(
            f"{path} is no PSPNet that landseg knows: its first weight is {next(iter(stored), 'missing')}",
            f"known are those of {known}",
        )
    architecture = _architecture(path, codebase, weights, variant or {})
    network = PSPNet(architecture, auxiliary=architecture.auxiliary)
    deep = architecture.stem != "7x7"
    names = {name: codebase.translated(name, deep=deep) for name in network.state_dict()}
    if network.auxiliary is not None and not _fits_auxiliary(network, names, codebase, weights):
        log.warning("%s: its auxiliary head is of another form than landseg's and is left out", path)
        network.auxiliary = None
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith(AUXILIARY)}
    unread = _unread(codebase, network)
    hint = f"it is not of a {codebase.name} PSPNet that landseg can build"
    _load(network, {ours: weights[theirs] for ours, theirs in names.items() if theirs in weights}, names, path, hint)
    unexpected = (name for name in weights if name not in names.values() and not unread.match(name))
    _refuse("has an unexpected weight", unexpected, path, hint)
    return network.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read names and tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file, in the file's order, unpickling nothing.

    Raises
    ------
    BundleError
        If the file is missing, damaged, needs pickle, or holds no state dict.
    """
    check_plain(path, BundleError)
    stored: Any
    try:
        if path.suffix == ".safetensors":
            stored = load_file(path)
        elif path.suffix in (".pth", ".pt"):
            if _unpacks_to_more(path):
                raise BundleError(
                    f"{path} is packed: it would take more memory than disk", "unpack it, or save it anew"
                )
            with warnings.catch_warnings():
                # A pickle of a newer protocol: read or refused all the same.
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                stored = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise BundleError(f"{path} is not a .safetensors, .pth or .pt file")
    except OSError as error:
        raise BundleError(f"can't read the weights {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise BundleError(
            f"{path} can't be read without unpickling, which may run code hidden in it",
            "where you trust the file, save its weights alone: torch.save(checkpoint['state_dict'], 'weights.pth')",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} is damaged or no file of weights: {_first_line(error)}") from error
    if isinstance(stored, Mapping):
        stored = stored.get("state_dict", stored)
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise BundleError(f"{path} holds no state dict: names and tensors, or these under 'state_dict'")
    for name, tensor in stored.items():
        # One number may stand for a tensor of any size, and a network of that size would be made.
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BundleError(f"{path} does not hold all numbers of the weight {name}")
    return {str(name): tensor for name, tensor in stored.items()}


def _unpacks_to_more(path: Path) -> bool:
    """Tell whether a checkpoint holds more than its size: torch packs none, and a small one may unpack to any size."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as parts:
        return sum(part.file_size for part in parts.infolist()) > path.stat().st_size


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_backbone(backbone: ResNet, path: Path) -> None:
    """Start a backbone from a classifier's weights, as torchvision, timm and torchgeo publish them.

    The classifier itself (``fc``) and stages that the backbone lacks are left out. Where the bands differ in number,
    the first convolution is adapted: see `adapt_bands`.

    Raises
    ------
    BundleError
        If the file can't be read without unpickling, or is of another network.
    """
    # What stands beside a backbone in a file, such as a projection head, is not asked for.
    found = [_inside(_inside(weights, "backbone."), "encoder.") for weights in _unwrapped(read_weights(path))]
    weights = next((one for one in found if FIRST_BLOCK in one), found[0])
    own = backbone.state_dict()
    first = "conv1.weight" if "conv1.weight" in own else "conv1.0.weight"
    if first in weights:
        weights[first] = adapt_bands(weights[first], own[first].shape[1])
    hint = "it must be of the backbone and stem that are trained; most published weights have the stem 7x7"
    _load(backbone, {name: weights[name] for name in own if name in weights}, {name: name for name in own}, path, hint)
    dropped = re.compile(rf"fc\.|layer[{len(backbone.out_channels) + 1}-9]\.")
    unexpected = (name for name in weights if name not in own and not dropped.match(name))
    _refuse("has an unexpected weight", unexpected, path, hint)


def adapt_bands(weight: Tensor, bands: int) -> Tensor:
    """Fit a first convolution to another number of bands.

    With more bands than before, those of the weights are repeated in turn, each shared out among its copies; with
    fewer, each band gets the same part of their sum.

    Law: the response to grey, the same value in all bands, stays what it was.

    Parameters
    ----------
    weight
        (out, in, rows, cols).
    bands
        The new ``in``.
    """
    known = weight.shape[1]
    if bands == known:
        return weight
    if bands < known:
        return (weight.sum(dim=1, keepdim=True) / bands).repeat(1, bands, 1, 1)
    source = torch.arange(bands) % known
    copies = torch.bincount(source)
    return weight[:, source] / copies[source].to(weight.dtype)[:, None, None]


def _unwrapped(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Give the weights as they are, and then what is in each wrapper, and in wrappers within.

    What a training keeps beside its network, such as a loss's weights, has no part in a wrapper's.
    """
    yield weights
    for wrapper in WRAPPERS:
        if any(name.startswith(wrapper) for name in weights):
            yield from _unwrapped(_inside(weights, wrapper))


def _inside(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Keep what stands under a prefix, without it; everything, if there is no such prefix."""
    inner = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return inner or weights


def _architecture(
    path: Path, codebase: Codebase, weights: Mapping[str, Tensor], variant: Mapping[str, Any]
) -> Architecture:
    """Read off names and shapes what the codebase does not fix."""
    deep = codebase.translated("backbone.conv1.6.weight", deep=True) in weights

    def shape(name: str) -> torch.Size:
        theirs = codebase.translated(name, deep=deep)
        if theirs not in weights:
            raise BundleError(f"{path} lacks the weight {theirs}", f"its other names are those of {codebase.name}")
        if weights[theirs].ndim != 4:
            raise BundleError(f"{path} has a misshapen weight: {theirs}")
        return weights[theirs].shape

    backbone = _backbone(path, codebase, weights)
    levels = _count(weights, re.escape(codebase.marker) + r"(\d+)\.")
    bins = variant.get("bins", (1, 2, 3, 6))
    if len(bins) != levels:
        raise BundleError(
            f"{path} has a pyramid of {levels} levels, not of {len(bins)}, and does not say of how many bins each",
            "give them on the card: architecture: {bins: [...]}",
        )
    level, bottleneck, classifier = (shape(f"{part}.weight") for part in ("pyramid.levels.0.1", "head.0", "head.4"))
    channels = stage_channels(backbone)
    if level[1] not in channels[1:]:
        raise BundleError(f"{path} has a pyramid on {level[1]} channels, which no stage of a {backbone} ends with")
    stages = channels.index(level[1]) + 1
    found: dict[str, Any] = {
        "backbone": backbone,
        "in_channels": shape("backbone.conv1.0.weight" if deep else "backbone.conv1.weight")[1],
        "classes": classifier[0],
        # Only segmentation_models.pytorch has fewer stages or an output stride that is not 8; it never dilates.
        "output_stride": 2 ** (stages + 1) if codebase is SMP else 8,
        "stages": stages,
        "stem": _deep_stem(path, shape) if deep else "7x7",
        "level_channels": None if level[0] == level[1] // levels else level[0],
        "head_channels": None if bottleneck[0] == level[1] // 4 else bottleneck[0],
        "bottleneck_kernel": bottleneck[-1],
        "classifier_kernel": classifier[-1],
        "auxiliary": any(name.startswith(codebase.auxiliary) for name in weights),
    }
    try:
        return Architecture(**{**found, **codebase.variant, **variant})
    except ValueError as error:
        raise BundleError(f"{path} is of a network that landseg can't build: {error}") from error


def _backbone(path: Path, codebase: Codebase, weights: Mapping[str, Tensor]) -> BackboneName:
    """Tell the ResNet by its kind of block and the number of blocks in each stage."""
    prefix = re.escape(codebase.translated("backbone.layer1.", deep=False).removesuffix("layer1."))
    depths = tuple(_count(weights, rf"{prefix}layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    basic = not any(re.match(rf"{prefix}layer1\.0\.conv3\.", name) for name in weights)
    for name, (block, published) in LAYOUTS.items():
        if depths == published and basic == (block is BasicBlock):
            return name
    kind = "basic" if basic else "bottleneck"
    raise BundleError(
        f"{path} is of a network that landseg can't build: stages of {', '.join(map(str, depths))} {kind} blocks",
        f"known backbones: {', '.join(LAYOUTS)}",
    )


def _deep_stem(path: Path, shape: Any) -> StemName:
    channels = tuple(shape(f"backbone.conv1.{index}.weight")[0] for index in (0, 3, 6))
    for name, known in STEMS.items():
        if channels == known:
            return name
    raise BundleError(f"{path} has a stem of {channels} channels, which landseg can't build")


def _count(weights: Iterable[str], numbered: str) -> int:
    """Count the numbers from 0 that stand in names of a form."""
    return len({match[1] for name in weights if (match := re.match(numbered, name))})


def _fits_auxiliary(
    network: PSPNet, names: Mapping[str, str], codebase: Codebase, weights: Mapping[str, Tensor]
) -> bool:
    """Tell whether a checkpoint's auxiliary head is the network's, by names and shapes."""
    own = {names[ours]: tensor for ours, tensor in network.state_dict().items() if ours.startswith(AUXILIARY)}
    stored = {theirs: tensor for theirs, tensor in weights.items() if theirs.startswith(codebase.auxiliary)}
    wanted, found = ({n: t.shape for n, t in head.items() if not n.endswith(COUNTER)} for head in (own, stored))
    return wanted == found


def _unread(codebase: Codebase, network: PSPNet) -> re.Pattern[str]:
    """Make a pattern of the names in a checkpoint that have no part in the answer."""
    further = rf"encoder\.layer[{network.architecture.stages + 1}-9]\." if codebase is SMP else "(?!)"
    return re.compile("|".join([further, *map(re.escape, (codebase.auxiliary, *codebase.ignored))]))


def _load(module: nn.Module, weights: dict[str, Tensor], names: Mapping[str, str], path: Path, hint: str) -> None:
    """Load all of a module's weights; ``names`` is what the file calls them."""
    own = module.state_dict()
    counters = {name: tensor for name, tensor in own.items() if name.endswith(COUNTER)}
    weights = counters | weights
    _refuse("lacks the weight", (names[name] for name in own if name not in weights), path, hint)
    unlike = (
        f"{names[k]} is {_size(weights[k])}, not {_size(own[k])}" for k in own if weights[k].shape != own[k].shape
    )
    _refuse("has a misshapen weight:", unlike, path, hint)
    module.load_state_dict(weights)


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _refuse(fault: str, names: Iterable[str], path: Path, hint: str) -> None:
    """Raise an error that tells the first name, if there is one, and how many more."""
    faulty = list(names)
    if faulty:
        more = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
        raise BundleError(f"{path} {fault} {faulty[0]}{more}", hint)
