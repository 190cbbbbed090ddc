"""What a training's weights follow from, kept with its checkpoints, so that no other training goes on from them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from landseg.checksums import sha256_of
from landseg.config import DataConfig, DatasetConfig, OptimisationConfig
from landseg.errors import UsageError
from landseg.legend import Legend
from landseg.model.bundle import read_bundle
from landseg.outputs.drafts import write_text, writing
from landseg.train.labels import Labels, file_stamp
from landseg.train.landcover import SETS
from landseg.train.teacher import TORCHSCRIPT

Premises = dict[str, Any]
"""What it is, as a message may call it -> its value, or a digest, in JSON's types."""

FILE = "training.json"

_WITHOUT_EFFECT: dict[str, Any] = {
    # How the work is done, which may be on another machine from one start to the next.
    "devices": True,
    "precision": True,
    "loader_workers": True,
    "tensorboard": True,
    # Done when the checkpoints are complete.
    "start_share": True,
    # Paths; the files' digests stand in their place.
    "initial_weights": True,
    "teacher": {"models": True},
}
_MOST_NAMED = 5


def hold_to(folder: Path, premises: Mapping[str, Any], last: Path) -> None:
    """Note what a training's weights follow from, or make sure that checkpoints which are there follow from the same.

    Parameters
    ----------
    folder
        The training's, which gets `FILE`.
    premises
        Of the training that is to begin, or to go on.
    last
        The checkpoint to go on from; where there is none, nothing is held to.

    Raises
    ------
    UsageError
        If the checkpoints are another training's, or nothing says of which training they are.
    """
    text = json.dumps(premises, indent=1, ensure_ascii=False)
    path, checkpoints = folder / FILE, last.parent
    if not last.exists():
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
        # Several processes may write it at once, each the same.
        write_text(path, text + "\n")
        return
    anew = f"choose another out, or delete {checkpoints} to begin anew"
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}, which says of which training the checkpoints are, is damaged", anew) from error
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} holds checkpoints and no {FILE} that says of which training; an older landseg wrote none",
            anew,
        ) from error
    given = json.loads(text)
    unlike = [name for name in former | given if former.get(name) != given.get(name)]
    if unlike:
        more = f" and {len(unlike) - _MOST_NAMED} more" if len(unlike) > _MOST_NAMED else ""
        # The learning rate of each step follows from how many there are.
        further = "; to train a finished model further, start_from it" if unlike == ["optimisation.steps"] else ""
        raise UsageError(
            f"{checkpoints} holds checkpoints of another training, of which these differ: "
            f"{', '.join(unlike[:_MOST_NAMED])}{more}",
            anew + further,
        )


def of_optimisation(options: OptimisationConfig) -> Premises:
    """Say how the weights are moved; what stands at its default is left out, as are keys of a later landseg."""
    given = options.model_dump(mode="json", exclude=_WITHOUT_EFFECT, exclude_defaults=True)
    premises = dict(_flat("optimisation", given))
    if options.initial_weights is not None:
        premises["optimisation.initial_weights"] = sha256_of(options.initial_weights)
    if options.teacher is not None:
        premises["optimisation.teacher.models"] = [
            sha256_of(Path(model)) if model.endswith(TORCHSCRIPT) else read_bundle(model).sha256
            for model in options.teacher.models
        ]
    return premises


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for inner, one in value.items():
        yield from _flat(f"{key}.{inner}", one)


def of_data(data: DataConfig, legend: Legend, labels: Sequence[Labels]) -> Premises:
    """Say what is trained on: which files, in which state, and what their values mean.

    Parameters
    ----------
    data
        What the configuration says.
    legend
        The training's.
    labels
        Of its pairs, those to validate on last; none where a set is named.
    """
    premises: Premises = {
        "legend": legend.names,
        "data.label_values": data.label_values or {c.class_id: c.name for c in legend},
        "data.ignored_values": data.ignored_values,
    }
    return premises | (_of_pairs(data, labels) if data.dataset is None else _of_set(data.dataset))


def _of_pairs(data: DataConfig, labels: Sequence[Labels]) -> Premises:
    held_back = data.validation
    pairs = (*data.training, *(() if held_back is None else held_back.scenes))
    premises: Premises = {
        "data.training": [(str(p.scene), str(p.labels)) for p in data.training],
        "data.validation": None if held_back is None else held_back.model_dump(mode="json"),
    }
    for pair, known in zip(pairs, labels, strict=True):
        premises[f"the scene {pair.scene}"] = file_stamp(data.root / pair.scene)
        premises[f"the labels {pair.labels} of {pair.scene}"] = known.fingerprint()
    return premises


def _of_set(chosen: DatasetConfig) -> Premises:
    known = SETS[chosen.name]
    premises: Premises = {"data.dataset": [chosen.name, chosen.parts or known.parts, chosen.measured_chips]}
    for split in ("training", "validation") if known.has_validation else ("training",):
        opened = known.open(chosen.root, known.splits[split], chosen.parts or known.parts, False)
        files = sorted({file for pair in known.pairs(opened) for file in (pair.scene, pair.labels)})
        described = [(os.path.relpath(file, chosen.root), file_stamp(file)) for file in files]
        premises[f"the files of the {split} split"] = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return premises
