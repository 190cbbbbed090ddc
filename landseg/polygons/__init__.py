"""From a raster of labels to polygons: one for each face, without gaps or overlaps between them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from landseg.grid import Grid
from landseg.polygons.gdal import trace_faces
from landseg.polygons.measure import mean_confidence, measure_on_ellipsoid


@dataclass(frozen=True)
class Polygons:
    """Faces of a map as polygons, ordered by the face's top-left pixel (row-major).

    Laws: every polygon is valid; together they are a coverage (`shapely.coverage_is_valid`); a polygon's area in CRS
    units is its number of pixels times the area of a pixel.

    Parameters
    ----------
    geometry
        (N,) shapely Polygons in the CRS of the grid.
    class_id
        (N,) uint8, from 1; nodata has no polygons.
    confidence
        (N,) float32, mean percent over the face's pixels, 0-100.
    area_m2
        (N,) float64, on the ellipsoid.
    perimeter_m
        (N,) float64, on the ellipsoid; outer and inner rings together.
    """

    geometry: NDArray[np.object_]
    class_id: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    area_m2: NDArray[np.float64]
    perimeter_m: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.geometry)


def polygonize(raster: Path, grid: Grid) -> Polygons:
    """Turn the 4-connected faces of a map into polygons.

    Parameters
    ----------
    raster
        GeoTIFF on ``grid``: band 1 labels, uint8, 0 = nodata; band 2 confidence, uint8 percent.
    grid
        Pixels of the raster on the ground; its transform may be rotated.

    Returns
    -------
    Polygons
        Outer rings run counter-clockwise, inner rings clockwise.
    """
    faces, class_id = trace_faces(raster)
    faces = shapely.orient_polygons(faces, exterior_cw=grid.transform.determinant < 0)
    geometry = shapely.transform(faces, lambda xy: _on_ground(grid.transform, xy))
    area_m2, perimeter_m = measure_on_ellipsoid(geometry, grid.crs)
    return Polygons(geometry, class_id, mean_confidence(raster, faces), area_m2, perimeter_m)


def _on_ground(transform: Affine, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    # Elementwise, since a matrix product may round the same corner differently in two polygons and tear them apart.
    a, b, c, d, e, f = transform[:6]
    x, y = xy.T
    return np.column_stack((a * x + b * y + c, d * x + e * y + f))
