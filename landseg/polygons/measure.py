"""What is measured of polygons: area and perimeter on the ellipsoid."""

import math

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.crs import CRS

from landseg.grid import Grid
from landseg.polygons.assemble import Rings
from landseg.polygons.compiled import kernel

STEP_M = 100.0
"""Distance over which the projection is differentiated: rounding and curvature are both far below 1e-6 there."""

SPACING_M = 4000.0
"""Between points at which it is differentiated: what lies between them is interpolated to better than 1e-7."""

MOST_POINTS = 256
"""Along a side of the scene."""


def metres_per_pixel(grid: Grid) -> NDArray[np.float64]:
    """Differentiate (east, north) in metres on the ellipsoid by (col, row), on a lattice over the whole grid.

    Returns
    -------
    (n, m, 2, 2) float64, at least 2 x 2 points that are evenly spaced from the grid's first to its last corners.
    """
    a, b, c, d, e, f = grid.transform[:6]
    unit = _metres_of_unit(pyproj.CRS.from_wkt(grid.crs.to_wkt()))
    sides_m = grid.shape[0] * math.hypot(b, e) * unit, grid.shape[1] * math.hypot(a, d) * unit
    points = [min(2 + math.ceil(side / SPACING_M), MOST_POINTS) for side in sides_m]
    rows, cols = (np.linspace(0, n, count) for n, count in zip(grid.shape, points, strict=True))
    x, y = a * cols + b * rows[:, None] + c, d * cols + e * rows[:, None] + f
    metres = _metres_per_unit(np.stack((x, y), axis=-1).reshape(-1, 2), grid.crs)
    lattice: NDArray[np.float64] = (metres @ np.array([[a, b], [d, e]])).reshape(*points, 2, 2)
    return lattice


@kernel
def measure_rings(
    rings: Rings, metres: NDArray[np.float64], rows: int, cols: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure faces on the ellipsoid of their CRS.

    Planar measures are corrected by the projection's derivative at each face's centroid. That holds for any
    projection, conformal or not. What it leaves out grows with the square of a face's extent: below 1e-4 for
    faces of 100 km in UTM and in degrees, 1e-3 for those of 1,000 km in degrees.

    Parameters
    ----------
    rings
        N faces.
    metres
        From `metres_per_pixel`.
    rows, cols
        Shape of the grid.

    Returns
    -------
    area_m2, perimeter_m
        (N,) float64; the latter is of outer and inner rings together.
    """
    count = len(rings.faces)
    area_m2, perimeter_m = np.empty(count), np.empty(count)
    for face in range(count):
        record = rings.words[rings.offsets[face] : rings.offsets[face + 1]]
        parts = record[0]
        # Sums are taken about the face's first point, where they keep their digits.
        x0, y0 = float(record[1 + parts]), float(record[2 + parts])
        twice_area, moment_x, moment_y = 0.0, 0.0, 0.0
        at = 1 + parts
        for part in range(parts):
            for _ in range(record[1 + part] - 1):
                x, y = record[at] - x0, record[at + 1] - y0
                next_x, next_y = record[at + 2] - x0, record[at + 3] - y0
                cross = next_x * y - x * next_y
                twice_area += cross
                moment_x += cross * (x + next_x)
                moment_y += cross * (y + next_y)
                at += 2
            at += 2
        col, row = (x0 + moment_x / (3 * twice_area)) / 2, (y0 + moment_y / (3 * twice_area)) / 2
        xx, xy, yx, yy = _interpolate(metres, row / rows, col / cols)
        area_m2[face] = twice_area / 8 * abs(xx * yy - xy * yx)

        length = 0.0
        at = 1 + parts
        for part in range(parts):
            for _ in range(record[1 + part] - 1):
                x, y = (record[at + 2] - record[at]) / 2, (record[at + 3] - record[at + 1]) / 2
                length += math.sqrt((xx * x + xy * y) ** 2 + (yx * x + yy * y) ** 2)
                at += 2
            at += 2
        perimeter_m[face] = length
    return area_m2, perimeter_m


@kernel
def _interpolate(metres: NDArray[np.float64], down: float, across: float) -> tuple[float, float, float, float]:
    """Give the derivative at a place, 0-1 of the grid's height and width."""
    height, width = metres.shape[0] - 1, metres.shape[1] - 1
    row, col = min(max(int(down * height), 0), height - 1), min(max(int(across * width), 0), width - 1)
    v, u = down * height - row, across * width - col
    near = metres[row, col] * (1 - u) + metres[row, col + 1] * u
    far = metres[row + 1, col] * (1 - u) + metres[row + 1, col + 1] * u
    found = near * (1 - v) + far * v
    return found[0, 0], found[0, 1], found[1, 0], found[1, 1]


def _metres_of_unit(crs: pyproj.CRS) -> float:
    """Give the length of a CRS's unit in metres; that of an angle is along the equator."""
    factor = float(crs.axis_info[0].unit_conversion_factor)
    ellipsoid = crs.get_geod()
    return factor * ellipsoid.a if crs.is_geographic and ellipsoid is not None else factor


def _metres_per_unit(xy: NDArray[np.float64], crs: CRS) -> NDArray[np.float64]:
    """Differentiate (east, north) in metres on the ellipsoid by (x, y) in CRS units.

    ``pyproj.Proj.get_factors`` is not used: it takes EPSG:3857 for a map of a sphere, which is off by up to 0.7 %.

    Returns
    -------
    (N, 2, 2) float64; the CRS's unit in metres times the identity where the projection can't be inverted.
    """
    projected = pyproj.CRS.from_wkt(crs.to_wkt())
    unit = _metres_of_unit(projected)
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
