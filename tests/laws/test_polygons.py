"""Laws 4, 5 and 6: polygons of one map form a coverage, wherever strips begin and end, merged and simplified or not."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely.geometry import shape

from landseg.grid import Grid
from landseg.polygons import Merging, Polygons, polygonize
from tests.conftest import CORNER, DEMO_LABELS

UTM = CRS.from_epsg(32640)
TRANSFORM = Affine(2, 0, 500_000, 0, -2, 2_700_000)

Labels = NDArray[np.uint8]


def checkerboard(shape: tuple[int, int], classes: tuple[int, int]) -> Labels:
    return np.where(np.indices(shape).sum(axis=0) % 2, *classes).astype(np.uint8)


def spiral(side: int) -> Labels:
    """Wind one face around another, one pixel wide."""
    labels = np.ones((side, side), np.uint8)
    row, col, step = 0, 0, (0, 1)
    labels[0, 0] = 2
    for length in (n for n in range(side - 1, 0, -2) for _ in range(2)):
        for _ in range(length):
            row, col = row + step[0], col + step[1]
            labels[row, col] = 2
        step = step[1], -step[0]
    return labels


def nested(side: int, classes: tuple[int, ...]) -> Labels:
    """Put squares in squares."""
    depth = np.minimum(*np.indices((side, side)))
    depth = np.minimum(depth, depth[::-1, ::-1])
    return np.array(classes, np.uint8)[depth % len(classes)]


label_rasters = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1), st.integers(1, 4)).flatmap(
    lambda n: arrays(np.uint8, n[:2], elements=st.integers(n[2], n[3]))
)


def examples(test):  # type: ignore[no-untyped-def]
    """Add the shapes at which tracers break."""
    pinches = [[1, 1, 1, 1, 1], [1, 2, 1, 3, 1], [1, 1, 3, 1, 1], [1, 3, 1, 2, 1], [1, 1, 1, 1, 1]]
    for labels in (
        checkerboard((7, 9), (1, 2)),
        checkerboard((6, 6), (0, 3)),
        spiral(12),
        nested(11, (1, 2)),
        nested(12, (1, 0, 2)),
        np.array(pinches, np.uint8),
        np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], np.uint8),
        np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]], np.uint8),
        np.array([[1, 2, 2, 1, 0, 3]], np.uint8),
        np.array([[1, 2, 2, 1, 0, 3]], np.uint8).T,
        np.full((4, 5), 7, np.uint8),
    ):
        test = example(labels=labels)(test)
    return test


def write(folder: Path, labels: Labels, transform: Affine = TRANSFORM) -> tuple[Path, Grid]:
    rows, cols = labels.shape
    profile = {"driver": "GTiff", "count": 1, "height": rows, "width": cols, "dtype": "uint8"}
    with rasterio.open(folder / "labels.tif", "w", **profile, crs=UTM, transform=transform) as file:
        file.write(labels, 1)
    return folder / "labels.tif", Grid((rows, cols), transform, UTM)


def polygons_of(folder: Path, labels: Labels, **options: object) -> Polygons:
    raster, grid = write(folder, labels)
    return Polygons.concatenate(polygonize(raster, grid, work=folder, **({"threads": 1} | options)))


def traced_by_gdal(labels: Labels) -> tuple[list[shapely.Polygon], list[int]]:
    """Give GDAL's polygons and their labels, ordered by their top-left corners."""
    found = [
        (shapely.make_valid(shape(face)), int(label))
        for face, label in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4, transform=TRANSFORM)
    ]
    found.sort(key=lambda item: min((-y, x) for x, y in item[0].exterior.coords))
    return [face for face, _ in found], [label for _, label in found]


def assert_coverage(polygons: Polygons) -> None:
    assert shapely.is_valid(polygons.geometry).all()
    assert set(shapely.get_type_id(polygons.geometry)) <= {shapely.GeometryType.POLYGON}
    assert shapely.coverage_is_valid(polygons.geometry)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maps")


@given(labels=label_rasters)
@examples
def test_faces_are_gdals_one_by_one(folder: Path, labels: Labels) -> None:
    polygons = polygons_of(folder, labels)
    faces, classes = traced_by_gdal(labels)
    assert polygons.class_id.tolist() == classes
    assert shapely.equals(polygons.geometry, faces).all()
    assert_coverage(polygons)
    areas = np.bincount(polygons.class_id, shapely.area(polygons.geometry), 256)
    assert areas.tolist() == [
        4 * n if label else 0 for label, n in enumerate(np.bincount(labels.ravel(), minlength=256))
    ]


@pytest.mark.parametrize("threads", [1, 3])
@given(labels=label_rasters)
@examples
def test_strips_and_threads_leave_no_trace(folder: Path, labels: Labels, threads: int) -> None:
    whole = polygons_of(folder, labels)
    for strip_rows in range(1, len(labels)):
        parts = polygons_of(folder, labels, strip_rows=strip_rows, threads=threads)
        assert shapely.to_wkb(parts.geometry).tolist() == shapely.to_wkb(whole.geometry).tolist()
        assert parts.class_id.tolist() == whole.class_id.tolist()
        assert parts.area_m2.tolist() == whole.area_m2.tolist()
        assert parts.perimeter_m.tolist() == whole.perimeter_m.tolist()


@pytest.fixture(scope="module")
def block() -> Labels:
    """Give labels of real streets and buildings."""
    with rasterio.open(DEMO_LABELS) as file:
        return file.read(1, window=CORNER)


def test_a_real_map_is_gdals(folder: Path, block: Labels) -> None:
    polygons = polygons_of(folder, block, strip_rows=17)
    faces, classes = traced_by_gdal(block)
    assert set(classes) >= {1, 2, 3, 4}
    assert polygons.class_id.tolist() == classes
    assert shapely.equals(polygons.geometry, faces).all()
    assert_coverage(polygons)


def merged_slowly(labels: Labels, minima: dict[int, int], affinity: dict[tuple[int, int], float]) -> Labels:
    """Merge faces on the raster itself, one at a time, by the rule alone."""
    labels = labels.copy()
    while True:
        faces = numbered(labels)
        sizes = np.bincount(faces.ravel())
        classes = {int(face): int(labels[faces == face][0]) for face in np.unique(faces[faces > 0])}
        small = sorted((int(sizes[f]), c, f) for f, c in classes.items() if sizes[f] < minima.get(c, 0))
        for _, own, face in small:
            borders: dict[int, int] = {}
            for a, b in ((faces[:, :-1], faces[:, 1:]), (faces[:-1], faces[1:])):
                for here, there in ((a, b), (b, a)):
                    for other in there[(here == face) & (there != face) & (there > 0)]:
                        borders[int(other)] = borders.get(int(other), 0) + 1
            if borders:
                gain = {f: n * affinity.get((own, classes[f]), 1.0) for f, n in borders.items()}
                winner = min(borders, key=lambda f: (-gain[f], classes[f], f))
                labels[faces == face] = classes[winner]
                break
        else:
            return labels


def numbered(labels: Labels) -> NDArray[np.int64]:
    """Number 4-connected faces by their top-left pixels, by flooding."""
    faces = np.zeros(labels.shape, np.int64)
    count = 0
    for start in np.argwhere(labels > 0):
        if faces[tuple(start)]:
            continue
        count += 1
        faces[tuple(start)] = count
        todo = [tuple(start)]
        while todo:
            row, col = todo.pop()
            for near in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                inside = 0 <= near[0] < labels.shape[0] and 0 <= near[1] < labels.shape[1]
                if inside and not faces[near] and labels[near] == labels[row, col]:
                    faces[near] = count
                    todo.append(near)
    return faces


minima = st.fixed_dictionaries({label: st.integers(0, 9) for label in (1, 2, 3, 4)})
affinities = st.dictionaries(
    st.tuples(st.integers(1, 4), st.integers(1, 4)), st.sampled_from([0.0, 0.5, 3.0]), max_size=4
)


@given(labels=label_rasters, minima=minima, affinity=affinities, strip_rows=st.integers(1, 12))
def test_merging_is_relabelling_by_its_rule(
    folder: Path, labels: Labels, minima: dict[int, int], affinity: dict[tuple[int, int], float], strip_rows: int
) -> None:
    _, grid = write(folder, labels)
    pixel_m2 = grid.pixel_size_m[0] * grid.pixel_size_m[1]
    merging = Merging(0, {label: n * pixel_m2 for label, n in minima.items()}, affinity)
    merged = polygons_of(folder, labels, merging=merging, strip_rows=strip_rows)
    relabelled = merged_slowly(labels, minima, affinity)
    expected = polygons_of(folder, relabelled)
    assert shapely.to_wkb(merged.geometry).tolist() == shapely.to_wkb(expected.geometry).tolist()
    assert merged.class_id.tolist() == expected.class_id.tolist()
    assert merged.area_m2.tolist() == expected.area_m2.tolist()
    assert shapely.area(merged.geometry).sum() == 4 * np.count_nonzero(labels)
    assert_coverage(merged)


def outline_of(polygons: Polygons) -> shapely.Geometry:
    return shapely.boundary(shapely.union_all(polygons.geometry))


def assert_simplified(simplified: Polygons, exact: Polygons, tolerance: float) -> None:
    assert_coverage(simplified)
    assert simplified.class_id.tolist() == exact.class_id.tolist()
    assert (shapely.area(simplified.geometry) > 0).all()
    lines, corners = shapely.boundary(simplified.geometry), shapely.boundary(exact.geometry)
    assert (shapely.hausdorff_distance(lines, corners) <= tolerance * (1 + 1e-9)).all()
    assert shapely.hausdorff_distance(outline_of(simplified), outline_of(exact)) <= tolerance * (1 + 1e-9)


@given(labels=label_rasters.filter(np.any), tolerance=st.sampled_from([0.5, 1.0, 1.7, 3.0, 1000.0]))
def test_simplified_polygons_are_a_coverage_near_the_exact_one(folder: Path, labels: Labels, tolerance: float) -> None:
    assert_simplified(polygons_of(folder, labels, tolerance_m=tolerance), polygons_of(folder, labels), tolerance)


@pytest.mark.parametrize("tolerance", [1.0, 2.0, 1000.0])
@given(labels=label_rasters.filter(np.any), strip_rows=st.integers(1, 11))
def test_simplifying_does_not_depend_on_strips(folder: Path, labels: Labels, tolerance: float, strip_rows: int) -> None:
    whole = polygons_of(folder, labels, tolerance_m=tolerance)
    parts = polygons_of(folder, labels, tolerance_m=tolerance, strip_rows=strip_rows, threads=2)
    assert shapely.to_wkb(parts.geometry).tolist() == shapely.to_wkb(whole.geometry).tolist()


@pytest.fixture(scope="module")
def tile() -> Labels:
    """Give the labels of a whole tile, from 1."""
    with rasterio.open(DEMO_LABELS) as file:
        labels = file.read(1)
        return np.where(labels == file.nodata, 0, labels + 1).astype(np.uint8)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("min_area_m2", [0, 25, 100, 2500])
def test_a_whole_tile_generalised_is_a_coverage(
    folder: Path, tile: Labels, min_area_m2: float, tolerance: float
) -> None:
    polygons = polygons_of(folder, tile, merging=Merging(min_area_m2), tolerance_m=tolerance, threads=2)
    assert_coverage(polygons)
    if tolerance == 0:
        assert shapely.area(polygons.geometry).sum() == 4 * np.count_nonzero(tile)
        assert polygons.area_m2.min() >= min_area_m2 * (1 - 1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("min_area_m2", [0, 25, 100, 2500])
def test_a_real_map_generalised_is_a_coverage(
    folder: Path, block: Labels, min_area_m2: float, tolerance: float
) -> None:
    merging = Merging(min_area_m2)
    exact = polygons_of(folder, block, merging=merging)
    polygons = polygons_of(folder, block, merging=merging, tolerance_m=tolerance, strip_rows=40)
    assert_simplified(polygons, exact, tolerance)
    assert shapely.area(exact.geometry).sum() == 4 * np.count_nonzero(block)
    assert len(exact) == 1 or exact.area_m2.min() >= min_area_m2 * (1 - 1e-6)


def test_simplifying_makes_stairs_slopes_and_keeps_the_corners_of_buildings(folder: Path) -> None:
    labels = np.ones((40, 80), np.uint8)
    labels[5:15, 5:20] = 2  # a building
    for row in range(40):
        labels[row, 30 + row : 34 + row] = 3  # a road at 45 degrees
    exact, simplified = polygons_of(folder, labels), polygons_of(folder, labels, tolerance_m=2.0)
    assert_simplified(simplified, exact, 2.0)
    building, road = (simplified.geometry[simplified.class_id == label][0] for label in (2, 3))
    assert building.equals(exact.geometry[exact.class_id == 2][0])
    assert len(road.exterior.coords) <= 9
