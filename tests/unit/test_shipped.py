"""What comes with landseg beside its code: presets and bundles."""

from pathlib import Path

import pytest

from landseg.config import RunConfig, TrainConfig, load_config
from landseg.model.bundle import DEFAULT_MODEL, WEIGHTS_FILE, read_bundle, shipped_models
from tests.conftest import ROOT

RUN_PRESETS = sorted((ROOT / "configs/run").glob("*.yaml"))
TRAIN_PRESETS = sorted((ROOT / "configs/train").glob("*.yaml"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", RUN_PRESETS, ids=relative)
def test_run_presets_load(path: Path) -> None:
    assert load_config(path, RunConfig) != RunConfig()


@pytest.mark.parametrize("path", TRAIN_PRESETS, ids=relative)
def test_training_presets_load(path: Path) -> None:
    config = load_config(path, TrainConfig)
    if config.data.dataset is not None:
        return  # a published set holds its own split out
    held_out = {pair.scene for pair in config.data.held_out}
    assert held_out
    assert not held_out & {pair.scene for pair in config.data.training}


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_bundle_is_whole_and_small(name: str) -> None:
    bundle = read_bundle(name)
    bundle.load_network()
    assert bundle.card.name == name
    assert (bundle.folder / WEIGHTS_FILE).stat().st_size < 30e6
    assert bundle.card.limits
    assert bundle.card.held_out["miou"] > 0


def test_the_default_model_is_shipped() -> None:
    assert DEFAULT_MODEL in shipped_models()
    assert RunConfig().model == DEFAULT_MODEL


def test_the_default_model_never_saw_the_demo() -> None:
    card = read_bundle(DEFAULT_MODEL).card
    assert card.held_out["data"] == "dubai_tile2.tif"
    assert not any("tile2" in scene for scene in card.training["scenes"])
