"""Evaluation: how far a label map agrees with a reference, counted block by block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window
from torchmetrics.functional.classification import multiclass_confusion_matrix

from landseg.errors import TrainingDataError
from landseg.grid import Grid
from landseg.legend import NODATA, Legend
from landseg.train.labels import CLASS_COLUMN, IGNORED, LabelCodes, Labels, open_labels

BLOCK_PX = 1024
"""Side of the blocks that maps are compared in: a multiple of the usual tiles of 256 and 512, so each is read once."""

Block = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Predicted class ids (0 = nodata) and the reference's channel indices, of one shape."""


@dataclass(frozen=True, eq=False)
class Scores:
    """How far a prediction agrees with a reference.

    Law: scores of two disjoint areas together are the scores of the sum of their confusions.

    Parameters
    ----------
    confusion
        (K, K) int64, pixels; rows = reference, columns = prediction, in channel order.
    """

    confusion: NDArray[np.int64]

    @property
    def labelled_px(self) -> int:
        """Pixels that have both a prediction and a reference."""
        return int(self.confusion.sum())

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class; NaN where neither side has the class."""
        hits = self.confusion.diagonal()
        return _ratio(hits, self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - hits)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall of each class; NaN where neither side has the class."""
        return _ratio(2 * self.confusion.diagonal(), self.confusion.sum(axis=0) + self.confusion.sum(axis=1))

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that the reference has; NaN if it has none."""
        present = self.confusion.sum(axis=1) > 0
        return float(self.iou[present].mean()) if present.any() else float("nan")

    @property
    def overall_accuracy(self) -> float:
        """Share of the pixels on which both sides agree; NaN without pixels."""
        return float(_ratio(self.confusion.trace(), self.confusion.sum()))

    def to_dict(self, legend: Legend) -> dict[str, Any]:
        """Give plain values that JSON holds; None stands for NaN."""
        return {
            "labelled_px": self.labelled_px,
            "miou": _plain(self.miou),
            "overall_accuracy": _plain(self.overall_accuracy),
            "iou": {name: _plain(value) for name, value in zip(legend.names, self.iou, strict=True)},
            "f1": {name: _plain(value) for name, value in zip(legend.names, self.f1, strict=True)},
            "confusion": self.confusion.tolist(),
        }


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Divide; NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def score(blocks: Iterable[Block], legend: Legend) -> Scores:
    """Count how predictions and references agree, in one pass over blocks of any shapes.

    Law: the scores do not depend on how the pixels are cut into blocks, nor on the blocks' order.

    Parameters
    ----------
    blocks
        Pairs of predicted class ids, uint8, 0 = nodata, and reference channel indices, `IGNORED` = unknown. Pixels
        where either is missing take no part.
    legend
        The classes of both.

    Raises
    ------
    TrainingDataError
        If a class id is predicted that the legend lacks.
    """
    classes = len(legend)
    channel_of = np.full(256, IGNORED, dtype=np.int64)
    channel_of[list(legend.class_ids)] = range(classes)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    for labels, reference in blocks:
        predicted = channel_of[labels]
        unknown = labels[(predicted == IGNORED) & (labels != NODATA)]
        if unknown.size:
            raise TrainingDataError(
                f"the map holds class id {unknown[0]}, which is not in the legend",
                f"evaluate it with the legend that it was made with; this one's ids are {legend.class_ids}",
            )
        counted = (labels != NODATA) & (reference != IGNORED)
        # The tables above bound all values, and torchmetrics' own checks would sort every block.
        counts = multiclass_confusion_matrix(
            torch.from_numpy(predicted[counted]),
            torch.from_numpy(reference[counted]),
            num_classes=classes,
            validate_args=False,
        )
        confusion += counts.numpy()
    return Scores(confusion)


def evaluate_map(
    prediction: Path,
    labels: Path,
    codes: LabelCodes,
    legend: Legend,
    *,
    class_column: str = CLASS_COLUMN,
    layer: str | None = None,
) -> Scores:
    """Compare a label map with a reference, on the map's grid.

    Parameters
    ----------
    prediction
        Label map; band 1 holds class ids, 0 = nodata.
    labels
        Reference: a raster, whose band 1 is read at the nearest pixel, on whatever grid it is; or polygons. What it
        masks or declares nodata, and the ground that it does not cover, is unknown.
    codes
        What the reference's values mean; they must be in the order of ``legend``.
    legend
        The classes of the map.
    class_column, layer
        Where polygons say their class; see `landseg.train.labels.open_labels`.

    Raises
    ------
    TrainingDataError
        If a file can't be read or placed, the two do not overlap, nothing is labelled, or the map holds a class id
        that the legend lacks.
    """
    try:
        with rasterio.open(prediction) as predicted:
            if predicted.crs is None:
                raise TrainingDataError(f"{prediction} has no coordinate reference system", "georeference it first")
            reference = open_labels(
                labels,
                codes,
                predicted.crs,
                predicted.bounds,
                f"the map {prediction}",
                class_column=class_column,
                layer=layer,
            )
            scores = score(_blocks(predicted, reference), legend)
    except RasterioError as error:
        raise TrainingDataError(f"can't read {prediction}: {error}") from error
    if scores.labelled_px == 0:
        raise TrainingDataError(
            f"no pixel of {labels} has a known class where {prediction} has one",
            "say what the labels' values mean: data.label_values, or --label-values",
        )
    return scores


def _blocks(predicted: Any, reference: Labels) -> Iterator[Block]:
    grid = Grid(predicted.shape, predicted.transform, predicted.crs)
    rows, cols = grid.shape
    for top in range(0, rows, BLOCK_PX):
        for left in range(0, cols, BLOCK_PX):
            window = Window(left, top, min(BLOCK_PX, cols - left), min(BLOCK_PX, rows - top))
            part = Grid((window.height, window.width), grid.window_transform(window), grid.crs)
            yield predicted.read(1, window=window), reference.read(part).channels
