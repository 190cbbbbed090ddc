"""Whether a map is current, and whether what lies at its place may be replaced."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landseg.config import RunConfig
from landseg.errors import OutputExistsError
from landseg.hrefs import is_remote
from landseg.model.bundle import Bundle
from landseg.outputs.manifest import classes_of, is_as_listed, listed_files
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
    due = why_stale(plan.outputs, scene, "the scene changed", plan.bundle, plan.config)
    if due is None and is_remote(plan.info.path):
        properties = json.loads(plan.outputs.read_manifest() or "{}").get("properties", {})
        # A server may give tomorrow what it did not today; a damaged file on disk stays as it is until it changes.
        return "parts could not be read" if properties.get("landseg:lost_windows") else None
    return due


def why_stale(
    outputs: OutputPaths,
    source: Mapping[str, Mapping[str, Any]],
    changed: str,
    bundle: Bundle,
    config: RunConfig,
    files: Sequence[Path] | None = None,
) -> str | None:
    """Compare a manifest with what the map would be made of now, and with the files that are there.

    ``changed`` is what to say if ``source`` differs; ``files`` are those that matter if not all do.
    """
    try:
        text = outputs.read_manifest()
        if text is None:
            return "new"
        manifest = json.loads(text)
        properties = manifest["properties"]
        recorded = {key: {k: properties[key][k] for k in values} for key, values in source.items()}
        model = properties["landseg:model"]
        card = (model["temperature"], manifest["assets"]["raster"]["bands"][0]["classification:classes"])
        then = RunConfig.model_validate(properties["landseg:config"]).model_dump(exclude=HOW)
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return f"{outputs.manifest.name} is not what this version writes"
    if recorded != source:
        return changed
    if model["sha256"] != bundle.sha256:
        return "the model changed"
    if card != (bundle.card.temperature, classes_of(bundle.card.legend)):
        return "the model's card changed"
    now = config.model_dump(exclude=HOW)
    if options := [key for key in now if then[key] != now[key]]:
        return f"options changed: {', '.join(options)}"
    return _why_incomplete(outputs, outputs.all[:-1] if files is None else files, listed_files(text))


def _why_incomplete(outputs: OutputPaths, files: Sequence[Path], listed: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say what a map whose manifest is current lacks: its polygons may be of another format than those asked for."""
    sizes = outputs.sizes()
    for path in files:
        if path.name not in sizes:
            return f"{path.name} is missing"
        if path.name not in listed:
            return f"{path.name} is not in {outputs.manifest.name}"
        if path.suffix not in _RESTYLED and sizes[path.name] != listed[path.name].get("file:size"):
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
    sizes = outputs.sizes()
    own = [path for path in (outputs.polygons, *companions(outputs.polygons)) if path.name in sizes]
    listings = outputs.listings() if own else []
    for path in own:
        assets = [listed[path.name] for listed in listings if path.name in listed]
        if not assets and any(outputs.polygons.name in listed for listed in listings):
            # A Shapefile's manifest did not list its companions once.
            continue
        if not assets:
            raise OutputExistsError(
                f"{outputs.place(path)} exists and is not of the map in {outputs.manifest.name}",
                "move it away, or change 'format'",
            )
        with outputs.open(path) as file:
            is_ours = any(is_as_listed(file, asset) for asset in assets)
        if not is_ours:
            raise OutputExistsError(
                f"{outputs.place(path)} was changed since it was made",
                "move it away, or delete it to have it made anew",
            )
