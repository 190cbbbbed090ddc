"""Whether a map is current, and whether what lies at its place may be replaced."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from landseg.config import RunConfig
from landseg.errors import OutputExistsError
from landseg.hrefs import is_remote
from landseg.model.bundle import Bundle
from landseg.outputs.drafts import Drafts
from landseg.outputs.manifest import classes_of, is_as_listed, listed_files, read_manifest
from landseg.outputs.paths import OutputPaths
from landseg.outputs.vector import companions
from landseg.run import UNRECORDED, Plan

HOW = {"model", "device", "batch", *UNRECORDED}
"""Options that do not change a map; the model counts by its weights and not by its name."""

_RESTYLED = {".xml", ".qml", ".qgz"}
"""Suffixes of what QGIS writes anew when somebody looks at a map in other colours."""


def why_due(plan: Plan) -> str | None:
    """Say why a scene has to be mapped, or None if its map is current."""
    scene = {"landseg:scene": {"fingerprint": plan.scene_fingerprint}}
    due = why_stale(plan.outputs.manifest, scene, "the scene changed", plan.bundle, plan.config)
    due = due or why_incomplete(plan.outputs.manifest, plan.outputs.all[:-1])
    if due is None and is_remote(plan.info.path):
        properties = read_manifest(plan.outputs.manifest)["properties"]
        # A server may give tomorrow what it did not today; a damaged file on disk stays as it is until it changes.
        return "parts could not be read" if properties.get("landseg:lost_windows") else None
    return due


def why_stale(
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


def why_incomplete(manifest: Path, files: Iterable[Path]) -> str | None:
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


def check_polygons(outputs: OutputPaths) -> None:
    """Refuse to replace polygons of an earlier format, or the user's work: no ``--overwrite`` has named them.

    A run that was killed may have left polygons at their place and their manifest in its folder.

    Raises
    ------
    OutputExistsError
        If they are of no map here, or were changed.
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
