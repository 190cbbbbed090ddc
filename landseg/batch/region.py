"""One map of all that a batch has mapped, made anew when one of them changes."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from landseg.batch.due import check_polygons, why_stale
from landseg.batch.jobs import Job, checked_place
from landseg.batch.report import Entry, internal_error
from landseg.config import MergeConfig, PipelineConfig, RunConfig
from landseg.errors import LandsegError
from landseg.model.bundle import Bundle
from landseg.outputs import counted
from landseg.outputs.drafts import writing
from landseg.outputs.paths import OutputPaths, check_places
from landseg.polygonizing import merging_of
from landseg.region import write_region
from landseg.run import UNRECORDED, base_bytes, memory_budget, model_record, versions

log = logging.getLogger(__name__)


def map_region(
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
    # No project is made of a region.
    config = pipeline.run_config().model_copy(update={"qgis_project": False})
    outputs = replace(checked_place(merge.name, pipeline), project=None)
    if any(entries[job.name].status == "due" for job in jobs):
        return replace(entry, status="due", why="its scenes change")
    try:
        failed = [job for job in jobs if entries[job.name].status == "failed"]
        missing = [job.name for job in failed if not _has_former_map(job, bundle, pipeline.run_config())]
        mapped = [job for job in jobs if job.name not in missing]
        if not mapped:
            return replace(entry, why="none of its scenes has a map")
        gone = sorted(_former_parts(outputs) - {job.name for job in jobs})
        if gone:
            log.warning("%s: %s no longer among the scenes", merge.name, _are(gone))
        made_of = {"rule": merge.rule, "parts": [_fingerprint(job) for job in mapped], "missing": missing}
        due = why_stale(outputs, {"landseg:merge": made_of}, "its scenes changed", bundle, config)
        if due is None:
            return replace(entry, status="current", why="nothing changed", outputs=outputs.places)
        if missing:
            due += f"; without {', '.join(missing)}"
        if gone:
            due += f"; {_are(gone)} no longer among the scenes"
        if not dry_run:
            with writing(outputs.polygons.parent):
                outputs.polygons.parent.mkdir(parents=True, exist_ok=True)
        if outputs.polygons.parent.is_dir():
            check_places(outputs, [job.scene.href for job in jobs], overwrite=True)
        check_polygons(outputs)
        if dry_run:
            return replace(entry, status="due", why=due)
        write_region(
            [job.part for job in mapped],
            merge.rule,
            outputs=outputs,
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
        return internal_error(entry, error)


def _former_parts(outputs: OutputPaths) -> set[str]:
    """Name the scenes' maps that a region was made of."""
    try:
        properties = json.loads(outputs.read_manifest() or "{}")["properties"]
        return {part["map"] for part in properties["landseg:merge"]["parts"]}
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return set()


def _are(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _has_former_map(job: Job, bundle: Bundle, config: RunConfig) -> bool:
    """Tell whether a scene that failed was mapped before, by the same model and options: better that than a hole."""
    return why_stale(job.outputs, {}, "", bundle, config, [job.outputs.raster]) is None


def _fingerprint(job: Job) -> dict[str, Any]:
    """Say what a region's map depends on of a scene's."""
    manifest, part = json.loads(job.outputs.read_manifest() or "{}"), job.part
    date = None if part.date is None else part.date.isoformat()
    checksum = manifest["assets"]["raster"]["file:checksum"]
    return {"map": part.name, "checksum": checksum, "date": date, "cloud_cover": part.cloud_cover}
