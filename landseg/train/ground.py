"""The ground of a training: how many labelled pixels of each class lie where, counted once by cells."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.windows import Window, intersect
from rasterio.windows import bounds as window_bounds

from landseg.errors import TrainingDataError
from landseg.grid import Grid, cells
from landseg.train.labels import IGNORED, MANY_VALUES, Bounds, LabelCodes, Labels, Value
from landseg.train.samples import Pairs, TrainingScene

TOLERANCE_PX = 1e-6
"""What rounding leaves of coordinates is far less."""

_READ_PX = 1024


@dataclass(frozen=True, eq=False)
class Ground:
    """A scene's pixels at the training's resolution, and how many of each class lie where.

    Parameters
    ----------
    grid
        The scene's, north up.
    cell_px
        Side of the cells that are counted in.
    class_px
        (rows of cells, cols of cells, K) int64.
    """

    grid: Grid
    cell_px: int
    class_px: NDArray[np.int64]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Whether a cell holds a label, (rows, cols) of cells."""
        labelled: NDArray[np.bool_] = self.class_px.sum(axis=-1) > 0
        return labelled

    def cells(self, window: Window) -> tuple[slice, slice]:
        """Find the cells whose centres lie in a window."""
        rows, cols = (
            slice(*np.searchsorted(_centres(size, self.cell_px), (start, start + length)))
            for size, start, length in zip(
                self.grid.shape,
                (window.row_off, window.col_off),
                (window.height, window.width),
                strict=True,
            )
        )
        return rows, cols

    def bounds(self, window: Window) -> Bounds:
        """Give a window's bounds in CRS units."""
        left, bottom, right, top = window_bounds(window, self.grid.transform)
        return left, bottom, right, top

    def window(self, bounds: Bounds) -> Window:
        """Give the smallest window of whole pixels around bounds; it may reach beyond the grid."""
        corners = itertools.product((bounds[0], bounds[2]), (bounds[1], bounds[3]))
        cols, rows = zip(*(~self.grid.transform @ corner for corner in corners), strict=True)
        col, row = math.floor(min(cols) + TOLERANCE_PX), math.floor(min(rows) + TOLERANCE_PX)
        return Window(col, row, math.ceil(max(cols) - TOLERANCE_PX) - col, math.ceil(max(rows) - TOLERANCE_PX) - row)

    def shared_px(self, others: Sequence["Ground"]) -> int:
        """Count the labelled pixels in those cells whose centres lie in cells of other grounds with labels, too."""
        rows, cols = np.nonzero(self.labelled)
        ys, xs = (_centres(size, self.cell_px)[at] for size, at in zip(self.grid.shape, (rows, cols), strict=True))
        places = _applied(self.grid.transform, xs, ys)
        shared = np.zeros(len(rows), dtype=np.bool_)
        for other in others:
            to_other = Transformer.from_crs(self.grid.crs.to_wkt(), other.grid.crs.to_wkt(), always_xy=True)
            x, y = _applied(~other.grid.transform, *to_other.transform(*places))
            row, col = (np.floor(np.where(np.isfinite(at), at, -1)).astype(np.int64) for at in (y, x))
            inside = (row >= 0) & (row < other.grid.shape[0]) & (col >= 0) & (col < other.grid.shape[1])
            shared[inside] |= other.labelled[row[inside] // other.cell_px, col[inside] // other.cell_px]
        return int(self.class_px[rows, cols].sum(axis=-1)[shared].sum())


def _applied(
    transform: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b, c, d, e, f, *_ = transform
    return a * x + b * y + c, d * x + e * y + f


def _centres(size: int, cell_px: int) -> NDArray[np.float64]:
    edges = np.minimum(np.arange(0, size + cell_px, cell_px), size)
    return (edges[:-1] + edges[1:]) / 2


def survey(dataset: Pairs, codes: LabelCodes, cell_px: int) -> list[Ground]:
    """Count the labels of every pair by cells.

    Raises
    ------
    TrainingDataError
        If labels hold unknown values, or nothing is labelled.
    """
    grounds = [
        count_labels(grid, scene, labels, codes, cell_px)
        for scene, labels, grid in zip(dataset.scenes, dataset.labels, dataset.reading_grids, strict=True)
    ]
    if not any(ground.class_px.any() for ground in grounds):
        raise TrainingDataError(
            f"no pixel of the labels has a known class where the scenes are, {dataset.labels[0].path} to begin with",
            "see data.label_values: value in the labels -> class name",
        )
    return grounds


def count_labels(grid: Grid, scene: TrainingScene, labels: Labels, codes: LabelCodes, cell_px: int) -> Ground:
    """Count the labelled pixels of a grid where the scene holds data.

    Raises
    ------
    TrainingDataError
        If labels hold unknown values.
    """
    classes, (rows, cols) = len(codes.names), grid.shape
    counts = np.zeros((-(-rows // cell_px), -(-cols // cell_px), classes), dtype=np.int64)
    ground = Ground(grid, cell_px, counts)
    unknown: Counter[Value | float] = Counter()
    # Labels may cover little of a scene.
    inside = ground.window(labels.bounds)
    side = cell_px * max(1, _READ_PX // cell_px)
    all_valid = scene.info.grid == grid and scene.info.validity == "none" and not scene.info.is_float(scene.bands)
    with scene.opened(grid) as pixels:
        for _, window in cells(grid.window, side):
            if not intersect(window, inside):
                continue
            reading = labels.read(Grid((window.height, window.width), grid.window_transform(window), grid.crs))
            unknown += reading.unknown
            if len(unknown) > MANY_VALUES:
                break
            known = reading.channels != IGNORED
            if known.any() and not all_valid:
                known &= pixels.read(window).valid
            row, col = np.nonzero(known)
            top, left = window.row_off // cell_px, window.col_off // cell_px
            part = counts[top : top + side // cell_px, left : left + side // cell_px]
            at = (row // cell_px * part.shape[1] + col // cell_px) * classes + reading.channels[row, col]
            part += np.bincount(at, minlength=part.size).reshape(part.shape)
    if unknown:
        raise codes.explain(unknown, labels.path)
    return ground
