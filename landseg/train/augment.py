"""Augmentation: vary samples as nadir imagery varies, in place, size and light, and put them together anew."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchgeo.datasets import stack_samples

SMALLER_CHIPS = "reduce chip_px or optimisation.augmentation.scale, by whose product chips are read for training"
"""What to do where the ground is too small for a chip."""


class Augmentation:
    """Vary a sample as nadir imagery varies: any of the 8 symmetries, scale, and brightness, contrast and tint.

    Pixels that are NaN, since they hold no data, stay so, and no others depend on them but those mixed from them by
    scaling, which become NaN too.

    Parameters
    ----------
    contrast
        Largest change of gain, for the image and for each band again at a third of it.
    brightness
        Largest shift, on the scale 0-255.
    scale
        Largest factor, 1 or more, that a sample is magnified or shrunk by. What is shrunk needs more ground to begin
        with: see `read_px`.
    """

    def __init__(self, contrast: float = 0.25, brightness: float = 25.0, scale: float = 1.0) -> None:
        self.contrast = contrast
        self.brightness = brightness
        self.scale = scale

    def read_px(self, chip_px: int) -> int:
        """Give the side of the samples to read, in pixels, of which varied ones have a side of ``chip_px``."""
        return math.ceil(chip_px * self.scale)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return a varied copy of the sample, whose side is that of the sample divided by `scale`."""
        image, mask = sample["image"], sample["mask"]
        if self.scale > 1:
            image, mask = self._resize(image, mask)
        turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        image, mask = image.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
        if mirrored:
            image, mask = image.flip(-1), mask.flip(-1)
        return sample | {"image": self._recolour(image), "mask": mask.contiguous()}

    def _resize(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cut a square of random size and place, and bring it to the chip's size."""
        read = image.shape[-1]
        chip = int(read / self.scale + 1e-6)  # what `read_px` was given, in spite of rounding
        # The logarithm is uniform, so that magnifying is as likely as shrinking.
        side = min(read, round(chip * self.scale ** float(_symmetric(1))))
        top, left = (int(torch.randint(read - side + 1, ())) for _ in range(2))
        image, mask = (layer[..., top : top + side, left : left + side] for layer in (image, mask))
        image = F.interpolate(image[None], (chip, chip), mode="bilinear", antialias=True)[0]
        mask = F.interpolate(mask[None, None].float(), (chip, chip), mode="nearest-exact")[0, 0].to(mask.dtype)
        return image, mask

    def _recolour(self, image: Tensor) -> Tensor:
        bands = image.shape[0]
        gain = 1 + self.contrast * _symmetric(1) + self.contrast / 3 * _symmetric(bands)
        shift = self.brightness * _symmetric(1) + self.brightness / 3 * _symmetric(bands)
        centre = image.nanmean() if image.isnan().any() else image.mean()
        recoloured = (image - centre) * gain[:, None, None] + centre + shift[:, None, None]
        return recoloured.clamp(0, 255).contiguous()


class CutMix:
    """Make a batch of samples, some of which get a rectangle of another one, pixels and labels.

    Yun et al., "CutMix", ICCV 2019, section 3.1; for segmentation French et al., "Semi-supervised semantic segmentation
    needs strong, varied perturbations", BMVC 2020. A teacher answers what it is shown; to a pupil of it each mixture is
    a new chip.

    Parameters
    ----------
    share
        Of the samples that get one, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples to a batch: `image` (N, C, H, W) and `mask` (N, H, W)."""
        batch: dict[str, Any] = stack_samples(samples)
        image, mask = batch["image"], batch["mask"]
        height, width = mask.shape[-2:]
        for index in range(len(samples)):
            if torch.rand(()) < self.share:
                # The part of the area that the sample keeps is uniform.
                side = float(torch.rand(())) ** 0.5
                (top, bottom), (left, right) = _random_span(height, side), _random_span(width, side)
                inside = (slice(top, bottom), slice(left, right))
                other = samples[index - 1]
                image[index][:, *inside] = other["image"][:, *inside]
                mask[index][inside] = other["mask"][inside]
        return batch


def _random_span(size: int, side: float) -> tuple[int, int]:
    """Draw a place within `size` pixels for a part of them, a share `side`."""
    length = round(size * side)
    start = int(torch.randint(size - length + 1, ()))
    return start, start + length


def _symmetric(n: int) -> Tensor:
    """Draw n numbers between -1 and 1."""
    return torch.rand(n) * 2 - 1
