"""`landseg polygonize` on rasters that others made: codes, names, nodata, degrees and bad input."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import shape

from tests.conftest import DEMO_LABELS, Landseg, SceneMaker

LEGEND = """
legend:
  - {class_id: 111, name: urban fabric, colour: "#e6004d"}
  - {class_id: 142, name: sport, colour: "#ffe6ff", affinity: {urban fabric: 0}}
  - {class_id: 523, name: sea, colour: "#e6f2ff"}
"""


def test_a_real_raster_of_classes(landseg: Landseg, tmp_path: Path) -> None:
    outcome = landseg("polygonize", DEMO_LABELS, "--out", tmp_path / "labels.gpkg", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    layer = geopandas.read_file(tmp_path / "labels.gpkg", layer="landuse")
    with rasterio.open(DEMO_LABELS) as file:
        labels, nodata, transform = file.read(1), file.nodata, file.transform
    faces = rasterio.features.shapes(labels, mask=labels != nodata, connectivity=4, transform=transform)
    expected = {(int(code), shapely.normalize(shapely.make_valid(shape(face))).wkb) for face, code in faces}
    simple = (shapely.normalize(shapely.simplify(polygon, 0)).wkb for polygon in layer.geometry)
    assert len(layer) == len(expected)
    assert layer.geometry.area.sum() == np.count_nonzero(labels != nodata)
    assert set(layer["class_id"]) == set(np.unique(labels).tolist()) - {nodata}
    # GDAL leaves out the corners of neighbours on straight sides.
    assert len(set(zip(layer["class_id"], simple, strict=True)) & expected) > 0.99 * len(expected)
    assert shapely.coverage_is_valid(layer.geometry.to_numpy())
    summary = json.loads(outcome.out)
    assert summary["outputs"] == [str(tmp_path / "labels.gpkg")]
    assert sum(area["polygons"] for area in summary["areas"]) == len(layer)
    assert {path.name for path in tmp_path.iterdir()} == {"labels.gpkg"}


def test_a_legend_names_codes_and_says_what_joins_what(
    landseg: Landseg, make_scene: SceneMaker, tmp_path: Path
) -> None:
    codes = np.full((20, 20), 111, np.int16)
    codes[:, 10:] = 523
    codes[5:8, 8:11] = 142  # most of its border is with urban fabric
    codes[0, :] = -1
    raster = make_scene(codes[None], "corine.tif", colours=None, nodata=-1)
    (tmp_path / "legend.yaml").write_text(LEGEND)
    legend, out = ("--legend", tmp_path / "legend.yaml"), tmp_path / "map.gpkg"

    assert landseg("polygonize", raster, "--out", out, *legend).code == 0
    layer = geopandas.read_file(out, layer="landuse")
    named = dict(zip(layer["class_id"], layer["class_name"], strict=True))
    assert named == {111: "urban fabric", 142: "sport", 523: "sea"}
    assert layer["confidence"].isna().all()

    assert landseg("polygonize", raster, "--out", out, *legend, "--min-area", "50m2", "--overwrite").code == 0
    merged = geopandas.read_file(out, layer="landuse")
    assert merged.geometry.area.tolist() == [19 * 10 - 6, 19 * 10 + 6]
    assert merged["class_id"].tolist() == [111, 523]


def test_a_map_of_landsegs_own_keeps_names_and_confidence(
    landseg: Landseg, make_scene: SceneMaker, small_bundle: Path, city: np.ndarray, tmp_path: Path
) -> None:
    scene = make_scene(city)
    assert landseg("run", scene, "--out", tmp_path / "map.gpkg", "--model", small_bundle, "--quiet").code == 0
    assert landseg("polygonize", tmp_path / "map.tif", "--out", tmp_path / "again.gpkg", "--quiet").code == 0
    first, again = (geopandas.read_file(tmp_path / f"{name}.gpkg", layer="landuse") for name in ("map", "again"))
    assert again.equals(first)


def test_classes_that_do_not_occur_are_listed_as_a_run_lists_them(
    landseg: Landseg, make_scene: SceneMaker, small_bundle: Path, city: np.ndarray, tmp_path: Path
) -> None:
    arguments = ("--model", small_bundle, "--quiet", "--json")
    mapped = landseg("run", make_scene(city[:, :48, :48]), "--out", tmp_path / "map.gpkg", *arguments)
    with rasterio.open(tmp_path / "map.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.write(np.where(file.read(1) > 0, 5, 0).astype(np.uint8), 1)
    drawn = landseg("polygonize", tmp_path / "map.tif", "--out", tmp_path / "again.gpkg", "--quiet", "--json")
    assert drawn.code == 0, drawn.err
    of_run, of_raster = (json.loads(outcome.out)["areas"] for outcome in (mapped, drawn))
    assert [(a["class_id"], a["class_name"]) for a in of_raster] == [(a["class_id"], a["class_name"]) for a in of_run]
    assert [a["polygons"] for a in of_raster] == [0, 1, 0]


def test_a_raster_may_name_more_classes_than_a_map_can_have(
    landseg: Landseg, make_scene: SceneMaker, tmp_path: Path
) -> None:
    halves = np.full((1, 4, 8), 3, np.uint16)
    halves[..., 4:] = 300
    raster = make_scene(halves, "codes.tif", colours=None)
    names = "".join(f"<Category>code {value}</Category>" for value in range(400))
    sidecar = f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>'
    raster.with_name("codes.tif.aux.xml").write_text(sidecar)
    assert landseg("polygonize", raster, "--out", tmp_path / "codes.gpkg", "--quiet").code == 0
    layer = geopandas.read_file(tmp_path / "codes.gpkg", layer="landuse")
    assert layer[["class_id", "class_name"]].to_numpy().tolist() == [[3, "code 3"], [300, "code 300"]]


def test_odd_names_of_a_raster_s_classes_are_joined_or_refused(
    landseg: Landseg, make_scene: SceneMaker, tmp_path: Path
) -> None:
    raster = make_scene(np.ones((1, 4, 4), np.uint8), "codes.tif", colours=None)
    sidecar = '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category/><Category>{}</Category></CategoryNames>'
    path = raster.with_name("codes.tif.aux.xml")
    path.write_text((sidecar + "</PAMRasterBand></PAMDataset>").format("on two\n lines"))
    assert landseg("polygonize", raster, "--out", tmp_path / "codes.gpkg", "--quiet").code == 0
    assert geopandas.read_file(tmp_path / "codes.gpkg", layer="landuse")["class_name"].tolist() == ["on two lines"]
    path.write_text((sidecar + "</PAMRasterBand></PAMDataset>").format("&#x9b;31m"))
    outcome = landseg("polygonize", raster, "--out", tmp_path / "red.gpkg", "--quiet")
    assert outcome.code == 3
    assert "control character '\\x9b'" in outcome.err


def test_strips_of_an_interrupted_run_are_not_lost(landseg: Landseg, make_scene: SceneMaker, tmp_path: Path) -> None:
    raster = make_scene(np.full((1, 4, 4), 7, np.uint8), "classes.tif", colours=None)
    strip = tmp_path / "map.gpkg.landseg/0123/strip.npz"
    strip.parent.mkdir(parents=True)
    strip.touch()
    refused = landseg("polygonize", raster, "--out", tmp_path / "map.gpkg", "--overwrite", "--quiet")
    assert refused.code == 2
    assert "run that was interrupted" in refused.err
    assert strip.exists()
    assert not (tmp_path / "map.gpkg").exists()


def test_a_raster_that_is_not_there(landseg: Landseg, tmp_path: Path) -> None:
    (tmp_path / "map.gpkg").write_text("precious")
    outcome = landseg("polygonize", tmp_path / "typo.tif", "--out", tmp_path / "map.gpkg", "--overwrite")
    assert outcome.code == 3
    assert "typo.tif" in outcome.err
    assert (tmp_path / "map.gpkg").read_text() == "precious"


def test_a_damaged_raster(landseg: Landseg, make_scene: SceneMaker, tmp_path: Path) -> None:
    raster = make_scene(np.random.default_rng(1).integers(1, 4, (1, 300, 300), np.uint8), "cut.tif", colours=None)
    with raster.open("r+b") as file:
        file.truncate(raster.stat().st_size // 2)
    outcome = landseg("polygonize", raster, "--out", tmp_path / "map.gpkg")
    assert outcome.code == 3
    assert "can't be read at rows 0 to 300: the file is damaged" in outcome.err


def test_degrees_are_measured_in_metres(landseg: Landseg, make_scene: SceneMaker, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    coarse = rng.integers(1, 4, (12, 12), np.uint8)
    labels = np.kron(coarse, np.ones((8, 8), np.uint8))
    step = 1 / 11_132  # about 10 m of latitude
    raster = make_scene(
        labels[None], "world.tif", colours=None, crs=CRS.from_epsg(4326), transform=Affine(step, 0, 10, 0, -step, 60)
    )
    out = tmp_path / "world.gpkg"
    assert landseg("polygonize", raster, "--out", out, "--simplify", "20m").code == 0
    layer = geopandas.read_file(out, layer="landuse")
    ground = layer.to_crs(32632)
    assert layer["area_m2"].to_numpy() == pytest.approx(ground.geometry.area.to_numpy(), rel=2e-3)
    assert layer["perimeter_m"].to_numpy() == pytest.approx(ground.geometry.length.to_numpy(), rel=2e-3)
    assert shapely.coverage_is_valid(layer.geometry.to_numpy())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--min-area", "5m2,castle=1ha"), 2, "a minimum area is given for 'castle'"),
        (("--simplify", "fast"), 2, "--simplify"),
        (("--out", "map.kml"), 2, "no suffix of a known format"),
        (("--legend", "legend.yaml"), 3, "holds 7, which legend.yaml does not name"),
        (("--legend", "missing.yaml"), 2, "can't read the configuration missing.yaml"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    landseg: Landseg,
    make_scene: SceneMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_scene(np.full((1, 4, 4), 7, np.uint8), "classes.tif", colours=None)
    Path("legend.yaml").write_text(LEGEND)
    before = sorted(tmp_path.iterdir())
    out = () if "--out" in arguments else ("--out", "map.gpkg")
    outcome = landseg("polygonize", "classes.tif", *out, *arguments, "--quiet")
    assert (outcome.code, says in outcome.err) == (code, True), outcome.err
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_layer_is_kept(landseg: Landseg, make_scene: SceneMaker, tmp_path: Path) -> None:
    raster = make_scene(np.full((1, 4, 4), 7, np.uint8), "classes.tif", colours=None)
    (tmp_path / "map.fgb").write_text("mine")
    outcome = landseg("polygonize", raster, "--out", tmp_path / "map.fgb")
    assert outcome.code == 2
    assert "--overwrite" in outcome.err
    assert (tmp_path / "map.fgb").read_text() == "mine"
