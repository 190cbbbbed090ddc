"""Strips of a raster, worked on side by side."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Strips:
    """A raster in full-width strips of at most ``rows`` rows; may be read by several threads.

    Parameters
    ----------
    raster
        Its path.
    shape
        Its (rows, cols).
    rows
        Of a strip, apart from the last one.
    """

    raster: Path
    shape: tuple[int, int]
    rows: int

    def __len__(self) -> int:
        return math.ceil(self.shape[0] / self.rows)

    def read(self, strip: int, band: int) -> NDArray[np.uint8]:
        """Read a band of a strip, (n, cols) uint8."""
        first = strip * self.rows
        window = Window(0, first, self.shape[1], min(self.rows, self.shape[0] - first))
        # A file that stays open would fill GDAL's cache with blocks of other strips.
        with rasterio.open(self.raster) as file:
            pixels: NDArray[np.uint8] = file.read(band, window=window)
        return pixels

    @property
    def bands(self) -> int:
        """How many bands the raster has."""
        with rasterio.open(self.raster) as file:
            return int(file.count)


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Call a function in a pool and give its results in order, a few items ahead of what is asked for."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
