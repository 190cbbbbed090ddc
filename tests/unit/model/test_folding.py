"""Folding: no variant answers otherwise than before, and what was folded is gone."""

from typing import Any

import pytest
import torch
from torch import nn

from landseg.model.folding import FoldedPyramid, fold
from landseg.model.pspnet import Architecture, PSPNet
from tests.unit.model.published import randomise


@pytest.mark.parametrize("size", [(48, 48), (71, 53)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem": "7x7", "align_corners": False},
        {"backbone": "resnet50", "stages": 2},
        {"pooling": "max", "concatenation": "pyramid-first", "normalise_bin_1": False},
        {"bottleneck_kernel": 1, "classifier_kernel": 3},
        {"bins": (5,), "level_channels": 32},
        {"bins": ()},
    ],
    ids=str,
)
def test_a_folded_network_answers_as_before(options: dict[str, Any], size: tuple[int, int]) -> None:
    network = PSPNet(Architecture(**options)).eval()
    randomise(network)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        before = network(x)
        fold(network)
        after = network(x)

    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert isinstance(network.pyramid, FoldedPyramid) == bool(network.architecture.bins)
    assert (after - before).abs().max() < 1e-5 * before.std()


def test_a_worker_may_fold_once_more_what_it_had_no_memory_to_run() -> None:
    network = PSPNet(Architecture()).eval()
    fold(network)
    pyramid = network.pyramid

    fold(network)

    assert network.pyramid is pyramid


def test_one_network_takes_chips_of_several_sizes() -> None:
    network, folded = PSPNet(Architecture()).eval(), PSPNet(Architecture()).eval()
    randomise(network)
    folded.load_state_dict(network.state_dict())
    fold(folded)
    for side in (48, 96, 48):
        x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_pyramid_of_more_cells_than_channels_stays_as_it_is() -> None:
    network = PSPNet(Architecture(bins=(1, 2, 24))).eval()

    fold(network)

    assert not isinstance(network.pyramid, FoldedPyramid)
