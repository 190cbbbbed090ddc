"""What a person sees in a terminal: progress on stderr, results in words and tables on stdout."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from landseg.hrefs import hide_secrets

if TYPE_CHECKING:
    import pystac

    from landseg.batch.report import Report
    from landseg.mapping import Progress, ProgressCallback
    from landseg.model.bundle import Card
    from landseg.outputs import ClassArea

STAGES = {
    "map": "mapping",
    "raster": "writing the raster",
    "polygons": "drawing polygons",
    "outputs": "writing the outputs",
    "upload": "uploading",
}
LINE_EVERY_S = 5.0
"""Seconds between plain progress lines, as read in a job's log."""


def say(text: str) -> None:
    """Write a line of progress on stderr."""
    print(f"landseg: {text}", file=sys.stderr, flush=True)


@contextmanager
def show_progress(quiet: bool) -> "Iterator[ProgressCallback]":
    """Show a run's progress on stderr: a bar on a terminal, plain lines otherwise, nothing when quiet."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _BarDisplay() as display:
            yield display.update
    else:
        yield _LineDisplay().update


class _Rates:
    """Chips/s, Mpx/s and time left since the first update of the stage ``map``, which may go on from an earlier run."""

    def __init__(self, resumed_from: int = 0) -> None:
        self._start = time.monotonic()
        self._resumed_from = resumed_from

    def text(self, progress: "Progress") -> str:
        elapsed = max(time.monotonic() - self._start, 1e-6)
        done = progress.done - self._resumed_from
        if not done:
            return ""
        left = elapsed * (progress.total - progress.done) / done
        return f"{progress.chips / elapsed:.1f} chips/s, {done / elapsed / 1e6:.2f} Mpx/s, {duration(left)} left"


class _LineDisplay:
    def __init__(self) -> None:
        self._rates = _Rates()
        self._stage = ""
        self._last = time.monotonic()

    def update(self, progress: "Progress") -> None:
        now = time.monotonic()
        if progress.stage != self._stage:
            say(STAGES[progress.stage])
            if progress.stage == "map":
                self._rates = _Rates(progress.done)
        elif now - self._last < LINE_EVERY_S or progress.done == progress.total:
            return
        else:
            say(f"{STAGES[progress.stage]}: {100 * progress.done // progress.total} %, {self._rates.text(progress)}")
        self._stage, self._last = progress.stage, now


class _BarDisplay:
    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rates]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None
        self._rates = _Rates()
        self._stage = ""

    def __enter__(self) -> "_BarDisplay":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, progress: "Progress") -> None:
        if self._task is None:
            self._task = self._bar.add_task("", rates="")
        is_map = progress.stage == "map"
        if is_map and self._stage != "map":
            self._rates = _Rates(progress.done)
        self._stage = progress.stage
        self._bar.update(
            self._task,
            description=STAGES[progress.stage],
            completed=progress.done if is_map else None,
            total=progress.total if is_map else None,
            rates=self._rates.text(progress) if is_map else "",
        )


def print_areas(areas: "Sequence[ClassArea]") -> None:
    """Print the class table on stdout."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for heading in ("area (ha)", "share", "polygons", "confidence"):
        table.add_column(heading, justify="right")
    for area in areas:
        table.add_row(
            area.class_name,
            f"{area.area_m2 / 1e4:,.1f}",
            f"{area.share:.1%}",
            f"{area.polygons:,}",
            "" if area.confidence is None else f"{area.confidence:.0f} %",
        )
    _console().print(table)


def print_report(report: "Report") -> None:
    """Print what became of a batch's scenes on stdout."""
    table = Table(box=None, pad_edge=False)
    table.add_column("map", overflow="fold")
    table.add_column("status")
    table.add_column("time", justify="right")
    table.add_column("why", overflow="fold")
    for entry in report.entries:
        time_taken = duration(entry.seconds) if entry.seconds else ""
        table.add_row(entry.name, entry.status, time_taken, entry.why.splitlines()[0])
    _console().print(table)
    print(report.line)


def print_items(items: "Sequence[pystac.Item]") -> None:
    """Print a catalog's items on stdout, a line each."""
    table = Table(box=None, pad_edge=False)
    for heading in ("collection", "id", "date"):
        table.add_column(heading, overflow="fold")
    table.add_column("gsd", justify="right")
    table.add_column("title", overflow="fold")
    for item in items:
        gsd = item.properties.get("gsd")
        title = item.properties.get("title", "")
        table.add_row(item.collection_id or "", item.id, _dates(item), "" if gsd is None else f"{gsd:g} m", title)
    _console().print(table)


def print_item(item: "pystac.Item") -> None:
    """Print what a catalog knows of an item on stdout."""
    properties = item.properties
    shape, gsd, cloud_cover = (properties.get(name) for name in ("proj:shape", "gsd", "eo:cloud_cover"))
    image = item.assets.get("image")
    bands = properties.get("bands", []) if image is None else image.extra_fields.get("bands", [])
    rows = {
        "id": item.id,
        "collection": item.collection_id or "",
        "title": properties.get("title", ""),
        "about": properties.get("description", ""),
        "date": _dates(item),
        "bounds": "" if item.bbox is None else ", ".join(f"{value:.4f}" for value in item.bbox) + " (degrees)",
        "size": "" if shape is None else _extent(*shape),
        "gsd": "" if gsd is None else f"{gsd:g} m",
        "crs": properties.get("proj:code") or "",
        "bands": ", ".join(band.get("name") or "?" for band in bands),
        "clouds": "" if cloud_cover is None else f"{cloud_cover:g} %",
        "licence": properties.get("license", ""),
        "files": "\n".join(
            f"{key}: {hide_secrets(asset.get_absolute_href() or asset.href)}" for key, asset in item.assets.items()
        ),
    }
    print_pairs({name: value for name, value in rows.items() if value})


def _dates(item: "pystac.Item") -> str:
    times = item.common_metadata
    days = (item.datetime,) if item.datetime else (times.start_datetime, times.end_datetime)
    return " to ".join(f"{day:%Y-%m-%d}" for day in days if day)


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print what an evaluation found on stdout: figures by class and the confusion matrix in percent of each row."""
    names = list(scores["iou"])
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for heading in ("IoU", "F1", "boundary F1", *names):
        table.add_column(heading, justify="right")
    for name, row in zip(names, scores["confusion"], strict=True):
        shares = [f"{n / sum(row):.0%}" if sum(row) else "" for n in row]
        values = [scores[figure][name] for figure in ("iou", "f1", "boundary_f1")]
        figures = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(name, *figures, *shares)
    _console().print(table)
    print("Rows: reference; columns on the right: what it was mapped as.")
    accuracy = f"mIoU {scores['miou']:.3f}, overall accuracy {scores['overall_accuracy']:.3f}"
    print(f"{accuracy}, {scores['labelled_px']:,} pixels")
    boundary, error = scores["mean_boundary_f1"], scores["ece"]
    if boundary is not None:
        print(f"Mean boundary F1 at {scores['boundary_tolerance_px']} px: {boundary:.3f}")
    if error is not None:
        print(f"Expected calibration error: {100 * error:.1f} points of confidence")


def print_plan(summary: Mapping[str, Any], seconds: float | None) -> None:
    """Print a plan on stdout."""
    grid, chips = summary["grid"], summary["chips"]
    resampled = ", resampled" if grid["resampled"] else ""
    rows = {
        "scene": summary["scene"],
        "model": f"{summary['model']}, bands {', '.join(map(str, summary['bands']))}",
        "grid": f"{_extent(grid['rows'], grid['cols'])} of {grid['gsd_m']:g} m, {grid['crs']}{resampled}",
        "chips": f"{chips['count']:,} of {chips['chip_px']} px, {chips['overlap_px']} px shared",
        "network": f"{summary['device']}, {summary['precision']}",
        "memory": f"up to {_size(summary['memory_bytes'])} of {_size(summary['budget_bytes'])} allowed",
        "disk": f"up to {_size(summary['disk_bytes'])}, in {summary['work_folder']}",
        "time": "unknown" if seconds is None else f"{_about(seconds)}, polygons aside",
        "outputs": "\n".join(summary["outputs"]),
    }
    print_pairs(rows)


def print_card(card: "Card") -> None:
    """Print a model's card on stdout."""
    held_out = card.held_out
    rows = {
        "model": card.name,
        "title": card.title,
        "about": card.description,
        "bands": ", ".join(card.bands),
        "gsd": f"{card.gsd_m:g} m",
        "chip": f"{card.chip_px} px",
        "classes": ", ".join(f"{c.class_id} {c.name}" for c in card.legend),
        "network": _network(card),
        "licence": card.licence,
        "trained": f"{card.created[:10]} on {card.training.get('data', 'unknown data')}",
        "confidence": _confidence(card),
        "limits": "\n".join(card.limits),
    }
    if held_out:
        per_class = ", ".join(f"{name} {value:.2f}" for name, value in held_out["iou"].items() if value is not None)
        rows["held out"] = f"mIoU {held_out['miou']:.3f} on {held_out['data']} ({per_class})"
    print_pairs(rows)


def _confidence(card: "Card") -> str:
    error = card.held_out.get("ece")
    figure = "" if error is None else f"; off by {100 * error:.1f} points on average on the held-out data"
    return ("not calibrated" if card.temperature == 1 else f"calibrated, temperature {card.temperature:.2f}") + figure


def _network(card: "Card") -> str:
    departures = ", ".join(f"{name} {value}" for name, value in card.architecture.departures.items())
    variant = f"unlike the paper's: {departures}" if departures else "as in the paper"
    return f"PSPNet on {card.architecture.backbone}, {variant}"


def print_pairs(rows: Mapping[str, str]) -> None:
    """Print names and values in two columns on stdout."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    _console().print(table)


def _console() -> Console:
    # Names are the user's: brackets in them are no markup.
    return Console(markup=False, highlight=False)


def _extent(rows: int, cols: int) -> str:
    """Say how large a raster is as people do, the width first."""
    return f"{cols:,} x {rows:,} px"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{max(1, round(n_bytes / 1e6))} MB"


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else "under 1 s"


def duration(seconds: float) -> str:
    """Say a number of seconds as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
