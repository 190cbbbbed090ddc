import numpy as np
from numpy.typing import NDArray

from landseg.polygons.simplify import VertexWindow, Vertices

STRIP_ROWS = 3


def marks_of(strip: int) -> NDArray[np.uint64]:
    return np.arange(2 * STRIP_ROWS, dtype=np.uint64).reshape(STRIP_ROWS, 2) + np.uint64(100 * strip)


def rows(vertices: Vertices, first: int, stop: int) -> NDArray[np.uint64]:
    return vertices.marks[first - vertices.first_row : stop - vertices.first_row]


def test_a_window_keeps_all_rows_from_the_highest_open_arc_on() -> None:
    window = VertexWindow(words=2)
    whole = np.concatenate([marks_of(strip) for strip in range(40)])
    given = []
    for strip in range(40):
        stop = (strip + 1) * STRIP_ROWS
        # A tall arc is open from row 20 to row 60; others are a strip or two high.
        first = 20 if 20 <= stop <= 60 else max(0, stop - 2 * STRIP_ROWS)
        given.append((window.move(first, marks_of(strip)), first, stop))
    for vertices, first, stop in given:
        np.testing.assert_array_equal(rows(vertices, first, stop), whole[first:stop])


def test_a_window_lets_go_of_rows_that_no_arc_needs() -> None:
    window = VertexWindow(words=2)
    for strip in range(1000):
        vertices = window.move(strip * STRIP_ROWS, marks_of(strip))
    assert len(vertices.marks) <= 4 * STRIP_ROWS
