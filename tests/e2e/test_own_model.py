"""What a user with labels of their own does: train, evaluate, map."""

import json
import os
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import onnxruntime
import pyogrio
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from PIL import Image

from landseg.model.bundle import read_bundle
from landseg.train.samples import Pair
from tests.conftest import ROOT, Landseg


@pytest.fixture
def config(corner: Pair, apart: Pair, tmp_path: Path) -> Path:
    """Give the shipped training, cut down to two steps on a corner of the demo."""
    values = yaml.safe_load((ROOT / "configs/train/dubai.yaml").read_text())
    pair = {"scene": corner.scene.name, "labels": corner.labels.name}
    held_out = {"scene": str(apart.scene), "labels": str(apart.labels)}
    values["data"] |= {"training": [pair], "held_out": [held_out], "root": "nowhere"}
    # The corner has no room for blocks, and neither teachers nor published weights are at hand.
    del values["data"]["validation"], values["optimisation"]["teacher"], values["optimisation"]["initial_weights"]
    values["optimisation"] |= {"steps": 2, "coarse_steps": 1, "batch": 2, "loader_workers": 0}
    values |= {"name": "own", "out": str(tmp_path / "runs"), "chip_px": 48}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_train_evaluate_and_map(landseg: Landseg, corner: Pair, apart: Pair, config: Path, tmp_path: Path) -> None:
    trained = landseg("train", config, "--data-root", corner.scene.parent, "--quiet")
    assert trained.code == 0, trained.err
    model = tmp_path / "runs" / "own"
    assert trained.out.splitlines()[-1] == str(model)

    arguments = ("evaluate", "--model", model, "--scene", apart.scene, "--labels", apart.labels, "--quiet")
    values = "0=building,1=land,2=road,3=vegetation,4=water"
    evaluated = landseg(*arguments, "--label-values", values, "--json")
    assert evaluated.code == 0, evaluated.err
    scores = json.loads(evaluated.out)
    # The card was measured on the same pair by the same pipeline.
    held_out = json.loads((model / "model.json").read_text())["properties"]["landseg:held_out"]
    assert scores == {key: value for key, value in held_out.items() if key != "data"}
    figure = tmp_path / "scores.png"
    printed = landseg(*arguments, "--label-values", values, "--figure", figure)
    for heading in ("mIoU", "boundary F1", "Expected calibration error"):
        assert heading in printed.out
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert landseg(*arguments, "--label-values", values, "--figure", figure).code == 2
    assert landseg(*arguments, "--label-values", values, "--figure", figure, "--overwrite").code == 0

    mapped = landseg("run", corner.scene, "--out", tmp_path / "map.gpkg", "--model", model, "--quiet")
    assert mapped.code == 0, mapped.err
    assert (tmp_path / "map.gpkg").exists()


def test_fine_tune_to_new_classes_and_export(
    landseg: Landseg, corner: Pair, config: Path, small_bundle: Path, tmp_path: Path
) -> None:
    values = yaml.safe_load(config.read_text())
    # Parks and water are what the model knows; a road is new to it.
    values["legend"] = [
        {"class_id": 1, "name": "park", "colour": "#009e73"},
        {"class_id": 2, "name": "road", "colour": "#5a5a5a"},
        {"class_id": 3, "name": "water", "colour": "#56b4e9"},
    ]
    values["data"] |= {
        "held_out": [],
        "label_values": {2: "road", 3: "park", 4: "water"},
        "ignored_values": [0, 1],
        "validation": {"blocks": {"share": 0.1, "block_px": 48, "buffer_px": 4}},
    }
    values["start_from"] = str(small_bundle)
    for key in ("architecture", "gsd_m", "bands", "chip_px"):
        del values[key]
    config.write_text(yaml.safe_dump(values))

    tuned = landseg("train", config, "--data-root", corner.scene.parent, "--quiet")

    assert tuned.code == 0, tuned.err
    folder = tmp_path / "runs"
    card = json.loads((folder / "own" / "model.json").read_text())["properties"]
    assert card["landseg:training"]["started_from"]["name"] == small_bundle.name
    assert card["landseg:temperature"] != 1
    for picture in ("curves.png", "examples.png"):
        with Image.open(folder / picture) as drawn:
            assert min(drawn.size) > 200

    exported = landseg("models", "export", folder / "own", "--format", "onnx", "--out", tmp_path / "own.onnx")
    assert exported.code == 0, exported.err
    session = onnxruntime.InferenceSession(tmp_path / "own.onnx")
    side = read_bundle(str(folder / "own")).card.chip_px
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, side, side), np.float32)})
    assert logits.shape == (1, 3, side, side)


def test_two_processes_train_one_model(corner: Pair, config: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["data"] |= {"root": str(corner.scene.parent), "held_out": []}
    values["optimisation"] |= {"devices": 2, "coarse_steps": 0}
    config.write_text(yaml.safe_dump(values))

    # As a process of its own: it starts its likes.
    command = [sys.executable, "-m", "landseg", "train", str(config), "--quiet"]
    outcome = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == str(tmp_path / "runs" / "own")
    assert read_bundle(str(tmp_path / "runs" / "own")).card.name == "own"


def test_calibrate_and_map(landseg: Landseg, corner: Pair, small_bundle: Path, tmp_path: Path) -> None:
    model = tmp_path / "calibrated"
    where = (
        "--scene",
        corner.scene,
        "--labels",
        corner.labels,
        "--label-values",
        "0=building,3=park,4=water",
        "--ignored-values",
        "1,2",
        "--quiet",
    )
    errors, temperatures = {}, []

    # From a calibrated model as from the first: what its card says does not matter.
    for start, more in ((small_bundle, ()), (model, ("--overwrite",))):
        calibrated = landseg("models", "calibrate", start, *where, "--out", model, *more)
        assert (calibrated.code, calibrated.out) == (0, f"{model}\n"), calibrated.err
        temperatures.append(json.loads((model / "model.json").read_text())["properties"]["landseg:temperature"])
    for name in (small_bundle, model):
        errors[name] = json.loads(landseg("evaluate", "--model", name, *where, "--json").out)["ece"]

    assert temperatures[0] == temperatures[1] != 1
    assert errors[model] < errors[small_bundle]
    assert (model / "weights.safetensors").read_bytes() == (small_bundle / "weights.safetensors").read_bytes()
    assert f"temperature {temperatures[0]:.2f}" in landseg("models", "show", model).out
    mapped = landseg("run", corner.scene, "--out", tmp_path / "map.gpkg", "--model", model, "--quiet")
    assert mapped.code == 0, mapped.err
    manifest = json.loads((tmp_path / "map.json").read_text())
    assert manifest["properties"]["landseg:model"]["temperature"] == temperatures[0]


def test_calibration_replaces_no_bundle_unasked(
    landseg: Landseg, corner: Pair, small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    where = ("--scene", corner.scene, "--labels", corner.labels)

    for out, more in ((small_bundle, ()), (tmp_path / "thesis", ("--overwrite",))):
        refused = landseg("models", "calibrate", small_bundle, *where, "--out", out, *more)
        assert refused.code == 2
        assert str(out) in refused.err


def test_evaluate_on_polygons(landseg: Landseg, corner: Pair, small_bundle: Path, tmp_path: Path) -> None:
    with rasterio.open(corner.scene) as scene:
        left, bottom, right, top = scene.bounds
        crs = scene.crs
    halves = [shapely.box(left, bottom, left + 96, top), shapely.box(left + 96, bottom, right, top)]
    frame = geopandas.GeoDataFrame({"use": ["building", "Park"]}, geometry=halves, crs=crs)
    pyogrio.write_dataframe(frame.to_crs(4326), tmp_path / "zones.geojson")
    arguments = ("evaluate", "--model", small_bundle, "--scene", corner.scene, "--quiet", "--json")
    arguments += ("--labels", tmp_path / "zones.geojson")

    outcome = landseg(*arguments, "--class-column", "use", "--label-values", "Park=park")
    assert outcome.code == 0, outcome.err
    confusion = json.loads(outcome.out)["confusion"]
    assert [sum(row) for row in confusion] == pytest.approx([96 * 192, 96 * 192, 0], abs=192)

    outcome = landseg(*arguments)
    assert outcome.code == 3
    assert "no column 'class_name'" in outcome.err


def test_evaluate_and_calibrate_read_a_scene_as_run_does(
    landseg: Landseg, corner: Pair, small_bundle: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.tif"
    with rasterio.open(corner.scene) as source:
        crs = source.crs.to_string()
        with rasterio.open(odd, "w", **source.profile | {"crs": None, "photometric": None}) as file:
            file.write(source.read()[::-1])
    options = tmp_path / "options.yaml"
    # A run's file, with what only concerns who does the work.
    options.write_text(
        f"{{model: {small_bundle}, bands: [3, 2, 1], assume_crs: '{crs}', scheduler: 'tcp://127.0.0.1:1', "
        f"work_folder: {tmp_path}}}"
    )
    values = ("--label-values", "0=building,3=park,4=water", "--ignored-values", "1,2")
    where = ("--labels", corner.labels, *values, "--quiet")
    outcome = landseg("evaluate", "--model", small_bundle, "--scene", corner.scene, *where, "--json")
    expected = json.loads(outcome.out)["confusion"]

    assert landseg("evaluate", "--model", small_bundle, "--scene", odd, *where).code == 3
    spelt = ("--model", small_bundle, "--bands", "3,2,1", "--assume-crs", crs)
    for given in (spelt, ("--config", options)):
        outcome = landseg("evaluate", "--scene", odd, *where, "--json", *given)
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["confusion"] == expected
    outcome = landseg("evaluate", "--scene", odd, *where, "--json", *spelt, "--views", "8")
    assert json.loads(outcome.out)["confusion"] != expected

    temperatures = []
    for name, scene, given in (("plain", corner.scene, ()), ("odd", odd, ("--config", options))):
        outcome = landseg(
            "models", "calibrate", small_bundle, "--scene", scene, *where, "--out", tmp_path / name, *given
        )
        assert outcome.code == 0, outcome.err
        temperatures.append(read_bundle(str(tmp_path / name)).card.temperature)
    assert temperatures[0] == temperatures[1]


def test_a_temperature_is_for_one_view(landseg: Landseg, corner: Pair, tmp_path: Path) -> None:
    options = tmp_path / "options.yaml"
    options.write_text("views: 2")
    arguments = ("models", "calibrate", "pspnet-r50-dubai", "--scene", corner.scene, "--labels", corner.labels)
    arguments += ("--label-values", "0=building,1=land,2=road,3=vegetation,4=water", "--quiet")

    for name, given in (("one", ()), ("two", ("--config", options))):
        outcome = landseg(*arguments, "--out", tmp_path / name, *given)
        assert outcome.code == 0, outcome.err
    assert landseg(*arguments, "--out", tmp_path / "three", "--views", "2").code == 2

    one, two = (read_bundle(str(tmp_path / name)).card.temperature for name in ("one", "two"))
    assert one == two < 20


def test_labels_that_can_t_be_read_are_told_before_the_work(
    landseg: Landseg, corner: Pair, small_bundle: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", "--model", small_bundle, "--scene", corner.scene, "--labels", tmp_path / "none.gpkg")
    outcome = landseg(*arguments)
    assert outcome.code == 3
    assert "none.gpkg" in outcome.err
    assert "mapping" not in outcome.err


def test_label_values_that_are_not_explained_are_told_before_the_work(
    landseg: Landseg, corner: Pair, small_bundle: Path, tmp_path: Path
) -> None:
    where = ("--scene", corner.scene, "--labels", corner.labels, "--label-values", "0=building,3=park,4=water")
    for command in (
        ("evaluate", "--model", small_bundle),
        ("models", "calibrate", small_bundle, "--out", tmp_path / "out"),
    ):
        outcome = landseg(*command, *where, "--ignored-values", "1")
        assert outcome.code == 3
        # 255, which the file declares nodata, is no value.
        assert f"{corner.labels} holds values that are no class: 2 (4,505 px)" in outcome.err
        assert "mapping" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_labels_of_other_ground(landseg: Landseg, corner: Pair, small_bundle: Path, tmp_path: Path) -> None:
    far = tmp_path / "far.tif"
    with rasterio.open(corner.labels) as source:
        profile = source.profile | {"transform": Affine.translation(5000, 0) @ source.transform}
        with rasterio.open(far, "w", **profile) as file:
            file.write(source.read())
    outcome = landseg("evaluate", "--model", small_bundle, "--scene", corner.scene, "--labels", far, "--quiet")
    assert outcome.code == 3
    assert "overlap" in outcome.err
    arguments = ("--scene", corner.scene, "--labels", far, "--out", tmp_path / "out", "--quiet")
    outcome = landseg("models", "calibrate", small_bundle, *arguments)
    assert outcome.code == 3
    assert "do not overlap the scene" in outcome.err
    assert not (tmp_path / "out").exists()


def test_training_data_that_is_not_there(landseg: Landseg, config: Path, tmp_path: Path) -> None:
    outcome = landseg("train", config, "--data-root", tmp_path, "--quiet")
    assert outcome.code == 3
    assert "dubai_tile2.tif" in outcome.err
    assert not (tmp_path / "runs").exists()
