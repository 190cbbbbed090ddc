"""What is trained on never comes near what it is measured on, and all that is left is trained on."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import RandomBatchGeoSampler, RandomGeoSampler

from landseg.errors import TrainingDataError
from landseg.train.labels import LabelCodes
from landseg.train.samples import ModelInput, Pair
from landseg.train.splits import Blocks, Splits, open_splits

CODES = LabelCodes({1: "land"}, ("land",))
LEFT, TOP = 500_000.3, 2_800_000.7


@dataclass(frozen=True)
class Case:
    """A scene of one class and how it is split."""

    shape: tuple[int, int]
    gsd_m: float
    chip_px: int
    blocks: Blocks
    seed: int
    buffer_px: int

    @contextmanager
    def split(self, labels: NDArray[np.uint8]) -> Iterator[Splits]:
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(Path(folder) / "scene.tif", Path(folder) / "labels.tif")
            for path in (pair.scene, pair.labels):
                with rasterio.open(
                    path, "w", driver="GTiff", count=1, height=self.shape[0], width=self.shape[1], dtype="uint8",
                    nodata=0, crs="EPSG:32640", transform=Affine(self.gsd_m, 0, LEFT, 0, -self.gsd_m, TOP),
                ) as file:  # fmt: skip
                    file.write(labels, 1)
            try:
                model_input = ModelInput(self.gsd_m, ("grey",), band_numbers=(1,))
                splits = open_splits(
                    [pair], CODES, model_input, chip_px=self.chip_px, validation=self.blocks, seed=self.seed
                )
            except TrainingDataError:
                # Nothing is left to train on, or to hold out: rightly so, as the law below on what is left shows.
                reject()
            yield splits

    def pixels(self, bounds: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """Give (left, bottom, right, top) in metres as (top, bottom, left, right) in pixels."""
        left, bottom, right, top = bounds
        edges = np.array([TOP - top, TOP - bottom, left - LEFT, right - LEFT]) / self.gsd_m
        assert np.allclose(edges, np.round(edges), atol=1e-4)
        first, last, start, stop = np.round(edges).astype(int).tolist()
        return first, last, start, stop

    def chips(self, dataset: GeoDataset) -> list[tuple[int, int, int, int]]:
        """Draw chips in every way that torchgeo has."""
        places = [
            *RandomGeoSampler(dataset, size=self.chip_px, length=30),
            *(place for batch in RandomBatchGeoSampler(dataset, self.chip_px, 3, 30) for place in batch),
        ]
        return [self.pixels((x.start, y.start, x.stop, y.stop)) for x, y, _ in places]

    def closed(self, splits: Splits) -> NDArray[np.bool_]:
        """Say which pixels lie in the validation, or closer to it than the buffer."""
        closed = np.zeros(self.shape, dtype=bool)
        for x, y, _ in splits.validation_sampler():
            top, bottom, left, right = self.pixels((x.start, y.start, x.stop, y.stop))
            assert top >= 0
            assert left >= 0
            assert bottom <= self.shape[0]
            assert right <= self.shape[1]
            buffer = self.buffer_px
            closed[max(0, top - buffer) : bottom + buffer, max(0, left - buffer) : right + buffer] = True
        return closed


@st.composite
def cases(draw: st.DrawFn) -> Case:
    chip = draw(st.integers(1, 16))
    buffer = draw(st.none() | st.integers(0, 24))
    blocks = Blocks(draw(st.floats(0.05, 0.6)), draw(st.none() | st.integers(chip, 50)), buffer)
    return Case(
        shape=draw(st.tuples(st.integers(chip, 120), st.integers(chip, 120))),
        gsd_m=draw(st.sampled_from([1.0, 0.3, 0.1, 2.5])),
        chip_px=chip,
        blocks=blocks,
        seed=draw(st.integers(0, 100)),
        buffer_px=chip // 2 if buffer is None else buffer,
    )


@settings(max_examples=40)
@given(cases(), st.integers(0, 3))
def test_no_training_chip_comes_near_the_validation(case: Case, patches: int) -> None:
    labels = np.zeros(case.shape, dtype=np.uint8)
    draw = np.random.default_rng(case.seed)
    for top, left in draw.integers(0, case.shape, (patches, 2)):
        labels[top : top + 30, left : left + 30] = 1
    if not patches:
        labels[:] = 1
    torch.manual_seed(case.seed)

    with case.split(labels) as splits:
        closed = case.closed(splits)
        own = [case.pixels((x.start, y.start, x.stop, y.stop)) for x, y, _ in splits.training_sampler(30)]
        for top, bottom, left, right in own + case.chips(splits.training):
            assert (bottom - top, right - left) == (case.chip_px, case.chip_px)
            assert top >= 0
            assert left >= 0
            assert bottom <= case.shape[0]
            assert right <= case.shape[1]
            assert not closed[top:bottom, left:right].any()
            # Not far from a label either.
            assert labels[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3].any()


@settings(max_examples=40)
@given(cases())
def test_every_other_chip_may_be_trained_on(case: Case) -> None:
    with case.split(np.ones(case.shape, dtype=np.uint8)) as splits:
        allowed = np.zeros([size - case.chip_px + 1 for size in case.shape], dtype=int)
        for bounds in splits.training.index.geometry.bounds.to_numpy():
            top, bottom, left, right = case.pixels(tuple(bounds))
            allowed[top : bottom - case.chip_px + 1, left : right - case.chip_px + 1] += 1

        windows = np.lib.stride_tricks.sliding_window_view(case.closed(splits), (case.chip_px, case.chip_px))
        # Each place lies in one rectangle alone, so that none is drawn more often.
        assert np.array_equal(allowed, ~windows.any(axis=(2, 3)))
