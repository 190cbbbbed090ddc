import math
import re

import numpy as np
import pytest
from affine import Affine
from pyproj import Geod
from rasterio.crs import CRS
from rasterio.windows import Window

from landseg.grid import Grid, cells, epsg_code, windows_of
from tests.conftest import UTM40

NORTH_UP = Grid((100, 200), Affine(2, 0, 339000, 0, -2, 2784000), UTM40)


def test_bounds_are_left_bottom_right_top() -> None:
    assert NORTH_UP.bounds == (339000, 2784000 - 200, 339000 + 400, 2784000)


def test_bounds_surround_a_rotated_grid() -> None:
    turned = Grid((10, 10), Affine.rotation(45), UTM40)
    assert turned.bounds == pytest.approx((-math.sqrt(50), 0, math.sqrt(50), math.sqrt(200)))


def test_size_counts_pixels() -> None:
    assert NORTH_UP.size == 20_000


def test_ground_sampling_distance_is_measured_on_the_ellipsoid() -> None:
    # UTM's scale is 0.9996 on its central meridian, so a pixel of 2 m there covers a little more ground.
    central = Grid((100, 200), Affine(2, 0, 500_000 - 200, 0, -2, 2784000), UTM40)
    assert central.gsd_m == pytest.approx(2 / 0.9996, rel=1e-6)
    assert central.pixel_size_m == pytest.approx((2 / 0.9996, 2 / 0.9996), rel=1e-6)


def test_ground_sampling_distance_of_web_mercator_shrinks_with_latitude() -> None:
    y = 8_399_737.89  # 60 degrees north
    mercator = Grid((2, 2), Affine(1, 0, 0, 0, -1, y + 1), CRS.from_epsg(3857))
    assert mercator.gsd_m == pytest.approx(0.5, rel=0.005)


def test_ground_sampling_distance_of_degrees() -> None:
    grid = Grid((10, 10), Affine(1e-4, 0, 55, 0, -1e-4, 25.0005), CRS.from_epsg(4326))
    _, _, height = Geod(ellps="WGS84").inv(55, 25, 55, 25.0001)
    _, _, width = Geod(ellps="WGS84").inv(55, 25, 55.0001, 25)
    assert grid.pixel_size_m == pytest.approx((height, width), rel=1e-4)


def test_ground_sampling_distance_of_feet() -> None:
    grid = Grid((10, 10), Affine(1, 0, 984_000, 0, -1, 200_000), CRS.from_epsg(2263))
    assert grid.gsd_m == pytest.approx(0.3048, rel=1e-3)


def test_rotation_does_not_change_the_ground_sampling_distance() -> None:
    turned = Grid((100, 200), NORTH_UP.transform @ Affine.rotation(30), UTM40)
    assert turned.gsd_m == pytest.approx(NORTH_UP.gsd_m, rel=1e-6)


@pytest.mark.parametrize("window", [Window(0, 0, 1, 1), Window(17, 3, 5, 9)])
@pytest.mark.parametrize("turn", [0, 33])
def test_a_window_starts_where_its_first_pixel_is(window: Window, turn: float) -> None:
    grid = Grid((100, 200), NORTH_UP.transform @ Affine.rotation(turn), UTM40)
    assert grid.window_transform(window) @ (0, 0) == pytest.approx(grid.transform @ (window.col_off, window.row_off))


@pytest.mark.parametrize(("factors", "shape"), [((2, 2), (50, 100)), ((0.5, 0.5), (200, 400)), ((3, 7), (33, 29))])
def test_a_resampled_grid_covers_the_same_ground(factors: tuple[float, float], shape: tuple[int, int]) -> None:
    grid = NORTH_UP.resampled(factors)
    assert grid.shape == shape
    assert grid.corners[0] == NORTH_UP.corners[0]
    assert grid.pixel_size_m == pytest.approx(
        tuple(f * s for f, s in zip(factors, NORTH_UP.pixel_size_m, strict=True)), rel=1e-6
    )
    _, bottom, right, _ = NORTH_UP.bounds
    height, width = (2 * f for f in factors)
    assert abs(grid.bounds[1] - bottom) <= height / 2
    assert abs(grid.bounds[2] - right) <= width / 2


def test_a_shrunk_grid_covers_the_same_ground() -> None:
    grid = Grid((100, 30), NORTH_UP.transform @ Affine.rotation(30), UTM40)
    small = grid.shrunk(7)
    assert small.shape == (7, 2)
    np.testing.assert_allclose(small.corners, grid.corners, rtol=0, atol=1e-6)


def test_lonlat_outline() -> None:
    # The demo's grid, whose centre `rio info` puts at 55.41209, 25.16340.
    outline = Grid((1632, 1528), Affine(1, 0, 339200, 0, -1, 2784800), UTM40).lonlat_outline(16)
    lons, lats = (around[:-1:16] for around in outline)
    assert (sum(lons) / 4, sum(lats) / 4) == pytest.approx((55.41209, 25.16340), abs=1e-5)
    assert lons[0] < lons[1]
    assert lats[0] > lats[3]


def test_cells_rule_a_window() -> None:
    window = Window(5, 9, 20, 8)
    covered = np.zeros((20, 30), dtype=int)
    for (row, col), part in cells(window, 8):
        rows, cols = part.toslices()
        covered[rows, cols] += 1
        assert (rows.start // 8, cols.start // 8) == ((rows.stop - 1) // 8, (cols.stop - 1) // 8) == (row, col)
    expected = np.zeros_like(covered)
    expected[window.toslices()] = 1
    assert (covered == expected).all()


def test_touching_cells_make_one_window_in_each_row() -> None:
    found = windows_of({(0, 1), (0, 2), (0, 4), (2, 4)}, 8, (20, 36))
    assert found == [Window(8, 0, 16, 8), Window(32, 0, 4, 8), Window(32, 16, 4, 4)]


@pytest.mark.parametrize("code", [32640, 3035, 3067, 2154, 3857, 4326, 7415])
def test_a_crs_has_its_own_code_also_without_an_authority(code: int) -> None:
    crs = CRS.from_epsg(code)
    bare = CRS.from_wkt(re.sub(r',AUTHORITY\["[^]]*\]', "", crs.to_wkt()))
    assert (epsg_code(crs), epsg_code(bare)) == (f"EPSG:{code}", f"EPSG:{code}")


def test_a_crs_does_not_have_the_code_of_one_that_is_alike() -> None:
    own = CRS.from_string("+proj=tmerc +lon_0=9 +k=1 +x_0=3500000 +ellps=bessel +towgs84=700,100,500,0,0,0,0")
    assert own.to_epsg() == 5683
    assert epsg_code(own) is None
