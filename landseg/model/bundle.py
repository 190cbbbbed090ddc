"""Model bundles: a folder with ``weights.safetensors`` and ``model.json``, the card that says how to use them.

The card is a STAC Item with the Machine Learning Model extension (MLM 1.4). What MLM has no field for stands under
``landseg:``. Weights are stored at 16 bit and used at 32. Nothing in a bundle is code, and no pickle is ever loaded.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from landseg.checksums import FILE_SCHEMA, SHA256_MULTIHASH, sha256_of
from landseg.errors import BundleError, OutputExistsError, UsageError
from landseg.legend import LandClass, Legend
from landseg.model.pspnet import AUXILIARY, Architecture, PSPNet

CARD_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
DEFAULT_MODEL = "pspnet-r50-dubai"
SHIPPED = Path(str(files("landseg.model"))) / "bundles"
"""Where the bundles that come with landseg lie."""

MLM_SCHEMA = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"


@dataclass(frozen=True)
class Card:
    """What a user of the weights must know; the contract of a checkpoint.

    Parameters
    ----------
    name
        File-system-friendly name, as given to ``--model``.
    title, description, licence
        For people; ``licence`` is an SPDX identifier.
    created
        Moment of training, RFC 3339 in UTC.
    architecture
        What network the weights are for.
    bands
        Names of the bands in channel order, such as ``red``.
    gsd_m
        Ground sampling distance of the training imagery in metres.
    chip_px
        Side of the square chips that the network was trained on. Pyramid pooling spans the chip, so this is part of
        the contract.
    mean, std
        Of each band on the scale 0-255; a network sees ``(value - mean) / std``.
    value_range
        The (low, high) that 16-bit and float scenes are brought to 0-255 from, or None to take the scene's own 2nd and
        98th percentiles.
    legend
        The classes in channel order.
    training
        What it was trained on and how, for people and machines.
    temperature
        What its logits are divided by to become calibrated probabilities; 1 as long as it is not calibrated.
    held_out
        Its accuracy on data that it never saw: ``{"data": ..., "miou": ..., "iou": {class name: ...}, ...}``.
    limits
        What it is not good for, in plain sentences.
    """

    name: str
    title: str
    description: str
    licence: str
    created: str
    architecture: Architecture
    bands: tuple[str, ...]
    gsd_m: float
    chip_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    legend: Legend
    value_range: tuple[float, float] | None = None
    temperature: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    held_out: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[str, ...] = ()

    @property
    def pretrained_source(self) -> str | None:
        """What its weights began as, a model or a file of weights; None if they were drawn at random."""
        began = (
            self.training.get("started_from", {}).get("name"),
            self.training.get("optimisation", {}).get("initial_weights"),
            self.training.get("imported_from"),
        )
        return next((Path(source).name for source in began if source is not None), None)

    def to_stac(self, sha256: str, parameters: int) -> dict[str, Any]:
        """Write the card as a STAC Item whose asset is the weights file of that digest."""
        chip = [-1, self.architecture.in_channels, self.chip_px, self.chip_px]
        scores = [-1, self.architecture.classes, self.chip_px, self.chip_px]
        axes = ["height", "width"]
        # Named twice: MLM asks for them in the properties, where STAC allows them only if an asset has them too.
        bands = [{"name": band} for band in self.bands]
        properties: dict[str, Any] = {
            "datetime": self.created,
            "title": self.title,
            "description": self.description,
            "license": self.licence,
            "gsd": self.gsd_m,
            "bands": bands,
            "mlm:name": self.name,
            "mlm:architecture": "PSPNet",
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:framework": "PyTorch",
            "mlm:framework_version": torch.__version__,
            "mlm:total_parameters": parameters,
            "mlm:pretrained": self.pretrained_source is not None,
            "mlm:pretrained_source": self.pretrained_source,
            "mlm:accelerator": None,
            "mlm:input": [
                {
                    "name": "chip",
                    "bands": list(self.bands),
                    "input": {"shape": chip, "dim_order": ["batch", "bands", *axes], "data_type": "float32"},
                    "value_scaling": [
                        {"type": "z-score", "mean": mean, "stddev": std}
                        for mean, std in zip(self.mean, self.std, strict=True)
                    ],
                    "resize_type": None,
                }
            ],
            "mlm:output": [
                {
                    "name": "logits",
                    "tasks": ["semantic-segmentation"],
                    "result": {"shape": scores, "dim_order": ["batch", "class", *axes], "data_type": "float32"},
                    "classification:classes": [
                        {"value": c.class_id, "name": c.name, "color_hint": c.colour[1:].upper()} for c in self.legend
                    ],
                }
            ],
            "landseg:architecture": asdict(self.architecture) | {"bins": list(self.architecture.bins)},
            "landseg:parents": {str(c.class_id): c.parent for c in self.legend if c.parent is not None},
            "landseg:affinity": [[*classes, weight] for classes, weight in self.legend.affinity.items()],
            "landseg:value_range": None if self.value_range is None else list(self.value_range),
            "landseg:temperature": self.temperature,
            "landseg:training": dict(self.training),
            "landseg:held_out": dict(self.held_out),
            "landseg:limits": list(self.limits),
        }
        return {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": [MLM_SCHEMA, FILE_SCHEMA],
            "id": self.name,
            "geometry": None,
            "properties": properties,
            "links": [],
            "assets": {
                "weights": {
                    "href": f"./{WEIGHTS_FILE}",
                    "type": "application/vnd.safetensors",
                    "title": "Weights, 16 bit",
                    "roles": ["mlm:model", "mlm:weights"],
                    "bands": bands,
                    "mlm:artifact_type": "safetensors",
                    "file:checksum": SHA256_MULTIHASH + sha256,
                }
            },
        }

    @classmethod
    def from_stac(cls, item: Mapping[str, Any]) -> "Card":
        """Read a card from the STAC Item that `to_stac` writes.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a field is missing or ill-formed.
        """
        properties = item["properties"]
        model_input, model_output = properties["mlm:input"][0], properties["mlm:output"][0]
        parents = {int(k): int(v) for k, v in properties.get("landseg:parents", {}).items()}
        legend = Legend(
            tuple(
                LandClass(c["value"], c["name"], "#" + c["color_hint"].lower(), parents.get(c["value"]))
                for c in model_output["classification:classes"]
            ),
            {(int(a), int(b)): float(weight) for a, b, weight in properties.get("landseg:affinity", [])},
        )
        legend.check_labels()
        stored = properties["landseg:architecture"]
        for option in fields(Architecture):
            # No default is taken: each option changes what the weights mean, most of them without a word.
            _ = stored[option.name]
        value_range = properties.get("landseg:value_range")
        card = cls(
            name=item["id"],
            title=properties["title"],
            description=properties["description"],
            licence=properties["license"],
            created=properties["datetime"],
            architecture=Architecture(**(stored | {"bins": tuple(stored["bins"])})),
            bands=tuple(model_input["bands"]),
            gsd_m=float(properties["gsd"]),
            chip_px=int(model_input["input"]["shape"][-1]),
            mean=tuple(float(s["mean"]) for s in model_input["value_scaling"]),
            std=tuple(float(s["stddev"]) for s in model_input["value_scaling"]),
            legend=legend,
            value_range=None if value_range is None else (float(value_range[0]), float(value_range[1])),
            temperature=float(properties.get("landseg:temperature", 1.0)),
            training=properties.get("landseg:training", {}),
            held_out=properties.get("landseg:held_out", {}),
            limits=tuple(properties.get("landseg:limits", ())),
        )
        card._check()
        return card

    def _check(self) -> None:
        """Raise TypeError or ValueError where the card's parts are ill-formed or contradict each other."""
        texts = (self.name, self.title, self.description, self.licence, self.created, *self.bands, *self.limits)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("what should be text is none")
        if not isinstance(self.training, Mapping) or not isinstance(self.held_out, Mapping):
            raise TypeError("its training or held-out accuracy is no mapping")
        if not len(self.bands) == len(self.mean) == len(self.std) == self.architecture.in_channels:
            raise ValueError("bands, value scaling and the network's channels differ in number")
        if len(self.legend) != self.architecture.classes:
            raise ValueError("the legend and the network's logits differ in number")
        if self.chip_px < 1 or self.gsd_m <= 0 or min(self.std) <= 0:
            raise ValueError("chip size, gsd and standard deviations must be positive")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature {self.temperature:g} is not a positive number")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose card has been read and whose weights have been checked against it."""

    folder: Path
    card: Card
    sha256: str

    @property
    def weights_bytes(self) -> int:
        """Size of the file of weights, of which up to about a twentieth may be an auxiliary head's."""
        return (self.folder / WEIGHTS_FILE).stat().st_size

    def load_network(self, *, auxiliary: bool = False) -> PSPNet:
        """Build the network and load its weights as float32, ready for inference.

        Parameters
        ----------
        auxiliary
            Whether to load the auxiliary head too, where the bundle has one; else it is not read.

        Raises
        ------
        BundleError
            If the weights are not those of the card's architecture.
        """
        path = self.folder / WEIGHTS_FILE
        try:
            with safe_open(path, "pt") as file:
                held = file.keys()
                wanted = [name for name in held if auxiliary or not name.startswith(AUXILIARY)]
                stored = {name: _widened(file.get_tensor(name)) for name in wanted}
        except SafetensorError as error:
            raise BundleError(f"{path} is not a safetensors file ({error})") from error
        architecture = self.card.architecture
        supervised = architecture.auxiliary and any(name.startswith(AUXILIARY) for name in stored)
        # Without memory of its own: it takes that of the weights, once they are known to be its.
        with torch.device("meta"):
            network = PSPNet(architecture, auxiliary=supervised)
        expected = network.state_dict()
        missing, unknown = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
        misshapen = [k for k in sorted(expected.keys() & stored.keys()) if expected[k].shape != stored[k].shape]
        for fault, names in (("lacks", missing), ("has unknown", unknown), ("has misshapen", misshapen)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise BundleError(
                    f"{path} {fault} weights: {names[0]}{more}",
                    f"{CARD_FILE} describes a {architecture.backbone} PSPNet; these weights are for another",
                )
        network.load_state_dict(stored, assign=True)
        return network.eval()


class FromPixels(nn.Module):
    """A bundle's network that normalises its pixels by itself, ready for inference.

    Parameters
    ----------
    bundle
        Its card says the bands and their scaling.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.network = bundle.load_network()
        self.register_buffer("mean", torch.tensor(bundle.card.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(bundle.card.std)[:, None, None])
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels of any number type, (N, C, H, W) on the scale 0-255, to logits, (N, K, H, W)."""
        logits: Tensor = self.network((pixels.float() - self.mean) / self.std)
        return logits


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def find_bundle(model: str) -> Path:
    """Find the folder of a model given by the name of a shipped bundle or by a path.

    Raises
    ------
    UsageError
        If there is no such model.
    BundleError
        If it is a folder without a card, or one whose replacement was cut off.
    """
    for folder in (SHIPPED / model, Path(model)):
        if (folder / CARD_FILE).is_file():
            return folder
    if Path(model).is_dir():
        raise BundleError(f"{model} is not a model bundle: it has no {CARD_FILE}")
    if (former := _former(Path(model).resolve())).is_dir():
        raise BundleError(f"{model} was being replaced when that was cut off", f"rename {former} to it")
    raise UsageError(
        f"there is no model '{model}'", f"shipped models: {', '.join(shipped_models())}; or give a bundle's folder"
    )


def shipped_models() -> list[str]:
    """Name the bundles that come with landseg."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD_FILE}"))


def read_bundle(model: str) -> Bundle:
    """Read a bundle's card and check its weights' digest, without loading them.

    Parameters
    ----------
    model
        Name of a shipped bundle, or a bundle's folder.

    Raises
    ------
    UsageError
        If there is no such model.
    BundleError
        If the card is ill-formed, or the weights are missing or not those that the card names.
    """
    folder = find_bundle(model)
    card_path, weights_path = folder / CARD_FILE, folder / WEIGHTS_FILE
    try:
        item = json.loads(card_path.read_text(encoding="utf-8"))
        # JSON may escape what is no text, and nothing could be written of it.
        json.dumps(item, ensure_ascii=False).encode()
        card = Card.from_stac(item)
        expected = str(item["assets"]["weights"]["file:checksum"]).removeprefix(SHA256_MULTIHASH)
    except KeyError as error:
        raise BundleError(f"{card_path} lacks {error}", "it is not a model card that landseg can use") from error
    except (TypeError, ValueError, ArithmeticError, IndexError, AttributeError, RecursionError) as error:
        raise BundleError(f"{card_path} is not a model card that landseg can use: {error}") from error
    if not weights_path.is_file():
        raise BundleError(f"{folder} lacks {WEIGHTS_FILE}", "copy the whole bundle")
    actual = sha256_of(weights_path)
    if actual != expected:
        raise BundleError(
            f"{weights_path} is damaged or not the card's: its SHA-256 is {actual[:12]}…, not {expected[:12]}…",
            "copy the bundle again",
        )
    return Bundle(folder, card, actual)


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Refuse a place where a bundle may not be written.

    Raises
    ------
    OutputExistsError
        If something is there and ``overwrite`` is False.
    UsageError
        If what is there is no bundle, so that replacing it would lose what nobody meant.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{folder} exists", "choose another --out, or give --overwrite")
    if not (folder / CARD_FILE).is_file():
        raise UsageError(f"{folder} is not a model bundle, so it is not replaced", "choose another --out")


def _former(place: Path) -> Path:
    """Say where a bundle stands while another takes its place."""
    return place.with_name(f".{place.name}-former")


def write_bundle(folder: Path, card: Card, network: PSPNet) -> Bundle:
    """Write a bundle, replacing the one at ``folder`` when it is complete.

    The old one stands aside as ``.<name>-former`` while the new one takes its place; where a process was killed at that
    moment, the next one puts it back first. The auxiliary head, where the network has one, goes along: a training that
    begins with this one then goes on with both heads, for 1 % of the file on a ResNet-18 and 5 % on a ResNet-50.

    Raises
    ------
    BundleError
        If a weight is not a number, or too large for 16 bit.
    """
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    former = _former(place)
    if former.exists() and not place.exists():
        former.replace(place)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()
    }
    overflown = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if overflown:
        raise BundleError(
            f"the weights {overflown[0]} are not finite at 16 bit", "train again at a lower learning rate"
        )
    # Of the network that answers.
    parameters = sum(p.numel() for name, p in network.named_parameters() if not name.startswith(AUXILIARY))
    draft = place.with_name(f".{place.name}-{uuid4().hex}")
    try:
        draft.mkdir()
        save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, draft / WEIGHTS_FILE)
        sha256 = sha256_of(draft / WEIGHTS_FILE)
        text = json.dumps(card.to_stac(sha256, parameters), indent=2, ensure_ascii=False)
        (draft / CARD_FILE).write_text(text + "\n", encoding="utf-8")
        # safetensors' files are their owner's alone; a bundle is for whom the umask says.
        (draft / WEIGHTS_FILE).chmod((draft / CARD_FILE).stat().st_mode)
        _take_place(draft, place, former)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Bundle(folder, card, sha256)


def _take_place(draft: Path, place: Path, former: Path) -> None:
    """Rename a folder to a place; what is there goes when that is done, and comes back if it can't be."""
    if former.exists():
        shutil.rmtree(former)
    if place.exists():
        place.replace(former)
    try:
        draft.replace(place)
    except BaseException:
        if former.exists():
            former.replace(place)
        raise
    shutil.rmtree(former, ignore_errors=True)
