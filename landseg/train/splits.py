"""Splits of the training ground by place: what is trained on, and what a training is measured on as it goes.

Neighbouring chips of one scene look alike, so a chip drawn at random is no test. What is held out is therefore whole
scenes, or blocks of a scene with a strip around them that no training chip enters.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import PreChippedGeoSampler, RandomGeoSampler

from landseg.errors import TrainingDataError
from landseg.train.augment import SMALLER_CHIPS
from landseg.train.ground import TOLERANCE_PX, Ground, count_labels, survey
from landseg.train.labels import Bounds, LabelCodes
from landseg.train.samples import (
    ModelInput,
    Pair,
    Pairs,
    Prepare,
    Sample,
    open_own_labels,
    open_pairs,
    open_scene,
    places,
)

log = logging.getLogger(__name__)

CELLS_PER_CHIP = 4
"""How finely labels are counted: in cells of a quarter of a chip's side."""

MOST_SHARED = 0.1
"""Part of a held-out scene's labels that may lie on or beside the training's: tiles often overlap a little."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Square blocks that are taken out of the training ground for validation.

    Parameters
    ----------
    share
        Of the labelled blocks, between 0 and 1.
    block_px
        Side of a block, or somewhat more: a scene is cut evenly. By default 3 chips.
    buffer_px
        Pixels around a block that no training chip enters. By default half a chip: all that a map would show around a
        pixel of the block, in the chip that is centred on it, then lies outside of the training.
    """

    share: float = 0.2
    block_px: int | None = None
    buffer_px: int | None = None


@dataclass(frozen=True, eq=False)
class Splits:
    """The two sides of a split, for torchgeo's samplers to draw from.

    Law: no chip that `training_sampler` draws comes closer than the buffer to a chip of the validation.

    Parameters
    ----------
    training
        Its index holds rectangles that may overlap: any chip within one is allowed, and all allowed chips lie within
        one. Chips see a label, or come near one by a quarter of a chip.
    validation
        Its index holds the chips themselves, a row each; None if nothing is held out. Its samples are never varied.
    read_px
        Side of the training's chips.
    class_px
        (K,) int64, labelled pixels of each class on the training's ground, counted by cells of a quarter of a chip.
    """

    training: Pairs
    validation: Pairs | None
    read_px: int
    class_px: NDArray[np.int64]

    @property
    def class_shares(self) -> NDArray[np.float64]:
        """Share of each class among the labelled pixels of the training."""
        shares: NDArray[np.float64] = self.class_px / self.class_px.sum()
        return shares

    def training_sampler(self, length: int) -> RandomGeoSampler:
        """Draw so many places of the training at random, by torch's global generator."""
        return EvenGeoSampler(self.training, self.read_px, length)

    def validation_sampler(self) -> PreChippedGeoSampler:
        """Give each chip of the validation once, always in the same order.

        torchgeo's `GridGeoSampler` would let the last chips reach beyond a block, as far as into the training.
        """
        if self.validation is None:
            raise ValueError("nothing is held out for validation")
        return PreChippedGeoSampler(self.validation)


class EvenGeoSampler(RandomGeoSampler):
    """Draw every place with about the same probability.

    torchgeo weighs the rectangles of the index by area, which makes much of those that are hardly larger than a chip.

    Parameters
    ----------
    dataset
        What to draw from.
    chip_px
        Side of a chip.
    length
        Places to draw.
    """

    def __init__(self, dataset: GeoDataset, chip_px: int, length: int) -> None:
        super().__init__(dataset, size=chip_px, length=length)
        (height, width), (xres, yres) = self.size, self.res
        self.areas = torch.tensor(
            [
                (round((right - left - width) / xres) + 1) * (round((top - bottom - height) / yres) + 1)
                for left, bottom, right, top in self.bounds
            ],
            dtype=torch.float,
        )


def open_splits(
    pairs: Sequence[Pair],
    codes: LabelCodes,
    model_input: ModelInput,
    *,
    chip_px: int,
    read_px: int | None = None,
    validation: Sequence[Pair] | Blocks | None = None,
    held_out: Sequence[Pair] = (),
    seed: int = 1,
    vary: Callable[[Sample], Sample] | None = None,
) -> Splits:
    """Open the training pairs and hold out a part of their ground, or other pairs, for validation.

    All labels are read once, at the training's resolution, and counted.

    Parameters
    ----------
    pairs, codes, model_input, vary
        See `landseg.train.samples.open_pairs`; ``vary`` changes samples of the training alone.
    chip_px
        Side of the chips.
    read_px
        Side of those to draw for training, where it is another.
    validation
        Other pairs, whose ground is then left out of the training if the two overlap; or blocks of the training pairs;
        or None to train on everything.
    held_out
        Pairs that the trained model will be measured on. They are looked at, so that what is wrong with them is found
        before the training.
    seed
        Of the choice of blocks: the same seed holds out the same ground.

    Raises
    ------
    TrainingDataError
        If the pairs can't be opened, labels hold values that the codes do not explain, nothing is labelled, a class has
        no pixels to train on, the split leaves a side empty, or what is held out is trained on.
    """
    read_px = read_px or chip_px
    dataset = open_pairs(pairs, codes, model_input, vary=vary)
    cell_px = max(1, chip_px // CELLS_PER_CHIP)
    grounds = survey(dataset, codes, cell_px)
    for pair in held_out:
        _check_held_out(pair, codes, model_input, cell_px, grounds)
    validated: Pairs | None = None
    closed: list[Bounds] = []
    if isinstance(validation, Blocks):
        blocks = _choose(grounds, validation, chip_px, seed)
        buffer_px = chip_px // 2 if validation.buffer_px is None else validation.buffer_px
        chips = [
            (grounds.index(ground), bounds) for ground, block in blocks for bounds in _chips(ground, block, chip_px)
        ]
        validated = _restricted(dataset, chips)
        validated.transforms = Prepare(mean=model_input.mean)
        closed = [ground.bounds(_widened(block, buffer_px)) for ground, block in blocks]
    elif validation:
        validated = open_pairs(validation, codes, model_input, like=dataset)
        others = survey(validated, codes, cell_px)
        chips = [
            (pair, bounds)
            for pair, ground in enumerate(others)
            for bounds in _chips(ground, ground.grid.window, chip_px)
        ]
        if not chips:
            raise TrainingDataError(
                f"no scene for validation holds a labelled chip of {chip_px} px at {model_input.gsd_m} m"
            )
        validated = _restricted(validated, chips)
        closed = [ground.grid.bounds for ground in others]
    regions = [
        (ground, region)
        for ground in grounds
        for region in _regions(ground, read_px, [ground.window(bounds) for bounds in closed])
    ]
    if not regions:
        raise _no_room(validation, read_px, model_input.gsd_m)
    class_px = _count(regions, grounds)
    _check_classes(class_px, sum(ground.class_px.sum(axis=(0, 1)) for ground in grounds), codes)
    training = _restricted(dataset, [(grounds.index(g), _padded(g, w)) for g, w in regions])
    return Splits(training, validated, read_px, class_px)


def _restricted(dataset: Pairs, bounds: Sequence[tuple[int, Bounds]]) -> Pairs:
    """Give the same data with another index; see `landseg.train.samples.places`."""
    restricted = copy(dataset)
    restricted.index = places(bounds, dataset.crs)
    return restricted


def _no_room(validation: Sequence[Pair] | Blocks | None, chip_px: int, gsd_m: float) -> TrainingDataError:
    if isinstance(validation, Blocks):
        return TrainingDataError(
            f"the blocks held out and their buffer leave no room for a chip of {chip_px} px to train on",
            f"lower share, buffer_px or block_px of data.validation.blocks; or {SMALLER_CHIPS}",
        )
    if validation:
        return TrainingDataError(
            f"the scenes for validation leave no room for a chip of {chip_px} px to train on",
            "data.validation.scenes must not cover the ground of data.training",
        )
    return TrainingDataError(
        f"no training scene holds a chip of {chip_px} px at {gsd_m} m", f"{SMALLER_CHIPS}; or lower gsd_m"
    )


def _check_held_out(
    pair: Pair, codes: LabelCodes, model_input: ModelInput, cell_px: int, training: Sequence[Ground]
) -> None:
    """Open a pair as it will be mapped and compared, and see to it that it is no part of the training.

    Raises
    ------
    TrainingDataError
        If it can't be used, or more than `MOST_SHARED` of its labels lie on or beside those of the training.
    """
    scene = open_scene(pair.scene, model_input)
    labels = open_own_labels(pair, codes, scene.grid.crs, scene.grid.bounds)
    ground = count_labels(scene.grid, scene, labels, codes, cell_px)
    if not ground.class_px.any():
        raise TrainingDataError(
            f"no pixel of {pair.labels} has a known class where the held-out scene {pair.scene} holds data",
            "see data.label_values: value in the labels -> class name",
        )
    share = ground.shared_px(training) / int(ground.class_px.sum())
    what = (
        f"{share:.0%} of what {pair.labels} labels for data.held_out lies on ground of the training's labels, "
        f"or within {cell_px} px of it"
    )
    if share > MOST_SHARED:
        raise TrainingDataError(what, "hold out ground that nothing is trained on: a model knows what it has seen")
    if share:
        log.warning("%s", what)


def _choose(grounds: Sequence[Ground], blocks: Blocks, chip_px: int, seed: int) -> list[tuple[Ground, Window]]:
    """Choose the blocks to hold out among those that are labelled and hold a chip."""
    block_px = 3 * chip_px if blocks.block_px is None else blocks.block_px
    labelled = [
        (ground, block)
        for ground in grounds
        for block in _cut(ground.grid.shape, block_px)
        if min(block.height, block.width) >= chip_px and ground.class_px[ground.cells(block)].any()
    ]
    count = max(1, round(blocks.share * len(labelled)))
    if count >= len(labelled):
        raise TrainingDataError(
            f"the labels lie in {len(labelled)} blocks of {block_px} px that hold a chip of {chip_px} px, of which "
            f"{count} would be held out: nothing is left to train on",
            "lower share or block_px of data.validation.blocks, or name data.validation.scenes instead",
        )
    order = np.random.default_rng(seed).permutation(len(labelled))
    return [labelled[i] for i in order[:count]]


def _cut(shape: tuple[int, int], block_px: int) -> Iterator[Window]:
    """Cut a grid evenly into blocks of at least ``block_px``, where it is as large."""
    counts = [max(1, n // block_px) for n in shape]
    rows, cols = ([round(i * n / count) for i in range(count + 1)] for n, count in zip(shape, counts, strict=True))
    for (top, bottom), (left, right) in itertools.product(itertools.pairwise(rows), itertools.pairwise(cols)):
        yield Window(left, top, right - left, bottom - top)


def _chips(ground: Ground, block: Window, chip_px: int) -> Iterator[Bounds]:
    """Cover a block with chips that see a label and lie within it; they overlap where it is no multiple of them."""
    if min(block.height, block.width) < chip_px:
        return
    for top in _starts(block.height, chip_px):
        for left in _starts(block.width, chip_px):
            chip = Window(block.col_off + left, block.row_off + top, chip_px, chip_px)
            if ground.labelled[ground.cells(chip)].any():
                yield ground.bounds(chip)


def _starts(size: int, chip_px: int) -> list[int]:
    count = -(-size // chip_px)
    return [round(i * (size - chip_px) / max(1, count - 1)) for i in range(count)]


def _widened(window: Window, margin_px: int) -> Window:
    return Window(
        window.col_off - margin_px,
        window.row_off - margin_px,
        window.width + 2 * margin_px,
        window.height + 2 * margin_px,
    )


def _padded(ground: Ground, window: Window) -> Bounds:
    """Give a window's bounds, and so little more that rounding can't make it too small for a chip."""
    left, bottom, right, top = ground.bounds(window)
    transform = ground.grid.transform
    return left, bottom, right + TOLERANCE_PX * transform.a, top - TOLERANCE_PX * transform.e


def _regions(ground: Ground, chip_px: int, closed: Sequence[Window]) -> Iterator[Window]:
    """Give rectangles within which every chip is allowed, so that every allowed chip lies within one of them.

    A chip is allowed if it touches a labelled cell and no closed window. The pixels at which its upper left corner
    may then lie are cut into disjoint rectangles; each, grown by a chip, is a region.
    """
    positions = [size - chip_px + 1 for size in ground.grid.shape]
    if min(positions) < 1:
        return
    starts = [(w.row_off, w.col_off) for w in closed]
    stops = [(w.row_off + w.height, w.col_off + w.width) for w in closed]
    # Between two of these lines, chips touch the same cells and the same closed windows.
    lines = [
        np.unique(
            np.clip(
                [0, n, *(e for c in range(0, size, ground.cell_px) for e in (c, c - chip_px + 1))]
                + [start[axis] - chip_px + 1 for start in starts]
                + [stop[axis] for stop in stops],
                0,
                n,
            )
        )
        for axis, (n, size) in enumerate(zip(positions, ground.grid.shape, strict=True))
    ]
    allowed = _sees_a_label(ground, chip_px, lines[0][:-1], lines[1][:-1])
    for start, stop in zip(starts, stops, strict=True):
        rows, cols = (slice(*np.searchsorted(lines[axis], (start[axis] - chip_px + 1, stop[axis]))) for axis in (0, 1))
        allowed[rows, cols] = False
    for top, bottom, left, right in _rectangles(allowed):
        row, col = int(lines[0][top]), int(lines[1][left])
        height, width = int(lines[0][bottom]) - row, int(lines[1][right]) - col
        yield Window(col, row, width - 1 + chip_px, height - 1 + chip_px)


def _sees_a_label(ground: Ground, chip_px: int, tops: NDArray[np.int64], lefts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say for chips at all pairs of a top and a left side whether they touch a labelled cell, (tops, lefts)."""
    sums = np.pad(ground.labelled.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    (r0, r1), (c0, c1) = (
        (starts // ground.cell_px, (starts + chip_px - 1) // ground.cell_px + 1) for starts in (tops, lefts)
    )
    touched = sums[np.ix_(r1, c1)] - sums[np.ix_(r0, c1)] - sums[np.ix_(r1, c0)] + sums[np.ix_(r0, c0)]
    seen: NDArray[np.bool_] = touched > 0
    return seen


def _rectangles(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int]]:
    """Cut the true part of a mask into disjoint rectangles: (top, bottom, left, right), half open."""
    begun: dict[tuple[int, int], int] = {}
    for row, line in enumerate([*mask, np.zeros(mask.shape[1], dtype=np.bool_)]):
        edges = np.flatnonzero(np.diff(np.pad(line, 1).astype(np.int8)))
        runs = {(int(left), int(right)) for left, right in edges.reshape(-1, 2)}
        for left, right in sorted(begun.keys() - runs):
            yield begun.pop((left, right)), row, left, right
        for run in runs - begun.keys():
            begun[run] = row


def _count(regions: Sequence[tuple[Ground, Window]], grounds: Sequence[Ground]) -> NDArray[np.int64]:
    """Count the pixels of each class in the cells whose centres lie in a region."""
    total = np.zeros(grounds[0].class_px.shape[-1], dtype=np.int64)
    for ground in grounds:
        inside = np.zeros(ground.class_px.shape[:2], dtype=np.bool_)
        for owner, region in regions:
            if owner is ground:
                inside[ground.cells(region)] = True
        total += ground.class_px[inside].sum(axis=0)
    return total


def _check_classes(training: NDArray[np.int64], everywhere: NDArray[np.int64], codes: LabelCodes) -> None:
    for name, count, before in zip(codes.names, training, everywhere, strict=True):
        if count == 0:
            raise TrainingDataError(
                f"class '{name}' has no pixel in the training labels",
                "all of its pixels lie in or near the ground held out: try another optimisation.seed, or smaller blocks"
                if before
                else None,
            )
