"""PSPNets as two codebases publish them, written from their descriptions; nothing of landseg's is in them.

Modules are named so that ``state_dict()`` has the names of the published checkpoints.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class Basic(nn.Module):
    """Two 3x3 convolutions, the first alone strided and dilated."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Deep(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the middle one strided and dilated, the last of four times the width."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if hasattr(self, "downsample") else x))


def stage(layers: int, inputs: int, number: int, stride: int, dilations: tuple[int, int]) -> nn.Sequential:
    """Chain a stage's blocks; the first has the first dilation."""
    block, growth = (Basic, 1) if layers == 18 else (Deep, 4)
    width, (first, rest) = 32 * 2**number, dilations
    blocks = [block(inputs, width, stride, first)]
    blocks += [block(growth * width, width, 1, rest) for _ in range(BLOCKS[layers][number - 1] - 1)]
    return nn.Sequential(*blocks)


def deep_stem(bands: int, channels: Sequence[int]) -> list[nn.Module]:
    """Three 3x3 convolutions, normalised and rectified; the first halves the size."""
    first, second, last = channels
    return [
        nn.Conv2d(bands, first, 3, 2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1, bias=False), nn.BatchNorm2d(second), nn.ReLU(),
        nn.Conv2d(second, last, 3, padding=1, bias=False), nn.BatchNorm2d(last), nn.ReLU(),
    ]  # fmt: skip


class Pyramid(nn.Module):
    """semseg's PPM: upsampled with aligned corners, behind the features."""

    def __init__(self, channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(channels, channels // len(bins), 1, bias=False),
                nn.BatchNorm2d(channels // len(bins)),
                nn.ReLU(),
            )
            for size in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = [F.interpolate(f(x), x.shape[2:], mode="bilinear", align_corners=True) for f in self.features]
        return torch.cat([x, *levels], 1)


class Semseg(nn.Module):
    """The authors' PSPNet-50: stages 3 and 4 dilated by 2 and 4 throughout, for images of 8n + 1 pixels a side."""

    def __init__(self, classes: int, bands: int = 3, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(*deep_stem(bands, (64, 64, 128)), nn.MaxPool2d(3, 2, padding=1))
        self.layer1 = stage(50, 128, 1, 1, (1, 1))
        self.layer2 = stage(50, 256, 2, 2, (1, 1))
        self.layer3 = stage(50, 512, 3, 1, (2, 2))
        self.layer4 = stage(50, 1024, 4, 1, (4, 4))
        self.ppm = Pyramid(2048, bins)
        self.cls = self.head(4096, 512, classes)
        self.aux = self.head(1024, 256, classes)

    @staticmethod
    def head(inputs: int, width: int, classes: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[2:]
        assert (rows - 1) % 8 == 0
        assert (cols - 1) % 8 == 0
        y = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        return F.interpolate(self.cls(self.ppm(y)), (rows, cols), mode="bilinear", align_corners=True)

    def auxiliary_logits(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        return F.interpolate(self.aux(y), x.shape[2:], mode="bilinear", align_corners=True)


class Unit(nn.Module):
    """mmcv's ConvModule: convolution, normalisation, rectifier."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MmBackbone(nn.Module):
    """ResNetV1c, or ResNet without a deep stem, "d8": dilations 1, 1, 2, 4, halved in each stage's first block."""

    def __init__(self, layers: int, bands: int, *, v1c: bool) -> None:
        super().__init__()
        growth = 1 if layers == 18 else 4
        if v1c:
            self.stem = nn.Sequential(*deep_stem(bands, (32, 32, 64)))
        else:
            self.conv1 = nn.Conv2d(bands, 64, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(layers, 64, 1, 1, (1, 1))
        self.layer2 = stage(layers, 64 * growth, 2, 2, (1, 1))
        self.layer3 = stage(layers, 128 * growth, 3, 1, (1, 2))
        self.layer4 = stage(layers, 256 * growth, 4, 1, (2, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x) if hasattr(self, "stem") else F.relu(self.bn1(self.conv1(x)))
        before = self.layer3(self.layer2(self.layer1(F.max_pool2d(x, 3, 2, 1))))
        return before, self.layer4(before)


class MmHead(nn.Module):
    """PSPHead without aligned corners; every level has as many channels as the bottleneck."""

    def __init__(self, inputs: int, channels: int, classes: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), Unit(inputs, channels, 1)) for size in bins
        )
        self.bottleneck = Unit(inputs + len(bins) * channels, channels, 3)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [F.interpolate(m(x), x.shape[2:], mode="bilinear", align_corners=False) for m in self.psp_modules]
        return self.conv_seg(self.bottleneck(torch.cat([x, *levels], 1)))


class MmAuxiliary(nn.Module):
    """FCNHead of one convolution."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(Unit(inputs, inputs // 4, 3))
        self.conv_seg = nn.Conv2d(inputs // 4, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.convs(x))


class MmSegmentation(nn.Module):
    """mmsegmentation's pspnet_r18-d8 or pspnet_r50-d8."""

    def __init__(
        self, layers: int, classes: int, bands: int = 3, bins: Sequence[int] = (1, 2, 3, 6), *, v1c: bool = True
    ) -> None:
        super().__init__()
        inputs = 512 if layers == 18 else 2048
        self.backbone = MmBackbone(layers, bands, v1c=v1c)
        self.decode_head = MmHead(inputs, inputs // 4, classes, bins)
        self.auxiliary_head = MmAuxiliary(inputs // 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.decode_head(self.backbone(x)[1])
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)

    def auxiliary_logits(self, x: Tensor) -> Tensor:
        logits = self.auxiliary_head(self.backbone(x)[0])
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


def randomise(network: nn.Module) -> None:
    """Fill weights and statistics so that no layer is an identity and no output explodes."""
    draw = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=draw) * 0.5 + 0.75)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * (1 / max(1, tensor[0].numel())) ** 0.5)
