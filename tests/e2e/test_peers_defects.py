"""Defects of other tools, each shown not to be one of landseg's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray

import landseg.predict
from landseg.chips import Normalisation, read_batches
from landseg.config import RunConfig
from landseg.grid import Tiling
from landseg.legend import Legend
from landseg.outputs.paths import OutputPaths
from landseg.run import build_plan, execute
from landseg.scene import RasterScene, describe_scene, value_ranges
from tests.conftest import Landseg, SceneMaker

Map = Callable[..., OutputPaths]


@pytest.fixture
def make_map(landseg: Landseg, small_bundle: Path, tmp_path: Path) -> Map:
    def run(scene: Path, *options: Any) -> OutputPaths:
        out = tmp_path / "map.gpkg"
        outcome = landseg("run", scene, "--out", out, "--model", small_bundle, "--overwrite", "--quiet", *options)
        assert outcome.code == 0, outcome.err
        return OutputPaths.of(out)

    return run


def labels_of(outputs: OutputPaths) -> NDArray[np.uint8]:
    with rasterio.open(outputs.raster) as file:
        return file.read(1)


def polygons_of(outputs: OutputPaths) -> geopandas.GeoDataFrame:
    return geopandas.read_file(outputs.polygons, layer="landuse")


def test_1_nodata_is_no_class_and_no_class_is_dropped(
    make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8], legend: Legend
) -> None:
    data = city.clip(1)
    data[:, 30:70, 40:90] = 0
    outputs = make_map(make_scene(data, nodata=0))
    labels, polygons = labels_of(outputs), polygons_of(outputs)
    hole = np.zeros(labels.shape, bool)
    hole[30:70, 40:90] = True
    assert ((labels == 0) == hole).all()
    assert set(polygons.class_id) == set(np.unique(labels)) - {0} <= set(legend.class_ids)
    for class_id, count in zip(*np.unique(labels[~hole], return_counts=True), strict=True):
        assert polygons[polygons.class_id == class_id].area.sum() == pytest.approx(count)
    assert shapely.coverage_is_valid(polygons.geometry.to_numpy())


def test_2_zeros_are_values_where_no_nodata_is_declared(
    make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8]
) -> None:
    data = city.copy()
    data[0, :, ::2] = 0
    data[:, :60] = 0
    assert (labels_of(make_map(make_scene(data))) != 0).all()


@pytest.mark.parametrize("shape", [(120, 150), (48, 48), (49, 97)])
def test_3_the_outermost_pixels_are_mapped(
    make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8], shape: tuple[int, int]
) -> None:
    labels = labels_of(make_map(make_scene(city[:, : shape[0], : shape[1]])))
    assert (labels != 0).all()


def test_4_scaling_is_decided_once_for_a_scene(make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    """Dark and bright chips of a 16-bit scene are scaled alike: equal values stay equal."""
    data = (city.astype(np.uint16) * 40).clip(1)
    data[:, :, :60] //= 50
    data[:, 10, 10] = data[:, 100, 140] = 2000
    info = describe_scene(str(make_scene(data)))
    ranges = value_ranges(info, (1, 2, 3), None)
    normalise = Normalisation.of(ranges, (100, 100, 100), (40, 40, 40))
    found = []
    with RasterScene(info, (1, 2, 3), info.grid) as scene:
        for batch in read_batches(scene, Tiling(info.grid.shape, 48, 12), batch=4):
            for chip, pixels in zip(batch.chips, normalise(batch.pixels, batch.valid), strict=True):
                for row, col in ((10, 10), (100, 140)):
                    y, x = row - chip.read.row_off, col - chip.read.col_off
                    if 0 <= y < 48 and 0 <= x < 48:
                        found.append(tuple(pixels[:, y, x].tolist()))
    assert len(found) >= 2
    assert len(set(found)) == 1


def test_4_scaling_is_recorded(make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    data = city.astype(np.uint16) * 40
    manifest = json.loads(make_map(make_scene(data)).manifest.read_text())
    for (low, high), band in zip(manifest["properties"]["landseg:scene"]["value_ranges"], data, strict=True):
        assert (low, high) == tuple(pytest.approx(v) for v in np.percentile(band, (2, 98)))


def test_5_a_failing_network_fails_the_run(
    make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    forward = landseg.predict.Predictor._forward

    def fail_late(predictor: landseg.predict.Predictor, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("kernel failed")
        return forward(predictor, pixels)

    monkeypatch.setattr(landseg.predict.Predictor, "_forward", fail_late)
    plan = build_plan(str(make_scene(city)), tmp_path / "out.gpkg", RunConfig(model=str(small_bundle), batch=2))
    with pytest.raises(RuntimeError, match="kernel failed"):
        execute(plan)
    assert not list(tmp_path.glob("out*"))


def test_6_the_raster_is_really_compressed_and_has_overviews(
    make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8]
) -> None:
    outputs = make_map(make_scene(np.tile(city, (1, 5, 5))), "--overlap", "0")
    with rasterio.open(outputs.raster) as file:
        assert file.compression.value == "DEFLATE"
        assert file.overviews(1)
        assert outputs.raster.stat().st_size < file.width * file.height


def test_7_names_are_predictable(make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    outputs = make_map(make_scene(city))
    beside = {path.name for path in outputs.polygons.parent.iterdir()}
    assert beside == {"scene.tif", "map.gpkg", "map.tif", "map.tif.aux.xml", "map.qml", "map.json"}


def test_7_the_same_run_gives_the_same_raster(make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    scene = make_scene(city)
    first = make_map(scene).raster.read_bytes()
    assert make_map(scene).raster.read_bytes() == first


@pytest.mark.parametrize("shape", [(1, 1), (1, 150), (120, 1), (7, 150), (20, 30), (48, 149)])
def test_9_oblong_and_small_scenes(
    make_map: Map, make_scene: SceneMaker, city: NDArray[np.uint8], shape: tuple[int, int]
) -> None:
    outputs = make_map(make_scene(city[:, : shape[0], : shape[1]]))
    with rasterio.open(outputs.raster) as file:
        assert file.shape == shape
        assert file.transform == Affine(1, 0, 339000, 0, -1, 2784000)
        assert (file.read(1) != 0).all()
    assert polygons_of(outputs).area.sum() == pytest.approx(shape[0] * shape[1])
