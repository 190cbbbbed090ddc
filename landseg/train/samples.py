"""Pairs of scene and labels as training samples, drawn by torchgeo and read as scenes are for mapping.

A sample is ``{"image": (C, H, W) float32 in 0-255, "mask": (H, W) int64}``; the mask holds channel indices into the
legend, and `IGNORED` where nothing is known or the scene holds no data.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
import torch
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.utils.data import Dataset, Sampler
from torchgeo.datasets import GeoDataset

from landseg.chips import Normalisation
from landseg.errors import BandError, CrsError, GsdError, SceneError, TrainingDataError
from landseg.grid import Grid, cells
from landseg.scene import (
    Pixels,
    RasterScene,
    SceneInfo,
    ValueRanges,
    describe_scene,
    match_bands,
    value_ranges,
    working_grid,
)
from landseg.train.labels import CLASS_COLUMN, IGNORED, Bounds, LabelCodes, Labels, open_labels, overlap

Sample = dict[str, Any]

_EVERY_PX = 8
"""Along rows and columns, which pixels are measured."""

_READ_PX = 1024
_MOST_OPEN = 128
# In pixels, over a whole scene; what rounding leaves of coordinates is far less.
_TOLERANCE = 1e-3


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
class ModelInput:
    """What a network is shown of a scene.

    Parameters
    ----------
    gsd_m
        Pixel size in metres.
    bands
        Names of the bands in channel order.
    band_numbers
        Their numbers, from 1, in every scene; None to find them by their names.
    value_range
        The (low, high) that scenes which are not 8-bit are brought to 0-255 from; None for the 2nd and 98th percentiles
        of each scene.
    mean
        Of each band on the scale 0-255: what pixels that hold no data get, which normalisation turns to 0 as
        `landseg.chips.Normalisation` does. None to leave them NaN.
    """

    gsd_m: float
    bands: tuple[str, ...] = ("red", "green", "blue")
    band_numbers: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TrainingScene:
    """A scene with all that mapping would decide about it.

    Parameters
    ----------
    info
        Its header.
    bands
        Band numbers from 1, in channel order.
    grid
        What it would be mapped on.
    ranges
        What its values are scaled from.
    """

    info: SceneInfo
    bands: tuple[int, ...]
    grid: Grid
    ranges: ValueRanges

    def read(self, place: Grid, reading_grid: Grid) -> NDArray[np.float32]:
        """Read a place that may reach beyond the scene, (C, H, W) on the scale 0-255; NaN where there is no data.

        Parameters
        ----------
        place
            In any CRS.
        reading_grid
            The grid that most places are parts of, for which the file is kept open; others take longer.

        Raises
        ------
        TrainingDataError
            If the file is damaged.
        """
        offset = _offset(reading_grid, place)
        if offset is None:
            with self.opened(place) as scene:
                return self.scaled(scene.read(place.window))
        (row, col), (rows, cols) = offset, place.shape
        values = np.full((len(self.bands), rows, cols), np.nan, dtype=np.float32)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + rows, reading_grid.shape[0]), min(col + cols, reading_grid.shape[1])
        if top < bottom and left < right:
            with _telling():
                scene = _kept_open(self.info, self.bands, reading_grid, os.getpid())
                part = scene.read(Window(left, top, right - left, bottom - top))
            values[:, top - row : bottom - row, left - col : right - col] = self.scaled(part)
        return values

    def reading_grid(self, bounds: Bounds, crs: CRS, res: tuple[float, float]) -> Grid:
        """Give the grid of pixels of some width and height within its bounds in a CRS: its own, if that is the same."""
        left, bottom, right, top = bounds
        width, height = res
        rows, cols = (
            math.floor(side / pixel + _TOLERANCE) for side, pixel in ((top - bottom, height), (right - left, width))
        )
        grid = Grid((max(1, rows), max(1, cols)), from_origin(left, top, width, height), crs)
        own = self.info.grid
        return own if own.shape == grid.shape and _offset(own, grid) == (0, 0) else grid

    @contextmanager
    def opened(self, grid: Grid) -> Iterator[RasterScene]:
        """Open it on a grid, for windows within it.

        Raises
        ------
        TrainingDataError
            If a window can't be read.
        """
        with _telling(), RasterScene(self.info, self.bands, grid) as scene:
            yield scene

    def scaled(self, pixels: Pixels) -> NDArray[np.float32]:
        """Bring what was read to the scale 0-255, (C, H, W); NaN where it is not valid."""
        data = pixels.data if pixels.data.dtype == np.uint8 else pixels.data.astype(np.float32)
        valid = torch.from_numpy(pixels.valid)
        values: NDArray[np.float32] = self._to_bytes(torch.from_numpy(data)[None], valid[None])[0].numpy()
        values[:, ~pixels.valid] = np.nan
        return values

    @cached_property
    def _to_bytes(self) -> Normalisation:
        return Normalisation.of(self.ranges, (0.0,) * len(self.bands), (1.0,) * len(self.bands))


@contextmanager
def _telling() -> Iterator[None]:
    """Turn what is wrong with a scene into `TrainingDataError`."""
    try:
        yield
    except SceneError as error:
        raise TrainingDataError(error.what, error.hint) from error


@lru_cache(_MOST_OPEN)
def _kept_open(
    info: SceneInfo,
    bands: tuple[int, ...],
    grid: Grid,
    process: int,  # noqa: ARG001
) -> RasterScene:
    """Open a scene for a process: blocks that are read stay decoded as long as the file is open.

    A process that loads samples begins with what its parent has opened, which it must not read from.
    """
    return RasterScene(info, bands, grid)


def _offset(own: Grid, other: Grid) -> tuple[int, int] | None:
    """Say at which (row, col) of a grid another one begins if the two have the same pixels; None if they don't."""
    if own.crs != other.crs:
        return None
    sides = np.array([own.transform[i] - other.transform[i] for i in (0, 1, 3, 4)]) * max(*own.shape, *other.shape)
    col, row = ~own.transform @ (other.transform.c, other.transform.f)
    pixel = min(map(abs, _pixel(own)))
    if np.abs(sides).max() > _TOLERANCE * pixel or max(abs(col - round(col)), abs(row - round(row))) > _TOLERANCE:
        return None
    return round(row), round(col)


def _pixel(grid: Grid) -> tuple[float, float]:
    """Give width and height of a pixel in CRS units, whichever way the grid is turned."""
    a, b, _, d, e, *_ = grid.transform
    return math.hypot(a, d), math.hypot(b, e)


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
    """Vary what was read, and take out what holds no data.

    Parameters
    ----------
    vary
        Gives a changed copy of a sample, whose image is NaN where it depends on pixels without data; None to leave
        samples as they are.
    mean
        What these pixels get in each band; None to leave them NaN.
    """

    vary: Callable[[Sample], Sample] | None = None
    mean: tuple[float, ...] | None = None

    def __call__(self, sample: Sample) -> Sample:
        """Make the sample that the network gets."""
        if self.vary is not None:
            sample = self.vary(sample)
        empty = sample["image"].isnan().any(dim=0)
        if not empty.any():
            return sample
        image, mask = sample["image"], sample["mask"].masked_fill(empty, IGNORED)
        if self.mean is not None:
            image = torch.where(empty, torch.tensor(self.mean)[:, None, None], image)
        return sample | {"image": image, "mask": mask}


class Pairs(GeoDataset):
    """Scenes with their labels. Image and mask of a pixel are of one pair.

    torchgeo's third axis, time, tells pairs apart: a place at the time of one, as `places` gives them, is read of that
    pair alone. At a place of all times, that pair counts for a pixel whose scene is the first that holds data there.

    torchgeo's own `RasterDataset` knows neither nodata nor a scene's range of values, takes bands as they come, and
    fills ground that no label covers with 0, which may be a class. Its `VectorDataset` reads the whole file for each
    sample.

    Parameters
    ----------
    scenes, labels
        Of the same pairs, in the same order; labels are opened for the CRS.
    crs
        Of the places to read.
    res
        Width and height of a pixel in units of the CRS.
    prepare
        What is done to each sample.
    """

    def __init__(
        self,
        scenes: Sequence[TrainingScene],
        labels: Sequence[Labels],
        crs: CRS,
        res: tuple[float, float],
        prepare: Prepare,
    ) -> None:
        self.scenes = tuple(scenes)
        self.labels = tuple(labels)
        self.scene_bounds = tuple(scene.info.grid.bounds_in(crs) for scene in scenes)
        self.reading_grids = tuple(
            scene.reading_grid(bounds, crs, res) for scene, bounds in zip(scenes, self.scene_bounds, strict=True)
        )
        self.transforms = prepare
        self.paths = [scene.info.path for scene in scenes]
        self._res = res
        shared = [
            (*np.maximum(ground[:2], one.bounds[:2]), *np.minimum(ground[2:], one.bounds[2:]))
            for ground, one in zip(self.scene_bounds, labels, strict=True)
        ]
        self.index = places(list(enumerate(shared)), crs)

    def __getitem__(self, query: Any) -> Sample:
        """Read the sample of a place."""
        x, y, t = self._disambiguate_slice(query)
        shape = (round((y.stop - y.start) / y.step), round((x.stop - x.start) / x.step))
        grid = Grid(shape, from_origin(x.start, y.stop, x.step, y.step), CRS.from_user_input(self.crs))
        image = np.full((len(self.scenes[0].bands), *shape), np.nan, dtype=np.float32)
        mask = np.full(shape, IGNORED, dtype=np.int64)
        for pair, (scene, labels) in enumerate(zip(self.scenes, self.labels, strict=True)):
            if not (t.start <= _time(pair) <= t.stop and overlap(self.scene_bounds[pair], grid.bounds)):
                continue
            empty = np.isnan(image[0])
            if empty.any():
                image = np.where(empty, scene.read(grid, self.reading_grids[pair]), image)
                if overlap(labels.bounds, grid.bounds):
                    mask = np.where(empty, labels.read(grid).channels, mask)
        return self.transforms({"image": torch.from_numpy(image), "mask": torch.from_numpy(mask)})


def _time(pair: int) -> pd.Timestamp:
    """Give the time that stands for a pair."""
    return pd.Timestamp(pair, unit="s")


def places(bounds: Sequence[tuple[int, Bounds]], crs: Any) -> GeoDataFrame:
    """Make the index of a torchgeo dataset, a row for each rectangle on the ground of a pair, by the pair's number."""
    times = [(_time(pair), _time(pair)) for pair, _ in bounds]
    index = pd.IntervalIndex.from_tuples(times, closed="both", name="datetime")
    return GeoDataFrame(index=index, geometry=[shapely.box(*one) for _, one in bounds], crs=crs)


def open_scene(path: Path, model_input: ModelInput) -> TrainingScene:
    """Decide about a scene what mapping would decide.

    Raises
    ------
    TrainingDataError
        If it is missing, unreadable, empty or without a CRS, its bands can't be told, or its pixels are too far from
        the size wanted.
    """
    names = ", ".join(model_input.bands)
    hint: str | None
    try:
        info = describe_scene(str(path))
        bands = match_bands(info, model_input.bands, model_input.band_numbers)
        return TrainingScene(
            info, bands, working_grid(info, model_input.gsd_m), value_ranges(info, bands, model_input.value_range)
        )
    except SceneError as error:
        # Those of mapping name options that a training does not have.
        match error:
            case BandError() if "--bands" in (error.hint or ""):
                numbers = ", ".join("n" * len(model_input.bands))
                hint = f"say by their numbers which bands of all scenes are {names}: data.band_numbers: [{numbers}]"
            case GsdError():
                hint = "train at a pixel size nearer to that of the scenes: gsd_m"
            case CrsError():
                hint = "georeference it first, in QGIS for example"
            case _:
                hint = error.hint
        raise TrainingDataError(error.what, hint) from error


def open_pairs(
    pairs: Sequence[Pair],
    codes: LabelCodes,
    model_input: ModelInput,
    *,
    like: GeoDataset | None = None,
    vary: Callable[[Sample], Sample] | None = None,
) -> Pairs:
    """Open pairs as one torchgeo dataset.

    Parameters
    ----------
    pairs
        At least one.
    codes
        What the values of the labels mean.
    model_input
        What is read of the scenes.
    like
        Another dataset, in whose CRS and pixels to read; by default those that the first scene would be mapped on.
    vary
        Changes each sample, for augmentation; see `Prepare`.

    Returns
    -------
    Pairs
        In the order given.

    Raises
    ------
    TrainingDataError
        If a scene can't be used, see `open_scene`, or is in degrees, labels can't be read, or a scene and its labels
        do not overlap.
    """
    scenes = [open_scene(pair.scene, model_input) for pair in pairs]
    for scene in scenes:
        if scene.info.grid.crs.is_geographic:
            raise TrainingDataError(
                f"the scene {scene.info.path} is in degrees", "reproject it, to its UTM zone for example"
            )
    if like is None:
        crs, res = scenes[0].grid.crs, _pixel(scenes[0].grid)
    else:
        crs, res = CRS.from_user_input(like.crs), like.res
    labels = []
    for pair, scene in zip(pairs, scenes, strict=True):
        ground = scene.info.grid.bounds_in(crs)
        if not np.isfinite(ground).all():
            raise TrainingDataError(f"the scene {pair.scene} lies outside of {crs}, in which {pairs[0].scene} is")
        labels.append(open_own_labels(pair, codes, crs, ground))
    return Pairs(scenes, labels, crs, res, Prepare(vary, model_input.mean))


def open_own_labels(pair: Pair, codes: LabelCodes, crs: CRS, ground: Bounds) -> Labels:
    """Open the labels of a pair, in the CRS of its scene's bounds; see `landseg.train.labels.open_labels`."""
    where = f"the scene {pair.scene}"
    return open_labels(pair.labels, codes, crs, ground, where, class_column=pair.class_column, layer=pair.layer)


def band_statistics(scenes: Sequence[TrainingScene]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each band on the scale 0-255, over the valid pixels of all scenes.

    Every eighth pixel of every eighth row is measured, as it is: averages would shrink the spread that single pixels
    have.

    Raises
    ------
    TrainingDataError
        If no pixel is valid.
    """
    total = np.zeros(len(scenes[0].bands))
    squares, count = np.zeros_like(total), 0
    for scene in scenes:
        rows, cols = (_spread(size) for size in scene.grid.shape)
        with scene.opened(scene.grid) as reader:
            for _, window in cells(scene.grid.window, _READ_PX):
                (top, bottom), (left, right) = window.toranges()
                row, col = rows[(top <= rows) & (rows < bottom)] - top, cols[(left <= cols) & (cols < right)] - left
                pixels = reader.read(window)
                some = Pixels(pixels.data[:, row[:, None], col], pixels.valid[row[:, None], col])
                values = scene.scaled(some)[:, some.valid].astype(np.float64)
                total += values.sum(axis=1)
                squares += (values**2).sum(axis=1)
                count += values.shape[1]
    if count == 0:
        raise TrainingDataError(f"no pixel of the training scenes is valid, {scenes[0].info.path} to begin with")
    return mean_and_std(total, squares, count)


def _spread(size: int) -> NDArray[np.int64]:
    """Choose every eighth index, in the middle of its eight."""
    count = max(1, size // _EVERY_PX)
    return ((np.arange(count) + 0.5) * size / count).astype(np.int64)


def mean_and_std(
    total: NDArray[np.float64], squares: NDArray[np.float64], pixels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give mean and standard deviation of each band, to three decimals, from sums over pixels, (C,) each."""
    mean = total / pixels
    std = np.sqrt(squares / pixels - mean**2)
    return tuple(round(float(m), 3) for m in mean), tuple(round(float(s), 3) for s in std)
