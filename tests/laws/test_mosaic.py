"""Laws 2 and 3: tiled equals whole, and neither the order of chips nor where strips begin matters."""

from dataclasses import dataclass

import numpy as np
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.windows import Window
from torch.nn import functional as F

from landseg.chips import Batch, Normalisation, read_batches
from landseg.grid import Grid, Strip, Tiling
from landseg.mosaic import Mosaic, Part, join
from landseg.scene import Pixels
from tests.conftest import UTM40

CLASS_IDS = (2, 5, 7)
AS_THEY_ARE = Normalisation.of(((0.0, 255.0),), mean=(0.0,), std=(1.0,))


@dataclass(frozen=True)
class ArrayScene:
    """A scene reader over arrays that the test made first."""

    data: NDArray[np.uint8]
    valid: NDArray[np.bool_]

    @property
    def grid(self) -> Grid:
        return Grid(self.data.shape[1:], Affine.identity(), UTM40)

    def read(self, window: Window) -> Pixels:
        rows, cols = window.toslices()
        return Pixels(self.data[:, rows, cols], self.valid[rows, cols])

    def close(self) -> None: ...


def stand_in(pixels: torch.Tensor, radius: int) -> torch.Tensor:
    """Answer from the sum of the (2 radius + 1) squared pixels around each; beyond the image there is nothing.

    Sums of whole numbers are exact in float32, so equal surroundings give equal answers, bit for bit.
    """
    size = 2 * radius + 1
    total = F.conv2d(pixels, torch.ones(1, 1, size, size), padding=radius)
    kind = (total.round().long().squeeze(1) % 3).unsqueeze(1)
    scores = torch.full((len(pixels), 3, *pixels.shape[2:]), 0.125)
    return scores.scatter(1, kind, 0.75)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ArrayScene, Tiling, int]:
    chip = draw(st.integers(4, 24))
    overlap = draw(st.integers(0, chip * 3 // 4))
    shape = draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    data = random.integers(0, 256, size=(1, *shape), dtype=np.uint8)
    valid = random.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    tiling = Tiling(shape, chip, overlap, draw(st.integers(1, 4)))
    return ArrayScene(data, valid), tiling, draw(st.integers(0, tiling.margin_px))


def answers(scene: ArrayScene, tiling: Tiling, radius: int) -> list[tuple[Batch, torch.Tensor]]:
    batches = read_batches(scene, tiling, batch=3)
    return [
        (batch, in_chips(stand_in(AS_THEY_ARE(batch.pixels, batch.valid), radius), tiling.stride_px))
        for batch in batches
    ]


def in_chips(swaths: torch.Tensor, stride: int) -> torch.Tensor:
    """Cut answers to swaths, (M, K, S, W), into those to their chips, (M * n, K, S, S)."""
    side, width = swaths.shape[-2:]
    lefts = range(0, width - side + 1, stride)
    return torch.stack([swath[..., left : left + side] for swath in swaths for left in lefts])


def random_scores(batch: Batch, tiling: Tiling, random: np.random.Generator) -> torch.Tensor:
    return torch.softmax(torch.from_numpy(random.normal(size=(len(batch.chips), 3, *2 * [tiling.chip_px]))), 1)


def mosaicked(
    tiling: Tiling,
    answered: list[tuple[Batch, torch.Tensor]],
    random: np.random.Generator | None = None,
    chips_per_strip: int | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    strips = [tiling.whole] if chips_per_strip is None else tiling.strips(chips_per_strip)
    rows = list(join([strip_part(tiling, strip, answered, random) for strip in strips], CLASS_IDS))
    return np.concatenate([r.labels for r in rows]), np.concatenate([r.confidence for r in rows])


def strip_part(
    tiling: Tiling, strip: Strip, answered: list[tuple[Batch, torch.Tensor]], random: np.random.Generator | None
) -> Part:
    mosaic = Mosaic(tiling, CLASS_IDS, strip)
    finished = []
    for chip_row in strip.chip_rows:
        chips = [
            item
            for batch, probabilities in answered
            if batch.chip_row == chip_row
            for item in zip(batch.chips, probabilities, batch.valid_in_chips, strict=True)
        ]
        order = range(len(chips)) if random is None else random.permutation(len(chips))
        for index in order:
            mosaic.add(*chips[index])
        finished.append(mosaic.finish(chip_row))
    return Part.concatenate(finished)


@given(cases())
def test_tiled_equals_whole(case: tuple[ArrayScene, Tiling, int]) -> None:
    scene, tiling, radius = case
    rows, cols = tiling.shape
    chip = tiling.chip_px
    # A scene smaller than a chip is seen mirrored beyond its edge, in the whole as in the chip.
    values = np.where(scene.valid, scene.data.astype(np.float32), 0)
    pad = (0, max(0, chip - rows)), (0, max(0, chip - cols))
    values = np.pad(values, ((0, 0), *pad), mode="symmetric")
    whole = stand_in(torch.from_numpy(values)[None], radius)[0, :, :rows, :cols]
    expected = np.where(scene.valid, np.array(CLASS_IDS)[whole.argmax(0).numpy()], 0)

    labels, confidence = mosaicked(tiling, answers(scene, tiling, radius))

    assert (labels == expected).all()
    assert (confidence == np.where(scene.valid, 75, 0)).all()


@given(cases(), st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_neither_order_nor_strips_matter(case: tuple[ArrayScene, Tiling, int], seed: int, chips: int) -> None:
    scene, tiling, _ = case
    # With a radius beyond the margin, and random scores, overlapping chips disagree.
    random = np.random.default_rng(seed)
    answered = [(batch, random_scores(batch, tiling, random)) for batch in read_batches(scene, tiling, batch=3)]
    in_order = mosaicked(tiling, answered)
    for other in (mosaicked(tiling, answered, random), mosaicked(tiling, answered, random, chips)):
        assert (in_order[0] == other[0]).all()
        assert (in_order[1] == other[1]).all()


@given(cases())
def test_an_average_of_what_chips_say_is_taken(case: tuple[ArrayScene, Tiling, int]) -> None:
    """Against floating-point blending by the formula, over the whole scene at once."""
    scene, tiling, _ = case
    random = np.random.default_rng(0)
    sums, weights = np.zeros((3, *tiling.shape)), np.zeros(tiling.shape)
    axis = np.maximum(1, np.rint(64 * np.sin(np.pi * (np.arange(tiling.chip_px) + 0.5) / tiling.chip_px) ** 2))
    answered = []
    for batch in read_batches(scene, tiling, batch=3):
        scores = random_scores(batch, tiling, random)
        answered.append((batch, scores))
        for chip, score in zip(batch.chips, scores.numpy(), strict=True):
            rows, cols = chip.kept.toslices()
            y, x = chip.read.row_off, chip.read.col_off
            inner = slice(rows.start - y, rows.stop - y), slice(cols.start - x, cols.stop - x)
            kernel = axis[inner[0], None] * axis[inner[1]]
            sums[:, rows, cols] += score[:, *inner] * kernel
            weights[rows, cols] += kernel
    average = sums / np.maximum(weights, 1)
    labels, confidence = mosaicked(tiling, answered)

    top_two = np.sort(average, axis=0)[-2:]
    clear = scene.valid & (top_two[1] - top_two[0] > 1e-3)
    assert (labels[clear] == np.array(CLASS_IDS)[average.argmax(0)][clear]).all()
    assert np.abs(confidence[scene.valid] - 100 * average.max(0)[scene.valid]).max(initial=0) <= 0.51
    assert (labels[~scene.valid] == 0).all()
