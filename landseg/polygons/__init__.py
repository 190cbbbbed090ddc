"""From a raster of labels to polygons: one for each face, without gaps or overlaps between them.

A label raster is a planar map: faces that are bounded by arcs, each of which is shared by two of them. All is derived
from the arcs, stored once, so that neighbours can't disagree. The raster is read twice, strip by strip: to number the
faces (`label`), then to trace their arcs (`trace`, `seams`), from which finished faces are assembled (`assemble`) and
put aside on disk (`spool`) until all before them are finished, too. Memory holds some strips, the arcs of unfinished
faces and a few bytes for each face, whatever the size of the map.
"""

import gc
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import GeometryType

from landseg.grid import Grid
from landseg.machine import ahead, cores
from landseg.polygons.assemble import (
    Finished,
    Held,
    Rings,
    concatenate,
    open_first,
    place_on_ground,
    to_wkb,
)
from landseg.polygons.label import Faces, LabelledStrip, SeamJoiner, Tally
from landseg.polygons.measure import measure_rings, metres_per_pixel
from landseg.polygons.merge import NO_MERGING, Borders, Merging, merge_small
from landseg.polygons.seams import join_arcs
from landseg.polygons.simplify import VertexWindow, Vertices, simplify_arcs
from landseg.polygons.spool import Run, Spool
from landseg.polygons.strips import MOST_CLASSES, PIXELS_AT_ONCE, Strips
from landseg.polygons.trace import Arcs, find_corners, find_vertices, row2_of, trace_strip

WORDS_AT_ONCE = 2**19
"""Of records in a batch of polygons: ten thousand small faces, or a single one that is larger."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Faces of a map as polygons, ordered by the face's top-left pixel (row-major).

    Laws: every polygon is valid; together they are a coverage (`shapely.coverage_is_valid`); unless simplified,
    a polygon's area in CRS units is its number of pixels times the area of a pixel.

    Parameters
    ----------
    face_id
        (N,) int32: the face's rank among all of the map, from 1.
    xy
        (V, 2) float64: all vertices, in the CRS of the grid. Outer rings run counter-clockwise, inner ones clockwise.
    ring_offsets, polygon_offsets
        int64: where rings begin among the vertices and polygons among the rings, as in GeoArrow.
    class_id
        (N,) int32; nodata has no polygons.
    confidence
        (N,) float32, mean percent over the face's pixels, 0-100; NaN if the raster has no band of it.
    area_m2
        (N,) float64, on the ellipsoid.
    perimeter_m
        (N,) float64, on the ellipsoid; outer and inner rings together.
    """

    face_id: NDArray[np.int32]
    xy: NDArray[np.float64]
    ring_offsets: NDArray[np.int64]
    polygon_offsets: NDArray[np.int64]
    class_id: NDArray[np.int32]
    confidence: NDArray[np.float32]
    area_m2: NDArray[np.float64]
    perimeter_m: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.face_id)

    @cached_property
    def geometry(self) -> NDArray[np.object_]:
        """(N,) shapely Polygons."""
        rings = (self.ring_offsets, self.polygon_offsets)
        with _uncollected():
            polygons: NDArray[np.object_] = shapely.from_ragged_array(GeometryType.POLYGON, self.xy, rings)
        return polygons

    @property
    def bounds(self) -> NDArray[np.float64]:
        """(N, 4): left, bottom, right and top in the CRS."""
        firsts = self.ring_offsets[self.polygon_offsets[:-1]]
        return np.hstack([np.minimum.reduceat(self.xy, firsts), np.maximum.reduceat(self.xy, firsts)])

    def to_wkb(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Give well-known binary: octets, and where each polygon's begin, (N + 1,) int64."""
        return to_wkb(self.xy, self.ring_offsets, self.polygon_offsets)

    @classmethod
    def concatenate(cls, batches: Iterable[Self]) -> Self:
        """Put batches after each other."""
        parts = [cls.none(), *batches]
        joined = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        for name in ("ring_offsets", "polygon_offsets"):
            steps = [np.diff(getattr(part, name)) for part in parts]
            joined[name] = np.concatenate([[0], np.cumsum(np.concatenate(steps))])
        return cls(**joined)

    @classmethod
    def none(cls) -> Self:
        """Give no polygons at all."""
        ids, no_offsets, figures = np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0)
        return cls(ids, np.empty((0, 2)), no_offsets, no_offsets, ids, np.empty(0, np.float32), figures, figures)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from searching for garbage again and again while objects that refer to no other are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def polygonize(
    raster: Path,
    grid: Grid,
    *,
    work: Path,
    class_ids: Sequence[int] = range(1, MOST_CLASSES + 1),
    confidence_band: int | None = None,
    merging: Merging = NO_MERGING,
    tolerance_m: float = 0.0,
    strip_rows: int | None = None,
    threads: int | None = None,
) -> Generator[Polygons, None, None]:
    """Turn the 4-connected faces of a map into polygons, batch by batch.

    Law: the polygons depend neither on ``strip_rows`` nor on ``threads``.

    Parameters
    ----------
    raster
        On ``grid``; band 1 holds class ids.
    grid
        Pixels of the raster on the ground; its transform may be rotated.
    work
        A folder in which a temporary file may grow to about as many bytes as the polygons will have; it goes when all
        are given, or the generator is closed.
    class_ids
        Values of the raster that are classes, ascending, at most `MOST_CLASSES`; all others are nodata.
    confidence_band
        Band of the raster that holds uint8 percent, if there is one.
    merging
        Which faces are too small; their minima are taken at the scale of the grid's centre.
    tolerance_m
        How far from its simplified arc the corner of a pixel may lie, at the scale of the grid's centre; 0 to keep all
        corners.
    strip_rows
        Rows that are worked on together; chosen by the raster's width if None.
    threads
        As many strips are worked on at the same time; all cores if None.

    Yields
    ------
    Polygons
        Outer rings run counter-clockwise, inner rings clockwise.
    """
    rows = strip_rows or max(1, PIXELS_AT_ONCE // grid.shape[1])
    strips = Strips(raster, grid.shape, rows, np.asarray(class_ids, np.int64))
    workers = threads or cores()
    with ThreadPoolExecutor(workers) as pool:
        faces, tally = _number_faces(strips, confidence_band, pool, workers)
        if not len(faces):
            return
        if merging.is_needed:
            faces, tally = _merge_small(strips, faces, tally, merging, grid, pool, workers)
        label, confidence = faces.label, None if confidence_band is None else tally.confidence()
        metres = metres_per_pixel(grid)
        with Spool(work / "faces") as spool:
            finished = _finished(strips, faces, metres, tolerance_m, pool, workers)
            del faces, tally  # more than half of what is held of each face; tracing lets go of the rest when it ends

            def put_aside(finished: Finished) -> None:
                spool.write(finished.assemble())

            def batches() -> Iterator[Run]:
                for _ in ahead(pool, put_aside, finished, workers):
                    yield from spool.batches(WORDS_AT_ONCE)
                yield from spool.batches(WORDS_AT_ONCE, rest=True)

            def draw(batch: Run) -> Polygons:
                return _draw(spool.read(batch), label, confidence, strips.values, grid, metres)

            yield from ahead(pool, draw, batches(), workers)


def _number_faces(strips: Strips, confidence_band: int | None, pool: Executor, workers: int) -> tuple[Faces, Tally]:
    def label(index: int) -> LabelledStrip:
        confidence = None if confidence_band is None else strips.read(index, confidence_band)
        return LabelledStrip.of(strips.labels(index), confidence)

    joiner = SeamJoiner()
    for strip in ahead(pool, label, range(len(strips)), workers):
        joiner.add(strip)
    return joiner.finish()


def _merge_small(
    strips: Strips, faces: Faces, tally: Tally, merging: Merging, grid: Grid, pool: Executor, workers: int
) -> tuple[Faces, Tally]:
    def measure(strip: tuple[int, NDArray[np.int32]]) -> Borders:
        return Borders.of(strip[1])

    borders = list(ahead(pool, measure, _with_row_above(strips, faces, pool, workers), workers))
    return merge_small(faces, tally, Borders.concatenate(borders), merging, strips.values.tolist(), grid)


def _with_row_above(
    strips: Strips, faces: Faces, pool: Executor, workers: int
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Give the faces of each strip's pixels, (1 + rows, cols + 2), within the row above it and a frame of 0."""

    def number(index: int) -> NDArray[np.int32]:
        return faces.of_pixels(index, LabelledStrip.of(strips.labels(index)))

    above: NDArray[np.int32] | int = 0
    for index, framed in enumerate(ahead(pool, number, range(len(strips)), workers)):
        framed[0] = above
        above = framed[-2].copy()
        # Nodata closes the map below the last strip.
        yield index, framed if index == len(strips) - 1 else framed[:-1]


def _finished(
    strips: Strips, faces: Faces, metres: NDArray[np.float64], tolerance_m: float, pool: Executor, workers: int
) -> Iterator[Finished]:
    """Trace the map from top to bottom and give the arcs of its faces as these are finished."""
    cols = strips.shape[1]
    linear = tuple(metres[metres.shape[0] // 2, metres.shape[1] // 2].ravel().tolist())
    is_simplified = tolerance_m > 0

    def trace(strip: tuple[int, NDArray[np.int32]]) -> tuple[Arcs, NDArray[np.uint64] | None, NDArray[np.int32]]:
        index, framed = strip
        corners = find_corners(framed)
        marks = find_vertices(corners) if is_simplified else None
        return trace_strip(framed, corners, index * strips.rows), marks, framed[-1]

    def join() -> Iterator[tuple[tuple[Arcs, Arcs], Vertices | None, NDArray[np.int32]]]:
        unfinished, window = Arcs.none(), VertexWindow((cols + 64) // 64)
        traced = ahead(pool, trace, _with_row_above(strips, faces, pool, workers), workers)
        for index, (arcs, marks, last_row) in enumerate(traced):
            first_row = row2_of(unfinished.codes.min()) // 2 if len(unfinished.codes) else index * strips.rows
            vertices = None if marks is None else window.move(first_row, marks)
            at_seams, complete = open_first(arcs)
            joined, unfinished = join_arcs(unfinished, at_seams, cols)
            yield (joined, complete), vertices, last_row

    def simplify(
        joined: tuple[tuple[Arcs, Arcs], Vertices | None, NDArray[np.int32]],
    ) -> tuple[Arcs, NDArray[np.int32]]:
        parts, vertices, last_row = joined
        arcs = concatenate(parts)
        return arcs if vertices is None else simplify_arcs(arcs, vertices, linear, tolerance_m), last_row

    held = Held()
    for complete, last_row in ahead(pool, simplify, join(), workers):
        is_open = np.zeros(len(faces) + 1, np.bool_)
        is_open[last_row] = True
        is_open[0] = False
        yield held.exchange(complete, is_open)


def _draw(
    rings: Rings,
    label: NDArray[np.uint8],
    confidence: NDArray[np.float32] | None,
    class_ids: NDArray[np.int64],
    grid: Grid,
    metres: NDArray[np.float64],
) -> Polygons:
    """Make polygons of consecutive faces and measure them."""
    xy, ring_offsets, polygon_offsets = place_on_ground(rings, grid.transform[:6])
    area_m2, perimeter_m = measure_rings(rings, metres, *grid.shape)
    ids = rings.faces
    class_id = class_ids[label[ids] - 1].astype(np.int32)
    known = np.full(len(ids), np.nan, np.float32) if confidence is None else confidence[ids]
    return Polygons(ids, xy, ring_offsets, polygon_offsets, class_id, known, area_m2, perimeter_m)
