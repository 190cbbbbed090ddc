"""A QGIS project of a map: imagery below, the raster hidden, polygons above that let the imagery through.

A ``.qgz`` is a ZIP archive of the project's XML, written here as QGIS 3.22 reads it; QGIS itself is not needed.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pyproj
from rasterio._path import _parse_path, _vsi_path  # GDAL's name of what rasterio opens by URL
from rasterio.crs import CRS

from landseg.grid import Grid, epsg_code
from landseg.hrefs import from_folder
from landseg.legend import Legend
from landseg.outputs.drafts import writing
from landseg.outputs.geopackage import CLASS_AREAS
from landseg.outputs.imagery import COLOURS, Imagery
from landseg.outputs.style import add_polygon_style, add_raster_style, add_table_style
from landseg.outputs.vector import LAYER, driver_of
from landseg.scene import SceneInfo

OPACITY = 0.6
"""Of the polygons."""

MARGIN = 0.02
"""Part of the map's width and height that is shown around it."""


def write_project(
    path: Path,
    *,
    polygons: Path,
    raster: Path,
    scene: SceneInfo,
    imagery: Imagery | None,
    grid: Grid,
    legend: Legend,
    folder: Path | None,
) -> None:
    """Write a project that opens a map over its scene.

    Parameters
    ----------
    path
        A draft; the caller renames it when it is complete.
    polygons, raster
        The map's products, which will stand beside the project.
    scene
        What was mapped.
    imagery
        How its colours are shown, or None to leave that to QGIS.
    grid
        The map's.
    legend
        Names and colours of the classes.
    folder
        Where the project will stand. Files are named relative to it, so that a folder that holds all of them can be
        moved. None if that is not on this machine: a local scene is then named by its whole path.

    Raises
    ------
    DiskError
        If the disk is full or the folder can't be written to.
    """
    title = f"Land use: {Path(scene.shown).stem}"
    root = ET.Element("qgis", version="3.22.0", projectname=title)
    ET.SubElement(root, "title").text = title
    _add_crs(ET.SubElement(root, "projectCrs"), grid.crs)
    tree, layers = ET.SubElement(root, "layer-tree-group"), ET.SubElement(root, "projectlayers")

    # Legends of print layouts have the layer's title, which is the same.
    group = _add_group(tree, "Land use", untitled=True)
    source, has_tables = f"./{polygons.name}", driver_of(polygons) == "GPKG"
    layer_source = f"{source}|layername={LAYER}" if has_tables else source
    land_use = _Layer("land_use", "Land use", layer_source, "polygons", grid.crs).add(group, layers)
    add_polygon_style(land_use, legend)
    ET.SubElement(land_use, "layerOpacity").text = str(OPACITY)
    labels = _Layer("labels", "Labels", f"./{raster.name}", "raster", grid.crs).add(group, layers, shown=False)
    add_raster_style(labels, legend)
    if has_tables:
        table = _Layer("class_areas", "Class areas", f"{source}|layername={CLASS_AREAS}", "table").add(group, layers)
        add_table_style(table)

    group = _add_group(tree, "Imagery")
    name, source = Path(scene.shown).stem, _scene_source(scene.shown, folder)
    pixels = _Layer("imagery", name, source, "raster", scene.grid.crs).add(group, layers)
    if imagery is not None:
        _add_colours(pixels, imagery)

    _add_view(root, grid)
    properties = ET.SubElement(root, "properties")
    ET.SubElement(ET.SubElement(properties, "Paths"), "Absolute", type="bool").text = "false"
    if ellipsoid := _ellipsoid_code(grid.crs):
        # Without it QGIS measures in the plane of the map.
        ET.SubElement(ET.SubElement(properties, "Measure"), "Ellipsoid", type="QString").text = ellipsoid
    # Without it QGIS takes no notice of the project's CRS.
    ET.SubElement(ET.SubElement(properties, "SpatialRefSys"), "ProjectionsEnabled", type="int").text = "1"
    ET.indent(root)
    with writing(path), zipfile.ZipFile(path, "w") as archive:
        # Without a date of its own, the same map gives the same bytes.
        project = zipfile.ZipInfo(f"{path.stem}.qgs")
        archive.writestr(project, ET.tostring(root, encoding="utf-8", xml_declaration=True), zipfile.ZIP_DEFLATED)


def _scene_source(scene: str, folder: Path | None) -> str:
    """Name a scene as GDAL opens it, a local file relative to the project's folder; a URL has lost its secrets."""
    if Path(scene).exists():
        return from_folder(scene, folder)
    source: str = _vsi_path(_parse_path(scene))
    return source


@dataclass(frozen=True)
class _Layer:
    key: str
    name: str
    source: str
    kind: Literal["polygons", "table", "raster"]
    crs: CRS | None = None

    def add(self, group: ET.Element, layers: ET.Element, *, shown: bool = True) -> ET.Element:
        """Add the layer to a group of the tree and to the project; give the element that its style belongs into."""
        # QGIS throws ids of ten characters or less away.
        key = f"landseg_{self.key}"
        provider = "gdal" if self.kind == "raster" else "ogr"
        in_tree = {"id": key, "name": self.name, "source": self.source, "providerKey": provider}
        checked = "Qt::Checked" if shown else "Qt::Unchecked"
        ET.SubElement(group, "layer-tree-layer", in_tree, checked=checked, expanded="1" if shown else "0")
        geometry = {"polygons": {"geometry": "Polygon"}, "table": {"geometry": "No geometry"}, "raster": {}}[self.kind]
        layer = ET.SubElement(layers, "maplayer", geometry, type="raster" if self.kind == "raster" else "vector")
        for tag, text in (("id", key), ("datasource", self.source), ("layername", self.name)):
            ET.SubElement(layer, tag).text = text
        ET.SubElement(layer, "provider", encoding="UTF-8").text = provider
        if self.crs is not None:
            _add_crs(ET.SubElement(layer, "srs"), self.crs)
        return layer


def _add_group(tree: ET.Element, name: str, *, untitled: bool = False) -> ET.Element:
    """Add a group of layers; an untitled one has no title in legends of print layouts."""
    group = ET.SubElement(tree, "layer-tree-group", name=name, checked="Qt::Checked", expanded="1")
    if untitled:
        properties = ET.SubElement(ET.SubElement(group, "customproperties"), "Option", type="Map")
        ET.SubElement(properties, "Option", name="legend/title-style", type="QString", value="hidden")
    return group


def _add_crs(parent: ET.Element, crs: CRS) -> None:
    system = ET.SubElement(parent, "spatialrefsys", nativeFormat="Wkt")
    ET.SubElement(system, "wkt").text = crs.to_wkt(version="WKT2_2019")
    if code := epsg_code(crs):
        ET.SubElement(system, "authid").text = code


def _ellipsoid_code(crs: CRS) -> str | None:
    """Name the ellipsoid of a CRS as QGIS does, such as ``EPSG:7030``; None where PROJ has no code of it.

    QGIS 3.22 finds no area on one that is given by its axes.
    """
    ellipsoid = pyproj.CRS.from_wkt(crs.to_wkt()).ellipsoid
    known = ellipsoid.to_json_dict().get("id") if ellipsoid is not None else None
    return f"{known['authority']}:{known['code']}" if known else None


def _add_colours(layer: ET.Element, imagery: Imagery) -> None:
    """Show red, green and blue, stretched as for the network."""
    names = imagery.info.band_names
    attributes = {f"{c}Band": str(band) for c, band in zip(COLOURS, imagery.bands, strict=True)}
    attributes["alphaBand"] = str(names.index("alpha") + 1 if "alpha" in names else -1)
    renderer = ET.SubElement(
        ET.SubElement(layer, "pipe"), "rasterrenderer", attributes, type="multibandcolor", opacity="1", nodataColor=""
    )
    for colour, (low, high) in zip(COLOURS, imagery.ranges, strict=True):
        stretch = ET.SubElement(renderer, f"{colour}ContrastEnhancement")
        ET.SubElement(stretch, "minValue").text = str(low)
        ET.SubElement(stretch, "maxValue").text = str(high)
        ET.SubElement(stretch, "algorithm").text = "StretchToMinimumMaximum"


def _add_view(root: ET.Element, grid: Grid) -> None:
    """Zoom to the map, on opening and by the button for the project's home."""
    left, bottom, right, top = grid.bounds
    dx, dy = MARGIN * (right - left), MARGIN * (top - bottom)
    sides = {"xmin": left - dx, "ymin": bottom - dy, "xmax": right + dx, "ymax": top + dy}
    canvas = ET.SubElement(root, "mapcanvas", name="theMapCanvas", annotationsVisible="1")
    extent = ET.SubElement(canvas, "extent")
    for side, value in sides.items():
        ET.SubElement(extent, side).text = str(value)
    _add_crs(ET.SubElement(canvas, "destinationsrs"), grid.crs)
    home = ET.SubElement(
        ET.SubElement(root, "ProjectViewSettings", UseProjectScales="0"),
        "DefaultViewExtent",
        {side: str(value) for side, value in sides.items()},
    )
    _add_crs(home, grid.crs)
