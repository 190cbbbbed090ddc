"""A training or an evaluation from beginning to end: configuration in, bundle or scores out."""

import functools
import operator
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import lightning

from landseg.config import RunConfig, TrainConfig, legend_of
from landseg.errors import TrainingDataError
from landseg.legend import Legend
from landseg.model.bundle import Bundle, Card, write_bundle
from landseg.model.convert import load_backbone
from landseg.model.pspnet import Architecture
from landseg.run import ProgressCallback, build_plan, map_labels
from landseg.train.evaluate import Scores, evaluate_map
from landseg.train.fit import Chips, Schedule, Training, fit
from landseg.train.samples import LabelCodes, Pair, band_statistics, class_frequencies


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
    with tempfile.TemporaryDirectory(prefix="landseg-") as folder:
        plan = build_plan(scene, Path(folder) / "map.gpkg", (config or RunConfig()).model_copy(update={"model": model}))
        legend = plan.bundle.card.legend
        codes = label_codes(label_values, legend)
        predicted = map_labels(plan, Path(folder), on_progress)
        return evaluate_map(predicted, labels, codes, legend)


def label_codes(label_values: Mapping[int, str] | None, legend: Legend) -> LabelCodes:
    """Say what the values of a label raster mean; by default they are the legend's class ids."""
    return LabelCodes(label_values or {c.class_id: c.name for c in legend}, legend.names)
