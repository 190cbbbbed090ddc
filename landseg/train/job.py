"""A training or an evaluation from beginning to end: configuration in, bundle or scores out."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import lightning
import numpy as np
from numpy.typing import NDArray

from landseg.config import DataConfig, OptimisationConfig, PairConfig, RunConfig, TrainConfig, legend_of
from landseg.errors import ConfigError, TrainingDataError
from landseg.legend import Legend
from landseg.model.bundle import Bundle, Card, read_bundle, write_bundle
from landseg.model.convert import load_backbone
from landseg.model.pspnet import Architecture
from landseg.run import ProgressCallback, build_plan, map_labels
from landseg.train.augment import Augmentation
from landseg.train.evaluate import Scores, evaluate_map
from landseg.train.fit import Chips, Conduct, Schedule, Training, fit
from landseg.train.labels import CLASS_COLUMN, LabelCodes
from landseg.train.losses import Objective
from landseg.train.samples import Pair, Sites, Source, band_statistics
from landseg.train.splits import Blocks, open_splits
from landseg.train.transfer import transfer


@dataclass(frozen=True)
class _Terms:
    """What the network and its input are, as the configuration says or as the model to fine-tune has it."""

    architecture: Architecture
    bands: tuple[str, ...]
    gsd_m: float
    chip_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    base: Bundle | None


def train(config: TrainConfig, *, quiet: bool = False) -> Bundle:
    """Train a network, measure it on the held-out pairs and write its bundle to ``config.out / config.name``.

    An interrupted training goes on from its last checkpoint when it is called again with the same configuration.

    Raises
    ------
    TrainingDataError
        If scenes and labels can't be trained on: unreadable, apart from each other, of unknown values, a class without
        pixels, or nothing left by the split.
    BundleError
        If the initial weights are not of the configuration's backbone.
    UsageError
        If there is no model to fine-tune of that name.
    """
    legend = legend_of(config.legend)
    pairs = _pairs(config.data, config.data.training)
    held_out = _pairs(config.data, config.data.held_out)
    codes = label_codes(config.data.label_values, legend, config.data.ignored_values)
    options = config.optimisation
    lightning.seed_everything(options.seed, verbose=False)
    terms = _terms(config, pairs, len(legend))
    vary = Augmentation(**options.augmentation.model_dump())
    splits = open_splits(
        pairs,
        codes,
        terms.gsd_m,
        chip_px=terms.chip_px,
        read_px=vary.read_px(terms.chip_px),
        validation=_validation(config.data),
        seed=options.seed,
        vary=vary,
    )
    shares = splits.class_shares
    data = Chips(
        Source(splits.training, splits.training_sampler),
        None if splits.validation is None else Sites(splits.validation, splits.validation_sampler()),
        batch=options.batch,
        batches=min(options.checkpoint_every, options.steps),
        workers=options.loader_workers,
        seed=options.seed,
    )
    training = Training(
        terms.architecture, terms.mean, terms.std, _schedule(options), _objective(options, legend, shares)
    )
    if terms.base is not None:
        transfer(training.network, terms.base.load_network().state_dict(), legend.names, terms.base.card.legend.names)
    elif options.initial_weights is not None:
        load_backbone(training.network.backbone, options.initial_weights)
    network = fit(training, data, config.out, _conduct(options, quiet))
    card = Card(
        name=config.name,
        title=config.card.title,
        description=config.card.description,
        licence=config.card.licence,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        architecture=terms.architecture,
        bands=terms.bands,
        gsd_m=terms.gsd_m,
        chip_px=terms.chip_px,
        mean=terms.mean,
        std=terms.std,
        legend=legend,
        training={
            "data": config.card.training_data,
            "scenes": [str(p.scene) for p in config.data.training],
            "class_shares": {n: round(float(s), 4) for n, s in zip(legend.names, shares, strict=True)},
            "optimisation": options.model_dump(mode="json", exclude={"loader_workers", "checkpoint_every"}),
            "started_from": None
            if terms.base is None
            else {"name": terms.base.card.name, "sha256": terms.base.sha256, "licence": terms.base.card.licence},
        },
        limits=config.card.limits,
    )
    bundle = write_bundle(config.out / config.name, card, network)
    if not held_out:
        return bundle
    # Measured on the stored 16-bit weights, by the pipeline that users run: what the card says is what they get.
    each = [
        evaluate(
            str(bundle.folder),
            str(pair.scene),
            pair.labels,
            config.data.label_values,
            class_column=pair.class_column,
            layer=pair.layer,
        )
        for pair in held_out
    ]
    scores = Scores(np.sum([one.confusion for one in each], axis=0))
    names = ", ".join(pair.scene.name for pair in held_out)
    return write_bundle(bundle.folder, replace(card, held_out={"data": names, **scores.to_dict(legend)}), network)


def _pairs(data: DataConfig, chosen: Sequence[PairConfig]) -> list[Pair]:
    return [Pair(data.root / p.scene, data.root / p.labels, data.class_column, data.layer) for p in chosen]


def _validation(data: DataConfig) -> list[Pair] | Blocks | None:
    if data.validation is None:
        return None
    if data.validation.blocks is not None:
        return Blocks(**data.validation.blocks.model_dump())
    return _pairs(data, data.validation.scenes)


def _terms(config: TrainConfig, pairs: Sequence[Pair], classes: int) -> _Terms:
    mean, std = band_statistics(pairs)
    if config.start_from is None:
        bands = config.bands or ("red", "green", "blue")
        options = {} if config.architecture is None else config.architecture.model_dump()
        architecture = Architecture(in_channels=len(bands), classes=classes, **options)
        if config.gsd_m is None:
            raise ConfigError("the key 'gsd_m' is missing", "give the pixel size in metres to train at")
        terms = _Terms(architecture, bands, config.gsd_m, config.chip_px or 240, mean, std, None)
    else:
        base = read_bundle(config.start_from)
        terms = _Terms(
            replace(base.card.architecture, classes=classes),
            config.bands or base.card.bands,
            config.gsd_m or base.card.gsd_m,
            config.chip_px or base.card.chip_px,
            # As it was trained with: its weights expect pixels on this scale.
            base.card.mean,
            base.card.std,
            base,
        )
    if not len(mean) == len(terms.bands) == terms.architecture.in_channels:
        raise TrainingDataError(
            f"the training scenes have {len(mean)} bands; the model has {len(terms.bands)}",
            f"bands: {', '.join(terms.bands)}",
        )
    return terms


def _schedule(options: OptimisationConfig) -> Schedule:
    return Schedule(
        steps=options.steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warm_up_steps=options.warm_up_steps,
        optimiser=options.optimiser,
        momentum=options.momentum,
        coarse_steps=options.coarse_steps,
    )


def _objective(options: OptimisationConfig, legend: Legend, shares: NDArray[np.float64]) -> Objective:
    """Balance as Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels", ICCV 2015, section 4.3."""
    loss = options.loss
    weights = np.median(shares) / shares if loss.balanced else np.ones(len(legend))
    weights = weights * [loss.class_weights.get(name, 1.0) for name in legend.names]
    return Objective(
        cross_entropy=loss.cross_entropy,
        dice=loss.dice,
        lovasz=loss.lovasz,
        class_weights=tuple(map(float, weights)) if loss.balanced or loss.class_weights else None,
        hardest_share=loss.hardest_share,
        auxiliary_weight=options.auxiliary_weight,
    )


def _conduct(options: OptimisationConfig, quiet: bool) -> Conduct:
    return Conduct(
        precision=options.precision,
        ema_decay=options.ema_decay,
        patience=options.patience,
        devices=options.devices,
        tensorboard=options.tensorboard,
        quiet=quiet,
    )


def evaluate(
    model: str,
    scene: str,
    labels: Path,
    label_values: Mapping[int | str, str] | None = None,
    config: RunConfig | None = None,
    on_progress: ProgressCallback = lambda _: None,
    *,
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
    class_column, layer
        Where polygons say their class; see `landseg.train.labels.open_labels`.

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
        return evaluate_map(predicted, labels, codes, legend, class_column=class_column, layer=layer)


def label_codes(
    label_values: Mapping[int | str, str] | None, legend: Legend, ignored: Collection[int | str] = ()
) -> LabelCodes:
    """Say what the values of labels mean; by default they are the legend's class ids, or names."""
    return LabelCodes(label_values or {c.class_id: c.name for c in legend}, legend.names, ignored)
