import subprocess
import sys
from pathlib import Path

import torch
import torchvision
import yaml
from safetensors.torch import save_file

from landseg.config import TrainConfig, load_config
from landseg.train.job import train
from tests.conftest import DEMO_LABELS, DEMO_SCENE, ROOT


def test_the_teacher_is_made_of_published_weights_and_teaches(tmp_path: Path) -> None:
    # As pipelines/imagenet_resnet50.py writes them.
    torch.manual_seed(0)
    weights = {
        name: tensor
        for name, tensor in torchvision.models.resnet50().state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    save_file(weights, tmp_path / "resnet50.safetensors")
    config = yaml.safe_load((ROOT / "configs/train/dubai.yaml").read_text())
    pair = {"scene": DEMO_SCENE.name, "labels": DEMO_LABELS.name}
    config["data"] |= {"root": str(DEMO_SCENE.parent), "training": [pair], "held_out": []}
    del config["data"]["validation"]
    config |= {"chip_px": 48, "out": str(tmp_path / "runs")}
    short = {"steps": 2, "coarse_steps": 1, "batch": 2, "checkpoint_every": 2, "loader_workers": 0}
    config["optimisation"] |= short | {"initial_weights": None}
    config["optimisation"]["teacher"]["models"] = [str(tmp_path / "teacher.pt")]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    script = [sys.executable, ROOT / "pipelines/dubai_teacher.py", DEMO_SCENE.parent, tmp_path / "teacher.pt"]
    options = ["--config", tmp_path / "config.yaml", "--steps", "1", "--weights", tmp_path / "resnet50.safetensors"]
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    bundle = train(load_config(tmp_path / "config.yaml", TrainConfig), quiet=True)
    assert bundle.card.training["optimisation"]["teacher"]["weight"] == 1
