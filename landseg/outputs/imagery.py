"""A scene as people look at it: its red, green and blue, scaled as for the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from landseg.grid import Grid
from landseg.scene import RasterScene, SceneInfo, ValueRanges, read_overview, value_ranges

COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Imagery:
    """The visible bands of a scene.

    Parameters
    ----------
    info
        The scene.
    bands
        Numbers of its red, green and blue band.
    ranges
        What of each is brought to 0-255.
    """

    info: SceneInfo
    bands: tuple[int, ...]
    ranges: ValueRanges

    @classmethod
    def of(cls, info: SceneInfo, names: Sequence[str], bands: Sequence[int], ranges: ValueRanges) -> Self | None:
        """Pick red, green and blue among a model's bands; None where it does not read all three."""
        if not set(COLOURS) <= set(names):
            return None
        order = [names.index(colour) for colour in COLOURS]
        return cls(info, tuple(bands[i] for i in order), tuple(ranges[i] for i in order))

    @classmethod
    def by_name(cls, info: SceneInfo) -> Self | None:
        """Take the bands that the file calls red, green and blue; None where it does not.

        Raises
        ------
        SceneError
            If the scene can't be read.
        """
        if not set(COLOURS) <= set(info.band_names):
            return None
        bands = tuple(info.band_names.index(colour) + 1 for colour in COLOURS)
        return cls(info, bands, value_ranges(info, bands, None))

    def read(self, grid: Grid, longest_px: int) -> NDArray[np.uint8]:
        """Read what a map shows.

        Parameters
        ----------
        grid
            The map's.
        longest_px
            Most rows and columns of the picture.

        Returns
        -------
        NDArray
            (rows, cols, 3) uint8; black where the scene holds no data.

        Raises
        ------
        SceneError
            If the scene can't be read.
        """
        if grid == self.info.grid:
            pixels = read_overview(self.info, self.bands, longest_px, average=True).filled(0)
            return scaled(pixels, self.ranges)
        small = grid.shrunk(longest_px)
        return self.read_part(small, small.window)[0]

    def read_part(self, grid: Grid, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read a window of a grid: (rows, cols, 3) uint8, and (rows, cols) where the scene holds data.

        Raises
        ------
        SceneError
            If the scene can't be read.
        """
        with RasterScene(self.info, self.bands, grid) as scene:
            pixels = scene.read(window)
        return scaled(pixels.data, self.ranges), pixels.valid


def read_together(scenes: Sequence[Imagery], grid: Grid, longest_px: int) -> NDArray[np.uint8]:
    """Read what a map of several scenes shows; where they overlap, the first that holds data counts.

    Raises
    ------
    SceneError
        If a scene can't be read.
    """
    if len(scenes) == 1:
        return scenes[0].read(grid, longest_px)
    small = grid.shrunk(longest_px)
    picture, is_empty = np.zeros((*small.shape, 3), np.uint8), np.ones(small.shape, np.bool_)
    for scene in scenes:
        window = small.window_of(scene.info.grid)
        pixels, valid = scene.read_part(small, window)
        here = window.toslices()
        shown = valid & is_empty[here]
        picture[here][shown] = pixels[shown]
        is_empty[here] &= ~shown
    return picture


def scaled(pixels: NDArray[Any], ranges: ValueRanges) -> NDArray[np.uint8]:
    """Bring (bands, rows, cols) to (rows, cols, bands) uint8, each band by its range."""
    low, high = np.asarray(ranges).T[:, :, None, None]
    values = np.nan_to_num((pixels - low) / (high - low)).clip(0, 1) * 255
    colours: NDArray[np.uint8] = np.moveaxis(values, 0, -1).round().astype(np.uint8)
    return colours
