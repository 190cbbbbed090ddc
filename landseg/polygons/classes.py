"""What a raster of classes, made by anyone, says of itself."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from landseg.errors import InputError
from landseg.grid import Grid
from landseg.machine import ahead, cores
from landseg.polygons.strips import MOST_CLASSES, PIXELS_AT_ONCE, Strips, distinct, has_mask
from landseg.scene import describe_scene

CONFIDENCE = "confidence"
"""What the description of the band begins with that holds the confidence of landseg's own maps."""


@dataclass(frozen=True)
class ClassRaster:
    """A raster whose band 1 holds classes.

    Parameters
    ----------
    path
        Where it is.
    grid
        Its pixels on the ground.
    values
        The classes that occur, ascending.
    names, colours
        What it calls some values, nodata not among them, and their ``#rrggbb``.
    confidence_band
        Band that holds uint8 percent, if there is one.
    """

    path: Path
    grid: Grid
    values: tuple[int, ...]
    names: Mapping[int, str]
    colours: Mapping[int, str]
    confidence_band: int | None


def read_class_raster(path: Path, assume_crs: str | None = None) -> ClassRaster:
    """Read a raster's header, and all of its pixels to see which classes occur.

    Parameters
    ----------
    path
        A raster of whole numbers. What it declares as nodata, masks or holds as not-a-number is no class.
    assume_crs
        CRS to take where the raster names none, such as ``EPSG:32640``.

    Raises
    ------
    SceneError
        If it can't be read.
    CrsError
        If it has no usable CRS.
    InputError
        If it is no raster of classes.
    """
    grid = describe_scene(str(path), assume_crs).grid
    with rasterio.open(path) as file:
        colour, nodata = file.colorinterp[0], file.nodatavals[0]
        masked = has_mask(file, 1)
        palette = file.colormap(1) if colour == ColorInterp.palette else {}
        described = file.descriptions[1] if file.count > 1 and file.dtypes[1] == "uint8" else None
    if colour in (ColorInterp.red, ColorInterp.green, ColorInterp.blue):
        raise InputError(
            f"{path} is an image: its first band is {colour.name}", "name a raster whose band 1 holds classes"
        )
    found = _distinct_values(path, grid)
    if nodata is not None and not masked:
        found = found[found != nodata]
    if (found != np.rint(found)).any():
        raise InputError(
            f"{path} holds decimals, such as {found[found != np.rint(found)][0]:g}", "classes are whole numbers"
        )
    if len(found) > MOST_CLASSES:
        raise InputError(
            f"band 1 of {path} holds more than {MOST_CLASSES} different values", "is it a raster of classes?"
        )
    if not len(found):
        raise InputError(f"{path} holds no valid pixel", "all of it is nodata; is it the right file?")
    farthest = max(found, key=abs)
    if abs(farthest) > np.iinfo(np.int32).max:
        raise InputError(f"{path} holds {farthest:.0f}, which is too large for a class id", "reclassify it first")
    return ClassRaster(
        path,
        grid,
        tuple(int(value) for value in found),
        {value: name for value, name in _category_names(path).items() if value in found or value != nodata},
        {value: "#{:02x}{:02x}{:02x}".format(*rgba[:3]) for value, rgba in palette.items()},
        2 if (described or "").startswith(CONFIDENCE) else None,
    )


def _distinct_values(path: Path, grid: Grid) -> NDArray[np.float64]:
    """Find up to one value more than there may be classes, and nodata."""
    strips = Strips(path, grid.shape, max(1, PIXELS_AT_ONCE // grid.shape[1]), np.empty(0, np.int64))
    most = MOST_CLASSES + 1
    found = np.empty(0)
    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        for more in ahead(pool, lambda index: distinct(strips.read(index, 1), most), range(len(strips)), workers):
            found = np.union1d(found, more.astype(np.float64))
            if len(found) > most:
                break
    return found


def _category_names(path: Path) -> dict[int, str]:
    """Read the names of values from GDAL's sidecar."""
    sidecar = path.with_name(path.name + ".aux.xml")
    if not sidecar.is_file():
        return {}
    try:
        # The sidecar is as much the user's own as the raster.
        names = ET.parse(sidecar).getroot().find("PAMRasterBand[@band='1']/CategoryNames")  # noqa: S314
    except ET.ParseError as error:
        raise InputError(f"can't read {sidecar}: {error}", "remove it if it is not the raster's") from error
    return {} if names is None else {value: name.text for value, name in enumerate(names) if name.text}
