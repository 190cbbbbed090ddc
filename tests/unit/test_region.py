from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.crs import CRS

from landseg.errors import EmptySceneError, UsageError
from landseg.grid import Grid
from landseg.legend import Legend
from landseg.outputs.paths import OutputPaths
from landseg.outputs.raster import LabelRaster
from landseg.polygons.merge import NO_MERGING
from landseg.region import MergeRule, Part, in_order, merge_rows, region_grid, write_region
from landseg.scene import describe_scene
from tests.conftest import UTM40

ORIGIN = Affine(1, 0, 339000, 0, -1, 2784000)


def write_map(
    path: Path,
    labels: NDArray[Any],
    confidence: NDArray[Any] | int,
    legend: Legend,
    transform: Affine,
    crs: CRS = UTM40,
) -> Path:
    grid = Grid((labels.shape[0], labels.shape[1]), transform, crs)
    with LabelRaster(path.with_suffix(".draft"), grid, legend) as raster:
        raster.write(
            labels.astype(np.uint8), np.full(labels.shape, confidence, np.uint8) * (labels > 0).astype(np.uint8)
        )
    raster.publish(path)
    return path


def merged(parts: list[Part], rule: MergeRule, strip_rows: int | None = None) -> NDArray[np.uint8]:
    grid = region_grid([describe_scene(str(part.raster)).grid for part in parts])
    return np.concatenate([np.stack(rows) for rows in merge_rows(parts, grid, rule, strip_rows)], axis=1)


@pytest.fixture
def overlapping(tmp_path: Path, legend: Legend) -> tuple[list[Part], list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Write three maps of 60 x 50 px on a region of 90 x 110, with holes; give what each holds on the region's grid."""
    random = np.random.default_rng(5)
    parts, all_labels, all_confidence = [], [], []
    for index, (row, col) in enumerate([(0, 0), (30, 20), (10, 60)]):
        labels = random.choice(np.array([0, 2, 5, 7], np.uint8), (60, 50))
        confidence = random.integers(1, 100, (60, 50)).astype(np.uint8) * (labels > 0)
        path = write_map(tmp_path / f"{index}.tif", labels, confidence, legend, ORIGIN @ Affine.translation(col, row))
        date = datetime(2026, 1 + (2, 1, 3)[index], 1, tzinfo=UTC)
        parts.append(Part(str(index), str(path), date, (50.0, 10.0, 10.0)[index]))
        for values, kept in ((labels, all_labels), (confidence, all_confidence)):
            whole = np.zeros((90, 110), np.uint8)
            whole[row : row + 60, col : col + 50] = values
            kept.append(whole)
    return parts, all_labels, all_confidence


@pytest.mark.parametrize(("rule", "order"), [("newest", (2, 0, 1)), ("least-cloudy", (2, 1, 0))])
def test_the_first_in_the_rule_s_order_counts(overlapping: Any, rule: MergeRule, order: tuple[int, ...]) -> None:
    parts, labels, confidence = overlapping
    expected = np.zeros((2, 90, 110), np.uint8)
    for index in reversed(order):
        holds = labels[index] > 0
        expected[:, holds] = labels[index][holds], confidence[index][holds]
    assert (merged(parts, rule) == expected).all()


def test_the_most_confident_counts(overlapping: Any) -> None:
    parts, labels, confidence = overlapping
    found = merged(parts, "most-confident")
    assert (found[1] == np.max(confidence, axis=0)).all()
    for part_labels, part_confidence in zip(labels, confidence, strict=True):
        is_surest = (part_confidence == found[1]) & (np.sum(np.stack(confidence) == found[1], axis=0) == 1)
        assert (found[0][is_surest] == part_labels[is_surest]).all()


@pytest.mark.parametrize("rule", ["newest", "least-cloudy", "most-confident"])
def test_neither_strips_nor_the_order_of_maps_matter(overlapping: Any, rule: MergeRule) -> None:
    parts, _, _ = overlapping
    expected = merged(parts, rule)
    for strip_rows in (1, 7, 64):
        assert (merged(parts[::-1], rule, strip_rows) == expected).all()


def test_strips_do_not_matter_in_another_zone_either(tmp_path: Path, legend: Legend) -> None:
    random = np.random.default_rng(5)
    labels = random.choice(np.array([2, 5, 7], np.uint8), (700, 700))
    path = write_map(tmp_path / "zone40.tif", labels, random.integers(1, 100, labels.shape), legend, ORIGIN)
    parts = [Part("zone40", str(path))]
    zone39 = CRS.from_epsg(32639)
    left, bottom, right, top = (round(side) for side in describe_scene(str(path)).grid.bounds_in(zone39))
    grid = Grid((top - bottom, right - left), Affine(1, 0, left, 0, -1, top), zone39)
    whole, strips = (
        np.concatenate([np.stack(rows) for rows in merge_rows(parts, grid, "most-confident", strip_rows)], axis=1)
        for strip_rows in (grid.shape[0], 100)
    )
    assert (strips == whole).all()


def open_rasters(folder: Path) -> list[str]:
    """Name the rasters of a folder that this process holds open."""
    held = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return sorted(path.name for path in held if path.parent == folder)


def test_a_map_is_open_from_its_first_row_to_its_last(tmp_path: Path, legend: Legend) -> None:
    parts = []
    for index in range(3):
        path = tmp_path / f"{index}.tif"
        write_map(path, np.full((20, 30), 5), 90, legend, ORIGIN @ Affine.translation(0, 15 * index))
        parts.append(Part(str(index), str(path)))
    grid = region_grid([describe_scene(str(part.raster)).grid for part in parts])
    held = [open_rasters(tmp_path) for _ in merge_rows(parts, grid, "most-confident", strip_rows=5)]
    assert held == [
        ["0.tif"], ["0.tif"], ["0.tif"], ["1.tif"], ["1.tif"], ["1.tif"], ["2.tif"], ["2.tif"], ["2.tif"], []
    ]  # fmt: skip


def test_of_many_side_by_side_few_are_open(tmp_path: Path, legend: Legend, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for index in range(6):
        path = tmp_path / f"{index}.tif"
        write_map(path, np.full((10, 4), (2, 5, 7)[index % 3]), 90, legend, ORIGIN @ Affine.translation(4 * index, 0))
        parts.append(Part(str(index), str(path)))
    monkeypatch.setattr("landseg.region.MOST_OPEN", 2)
    grid = region_grid([describe_scene(str(part.raster)).grid for part in parts])
    held, strips = [], []
    for labels, _ in merge_rows(parts, grid, "most-confident", strip_rows=4):
        held.append(open_rasters(tmp_path))
        strips.append(labels)
    assert held == [["0.tif", "1.tif"], ["0.tif", "1.tif"], []]
    assert (np.concatenate(strips) == np.repeat([2, 5, 7, 2, 5, 7], 4)).all()


def region(
    parts: list[Part], folder: Path, legend: Legend, rule: MergeRule = "most-confident"
) -> geopandas.GeoDataFrame:
    write_region(
        parts,
        rule,
        outputs=OutputPaths.of(folder / "r.gpkg", picture=True),
        legend=legend,
        merging=NO_MERGING,
        simplify_m=0,
        polygons_bytes=2**30,
        versions={},
        properties={},
    )
    return geopandas.read_file(folder / "r.gpkg", layer="landuse")


def test_polygons_do_not_break_where_scenes_meet(tmp_path: Path, legend: Legend) -> None:
    """A lake and a road that lie in two scenes each come out as one polygon."""
    labels = np.full((40, 80), 5)
    labels[10:20, 20:60] = 7
    labels[30:32] = 2
    left = write_map(tmp_path / "a.tif", labels[:, :45], 90, legend, ORIGIN)
    right = write_map(tmp_path / "b.tif", labels[:, 38:], 80, legend, ORIGIN @ Affine.translation(38, 0))
    found = region([Part("a", str(left)), Part("b", str(right))], tmp_path, legend)
    assert sorted(found.class_name) == ["building", "park", "park", "water"]
    assert found[found.class_name == "water"].geometry.iloc[0].equals(shapely.box(339020, 2783980, 339060, 2783990))
    assert shapely.coverage_is_valid(found.geometry.to_numpy())
    assert found.area.sum() == 40 * 80
    picture = (imread(tmp_path / "r.png")[..., :3] * 255).round().astype(np.uint8)
    for c in legend:
        assert (picture == c.rgb).all(axis=-1).sum() > 500


def test_maps_in_other_systems_are_laid_over(tmp_path: Path, legend: Legend) -> None:
    """Two maps in UTM 40 and one in UTM 39 of the same ground: the region is in UTM 40 and without holes."""
    first = write_map(tmp_path / "a.tif", np.full((60, 60), 2), 90, legend, ORIGIN)
    second = write_map(tmp_path / "b.tif", np.full((60, 60), 5), 90, legend, ORIGIN @ Affine.translation(0, 60))
    x, y = Transformer.from_crs(32640, 32639).transform(339060, 2784000)
    other = write_map(
        tmp_path / "c.tif", np.full((150, 80), 7), 50, legend, Affine(1, 0, x - 20, 0, -1, y + 15), CRS.from_epsg(32639)
    )
    parts = [Part("a", str(first)), Part("b", str(second)), Part("c", str(other))]
    grid = region_grid([describe_scene(str(part.raster)).grid for part in parts])
    assert grid.crs == UTM40
    found = merged(parts, "most-confident")
    inside = (
        ~grid.transform @ (339030, 2783970),
        ~grid.transform @ (339030, 2783910),
        ~grid.transform @ (339090, 2783950),
    )
    assert [found[0, int(r), int(c)] for c, r in inside] == [2, 5, 7]


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(-50, 50), st.integers(-50, 50)),
        min_size=1,
        max_size=5,
    )
)
def test_every_grid_lies_within_the_region_s(boxes: list[tuple[int, int, int, int]]) -> None:
    pixel = Affine(0.3, 0, 339000.1, 0, -0.3, 2784000.7)
    grids = [Grid((rows, cols), pixel @ Affine.translation(x, y), UTM40) for rows, cols, x, y in boxes]
    try:
        region = region_grid(grids)
    except UsageError:
        assert sum(grid.size for grid in grids) * 50 < 110**2
        return
    left, top = min(x for _, _, x, _ in boxes), min(y for _, _, _, y in boxes)
    right, bottom = max(x + cols for _, cols, x, _ in boxes), max(y + rows for rows, _, _, y in boxes)
    assert region.shape == (bottom - top, right - left)
    assert region.transform.almost_equals(pixel @ Affine.translation(left, top), 1e-6)


def test_a_rotated_map_gets_a_region_with_north_up() -> None:
    grid = Grid((40, 40), ORIGIN @ Affine.rotation(30), UTM40)
    region = region_grid([grid])
    assert (region.transform.b, region.transform.d) == (0, 0)
    assert region.transform.a == pytest.approx(1)
    left, bottom, right, top = region.bounds
    assert left <= grid.bounds[0] + 1e-3
    assert top >= grid.bounds[3] - 1e-3
    assert right >= grid.bounds[2] - 1e-3
    assert bottom <= grid.bounds[1] + 1e-3


def test_scenes_that_lie_far_apart_are_no_region() -> None:
    grids = [Grid((100, 100), ORIGIN @ Affine.translation(x, 0), UTM40) for x in (0, 50_000)]
    with pytest.raises(UsageError, match="too far apart"):
        region_grid(grids)


@pytest.mark.parametrize(("rule", "says"), [("newest", "when it was taken"), ("least-cloudy", "cloud cover")])
def test_rules_need_what_they_sort_by(rule: MergeRule, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        in_order([Part("a", "a.tif")], rule)


def test_nothing_to_merge(tmp_path: Path, legend: Legend) -> None:
    empty = write_map(tmp_path / "a.tif", np.zeros((20, 20)), 0, legend, ORIGIN)
    with pytest.raises(EmptySceneError, match="no valid pixel"):
        region([Part("a", str(empty))], tmp_path, legend)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.draft", "a.tif", "a.tif.aux.xml"]
