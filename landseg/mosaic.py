"""The mosaic: overlapping chips' probabilities averaged into labels and confidence, a few rows in memory at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landseg.grid import ChipWindow, Tiling
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
    start
        Row of the grid that the first one is.
    labels
        (n, cols) uint8, class ids; 0 where nothing is valid.
    confidence
        (n, cols) uint8, the largest averaged probability in percent; 0 where nothing is valid.
    """

    start: int
    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


class Mosaic:
    """A rolling band of rows that chips are added to, row of chips by row of chips, and finished rows are taken from.

    Sums are whole numbers: addition of floats depends on its order, and the map must not.

    Law: the rows do not depend on the order in which the chips of the tiling are added.

    Parameters
    ----------
    tiling
        The chips that will be added.
    class_ids
        Label of each channel.
    device
        Where probabilities come from and sums are kept.
    """

    def __init__(self, tiling: Tiling, class_ids: Sequence[int], device: torch.device | None = None) -> None:
        self.tiling = tiling
        rows, cols = min(tiling.chip_px, tiling.shape[0]), tiling.shape[1]
        self._sums = torch.zeros((len(class_ids), rows, cols), dtype=torch.int32, device=device)
        self._weights = torch.zeros((rows, cols), dtype=torch.int32, device=device)
        self._valid = torch.zeros((rows, cols), dtype=torch.bool, device=device)
        self._class_ids = torch.tensor(class_ids, dtype=torch.uint8, device=device)
        self._axis = torch.from_numpy(axis_weights(tiling.chip_px)).to(self._sums.device)
        self._top = 0
        self._next_chip_row = 0

    @staticmethod
    def projected_bytes(tiling: Tiling, classes: int) -> int:
        """Bytes that the band takes for a number of classes: its sums, weights and validity."""
        return min(tiling.chip_px, tiling.shape[0]) * tiling.shape[1] * (4 * classes + 4 + 1)

    def add(self, chip: ChipWindow, probabilities: Tensor, valid: NDArray[np.bool_]) -> None:
        """Add a chip of the next row of chips to be finished.

        Parameters
        ----------
        chip
            Its windows.
        probabilities
            (K, S, S) float32.
        valid
            (S, S) bool; beyond the grid it is not looked at.
        """
        kept, read = chip.kept, chip.read
        rows, cols = _span(kept.row_off, kept.height), _span(kept.col_off, kept.width)
        in_band = (slice(rows.start - self._top, rows.stop - self._top), cols)
        in_chip = (_span(rows.start - read.row_off, kept.height), _span(cols.start - read.col_off, kept.width))
        weights = self._axis[in_chip[0], None] * self._axis[in_chip[1]]  # (h, w)
        levels = (probabilities[:, *in_chip] * PROBABILITY_LEVELS).round_().to(torch.int32)  # (K, h, w)
        self._sums[:, *in_band] += levels.mul_(weights)
        self._weights[in_band] += weights
        self._valid[in_band] |= torch.from_numpy(valid[in_chip]).to(self._valid.device)

    def finish(self, chip_row: int) -> Rows:
        """Take the rows that no row of chips after ``chip_row`` touches; rows of chips are finished in order."""
        if chip_row != self._next_chip_row:
            raise ValueError(f"row of chips {self._next_chip_row} is to be finished next, not {chip_row}")
        start, stop = self.tiling.strip(chip_row)
        count = stop - start
        sums, weights, valid = self._sums[:, :count], self._weights[:count], self._valid[:count]
        largest, channel = sums.max(dim=0)  # (n, cols)
        labels = torch.where(valid, self._class_ids[channel], NODATA)
        percent = (largest.double() / weights.clamp(min=1) * (100 / PROBABILITY_LEVELS)).round().to(torch.uint8)
        percent = torch.where(valid, percent, 0)
        rows = Rows(start, labels.cpu().numpy(), percent.cpu().numpy())
        for band in (self._sums, self._weights, self._valid):
            kept = band.shape[-2] - count
            band[..., :kept, :] = band[..., count:, :].clone()
            band[..., kept:, :] = 0
        self._top, self._next_chip_row = stop, chip_row + 1
        return rows


def _span(start: int, length: int) -> slice:
    return slice(int(start), int(start + length))
