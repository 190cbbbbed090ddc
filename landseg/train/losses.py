"""The losses that PSPNet is trained with: the paper's cross-entropy, and what helps rare classes and hard pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from landseg.train.labels import IGNORED


@dataclass(frozen=True, slots=True)
class Objective:
    """A weighted sum of losses; the default is the paper's.

    Parameters
    ----------
    cross_entropy, dice, lovasz
        Weight of each loss in the sum.
    class_weights
        Weight of each class in the cross-entropy, in channel order; None weighs all alike.
    hardest_share
        Part of the labelled pixels that the cross-entropy is averaged over, those that cost most.
    auxiliary_weight
        Weight of the auxiliary head's loss: 0.4 in the paper.
    teacher
        Weight of the loss towards a teacher's answer, where there is one.
    """

    cross_entropy: float = 1.0
    dice: float = 0.0
    lovasz: float = 0.0
    class_weights: tuple[float, ...] | None = None
    hardest_share: float = 1.0
    auxiliary_weight: float = 0.4
    teacher: float = 0.0

    def __call__(self, logits: Tensor, mask: Tensor, taught: Tensor | None = None) -> Tensor:
        """Compute the loss of one head.

        Parameters
        ----------
        logits
            (N, K, H, W) float.
        mask
            (N, H, W) int64, channel indices; `IGNORED` pixels take no part.
        taught
            (N, K, H, W) float, a teacher's probabilities; pixels without a label can be learnt from it too.

        Returns
        -------
        Tensor
            Scalar; 0 where nothing is labelled or taught.
        """
        # Sums over as many pixels would be lost in 16 bits.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = logits.new_zeros(())
        if self.cross_entropy:
            weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
            loss = loss + self.cross_entropy * cross_entropy(logits, mask, weights, self.hardest_share)
        if self.dice:
            loss = loss + self.dice * dice_loss(logits, mask)
        if self.lovasz:
            loss = loss + self.lovasz * lovasz_softmax(logits, mask)
        if taught is not None:
            # Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2, at temperature 1.
            loss = loss + self.teacher * F.cross_entropy(logits, taught)
        return loss

    def of_both_heads(self, logits: Tensor, auxiliary: Tensor, mask: Tensor, taught: Tensor | None = None) -> Tensor:
        """Compute the main head's loss plus the auxiliary head's at its weight.

        Zhao et al., "Pyramid Scene Parsing Network", section 3.3.
        """
        loss: Tensor = self(logits, mask, taught) + self.auxiliary_weight * self(auxiliary, mask, taught)
        return loss


def cross_entropy(
    logits: Tensor, mask: Tensor, class_weights: Tensor | None = None, hardest_share: float = 1.0
) -> Tensor:
    """Mean cross-entropy of the labelled pixels, or of the hardest share of them.

    Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016.

    Parameters
    ----------
    logits, mask
        See `Objective`.
    class_weights
        (K,) float; the mean is weighted by them.
    hardest_share
        More than 0, at most 1.

    Returns
    -------
    Tensor
        Scalar; 0 where nothing is labelled.
    """
    labelled = mask != IGNORED
    if hardest_share == 1 and class_weights is None:
        total: Tensor = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="sum")
        return total / labelled.sum().clamp(min=1)
    costs = F.cross_entropy(logits, mask, class_weights, ignore_index=IGNORED, reduction="none")[labelled]
    weights = torch.ones_like(costs) if class_weights is None else class_weights[mask[labelled]]
    if hardest_share < 1 and len(costs):
        costs, hardest = costs.topk(max(1, round(len(costs) * hardest_share)), sorted=False)
        weights = weights[hardest]
    return costs.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """One minus the soft Dice coefficient, averaged over the classes that the batch has.

    Milletari et al., "V-Net", 3DV 2016.

    Parameters
    ----------
    logits, mask
        See `Objective`.

    Returns
    -------
    Tensor
        Scalar, 0 to 1; 0 where nothing is labelled.
    """
    probabilities, truth = _labelled_pixels(logits, mask)
    present = truth.sum(dim=0) > 0
    if not present.any():
        return logits.sum() * 0
    hits = (probabilities * truth).sum(dim=0)
    overlap = 2 * hits / (probabilities.sum(dim=0) + truth.sum(dim=0)).clamp(min=1)
    return 1 - overlap[present].mean()


def lovasz_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Convex surrogate of one minus the mean IoU, over the classes that the batch has.

    Berman et al., "The Lovász-Softmax loss", CVPR 2018, equations 8 and 9 and algorithm 1.

    Parameters
    ----------
    logits, mask
        See `Objective`.

    Returns
    -------
    Tensor
        Scalar, 0 to 1; 0 where nothing is labelled.
    """
    probabilities, truth = _labelled_pixels(logits, mask)
    present = (truth.sum(dim=0) > 0).nonzero().flatten().tolist()
    if not present:
        return logits.sum() * 0
    losses = []
    for channel in present:
        errors, order = (truth[:, channel] - probabilities[:, channel]).abs().sort(descending=True)
        # A matrix product would be computed in 16 bits where precision is mixed.
        losses.append((errors * _jaccard_steps(truth[order, channel])).sum())
    return torch.stack(losses).mean()


def _jaccard_steps(truth: Tensor) -> Tensor:
    """Give by how much the Jaccard loss grows as pixels, (P,) of 0 and 1 in order, are got wrong one by one."""
    total = truth.sum()
    union = total + (1 - truth).cumsum(dim=0)
    loss = 1 - (total - truth.cumsum(dim=0)) / union
    return torch.diff(loss, prepend=loss.new_zeros(1))


def _labelled_pixels(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Give probabilities and one-hot truth of the labelled pixels, both (P, K) float."""
    labelled = mask != IGNORED
    probabilities = torch.softmax(logits, dim=1).movedim(1, -1)[labelled]
    return probabilities, F.one_hot(mask[labelled], logits.shape[1]).to(probabilities.dtype)
