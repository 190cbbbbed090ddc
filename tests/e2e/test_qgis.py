"""The outputs in the real QGIS."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from landseg.legend import Legend
from landseg.model.bundle import DEFAULT_MODEL, read_bundle
from landseg.outputs.manifest import is_as_listed, listed_files
from landseg.outputs.paths import OutputPaths
from landseg.outputs.style import SLD
from tests.conftest import Landseg
from tests.e2e.real_qgis import PYTHON, in_qgis, look, needs_qgis

pytestmark = needs_qgis


@pytest.fixture(scope="module")
def legend() -> Legend:
    return read_bundle(DEFAULT_MODEL).card.legend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qgis")


@pytest.fixture(scope="module")
def seen(demo: tuple[OutputPaths, str], folder: Path) -> dict[str, Any]:
    outputs = demo[0]
    table = f"{outputs.polygons}|layername=class_areas"
    return look(folder, outputs.raster, outputs.polygons, table, outputs.project, check=outputs.polygons)


def classes_of(legend: Legend) -> list[list[Any]]:
    return [[c.class_id, c.name, c.colour] for c in legend]


def colours_in(path: Path) -> dict[str, int]:
    picture: NDArray[np.uint8] = (imread(path)[..., :3] * 255).round().astype(np.uint8)
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {"#{:02x}{:02x}{:02x}".format(*rgb): int(n) for rgb, n in zip(colours, counts, strict=True)}


def test_polygons_open_coloured_with_their_names(
    seen: dict[str, Any], legend: Legend, demo: tuple[OutputPaths, str]
) -> None:
    polygons = seen["landuse.gpkg"]
    assert (polygons["renderer"], polygons["attribute"]) == ("categorizedSymbol", "class_id")
    assert polygons["classes"] == classes_of(legend)
    assert polygons["crs"] == "EPSG:32640"
    assert polygons["features"] == len(geopandas.read_file(demo[0].polygons, layer="landuse"))


def test_qgis_finds_no_fault_in_any_polygon(seen: dict[str, Any]) -> None:
    assert seen["landuse.gpkg"]["faults"] == []


def test_fields_have_readable_names_and_are_explained(seen: dict[str, Any]) -> None:
    polygons = seen["landuse.gpkg"]
    assert polygons["aliases"] == {
        "fid": "",
        "class_id": "Class id",
        "class_name": "Class",
        "area_m2": "Area (m²)",
        "confidence": "Mean confidence (%)",
        "perimeter_m": "Perimeter (m)",
    }
    assert "area_m2: Square metres on the ellipsoid" in polygons["about"]


def test_a_polygon_s_class_is_corrected_once_and_its_name_follows(
    demo: tuple[OutputPaths, str], legend: Legend, tmp_path: Path
) -> None:
    path = Path(shutil.copy(demo[0].polygons, tmp_path))
    before = geopandas.read_file(path, layer="landuse")
    names = {c.class_id: c.name for c in legend}
    assert (before.class_id[:2] != 5).all()
    assert before.class_name[2] != "water"

    done = in_qgis(tmp_path, PYTHON, Path(__file__).with_name("qgis_edit.py"), f"{path}|layername=landuse")

    assert done.returncode == 0, done.stderr
    form = json.loads(done.stdout)
    assert form["widget"] == "ValueMap"
    assert form["choices"] == [[c.name, str(c.class_id)] for c in legend]
    assert form["read_only"] == ["class_name", "area_m2", "confidence", "perimeter_m"]
    after = geopandas.read_file(path, layer="landuse")
    # By the form, as by table and field calculator; a name alone is brought back to what the id says.
    assert after.class_id[:3].tolist() == [5, 5, before.class_id[2]]
    assert after.class_name[:3].tolist() == ["water", "water", names[before.class_id[2]]]
    assert after.iloc[3:].equals(before.iloc[3:])


def test_the_class_table_opens_too(seen: dict[str, Any], legend: Legend) -> None:
    table = seen["landuse.gpkg|layername=class_areas"]
    assert table["features"] == len(legend)
    assert table["aliases"]["share"] == "Share (0-1)"


def test_the_raster_opens_with_its_palette(seen: dict[str, Any], legend: Legend) -> None:
    raster = seen["landuse.tif"]
    assert raster["renderer"] == "paletted"
    assert raster["classes"] == classes_of(legend)
    assert raster["crs"] == "EPSG:32640"


def test_exported_styles_can_be_applied(
    demo: tuple[OutputPaths, str], legend: Legend, landseg: Landseg, tmp_path: Path
) -> None:
    polygons, raster = demo[0].polygons, demo[0].raster
    for name in ("polygons.sld", "polygons.qml", "raster.qml"):
        assert landseg("style", "export", "--out", tmp_path / name).code == 0
    plain = shutil.copy(raster, tmp_path / "plain.tif")

    seen = look(
        tmp_path, polygons, tmp_path / "polygons.sld", tmp_path / "polygons.qml", plain, tmp_path / "raster.qml"
    )

    assert seen["plain.tif"].get("classes") != classes_of(legend)
    assert seen["polygons.sld"]["rules"] == [[f"class_id = {c.class_id}", c.name, c.colour] for c in legend]
    assert seen["polygons.qml"]["classes"] == seen["raster.qml"]["classes"] == classes_of(legend)


def test_the_raster_s_sld_is_what_qgis_would_write(
    seen: dict[str, Any], folder: Path, landseg: Landseg, tmp_path: Path
) -> None:
    """QGIS writes such files, GeoServer reads them."""
    assert landseg("style", "export", "--for", "raster", "--out", tmp_path / "landuse.sld").code == 0

    ours, theirs = (
        next(ET.parse(path).iter(f"{{{SLD}}}RasterSymbolizer"))
        for path in (tmp_path / "landuse.sld", folder / "landuse.tif.sld")
    )

    def tell(symbolizer: ET.Element) -> list[tuple[str, str, dict[str, str]]]:
        return [(part.tag, (part.text or "").strip(), dict(part.attrib)) for part in symbolizer.iter()]

    assert tell(ours) == tell(theirs)


@pytest.mark.parametrize("name", ["landuse.gpkg", "landuse.tif"])
def test_what_qgis_draws_has_the_legend_s_colours(
    seen: dict[str, Any], legend: Legend, folder: Path, demo: tuple[OutputPaths, str], name: str
) -> None:
    drawn = colours_in(folder / f"{name}.png")
    areas = geopandas.read_file(demo[0].polygons, layer="class_areas").set_index("class_id")
    in_colours = sum(drawn.get(c.colour, 0) for c in legend)
    # The polygons' outlines are a shade darker, and the scene is not square.
    assert in_colours > 0.6 * 800 * 800
    for c in legend:
        assert drawn[c.colour] / in_colours == pytest.approx(areas.share[c.class_id], abs=0.06), c.name


def test_the_project_has_the_map_over_its_imagery(seen: dict[str, Any], legend: Legend) -> None:
    project = seen["landuse.qgz"]
    assert (project["title"], project["crs"]) == ("Land use: dubai_tile2", "EPSG:32640")
    assert project["drawn_from_the_top"] == ["Land use", "dubai_tile2"]
    # A printed legend has the layer's title, which is the same.
    assert project["untitled"] == ["Land use"]
    (polygons, labels, table), (imagery,) = project["groups"]["Land use"], project["groups"]["Imagery"]
    assert polygons[:2] == ["Land use", True]
    assert polygons[2]["opacity"] == pytest.approx(0.6)
    assert polygons[2]["classes"] == classes_of(legend)
    assert polygons[2]["aliases"]["confidence"] == "Mean confidence (%)"
    assert labels[:2] == ["Labels", False]
    assert labels[2]["classes"] == classes_of(legend)
    assert table[0] == "Class areas"
    assert table[2]["features"] == len(legend)
    assert imagery[:2] == ["dubai_tile2", True]
    assert imagery[2]["renderer"] == "multibandcolor"


def test_the_project_measures_on_the_ellipsoid_as_the_map_does(
    seen: dict[str, Any], demo: tuple[OutputPaths, str]
) -> None:
    # In the plane of the map it would be less by 0.017 %.
    polygons = geopandas.read_file(demo[0].polygons, layer="landuse")
    assert polygons.area.sum() != pytest.approx(polygons.area_m2.sum(), rel=2e-5)
    assert seen["landuse.qgz"]["measured"] == [pytest.approx(polygons.area_m2.sum(), rel=1e-5)]


def test_the_project_shows_imagery_through_the_map(seen: dict[str, Any], folder: Path) -> None:
    drawn = (imread(folder / "landuse.qgz.png")[..., :3] * 255).round().astype(int)
    rows, cols = np.nonzero((drawn != 255).any(axis=-1))
    # The map with a margin of 2 % fills the view.
    assert rows.max() - rows.min() > 740
    assert cols.max() - cols.min() > 640
    # Flat colours would be a few; over imagery they are thousands.
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5000


def test_the_project_s_folder_can_be_moved(demo: tuple[OutputPaths, str], tmp_path: Path) -> None:
    outputs = demo[0]
    for path in outputs.all:
        shutil.copy(path, tmp_path / path.name)

    moved = look(tmp_path, tmp_path / "landuse.qgz")["landuse.qgz"]

    assert [name for name, _, layer in moved["groups"]["Land use"] if layer["valid"]] == [
        "Land use",
        "Labels",
        "Class areas",
    ]


@pytest.mark.parametrize("edit", [False, True])
def test_a_map_counts_as_changed_when_it_was_edited_and_not_when_it_was_opened_for_editing(
    demo: tuple[OutputPaths, str], tmp_path: Path, edit: bool
) -> None:
    outputs = demo[0]
    copy = Path(shutil.copy(outputs.polygons, tmp_path))
    session = """
import sys
from qgis.core import QgsApplication, QgsVectorLayer
app = QgsApplication([], False)
app.initQgis()
layer = QgsVectorLayer(sys.argv[1] + "|layername=landuse", "map", "ogr")
assert layer.startEditing()
if sys.argv[2] == "True":
    feature = next(layer.getFeatures())
    layer.changeAttributeValue(feature.id(), layer.fields().indexOf("class_id"), 2)
assert layer.commitChanges()
del layer
app.exitQgis()
"""
    done = in_qgis(tmp_path, PYTHON, "-c", session, copy, edit)
    assert done.returncode == 0, done.stderr
    asset = listed_files(outputs.manifest.read_text())[copy.name]
    assert copy.read_bytes() != outputs.polygons.read_bytes()
    with copy.open("rb") as file:
        assert is_as_listed(file, asset) is not edit
