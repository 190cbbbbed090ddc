import base64
import gzip
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize

from landseg.errors import InputError, SceneError
from landseg.grid import Grid
from landseg.legend import LandClass, Legend
from landseg.outputs.report import (
    UNITS_PER_PX,
    confidence_histogram,
    draw_classes,
    find_imagery,
    polygon_data,
    read_map,
    unsure_polygons,
    write_report,
)
from landseg.outputs.vector import write_layer
from landseg.polygons import Polygons
from tests.conftest import Landseg, SceneMaker

UTM = CRS.from_epsg(32640)
# A map is the user's: names of classes may hold anything.
LEGEND = Legend((LandClass(300, "</script><b>water", "#56b4e9"), LandClass(0, "building", "#d55e00")))


@pytest.fixture
def geopackage(tmp_path: Path) -> Path:
    """A square of water around a building."""
    building = shapely.box(500_004, 2_700_004, 500_008, 2_700_006)
    square = shapely.difference(shapely.box(500_000, 2_700_000, 500_010, 2_700_010), building)
    _, xy, (ring_offsets, polygon_offsets) = shapely.to_ragged_array(np.array([square, building]))
    polygons = Polygons(
        face_id=np.array([1, 2], np.int32),
        xy=xy,
        ring_offsets=ring_offsets,
        polygon_offsets=polygon_offsets,
        class_id=np.array([300, 0], np.int32),
        confidence=np.array([81, 42], np.float32),
        area_m2=np.array([92.0, 8.0]),
        perimeter_m=np.array([52.0, 12.0]),
    )
    path = tmp_path / "map.gpkg"
    write_layer(path, [polygons], LEGEND, UTM)
    return path


def edit(geopackage: Path, statement: str) -> None:
    with closing(sqlite3.connect(geopackage)) as database:
        # Triggers keep the index of places, by functions that are GDAL's.
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.executescript(statement)


def dropped(table: str) -> str:
    return f"DROP TABLE {table}; DELETE FROM gpkg_contents WHERE table_name = '{table}'"


def manifest_of(scene: str) -> dict[str, Any]:
    """Say what a manifest says, as far as a page tells it."""
    names = ["red", "green", "blue"]
    properties = {
        "created": "2026-01-01T00:00:00Z",
        "gsd": 1.0,
        "proj:code": "EPSG:32640",
        "proj:shape": [10, 10],
        "proj:transform": [1, 0, 500_000, 0, -1, 2_700_010, 0, 0, 1],
        "processing:software": {"landseg": "1"},
        "landseg:areas": [],
        "landseg:scene": {
            "href": scene,
            "bands": [1, 2, 3],
            "band_names": names,
            "value_ranges": [[0, 255]] * 3,
            "resampled": False,
        },
        "landseg:model": {"name": "small", "sha256": "0" * 64, "temperature": 1.0, "held_out": {}},
        "landseg:config": {"assume_crs": None},
    }
    links = [{"rel": "derived_from", "href": scene}]
    return {"properties": properties, "links": links, "assets": {"raster": {"file:checksum": "1220"}}}


def page_of(geopackage: Path) -> tuple[str, dict[str, Any]]:
    out = geopackage.with_suffix(".html")
    write_report(out, read_map(geopackage), [])
    page = out.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return page, json.loads(found[1])


def test_a_page_tells_what_the_geopackage_holds(geopackage: Path) -> None:
    page, report = page_of(geopackage)
    assert "<title>Land use: map</title>" in page
    assert [(c["class_name"], c["colour"], c["area_m2"]) for c in report["classes"]] == [
        ("</script><b>water", "#56b4e9", 92),
        ("building", "#d55e00", 8),
    ]
    assert report["unsure"]["share"] == pytest.approx(0.08)
    assert [(p["index"], p["place"], p["area_m2"]) for p in report["unsure"]["largest"]] == [(1, 1, 8)]
    assert report["provenance"] == [["Map", "map.gpkg"], ["Manifest", "none beside the map"]]
    assert report["imagery"] is None


def test_a_page_needs_nothing_else(geopackage: Path) -> None:
    page, report = page_of(geopackage)
    # The one address is Leaflet's, to be clicked on.
    assert set(re.findall(r"(?:src|href)=\"(https?:[^\"]+)", page)) <= {"https://leafletjs.com"}
    assert "default-src 'none'" in page
    assert report["overlay"].startswith("data:image/png;base64,")
    assert "Redistributions in binary form must reproduce the above copyright" in page


def test_the_same_map_gives_the_same_page(geopackage: Path) -> None:
    assert page_of(geopackage)[0] == page_of(geopackage)[0]


@pytest.mark.parametrize("largest", [1, 2])
def test_the_page_does_not_depend_on_how_many_polygons_are_read_together(
    geopackage: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr("landseg.outputs.report.LARGEST", largest)
    whole = page_of(geopackage)[0]
    monkeypatch.setattr("landseg.outputs.report.PART", 1)
    assert [len(shapes) for _, shapes in read_map(geopackage).outlines()] == [1, 1]
    assert page_of(geopackage)[0] == whole


def test_the_script_can_unpack_the_polygons(geopackage: Path) -> None:
    page, report = page_of(geopackage)
    found = re.search(r'<script type="text/plain" id="polygons">(.*?)</script>', page)
    assert found is not None
    content = gzip.decompress(base64.b64decode(found[1]))
    assert report["counts"] == {"vertices": 15, "rings": 3, "polygons": 2}
    assert len(content) == 15 * 8 + 3 * 4 + 2 * (4 + 3 * 4 + 2)
    assert np.frombuffer(content[-4:], "<u2").tolist() == [0, 1]


@pytest.mark.parametrize("transform", [Affine(0.5, 0, 500_000, 0, -0.5, 2_700_010), Affine.rotation(30)])
def test_positions_are_within_half_a_unit(transform: Affine) -> None:
    rng = np.random.default_rng(1)
    grid = Grid((100, 100), transform, UTM)
    centres = np.array([transform @ (col, row) for col, row in rng.uniform(10, 90, (20, 2))])
    geometry = shapely.buffer(shapely.points(centres), 3)
    figures = pd.DataFrame({name: np.ones(20) for name in ("area_m2", "confidence", "perimeter_m")})

    counts, packed = polygon_data(np.split(geometry, [0, 7]), figures, np.zeros(20, np.intp), grid)

    deltas = np.frombuffer(gzip.decompress(packed), "<i4", 2 * counts["vertices"]).reshape(2, -1)
    cols, rows = deltas.cumsum(axis=1) / UNITS_PER_PX
    xs, ys = np.array([transform @ position for position in zip(cols, rows, strict=True)]).T
    scale = abs(transform.determinant) ** 0.5
    error = np.abs(np.column_stack([xs, ys]) - shapely.get_coordinates(geometry)).max()
    assert error <= 0.5**0.5 / UNITS_PER_PX * scale + 1e-9


def test_the_histogram_is_of_areas() -> None:
    polygons = pd.DataFrame({"confidence": [12.0, 14.0, 100.0], "area_m2": [10.0, 20.0, 70.0]})
    histogram = confidence_histogram(polygons)
    assert len(histogram) == 20
    assert histogram[2] == pytest.approx(0.3)
    assert histogram[-1] == pytest.approx(0.7)


def test_a_map_without_confidence_has_no_histogram() -> None:
    polygons = pd.DataFrame({"confidence": [np.nan, np.nan], "area_m2": [10.0, 20.0]})
    assert confidence_histogram(polygons) == []


def test_the_overlay_has_the_polygons_colours(geopackage: Path) -> None:
    content = read_map(geopackage)
    grid = Grid((10, 12), Affine(1, 0, 500_000, 0, -1, 2_700_010), UTM)
    overlay = draw_classes(content, grid)
    building = overlay[4:6, 4:8]
    assert (building == (213, 94, 0, 255)).all()
    assert (overlay == (86, 180, 233, 255)).all(axis=-1).sum() == 92
    assert (overlay[:, 10:] == 0).all()


@pytest.mark.parametrize("band_rows", [1, 7, 64])
def test_the_overlay_does_not_depend_on_how_many_rows_are_drawn_together(
    geopackage: Path, monkeypatch: pytest.MonkeyPatch, band_rows: int
) -> None:
    content = read_map(geopackage)
    grid = Grid((50, 60), Affine.translation(500_003, 2_700_013) @ Affine.rotation(17) @ Affine.scale(0.7, -0.7), UTM)
    ((_, geometry),) = content.outlines()
    shapes = zip(geometry, content.places + 1, strict=True)
    whole = rasterize(shapes, grid.shape, transform=grid.transform)
    monkeypatch.setattr("landseg.outputs.report.BAND_ROWS", band_rows)
    overlay = draw_classes(content, grid)
    colours = [bytes.fromhex(colour[1:]) for colour in content.classes["colour"]]
    for place, colour in enumerate(colours, start=1):
        assert ((overlay[..., :3] == tuple(colour)).all(axis=-1) == (whole == place)).all()
    assert ((overlay[..., 3] == 0) == (whole == 0)).all()
    assert 0 < (whole == 0).sum() < whole.size


def test_the_largest_of_the_unsure_are_listed_by_their_place_in_the_page() -> None:
    polygons = pd.DataFrame(
        {"place": 1, "confidence": [40.0, 90.0, 49.0, 50.0, 30.0], "area_m2": [5.0, 50.0, 9.0, 30.0, 1.0]}
    )
    unsure = unsure_polygons(polygons, np.array([0, 1, 2, 3]))
    assert (unsure["polygons"], unsure["area_m2"]) == (3, 15)
    assert unsure["share"] == pytest.approx(15 / 95)
    assert [polygon["index"] for polygon in unsure["largest"]] == [2, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE landuse SET class_id = NULL WHERE fid = 2", "has 1 polygon"),
        ("UPDATE landuse SET class_id = 77", "has 2 polygons"),
        ("UPDATE landuse SET area_m2 = NULL WHERE fid = 1", "has 1 polygon"),
    ],
)
def test_polygons_that_a_page_can_t_show_are_told(geopackage: Path, change: str, says: str) -> None:
    edit(geopackage, change)
    with pytest.raises(InputError, match=says):
        read_map(geopackage)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER TABLE landuse DROP COLUMN class_id", "the table landuse has no class_id"),
        ("ALTER TABLE landuse RENAME COLUMN area_m2 TO area", "the table landuse has no area_m2"),
        ("ALTER TABLE landuse DROP COLUMN confidence", "the table landuse has no confidence"),
        ("ALTER TABLE class_areas DROP COLUMN colour", "the table class_areas has no colour"),
        ("UPDATE class_areas SET colour = 'red' WHERE class_id = 0", "class_areas holds no legend: colour 'red'"),
        ("UPDATE class_areas SET class_name = NULL WHERE class_id = 0", "class_areas holds no legend"),
        ("UPDATE class_areas SET class_id = 0", "class_areas holds no legend: a class id stands twice"),
        (dropped("class_areas"), "no GeoPackage that landseg wrote"),
        ("UPDATE landuse SET area_m2 = 9e999 WHERE fid = 1", "has 1 polygon"),
        ("UPDATE landuse SET confidence = 150", "has 2 polygons"),
        ("UPDATE landuse SET geom = NULL WHERE fid = 1", "holds 1 polygon without a shape"),
        ("DELETE FROM landuse", "holds no polygons"),
        ("UPDATE gpkg_geometry_columns SET srs_id = -1", "has no coordinate reference system"),
    ],
)
def test_an_edit_that_a_page_can_t_show_is_told(geopackage: Path, change: str, says: str) -> None:
    edit(geopackage, change)
    with pytest.raises(InputError, match=says):
        page_of(geopackage)


@pytest.mark.parametrize("change", [dropped("layer_styles"), "UPDATE landuse SET area_m2 = 0"])
def test_an_edit_that_a_page_can_show_is_shown(geopackage: Path, change: str) -> None:
    edit(geopackage, change)
    assert page_of(geopackage)[1]["polygon_count"] == 2


def test_polygons_of_several_parts_are_told(geopackage: Path) -> None:
    frame = geopandas.read_file(geopackage, layer="landuse").dissolve()
    pyogrio.write_dataframe(frame, geopackage, layer="landuse", promote_to_multi=True)
    with pytest.raises(InputError, match="more than single polygons"):
        page_of(geopackage)


def test_an_edited_map_is_told_and_shown(geopackage: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(geopackage, "UPDATE landuse SET class_id = 300, confidence = NULL WHERE fid = 2")
    _, report = page_of(geopackage)
    assert "were changed: the page sums up their area_m2 as it stands" in caplog.text
    assert [(c["area_m2"], c["share"], c["polygons"]) for c in report["classes"]] == [(100, 1, 2), (0, 0, 0)]
    # The polygon whose confidence is known still counts.
    assert sum(report["histogram"]) == pytest.approx(1)


def test_classes_that_were_swapped_are_told_and_shown(geopackage: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_map(geopackage)
    assert not caplog.text
    edit(geopackage, "UPDATE landuse SET class_id = 300 - class_id")
    _, report = page_of(geopackage)
    assert "were changed" in caplog.text
    assert [(c["area_m2"], c["share"], c["polygons"]) for c in report["classes"]] == [(8, 0.08, 1), (92, 0.92, 1)]


def test_what_is_no_map_is_refused(tmp_path: Path, landseg: Landseg) -> None:
    path = tmp_path / "notes.gpkg"
    path.write_text("notes")
    with pytest.raises(InputError, match=r"notes\.gpkg"):
        read_map(path)
    refused = landseg("report", path, "--out", tmp_path / "page.html")
    assert refused.code == 3
    assert not (tmp_path / "page.html").exists()


def test_a_json_file_that_is_no_manifest_is_passed_over_but_a_torn_one_is_not(geopackage: Path) -> None:
    beside = geopackage.with_suffix(".json")
    beside.write_text('{"type": "FeatureCollection"}')
    assert read_map(geopackage).manifest == {}
    beside.write_text('{"properties": ')
    with pytest.raises(InputError, match=r"map\.json"):
        read_map(geopackage)


def test_a_page_is_not_replaced_unasked(geopackage: Path, landseg: Landseg) -> None:
    page = geopackage.with_name("page.html")
    assert landseg("report", geopackage, "--out", page).code == 0
    assert landseg("report", geopackage, "--out", page).code == 2
    assert landseg("report", geopackage, "--out", page, "--overwrite").code == 0


def test_imagery_that_has_gone_is_left_out_but_one_that_is_named_must_be_there(
    geopackage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    geopackage.with_suffix(".json").write_text(json.dumps(manifest_of("gone.tif")))
    content = read_map(geopackage)
    assert find_imagery(content, None) == []
    assert "--scene" in caplog.text
    # It is looked for from the manifest's folder.
    assert f"{geopackage.parent}/gone.tif" in caplog.text
    with pytest.raises(SceneError, match=r"elsewhere\.tif"):
        find_imagery(content, "elsewhere.tif")


def test_a_map_without_a_manifest_can_be_shown_over_imagery_that_is_named(
    geopackage: Path, make_scene: SceneMaker, landseg: Landseg
) -> None:
    scene = make_scene(
        np.full((3, 10, 10), 90, np.uint8), "city.tif", transform=Affine(1, 0, 500_000, 0, -1, 2_700_010)
    )
    content = read_map(geopackage)
    (imagery,) = find_imagery(content, str(scene))
    assert (imagery.read(content.grid, 20)[2:-2, 2:-2] == 90).all()

    grey = make_scene(np.full((1, 10, 10), 90, np.uint8), "grey.tif")
    refused = landseg("report", geopackage, "--out", geopackage.with_name("page.html"), "--scene", grey)
    assert refused.code == 3
    assert "red, green and blue" in refused.err


@pytest.mark.parametrize("text", ["[]", "5", '{"properties": 5}', "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(geopackage: Path, text: str) -> None:
    geopackage.with_suffix(".json").write_text(text)
    with pytest.raises(InputError, match=r"\.json is no "):
        read_map(geopackage)


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    """Put a value in the place of a manifest's."""

    def change(manifest: dict[str, Any]) -> None:
        *path, last = keys
        for key in path:
            manifest = manifest[key]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put(5, "links"), "links: input should be a valid list"),
        (put([{"rel": "derived_from", "href": 3}], "links"), r"links\.0\.href"),
        (put("[1]", "properties", "proj:transform"), "proj:transform: input should be a valid list"),
        (put(["1"] * 9, "properties", "proj:transform"), r"proj:transform\.0: input"),
        (put([1] * 9, "properties", "proj:transform"), "its pixels have no area"),
        (put([0, 10], "properties", "proj:shape"), r"proj:shape\.0: input should be greater than 0"),
        (put([10, 10**400], "properties", "proj:shape"), r"proj:shape\.1: input should be less than"),
        (put("\ud800", "properties", "created"), "surrogates"),
        (put(None, "properties", "gsd"), "gsd: input should be a valid number"),
        (put("", "properties", "landseg:model"), "landseg:model: "),
        (put({"miou": "high"}, "properties", "landseg:model", "held_out"), "held_out"),
        (put(["x"] * 3, "properties", "landseg:scene", "bands"), r"bands\.0: input"),
        (put([1], "properties", "landseg:scene", "bands"), "differ in number"),
        (put(None, "properties", "landseg:scene"), "of a scene or of a region"),
        (lambda manifest: manifest["properties"].pop("landseg:scene"), "of a scene or of a region"),
        (put(None, "properties", "processing:software"), "processing:software"),
    ],
)
def test_a_manifest_whose_values_are_of_another_type_is_refused(
    geopackage: Path, landseg: Landseg, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    manifest = manifest_of("gone.tif")
    geopackage.with_suffix(".json").write_text(json.dumps(manifest))
    assert read_map(geopackage).manifest["gsd"] == 1
    change(manifest)
    geopackage.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"map\.json is not as landseg wrote it: .*{says}"):
        read_map(geopackage)
    assert landseg("report", geopackage, "--out", geopackage.with_suffix(".html")).code == 3


def test_imagery_that_no_longer_fits_the_map_is_left_out(
    geopackage: Path, make_scene: SceneMaker, caplog: pytest.LogCaptureFixture
) -> None:
    here = Affine(1, 0, 500_000, 0, -1, 2_700_010)
    make_scene(np.full((3, 10, 10), 90, np.uint8), "scene.tif", transform=here)
    geopackage.with_suffix(".json").write_text(json.dumps(manifest_of("scene.tif")))
    content = read_map(geopackage)
    assert len(find_imagery(content, None)) == 1
    make_scene(np.full((1, 10, 10), 90, np.uint8), "scene.tif", transform=here)
    assert find_imagery(content, None) == []
    assert "fewer bands than when it was mapped" in caplog.text
    elsewhere = make_scene(np.full((3, 10, 10), 90, np.uint8), "scene.tif")
    assert find_imagery(content, None) == []
    with pytest.raises(SceneError, match="lies elsewhere than the map"):
        find_imagery(content, str(elsewhere))
