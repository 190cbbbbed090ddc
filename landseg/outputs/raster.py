"""The map as a raster: a cloud-optimised GeoTIFF of labels and confidence."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what closing a file raises; no RasterioError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from landseg.errors import DiskError
from landseg.grid import Grid
from landseg.legend import NODATA, Legend
from landseg.outputs.style import pam

BLOCK_PX = 512
"""Side of an on-disk tile."""


class LabelRaster:
    """A GeoTIFF that is written from top to bottom; a context manager.

    Rows are held back until a row of blocks is full, so that each block is compressed and written once.

    Parameters
    ----------
    path
        Where to write.
    grid
        The map's grid.
    legend
        Gives the colour table.
    """

    def __init__(self, path: Path, grid: Grid, legend: Legend) -> None:
        self.path = path
        self.grid = grid
        self._legend = legend
        self._held = np.empty((2, 0, grid.shape[1]), dtype=np.uint8)
        self._next_row = 0
        self._checksum = 0

    def __enter__(self) -> Self:
        rows, cols = self.grid.shape
        with _writing(self.path):
            self._file = rasterio.open(
                self.path,
                "w",
                driver="GTiff",
                height=rows,
                width=cols,
                count=2,
                dtype="uint8",
                nodata=NODATA,
                crs=self.grid.crs,
                transform=self.grid.transform,
                tiled=True,
                blockxsize=BLOCK_PX,
                blockysize=BLOCK_PX,
                compress="deflate",
                zlevel=1,
                num_threads="ALL_CPUS",
                interleave="band",
                photometric="palette",
                alpha="unspecified",
                bigtiff="if_safer",
            )
            self._file.write_colormap(1, {NODATA: (0, 0, 0, 0)} | {c.class_id: (*c.rgb, 255) for c in self._legend})
            self._file.set_band_description(1, "land use")
            self._file.set_band_description(2, "confidence (%)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _writing(self.path):
            self._file.close()

    def write(self, labels: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> None:
        """Append full-width rows, (n, cols) each."""
        self._held = np.concatenate([self._held, np.stack([labels, confidence])], axis=1)
        rows = self.grid.shape[0]
        while (ready := min(BLOCK_PX, rows - self._next_row)) and self._held.shape[1] >= ready:
            block = np.ascontiguousarray(self._held[:, :ready])
            with _writing(self.path):
                self._file.write(block, window=Window(0, self._next_row, self.grid.shape[1], ready))
            self._checksum = zlib.crc32(block.data, self._checksum)
            self._next_row += ready
            self._held = self._held[:, ready:]

    def publish(self, path: Path) -> None:
        """Write the closed file anew as a cloud-optimised GeoTIFF with overviews, and prove that it holds every row.

        A sidecar ``<path>.aux.xml`` carries the class names, which TIFF has no place for.

        Raises
        ------
        DiskError
            If it can't be written, or does not read back as what was written.
        """
        with _writing(path):
            rasterio.shutil.copy(
                self.path,
                path,
                driver="COG",
                compress="DEFLATE",
                # Differences at the quickest level take less room, and time, than values at the usual one.
                level=1,
                predictor="YES",
                blocksize=BLOCK_PX,
                # The class that most of the covered pixels have: averages of class ids mean nothing.
                overview_resampling="MODE",
                bigtiff="IF_SAFER",
                num_threads="ALL_CPUS",
            )
            with tifffile.TiffFile(path, mode="r+") as file:
                for page in file.pages:
                    # GDAL marks the band beside a palette as alpha; confidence is none, and QGIS would fade the map.
                    page.aspage().tags["ExtraSamples"].overwrite(0)
            path.with_name(path.name + ".aux.xml").write_text(pam(self._legend), encoding="utf-8")
            if self._checksum_of(path) != self._checksum:
                raise DiskError(f"{path} does not read back as it was written", "the disk is full or failing")

    def _checksum_of(self, path: Path) -> int:
        rows, cols = self.grid.shape
        checksum = 0
        with rasterio.open(path, num_threads="ALL_CPUS") as file:
            for top in range(0, rows, BLOCK_PX):
                block: NDArray[Any] = file.read(window=Window(0, top, cols, min(BLOCK_PX, rows - top)))
                checksum = zlib.crc32(np.ascontiguousarray(block).data, checksum)
        return checksum


def read_labels(path: Path, grid: Grid, longest_px: int) -> tuple[NDArray[np.uint8], Grid]:
    """Read a map's labels, shrunk to at most ``longest_px`` rows and columns, and the grid that they are on then."""
    small = grid.shrunk(longest_px)
    with rasterio.open(path) as file:
        labels: NDArray[np.uint8] = file.read(1, out_shape=small.shape)
    return labels, small


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn GDAL's and the operating system's refusals to write into `DiskError`."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError) as error:
        detail = str(error.__cause__ or error)
        raise DiskError(f"can't write {path}: {detail}", "is the disk full?") from error
