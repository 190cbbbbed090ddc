"""How a map looks when it is opened: styles for QGIS (QML), for map servers (SLD) and for GDAL (PAM)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree as ET

from landseg.errors import UsageError
from landseg.legend import NODATA, LandClass, Legend
from landseg.outputs.drafts import writing

Styled = Literal["polygons", "raster"]


class Column(NamedTuple):
    """How people read a field."""

    title: str
    meaning: str


COLUMNS: Mapping[str, Column] = {
    "class_id": Column("Class id", "Number of the class, the same in polygons and raster"),
    "class_name": Column("Class", "Name of the class"),
    "area_m2": Column("Area (m²)", "Square metres on the ellipsoid, without the holes"),
    "confidence": Column(
        "Mean confidence (%)", "Probability that the network gives its answer, averaged over the area"
    ),
    "perimeter_m": Column("Perimeter (m)", "Metres of border on the ellipsoid, those of holes included"),
}
"""Fields of the polygons."""

TABLE_COLUMNS: Mapping[str, Column] = {
    "class_id": COLUMNS["class_id"],
    "class_name": COLUMNS["class_name"],
    "colour": Column("Colour", "Red, green and blue of the class as #rrggbb"),
    "area_m2": Column("Area (m²)", "Square metres on the ellipsoid"),
    "share": Column("Share (0-1)", "Part of the valid area"),
    "polygons": Column("Polygons", "How many polygons the class has"),
    "confidence": COLUMNS["confidence"],
}
"""Fields of the table of classes."""

MAP_TIP = """<b>[% "class_name" %]</b><br>
[% if("area_m2" < 10000, round("area_m2") || ' m²', round("area_m2" / 10000, 1) || ' ha') %]<br>
[% coalesce('confidence ' || round("confidence") || ' %', '') %]"""
"""What QGIS shows where the pointer rests; text between [% and %] is an expression of QGIS."""

CLASS_NAME = 'represent_value("class_id")'
"""The expression by which QGIS fills ``class_name`` anew at each edit: the name that it shows for the id."""

DERIVED = ("class_name", "area_m2", "confidence", "perimeter_m")
"""Fields that QGIS shows in forms and tables, and lets no one type into."""

# Outlines are a shade darker than the fill: they hide the seams that antialiasing leaves between neighbours,
# and stay quiet where a large map has many small faces.
OUTLINE_SHADE = 0.88
OUTLINE_MM = 0.1
OUTLINE_PX = 0.4

SLD = "http://www.opengis.net/sld"
OGC = "http://www.opengis.net/ogc"
ET.register_namespace("sld", SLD)
ET.register_namespace("ogc", OGC)


def write_style(path: Path, legend: Legend, styled: Styled = "polygons") -> None:
    """Write a style in the form that the file's suffix asks for.

    Parameters
    ----------
    path
        ``.qml``, which fits polygons and raster alike, or ``.sld``.
    legend
        The classes.
    styled
        What an SLD is for.

    Raises
    ------
    UsageError
        If it is another suffix.
    DiskError
        If the disk is full or the folder can't be written to.
    """
    style = {".qml": qml, ".sld": raster_sld if styled == "raster" else polygon_sld}.get(path.suffix.lower())
    if style is None:
        raise UsageError(f"{path.name} ends in neither .qml nor .sld", "QGIS reads .qml, map servers read .sld")
    with writing(path):
        path.write_text(style(legend), encoding="utf-8")


def qml(legend: Legend) -> str:
    """Write a style for QGIS 3.22 and later that fits both the polygons and the raster.

    QGIS loads ``landuse.qml`` by itself for every layer whose file is called ``landuse``; polygons take the renderer,
    the fields and the form from it, a raster takes the palette.
    """
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology|Fields|Forms|MapTips")
    add_polygon_style(root, legend)
    add_raster_style(root, legend)
    ET.SubElement(root, "layerGeometryType").text = "2"
    return _text(root)


def table_qml() -> str:
    """Write the style of the table ``class_areas``: its fields under readable names."""
    root = ET.Element("qgis", version="3.22.0", styleCategories="Fields")
    add_table_style(root)
    ET.SubElement(root, "layerGeometryType").text = "4"
    return _text(root)


def add_polygon_style(parent: ET.Element, legend: Legend) -> None:
    """Add what colours polygons by ``class_id``, shows their fields under readable names and edits them in QGIS."""
    renderer = ET.SubElement(
        parent,
        "renderer-v2",
        type="categorizedSymbol",
        attr="class_id",
        symbollevels="0",
        enableorderby="0",
        forceraster="0",
    )
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for index, c in enumerate(legend):
        category = {"value": str(c.class_id), "type": "long", "label": c.name, "symbol": str(index), "render": "true"}
        ET.SubElement(categories, "category", category)
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=str(index), alpha="1", clip_to_extent="1")
        layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
        options = ET.SubElement(layer, "Option", type="Map")
        for name, value in _simple_fill(c).items():
            ET.SubElement(options, "Option", name=name, value=value, type="QString")
    _add_aliases(parent, COLUMNS)
    _add_form(parent, legend)
    ET.SubElement(parent, "mapTip").text = MAP_TIP


def add_raster_style(parent: ET.Element, legend: Legend) -> None:
    """Add the palette of the label raster for QGIS, which looks for one in the file only where there is one band."""
    renderer = ET.SubElement(
        ET.SubElement(parent, "pipe"),
        "rasterrenderer",
        type="paletted",
        band="1",
        opacity="1",
        alphaBand="-1",
        nodataColor="",
    )
    palette = ET.SubElement(renderer, "colorPalette")
    for c in legend:
        ET.SubElement(palette, "paletteEntry", value=str(c.class_id), color=c.colour, alpha="255", label=c.name)


def add_table_style(parent: ET.Element) -> None:
    """Add what shows the fields of the table ``class_areas`` under readable names in QGIS."""
    _add_aliases(parent, TABLE_COLUMNS)


def _add_aliases(parent: ET.Element, columns: Mapping[str, Column]) -> None:
    aliases = ET.SubElement(parent, "aliases")
    for index, (field, column) in enumerate(columns.items()):
        ET.SubElement(aliases, "alias", index=str(index), field=field, name=column.title)


def _add_form(parent: ET.Element, legend: Legend) -> None:
    """Let people choose a polygon's class by name: its id is stored, and ``class_name`` follows."""
    field = ET.SubElement(ET.SubElement(parent, "fieldConfiguration"), "field", name="class_id")
    config = ET.SubElement(ET.SubElement(field, "editWidget", type="ValueMap"), "config")
    choices = ET.SubElement(ET.SubElement(config, "Option", type="Map"), "Option", name="map", type="List")
    for c in legend:
        choice = ET.SubElement(choices, "Option", type="Map")
        ET.SubElement(choice, "Option", name=c.name, value=str(c.class_id), type="QString")
    defaults = ET.SubElement(parent, "defaults")
    ET.SubElement(defaults, "default", field="class_name", expression=CLASS_NAME, applyOnUpdate="1")
    editable = ET.SubElement(parent, "editable")
    for name in DERIVED:
        ET.SubElement(editable, "field", name=name, editable="0")


def _simple_fill(c: LandClass) -> dict[str, str]:
    """Properties of a QGIS symbol layer; colours are red, green, blue, alpha."""
    return {
        "color": ",".join(map(str, (*c.rgb, 255))),
        "style": "solid",
        "outline_color": ",".join(map(str, (*_outline(c), 255))),
        "outline_style": "solid",
        "outline_width": str(OUTLINE_MM),
        "outline_width_unit": "MM",
        "joinstyle": "bevel",
    }


def polygon_sld(legend: Legend) -> str:
    """Write the same look as an OGC Styled Layer Descriptor 1.0, for polygons on GeoServer and others."""
    root, rules = _new_sld()
    for c in legend:
        rule = ET.SubElement(rules, f"{{{SLD}}}Rule")
        ET.SubElement(rule, f"{{{SLD}}}Name").text = c.name
        ET.SubElement(rule, f"{{{SLD}}}Title").text = c.name
        equal = ET.SubElement(ET.SubElement(rule, f"{{{OGC}}}Filter"), f"{{{OGC}}}PropertyIsEqualTo")
        ET.SubElement(equal, f"{{{OGC}}}PropertyName").text = "class_id"
        ET.SubElement(equal, f"{{{OGC}}}Literal").text = str(c.class_id)
        symbolizer = ET.SubElement(rule, f"{{{SLD}}}PolygonSymbolizer")
        fill = ET.SubElement(symbolizer, f"{{{SLD}}}Fill")
        _css(fill, "fill", c.colour)
        stroke = ET.SubElement(symbolizer, f"{{{SLD}}}Stroke")
        _css(stroke, "stroke", "#{:02x}{:02x}{:02x}".format(*_outline(c)))
        _css(stroke, "stroke-width", str(OUTLINE_PX))
        _css(stroke, "stroke-linejoin", "bevel")
    return _text(root)


def raster_sld(legend: Legend) -> str:
    """Write the palette of the label raster as an SLD; what is no class, nodata among it, is not drawn."""
    root, rules = _new_sld()
    symbolizer = ET.SubElement(ET.SubElement(rules, f"{{{SLD}}}Rule"), f"{{{SLD}}}RasterSymbolizer")
    channel = ET.SubElement(ET.SubElement(symbolizer, f"{{{SLD}}}ChannelSelection"), f"{{{SLD}}}GrayChannel")
    ET.SubElement(channel, f"{{{SLD}}}SourceChannelName").text = "1"
    # "values" is GeoServer's own word, which QGIS writes too: SLD 1.0 knows ramps alone.
    palette = ET.SubElement(symbolizer, f"{{{SLD}}}ColorMap", type="values")
    for c in legend:
        ET.SubElement(palette, f"{{{SLD}}}ColorMapEntry", color=c.colour, quantity=str(c.class_id), label=c.name)
    return _text(root)


def _new_sld() -> tuple[ET.Element, ET.Element]:
    """Begin a descriptor; give its root and the element that rules belong into."""
    root = ET.Element(f"{{{SLD}}}StyledLayerDescriptor", version="1.0.0")
    layer = ET.SubElement(root, f"{{{SLD}}}NamedLayer")
    ET.SubElement(layer, f"{{{SLD}}}Name").text = "landuse"
    style = ET.SubElement(layer, f"{{{SLD}}}UserStyle")
    ET.SubElement(style, f"{{{SLD}}}Name").text = "landuse"
    return root, ET.SubElement(style, f"{{{SLD}}}FeatureTypeStyle")


def _css(parent: ET.Element, name: str, value: str) -> None:
    ET.SubElement(parent, f"{{{SLD}}}CssParameter", name=name).text = value


def pam(legend: Legend) -> str:
    """Write what GDAL reads from ``<raster>.aux.xml`` and a TIFF has no place for: class names, and the unit of band 2.

    The raster has its colours by itself, but a TIFF's table is of 256 always: here it ends with the last class. Labels
    that are no class have an empty name and no colour.
    """
    root = ET.Element("PAMDataset")
    labels = ET.SubElement(root, "PAMRasterBand", band="1")
    names, colours = ET.SubElement(labels, "CategoryNames"), ET.SubElement(labels, "ColorTable")
    classes = {c.class_id: c for c in legend}
    for label in range(max(classes) + 1):
        c = classes.get(label)
        ET.SubElement(names, "Category").text = "nodata" if label == NODATA else c.name if c else None
        rgba = (*c.rgb, 255) if c else (0, 0, 0, 0)
        ET.SubElement(colours, "Entry", {f"c{i}": str(value) for i, value in enumerate(rgba, start=1)})
    ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="2"), "UnitType").text = "%"
    return _text(root)


def _outline(c: LandClass) -> tuple[int, int, int]:
    red, green, blue = (round(OUTLINE_SHADE * value) for value in c.rgb)
    return red, green, blue


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
