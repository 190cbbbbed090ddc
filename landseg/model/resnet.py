"""Dilated residual networks, the feature extractors of PSPNet.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; dilation in place of stride after
Yu et al., "Dilated Residual Networks", CVPR 2017. Parameters are named as in torchvision's ``resnet`` and, where the
stem is deep, as in timm's, so that weights published for them load as they are.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
OutputStride = Literal[8, 16, 32]
StemName = Literal["7x7", "deep-64", "deep-128"]
FirstBlockDilation = Literal["full", "contracted"]
BasicBlockDilation = Literal["both", "first"]
Stages = Literal[2, 3, 4]

STEMS: dict[StemName, tuple[int, ...]] = {"7x7": (64,), "deep-64": (32, 32, 64), "deep-128": (64, 64, 128)}
"""Channels of each convolution before the first stage: one of 7x7 pixels, or three of 3x3."""


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Make a 3x3 convolution that keeps the size at stride 1, whatever the dilation."""
    return nn.Conv2d(
        in_channels, out_channels, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the block of ResNet-18 and -34."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv3x3(in_channels, width, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, out_channels, dilation=dilations[1])
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        total: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return total


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones beside a shortcut: the block of ResNet-50, -101 and -152."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, dilations[0])  # the block's only 3x3 convolution
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        total: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return total


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Make the projection that a block's shortcut needs where it changes the shape, else None."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


LAYOUTS: dict[BackboneName, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Block type and number of blocks per stage."""


def stem_convolutions(in_channels: int, channels: Sequence[int]) -> nn.Conv2d | nn.Sequential:
    """Make the convolutions before the first stage; the normalisation of the last one is not among them.

    The deep form is that of Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016.
    """
    if len(channels) == 1:
        return nn.Conv2d(in_channels, channels[0], kernel_size=7, stride=2, padding=3, bias=False)
    first, second, last = channels
    return nn.Sequential(
        conv3x3(in_channels, first, stride=2),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        conv3x3(first, second),
        nn.BatchNorm2d(second),
        nn.ReLU(inplace=True),
        conv3x3(second, last),
    )


def stage_channels(name: BackboneName) -> tuple[int, int, int, int]:
    """Give the channels of the features that each stage ends with."""
    expansion = LAYOUTS[name][0].expansion
    return 64 * expansion, 128 * expansion, 256 * expansion, 512 * expansion


class ResNet(nn.Module):
    """A ResNet without its classifier, whose last stages may be dilated instead of strided.

    With the defaults of all but the first three parameters, torchvision's weights mean the same here: dilation stands
    in for stride exactly.

    Parameters
    ----------
    name
        Which of `LAYOUTS`.
    in_channels
        Bands of the image.
    output_stride
        Input pixels per feature pixel: 32 as published, 16 with the last stage dilated, 8 with the last two.
    stem
        Which of `STEMS`.
    first_block_dilation
        Dilation of the first convolution of a dilated stage: the stage's own (``full``), or that of the stage before
        (``contracted``).
    basic_block_dilation
        Whether both convolutions of a `BasicBlock` are dilated, or the first alone.
    stages
        How many stages there are; published ResNets have 4.
    """

    def __init__(
        self,
        name: BackboneName,
        in_channels: int = 3,
        output_stride: OutputStride = 8,
        *,
        stem: StemName = "7x7",
        first_block_dilation: FirstBlockDilation = "contracted",
        basic_block_dilation: BasicBlockDilation = "both",
        stages: Stages = 4,
    ) -> None:
        super().__init__()
        block, depths = LAYOUTS[name]
        channels = STEMS[stem][-1]
        self.conv1 = stem_convolutions(in_channels, STEMS[stem])
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.output_stride = output_stride
        self._at_stride = partial(
            ResNet,
            name,
            in_channels,
            stem=stem,
            first_block_dilation=first_block_dilation,
            basic_block_dilation=basic_block_dilation,
            stages=stages,
        )
        self.out_channels = stage_channels(name)[:stages]
        stride_so_far, dilation = 4, 1
        for index, depth in enumerate(depths[:stages]):
            stride, before = (1 if index == 0 else 2), dilation
            if stride == 2 and stride_so_far >= output_stride:
                stride, dilation = 1, dilation * 2
            stride_so_far *= stride
            first = before if first_block_dilation == "contracted" else dilation
            second = dilation if basic_block_dilation == "both" else 1
            width = 64 * 2**index
            blocks = [block(channels, width, stride, (first, second))]
            channels = self.out_channels[index]
            blocks += [block(channels, width, 1, (dilation, second)) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self._initialise()

    def set_output_stride(self, output_stride: OutputStride) -> None:
        """Exchange strides for dilations or the other way round, and keep the weights.

        They mean the same to a filter either way; only the features' spacing differs.
        """
        if output_stride == self.output_stride:
            return
        self.output_stride = output_stride
        with torch.device("meta"):
            there = self._at_stride(output_stride=output_stride)
        for mine, theirs in zip(self.modules(), there.modules(), strict=True):
            if isinstance(mine, nn.Conv2d) and isinstance(theirs, nn.Conv2d):
                mine.stride, mine.dilation, mine.padding = theirs.stride, theirs.dilation, theirs.padding

    def _initialise(self) -> None:
        """He initialisation; the last normalisation of each block starts at 0, so that blocks start as identities.

        Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1.
        """
        if next(self.parameters()).is_meta:
            # Nothing is drawn into weights without memory; to do so torch would spend a second importing its compiler.
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Extract the features of the last two stages.

        Parameters
        ----------
        x
            (N, in_channels, H, W) float, normalised.

        Returns
        -------
        tuple of Tensor
            The last stage but one and the last, of ``out_channels[-2]`` and ``out_channels[-1]`` channels.
        """
        last = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, stem, H/4, W/4)
        before = last
        for number in range(1, len(self.out_channels) + 1):
            # Stages 1 to 4: H/4, H/8, H/min(16, s), H/s, where s is the output stride.
            before, last = last, self.get_submodule(f"layer{number}")(last)
        return before, last
