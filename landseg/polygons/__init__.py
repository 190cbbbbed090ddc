"""From a raster of labels to polygons: one for each face, without gaps or overlaps between them.

A label raster is a planar map: faces that are bounded by arcs, each of which is shared by two of them. All is derived
from the arcs, stored once, so that neighbours can't disagree. The raster is read twice, strip by strip: to number the
faces (`label`), then to trace their arcs (`trace`, `seams`), from which finished faces are assembled (`assemble`) and
put aside on disk (`spool`) until they can be given in order. Memory holds some strips, the arcs of unfinished faces and
a few bytes for each face, whatever the size of the map.
"""

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import GeometryType

from landseg.grid import Grid
from landseg.polygons.assemble import Finished, Rings, concatenate, place_on_ground, split
from landseg.polygons.label import Faces, LabelledStrip, SeamJoiner
from landseg.polygons.measure import measure_rings, metres_per_pixel
from landseg.polygons.merge import NO_MERGING, Borders, Merging, merge_small
from landseg.polygons.seams import join_arcs
from landseg.polygons.simplify import simplify_arcs
from landseg.polygons.spool import Spool
from landseg.polygons.strips import Strips, ahead
from landseg.polygons.trace import Arcs, find_corners, find_vertices, trace_strip

PIXELS_AT_ONCE = 2**21
"""In a strip."""

FACES_AT_ONCE = 2**16
"""In a batch of polygons."""


@dataclass(frozen=True)
class Polygons:
    """Faces of a map as polygons, ordered by the face's top-left pixel (row-major).

    Laws: every polygon is valid; together they are a coverage (`shapely.coverage_is_valid`); unless simplified,
    a polygon's area in CRS units is its number of pixels times the area of a pixel.

    Parameters
    ----------
    face_id
        (N,) int32: the face's rank among all of the map, from 1.
    geometry
        (N,) shapely Polygons in the CRS of the grid.
    class_id
        (N,) uint8, from 1; nodata has no polygons.
    confidence
        (N,) float32, mean percent over the face's pixels, 0-100; NaN if the raster has no band of it.
    area_m2
        (N,) float64, on the ellipsoid.
    perimeter_m
        (N,) float64, on the ellipsoid; outer and inner rings together.
    """

    face_id: NDArray[np.int32]
    geometry: NDArray[np.object_]
    class_id: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    area_m2: NDArray[np.float64]
    perimeter_m: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.geometry)

    @classmethod
    def concatenate(cls, batches: Iterable[Self]) -> Self:
        """Put batches after each other."""
        none = cls(*(np.empty(0, kind) for kind in ("i4", object, "u1", "f4", "f8", "f8")))
        parts = [none, *batches]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def polygonize(
    raster: Path,
    grid: Grid,
    *,
    work: Path,
    merging: Merging = NO_MERGING,
    tolerance: float = 0.0,
    strip_rows: int | None = None,
    threads: int | None = None,
) -> Generator[Polygons, None, None]:
    """Turn the 4-connected faces of a map into polygons, batch by batch.

    Law: the polygons depend neither on ``strip_rows`` nor on ``threads``.

    Parameters
    ----------
    raster
        On ``grid``: band 1 labels, uint8, 0 = nodata; band 2, if there is one, confidence, uint8 percent.
    grid
        Pixels of the raster on the ground; its transform may be rotated.
    work
        A folder in which a temporary file may grow to about as many bytes as the polygons will have; it goes when all
        are given, or the generator is closed.
    merging
        Which faces are too small; their minima are taken at the scale of the grid's centre.
    tolerance
        In units of the CRS: how far from its simplified arc the corner of a pixel may lie; 0 to keep all corners.
    strip_rows
        Rows that are worked on together; chosen by the raster's width if None.
    threads
        As many strips are worked on at the same time; all cores if None.

    Yields
    ------
    Polygons
        Outer rings run counter-clockwise, inner rings clockwise.
    """
    strips = Strips(raster, grid.shape, strip_rows or max(1, PIXELS_AT_ONCE // grid.shape[1]))
    workers = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        faces = _number_faces(strips, pool, workers)
        if not len(faces):
            return
        if merging.is_needed:
            faces = _merge_small(strips, faces, merging, grid, pool, workers)
        with Spool(work / "faces", len(faces)) as spool:
            for rings in ahead(
                pool, Finished.assemble, _finished(strips, faces, grid, tolerance, pool, workers), workers
            ):
                spool.write(rings)
            metres = metres_per_pixel(grid)

            def draw(first: int) -> Polygons:
                return _draw(spool.read(first, min(first + FACES_AT_ONCE, len(faces) + 1)), faces, grid, metres)

            yield from ahead(pool, draw, range(1, len(faces) + 1, FACES_AT_ONCE), workers)


def _number_faces(strips: Strips, pool: Executor, workers: int) -> Faces:
    has_confidence = strips.bands > 1

    def label(index: int) -> tuple[LabelledStrip, NDArray[np.float64]]:
        strip = LabelledStrip.of(strips.read(index, 1))
        return strip, strip.tally(strips.read(index, 2) if has_confidence else None)

    joiner = SeamJoiner()
    for strip, tally in ahead(pool, label, range(len(strips)), workers):
        joiner.add(strip, tally)
    return joiner.finish()


def _merge_small(strips: Strips, faces: Faces, merging: Merging, grid: Grid, pool: Executor, workers: int) -> Faces:
    def measure(strip: tuple[int, NDArray[np.int32]]) -> Borders:
        return Borders.of(strip[1])

    borders = list(ahead(pool, measure, _with_row_above(strips, faces, pool, workers), workers))
    return merge_small(faces, Borders.concatenate(borders), merging, grid)


def _with_row_above(
    strips: Strips, faces: Faces, pool: Executor, workers: int
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Give the faces of each strip's pixels, (1 + rows, cols + 2), within the row above it and a frame of 0."""

    def number(index: int) -> NDArray[np.int32]:
        return faces.of_pixels(index, LabelledStrip.of(strips.read(index, 1)))

    above: NDArray[np.int32] | int = 0
    for index, framed in enumerate(ahead(pool, number, range(len(strips)), workers)):
        framed[0] = above
        above = framed[-2].copy()
        # Nodata closes the map below the last strip.
        yield index, framed if index == len(strips) - 1 else framed[:-1]


def _finished(
    strips: Strips, faces: Faces, grid: Grid, tolerance: float, pool: Executor, workers: int
) -> Iterator[Finished]:
    """Trace the map from top to bottom and give the arcs of its faces as these are finished."""
    cols = strips.shape[1]

    marks = np.zeros((strips.shape[0] + 1, (cols + 64) // 64) if tolerance > 0 else (0, 0), np.uint64)
    a, b, _, d, e, _ = grid.transform[:6]

    def trace(strip: tuple[int, NDArray[np.int32]]) -> tuple[Arcs, NDArray[np.int32]]:
        index, framed = strip
        first_row = index * strips.rows
        corners = find_corners(framed)
        if tolerance > 0:
            marks[first_row : first_row + len(corners)] = find_vertices(corners)
        return trace_strip(framed, corners, first_row), framed[-1]

    def join() -> Iterator[tuple[Arcs, NDArray[np.int32]]]:
        unfinished = Arcs.none()
        for arcs, last_row in ahead(pool, trace, _with_row_above(strips, faces, pool, workers), workers):
            complete, unfinished = join_arcs(unfinished, arcs, cols)
            yield complete, last_row

    def simplify(joined: tuple[Arcs, NDArray[np.int32]]) -> tuple[Arcs, NDArray[np.int32]]:
        arcs, last_row = joined
        return simplify_arcs(arcs, marks, (a, b, d, e), tolerance) if tolerance > 0 else arcs, last_row

    held = Arcs.none()
    for complete, last_row in ahead(pool, simplify, join(), workers):
        is_open = np.zeros(len(faces) + 1, np.bool_)
        is_open[last_row] = True
        is_open[0] = False
        finished, held = split(concatenate((held, complete)), is_open)
        yield finished


def _draw(rings: Rings, faces: Faces, grid: Grid, metres: NDArray[np.float64]) -> Polygons:
    """Make polygons of consecutive faces and measure them."""
    xy, ring_offsets, polygon_offsets = place_on_ground(rings, grid.transform[:6])
    geometry = shapely.from_ragged_array(GeometryType.POLYGON, xy, (ring_offsets, polygon_offsets))
    area_m2, perimeter_m = measure_rings(rings, metres, *grid.shape)
    ids = rings.faces
    return Polygons(ids, geometry, faces.class_id[ids], faces.confidence[ids], area_m2, perimeter_m)
