"""Strips of a raster of classes, worked on side by side."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from landseg.errors import SceneError
from landseg.polygons.compiled import kernel

PIXELS_AT_ONCE = 2**21
"""In a strip."""

BYTES_PER_PIXEL = 70
"""Of memory that a strip's pixels take; measured on maps of 20 pixels a polygon."""

MOST_CLASSES = 255
"""As many as labels of 8 bits tell apart beside nodata."""


@dataclass(frozen=True)
class Strips:
    """A raster in full-width strips of at most ``rows`` rows; may be read by several threads.

    Parameters
    ----------
    raster
        Its path; band 1 holds the classes.
    shape
        Its (rows, cols).
    rows
        Of a strip, apart from the last one.
    values
        (N,) int64, ascending, N at most `MOST_CLASSES`: those that are classes. All others are nodata.
    """

    raster: Path
    shape: tuple[int, int]
    rows: int
    values: NDArray[np.int64]

    def __len__(self) -> int:
        return math.ceil(self.shape[0] / self.rows)

    def labels(self, strip: int) -> NDArray[np.uint8]:
        """Read a strip's labels, (n, cols) uint8: the place of each pixel's value among ``values``, from 1, or 0."""
        return _labels(self.read(strip, 1), self.values)

    def read(self, strip: int, band: int) -> NDArray[Any]:
        """Read the values of a band, (n, cols); where the file has a mask of its own, masked ones are nodata.

        Raises
        ------
        SceneError
            If they can't be read.
        """
        first = strip * self.rows
        window = Window(0, first, self.shape[1], min(self.rows, self.shape[0] - first))
        try:
            # A file that stays open would fill GDAL's cache with blocks of other strips.
            with rasterio.open(self.raster) as file:
                pixels: NDArray[Any] = file.read(band, window=window)
                if not has_mask(file, band):
                    return pixels
                return np.where(file.read_masks(band, window=window), pixels.astype(np.float64), np.nan)
        except RasterioError as error:
            raise SceneError(
                f"{self.raster} can't be read at rows {first} to {first + window.height}: the file is damaged",
                str(error.__cause__ or error),
            ) from error


def has_mask(file: Any, band: int) -> bool:
    """Tell whether an open raster says by a mask, and not by a nodata value, where a band holds data."""
    flags = file.mask_flag_enums[band - 1]
    # GDAL has no flag for a mask that a band has to itself.
    return MaskFlags.per_dataset in flags or not flags


def projected_bytes(cols: int, threads: int) -> int:
    """Project the peak of memory that drawing polygons takes."""
    # Strips are traced, joined and simplified behind each other, and a wide map's strip has one row at least.
    return (threads + 2) * max(PIXELS_AT_ONCE, cols) * BYTES_PER_PIXEL


def threads_within(budget_bytes: int, cols: int, most: int) -> int:
    """Say how many threads may draw polygons in so much memory; one at least."""
    return next((n for n in range(most, 1, -1) if projected_bytes(cols, n) <= budget_bytes), 1)


def _labels(pixels: NDArray[Any], values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Give each pixel the place of its value among ``values``, from 1; 0 where it is none of them."""
    if pixels.dtype != np.uint8:
        return _searched(pixels, values)
    return _looked_up(pixels, _searched(np.arange(256).reshape(1, -1), values)[0])


@kernel
def _looked_up(pixels: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    labels = np.empty_like(pixels)
    for row in range(pixels.shape[0]):
        for col in range(pixels.shape[1]):
            labels[row, col] = table[pixels[row, col]]
    return labels


@kernel
def _searched(pixels: NDArray[Any], values: NDArray[np.int64]) -> NDArray[np.uint8]:
    rows, cols = pixels.shape
    labels = np.empty((rows, cols), np.uint8)
    for row in range(rows):
        # Most pixels have the value of the one before.
        last, label = pixels[row, 0], _label_of(pixels[row, 0], values)
        for col in range(cols):
            if pixels[row, col] != last:
                last = pixels[row, col]
                label = _label_of(last, values)
            labels[row, col] = label
    return labels


@kernel
def _label_of(value: Any, values: NDArray[np.int64]) -> int:
    place = np.searchsorted(values, value)
    return place + 1 if place < len(values) and values[place] == value else 0


@kernel
def distinct(pixels: NDArray[Any], most: int) -> NDArray[Any]:
    """Find the distinct values of (rows, cols) pixels in ascending order, or ``most + 1`` of them if there are more.

    What is not a number is left out.
    """
    found = np.empty(most + 1, pixels.dtype)
    count = 0
    for row in range(pixels.shape[0]):
        last = pixels[row, 0]
        for col in range(pixels.shape[1]):
            value = pixels[row, col]
            if (value == last and col > 0) or value != value:
                continue
            last = value
            place = np.searchsorted(found[:count], value)
            if place < count and found[place] == value:
                continue
            found[place + 1 : count + 1] = found[place:count].copy()
            found[place] = value
            count += 1
            if count > most:
                return found
    return found[:count]
