"""Scenes: what a raster is, which of its bands a model reads, on which grid, and its pixels window by window."""

import logging
import math
import os
import re
import threading
import urllib.request
import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio._path import _parse_path, _vsi_path  # GDAL's name of what rasterio opens by URL
from rasterio.crs import CRS
from rasterio.drivers import raster_driver_extensions
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, NodataShadowWarning, NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from landseg.errors import BandError, CrsError, EmptySceneError, GsdError, SceneError
from landseg.grid import LONLAT, Grid, cells, epsg_code, shrunk
from landseg.hrefs import hide_secrets, is_remote, open_s3, s3_endpoint, s3_key

log = logging.getLogger(__name__)

GDAL_VERSION: str = rasterio.__gdal_version__

NodataPolicy = Literal["all", "any"]
OnError = Literal["fail", "nodata"]
Validity = Literal["alpha", "mask", "nodata", "none", "bands"]

# Where a raster has both, GDAL lets the declared nodata value decide and not the alpha band; so does landseg. The
# warning would come once per chip.
warnings.filterwarnings("ignore", category=NodataShadowWarning)
# `describe_scene` says it in an error of its own.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

GSD_TOLERANCE = 0.1
"""Share by which a pixel's side may differ from the model's before the scene is resampled."""

GSD_LIMIT = 8.0
"""How many times off the model's ground sampling distance a scene may be before it is refused."""

# GDAL's name of a part of a file, such as GPKG:city.gpkg:ortho; C:/city.tif is none.
_SUBDATASET = re.compile(r"\w{2,}:")

CELL_PX = 32
"""Side of the cells in which a damaged scene is given up: each is read whole or not at all."""

_HTTP_OPTIONS: Mapping[str, Any] = {
    # How often, and after how many seconds, a server that failed is asked again; GDAL's own default is not to.
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 1,
    # GDAL's own default is to wait for ever. Here a connection has so many seconds to come about; after that, fewer
    # than so many bytes a second, for so many seconds, are a failure.
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 100,
    "GDAL_HTTP_LOW_SPEED_TIME": 30,
}


def _s3_options() -> Mapping[str, Any]:
    """Say in GDAL's words which server the environment names for what is on S3."""
    endpoint = s3_endpoint()
    if endpoint is None:
        return {}
    # Names of buckets go into the path: few servers but Amazon's have a host for each.
    return {
        "AWS_S3_ENDPOINT": endpoint.netloc + endpoint.path.rstrip("/"),
        "AWS_HTTPS": "YES" if endpoint.scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }


GDAL_OPTIONS: Mapping[str, Any] = {
    # Those that the environment sets are left to it.
    **{name: value for name, value in {**_HTTP_OPTIONS, **_s3_options()}.items() if name not in os.environ},
    # Chips of a row share blocks: without a cache of at least two rows of blocks each block is decoded twice.
    # Bytes; GDAL's own default is 5 % of main memory, which no one asked for.
    "GDAL_CACHEMAX": 256 * 2**20,
}

BAND_NAMES: Mapping[str, str] = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "near infrared": "nir",
    "near-infrared": "nir",
    "near_infrared": "nir",
    "infrared": "nir",
}
"""Spellings of band descriptions and the names that model cards use."""


@dataclass(frozen=True)
class SceneInfo:
    """What a raster's header says.

    Parameters
    ----------
    path
        As the user gave it: a path, or a URL that GDAL reads (``https://``, ``s3://``, ``/vsi…``).
    grid
        Its own pixels.
    dtypes
        NumPy's name of the type of each band.
    band_names
        Lower-case name of each band, from its description, else from its colour interpretation, else empty.
    validity
        What says which pixels hold data: ``alpha``, ``mask``, ``nodata`` or ``none`` for all bands alike, or ``bands``:
        each for itself, by whatever GDAL takes for its mask.
    alpha
        Number of the band that says it, where it is one.
    files
        Local files that it consists of, the main one first.
    stamp
        Changes when the scene does: size and time of change of the local files, or what an HTTP server says of them;
        empty where nothing is known.
    """

    path: str
    grid: Grid
    dtypes: tuple[str, ...]
    band_names: tuple[str, ...]
    validity: Validity
    alpha: int | None = None
    files: tuple[str, ...] = ()
    stamp: tuple[int | str, ...] = ()

    @property
    def shown(self) -> str:
        """The path without what may be secret in a URL, for people and records."""
        return hide_secrets(self.path)

    def dtype(self, bands: Sequence[int]) -> np.dtype[Any]:
        """Give the type that holds the values of all these bands."""
        return np.result_type(*(self.dtypes[band - 1] for band in bands))

    def is_float(self, bands: Sequence[int]) -> bool:
        """Say whether pixels of these bands may be NaN."""
        return np.issubdtype(self.dtype(bands), np.floating)


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


def raster_drivers() -> list[str]:
    """Name the kinds of raster that this GDAL knows by their suffix."""
    return sorted(set(raster_driver_extensions().values()))


def describe_scene(path: str, assume_crs: str | None = None) -> SceneInfo:
    """Read a raster's header.

    Parameters
    ----------
    path
        Path or URL.
    assume_crs
        CRS to take where the raster names none, such as ``EPSG:32640``.

    Raises
    ------
    SceneError
        If there is no such raster, it can't be read, or has no bands.
    CrsError
        If it has no usable CRS, or the one to assume is none.
    """
    if not is_remote(path) and not Path(path).exists() and not _SUBDATASET.match(path):
        raise SceneError(f"there is no scene {path}")
    try:
        with rasterio.Env(**GDAL_OPTIONS), rasterio.open(path) as source:
            if source.count == 0:
                parts = source.subdatasets
                raise SceneError(
                    f"{path} has no raster bands of its own",
                    f"name one of its {len(parts)} subdatasets, such as {parts[0]}" if parts else None,
                )
            # GDAL knows complex types that NumPy does not.
            if any(t.startswith("complex") for t in source.dtypes):
                raise SceneError(f"{path} holds complex numbers", "give an intensity image")
            crs = _crs_of(source, path, assume_crs)
            if source.transform.is_identity:
                raise CrsError(
                    f"{path} does not say where on the ground it lies",
                    "georeference it in QGIS first, or by gdal_translate -a_ullr",
                )
            validity = _validity(source)
            files = _local_files(source)
            if files and _SUBDATASET.match(path):
                # Wherever it is named from.
                path = path.replace(files[0], str(Path(files[0]).resolve()))
            return SceneInfo(
                path=path,
                grid=Grid(source.shape, source.transform, crs),
                dtypes=tuple(source.dtypes),
                band_names=_band_names(source),
                validity=validity,
                alpha=_alpha_band(source) if validity == "alpha" else None,
                files=files,
                stamp=_stamp(path, files),
            )
    except UnicodeEncodeError as error:
        raise SceneError(f"the name {path!a} is not UTF-8, and GDAL opens no other", "rename it") from error
    except RasterioIOError as error:
        detail = str(error).replace(path, "").strip(" :'")
        raise SceneError(f"can't read {path} as a raster", detail or None) from error


def is_as_described(info: SceneInfo) -> bool:
    """Tell whether this machine has the same under a local scene's path: grid, types, and the sizes of files.

    Times of change may differ between copies. Of scenes that are not on a disk nothing is asked.
    """
    if is_remote(info.path) or not info.files:
        return True
    try:
        with rasterio.Env(**GDAL_OPTIONS), rasterio.open(info.path) as source:
            header = source.shape, source.transform, tuple(source.dtypes)
            stamp = _stamp(info.path, _local_files(source))
    except (OSError, SceneError):
        return False
    # Sizes and times take turns in a stamp.
    return header == (info.grid.shape, info.grid.transform, info.dtypes) and stamp[::2] == info.stamp[::2]


def _local_files(source: Any) -> tuple[str, ...]:
    """List the local files that a raster consists of, the main one first; of a mosaic of mosaics, theirs too."""
    files: dict[str, None] = {}
    found, mosaics = list(source.files), []
    while found:
        new = [file for file in found if file not in files and Path(file).exists()]
        files |= dict.fromkeys(new)
        mosaics += [file for file in new if file.lower().endswith(".vrt")]
        found = []
        if mosaics:
            with rasterio.open(mosaics.pop()) as mosaic:
                found = mosaic.files
    return tuple(files)


def _stamp(path: str, files: Sequence[str] = ()) -> tuple[int | str, ...]:
    """Say what changes when the scene does, which consists of ``files``, the main one first."""
    if path.startswith(("http://", "https://")):
        return _http_stamp(path)
    if key := s3_key(path):
        try:
            (file,) = open_s3(key.partition("/")[0]).get_file_info([key])
        except OSError as error:
            # GDAL has just read it, by settings of its own.
            log.warning("whether %s changes can't be seen: %s", path, error)
            return ()
        return () if file.size is None else (file.size, file.mtime_ns)
    # A subdataset's name is not its file's.
    main = path if Path(path).exists() else next(iter(files), path)
    if is_remote(path) or not Path(main).exists():
        return ()
    # Programs that only show a scene write .aux.xml beside it.
    parts = (file for file in files[1:] if not file.lower().endswith(".aux.xml"))
    try:
        (size, time), *others = ((s.st_size, s.st_mtime_ns) for s in map(os.stat, (main, *parts)))
    except OSError as error:
        raise SceneError(f"{error.filename}, a part of {path}, can't be read", error.strerror) from error
    # However the files are spelt, and in whatever order.
    return size, time, *(number for part in sorted(others) for number in part)


def _http_stamp(url: str) -> tuple[str, ...]:
    try:
        with urllib.request.urlopen(_head_request(url), timeout=20) as answer:  # noqa: S310
            headers = (answer.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length"))
            return tuple(value for value in headers if value)
    except HTTPError as error:
        error.close()  # it is the answer, too
        # Refused for good: the server, or the signature in the URL, is for GET alone.
        if error.code in (400, 401, 403, 404, 405, 501):
            return ()
        raise SceneError(f"{url} can't be reached", f"its server answers {error.code}; try again later") from error
    except (OSError, HTTPException) as error:
        # Without its stamp the scene would be taken for another one.
        raise SceneError(f"{url} can't be reached", f"{error}; try again later") from error


def _head_request(url: str) -> urllib.request.Request:
    """Ask for the headers of a URL; as GDAL does, send what it has of user and password as such."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), method="HEAD")  # noqa: S310 (http or https)
    if user:
        request.add_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    return request


def _crs_of(source: Any, path: str, assume_crs: str | None) -> CRS:
    crs, assumed = source.crs, None
    if assume_crs is not None:
        try:
            assumed = CRS.from_user_input(assume_crs)
        except (CRSError, ValueError) as error:
            raise CrsError(f"'{assume_crs}' is no coordinate reference system", "give one as EPSG:n") from error
    if crs is not None:
        if assumed not in (None, crs):
            own = epsg_code(crs) or crs.to_wkt()
            log.warning("%s names its coordinate reference system, %s; --assume-crs is not heeded", path, own)
    elif source.gcps[0]:
        raise CrsError(
            f"{path} has ground control points but no georeferencing", "rectify it first: gdalwarp -t_srs EPSG:n …"
        )
    elif assumed is None:
        raise CrsError(
            f"{path} has no coordinate reference system",
            "if you know it, say so: --assume-crs EPSG:n; else georeference it in QGIS first",
        )
    else:
        crs = assumed
    try:
        Transformer.from_crs(crs.to_wkt(), LONLAT.to_wkt(), always_xy=True)
    except ProjError as error:
        raise CrsError(
            f"the coordinate reference system of {path} can't be placed on the Earth", "assign it one that can"
        ) from error
    return crs


def _band_names(source: Any) -> tuple[str, ...]:
    names = []
    for description, colour in zip(source.descriptions, source.colorinterp, strict=True):
        name = (description or "").strip().lower()
        if not name and colour not in (ColorInterp.undefined, ColorInterp.gray):
            name = colour.name.lower()
        names.append(BAND_NAMES.get(name, name))
    return tuple(names)


def _validity(source: Any) -> Validity:
    by_band = zip(source.mask_flag_enums, source.nodatavals, source.colorinterp, strict=True)
    # As text: NaN does not equal itself.
    kinds = {(frozenset(flags), str(nodata)) for flags, nodata, colour in by_band if colour != ColorInterp.alpha}
    flags = {flag for band, _ in kinds for flag in band}
    # GDAL has no flag for a mask that a band has to itself.
    if len(kinds) > 1 or any(not band for band, _ in kinds):
        return "bands"
    if MaskFlags.alpha in flags:
        return "alpha"
    has_alpha = _alpha_band(source) is not None
    if MaskFlags.per_dataset in flags:
        # rasterio adds no alpha band, which takes the mask along to another grid, where there is one.
        return "bands" if has_alpha else "mask"
    if MaskFlags.nodata in flags:
        return "nodata"
    # GDAL heeds an alpha band in rasters of two or four bands alone, of uint8 or uint16.
    return "alpha" if has_alpha else "none"


def _alpha_band(source: Any) -> int | None:
    alphas = [band for band, colour in enumerate(source.colorinterp, start=1) if colour == ColorInterp.alpha]
    return alphas[-1] if alphas else None


def match_bands(info: SceneInfo, wanted: Sequence[str], explicit: Sequence[int] | None) -> tuple[int, ...]:
    """Find the bands that a model reads.

    Parameters
    ----------
    info
        The scene.
    wanted
        Names on the model's card, in channel order.
    explicit
        Band numbers from 1 that the user gave instead, or None.

    Returns
    -------
    tuple of int
        Band numbers from 1, in channel order.

    Raises
    ------
    BandError
        If there are too few bands, a number is out of range, or names do not settle it.
    """
    count = len(info.band_names)
    reads = f"the model reads {len(wanted)} ({', '.join(wanted)})"
    if explicit is not None:
        if len(explicit) != len(wanted):
            raise BandError(f"--bands names {len(explicit)} bands; {reads}")
        outside = [band for band in explicit if not 1 <= band <= count]
        if outside:
            raise BandError(f"{info.path} has no band {outside[0]}", f"its bands are 1 to {count}")
        return tuple(explicit)
    colour_bands = [name for name in info.band_names if name != "alpha"]
    if len(colour_bands) < len(wanted):
        raise BandError(
            f"{info.path} has too few bands: {len(colour_bands)}; {reads}",
            "use a model made for such images; 'landseg models list' names those at hand",
        )
    found = [info.band_names.index(name) + 1 if name in info.band_names else None for name in wanted]
    if None in found:
        has = ", ".join(f"{i} {name or '(unnamed)'}" for i, name in enumerate(info.band_names, start=1))
        raise BandError(
            f"{info.path} does not say which of its bands is {wanted[found.index(None)]}; it has {has}",
            f"say which are {', '.join(wanted)}: --bands n,n,n",
        )
    return tuple(band for band in found if band is not None)


def working_grid(info: SceneInfo, gsd_m: float, *, force_gsd: bool = False) -> Grid:
    """Choose the grid that a scene is mapped on: its own, or one at the model's ground sampling distance.

    A scene in degrees is brought to its UTM zone (or the polar stereographic grid beyond 84 degrees north and
    80 degrees south). Otherwise the grid is the scene's own unless a pixel's side is more than 10 % off.

    Parameters
    ----------
    info
        The scene.
    gsd_m
        The model's ground sampling distance in metres.
    force_gsd
        Take pixels as they are, whatever their size.

    Raises
    ------
    GsdError
        If the scene is more than 8 times off.
    """
    own = info.grid
    try:
        off = [size / gsd_m for size in own.pixel_size_m]
    except ProjError as error:
        raise CrsError(f"{info.path} lies outside of where its coordinate reference system holds") from error
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in off):
        raise CrsError(
            f"{info.path} lies nowhere on the Earth by its georeferencing", "check its transform with gdalinfo"
        )
    worst = max(max(ratio, 1 / ratio) for ratio in off)
    if worst > GSD_LIMIT and not force_gsd:
        raise GsdError(
            f"a pixel of {info.path} is {own.gsd_m:.3g} m wide; the model was made for {gsd_m:.3g} m",
            "no resampling makes up for that: use another model, or take the pixels as they are with --force-gsd",
        )
    keeps_pixels = force_gsd or worst <= 1 + GSD_TOLERANCE
    if own.crs.is_geographic:
        return _local_grid(own, own.gsd_m if keeps_pixels else gsd_m)
    return own if keeps_pixels else own.resampled((1 / off[0], 1 / off[1]))


def _local_grid(own: Grid, gsd_m: float) -> Grid:
    """Cover a grid in degrees with one in metres, its corner on a multiple of the pixel's side."""
    rows, cols = own.shape
    centre_lon, centre_lat = own.transform @ (cols / 2, rows / 2)
    if centre_lat > 84 or centre_lat < -80:
        crs = CRS.from_epsg(5041 if centre_lat > 0 else 5042)
    else:
        zone = min(60, int((centre_lon + 180) % 360 // 6) + 1)
        crs = CRS.from_epsg((32600 if centre_lat >= 0 else 32700) + zone)
    # 21 points a side: edges of a lon/lat box bend in a projection, so corners alone do not bound it.
    steps = np.linspace(0, 1, 21)
    edge = [(u, v) for t in steps for u, v in ((t * cols, 0), (t * cols, rows), (0, t * rows), (cols, t * rows))]
    lonlats = [own.transform @ point for point in edge]
    project = Transformer.from_crs(own.crs.to_wkt(), crs.to_wkt(), always_xy=True)
    xs, ys = project.transform([x for x, _ in lonlats], [y for _, y in lonlats])
    left, top = math.floor(min(xs) / gsd_m) * gsd_m, math.ceil(max(ys) / gsd_m) * gsd_m
    shape = math.ceil((top - min(ys)) / gsd_m), math.ceil((max(xs) - left) / gsd_m)
    return Grid(shape, Affine(gsd_m, 0, left, 0, -gsd_m, top), crs)


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


ValueRanges = tuple[tuple[float, float], ...]
"""(low, high) of each band that is brought to 0-255."""


def value_ranges(info: SceneInfo, bands: Sequence[int], given: tuple[float, float] | None) -> ValueRanges:
    """Decide once for a whole scene how its values are brought to 0-255.

    Bands of 8 bits are taken as they are. Others use the model's range where the card has one, else the 2nd and 98th
    percentiles of each band, read once from an overview.

    Raises
    ------
    SceneError
        If no pixel is valid.
    """
    ranges = dict.fromkeys(bands, (0.0, 255.0))
    wider = [band for band in ranges if info.dtypes[band - 1] != "uint8"]
    if given is not None:
        ranges |= dict.fromkeys(wider, given)
    elif wider:
        for number, band in zip(wider, read_overview(info, wider, 1024), strict=True):
            values = np.ma.masked_invalid(band).compressed()
            if values.size == 0:
                raise EmptySceneError(f"{info.path} holds no valid pixel", "all of it is nodata; is it the right file?")
            low, high = (float(v) for v in np.percentile(values, (2, 98)))
            ranges[number] = low, high if high > low else low + 1.0
    return tuple(ranges[band] for band in bands)
