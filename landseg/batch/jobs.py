"""What a batch has to do: the scenes that its pipeline names, and a place for the map of each."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from landseg.batch.report import report_place
from landseg.catalog.search import SceneRef, search
from landseg.config import PipelineConfig
from landseg.errors import UsageError
from landseg.hrefs import hide_secrets, is_remote, stem
from landseg.outputs.paths import OutputPaths
from landseg.outputs.vector import driver_of
from landseg.region import Part, in_order
from landseg.run import outputs_of

log = logging.getLogger(__name__)

_UNFIT = re.compile(r"[^\w.+-]+")
"""What an item's id may hold and a file's name should not."""


@dataclass(frozen=True)
class Job:
    """A scene, the name of its map, and where the map's products go."""

    scene: SceneRef
    name: str
    outputs: OutputPaths

    @property
    def part(self) -> Part:
        """The map as a part of a region's."""
        raster = self.outputs.place(self.outputs.raster)
        return Part(self.name, raster, self.scene.date, self.scene.cloud_cover)


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
    report, _ = report_place(pipeline)
    paths: dict[str, None] = {}
    idle: dict[str, str] = {}
    for path in pipeline.scenes.files:
        is_pattern = has_magic(path) and not is_remote(path) and not Path(path).exists()
        found, why = _matches(path, report.parent) if is_pattern else ([path], "")
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
        outputs = checked_place(name, pipeline)
        if name in jobs:
            raise UsageError(
                f"{jobs[name].scene.href} and {scene.href} would both be mapped to {outputs.place(outputs.polygons)}",
                "tell them apart by the pipeline's key 'name', for instance by "
                + ("{collection}-{scene}" if scene.collection else "{folder}-{scene}"),
            )
        jobs[name] = Job(scene, name, outputs)
    if pipeline.merge is not None:
        checked_place(pipeline.merge.name, pipeline)
        if pipeline.merge.name in jobs:
            raise UsageError(f"a scene's map has the merged one's name, '{pipeline.merge.name}'", "change 'merge.name'")
        in_order([job.part for job in jobs.values()], pipeline.merge.rule)
    return list(jobs.values())


def checked_place(name: str, pipeline: PipelineConfig) -> OutputPaths:
    """Say where a map's products go.

    Raises
    ------
    UsageError
        If it is none, lies elsewhere, is the report's or a catalog's, or of no known format.
    """
    report, _ = report_place(pipeline)
    taken = [report.resolve(), pipeline.catalog and pipeline.catalog.resolve()]
    outputs = outputs_of(pipeline.place(name + pipeline.format), pipeline.run_config())
    manifest = outputs.manifest.resolve()
    if not name or not manifest.is_relative_to(report.parent.resolve()) or manifest in taken:
        raise UsageError(f"a map can't be called '{name}' here", "change the pipeline's key 'name' or 'merge.name'")
    driver_of(outputs.polygons)
    return outputs
