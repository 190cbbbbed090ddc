"""Many scenes by one file: what is current is skipped, what fails is passed over, and a report says what became of all.

``load_pipeline(path)`` -> ``run_batch(pipeline)`` -> `Report`. A map is current when its manifest names the scene, the
model and the options that it would be made of now, and its files are there. So a batch that was stopped goes on when it
is run again, and a job that runs every month does what the month brought.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from landseg.batch.due import check_polygons, why_due
from landseg.batch.jobs import Job, find_scenes, plan_jobs
from landseg.batch.region import map_region
from landseg.batch.report import (
    REPORT_FILE,
    Entry,
    Report,
    internal_error,
    leave_report,
    post,
    report_place,
    tell,
    write_report,
)
from landseg.catalog import add_item, has_item
from landseg.catalog.items import read_item
from landseg.config import PipelineConfig, RunConfig, load_config, override_by_environment
from landseg.errors import LandsegError, ResourceError, RunInterruptedError, SceneError
from landseg.hrefs import hide_secrets, is_remote
from landseg.logs import FACTS
from landseg.mapping import ProgressCallback
from landseg.outputs import counted
from landseg.outputs.drafts import writing
from landseg.run import build_plan, check, check_config, execute

log = logging.getLogger(__name__)


def load_pipeline(path: Path, environment: Mapping[str, str] = os.environ) -> PipelineConfig:
    """Read a pipeline; its relative paths start at its folder, those of ``LANDSEG_…`` variables at the working folder.

    Raises
    ------
    ConfigError
        If a key of the file or a variable does not make sense.
    """
    pipeline = load_config(path, PipelineConfig).at(path.parent.absolute())
    return override_by_environment(pipeline, environment).at(Path.cwd())


def run_batch(
    pipeline: PipelineConfig,
    name: str,
    *,
    dry_run: bool = False,
    on_progress: ProgressCallback = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Map what is not current and write the report into the output folder; a dry run writes nothing.

    Parameters
    ----------
    pipeline
        What to do.
    name
        What to call it in the report.
    dry_run
        Whether to stop at saying what would be done.
    on_progress
        Told how far the scene at hand is.
    sleep
        Waits so many seconds.

    Raises
    ------
    UsageError
        If no scene is found, two would have the same map, an option does not make sense, or there is no such bucket.
    BundleError
        If the model can't be used.
    CatalogError
        If the catalog of scenes can't be read.
    ResourceError
        If the output folder or bucket can't be written to, another batch is at work in it, or the device is not there.
    RunInterruptedError
        If it was stopped; the report is written.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    # What would fail every scene is said once: options, a model that can't be used, and a bucket that there is not.
    path, storage = report_place(pipeline)
    bundle, _, _ = check_config(pipeline.run_config())
    if storage is not None:
        storage.sizes([REPORT_FILE])
    scenes, idle = find_scenes(pipeline)
    jobs = plan_jobs(pipeline, scenes)
    entries = {job.name: Entry(job.name, hide_secrets(job.scene.href), "due", "not reached") for job in jobs}
    entries |= {pattern: Entry(pattern, f"pattern {pattern}", "failed", why) for pattern, why in idle.items()}

    def report(finished: bool = True) -> Report:
        return Report(name, started, time.monotonic() - clock, tuple(entries.values()), finished)

    def note(entry: Entry | None) -> None:
        if entry is not None:
            entries[entry.name] = entry
            tell(entry, len(jobs))

    if dry_run:
        for job in jobs:
            entries[job.name] = _attempt(job, pipeline.run_config(), None, 1)
        if pipeline.merge is not None:
            entries[pipeline.merge.name] = map_region(pipeline, pipeline.merge, bundle, jobs, entries, dry_run=True)
        return report()
    with _locked(path.parent):
        if storage is not None:
            # Nothing is mapped for a bucket that can't be written to.
            write_report(pipeline, report(finished=False))
        try:
            for entry in _work_off(jobs, pipeline, on_progress, sleep):
                note(entry)
            if pipeline.merge is not None:
                note(map_region(pipeline, pipeline.merge, bundle, jobs, entries, dry_run=False))
            if pipeline.catalog is not None:
                note(_add_to_catalog(pipeline.catalog, entries.values()))
        except (KeyboardInterrupt, RunInterruptedError) as error:
            note(leave_report(pipeline, report(finished=False)))
            mapped = report().counts.get("mapped", 0)
            raise RunInterruptedError(
                f"stopped; {mapped} of {counted(len(jobs), 'scene')} mapped by then", "run it again to go on"
            ) from error
        note(leave_report(pipeline, report()))
    done = report()
    log.info("%s", done.line, extra={FACTS: {"event": "finished", "counts": done.counts}})
    if pipeline.webhook is not None:
        post(pipeline.webhook.get_secret_value(), done)
    return done


def _work_off(
    jobs: Sequence[Job], pipeline: PipelineConfig, on_progress: ProgressCallback, sleep: Callable[[float], None]
) -> Iterator[Entry]:
    """Say what became of each job; those whose source can't be reached come again after the others."""
    waiting = list(jobs)
    for attempt in range(1, pipeline.attempts + 1):
        again = []
        for job in waiting:
            entry = _attempt(job, pipeline.run_config(), on_progress, attempt)
            if entry.unreachable:
                again.append(job)
            yield entry
        waiting = again
        if not waiting or attempt == pipeline.attempts:
            return
        wait_s = pipeline.wait_s * 2 ** (attempt - 1)
        log.info("%s could not be reached; next attempt in %g s", counted(len(waiting), "scene"), wait_s)
        sleep(wait_s)


def _attempt(job: Job, config: RunConfig, on_progress: ProgressCallback | None, attempt: int) -> Entry:
    """Map a scene unless its map is current; without ``on_progress``, say what would be done."""
    clock = time.monotonic()
    entry = Entry(job.name, hide_secrets(job.scene.href), "failed", "", attempts=attempt)
    try:
        plan = build_plan(job.scene.href, job.outputs.place(job.outputs.polygons), config)
        due = why_due(plan)
        if due is None:
            return replace(entry, status="current", why="nothing changed", outputs=plan.outputs.places)
        check_polygons(plan.outputs)
        if on_progress is None:
            return replace(entry, status="due", why=due)
        with writing(job.outputs.polygons.parent):
            job.outputs.polygons.parent.mkdir(parents=True, exist_ok=True)
        check(plan)
        log.info("%s: mapping (%s)", entry.name, due, extra={FACTS: {"event": "start", "name": entry.name, "why": due}})
        execute(plan, on_progress)
        seconds = round(time.monotonic() - clock, 1)
        return replace(entry, status="mapped", why=due, outputs=plan.outputs.places, seconds=seconds)
    except RunInterruptedError:
        raise
    except LandsegError as error:
        # What the header of a scene elsewhere says is final, and has an error of its own.
        unreachable = type(error) is SceneError and is_remote(job.scene.href)
        return replace(entry, why=str(error), unreachable=unreachable, seconds=round(time.monotonic() - clock, 1))
    except Exception as error:
        # A fault of landseg's own, or of what it stands on, must not cost the other scenes their night.
        return internal_error(entry, error)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other batches out of it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".landseg-batch.lock")
    with writing(Path(lock.lock_file)):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ResourceError(
                f"another batch is at work in {folder}", "wait for it, or choose another 'out'"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _add_to_catalog(catalog: Path, entries: Iterable[Entry]) -> Entry | None:
    """Put the maps into a catalog's collection ``maps``, but for those that are there and current; tell a failure."""
    failed = Entry(str(catalog), f"catalog {catalog}", "failed", "")
    try:
        for entry in entries:
            if entry.status in ("mapped", "current"):
                item = read_item(entry.outputs[-1])
                item.id = entry.name.replace("/", "-")
                if entry.status == "mapped" or not has_item(catalog, item, "maps"):
                    add_item(catalog, item, "maps")
    except LandsegError as error:
        return replace(failed, why=str(error))
    except Exception as error:
        # The maps are made; without the report nobody would know of them.
        return internal_error(failed, error)
    return None
