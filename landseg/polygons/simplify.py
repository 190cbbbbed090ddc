"""Simplification of arcs within a tolerance, such that they never cross.

Nodes and pinches stay where they are. Between two of them an arc is a chain, which is simplified in two steps:

1. Stairs become slopes. A straight run whose two ends turn in opposite senses is a step. Where two steps meet of which
   one is a single pixel long, the corner is cut: the chain goes through the middles of the steps. All other corners,
   such as those of buildings, stay. Nothing is cut if the tolerance is below half a pixel.
2. Of these points those are kept that Douglas and Peucker (1973) find [1]_, where the distance to a line is that of the
   traced chain's corners, not only of the points: none ends up farther from its line than the tolerance.

A line may replace a part of a chain only if the closed region between both holds no vertex of any traced arc but those
of this part. Then no two lines cross: where one crosses another, the traced chain of one of the two must turn or end in
the other's region, since both chains run along rows and columns and do not cross each other. As this depends on nothing
but the traced map, arcs can be simplified one by one, in any order.

A chain that turns keeps a point between its ends, and a closed one two, so that no face vanishes.

.. [1] D. Douglas, T. Peucker: Algorithms for the reduction of the number of points required to represent a digitized
   line or its caricature. Cartographica 10, 1973.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from landseg.polygons.compiled import kernel
from landseg.polygons.trace import Arcs, code, col2_of, row2_of

Linear = tuple[float, float, float, float]
"""a, b, d, e of the grid's transform: from (col, row) to the ground."""


class Vertices(NamedTuple):
    """Which corners of some rows are a vertex of any arc.

    Parameters
    ----------
    marks
        (n, words) uint64, a bit for each corner.
    first_row
        That the marks begin with.
    """

    marks: NDArray[np.uint64]
    first_row: int


class VertexWindow:
    """The rows of a map that arcs which are not complete have reached; it moves down the map.

    Parameters
    ----------
    words
        Of a row's marks.
    """

    def __init__(self, words: int) -> None:
        self._room = np.empty((0, words), np.uint64)
        self._first_row = self._rows = 0

    def move(self, first_row: int, marks: NDArray[np.uint64]) -> Vertices:
        """Append a strip's marks, as in `Vertices`, let go of the rows above ``first_row`` and give what is left.

        What was given before stays as it was.
        """
        if self._rows + len(marks) > len(self._room):
            kept = self._room[first_row - self._first_row : self._rows]
            # With room for as much again, so that rows that stay are not moved with every strip.
            self._room = np.empty((2 * (len(kept) + len(marks)), marks.shape[1]), np.uint64)
            self._room[: len(kept)] = kept
            self._first_row, self._rows = first_row, len(kept)
        self._room[self._rows : self._rows + len(marks)] = marks
        self._rows += len(marks)
        return Vertices(self._room[: self._rows], self._first_row)


@kernel
def simplify_arcs(arcs: Arcs, vertices: Vertices, linear: Linear, tolerance: float) -> Arcs:
    """Simplify complete arcs.

    Parameters
    ----------
    arcs
        As traced.
    vertices
        In all rows that the arcs reach.
    linear
        Says how far points are apart on the ground.
    tolerance
        In units of the CRS, more than 0.
    """
    a, b, d, e = linear
    slopes = tolerance >= 0.5 * max(math.hypot(a, d), math.hypot(b, e))
    # Cutting a corner may make two points of one.
    codes = np.empty(2 * len(arcs.codes), np.int64)
    offsets = np.zeros(len(arcs.offsets), np.int64)
    longest = 0
    for arc in range(len(arcs.faces)):
        longest = max(longest, arcs.offsets[arc + 1] - arcs.offsets[arc])
    points, at = np.empty(2 * longest, np.int64), np.empty(2 * longest, np.int64)
    size = 0
    for arc in range(len(arcs.faces)):
        raw = arcs.codes[arcs.offsets[arc] : arcs.offsets[arc + 1]]
        codes[size] = raw[0]
        size += 1
        first = 0
        while first < len(raw) - 1:
            last = first + 1
            while last < len(raw) - 1 and not raw[last] & 1:
                last += 1
            chain = raw[first : last + 1]
            count = _cut_stairs(chain, slopes, points, at)
            kept = _keep(chain, points[:count], at[:count], vertices, linear, tolerance)
            for k in range(1, count):
                if kept[k]:
                    codes[size] = points[k]
                    size += 1
            first = last
        offsets[arc + 1] = size
    return Arcs(codes[:size].copy(), offsets, arcs.faces, arcs.ends)


@kernel
def _cut_stairs(chain: NDArray[np.int64], slopes: bool, points: NDArray[np.int64], at: NDArray[np.int64]) -> int:
    """Write the points that may be kept, and where each lies on the chain; give their number.

    Vertex ``i`` of the chain lies at ``2 * i``, the middle of the run after it at ``2 * i + 1``.
    """
    last = len(chain) - 1
    points[0], at[0] = chain[0], 0
    count = 1
    for i in range(1, last):
        if slopes and _is_cut(chain, i):
            if not _is_cut(chain, i - 1):
                points[count], at[count] = _middle(chain, i - 1), 2 * i - 1
                count += 1
            points[count], at[count] = _middle(chain, i), 2 * i + 1
            count += 1
        else:
            points[count], at[count] = chain[i], 2 * i
            count += 1
    points[count], at[count] = chain[last], 2 * last
    return count + 1


@kernel
def _is_cut(chain: NDArray[np.int64], i: int) -> bool:
    """Tell whether the runs before and after a vertex are steps, and one of them is a pixel long."""
    if i < 2 or i > len(chain) - 3:
        return False
    before, here, after = _sense(chain, i - 1), _sense(chain, i), _sense(chain, i + 1)
    return before != here and here != after and (_run(chain, i - 1) == 2 or _run(chain, i) == 2)


@kernel
def _sense(chain: NDArray[np.int64], i: int) -> bool:
    """Tell whether a chain turns left at a vertex."""
    x, y = col2_of(chain[i]), row2_of(chain[i])
    in_x, in_y = x - col2_of(chain[i - 1]), y - row2_of(chain[i - 1])
    out_x, out_y = col2_of(chain[i + 1]) - x, row2_of(chain[i + 1]) - y
    return in_x * out_y - in_y * out_x < 0


@kernel
def _run(chain: NDArray[np.int64], i: int) -> int:
    """Give the length of the run after a vertex, in half pixels."""
    return abs(col2_of(chain[i + 1]) - col2_of(chain[i])) + abs(row2_of(chain[i + 1]) - row2_of(chain[i]))


@kernel
def _middle(chain: NDArray[np.int64], i: int) -> int:
    """Give the middle of the run after a vertex."""
    row2 = (row2_of(chain[i]) + row2_of(chain[i + 1])) // 2
    return code(row2, (col2_of(chain[i]) + col2_of(chain[i + 1])) // 2, False)


@kernel
def _keep(
    chain: NDArray[np.int64],
    points: NDArray[np.int64],
    at: NDArray[np.int64],
    vertices: Vertices,
    linear: Linear,
    tolerance: float,
) -> NDArray[np.bool_]:
    """Choose the points of a chain that are kept."""
    count = len(points)
    kept = np.zeros(count, np.bool_)
    kept[0] = kept[-1] = True
    if count == 2:
        return kept
    # (first, last, whether it must be split)
    pending = [(0, count - 1, True)]
    while len(pending):
        first, last, forced = pending.pop()
        if last == first + 1:
            continue
        start, stop = points[first], points[last]
        if (
            not forced
            and _is_near(chain, at[first], at[last], start, stop, linear, tolerance)
            and _is_free(chain, at[first], at[last], start, stop, vertices)
        ):
            continue
        split, _ = _farthest(points, first, last, linear)
        kept[split] = True
        before = after = False
        if points[first] == points[last]:
            # The halves of a loop must not become the same line: the wider one is split again.
            _, width_before = _farthest(points, first, split, linear)
            _, width_after = _farthest(points, split, last, linear)
            before, after = width_before >= width_after, width_before < width_after
        pending.append((split, last, after))
        pending.append((first, split, before))
    return kept


@kernel
def _on_ground(point: int, origin: int, linear: Linear) -> tuple[float, float]:
    """Give a point relative to another one, in units of the CRS."""
    a, b, d, e = linear
    col, row = (col2_of(point) - col2_of(origin)) / 2, (row2_of(point) - row2_of(origin)) / 2
    return a * col + b * row, d * col + e * row


@kernel
def _distance(point: tuple[float, float], stop: tuple[float, float], length: float) -> float:
    """Measure the square of the distance from a segment that begins at (0, 0) and whose length squared is given."""
    x, y = point
    along_x, along_y = stop
    share = 0.0 if length == 0 else min(max((x * along_x + y * along_y) / length, 0.0), 1.0)
    return (x - share * along_x) ** 2 + (y - share * along_y) ** 2


@kernel
def _is_near(
    chain: NDArray[np.int64], place: int, end_place: int, start: int, stop: int, linear: Linear, tolerance: float
) -> bool:
    """Tell whether a chain's vertices between two places are near the segment between the points there."""
    end = _on_ground(stop, start, linear)
    length = end[0] ** 2 + end[1] ** 2
    for i in range((place + 1) // 2, end_place // 2 + 1):
        if _distance(_on_ground(chain[i], start, linear), end, length) > tolerance**2:
            return False
    return True


@kernel
def _farthest(points: NDArray[np.int64], first: int, last: int, linear: Linear) -> tuple[int, float]:
    """Give the first of the points farthest from the segment between two others, and its distance squared."""
    end = _on_ground(points[last], points[first], linear)
    length = end[0] ** 2 + end[1] ** 2
    split, worst = first + 1, -1.0
    for k in range(first + 1, last):
        distance = _distance(_on_ground(points[k], points[first], linear), end, length)
        if distance > worst:
            split, worst = k, distance
    return split, worst


@kernel
def _is_free(chain: NDArray[np.int64], place: int, end_place: int, start: int, stop: int, vertices: Vertices) -> bool:
    """Tell whether no vertex but the chain's own lies between two of its points and the segment that joins them.

    Parameters
    ----------
    chain, place, end_place
        The part of a chain from one place to another, as in `_cut_stairs`.
    start, stop
        The points there.
    vertices
        As in `simplify_arcs`.
    """
    first, last = (place + 1) // 2, end_place // 2
    outline = np.empty((last - first + 3, 2), np.int64)  # (row, col) in half pixels
    outline[0] = row2_of(start), col2_of(start)
    for i in range(first, last + 1):
        outline[i - first + 1] = row2_of(chain[i]), col2_of(chain[i])
    outline[-1] = row2_of(stop), col2_of(stop)

    top, bottom = outline[:, 0].min(), outline[:, 0].max()
    top, bottom = (top + 1) // 2, bottom // 2  # the rows of corners that it reaches
    if bottom < top:
        return True
    lefts, rights = _extents(outline, top, bottom)
    starts = np.zeros(bottom - top + 2, np.int64)
    for row in range(bottom - top + 1):
        starts[row + 1] = starts[row] + max(0, (rights[row] >> 6) - (lefts[row] >> 6) + 1)
    own = np.zeros(starts[-1], np.uint64)
    for k in range(len(outline)):
        if outline[k, 0] % 2 == 0 and outline[k, 1] % 2 == 0:
            row, col = outline[k, 0] // 2 - top, outline[k, 1] // 2
            own[starts[row] + (col >> 6) - (lefts[row] >> 6)] |= np.uint64(1) << np.uint64(col & 63)
    for row in range(bottom - top + 1):
        for word in range(starts[row + 1] - starts[row]):
            column = (lefts[row] >> 6) + word
            others = vertices.marks[top + row - vertices.first_row, column] & ~own[starts[row] + word]
            bit = 64 * column
            while others:
                if (
                    others & np.uint64(1)
                    and lefts[row] <= bit <= rights[row]
                    and _holds(outline, 2 * (top + row), 2 * bit)
                ):
                    return False
                others >>= np.uint64(1)
                bit += 1
    return True


@kernel
def _extents(outline: NDArray[np.int64], top: int, bottom: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the first and last corner of each row that may lie within a closed outline, in pixels."""
    lefts = np.full(bottom - top + 1, np.iinfo(np.int64).max)
    rights = np.full(bottom - top + 1, -1)
    for k in range(len(outline)):
        row, col = outline[k - 1]
        next_row, next_col = outline[k]
        if next_row < row:
            row, col, next_row, next_col = next_row, next_col, row, col
        for line in range((row + 1) // 2, next_row // 2 + 1):
            if next_row == row:
                low, high = min(col, next_col), max(col, next_col)
            else:
                # Rounded outwards: what lies beyond the outline is left to `_holds`.
                share = (2 * line - row) * (next_col - col)
                low = col + share // (next_row - row)
                high = col - (-share) // (next_row - row)
            lefts[line - top] = min(lefts[line - top], low >> 1)
            rights[line - top] = max(rights[line - top], (high + 1) >> 1)
    return lefts, rights


@kernel
def _holds(outline: NDArray[np.int64], row: int, col: int) -> bool:
    """Tell whether a point lies within or on a closed outline, all in half pixels."""
    inside = False
    for k in range(len(outline)):
        ay, ax = outline[k - 1, 0] - row, outline[k - 1, 1] - col
        by, bx = outline[k, 0] - row, outline[k, 1] - col
        cross = ax * by - ay * bx
        if cross == 0 and ax * bx <= 0 and ay * by <= 0:
            return True
        if (ay > 0) != (by > 0) and (cross > 0) == (by > ay):
            inside = not inside
    return inside
