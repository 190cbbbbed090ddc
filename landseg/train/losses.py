"""The loss that PSPNet is trained with."""

from torch import Tensor
from torch.nn import functional as F

from landseg.train.labels import IGNORED


def pspnet_loss(logits: Tensor, auxiliary: Tensor, mask: Tensor, auxiliary_weight: float) -> Tensor:
    """Cross-entropy of the main head plus that of the auxiliary head at a weight.

    Zhao et al., "Pyramid Scene Parsing Network", section 3.3: deep supervision with weight 0.4.

    Parameters
    ----------
    logits, auxiliary
        (N, K, H, W) float.
    mask
        (N, H, W) int64, channel indices; `IGNORED` pixels take no part.
    auxiliary_weight
        Weight of the auxiliary head's loss.

    Returns
    -------
    Tensor
        Mean over the labelled pixels, scalar; 0 where nothing is labelled.
    """
    return segmentation_loss(logits, mask) + auxiliary_weight * segmentation_loss(auxiliary, mask)


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of one head: mean over the labelled pixels, scalar; 0 where nothing is labelled.

    See `pspnet_loss` for the parameters.
    """
    labelled = (mask != IGNORED).sum().clamp(min=1)
    loss: Tensor = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="sum") / labelled
    return loss
