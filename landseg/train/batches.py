"""Chips in batches: chosen, read, measured and mapped; of a user's own pairs and of published sets alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets import stack_samples

from landseg.errors import TrainingDataError
from landseg.predict import Predictor
from landseg.train.evaluate import HALO_PX, Block
from landseg.train.labels import IGNORED
from landseg.train.samples import Sites, Source, mean_and_std


def settle(source: Source, chips: int, seed: int) -> Sites:
    """Choose random places that stay the same, for a seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Sites(source.dataset, list(source.draw(chips)))


def read_chips(sites: Sites, *, batch: int, workers: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Read chips in batches, in order."""
    yield from DataLoader(
        sites.dataset,
        batch_size=batch,
        sampler=sites.places,
        num_workers=workers,
        collate_fn=stack_samples,
        generator=torch.Generator().manual_seed(seed),
    )


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a training must know of its chips beforehand.

    Parameters
    ----------
    mean, std
        Of each band on the scale 0-255.
    shares
        (K,) float64, of each class among the labelled pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shares: NDArray[np.float64]


def measure(batches: Iterator[dict[str, Tensor]], classes: int) -> Statistics:
    """Measure bands and classes over batches of samples; pixels that are NaN hold no data and are left out.

    Raises
    ------
    TrainingDataError
        If nothing is labelled.
    """
    sums, squares, pixels = [], [], 0
    counts = np.zeros(classes, dtype=np.float64)
    for batch in batches:
        image, mask = batch["image"].double(), batch["mask"]
        valid = ~image.isnan().any(dim=1)
        image = image.nan_to_num(nan=0.0)
        sums.append(image.sum(dim=(0, 2, 3)).numpy())
        squares.append((image**2).sum(dim=(0, 2, 3)).numpy())
        pixels += int(valid.sum())
        counts += torch.bincount(mask[mask != IGNORED], minlength=classes).numpy()
    if counts.sum() == 0:
        raise TrainingDataError("no pixel of the labels has a known class", "see data.label_values: code -> class name")
    moments = mean_and_std(np.sum(sums, axis=0), np.sum(squares, axis=0), pixels)
    return Statistics(*moments, counts / counts.sum())


def predictions(
    predict: Predictor,
    batches: Iterator[dict[str, Tensor]],
    mean: Sequence[float],
    std: Sequence[float],
    class_ids: Sequence[int],
) -> Iterator[Block]:
    """Label chips, beside their reference, in the form that `landseg.train.evaluate.score` takes.

    Parameters
    ----------
    predict
        The network.
    batches
        Of samples, not varied.
    mean, std
        Of each band, as it was trained.
    class_ids
        Labels in channel order.
    """
    centre, spread = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    labels = np.array(class_ids, dtype=np.uint8)
    for batch in batches:
        confidence, channels = predict((batch["image"] - centre) / spread).cpu().max(dim=1)
        percent = (100 * confidence).round().to(torch.uint8).numpy()
        for one, mask, claim in zip(labels[channels.numpy()], batch["mask"].numpy(), percent, strict=True):
            yield Block(np.pad(one, HALO_PX), np.pad(mask, HALO_PX, constant_values=IGNORED), claim)
