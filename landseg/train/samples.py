"""Pairs of scene and labels as training samples, read by torchgeo.

A sample is ``{"image": (C, H, W) float32 in 0-255, "mask": (H, W) int64}``; the mask holds channel indices into the
legend, and `IGNORED` where nothing is known.
"""

from collections.abc import Mapping, Sequence
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
from torchgeo.datasets import IntersectionDataset, RasterDataset

from landseg.errors import TrainingDataError
from landseg.train.augment import Augmentation

IGNORED = 255
"""Mask value of pixels without a label; they take no part in losses and metrics."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A scene and the raster of its labels, on grids that may differ."""

    scene: Path
    labels: Path


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


def open_pairs(
    pairs: Sequence[Pair], codes: LabelCodes, gsd_m: float, *, vary: Augmentation | None = None
) -> IntersectionDataset:
    """Open pairs as one torchgeo dataset, resampled to ``gsd_m`` on the first scene's CRS, its samples varied if asked.

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
        return sample if vary is None else vary(sample)

    return IntersectionDataset(images, labels, transforms=prepare)


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
