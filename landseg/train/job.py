"""A training or an evaluation from beginning to end: configuration in, bundle or scores out."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np

from landseg.config import DatasetConfig, RunConfig, TrainConfig, legend_of
from landseg.errors import ConfigError, TrainingDataError
from landseg.legend import Legend
from landseg.model.bundle import Bundle, Card, write_bundle
from landseg.model.convert import load_backbone
from landseg.model.pspnet import Architecture
from landseg.predict import Predictor, choose_device, choose_precision
from landseg.run import ProgressCallback, build_plan, map_labels
from landseg.train.evaluate import Scores, evaluate_map, score
from landseg.train.fit import Chips, Schedule, Training, fit
from landseg.train.landcover import SETS, Statistics, measure, open_split, predictions, random_chips
from landseg.train.samples import (
    LabelCodes,
    Pair,
    Source,
    band_statistics,
    class_frequencies,
    draw_from_scenes,
    open_pairs,
)


@dataclass(frozen=True, eq=False)
class _Material:
    """What a configuration trains on.

    Parameters
    ----------
    legend
        Its classes.
    training
        Varied samples.
    statistics
        Of its bands and classes.
    described
        What the card says of it.
    measure
        Gives what a bundle is held against, in words, and its scores there; None where nothing is held out.
    """

    legend: Legend
    training: Source
    statistics: Statistics
    described: dict[str, Any]
    measure: Callable[[Bundle], tuple[str, Scores]] | None


def train(config: TrainConfig, *, quiet: bool = False) -> Bundle:
    """Train a network, measure it on what is held out and write its bundle to ``config.out / config.name``.

    An interrupted training goes on from its last checkpoint when it is called again with the same configuration.

    Raises
    ------
    TrainingDataError
        If scenes and labels can't be trained on: unreadable, apart from each other, or a class without pixels.
    BundleError
        If the initial weights are not of the configuration's backbone.
    ConfigError
        If the named set is not what the configuration takes it for.
    """
    options = config.optimisation
    lightning.seed_everything(options.seed, verbose=False)
    material = _pairs(config) if config.data.dataset is None else _named_set(config, config.data.dataset)
    legend, statistics = material.legend, material.statistics
    data = Chips(
        material.training,
        chip_px=config.chip_px,
        batch=options.batch,
        batches=min(options.checkpoint_every, options.steps),
        workers=options.loader_workers,
        seed=options.seed,
    )
    absent = [name for name, share in zip(legend.names, statistics.shares, strict=True) if share == 0]
    if absent:
        where = (
            "the training labels" if config.data.dataset is None else "the chips drawn to measure the training split"
        )
        raise TrainingDataError(f"class '{absent[0]}' has no pixel in {where}", "leave it out of the legend")
    if len(statistics.mean) != len(config.bands):
        raise TrainingDataError(
            f"the training scenes have {len(statistics.mean)} bands; the configuration names {len(config.bands)}",
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
    training = Training(architecture, statistics.mean, statistics.std, schedule)
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
        mean=statistics.mean,
        std=statistics.std,
        legend=legend,
        training={
            "data": config.card.training_data,
            **material.described,
            "class_shares": {n: round(float(s), 4) for n, s in zip(legend.names, statistics.shares, strict=True)},
            "optimisation": options.model_dump(mode="json", exclude={"loader_workers", "checkpoint_every"}),
        },
        limits=config.card.limits,
    )
    bundle = write_bundle(config.out / config.name, card, network)
    if material.measure is None:
        return bundle
    # Measured on the stored 16-bit weights: what the card says is what users get.
    where, scores = material.measure(bundle)
    return write_bundle(bundle.folder, replace(card, held_out={"data": where, **scores.to_dict(legend)}), network)


def _pairs(config: TrainConfig) -> _Material:
    """Open a user's own scenes and labels."""
    legend = legend_of(config.legend)
    pairs = [Pair(config.data.root / p.scene, config.data.root / p.labels) for p in config.data.training]
    held_out = [Pair(config.data.root / p.scene, config.data.root / p.labels) for p in config.data.held_out]
    codes = LabelCodes(config.data.label_values, legend.names)
    dataset = open_pairs(pairs, codes, config.gsd_m, augment=True)

    def measure_maps(bundle: Bundle) -> tuple[str, Scores]:
        # By the pipeline that users run.
        values = config.data.label_values
        each = [evaluate(str(bundle.folder), str(pair.scene), pair.labels, values) for pair in held_out]
        return ", ".join(pair.scene.name for pair in held_out), Scores(np.sum([one.confusion for one in each], axis=0))

    return _Material(
        legend,
        Source(dataset, partial(draw_from_scenes, dataset)),
        Statistics(*band_statistics(pairs), class_frequencies(pairs, codes, len(legend))),
        {"scenes": [str(p.scene) for p in config.data.training]},
        measure_maps if held_out else None,
    )


def _named_set(config: TrainConfig, chosen: DatasetConfig) -> _Material:
    """Open a published set; its figures come from chips, since most sets' images have no place to map."""
    known = SETS[chosen.name]
    if config.bands != known.bands:
        raise ConfigError(
            f"the bands of {known.title} are not those of the configuration", f"bands: [{', '.join(known.bands)}]"
        )
    legend = legend_of(config.legend) if config.legend else known.legend
    codes = known.codes(config.data.label_values, legend)
    opened = partial(
        open_split,
        chosen.name,
        chosen.root,
        codes=codes,
        gsd_m=config.gsd_m,
        parts=chosen.parts,
        download=chosen.download,
    )
    drawn = partial(
        random_chips,
        chip_px=config.chip_px,
        chips=chosen.measured_chips,
        batch=config.optimisation.batch,
        workers=config.optimisation.loader_workers,
        seed=config.optimisation.seed,
    )
    # Opened before the training, so that a split that is missing is missed in time.
    held_out = opened(split=known.held_out, augment=False)

    def measure_chips(bundle: Bundle) -> tuple[str, Scores]:
        device = choose_device("auto")
        predict = Predictor(bundle.load_network(), device, choose_precision("auto", device))
        blocks = predictions(predict, drawn(held_out), bundle.card.mean, bundle.card.std, legend.class_ids)
        what = f"{known.title}, {known.held_out} split, {chosen.measured_chips} random chips of {config.chip_px} px"
        return what, score(blocks, legend)

    return _Material(
        legend,
        opened(split="training", augment=True),
        measure(drawn(opened(split="training", augment=False)), len(legend)),
        {
            "dataset": {"name": chosen.name, "parts": list(chosen.parts or known.parts)},
            "reference": known.reference,
            "terms": known.terms,
        },
        measure_chips,
    )


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
    with tempfile.TemporaryDirectory(prefix="landseg-") as folder:
        plan = build_plan(scene, Path(folder) / "map.gpkg", (config or RunConfig()).model_copy(update={"model": model}))
        legend = plan.bundle.card.legend
        codes = label_codes(label_values, legend)
        predicted = map_labels(plan, Path(folder), on_progress)
        return evaluate_map(predicted, labels, codes, legend)


def label_codes(label_values: Mapping[int, str] | None, legend: Legend) -> LabelCodes:
    """Say what the values of a label raster mean; by default they are the legend's class ids."""
    return LabelCodes(label_values or {c.class_id: c.name for c in legend}, legend.names)
