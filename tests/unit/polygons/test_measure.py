from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from landseg.grid import Grid
from landseg.polygons import Polygons, polygonize
from landseg.polygons.measure import metres_per_pixel

# A square, a long strip and a square with a hole, in pixels of 100 m.
SHAPES = np.zeros((120, 160), np.uint8)
SHAPES[5:15, 5:15] = 1
SHAPES[40:42, 100:150] = 2
SHAPES[80:110, 60:80] = 3
SHAPES[85:95, 65:69] = 0


def polygons_at(
    folder: Path, crs: CRS, origin: tuple[float, float], labels: NDArray[np.uint8] = SHAPES, pixel: float = 100
) -> Polygons:
    return polygons_on(folder, Grid(labels.shape, Affine(pixel, 0, origin[0], 0, -pixel, origin[1]), crs), labels)


def polygons_on(folder: Path, grid: Grid, labels: NDArray[np.uint8] = SHAPES, tolerance_m: float = 0.0) -> Polygons:
    rows, cols = labels.shape
    profile = {"driver": "GTiff", "count": 1, "height": rows, "width": cols, "dtype": "uint8"}
    with rasterio.open(folder / "labels.tif", "w", **profile) as file:
        file.write(labels, 1)
    return Polygons.concatenate(
        polygonize(folder / "labels.tif", grid, work=folder, tolerance_m=tolerance_m, threads=1)
    )


def on_geod(polygon: shapely.Polygon, epsg: int) -> tuple[float, float]:
    """Measure along geodesics on the CRS's own ellipsoid, with sides cut up since they are straight in the CRS."""
    crs = pyproj.CRS.from_epsg(epsg)
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    geod = crs.get_geod()
    assert geod is not None
    dense = shapely.segmentize(polygon, 50)
    lonlat = shapely.transform(dense, lambda xy: np.column_stack(to_lonlat.transform(*xy.T)))
    area, perimeter = geod.geometry_area_perimeter(shapely.orient_polygons(lonlat))
    inner = sum(geod.geometry_length(ring) for ring in lonlat.interiors)
    return area, geod.geometry_length(lonlat.exterior) + inner or perimeter


@pytest.mark.parametrize(
    ("epsg", "origin"),
    [
        pytest.param(32640, (339_000, 2_784_000), id="UTM"),
        pytest.param(32640, (820_000, 6_600_000), id="UTM beyond its zone"),
        pytest.param(3857, (1_200_000, 8_399_737), id="web Mercator at 60 degrees north"),
        pytest.param(2263, (985_000, 200_000), id="US feet"),
        pytest.param(3035, (4_321_000, 3_210_000), id="equal area"),
        pytest.param(32760, (829_000, 8_000_000), id="across the 180th meridian"),
    ],
)
def test_agrees_with_geodesics(tmp_path: Path, epsg: int, origin: tuple[float, float]) -> None:
    polygons = polygons_at(tmp_path, CRS.from_epsg(epsg), origin)
    expected = [on_geod(polygon, epsg) for polygon in polygons.geometry]
    assert polygons.area_m2 == pytest.approx([area for area, _ in expected], rel=1e-4)
    assert polygons.perimeter_m == pytest.approx([perimeter for _, perimeter in expected], rel=1e-4)


@pytest.mark.parametrize("epsg", [32640, 3857])
def test_turned_pixels_that_are_no_squares_are_measured_alike(tmp_path: Path, epsg: int) -> None:
    turned = Affine.translation(820_000, 6_600_000) @ Affine.rotation(30) @ Affine.scale(100, -40)
    polygons = polygons_on(tmp_path, Grid(SHAPES.shape, turned, CRS.from_epsg(epsg)))
    expected = [on_geod(polygon, epsg) for polygon in polygons.geometry]
    assert polygons.area_m2 == pytest.approx([area for area, _ in expected], rel=1e-4)
    assert polygons.perimeter_m == pytest.approx([perimeter for _, perimeter in expected], rel=1e-4)


def test_slopes_across_turned_pixels_are_measured_alike(tmp_path: Path) -> None:
    turned = Affine.translation(820_000, 6_600_000) @ Affine.rotation(30) @ Affine.scale(100, -40)
    labels = np.tri(120, 160, dtype=np.uint8)
    polygons = polygons_on(tmp_path, Grid(labels.shape, turned, CRS.from_epsg(32640)), labels, tolerance_m=60)
    (triangle,) = polygons.geometry
    assert len(triangle.exterior.coords) < 10
    area, perimeter = on_geod(triangle, 32640)
    assert polygons.area_m2 == pytest.approx([area], rel=1e-4)
    assert polygons.perimeter_m == pytest.approx([perimeter], rel=1e-4)


def test_the_180th_meridian_is_really_crossed() -> None:
    to_lonlat = pyproj.Transformer.from_crs(32760, 4326, always_xy=True)
    lons, _ = to_lonlat.transform([829_000 - 20_000, 829_000 + 20_000], [8_000_000] * 2)
    assert lons[0] > 179
    assert lons[1] < -179


@pytest.mark.parametrize(("unit", "metres"), [('UNIT["metre",1]', 1.0), ('UNIT["foot",0.3048]', 0.3048)])
def test_an_engineering_crs_is_planar(tmp_path: Path, unit: str, metres: float) -> None:
    crs = CRS.from_wkt(f'LOCAL_CS["site",{unit},AXIS["x",EAST],AXIS["y",NORTH]]')
    polygons = polygons_at(tmp_path, crs, (0, 0))
    assert polygons.area_m2 == pytest.approx(shapely.area(polygons.geometry) * metres**2)
    assert polygons.perimeter_m == pytest.approx(shapely.length(polygons.geometry) * metres)


def test_where_the_projection_has_no_inverse_it_is_planar(tmp_path: Path) -> None:
    polygons = polygons_at(tmp_path, CRS.from_epsg(3035), (1e9, 1e9))
    assert polygons.area_m2 == pytest.approx(shapely.area(polygons.geometry))
    assert polygons.perimeter_m == pytest.approx(shapely.length(polygons.geometry))


def test_each_polygon_has_its_own_scale(tmp_path: Path) -> None:
    rows = np.repeat(np.arange(1, 10, dtype=np.uint8), 100)[:, None]
    polygons = polygons_at(tmp_path, CRS.from_epsg(3857), (0, 9e6), rows, 1e4)
    assert (np.diff(polygons.area_m2) > 0).all()
    assert (np.diff(polygons.perimeter_m) > 0).all()


@pytest.mark.parametrize("epsg", [32640, 3857])
def test_interpolating_is_as_good_as_differentiating(epsg: int) -> None:
    grid = Grid((30_000, 30_000), Affine(1, 0, 339_000, 0, -1, 2_784_000), CRS.from_epsg(epsg))
    lattice = metres_per_pixel(grid)
    dense = metres_per_pixel(Grid((60, 60), grid.transform @ Affine.scale(500), grid.crs)) / 500
    assert lattice.shape == dense.shape
    halfway = (lattice[:-2, :-2] + lattice[:-2, 2:] + lattice[2:, :-2] + lattice[2:, 2:]) / 4
    assert halfway == pytest.approx(lattice[1:-1, 1:-1], rel=1e-6, abs=1e-7)
