"""What became of a batch: told as it goes, written beside the maps, and posted."""

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import requests

from landseg import __version__
from landseg.config import PipelineConfig
from landseg.errors import LandsegError
from landseg.hrefs import hide_secrets
from landseg.logs import FACTS
from landseg.outputs.drafts import write_text
from landseg.outputs.storage import StorageFolder, located

log = logging.getLogger(__name__)

REPORT_FILE = "run.json"
WEBHOOK_TIMEOUT_S = 20.0

Status = Literal["mapped", "current", "due", "failed"]


@dataclass(frozen=True)
class Entry:
    """What became of a scene.

    Parameters
    ----------
    name
        Of its map.
    scene
        Path or URL, without what may be secret in it.
    status
        ``due`` stands for what would be mapped, in a dry run, and for what was not reached.
    why
        Why it was mapped, or what went wrong.
    unreachable
        Whether it failed because its server did not give it, which may change.
    outputs
        Paths or URLs of the products, if they are there.
    attempts
        How often it was tried.
    seconds
        Of the last attempt.
    """

    name: str
    scene: str
    status: Status
    why: str
    unreachable: bool = False
    outputs: tuple[str, ...] = ()
    attempts: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for key in ("name", "scene", "why"):
            # Of a file's name that is not UTF-8, Python keeps what can't be written or printed.
            text = getattr(self, key).encode("utf-8", "backslashreplace").decode("utf-8")
            object.__setattr__(self, key, text)


@dataclass(frozen=True)
class Report:
    """What became of a batch.

    Parameters
    ----------
    pipeline
        Name of its file.
    started, seconds
        When, in UTC, and how long.
    entries
        Every scene, in the order that they were mapped in; then patterns that no file matches, the merged map, if any,
        and, if they could not be written, the catalog and the report itself.
    finished
        False if it was stopped.
    """

    pipeline: str
    started: datetime
    seconds: float
    entries: tuple[Entry, ...]
    finished: bool = True

    @property
    def counts(self) -> dict[Status, int]:
        """How many entries are of each status that occurs."""
        return dict(Counter(entry.status for entry in self.entries))

    @property
    def line(self) -> str:
        """The report in a line."""
        counts = ", ".join(f"{n} {status}" for status, n in self.counts.items()) or "nothing to do"
        return f"{self.pipeline}: {counts}{'' if self.finished else '; stopped'}"

    def to_dict(self) -> dict[str, Any]:
        """Tell it in plain values. ``text`` is what chat services show of a posted report."""
        return {
            "text": f"landseg {self.line}",
            "pipeline": self.pipeline,
            "landseg": __version__,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "finished": self.finished,
            "counts": self.counts,
            "entries": [asdict(entry) for entry in self.entries],
        }


def internal_error(entry: Entry, error: Exception) -> Entry:
    """Log a fault of landseg's own, or of what it stands on, and give the entry that tells of it."""
    log.error("%s failed", entry.name, exc_info=error)
    return replace(entry, why=hide_secrets(f"internal error: {type(error).__name__}: {error}"))


def tell(entry: Entry, jobs: int) -> None:
    """Log what became of one of so many scenes."""
    level = logging.WARNING if entry.status == "failed" else logging.INFO
    facts = {"event": "scene", "of": jobs, **asdict(entry)}
    log.log(level, "%s: %s (%s)", entry.name, entry.status, entry.why.splitlines()[0], extra={FACTS: facts})


def report_place(pipeline: PipelineConfig) -> tuple[Path, StorageFolder | None]:
    """Say where the report is written, and where it is uploaded to, if it is.

    Raises
    ------
    UsageError
        If 'out' is no URL of a folder on S3, or a work folder is named for what needs none.
    """
    return located(pipeline.place(REPORT_FILE), pipeline.work_folder)


def write_report(pipeline: PipelineConfig, report: Report) -> None:
    """Leave the report in the output folder.

    Raises
    ------
    DiskError
        If it can't be written or uploaded.
    """
    path, storage = report_place(pipeline)
    write_text(path, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    if storage is not None:
        storage.upload([path])


def leave_report(pipeline: PipelineConfig, report: Report) -> Entry | None:
    """Write the report; tell a failure, since it is posted and printed all the same."""
    try:
        write_report(pipeline, report)
    except LandsegError as error:
        return Entry(REPORT_FILE, f"report {pipeline.place(REPORT_FILE)}", "failed", str(error))
    return None


def post(url: str, report: Report) -> None:
    """Post the report; the maps are made, so a failure is a warning. Its message would show the URL."""
    try:
        answer = requests.post(url, json=report.to_dict(), timeout=WEBHOOK_TIMEOUT_S)
    except requests.RequestException as error:
        log.warning("the webhook could not be reached (%s)", type(error).__name__)
    else:
        if not answer.ok:
            log.warning("the webhook answered %d", answer.status_code)
