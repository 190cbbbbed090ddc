"""Pure geometry: the pixel grid of a scene, the chips that cover it and the strips it is computed in.

No I/O happens here. Pairs are (rows, cols); affine transforms and bounds are xy.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from rasterio.crs import CRS
from rasterio.windows import Window

WGS84 = Geod(ellps="WGS84")
LONLAT = CRS.from_epsg(4326)

SWATH_CHIPS, SWATH_PX = 8, 1536
"""Most chips and columns of a swath: longer ones are hardly quicker, and for one at least memory must suffice."""


def epsg_code(crs: CRS) -> str | None:
    """Name a CRS as EPSG does, such as ``EPSG:32640``; None if it is none of theirs.

    PROJ, where it is asked for a code, gives that of one that is alike, whose coordinates may be many metres off.
    """
    code = crs.to_epsg()
    if code is None:
        return None
    # What pyproj knows by the code itself is of another version of EPSG's tables, where names of datums differ. Pixels
    # are counted across and down, whichever axis a code has first.
    own, known = (pyproj.CRS.from_wkt(one.to_wkt()) for one in (crs, CRS.from_epsg(code)))
    is_same = own.equals(known, ignore_axis_order=True)
    return f"EPSG:{code}" if is_same else None


@dataclass(frozen=True)
class Grid:
    """The pixels of a raster on the ground.

    Parameters
    ----------
    shape
        (rows, cols).
    transform
        From (col, row) to CRS coordinates; may be rotated or sheared.
    crs
        Coordinate reference system.
    """

    shape: tuple[int, int]
    transform: Affine
    crs: CRS

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    @property
    def window(self) -> Window:
        """All of its pixels."""
        return Window(0, 0, self.shape[1], self.shape[0])

    @cached_property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Upper left, upper right, lower right and lower left corner in CRS units."""
        rows, cols = self.shape
        xys = [self.transform @ corner for corner in ((0, 0), (cols, 0), (cols, rows), (0, rows))]
        return tuple((float(x), float(y)) for x, y in xys)

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in CRS units, around all corners."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def lonlat_outline(self, parts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give longitudes and latitudes around the grid, in degrees on WGS 84, each side divided into so many parts.

        The first of the `corners` ends it, too. Longitudes are unbroken at the 180th meridian.
        """
        steps = np.linspace(0, 4, 4 * parts + 1)
        x, y = (np.interp(steps, range(5), side) for side in zip(*self.corners, self.corners[0], strict=True))
        lons, lats = self._transformer(LONLAT).transform(x, y)
        return np.unwrap(lons, period=360), lats

    @cached_property
    def pixel_size_m(self) -> tuple[float, float]:
        """Height and width of the central pixel in metres on the ellipsoid."""
        row, col = self.shape[0] / 2, self.shape[1] / 2
        xys = [self.transform @ p for p in ((col, row - 0.5), (col, row + 0.5), (col - 0.5, row), (col + 0.5, row))]
        lons, lats = self._transformer(LONLAT).transform([x for x, _ in xys], [y for _, y in xys])
        _, _, metres = WGS84.inv(lons[0::2], lats[0::2], lons[1::2], lats[1::2])
        return float(metres[0]), float(metres[1])

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance in metres: the geometric mean of a pixel's two sides."""
        return math.sqrt(self.pixel_size_m[0] * self.pixel_size_m[1])

    @property
    def north(self) -> tuple[float, float]:
        """Unit vector (right, up) on the raster, drawn as it is stored, that points to grid north."""
        to_pixels = ~self.transform
        height_m, width_m = self.pixel_size_m
        right, up = to_pixels.b * width_m, -to_pixels.e * height_m
        return right / math.hypot(right, up), up / math.hypot(right, up)

    def bounds_in(self, crs: CRS) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in another CRS, around all of the grid."""
        if self.crs == crs:
            return self.bounds
        left, bottom, right, top = self._transformer(crs).transform_bounds(*self.bounds)
        return left, bottom, right, top

    def _transformer(self, crs: CRS) -> Transformer:
        """Make what turns its coordinates, xy, into another CRS's."""
        return Transformer.from_crs(self.crs.to_wkt(), crs.to_wkt(), always_xy=True)

    def window_of(self, other: "Grid") -> Window:
        """Give the pixels that another grid may touch, whose ground lies within this one's; this one has north up."""
        left, bottom, right, top = other.bounds_in(self.crs)
        rows, cols = self.shape
        (c0, r0), (c1, r1) = ~self.transform @ (left, top), ~self.transform @ (right, bottom)
        # A millionth of a pixel is rounding.
        col, row = max(0, math.floor(c0 + 1e-6)), max(0, math.floor(r0 + 1e-6))
        return Window(col, row, min(cols, math.ceil(c1 - 1e-6)) - col, min(rows, math.ceil(r1 - 1e-6)) - row)

    def shrunk(self, longest_px: int) -> "Grid":
        """Give the grid over the same ground with at most ``longest_px`` rows and columns."""
        shape = shrunk(self.shape, longest_px)
        scale = Affine.scale(self.shape[1] / shape[1], self.shape[0] / shape[0])
        return Grid(shape, self.transform @ scale, self.crs)

    def window_transform(self, window: Window) -> Affine:
        """Give the transform of the part of the grid within a window.

        Law: ``grid.window_transform(w) @ (0, 0) == grid.transform @ (w.col_off, w.row_off)``.
        """
        return self.transform @ Affine.translation(window.col_off, window.row_off)

    def resampled(self, factors: tuple[float, float]) -> "Grid":
        """Give the grid over the same ground whose pixels are ``factors`` (rows, cols) times as large.

        The last row and column are there if their centres lie on this grid: a fringe that holds no data would be worse
        than a missing half pixel.
        """
        shape = tuple(max(1, round(n / f)) for n, f in zip(self.shape, factors, strict=True))
        return Grid((shape[0], shape[1]), self.transform @ Affine.scale(factors[1], factors[0]), self.crs)


@dataclass(frozen=True, slots=True)
class ChipWindow:
    """Where a chip is read and which part of the grid it answers for.

    Parameters
    ----------
    read
        What the model sees: ``chip_px`` squared, reaching beyond the grid only where the grid is smaller than a chip.
    inside
        The part of ``read`` that lies within the grid.
    core
        The chip's own part of the grid: cores cover every pixel exactly once.
    kept
        The part whose probabilities enter the blend: the read window, within the grid, less a margin along those sides
        that have a neighbour. It contains the core.
    """

    read: Window
    inside: Window
    core: Window
    kept: Window


@dataclass(frozen=True, slots=True)
class _Span:
    """A chip along one axis: [start, stop) of its core and kept parts, start of its read part."""

    read: int
    core: tuple[int, int]
    kept: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows of chips that are computed together, whatever their neighbours do.

    Law: taken in order, the ``own`` rows of all strips, and between them the rows that two strips share, cover every
    row of the grid exactly once.

    Parameters
    ----------
    chip_rows
        Which rows of chips.
    upper
        Rows [start, stop) of the grid that it shares with the strip above: the ``lower`` rows of that one.
    own
        Rows that no other strip's chips reach.
    lower
        Rows that it shares with the strip below.
    """

    chip_rows: range
    upper: tuple[int, int]
    own: tuple[int, int]
    lower: tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """Chips of one size that cover a grid with an overlap.

    Chips stand at a stride of ``chip_px - overlap_px``; the last ones are shifted inward to end at the grid's edge.
    Neighbours are blended within half of their overlap: the outer quarters, where a chip lacks context, are
    left to the neighbour.

    The chips of a row are parted evenly into swaths, which are read, and their features computed, in one piece. Within
    a swath all stand at the stride: the last swath is shifted as a whole.

    Laws: cores cover every pixel exactly once; every pixel lies in at least one kept window; a pixel in a chip's kept
    window is at least ``margin_px`` from those of the chip's sides that lie inside the grid.

    Parameters
    ----------
    shape
        (rows, cols) of the grid.
    chip_px
        Side of a chip.
    overlap_px
        Pixels that neighbouring chips share, less than ``chip_px``.
    swath_chips
        Most chips of a swath.
    """

    shape: tuple[int, int]
    chip_px: int
    overlap_px: int
    swath_chips: int = 1

    @classmethod
    def in_swaths(cls, shape: tuple[int, int], chip_px: int, overlap: float, cell_px: int) -> Self:
        """Choose a stride of whole cells, such as a network's features have, as near as can be to the overlap wanted.

        Parameters
        ----------
        shape
            (rows, cols) of the grid.
        chip_px
            Side of a chip.
        overlap
            Part of a chip's side that neighbours are to share, less than 1.
        cell_px
            Side of a cell.
        """
        most = chip_px // cell_px
        if most == 0:
            return cls(shape, chip_px, 0)
        stride = cell_px * min(max(1, math.floor(chip_px * (1 - overlap) / cell_px + 0.5)), most)
        chips = min(SWATH_CHIPS, 1 + max(0, SWATH_PX - chip_px) // stride)
        return cls(shape, chip_px, chip_px - stride, chips)

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"a grid of shape {self.shape} has no pixels")
        if not 0 <= self.overlap_px < self.chip_px:
            raise ValueError(f"overlap {self.overlap_px} px is not within 0 to {self.chip_px - 1}")

    @property
    def stride_px(self) -> int:
        """Pixels from where a chip begins to where the next one of its swath does."""
        return self.chip_px - self.overlap_px

    @property
    def margin_px(self) -> int:
        """Pixels along a chip's inner sides that are not used."""
        return self.overlap_px // 4

    @cached_property
    def _row_spans(self) -> Sequence[_Span]:
        return self._spans(self.shape[0], self._starts(self.shape[0], 1))

    @cached_property
    def _swath_spans(self) -> Sequence[Sequence[_Span]]:
        swaths = self._starts(self.shape[1], self.swath_chips)
        spans = iter(self._spans(self.shape[1], swaths))
        return [list(itertools.islice(spans, len(starts))) for starts in swaths]

    def _starts(self, size: int, together: int) -> list[list[int]]:
        """Give where chips start along an axis, by swaths."""
        last = max(0, size - self.chip_px)
        count = 1 + math.ceil(last / self.stride_px)
        shift = (count - 1) * self.stride_px - last
        # Of a single swath the first chip is at the one edge, and the last at the other only if the strides fit.
        swaths = max(math.ceil(count / together), 2 if shift else 1)
        cuts = [-(-count * index // swaths) for index in range(swaths + 1)]
        *others, end = ([self.stride_px * i for i in range(*pair)] for pair in itertools.pairwise(cuts))
        return [*others, [start - shift for start in end]]

    def _spans(self, size: int, swaths: Sequence[Sequence[int]]) -> list[_Span]:
        chip, last = self.chip_px, max(0, size - self.chip_px)
        starts = list(itertools.chain.from_iterable(swaths))
        cuts = [0, *((a + chip + b) // 2 for a, b in itertools.pairwise(starts)), size]
        return [
            _Span(
                read=start,
                core=(cuts[i], cuts[i + 1]),
                kept=(
                    0 if start == 0 else start + self.margin_px,
                    size if start == last else start + chip - self.margin_px,
                ),
            )
            for i, start in enumerate(starts)
        ]

    @property
    def chip_counts(self) -> tuple[int, int]:
        """Rows and columns of chips."""
        return len(self._row_spans), sum(map(len, self._swath_spans))

    @property
    def chip_count(self) -> int:
        """Chips in all."""
        return math.prod(self.chip_counts)

    @property
    def swath_count(self) -> int:
        """Swaths of one row of chips."""
        return len(self._swath_spans)

    @property
    def swath_shape(self) -> tuple[int, int]:
        """Chips and columns of a row's first swath; none is longer."""
        chips = len(self._swath_spans[0])
        return chips, self.chip_px + (chips - 1) * self.stride_px

    def swaths_of(self, chips: int) -> int:
        """Count the swaths, one at least, that so many chips are enough for."""
        return max(1, chips // self.swath_chips)

    def swaths(self, index: int) -> Iterator[tuple[ChipWindow, ...]]:
        """Give the chips of one row by swaths, from left to right."""
        row = self._row_spans[index]
        height, width = (min(self.chip_px, n) for n in self.shape)
        for cols in self._swath_spans:
            yield tuple(
                ChipWindow(
                    read=Window(col.read, row.read, self.chip_px, self.chip_px),
                    inside=Window(col.read, row.read, width, height),
                    core=_window(row.core, col.core),
                    kept=_window(row.kept, col.kept),
                )
                for col in cols
            )

    def chip_row(self, index: int) -> Iterator[ChipWindow]:
        """Give the chips of one row, from left to right."""
        return itertools.chain.from_iterable(self.swaths(index))

    def __iter__(self) -> Iterator[ChipWindow]:
        for index in range(len(self._row_spans)):
            yield from self.chip_row(index)

    @property
    def whole(self) -> Strip:
        """All rows of chips as one strip."""
        return self._strip(0, len(self._row_spans))

    def strips(self, chips: int) -> tuple[Strip, ...]:
        """Group the rows of chips into strips of at least so many chips, so high that only neighbours share rows."""
        rows, cols = self.chip_counts
        kept = self.chip_px - 2 * self.margin_px
        count = max(math.ceil(chips / cols), math.ceil(kept / self.stride_px))
        # What is left over joins the last strip.
        starts = [*range(0, max(1, rows - count + 1), count), rows]
        return tuple(self._strip(start, stop) for start, stop in itertools.pairwise(starts))

    def _strip(self, start: int, stop: int) -> Strip:
        spans = self._row_spans
        top = spans[start].kept[0]
        own_start = spans[start - 1].kept[1] if start > 0 else top
        bottom = spans[stop - 1].kept[1]
        own_stop = spans[stop].kept[0] if stop < len(spans) else bottom
        return Strip(range(start, stop), (top, own_start), (own_start, own_stop), (own_stop, bottom))

    def finished_rows(self, chip_row: int) -> tuple[int, int]:
        """Give the rows [start, stop) that are finished by a row of chips, together with those above it.

        Law: over all rows of chips, they cover every row exactly once, in order.
        """
        spans = self._row_spans
        stop = spans[-1].kept[1] if chip_row + 1 == len(spans) else spans[chip_row + 1].kept[0]
        return spans[chip_row].kept[0], stop


def cells(window: Window, side: int) -> Iterator[tuple[tuple[int, int], Window]]:
    """Give the cells that a window touches, (row, col) of squares that rule the grid, and its part of each."""
    (top, bottom), (left, right) = window.toranges()
    for row in range(top // side, -(-bottom // side)):
        for col in range(left // side, -(-right // side)):
            rows = max(top, row * side), min(bottom, (row + 1) * side)
            cols = max(left, col * side), min(right, (col + 1) * side)
            yield (row, col), _window(rows, cols)


def windows_of(cells: Collection[tuple[int, int]], side: int, shape: tuple[int, int]) -> list[Window]:
    """Give windows of a grid that together are some of its cells; those of a row that touch become one window."""
    windows = []
    for row, group in itertools.groupby(sorted(cells), key=lambda cell: cell[0]):
        cols = {col for _, col in group}
        starts = sorted(col for col in cols if col - 1 not in cols)
        stops = sorted(col + 1 for col in cols if col + 1 not in cols)
        rows = row * side, min((row + 1) * side, shape[0])
        windows += [
            _window(rows, (start * side, min(stop * side, shape[1]))) for start, stop in zip(starts, stops, strict=True)
        ]
    return windows


def spanning(left: Window, right: Window) -> Window:
    """Give the window from one to another of the same rows."""
    return Window(left.col_off, left.row_off, right.col_off + right.width - left.col_off, left.height)


def shrunk(shape: tuple[int, int], longest_px: int) -> tuple[int, int]:
    """Give the shape of about the same proportions whose sides are at most ``longest_px``, and at least 1."""
    factor = max(1.0, max(shape) / longest_px)
    return max(1, round(shape[0] / factor)), max(1, round(shape[1] / factor))


def _window(rows: tuple[int, int], cols: tuple[int, int]) -> Window:
    return Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])
