"""A training goes on from its own checkpoints and from no other's."""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import pyogrio
import pytest
import rasterio
import shapely
import torch
import torchvision

from landseg.config import OptimisationConfig, TrainConfig
from landseg.errors import UsageError
from landseg.model.bundle import read_bundle, write_bundle
from landseg.model.pspnet import PSPNet
from landseg.train import premises
from landseg.train.fit import CHECKPOINTS, LAST
from landseg.train.job import train
from landseg.train.premises import hold_to, of_optimisation
from landseg.train.samples import Pair

NAMES = ("building", "land", "road", "vegetation", "water")
Keys = dict[str, Any]


class BegunError(Exception):
    """The training would have begun, or gone on."""


@pytest.fixture
def keys(corner: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Say how to train on a copy of the corner, up to where the loop would begin."""

    def begin(*_: Any) -> PSPNet:
        last = tmp_path / "runs" / CHECKPOINTS / LAST
        last.parent.mkdir(exist_ok=True)
        last.touch()
        raise BegunError

    monkeypatch.setattr("landseg.train.job.fit", begin)
    for path, name in ((corner.scene, "city.tif"), (corner.labels, "labels.tif")):
        (tmp_path / name).write_bytes(path.read_bytes())
    return {
        "name": "corner",
        "out": tmp_path / "runs",
        "legend": [{"class_id": i + 1, "name": n, "colour": f"#00000{i}"} for i, n in enumerate(NAMES)],
        "gsd_m": 1.0,
        "chip_px": 48,
        "architecture": {"bins": [1, 2], "stem": "7x7"},
        "data": {
            "root": tmp_path,
            "training": [{"scene": "city.tif", "labels": "labels.tif"}],
            "label_values": dict(enumerate(NAMES)),
        },
        "optimisation": {"steps": 2, "batch": 2, "checkpoint_every": 2, "loader_workers": 0},
        "card": {"title": "Corner", "description": "A test.", "licence": "CC0-1.0", "training_data": "A corner."},
    }


def begin(keys: Keys) -> None:
    with pytest.raises(BegunError):
        train(TrainConfig.model_validate(keys), quiet=True)


def refusal(keys: Keys) -> str:
    """Give the names of what differs."""
    with pytest.raises(UsageError, match="checkpoints of another training") as caught:
        train(TrainConfig.model_validate(keys), quiet=True)
    assert caught.value.exit_code == 2
    assert str(keys["out"] / CHECKPOINTS) in str(caught.value.hint)
    return caught.value.what.partition("these differ: ")[2]


def add_a_scene(keys: Keys) -> None:
    root = keys["data"]["root"]
    for name in ("city", "labels"):
        (root / f"{name}-2.tif").write_bytes((root / f"{name}.tif").read_bytes())
    keys["data"]["training"].append({"scene": "city-2.tif", "labels": "labels-2.tif"})


def correct_the_labels(keys: Keys) -> None:
    with rasterio.open(keys["data"]["root"] / "labels.tif", "r+") as labels:
        values = labels.read(1)
        values[:8, :8] = 1
        labels.write(values, 1)


CHANGES: dict[str, tuple[Callable[[Keys], Any], str]] = {
    "order of the legend": (lambda k: k["legend"].reverse(), "legend"),
    "bands": (lambda k: k.update(bands=["blue", "green", "red"]), "bands, mean, std"),
    "pixels": (lambda k: k.update(gsd_m=1.2), "gsd_m, mean, std"),
    "chips": (lambda k: k.update(chip_px=60), "chip_px"),
    "backbone": (lambda k: k["architecture"].update(backbone="resnet34"), "architecture.backbone"),
    "loss": (lambda k: k["optimisation"].update(loss={"dice": 0.5}), "optimisation.loss.dice"),
    "augmentation": (
        lambda k: k["optimisation"].update(augmentation={"scale": 1.5}),
        "optimisation.augmentation.scale",
    ),
    "steps": (lambda k: k["optimisation"].update(steps=3), "optimisation.steps"),
    "seed": (lambda k: k["optimisation"].update(seed=2), "optimisation.seed"),
    "values": (lambda k: k["data"]["label_values"].update({0: "land", 1: "building"}), "data.label_values"),
    "ignored values": (lambda k: k["data"].update(ignored_values=[200]), "data.ignored_values"),
    "labels": (correct_the_labels, "the labels labels.tif of city.tif"),
    "scene": (lambda k: os.utime(k["data"]["root"] / "city.tif", (1, 1)), "the scene city.tif"),
    "scenes": (add_a_scene, "data.training, the scene city-2.tif, the labels labels-2.tif of city-2.tif"),
    "validation": (
        lambda k: k["data"].update(validation={"blocks": {"share": 0.1, "block_px": 48, "buffer_px": 4}}),
        "data.validation",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_training_that_has_changed_does_not_go_on(change: str, keys: Keys) -> None:
    alter, differs = CHANGES[change]
    begin(keys)

    alter(keys)

    assert refusal(keys) == differs


def test_a_class_more_is_refused_and_not_a_matter_of_sizes(keys: Keys) -> None:
    begin(keys)
    keys["legend"] = keys["legend"][:4]
    keys["data"]["ignored_values"] = [4]
    del keys["data"]["label_values"][4]

    assert refusal(keys).startswith("architecture.classes, legend, data.label_values")


def test_a_training_goes_on_where_nothing_has_changed_that_its_weights_follow_from(keys: Keys, apart: Pair) -> None:
    begin(keys)
    begin(keys)
    keys["card"]["title"] = "Another"
    keys["name"] = "renamed"
    keys["legend"][0]["colour"] = "#ffffff"
    keys["optimisation"] |= {"loader_workers": 1, "tensorboard": True, "precision": "bf16-mixed"}
    keys["data"]["held_out"] = [{"scene": str(apart.scene), "labels": str(apart.labels)}]
    # A default that is spelt out.
    keys["optimisation"]["learning_rate"] = 1e-3
    begin(keys)


def test_before_the_first_checkpoint_anything_may_change(keys: Keys) -> None:
    begin(keys)
    (keys["out"] / CHECKPOINTS / LAST).unlink()
    keys["optimisation"]["steps"] = 3
    begin(keys)
    begin(keys)


def test_more_steps_are_another_training_and_the_hint_says_how_to_train_further(keys: Keys) -> None:
    begin(keys)
    keys["optimisation"]["steps"] = 4
    with pytest.raises(UsageError) as caught:
        train(TrainConfig.model_validate(keys), quiet=True)
    assert "start_from" in str(caught.value.hint)


@pytest.mark.parametrize("left", [None, "{"])
def test_checkpoints_that_nothing_is_known_of_are_refused(left: str | None, tmp_path: Path) -> None:
    last = tmp_path / CHECKPOINTS / LAST
    last.parent.mkdir()
    last.touch()
    if left is not None:
        (tmp_path / premises.FILE).write_text(left)

    with pytest.raises(UsageError, match=r"older landseg|is damaged") as caught:
        hold_to(tmp_path, {"bands": ("red",)}, last)

    assert f"delete {last.parent}" in str(caught.value.hint)


def test_a_long_list_of_differences_is_cut(tmp_path: Path) -> None:
    last = tmp_path / LAST
    hold_to(tmp_path, {}, last)
    last.touch()

    with pytest.raises(UsageError, match=r"k0, k1, k2, k3, k4 and 3 more\n") as caught:
        hold_to(tmp_path, {f"k{i}": i for i in range(8)}, last)

    assert "start_from" not in str(caught.value.hint)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, premises.FILE]


def test_polygons_are_told_by_what_they_are_and_not_by_their_file(keys: Keys, tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "city.tif") as scene:
        left, bottom, right, top = scene.bounds
        crs = scene.crs
    edges = [left + i * (right - left) / 5 for i in range(6)]
    shapes = [shapely.box(a, bottom, b, top) for a, b in pairwise(edges)]

    def draw(names: tuple[str, ...]) -> None:
        frame = geopandas.GeoDataFrame({"class_name": names}, geometry=shapes, crs=crs)
        pyogrio.write_dataframe(frame, tmp_path / "zones.gpkg")

    draw(NAMES)
    keys["data"] = {"root": tmp_path, "training": [{"scene": "city.tif", "labels": "zones.gpkg"}]}
    begin(keys)
    os.utime(tmp_path / "zones.gpkg", (1, 1))
    begin(keys)

    draw(("land", "building", *NAMES[2:]))

    assert refusal(keys) == "the labels zones.gpkg of city.tif"

    shapes[0] = shapely.box(edges[0], bottom, edges[1] - 1, top)
    draw(NAMES)

    assert refusal(keys) == "the labels zones.gpkg of city.tif"


def test_weights_to_begin_with_are_told_by_their_content(keys: Keys, tmp_path: Path) -> None:
    def save(name: str) -> Path:
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / name)
        return tmp_path / name

    keys["optimisation"]["initial_weights"] = save("resnet18.pth")
    begin(keys)
    keys["optimisation"]["initial_weights"] = (tmp_path / "resnet18.pth").rename(tmp_path / "moved.pth")
    begin(keys)

    save("moved.pth")

    assert refusal(keys) == "optimisation.initial_weights"


def test_a_model_to_fine_tune_is_told_by_its_weights(keys: Keys, small_bundle: Path, tmp_path: Path) -> None:
    keys["start_from"] = str(small_bundle)
    del keys["architecture"]
    begin(keys)
    card = read_bundle(str(small_bundle)).card

    keys["start_from"] = str(write_bundle(tmp_path / "other", card, PSPNet(card.architecture)).folder)

    assert refusal(keys) == "start_from"


def test_teachers_are_told_by_their_weights(small_bundle: Path, tmp_path: Path) -> None:
    def noted(*models: Path, weight: float = 1.0) -> premises.Premises:
        teacher = {"models": [str(model) for model in models], "weight": weight}
        return of_optimisation(OptimisationConfig.model_validate({"steps": 1, "teacher": teacher}))

    (tmp_path / "a.pt").write_bytes(b"a")
    (tmp_path / "same.pt").write_bytes(b"a")
    (tmp_path / "b.pt").write_bytes(b"b")

    first = noted(small_bundle, tmp_path / "a.pt")

    assert first == noted(small_bundle, tmp_path / "same.pt")
    assert first != noted(small_bundle, tmp_path / "b.pt")
    assert first != noted(small_bundle, tmp_path / "a.pt", weight=2.0)
    assert json.loads(json.dumps(first)) == first
