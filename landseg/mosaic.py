"""The mosaic: overlapping chips' probabilities averaged into labels and confidence, a few rows in memory at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landseg.grid import ChipWindow, Strip, Tiling
from landseg.legend import NODATA

WEIGHT_LEVELS = 64
"""Largest weight along one axis; the weight of a pixel is the product over both."""

PROBABILITY_LEVELS = 2**14
"""Steps of a probability. With weights of up to 64 * 64, sums over the chips of a 90 % overlap fit into 32 bits."""


def axis_weights(chip_px: int) -> NDArray[np.int32]:
    """Make the blend's kernel along one axis: a centred Hann window in whole steps of at least 1.

    Sampled at pixel centres, it is 0 nowhere; at the scene's border, where only one chip answers, that keeps the
    outermost pixels.

    Returns
    -------
    ndarray
        (chip_px,) int32, 1 to `WEIGHT_LEVELS`, symmetric.
    """
    centres = (np.arange(chip_px) + 0.5) / chip_px
    weights: NDArray[np.int32] = np.maximum(1, np.rint(WEIGHT_LEVELS * np.sin(np.pi * centres) ** 2)).astype(np.int32)
    return weights


@dataclass(frozen=True)
class Rows:
    """Finished full-width rows of a mosaic.

    Parameters
    ----------
    labels
        (n, cols) uint8, class ids; 0 where nothing is valid.
    confidence
        (n, cols) uint8, the largest averaged probability in percent; 0 where nothing is valid.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


@dataclass(frozen=True)
class Sums:
    """Full-width rows that chips may still be added to.

    Law: sums of disjoint sets of chips, added, are the sums of all of them.

    Parameters
    ----------
    levels
        (K, n, cols) int32, probabilities in steps of 1 / `PROBABILITY_LEVELS`, times their weights, over the chips.
    weights
        (n, cols) int32, over the chips.
    valid
        (n, cols) bool, whether any chip has a valid pixel there.
    """

    levels: Tensor
    weights: Tensor
    valid: Tensor

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.levels + other.levels, self.weights + other.weights, self.valid | other.valid)

    @staticmethod
    def bytes_per_pixel(classes: int) -> int:
        """Bytes that a pixel takes for a number of classes."""
        return 4 * classes + 4 + 1

    def part(self, start: int, stop: int) -> "Sums":
        """Give rows ``start`` to ``stop - 1`` of these, as far as there are such."""
        start, stop = (min(max(row, 0), len(self.weights)) for row in (start, stop))
        return Sums(self.levels[:, start:stop], self.weights[start:stop], self.valid[start:stop])

    def copied(self) -> "Sums":
        """Give a copy in main memory."""
        return Sums(*(tensor.to("cpu", copy=True) for tensor in (self.levels, self.weights, self.valid)))

    def finish(self, class_ids: Sequence[int]) -> Rows:
        """Turn them into labels and confidence; a tie goes to the first class."""
        device = self.levels.device
        largest, channel = self.levels.max(dim=0)  # (n, cols)
        labels = torch.where(self.valid, torch.tensor(class_ids, dtype=torch.uint8, device=device)[channel], NODATA)
        percent = largest.double() / self.weights.clamp(min=1) * (100 / PROBABILITY_LEVELS)
        percent = torch.where(self.valid, percent.round().to(torch.uint8), 0)
        # Together, since a GPU is waited for.
        return Rows(*torch.stack((labels, percent)).cpu().numpy())


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a mosaic as one strip knows them.

    Parameters
    ----------
    upper, lower
        Rows that the neighbouring strips' chips reach too, at the top and at the bottom; in main memory.
    own
        The rows between.
    """

    upper: Sums
    own: Rows
    lower: Sums

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put parts below each other."""
        return cls(
            _stacked([part.upper for part in parts]),
            Rows(*(np.concatenate([getattr(part.own, name) for part in parts]) for name in ("labels", "confidence"))),
            _stacked([part.lower for part in parts]),
        )


def _stacked(sums: Sequence[Sums]) -> Sums:
    return Sums(*(torch.cat([getattr(s, name) for s in sums], dim=-2) for name in ("levels", "weights", "valid")))


def join(parts: Iterable[Part], class_ids: Sequence[int]) -> Iterator[Rows]:
    """Give all rows of a mosaic from the parts of its strips, in order: where two strips meet, their sums are added."""
    above: Sums | None = None
    for part in parts:
        if above is not None:
            yield (above + part.upper).finish(class_ids)
        yield part.own
        above = part.lower


class Mosaic:
    """A rolling band of rows that chips are added to, row of chips by row of chips, and finished rows are taken from.

    Sums are whole numbers: addition of floats depends on its order, and the map must not.

    Law: the rows depend neither on the order in which the chips are added nor, once joined, on where strips begin.

    Parameters
    ----------
    tiling
        The chips that will be added.
    class_ids
        Label of each channel.
    strip
        The rows of chips among them; all if None.
    device
        Where probabilities come from and sums are kept.
    """

    def __init__(
        self,
        tiling: Tiling,
        class_ids: Sequence[int],
        strip: Strip | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.tiling = tiling
        self.class_ids = class_ids
        self.strip = strip or tiling.whole
        rows, cols = min(tiling.chip_px, tiling.shape[0]), tiling.shape[1]
        self._band = Sums(
            torch.zeros((len(class_ids), rows, cols), dtype=torch.int32, device=device),
            torch.zeros((rows, cols), dtype=torch.int32, device=device),
            torch.zeros((rows, cols), dtype=torch.bool, device=device),
        )
        self._axis = torch.from_numpy(axis_weights(tiling.chip_px)).to(self._band.levels.device)
        self._top = self.strip.upper[0]
        self._next_chip_row = self.strip.chip_rows.start

    @staticmethod
    def projected_bytes(tiling: Tiling, classes: int) -> int:
        """Bytes that the band takes for a number of classes: its sums, weights and validity."""
        return min(tiling.chip_px, tiling.shape[0]) * tiling.shape[1] * Sums.bytes_per_pixel(classes)

    def add(self, chip: ChipWindow, probabilities: Tensor, valid: Tensor) -> None:
        """Add a chip of the next row of chips to be finished.

        Parameters
        ----------
        chip
            Its windows.
        probabilities
            (K, S, S) float32, on the mosaic's device.
        valid
            (S, S) bool, there too; beyond the grid it is not looked at.
        """
        kept, read = chip.kept, chip.read
        rows, cols = _span(kept.row_off, kept.height), _span(kept.col_off, kept.width)
        in_band = (slice(rows.start - self._top, rows.stop - self._top), cols)
        in_chip = (_span(rows.start - read.row_off, kept.height), _span(cols.start - read.col_off, kept.width))
        weights = self._axis[in_chip[0], None] * self._axis[in_chip[1]]  # (h, w)
        levels = (probabilities[:, *in_chip] * PROBABILITY_LEVELS).round_().to(torch.int32)  # (K, h, w)
        band = self._band
        band.levels[:, *in_band] += levels.mul_(weights)
        band.weights[in_band] += weights
        band.valid[in_band] |= valid[in_chip]

    def finish(self, chip_row: int) -> Part:
        """Take the rows that no row of chips after ``chip_row`` touches; rows of chips are finished in order."""
        if chip_row != self._next_chip_row:
            raise ValueError(f"row of chips {self._next_chip_row} is to be finished next, not {chip_row}")
        is_last = chip_row + 1 == self.strip.chip_rows.stop
        stop = self.strip.lower[1] if is_last else self.tiling.finished_rows(chip_row)[1]
        own_start, own_stop = (row - self._top for row in self.strip.own)
        count = stop - self._top
        sums = self._band.part(0, count)
        part = Part(
            sums.part(0, own_start).copied(),
            sums.part(own_start, own_stop).finish(self.class_ids),
            sums.part(own_stop, count).copied(),
        )
        for rows in (self._band.levels, self._band.weights, self._band.valid):
            kept = rows.shape[-2] - count
            rows[..., :kept, :] = rows[..., count:, :].clone()
            rows[..., kept:, :] = 0
        self._top, self._next_chip_row = stop, chip_row + 1
        return part


def _span(start: int, length: int) -> slice:
    return slice(int(start), int(start + length))
