"""Evaluation: how far a label map agrees with a reference, counted block by block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from torchmetrics.functional.classification import multiclass_confusion_matrix

from landseg.errors import TrainingDataError
from landseg.legend import NODATA, Legend
from landseg.train.samples import IGNORED, LabelCodes

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


def evaluate_map(prediction: Path, labels: Path, codes: LabelCodes, legend: Legend) -> Scores:
    """Compare a label map with a reference raster, on the map's grid.

    Parameters
    ----------
    prediction
        Label map; band 1 holds class ids, 0 = nodata.
    labels
        Reference; band 1 is read at the nearest pixel, on whatever grid it is. What it masks or declares nodata, and
        the ground that it does not cover, is unknown.
    codes
        What the reference's values mean; they must be in the order of ``legend``.
    legend
        The classes of the map.

    Raises
    ------
    TrainingDataError
        If a raster can't be read or placed, the two do not overlap, nothing is labelled, or the map holds a class id
        that the legend lacks.
    """
    try:
        with rasterio.open(prediction) as predicted, rasterio.open(labels) as reference:
            for path, raster in ((prediction, predicted), (labels, reference)):
                if raster.crs is None:
                    raise TrainingDataError(f"{path} has no coordinate reference system", "georeference it first")
            if not _may_overlap(predicted, reference):
                raise TrainingDataError(f"the labels {labels} do not overlap the map {prediction}")
            with WarpedVRT(reference, **_warp_options(predicted, reference)) as aligned:
                scores = score(_blocks(predicted, aligned, codes), legend)
    except RasterioError as error:
        raise TrainingDataError(f"can't read {prediction} with {labels}: {error}") from error
    if scores.labelled_px == 0:
        raise TrainingDataError(
            f"no pixel of {labels} has a known class where {prediction} has one",
            "see data.label_values: value in the raster -> class name",
        )
    return scores


def _may_overlap(predicted: Any, reference: Any) -> bool:
    try:
        bounds = transform_bounds(reference.crs, predicted.crs, *reference.bounds)
    except CRSError:
        # No way between the two: as far apart as can be.
        return False
    return not rasterio.coords.disjoint_bounds(predicted.bounds, bounds)


def _warp_options(predicted: Any, reference: Any) -> dict[str, Any]:
    flags = reference.mask_flag_enums[0]
    return {
        "crs": predicted.crs,
        "transform": predicted.transform,
        "height": predicted.height,
        "width": predicted.width,
        "resampling": Resampling.nearest,
        # Without a nodata value the warper fills what lies beyond the reference with 0, which may be a class.
        "add_alpha": MaskFlags.nodata not in flags and MaskFlags.alpha not in flags,
    }


def _blocks(predicted: Any, aligned: Any, codes: LabelCodes) -> Iterator[Block]:
    rows, cols = predicted.shape
    for top in range(0, rows, BLOCK_PX):
        for left in range(0, cols, BLOCK_PX):
            window = Window(left, top, min(BLOCK_PX, cols - left), min(BLOCK_PX, rows - top))
            values = aligned.read(1, window=window)
            unknown = (aligned.read_masks(1, window=window) == 0) | ~np.isfinite(values)
            channels = codes.recode(torch.from_numpy(np.where(unknown, -1, values).astype(np.int64))).numpy()
            yield predicted.read(1, window=window), channels
