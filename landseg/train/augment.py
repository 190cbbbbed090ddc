"""Augmentation: vary samples as nadir imagery varies, in place, size and light."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation:
    """Vary a sample as nadir imagery varies: any of the 8 symmetries, scale, and brightness, contrast and tint.

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
        centre = image.mean()
        recoloured = (image - centre) * gain[:, None, None] + centre + shift[:, None, None]
        return recoloured.clamp(0, 255).contiguous()


def _symmetric(n: int) -> Tensor:
    """Draw n numbers between -1 and 1."""
    return torch.rand(n) * 2 - 1
