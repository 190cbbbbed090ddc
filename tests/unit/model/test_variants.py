"""Variants of the network: that of the first bundles never changes, and no option is without effect."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from landseg.config import ArchitectureConfig, TrainConfig, load_config
from landseg.model.bundle import DEFAULT_MODEL, read_bundle
from landseg.model.pspnet import Architecture, PSPNet
from tests.conftest import ROOT
from tests.unit.model.published import randomise

FIRST = Architecture(stem="7x7", align_corners=False, first_block_dilation="contracted")
"""Of the first bundles."""


class Frozen:
    """The network of the first bundles, written out over its weights; nothing of landseg's is in it.

    ResNet-18 with a 7x7 stem. In stages 3 and 4 stride gives way to dilation 2 and 4; the first convolution of such a
    stage has the dilation of the stage before. All upsampling is bilinear between outer edges.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.unused = {name for name in weights if not name.endswith("num_batches_tracked")}

    def take(self, name: str) -> Tensor:
        self.unused.discard(name)
        return self.weights[name]

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.take(f"{name}.weight")
        return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, gain, shift = (
            self.take(f"{name}.{part}")[:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * gain + shift

    def block(self, x: Tensor, name: str, stride: int, first: int, second: int, *, projected: bool) -> Tensor:
        y = F.relu(self.norm(self.conv(x, f"{name}.conv1", stride, first), f"{name}.bn1"))
        y = self.norm(self.conv(y, f"{name}.conv2", 1, second), f"{name}.bn2")
        if projected:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return F.relu(x + y)

    def stage(self, x: Tensor, name: str, stride: int, first: int, dilation: int, *, projected: bool = True) -> Tensor:
        x = self.block(x, f"{name}.0", stride, first, dilation, projected=projected)
        return self.block(x, f"{name}.1", 1, dilation, dilation, projected=False)

    def head(self, x: Tensor, name: str) -> Tensor:
        x = F.relu(self.norm(self.conv(x, f"{name}.0"), f"{name}.1"))
        return self.conv(x, f"{name}.4") + self.take(f"{name}.4.bias")[:, None, None]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[-2:]
        x = F.relu(self.norm(self.conv(x, "backbone.conv1", stride=2), "backbone.bn1"))
        x = F.max_pool2d(x, 3, 2, 1)
        x = self.stage(x, "backbone.layer1", 1, 1, 1, projected=False)
        x = self.stage(x, "backbone.layer2", 2, 1, 1)
        stage3 = self.stage(x, "backbone.layer3", 1, 1, 2)
        stage4 = self.stage(stage3, "backbone.layer4", 1, 2, 4)
        parts = [stage4]
        for level, cells in enumerate((1, 2, 3, 6)):
            y = F.adaptive_avg_pool2d(stage4, cells)
            y = F.relu(self.norm(self.conv(y, f"pyramid.levels.{level}.1"), f"pyramid.levels.{level}.2"))
            parts.append(F.interpolate(y, stage4.shape[-2:], mode="bilinear", align_corners=False))
        logits, auxiliary = self.head(torch.cat(parts, 1), "head"), self.head(stage3, "auxiliary")
        return (
            F.interpolate(logits, size, mode="bilinear", align_corners=False),
            F.interpolate(auxiliary, size, mode="bilinear", align_corners=False),
        )


@pytest.mark.parametrize("size", [(48, 48), (53, 71)])
def test_the_network_of_the_first_bundles_answers_as_ever(size: tuple[int, int]) -> None:
    network = PSPNet(FIRST, auxiliary=True).eval()
    randomise(network)
    frozen = Frozen(network.state_dict())
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        expected, actual = frozen(x), network(x, with_auxiliary=True)

    assert frozen.unused == set()
    assert expected[0].std() > 0.01
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_shipped_model_is_of_the_variant_that_its_training_says() -> None:
    config = load_config(ROOT / "configs/train/dubai.yaml", TrainConfig)

    assert Architecture(**config.architecture.model_dump()) == read_bundle(DEFAULT_MODEL).card.architecture


def test_a_training_is_told_the_same_options_with_the_same_defaults() -> None:
    known = {f.name: f.default for f in dataclasses.fields(Architecture) if f.name not in ("in_channels", "classes")}

    assert ArchitectureConfig().model_dump() == known


def test_the_default_is_the_paper_s() -> None:
    paper = Architecture()

    assert (paper.bins, paper.pooling, paper.output_stride) == ((1, 2, 3, 6), "average", 8)
    assert (paper.stem, paper.align_corners, paper.first_block_dilation) == ("deep-128", True, "full")
    assert paper.auxiliary


@pytest.mark.parametrize(
    "change",
    [
        {"align_corners": True},
        {"first_block_dilation": "full"},
        {"basic_block_dilation": "first"},
        {"pooling": "max"},
        {"output_stride": 16},
        {"bins": (1, 2, 3, 4)},
        {"concatenation": "pyramid-first"},
    ],
)
def test_weights_fit_another_variant_and_mean_something_else(change: dict[str, Any]) -> None:
    # Why each is on the card: nothing else would tell.
    one, other = PSPNet(FIRST).eval(), PSPNet(dataclasses.replace(FIRST, **change)).eval()
    randomise(one)
    other.load_state_dict(one.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        expected, actual = one(x), other(x)

    assert (actual - expected).abs().max() > 1e-3 * expected.std()


@pytest.mark.parametrize(
    "change",
    [
        {"stem": "deep-64"},
        {"stem": "deep-128"},
        {"stages": 2},
        {"normalise_bin_1": False},
        {"level_channels": 4},
        {"head_channels": 16},
        {"bottleneck_kernel": 1},
        {"classifier_kernel": 3},
        {"backbone": "resnet34"},
        {"in_channels": 13},
    ],
)
def test_weights_of_other_variants_do_not_fit(change: dict[str, Any]) -> None:
    with torch.device("meta"):
        one, other = PSPNet(FIRST), PSPNet(dataclasses.replace(FIRST, **change))

    assert {k: t.shape for k, t in one.state_dict().items()} != {k: t.shape for k, t in other.state_dict().items()}


@pytest.mark.parametrize("stages", [2, 3])
def test_a_shorter_backbone_carries_the_pyramid_on_its_last_stage(stages: Any) -> None:
    with torch.device("meta"):
        network = PSPNet(Architecture(stages=stages, output_stride=8), auxiliary=True)
        logits, auxiliary = network(torch.zeros(2, 3, 48, 64), with_auxiliary=True)

    assert network.pyramid.levels[0][1].in_channels == 64 * 2 ** (stages - 1)
    assert logits.shape == auxiliary.shape == (2, 5, 48, 64)


def test_memory_grows_with_stem_and_features() -> None:
    # Of the first bundles: three maps of 64 channels at half resolution, one of them unfolded.
    assert FIRST.floats_per_pixel == 3 * 16 + 64
    deep = dataclasses.replace(FIRST, stem="deep-128")
    large = dataclasses.replace(deep, backbone="resnet50")
    coarse = dataclasses.replace(large, output_stride=32)
    assert FIRST.floats_per_pixel < deep.floats_per_pixel < large.floats_per_pixel
    assert coarse.floats_per_pixel == deep.floats_per_pixel


def test_the_paper_s_network_departs_from_it_in_nothing() -> None:
    assert Architecture(backbone="resnet101", in_channels=13, classes=20).departures == {}
    assert FIRST.departures == {"stem": "7x7", "align_corners": False, "first_block_dilation": "contracted"}
