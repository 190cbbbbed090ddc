import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from landseg.grid import Grid
from landseg.legend import Legend
from landseg.outputs.imagery import Imagery
from landseg.outputs.project import write_project
from landseg.scene import SceneInfo, describe_scene
from tests.conftest import RGB, UTM40, SceneMaker

GRID = Grid((20, 30), Affine(2, 0, 500_000, 0, -2, 2_700_000), UTM40)


def project_of(folder: Path, legend: Legend, /, **changes: Any) -> ET.Element:
    values = {
        "polygons": folder / "map.gpkg",
        "raster": folder / "map.tif",
        "scene": SceneInfo("https://example.org/city.tif", GRID, ("uint8",) * 3, ("red", "green", "blue"), "none"),
        "imagery": None,
        "grid": GRID,
        "legend": legend,
        "folder": folder,
    }
    write_project(folder / "map.qgz", **(values | changes))
    with zipfile.ZipFile(folder / "map.qgz") as archive:
        assert archive.namelist() == ["map.qgs"]
        return ET.fromstring(archive.read("map.qgs"))


def sources(project: ET.Element) -> list[str | None]:
    layers = [layer.findtext("datasource") for layer in project.iter("maplayer")]
    assert layers == [node.get("source") for node in project.iter("layer-tree-layer")]
    return layers


def test_a_scene_on_a_server_is_opened_there(tmp_path: Path, legend: Legend) -> None:
    assert sources(project_of(tmp_path, legend)) == [
        "./map.gpkg|layername=landuse",
        "./map.tif",
        "./map.gpkg|layername=class_areas",
        "/vsicurl/https://example.org/city.tif",
    ]


def test_only_a_geopackage_has_a_table(tmp_path: Path, legend: Legend) -> None:
    project = project_of(tmp_path, legend, polygons=tmp_path / "map.fgb")
    assert sources(project)[:2] == ["./map.fgb", "./map.tif"]
    assert len(sources(project)) == 3


def test_a_printed_legend_says_land_use_once(tmp_path: Path, legend: Legend) -> None:
    groups = project_of(tmp_path, legend).findall("layer-tree-group/layer-tree-group")
    hidden = [
        group.find("customproperties/Option/Option[@name='legend/title-style'][@value='hidden']") for group in groups
    ]
    assert [(group.get("name"), option is not None) for group, option in zip(groups, hidden, strict=True)] == [
        ("Land use", True),
        ("Imagery", False),
    ]


def test_a_local_scene_is_named_relative_to_the_project(
    tmp_path: Path, legend: Legend, make_scene: SceneMaker, city: NDArray[np.uint8]
) -> None:
    (tmp_path / "maps").mkdir()
    scene = describe_scene(str(make_scene(city)))
    project = project_of(tmp_path, legend, scene=scene, folder=tmp_path / "maps")
    assert sources(project)[-1] == "../scene.tif"


def test_imagery_is_stretched_as_for_the_network_and_keeps_its_alpha(
    tmp_path: Path, legend: Legend, make_scene: SceneMaker, city: NDArray[np.uint8]
) -> None:
    alpha = np.full((1, *city.shape[1:]), 255, np.uint8)
    scene = describe_scene(str(make_scene(np.concatenate([city, alpha]), colours=(*RGB, ColorInterp.alpha))))
    imagery = Imagery.of(scene, ("nir", "blue", "green", "red"), (1, 3, 2, 1), ((0, 1), (2, 30), (4, 50), (6, 70)))
    project = project_of(tmp_path, legend, scene=scene, imagery=imagery)
    renderer = project.find("projectlayers/maplayer[id='landseg_imagery']/pipe/rasterrenderer")
    assert renderer is not None
    assert [renderer.get(band) for band in ("redBand", "greenBand", "blueBand", "alphaBand")] == ["1", "2", "3", "4"]
    ends = [(s.findtext("minValue"), s.findtext("maxValue")) for s in renderer]
    assert ends == [("6", "70"), ("4", "50"), ("2", "30")]


def test_it_is_zoomed_to_the_map(tmp_path: Path, legend: Legend) -> None:
    home = project_of(tmp_path, legend).find("ProjectViewSettings/DefaultViewExtent")
    assert home is not None
    sides = {side: float(home.get(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax")}
    assert sides == pytest.approx({"xmin": 499_998.8, "ymin": 2_699_959.2, "xmax": 500_061.2, "ymax": 2_700_000.8})


def test_a_crs_without_a_code_is_written_in_full(tmp_path: Path, legend: Legend) -> None:
    # PROJ takes it for EPSG:5683.
    crs = CRS.from_proj4("+proj=tmerc +lon_0=9 +k=1 +x_0=3500000 +ellps=bessel +towgs84=700,100,500,0,0,0,0")
    project = project_of(tmp_path, legend, grid=Grid(GRID.shape, GRID.transform, crs))
    assert project.find("projectCrs/spatialrefsys/authid") is None
    assert CRS.from_wkt(project.findtext("projectCrs/spatialrefsys/wkt", "")) == crs


@pytest.mark.parametrize(
    ("crs", "code"),
    [("EPSG:3857", "EPSG:7030"), ("EPSG:31467", "EPSG:7004"), ("+proj=utm +zone=40 +a=6378000 +b=6357000", None)],
)
def test_it_measures_on_the_map_s_ellipsoid(tmp_path: Path, legend: Legend, crs: str, code: str | None) -> None:
    project = project_of(tmp_path, legend, grid=Grid(GRID.shape, GRID.transform, CRS.from_string(crs)))
    assert project.findtext("properties/Measure/Ellipsoid") == code


def test_the_same_map_gives_the_same_bytes(tmp_path: Path, legend: Legend) -> None:
    project_of(tmp_path, legend)
    first = (tmp_path / "map.qgz").read_bytes()
    project_of(tmp_path, legend)
    assert (tmp_path / "map.qgz").read_bytes() == first
