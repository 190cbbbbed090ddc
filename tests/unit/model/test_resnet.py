import pytest
import torch
import torchvision
from torch import Tensor, nn

from landseg.model.resnet import BackboneName, OutputStride, ResNet
from tests.unit.model.published import randomise

SHAPES_ONLY = torch.device("meta")
"""Tensors without values: building and running a network on it takes no time."""


def published_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run torchvision's ResNet up to its pooling; give stages 3 and 4."""
    kept = {}
    hooks = [
        getattr(network, stage).register_forward_hook(lambda _m, _i, out, stage=stage: kept.update({stage: out}))
        for stage in ("layer3", "layer4")
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return kept["layer3"], kept["layer4"]


@pytest.mark.parametrize(("name", "channels"), [("resnet18", (256, 512)), ("resnet50", (1024, 2048))])
@pytest.mark.parametrize(("output_stride", "strides"), [(8, (8, 8)), (16, (16, 16)), (32, (16, 32))])
def test_features_have_the_output_stride(
    name: BackboneName, channels: tuple[int, int], output_stride: OutputStride, strides: tuple[int, int]
) -> None:
    with SHAPES_ONLY:
        features = ResNet(name, output_stride=output_stride)(torch.zeros(1, 3, 64, 96))

    assert [tuple(f.shape) for f in features] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_channels_are_told(name: BackboneName) -> None:
    with SHAPES_ONLY:
        network = ResNet(name)
        features = network(torch.zeros(1, 3, 64, 96))

    assert list(network.out_channels[2:]) == [f.shape[1] for f in features]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_fit_every_output_stride(name: BackboneName) -> None:
    with SHAPES_ONLY:
        networks = [ResNet(name, output_stride=stride) for stride in (8, 16, 32)]

    shapes = [{key: tensor.shape for key, tensor in network.state_dict().items()} for network in networks]

    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_strided_features_are_the_dilated_ones_thinned_out(name: BackboneName) -> None:
    # Dilation stands in for stride exactly: on the coarse grid the same pixels are seen through the same weights.
    # In double precision, since sums are taken in another order.
    strided, dilated = (ResNet(name, output_stride=stride).double().eval() for stride in (32, 8))
    randomise(strided)
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()

    with torch.inference_mode():
        coarse, fine = strided(x), dilated(x)

    torch.testing.assert_close(fine[0][..., ::2, ::2], coarse[0])
    torch.testing.assert_close(fine[1][..., ::4, ::4], coarse[1])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_are_named_and_shaped_as_torchvision_s(name: BackboneName) -> None:
    with SHAPES_ONLY:
        ours, published = ResNet(name).state_dict(), torchvision.models.get_model(name, weights=None).state_dict()

    assert {key: t.shape for key, t in ours.items()} == {
        key: t.shape for key, t in published.items() if not key.startswith("fc.")
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_at_stride_32_are_torchvision_s(name: BackboneName) -> None:
    published = torchvision.models.get_model(name, weights=None).eval()
    randomise(published)
    network = ResNet(name, output_stride=32).eval()
    network.load_state_dict({k: v for k, v in published.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        actual, expected = network(x), published_features(published, x)

    assert expected[1].std() > 0.1
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("bands", [1, 4, 13])
def test_images_may_have_any_number_of_bands(bands: int) -> None:
    with SHAPES_ONLY:
        _, stage4 = ResNet("resnet18", in_channels=bands)(torch.zeros(1, bands, 48, 48))

    assert stage4.shape == (1, 512, 6, 6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_blocks_that_keep_the_shape_start_as_identities(name: BackboneName) -> None:
    block = ResNet(name).eval().layer2[1]
    x = torch.rand(1, block.conv1.in_channels, 5, 5)

    with torch.inference_mode():
        torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_changing_the_output_stride_makes_the_network_of_that_stride(
    name: BackboneName, output_stride: OutputStride
) -> None:
    changed = ResNet(name, output_stride=8)
    randomise(changed)
    built = ResNet(name, output_stride=output_stride)
    built.load_state_dict(changed.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    changed.set_output_stride(output_stride)

    with torch.inference_mode():
        for mine, expected in zip(changed.eval()(x), built.eval()(x), strict=True):
            assert torch.equal(mine, expected)
