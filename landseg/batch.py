"""Many scenes by one file: what is current is skipped, what fails is passed over, and a report says what became of all.

``load_pipeline(path)`` -> ``run_batch(pipeline)`` -> `Report`. A map is current when its manifest names the scene, the
model and the options that it would be made of now, and its files are there. So a batch that was stopped goes on when it
is run again, and a job that runs every month does what the month brought.
"""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal

import requests
from filelock import FileLock, Timeout

from landseg import __version__
from landseg.catalog import add_item, has_item
from landseg.catalog.items import read_item
from landseg.catalog.search import SceneRef, search
from landseg.config import MergeConfig, PipelineConfig, RunConfig, load_config, override_by_environment
from landseg.errors import LandsegError, OutputExistsError, ResourceError, RunInterruptedError, SceneError, UsageError
from landseg.hrefs import hide_secrets, is_remote, stem
from landseg.logs import FACTS
from landseg.mapping import ProgressCallback
from landseg.model.bundle import Bundle
from landseg.outputs import counted
from landseg.outputs.drafts import Drafts, write_text, writing
from landseg.outputs.manifest import classes_of, is_as_listed, listed_files, read_manifest
from landseg.outputs.paths import OutputPaths, check_places
from landseg.outputs.vector import companions, driver_of
from landseg.polygonizing import merging_of
from landseg.region import Part, in_order, write_region
from landseg.run import (
    UNRECORDED,
    Plan,
    base_bytes,
    build_plan,
    check,
    check_config,
    execute,
    memory_budget,
    model_record,
    versions,
)

log = logging.getLogger(__name__)

REPORT_FILE = "run.json"
WEBHOOK_TIMEOUT_S = 20.0

HOW = {"model", "device", "batch", *UNRECORDED}
"""Options that do not change a map; the model counts by its weights and not by its name."""

_RESTYLED = {".xml", ".qml", ".qgz"}
"""Suffixes of what QGIS writes anew when somebody looks at a map in other colours."""

_UNFIT = re.compile(r"[^\w.+-]+")
"""What an item's id may hold and a file's name should not."""

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
        Paths of the products, if they are there.
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


@dataclass(frozen=True)
class Job:
    """A scene, the name of its map, and the place of the map's polygons."""

    scene: SceneRef
    name: str
    out: Path

    @property
    def part(self) -> Part:
        """The map as a part of a region's."""
        raster = OutputPaths.of(self.out).raster
        return Part(self.name, raster, self.scene.date, self.scene.cloud_cover)


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
        If no scene is found, two would have the same map, or an option does not make sense.
    BundleError
        If the model can't be used.
    CatalogError
        If the catalog of scenes can't be read.
    ResourceError
        If the output folder can't be written to, another batch is at work in it, or the device is not there.
    RunInterruptedError
        If it was stopped; the report is written.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    # What would fail every scene is said once.
    bundle, _, _ = check_config(pipeline.run_config())
    scenes, idle = find_scenes(pipeline)
    jobs = plan_jobs(pipeline, scenes)
    entries = {job.name: Entry(job.name, hide_secrets(job.scene.href), "due", "not reached") for job in jobs}
    entries |= {pattern: Entry(pattern, f"pattern {pattern}", "failed", why) for pattern, why in idle.items()}

    def report(finished: bool = True) -> Report:
        return Report(name, started, time.monotonic() - clock, tuple(entries.values()), finished)

    def note(entry: Entry | None) -> None:
        if entry is not None:
            entries[entry.name] = entry
            _tell(entry, len(jobs))

    if dry_run:
        for job in jobs:
            entries[job.name] = _attempt(job, pipeline.run_config(), None, 1)
        if pipeline.merge is not None:
            entries[pipeline.merge.name] = _merge(pipeline, pipeline.merge, bundle, jobs, entries, dry_run=True)
        return report()
    with _locked(pipeline.out):
        try:
            for entry in _work_off(jobs, pipeline, on_progress, sleep):
                note(entry)
            if pipeline.merge is not None:
                note(_merge(pipeline, pipeline.merge, bundle, jobs, entries, dry_run=False))
            if pipeline.catalog is not None:
                note(_add_to_catalog(pipeline.catalog, entries.values()))
        except (KeyboardInterrupt, RunInterruptedError) as error:
            note(_write_report(pipeline, report(finished=False)))
            mapped = report().counts.get("mapped", 0)
            raise RunInterruptedError(
                f"stopped; {mapped} of {counted(len(jobs), 'scene')} mapped by then", "run it again to go on"
            ) from error
        note(_write_report(pipeline, report()))
    done = report()
    log.info("%s", done.line, extra={FACTS: {"event": "finished", "counts": done.counts}})
    if pipeline.webhook is not None:
        _post(pipeline.webhook.get_secret_value(), done)
    return done


def find_scenes(pipeline: PipelineConfig) -> tuple[list[SceneRef], dict[str, str]]:
    """List the scenes that a pipeline names: files in the order given, then the catalog's.

    A file that is named twice counts once. Patterns leave out what lies in the pipeline's own output folder.

    Returns
    -------
    tuple
        The scenes, and why a pattern names none, for those that do not.

    Raises
    ------
    UsageError
        If there is none.
    CatalogError
        If the catalog can't be read.
    """
    paths: dict[str, None] = {}
    idle: dict[str, str] = {}
    for path in pipeline.scenes.files:
        is_pattern = has_magic(path) and not is_remote(path) and not Path(path).exists()
        found, why = _matches(path, pipeline.out) if is_pattern else ([path], "")
        paths |= dict.fromkeys(found)
        if not found:
            idle[path] = why
            log.warning("%s: %s", path, why)
    scenes = [SceneRef(stem(path), path) for path in paths]
    if pipeline.scenes.catalog is not None:
        query = pipeline.scenes.catalog.model_dump()
        scenes += search(**query, attempts=pipeline.attempts, wait_s=pipeline.wait_s)
    if not scenes:
        raise UsageError("the pipeline names no scene that is there", "look at its files, patterns and catalog query")
    return scenes, idle


def _matches(pattern: str, out: Path) -> tuple[list[str], str]:
    """Give the files that a pattern names, and what to say if there is none."""
    found = glob(pattern, recursive=True)  # noqa: PTH207 (Path's own takes no absolute pattern)
    files = [path for path in sorted(found) if Path(path).is_file()]
    others = [path for path in files if not Path(path).resolve().is_relative_to(out.resolve())]
    own = f"it matches files of the output folder {out} alone, and maps are no scenes"
    return others, own if files else "no file matches it"


def plan_jobs(pipeline: PipelineConfig, scenes: Sequence[SceneRef]) -> list[Job]:
    """Give each scene its place by the pipeline's template.

    Raises
    ------
    UsageError
        If two scenes have the same, a name will not do, or the format is unknown; or if they are to be merged by a rule
        that asks for what is not known of one.
    """
    jobs: dict[str, Job] = {}
    for scene in scenes:
        parts = {
            "scene": scene.name,
            "folder": Path(hide_secrets(scene.href)).absolute().parent.name,
            "collection": scene.collection,
            "date": "" if scene.date is None else f"{scene.date:%Y-%m-%d}",
            "model": stem(pipeline.model),
        }
        name = pipeline.name.format(**{part: _UNFIT.sub("-", text) for part, text in parts.items()})
        out = _checked_place(name, pipeline)
        if name in jobs:
            raise UsageError(
                f"{jobs[name].scene.href} and {scene.href} would both be mapped to {out}",
                "tell them apart by the pipeline's key 'name', for instance by "
                + ("{collection}-{scene}" if scene.collection else "{folder}-{scene}"),
            )
        jobs[name] = Job(scene, name, out)
    if pipeline.merge is not None:
        _checked_place(pipeline.merge.name, pipeline)
        if pipeline.merge.name in jobs:
            raise UsageError(f"a scene's map has the merged one's name, '{pipeline.merge.name}'", "change 'merge.name'")
        in_order([job.part for job in jobs.values()], pipeline.merge.rule)
    return list(jobs.values())


def _checked_place(name: str, pipeline: PipelineConfig) -> Path:
    """Give a map's place, unless it is none, lies elsewhere, is the report's or a catalog's, or of no known format."""
    out = pipeline.out / (name + pipeline.format)
    taken = [(pipeline.out / REPORT_FILE).resolve(), pipeline.catalog and pipeline.catalog.resolve()]
    manifest = OutputPaths.of(out).manifest.resolve()
    if not name or not manifest.is_relative_to(pipeline.out.resolve()) or manifest in taken:
        raise UsageError(f"a map can't be called '{name}' here", "change the pipeline's key 'name' or 'merge.name'")
    driver_of(out)
    return out


def why_due(plan: Plan) -> str | None:
    """Say why a scene has to be mapped, or None if its map is current."""
    scene = {"landseg:scene": {"fingerprint": plan.scene_fingerprint}}
    due = _why_stale(plan.outputs.manifest, scene, "the scene changed", plan.bundle, plan.config)
    due = due or _why_incomplete(plan.outputs.manifest, plan.outputs.all[:-1])
    if due is None and is_remote(plan.info.path):
        properties = read_manifest(plan.outputs.manifest)["properties"]
        # A server may give tomorrow what it did not today; a damaged file on disk stays as it is until it changes.
        return "parts could not be read" if properties.get("landseg:lost_windows") else None
    return due


def _why_stale(
    path: Path, source: Mapping[str, Mapping[str, Any]], changed: str, bundle: Bundle, config: RunConfig
) -> str | None:
    """Compare a manifest with what the map would be made of now; ``changed`` is what to say if ``source`` differs."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        properties = manifest["properties"]
        recorded = {key: {k: properties[key][k] for k in values} for key, values in source.items()}
        model = properties["landseg:model"]
        card = (model["temperature"], manifest["assets"]["raster"]["bands"][0]["classification:classes"])
        then = RunConfig.model_validate(properties["landseg:config"]).model_dump(exclude=HOW)
    except FileNotFoundError:
        return "new"
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return f"{path.name} is not what this version writes"
    if recorded != source:
        return changed
    if model["sha256"] != bundle.sha256:
        return "the model changed"
    if card != (bundle.card.temperature, classes_of(bundle.card.legend)):
        return "the model's card changed"
    now = config.model_dump(exclude=HOW)
    if options := [key for key in now if then[key] != now[key]]:
        return f"options changed: {', '.join(options)}"
    return None


def _why_incomplete(manifest: Path, files: Iterable[Path]) -> str | None:
    """Say what a map whose manifest is current lacks: its polygons may be of another format than those asked for."""
    listed = listed_files(manifest.read_text("utf-8", "replace"))
    for path in files:
        if not path.exists():
            return f"{path.name} is missing"
        if path.name not in listed:
            return f"{path.name} is not in {manifest.name}"
        if path.suffix not in _RESTYLED and path.stat().st_size != listed[path.name].get("file:size"):
            return f"{path.name} is not as it was written"
    return None


def _check_polygons(outputs: OutputPaths) -> None:
    """Refuse to replace polygons of an earlier format, or the user's work: no ``--overwrite`` has named them.

    A run that was killed may have left polygons at their place and their manifest in its folder.
    """
    manifests = (outputs.manifest, Drafts(outputs.polygons).path(outputs.manifest))
    listings = [listed_files(path.read_text("utf-8", "replace")) for path in manifests if path.is_file()]
    for path in (outputs.polygons, *companions(outputs.polygons)):
        if not path.exists():
            continue
        assets = [listed[path.name] for listed in listings if path.name in listed]
        if not assets and any(outputs.polygons.name in listed for listed in listings):
            # A Shapefile's manifest did not list its companions once.
            continue
        if not assets:
            raise OutputExistsError(
                f"{path} exists and is not of the map in {outputs.manifest.name}", "move it away, or change 'format'"
            )
        if not any(is_as_listed(path, asset) for asset in assets):
            raise OutputExistsError(
                f"{path} was changed since it was made", "move it away, or delete it to have it made anew"
            )


def _merge(
    pipeline: PipelineConfig,
    merge: MergeConfig,
    bundle: Bundle,
    jobs: Sequence[Job],
    entries: Mapping[str, Entry],
    *,
    dry_run: bool,
) -> Entry:
    """Make one map of those that are there; a dry run says what would be done."""
    clock = time.monotonic()
    entry = Entry(merge.name, counted(len(jobs), "scene"), "failed", "")
    outputs = OutputPaths.of(_checked_place(merge.name, pipeline), picture=pipeline.picture)
    if any(entries[job.name].status == "due" for job in jobs):
        return replace(entry, status="due", why="its scenes change")
    try:
        config = pipeline.run_config()
        failed = [job for job in jobs if entries[job.name].status == "failed"]
        missing = [job.name for job in failed if not _has_former_map(job, bundle, config)]
        parts = [job.part for job in jobs if job.name not in missing]
        if not parts:
            return replace(entry, why="none of its scenes has a map")
        gone = sorted(_former_parts(outputs.manifest) - {job.name for job in jobs})
        if gone:
            log.warning("%s: %s no longer among the scenes", merge.name, _are(gone))
        made_of = {"rule": merge.rule, "parts": [_fingerprint(part) for part in parts], "missing": missing}
        # No project is made of a region.
        config = config.model_copy(update={"qgis_project": False})
        due = _why_stale(outputs.manifest, {"landseg:merge": made_of}, "its scenes changed", bundle, config)
        due = due or _why_incomplete(outputs.manifest, outputs.all[:-1])
        if due is None:
            return replace(entry, status="current", why="nothing changed", outputs=outputs.places)
        if missing:
            due += f"; without {', '.join(missing)}"
        if gone:
            due += f"; {_are(gone)} no longer among the scenes"
        if outputs.polygons.parent.is_dir():
            check_places(outputs, [job.scene.href for job in jobs], overwrite=True)
            _check_polygons(outputs)
        if dry_run:
            return replace(entry, status="due", why=due)
        with writing(outputs.polygons.parent):
            outputs.polygons.parent.mkdir(parents=True, exist_ok=True)
        write_region(
            parts,
            merge.rule,
            polygons=outputs.polygons,
            raster=outputs.raster,
            manifest=outputs.manifest,
            picture=outputs.picture,
            legend=bundle.card.legend,
            merging=merging_of(config, bundle.card.legend),
            simplify_m=config.simplify,
            polygons_bytes=memory_budget(config) - base_bytes(),
            versions=versions(),
            properties={
                "landseg:merge": made_of,
                "landseg:model": model_record(bundle),
                "landseg:config": config.model_dump(mode="json", exclude={"qgis_project", *UNRECORDED}),
            },
        )
        seconds = round(time.monotonic() - clock, 1)
        return replace(entry, status="mapped", why=due, outputs=outputs.places, seconds=seconds)
    except LandsegError as error:
        return replace(entry, why=str(error))
    except Exception as error:
        # Without the report nobody would know of the scenes.
        return _internal(entry, error)


def _former_parts(manifest: Path) -> set[str]:
    """Name the scenes' maps that a region was made of."""
    try:
        properties = json.loads(manifest.read_text(encoding="utf-8"))["properties"]
        return {part["map"] for part in properties["landseg:merge"]["parts"]}
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return set()


def _are(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _has_former_map(job: Job, bundle: Bundle, config: RunConfig) -> bool:
    """Tell whether a scene that failed was mapped before, by the same model and options: better that than a hole."""
    outputs = OutputPaths.of(job.out)
    stale = _why_stale(outputs.manifest, {}, "", bundle, config)
    return (stale or _why_incomplete(outputs.manifest, [outputs.raster])) is None


def _fingerprint(part: Part) -> dict[str, Any]:
    """Say what a region's map depends on of a part."""
    manifest = read_manifest(part.raster.with_suffix(".json"))
    date = None if part.date is None else part.date.isoformat()
    checksum = manifest["assets"]["raster"]["file:checksum"]
    return {"map": part.name, "checksum": checksum, "date": date, "cloud_cover": part.cloud_cover}


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
        plan = build_plan(job.scene.href, job.out, config)
        due = why_due(plan)
        if due is None:
            return replace(entry, status="current", why="nothing changed", outputs=plan.outputs.places)
        _check_polygons(plan.outputs)
        if on_progress is None:
            return replace(entry, status="due", why=due)
        with writing(job.out.parent):
            job.out.parent.mkdir(parents=True, exist_ok=True)
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
        return _internal(entry, error)


def _internal(entry: Entry, error: Exception) -> Entry:
    log.error("%s failed", entry.name, exc_info=error)
    return replace(entry, why=hide_secrets(f"internal error: {type(error).__name__}: {error}"))


def _tell(entry: Entry, jobs: int) -> None:
    level = logging.WARNING if entry.status == "failed" else logging.INFO
    facts = {"event": "scene", "of": jobs, **asdict(entry)}
    log.log(level, "%s: %s (%s)", entry.name, entry.status, entry.why.splitlines()[0], extra={FACTS: facts})


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


def _write_report(pipeline: PipelineConfig, report: Report) -> Entry | None:
    """Leave the report in the output folder; tell a failure, since it is posted and printed all the same."""
    path = pipeline.out / REPORT_FILE
    try:
        write_text(path, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    except LandsegError as error:
        return Entry(REPORT_FILE, f"report {path}", "failed", str(error))
    return None


def _add_to_catalog(catalog: Path, entries: Iterable[Entry]) -> Entry | None:
    """Put the maps into a catalog's collection ``maps``, but for those that are there and current; tell a failure."""
    failed = Entry(str(catalog), f"catalog {catalog}", "failed", "")
    try:
        for entry in entries:
            if entry.status in ("mapped", "current"):
                item = read_item(Path(entry.outputs[-1]))
                item.id = entry.name.replace("/", "-")
                if entry.status == "mapped" or not has_item(catalog, item, "maps"):
                    add_item(catalog, item, "maps")
    except LandsegError as error:
        return replace(failed, why=str(error))
    except Exception as error:
        # The maps are made; without the report nobody would know of them.
        return _internal(failed, error)
    return None


def _post(url: str, report: Report) -> None:
    """Post the report; the maps are made, so a failure is a warning. Its message would show the URL."""
    try:
        answer = requests.post(url, json=report.to_dict(), timeout=WEBHOOK_TIMEOUT_S)
    except requests.RequestException as error:
        log.warning("the webhook could not be reached (%s)", type(error).__name__)
    else:
        if not answer.ok:
            log.warning("the webhook answered %d", answer.status_code)
