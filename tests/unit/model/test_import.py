"""``landseg models import``: a checkpoint and a card in YAML become a bundle that maps."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from landseg.config import ImportConfig, load_config
from landseg.model.bundle import CARD_FILE, read_bundle
from tests.conftest import ROOT, Landseg, SceneMaker
from tests.unit.model.published import MmSegmentation

CARD: dict[str, Any] = {
    "title": "City classes",
    "description": "A network of random weights.",
    "licence": "CC0-1.0",
    "created": "2024-05-06",
    "legend": [
        {"class_id": 3, "name": "land", "colour": "#ece2c6"},
        {"class_id": 9, "name": "water", "colour": "#56b4e9"},
    ],
    "bands": ["red", "green", "blue"],
    "gsd_m": 1.0,
    "chip_px": 48,
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "training_data": "None.",
    "limits": ["Good for nothing."],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "pspnet_r18-d8.pth"
    torch.save({"state_dict": MmSegmentation(18, classes=2).state_dict()}, path)
    return path


def card(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (CARD | changes).items() if v is not None}, sort_keys=False))
    return path


def test_an_imported_model_maps(
    checkpoint: Path, tmp_path: Path, landseg: Landseg, make_scene: SceneMaker, rng: np.random.Generator
) -> None:
    out = tmp_path / "models" / "city"

    done = landseg("models", "import", checkpoint, "--out", out, "--card", card(tmp_path))

    assert (done.code, done.out) == (0, f"{out}\n")
    read = read_bundle(str(out)).card
    assert (read.name, read.title, read.licence, read.created) == (
        "city", "City classes", "CC0-1.0", "2024-05-06T00:00:00Z",
    )  # fmt: skip
    assert (read.legend.class_ids, read.bands, read.chip_px) == ((3, 9), ("red", "green", "blue"), 48)
    assert (read.mean, read.std) == (tuple(CARD["mean"]), tuple(CARD["std"]))
    assert read.training == {"data": "None.", "imported_from": "pspnet_r18-d8.pth"}
    stored = read_bundle(str(out)).load_network(auxiliary=True).state_dict()["auxiliary.0.weight"]
    published = torch.load(checkpoint)["state_dict"]["auxiliary_head.convs.0.conv.weight"]
    assert torch.equal(stored, published.half().float())
    scene = make_scene(rng.integers(0, 255, (3, 60, 70), dtype=np.uint8))
    mapped = landseg("run", scene, "--out", tmp_path / "map.gpkg", "--model", out, "--quiet")
    assert mapped.code == 0, mapped.err


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_the_card_records_and_shows_the_variant(checkpoint: Path, tmp_path: Path, landseg: Landseg) -> None:
    out = tmp_path / "city"
    landseg("models", "import", checkpoint, "--out", out, "--card", card(tmp_path, architecture={"output_stride": 16}))

    recorded = json.loads((out / CARD_FILE).read_text(encoding="utf-8"))["properties"]["landseg:architecture"]
    shown = landseg("models", "show", out)

    assert (recorded["stem"], recorded["align_corners"], recorded["output_stride"]) == ("deep-64", False, 16)
    assert (recorded["first_block_dilation"], recorded["basic_block_dilation"]) == ("contracted", "first")
    text = " ".join(shown.out.split())
    assert "PSPNet on resnet18, unlike the paper's: output_stride 16, stem deep-64, align_corners False" in text


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"colour": "red"}, 2, "unknown key 'colour'"),
        ({"gsd_m": None}, 2, "'gsd_m' is missing"),
        ({"mean": [1.0]}, 2, "1 values of mean for 3 bands"),
        ({"std": [1.0, 0.0, 1.0]}, 2, "'std.1'"),
        ({"architecture": {"backbone": "resnet50"}}, 2, "unknown key 'architecture.backbone'"),
        ({"legend": CARD["legend"][:1]}, 3, "names 1 classes, and the network of"),
        ({"bands": ["red"], "mean": [1.0], "std": [1.0]}, 3, "names 1 bands, and the network of"),
        ({"architecture": {"bins": [1, 2]}}, 3, "4 levels"),
        ({"architecture": {"bins": []}}, 3, "4 levels"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(
    change: dict[str, Any], code: int, says: str, checkpoint: Path, tmp_path: Path, landseg: Landseg
) -> None:
    refused = landseg("models", "import", checkpoint, "--out", tmp_path / "city", "--card", card(tmp_path, **change))

    assert refused.code == code
    assert says in refused.err
    assert not (tmp_path / "city").exists()


def test_the_card_in_the_documentation_holds(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "card.yaml"

    # The second is what may be added to the first.
    path.write_text("\n".join(textwrap.dedent(block) for block in blocks), encoding="utf-8")

    config = load_config(path, ImportConfig)
    assert config.architecture.bins == (1, 2, 4, 8)


def test_what_is_there_is_kept(checkpoint: Path, tmp_path: Path, landseg: Landseg) -> None:
    out = tmp_path / "city"
    arguments = ("models", "import", checkpoint, "--out", out, "--card", card(tmp_path))
    out.mkdir()
    (out / "thesis.txt").touch()

    assert landseg(*arguments).code == 2
    refused = landseg(*arguments, "--overwrite")

    assert refused.code == 2
    assert "not a model bundle" in refused.err
    assert (out / "thesis.txt").exists()


def test_a_bundle_is_replaced_on_request(checkpoint: Path, tmp_path: Path, landseg: Landseg) -> None:
    out = tmp_path / "city"
    landseg("models", "import", checkpoint, "--out", out, "--card", card(tmp_path))

    kept = landseg("models", "import", checkpoint, "--out", out, "--card", card(tmp_path, title="Second"))
    replaced = landseg(
        "models", "import", checkpoint, "--out", out, "--card", card(tmp_path, title="Second"), "--overwrite"
    )

    assert (kept.code, replaced.code) == (2, 0)
    assert read_bundle(str(out)).card.title == "Second"
