"""A model tried on a scene whose classes are known: it is measured, or its confidence calibrated."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from landseg.config import RunConfig
from landseg.mapping import ProgressCallback
from landseg.model.bundle import Bundle, check_replaceable, read_bundle, write_bundle
from landseg.run import Plan, build_plan, map_labels, predict_chips
from landseg.train.calibrate import fit_temperature
from landseg.train.evaluate import ReadChannels, Scores, check_reference, evaluate_map, open_reference
from landseg.train.labels import CLASS_COLUMN, IGNORED
from landseg.train.material import label_codes


def evaluate(
    model: str,
    scene: str,
    labels: Path,
    label_values: Mapping[int | str, str] | None = None,
    config: RunConfig | None = None,
    on_progress: ProgressCallback = lambda _: None,
    *,
    ignored_values: Collection[int | str] = (),
    class_column: str = CLASS_COLUMN,
    layer: str | None = None,
) -> Scores:
    """Map a scene as ``landseg run`` does and compare the map with reference labels.

    Parameters
    ----------
    model
        Name of a shipped model, or a bundle's folder.
    scene
        Path or URL of the raster to map.
    labels
        Reference classes on the same ground: a raster of any grid, or polygons.
    label_values
        Value in ``labels`` -> class name; by default the legend's class ids. Names of classes mean themselves.
    config
        Options of the mapping; its model is not looked at.
    ignored_values
        Values in ``labels`` that are to have no class.
    class_column, layer
        Where polygons say their class; see `landseg.train.labels.open_labels`.

    Raises
    ------
    TrainingDataError
        If scene and labels do not overlap, the labels hold values that have no meaning, or nothing is labelled.
    """
    plan = _plan(model, scene, config)
    legend = plan.bundle.card.legend
    codes = label_codes(label_values, legend, ignored_values)
    read = open_reference(labels, codes, plan.grid, f"the scene {scene}", class_column=class_column, layer=layer)
    check_reference(read, plan.grid)
    with tempfile.TemporaryDirectory(prefix="landseg-") as folder:
        predicted = map_labels(plan, Path(folder), on_progress)
        return evaluate_map(predicted, labels, codes, legend, class_column=class_column, layer=layer)


def calibrate(
    model: str,
    scene: str,
    labels: Path,
    out: Path,
    label_values: Mapping[int | str, str] | None = None,
    config: RunConfig | None = None,
    *,
    ignored_values: Collection[int | str] = (),
    class_column: str = CLASS_COLUMN,
    layer: str | None = None,
    overwrite: bool = False,
    on_progress: ProgressCallback = lambda _: None,
) -> Bundle:
    """Fit a model's temperature to a scene and its labels, and write the model anew as the bundle ``out``.

    It is fitted to single chips, each on its core, and not to their blend, which would have to be made anew for every
    temperature. Blending averages calibrated probabilities and so lowers confidence a little: on the demo's scene the
    best temperatures of chips and map are 0.01 apart. For the same reason it is fitted to one view, whatever
    ``config.views`` says: a run averages what the temperature made of each.

    The card keeps its figures, but for those that tell of confidence: they were the former temperature's.

    Parameters
    ----------
    model, scene, labels, label_values, config, ignored_values, class_column, layer
        See `evaluate`. The model must not have been trained on the scene.
    out
        Folder of the bundle to write; its name is the model's. It may be the model's own.
    overwrite
        Whether to replace a bundle at ``out``.

    Raises
    ------
    UsageError
        If something is at ``out`` that may not be replaced.
    TrainingDataError
        If scene and labels do not overlap, the labels hold values that have no meaning, or nothing is labelled.
    """
    check_replaceable(out, overwrite=overwrite)
    bundle = read_bundle(model)
    untempered = replace(bundle, card=replace(bundle.card, temperature=1.0))
    single = (config or RunConfig()).model_copy(update={"views": 1})
    plan = replace(_plan(model, scene, single), bundle=untempered)
    codes = label_codes(label_values, bundle.card.legend, ignored_values)
    read = open_reference(labels, codes, plan.grid, f"the scene {scene}", class_column=class_column, layer=layer)
    check_reference(read, plan.grid)
    temperature = round(fit_temperature(_labelled_chips(plan, read, on_progress)), 4)
    stale = {"ece", "reliability"}
    card = replace(
        bundle.card,
        name=out.resolve().name,
        temperature=temperature,
        training={**bundle.card.training, "calibrated_on": [Path(scene).name]},
        held_out={key: value for key, value in bundle.card.held_out.items() if key not in stale},
    )
    return write_bundle(out, card, bundle.load_network(auxiliary=True))


def _labelled_chips(plan: Plan, read: ReadChannels, on_progress: ProgressCallback) -> Iterator[tuple[Tensor, Tensor]]:
    """Give log-probabilities, (N, K, S, S), and channel indices, (N, S, S), known within the chips' cores alone."""
    for batch, probabilities in predict_chips(plan, on_progress):
        valid = batch.valid_in_chips.cpu()
        mask = torch.full(valid.shape, IGNORED, dtype=torch.int64)
        for index, chip in enumerate(batch.chips):
            top, left = chip.core.row_off - chip.read.row_off, chip.core.col_off - chip.read.col_off
            rows, cols = slice(top, top + chip.core.height), slice(left, left + chip.core.width)
            mask[index, rows, cols] = torch.from_numpy(read(chip.core))
        mask[~valid] = IGNORED
        yield probabilities.clamp(min=torch.finfo(torch.float32).tiny).log().cpu(), mask


def _plan(model: str, scene: str, config: RunConfig | None) -> Plan:
    """Plan a run in this process whose products are never written."""
    own = {"model": model, "workers": None, "scheduler": None, "work_folder": None}
    return build_plan(scene, Path("map.gpkg"), (config or RunConfig()).model_copy(update=own))
