"""What is measured of polygons: area and perimeter on the ellipsoid, and the mean confidence of their pixels."""

from pathlib import Path

import numpy as np
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

STEP_M = 100.0
"""Distance over which the projection is differentiated: rounding and curvature are both far below 1e-6 there."""

POLYGONS_AT_ONCE = 2**16
PIXELS_AT_ONCE = 2**22


def measure_on_ellipsoid(geometry: NDArray[np.object_], crs: CRS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure polygons on the ellipsoid of their CRS.

    Planar measures are corrected by the projection's derivative at each polygon's centroid. That holds for any
    projection, conformal or not. What it leaves out grows with the square of a polygon's extent: below 1e-4 for
    polygons of 100 km in UTM.

    Parameters
    ----------
    geometry
        (N,) Polygons in CRS units.
    crs
        Projected, in any unit; in an engineering CRS, which has no ellipsoid, measures are planar.

    Returns
    -------
    area_m2, perimeter_m
        (N,) float64.
    """
    metres = _metres_per_unit(shapely.get_coordinates(shapely.centroid(geometry)), crs)
    area_m2 = shapely.area(geometry) * np.abs(np.linalg.det(metres))
    perimeter_m = np.empty(len(geometry))
    for start in range(0, len(geometry), POLYGONS_AT_ONCE):
        part = slice(start, start + POLYGONS_AT_ONCE)
        perimeter_m[part] = _perimeters(geometry[part], metres[part])
    return area_m2, perimeter_m


def _perimeters(geometry: NDArray[np.object_], metres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum the lengths of the sides of polygons, each by its own (N, 2, 2) metres per CRS unit."""
    rings, polygon_of_ring = shapely.get_rings(geometry, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    is_side = ring[1:] == ring[:-1]
    polygon = polygon_of_ring[ring[1:][is_side]]
    sides = np.einsum("nij,nj->ni", metres[polygon], np.diff(xy, axis=0)[is_side])
    perimeters = np.zeros(len(geometry))
    np.add.at(perimeters, polygon, np.hypot(*sides.T))
    return perimeters


def _metres_per_unit(xy: NDArray[np.float64], crs: CRS) -> NDArray[np.float64]:
    """Differentiate (east, north) in metres on the ellipsoid by (x, y) in CRS units.

    ``pyproj.Proj.get_factors`` is not used: it takes EPSG:3857 for a map of a sphere, which is off by up to 0.7 %.

    Returns
    -------
    (N, 2, 2) float64; the CRS's unit in metres times the identity where the projection can't be inverted.
    """
    projected = pyproj.CRS.from_wkt(crs.to_wkt())
    unit = projected.axis_info[0].unit_conversion_factor
    planar = np.broadcast_to(unit * np.eye(2), (len(xy), 2, 2))
    geodetic, ellipsoid = projected.geodetic_crs, projected.get_geod()
    if geodetic is None or ellipsoid is None:
        return planar

    to_lonlat = pyproj.Transformer.from_crs(projected, geodetic, always_xy=True)
    radians = geodetic.axis_info[0].unit_conversion_factor
    step = STEP_M / unit
    # (N, side, axis that is stepped along, xy)
    points = xy[:, None, None, :] + np.array([-step, step])[:, None, None] * np.eye(2)
    lons, lats = to_lonlat.transform(points[..., 0], points[..., 1])
    with np.errstate(invalid="ignore"):  # points that can't be inverted are infinite
        east, north = (radians * np.diff(angle, axis=1)[:, 0] for angle in (lons, lats))
        east = (east + np.pi) % (2 * np.pi) - np.pi  # a side may cross the 180th meridian
        lat = radians * np.mean(lats, axis=(1, 2))[:, None]
        flattened = 1 - ellipsoid.es * np.sin(lat) ** 2
        east *= ellipsoid.a * np.cos(lat) / np.sqrt(flattened)
        north *= ellipsoid.a * (1 - ellipsoid.es) / flattened**1.5
    metres = np.stack((east, north), axis=1) / (2 * step)
    return np.where(np.isfinite(metres).all(axis=(1, 2), keepdims=True), metres, planar)


def mean_confidence(raster: Path, faces: NDArray[np.object_]) -> NDArray[np.float32]:
    """Average band 2 over each face's pixels, reading the raster once, strip by strip.

    By Green's theorem no pixel needs to know its face. With ``S(x, y)`` the sum over all pixels above and left of a
    corner, a face's sum is that of ``S(x, end) - S(x, start)`` over its vertical sides. All sums are of integers, so
    the result does not depend on the strips.

    Parameters
    ----------
    raster
        GeoTIFF whose band 2 is the confidence, uint8 percent.
    faces
        (N,) valid Polygons in pixel coordinates, inner rings opposed to outer ones.

    Returns
    -------
    (N,) float32, 0-100.
    """
    rings, face_of_ring = shapely.get_rings(faces, return_index=True)
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    col, row = corners.astype(np.int64).T
    vertical = (ring[1:] == ring[:-1]) & (col[1:] == col[:-1])
    sign = np.zeros(len(col), np.int64)
    sign[1:] += vertical
    sign[:-1] -= vertical
    by_row = np.argsort(row, kind="stable")

    sums = np.zeros(len(faces), np.int64)
    with rasterio.open(raster) as dataset:
        height, width = dataset.shape
        strip_rows = max(1, PIXELS_AT_ONCE // width)
        column_sums = np.zeros(width, np.int64)
        for start in range(0, height, strip_rows):
            stop = min(start + strip_rows, height)
            pixels = dataset.read(2, window=Window(0, start, width, stop - start))
            corner_sums = np.zeros((stop - start, width + 1), np.int64)
            corner_sums[:, 1:] = np.cumsum(pixels, axis=0, dtype=np.int64) + column_sums
            column_sums = corner_sums[-1, 1:].copy()
            np.cumsum(corner_sums, axis=1, out=corner_sums)
            # Corners on the strip's upper edge belong to the strip above; above the first one all sums are 0.
            first, last = np.searchsorted(row, (start, stop), side="right", sorter=by_row)
            here = by_row[first:last]
            np.add.at(sums, face_of_ring[ring[here]], sign[here] * corner_sums[row[here] - start - 1, col[here]])
    means: NDArray[np.float32] = np.abs(sums / shapely.area(faces)).astype(np.float32)
    return means
