"""What a configuration trains on: a user's own pairs of scene and labels, or a published set by its name."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from landseg.config import DataConfig, DatasetConfig, PairConfig, TrainConfig, legend_of
from landseg.errors import ConfigError, TrainingDataError
from landseg.legend import Legend
from landseg.train.augment import Augmentation
from landseg.train.batches import Statistics, measure, read_chips, settle
from landseg.train.labels import LabelCodes, Labels
from landseg.train.landcover import SETS, open_split
from landseg.train.samples import ModelInput, Pair, Sites, Source, band_statistics, open_scene
from landseg.train.splits import Blocks, open_splits

VALIDATED_CHIPS = 64
"""Chips of a named set's validation split that are looked at after each epoch."""


@dataclass(frozen=True, eq=False)
class Material:
    """What a configuration trains on.

    Parameters
    ----------
    legend
        Its classes.
    training
        Varied samples.
    validation
        Samples to look at as the training goes; None if there are none.
    statistics
        Of its bands and classes.
    described
        What the card says of it.
    labels
        Of the user's own pairs, those to validate on last.
    held_out
        Pairs that a model is measured on in the end, by mapping them.
    held_out_chips
        Where a set is named: opens the chips that a model is measured on in their place, and says in words what they
        are.
    """

    legend: Legend
    training: Source
    validation: Sites | None
    statistics: Statistics
    described: Mapping[str, Any]
    labels: Sequence[Labels] = ()
    held_out: Sequence[Pair] = ()
    held_out_chips: tuple[str, Sites] | None = None


def open_material(config: TrainConfig, model_input: ModelInput, chip_px: int) -> Material:
    """Open what is trained on and measure it.

    Parameters
    ----------
    config
        Its data, legend and augmentation are looked at.
    model_input
        What the network will see of the scenes; without a mean, it is the training's own.
    chip_px
        Side of its chips.

    Raises
    ------
    TrainingDataError
        If it can't be trained on: unreadable, scenes and labels apart from each other, of unknown values, a class
        without pixels, or nothing left by the split.
    ConfigError
        If a named set is not what the configuration takes it for.
    """
    vary = Augmentation(**config.optimisation.augmentation.model_dump(exclude={"cutmix"}))
    if config.data.dataset is None:
        material = _pairs(config, model_input, chip_px, vary)
        where = "the training labels"
    else:
        material = _named_set(config, config.data.dataset, model_input, chip_px, vary)
        where = "the chips drawn to measure the training split"
    for name, share in zip(material.legend.names, material.statistics.shares, strict=True):
        if share == 0:
            raise TrainingDataError(f"class '{name}' has no pixel in {where}", "leave it out of the legend")
    return material


def _pairs(config: TrainConfig, model_input: ModelInput, chip_px: int, vary: Augmentation) -> Material:
    legend, data = legend_of(config.legend), config.data
    pairs, held_out = _located(data, data.training), _located(data, data.held_out)
    validation = _validation(data)
    mean, std = band_statistics([open_scene(pair.scene, model_input) for pair in pairs])
    splits = open_splits(
        pairs,
        label_codes(data.label_values, legend, data.ignored_values),
        replace(model_input, mean=model_input.mean or mean),
        chip_px=chip_px,
        read_px=vary.read_px(chip_px),
        validation=validation,
        held_out=held_out,
        seed=config.optimisation.seed,
        vary=vary,
    )
    return Material(
        legend,
        Source(splits.training, splits.training_sampler),
        None if splits.validation is None else Sites(splits.validation, splits.validation_sampler()),
        Statistics(mean, std, splits.class_shares),
        {"scenes": [str(pair.scene) for pair in data.training]},
        labels=(
            *splits.training.labels,
            *(splits.validation.labels if isinstance(validation, list) and splits.validation else ()),
        ),
        held_out=held_out,
    )


def _located(data: DataConfig, chosen: Sequence[PairConfig]) -> list[Pair]:
    return [Pair(data.root / p.scene, data.root / p.labels, data.class_column, data.layer) for p in chosen]


def _validation(data: DataConfig) -> list[Pair] | Blocks | None:
    if data.validation is None:
        return None
    if data.validation.blocks is not None:
        return Blocks(**data.validation.blocks.model_dump())
    return _located(data, data.validation.scenes)


def _named_set(
    config: TrainConfig, chosen: DatasetConfig, model_input: ModelInput, chip_px: int, vary: Augmentation
) -> Material:
    """Open a published set; its figures come from chips, since most sets' images have no place to map."""
    known = SETS[chosen.name]
    if model_input.bands != known.bands:
        raise ConfigError(
            f"the bands of {known.title} are not those of the configuration", f"bands: [{', '.join(known.bands)}]"
        )
    legend = legend_of(config.legend) if config.legend else known.legend
    opened: Callable[..., Source] = partial(
        open_split,
        chosen.name,
        chosen.root,
        codes=known.codes(config.data.label_values, legend),
        chip_px=chip_px,
        parts=chosen.parts,
        download=chosen.download,
    )
    options = config.optimisation
    measured = settle(
        opened(split="training", model_input=replace(model_input, mean=None)), chosen.measured_chips, options.seed
    )
    statistics = measure(
        read_chips(measured, batch=options.batch, workers=options.loader_workers, seed=options.seed), len(legend)
    )
    model_input = replace(model_input, mean=model_input.mean or statistics.mean)
    what = f"{known.title}, {known.held_out} split, {chosen.measured_chips} random chips of {chip_px} px"
    return Material(
        legend,
        opened(split="training", model_input=model_input, vary=vary),
        settle(opened(split="validation", model_input=model_input), VALIDATED_CHIPS, options.seed)
        if known.has_validation
        else None,
        statistics,
        {
            "dataset": {"name": chosen.name, "parts": list(chosen.parts or known.parts)},
            "reference": known.reference,
            "terms": known.terms,
        },
        # Opened before the training, so that a split that is missing is missed in time.
        held_out_chips=(
            what,
            settle(opened(split=known.held_out, model_input=model_input), chosen.measured_chips, options.seed),
        ),
    )


def label_codes(
    label_values: Mapping[int | str, str] | None, legend: Legend, ignored: Collection[int | str] = ()
) -> LabelCodes:
    """Say what the values of labels mean; by default they are the legend's class ids, or names."""
    return LabelCodes(label_values or {c.class_id: c.name for c in legend}, legend.names, ignored)
