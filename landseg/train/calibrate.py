"""Calibration: one temperature that makes a network's probabilities come true as often as they say."""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from landseg.errors import TrainingDataError
from landseg.train.labels import IGNORED

log = logging.getLogger(__name__)

SAMPLE_PX = 2**18
"""Pixels that a temperature is fitted to; from as many, drawn at random, it follows to a few thousandths."""

COLDEST, HOTTEST = 0.05, 20.0
"""Between these a temperature is sought; a network that is never wrong would have none."""


def fit_temperature(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Find the temperature at which labels are the most likely: the minimum of the negative log-likelihood.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2. Labels must be of data that the
    network was not trained on: on its training data it is right more often than elsewhere.

    Law: ``fit_temperature([(t * logits, mask)]) == t * fit_temperature([(logits, mask)])``, within the bounds.

    Parameters
    ----------
    batches
        Pairs of logits, (N, K, H, W) float, and channel indices, (N, H, W) int64; `IGNORED` pixels take no part.
        Logarithms of probabilities do as well: logits matter up to a constant per pixel.

    Returns
    -------
    float
        What logits are to be divided by, `COLDEST` to `HOTTEST`; above 1 where the network claims too much. At either
        bound it is none to rely on, and a warning says so.

    Raises
    ------
    TrainingDataError
        If no pixel is labelled.
    """
    logits, channels = _sample(batches)
    logits = logits.double()
    truth = logits.gather(1, channels[:, None]).mean()
    low, high = 1 / HOTTEST, 1 / COLDEST
    # The likelihood's logarithm is concave in 1 / temperature: its slope has one zero, sought by halving the interval.
    for _ in range(40):
        middle = (low + high) / 2
        expected = (torch.softmax(logits * middle, dim=1) * logits).sum(dim=1).mean()
        low, high = (middle, high) if expected < truth else (low, middle)
    if high == 1 / COLDEST:
        log.warning(
            "the temperature is %g, the lowest that is tried: the network is never wrong on these labels; "
            "calibrate on more of them, that it was not trained on",
            COLDEST,
        )
    if low == 1 / HOTTEST:
        log.warning(
            "the temperature is %g, the highest that is tried: the network is hardly trained, or the labels do not fit "
            "the imagery; look at the map, and at what the labels' values mean",
            HOTTEST,
        )
    return 2 / (low + high)


def _sample(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Draw at most `SAMPLE_PX` of the labelled pixels, each with the same chance: (n, K) float32 and (n,) int64."""
    chance = torch.Generator().manual_seed(0)
    kept: list[Tensor] = []
    for logits, mask in batches:
        labelled = mask != IGNORED
        pixels = logits.movedim(1, -1)[labelled.to(logits.device)].float().cpu()  # (n, K)
        drawn = [pixels, mask[labelled].cpu(), torch.rand(len(pixels), generator=chance)]
        kept = [torch.cat(pair) for pair in zip(kept, drawn, strict=True)] if kept else drawn
        if len(kept[2]) > SAMPLE_PX:
            # The smallest numbers drawn so far belong to a fair sample of all pixels so far.
            chosen = kept[2].topk(SAMPLE_PX, largest=False).indices
            kept = [tensor[chosen] for tensor in kept]
    if not kept or not len(kept[2]):
        raise TrainingDataError(
            "no pixel to calibrate on has a known class", "see data.label_values: value in the raster -> class name"
        )
    return kept[0], kept[1]
