"""PSPNet: a ResNet's features, pooled at several scales, put back beside them and classified.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017. Where the paper is silent, "the paper's" means its authors' own
code: https://github.com/hszhao/PSPNet and https://github.com/hszhao/semseg.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landseg.model.resnet import (
    STEMS,
    BackboneName,
    BasicBlockDilation,
    FirstBlockDilation,
    OutputStride,
    ResNet,
    Stages,
    StemName,
    stage_channels,
)

Pooling = Literal["average", "max"]
Concatenation = Literal["features-first", "pyramid-first"]
KernelSize = Literal[1, 3]

CHOICES: dict[str, tuple[object, ...]] = {
    "backbone": get_args(BackboneName),
    "output_stride": get_args(OutputStride),
    "stem": get_args(StemName),
    "first_block_dilation": get_args(FirstBlockDilation),
    "basic_block_dilation": get_args(BasicBlockDilation),
    "stages": get_args(Stages),
    "pooling": get_args(Pooling),
    "concatenation": get_args(Concatenation),
    "bottleneck_kernel": get_args(KernelSize),
    "classifier_kernel": get_args(KernelSize),
    "align_corners": (True, False),
    "normalise_bin_1": (True, False),
    "auxiliary": (True, False),
}
"""What the options of an `Architecture` may be, where they are a choice."""

AUXILIARY = "auxiliary."
"""Beginning of the names of the auxiliary head's weights."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that fixes the shapes of a PSPNet's weights and the meaning of its output.

    All defaults but the backbone's are the paper's, which has networks of 50 layers and more. Weights trained with some
    options often load under others and then answer wrongly without a word, so each option is on the model's card.

    Parameters
    ----------
    backbone
        Which ResNet.
    in_channels
        Bands of the image.
    classes
        Channels of the logits.
    output_stride
        Input pixels per feature pixel: 8 in the paper.
    bins
        Cells per side of each level of the pyramid: 1, 2, 3 and 6 in the paper; () leaves the pyramid out.
    pooling
        How a cell is summed up: ``average`` in the paper, whose ablation has ``max`` too.
    stem
        Convolutions before the first stage: three of 3x3 pixels up to 128 channels (``deep-128``) in the paper's
        networks; up to 64 (``deep-64``) in mmsegmentation's V1c; one of 7x7 in He et al.'s.
    align_corners
        Whether bilinear upsampling aligns the centres of the outermost pixels, or their outer edges.
    first_block_dilation
        Dilation of the first convolution of a dilated stage: the stage's own (``full``), or that of the stage before
        (``contracted``).
    basic_block_dilation
        Whether ``both`` convolutions of ResNet-18's and -34's blocks are dilated, or the ``first`` alone.
    stages
        Stages of the backbone that are there; the pyramid stands on the last one.
    concatenation
        Whether the features stand before the pyramid's levels, or after them.
    normalise_bin_1
        Whether the level of a single cell has batch normalisation like the others, or a bias in its place.
    level_channels
        Channels of each level of the pyramid, by default those of the features divided by the number of levels.
    head_channels
        Channels between bottleneck and classifier, by default a quarter of the features'.
    bottleneck_kernel, classifier_kernel
        Pixels per side of the head's two convolutions.
    auxiliary
        Whether it is trained with a second head on the last stage but one.
    """

    backbone: BackboneName = "resnet18"
    in_channels: int = 3
    classes: int = 5
    output_stride: OutputStride = 8
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pooling: Pooling = "average"
    stem: StemName = "deep-128"
    align_corners: bool = True
    first_block_dilation: FirstBlockDilation = "full"
    basic_block_dilation: BasicBlockDilation = "both"
    stages: Stages = 4
    concatenation: Concatenation = "features-first"
    normalise_bin_1: bool = True
    level_channels: int | None = None
    head_channels: int | None = None
    bottleneck_kernel: KernelSize = 3
    classifier_kernel: KernelSize = 1
    auxiliary: bool = True

    def __post_init__(self) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                known = ", ".join(map(str, choices))
                raise ValueError(f"{option} is '{getattr(self, option)}', not one of {known}")
        numbers = (self.in_channels, self.classes, self.level_channels or 1, self.head_channels or 1, *self.bins)
        if not all(type(number) is int for number in numbers):
            raise ValueError("numbers of channels, classes and bins must be whole")
        if len(self.bins) > stage_channels(self.backbone)[self.stages - 1]:
            raise ValueError(f"{len(self.bins)} levels of a pyramid are more than the channels below it")
        if min(self.bins, default=1) < 1:
            raise ValueError(f"{self.bins} are no numbers of bins")
        if self.output_stride > 2 ** (self.stages + 1):
            raise ValueError(f"{self.stages} stages do not make an output stride of {self.output_stride}")
        if min(self.level_channels or 1, self.head_channels or 1) < 1:
            raise ValueError("numbers of channels must be positive")

    @property
    def departures(self) -> dict[str, Any]:
        """The options that are not the paper's; empty for its network, whatever backbone, bands and classes."""
        return {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.name not in ("backbone", "in_channels", "classes")
            and getattr(self, option.name) != option.default
        }

    @property
    def floats_per_pixel(self) -> int:
        """Numbers held at once in a forward pass, per pixel of the image and logits aside: an upper bound, measured.

        Either the stem takes most, three of its maps at half resolution and one unfolded for a 3x3 convolution; or the
        head does: the features, twice as many beside each other in the pyramid, and what the bottleneck makes of them.
        """
        stem = STEMS[self.stem][-1]
        features = stage_channels(self.backbone)[self.stages - 1]
        return max(3 * stem // 4 + stem, 12 * features // self.output_stride**2)


class PyramidPooling(nn.Module):
    """Pool the features over grids of several sizes and put each, brought back to full size, beside them.

    Pooling spans the whole chip: a network answers as it was trained to only at the chip size of its training.

    Parameters
    ----------
    in_channels
        Channels of the features.
    architecture
        Its bins, pooling, upsampling and concatenation.
    """

    def __init__(self, in_channels: int, architecture: Architecture) -> None:
        super().__init__()
        bins = architecture.bins
        reduced = architecture.level_channels or in_channels // max(1, len(bins))
        pool = {"average": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}[architecture.pooling]

        def level(size: int) -> nn.Sequential:
            normalised = architecture.normalise_bin_1 or size > 1
            return nn.Sequential(
                pool(size),
                nn.Conv2d(in_channels, reduced, kernel_size=1, bias=not normalised),
                nn.BatchNorm2d(reduced) if normalised else nn.Identity(),
                nn.ReLU(inplace=True),
            )

        self.bins = bins
        self.levels = nn.ModuleList(level(size) for size in bins)
        self.in_channels, self.out_channels = in_channels, in_channels + reduced * len(bins)
        self.align_corners = architecture.align_corners
        self.features_first = architecture.concatenation == "features-first"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C + L * R, h, w) for L levels of R channels; without levels, to itself."""
        levels = [upsample(level(x), x.shape[-2:], align_corners=self.align_corners) for level in self.levels]
        return torch.cat([x, *levels] if self.features_first else [*levels, x], dim=1)

    def split(self, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Part the filters of a convolution after it, (O, C + L * R, k, k), by what they see: features, and levels."""
        of_levels = (self.out_channels - self.in_channels) // max(1, len(self.bins))
        features, levels = [self.in_channels], [of_levels] * len(self.bins)
        if self.features_first:
            on_features, *on_levels = torch.split(weight, features + levels, dim=1)
        else:
            *on_levels, on_features = torch.split(weight, levels + features, dim=1)
        return on_features, on_levels


def upsample(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Interpolate (N, C, h, w) bilinearly to (N, C, *size)."""
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def prediction_head(
    in_channels: int, width: int, classes: int, kernels: tuple[KernelSize, KernelSize] = (3, 1)
) -> nn.Sequential:
    """Make a bottleneck and a classifier: the form of both the main and the auxiliary head."""
    bottleneck, classifier = kernels
    return nn.Sequential(
        nn.Conv2d(in_channels, width, bottleneck, padding=bottleneck // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, classes, classifier, padding=classifier // 2),
    )


class PSPNet(nn.Module):
    """The network: ``backbone`` -> ``pyramid`` -> ``head``; in training also ``auxiliary`` on the last stage but one.

    Parameters
    ----------
    architecture
        What to build.
    auxiliary
        Whether to build the auxiliary head, which training alone uses.
    """

    def __init__(self, architecture: Architecture, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = ResNet(
            architecture.backbone,
            architecture.in_channels,
            architecture.output_stride,
            stem=architecture.stem,
            first_block_dilation=architecture.first_block_dilation,
            basic_block_dilation=architecture.basic_block_dilation,
            stages=architecture.stages,
        )
        before, last = self.backbone.out_channels[-2:]
        self.pyramid = PyramidPooling(last, architecture)
        self.head = prediction_head(
            self.pyramid.out_channels,
            architecture.head_channels or last // 4,
            architecture.classes,
            (architecture.bottleneck_kernel, architecture.classifier_kernel),
        )
        self.auxiliary = prediction_head(before, before // 4, architecture.classes) if auxiliary else None

    @overload
    def forward(self, x: Tensor, *, with_auxiliary: Literal[True]) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(self, x: Tensor, *, with_auxiliary: Literal[False] = False) -> Tensor: ...
    def forward(self, x: Tensor, *, with_auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Classify every pixel.

        Parameters
        ----------
        x
            (N, in_channels, H, W) float, normalised.
        with_auxiliary
            Return the auxiliary head's logits too.

        Returns
        -------
        Tensor or tuple of Tensor
            Logits, (N, classes, H, W), and the auxiliary ones of the same shape.
        """
        before, last = self.backbone(x)  # (N, C3, H/s, W/s), (N, C4, H/s, W/s)
        logits = self.classify(last, x.shape[-2:])  # (N, K, H, W)
        if not with_auxiliary:
            return logits
        if self.auxiliary is None:
            raise ValueError("this network was built without its auxiliary head")
        auxiliary = upsample(self.auxiliary(before), x.shape[-2:], align_corners=self.architecture.align_corners)
        return logits, auxiliary  # (N, K, H, W) both

    def classify(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Map the backbone's features, (N, C4, H/s, W/s), to logits of a chip's size, (N, K, H, W)."""
        logits = self.head(self.pyramid(features))  # (N, K, H/s, W/s)
        # In bf16 the eight bits of a logit would be too coarse to tell neighbouring pixels apart.
        return upsample(logits.float(), size, align_corners=self.architecture.align_corners)


class OnSwaths(nn.Module):
    """A network on swaths, several chips beside each other: features of the ground that they share are computed once.

    What a chip's features follow from is then more than the chip, since convolutions at its sides see what lies beyond
    them in the swath. The pyramid pools over single chips as ever.

    Parameters
    ----------
    network
        What answers.
    stride_px
        Pixels from where a chip begins to where the next one does: a multiple of the network's output stride, unless
        swaths are single chips.
    """

    def __init__(self, network: PSPNet, stride_px: int) -> None:
        super().__init__()
        self.network = network
        self.stride = max(1, stride_px // network.architecture.output_stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, S, S + (n - 1) * stride), or its transpose, to the logits of n chips each, (N * n, K, S, S)."""
        features = self.network.backbone(x)[-1]  # (N, C4, s, w)
        side = min(features.shape[-2:])
        chips = features.unfold(2, side, self.stride).unfold(3, side, self.stride)  # (N, C4, 1, n, s, s) or n, 1
        chips = chips.flatten(2, 3).transpose(1, 2).flatten(0, 1)  # (N * n, C4, s, s)
        size = (min(x.shape[-2:]),) * 2
        return self.network.classify(chips.contiguous(memory_format=torch.channels_last), size)
