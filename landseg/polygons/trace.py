"""Second pass: the arcs between the faces of a strip.

Where four pixels meet is a corner; a crack is the side between two pixels of different faces, nodata and the outside
being face 0. Cracks are followed from corner to corner:

- two cracks meet: the arc goes on, and has a vertex there if it turns;
- four cracks meet where two diagonal pixels belong to one face, a pinch: two arcs turn there, each around one of the
  other two pixels, so that no ring of the face touches itself (rings may touch each other);
- else three or four cracks meet in a node, where arcs end and each face has exactly one sector.

A strip owns the corners on the upper sides of its rows. Arcs that cross the seams above and below it are left open.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from landseg.polygons.compiled import kernel

NODE, CLOSED = -1, -2
"""How an arc ends; an end at a seam is ``2 * col`` at the strip's upper seam and ``2 * col + 1`` at its lower one."""

RIGHT, DOWN, LEFT, UP = 0, 1, 2, 3

# Bits of a corner: its cracks as 1 << direction, how a pinch turns, and which of the cracks it begins are followed.
CRACKS = 15
PINCH_FALLING, PINCH_RISING = 16, 32
RIGHT_DONE, DOWN_DONE = 64, 128


class Arcs(NamedTuple):
    """Boundary lines between two faces.

    Vertices are coded in one number each, `code`, which orders them row-major. They are an arc's turns and the nodes
    that it ends in; a closed arc's first vertex stands at its end again; an end at a seam has no vertex.

    Parameters
    ----------
    codes
        (V,) int64.
    offsets
        (N + 1,) int64: arc ``i`` has the vertices ``codes[offsets[i]:offsets[i + 1]]``.
    faces
        (N, 2) int32, on the left and on the right as seen with rows running down; 0 is none.
    ends
        (N, 2) int64: `NODE`, `CLOSED` or a place on a seam, at the first and at the last vertex.
    """

    codes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    faces: NDArray[np.int32]
    ends: NDArray[np.int64]

    @classmethod
    def none(cls) -> "Arcs":
        """Give no arcs at all."""
        return cls(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty((0, 2), np.int32), np.empty((0, 2), np.int64))


@kernel
def code(row2: int, col2: int, fixed: bool) -> int:
    """Code a point in half pixels, and whether simplifying must leave it where it is."""
    return (row2 << 32) | (col2 << 1) | fixed


@kernel
def row2_of(vertex: int) -> int:
    """Give twice the row of a coded vertex."""
    return vertex >> 32


@kernel
def col2_of(vertex: int) -> int:
    """Give twice the column of a coded vertex."""
    return (vertex & 0xFFFFFFFF) >> 1


@kernel
def find_corners(faces: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Say which cracks meet at each corner.

    Parameters
    ----------
    faces
        (rows + 1, cols + 2) int32: the strip's pixels with the row above and a column of 0 on either side.

    Returns
    -------
    (rows, cols + 1) uint8, bits as above.
    """
    rows, cols = faces.shape[0] - 1, faces.shape[1] - 2
    corners = np.empty((rows, cols + 1), np.uint8)
    for row in range(rows):
        for col in range(cols + 1):
            a, b, d, e = faces[row, col], faces[row, col + 1], faces[row + 1, col], faces[row + 1, col + 1]
            cracks = (b != e) | (d != e) << DOWN | (a != d) << LEFT | (a != b) << UP
            if cracks == CRACKS:
                if a == e != 0:
                    cracks |= PINCH_FALLING
                elif b == d != 0:
                    cracks |= PINCH_RISING
            corners[row, col] = cracks
    return corners


@kernel
def _is_node(corner: int) -> bool:
    cracks = corner & CRACKS
    return cracks in (7, 11, 13, 14) or corner & (CRACKS | PINCH_FALLING | PINCH_RISING) == CRACKS


@kernel
def _is_turn(corner: int) -> bool:
    return corner & CRACKS in (3, 6, 12, 9)


@kernel
def find_vertices(corners: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Mark the corners that are a vertex of any arc, one bit each: (rows, words) uint64."""
    rows, cols = corners.shape
    marks = np.zeros((rows, (cols + 63) // 64), np.uint64)
    for row in range(rows):
        for col in range(cols):
            cracks = corners[row, col] & CRACKS
            if cracks not in (0, 5, 10):
                marks[row, col >> 6] |= np.uint64(1) << np.uint64(col & 63)
    return marks


@kernel
def _turn(corner: int, direction: int) -> int:
    """Give the direction in which an arc leaves a corner that is no node and that it reaches in a direction."""
    if corner & PINCH_FALLING:
        return direction ^ 1  # around the pixels above right and below left: right and down, left and up
    if corner & PINCH_RISING:
        return 3 - direction  # around those above left and below right: right and up, left and down
    leaving = corner & CRACKS & ~(1 << (direction + 2) % 4)
    if leaving == 1:
        return RIGHT
    if leaving == 2:
        return DOWN
    return LEFT if leaving == 4 else UP


@kernel
def trace_strip(faces: NDArray[np.int32], corners: NDArray[np.uint8], first_row: int) -> Arcs:
    """Follow all cracks of a strip; arcs that are open at a seam come first.

    The others are complete, and begin as `landseg.polygons.seams.join_arcs` lets arcs begin.

    Parameters
    ----------
    faces
        As for `find_corners`.
    corners
        From `find_corners`; marked as done.
    first_row
        Row of the raster that the strip's first one is.
    """
    rows, cols = corners.shape
    vertices, arcs = 0, 2 * cols
    for row in range(rows):
        for col in range(cols):
            corner = corners[row, col]
            if _is_node(corner):
                degree = 3 if corner & CRACKS != CRACKS else 4
                vertices += degree
                arcs += degree
            elif _is_turn(corner):
                vertices += 1
            elif corner & CRACKS == CRACKS:
                vertices += 2
    # A closed arc has four turns or more, and one vertex twice.
    arcs += vertices // 4
    codes = np.empty(vertices + vertices // 4 + 1, np.int64)
    offsets = np.zeros(arcs + 1, np.int64)
    sides = np.empty((arcs, 2), np.int32)
    ends = np.empty((arcs, 2), np.int64)
    entered = np.zeros(cols, np.bool_)
    n, size = 0, 0

    for col in range(cols):
        if faces[0, col] != faces[0, col + 1] and not entered[col]:
            sides[n, 0], sides[n, 1] = faces[0, col + 1], faces[0, col]
            ends[n, 0] = 2 * col
            size, ends[n, 1] = _follow(corners, first_row, 0, col, DOWN, True, codes, size)
            if ends[n, 1] >= 0 and ends[n, 1] & 1 == 0:
                entered[ends[n, 1] >> 1] = True
            n += 1
            offsets[n] = size
    for col in range(cols):
        corner = corners[rows - 1, col]
        if corner & (1 << DOWN) and not corner & DOWN_DONE:
            sides[n, 0], sides[n, 1] = faces[rows, col], faces[rows, col + 1]
            ends[n, 0] = 2 * col + 1
            corners[rows - 1, col] |= DOWN_DONE
            size, ends[n, 1] = _follow(corners, first_row, rows - 1, col, UP, True, codes, size)
            n += 1
            offsets[n] = size
    for row in range(rows):
        for col in range(cols):
            if not _is_node(corners[row, col]):
                continue
            # In the order of the first vertices, so that a loop begins with the smaller of its two.
            for direction in (UP, LEFT, RIGHT, DOWN):
                if not _is_open(corners, row, col, direction):
                    continue
                sides[n, 0], sides[n, 1] = _beside(faces, row, col, direction)
                ends[n, 0] = NODE
                codes[size] = code(2 * (first_row + row), 2 * col, False)
                size, ends[n, 1] = _follow(corners, first_row, row, col, direction, False, codes, size + 1)
                n += 1
                offsets[n] = size
    for row in range(rows):
        for col in range(cols):
            # The first open crack of a closed arc in row-major order begins at a turn.
            if corners[row, col] & (1 | RIGHT_DONE) == 1:
                sides[n, 0], sides[n, 1] = _beside(faces, row, col, RIGHT)
                ends[n, 0] = CLOSED
                first, size = size, size + 1
                size, ends[n, 1] = _follow(corners, first_row, row, col, RIGHT, False, codes, size)
                codes[first] = codes[size - 1]
                n += 1
                offsets[n] = size
    return Arcs(codes[:size].copy(), offsets[: n + 1].copy(), sides[:n].copy(), ends[:n].copy())


@kernel
def _is_open(corners: NDArray[np.uint8], row: int, col: int, direction: int) -> bool:
    """Tell whether there is a crack from a corner that is not followed yet; those across the upper seam all are."""
    if not corners[row, col] & (1 << direction):
        return False
    if direction == RIGHT:
        return not corners[row, col] & RIGHT_DONE
    if direction == DOWN:
        return not corners[row, col] & DOWN_DONE
    if direction == LEFT:
        return not corners[row, col - 1] & RIGHT_DONE
    return row > 0 and not corners[row - 1, col] & DOWN_DONE


@kernel
def _beside(faces: NDArray[np.int32], row: int, col: int, direction: int) -> tuple[int, int]:
    """Give the faces on the left and on the right of the crack that leaves a corner."""
    a, b, d, e = faces[row, col], faces[row, col + 1], faces[row + 1, col], faces[row + 1, col + 1]
    if direction == RIGHT:
        return b, e
    if direction == DOWN:
        return e, d
    if direction == LEFT:
        return d, a
    return a, b


@kernel
def _follow(
    corners: NDArray[np.uint8],
    first_row: int,
    row: int,
    col: int,
    direction: int,
    arrived: bool,
    codes: NDArray[np.int64],
    size: int,
) -> tuple[int, int]:
    """Follow cracks to a node, a seam or the first crack again; append vertices and give their number and the end.

    It begins at a corner, to be left in a direction or, if ``arrived``, reached in it.
    """
    rows = len(corners)
    first = (row, col, direction)
    while True:
        if not arrived:
            if direction == RIGHT:
                corners[row, col] |= RIGHT_DONE
                col += 1
            elif direction == DOWN:
                corners[row, col] |= DOWN_DONE
                row += 1
                if row == rows:
                    return size, 2 * col + 1
            elif direction == LEFT:
                col -= 1
                corners[row, col] |= RIGHT_DONE
            else:
                if row == 0:
                    return size, 2 * col
                row -= 1
                corners[row, col] |= DOWN_DONE
        corner = corners[row, col]
        if _is_node(corner):
            codes[size] = code(2 * (first_row + row), 2 * col, False)
            return size + 1, NODE
        leaving = _turn(corner, direction)
        if leaving != direction:
            pinched = corner & (PINCH_FALLING | PINCH_RISING) != 0
            codes[size] = code(2 * (first_row + row), 2 * col, pinched)
            size += 1
        direction = leaving
        if not arrived and (row, col, direction) == first:
            return size, CLOSED
        arrived = False
