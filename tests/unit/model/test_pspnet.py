import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from landseg.model.pspnet import Architecture, Concatenation, OnSwaths, Pooling, PSPNet, PyramidPooling
from landseg.model.resnet import OutputStride

TINY = Architecture(classes=4)
SHAPES_ONLY = torch.device("meta")
"""Tensors without values: building and running a network on it takes no time."""


def bin_edges(size: int, bins: int) -> list[tuple[int, int]]:
    """Cut a side into bins that cover it: from the floor of one fraction to the ceiling of the next."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def pooled(x: NDArray[np.float64], bins: int, pooling: Pooling) -> NDArray[np.float64]:
    """(C, h, w) -> (C, bins, bins): the mean or the largest value of each cell."""
    cell = {"average": np.mean, "max": np.max}[pooling]
    rows, cols = bin_edges(x.shape[1], bins), bin_edges(x.shape[2], bins)
    return np.stack([np.stack([cell(x[:, a:b, c:d], axis=(1, 2)) for c, d in cols], -1) for a, b in rows], -2)


def stretched(x: NDArray[np.float64], axis: int, size: int, align_corners: bool) -> NDArray[np.float64]:
    """Interpolate linearly between pixel centres along an axis; beyond the outermost centres, repeat them."""
    if align_corners:
        centres = np.linspace(0, x.shape[axis] - 1, size)
    else:
        centres = np.clip((np.arange(size) + 0.5) * x.shape[axis] / size - 0.5, 0, x.shape[axis] - 1)
    low = np.floor(centres).astype(int)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    share = (centres - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share


def settle(network: nn.Module) -> None:
    """Give normalisations statistics and gains that are not 0 or 1, as training would."""
    draw = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)


@pytest.mark.parametrize(("rows", "cols"), [(6, 6), (7, 10)])
@pytest.mark.parametrize(
    ("pooling", "align_corners", "concatenation"),
    [("average", True, "features-first"), ("average", False, "pyramid-first"), ("max", False, "features-first")],
)
def test_pyramid_is_cells_reduced_and_stretched_beside_the_features(
    rows: int, cols: int, pooling: Pooling, align_corners: bool, concatenation: Concatenation
) -> None:
    pyramid = PyramidPooling(
        8, Architecture(pooling=pooling, align_corners=align_corners, concatenation=concatenation)
    ).eval()
    settle(pyramid)
    x = torch.randn(2, 8, rows, cols, generator=torch.Generator().manual_seed(1))

    expected = []
    for image in x.double().numpy():
        parts = [image]
        for bins, (_, conv, norm, _) in zip((1, 2, 3, 6), pyramid.levels, strict=True):
            y = np.einsum(
                "oi,ihw->ohw", conv.weight.detach().double().numpy()[:, :, 0, 0], pooled(image, bins, pooling)
            )
            mean, var, gain, shift = (
                t.detach().double().numpy()[:, None, None]
                for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            )
            y = np.maximum((y - mean) / np.sqrt(var + norm.eps) * gain + shift, 0)
            parts.append(stretched(stretched(y, 1, rows, align_corners), 2, cols, align_corners))
        expected.append(np.concatenate(parts if concatenation == "features-first" else [*parts[1:], image]))

    with torch.inference_mode():
        actual = pyramid(x)

    assert actual.shape == (2, 8 + 4 * 2, rows, cols)
    assert pyramid.out_channels == 16
    np.testing.assert_allclose(actual.numpy(), np.stack(expected), rtol=1e-4, atol=1e-5)


def test_levels_that_do_not_divide_the_channels_are_counted() -> None:
    pyramid = PyramidPooling(16, Architecture(bins=(1, 2, 3))).eval()

    with torch.inference_mode():
        assert pyramid(torch.zeros(1, 16, 6, 6)).shape[1] == pyramid.out_channels == 16 + 3 * 5


def test_a_network_may_do_without_its_pyramid() -> None:
    pyramid = PyramidPooling(16, Architecture(bins=())).eval()
    x = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(1))

    assert torch.equal(pyramid(x), x)
    assert pyramid.out_channels == 16
    assert not pyramid.state_dict()


@pytest.mark.parametrize("chip_px", [48, 96, 240])
def test_a_multiple_of_48_makes_equal_bins(chip_px: int) -> None:
    with SHAPES_ONLY:
        network = PSPNet(TINY)
        _, features = network.backbone(torch.zeros(1, 3, chip_px, chip_px))
    side = features.shape[-1]

    for bins in TINY.bins:
        pool = network.pyramid.levels[TINY.bins.index(bins)][0]
        # The gradient of a cell with respect to the features is 1 over its area where the cell looks, 0 elsewhere.
        x = torch.ones(1, 1, side, side, requires_grad=True)
        pool(x).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad, torch.full_like(x, (bins / side) ** 2))


def test_other_sizes_make_bins_that_overlap() -> None:
    # The test above could not fail if every size made equal bins.
    x = torch.ones(1, 1, 7, 7, requires_grad=True)
    nn.AdaptiveAvgPool2d(6)(x).sum().backward()

    assert x.grad is not None
    assert x.grad.unique().numel() > 1


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("resnet18", classes=4),
        Architecture("resnet18", in_channels=1, classes=2, output_stride=32),
        Architecture("resnet18", in_channels=13, classes=7, output_stride=16, bins=(1, 4)),
        Architecture("resnet18", bins=()),
        Architecture("resnet50", in_channels=4, classes=3),
    ],
)
def test_logits_cover_every_pixel(architecture: Architecture) -> None:
    with SHAPES_ONLY:
        network = PSPNet(architecture, auxiliary=True)
        x = torch.zeros(2, architecture.in_channels, 96, 64)
        logits, auxiliary = network(x, with_auxiliary=True)
        alone = network(x)

    assert logits.shape == auxiliary.shape == alone.shape == (2, architecture.classes, 96, 64)


def test_auxiliary_logits_are_asked_of_a_network_that_has_them() -> None:
    with SHAPES_ONLY, pytest.raises(ValueError, match="without its auxiliary head"):
        PSPNet(TINY)(torch.zeros(2, 3, 48, 48), with_auxiliary=True)


def test_auxiliary_head_changes_no_other_weight() -> None:
    with SHAPES_ONLY:
        plain, supervised = PSPNet(TINY).state_dict(), PSPNet(TINY, auxiliary=True).state_dict()

    assert {k: t.shape for k, t in plain.items()} == {
        k: t.shape for k, t in supervised.items() if not k.startswith("auxiliary.")
    }
    assert len(supervised) > len(plain)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    network = PSPNet(TINY, auxiliary=True).train()
    settle(network)  # blocks start as identities, which hold gradients back
    logits, auxiliary = network(torch.randn(2, 3, 48, 48), with_auxiliary=True)

    (logits.square().mean() + auxiliary.square().mean()).backward()

    unreached = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_auxiliary_loss_leaves_the_last_stage_alone() -> None:
    torch.manual_seed(0)
    network = PSPNet(TINY, auxiliary=True).train()
    settle(network)
    _, auxiliary = network(torch.randn(2, 3, 48, 48), with_auxiliary=True)

    auxiliary.square().mean().backward()

    reached = {n.split(".")[1] for n, p in network.backbone.named_parameters(prefix="backbone") if p.grad is not None}
    assert reached == {"conv1", "bn1", "layer1", "layer2", "layer3"}


def test_inference_is_deterministic_and_training_is_not() -> None:
    torch.manual_seed(0)
    network = PSPNet(TINY, auxiliary=True)
    x = torch.randn(2, 3, 48, 48)

    with torch.inference_mode():
        network.eval()
        first = network(x)
        assert torch.equal(network(x), first)
        assert torch.equal(network(x, with_auxiliary=True)[0], first)
        network.train()
        assert not torch.equal(network(x), network(x))  # dropout


def test_a_chip_s_answer_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    torch.manual_seed(0)
    network = PSPNet(TINY).eval()
    settle(network)
    x = torch.randn(3, 3, 48, 48)

    with torch.inference_mode():
        torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chip_px", [48, 53])
def test_a_single_chip_is_a_swath(chip_px: int) -> None:
    network = PSPNet(Architecture()).eval()
    x = torch.randn(2, 3, chip_px, chip_px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(OnSwaths(network, chip_px)(x), network(x), atol=1e-6)


@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_chips_of_a_swath_are_answered_as_chips_are_where_features_see_no_side(
    output_stride: OutputStride, is_tall: bool
) -> None:
    # The stem and three stages of basic blocks see less than 192 pixels around.
    network = PSPNet(Architecture(stages=3, stem="7x7", output_stride=output_stride, bins=())).eval()
    settle(network)
    chip, stride = 400, 208
    x = torch.randn(2, 3, chip, chip + 2 * stride, generator=torch.Generator().manual_seed(0))
    lefts = (0, stride, 2 * stride)
    chips = torch.stack([swath[..., left : left + chip] for swath in x for left in lefts])
    with torch.inference_mode():
        if is_tall:
            chips, x = chips.mT, x.mT
        alone, together = network(chips), OnSwaths(network, stride)(x)
    middle = slice(192, chip - 192)
    error = (together - alone)[..., middle, middle].abs().max()
    assert error < 1e-4 * alone.std()


def test_the_pyramid_pools_over_single_chips_of_a_swath() -> None:
    network = PSPNet(Architecture()).eval()
    seen: list[torch.Tensor] = []
    network.pyramid.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        OnSwaths(network, 40)(torch.randn(2, 3, 48, 48 + 3 * 40))
    assert [tuple(features.shape) for features in seen] == [(8, 512, 6, 6)]
