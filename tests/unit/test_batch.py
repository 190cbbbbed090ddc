import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from filelock import FileLock
from numpy.typing import NDArray

import landseg.batch
import landseg.batch.due
import landseg.region
from landseg.batch import load_pipeline, run_batch
from landseg.batch.jobs import find_scenes, plan_jobs
from landseg.batch.report import Report
from landseg.catalog import open_catalog
from landseg.catalog.search import SceneRef
from landseg.catalog.validation import validate
from landseg.config import PipelineConfig
from landseg.errors import ConfigError, DiskError, ResourceError, RunInterruptedError, SceneError, UsageError
from landseg.outputs.drafts import Drafts
from landseg.run import Plan
from tests.conftest import Landseg, SceneMaker

WritePipeline = Callable[..., Path]


@pytest.fixture
def two_scenes(make_scene: SceneMaker, city: NDArray[np.uint8]) -> list[Path]:
    return [make_scene(city[:, :48, :48], "a.tif"), make_scene(city[:, 48:96, :48], "b.tif")]


@pytest.fixture
def write_pipeline(tmp_path: Path, small_bundle: Path) -> WritePipeline:
    """Write a pipeline of the scenes beside it."""

    def write(**keys: Any) -> Path:
        values = {"scenes": {"files": ["*.tif"]}, "out": "maps", "model": str(small_bundle), "device": "cpu"}
        path = tmp_path / "all.yaml"
        path.write_text(yaml.safe_dump(values | keys))
        return path

    return write


def run(path: Path, **given: Any) -> Report:
    return run_batch(load_pipeline(path, {}), path.stem, **given)


def statuses(report: Report) -> dict[str, str]:
    return {entry.name: f"{entry.status}: {entry.why}" for entry in report.entries}


def test_a_second_batch_has_nothing_to_do(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    path = write_pipeline()
    assert statuses(run(path)) == {"a": "mapped: new", "b": "mapped: new"}
    before = (tmp_path / "maps/a.gpkg").stat()
    assert statuses(run(path)) == {"a": "current: nothing changed", "b": "current: nothing changed"}
    assert (tmp_path / "maps/a.gpkg").stat().st_mtime_ns == before.st_mtime_ns


def test_what_changed_is_mapped_again_and_the_reason_is_given(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    run(write_pipeline())
    os.utime(two_scenes[0], ns=(0, 0))
    (tmp_path / "maps/b.tif.aux.xml").unlink()
    assert statuses(run(write_pipeline(), dry_run=True)) == {
        "a": "due: the scene changed",
        "b": "due: b.tif.aux.xml is missing",
    }
    changed = write_pipeline(overlap=0.5, batch=2)
    assert statuses(run(changed))["b"] == "mapped: options changed: overlap"
    (tmp_path / "maps/a.tif").write_bytes(b"cut off")
    (tmp_path / "maps/b.json").write_text("{}")
    (tmp_path / "maps/b.gpkg").unlink()
    assert statuses(run(changed, dry_run=True)) == {
        "a": "due: a.tif is not as it was written",
        "b": "due: b.json is not what this version writes",
    }


def test_polygons_corrected_by_hand_are_not_replaced(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    """Nor after a run that was killed before; those that were merely opened for editing are, and so is what is gone."""
    maps = tmp_path / "maps"
    run(write_pipeline(merge={}))
    opened, corrected, region = (maps / f"{name}.gpkg" for name in ("a", "b", "region"))
    before = opened.read_bytes()
    with closing(sqlite3.connect(opened)) as database:
        # As GDAL does for QGIS.
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA journal_mode=DELETE")
    assert opened.read_bytes() != before
    for path in (corrected, region):
        layer = geopandas.read_file(path, layer="landuse")
        layer.head(1).to_file(path, layer="landuse", mode="a")
    Drafts(corrected, "strips").kept.mkdir(parents=True)
    edited = [corrected.read_bytes(), region.read_bytes()]
    changed = write_pipeline(merge={}, overlap=0.5)
    assert statuses(run(changed, dry_run=True))["a"] == "due: options changed: overlap"
    for dry_run in (True, False):
        report = statuses(run(changed, dry_run=dry_run))
        assert f"failed: {corrected} was changed since it was made" in report["b"]
    assert report["a"] == "mapped: options changed: overlap"
    assert f"failed: {region} was changed since it was made" in report["region"]
    assert [corrected.read_bytes(), region.read_bytes()] == edited
    corrected.unlink()
    region.unlink()
    assert statuses(run(changed)) == {
        "a": "current: nothing changed",
        "b": "mapped: options changed: overlap",
        "region": "mapped: options changed: overlap",
    }


def test_polygons_that_were_published_when_a_run_was_killed_are_replaced(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    run(write_pipeline())
    work = Drafts(maps / "a.gpkg").folder
    work.mkdir()
    (maps / "a.json").rename(work / "a.json")
    assert statuses(run(write_pipeline()))["a"] == "mapped: new"


def test_corrected_classes_of_a_shapefile_are_not_replaced(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    run(write_pipeline(format=".shp"))
    classes = tmp_path / "maps/a.dbf"
    content = bytearray(classes.read_bytes())
    content[-3] ^= 1
    classes.write_bytes(content)
    report = statuses(run(write_pipeline(format=".shp", overlap=0.5)))
    assert "a.dbf was changed since it was made" in report["a"]
    assert classes.read_bytes() == content


def test_a_shapefile_whose_manifest_lists_no_companions_is_made_anew(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    path = write_pipeline(format=".shp")
    run(path)
    manifest = tmp_path / "maps/a.json"
    item = json.loads(manifest.read_text())
    item["assets"] = {
        key: asset
        for key, asset in item["assets"].items()
        if Path(asset["href"]).suffix not in (".shx", ".dbf", ".prj", ".cpg")
    }
    manifest.write_text(json.dumps(item))
    assert statuses(run(path))["a"].startswith("mapped")
    assert statuses(run(path))["a"].startswith("current")


def test_a_corrected_map_still_stands_for_a_scene_that_fails(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    """In the region, which is made of the rasters."""
    path = write_pipeline(merge={})
    run(path)
    (tmp_path / "maps/a.gpkg").write_bytes(b"much corrected")
    two_scenes[0].write_bytes(b"no raster")
    assert statuses(run(path))["region"] == "current: nothing changed"


def test_colours_chosen_in_qgis_are_no_reason(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    path = write_pipeline(qgis_project=True)
    run(path)
    for name in ("a.tif.aux.xml", "a.qml", "a.qgz"):
        with (tmp_path / "maps" / name).open("a") as file:
            file.write("<!-- other colours -->")
    assert statuses(run(path))["a"] == "current: nothing changed"


def test_another_format_is_a_reason(two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path) -> None:
    """The region's too, for which the map in the former format counts if its scene fails."""
    merge: dict[str, Any] = {"merge": {}}
    run(write_pipeline(**merge))
    two_scenes[0].rename(tmp_path / "a")
    two_scenes[0].write_bytes(b"no raster")
    changed = write_pipeline(**merge, format=".shp")
    assert statuses(run(changed, dry_run=True))["b"] == "due: b.shx is missing"
    first = statuses(run(changed))
    assert (first["b"], first["region"]) == ("mapped: b.shx is missing", "mapped: region.shx is missing")
    (tmp_path / "a").replace(two_scenes[0])
    assert statuses(run(changed))["a"] == "mapped: a.shx is missing"
    assert set(statuses(run(changed)).values()) == {"current: nothing changed"}
    for name in ("b", "region"):
        (tmp_path / f"maps/{name}.dbf").unlink()
    last = statuses(run(changed))
    assert (last["b"], last["region"]) == ("mapped: b.dbf is missing", "mapped: region.dbf is missing")


def test_another_format_replaces_no_file_that_was_there(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    """Neither that of the former format, whose map is another by then, nor one of the user's own."""
    maps = tmp_path / "maps"
    merge: dict[str, Any] = {"merge": {}}
    run(write_pipeline(**merge))
    files = [maps / name for name in ("a.gpkg", "b.gpkg", "region.gpkg", "a.dbf", "region.parquet")]
    files[-2].write_text("mine")
    files[-1].write_text("mine")
    before = [path.read_bytes() for path in files]
    assert "a.dbf exists and is not of the map in a.json" in statuses(run(write_pipeline(format=".shp")))["a"]
    parquet = statuses(run(write_pipeline(**merge, format=".parquet")))
    assert parquet["a"] == "mapped: a.parquet is missing"
    assert "region.parquet exists" in parquet["region"]
    back = write_pipeline(**merge)
    for dry_run in (True, False):
        assert "a.gpkg exists and is not of the map in a.json" in statuses(run(back, dry_run=dry_run))["a"]
    assert [path.read_bytes() for path in files] == before


def test_another_model_is_a_reason(
    two_scenes: list[Path], write_pipeline: WritePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pipeline()
    run(path)
    build_plan = landseg.batch.build_plan

    def with_other_weights(*given: Any) -> Plan:
        plan = build_plan(*given)
        object.__setattr__(plan.bundle, "sha256", "0" * 64)
        return plan

    monkeypatch.setattr(landseg.batch, "build_plan", with_other_weights)
    assert statuses(run(path, dry_run=True))["a"] == "due: the model changed"


@pytest.mark.parametrize("change", ["temperature", "colour"])
def test_another_card_is_a_reason(
    two_scenes: list[Path], write_pipeline: WritePipeline, small_bundle: Path, tmp_path: Path, change: str
) -> None:
    bundle = tmp_path / "own"
    shutil.copytree(small_bundle, bundle)
    path = write_pipeline(model="own", merge={})
    run(path)
    card = bundle / "model.json"
    item = json.loads(card.read_text())
    if change == "temperature":
        item["properties"]["landseg:temperature"] = 2.0
    else:
        item["properties"]["mlm:output"][0]["classification:classes"][0]["color_hint"] = "123456"
    card.write_text(json.dumps(item))
    assert set(statuses(run(path)).values()) == {"mapped: the model's card changed", "mapped: its scenes changed"}
    assert set(statuses(run(path)).values()) == {"current: nothing changed"}


def test_a_region_names_the_scenes_that_are_gone(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_pipeline(merge={})
    run(path)
    two_scenes[1].rename(tmp_path / "b.away")
    why = "its scenes changed; b is no longer among the scenes"
    assert statuses(run(path, dry_run=True))["region"] == f"due: {why}"
    caplog.clear()
    assert statuses(run(path))["region"] == f"mapped: {why}"
    assert "region: b is no longer among the scenes" in caplog.text


def test_a_dry_run_writes_nothing(two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path) -> None:
    path = write_pipeline()
    before = sorted(tmp_path.iterdir())
    assert statuses(run(path, dry_run=True)) == {"a": "due: new", "b": "due: new"}
    assert sorted(tmp_path.iterdir()) == before


def test_it_goes_on_past_failures(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_scenes[0].write_bytes(b"no raster")
    report = run(write_pipeline())
    assert [entry.status for entry in report.entries] == ["failed", "mapped"]
    assert "can't read" in report.entries[0].why
    written = json.loads((tmp_path / "maps/run.json").read_text())
    assert written["counts"] == {"failed": 1, "mapped": 1}
    assert [entry["name"] for entry in written["entries"]] == ["a", "b"]

    def fault(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(landseg.batch, "build_plan", fault)
    assert statuses(run(write_pipeline()))["b"] == "failed: internal error: ZeroDivisionError: oh"


def test_what_can_t_be_reached_comes_again_after_the_others(
    two_scenes: list[Path], write_pipeline: WritePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, order, slept = "https://maps.invalid/far.tif?token=secret", [], []
    build_plan = landseg.batch.build_plan

    def slow(scene: str, *given: Any) -> Plan:
        order.append(Path(scene).name)
        if scene == url and order.count(Path(url).name) < 3:
            raise SceneError(f"can't read {url} as a raster", "timed out")
        return build_plan(str(two_scenes[0]) if scene == url else scene, *given)

    monkeypatch.setattr(landseg.batch, "build_plan", slow)
    path = write_pipeline(scenes={"files": [url, "a.tif", "b.tif"]}, wait_s=10)
    report = run(path, sleep=slept.append)
    assert order == ["far.tif?token=secret", "a.tif", "b.tif", "far.tif?token=secret", "far.tif?token=secret"]
    assert slept == [10, 20]
    assert [(entry.status, entry.attempts) for entry in report.entries] == [("mapped", 3), ("mapped", 1), ("mapped", 1)]
    assert "secret" not in json.dumps(report.to_dict())
    order.clear()
    monkeypatch.setattr(landseg.batch, "why_due", lambda _: None)
    report = run(write_pipeline(scenes={"files": [url]}, attempts=2), sleep=slept.append)
    assert [(entry.status, entry.attempts, entry.unreachable) for entry in report.entries] == [("failed", 2, True)]


def test_a_scene_elsewhere_without_a_valid_pixel_is_not_asked_again(
    make_scene: SceneMaker, write_pipeline: WritePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_scene(np.zeros((3, 50, 50), np.uint8), "empty.tif", nodata=0)
    monkeypatch.setattr(landseg.batch, "is_remote", lambda _: True)
    (entry,) = run(write_pipeline(scenes={"files": ["empty.tif"]}), sleep=pytest.fail).entries
    assert "no valid pixel" in entry.why
    assert (entry.attempts, entry.unreachable) == (1, False)


def test_two_batches_do_not_share_a_folder(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    (tmp_path / "maps").mkdir()
    with FileLock(tmp_path / "maps/.landseg-batch.lock"), pytest.raises(ResourceError, match="another batch"):
        run(write_pipeline())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RunInterruptedError("stopped")])
def test_an_interruption_is_reported(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any
) -> None:
    execute = landseg.batch.execute

    def interrupted(plan: Plan, *given: Any) -> Any:
        if plan.outputs.polygons.stem == "b":
            raise stop
        return execute(plan, *given)

    monkeypatch.setattr(landseg.batch, "execute", interrupted)
    with pytest.raises(RunInterruptedError, match="1 of 2 scenes"):
        run(write_pipeline())
    written = json.loads((tmp_path / "maps/run.json").read_text())
    assert not written["finished"]
    assert [entry["status"] for entry in written["entries"]] == ["mapped", "due"]


def test_maps_are_added_to_a_catalog(two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path) -> None:
    path = write_pipeline(name="set/{scene}", catalog="maps/catalog.json")
    for _ in range(2):
        run(path)
        root = open_catalog(str(tmp_path / "maps/catalog.json"))
        items = {item.id: item for item in root.get_items(recursive=True)}
        assert items.keys() == {"set-a", "set-b"}
        assert items["set-a"].assets["raster"].get_absolute_href() == str(tmp_path / "maps/set/a.tif")
        assert validate(root).faults == []
        (tmp_path / "maps/maps/set-a/set-a.json").unlink()


def test_a_catalog_that_can_t_be_written_does_not_cost_the_report(
    landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    catalog = tmp_path / "catalog.json"
    catalog.write_text("no JSON")
    path = write_pipeline(catalog="catalog.json", webhook="http://127.0.0.1:9/hook")
    outcome = landseg("batch", path, "--json", "--quiet")
    assert outcome.code == 5
    assert "the webhook could not be reached" in outcome.err
    *maps, failed = json.loads(outcome.out)["entries"]
    assert [entry["status"] for entry in maps] == ["mapped", "mapped"]
    assert (failed["scene"], failed["status"]) == (f"catalog {catalog}", "failed")
    assert "can't read the catalog" in failed["why"]
    assert json.loads((tmp_path / "maps/run.json").read_text()) == json.loads(outcome.out)
    catalog.unlink()
    assert [entry.status for entry in run(path).entries] == ["current", "current"]
    assert len(list(open_catalog(str(catalog)).get_items(recursive=True))) == 2


def test_an_old_item_of_a_catalog_is_renewed(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    run(write_pipeline(catalog="catalog.json"))
    item = tmp_path / "maps/a/a.json"
    former = item.read_text()
    # Mapped again by a pipeline without the catalog, so that the map is current and its item is not.
    run(write_pipeline(min_area="1ha", picture=True))
    assert "picture" not in json.loads(item.read_text())["assets"]
    report = run(write_pipeline(min_area="1ha", picture=True, catalog="catalog.json"))
    assert report.counts == {"current": 2}
    assert "picture" in json.loads(item.read_text())["assets"]
    assert item.read_text() != former
    assert validate(open_catalog(str(tmp_path / "catalog.json"))).faults == []
    time = item.stat().st_mtime_ns
    run(write_pipeline(min_area="1ha", picture=True, catalog="catalog.json"))
    assert item.stat().st_mtime_ns == time


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model": "none-such"}, "none-such"),
        ({"min_area": "50m2,harbour=1ha"}, "harbour"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:9"}, "exclude each other"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_fault_of_the_whole_pipeline_is_said_once(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path, keys: Any, says: str, dry_run: bool
) -> None:
    with pytest.raises(UsageError, match=says):
        run(write_pipeline(**keys), dry_run=dry_run)
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("remote", "status"), [(True, "due: parts could not be read"), (False, "current: nothing changed")]
)
def test_what_a_server_did_not_give_is_asked_for_again(
    two_scenes: list[Path],
    write_pipeline: WritePipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    remote: bool,
    status: str,
) -> None:
    path = write_pipeline(on_error="nodata")
    run(path)
    place = tmp_path / "maps/a.json"
    manifest = json.loads(place.read_text())
    manifest["properties"]["landseg:lost_windows"] = [[0, 0, 32, 32]]
    place.write_text(json.dumps(manifest))
    monkeypatch.setattr(landseg.batch.due, "is_remote", lambda href: remote and href.endswith(".tif"))
    report = run(write_pipeline(on_error="nodata", scenes={"files": [str(path) for path in two_scenes]}), dry_run=True)
    assert statuses(report) == {"a": status, "b": "current: nothing changed"}


def test_a_region_records_what_it_is_made_of_and_no_more(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    """A folder of its own is made for it, and options that do not concern it make it neither due nor longer."""
    merge = {"merge": {"name": "sub/region"}}
    assert statuses(run(write_pipeline(**merge)))["sub/region"] == "mapped: new"
    config = json.loads((tmp_path / "maps/sub/region.json").read_text())["properties"]["landseg:config"]
    of_scene = json.loads((tmp_path / "maps/a.json").read_text())["properties"]["landseg:config"]
    assert config == {key: value for key, value in of_scene.items() if key != "qgis_project"}
    changed = statuses(run(write_pipeline(**merge, qgis_project=True, max_memory="8GB")))
    assert changed == {
        "a": "mapped: options changed: qgis_project",
        "b": "mapped: options changed: qgis_project",
        "sub/region": "current: nothing changed",
    }
    assert not (tmp_path / "maps/sub/region.qgz").exists()


@pytest.mark.parametrize(("max_memory", "threads"), [("100GB", 6), ("2GB", 3)])
def test_a_region_s_polygons_keep_to_the_budget(
    two_scenes: list[Path],
    write_pipeline: WritePipeline,
    monkeypatch: pytest.MonkeyPatch,
    max_memory: str,
    threads: int,
) -> None:
    given = []
    draw_layer = landseg.region.draw_layer

    def drawn(*values: Any, **options: Any) -> Any:
        given.append(options["threads"])
        return draw_layer(*values, **options)

    monkeypatch.setattr(landseg.region, "draw_layer", drawn)
    monkeypatch.setattr(landseg.region, "cores", lambda: 6)
    assert statuses(run(write_pipeline(merge={}, max_memory=max_memory)))["region"] == "mapped: new"
    assert given == [threads]


def test_a_region_is_made_of_what_is_there(
    make_scene: SceneMaker, city: NDArray[np.uint8], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    for name, col in (("west", 0), ("middle", 35), ("east", 70)):
        corner = Affine(1, 0, 339000 + col, 0, -1, 2784000)
        make_scene(city[:, :60, col : col + 60], f"{name}.tif", transform=corner)
    intact = (tmp_path / "middle.tif").read_bytes()
    (tmp_path / "middle.tif").write_bytes(b"no raster")
    path = write_pipeline(merge={"name": "all"}, min_area="20m2")
    assert statuses(run(path))["all"] == "mapped: new; without middle"
    assert statuses(run(path))["all"] == "current: nothing changed"
    (tmp_path / "middle.tif").write_bytes(intact)
    assert statuses(run(path, dry_run=True))["all"] == "due: its scenes change"
    assert statuses(run(path))["all"] == "mapped: its scenes changed"

    layer = geopandas.read_file(tmp_path / "maps/all.gpkg", layer="landuse")
    assert layer.geometry.area.sum() == 60 * 130
    assert shapely.coverage_is_valid(layer.geometry.to_numpy())
    manifest = json.loads((tmp_path / "maps/all.json").read_text())
    assert [part["map"] for part in manifest["properties"]["landseg:merge"]["parts"]] == ["east", "middle", "west"]
    made_from = [link["href"] for link in manifest["links"] if link["rel"] == "derived_from"]
    assert made_from == ["east.json", "middle.json", "west.json"]
    with rasterio.open(tmp_path / "maps/all.tif") as whole, rasterio.open(tmp_path / "maps/west.tif") as west:
        assert (whole.read()[:, :, :35] == west.read()[:, :, :35]).all()
    (tmp_path / "middle.tif").write_bytes(b"no raster")
    damaged = statuses(run(path))
    assert damaged["middle"].startswith("failed")
    assert damaged["all"] == "current: nothing changed"
    changed = write_pipeline(merge={"name": "all"}, min_area="0")
    assert statuses(run(changed, dry_run=True))["west"] == "due: options changed: min_area"


def test_a_region_that_can_t_be_merged_is_refused_first(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="when it was taken is not known"):
        run(write_pipeline(merge={"rule": "newest"}))
    with pytest.raises(UsageError, match="merged one's name"):
        run(write_pipeline(merge={"name": "a"}))
    assert not (tmp_path / "maps").exists()


def test_a_region_does_not_take_the_place_of_a_scene_or_of_another_file(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    files = [str(path) for path in two_scenes]
    keys: dict[str, Any] = {"scenes": {"files": files}, "out": str(tmp_path), "name": "{scene}-map"}
    before = two_scenes[0].read_bytes()
    path = write_pipeline(merge={"name": two_scenes[0].stem}, **keys)
    assert "is a scene to be mapped" in statuses(run(path))[two_scenes[0].stem]
    assert "is a scene to be mapped" in statuses(run(path, dry_run=True))[two_scenes[0].stem]
    assert two_scenes[0].read_bytes() == before

    (tmp_path / "region.json").write_text("mine")
    assert "no part of an earlier map" in statuses(run(write_pipeline(merge={}, **keys)))["region"]
    assert (tmp_path / "region.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "place"), [("out", "gs://maps/city"), ("out", "s3://"), ("catalog", "s3://maps/c.json")]
)
def test_places_where_nothing_can_be_written_are_refused(write_pipeline: WritePipeline, key: str, place: str) -> None:
    with pytest.raises(ConfigError, match="path on this machine"):
        load_pipeline(write_pipeline(**{key: place}), {})
    with pytest.raises(ConfigError, match=rf"LANDSEG_{key.upper()} is '{place}'"):
        load_pipeline(write_pipeline(), {f"LANDSEG_{key.upper()}": place})


def test_a_prefix_of_a_bucket_has_a_work_folder(write_pipeline: WritePipeline, tmp_path: Path) -> None:
    config = load_pipeline(write_pipeline(out="s3://maps/city/", work_folder="work"), {"LANDSEG_NAME": "2026/{scene}"})
    (job,) = plan_jobs(config, [SceneRef("a", "a.tif")])
    assert job.part.raster == "s3://maps/city/2026/a.tif"
    assert job.part.manifest == "s3://maps/city/2026/a.json"
    assert job.outputs.polygons == tmp_path / "work/maps/city/2026/a.gpkg"
    assert load_pipeline(write_pipeline(), {"LANDSEG_OUT": "s3://maps"}).out == "s3://maps"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"work_folder": "work"}, "a work folder is of no use for"),
        ({"out": "s3://someone:word@maps/city"}, "credentials are read from AWS_"),
        ({"out": "s3://maps/../city"}, "not of the form"),
    ],
)
def test_prefixes_that_will_not_do(
    landseg: Landseg, write_pipeline: WritePipeline, two_scenes: list[Path], keys: dict[str, Any], says: str
) -> None:
    refused = landseg("batch", write_pipeline(**keys))
    assert refused.code == 2
    assert says in refused.err
    assert "word" not in refused.err


def test_a_region_of_nothing_fails(two_scenes: list[Path], write_pipeline: WritePipeline) -> None:
    for scene in two_scenes:
        scene.write_bytes(b"no raster")
    assert statuses(run(write_pipeline(merge={})))["region"] == "failed: none of its scenes has a map"


def pipeline(**keys: Any) -> PipelineConfig:
    return PipelineConfig.model_validate({"scenes": {"files": ["*.tif"]}, "out": "maps"} | keys)


def test_names_follow_the_template() -> None:
    march = SceneRef("S2A/31", "s3://b/31.tif", datetime(2026, 3, 4, tzinfo=UTC), 3.0, "sentinel")
    (job,) = plan_jobs(pipeline(name="{date}/{collection}_{scene}", format=".fgb"), [march])
    assert job.outputs.polygons == Path("maps/2026-03-04/sentinel_S2A-31.fgb")
    (job,) = plan_jobs(pipeline(name="{scene}-{model}"), [SceneRef("a.b", "a.b.tif")])
    assert job.outputs.polygons == Path("maps/a.b-pspnet-r50-dubai.gpkg")
    months = [SceneRef("city", f"{place}/2026-0{n}/city.tif") for n, place in ((1, "in"), (2, "https://x.org"))]
    with pytest.raises(UsageError, match=r"\{folder\}-\{scene\}"):
        plan_jobs(pipeline(), months)
    jobs = plan_jobs(pipeline(name="{folder}-{scene}"), months)
    assert [job.name for job in jobs] == ["2026-01-city", "2026-02-city"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "same"}, "both be mapped"),
        ({"name": "../{scene}"}, "called '../a'"),
        ({"name": "{collection}"}, "called ''"),
        ({"name": "run"}, "called 'run'"),
        ({"name": "catalog", "catalog": "maps/catalog.json"}, "called 'catalog'"),
        ({"merge": {"name": "run"}}, "called 'run'"),
        ({"format": "gpkg"}, "known format"),
    ],
)
def test_names_that_will_not_do(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_jobs(pipeline(**keys), [SceneRef("a", "a.tif"), SceneRef("b", "b.tif")])


def test_patterns_leave_out_the_pipeline_s_own_maps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("c.tif", "maps/c.tif", "sub/[d].tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = (f"{tmp_path}/**/*.tif", f"{tmp_path}/sub/[d].tif", "https://x.org/e.tif?v=*")
    found, _ = find_scenes(pipeline(scenes={"files": files[:1]}, out=tmp_path / "maps"))
    assert [scene.name for scene in found] == ["c", "[d]"]
    found, idle = find_scenes(pipeline(scenes={"files": [*files[1:], files[1], f"{tmp_path}/*.jp2"]}))
    assert idle == {f"{tmp_path}/*.jp2": "no file matches it"}
    assert f"{tmp_path}/*.jp2: no file matches it" in caplog.text
    assert [(scene.name, scene.href) for scene in found] == [("[d]", files[1]), ("e", files[2])]
    with pytest.raises(UsageError, match="no scene"):
        find_scenes(pipeline(scenes={"files": [f"{tmp_path}/*.jp2"]}))
    caplog.clear()
    with pytest.raises(UsageError, match="no scene"):
        find_scenes(pipeline(scenes={"files": [f"{tmp_path}/maps/*.tif"]}, out=tmp_path / "maps"))
    assert f"it matches files of the output folder {tmp_path}/maps alone" in caplog.text


def test_a_pattern_that_matches_nothing_fails(
    landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    """As a share does that is not mounted."""
    path = write_pipeline(scenes={"files": ["*.tif", "nas/*.tif"]}, merge={})
    outcome = landseg("batch", path, "--json", "--quiet")
    assert outcome.code == 5
    entries = {entry["name"]: entry for entry in json.loads(outcome.out)["entries"]}
    assert [entry["status"] for entry in entries.values()] == ["mapped", "mapped", "failed", "mapped"]
    assert entries[str(tmp_path / "nas/*.tif")]["why"] == "no file matches it"


def test_a_report_that_can_t_be_written_is_told(
    landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    (tmp_path / "maps/run.json").mkdir(parents=True)
    outcome = landseg("batch", write_pipeline(webhook="http://127.0.0.1:9/hook"), "--json", "--quiet")
    assert outcome.code == 5
    assert "the webhook could not be reached" in outcome.err
    *maps, report = json.loads(outcome.out)["entries"]
    assert [entry["status"] for entry in maps] == ["mapped", "mapped"]
    assert (report["name"], report["status"]) == ("run.json", "failed")
    assert "can't write" in report["why"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_name_that_is_no_unicode_does_not_cost_the_report(
    landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    two_scenes[0].rename(os.fsdecode(bytes(tmp_path) + b"/stra\xdfe.tif"))
    outcome = landseg("batch", write_pipeline(), "--quiet")
    assert outcome.code == 5
    report = json.loads((tmp_path / "maps/run.json").read_text())
    assert report["counts"] == {"mapped": 1, "failed": 1}
    (failed,) = [entry for entry in report["entries"] if entry["status"] == "failed"]
    assert Path(failed["scene"]).name == "stra\\udcdfe.tif"
    assert "is not UTF-8" in failed["why"]


def test_a_catalog_may_have_the_maps_of_its_scenes(
    landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline, small_bundle: Path, tmp_path: Path
) -> None:
    catalog = tmp_path / "cat.json"
    for path, date in (
        (two_scenes[0], ["--date", "2026-03-04"]),
        (two_scenes[1], ["--date", "2026-03-05"]),
        (small_bundle, []),
    ):
        assert landseg("catalog", "add", path, "--catalog", catalog, *date).code == 0
    path = write_pipeline(scenes={"catalog": {"url": "cat.json"}}, catalog="cat.json", name="{scene}-map")
    assert run(path).counts == {"mapped": 2}
    assert run(path).counts == {"current": 2}


def test_paths_are_told_in_full(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since whoever reads the report does not know the working folder."""
    monkeypatch.chdir(tmp_path)
    path = write_pipeline()
    report = run_batch(load_pipeline(Path(path.name), {"LANDSEG_OUT": "elsewhere"}), "all")
    assert [entry.scene for entry in report.entries] == [str(path) for path in two_scenes]
    assert report.entries[0].outputs[-1] == str(tmp_path / "elsewhere/a.json")


def test_a_lock_that_can_t_be_taken_is_named(
    two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    (tmp_path / "maps/.landseg-batch.lock").mkdir(parents=True)
    with pytest.raises(DiskError, match=r"\.landseg-batch\.lock"):
        run(write_pipeline())


def test_a_tilde_is_the_home_folder(
    write_pipeline: WritePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    path = write_pipeline(scenes={"files": ["~/a.tif", "~/in/*.tif"]}, out="~/maps", catalog="~/catalog.json")
    config = load_pipeline(path, {})
    home = tmp_path / "home"
    assert (config.out, config.catalog) == (home / "maps", home / "catalog.json")
    assert config.scenes.files == (str(home / "a.tif"), str(home / "in/*.tif"))
    assert load_pipeline(path, {"LANDSEG_OUT": "~/other"}).out == home / "other"


def test_a_day_needs_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("out: maps\nscenes: {catalog: {url: c, dates: 2026-03-01}}\n")
    query = load_pipeline(path, {}).scenes.catalog
    assert query is not None
    assert query.dates == "2026-03-01"


def test_brackets_in_the_pipeline_s_folder_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "t2[1]"
    folder.mkdir()
    (folder / "a.tif").touch()
    path = folder / "p.yaml"
    path.write_text("out: maps\nscenes: {files: ['*.tif']}\n")
    scenes, _ = find_scenes(load_pipeline(path, {}))
    assert [scene.href for scene in scenes] == [str(folder / "a.tif")]


def test_relative_paths_start_at_the_pipeline_s_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("scenes: {files: [a.tif, https://x.org/b.tif], catalog: {url: ../catalog.json}}\nout: maps\n")
    config = load_pipeline(path, {})
    assert config.out == tmp_path / "maps"
    assert config.scenes.files == (f"{tmp_path}/a.tif", "https://x.org/b.tif")
    assert config.scenes.catalog is not None
    assert config.scenes.catalog.url == f"{tmp_path}/../catalog.json"
    assert config.model == "pspnet-r50-dubai"


def test_the_environment_comes_before_the_file(write_pipeline: WritePipeline, caplog: pytest.LogCaptureFixture) -> None:
    environment = {
        "LANDSEG_OUT": "elsewhere",
        "LANDSEG_MIN_AREA": "1ha",
        "LANDSEG_BANDS": "[3, 2, 1]",
        "LANDSEG_PICTURE": "true",
        "LANDSEG_NAME": "{date}_{scene}",
        "LANDSEG_MODEL": "",
        "LANDSEG_WEBHOOK": "https://hooks.invalid/secret",
        "LANDSEG_SERVICE_HOST": "not ours",
    }
    config = load_pipeline(write_pipeline(overlap=0.5), environment)
    assert (config.out, config.min_area) == (Path.cwd() / "elsewhere", 1e4)
    assert (config.bands, config.overlap) == ((3, 2, 1), 0.5)
    assert config.picture
    assert config.name == "{date}_{scene}"
    assert Path(config.model).name == "small"
    assert "secret" not in f"{config} {config.model_dump_json()}"
    assert caplog.text == ""
    load_pipeline(write_pipeline(), {"LANDSEG_MIN_ARAE": "1ha"})
    assert "no setting LANDSEG_MIN_ARAE; did you mean LANDSEG_MIN_AREA?" in caplog.text
    with pytest.raises(ConfigError, match="LANDSEG_OVERLAP is 2"):
        load_pipeline(write_pipeline(), {"LANDSEG_OVERLAP": "2"})
    with pytest.raises(ConfigError, match="LANDSEG_BANDS is '\\[3': not YAML"):
        load_pipeline(write_pipeline(), {"LANDSEG_BANDS": "[3"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("out: maps", "'scenes' is missing"),
        ("out: maps\nscenes: {}", "name what to map"),
        ("out: maps\nscenes: {files: [a.tif]}\nname: '{city}'", "no {city}; known are {scene}"),
        ("out: maps\nscenes: {files: [a.tif]}\nname: '{scene'", "name"),
        ("out: maps\nscenes: {files: [a.tif]}\nname: '{date:%Y}_{scene}'", "{date} stands alone"),
        ("out: maps\nscenes: {files: [a.tif]}\nname: '{scene!r}'", "{scene} stands alone"),
        ("out: maps\nscenes: {files: [a.tif]}\nout: other", "line 3, column 1: 'out' is there twice, first in line 1"),
        ("out: maps\nscenes: {catalog: {url: c, bbox: [55, 25.3, 56, 25.1]}}", "the south before the north"),
        ("out: maps\nscenes: {catalog: {url: c, dates: 2026-03-02/2026-03-01}}", "is no interval"),
        ("out: maps\nscenes: {files: [a.tif]}\noverwrite: true", "unknown key 'overwrite'"),
        ("out: maps\nscenes: {catalog: {url: c, dates: May}}", "is no interval"),
    ],
)
def test_pipelines_that_make_no_sense(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        find_scenes(load_pipeline(path, {}))


def test_the_table_and_the_exit_code(
    landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline, tmp_path: Path
) -> None:
    two_scenes[1].write_bytes(b"no raster")
    outcome = landseg("batch", write_pipeline(), "--quiet")
    assert outcome.code == 5
    rows = [line.split() for line in outcome.out.splitlines()]
    assert rows[0] == ["map", "status", "time", "why"]
    assert "mapping" not in outcome.err
    assert [row[:2] for row in rows[1:3]] == [["a", "mapped"], ["b", "failed"]]
    assert "1 of 2 failed" in outcome.err
    two_scenes[1].unlink()
    outcome = landseg("batch", write_pipeline(), "--json", "--quiet")
    assert outcome.code == 0
    assert json.loads(outcome.out)["counts"] == {"current": 1}


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/hooks/T0P5ECRET", "hooks/T0P5ECRET"])
def test_a_webhook_that_does_not_answer_is_a_warning(
    landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline, url: str
) -> None:
    outcome = landseg("batch", write_pipeline(webhook=url), "--quiet")
    assert outcome.code == 0
    assert "the webhook could not be reached" in outcome.err
    assert "T0P5ECRET" not in outcome.err + outcome.out


def test_json_lines(landseg: Landseg, two_scenes: list[Path], write_pipeline: WritePipeline) -> None:
    two_scenes[1].write_bytes(b"no raster")
    outcome = landseg("batch", write_pipeline(), "--log-json")
    lines = [json.loads(line) for line in outcome.err.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    assert [line["event"] for line in lines if "event" in line] == ["start", "scene", "scene", "finished"]
    assert [(line["name"], line["status"], line["level"]) for line in lines if line.get("event") == "scene"] == [
        ("a", "mapped", "info"),
        ("b", "failed", "warning"),
    ]
    assert lines[-1]["level"] == "error"
    # What collects both streams finds nothing else.
    assert outcome.out == ""
    assert "nothing changed" in landseg("batch", write_pipeline(), "--log-json", "--dry-run").out
