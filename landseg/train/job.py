"""A training or an evaluation from beginning to end: configuration in, bundle or scores out."""

import functools
import operator
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import lightning
import torch
from torch import Tensor

from landseg.config import RunConfig, TrainConfig, legend_of
from landseg.errors import TrainingDataError
from landseg.legend import Legend
from landseg.model.bundle import Bundle, Card, check_replaceable, read_bundle, write_bundle
from landseg.model.convert import load_backbone
from landseg.model.pspnet import Architecture
from landseg.run import Plan, ProgressCallback, build_plan, map_labels, predict_chips
from landseg.scene import value_ranges
from landseg.train.calibrate import fit_temperature
from landseg.train.evaluate import ReadChannels, Scores, evaluate_map, open_reference
from landseg.train.fit import Chips, Schedule, Training, fit
from landseg.train.samples import IGNORED, LabelCodes, Pair, band_statistics, class_frequencies


def train(config: TrainConfig, *, quiet: bool = False) -> Bundle:
    """Train a network, measure it on the held-out pairs and write its bundle to ``config.out / config.name``.

    An interrupted training goes on from its last checkpoint when it is called again with the same configuration.

    Raises
    ------
    TrainingDataError
        If scenes and labels can't be trained on: unreadable, apart from each other, or a class without pixels.
    BundleError
        If the initial weights are not of the configuration's backbone.
    """
    legend = legend_of(config.legend)
    pairs = [Pair(config.data.root / p.scene, config.data.root / p.labels) for p in config.data.training]
    held_out = [Pair(config.data.root / p.scene, config.data.root / p.labels) for p in config.data.held_out]
    codes = LabelCodes(config.data.label_values, legend.names)
    options = config.optimisation
    lightning.seed_everything(options.seed, verbose=False)
    data = Chips(
        pairs,
        codes,
        config.gsd_m,
        chip_px=config.chip_px,
        batch=options.batch,
        batches=min(options.checkpoint_every, options.steps),
        workers=options.loader_workers,
        seed=options.seed,
    )
    shares = class_frequencies(pairs, codes, len(legend))
    absent = [name for name, share in zip(legend.names, shares, strict=True) if share == 0]
    if absent:
        raise TrainingDataError(f"class '{absent[0]}' has no pixel in the training labels")
    mean, std = band_statistics(pairs)
    if len(mean) != len(config.bands):
        raise TrainingDataError(
            f"the training scenes have {len(mean)} bands; the configuration names {len(config.bands)}",
            f"bands: {', '.join(config.bands)}",
        )
    architecture = Architecture(in_channels=len(config.bands), classes=len(legend), **config.architecture.model_dump())
    schedule = Schedule(
        steps=options.steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warm_up_steps=options.warm_up_steps,
        auxiliary_weight=options.auxiliary_weight,
    )
    training = Training(architecture, mean, std, schedule)
    if options.initial_weights is not None:
        load_backbone(training.network.backbone, options.initial_weights)
    network = fit(training, data, config.out, precision=options.precision, quiet=quiet)
    card = Card(
        name=config.name,
        title=config.card.title,
        description=config.card.description,
        licence=config.card.licence,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        architecture=architecture,
        bands=config.bands,
        gsd_m=config.gsd_m,
        chip_px=config.chip_px,
        mean=mean,
        std=std,
        legend=legend,
        training={
            "data": config.card.training_data,
            "scenes": [str(p.scene) for p in config.data.training],
            "class_shares": {n: round(float(s), 4) for n, s in zip(legend.names, shares, strict=True)},
            "optimisation": options.model_dump(mode="json", exclude={"loader_workers", "checkpoint_every"}),
        },
        limits=config.card.limits,
    )
    bundle = write_bundle(config.out / config.name, card, network)
    if not held_out:
        return bundle
    # Measured on the stored 16-bit weights, by the pipeline that users run: what the card says is what they get.
    each = [evaluate(str(bundle.folder), str(pair.scene), pair.labels, config.data.label_values) for pair in held_out]
    scores = functools.reduce(operator.add, each)
    names = ", ".join(pair.scene.name for pair in held_out)
    return write_bundle(bundle.folder, replace(card, held_out={"data": names, **scores.to_dict(legend)}), network)


def evaluate(
    model: str,
    scene: str,
    labels: Path,
    label_values: Mapping[int, str] | None = None,
    config: RunConfig | None = None,
    on_progress: ProgressCallback = lambda _: None,
) -> Scores:
    """Map a scene as ``landseg run`` does and compare the map with reference labels.

    Parameters
    ----------
    model
        Name of a shipped model, or a bundle's folder.
    scene
        Path or URL of the raster to map.
    labels
        Raster of reference classes on the same ground, of any grid.
    label_values
        Value in ``labels`` -> class name; by default the legend's class ids.
    config
        Options of the mapping; its model is not looked at.

    Raises
    ------
    TrainingDataError
        If scene and labels do not overlap, or nothing is labelled.
    """
    plan = _plan(model, scene, config)
    legend = plan.bundle.card.legend
    codes = label_codes(label_values, legend)
    with tempfile.TemporaryDirectory(prefix="landseg-") as folder:
        predicted = map_labels(plan, Path(folder), on_progress)
        return evaluate_map(predicted, labels, codes, legend)


def calibrate(
    model: str,
    scene: str,
    labels: Path,
    out: Path,
    label_values: Mapping[int, str] | None = None,
    *,
    overwrite: bool = False,
    on_progress: ProgressCallback = lambda _: None,
) -> Bundle:
    """Fit a model's temperature to a scene and its labels, and write the model anew as the bundle ``out``.

    The card keeps its figures, but for those that tell of confidence: they were the former temperature's.

    Parameters
    ----------
    model, scene, labels, label_values
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
        If scene and labels do not overlap, or nothing is labelled.
    """
    check_replaceable(out, overwrite=overwrite)
    bundle = read_bundle(model)
    temperature = fitted_temperature(model, [(scene, labels)], label_values, on_progress=on_progress)
    stale = {"ece", "reliability"}
    card = replace(
        bundle.card,
        name=out.resolve().name,
        temperature=temperature,
        training={**bundle.card.training, "calibrated_on": [Path(scene).name]},
        held_out={key: value for key, value in bundle.card.held_out.items() if key not in stale},
    )
    return write_bundle(out, card, bundle.load_network())


def fitted_temperature(
    model: str,
    pairs: Iterable[tuple[str, Path]],
    label_values: Mapping[int, str] | None = None,
    *,
    config: RunConfig | None = None,
    on_progress: ProgressCallback = lambda _: None,
) -> float:
    """Find the temperature of a model on labelled scenes, whatever its card says.

    It is fitted to single chips, each on its core, and not to their blend, which would have to be made anew for every
    temperature. Blending averages calibrated probabilities and so lowers confidence a little: on the demo's scene the
    best temperatures of chips and map are 0.01 apart.

    Parameters
    ----------
    model, label_values, config
        See `evaluate`.
    pairs
        Scenes that the model was not trained on, and their labels.

    Raises
    ------
    TrainingDataError
        If a scene and its labels do not overlap, or nothing is labelled.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for scene, labels in pairs:
            plan = _plan(model, scene, config)
            card = plan.bundle.card
            codes = label_codes(label_values, card.legend)
            untempered = replace(plan, bundle=replace(plan.bundle, card=replace(card, temperature=1.0)))
            with open_reference(labels, codes, plan.grid, f"the scene {scene}") as read:
                yield from _labelled_chips(untempered, read, on_progress)

    return round(fit_temperature(batches()), 4)


def _labelled_chips(plan: Plan, read: ReadChannels, on_progress: ProgressCallback) -> Iterator[tuple[Tensor, Tensor]]:
    """Give log-probabilities, (N, K, S, S), and channel indices, (N, S, S), known within the chips' cores alone."""
    ranges = value_ranges(plan.info, plan.bands, plan.bundle.card.value_range)
    for batch, probabilities in predict_chips(plan, ranges, on_progress):
        mask = torch.full(batch.valid.shape, IGNORED, dtype=torch.int64)
        for index, chip in enumerate(batch.chips):
            top, left = chip.core.row_off - chip.read.row_off, chip.core.col_off - chip.read.col_off
            rows, cols = slice(top, top + chip.core.height), slice(left, left + chip.core.width)
            mask[index, rows, cols] = torch.from_numpy(read(chip.core))
        mask[~torch.from_numpy(batch.valid)] = IGNORED
        yield probabilities.clamp(min=torch.finfo(torch.float32).tiny).log(), mask


def _plan(model: str, scene: str, config: RunConfig | None) -> Plan:
    """Plan a run whose products are never written."""
    return build_plan(scene, Path("map.gpkg"), (config or RunConfig()).model_copy(update={"model": model}))


def label_codes(label_values: Mapping[int, str] | None, legend: Legend) -> LabelCodes:
    """Say what the values of a label raster mean; by default they are the legend's class ids."""
    return LabelCodes(label_values or {c.class_id: c.name for c in legend}, legend.names)
