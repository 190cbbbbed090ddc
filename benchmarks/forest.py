"""The floor to measure networks by: a random forest that classifies each pixel by its colour and the texture around it.

Breiman, "Random Forests", Machine Learning 45, 2001; the pixel-by-pixel supervised classification of many a GIS.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.ndimage import uniform_filter
from sklearn.ensemble import RandomForestClassifier

from landseg.train.evaluate import Scores
from landseg.train.labels import IGNORED, LabelCodes
from landseg.train.samples import Pair

WINDOWS_PX = (3, 9, 27)
"""Sides of the squares whose mean and standard deviation a pixel is described by."""
MARGIN_PX = max(WINDOWS_PX) // 2
STRIP_PX = 256
SAMPLE_PX = 100_000

Strip = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Features, (n, F), and channel indices, (n,), of the labelled pixels of some rows."""


def features(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe each pixel by its colour, and by mean and standard deviation of each band around it.

    Beyond the image's edge stands its mirror image. Law: a pixel's features are those that it has in any part of the
    image that reaches `MARGIN_PX` around it.

    Parameters
    ----------
    image
        (3, H, W): red, green, blue.

    Returns
    -------
    NDArray
        (H, W, F): the bands, brightness, excess green (Woebbecke et al., Transactions of the ASAE 38, 1995), then for
        each of `WINDOWS_PX` the bands' means and their standard deviations.
    """
    bands = image.astype(np.float64)
    total = bands.sum(axis=0)
    chromatic = bands / np.maximum(total, 1)
    described = [bands, total[None] / 3, 2 * chromatic[1:2] - chromatic[:1] - chromatic[2:]]
    for side in WINDOWS_PX:
        mean = uniform_filter(bands, (0, side, side))
        # Rounding makes the variance of flat ground a little less than nothing.
        variance = np.maximum(uniform_filter(bands**2, (0, side, side)) - mean**2, 0)
        described += [mean, np.sqrt(variance)]
    return np.moveaxis(np.concatenate(described), 0, -1).astype(np.float32)


def labelled_strips(pair: Pair, codes: LabelCodes) -> Iterator[Strip]:
    """Read a scene and its labels, which lie on one grid, some rows at a time."""
    with rasterio.open(pair.scene) as scene, rasterio.open(pair.labels) as labels:
        rows, cols = scene.shape
        for top in range(0, rows, STRIP_PX):
            bottom = min(top + STRIP_PX, rows)
            first, last = max(0, top - MARGIN_PX), min(rows, bottom + MARGIN_PX)
            described = features(scene.read(window=Window(0, first, cols, last - first)))[top - first : bottom - first]
            channels = codes.of_bytes()[labels.read(1, window=Window(0, top, cols, bottom - top))]
            labelled = channels != IGNORED
            yield described[labelled], channels[labelled]


def labelled_px(pair: Pair, codes: LabelCodes) -> int:
    """Count the pixels whose class is known."""
    known = codes.of_bytes() != IGNORED
    with rasterio.open(pair.labels) as labels:
        return int(np.bincount(labels.read(1).ravel(), minlength=known.size)[known].sum())


def fit_forest(pairs: Sequence[Pair], codes: LabelCodes, seed: int) -> RandomForestClassifier:
    """Train on about `SAMPLE_PX` labelled pixels, each of which is as likely to be drawn."""
    random = np.random.default_rng(seed)
    share = SAMPLE_PX / sum(labelled_px(pair, codes) for pair in pairs)
    drawn: list[Strip] = []
    for described, channels in chain.from_iterable(labelled_strips(pair, codes) for pair in pairs):
        chosen = random.random(channels.size) < share
        drawn.append((described[chosen], channels[chosen]))
    described, channels = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return RandomForestClassifier(n_jobs=-1, random_state=seed).fit(described, channels)


def evaluate_forest(forest: RandomForestClassifier, pairs: Sequence[Pair], codes: LabelCodes) -> Scores:
    """Classify every labelled pixel and count how often the forest agrees; boundaries are left out."""
    classes = len(codes.names)
    scores = Scores.nothing(classes)
    for described, channels in chain.from_iterable(labelled_strips(pair, codes) for pair in pairs):
        # A forest refuses to classify nothing.
        if channels.size:
            counts = np.bincount(channels * classes + forest.predict(described), minlength=classes**2)
            scores += replace(Scores.nothing(classes), confusion=counts.reshape(classes, classes))
    return scores
