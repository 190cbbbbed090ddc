"""Figures of a training and an evaluation as PNG: scores, learning curves and a page of examples.

Each appears complete at its path or not at all. Colours are told apart by colour-blind readers: blue and vermilion of
Okabe and Ito, a single hue for shares, and the legend's own for classes.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from landseg.legend import Legend
from landseg.outputs.drafts import Drafts, writing
from landseg.outputs.picture import GREY, INK, RULE
from landseg.train.evaluate import BINS, TOLERANCE_PX, Scores
from landseg.train.labels import IGNORED

DPI = 150
BLUE, VERMILION = "#0072b2", "#d55e00"
CURVES = (BLUE, VERMILION, "#009e73", "#cc79a7", "#e69f00", INK)
DASHES = ("-", "-", (0, (5, 2)), (0, (5, 2, 1, 2)), (0, (1, 1.5)))
"""Of curves; in step they tell 30 apart."""

FEW = 40
"""Up to so many values a curve is drawn by its points; longer ones are smoothed."""

CELL, SMALL_CELL = 0.86, 0.5
"""Side of a cell of the confusion matrix, inches: where numbers of pixels stand in it, and where they don't."""

COUNTED_CLASSES = 12
"""Up to so many classes the confusion matrix says numbers of pixels."""

CHARACTER = 0.085
"""Width of a letter of a class name, inches, on average."""

EXAMPLE = 2.3
"""Side of a chip on the page of examples, inches."""

Example = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
"""Image (H, W, 3) uint8, reference (H, W) channel indices with `IGNORED`, predicted (H, W) channel indices."""


def draw_scores(scores: Scores, legend: Legend, path: Path) -> None:
    """Draw the confusion matrix, the figures of each class and, of a map with confidence, the reliability curve.

    Parameters
    ----------
    scores
        What an evaluation found.
    legend
        Names of the classes.
    path
        PNG to write; it replaces what is there.

    Raises
    ------
    DiskError
        If it can't be written.
    """
    classes = len(legend)
    side = max(classes * (CELL if classes <= COUNTED_CLASSES else SMALL_CELL), 3.6)
    names = _shortened(legend.names, 24)
    longest = CHARACTER * max(map(len, names))
    upright = longest < side / classes
    left, bottom, table, curve = 0.75 + longest, 0.75 if upright else 0.75 + 0.6 * longest, 2.0, min(side, 4.6)
    curve_left, top = left + side + table + 0.95, bottom + side
    figure = _page(curve_left + curve + 0.35, top + 1.25)
    accuracy = f"mean IoU {_figure(scores.miou)} · overall accuracy {_figure(scores.overall_accuracy)}"
    boundary = f"mean boundary F1 at {TOLERANCE_PX} px {_figure(scores.mean_boundary_f1)}"
    _write_heading(figure, "Agreement with the reference", f"{accuracy} · {boundary} · {scores.labelled_px:,} pixels")
    _draw_confusion(_place(figure, left, bottom, side, side), scores, names, upright=upright)
    _draw_table(_place(figure, left + side + 0.1, bottom, table - 0.1, side), scores)
    if scores.claims.any():
        upper = _place(figure, curve_left, top - 0.78 * curve, curve, 0.78 * curve)
        _draw_reliability(upper, _place(figure, curve_left, top - curve, curve, 0.19 * curve), scores)
    _save(figure, path, "Scores")


def _draw_confusion(axes: Axes, scores: Scores, names: Sequence[str], *, upright: bool) -> None:
    rows = scores.confusion.sum(axis=1, keepdims=True)
    shares = np.divide(scores.confusion, rows, out=np.full(scores.confusion.shape, np.nan), where=rows > 0)
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ticks = range(len(names))
    axes.set_xticks(ticks, names)
    if not upright:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.set_xlabel("mapped as", color=GREY)
    axes.set_ylabel("reference", color=GREY)
    axes.tick_params(length=0, labelcolor=INK, labelsize=10)
    # White lines between cells.
    edges = np.arange(len(names) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set(color="white", linewidth=1.5)
    counted = len(names) <= COUNTED_CLASSES
    for (row, col), share in np.ndenumerate(shares):
        if np.isnan(share):
            continue
        ink = "white" if share > 0.55 else INK
        if counted:
            _write_beside(axes, (col, row), (0, 5), f"{share:.0%}", size=11, color=ink)
            _write_beside(axes, (col, row), (0, -9), _abbreviated(int(scores.confusion[row, col])), size=8.5, color=ink)
        elif share >= 0.005:
            _write_beside(axes, (col, row), (0, 0), f"{share:.0%}", size=8, color=ink)


def _draw_table(axes: Axes, scores: Scores) -> None:
    """Write the figures of each class beside its row of the matrix."""
    classes = len(scores.iou)
    axes.set(xlim=(0, 3), ylim=(classes - 0.5, -0.5))
    axes.set_axis_off()
    columns = {"IoU": scores.iou, "F1": scores.f1, "boundary\nF1": scores.boundary_f1}
    for col, (heading, values) in enumerate(columns.items()):
        _write_beside(axes, (col + 0.5, -0.5), (0, 14), heading, size=9.5, color=GREY)
        for row, value in enumerate(values):
            _write_beside(axes, (col + 0.5, row), (0, 0), "" if np.isnan(value) else f"{value:.2f}", size=10, color=INK)


def _draw_reliability(upper: Axes, lower: Axes, scores: Scores) -> None:
    """Draw how often claims come true over the claims, and beneath it how often each claim is made."""
    curve = scores.reliability
    edges = np.linspace(0, 1, BINS + 1)
    some = curve.pixels > 0
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="as often as claimed")
    upper.vlines(
        curve.confidence[some], curve.confidence[some], curve.accuracy[some], color=VERMILION, linewidth=5, alpha=0.35,
        label="gap",
    )  # fmt: skip
    upper.plot(curve.confidence[some], curve.accuracy[some], color=BLUE, linewidth=1.6, marker="o", markersize=5)
    upper.set(xlim=(0, 1), ylim=(0, 1), xticklabels=[])
    upper.set_ylabel("share that is right", color=GREY)
    upper.set_title(f"Expected calibration error {curve.error:.1%}", size=11, color=INK, loc="left", pad=8)
    upper.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK)
    shares = curve.pixels / curve.pixels.sum()
    lower.bar(edges[:-1], shares, np.diff(edges) * 0.9, align="edge", color=BLUE, alpha=0.75)
    lower.set(xlim=(0, 1), ylim=(0, shares.max() * 1.15))
    lower.set_xlabel("confidence that the map claims", color=GREY)
    lower.set_ylabel("pixels", color=GREY)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    for axes in (upper, lower):
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _plain_axes(axes)
    lower.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def draw_curves(logs: Sequence[Path], path: Path) -> None:
    """Draw the losses of a training, and its IoUs where it has any, over its steps.

    Parameters
    ----------
    logs
        CSV files as Lightning writes them, one for each start of the training, in their order: a column ``step``, and
        columns whose names contain ``loss`` or ``iou``; cells may be empty.
    path
        PNG to write; it replaces what is there.

    Raises
    ------
    DiskError
        If it can't be written.
    """
    series = _read_logs(logs)
    panels = {
        title: {name: curve for name, curve in series.items() if word in name}
        for title, word in (("loss", "loss"), ("IoU", "iou"))
    }
    drawn = [(title, curves) for title, curves in panels.items() if curves]
    last = max((int(steps[-1]) for steps, _ in series.values()), default=0)
    figure = _page(8.4, 1.3 + 2.6 * len(drawn))
    _write_heading(figure, "Training", f"up to step {last:,}")
    for index, (title, curves) in enumerate(reversed(drawn)):
        axes = _place(figure, 0.75, 0.6 + 2.6 * index, 5.8, 2.3)
        _draw_panel(axes, title, curves)
        axes.set_xlim(0, 1.02 * max(last, 1))
        axes.tick_params(labelbottom=index == 0)
        axes.set_xlabel("step" if index == 0 else "", color=GREY)
    _save(figure, path, "Learning curves")


Curve = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps, rising, and values."""


def _read_logs(logs: Sequence[Path]) -> dict[str, Curve]:
    values: dict[str, dict[int, float]] = {}
    for log in logs:
        with log.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, cell in row.items():
                    if name not in ("step", "epoch") and cell and math.isfinite(float(cell)):
                        # A training that went on from a checkpoint did some steps twice; the later counts.
                        values.setdefault(name, {})[int(row["step"])] = float(cell)
    return {name: (np.array(sorted(by)), np.array([by[step] for step in sorted(by)])) for name, by in values.items()}


def _draw_panel(axes: Axes, title: str, curves: Mapping[str, Curve]) -> None:
    # The mean over the classes comes first.
    ordered = sorted(curves.items(), key=lambda item: ("miou" not in item[0], item[0]))
    labels = _shortened([_label(name) for name, _ in ordered], 18)
    for index, (label, (_, (steps, values))) in enumerate(zip(labels, ordered, strict=True)):
        style: dict[str, Any] = {
            "color": CURVES[index % len(CURVES)],
            "linestyle": DASHES[index % len(DASHES)],
            "linewidth": 1.8,
        }
        if len(values) <= FEW:
            axes.plot(steps, values, marker="o", markersize=3.5, label=label, **style)
        else:
            axes.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.3)
            axes.plot(steps, _smoothed(values, len(values) // 20), label=label, **style)
    axes.set_ylim(0, 1 if title == "IoU" else None)
    axes.set_ylabel(title, color=GREY)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), labelcolor=INK)
    _plain_axes(axes)


def _label(name: str) -> str:
    """Say a column's name in words: ``val_miou`` is the validation's mean IoU."""
    words = {"loss": "training", "val_loss": "validation", "val_miou": "validation, mean"}
    return words.get(name, name.removeprefix("val_").removeprefix("iou_").replace("_", " "))


def _smoothed(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Average over up to ``reach`` values on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    first, stop = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, len(values))
    smoothed: NDArray[np.float64] = (sums[stop] - sums[first]) / (stop - first)
    return smoothed


def draw_examples(examples: Sequence[Example], legend: Legend, path: Path) -> None:
    """Draw chips as a page: image, reference and prediction side by side, and the legend.

    Parameters
    ----------
    examples
        The chips, from top to bottom; at least one.
    legend
        Names and colours of the channels.
    path
        PNG to write; it replaces what is there.

    Raises
    ------
    DiskError
        If it can't be written.
    """
    gap, margin, top = 0.12, 0.3, 0.45
    legend_left = margin + 3 * (EXAMPLE + gap) + 0.1
    width, height = legend_left + 3, top + len(examples) * (EXAMPLE + gap) + margin
    figure = _page(width, height)
    table = np.full((IGNORED + 1, 3), 255, dtype=np.uint8)
    table[: len(legend)] = [c.rgb for c in legend]
    for row, (image, reference, predicted) in enumerate(examples):
        pictures = {"image": image, "reference": table[reference], "mapped": table[predicted]}
        for col, (caption, picture) in enumerate(pictures.items()):
            left, bottom = margin + col * (EXAMPLE + gap), height - top - EXAMPLE - row * (EXAMPLE + gap)
            axes = _place(figure, left, bottom, EXAMPLE, EXAMPLE)
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=RULE, linewidth=0.8)
            if row == 0:
                axes.set_title(caption, size=11, color=GREY, loc="left", pad=6)
    names = _shortened(legend.names, 30)
    patches = [Patch(facecolor=c.colour, edgecolor=RULE, label=name) for c, name in zip(legend, names, strict=True)]
    if any((reference == IGNORED).any() for _, reference, _ in examples):
        patches.append(Patch(facecolor="white", edgecolor=RULE, label="unlabelled"))
    figure.legend(
        handles=patches, frameon=False, fontsize=10, labelcolor=INK, loc="upper left", borderaxespad=0,
        bbox_to_anchor=(legend_left / width, 1 - top / height), handlelength=1.3, handleheight=1.2,
    )  # fmt: skip
    _save(figure, path, "Examples")


def _page(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place on a page, all in inches."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes((left / page_width, bottom / page_height, width / page_width, height / page_height))


def _write_heading(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.3 / width, 1 - 0.42 / height, title, size=15, weight="bold", color=INK)
    figure.text(0.3 / width, 1 - 0.7 / height, subtitle, size=10, color=GREY, parse_math=False)


def _write_beside(
    axes: Axes, point: tuple[float, float], points: tuple[float, float], text: str, *, size: float, color: str
) -> None:
    """Write centred text so many points, right and up, from a point of the data."""
    axes.annotate(
        text, point, points, textcoords="offset points", annotation_clip=False, size=size, color=color, ha="center",
        va="center", linespacing=1.0,
    )  # fmt: skip


def _save(figure: Figure, path: Path, title: str) -> None:
    with Drafts(path) as drafts:
        with writing(path):
            figure.savefig(
                drafts.path(path), format="png", bbox_inches="tight", pad_inches=0.25,
                metadata={"Title": title, "Software": "landseg"},
            )  # fmt: skip
        drafts.publish([path])


def _plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(color=RULE, labelcolor=INK, labelsize=9)
    axes.grid(color=RULE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)


def _figure(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def _abbreviated(count: int) -> str:
    """Say a number of pixels in at most five characters."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f} {unit}"
    return str(count)


def _shortened(names: Sequence[str], most: int) -> list[str]:
    """Cut names to so many characters, or to as many more as tell them apart."""
    while len({_cut(name, most) for name in names}) < len(set(names)):
        most += 1
    # Names are the user's: a dollar sign in them starts no formula.
    return [_cut(name, most).replace("$", r"\$") for name in names]


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
