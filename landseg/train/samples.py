"""Pairs of scene and labels as training samples, read by torchgeo.

A sample is ``{"image": (C, H, W) float32 in 0-255, "mask": (H, W) int64}``; the mask holds channel indices into the
legend, and `IGNORED` where nothing is known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from torch.utils.data import Dataset, Sampler
from torchgeo.datasets import GeoDataset, IntersectionDataset, RasterDataset

from landseg.errors import TrainingDataError
from landseg.grid import Grid
from landseg.train.labels import CLASS_COLUMN, IGNORED, Bounds, LabelCodes, Labels, open_labels

Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """A scene and what is known of its ground, which may be a part of it.

    Parameters
    ----------
    scene
        Raster of imagery.
    labels
        Raster of codes, or polygons, of any CRS.
    class_column, layer
        Where polygons say their class; see `landseg.train.labels.open_labels`.
    """

    scene: Path
    labels: Path
    class_column: str = CLASS_COLUMN
    layer: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, and how random ones are drawn.

    Parameters
    ----------
    dataset
        Gives the sample of a place.
    draw
        Makes, of a number of samples, a sampler of random places that follows from torch's global generator alone.
    """

    dataset: Dataset[Sample]
    draw: Callable[[int], Sampler[Any]]


@dataclass(frozen=True, slots=True)
class Sites:
    """Samples at places that stay the same.

    Parameters
    ----------
    dataset
        Gives the sample of a place.
    places
        In a fixed order.
    """

    dataset: Dataset[Sample]
    places: Sampler[Any] | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Keep image and mask of what torchgeo read, and vary them.

    Parameters
    ----------
    vary
        Gives a changed copy of a sample; None to leave samples as they are.
    """

    vary: Callable[[Sample], Sample] | None = None

    def __call__(self, sample: Sample) -> Sample:
        """Make the sample that the network gets."""
        sample = {"image": sample["image"], "mask": sample["mask"]}
        return sample if self.vary is None else self.vary(sample)


class PairedLabels(GeoDataset):
    """The labels of all pairs as one dataset; where several cover a place, the first that knows it.

    torchgeo's own datasets fill the ground that no label covers with 0, which may be a class, and its `VectorDataset`
    reads the whole file for each sample.

    Parameters
    ----------
    labels
        Opened for the dataset's CRS.
    crs
        Of the places to read.
    gsd_m
        Pixel size in units of the CRS.
    """

    def __init__(self, labels: Sequence[Labels], crs: CRS, gsd_m: float) -> None:
        self.labels = tuple(labels)
        self.paths = [str(one.path) for one in labels]
        self._res = (gsd_m, gsd_m)
        self.index = places([one.bounds for one in labels], crs, filepath=self.paths)

    def __getitem__(self, query: Any) -> Sample:
        """Read the labels of a place."""
        x, y, _ = self._disambiguate_slice(query)
        shape = (round((y.stop - y.start) / y.step), round((x.stop - x.start) / x.step))
        grid = Grid(shape, from_origin(x.start, y.stop, x.step, y.step), CRS.from_user_input(self.crs))
        mask = np.full(shape, IGNORED, dtype=np.int64)
        for one in self.labels:
            left, bottom, right, top = one.bounds
            if left < x.stop and x.start < right and bottom < y.stop and y.start < top:
                mask = np.where(mask == IGNORED, one.read(grid).channels, mask)
        return {"crs": self.crs, "bounds": query, "mask": torch.from_numpy(mask)}


class Pairs(IntersectionDataset):
    """Scenes with their labels.

    Parameters
    ----------
    scenes
        One for each pair, in any order.
    labels
        Of the same pairs.
    bounds
        Of each pair's scene, in the scenes' CRS and the labels' order.
    transforms
        What is done to each sample.
    """

    def __init__(
        self,
        scenes: RasterDataset,
        labels: PairedLabels,
        bounds: Sequence[Bounds],
        transforms: Callable[[Sample], Sample],
    ) -> None:
        super().__init__(scenes, labels, transforms=transforms)
        self.labels = labels.labels
        self.scene_bounds = tuple(bounds)


def places(bounds: Sequence[Bounds], crs: Any, **columns: Any) -> GeoDataFrame:
    """Make the index of a torchgeo dataset, a row for each rectangle, of all times."""
    times = pd.IntervalIndex.from_tuples(
        [(pd.Timestamp.min, pd.Timestamp.max)] * len(bounds), closed="both", name="datetime"
    )
    return GeoDataFrame(columns, index=times, geometry=[shapely.box(*one) for one in bounds], crs=crs)


def open_pairs(
    pairs: Sequence[Pair],
    codes: LabelCodes,
    gsd_m: float,
    *,
    crs: CRS | None = None,
    vary: Callable[[Sample], Sample] | None = None,
) -> Pairs:
    """Open pairs as one torchgeo dataset, resampled to ``gsd_m``.

    Parameters
    ----------
    pairs
        At least one; all scenes have the same bands.
    codes
        What the values of the labels mean.
    gsd_m
        Pixel size in units of the CRS.
    crs
        To read the pairs in; by default the first scene's.
    vary
        Changes each sample, for augmentation.

    Returns
    -------
    Pairs
        In the order given.

    Raises
    ------
    TrainingDataError
        If a file is missing, unreadable or without a projected CRS, scenes differ in their bands, or a scene and its
        labels do not overlap.
    """
    own = _check_scenes([pair.scene for pair in pairs])
    crs = own if crs is None else crs
    images = RasterDataset([str(pair.scene) for pair in pairs], crs=crs, res=gsd_m)
    by_path = {p: g.bounds for p, g in zip(images.index.filepath, images.index.geometry, strict=True)}
    bounds: list[Bounds] = [by_path[str(pair.scene)] for pair in pairs]
    labels = [
        open_labels(
            pair.labels,
            codes,
            crs,
            ground,
            f"the scene {pair.scene}",
            class_column=pair.class_column,
            layer=pair.layer,
        )
        for pair, ground in zip(pairs, bounds, strict=True)
    ]
    return Pairs(images, PairedLabels(labels, crs, gsd_m), bounds, Prepare(vary))


def _check_scenes(scenes: Sequence[Path]) -> CRS:
    """Give the first scene's CRS if all can be read together."""
    found = []
    for path in scenes:
        try:
            with rasterio.open(path) as scene:
                crs, bands = scene.crs, scene.count
        except rasterio.errors.RasterioIOError as error:
            raise TrainingDataError(f"can't read the scene {path}: {error}") from error
        if crs is None:
            raise TrainingDataError(f"{path} has no coordinate reference system", "georeference it first")
        if crs.is_geographic:
            raise TrainingDataError(f"the scene {path} is in degrees", "reproject it, to its UTM zone for example")
        found.append((crs, bands))
        if bands != found[0][1]:
            raise TrainingDataError(f"the scene {path} has {bands} bands; {scenes[0]} has {found[0][1]}")
    return found[0][0]


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
    return mean_and_std(np.asarray(total), np.asarray(squares), count)


def mean_and_std(
    total: NDArray[np.float64], squares: NDArray[np.float64], pixels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give mean and standard deviation of each band, to three decimals, from sums over pixels, (C,) each."""
    mean = total / pixels
    std = np.sqrt(squares / pixels - mean**2)
    return tuple(round(float(m), 3) for m in mean), tuple(round(float(s), 3) for s in std)
