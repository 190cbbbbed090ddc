from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from landseg.grid import Grid
from landseg.polygons import Merging, Polygons, polygonize
from landseg.polygons.strips import projected_bytes, threads_within

UTM = CRS.from_epsg(32640)
NORTH_UP = Affine(2, 0, 500_000, 0, -2, 2_700_000)
ROTATED = Affine(0.3 * np.cos(0.6), 0.3 * np.sin(0.6), 500_000.1, 0.3 * np.sin(0.6), -0.3 * np.cos(0.6), 2_700_000.7)
SOUTH_UP = Affine(2, 0, 500_000, 0, 2, 2_700_000)
OBLONG = Affine(4, 0, 500_000, 0, -1, 2_700_000)

NOISE = np.random.default_rng(7).integers(0, 4, (61, 83)).astype(np.uint8)


def polygons_of(
    folder: Path, labels: object, confidence: object = None, transform: Affine = NORTH_UP, **options: object
) -> Polygons:
    bands = np.stack([np.array(band, np.uint8) for band in (labels, confidence) if band is not None])
    raster = write(folder, bands, transform)
    grid = Grid(bands.shape[1:], transform, UTM)
    confidence_band = None if confidence is None else 2
    return Polygons.concatenate(
        polygonize(raster, grid, work=folder, confidence_band=confidence_band, threads=1, **options)
    )


def write(folder: Path, bands: NDArray[np.uint8], transform: Affine = NORTH_UP) -> Path:
    path = folder / "labels.tif"
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=UTM, transform=transform) as file:
        file.write(bands)
    return path


def test_nodata_is_no_polygon_and_class_1_is_one(tmp_path: Path) -> None:
    polygons = polygons_of(tmp_path, [[0, 1, 1], [0, 0, 2]])
    assert polygons.class_id.tolist() == [1, 2]
    assert polygons.class_id.dtype == np.int32
    assert polygons.geometry[0].equals(shapely.box(500_002, 2_699_998, 500_006, 2_700_000))


def test_faces_are_ordered_by_their_top_left_pixel(tmp_path: Path) -> None:
    # 3 begins before 2 in its first row, although 2 reaches further left below.
    polygons = polygons_of(tmp_path, [[1, 3, 2], [2, 3, 2], [2, 2, 2]])
    assert polygons.class_id.tolist() == [1, 3, 2]


def test_a_hole_is_a_hole(tmp_path: Path) -> None:
    labels = np.ones((5, 5), np.uint8)
    labels[1:4, 1:4] = 2
    labels[2, 2] = 0
    outer, inner = polygons_of(tmp_path, labels).geometry
    assert len(outer.interiors) == len(inner.interiors) == 1
    assert (outer.area, inner.area) == (16 * 4, 8 * 4)
    assert outer.exterior.is_ccw
    assert not outer.interiors[0].is_ccw


def test_pixels_that_touch_at_a_corner_are_faces_of_their_own(tmp_path: Path) -> None:
    polygons = polygons_of(tmp_path, [[1, 2], [2, 1]])
    assert polygons.class_id.tolist() == [1, 2, 2, 1]


@pytest.mark.parametrize(
    "labels",
    [
        # A hole that touches the outside, and one whose parts touch each other, at a corner.
        [[1, 1, 1, 1], [1, 2, 1, 1], [1, 1, 2, 1], [1, 1, 1, 2]],
        [[1, 1, 1, 1, 1], [1, 2, 1, 3, 1], [1, 1, 3, 1, 1], [1, 3, 1, 2, 1], [1, 1, 1, 1, 1]],
        [[1, 1, 0], [1, 0, 1], [1, 1, 1]],
    ],
)
def test_faces_that_touch_themselves_are_valid(tmp_path: Path, labels: list[list[int]]) -> None:
    polygons = polygons_of(tmp_path, labels)
    assert shapely.is_valid(polygons.geometry).all()
    assert set(shapely.get_type_id(polygons.geometry)) == {shapely.GeometryType.POLYGON}
    assert shapely.area(polygons.geometry[polygons.class_id == 1]).tolist() == [4 * np.sum(np.array(labels) == 1)]
    assert shapely.coverage_is_valid(polygons.geometry)


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, SOUTH_UP], ids=["north-up", "rotated", "south-up"])
def test_noise_becomes_a_coverage_with_the_areas_of_its_pixels(tmp_path: Path, transform: Affine) -> None:
    polygons = polygons_of(tmp_path, NOISE, transform=transform)
    assert shapely.is_valid(polygons.geometry).all()
    assert shapely.coverage_is_valid(polygons.geometry)
    assert all(polygon.exterior.is_ccw for polygon in polygons.geometry)
    pixels = np.bincount(polygons.class_id, shapely.area(polygons.geometry), 4) / abs(transform.determinant)
    assert pixels == pytest.approx(np.bincount(NOISE.ravel(), minlength=4) * [0, 1, 1, 1], rel=1e-8)


def test_a_long_side_has_its_neighbours_corners(tmp_path: Path) -> None:
    above, *_ = polygons_of(tmp_path, [[1, 1, 1, 1], [2, 3, 3, 2]]).geometry
    lower = sorted(x for x, y in above.exterior.coords[:-1] if y == 2_699_998)
    assert lower == [500_000, 500_002, 500_006, 500_008]


def test_borders_are_as_long_as_they_are_on_the_ground(tmp_path: Path) -> None:
    # Above, 3 has one side of 4 m; on its left, two of 1 m.
    labels = [[2, 1, 1], [2, 3, 0], [2, 3, 0]]
    polygons = polygons_of(tmp_path, labels, transform=OBLONG, merging=Merging(0, {3: 100.0}))
    assert polygons.class_id.tolist() == [2, 1]
    assert shapely.area(polygons.geometry).tolist() == [12, 16]


def test_oblong_pixels_are_simplified_within_the_tolerance(tmp_path: Path) -> None:
    # Stairs one pixel of 4 m wide: cutting their corners would move them by more than a metre.
    labels = np.ones((40, 12), np.uint8)
    for row in range(40):
        labels[row, : row // 5 + 2] = 2
    exact, simplified = (
        polygons_of(tmp_path, labels, transform=OBLONG, tolerance_m=tolerance).geometry for tolerance in (0.0, 1.0)
    )
    distances = shapely.hausdorff_distance(shapely.boundary(simplified), shapely.boundary(exact))
    assert distances.max() <= 1 + 1e-6


@pytest.mark.parametrize("strip_rows", [1, 8, 61])
def test_confidence_is_the_mean_over_the_faces_pixels(tmp_path: Path, strip_rows: int) -> None:
    confidence = np.random.default_rng(8).integers(0, 101, NOISE.shape).astype(np.uint8)
    polygons = polygons_of(tmp_path, NOISE, confidence, strip_rows=strip_rows)
    index = rasterio.features.rasterize(
        zip(polygons.geometry, polygons.face_id, strict=True), NOISE.shape, transform=NORTH_UP, dtype="int32"
    ).ravel()
    expected = np.bincount(index, confidence.ravel())[1:] / np.bincount(index)[1:]
    assert polygons.confidence.dtype == np.float32
    assert polygons.confidence == pytest.approx(expected, rel=1e-6)


def test_without_a_band_of_confidence_it_is_unknown(tmp_path: Path) -> None:
    assert np.isnan(polygons_of(tmp_path, [[1, 2]]).confidence).all()


def test_faces_are_numbered_through_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = polygons_of(tmp_path, NOISE)
    monkeypatch.setattr("landseg.polygons.WORDS_AT_ONCE", 100)
    batched = polygons_of(tmp_path, NOISE)
    assert batched.face_id.tolist() == list(range(1, len(whole) + 1))
    assert shapely.to_wkb(batched.geometry).tolist() == shapely.to_wkb(whole.geometry).tolist()


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    polygons_of(tmp_path, NOISE)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.tif"]


def test_a_map_of_nodata_has_no_polygons(tmp_path: Path) -> None:
    polygons = polygons_of(tmp_path, np.zeros((3, 4), np.uint8))
    assert len(polygons) == len(polygons.area_m2) == len(polygons.perimeter_m) == len(polygons.confidence) == 0
    assert polygons.class_id.dtype == np.int32


def test_one_pixel(tmp_path: Path) -> None:
    polygons = polygons_of(tmp_path, [[5]], [[42]])
    assert polygons.confidence.tolist() == [42]
    assert polygons.area_m2 == pytest.approx(4, rel=1e-3)
    assert polygons.perimeter_m == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize("cols", [100, 5_000_000])
def test_as_many_threads_as_memory_allows(cols: int) -> None:
    for threads in (1, 3, 6):
        assert threads_within(projected_bytes(cols, threads), cols, 8) == threads
    assert threads_within(projected_bytes(cols, 3) - 1, cols, 8) == 2
    assert threads_within(projected_bytes(cols, 9), cols, 4) == 4
    assert threads_within(-1, cols, 4) == 1
