"""Folding: the same function for less work, once a network is no longer trained.

What is linear is computed together with what is beside it: batch normalisation with the convolution before it, and the
upsampling of the pyramid's levels with the one after it.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from landseg.model.pspnet import PSPNet, PyramidPooling, upsample


def fold(network: nn.Module) -> None:
    """Fold what can be folded, in place; a network that was folded before stays as it is.

    Law: the network answers as before, but for rounding.

    Parameters
    ----------
    network
        In inference mode; in each of its modules a normalisation that follows a convolution comes after it in the
        forward pass, too.
    """
    for module in network.modules():
        _fold_normalisation(module)
    for module in list(network.modules()):
        if isinstance(module, PSPNet) and not isinstance(module.pyramid, FoldedPyramid):
            _fold_pyramid(module)


def _fold_normalisation(module: nn.Module) -> None:
    for (_, before), (name, norm) in itertools.pairwise(list(module.named_children())):
        convolution = before[-1] if isinstance(before, nn.Sequential) else before
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            statistics = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, *statistics, norm.eps, norm.weight, norm.bias
            )
            setattr(module, name, nn.Identity())


def _fold_pyramid(network: PSPNet) -> None:
    pyramid, bottleneck = network.pyramid, network.head[0]
    # Where cells are fewer than channels, going over cells is the lesser work.
    worth = 0 < sum(size**2 for size in pyramid.bins) < pyramid.out_channels - pyramid.in_channels
    if worth and isinstance(bottleneck, nn.Conv2d):
        network.add_module("pyramid", FoldedPyramid(pyramid, bottleneck))
        network.head[0] = nn.Identity()


class FoldedPyramid(nn.Module):
    """A pyramid with the convolution after it, whose filters see the cells of a level instead of its upsampled pixels.

    The answer of a convolution is the sum of those to each part of its input. A level's part is spanned by few cells,
    in the paper 50 for all levels: what a filter makes of a cell, times the cell's share in what the filter sees from a
    pixel. The shares follow from the sizes alone.

    Parameters
    ----------
    pyramid, convolution
        What it stands for; they are its own from then on.
    """

    def __init__(self, pyramid: PyramidPooling, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.kernel = convolution.kernel_size[0]
        on_features, on_levels = pyramid.split(convolution.weight)  # (O, C, k, k), L of (O, R, k, k)
        self.convolution = convolution
        self.convolution.weight = nn.Parameter(on_features.contiguous())
        self.convolution.in_channels = pyramid.in_channels
        filters = (weight.permute(2, 3, 0, 1).flatten(0, 2) for weight in on_levels)  # (k * k * O, R)
        self.on_levels = nn.ParameterList(some[..., None, None] for some in filters)
        self._shares_at: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, O, h, w)."""
        answer: Tensor = self.convolution(x)
        count, channels, *size = answer.shape
        parts = []
        for level, weight in zip(self.pyramid.levels, self.on_levels, strict=True):
            seen = F.conv2d(level(x), weight)  # (N, k * k * O, n, n)
            parts.append(seen.reshape(count, self.kernel**2, channels, -1).mT.flatten(1, 2))  # (N, k * k * n * n, O)
        levels = self._shares(tuple(size), x) @ torch.cat(parts, dim=1)  # (N, h * w, O)
        return answer + levels.mT.reshape(answer.shape)

    def _shares(self, size: tuple[int, ...], x: Tensor) -> Tensor:
        """Tell each cell's share in what each pixel of a filter sees from each pixel, (h * w, L of k * k * n * n)."""
        if size not in self._shares_at:
            levels = []
            for bins in self.pyramid.bins:
                cells = torch.eye(bins**2, device=x.device).view(-1, 1, bins, bins)
                pixels = upsample(cells, size, align_corners=self.pyramid.align_corners)  # (n * n, 1, h, w)
                seen = F.unfold(pixels, self.kernel, padding=self.kernel // 2)  # (n * n, k * k, h * w)
                levels.append(seen.transpose(0, 1).flatten(0, 1))
            self._shares_at[size] = torch.cat(levels).T.to(x.dtype)
        return self._shares_at[size]
