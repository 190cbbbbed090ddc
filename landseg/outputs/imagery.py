"""A scene as people look at it: its red, green and blue, scaled as for the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from landseg.grid import Grid, shrunk
from landseg.scene import RasterScene, SceneInfo, ValueRanges, read_overview

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
        else:
            shape = shrunk(grid.shape, longest_px)
            scale = Affine.scale(grid.shape[1] / shape[1], grid.shape[0] / shape[0])
            small = Grid(shape, grid.transform @ scale, grid.crs)
            with RasterScene(self.info, self.bands, small) as scene:
                pixels = scene.read(small.window).data
        low, high = np.asarray(self.ranges).T[:, :, None, None]
        scaled = np.nan_to_num((pixels - low) / (high - low)).clip(0, 1) * 255
        imagery: NDArray[np.uint8] = np.moveaxis(scaled, 0, -1).astype(np.uint8)
        return imagery
