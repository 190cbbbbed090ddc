"""Law 1: cores cover every pixel exactly once, and weights sum to more than 0 at every pixel."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rasterio.windows import Window

from landseg.grid import SWATH_PX, Tiling
from landseg.mosaic import PROBABILITY_LEVELS, WEIGHT_LEVELS, axis_weights


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    chip = draw(st.integers(1, 40))
    shape = draw(st.tuples(st.integers(1, 120), st.integers(1, 120)))
    return Tiling(shape, chip, draw(st.integers(0, chip * 9 // 10)) if chip > 1 else 0, draw(st.integers(1, 6)))


def part(window: Window) -> tuple[slice, slice]:
    rows, cols = window.toslices()
    return rows, cols


@given(tilings())
def test_cores_cover_every_pixel_exactly_once(tiling: Tiling) -> None:
    covered = np.zeros(tiling.shape, dtype=int)
    for chip in tiling:
        covered[part(chip.core)] += 1
    assert (covered == 1).all()


@example(Tiling((120, 120), 40, 36))
@given(tilings())
def test_weights_sum_to_more_than_zero_everywhere(tiling: Tiling) -> None:
    axis = axis_weights(tiling.chip_px)
    kernel = axis[:, None] * axis
    total = np.zeros(tiling.shape, dtype=np.int64)
    for chip in tiling:
        rows, cols = part(chip.kept)
        top, left = chip.read.row_off, chip.read.col_off
        total[rows, cols] += kernel[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    assert (total > 0).all()
    # The mosaic adds in 32 bits.
    assert total.max() * PROBABILITY_LEVELS < 2**31


@given(tilings())
def test_windows_lie_within_each_other(tiling: Tiling) -> None:
    rows, cols = tiling.shape
    for chip in tiling:
        read, kept, core = part(chip.read), part(chip.kept), part(chip.core)
        for axis, size in ((0, rows), (1, cols)):
            assert 0 <= kept[axis].start <= core[axis].start < core[axis].stop <= kept[axis].stop <= size
            assert read[axis].start <= kept[axis].start
            assert kept[axis].stop <= read[axis].stop
            # Invented pixels only where the scene is smaller than a chip; the last chips are shifted inward.
            assert read[axis].start >= 0
            assert read[axis].stop <= max(size, tiling.chip_px)


@given(tilings())
def test_a_kept_pixel_is_a_margin_away_from_inner_sides(tiling: Tiling) -> None:
    for chip in tiling:
        read, kept = part(chip.read), part(chip.kept)
        for axis, size in enumerate(tiling.shape):
            assert read[axis].start == 0 or kept[axis].start - read[axis].start == tiling.margin_px
            assert read[axis].stop >= size or read[axis].stop - kept[axis].stop == tiling.margin_px


@given(tilings())
def test_swaths_part_a_row_evenly_and_their_chips_stand_at_the_stride(tiling: Tiling) -> None:
    swaths = list(tiling.swaths(0))
    assert list(itertools.chain(*swaths)) == list(tiling.chip_row(0))
    assert len(swaths) == tiling.swath_count
    sizes = [len(swath) for swath in swaths]
    assert max(sizes) <= tiling.swath_chips
    assert max(sizes) - min(sizes) <= 1
    for swath in swaths:
        starts = [chip.read.col_off for chip in swath]
        assert all(right - left == tiling.stride_px for left, right in itertools.pairwise(starts))


@given(tilings())
def test_chips_are_as_many_as_the_stride_needs_and_none_is_further_from_the_next(tiling: Tiling) -> None:
    starts = [chip.read.col_off for chip in tiling.chip_row(0)]
    assert len(starts) == 1 + -(-max(0, tiling.shape[1] - tiling.chip_px) // tiling.stride_px)
    assert all(0 < right - left <= tiling.stride_px for left, right in itertools.pairwise(starts))


@given(st.integers(1, 800), st.floats(0, 0.9), st.sampled_from([8, 16, 32]))
def test_a_stride_is_of_whole_cells_and_near_what_is_wanted(chip_px: int, overlap: float, cell_px: int) -> None:
    tiling = Tiling.in_swaths((1000, 1000), chip_px, overlap, cell_px)
    assert tiling.stride_px % cell_px == 0 or tiling.swath_chips == 1
    width = max(chip.read.col_off for chip in next(tiling.swaths(0))) + chip_px
    assert width <= max(chip_px, SWATH_PX)
    if chip_px >= 2 * cell_px:
        assert abs(tiling.stride_px - (1 - overlap) * chip_px) <= cell_px


@given(tilings())
def test_rows_of_chips_finish_every_row_once_in_order(tiling: Tiling) -> None:
    finished = [tiling.finished_rows(index) for index in range(tiling.chip_counts[0])]
    assert [row for start, stop in finished for row in range(start, stop)] == list(range(tiling.shape[0]))


@given(tilings(), st.integers(1, 60))
def test_strips_cover_every_row_once_and_meet(tiling: Tiling, chips: int) -> None:
    strips = tiling.strips(chips)
    assert [row for strip in strips for row in strip.chip_rows] == list(range(tiling.chip_counts[0]))
    assert all(above.lower == below.upper for above, below in itertools.pairwise(strips))
    rows = [row for strip in strips for start, stop in (strip.upper, strip.own) for row in range(start, stop)]
    assert rows == list(range(tiling.shape[0]))
    assert len({len(strip.chip_rows) for strip in strips[:-1]}) <= 1
    assert len(strips) == 1 or all(len(strip.chip_rows) * tiling.chip_counts[1] >= chips for strip in strips)


@given(tilings(), st.integers(1, 60))
def test_a_strip_s_chips_reach_its_own_and_shared_rows_alone(tiling: Tiling, chips: int) -> None:
    for strip in tiling.strips(chips):
        kept = [part(chip.kept)[0] for index in strip.chip_rows for chip in tiling.chip_row(index)]
        assert min(rows.start for rows in kept) == strip.upper[0]
        assert max(rows.stop for rows in kept) == strip.lower[1]


@given(st.integers(1, 1024))
def test_axis_weights_are_positive_and_symmetric(chip_px: int) -> None:
    weights = axis_weights(chip_px)
    assert weights.min() >= 1
    assert weights.max() <= WEIGHT_LEVELS
    assert (weights == weights[::-1]).all()
    assert (np.diff(weights[: (chip_px + 1) // 2]) >= 0).all()


def test_chip_counts_are_those_of_the_stride() -> None:
    # 1,000 px at a stride of 180: chips start at 0, 180, ... 720 and, shifted inward, 760.
    assert Tiling((1000, 240), 240, 60).chip_counts == (6, 1)


@pytest.mark.parametrize(("shape", "chip_px", "overlap_px"), [((0, 5), 4, 0), ((5, 5), 4, 4), ((5, 5), 4, -1)])
def test_what_makes_no_sense_is_refused(shape: tuple[int, int], chip_px: int, overlap_px: int) -> None:
    with pytest.raises(ValueError, match=r"no pixels|overlap"):
        Tiling(shape, chip_px, overlap_px)
