"""Chips: a scene's windows as normalised batches, read ahead by threads while the network works."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landseg.grid import ChipWindow, Tiling
from landseg.scene import Pixels, SceneReader, ValueRanges


@dataclass(frozen=True)
class Normalisation:
    """The one linear rule per band that takes a scene's values to what the network was trained on.

    It is decided once for a scene, never per chip: a chip's own statistics would make its neighbours disagree.

    Parameters
    ----------
    gain, offset
        (C,) float32: the network sees ``clip(value, low, high) * gain + offset``.
    low, high
        (C,) float32, the range that values are clipped to.
    """

    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, ranges: ValueRanges, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Chain the scene's range -> 0-255 -> zero mean and unit deviation as the model's card says."""
        low, high = np.asarray(ranges, dtype=np.float64).T
        to_byte = 255.0 / (high - low)
        gain = to_byte / np.asarray(std)
        offset = (-low * to_byte - np.asarray(mean)) / np.asarray(std)
        return cls(*(a.astype(np.float32) for a in (gain, offset, low, high)))

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """Normalise to (C, H, W) float32; invalid pixels become 0, the training data's mean."""
        column = (slice(None), None, None)
        values = np.clip(pixels.data.astype(np.float32), self.low[column], self.high[column])
        values *= self.gain[column]
        values += self.offset[column]
        values[:, ~pixels.valid] = 0.0
        return values


@dataclass(frozen=True)
class Batch:
    """Chips of one row that go through the network together.

    Parameters
    ----------
    chip_row
        Which row of chips they belong to.
    chips
        Their windows, N of them, from left to right.
    pixels
        (N, C, S, S) float32, normalised.
    valid
        (N, S, S) bool, True = usable.
    """

    chip_row: int
    chips: tuple[ChipWindow, ...]
    pixels: Tensor
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class _Chip:
    window: ChipWindow
    values: NDArray[np.float32] | None
    valid: NDArray[np.bool_]


def read_batches(
    scene: SceneReader,
    tiling: Tiling,
    normalise: Normalisation,
    *,
    batch: int,
    chip_rows: range | None = None,
    threads: int = 2,
) -> Generator[Batch, None, None]:
    """Read the chips of a scene in order, some batches ahead of the caller.

    Batches do not reach across rows of chips, so that which chips share a batch follows from the tiling alone. Chips
    without a valid pixel are left out.

    Parameters
    ----------
    scene
        What to read; its grid is the tiling's.
    tiling
        The chips.
    normalise
        The scene's normalisation.
    batch
        Most chips per batch.
    chip_rows
        Which rows of chips; all if None.
    threads
        Reading threads.

    Raises
    ------
    SceneError
        If a chip can't be read; the error comes to the caller, and reading stops.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    pending: deque[tuple[int, Future[_Chip]]] = deque()
    windows = ((row, window) for row in chip_rows or tiling.whole.chip_rows for window in tiling.chip_row(row))
    try:
        group: list[_Chip] = []
        group_row = 0
        while True:
            while len(pending) < 2 * batch + threads and (upcoming := next(windows, None)) is not None:
                row, window = upcoming
                pending.append((row, pool.submit(_read_chip, scene, window, normalise)))
            if not pending:
                break
            row, future = pending.popleft()
            chip = future.result()
            if group and (row != group_row or len(group) == batch):
                yield _collate(group_row, group)
                group = []
            group_row = row
            if chip.values is not None:
                group.append(chip)
        if group:
            yield _collate(group_row, group)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_chip(scene: SceneReader, window: ChipWindow, normalise: Normalisation) -> _Chip:
    pixels = scene.read(window.inside)
    if not pixels.valid.any():
        return _Chip(window, None, pixels.valid)
    values, valid = normalise(pixels), pixels.valid
    missing = window.read.height - window.inside.height, window.read.width - window.inside.width
    if any(missing):
        # Only where the scene is smaller than a chip: mirrored ground looks like ground, zeros would not.
        pad = (0, missing[0]), (0, missing[1])
        values = np.pad(values, ((0, 0), *pad), mode="symmetric")
        valid = np.pad(valid, pad, constant_values=False)
    return _Chip(window, values, valid)


def _collate(row: int, group: Sequence[_Chip]) -> Batch:
    return Batch(
        chip_row=row,
        chips=tuple(chip.window for chip in group),
        pixels=torch.from_numpy(np.stack([chip.values for chip in group if chip.values is not None])),
        valid=np.stack([chip.valid for chip in group]),
    )
