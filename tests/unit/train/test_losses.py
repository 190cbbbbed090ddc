import numpy as np
import pytest
import torch

from landseg.train.labels import IGNORED
from landseg.train.losses import pspnet_loss


def test_loss_is_the_mean_cross_entropy_of_the_labelled_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, auxiliary = torch.randn(2, 2, 3, 4, 5, generator=draw).double()
    mask = torch.randint(3, (2, 4, 5), generator=draw)
    mask[0, :2] = IGNORED

    expected, count = 0.0, 0
    for n, row, col in np.ndindex(2, 4, 5):
        if mask[n, row, col] != IGNORED:
            count += 1
            for scores, weight in ((logits, 1.0), (auxiliary, 0.4)):
                odds = np.exp(scores[n, :, row, col].numpy())
                expected -= weight * np.log(odds[mask[n, row, col]] / odds.sum())

    assert count == 30
    assert pspnet_loss(logits, auxiliary, mask, 0.4).item() == pytest.approx(expected / count, rel=1e-12)


def test_ignored_pixels_get_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[[0, IGNORED], [2, 1]]])

    pspnet_loss(logits, logits.detach(), mask, 0.4).backward()

    assert logits.grad is not None
    assert logits.grad.abs().sum(dim=1).gt(0).tolist() == [[[True, False], [True, True]]]


def test_nothing_labelled_costs_nothing() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True, generator=torch.Generator().manual_seed(0))
    mask = torch.full((1, 2, 2), IGNORED)

    loss = pspnet_loss(logits, logits, mask, 0.4)
    loss.backward()

    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()  # and not NaN either


def test_a_perfect_answer_costs_next_to_nothing_and_a_wrong_one_much() -> None:
    mask = torch.tensor([[[0, 1]]])
    right = torch.tensor([[[[50.0, 0.0]], [[0.0, 50.0]]]])

    assert pspnet_loss(right, right, mask, 0.4).item() == pytest.approx(0, abs=1e-6)
    assert pspnet_loss(-right, -right, mask, 0.4).item() == pytest.approx(1.4 * 50)
