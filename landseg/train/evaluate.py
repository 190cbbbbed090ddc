"""Evaluation: how far a label map agrees with a reference, counted block by block."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
from landseg.grid import Grid, cells
from landseg.legend import NODATA, Legend
from landseg.train.labels import CLASS_COLUMN, IGNORED, MANY_VALUES, LabelCodes, Reading, Value, open_labels

BLOCK_PX = 1024
"""Side of the blocks that maps are compared in: a multiple of the usual tiles of 256 and 512."""

TOLERANCE_PX = 3
"""Euclidean distance between pixel centres within which two boundaries are the same."""

HALO_PX = TOLERANCE_PX + 1
"""Pixels around a block that its scores depend on: those within the tolerance, and the neighbours of these."""

BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al."""

_DISC = tuple(
    (row, col)
    for row in range(-TOLERANCE_PX, TOLERANCE_PX + 1)
    for col in range(-TOLERANCE_PX, TOLERANCE_PX + 1)
    if row**2 + col**2 <= TOLERANCE_PX**2
)
_CORE = (slice(HALO_PX, -HALO_PX), slice(HALO_PX, -HALO_PX))

ReadChannels = Callable[[Window], NDArray[np.int64]]
"""Gives the reference's channel indices in a window of a map's grid; `IGNORED` = unknown."""


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a map and of its reference, with a halo of `HALO_PX` on all sides that is looked at but not counted.

    Parameters
    ----------
    labels
        (h + 2 halo, w + 2 halo) uint8, predicted class ids; 0 = nodata, and beyond the map.
    reference
        (h + 2 halo, w + 2 halo) int64, channel indices; `IGNORED` = unknown, and beyond the map.
    confidence
        (h, w) uint8, percent, without a halo; None where the map has none.
    """

    labels: NDArray[np.uint8]
    reference: NDArray[np.int64]
    confidence: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often a map is right where it claims a confidence; one entry for each of `BINS` bins of equal width.

    Parameters
    ----------
    pixels
        (BINS,) int64.
    confidence, accuracy
        (BINS,) float64, means within the bin, 0-1; NaN where it is empty.
    """

    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over the pixels of |confidence - accuracy| of their bin.

        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3. NaN without pixels.
        """
        gaps = np.nan_to_num(abs(self.confidence - self.accuracy))
        return float(_ratio((self.pixels * gaps).sum(), self.pixels.sum()))


@dataclass(frozen=True, eq=False)
class Scores:
    """How far a prediction agrees with a reference.

    All figures follow from counts of pixels, so that areas and scenes add up.

    Law: scores of two disjoint areas together are the sum of their scores.

    Parameters
    ----------
    confusion
        (K, K) int64, pixels; rows = reference, columns = prediction, in channel order.
    boundaries
        (2, 2, K) int64, boundary pixels of each class: of the prediction, then of the reference; those that have one of
        the other side's within `TOLERANCE_PX`, then all.
    claims
        (2, 101) int64, pixels by the confidence that the map claims, 0 to 100 %: those that are right, then all. Zeros
        for a map without confidence.
    """

    confusion: NDArray[np.int64]
    boundaries: NDArray[np.int64]
    claims: NDArray[np.int64]

    @classmethod
    def nothing(cls, classes: int) -> "Scores":
        """Give the scores of no pixels: what a sum begins with."""
        shapes = (classes, classes), (2, 2, classes), (2, 101)
        return cls(*(np.zeros(shape, dtype=np.int64) for shape in shapes))

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(self.confusion + other.confusion, self.boundaries + other.boundaries, self.claims + other.claims)

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
        return _mean(self.iou, self.confusion.sum(axis=1) > 0)

    @property
    def overall_accuracy(self) -> float:
        """Share of the pixels on which both sides agree; NaN without pixels."""
        return float(_ratio(self.confusion.trace(), self.confusion.sum()))

    @property
    def boundary_f1(self) -> NDArray[np.float64]:
        """Boundary F1 of each class at `TOLERANCE_PX`; NaN where neither side has a boundary of the class.

        The harmonic mean of precision, the share of the predicted boundary that lies within the tolerance of the
        reference's, and recall, the other way round: Csurka et al., "What is a good evaluation measure for semantic
        segmentation?", BMVC 2013. Unlike there, counts are pooled over scenes, as those of the confusion are.

        A class's boundary is its pixels that share a side with another class. Sides between a class and unknown ground
        (nodata, unlabelled or beyond the map) are no boundaries, on either side. Boundary pixels within the tolerance
        of unknown ground are not counted, since what they should match may lie there; others may match them.
        """
        precision, recall = (np.nan_to_num(_ratio(*side)) for side in self.boundaries)
        f1 = np.nan_to_num(_ratio(2 * precision * recall, precision + recall))
        f1[self.boundaries[:, 1].sum(axis=0) == 0] = np.nan
        return f1

    @property
    def mean_boundary_f1(self) -> float:
        """Mean of `boundary_f1` over the classes of which the reference has a boundary; NaN if it has none."""
        return _mean(self.boundary_f1, self.boundaries[1, 1] > 0)

    @property
    def reliability(self) -> Reliability:
        """The reliability curve; bins are open below and closed above, as in Guo et al."""
        percent = np.arange(101)
        # In whole numbers: 20 % belongs to the third bin of 15, whatever floats make of it.
        bins = np.maximum((percent * BINS + 99) // 100 - 1, 0)
        right, pixels, claimed = (
            np.bincount(bins, weights=values, minlength=BINS) for values in (*self.claims, self.claims[1] * percent)
        )
        return Reliability(pixels.astype(np.int64), _ratio(claimed / 100, pixels), _ratio(right, pixels))

    def to_dict(self, legend: Legend) -> dict[str, Any]:
        """Give plain values that JSON holds; None stands for NaN."""

        def by_class(values: NDArray[np.float64]) -> dict[str, float | None]:
            return {name: _plain(value) for name, value in zip(legend.names, values, strict=True)}

        reliability = self.reliability
        curve = zip(reliability.pixels, reliability.confidence, reliability.accuracy, strict=True)
        return {
            "labelled_px": self.labelled_px,
            "miou": _plain(self.miou),
            "overall_accuracy": _plain(self.overall_accuracy),
            "iou": by_class(self.iou),
            "f1": by_class(self.f1),
            "confusion": self.confusion.tolist(),
            "boundary_tolerance_px": TOLERANCE_PX,
            "mean_boundary_f1": _plain(self.mean_boundary_f1),
            "boundary_f1": by_class(self.boundary_f1),
            "ece": _plain(reliability.error),
            "reliability": [
                {"pixels": int(pixels), "confidence": _plain(confidence), "accuracy": _plain(accuracy)}
                for pixels, confidence, accuracy in curve
            ],
        }


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Divide; NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _mean(values: NDArray[np.float64], present: NDArray[np.bool_]) -> float:
    return float(values[present].mean()) if present.any() else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def score(blocks: Iterable[Block], legend: Legend) -> Scores:
    """Count how predictions and references agree, in one pass over blocks of any shapes.

    Law: the scores do not depend on how the map is cut into blocks, nor on the blocks' order.

    Parameters
    ----------
    blocks
        Parts of the map. Pixels without a prediction or without a reference take no part.
    legend
        The classes of both.

    Raises
    ------
    TrainingDataError
        If a class id is predicted that the legend lacks, or a confidence is above 100 %.
    """
    classes = len(legend)
    channel_of = np.full(256, IGNORED, dtype=np.int64)
    channel_of[list(legend.class_ids)] = range(classes)
    total = Scores.nothing(classes)
    for block in blocks:
        predicted = channel_of[block.labels]
        unknown = block.labels[(predicted == IGNORED) & (block.labels != NODATA)]
        if unknown.size:
            raise TrainingDataError(
                f"the map holds class id {unknown[0]}, which is not in the legend",
                f"evaluate it with the legend that it was made with; this one's ids are {legend.class_ids}",
            )
        known = (predicted != IGNORED) & (block.reference != IGNORED)
        counted = known[_CORE]
        answers, truths = predicted[_CORE][counted], block.reference[_CORE][counted]
        # The tables above bound all values, and torchmetrics' own checks would sort every block.
        confusion = multiclass_confusion_matrix(
            torch.from_numpy(answers), torch.from_numpy(truths), num_classes=classes, validate_args=False
        )
        claims = np.zeros((2, 101), dtype=np.int64)
        if block.confidence is not None:
            claims = _count_claims(block.confidence[counted], answers == truths)
        total += Scores(confusion.numpy(), _count_boundaries(predicted, block.reference, known, classes), claims)
    return total


def _count_claims(percent: NDArray[np.uint8], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    if percent.size and percent.max() > 100:
        raise TrainingDataError(
            f"the map's second band holds {percent.max()}, which is no confidence in percent",
            "evaluate a map that landseg made, or one of a single band",
        )
    return np.stack([np.bincount(values, minlength=101) for values in (percent[right], percent)])


def _count_boundaries(
    predicted: NDArray[np.int64], reference: NDArray[np.int64], known: NDArray[np.bool_], classes: int
) -> NDArray[np.int64]:
    """Count boundary pixels as in `Scores.boundaries`; the arrays are of a block with its halo."""
    rows, cols = (size - 2 * HALO_PX for size in known.shape)
    inner = known[1:-1, 1:-1]
    sides = [_boundary(channels, known)[1:-1, 1:-1] for channels in (predicted, reference)]
    settled = np.ones((rows, cols), dtype=np.bool_)
    close = [np.zeros((rows, cols), dtype=np.bool_) for _ in sides]
    own = [side[TOLERANCE_PX:-TOLERANCE_PX, TOLERANCE_PX:-TOLERANCE_PX] for side in sides]
    for row, col in _DISC:
        there = (
            slice(TOLERANCE_PX + row, TOLERANCE_PX + row + rows),
            slice(TOLERANCE_PX + col, TOLERANCE_PX + col + cols),
        )
        settled &= inner[there]
        # A boundary pixel bears its class, so that one comparison serves all classes.
        close[0] |= own[0] == sides[1][there]
        close[1] |= own[1] == sides[0][there]
    counts = [
        [np.bincount(mine[chosen], minlength=classes + 1)[1:] for chosen in (settled & near, settled)]
        for mine, near in zip(own, close, strict=True)
    ]
    return np.array(counts, dtype=np.int64)


def _boundary(channels: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Give 1 + the channel of pixels that share a side with a known pixel of another class; 0 elsewhere."""
    classes = np.where(known, channels + 1, 0).astype(np.uint8)
    boundary = np.zeros(classes.shape, dtype=np.bool_)
    for axis in (0, 1):
        # Views: what is set in a half is set in the whole.
        first, second = (np.moveaxis(classes, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        differ = (first != second) & (first > 0) & (second > 0)
        along = np.moveaxis(boundary, axis, 0)
        along[:-1] |= differ
        along[1:] |= differ
    return np.where(boundary, classes, np.uint8(0))


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
        Label map; band 1 holds class ids, 0 = nodata, and band 2, where there is one, confidence in percent.
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
        If a file can't be read or placed, the two do not overlap, the reference holds values that the codes do not
        explain, nothing is labelled, the map holds a class id that the legend lacks, or its second band is no
        confidence.
    """
    try:
        with rasterio.open(prediction) as predicted:
            if predicted.crs is None:
                raise TrainingDataError(f"{prediction} has no coordinate reference system", "georeference it first")
            grid = Grid(predicted.shape, predicted.transform, predicted.crs)
            read = open_reference(labels, codes, grid, f"the map {prediction}", class_column=class_column, layer=layer)
            scores = score(_blocks(predicted, read), legend)
    except RasterioError as error:
        raise TrainingDataError(f"can't read {prediction}: {error}") from error
    if scores.labelled_px == 0:
        raise TrainingDataError(
            f"no pixel of {labels} has a known class where {prediction} has one",
            "say what the labels' values mean: data.label_values, or --label-values",
        )
    return scores


def open_reference(
    labels: Path,
    codes: LabelCodes,
    grid: Grid,
    ground: str,
    *,
    class_column: str = CLASS_COLUMN,
    layer: str | None = None,
) -> ReadChannels:
    """Open a reference to be read on another grid, at the nearest pixel.

    Parameters
    ----------
    labels, codes, class_column, layer
        See `evaluate_map`.
    grid
        The grid of the windows that will be asked for.
    ground
        What the grid is of, for people.

    Returns
    -------
    ReadChannels
        Raises `TrainingDataError` if a window holds values that the codes do not explain; the message tells of all that
        the grid's ground holds.

    Raises
    ------
    TrainingDataError
        If the reference can't be read or placed, or does not overlap the grid.
    """
    reference = open_labels(labels, codes, grid.crs, grid.bounds, ground, class_column=class_column, layer=layer)

    def read(window: Window) -> Reading:
        return reference.read(Grid((window.height, window.width), grid.window_transform(window), grid.crs))

    def read_explained(window: Window) -> NDArray[np.int64]:
        reading = read(window)
        if reading.unknown:
            raise codes.explain(_all_unknown(read, grid), labels)
        return reading.channels

    return read_explained


def _all_unknown(read: Callable[[Window], Reading], grid: Grid) -> Counter[Value | float]:
    """Count the pixels of each unexplained value: windows that were read so far may have overlapped."""
    unknown: Counter[Value | float] = Counter()
    for _, window in cells(grid.window, BLOCK_PX):
        unknown += read(window).unknown
        if len(unknown) > MANY_VALUES:
            break
    return unknown


def check_reference(read: ReadChannels, grid: Grid) -> None:
    """Read all of a reference, so that what is wrong with it is told before the work.

    Raises
    ------
    TrainingDataError
        If it can't be read, or holds values that have no meaning.
    """
    for _, window in cells(grid.window, BLOCK_PX):
        read(window)


def _blocks(predicted: Any, read: ReadChannels) -> Iterator[Block]:
    rows, cols = predicted.shape
    for _, core in cells(Window(0, 0, cols, rows), BLOCK_PX):
        window, missing = _with_halo(core, (rows, cols))
        yield Block(
            labels=np.pad(predicted.read(1, window=window), missing, constant_values=NODATA),
            reference=np.pad(read(window), missing, constant_values=IGNORED),
            confidence=predicted.read(2, window=core) if predicted.count > 1 else None,
        )


def _with_halo(core: Window, shape: tuple[int, int]) -> tuple[Window, tuple[tuple[int, int], tuple[int, int]]]:
    """Give a window and its halo as far as the map reaches, and how much is missing: (before, after) for each axis."""
    spans, missing = [], []
    for start, length, size in zip((core.row_off, core.col_off), (core.height, core.width), shape, strict=True):
        first, last = start - HALO_PX, start + length + HALO_PX
        spans.append(slice(max(first, 0), min(last, size)))
        missing.append((max(-first, 0), max(last - size, 0)))
    return Window.from_slices(*spans), (missing[0], missing[1])
