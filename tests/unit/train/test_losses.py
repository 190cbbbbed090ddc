"""Losses, each against its definition written out pixel by pixel."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from landseg.train.labels import IGNORED
from landseg.train.losses import Objective, cross_entropy, dice_loss, lovasz_softmax

CLASSES = 3


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, CLASSES, 4, 5, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def mask() -> Tensor:
    mask = torch.randint(CLASSES, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    mask[0, :2] = IGNORED
    return mask


def labelled(logits: Tensor, mask: Tensor) -> list[tuple[NDArray[np.float64], int]]:
    """Give probabilities and class of each labelled pixel."""
    pixels = []
    for n, row, col in np.ndindex(*mask.shape):
        if mask[n, row, col] != IGNORED:
            odds = np.exp(logits[n, :, row, col].numpy())
            pixels.append((odds / odds.sum(), int(mask[n, row, col])))
    return pixels


def test_the_papers_loss_is_the_mean_cross_entropy_of_both_heads(logits: Tensor, mask: Tensor) -> None:
    auxiliary = logits.flip(-1)

    expected = sum(
        weight * -np.mean([np.log(p[channel]) for p, channel in labelled(scores, mask)])
        for scores, weight in ((logits, 1.0), (auxiliary, 0.4))
    )

    assert len(labelled(logits, mask)) == 30
    assert Objective().of_both_heads(logits, auxiliary, mask).item() == pytest.approx(expected, rel=1e-12)


def test_a_teacher_is_learnt_from_everywhere_by_both_heads(logits: Tensor, mask: Tensor) -> None:
    taught = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)).double().softmax(dim=1)
    auxiliary = logits.flip(-1)

    def towards_teacher(scores: Tensor) -> float:
        return float(-(taught * scores.log_softmax(dim=1)).sum(dim=1).mean())

    both = Objective(teacher=0.5).of_both_heads(logits, auxiliary, mask, taught)
    alone = Objective(teacher=0.5).of_both_heads(logits, auxiliary, mask)

    gained = 0.5 * (towards_teacher(logits) + 0.4 * towards_teacher(auxiliary))
    assert (both - alone).item() == pytest.approx(gained, rel=1e-12)


def test_class_weights_weigh_the_mean(logits: Tensor, mask: Tensor) -> None:
    weights = (0.5, 1.0, 4.0)
    pixels = labelled(logits, mask)

    expected = -sum(weights[c] * np.log(p[c]) for p, c in pixels) / sum(weights[c] for _, c in pixels)

    assert Objective(class_weights=weights)(logits, mask).item() == pytest.approx(expected, rel=1e-12)


def test_the_hardest_share_is_the_mean_of_the_costliest_pixels(logits: Tensor, mask: Tensor) -> None:
    costs = sorted((-np.log(p[c]) for p, c in labelled(logits, mask)), reverse=True)

    assert cross_entropy(logits, mask, hardest_share=0.3).item() == pytest.approx(np.mean(costs[:9]), rel=1e-12)
    # Of however few, one counts.
    assert cross_entropy(logits, mask, hardest_share=1e-6).item() == pytest.approx(costs[0], rel=1e-12)


def test_dice_is_the_mean_over_the_classes_that_are_there(logits: Tensor, mask: Tensor) -> None:
    mask[mask == 2] = 1
    pixels = labelled(logits, mask)

    coefficients = []
    for channel in (0, 1):
        hits = sum(p[channel] for p, c in pixels if c == channel)
        sizes = sum(p[channel] for p, _ in pixels) + sum(c == channel for _, c in pixels)
        coefficients.append(2 * hits / sizes)

    assert dice_loss(logits, mask).item() == pytest.approx(1 - np.mean(coefficients), rel=1e-12)


def test_lovasz_is_the_jaccard_loss_interpolated_over_the_errors(logits: Tensor, mask: Tensor) -> None:
    # Berman et al., definition 2 and equation 8: errors in falling order, each times the loss that its pixel adds.
    pixels = labelled(logits, mask)
    losses = []
    for channel in range(CLASSES):
        errors = [1 - p[channel] if c == channel else p[channel] for p, c in pixels]
        truth = {i for i, (_, c) in enumerate(pixels) if c == channel}
        order = sorted(range(len(pixels)), key=lambda i: -errors[i])
        jaccard = [len(truth & set(order[:n])) + len(set(order[:n]) - truth) for n in range(len(pixels) + 1)]
        loss = [wrong / len(truth | set(order[:n])) for n, wrong in enumerate(jaccard)]
        losses.append(sum(errors[i] * (b - a) for i, (a, b) in zip(order, pairwise(loss), strict=True)))

    assert lovasz_softmax(logits, mask).item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_lovasz_of_a_hard_answer_is_one_minus_its_mean_iou(mask: Tensor) -> None:
    answer = mask.where(mask != IGNORED, 0).roll(1, dims=-1)
    hard = 1e4 * torch.nn.functional.one_hot(answer, CLASSES).movedim(-1, 1).double()

    ious = []
    for channel in range(CLASSES):
        predicted, truth = (answer == channel) & (mask != IGNORED), mask == channel
        ious.append(((predicted & truth).sum() / (predicted | truth).sum()).item())

    assert lovasz_softmax(hard, mask).item() == pytest.approx(1 - np.mean(ious), rel=1e-6)


EVERY = [
    Objective(),
    Objective(hardest_share=0.5),
    Objective(class_weights=(1.0, 2.0, 3.0)),
    Objective(cross_entropy=0, dice=1),
    Objective(cross_entropy=0, lovasz=1),
    Objective(dice=0.5, lovasz=0.5, class_weights=(1.0, 2.0, 3.0), hardest_share=0.5),
]


@pytest.mark.parametrize("objective", EVERY)
def test_ignored_pixels_get_no_gradient(objective: Objective, logits: Tensor, mask: Tensor) -> None:
    logits.requires_grad_()

    objective(logits, mask).backward()

    assert logits.grad is not None
    moved = logits.grad.abs().sum(dim=1) > 0
    assert not moved[mask == IGNORED].any()
    assert moved[mask != IGNORED].any()


@pytest.mark.parametrize("objective", EVERY)
def test_nothing_labelled_costs_nothing(objective: Objective, logits: Tensor) -> None:
    logits.requires_grad_()
    mask = torch.full((2, 4, 5), IGNORED)

    loss = objective.of_both_heads(logits, logits, mask)
    loss.backward()

    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()  # and not NaN either


@pytest.mark.parametrize("objective", EVERY)
def test_a_perfect_answer_costs_next_to_nothing_and_a_wrong_one_much(objective: Objective, mask: Tensor) -> None:
    truth = torch.nn.functional.one_hot(mask.where(mask != IGNORED, 0), CLASSES).movedim(-1, 1).double()

    assert objective(50 * truth, mask).item() == pytest.approx(0, abs=1e-6)
    assert objective(-50 * truth, mask).item() > 0.9


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_mixed_precision_does_not_reach_the_losses(name: str) -> None:
    logits = torch.randn(2, CLASSES, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.randint(CLASSES, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    objective = Objective(cross_entropy=0.0, **{name: 1.0})

    def slope(leaf: Tensor) -> Tensor:
        objective(leaf.requires_grad_(), mask).backward()
        assert leaf.grad is not None
        return leaf.grad.float()

    expected = slope(logits.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = slope(logits.clone())

    # But for the last rounding, to what the logits are.
    assert (found - expected).norm() < 2**-8 * expected.norm()
