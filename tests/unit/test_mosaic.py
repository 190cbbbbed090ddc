import numpy as np
import pytest
import torch

from landseg.grid import Tiling
from landseg.mosaic import Mosaic

TILING = Tiling((10, 10), 10, 0)
ALL = torch.ones(10, 10, dtype=torch.bool)


def answer(*scores: float) -> torch.Tensor:
    return torch.tensor(scores)[:, None, None].expand(-1, 10, 10)


def test_labels_are_class_ids_and_confidence_is_percent() -> None:
    mosaic = Mosaic(TILING, (3, 9))
    (chip,) = TILING
    mosaic.add(chip, answer(0.36, 0.64), ALL)
    rows = mosaic.finish(0).own
    assert (rows.labels.dtype, rows.confidence.dtype) == (np.uint8, np.uint8)
    assert (rows.labels == 9).all()
    assert (rows.confidence == 64).all()


def test_invalid_pixels_are_nodata_in_both_bands() -> None:
    mosaic = Mosaic(TILING, (3, 9))
    (chip,) = TILING
    valid = ALL.clone()
    valid[2:5, 7] = False
    mosaic.add(chip, answer(0.36, 0.64), valid)
    rows = mosaic.finish(0).own
    assert ((rows.labels == 0) == ~valid.numpy()).all()
    assert ((rows.confidence == 0) == ~valid.numpy()).all()


def test_rows_that_no_chip_was_added_to_are_nodata() -> None:
    mosaic = Mosaic(TILING, (3, 9))
    assert not mosaic.finish(0).own.labels.any()


def test_a_tie_goes_to_the_first_class() -> None:
    mosaic = Mosaic(TILING, (3, 9))
    (chip,) = TILING
    mosaic.add(chip, answer(0.5, 0.5), ALL)
    assert (mosaic.finish(0).own.labels == 3).all()


def test_rows_are_finished_in_order() -> None:
    mosaic = Mosaic(Tiling((30, 10), 10, 0), (1, 2))
    with pytest.raises(ValueError, match="0 is to be finished next"):
        mosaic.finish(1)


def test_projected_bytes_are_what_the_band_takes() -> None:
    tiling = Tiling((1000, 700), 240, 60)
    mosaic = Mosaic(tiling, tuple(range(1, 6)))
    assert sum(tensor.nbytes for tensor in vars(mosaic._band).values()) == Mosaic.projected_bytes(tiling, 5)


def test_the_band_does_not_grow_with_height() -> None:
    assert Mosaic.projected_bytes(Tiling((100_000, 700), 240, 60), 5) == Mosaic.projected_bytes(
        Tiling((1000, 700), 240, 60), 5
    )
