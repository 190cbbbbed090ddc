"""Pairs of scene and labels as training samples, read by torchgeo.

A sample is ``{"image": (C, H, W) float32 in 0-255, "mask": (H, W) int64}``; the mask holds channel indices into the
legend, and `IGNORED` where nothing is known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchgeo.datasets import GeoDataset, IntersectionDataset, RasterDataset
from torchgeo.samplers import RandomGeoSampler

from landseg.errors import TrainingDataError

IGNORED = 255
"""Mask value of pixels without a label; they take no part in losses and metrics."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A scene and the raster of its labels, on grids that may differ."""

    scene: Path
    labels: Path


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, and how random ones are drawn.

    Parameters
    ----------
    dataset
        Gives the sample of a place.
    sampler
        Makes, of a length and a chip's side in pixels, a sampler of random places that follows from torch's global
        generator alone. It raises `TrainingDataError` where nothing is as large as a chip.
    """

    dataset: Dataset[dict[str, Any]]
    sampler: Callable[[int, int], Sampler[Any]]


class _Labels(RasterDataset):
    is_image = False

    def _load_warp_file(self, filepath: Any) -> Any:
        """Open a raster so that what it does not cover is `IGNORED` and not, as torchgeo has it, 0: a class perhaps."""
        source = rasterio.open(filepath)
        if source.nodata is None:
            return WarpedVRT(source, crs=self.crs, nodata=IGNORED)
        source.close()
        return super()._load_warp_file(filepath)


class LabelCodes:
    """Turn the values of label rasters into channel indices.

    Parameters
    ----------
    label_values
        Value in the raster -> class name; other values become `IGNORED`.
    names
        Class names in channel order.
    """

    def __init__(self, label_values: Mapping[int, str], names: Sequence[str]) -> None:
        # One entry more, for all that no byte holds.
        self.table = torch.full((257,), IGNORED, dtype=torch.int64)
        for value, name in label_values.items():
            self.table[value] = list(names).index(name)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Recode ``sample["mask"]``."""
        return sample | {"mask": self.recode(sample["mask"])}

    def recode(self, values: Tensor) -> Tensor:
        """Turn integers of any size and shape into channel indices, int64."""
        values = values.long()
        return self.table[values.where((values >= 0) & (values <= 255), 256)]


class Augmentation:
    """Vary a sample as nadir imagery varies: any of the 8 symmetries, and brightness, contrast and tint.

    Parameters
    ----------
    contrast
        Largest change of gain, for the image and for each band again at a third of it.
    brightness
        Largest shift, on the scale 0-255.
    """

    def __init__(self, contrast: float = 0.25, brightness: float = 25.0) -> None:
        self.contrast = contrast
        self.brightness = brightness

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return a varied copy of the sample."""
        image, mask = sample["image"], sample["mask"]
        turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        image, mask = image.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
        if mirrored:
            image, mask = image.flip(-1), mask.flip(-1)
        return sample | {"image": self._recolour(image), "mask": mask.contiguous()}

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


def open_pairs(pairs: Sequence[Pair], codes: LabelCodes, gsd_m: float, *, augment: bool) -> IntersectionDataset:
    """Open pairs as one torchgeo dataset, resampled to ``gsd_m`` on the first scene's CRS.

    Raises
    ------
    TrainingDataError
        If a file is missing or unreadable, or a scene and its labels do not overlap.
    """
    for pair in pairs:
        _check_pair(pair)
    images = RasterDataset([str(pair.scene) for pair in pairs], res=gsd_m)
    labels = _Labels([str(pair.labels) for pair in pairs], res=gsd_m)

    def prepare(sample: dict[str, Any]) -> dict[str, Any]:
        sample = codes({"image": sample["image"], "mask": sample["mask"]})
        return vary(sample) if augment else sample

    vary = Augmentation()
    return IntersectionDataset(images, labels, transforms=prepare)


def draw_from_scenes(dataset: GeoDataset, length: int, chip_px: int) -> RandomGeoSampler:
    """Make a sampler of random chips.

    Raises
    ------
    TrainingDataError
        If no scene is as large as a chip.
    """
    sampler = RandomGeoSampler(dataset, size=chip_px, length=length)
    if not sampler.bounds:
        raise TrainingDataError(f"no scene with labels is as large as a chip of {chip_px} px", "reduce chip_px")
    return sampler


def _check_pair(pair: Pair) -> None:
    try:
        with rasterio.open(pair.scene) as scene, rasterio.open(pair.labels) as labels:
            if scene.crs is None or labels.crs is None:
                raise TrainingDataError(f"{pair.scene} or its labels {pair.labels} have no coordinate reference system")
            if scene.crs == labels.crs and rasterio.coords.disjoint_bounds(scene.bounds, labels.bounds):
                raise TrainingDataError(f"the labels {pair.labels} do not overlap the scene {pair.scene}")
    except rasterio.errors.RasterioIOError as error:
        raise TrainingDataError(f"can't read {pair.scene} with {pair.labels}: {error}") from error


def class_frequencies(pairs: Sequence[Pair], codes: LabelCodes, classes: int) -> NDArray[np.float64]:
    """Measure the share of each class among the labelled pixels, from reads at an eighth of the resolution.

    Raises
    ------
    TrainingDataError
        If nothing is labelled.
    """
    counts = np.zeros(classes, dtype=np.float64)
    for pair in pairs:
        with rasterio.open(pair.labels) as labels:
            shape = (max(1, labels.height // 8), max(1, labels.width // 8))
            channels = codes.recode(torch.from_numpy(labels.read(1, out_shape=shape).astype(np.int64))).numpy()
        counts += np.bincount(channels[channels != IGNORED], minlength=classes)[:classes]
    if counts.sum() == 0:
        raise TrainingDataError(
            "no pixel of the labels has a known class", "see data.label_values: value in the raster -> class name"
        )
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def band_statistics(pairs: Sequence[Pair]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each band over all scenes, from reads at an eighth of the resolution."""
    total, squares, count = 0.0, 0.0, 0
    for pair in pairs:
        with rasterio.open(pair.scene) as scene:
            shape = (scene.count, max(1, scene.height // 8), max(1, scene.width // 8))
            # Nearest neighbour: averaging would shrink the spread that single pixels have.
            pixels = scene.read(out_shape=shape, resampling=Resampling.nearest).astype(np.float64)
        total = total + pixels.sum(axis=(1, 2))
        squares = squares + (pixels**2).sum(axis=(1, 2))
        count += pixels.shape[1] * pixels.shape[2]
    mean = np.asarray(total) / count
    std = np.sqrt(np.asarray(squares) / count - mean**2)
    return tuple(round(float(m), 3) for m in mean), tuple(round(float(s), 3) for s in std)
