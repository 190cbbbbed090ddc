import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
import torch
import torchvision
from rasterio.enums import ColorInterp
from rasterio.features import shapes

from landseg.config import LossConfig, OptimisationConfig, TrainConfig
from landseg.errors import BundleError, ConfigError, TrainingDataError
from landseg.legend import LandClass, Legend
from landseg.model.bundle import read_bundle, write_bundle
from landseg.model.pspnet import PSPNet
from landseg.train.fit import Chips, Training, fit
from landseg.train.job import _objective, train
from landseg.train.samples import Pair

NAMES = ("building", "land", "road", "vegetation", "water")


@pytest.fixture
def keys(corner: Pair, tmp_path: Path) -> dict[str, Any]:
    """Say how to train two steps on the corner."""
    return {
        "name": "corner",
        "out": tmp_path / "runs",
        "legend": [{"class_id": i + 1, "name": n, "colour": f"#00000{i}"} for i, n in enumerate(NAMES)],
        "gsd_m": 1.0,
        "chip_px": 48,
        "architecture": {"bins": [1, 2]},
        "data": {
            "root": corner.scene.parent,
            "training": [{"scene": "dubai_tile2.tif", "labels": "dubai_tile2_labels.tif"}],
            "label_values": dict(enumerate(NAMES)),
        },
        "optimisation": {"steps": 2, "batch": 2, "checkpoint_every": 2, "loader_workers": 0},
        "card": {"title": "Corner", "description": "A test.", "licence": "CC0-1.0", "training_data": "A corner."},
    }


def test_training_writes_a_bundle_that_can_be_used(keys: dict[str, Any], corner: Pair, tmp_path: Path) -> None:
    bundle = train(TrainConfig.model_validate(keys), quiet=True)

    read = read_bundle(str(tmp_path / "runs" / "corner"))
    assert read == bundle
    assert (read.card.legend.names, read.card.chip_px, read.card.bands) == (NAMES, 48, ("red", "green", "blue"))
    with rasterio.open(corner.scene) as scene:
        seen = scene.read()[:, 4::8, 4::8].reshape(3, -1).astype(float)
    np.testing.assert_allclose(read.card.mean, seen.mean(axis=1), atol=0.01)
    np.testing.assert_allclose(read.card.std, seen.std(axis=1), atol=0.01)
    with torch.inference_mode():
        logits = read.load_network()(torch.zeros(1, 3, 48, 48))
    assert logits.shape == (1, 5, 48, 48)
    assert logits.isfinite().all()


def test_a_finished_training_that_is_called_again_makes_its_bundle_anew(keys: dict[str, Any]) -> None:
    first = train(TrainConfig.model_validate(keys), quiet=True)
    keys["card"]["title"] = "Another"

    again = train(TrainConfig.model_validate(keys), quiet=True)

    assert again.sha256 == first.sha256
    assert again.card.title == "Another"


def test_training_starts_from_published_weights(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    keys["optimisation"]["initial_weights"] = tmp_path / "resnet18.pth"
    keys["architecture"] |= {"stem": "7x7", "auxiliary": False}
    seen: dict[str, torch.Tensor] = {}

    def note(training: Training, *arguments: Any, **options: Any) -> PSPNet:
        seen.update({name: tensor.clone() for name, tensor in training.network.backbone.state_dict().items()})
        return fit(training, *arguments, **options)

    monkeypatch.setattr("landseg.train.job.fit", note)
    bundle = train(TrainConfig.model_validate(keys), quiet=True)

    assert seen.keys() == {name for name in published if not name.startswith("fc.")}
    assert all(torch.equal(tensor, published[name]) for name, tensor in seen.items())
    # Trained from there without the second head, and the card says so.
    trained = bundle.load_network().state_dict()["backbone.layer1.0.conv1.weight"]
    assert not torch.equal(trained, published["layer1.0.conv1.weight"].half().float())
    assert not bundle.card.architecture.auxiliary
    assert bundle.card.training["optimisation"]["initial_weights"] == str(tmp_path / "resnet18.pth")


def test_initial_weights_of_another_network_are_refused_before_training(keys: dict[str, Any], tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    keys["optimisation"]["initial_weights"] = tmp_path / "resnet18.pth"

    # The paper's stem is deep, torchvision's is not.
    with pytest.raises(BundleError, match=r"lacks the weight conv1\.0\.weight"):
        train(TrainConfig.model_validate(keys), quiet=True)


def test_a_training_learns_from_a_teacher(keys: dict[str, Any], small_bundle: Path, tmp_path: Path) -> None:
    # Taught so hard that the labels hardly count.
    teacher = {"models": [str(small_bundle)], "weight": 1000.0}
    names = read_bundle(str(small_bundle)).card.legend.names
    keys["legend"] = [{"class_id": i + 1, "name": n, "colour": f"#00000{i}"} for i, n in enumerate(names)]
    keys["data"] |= {"label_values": dict(enumerate(names)), "ignored_values": [3, 4]}
    keys["optimisation"] |= {"steps": 20, "checkpoint_every": 20, "learning_rate": 3e-3, "teacher": teacher}
    bundle = train(TrainConfig.model_validate(keys), quiet=True)

    log = pd.read_csv(tmp_path / "runs/log/version_0/metrics.csv")
    assert log.loss.iloc[-1] < log.loss.iloc[0]
    assert bundle.card.training["optimisation"]["teacher"] == teacher
    assert not any("teacher" in name for name in torch.load(tmp_path / "runs/checkpoints/last.ckpt")["state_dict"])


def test_patience_without_a_validation_is_refused_before_training(keys: dict[str, Any], tmp_path: Path) -> None:
    keys["optimisation"]["patience"] = 2

    with pytest.raises(ConfigError, match="patience needs a validation") as caught:
        train(TrainConfig.model_validate(keys), quiet=True)

    assert "data.validation" in str(caught.value.hint)
    assert not (tmp_path / "runs").exists()


def test_a_class_without_pixels_is_refused_before_training(keys: dict[str, Any], tmp_path: Path) -> None:
    keys["data"]["label_values"] = {0: "building", 1: "land", 2: "road", 3: "vegetation", 99: "water"}
    keys["data"]["ignored_values"] = [4]

    with pytest.raises(TrainingDataError, match="class 'water' has no pixel"):
        train(TrainConfig.model_validate(keys), quiet=True)

    assert not (tmp_path / "runs").exists()


def test_scenes_of_other_bands_than_the_model_s_are_refused(keys: dict[str, Any]) -> None:
    keys["bands"] = ("red", "nir")

    with pytest.raises(
        TrainingDataError, match=r"dubai_tile2.tif does not say which .* nir(?s:.*)data\.band_numbers: \[n, n\]"
    ):
        train(TrainConfig.model_validate(keys), quiet=True)


def test_held_out_scenes_are_looked_at_before_training(keys: dict[str, Any], apart: Pair, tmp_path: Path) -> None:
    keys["data"]["held_out"] = [{"scene": apart.scene, "labels": tmp_path / "none.gpkg"}]

    with pytest.raises(TrainingDataError, match=r"none\.gpkg"):
        train(TrainConfig.model_validate(keys), quiet=True)

    assert not (tmp_path / "runs").exists()


def test_numbered_bands_are_trained_on_and_held_out_by_number(
    keys: dict[str, Any], corner: Pair, apart: Pair, tmp_path: Path
) -> None:
    # Four bands, of which the file says nothing.
    for path in (corner.scene, apart.scene):
        with rasterio.open(path) as source:
            profile = {**source.profile, "count": 4, "photometric": "MINISBLACK"}
            with rasterio.open(tmp_path / path.name, "w", **profile) as plain:
                plain.write(source.read((3, 2, 1, 1)))
                plain.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 3]
    keys["data"]["training"] = [{"scene": tmp_path / corner.scene.name, "labels": corner.labels}]
    keys["data"]["held_out"] = [{"scene": tmp_path / apart.scene.name, "labels": apart.labels}]

    with pytest.raises(TrainingDataError, match=r"dubai_tile2\.tif does not say(?s:.*)data\.band_numbers"):
        train(TrainConfig.model_validate(keys), quiet=True)
    keys["data"]["band_numbers"] = [3, 2]
    with pytest.raises(ConfigError, match=r"data\.band_numbers names 2 bands; the model reads 3"):
        train(TrainConfig.model_validate(keys), quiet=True)
    keys["data"]["band_numbers"] = [3, 2, 1]
    numbered = train(TrainConfig.model_validate(keys), quiet=True)

    del keys["data"]["band_numbers"]
    keys["out"] = tmp_path / "named"
    keys["data"]["training"] = [{"scene": corner.scene, "labels": corner.labels}]
    keys["data"]["held_out"] = [{"scene": apart.scene, "labels": apart.labels}]
    named = train(TrainConfig.model_validate(keys), quiet=True)
    assert numbered.sha256 == named.sha256
    assert numbered.card.held_out == named.card.held_out


def test_unknown_values_are_refused_before_training(keys: dict[str, Any], tmp_path: Path) -> None:
    del keys["data"]["label_values"]

    # The classes are numbered from 1, the labels from 0.
    with pytest.raises(TrainingDataError, match=r"holds values that are no class: 0 \("):
        train(TrainConfig.model_validate(keys), quiet=True)

    assert not (tmp_path / "runs").exists()


def test_a_training_on_polygons_holds_blocks_out(
    keys: dict[str, Any], corner: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rasterio.open(corner.labels) as labels:
        values = labels.read(1)
        found = [
            (shapely.geometry.shape(s), NAMES[int(v)])
            for s, v in shapes(values, values != 255, transform=labels.transform)
        ]
        frame = geopandas.GeoDataFrame({"zone": [n for _, n in found]}, geometry=[s for s, _ in found], crs=labels.crs)
    pyogrio.write_dataframe(frame, tmp_path / "zones.gpkg")
    keys["data"] = {
        "training": [{"scene": corner.scene, "labels": tmp_path / "zones.gpkg"}],
        "class_column": "zone",
        "validation": {"blocks": {"share": 0.1, "block_px": 48, "buffer_px": 4}},
    }
    seen: list[Chips] = []

    def note(training: Training, chips: Chips, *arguments: Any, **options: Any) -> PSPNet:
        seen.append(chips)
        return fit(training, chips, *arguments, **options)

    monkeypatch.setattr("landseg.train.job.fit", note)
    bundle = train(TrainConfig.model_validate(keys), quiet=True)

    # Two blocks of sixteen are held out, and what they show is logged.
    assert seen[0].validation is not None
    assert len(list(seen[0].validation.places)) == 2
    assert "val_miou" in (tmp_path / "runs" / "log" / "version_0" / "metrics.csv").read_text()
    assert sum(bundle.card.training["class_shares"].values()) == pytest.approx(1, abs=1e-3)


def test_fine_tuning_starts_where_a_model_ended(
    keys: dict[str, Any], small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = read_bundle(str(small_bundle))
    keys |= {"start_from": str(small_bundle)}
    # A new class stands first, one is gone, and the others are in another order.
    names = ("quarry", *reversed(base.card.legend.names[1:]))
    keys["legend"] = [{"class_id": i + 1, "name": n, "colour": f"#00000{i}"} for i, n in enumerate(names)]
    keys["data"] |= {"label_values": dict(enumerate(names)), "ignored_values": [3, 4]}
    for key in ("gsd_m", "chip_px", "architecture"):
        del keys[key]
    keys["optimisation"] |= {"steps": 1, "learning_rate": 1e-9}
    begun: dict[str, torch.Tensor] = {}

    def note(training: Training, *arguments: Any, **options: Any) -> PSPNet:
        begun.update({name: tensor.clone() for name, tensor in training.network.state_dict().items()})
        return fit(training, *arguments, **options)

    monkeypatch.setattr("landseg.train.job.fit", note)
    bundle = train(TrainConfig.model_validate(keys), quiet=True)

    trained = base.load_network(auxiliary=True).state_dict()
    assert begun.keys() == trained.keys()
    same = [name for name in trained if not re.match(r"(head|auxiliary)\.4\.", name)]
    assert len(same) == len(trained) - 4
    assert all(torch.equal(begun[name], trained[name]) for name in same)
    for head in ("head", "auxiliary"):
        for channel, name in enumerate(names[1:], start=1):
            before = base.card.legend.names.index(name)
            assert torch.equal(begun[f"{head}.4.weight"][channel], trained[f"{head}.4.weight"][before])
            assert torch.equal(begun[f"{head}.4.bias"][channel], trained[f"{head}.4.bias"][before])
        assert not any(torch.equal(begun[f"{head}.4.weight"][0], row) for row in trained[f"{head}.4.weight"])
    assert (bundle.card.mean, bundle.card.std, bundle.card.bands) == (base.card.mean, base.card.std, base.card.bands)
    assert (bundle.card.gsd_m, bundle.card.chip_px) == (base.card.gsd_m, base.card.chip_px)
    assert bundle.card.training["started_from"]["sha256"] == base.sha256


def test_fine_tuning_begins_a_second_head_anew_where_the_model_has_none(
    keys: dict[str, Any], small_bundle: Path, tmp_path: Path
) -> None:
    base = read_bundle(str(small_bundle))
    keys["start_from"] = str(write_bundle(tmp_path / "plain", base.card, base.load_network()).folder)
    assert read_bundle(keys["start_from"]).load_network(auxiliary=True).auxiliary is None
    del keys["architecture"]
    keys["optimisation"]["steps"] = 1

    bundle = train(TrainConfig.model_validate(keys), quiet=True)

    assert bundle.load_network(auxiliary=True).auxiliary is not None


def test_fine_tuning_keeps_the_range_of_values(
    keys: dict[str, Any], corner: Pair, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = read_bundle(str(small_bundle))
    card = replace(base.card, name="deep", value_range=(0.0, 2550.0))
    with rasterio.open(corner.scene) as source:
        profile = {**source.profile, "dtype": "uint16", "photometric": "RGB"}
        with rasterio.open(tmp_path / "deep.tif", "w", **profile) as deep:
            deep.write(source.read().astype(np.uint16) * 10)
    keys["start_from"] = str(write_bundle(tmp_path / "deep", card, base.load_network()).folder)
    keys["data"]["training"] = [{"scene": tmp_path / "deep.tif", "labels": corner.labels}]
    keys["optimisation"]["augmentation"] = {"scale": 1, "contrast": 0, "brightness": 0}
    del keys["architecture"]
    seen: list[Chips] = []

    def note(training: Training, chips: Chips, *arguments: Any, **options: Any) -> PSPNet:
        seen.append(chips)
        return fit(training, chips, *arguments, **options)

    monkeypatch.setattr("landseg.train.job.fit", note)
    bundle = train(TrainConfig.model_validate(keys), quiet=True)

    assert bundle.card.value_range == (0.0, 2550.0)
    image = seen[0].training.dataset[next(iter(seen[0].training.draw(1)))]["image"]
    # A tenth of what the file holds; percentiles would not bring it to whole numbers.
    torch.testing.assert_close(image, image.round(), rtol=0, atol=1e-3)
    assert len(image.unique()) > 50


def test_a_fine_tuned_network_is_averaged_with_what_it_began_as(
    keys: dict[str, Any], small_bundle: Path, tmp_path: Path
) -> None:
    base = read_bundle(str(small_bundle))
    names = base.card.legend.names
    keys |= {"start_from": str(small_bundle)}
    keys["legend"] = [{"class_id": i + 1, "name": n, "colour": f"#00000{i}"} for i, n in enumerate(names)]
    keys["data"] |= {"label_values": dict(enumerate(names)), "ignored_values": list(range(len(names), 5))}
    del keys["architecture"]
    keys["optimisation"] |= {"steps": 1}

    states = []
    for share in (0.0, 0.25):
        keys |= {"out": str(tmp_path / f"runs-{share}")}
        keys["optimisation"]["start_share"] = share
        bundle = train(TrainConfig.model_validate(keys), quiet=True)
        states.append(bundle.load_network(auxiliary=True).state_dict())

    begun, (tuned, averaged) = base.load_network(auxiliary=True).state_dict(), states
    for name in ("head.4.weight", "auxiliary.4.weight"):
        assert not torch.allclose(tuned[name], begun[name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(averaged[name], 0.75 * tuned[name] + 0.25 * begun[name], rtol=2e-3, atol=1e-5)


def test_averaging_needs_the_models_classes(keys: dict[str, Any], small_bundle: Path) -> None:
    del keys["architecture"]
    keys |= {"start_from": str(small_bundle)}
    keys["legend"] = [{**one, "name": f"{one['name']}-2"} for one in keys["legend"]]
    keys["data"]["label_values"] = {value: f"{name}-2" for value, name in keys["data"]["label_values"].items()}
    keys["optimisation"]["start_share"] = 0.5
    with pytest.raises(ConfigError, match="start_share needs the classes of small"):
        train(TrainConfig.model_validate(keys), quiet=True)


def test_averaging_needs_a_beginning(keys: dict[str, Any]) -> None:
    keys["optimisation"]["start_share"] = 0.5
    with pytest.raises(ValueError, match="start_share needs start_from"):
        TrainConfig.model_validate(keys)


def test_fine_tuning_needs_the_models_bands(keys: dict[str, Any], small_bundle: Path) -> None:
    del keys["architecture"]
    keys |= {"start_from": str(small_bundle), "bands": ["red", "nir"]}
    with pytest.raises(ConfigError, match="names the bands red, nir; those of small are red, green, blue"):
        train(TrainConfig.model_validate(keys), quiet=True)


@pytest.mark.parametrize(
    ("balanced", "given", "weights"),
    [
        (False, {}, None),
        (False, {"road": 3.0}, (1, 1, 3)),
        (True, {}, (0.5, 1, 2)),
        (True, {"road": 3.0}, (0.5, 1, 6)),
    ],
)
def test_class_weights(balanced: bool, given: dict[str, float], weights: tuple[float, ...] | None) -> None:
    legend = Legend(tuple(LandClass(i + 1, n, "#000000") for i, n in enumerate(("land", "building", "road"))))
    options = OptimisationConfig(steps=1, loss=LossConfig(balanced=balanced, class_weights=given))

    assert _objective(options, legend, np.array([0.5, 0.25, 0.125])).class_weights == weights
