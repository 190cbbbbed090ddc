"""Dilated residual networks, the feature extractors of PSPNet.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; dilation in place of stride after
Yu et al., "Dilated Residual Networks", CVPR 2017. Parameters are named as in torchvision's ``resnet``, so that
weights published for it load as they are.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
OutputStride = Literal[8, 16, 32]


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


class ResNet(nn.Module):
    """A ResNet without its classifier, whose last stages may be dilated instead of strided.

    Parameters
    ----------
    name
        Which of `LAYOUTS`.
    in_channels
        Bands of the image.
    output_stride
        Input pixels per feature pixel: 32 as published, 16 with the last stage dilated, 8 with the last two.
    """

    def __init__(self, name: BackboneName, in_channels: int = 3, output_stride: OutputStride = 8) -> None:
        super().__init__()
        block, depths = LAYOUTS[name]
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages: list[nn.Sequential] = []
        channels, stride_so_far, dilation = 64, 4, 1
        for index, depth in enumerate(depths):
            stride, first_dilation = (1 if index == 0 else 2), dilation
            if stride == 2 and stride_so_far >= output_stride:
                stride, dilation = 1, dilation * 2
            stride_so_far *= stride
            width = 64 * 2**index
            blocks = [block(channels, width, stride, (first_dilation, dilation))]
            channels = width * block.expansion
            blocks += [block(channels, width, 1, (dilation, dilation)) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.out_channels: Sequence[int] = tuple(64 * 2**i * block.expansion for i in range(4))
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation; the last normalisation of each block starts at 0, so that blocks start as identities.

        Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, BasicBlock):
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
            Stage 3 and stage 4, of ``out_channels[2]`` and ``out_channels[3]`` channels.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H/4, W/4)
        x = self.layer2(self.layer1(x))  # (N, C2, H/8, W/8)
        stage3 = self.layer3(x)  # (N, C3, H/s, W/s), s = min(16, output stride)
        return stage3, self.layer4(stage3)  # (N, C4, H/s, W/s), s = output stride
