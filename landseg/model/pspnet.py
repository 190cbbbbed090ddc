"""PSPNet: a ResNet's features, pooled at several scales, put back beside them and classified.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landseg.model.resnet import LAYOUTS, BackboneName, OutputStride, ResNet, conv3x3


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that fixes the shapes of a PSPNet's weights and the meaning of its output.

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
        Cells per side of each level of the pyramid: 1, 2, 3 and 6 in the paper.
    """

    backbone: BackboneName = "resnet18"
    in_channels: int = 3
    classes: int = 5
    output_stride: OutputStride = 8
    bins: tuple[int, ...] = (1, 2, 3, 6)

    def __post_init__(self) -> None:
        if self.backbone not in LAYOUTS:
            raise ValueError(f"there is no backbone '{self.backbone}'")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output stride {self.output_stride} is not 8, 16 or 32")
        if not self.bins or min(self.bins) < 1:
            raise ValueError(f"{self.bins} are no numbers of bins")


class PyramidPooling(nn.Module):
    """Average the features over grids of several sizes and put each, brought back to full size, beside them.

    Pooling spans the whole chip: a network answers as it was trained to only at the chip size of its training.

    Parameters
    ----------
    in_channels
        Channels of the features; each level is reduced to ``in_channels / len(bins)``.
    bins
        Cells per side of each level.
    """

    def __init__(self, in_channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        reduced = in_channels // len(bins)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(in_channels, reduced, kernel_size=1, bias=False),
                nn.BatchNorm2d(reduced),
                nn.ReLU(inplace=True),
            )
            for size in bins
        )
        self.out_channels = in_channels + reduced * len(bins)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C + L * (C // L), h, w) for L levels."""
        size = x.shape[-2:]
        levels = [F.interpolate(level(x), size, mode="bilinear", align_corners=False) for level in self.levels]
        return torch.cat([x, *levels], dim=1)


def prediction_head(in_channels: int, width: int, classes: int) -> nn.Sequential:
    """Make a 3x3 bottleneck and a classifier: the form of both the main and the auxiliary head."""
    return nn.Sequential(
        conv3x3(in_channels, width),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, classes, kernel_size=1),
    )


class PSPNet(nn.Module):
    """The network: ``backbone`` -> ``pyramid`` -> ``head``, and in training ``auxiliary`` on stage 3.

    Parameters
    ----------
    architecture
        What to build.
    auxiliary
        Whether to build the auxiliary head. It is used in training alone; bundles hold no weights for it.
    """

    def __init__(self, architecture: Architecture, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = ResNet(architecture.backbone, architecture.in_channels, architecture.output_stride)
        stage3, stage4 = self.backbone.out_channels[2:]
        self.pyramid = PyramidPooling(stage4, architecture.bins)
        self.head = prediction_head(self.pyramid.out_channels, stage4 // 4, architecture.classes)
        self.auxiliary = prediction_head(stage3, stage3 // 4, architecture.classes) if auxiliary else None

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
        size = x.shape[-2:]
        stage3, stage4 = self.backbone(x)  # (N, C3, H/s, W/s), (N, C4, H/s, W/s)
        logits = self.head(self.pyramid(stage4))  # (N, K, H/s, W/s)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)  # (N, K, H, W)
        if not with_auxiliary:
            return logits
        if self.auxiliary is None:
            raise ValueError("this network was built without its auxiliary head")
        auxiliary = F.interpolate(self.auxiliary(stage3), size, mode="bilinear", align_corners=False)  # (N, K, H, W)
        return logits, auxiliary
