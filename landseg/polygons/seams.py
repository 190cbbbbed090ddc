"""Arcs across the seams between strips."""

import numpy as np
from numpy.typing import NDArray

from landseg.polygons.compiled import kernel
from landseg.polygons.trace import CLOSED, Arcs


@kernel
def join_arcs(above: Arcs, below: Arcs, cols: int) -> tuple[Arcs, Arcs]:
    """Join the arcs that are open at a seam.

    Complete arcs do not depend on the seams that they crossed: they lead from the smaller to the larger node in
    row-major order, closed ones begin at their top-left vertex and go right, and so do loops at a node.

    Parameters
    ----------
    above
        Arcs with at least one end at the seam.
    below
        Arcs of the strip below it.
    cols
        Of the raster.

    Returns
    -------
    complete, unfinished
        The latter end at the lower seam of the strip.
    """
    olds = len(above.faces)
    count = olds + len(below.faces)
    partner = np.full((2, cols + 1), -1, np.int64)  # [side of the seam, col] is 2 * arc + end
    for i in range(count):
        for end in range(2):
            place = _end(above, below, i, end)
            if _at_seam(olds, i, place):
                partner[int(i >= olds), place >> 1] = 2 * i + end

    room = len(above.codes) + len(below.codes) + olds
    complete = _reserve(room, count)
    unfinished = _reserve(room, count)
    complete_arcs, unfinished_arcs = 0, 0
    used = np.zeros(count, np.bool_)
    for cyclic in range(2):
        for i in range(count):
            if used[i]:
                continue
            enter = 0
            if not cyclic:
                if _at_seam(olds, i, _end(above, below, i, 0)):
                    enter = 1
                if _at_seam(olds, i, _end(above, below, i, enter)):
                    continue
            start = complete.offsets[complete_arcs]
            size, arc, end = start, i, enter
            while True:
                used[arc] = True
                size = _append(above, below, arc, end, complete.codes, size)
                place = _end(above, below, arc, 1 - end)
                if not _at_seam(olds, arc, place):
                    break
                following = partner[int(arc < olds), place >> 1]
                arc, end = following >> 1, following & 1
                if arc == i:
                    break
            first = _end(above, below, i, enter)
            left = above.faces[i, enter] if i < olds else below.faces[i - olds, enter]
            right = above.faces[i, 1 - enter] if i < olds else below.faces[i - olds, 1 - enter]
            if cyclic:
                _rotate(complete.codes, start, size)
                size += 1
                first = place = CLOSED
            if first >= 0 or place >= 0:
                begin = unfinished.offsets[unfinished_arcs]
                unfinished.codes[begin : begin + size - start] = complete.codes[start:size]
                unfinished.faces[unfinished_arcs] = left, right
                unfinished.ends[unfinished_arcs] = first, place
                unfinished_arcs += 1
                unfinished.offsets[unfinished_arcs] = begin + size - start
            else:
                points = complete.codes[start:size]
                if points[0] > points[-1] or (points[0] == points[-1] and points[1] > points[-2]):
                    points[:] = points[::-1].copy()
                    left, right = right, left
                complete.faces[complete_arcs] = left, right
                complete.ends[complete_arcs] = first, place
                complete_arcs += 1
                complete.offsets[complete_arcs] = size
    return _trimmed(complete, complete_arcs), _trimmed(unfinished, unfinished_arcs)


@kernel
def _end(above: Arcs, below: Arcs, arc: int, end: int) -> int:
    """Give an end of an arc; those below the seam are counted on from those above."""
    olds = len(above.faces)
    return int(above.ends[arc, end] if arc < olds else below.ends[arc - olds, end])


@kernel
def _at_seam(olds: int, arc: int, place: int) -> bool:
    """Tell whether an end lies at the seam: the lower one for arcs above it, the upper one for those below."""
    return place >= 0 and (place & 1 == 1) == (arc < olds)


@kernel
def _append(above: Arcs, below: Arcs, arc: int, enter: int, codes: NDArray[np.int64], size: int) -> int:
    """Append an arc's vertices, seen from the end at which it is entered."""
    olds = len(above.faces)
    if arc < olds:
        points = above.codes[above.offsets[arc] : above.offsets[arc + 1]]
    else:
        points = below.codes[below.offsets[arc - olds] : below.offsets[arc - olds + 1]]
    n = len(points)
    if enter == 0:
        for k in range(n):
            codes[size + k] = points[k]
    else:
        for k in range(n):
            codes[size + k] = points[n - 1 - k]
    return size + n


@kernel
def _rotate(codes: NDArray[np.int64], start: int, stop: int) -> None:
    """Let a closed arc begin at its smallest vertex, and repeat that at ``codes[stop]``."""
    n = stop - start
    points = codes[start:stop].copy()
    first = np.argmin(points)
    for k in range(n):
        codes[start + k] = points[(first + k) % n]
    codes[stop] = points[first]


@kernel
def _reserve(vertices: int, arcs: int) -> Arcs:
    offsets = np.zeros(arcs + 1, np.int64)
    return Arcs(np.empty(vertices, np.int64), offsets, np.empty((arcs, 2), np.int32), np.empty((arcs, 2), np.int64))


@kernel
def _trimmed(arcs: Arcs, count: int) -> Arcs:
    size = arcs.offsets[count]
    return Arcs(
        arcs.codes[:size].copy(), arcs.offsets[: count + 1].copy(), arcs.faces[:count].copy(), arcs.ends[:count].copy()
    )
