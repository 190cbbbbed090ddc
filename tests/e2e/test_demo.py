"""The installed command on the bundled city with the shipped model, its outputs reopened by other software."""

import json

import geopandas
import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import shapely
from matplotlib.image import imread
from rio_cogeo import cog_validate

from landseg.model.bundle import DEFAULT_MODEL, read_bundle
from landseg.outputs.paths import OutputPaths
from landseg.train.evaluate import evaluate_map
from landseg.train.material import label_codes
from tests.conftest import DEMO_LABELS, DEMO_SCENE, UTM40

LABEL_VALUES = {0: "building", 1: "land", 2: "road", 3: "vegetation", 4: "water"}


def test_the_class_table_and_the_paths_are_printed(demo: tuple[OutputPaths, str]) -> None:
    outputs, printed = demo
    lines = printed.splitlines()
    assert lines[0].split() == ["class", "area", "(ha)", "share", "polygons", "confidence"]
    assert [line.split()[0] for line in lines[1:6]] == list(LABEL_VALUES.values())
    assert lines[6:] == [path.name for path in outputs.all]
    assert all(path.exists() for path in outputs.all)


def test_pyogrio_reads_the_polygons(demo: tuple[OutputPaths, str]) -> None:
    path = demo[0].polygons
    assert {name for name, _ in pyogrio.list_layers(path)} == {"landuse", "class_areas", "layer_styles"}
    layer = pyogrio.read_dataframe(path, layer="landuse")
    assert layer.crs == "EPSG:32640"
    assert set(layer.columns) == {"class_id", "class_name", "area_m2", "confidence", "perimeter_m", "geometry"}
    assert shapely.is_valid(layer.geometry).all()
    assert shapely.coverage_is_valid(layer.geometry.to_numpy())
    assert layer.confidence.between(20, 100).all()


def test_the_table_of_areas_adds_up(demo: tuple[OutputPaths, str]) -> None:
    path = demo[0].polygons
    layer = geopandas.read_file(path, layer="landuse")
    areas = pyogrio.read_dataframe(path, layer="class_areas").set_index("class_name")
    assert areas.share.sum() == pytest.approx(1)
    for name, group in layer.groupby("class_name"):
        assert areas.area_m2[name] == pytest.approx(group.area_m2.sum())
        assert areas.polygons[name] == len(group)
    # Every pixel is valid and about a square metre; UTM's scale here is within 0.1 % of 1.
    assert areas.area_m2.sum() == pytest.approx(1632 * 1528, rel=2e-3)


def test_rasterio_reads_the_raster(demo: tuple[OutputPaths, str]) -> None:
    with rasterio.open(demo[0].raster) as file, rasterio.open(DEMO_SCENE) as scene:
        assert (file.shape, file.transform, file.crs) == (scene.shape, scene.transform, UTM40)
        assert set(np.unique(file.read(1))) == {1, 2, 3, 4, 5}
        assert file.read(2).max() <= 100
        assert file.overviews(1) == [2, 4]
        assert file.colormap(1)[5] == (0x56, 0xB4, 0xE9, 255)
    valid, errors, warnings = cog_validate(demo[0].raster, strict=True)
    assert valid, errors + warnings


def test_polygons_and_raster_are_the_same_map(demo: tuple[OutputPaths, str]) -> None:
    layer = geopandas.read_file(demo[0].polygons, layer="landuse")
    with rasterio.open(demo[0].raster) as file:
        counts = np.bincount(file.read(1).ravel(), minlength=6)
    for class_id, group in layer.groupby("class_id"):
        assert group.area.sum() == pytest.approx(counts[class_id])


def test_the_manifest_is_valid_stac(demo: tuple[OutputPaths, str]) -> None:
    item = pystac.Item.from_file(str(demo[0].manifest))
    assert pystac.Item.from_dict(json.loads(demo[0].manifest.read_text())).id == "landuse"
    assert {asset.href for asset in item.assets.values()} == {
        f"./{path.name}" for path in demo[0].all if path != demo[0].manifest
    }


def test_the_picture_shows_the_legend_s_colours(demo: tuple[OutputPaths, str]) -> None:
    assert demo[0].picture is not None
    picture = (imread(demo[0].picture)[..., :3] * 255).round().astype(np.uint8)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(16 / 9, rel=0.01)
    for c in read_bundle(DEFAULT_MODEL).card.legend:
        assert (picture == c.rgb).all(axis=-1).sum() > 500, c.name


def test_the_card_s_figures_are_those_of_the_map(demo: tuple[OutputPaths, str]) -> None:
    card = read_bundle(DEFAULT_MODEL).card
    scores = evaluate_map(demo[0].raster, DEMO_LABELS, label_codes(LABEL_VALUES, card.legend), card.legend)
    assert card.held_out["data"] == DEMO_SCENE.name
    # Another processor rounds otherwise; a pixel here and there changes its class.
    assert scores.miou == pytest.approx(card.held_out["miou"], abs=2e-3)
    for name, value in scores.to_dict(card.legend)["iou"].items():
        assert value == pytest.approx(card.held_out["iou"][name], abs=5e-3)


def test_the_model_is_worth_its_name(demo: tuple[OutputPaths, str]) -> None:
    """It must beat a map that calls everything land, the most frequent class."""
    card = read_bundle(DEFAULT_MODEL).card
    assert card.held_out["overall_accuracy"] > 0.7
    assert card.held_out["miou"] > 0.4
