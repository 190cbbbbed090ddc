"""Chips: a scene's windows in batches, read ahead by threads and brought to the device while the network works."""

import math
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landseg.grid import ChipWindow, Tiling, spanning
from landseg.machine import ahead
from landseg.scene import SceneReader, ValueRanges


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The one linear rule per band that takes a scene's values to what the network was trained on.

    It is decided once for a scene, never per chip: a chip's own statistics would make its neighbours disagree.

    Parameters
    ----------
    gain, offset
        (C, 1, 1) float32: the network sees ``clip(value, low, high) * gain + offset``.
    low, high
        (C, 1, 1) float32, the range that values are clipped to.
    """

    gain: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(
        cls, ranges: ValueRanges, mean: Sequence[float], std: Sequence[float], device: torch.device | None = None
    ) -> Self:
        """Chain the scene's range -> 0-255 -> zero mean and unit deviation as the model's card says."""
        low, high = np.asarray(ranges, dtype=np.float64).T
        to_byte = 255.0 / (high - low)
        gain = to_byte / np.asarray(std)
        offset = (-low * to_byte - np.asarray(mean)) / np.asarray(std)
        columns = (torch.from_numpy(a.astype(np.float32))[:, None, None] for a in (gain, offset, low, high))
        return cls(*(column.to(device) for column in columns))

    def __call__(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Normalise pixels, (N, C, H, W), to float32; invalid ones, (N, H, W), become 0, the training data's mean."""
        values = torch.clamp(pixels.to(torch.float32), self.low, self.high)
        return values.mul_(self.gain).add_(self.offset).masked_fill_(~valid[:, None], 0.0)


@dataclass(frozen=True)
class Batch:
    """Swaths of one row of chips that go through the network together, M of n chips each.

    Parameters
    ----------
    chip_row
        Which row of chips they belong to.
    chips
        Their windows, M * n of them, from left to right.
    pixels
        (M, C, S, W) uint8 or float32, the scene's values.
    valid
        (M, S, W) bool, True = usable; mirrored beyond the grid, as the pixels are.
    """

    chip_row: int
    chips: tuple[ChipWindow, ...]
    pixels: Tensor
    valid: Tensor

    @property
    def core_px(self) -> int:
        """Pixels of the grid that the chips' cores cover."""
        return sum(int(chip.core.height * chip.core.width) for chip in self.chips)

    @property
    def valid_in_chips(self) -> Tensor:
        """What is usable of each chip, (M * n, S, S) bool."""
        swaths, side, width = self.valid.shape
        stride = (width - side) // max(1, len(self.chips) // swaths - 1)
        return self.valid.unfold(2, side, max(1, stride)).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class _Swath:
    chips: Sequence[ChipWindow]
    values: NDArray[Any]
    valid: NDArray[np.bool_]


def read_batches(
    scene: SceneReader,
    tiling: Tiling,
    *,
    batch: int,
    chip_rows: range | None = None,
    threads: int = 2,
) -> Generator[Batch, None, None]:
    """Read the chips of a scene in order, some batches ahead of the caller.

    Batches do not reach across rows of chips, so that which chips share a batch follows from tiling and scene alone.
    Chips without a valid pixel are left out; where they stand within a swath, it falls into shorter ones. Those of a
    batch are of one length.

    Parameters
    ----------
    scene
        What to read; its grid is the tiling's.
    tiling
        The chips.
    batch
        Most chips per batch, unless a single swath holds more; a row is parted evenly.
    chip_rows
        Which rows of chips; all if None.
    threads
        Reading threads.

    Raises
    ------
    SceneError
        If a chip can't be read; the error comes to the caller, and reading stops.
    """
    together = tiling.swaths_of(batch)
    size = math.ceil(tiling.swath_count / math.ceil(tiling.swath_count / together))
    places = ((row, chips) for row in chip_rows or tiling.whole.chip_rows for chips in tiling.swaths(row))

    def read(place: tuple[int, Sequence[ChipWindow]]) -> list[tuple[int, _Swath]]:
        row, chips = place
        return [(row, swath) for swath in _read_swath(scene, chips)]

    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    try:
        arriving = chain.from_iterable(ahead(pool, read, places, max(threads, 2 * together)))
        for (row, _), alike in groupby(arriving, key=lambda one: (one[0], len(one[1].chips))):
            swaths = (swath for _, swath in alike)
            while group := list(islice(swaths, size)):
                yield _collate(row, group)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def on_gpu(batches: Iterable[Batch], copying: torch.cuda.Stream) -> Generator[Batch, None, None]:
    """Bring batches to a GPU; each is copied while the one before it is worked on.

    Parameters
    ----------
    batches
        In main memory.
    copying
        Stream of the GPU, for nothing but these copies.
    """
    former: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            pixels, valid = (
                tensor.pin_memory().to(copying.device, non_blocking=True) for tensor in (batch.pixels, batch.valid)
            )
        copied = copying.record_event()
        if former is not None:
            yield _arrived(*former)
        former = replace(batch, pixels=pixels, valid=valid), copied
    if former is not None:
        yield _arrived(*former)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Make what is computed from now on wait for the copies, and their memory wait for it."""
    current = torch.cuda.current_stream(batch.pixels.device)
    current.wait_event(copied)
    for tensor in (batch.pixels, batch.valid):
        tensor.record_stream(current)
    return batch


def _read_swath(scene: SceneReader, chips: Sequence[ChipWindow]) -> list[_Swath]:
    """Read a swath in one piece, and part it where chips hold no valid pixel."""
    first, last = chips[0], chips[-1]
    missing = first.read.height - first.inside.height, last.read.width - last.inside.width
    pixels = scene.read(spanning(first.inside, last.inside))
    values, valid = pixels.data, pixels.valid
    if values.dtype != np.uint8:
        values = values.astype(np.float32)
    if any(missing):
        # Only where the scene is smaller than a chip: mirrored ground looks like ground, zeros would not.
        pad = (0, missing[0]), (0, missing[1])
        values = np.pad(values, ((0, 0), *pad), mode="symmetric")
        valid = np.pad(valid, pad, mode="symmetric")

    def columns(left: ChipWindow, right: ChipWindow) -> slice:
        start = left.read.col_off - first.read.col_off
        return slice(start, start + spanning(left.read, right.read).width)

    swaths = []
    for holds_any, alike in groupby(chips, key=lambda chip: bool(valid[:, columns(chip, chip)].any())):
        if holds_any:
            part = list(alike)
            cols = columns(part[0], part[-1])
            swaths.append(_Swath(part, values[:, :, cols], valid[:, cols]))
    return swaths


def _collate(row: int, group: Sequence[_Swath]) -> Batch:
    return Batch(
        chip_row=row,
        chips=tuple(chip for swath in group for chip in swath.chips),
        pixels=torch.from_numpy(np.stack([swath.values for swath in group])),
        valid=torch.from_numpy(np.stack([swath.valid for swath in group])),
    )
