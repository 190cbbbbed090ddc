"""What a raster's header says: its grid, its bands, and where they hold data."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioIOError

from landseg.errors import CrsError, SceneError
from landseg.grid import LONLAT, Grid, epsg_code
from landseg.hrefs import check_plain, hide_secrets, is_remote
from landseg.scene.gdal import GDAL_OPTIONS
from landseg.scene.stamp import local_files, stamp_of

log = logging.getLogger(__name__)

Validity = Literal["alpha", "mask", "nodata", "none", "bands"]

# GDAL's name of a part of a file, such as GPKG:city.gpkg:ortho; C:/city.tif is none.
_SUBDATASET = re.compile(r"\w{2,}:")

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
    check_plain(path, SceneError)
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
            files = local_files(source)
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
                stamp=stamp_of(path, files),
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
            stamp = stamp_of(info.path, local_files(source))
    except (OSError, SceneError):
        return False
    # Sizes and times take turns in a stamp.
    return header == (info.grid.shape, info.grid.transform, info.dtypes) and stamp[::2] == info.stamp[::2]


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
