import argparse
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from landseg.errors import BundleError
from landseg.model.convert import adapt_bands, load_backbone, read_checkpoint, read_weights
from landseg.model.resnet import ResNet
from tests.unit.model.published import MmSegmentation, Semseg

Weights = dict[str, Tensor]


def randomised(network: nn.Module) -> nn.Module:
    """Fill weights and statistics so that no layer is an identity, none dies and no output explodes."""
    draw = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=draw) * 0.5 + 0.75)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * (2 / max(1, tensor[0].numel())) ** 0.5)
    return network.eval()


def image(bands: int, rows: int, cols: int) -> Tensor:
    return torch.randn(2, bands, rows, cols, generator=torch.Generator().manual_seed(1))


def check_same(path: Path, original: nn.Module, x: Tensor, variant: dict[str, Any] | None = None) -> None:
    """Compare the logits of a checkpoint's network with the original's."""
    network = read_checkpoint(path, variant)
    with torch.inference_mode():
        actual, expected = network(x), original(x)

    assert not network.training
    assert expected.std() > 0.05
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.fixture(scope="module")
def semseg() -> nn.Module:
    return randomised(Semseg(classes=4, bands=2))


@pytest.fixture(scope="module")
def mmseg() -> nn.Module:
    return randomised(MmSegmentation(18, classes=4))


@pytest.mark.parametrize("size", [(49, 49), (57, 73)])
def test_semseg_answers_as_the_original(semseg: nn.Module, tmp_path: Path, size: tuple[int, int]) -> None:
    torch.save(semseg.state_dict(), tmp_path / "a.pth")

    check_same(tmp_path / "a.pth", semseg, image(2, *size))


def test_semseg_s_trained_files_are_wrapped_twice(semseg: nn.Module, tmp_path: Path) -> None:
    weights = {f"module.{name}": tensor for name, tensor in semseg.state_dict().items()}
    torch.save({"epoch": 50, "state_dict": weights, "optimizer": {"lr": 0.1}}, tmp_path / "train_epoch_50.pth")

    network = read_checkpoint(tmp_path / "train_epoch_50.pth")

    recorded = network.architecture
    assert (recorded.backbone, recorded.in_channels, recorded.classes, recorded.stem) == ("resnet50", 2, 4, "deep-128")
    assert recorded.auxiliary
    assert torch.equal(network.state_dict()["head.4.bias"], semseg.state_dict()["cls.4.bias"])


@pytest.mark.parametrize("size", [(48, 48), (53, 71)])
def test_mmsegmentation_answers_as_the_original(mmseg: nn.Module, tmp_path: Path, size: tuple[int, int]) -> None:
    torch.save({"meta": {"epoch": 1}, "state_dict": mmseg.state_dict()}, tmp_path / "a.pth")

    check_same(tmp_path / "a.pth", mmseg, image(3, *size))


def test_mmsegmentation_with_bottlenecks_answers_as_the_original(tmp_path: Path) -> None:
    original = randomised(MmSegmentation(50, classes=3, bands=4))
    save_file(original.state_dict(), tmp_path / "a.safetensors")

    check_same(tmp_path / "a.safetensors", original, image(4, 50, 41))


def test_mmsegmentation_without_deep_stem_and_with_other_bins(tmp_path: Path) -> None:
    original = randomised(MmSegmentation(18, classes=3, bins=(1, 4), v1c=False))
    torch.save(original.state_dict(), tmp_path / "a.pth")

    check_same(tmp_path / "a.pth", original, image(3, 40, 64), {"bins": (1, 4)})


def test_mmsegmentation_s_old_files_lack_counters_of_batches(mmseg: nn.Module, tmp_path: Path) -> None:
    weights = {k: t for k, t in mmseg.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(weights) < len(mmseg.state_dict())
    save_file(weights, tmp_path / "a.safetensors")

    check_same(tmp_path / "a.safetensors", mmseg, image(3, 48, 48))


@pytest.mark.parametrize(("codebase", "bands"), [("semseg", 2), ("mmseg", 3)])
def test_the_auxiliary_head_answers_as_the_original(
    codebase: str, bands: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original, x = request.getfixturevalue(codebase), image(bands, 49, 57)
    torch.save(original.state_dict(), tmp_path / "a.pth")

    network = read_checkpoint(tmp_path / "a.pth")

    with torch.inference_mode():
        _, actual = network(x, with_auxiliary=True)
        expected = original.auxiliary_logits(x)
    assert expected.std() > 0.05
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def renamed(weights: Weights, former: str, name: str) -> None:
    weights[name] = weights.pop(former)


@pytest.mark.parametrize(
    "change",
    [
        # Of fewer channels, of a smaller kernel, of other classes, one that sees the features twice, one of several.
        lambda w: w.update({"auxiliary_head.convs.0.conv.weight": torch.zeros(32, 256, 3, 3)}),
        lambda w: w.update({"auxiliary_head.convs.0.conv.weight": torch.zeros(64, 256, 1, 1)}),
        lambda w: w.update({"auxiliary_head.conv_seg.bias": torch.zeros(9)}),
        lambda w: w.update({"auxiliary_head.conv_cat.conv.weight": torch.zeros(64, 320, 3, 3)}),
        lambda w: renamed(w, "auxiliary_head.conv_seg.bias", "auxiliary_head.0.conv_seg.bias"),
    ],
)
def test_an_auxiliary_head_of_another_form_is_left_out(
    change: Callable[[Weights], Any], mmseg: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = dict(mmseg.state_dict())
    change(weights)
    path = save(weights, tmp_path / "a.pth")

    check_same(path, mmseg, image(3, 48, 48))

    assert caplog.messages == [f"{path}: its auxiliary head is of another form than landseg's and is left out"]
    network = read_checkpoint(path)
    assert network.auxiliary is None
    assert network.architecture.auxiliary


def test_a_checkpoint_without_an_auxiliary_head_says_so(
    mmseg: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {k: t for k, t in mmseg.state_dict().items() if not k.startswith("auxiliary_head.")}

    network = read_checkpoint(save(weights, tmp_path / "a.pth"))

    assert network.auxiliary is None
    assert not network.architecture.auxiliary
    assert not caplog.messages


@pytest.mark.parametrize(("encoder", "depth"), [("resnet18", 3), ("resnet50", 3), ("resnet18", 4), ("resnet18", 5)])
def test_segmentation_models_pytorch_answers_as_the_original(encoder: str, depth: int, tmp_path: Path) -> None:
    original = randomised(
        smp.PSPNet(encoder, encoder_weights=None, encoder_depth=depth, in_channels=4, classes=3, upsampling=2**depth)
    )
    torch.save(original.state_dict(), tmp_path / "a.pt")

    check_same(tmp_path / "a.pt", original, image(4, 2**depth * 3, 2**depth * 7))


def test_a_lightning_module_s_file_with_a_classifier_beside_the_map(tmp_path: Path) -> None:
    original = randomised(
        smp.PSPNet("resnet18", encoder_weights=None, psp_out_channels=48, classes=2, aux_params={"classes": 5})
    )
    torch.save({"state_dict": {f"model.{k}": t for k, t in original.state_dict().items()}}, tmp_path / "a.pt")

    check_same(tmp_path / "a.pt", lambda x: original(x)[0], image(3, 48, 72))  # type: ignore[arg-type]


BESIDE = {"std": torch.ones(3, 1, 1), "mean": torch.ones(3, 1, 1), "loss_fn.weight": torch.ones(4)}
"""What Lightning modules keep beside their network."""


@pytest.mark.parametrize("wrapper", ["model.", "module.", "model._orig_mod.", "module.model."])
def test_what_a_training_keeps_beside_its_network_is_left_out(wrapper: str, mmseg: nn.Module, tmp_path: Path) -> None:
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in mmseg.state_dict().items()}
    torch.save({"state_dict": BESIDE | wrapped}, tmp_path / "a.pth")

    check_same(tmp_path / "a.pth", mmseg, image(3, 48, 48))


def refusal(path: Path, variant: dict[str, Any] | None = None) -> BundleError:
    with pytest.raises(BundleError) as caught:
        read_checkpoint(path, variant)
    assert caught.value.exit_code == 3
    assert str(path) in caught.value.what
    return caught.value


def save(weights: Any, path: Path) -> Path:
    torch.save(weights, path)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("decode_head.bottleneck.bn.weight"), "lacks the weight decode_head.bottleneck.bn.weight"),
        (lambda w: w.pop("decode_head.conv_seg.weight"), "lacks the weight decode_head.conv_seg.weight"),
        (lambda w: w.pop("backbone.stem.0.weight"), "lacks the weight backbone.stem.0.weight"),
        (lambda w: w.update({"neck.0.weight": torch.zeros(1)}), "has an unexpected weight neck.0.weight"),
        (lambda w: w.update({"a": torch.zeros(1), "b": torch.zeros(1)}), "has an unexpected weight a and 1 more"),
        (
            lambda w: w.update({"backbone.layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}),
            "has a misshapen weight: backbone.layer2.0.conv1.weight is 128 x 64 x 1 x 1, not 128 x 64 x 3 x 3",
        ),
        (lambda w: w.update({"decode_head.conv_seg.weight": torch.zeros(4)}), "has a misshapen weight: decode_head."),
        (lambda w: w.update({"backbone.layer2.2.conv1.weight": torch.zeros(1)}), "stages of 2, 3, 2, 2 basic blocks"),
        (lambda w: w.update({"backbone.stem.6.weight": torch.zeros(96, 32, 3, 3)}), "a stem of (32, 32, 96) channels"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_the_name_of_a_weight(
    change: Callable[[Weights], Any], says: str, mmseg: nn.Module, tmp_path: Path
) -> None:
    weights = dict(mmseg.state_dict())
    change(weights)

    assert says in refusal(save(weights, tmp_path / "a.pth")).what


def test_a_checkpoint_of_no_known_codebase_is_refused(tmp_path: Path) -> None:
    error = refusal(save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth"))

    assert error.what.endswith("its first weight is conv1.weight")
    assert error.hint is not None
    assert "mmsegmentation" in error.hint


def test_a_pyramid_of_other_than_four_levels_must_be_explained(tmp_path: Path) -> None:
    with torch.device("meta"):
        weights = MmSegmentation(18, classes=3, bins=(1, 2, 3)).state_dict()
    path = save({k: torch.zeros(t.shape) for k, t in weights.items()}, tmp_path / "a.pth")

    error = refusal(path)

    assert "a pyramid of 3 levels" in error.what
    assert error.hint is not None
    assert "bins" in error.hint


class Boom:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("write", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_no_pickle_is_loaded(write: Callable[[Any, Path], object], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write({"state_dict": {}, "boom": Boom(trace)}, tmp_path / "a.pth")

    error = refusal(tmp_path / "a.pth")

    assert "without unpickling" in error.what
    assert error.hint is not None
    assert "state_dict" in error.hint
    assert not trace.exists()


def test_a_file_that_is_harmless_but_needs_pickle_is_refused_too(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")

    assert "without unpickling" in refusal(tmp_path / "a.pth").what


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pth", b"", "damaged"),
        ("a.pth", b"PK\x03\x04 and no more", "damaged"),
        ("a.safetensors", b"{}", "damaged"),
        ("a.ckpt.tar", b"", "is not a .safetensors, .pth or .pt file"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    assert says in refusal(tmp_path / name).what


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, torch.zeros(1), {"state_dict": {"a": "b"}}])
def test_a_file_without_a_state_dict_is_refused(value: Any, tmp_path: Path) -> None:
    assert "holds no state dict" in refusal(save(value, tmp_path / "a.pth")).what


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        assert "can't read" in refusal(tmp_path / name).what


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_device_is_refused(tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).symlink_to(os.devnull)
        assert "and no file" in refusal(tmp_path / name).what


def backbone_weights(name: str = "resnet18") -> Weights:
    return randomised(torchvision.models.get_model(name, weights=None)).state_dict()


@pytest.mark.parametrize(
    "dress",
    [
        lambda w: w,  # torchvision, timm
        lambda w: {k: t for k, t in w.items() if not k.startswith("fc.")},  # torchgeo
        lambda w: {f"module.{k}": t for k, t in w.items()},
        lambda w: {"state_dict": {f"model.backbone.{k}": t for k, t in w.items()}},
        lambda w: {"state_dict": BESIDE | {f"model.{k}": t for k, t in w.items()}},
        lambda w: {"state_dict": BESIDE | {f"model.encoder.{k}": t for k, t in w.items()}},
        lambda w: {f"backbone.{k}": t for k, t in w.items()} | {"projection_head.weight": torch.zeros(2)},
    ],
)
def test_a_backbone_starts_from_a_classifier_s_weights(dress: Callable[[Weights], Any], tmp_path: Path) -> None:
    published = backbone_weights()
    backbone = ResNet("resnet18")

    load_backbone(backbone, save(dress(published), tmp_path / "a.pth"))

    assert all(torch.equal(tensor, published[name]) for name, tensor in backbone.state_dict().items())


def test_a_short_backbone_takes_what_it_has_stages_for(tmp_path: Path) -> None:
    published = backbone_weights()
    backbone = ResNet("resnet18", stages=2)

    load_backbone(backbone, save(published, tmp_path / "a.pth"))

    assert torch.equal(backbone.state_dict()["layer2.1.conv2.weight"], published["layer2.1.conv2.weight"])


@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_a_backbone_of_other_bands_sees_grey_as_before(bands: int, tmp_path: Path) -> None:
    published = backbone_weights()
    backbone, original = ResNet("resnet18", in_channels=bands), ResNet("resnet18")
    path = save(published, tmp_path / "a.pth")
    load_backbone(backbone, path)
    load_backbone(original, path)
    grey = image(1, 32, 32)

    with torch.inference_mode():
        actual = backbone.conv1(grey.expand(-1, bands, -1, -1))
        expected = original.conv1(grey.expand(-1, 3, -1, -1))

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_more_bands_keep_telling_the_known_ones_apart() -> None:
    weight = torch.randn(8, 3, 7, 7)

    adapted = adapt_bands(weight, 4)

    assert torch.equal(adapted[:, 1:3], weight[:, 1:3])
    assert torch.equal(adapted[:, 0], weight[:, 0] / 2)
    assert torch.equal(adapted[:, 3], weight[:, 0] / 2)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet18", {"stem": "deep-64"}, "lacks the weight conv1.0.weight"),
        ("resnet50", {}, "misshapen weight: layer1.0.conv1.weight"),
        ("resnet34", {}, "unexpected weight layer1.2.conv1.weight"),
    ],
)
def test_a_backbone_s_weights_must_be_of_the_same_network(
    name: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError) as caught:
        load_backbone(ResNet("resnet18", **options), save(backbone_weights(name), tmp_path / "a.pth"))

    assert says in caught.value.what


def test_weights_come_in_the_file_s_order(tmp_path: Path) -> None:
    weights = {"z": torch.zeros(1), "a": torch.zeros(1)}

    assert list(read_weights(save(weights, tmp_path / "a.pth"))) == ["z", "a"]


def test_a_number_that_stands_for_many_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "bomb.pth")
    with pytest.raises(BundleError, match=r"does not hold all numbers of the weight fc\.weight"):
        read_weights(tmp_path / "bomb.pth")


def test_a_checkpoint_that_would_unpack_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    stored = save({"fc.weight": torch.zeros(10**6)}, tmp_path / "a.pth")
    with zipfile.ZipFile(stored) as parts, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in parts.namelist():
            packed.writestr(name, parts.read(name))
    assert list(read_weights(stored)) == ["fc.weight"]
    assert "would take more memory than disk" in refusal(tmp_path / "bomb.pth").what
