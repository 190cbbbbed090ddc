"""What a model is shown of a scene: which bands, on which grid, and which values become 0-255."""

import math
from collections.abc import Sequence

import numpy as np
from affine import Affine
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS

from landseg.errors import BandError, CrsError, EmptySceneError, GsdError
from landseg.grid import Grid
from landseg.scene.header import SceneInfo
from landseg.scene.reader import read_overview

GSD_TOLERANCE = 0.1
"""Share by which a pixel's side may differ from the model's before the scene is resampled."""

GSD_LIMIT = 8.0
"""How many times off the model's ground sampling distance a scene may be before it is refused."""

ValueRanges = tuple[tuple[float, float], ...]
"""(low, high) of each band that is brought to 0-255."""


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
