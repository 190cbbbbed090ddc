import threading

import numpy as np
import pytest
import torch
from rasterio.windows import Window

from landseg.chips import Normalisation, read_batches
from landseg.errors import SceneError
from landseg.grid import Tiling
from landseg.scene import Pixels
from tests.laws.test_mosaic import ArrayScene, in_chips

RANDOM = np.random.default_rng(0)


def scene(rows: int, cols: int) -> ArrayScene:
    return ArrayScene(RANDOM.integers(1, 255, (1, rows, cols), dtype=np.uint8), np.ones((rows, cols), np.bool_))


def test_normalisation_follows_the_card() -> None:
    normalise = Normalisation.of(((0, 255), (100, 1100)), mean=(100, 50), std=(20, 10))
    data = np.array([[[120.0, 0.0]], [[600.0, 5000.0]]])
    values = normalise(torch.from_numpy(data)[None], torch.ones(1, 1, 2, dtype=torch.bool))
    # Band 2: 600 lies in the middle of its range, at 127.5 of 255; 5000 is clipped to 255.
    torch.testing.assert_close(values, torch.tensor([[[[1.0, -5.0]], [[7.75, 20.5]]]]))


def test_invalid_pixels_become_the_mean() -> None:
    normalise = Normalisation.of(((0, 1),), mean=(100,), std=(20,))
    values = normalise(torch.tensor([[[[torch.nan, 0.5]]]]), torch.tensor([[[False, True]]]))
    assert values[0, 0, 0, 0] == 0
    assert values[0, 0, 0, 1] != 0


def test_batches_come_in_order_and_do_not_cross_rows_of_chips() -> None:
    tiling = Tiling((70, 100), 20, 5)
    batches = list(read_batches(scene(70, 100), tiling, batch=4, threads=3))
    assert [chip for batch in batches for chip in batch.chips] == list(tiling)
    for batch in batches:
        assert len(batch.chips) == len(batch.pixels) == len(batch.valid) <= 4
        assert list(batch.chips) == [chip for chip in tiling.chip_row(batch.chip_row) if chip in batch.chips]


@pytest.mark.parametrize(("batch", "sizes"), [(8, [5, 4]), (9, [9]), (4, [3, 3, 3]), (5, [5, 4]), (1, [1] * 9)])
def test_a_row_of_chips_is_parted_evenly(batch: int, sizes: list[int]) -> None:
    batches = read_batches(scene(10, 90), Tiling((10, 90), 10, 0), batch=batch)
    assert [len(batch.chips) for batch in batches] == sizes


@pytest.mark.parametrize(("batch", "sizes"), [(16, [4, 9]), (8, [4, 6, 3]), (4, [4, 3, 3, 3]), (1, [4, 3, 3, 3])])
def test_swaths_are_not_parted_and_those_of_a_batch_are_alike(batch: int, sizes: list[int]) -> None:
    batches = read_batches(scene(10, 130), Tiling((10, 130), 10, 0, 4), batch=batch)
    assert [len(batch.chips) for batch in batches] == sizes


@pytest.mark.parametrize("swath_chips", [1, 2, 3])
def test_chips_hold_the_pixels_of_their_windows(swath_chips: int) -> None:
    source = scene(33, 41)
    source.valid[10:] = False
    tiling = Tiling((33, 41), 16, 4, swath_chips)
    for batch in read_batches(source, tiling, batch=3):
        pixels = in_chips(batch.pixels, tiling.stride_px).numpy()
        for chip, values, valid in zip(batch.chips, pixels, batch.valid_in_chips.numpy(), strict=True):
            rows, cols = chip.read.toslices()
            assert (values == source.data[:, rows, cols]).all()
            assert (valid == source.valid[rows, cols]).all()


def test_a_scene_smaller_than_a_chip_is_mirrored() -> None:
    source = scene(1, 3)
    (batch,) = read_batches(source, Tiling((1, 3), 8, 2), batch=1)
    a, b, c = source.data[0, 0]
    assert (batch.pixels.numpy() == np.array([a, b, c, c, b, a, a, b], dtype=np.float32)).all()
    assert batch.valid.all()


def test_nodata_is_mirrored_too() -> None:
    source = scene(1, 3)
    source.valid[0, 2] = False
    (batch,) = read_batches(source, Tiling((1, 3), 8, 2), batch=1)
    assert batch.valid[0, 7].tolist() == [True, True, False, False, True, True, True, True]


def test_chips_without_a_valid_pixel_are_left_out() -> None:
    source = scene(40, 40)
    source.valid[:, 20:] = False
    tiling = Tiling((40, 40), 10, 0)
    read = [chip for batch in read_batches(source, tiling, batch=3) for chip in batch.chips]
    assert read == [chip for chip in tiling if chip.read.col_off < 20]


def test_a_swath_falls_apart_where_chips_hold_no_valid_pixel() -> None:
    source = scene(10, 80)
    source.valid[:, 20:40] = False
    batches = list(read_batches(source, Tiling((10, 80), 10, 0, 4), batch=8))
    starts = [[chip.read.col_off for chip in batch.chips] for batch in batches]
    assert starts == [[0, 10], [40, 50, 60, 70]]
    assert [batch.pixels.shape[-1] for batch in batches] == [20, 40]


class _Failing(ArrayScene):
    def read(self, window: Window) -> Pixels:
        if window.row_off >= 20:
            raise SceneError("damaged")
        return super().read(window)


def test_a_failed_read_reaches_the_caller_and_threads_end() -> None:
    source = scene(40, 40)
    before = threading.active_count()
    with pytest.raises(SceneError, match="damaged"):
        list(read_batches(_Failing(source.data, source.valid), Tiling((40, 40), 10, 0), batch=2))
    assert threading.active_count() == before


def test_reading_stops_when_the_caller_does() -> None:
    before = threading.active_count()
    batches = read_batches(scene(40, 40), Tiling((40, 40), 10, 0), batch=2)
    next(batches)
    batches.close()
    assert threading.active_count() == before
