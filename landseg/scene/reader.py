"""Pixels of a scene: window by window, on its own grid or another, or shrunk as a whole."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._path import _parse_path, _vsi_path  # GDAL's name of what rasterio opens by URL
from rasterio.crs import CRS
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from landseg.errors import SceneError
from landseg.grid import Grid, shrunk
from landseg.scene.gdal import GDAL_OPTIONS
from landseg.scene.header import SceneInfo

NodataPolicy = Literal["all", "any"]


@dataclass(frozen=True)
class Pixels:
    """What was read from a window.

    Parameters
    ----------
    data
        (C, H, W) of the scene's type; undefined where not valid.
    valid
        (H, W) bool, True = usable.
    """

    data: NDArray[Any]
    valid: NDArray[np.bool_]


class SceneReader(Protocol):
    """Pixels on a grid. ``read`` may be called from several threads at once, but not after ``close``."""

    @property
    def grid(self) -> Grid:
        """The grid that windows refer to."""
        ...

    def read(self, window: Window) -> Pixels:
        """Read a window that lies within the grid.

        Raises
        ------
        SceneError
            If the source can't be read there.
        """
        ...

    def close(self) -> None:
        """Let go of the source."""
        ...


class RasterScene:
    """A `SceneReader` of any raster that GDAL reads, resampled on the fly where the grid is not the raster's own.

    Each thread that reads opens the raster for itself, since GDAL's datasets are not safe to share.

    Parameters
    ----------
    info
        The raster.
    bands
        Band numbers from 1, in channel order.
    grid
        The grid to read on; see `working_grid`.
    nodata_policy
        ``all``: a pixel is invalid when all bands are nodata there; ``any``: when at least one is. NaN in any band is
        invalid under both.
    resampling
        ``nearest`` for classes, whose averages mean nothing.
    """

    def __init__(
        self,
        info: SceneInfo,
        bands: Sequence[int],
        grid: Grid,
        *,
        nodata_policy: NodataPolicy = "all",
        resampling: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        self.info = info
        self.bands = list(bands)
        self._grid = grid
        self._combine = np.any if nodata_policy == "all" else np.all
        self._warping = (
            None if grid == info.grid else _warp_options(info, bands, grid, nodata_policy, Resampling[resampling])
        )
        # Bands that are warped without the others, one group after the other.
        self._alone: list[list[int]] = []
        if self._warping and info.validity == "bands":
            # The warper knows one mask and one nodata value for all bands.
            self._alone = [[band] for band in bands]
        elif self._warping and info.validity == "nodata" and len(set(bands)) < len(info.band_names):
            # The warper asks bands that are not read, too, whether a pixel holds data.
            self._alone = [self.bands]
        # GDAL's own masks miss an alpha band that is not one of two or four.
        self._mask_band = info.alpha
        if self._warping and "add_alpha" in self._warping:
            self._mask_band = 2 if self._alone else len(info.band_names) + 1
        self._local = threading.local()
        self._opened: list[Any] = []

    @property
    def grid(self) -> Grid:
        """The grid that windows refer to."""
        return self._grid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def read(self, window: Window) -> Pixels:
        """Read a window that lies within the grid."""
        with rasterio.Env(**GDAL_OPTIONS):
            try:
                parts = [self._read(source, bands, window) for source, bands in self._handles()]
            except RasterioError as error:
                raise SceneError(
                    f"{self.info.path} can't be read at rows {window.row_off} to {window.row_off + window.height}, "
                    f"columns {window.col_off} to {window.col_off + window.width}: the file is damaged or out of reach",
                    str(error.__cause__ or error),
                ) from error
        data = np.concatenate([data for data, _ in parts])
        valid: NDArray[np.bool_] = self._combine(np.concatenate([valid for _, valid in parts]), axis=0)
        if self.info.is_float(self.bands):
            valid &= ~np.isnan(data).any(axis=0)
        return Pixels(data, valid)

    def _read(self, source: Any, bands: list[int], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read bands, (C, H, W), and which of their pixels hold data, (C or 1, H, W)."""
        data = _read_bands(source, bands, window=window)
        if self._mask_band is not None:
            return data, source.read([self._mask_band], window=window) > 0
        if self.info.validity == "none" and self._warping is None:
            return data, np.ones((1, *data.shape[1:]), dtype=np.bool_)
        return data, source.read_masks(bands, window=window) > 0

    def _handles(self) -> list[tuple[Any, list[int]]]:
        """Give this thread's own datasets on the working grid, and the bands to read from each."""
        if not hasattr(self._local, "handles"):
            source = self._keep(rasterio.open(self.info.path))
            if self._warping is None:
                handles = [(source, self.bands)]
            elif not self._alone:
                handles = [(self._keep(WarpedVRT(source, **self._warping)), self.bands)]
            else:
                handles = []
                name = _vsi_path(_parse_path(self.info.path))
                masked = self.info.validity == "bands"
                for bands in self._alone:
                    alone = self._keep(rasterio.open(_bands_alone(source, name, bands, masked=masked)))
                    # As on the scene's own grid, what holds no data has the nodata value.
                    options = self._warping | ({"init_dest": source.nodatavals[bands[0] - 1] or 0} if masked else {})
                    handles.append((self._keep(WarpedVRT(alone, **options)), list(alone.indexes)))
            self._local.handles = handles
        found: list[tuple[Any, list[int]]] = self._local.handles
        return found

    def _keep(self, opened: Any) -> Any:
        self._opened.append(opened)
        return opened

    def close(self) -> None:
        """Close every thread's dataset."""
        while self._opened:
            self._opened.pop().close()


def _warp_options(
    info: SceneInfo, bands: Sequence[int], grid: Grid, nodata_policy: NodataPolicy, resampling: Resampling
) -> dict[str, Any]:
    """Say in rasterio's words how a scene comes to lie on another grid."""
    rows, cols = grid.shape
    options: dict[str, Any] = {
        "crs": grid.crs,
        "src_crs": _unbroken(info.grid),
        "src_transform": info.grid.transform,
        "transform": grid.transform,
        "height": rows,
        "width": cols,
        # GDAL widens the kernel when pixels grow, so that nothing aliases.
        "resampling": resampling,
        # Whether a value that is nodata counts where another band holds data, as it does on the scene's own grid.
        "UNIFIED_SRC_NODATA": "YES" if nodata_policy == "all" else "NO",
    }
    if resampling == Resampling.nearest:
        # GDAL reckons places approximately, by the window that is read, and at a pixel's edge a little decides.
        options["tolerance"] = 1e-6
    if len(set(info.dtypes)) > 1:
        # Else it is one that holds the values of all bands, also of those that are not read.
        options["dtype"] = str(info.dtype(bands))
    if info.validity == "nodata" and info.dtype(bands) in (np.int64, np.uint64):
        # The warper takes no nodata value of such integers for one.
        options["dtype"] = "float64"
    if info.alpha is not None:
        options |= {"src_alpha": info.alpha, "dst_alpha": info.alpha}
    elif info.validity == "none" and info.is_float(bands):
        options["src_nodata"] = math.nan
    elif info.validity != "nodata":
        # Without an alpha band the warper forgets the source's mask and fills what lies beyond it with 0; by a nodata
        # value beside the mask it would not look at the mask.
        options |= {"add_alpha": True, "src_nodata": None}
    return options


def _bands_alone(source: Any, name: str, bands: Sequence[int], *, masked: bool) -> str:
    """Describe bands as a raster, in GDAL's words, with their nodata values or, ``masked``, the first one's mask."""
    rows, cols = source.shape

    def pixels(band: int | str) -> str:
        file = f'<SourceFilename shared="0">{escape(name)}</SourceFilename>'
        return f"<SimpleSource>{file}<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"

    words = f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">'
    for number, band in enumerate(bands, start=1):
        words += f'<VRTRasterBand dataType="{typename_fwd[dtype_rev[source.dtypes[band - 1]]]}" band="{number}">'
        if not masked:
            words += f"<NoDataValue>{source.nodatavals[band - 1]}</NoDataValue>"
        words += pixels(band)
    if masked:
        words += f'<MaskBand><VRTRasterBand dataType="Byte">{pixels(f"mask,{bands[0]}")}</MaskBand>'
    return f"{words}</VRTDataset>"


def _read_bands(source: Any, bands: Sequence[int], **options: Any) -> Any:
    """Read bands, (C, H, W), as an array or, with ``masked``, a masked one."""
    if len({source.dtypes[band - 1] for band in bands}) == 1:
        return source.read(list(bands), **options)
    # rasterio reads none of different types at once.
    stack = np.ma.stack if options.get("masked") else np.stack
    return stack([source.read(band, **options) for band in bands])


def _unbroken(grid: Grid) -> CRS:
    """Give a grid's CRS, whose longitudes go on past the 180th meridian where the grid does."""
    lons = [lon for lon, _ in grid.corners]
    if not grid.crs.is_geographic or (min(lons) >= -180 and max(lons) <= 180):
        return grid.crs
    return CRS.from_string(f"{grid.crs.to_proj4()} +lon_wrap={sum(lons) / 4}")


def read_overview(
    info: SceneInfo, bands: Sequence[int], longest_px: int, *, average: bool = False
) -> np.ma.MaskedArray[Any, Any]:
    """Read a whole scene on its own grid, shrunk to at most ``longest_px`` rows and columns.

    Parameters
    ----------
    info
        The scene.
    bands
        Band numbers from 1.
    longest_px
        Most rows and columns.
    average
        Whether to average what falls into a pixel; else the nearest value is taken, which keeps the values' spread.

    Returns
    -------
    MaskedArray
        (C, h, w) of the scene's type, masked where the bands hold no data.

    Raises
    ------
    SceneError
        If the source can't be read.
    """
    shape = shrunk(info.grid.shape, longest_px)
    resampling = Resampling.average if average else Resampling.nearest
    try:
        with rasterio.Env(**GDAL_OPTIONS), rasterio.open(info.path) as source:
            overview: np.ma.MaskedArray[Any, Any] = _read_bands(
                source, bands, out_shape=shape, resampling=resampling, masked=True
            )
            if info.alpha is not None:
                overview[:, source.read(info.alpha, out_shape=shape) == 0] = np.ma.masked
            return overview
    except RasterioError as error:
        raise SceneError(f"can't read {info.path}: the file is damaged or out of reach", str(error)) from error
