import errno
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import shapely
from affine import Affine
from matplotlib.image import imread
from numpy.typing import NDArray
from pystac.utils import str_to_datetime
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from landseg.catalog import add_item, has_item, items_of, open_catalog, reason
from landseg.catalog.items import Description, add_thumbnail, scene_item
from landseg.catalog.search import search
from landseg.catalog.validation import validate
from landseg.errors import CatalogError, DiskError
from landseg.grid import Grid
from landseg.model.bundle import SHIPPED
from landseg.outputs.manifest import footprint
from tests.conftest import DEMO_LABELS, DEMO_SCENE, ROOT, Landseg, SceneMaker

DAY = Description("2026-03-04")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return tmp_path / "catalog/catalog.json"


def test_an_item_says_what_the_file_holds(make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    data = city.copy()
    data[:, :30] = 0
    path = make_scene(data, nodata=0)
    item, thumbnail = scene_item("city", path, Description("2026-03-04", "A city", "CC0-1.0", 12.5))
    assert item.bbox is not None
    assert item.bbox[:2] == pytest.approx([55.4025, 25.1623], abs=1e-3)
    properties = item.properties
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32640", [120, 150])
    assert (properties["title"], properties["license"], properties["eo:cloud_cover"]) == ("A city", "CC0-1.0", 12.5)
    assert item.datetime is not None
    assert item.datetime.isoformat() == "2026-03-04T00:00:00+00:00"
    image = item.assets["image"].extra_fields
    assert [band["common_name"] for band in image["eo:bands"]] == ["red", "green", "blue"]
    for band, values in zip(image["raster:bands"], data[:, 30:], strict=True):
        valid = values[values > 0]
        assert band["statistics"]["mean"] == pytest.approx(valid.mean(), abs=0.01)
        assert band["statistics"]["valid_percent"] == pytest.approx(100 * valid.size / (120 * 150), abs=0.01)
    assert thumbnail.shape == (120, 150, 3)
    assert (thumbnail[:30] == 255).all()
    assert (thumbnail[31:] == np.moveaxis(data, 0, -1)[31:])[np.moveaxis(data, 0, -1)[31:] > 0].all()


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", "a:b", "a\0b", "..", ""])
def test_an_id_is_no_path(make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path, name: str) -> None:
    item, _ = scene_item("city", make_scene(city), DAY)
    with pytest.raises(CatalogError, match="can't be the name of a folder"):
        add_item(catalog, item, name)
    item.id = name
    with pytest.raises(CatalogError, match="can't be the name of a folder"):
        add_item(catalog, item, "scenes")
    assert not catalog.parent.exists()


def test_a_catalog_that_lacks_a_file_is_told(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path
) -> None:
    item, _ = scene_item("city", make_scene(city), DAY)
    add_item(catalog, item, "scenes").unlink()
    for command in (("list",), ("show", "city")):
        outcome = landseg("catalog", *command, "--catalog", catalog)
        assert outcome.code == 3
        assert "can't read all of the catalog" in outcome.err


def test_a_server_that_does_not_answer_is_told_without_its_secrets(landseg: Landseg) -> None:
    outcome = landseg("catalog", "list", "--catalog", "https://u:pw@127.0.0.1:9/c.json?token=SECRET")
    assert outcome.code == 3
    assert "SECRET" not in outcome.err
    assert "pw@" not in outcome.err


def test_a_catalog_of_an_earlier_stac_is_checked_by_what_is_at_hand(
    make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path
) -> None:
    item, _ = scene_item("city", make_scene(city, "My City.tif"), DAY)
    item.assets["image"].href = f"file://{catalog.parent.parent}/My%20City.tif"
    stored = add_item(catalog, item, "scenes")
    content = json.loads(stored.read_text())
    content["assets"]["image"]["href"] = item.assets["image"].href
    stored.write_text(json.dumps(content | {"stac_version": "1.0.0"}))
    found = validate(open_catalog(str(catalog)))
    assert found.faults == []
    assert found.assets == 1
    assert any("is of STAC 1.0.0" in line for line in found.unchecked)
    assert [scene.href for scene in search(str(catalog))] == [f"{catalog.parent.parent}/My City.tif"]


@pytest.mark.parametrize(("said", "expected"), [("no answer\nin 30 s", "no answer"), ("", "TimeoutError")])
def test_a_reason_is_one_line_also_of_an_error_that_says_nothing(said: str, expected: str) -> None:
    assert reason(TimeoutError(said)) == expected


FIJI = Affine(1e-5, 0, 179.9996, 0, -1e-5, -17.0)


def test_a_scene_across_the_180th_meridian(make_scene: SceneMaker, catalog: Path) -> None:
    pixels = np.ones((1, 40, 90), np.uint8)
    path = make_scene(pixels, "fiji.tif", colours=None, crs=CRS.from_epsg(4326), transform=FIJI)
    item, _ = scene_item("fiji", path, DAY)
    assert item.bbox == pytest.approx([179.9996, -17.0004, -179.9995, -17.0])
    shape = shapely.geometry.shape(item.geometry)
    assert shape.area == pytest.approx(90 * 40 * 1e-10, rel=1e-3)
    assert shape.is_valid
    assert (shape.geom_type, shape.bounds[0], shape.bounds[2]) == ("MultiPolygon", -180, 180)
    add_item(catalog, item, "fiji")
    assert [scene.name for scene in search(str(catalog), bbox=(177, -20, -178, -15))] == ["fiji"]
    assert search(str(catalog), bbox=(0, -20, 20, -15)) == []

    box = item.clone()
    box.id, box.bbox = "higher", [-179.9, -18.0, 5.0, -179.8, -17.5, 90.0]
    add_item(catalog, box, "fiji")
    further = item.clone()
    further.id, further.bbox = "further", [179.0, -17.0, 179.1, -16.9]
    add_item(catalog, further, "fiji")
    extent = pystac.Collection.from_file(str(catalog.parent / "fiji/collection.json")).extent
    assert extent.spatial.bboxes == [[179, -18, -179.8, -16.9]]


@pytest.mark.parametrize(
    ("crs", "transform", "shape", "bbox"),
    [
        (4326, Affine(1, 0, -180, 0, -1, 90), (180, 360), [-180, -90, 180, 90]),
        (4326, Affine(1, 0, -100, 0, -1, 50), (100, 200), [-100, -50, 100, 50]),
        (4326, Affine(1, 0, 0, 0, -1, 90), (180, 360), [-180, -90, 180, 90]),
        (4326, Affine(1, 0, 200, 0, -1, 10), (10, 20), [-160, 0, -140, 10]),
        (4326, Affine(1, 0, 170, 0, -1, 10), (10, 10), [170, 0, 180, 10]),
        (4326, Affine(1, 0, 180, 0, -1, 10), (10, 10), [-180, 0, -170, 10]),
        (
            3857,
            Affine(111_319.49079327358, 0, -20_037_508.342789244, 0, -1e5, 1e6),
            (20, 360),
            [-180, -8.95, 180, 8.95],
        ),
        (5041, Affine(1e4, 0, 1_500_000, 0, -1e4, 2_500_000), (100, 100), [-180, 83.6, 180, 90]),
        (5042, Affine(1e4, 0, 1_500_000, 0, -1e4, 2_500_000), (100, 100), [-180, -90, 180, -83.6]),
        (32660, Affine(1000, 0, 800_000, 0, -1000, -1_900_000), (50, 100), [179.82, -17.6, -179.2, -17.1]),
    ],
)
def test_where_a_grid_lies(crs: int, transform: Affine, shape: tuple[int, int], bbox: list[float]) -> None:
    geometry, found = footprint(Grid(shape, transform, CRS.from_epsg(crs)))
    assert found == pytest.approx(bbox, abs=0.1)
    ground = shapely.geometry.shape(geometry)
    assert ground.is_valid
    west, south, east, north = bbox
    parts = [(west, east)] if west < east else [(west, 180), (-180, east)]
    expected = shapely.union_all([shapely.box(left, south, right, north) for left, right in parts])
    assert ground.intersection(expected).area == pytest.approx(expected.area, rel=0.2)
    assert ground.area == pytest.approx(expected.area, rel=0.2)


def test_a_single_band_is_drawn_in_grey(make_scene: SceneMaker) -> None:
    ramp = np.linspace(0, 4000, 600 * 300, dtype=np.uint16).reshape(1, 600, 300)
    item, thumbnail = scene_item("dem", make_scene(ramp, colours=(ColorInterp.gray,)), DAY)
    assert thumbnail.shape == (200, 100, 3)
    assert (thumbnail.min(), thumbnail.max()) == (0, 255)
    assert (np.ptp(thumbnail, axis=-1) == 0).all()
    assert item.assets["image"].extra_fields["bands"] == [{"name": "band 1"}]


def test_a_thumbnail_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "thumbnail.png"
    item = scene_item("tile", DEMO_SCENE, DAY)[0]
    add_thumbnail(item, path, np.zeros((8, 8, 3), np.uint8))
    before = path.read_bytes()

    def cut_off(draft: Path, *_: object, **options: object) -> None:
        draft.write_bytes(b"PNG")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("landseg.catalog.items.imsave", cut_off)
    with pytest.raises(DiskError):
        add_thumbnail(item, path, np.zeros((8, 8, 3), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_times_are_in_utc_and_those_without_an_offset_are_meant_so(catalog: Path) -> None:
    """Whether of items that are added, or of scenes that are found."""
    for name, time in (("noon", "2026-03-04T12:00:00"), ("evening", "2026-03-04T23:30:00-05:00")):
        item = scene_item(name, DEMO_SCENE, DAY)[0]
        item.datetime = str_to_datetime(time)
        add_item(catalog, item, "scenes")
        path = catalog.parent / f"scenes/{name}/{name}.json"
        content = json.loads(path.read_text())
        content["properties"]["datetime"] = time
        path.write_text(json.dumps(content))
    (collection,) = open_catalog(str(catalog)).get_collections()
    assert [f"{time:%d %H:%M}" for time in collection.extent.temporal.intervals[0] if time] == ["04 12:00", "05 04:30"]
    found = {scene.name: scene.date for scene in search(str(catalog))}
    assert list(found) == ["noon", "evening"]
    assert [date and date.isoformat() for date in found.values()] == [
        "2026-03-04T12:00:00+00:00",
        "2026-03-05T04:30:00+00:00",
    ]
    assert [scene.name for scene in search(str(catalog), dates="2026-03-04")] == ["noon"]


def test_scenes_maps_and_models_are_added_and_found_again(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path, catalog: Path
) -> None:
    scene = make_scene(city[:, :48, :48])
    options = ("--catalog", catalog)
    added = landseg("catalog", "add", scene, *options, "--date", "2026-03-04", "--id", "city", "--cloud-cover", 3)
    assert added.code == 0, added.err
    assert added.out.strip() == str(catalog.parent / "scenes/city/city.json")
    landseg("run", scene, "--out", tmp_path / "map.gpkg", "--model", small_bundle, "--quiet")
    landseg("catalog", "add", tmp_path / "map.json", *options)
    landseg("catalog", "add", small_bundle, *options)

    items = {item.id: item for item in open_catalog(str(catalog)).get_items(recursive=True)}
    assert {name: item.collection_id for name, item in items.items()} == {
        "city": "scenes",
        "map": "maps",
        "small": "models",
    }
    assert items["map"].assets["polygons"].get_absolute_href() == str(tmp_path / "map.gpkg")
    assert imread(catalog.parent / "scenes/city/thumbnail.png").shape[:2] == (48, 48)
    checked = landseg("catalog", "validate", *options)
    assert (checked.code, checked.err) == (0, "")
    assert "7 objects and 7 files checked, 0 faults" in checked.out
    (found,) = search(str(catalog), collections=["scenes"])
    assert (found.href, found.cloud_cover) == (str(scene), 3.0)

    listed = landseg("catalog", "list", *options).out
    assert [line.split()[:3] for line in listed.splitlines()[1:2]] == [["scenes", "city", "2026-03-04"]]
    assert len(json.loads(landseg("catalog", "list", *options, "--json").out)) == 3
    shown = landseg("catalog", "show", "city", *options).out
    for text in ("48 x 48 px", "EPSG:32640", "red, green, blue", "2026-03-04", "3 %"):
        assert text in shown
    assert json.loads(landseg("catalog", "show", "map", *options, "--json").out)["id"] == "map"
    assert landseg("catalog", "show", "no", *options).code == 3


@pytest.mark.parametrize("content", ["[1]", "no JSON", "{}", '{"type": "Feature", "id": 3}'])
def test_what_is_no_stac_is_refused(landseg: Landseg, tmp_path: Path, catalog: Path, content: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(content)
    for arguments in (
        ("list", "--catalog", path),
        ("validate", "--catalog", path),
        ("add", path, "--catalog", catalog),
    ):
        outcome = landseg("catalog", *arguments)
        assert outcome.code == 3, arguments
        assert len(outcome.err.splitlines()) <= 2
    assert not catalog.exists()


def test_adding_again_replaces_and_widens(make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path) -> None:
    path = make_scene(city)
    for date in ("2026-03-04", "2026-05-01/2026-05-03", "2026-01-01"):
        add_item(catalog, scene_item("city", path, Description(date))[0], "scenes")
    (collection,) = open_catalog(str(catalog)).get_collections()
    assert [item.datetime and f"{item.datetime:%Y-%m-%d}" for item in collection.get_items()] == ["2026-01-01"]
    (interval,) = collection.extent.temporal.intervals
    assert [f"{time:%Y-%m-%d}" for time in interval if time] == ["2026-01-01", "2026-05-03"]
    assert validate(open_catalog(str(catalog))).faults == []


def test_an_item_is_there_if_it_is_led_to_and_its_files_are_the_same(
    make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path
) -> None:
    item = scene_item("city", make_scene(city), DAY)[0]
    assert not has_item(catalog, item, "scenes")
    add_item(catalog, item, "scenes")
    assert has_item(catalog, item, "scenes")
    assert not has_item(catalog, item, "maps")
    assert not has_item(catalog, scene_item("city", make_scene(city[:, ::-1]), DAY)[0], "scenes")
    collection = catalog.parent / "scenes/collection.json"
    content = json.loads(collection.read_text())
    content["links"] = [link for link in content["links"] if link["rel"] != "item"]
    collection.write_text(json.dumps(content))
    assert not has_item(catalog, item, "scenes")
    collection.write_text("no JSON")
    for use in (has_item, add_item):
        with pytest.raises(CatalogError, match="the collection 'scenes'"):
            use(catalog, item, "scenes")


def test_a_catalog_s_place_that_can_t_be_written(
    make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path
) -> None:
    item = scene_item("city", make_scene(city), DAY)[0]
    lock = catalog.with_name(f".{catalog.name}.lock")
    lock.mkdir(parents=True)
    with pytest.raises(DiskError, match="can't write"):
        add_item(catalog, item, "scenes")


def test_a_catalog_can_be_moved_with_its_files(make_scene: SceneMaker, city: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    add_item(tmp_path / "here/catalog.json", scene_item("city", make_scene(city, "here/c.tif"), DAY)[0], "scenes")
    assert str(tmp_path) not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    found = validate(open_catalog(str(tmp_path / "there/catalog.json")))
    assert (found.assets, found.faults) == (1, [])


def damage_file(item: Path, content: dict[str, Any]) -> None:
    (item.parent / content["assets"]["image"]["href"]).resolve().write_bytes(b"other")


def remove_file(item: Path, content: dict[str, Any]) -> None:
    (item.parent / content["assets"]["image"]["href"]).resolve().unlink()


def test_a_folder_that_is_no_model_s_is_refused(landseg: Landseg, tmp_path: Path, catalog: Path) -> None:
    outcome = landseg("catalog", "add", tmp_path, "--catalog", catalog)
    assert outcome.code == 3
    assert "no model's folder: it has no model.json" in outcome.err
    assert "there is no" in landseg("catalog", "add", tmp_path / "gone.json", "--catalog", catalog).err
    assert not catalog.exists()


def break_core(item: Path, content: dict[str, Any]) -> None:
    del content["geometry"]


def break_extension(item: Path, content: dict[str, Any]) -> None:
    content["properties"]["proj:shape"] = ["many", 3]


def break_statistics(item: Path, content: dict[str, Any]) -> None:
    content["assets"]["image"]["raster:bands"][0]["data_type"] = "colour"


def remove_item(item: Path, content: dict[str, Any]) -> None:
    content.clear()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damage_file, "checksum differs"),
        (remove_file, "there is no"),
        (break_core, "geometry"),
        (break_extension, "proj:shape"),
        (break_statistics, "raster:bands"),
        (remove_item, "can't read"),
    ],
)
def test_faults_are_found(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path, change: Any, says: str
) -> None:
    path = add_item(catalog, scene_item("city", make_scene(city), DAY)[0], "scenes")
    content = json.loads(path.read_text())
    change(path, content)
    path.write_text(json.dumps(content))
    outcome = landseg("catalog", "validate", "--catalog", catalog)
    assert outcome.code == 3
    assert says in outcome.out
    assert outcome.out.endswith(" checked, 1 fault\n")


def test_what_can_t_be_checked_is_said(make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path) -> None:
    item = scene_item("city", make_scene(city), DAY)[0]
    item.stac_extensions.append("https://x.org/v1/schema.json")
    item.add_asset("far", pystac.Asset("https://x.org/a.tif"))
    del item.assets["image"].extra_fields["file:checksum"]
    add_item(catalog, item, "scenes")
    found = validate(open_catalog(str(catalog)))
    assert found.faults == []
    assert [line.rpartition(": ")[2].split()[-1] for line in found.unchecked] == [
        "https://x.org/v1/schema.json", "SHA-256", "elsewhere",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--date 2026-03-04"),
        (("--date", "soon"), "is no interval"),
        (("--date", "2026-01-01/.."), "open end"),
        (("--date", "2026-03-31/2026-03-01"), "is no interval"),
        (("--date", "2026-01-01", "--labels", "l.tif"), "go together"),
        (("--date", "2026-01-01", "--labels", "l.tif", "--label-values", "building"), "0=building"),
    ],
)
def test_scenes_that_are_not_described(
    landseg: Landseg,
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    catalog: Path,
    options: tuple[str, ...],
    says: str,
) -> None:
    outcome = landseg("catalog", "add", make_scene(city), "--catalog", catalog, *options)
    assert outcome.code == 2
    assert says in outcome.err
    assert not catalog.parent.exists()


def test_labels_of_a_scene(landseg: Landseg, catalog: Path) -> None:
    values = ("--labels", DEMO_LABELS, "--label-values", "0=building, 1=bare land")
    landseg("catalog", "add", DEMO_SCENE, "--catalog", catalog, "--date", "2013-11-21/2020-12-31", *values)
    (item,) = open_catalog(str(catalog)).get_items(recursive=True)
    (band,) = item.assets["labels"].extra_fields["bands"]
    assert band["classification:classes"] == [{"value": 0, "name": "building"}, {"value": 1, "name": "bare land"}]
    assert validate(open_catalog(str(catalog))).faults == []


def test_the_shipped_catalog_is_valid_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = validate(open_catalog(str(ROOT / "data_catalog/catalog.json")))
    assert (found.faults, found.unchecked) == ([], [])
    assert found.objects == 1 + 3 + 3


def test_the_catalog_s_model_is_the_shipped_one() -> None:
    for folder in SHIPPED.iterdir():
        card = json.loads((folder / "model.json").read_text())
        item = json.loads((ROOT / f"data_catalog/models/{folder.name}/{folder.name}.json").read_text())
        assert item["properties"] == card["properties"]
        assert item["assets"]["weights"]["file:checksum"] == card["assets"]["weights"]["file:checksum"]


def test_links_that_lead_back_and_multiply_are_followed_once(tmp_path: Path, landseg: Landseg) -> None:
    for n in range(12):
        links = [{"rel": "child", "href": f"./{n + 1}.json"}] * 9 + [{"rel": "child", "href": "./0.json"}]
        content = {"type": "Catalog", "stac_version": "1.1.0", "id": f"c{n}", "description": "d", "links": links}
        (tmp_path / f"{n}.json").write_text(json.dumps(content))
    content["links"] = [{"rel": "item", "href": "./item.json"}]
    (tmp_path / "12.json").write_text(json.dumps(content))
    scene = json.loads((ROOT / "data_catalog/scenes/dubai-tile2/dubai-tile2.json").read_text())
    (tmp_path / "item.json").write_text(json.dumps(scene | {"links": [], "collection": None}))
    root = open_catalog(str(tmp_path / "0.json"))
    assert [item.id for item in items_of(root)] == ["dubai-tile2"]
    assert [found.name for found in search(str(tmp_path / "0.json"))] == ["dubai-tile2"]
    assert validate(root).objects == 14


def test_a_catalog_that_is_nested_too_deeply_is_refused(catalog: Path) -> None:
    catalog.parent.mkdir()
    catalog.write_text("[" * 100_000)
    with pytest.raises(CatalogError, match="can't read the catalog"):
        open_catalog(str(catalog))


def test_a_plain_catalog_takes_no_items(make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path) -> None:
    item = scene_item("city", make_scene(city), DAY)[0]
    root = pystac.Catalog("root", "All.")
    root.add_child(pystac.Catalog("scenes", "No collection."))
    root.normalize_and_save(str(catalog.parent), pystac.CatalogType.SELF_CONTAINED)
    before = {path: path.read_bytes() for path in catalog.parent.rglob("*.json")}
    with pytest.raises(CatalogError, match=r"'scenes' of .* is a catalog and no collection\n.*--collection"):
        add_item(catalog, item, "scenes")
    assert {path: path.read_bytes() for path in catalog.parent.rglob("*.json")} == before


ILL: list[Callable[[dict[str, Any]], Any]] = [
    lambda item: item.update(id=3),
    lambda item: item.update(bbox="x"),
    lambda item: item.update(bbox=[0, 0, "east", 1]),
    lambda item: item.update(properties=3),
    lambda item: item.update(assets=[1]),
    lambda item: item["assets"]["image"].update(roles=3),
    lambda item: item["assets"]["image"].update(bands="red"),
    lambda item: item["properties"].update(gsd="fine"),
    lambda item: item["properties"].update({"eo:cloud_cover": []}),
    lambda item: item["properties"].update({"proj:shape": [1]}),
    lambda item: item["properties"].update(license=3),
    lambda item: item["properties"].update(title="\ud800"),
    lambda item: item["properties"].update(datetime=None, start_datetime="soon", end_datetime="later"),
]


@pytest.mark.parametrize("change", ILL)
def test_items_whose_values_are_of_another_type_are_refused(
    landseg: Landseg,
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    catalog: Path,
    change: Callable[[dict[str, Any]], Any],
) -> None:
    path = add_item(catalog, scene_item("city", make_scene(city), DAY)[0], "scenes")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    other = catalog.parent.parent / "other/catalog.json"
    for command in (("list",), ("show", "city"), ("validate",), ("add", path)):
        outcome = landseg("catalog", *command, "--catalog", other if command[0] == "add" else catalog)
        assert outcome.code == 3, (command, outcome)
    with pytest.raises(CatalogError):
        search(str(catalog))


def test_bands_need_no_name(landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path) -> None:
    path = add_item(catalog, scene_item("city", make_scene(city), DAY)[0], "scenes")
    content = json.loads(path.read_text())
    content["assets"]["image"]["bands"][1]["name"] = None
    del content["assets"]["image"]["bands"][2]["name"]
    path.write_text(json.dumps(content | {"stac_extensions": None}))
    assert "red, ?, ?" in landseg("catalog", "show", "city", "--catalog", catalog).out


def test_a_collection_whose_extent_is_none_takes_no_items(
    make_scene: SceneMaker, city: NDArray[np.uint8], catalog: Path
) -> None:
    item = scene_item("city", make_scene(city), DAY)[0]
    add_item(catalog, item, "scenes")
    collection = catalog.parent / "scenes/collection.json"
    content = json.loads(collection.read_text())
    content["extent"]["spatial"]["bbox"] = [["west", 0, 1, 1]]
    collection.write_text(json.dumps(content))
    with pytest.raises(CatalogError, match="can't read the extent of the collection 'scenes'"):
        add_item(catalog, item, "scenes")


def test_catalogs_may_be_nested_as_deeply_as_they_like(tmp_path: Path) -> None:
    for n in range(1200):
        links = [{"rel": "child", "href": f"./{n + 1}.json"}] if n < 1199 else []
        content = {"type": "Catalog", "stac_version": "1.1.0", "id": f"c{n}", "description": "d", "links": links}
        (tmp_path / f"{n}.json").write_text(json.dumps(content))
    assert validate(open_catalog(str(tmp_path / "0.json"))).objects == 1200
