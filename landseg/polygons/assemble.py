"""From complete arcs to the rings of faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from landseg.polygons.compiled import kernel
from landseg.polygons.trace import CLOSED, Arcs, col2_of, row2_of

FEW_SIDES = 12
"""Up to so many sides of a face are searched one by one: sorting them takes longer."""


class Rings(NamedTuple):
    """Faces as records of int32, which say all about a face's shape and can be stored one after the other.

    A record is the number of rings, the number of points of each, and their points (x, y) in half pixels. The first
    ring is the shell, which has the face on its left as seen with rows running down; holes follow in the order of
    their first points. A ring begins and ends at its smallest point in row-major order.

    Parameters
    ----------
    faces
        (N,) int32, ascending.
    offsets
        (N + 1,) int64: face ``faces[i]`` has the record ``words[offsets[i]:offsets[i + 1]]``.
    words
        (W,) int32.
    """

    faces: NDArray[np.int32]
    offsets: NDArray[np.int64]
    words: NDArray[np.int32]


@dataclass(frozen=True)
class Finished:
    """Faces that will not get any further arcs.

    Parameters
    ----------
    parts
        All of their arcs, with face 0 in the place of others.
    """

    parts: list[Arcs]

    def assemble(self) -> Rings:
        """Link the sides of each face to rings, and let go of the arcs: they may be as many as a map has."""
        arcs = concatenate(self.parts)
        self.parts.clear()
        # A side is ``2 * arc`` for an arc's left one and ``2 * arc + 1`` for its right one.
        faces = arcs.faces.ravel()
        sides = np.flatnonzero(faces)
        sides = sides[_stable_order(faces[sides])]
        return _assemble(arcs, faces[sides], sides)


def _stable_order(faces: NDArray[np.int32]) -> NDArray[np.int64]:
    """Sort by two digits of 16 bits, which NumPy does in linear time."""
    order = np.argsort(faces.astype(np.uint16), kind="stable")
    return order[np.argsort((faces >> 16).astype(np.uint16)[order], kind="stable")]


class Held:
    """Arcs that open faces need still, strip by strip.

    An arc between a finished face and an open one has face 0 in the place of the former, so that each face is finished
    once. Only the strips in which a face has arcs are looked at when it is finished: what it costs grows with the
    height of the faces, and not with that of the map.
    """

    def __init__(self) -> None:
        self._arcs: dict[int, Arcs] = {}
        self._strips_of: dict[int, list[int]] = {}
        self._count = 0

    def exchange(self, complete: Arcs, is_open: NDArray[np.bool_]) -> Finished:
        """Take the arcs that are complete with a strip, and give those of the faces that are finished with it.

        Parameters
        ----------
        complete
            Arcs that end in the strip.
        is_open
            (faces + 1,) bool: whether a face goes on below the strip. Face 0, which is none, does not.
        """
        closing = [face for face in self._strips_of if not is_open[face]]
        strips = sorted({strip for face in closing for strip in self._strips_of.pop(face)})
        is_closing = np.zeros_like(is_open)
        is_closing[closing] = True
        released = [self._release(strip, is_closing) for strip in strips]
        return Finished([*released, self._hold(complete, is_open)])

    def _release(self, strip: int, is_closing: NDArray[np.bool_]) -> Arcs:
        """Give a strip's arcs of closing faces, and hold what others need of them."""
        arcs = self._arcs.pop(strip)
        closing = is_closing[arcs.faces]
        released = _select(arcs, _with_any(closing))
        needed = arcs._replace(faces=arcs.faces * ~closing)
        if needed.faces.any():
            self._arcs[strip] = _select(needed, _with_any(needed.faces != 0))
        return released._replace(faces=released.faces * is_closing[released.faces])

    def _hold(self, complete: Arcs, is_open: NDArray[np.bool_]) -> Arcs:
        """Hold what open faces need of a strip's arcs, and give what the others need of them."""
        needing = is_open[complete.faces]
        needed = _select(complete._replace(faces=complete.faces * needing), _with_any(needing))
        if len(needed.faces):
            self._arcs[self._count] = needed
            for face in np.unique(needed.faces).tolist():
                if face:
                    self._strips_of.setdefault(face, []).append(self._count)
        self._count += 1
        return complete._replace(faces=complete.faces * ~needing)


def _with_any(sides: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find the arcs of which at least one of the two sides, (N, 2) bool, is meant."""
    # NumPy's any() along a short axis takes ten times as long.
    return np.flatnonzero(sides[:, 0] | sides[:, 1])


def open_first(arcs: Arcs) -> tuple[Arcs, Arcs]:
    """Tell a strip's arcs that are open at a seam, which come first, from those that are complete."""
    count = len(_with_any(arcs.ends >= 0))
    size = arcs.offsets[count]
    return (
        Arcs(arcs.codes[:size], arcs.offsets[: count + 1], arcs.faces[:count], arcs.ends[:count]),
        Arcs(arcs.codes[size:], arcs.offsets[count:] - size, arcs.faces[count:], arcs.ends[count:]),
    )


def concatenate(parts: Sequence[Arcs]) -> Arcs:
    """Put arcs one after the other."""
    shifts = np.cumsum([0, *(len(part.codes) for part in parts)])
    offsets = [part.offsets[1:] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
    return Arcs(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        np.concatenate([part.faces for part in parts]),
        np.concatenate([part.ends for part in parts]),
    )


@kernel
def _select(arcs: Arcs, chosen: NDArray[np.int64]) -> Arcs:
    offsets = np.zeros(len(chosen) + 1, np.int64)
    for k in range(len(chosen)):
        offsets[k + 1] = offsets[k] + arcs.offsets[chosen[k] + 1] - arcs.offsets[chosen[k]]
    codes = np.empty(offsets[-1], np.int64)
    for k in range(len(chosen)):
        codes[offsets[k] : offsets[k + 1]] = arcs.codes[arcs.offsets[chosen[k]] : arcs.offsets[chosen[k] + 1]]
    return Arcs(codes, offsets, arcs.faces[chosen], arcs.ends[chosen])


@kernel
def _assemble(arcs: Arcs, faces: NDArray[np.int32], sides: NDArray[np.int64]) -> Rings:
    """Assemble faces whose sides stand together, as in `Finished` but sorted by face."""
    points, found, run, most = 0, 0, 0, 0
    for k in range(len(sides)):
        points += arcs.offsets[(sides[k] >> 1) + 1] - arcs.offsets[sides[k] >> 1]
        if k == 0 or faces[k] != faces[k - 1]:
            found += 1
            run = 0
        run += 1
        most = max(most, run)
    # A ring has no fewer points than its sides have, and each ring has a side.
    words = np.empty(2 * points + len(sides) + found, np.int32)
    offsets = np.zeros(found + 1, np.int64)
    face_ids = np.empty(found, np.int32)
    codes = np.empty(points, np.int64)
    room = np.empty((5, most + 1), np.int64)
    n, start = 0, 0
    while start < len(sides):
        stop = start
        while stop < len(sides) and faces[stop] == faces[start]:
            stop += 1
        face_ids[n] = faces[start]
        offsets[n + 1] = _assemble_face(arcs, sides[start:stop], codes, room, words, offsets[n])
        n += 1
        start = stop
    return Rings(face_ids, offsets, words[: offsets[n]])


@kernel
def _assemble_face(
    arcs: Arcs,
    sides: NDArray[np.int64],
    codes: NDArray[np.int64],
    room: NDArray[np.int64],
    words: NDArray[np.int32],
    offset: int,
) -> int:
    """Write a face's record and give the offset after it.

    At a node a face has one sector, so that only one of its sides begins there: the one that goes on. ``codes`` is room
    for all vertices, and ``room`` for five numbers a side and one more: most faces are so small that making room for
    each would take longer than all the rest. They are merge-sorted, since what is nearly in order already, as most of
    these numbers are, can take Numba's quicksort the square of its length.
    """
    count = len(sides)
    origins, starts, smallest, keys, used = room[0], room[1], room[2], room[3], room[4]
    starts[0] = 0
    for k in range(count):
        used[k] = 0
        arc = sides[k] >> 1
        origins[k] = arcs.codes[arcs.offsets[arc + 1] - 1 if sides[k] & 1 else arcs.offsets[arc]]
    order, sorted_origins = origins, origins
    if count > FEW_SIDES:
        order = np.argsort(origins[:count], kind="mergesort")
        sorted_origins = origins[order]
    rings, size = 0, 0
    for first in range(count):
        if used[first]:
            continue
        k, least = first, size
        while not used[k]:
            used[k] = 1
            arc, is_right = sides[k] >> 1, sides[k] & 1
            # A side's last point is the next one's first.
            first_point, last_point = arcs.offsets[arc], arcs.offsets[arc + 1] - 1
            point, stop, step = (last_point, first_point, -1) if is_right else (first_point, last_point, 1)
            while point != stop:
                codes[size] = arcs.codes[point]
                if codes[size] < codes[least]:
                    least = size
                size += 1
                point += step
            if arcs.ends[arc, 0] != CLOSED:
                target = arcs.codes[stop]
                if count > FEW_SIDES:
                    k = order[np.searchsorted(sorted_origins, target)]
                else:
                    k = 0
                    while origins[k] != target:
                        k += 1
        smallest[rings] = least
        rings += 1
        starts[rings] = size

    ranks = keys
    if rings > 1:
        for r in range(rings):
            is_shell = _twice_area(codes[starts[r] : starts[r + 1]]) > 0
            keys[r] = -1 if is_shell else codes[smallest[r]]
        ranks = np.argsort(keys[:rings], kind="mergesort")
    words[offset] = rings
    place = offset + 1 + rings
    for rank in range(rings):
        r = ranks[rank] if rings > 1 else 0
        first_point, stop = starts[r], starts[r + 1]
        words[offset + 1 + rank] = stop - first_point + 1
        point = smallest[r]
        for _ in range(stop - first_point + 1):
            words[place] = col2_of(codes[point])
            words[place + 1] = row2_of(codes[point])
            place += 2
            point = point + 1 if point + 1 < stop else first_point
    return place


@kernel
def _twice_area(ring: NDArray[np.int64]) -> int:
    """Sum up a ring in half pixels, positive if its inside is on the left as seen with rows running down."""
    total = 0
    x, y = col2_of(ring[-1]), row2_of(ring[-1])
    for vertex in ring:
        next_x, next_y = col2_of(vertex), row2_of(vertex)
        total += next_x * y - x * next_y
        x, y = next_x, next_y
    return total


@kernel
def place_on_ground(
    rings: Rings, transform: tuple[float, float, float, float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Give faces as ragged arrays of polygons whose shells run counter-clockwise.

    Parameters
    ----------
    rings
        N faces.
    transform
        a, b, c, d, e, f: from (col, row) to the ground.

    Returns
    -------
    xy
        (P, 2) float64.
    ring_offsets, polygon_offsets
        int64, as `shapely.from_ragged_array` takes them.
    """
    a, b, c, d, e, f = transform
    mirrored = a * e - b * d > 0
    count = len(rings.faces)
    polygon_offsets = np.zeros(count + 1, np.int64)
    for face in range(count):
        polygon_offsets[face + 1] = polygon_offsets[face] + rings.words[rings.offsets[face]]
    ring_count = polygon_offsets[-1]
    ring_offsets = np.zeros(ring_count + 1, np.int64)
    xy = np.empty(((len(rings.words) - count - ring_count) // 2, 2), np.float64)
    ring, size = 0, 0
    for face in range(count):
        record = rings.words[rings.offsets[face] : rings.offsets[face + 1]]
        at = 1 + record[0]
        for part in range(record[0]):
            points = record[1 + part]
            for k in range(points):
                col, row = record[at] / 2, record[at + 1] / 2
                place = size + points - 1 - k if mirrored else size + k
                xy[place, 0] = a * col + b * row + c
                xy[place, 1] = d * col + e * row + f
                at += 2
            size += points
            ring += 1
            ring_offsets[ring] = size
    return xy, ring_offsets, polygon_offsets


@kernel
def to_wkb(
    xy: NDArray[np.float64], ring_offsets: NDArray[np.int64], polygon_offsets: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Write polygons as well-known binary, little-endian (OGC 06-103r4, section 8).

    Parameters
    ----------
    xy, ring_offsets, polygon_offsets
        N polygons, as from `place_on_ground`.

    Returns
    -------
    octets, offsets
        Polygon ``i`` is ``octets[offsets[i]:offsets[i + 1]]``; (N + 1,) int64.
    """
    count = len(polygon_offsets) - 1
    octets = np.empty(9 * count + 4 * (len(ring_offsets) - 1) + 16 * len(xy), np.uint8)
    coordinates = xy.view(np.uint8).ravel()
    offsets = np.zeros(count + 1, np.int64)
    at = 0
    for polygon in range(count):
        octets[at] = 1
        at = _put(octets, at + 1, 3)
        at = _put(octets, at, polygon_offsets[polygon + 1] - polygon_offsets[polygon])
        for ring in range(polygon_offsets[polygon], polygon_offsets[polygon + 1]):
            first, stop = 16 * ring_offsets[ring], 16 * ring_offsets[ring + 1]
            at = _put(octets, at, (stop - first) // 16)
            octets[at : at + stop - first] = coordinates[first:stop]
            at += stop - first
        offsets[polygon + 1] = at
    return octets, offsets


@kernel
def _put(octets: NDArray[np.uint8], at: int, number: int) -> int:
    """Write 32 bits and give the place after them."""
    for k in range(4):
        octets[at + k] = (number >> 8 * k) & 0xFF
    return at + 4
