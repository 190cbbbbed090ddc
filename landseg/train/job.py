"""A training from beginning to end: configuration in, bundle out."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landseg.config import DataConfig, OptimisationConfig, RunConfig, TrainConfig
from landseg.errors import ConfigError
from landseg.legend import Legend
from landseg.model.bundle import Bundle, Card, read_bundle, write_bundle
from landseg.model.convert import load_backbone
from landseg.model.pspnet import Architecture
from landseg.predict import Predictor, choose_device, choose_precision
from landseg.train.batches import predictions, read_chips
from landseg.train.calibrate import fit_temperature
from landseg.train.evaluate import Scores, score
from landseg.train.figures import Example, draw_curves, draw_examples
from landseg.train.fit import CHECKPOINTS, LAST, Chips, Conduct, Schedule, Training, fit
from landseg.train.landcover import SETS
from landseg.train.losses import Objective
from landseg.train.material import open_material
from landseg.train.premises import hold_to, of_data, of_optimisation
from landseg.train.samples import ModelInput, Pair, Sites
from landseg.train.teacher import open_teacher
from landseg.train.transfer import average, transfer
from landseg.train.trial import evaluate

EXAMPLES = 6
"""Chips of the validation that are drawn when a training ends."""


def train(config: TrainConfig, *, quiet: bool = False) -> Bundle:
    """Train a network, measure it on what is held out and write its bundle to ``config.out / config.name``.

    An interrupted training goes on from its last checkpoint when it is called again with the same configuration. Where
    something that the weights follow from has changed since, it is refused.

    Raises
    ------
    TrainingDataError
        If scenes and labels can't be trained on; see `landseg.train.material.open_material`.
    BundleError
        If the initial weights are not of the configuration's backbone, or the teacher teaches something else.
    UsageError
        If the configuration contradicts itself or the named set, there is no model to fine-tune of that name, or the
        folder holds checkpoints of another training.
    """
    options = config.optimisation
    lightning.seed_everything(options.seed, verbose=False)
    base = None if config.start_from is None else read_bundle(config.start_from)
    model_input = _model_input(config, base)
    chip_px = config.chip_px or (240 if base is None else base.card.chip_px)
    _check_options(config)
    material = open_material(config, model_input, chip_px)
    legend, statistics = material.legend, material.statistics
    if base is not None and options.start_share and legend.names != base.card.legend.names:
        raise ConfigError(
            f"optimisation.start_share needs the classes of {base.card.name}, in its order",
            f"they are {', '.join(base.card.legend.names)}; or leave the key out",
        )
    architecture = _architecture(config, base, len(model_input.bands), len(legend))
    mean, std = (statistics.mean, statistics.std) if base is None else (base.card.mean, base.card.std)
    teacher = None
    if options.teacher is not None:
        teacher = open_teacher(options.teacher.models, model_input.bands, legend.names, chip_px)
    objective = _objective(options, legend, statistics.shares)
    training = Training(architecture, mean, std, _schedule(options), objective, teacher)
    if base is not None:
        trained = base.load_network(auxiliary=True).state_dict()
        transfer(training.network, trained, legend.names, base.card.legend.names)
    elif options.initial_weights is not None:
        load_backbone(training.network.backbone, options.initial_weights)
    premises = {
        "start_from": None if base is None else base.sha256,
        "chip_px": chip_px,
        **{name: getattr(model_input, name) for name in ("bands", "gsd_m", "band_numbers", "value_range")},
        **{f"architecture.{name}": value for name, value in asdict(architecture).items()},
        **of_data(config.data, legend, material.labels),
        **of_optimisation(options),
        # Follow from the scenes, unless the model to fine-tune has them.
        "mean": mean,
        "std": std,
    }
    hold_to(config.out, premises, config.out / CHECKPOINTS / LAST)
    chips = Chips(
        material.training,
        material.validation,
        batch=options.batch,
        batches=min(options.checkpoint_every, options.steps),
        workers=options.loader_workers,
        seed=options.seed,
        cutmix=options.augmentation.cutmix,
    )
    network = fit(training, chips, config.out, _conduct(options, quiet))
    if base is not None and options.start_share:
        average(network, base.load_network(auxiliary=True).state_dict(), options.start_share)
    card = Card(
        name=config.name,
        title=config.card.title,
        description=config.card.description,
        licence=config.card.licence,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        architecture=architecture,
        bands=model_input.bands,
        gsd_m=model_input.gsd_m,
        chip_px=chip_px,
        mean=mean,
        std=std,
        value_range=model_input.value_range,
        legend=legend,
        training={
            "data": config.card.training_data,
            **material.described,
            "class_shares": {n: round(float(s), 4) for n, s in zip(legend.names, statistics.shares, strict=True)},
            "optimisation": options.model_dump(mode="json", exclude={"loader_workers", "checkpoint_every"}),
            **_origin(base),
        },
        limits=config.card.limits,
    )
    draw_curves(sorted(config.out.glob("log/version_*/metrics.csv"), key=_version), config.out / "curves.png")
    if material.validation is not None:
        draw_examples(_examples(training, material.validation), legend, config.out / "examples.png")
        card = replace(card, temperature=_temperature(training, material.validation, options.batch))
    bundle = write_bundle(config.out / config.name, card, network)
    # Measured on the stored 16-bit weights: what the card says is what users get.
    if material.held_out:
        where, scores = _measure_maps(bundle, material.held_out, config.data)
    elif material.held_out_chips is not None:
        where, scores = _measure_chips(bundle, *material.held_out_chips, options)
    else:
        return bundle
    return write_bundle(bundle.folder, replace(card, held_out={"data": where, **scores.to_dict(legend)}), network)


def _version(log: Path) -> int:
    """Give the number of the start of a training that a log is of."""
    return int(log.parent.name.removeprefix("version_"))


@torch.inference_mode()
def _answers(training: Training, sites: Sites, batch: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Give batches of samples with the trained network's logits."""
    training.eval()
    for samples in read_chips(sites, batch=batch, workers=0, seed=0):
        yield samples, training.network(training.normalise(samples["image"].to(training.device))).cpu()


def _temperature(training: Training, validation: Sites, batch: int) -> float:
    pairs = ((logits, samples["mask"]) for samples, logits in _answers(training, validation, batch))
    return round(fit_temperature(pairs), 4)


def _examples(training: Training, validation: Sites) -> list[Example]:
    """Map a few chips that are spread over the validation, in the colours of the first three bands."""
    places = list(validation.places)
    chosen = Sites(validation.dataset, places[:: -(-len(places) // EXAMPLES)])
    examples: list[Example] = []
    for samples, logits in _answers(training, chosen, batch=1):
        image = samples["image"][0].movedim(0, -1).numpy().clip(0, 255).astype(np.uint8)
        rgb = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
        examples.append((rgb, samples["mask"][0].numpy(), logits[0].argmax(dim=0).numpy()))
    return examples


def _model_input(config: TrainConfig, base: Bundle | None) -> ModelInput:
    """Say what the network is shown, as the configuration has it or the model to fine-tune."""
    card = None if base is None else base.card
    bands = config.bands or (("red", "green", "blue") if card is None else card.bands)
    if card is not None and bands != card.bands:
        raise ConfigError(
            f"the configuration names the bands {', '.join(bands)}; those of {card.name} are {', '.join(card.bands)}",
            "leave the key 'bands' out, or start_from",
        )
    numbers = config.data.band_numbers
    if numbers is not None and len(numbers) != len(bands):
        raise ConfigError(
            f"data.band_numbers names {len(numbers)} bands; the model reads {len(bands)} ({', '.join(bands)})",
            "give the number of each of these, in this order",
        )
    gsd_m = config.gsd_m or (None if card is None else card.gsd_m)
    if gsd_m is None:
        raise ConfigError("the key 'gsd_m' is missing", "give the pixel size in metres to train at")
    # A model to fine-tune expects pixels on the scale that it was trained with.
    scale = (None, None) if card is None else (card.value_range, card.mean)
    return ModelInput(gsd_m, bands, numbers, *scale)


def _architecture(config: TrainConfig, base: Bundle | None, bands: int, classes: int) -> Architecture:
    if base is not None:
        return replace(base.card.architecture, classes=classes)
    options = {} if config.architecture is None else config.architecture.model_dump()
    return Architecture(in_channels=bands, classes=classes, **options)


def _check_options(config: TrainConfig) -> None:
    """Refuse options that ask for what there will not be, before anything is read."""
    options, data = config.optimisation, config.data
    known = None if data.dataset is None else SETS[data.dataset.name]
    if options.patience is not None and not (data.validation if known is None else known.has_validation):
        bring_one = " and ".join(name for name, chosen in SETS.items() if chosen.has_validation)
        raise ConfigError(
            "optimisation.patience needs a validation, and there is none",
            "say under data.validation what to measure on, or leave the key out; of the named sets, "
            f"{bring_one} bring one",
        )
    if known is not None and not config.legend:
        for name in options.loss.class_weights:
            if name not in known.legend.names:
                raise ConfigError(
                    f"optimisation.loss.class_weights names '{name}', which is not in the legend",
                    f"the set's classes are {', '.join(known.legend.names)}",
                )


def _origin(base: Bundle | None) -> dict[str, Any]:
    """Say on the card what a fine-tuned model began as."""
    if base is None:
        return {}
    return {"started_from": {"name": base.card.name, "sha256": base.sha256, "licence": base.card.licence}}


def _measure_maps(bundle: Bundle, held_out: Sequence[Pair], data: DataConfig) -> tuple[str, Scores]:
    """Map the pairs by the pipeline that users run; say what they are, and how far the maps agree."""
    each = (
        evaluate(
            str(bundle.folder),
            str(pair.scene),
            pair.labels,
            data.label_values,
            RunConfig(bands=data.band_numbers),
            ignored_values=data.ignored_values,
            class_column=pair.class_column,
            layer=pair.layer,
        )
        for pair in held_out
    )
    return ", ".join(pair.scene.name for pair in held_out), sum(each, Scores.nothing(len(bundle.card.legend)))


def _measure_chips(bundle: Bundle, what: str, sites: Sites, options: OptimisationConfig) -> tuple[str, Scores]:
    device = choose_device("auto")
    card = bundle.card
    precision = choose_precision("auto", device)
    predict = Predictor(bundle.load_network(), device, precision, temperature=card.temperature)
    batches = read_chips(sites, batch=options.batch, workers=options.loader_workers, seed=options.seed)
    return what, score(predictions(predict, batches, card.mean, card.std, card.legend.class_ids), card.legend)


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
        teacher=0.0 if options.teacher is None else options.teacher.weight,
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
