from dataclasses import fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

from landseg.grid import Grid
from landseg.legend import LandClass, Legend
from landseg.outputs import ClassArea
from landseg.outputs.raster import LabelRaster
from landseg.outputs.style import COLUMNS, OGC, SLD, TABLE_COLUMNS, polygon_sld, qml, raster_sld
from landseg.outputs.vector import FIELDS as VECTOR_FIELDS

LEGEND = Legend(
    (
        LandClass(4, 'trees <&> "shrubs"', "#009e73"),
        LandClass(1, "building", "#d55e00"),
        LandClass(2, "Wälder", "#ffffff"),
    )
)


def test_qml_has_a_category_and_a_fill_for_each_class_in_legend_order() -> None:
    root = ET.fromstring(qml(LEGEND))
    renderer = root.find("renderer-v2")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class_id")
    categories = renderer.findall("categories/category")
    assert [(c.get("value"), c.get("label")) for c in categories] == [
        ("4", 'trees <&> "shrubs"'),
        ("1", "building"),
        ("2", "Wälder"),
    ]
    # Without it QGIS compares text with whole numbers.
    assert {c.get("type") for c in categories} == {"long"}
    fills = {
        symbol.get("name"): {o.get("name"): o.get("value") for o in symbol.findall("layer/Option/Option")}
        for symbol in renderer.findall("symbols/symbol")
    }
    assert [fills[c.get("symbol")]["color"] for c in categories] == [
        "0,158,115,255",
        "213,94,0,255",
        "255,255,255,255",
    ]
    assert fills["1"]["outline_color"] == "187,83,0,255"


def test_qml_names_the_fields() -> None:
    aliases = {a.get("field"): a.get("name") for a in ET.fromstring(qml(LEGEND)).findall("aliases/alias")}
    assert aliases == {
        "class_id": "Class id",
        "class_name": "Class",
        "area_m2": "Area (m²)",
        "confidence": "Mean confidence (%)",
        "perimeter_m": "Perimeter (m)",
    }


def test_qml_lets_people_choose_classes_by_name_in_legend_order() -> None:
    root = ET.fromstring(qml(LEGEND))
    assert "Forms" in root.get("styleCategories", "").split("|")
    widget = root.find("fieldConfiguration/field[@name='class_id']/editWidget[@type='ValueMap']")
    assert widget is not None
    choices = [(o.get("value"), o.get("name")) for o in widget.findall("config/Option/Option/Option/Option")]
    assert choices == [("4", 'trees <&> "shrubs"'), ("1", "building"), ("2", "Wälder")]
    (default,) = root.findall("defaults/default")
    assert (default.get("field"), default.get("applyOnUpdate")) == ("class_name", "1")
    closed = {f.get("name") for f in root.findall("editable/field[@editable='0']")}
    assert closed == set(COLUMNS) - {"class_id"}


def test_qml_has_the_raster_s_palette_too() -> None:
    renderer = ET.fromstring(qml(LEGEND)).find("pipe/rasterrenderer")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = [(e.get("value"), e.get("color"), e.get("label")) for e in renderer.findall("colorPalette/paletteEntry")]
    assert entries == [(str(c.class_id), c.colour, c.name) for c in LEGEND]


def test_every_field_of_the_outputs_is_explained() -> None:
    assert list(COLUMNS) == [field.name for field in VECTOR_FIELDS]
    assert set(TABLE_COLUMNS) == {field.name for field in fields(ClassArea)} | {"colour"}


def test_sld_has_a_rule_for_each_class() -> None:
    names = {"sld": SLD, "ogc": OGC}
    root = ET.fromstring(polygon_sld(LEGEND))
    assert (root.tag, root.get("version")) == (f"{{{SLD}}}StyledLayerDescriptor", "1.0.0")
    rules = root.findall("sld:NamedLayer/sld:UserStyle/sld:FeatureTypeStyle/sld:Rule", names)
    assert [
        (
            rule.findtext("sld:Title", namespaces=names),
            rule.findtext("ogc:Filter/ogc:PropertyIsEqualTo/ogc:Literal", namespaces=names),
            rule.findtext("sld:PolygonSymbolizer/sld:Fill/sld:CssParameter[@name='fill']", namespaces=names),
        )
        for rule in rules
    ] == [('trees <&> "shrubs"', "4", "#009e73"), ("building", "1", "#d55e00"), ("Wälder", "2", "#ffffff")]


def test_the_raster_s_sld_has_its_palette() -> None:
    (palette,) = ET.fromstring(raster_sld(LEGEND)).iter(f"{{{SLD}}}ColorMap")
    assert palette.get("type") == "values"
    entries = [(entry.get("quantity"), entry.get("color"), entry.get("label")) for entry in palette]
    assert entries == [("4", "#009e73", 'trees <&> "shrubs"'), ("1", "#d55e00", "building"), ("2", "#ffffff", "Wälder")]


def described(raster: Path) -> tuple[Any, ...]:
    """Give what GDAL tells of a map's bands: descriptions, kinds, units, colours, and the names of classes."""
    # rasterio shows no category names; GDAL copies them into a VRT.
    rasterio.shutil.copy(raster, raster.with_suffix(".vrt"), driver="VRT")
    categories = ET.parse(raster.with_suffix(".vrt")).findall("VRTRasterBand[@band='1']/CategoryNames/Category")
    with rasterio.open(raster) as file:
        return file.descriptions, file.colorinterp, file.units, file.colormap(1), [c.text or "" for c in categories]


def test_gdal_sees_names_a_unit_and_the_classes_colours_alone(tmp_path: Path) -> None:
    """The rest is in the TIFF itself, and its sidecar contradicts it in nothing."""
    path = tmp_path / "landuse.tif"
    rows = np.ones((4, 4), np.uint8)
    grid = Grid((4, 4), rasterio.Affine(1, 0, 5e5, 0, -1, 2.7e6), rasterio.CRS.from_epsg(32640))
    with LabelRaster(tmp_path / "draft.tif", grid, LEGEND) as draft:
        draft.write(rows, rows)
    draft.publish(path)
    descriptions, kinds, units, colours, names = described(path)
    assert names == ["nodata", "building", "Wälder", "", 'trees <&> "shrubs"']
    assert units == (None, "%")
    rgb = [(0, 0, 0, 0), (213, 94, 0, 255), (255, 255, 255, 255), (0, 0, 0, 0), (0, 158, 115, 255)]
    assert colours == dict(enumerate(rgb))

    path.with_name("landuse.tif.aux.xml").unlink()
    by_itself = described(path)
    assert (
        by_itself[:2]
        == (descriptions, kinds)
        == (
            ("land use", "confidence (%)"),
            (ColorInterp.palette, ColorInterp.undefined),
        )
    )
    assert len(by_itself[3]) == 256
    assert all(by_itself[3][c.class_id] == colours[c.class_id] for c in LEGEND)
    assert by_itself[4] == []
