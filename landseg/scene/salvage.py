"""Scenes with damage: what can't be read is given up, and no more."""

from typing import Literal

import numpy as np
from rasterio.windows import Window

from landseg.errors import SceneError
from landseg.grid import Grid, cells
from landseg.scene.reader import Pixels, RasterScene

OnError = Literal["fail", "nodata"]

CELL_PX = 32
"""Side of the cells in which a damaged scene is given up: each is read whole or not at all."""


class SalvagedScene:
    """A `SceneReader` that reads around damage: what can't be read is invalid, in whole cells of the grid.

    Parameters
    ----------
    scene
        What to read; whoever opened it closes it.

    Attributes
    ----------
    lost
        (row, col) of the cells that could not be read whole, in units of `CELL_PX`.
    """

    def __init__(self, scene: RasterScene) -> None:
        self._scene = scene
        self.lost: set[tuple[int, int]] = set()

    @property
    def grid(self) -> Grid:
        """The grid that windows refer to."""
        return self._scene.grid

    def read(self, window: Window) -> Pixels:
        """Read a window that lies within the grid."""
        try:
            return self._scene.read(window)
        except SceneError:
            return self._read_cells(window)

    def _read_cells(self, window: Window) -> Pixels:
        shape = window.height, window.width
        bands = self._scene.bands
        whole = Pixels(np.zeros((len(bands), *shape), self._scene.info.dtype(bands)), np.zeros(shape, dtype=np.bool_))
        for cell, part in cells(window, CELL_PX):
            rows, cols = Window(
                part.col_off - window.col_off, part.row_off - window.row_off, part.width, part.height
            ).toslices()
            try:
                pixels = self._scene.read(part)
            except SceneError:
                self.lost.add(cell)
                continue
            whole.data[:, rows, cols] = pixels.data
            whole.valid[rows, cols] = pixels.valid
        return whole

    def close(self) -> None:
        """Let go of the source."""
        self._scene.close()
