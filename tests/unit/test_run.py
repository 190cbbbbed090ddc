import hashlib
import json
import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from landseg.config import RunConfig
from landseg.errors import DiskError, MemoryLimitError, UsageError
from landseg.grid import SWATH_CHIPS
from landseg.machine import cores
from landseg.mapping import Progress
from landseg.mosaic import Mosaic
from landseg.run import (
    BASE_BYTES,
    Plan,
    build_plan,
    check,
    execute,
    map_labels,
    projected_seconds,
)
from tests.conftest import SceneMaker


@pytest.fixture
def plan(make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path) -> Plan:
    return build_plan(str(make_scene(city)), tmp_path / "map.gpkg", RunConfig(model=str(small_bundle), device="cpu"))


def test_a_plan_decides_everything(plan: Plan) -> None:
    assert plan.bands == (1, 2, 3)
    assert plan.grid is plan.info.grid
    assert plan.tiling.shape == (120, 150)
    assert (plan.tiling.chip_px, plan.tiling.stride_px) == (48, 40)
    assert json.loads(json.dumps(plan.summary()))["chips"]["count"] == plan.tiling.chip_count


def test_memory_is_projected_from_its_parts(plan: Plan) -> None:
    assert plan.memory_bytes > BASE_BYTES + 2 * Mosaic.projected_bytes(plan.tiling, 3)


def test_memory_does_not_grow_with_height(make_scene: SceneMaker, small_bundle: Path, tmp_path: Path) -> None:
    config = RunConfig(model=str(small_bundle), device="cpu")
    heights = []
    for rows in (500, 5000):
        scene = make_scene(np.zeros((3, rows, 64), np.uint8), name=f"{rows}.tif")
        heights.append(build_plan(str(scene), tmp_path / "map.gpkg", config).memory_bytes)
    assert heights[0] == heights[1]


def test_a_budget_takes_fewer_chips_and_threads(plan: Plan) -> None:
    def planned(**options: Any) -> Plan:
        config = plan.config.model_copy(update=options)
        return build_plan(plan.info.path, plan.outputs.polygons, config)

    roomy, tight = planned(max_memory=1e12), planned(max_memory=1.0)
    assert (roomy.batch, roomy.threads) == (SWATH_CHIPS, cores())
    assert (tight.batch, tight.threads) == (SWATH_CHIPS, 1)
    check(roomy)
    with pytest.raises(MemoryLimitError, match=f"--max-memory {math.ceil(tight.memory_bytes / 1e6)}MB"):
        check(tight)
    check(planned(max_memory=tight.memory_bytes))
    asked = planned(max_memory=1.0, batch=2 * SWATH_CHIPS)
    assert asked.batch == 2 * SWATH_CHIPS
    with pytest.raises(MemoryLimitError, match="or a smaller --batch"):
        check(asked)
    # Less than a swath takes no less.
    assert planned(batch=1).memory_bytes == planned(batch=SWATH_CHIPS).memory_bytes


def test_half_of_what_is_free_is_the_budget(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landseg.run.available_bytes", lambda: 10**9)
    with pytest.raises(MemoryLimitError, match=r"half of what is free is 0\.50 GB"):
        check(build_plan(plan.info.path, plan.outputs.polygons, plan.config))


def test_a_check_that_passes_leaves_no_trace(plan: Plan, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    check(plan)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_refused_before_anything_is_read(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landseg.outputs.drafts.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskError):
        check(plan)


def test_a_file_of_no_known_format_is_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpkg"):
        build_plan(plan.info.path, tmp_path / "map.kml", plan.config)


def test_progress_reaches_the_end(plan: Plan) -> None:
    seen: list[Progress] = []
    execute(plan, seen.append)
    mapping = [progress for progress in seen if progress.stage == "map"]
    assert [progress.done for progress in mapping] == sorted(progress.done for progress in mapping)
    assert mapping[-1].done == mapping[-1].total == plan.grid.size
    assert mapping[-1].chips == plan.tiling.chip_count
    assert [progress.stage for progress in seen[-3:]] == ["raster", "polygons", "outputs"]


def test_the_manifest_is_a_stac_item_that_says_how_the_map_was_made(plan: Plan) -> None:
    result = execute(plan)
    item = pystac.Item.from_file(str(result.outputs.manifest))
    assert item.id == "map"
    assert item.properties["proj:code"] == "EPSG:32640"
    assert item.properties["landseg:model"]["sha256"] == plan.bundle.sha256
    assert item.properties["landseg:config"]["overlap"] == 0.25
    assert item.properties["landseg:valid_pixels"] == plan.grid.size
    assert set(item.properties["processing:software"]) >= {"landseg", "torch", "gdal"}
    assert set(item.assets) == {"polygons", "raster", "raster-classes", "style"}
    for asset in item.assets.values():
        path = result.outputs.manifest.parent / asset.href
        assert path.stat().st_size == asset.extra_fields["file:size"]
        assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert item.bbox is not None
    lon, lat = 55.4025, 25.1634
    assert item.bbox[0] == pytest.approx(lon, abs=0.01)
    assert item.bbox[3] == pytest.approx(lat, abs=0.01)


def test_a_suffix_may_be_in_capitals(plan: Plan, tmp_path: Path) -> None:
    result = execute(build_plan(plan.info.path, tmp_path / "MAP.GPKG", plan.config))
    asset = pystac.Item.from_file(str(result.outputs.manifest)).assets["polygons"]
    assert (asset.href, asset.media_type) == ("./MAP.GPKG", pystac.MediaType.GEOPACKAGE)


def test_a_crs_without_a_code_is_recorded_whole(
    make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    # PROJ takes it for EPSG:5683, which is 69 m off.
    crs = CRS.from_string("+proj=tmerc +lon_0=9 +k=1 +x_0=3500000 +ellps=bessel +towgs84=700,100,500,0,0,0,0")
    scene = make_scene(city, crs=crs, transform=Affine(1, 0, 3500000, 0, -1, 5500000))
    plan = build_plan(str(scene), tmp_path / "map.gpkg", RunConfig(model=str(small_bundle)))
    assert CRS.from_wkt(plan.summary()["grid"]["crs"]) == crs
    properties = execute(plan).manifest["properties"]
    assert properties["proj:code"] is None
    assert CRS.from_wkt(properties["proj:wkt2"]) == crs


def test_labels_alone(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    labels = map_labels(plan, folder)
    result = execute(plan)
    with rasterio.open(labels) as alone, rasterio.open(result.outputs.raster) as full:
        assert (alone.read() == full.read()).all()


@pytest.mark.parametrize("pixel", [0.5, 2.0])
def test_a_resampled_scene_is_mapped_at_the_model_s_resolution(
    make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path, pixel: float
) -> None:
    scene = make_scene(city, transform=Affine(pixel, 0, 339000, 0, -pixel, 2784000))
    result = execute(build_plan(str(scene), tmp_path / "map.gpkg", RunConfig(model=str(small_bundle), picture=True)))
    with rasterio.open(result.outputs.raster) as file:
        assert file.shape == pytest.approx((120 * pixel, 150 * pixel), abs=1)
        assert file.res[0] == pytest.approx(1.0, rel=2e-3)
        assert (file.read(1) != 0).all()
    assert result.outputs.picture is not None
    assert result.outputs.picture.stat().st_size > 10_000


def test_time_is_projected(plan: Plan) -> None:
    assert projected_seconds(plan) > 0


@pytest.mark.parametrize("pixel", [1.0, 2.0], ids=["own grid", "resampled"])
def test_imagery_beside_the_map_is_white_where_nothing_is_valid(
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pixel: float,
) -> None:
    data = city.clip(1)
    data[:, :, :75] = 0
    scene = make_scene(data, nodata=0, transform=Affine(pixel, 0, 339000, 0, -pixel, 2784000))
    drawn: dict[str, NDArray[np.uint8]] = {}

    def draw(path: Path, **given: NDArray[np.uint8]) -> None:
        drawn.update(given)
        path.touch()

    monkeypatch.setattr("landseg.outputs.picture.draw_picture", draw)
    execute(build_plan(str(scene), tmp_path / "map.gpkg", RunConfig(model=str(small_bundle), picture=True)))
    imagery, labels = drawn["imagery"], drawn["labels"]
    assert imagery.shape == (*labels.shape, 3)
    assert (imagery[labels == 0] == 255).all()
    middle = imagery.shape[1] // 2
    assert (labels[:, : middle - 2] == 0).all()
    assert abs(imagery[:, middle + 2 :].mean() - city[:, :, 75:].mean()) < 5


def test_small_polygons_are_merged_and_outlines_straightened(
    make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    scene = make_scene(city)
    plain = execute(build_plan(str(scene), tmp_path / "plain.gpkg", RunConfig(model=str(small_bundle))))
    config = RunConfig(model=str(small_bundle), min_area="0.01ha", simplify="1m")  # type: ignore[arg-type]

    tidy = execute(build_plan(str(scene), tmp_path / "tidy.gpkg", config))

    before, after = (geopandas.read_file(r.outputs.polygons, layer="landuse") for r in (plain, tidy))
    assert before["area_m2"].min() < 100 <= after["area_m2"].min() * 1.2
    assert len(after) < len(before)
    assert after["area_m2"].sum() == pytest.approx(before["area_m2"].sum(), rel=1e-9)
    assert shapely.coverage_is_valid(after.geometry.to_numpy())
    assert shapely.is_valid(after.geometry.to_numpy()).all()
    assert shapely.get_num_coordinates(after.geometry.to_numpy()).sum() < 0.8 * (
        shapely.get_num_coordinates(before.geometry.to_numpy()).sum()
    )


def test_a_minimum_area_for_an_unknown_class_is_refused(
    make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=str(small_bundle), min_area_of_class={"castle": 100.0})
    with pytest.raises(UsageError, match="castle"):
        build_plan(str(make_scene(city)), tmp_path / "map.gpkg", config)


def test_the_picture_knows_whether_small_polygons_were_merged(
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = make_scene(city)
    told = []

    def draw(path: Path, *, merged: bool, **_: object) -> None:
        told.append(merged)
        path.touch()

    monkeypatch.setattr("landseg.outputs.picture.draw_picture", draw)
    for min_area in (0, 50):
        config = RunConfig(model=str(small_bundle), picture=True, min_area=min_area)
        execute(build_plan(str(scene), tmp_path / f"{min_area}.gpkg", config))
    assert told == [False, True]
