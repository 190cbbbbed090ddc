import numpy as np
import pyproj
import pytest
import shapely
from rasterio.crs import CRS

from landseg.polygons.measure import measure_on_ellipsoid

SQUARE = shapely.box(0, 0, 1000, 1000)
LONG = shapely.box(0, 0, 5000, 20)
DONUT = shapely.box(0, 0, 3000, 2000).difference(shapely.box(500, 500, 900, 1500))


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
def test_agrees_with_geodesics(epsg: int, origin: tuple[float, float]) -> None:
    polygons = shapely.transform(np.array([SQUARE, LONG, DONUT]), lambda xy: xy + origin)
    area_m2, perimeter_m = measure_on_ellipsoid(polygons, CRS.from_epsg(epsg))
    expected = [on_geod(polygon, epsg) for polygon in polygons]
    assert area_m2 == pytest.approx([area for area, _ in expected], rel=1e-4)
    assert perimeter_m == pytest.approx([perimeter for _, perimeter in expected], rel=1e-4)


def test_the_180th_meridian_is_really_crossed() -> None:
    to_lonlat = pyproj.Transformer.from_crs(32760, 4326, always_xy=True)
    lons, _ = to_lonlat.transform([829_000 - 20_000, 829_000 + 20_000], [8_000_000] * 2)
    assert lons[0] > 179
    assert lons[1] < -179


@pytest.mark.parametrize(("unit", "metres"), [('UNIT["metre",1]', 1.0), ('UNIT["foot",0.3048]', 0.3048)])
def test_an_engineering_crs_is_planar(unit: str, metres: float) -> None:
    crs = CRS.from_wkt(f'LOCAL_CS["site",{unit},AXIS["x",EAST],AXIS["y",NORTH]]')
    area_m2, perimeter_m = measure_on_ellipsoid(np.array([DONUT]), crs)
    assert area_m2 == pytest.approx(DONUT.area * metres**2)
    assert perimeter_m == pytest.approx(DONUT.length * metres)


def test_where_the_projection_has_no_inverse_it_is_planar() -> None:
    far_out = shapely.transform(SQUARE, lambda xy: xy + 1e9)
    area_m2, perimeter_m = measure_on_ellipsoid(np.array([far_out]), CRS.from_epsg(3035))
    assert area_m2 == pytest.approx(1e6)
    assert perimeter_m == pytest.approx(4000)


def test_each_polygon_has_its_own_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    squares = np.array([shapely.transform(SQUARE, lambda xy, n=n: np.add(xy, [0, n * 1e6])) for n in range(9)])
    crs = CRS.from_epsg(3857)
    area_m2, perimeter_m = measure_on_ellipsoid(squares, crs)
    assert (np.diff(area_m2) < 0).all()
    monkeypatch.setattr("landseg.polygons.measure.POLYGONS_AT_ONCE", 2)
    assert measure_on_ellipsoid(squares, crs)[1].tolist() == perimeter_m.tolist()
    assert measure_on_ellipsoid(squares[4:5], crs)[0].tolist() == area_m2[4:5].tolist()
