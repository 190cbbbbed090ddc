"""What a run or a training is told: YAML files read into frozen, checked values.

Unknown keys are errors, since a misspelt option that is silently ignored costs a night's job. Each error names the key,
its line and column, and the nearest known key.
"""

import difflib
import logging
import os
import re
import string
from collections.abc import Callable, Mapping
from datetime import date
from glob import escape, has_magic
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)
from yaml.constructor import SafeConstructor

from landseg.errors import ConfigError
from landseg.hrefs import is_remote
from landseg.legend import LandClass, Legend

log = logging.getLogger(__name__)

EXTENDS = "extends"
"""Key of a configuration file that names the one it goes on from."""

# Mappings whose keys are the user's: merged with another file's, they would say what neither says.
_REPLACED = {"label_values", "class_weights", "min_area_of_class"}
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"

MOST_CHARACTERS = 2**24
"""Of a configuration file."""

MOST_NODES = 10**6
"""Keys, values and lists of a file; what an alias repeats counts each time, since aliases of aliases multiply."""

# What no path can hold, or is no text at all.
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")

_MEASURE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z0-9²]*)\s*", re.IGNORECASE)
_SQUARE_METRES = {"": 1.0, "m2": 1.0, "m²": 1.0, "a": 100.0, "ha": 1e4, "km2": 1e6, "km²": 1e6}
_BYTES = {"": 1.0} | {
    unit + letters: float(base**power)
    for power, unit in enumerate(("k", "m", "g", "t"), start=1)
    for letters, base in (("b", 1000), ("ib", 1024))
}
_METRES = {"": 1.0, "m": 1.0, "cm": 0.01, "km": 1000.0}


def _measured(units: Mapping[str, float]) -> BeforeValidator:
    """Read a number with one of some units."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = _MEASURE.fullmatch(value)
        if found is None or found[2].lower() not in units:
            raise ValueError(f"give a number and a unit: {', '.join(unit for unit in units if unit)}")
        return float(found[1]) * units[found[2].lower()]

    return BeforeValidator(read)


def _local(value: Any) -> Any:
    # As a path, s3://maps would be a folder called s3: at hand.
    if isinstance(value, str) and is_remote(value):
        raise ValueError("give a path on this machine; storage that is mounted has one")
    return value


def _unquoted(value: Any) -> Any:
    # A day without quotes is a date to YAML.
    return value.isoformat() if isinstance(value, date) else value


def _at_home(path: str) -> str:
    """Give a path whose ``~`` is the home folder, if there is one."""
    return os.path.expanduser(path) if Path(path).parts[:1] == ("~",) else path  # noqa: PTH111 (Path's own raises)


ON_DISK = BeforeValidator(_local)
"""Marks a place that can't be on object storage."""

Area = Annotated[float, _measured(_SQUARE_METRES), Field(ge=0, allow_inf_nan=False)]
"""Square metres, or text such as 50m2 or 0.25ha."""

Length = Annotated[float, _measured(_METRES), Field(ge=0, allow_inf_nan=False)]
"""Metres, or text such as 1.5m."""

Size = Annotated[float, _measured(_BYTES), Field(gt=0, allow_inf_nan=False)]
"""Bytes, or text such as 2GB or 512MiB."""

NAME_PARTS = ("scene", "folder", "collection", "date", "model")
"""What the name of a map may be made of."""

Fraction = Annotated[float, Field(ge=0, le=0.9)]
LabelValue = StrictInt | StrictStr
Bins = tuple[Annotated[int, Field(ge=1)], ...]
Pooling = Literal["average", "max"]
OutputStride = Literal[8, 16, 32]
FirstBlockDilation = Literal["full", "contracted"]
BasicBlockDilation = Literal["both", "first"]


class Strict(BaseModel):
    """Base of all configuration: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return Path(_at_home(str(value))) if isinstance(value, Path) else value


class PolygonConfig(Strict):
    """How polygons are drawn from a raster of classes."""

    assume_crs: str | None = Field(None, description="coordinate reference system of a raster that names none")
    min_area: Area = Field(0.0, description="smaller polygons join the neighbour with the longest common border")
    min_area_of_class: dict[str, Area] = Field({}, description="other minima, by class name")
    simplify: Length = Field(0.0, description="how far outlines may be from the pixels' corners")


class MapConfig(PolygonConfig):
    """How a map is made."""

    model: str = Field("pspnet-r18-dubai", description="name of a shipped model, or a bundle's folder")
    bands: tuple[int, ...] | None = Field(None, description="band numbers from 1, in the order of the model's bands")
    overlap: Fraction = Field(0.25, description="part of a chip's side that neighbouring chips share")
    views: Literal[1, 2, 4, 8] = Field(1, description="symmetries of a chip that its answer is averaged over")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the network runs")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    batch: int | None = Field(None, ge=1, description="chips per forward pass; by default by device")
    nodata_policy: Literal["all", "any"] = Field(
        "all", description="a pixel is invalid when all of the model's bands are nodata, or when any is"
    )
    on_error: Literal["fail", "nodata"] = Field("fail", description="what becomes of pixels that can't be read")
    force_gsd: bool = Field(False, description="take the pixels as they are, whatever their size")
    workers: int | None = Field(None, ge=1, description="processes on this machine that share the work; by default one")
    scheduler: str | None = Field(None, description="address of a Dask scheduler whose workers do the work")
    max_memory: Size | None = Field(None, description="main memory to keep to; by default half of what is free")
    picture: bool = Field(False, description="write a picture of the map too")
    qgis_project: bool = Field(False, description="write a QGIS project of the map over its scene too")


class RunConfig(MapConfig):
    """Options of ``landseg run``; the command line's options of the same names come before the file's."""

    overwrite: bool = Field(False, description="replace existing outputs")
    work_folder: Path | None = Field(
        None, description="where outputs on object storage are made before they are uploaded; by default in the cache"
    )


class CatalogQuery(Strict):
    """Scenes that a STAC catalog knows."""

    url: str = Field(description="a static catalog's or a STAC API's; a path or a URL")
    collections: tuple[str, ...] = Field((), description="by default all that holds scenes")
    bbox: tuple[float, float, float, float] | None = Field(None, description="west, south, east, north in degrees")
    dates: Annotated[str | None, BeforeValidator(_unquoted)] = Field(
        None, description="as 2026-03-01/2026-03-31; either end may be .."
    )
    max_cloud_cover: float | None = Field(None, ge=0, le=100, description="percent")
    asset: str | None = Field(None, description="which of an item's files; by default the one whose role is data")

    @field_validator("bbox")
    @classmethod
    def _on_earth(cls, bbox: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        # West may be east of east: across the 180th meridian.
        if bbox is not None:
            west, south, east, north = bbox
            if not (-90 <= south <= north <= 90 and -180 <= west <= 180 and -180 <= east <= 180):
                raise ValueError("give west, south, east, north in degrees, the south before the north")
        return bbox


class ScenesConfig(Strict):
    """What a pipeline maps: files, scenes of a catalog, or both."""

    files: tuple[str, ...] = Field((), description="paths, URLs, and patterns such as imagery/2026-*.tif")
    catalog: CatalogQuery | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not self.files and self.catalog is None:
            raise ValueError("name what to map: paths and patterns under 'files', or a query under 'catalog'")
        return self


class MergeConfig(Strict):
    """One map of all scenes, beside theirs."""

    name: str = Field("region", description="name of the map")
    rule: Literal["newest", "least-cloudy", "most-confident"] = Field(
        "most-confident", description="whose class counts where scenes overlap"
    )


class PipelineConfig(MapConfig):
    """What ``landseg batch`` does: which scenes, how they are mapped, and where the maps go.

    Relative paths start at the pipeline's file.
    """

    scenes: ScenesConfig
    out: Annotated[Path, ON_DISK] = Field(description="folder of the maps; made if need be")
    name: str = Field(
        "{scene}", description="name of a scene's map, of {scene}, {folder}, {collection}, {date} and {model}"
    )
    format: str = Field(".gpkg", description="suffix of the polygons' format")
    merge: MergeConfig | None = None
    catalog: Annotated[Path | None, ON_DISK] = Field(
        None, description="a catalog that the maps are added to, under the collection maps"
    )
    attempts: int = Field(3, ge=1, description="how often a source that can't be reached is asked")
    wait_s: float = Field(30.0, ge=0, description="seconds before the second attempt; twice as many before each next")
    webhook: SecretStr | None = Field(None, description="URL that the report is posted to")

    @field_validator("name")
    @classmethod
    def _known_parts(cls, name: str) -> str:
        for _, part, spec, conversion in string.Formatter().parse(name):
            if part is not None and part not in NAME_PARTS:
                raise ValueError(f"there is no {{{part}}}; known are {', '.join(f'{{{p}}}' for p in NAME_PARTS)}")
            if spec or conversion:
                raise ValueError(f"{{{part}}} stands alone: it takes no format, as after ':' or '!'")
        return name

    def at(self, folder: Path) -> Self:
        """Give the same pipeline with its relative paths starting at a folder."""

        def placed(path: str) -> str:
            return path if is_remote(path) else str(folder / _at_home(path))

        def placed_pattern(path: str) -> str:
            if not has_magic(path) or is_remote(path) or Path(placed(path)).exists():
                return placed(path)
            # What is a pattern's own in the folder's name is none of the pattern.
            return str(Path(escape(str(folder))) / _at_home(path))

        query = self.scenes.catalog
        scenes = ScenesConfig(
            files=tuple(placed_pattern(path) for path in self.scenes.files),
            catalog=None if query is None else query.model_copy(update={"url": placed(query.url)}),
        )
        bundle = folder / _at_home(self.model)
        return self.model_copy(
            update={
                "scenes": scenes,
                "out": folder / self.out,
                "catalog": None if self.catalog is None else folder / self.catalog,
                "model": str(bundle) if bundle.is_dir() else self.model,
            }
        )

    def run_config(self) -> RunConfig:
        """Give the options that each scene is mapped with; what is not current is replaced."""
        return RunConfig(**self.model_dump(include=set(MapConfig.model_fields)), overwrite=True)


class ClassConfig(Strict):
    """One class of a training's legend."""

    class_id: int
    name: str
    colour: str
    parent: int | None = None
    affinity: dict[str, float] = Field(
        {}, description="name of a neighbouring class -> how much a metre of border with it counts in merging; 1"
    )


def legend_of(classes: tuple[ClassConfig, ...]) -> Legend:
    """Make the legend that a configuration describes."""
    ids = {c.name: c.class_id for c in classes}
    unknown = sorted({name for c in classes for name in c.affinity} - ids.keys())
    if unknown:
        raise ValueError(f"an affinity names '{unknown[0]}', which is not in the legend")
    return Legend(
        tuple(LandClass(c.class_id, c.name, c.colour, c.parent) for c in classes),
        {(c.class_id, ids[name]): weight for c in classes for name, weight in c.affinity.items()},
    )


def _consistent(classes: tuple[ClassConfig, ...]) -> tuple[ClassConfig, ...]:
    legend_of(classes)
    return classes


def _labels(classes: tuple[ClassConfig, ...]) -> tuple[ClassConfig, ...]:
    legend_of(classes).check_labels()
    return classes


Classes = Annotated[tuple[ClassConfig, ...], AfterValidator(_labels)]
"""Classes that make a model's legend, in channel order."""


class LegendConfig(Strict):
    """The classes of a raster that somebody else made."""

    legend: Annotated[tuple[ClassConfig, ...], AfterValidator(_consistent)] = Field(min_length=1)


class PairConfig(Strict):
    """A scene and its labels, a raster or polygons, relative to the data's root."""

    scene: Path
    labels: Path


class BlocksConfig(Strict):
    """Blocks of the training pairs that are held out for validation; see `landseg.train.splits.Blocks`."""

    share: float = Field(0.2, gt=0, lt=1, description="part of the labelled blocks")
    block_px: int | None = Field(None, ge=48, description="side of a block; by default 3 chips")
    buffer_px: int | None = Field(
        None, ge=0, description="pixels around a block that no training chip enters; by default half a chip"
    )


class ValidationConfig(Strict):
    """What a training is measured on as it goes: other scenes, or blocks of its own."""

    scenes: tuple[PairConfig, ...] = ()
    blocks: BlocksConfig | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if bool(self.scenes) == (self.blocks is not None):
            raise ValueError("either scenes or blocks are needed, and not both")
        return self


class DatasetConfig(Strict):
    """A published set by name, opened through torchgeo; see `landseg.train.landcover.SETS`."""

    name: Literal["landcoverai", "loveda", "deepglobe", "chesapeake"]
    root: Path = Field(description="folder of the set")
    download: bool = Field(False, description="whether torchgeo may fetch what is not there")
    parts: tuple[str, ...] = Field((), description="loveda's urban and rural, chesapeake's states; by default all")
    measured_chips: int = Field(
        400, ge=1, description="random chips that bands and classes are measured on, and as many for the figures"
    )


class DataConfig(Strict):
    """What to train on and what to hold out: pairs of files, or a named set, which has its own splits."""

    root: Path = Field(Path(), description="folder that the pairs' paths are relative to")
    training: tuple[PairConfig, ...] = ()
    held_out: tuple[PairConfig, ...] = ()
    validation: ValidationConfig | None = None
    dataset: DatasetConfig | None = None
    band_numbers: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="numbers of the bands in every scene, from 1, in the order of 'bands'; by default by name"
    )
    label_values: dict[LabelValue, str] | None = Field(
        None, description="value in the labels -> class name; by default the legend's class ids and names"
    )
    ignored_values: tuple[LabelValue, ...] = Field((), description="values in the labels that are to have no class")
    class_column: str = Field("class_name", description="column of polygons that holds names of classes, or codes")
    layer: str | None = Field(None, description="layer of the polygons, where a file has several")

    @model_validator(mode="after")
    def _pairs_or_a_set(self) -> Self:
        if self.dataset is None:
            if not self.training:
                raise ValueError("name what to train on: pairs under 'training', or a published set under 'dataset'")
            return self
        for key in ("root", "training", "held_out", "validation", "band_numbers"):
            if key in self.model_fields_set:
                raise ValueError(f"'{key}' is for pairs of files, and 'dataset' has its own; leave one of them out")
        return self

    def at(self, root: Path) -> Self:
        """Give the same data in another folder."""
        if self.dataset is None:
            return self.model_copy(update={"root": root})
        return self.model_copy(update={"dataset": self.dataset.model_copy(update={"root": root})})


class ArchitectureConfig(Strict):
    """The network; see `landseg.model.pspnet.Architecture`. All defaults but the backbone's are the paper's."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet18"
    output_stride: OutputStride = Field(8, description="input pixels per feature pixel")
    bins: Bins = Field((1, 2, 3, 6), description="cells per side of each level of the pyramid; [] leaves it out")
    pooling: Pooling = Field("average", description="how a cell of the pyramid is summed up")
    stem: Literal["7x7", "deep-64", "deep-128"] = Field("deep-128", description="convolutions before the first stage")
    align_corners: bool = Field(True, description="whether upsampling aligns the outermost pixels' centres")
    first_block_dilation: FirstBlockDilation = Field(
        "full", description="whether a dilated stage begins with its own dilation, or with that of the stage before"
    )
    basic_block_dilation: BasicBlockDilation = Field(
        "both", description="which convolutions of ResNet-18's and -34's blocks are dilated"
    )
    stages: Literal[2, 3, 4] = Field(4, description="stages of the backbone")
    concatenation: Literal["features-first", "pyramid-first"] = "features-first"
    normalise_bin_1: bool = Field(True, description="whether the pyramid's level of one cell has batch normalisation")
    level_channels: int | None = Field(None, ge=1, description="by default the features' by the number of levels")
    head_channels: int | None = Field(None, ge=1, description="by default a quarter of the features'")
    bottleneck_kernel: Literal[1, 3] = 3
    classifier_kernel: Literal[1, 3] = 1
    auxiliary: bool = Field(True, description="whether the last stage but one is supervised too")


class LossConfig(Strict):
    """What the network is trained towards: a weighted sum; by default the paper's cross-entropy."""

    cross_entropy: float = Field(1.0, ge=0)
    dice: float = Field(0.0, ge=0, description="weight of the soft Dice loss, which rare classes gain from")
    lovasz: float = Field(0.0, ge=0, description="weight of the Lovász-softmax loss, a surrogate of the mean IoU")
    balanced: bool = Field(False, description="weigh classes in the cross-entropy by median frequency by frequency")
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="class name -> weight in the cross-entropy, on top; 1 for others"
    )
    hardest_share: float = Field(1.0, gt=0, le=1, description="part of the pixels, the costliest, that count")


class AugmentationConfig(Strict):
    """How chips are varied besides being turned and mirrored."""

    scale: float = Field(1.25, ge=1, le=4, description="largest factor of magnifying and shrinking; 1 leaves it out")
    contrast: float = Field(0.25, ge=0, lt=1, description="largest change of gain")
    brightness: float = Field(25.0, ge=0, description="largest shift on the scale 0-255")
    cutmix: float = Field(0.0, ge=0, le=1, description="share of the chips that get a rectangle of another")


class TeacherConfig(Strict):
    """Trained networks to learn from besides the labels, or in their place."""

    models: tuple[str, ...] = Field(
        min_length=1,
        description="each a model, or a TorchScript file that maps pixels on the scale 0-255 to logits",
    )
    weight: float = Field(1.0, gt=0, description="of the cross-entropy towards their mean answer, beside the loss's 1")


class OptimisationConfig(Strict):
    """How to train."""

    steps: int = Field(ge=1)
    initial_weights: Path | None = Field(
        None, description="ResNet weights as torchvision, timm or torchgeo publish them, a .pth or .safetensors file"
    )
    batch: int = Field(8, ge=2, description="chips per step; batch normalisation needs at least two")
    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="sgd: the paper's, at a rate of about 1e-2")
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.01, ge=0)
    warm_up_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    coarse_steps: int = Field(0, ge=0, description="first steps, at output stride 16: a third of the work of 8")
    loss: LossConfig = LossConfig()
    teacher: TeacherConfig | None = None
    auxiliary_weight: float = Field(0.4, ge=0, description="weight of the auxiliary head's loss; 0.4 in the paper")
    augmentation: AugmentationConfig = AugmentationConfig()
    ema_decay: float | None = Field(None, gt=0, lt=1, description="of the weights' running average, which is then kept")
    start_share: float = Field(
        0.0, ge=0, lt=1, description="in the end weights are averaged with those of start_from, which get this share"
    )
    patience: int | None = Field(
        None, ge=1, description="validations without a better mean IoU that end the training early"
    )
    loader_workers: int = Field(1, ge=0, description="processes that read and augment chips")
    devices: int = Field(1, ge=1, description="GPUs to train on, each with its own batch")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    tensorboard: bool = Field(False, description="log for TensorBoard too, which must be installed")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints to resume from, and validations")
    seed: int = Field(1, ge=0, lt=2**32, description="of weights, chips and blocks")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        loss = self.loss
        if self.teacher is None and not loss.cross_entropy + loss.dice + loss.lovasz:
            raise ValueError("all losses have the weight 0")
        return self


class CardConfig(Strict):
    """What the bundle's card says to people."""

    title: str
    description: str
    licence: str
    training_data: str
    limits: tuple[str, ...] = ()


class ImportedArchitectureConfig(Strict):
    """Where an imported network departs from what its codebase does by default; its weights would not tell."""

    bins: Bins | None = Field(None, description="cells per side of each level of the pyramid")
    pooling: Pooling | None = None
    output_stride: OutputStride | None = None
    align_corners: bool | None = None
    first_block_dilation: FirstBlockDilation | None = None
    basic_block_dilation: BasicBlockDilation | None = None


class ImportConfig(Strict):
    """What a model's card needs to say and a checkpoint can't."""

    title: str
    description: str
    licence: str = Field(description="SPDX identifier of the weights' licence")
    created: date | None = Field(None, description="day of its training; by default today")
    legend: Classes = Field(min_length=1, description="the classes in the order of the logits")
    bands: tuple[str, ...] = Field(("red", "green", "blue"), min_length=1)
    gsd_m: float = Field(gt=0)
    chip_px: int = Field(ge=48, description="side of the chips that it was trained on")
    mean: tuple[float, ...] = Field(description="of each band on the scale 0-255")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="of each band on the scale 0-255")
    value_range: tuple[float, float] | None = Field(
        None, description="what 16-bit and float scenes are brought to 0-255 from; by default their percentiles"
    )
    training_data: str
    limits: tuple[str, ...] = ()
    architecture: ImportedArchitectureConfig = ImportedArchitectureConfig()

    @model_validator(mode="after")
    def _a_mean_and_std_for_each_band(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != len(self.bands):
                raise ValueError(f"there are {len(values)} values of {name} for {len(self.bands)} bands")
        return self


class TrainConfig(Strict):
    """A training, from imagery and labels to a model bundle."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the bundle's name")
    out: Annotated[Path, ON_DISK] = Field(description="folder that gets the bundle, checkpoints and logs")
    legend: Classes = Field((), min_length=2, description="the classes to tell apart; by default a named set's own")
    start_from: str | None = Field(
        None,
        description="model to fine-tune, whose bands it has; gsd_m and chip_px, if they are left out, are its own too",
    )
    bands: tuple[str, ...] | None = Field(None, min_length=1, description="by default red, green, blue")
    gsd_m: float | None = Field(None, gt=0)
    chip_px: int | None = Field(
        None, ge=48, description="by default 240; a multiple of 48 makes the pyramid's bins equal at output stride 8"
    )
    architecture: ArchitectureConfig | None = None
    data: DataConfig
    optimisation: OptimisationConfig
    card: CardConfig

    @model_validator(mode="after")
    def _named_classes_are_classes(self) -> Self:
        if not self.legend:
            if self.data.dataset is None:
                raise ValueError("the key 'legend' is missing")
            return self
        named = {
            "data.label_values": (self.data.label_values or {}).values(),
            "optimisation.loss.class_weights": self.optimisation.loss.class_weights,
        }
        for key, names in named.items():
            unknown = sorted(set(names) - {c.name for c in self.legend})
            if unknown:
                raise ValueError(f"{key} names '{unknown[0]}', which is not in the legend")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.start_from is None:
            if self.optimisation.start_share:
                raise ValueError("optimisation.start_share needs start_from")
            return self
        if self.architecture is not None:
            raise ValueError("architecture does not go with start_from, whose model has one")
        if self.optimisation.initial_weights is not None:
            raise ValueError("optimisation.initial_weights does not go with start_from, whose model has weights")
        return self


ConfigT = TypeVar("ConfigT", bound=Strict)


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def _variable(key: str) -> str:
    return "LANDSEG_" + key.upper()


def load_config(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a YAML file into a checked configuration.

    A file may go on from another, which its key ``extends`` names from where it lies itself: its own keys come first,
    also those within keys. Lists, and mappings whose keys are the user's such as ``label_values``, are replaced whole;
    null takes away what is inherited.

    Parameters
    ----------
    path
        The file.
    kind
        Which configuration it holds.

    Raises
    ------
    ConfigError
        If the file is missing, not YAML, or has an unknown or ill-typed key.
    """
    try:
        root = _composed(path)
        _check_nodes(root)
        data = None if root is None else SafeConstructor().construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, path) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except (ValueError, LookupError, AttributeError) as error:
        # Of a value that looks like a date and is none, or is not of the type that its tag names.
        raise ConfigError(f"{path} holds a value that can't be read: {error}", "put it in quotes") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no keys", f"known keys: {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _located(error, kind, path, root) from error


def _composed(path: Path, extending: tuple[Path, ...] = ()) -> yaml.Node | None:
    """Read the nodes of a file and of those that it extends; each knows the file and line that it comes from."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise ConfigError(f"{path} is too large for a configuration", "is it the right file?")
        loader = yaml.SafeLoader(text)
        loader.name = str(path)
        root: yaml.Node | None = loader.get_single_node()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the configuration {path}: {getattr(error, 'strerror', error)}") from error
    except yaml.YAMLError as error:
        raise _not_yaml(error, path) from error
    if not isinstance(root, yaml.MappingNode):
        return root
    named = next((one for one in root.value if one[0].value == EXTENDS), None)
    if named is None:
        return root
    key, value = named
    base = path.parent / str(value.value)
    if base.resolve() in {one.resolve() for one in (*extending, path)}:
        raise ConfigError(f"{_place(key.start_mark)}: {base} extends itself")
    below = _composed(base, (*extending, path))
    if not isinstance(below, yaml.MappingNode):
        raise ConfigError(f"{_place(key.start_mark)}: {base} holds no keys")
    return _put_over(below, yaml.MappingNode(root.tag, [one for one in root.value if one is not named]))


def _check_nodes(root: yaml.Node | None) -> None:
    """Refuse a key that a mapping has twice, since YAML would have the last win, what is no text, and too much."""
    count = 0

    def check(node: yaml.Node, within: tuple[yaml.Node, ...]) -> None:
        nonlocal count
        count += 1
        if count > MOST_NODES:
            raise ConfigError(f"{_place(node.start_mark)}: the file is too large, or its aliases multiply")
        if isinstance(node, yaml.ScalarNode) and (found := _NO_TEXT.search(node.value)):
            raise ConfigError(f"{_place(node.start_mark)}: the character {found[0]!a} can't be in a text")
        if any(node is one for one in within):
            return
        within = (*within, node)
        if isinstance(node, yaml.SequenceNode):
            for value in node.value:
                check(value, within)
        elif isinstance(node, yaml.MappingNode):
            marks: dict[tuple[str, Any], yaml.Mark] = {}
            for key, value in node.value:
                # 1 and "1" are two.
                name = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key))
                if name in marks and key.tag != _MERGE:
                    raise ConfigError(
                        f"{_place(key.start_mark)}: '{key.value}' is there twice, first in line {marks[name].line + 1}"
                    )
                marks[name] = key.start_mark
                check(key, within)
                check(value, within)

    if root is not None:
        check(root, ())


def _put_over(below: yaml.Node, node: yaml.Node) -> yaml.Node:
    """Put a node over another: of two mappings, key by key."""
    if not isinstance(below, yaml.MappingNode) or not isinstance(node, yaml.MappingNode):
        return node
    values = {key.value: value for key, value in below.value}
    own = {key.value for key, _ in node.value}
    merged = [one for one in below.value if one[0].value not in own]
    for key, value in node.value:
        if key.value in values:
            if value.tag == _NULL:
                continue
            if key.value not in _REPLACED:
                value = _put_over(values[key.value], value)
        merged.append((key, value))
    return yaml.MappingNode(node.tag, merged)


def _not_yaml(error: yaml.YAMLError, path: Path) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError):
        place = path if error.problem_mark is None else _place(error.problem_mark)
        return ConfigError(f"{place}: not YAML: {error.problem}")
    return ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}")


def _place(mark: yaml.Mark) -> str:
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"


def override(config: ConfigT, given: Mapping[str, Any], spell: Callable[[str], str] = _option) -> ConfigT:
    """Put values from the command line over a configuration's; None means that an option was not given.

    ``spell`` gives the name by which the user knows a key.

    Raises
    ------
    ConfigError
        If a value does not make sense; the message names the option.
    """
    values = config.model_dump() | {key: value for key, value in given.items() if value is not None}
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = spell(str(fault["loc"][0]))
        raise ConfigError(f"{name} is {fault['input']!r:.60}: {_lowered(fault['msg'])}") from error


def override_by_environment(config: ConfigT, environment: Mapping[str, str]) -> ConfigT:
    """Put ``LANDSEG_DEVICE=cuda`` and the like over a configuration's keys; lists and numbers are written as in YAML.

    A variable that is empty counts as not given.

    Raises
    ------
    ConfigError
        If a value does not make sense; the message names the variable.
    """
    known = {_variable(key) for key in type(config).model_fields}
    for name in sorted(environment):
        # Kubernetes tells of a service that is called landseg by such names.
        if name.startswith("LANDSEG_") and name not in known and not re.match("LANDSEG_(SERVICE|PORT)", name):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            log.warning("there is no setting %s%s", name, f"; did you mean {near[0]}?" if near else "")
    given: dict[str, Any] = {}
    for key, field in type(config).model_fields.items():
        text = environment.get(_variable(key))
        if not text:
            continue
        if {field.annotation, *get_args(field.annotation)} & {str, Path, SecretStr}:
            # To YAML, the braces of a template would be a mapping.
            given[key] = text
            continue
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{_variable(key)} is {text!r:.60}: not YAML") from error
    return override(config, given, _variable)


def _located(error: ValidationError, kind: type[Strict], path: Path, root: yaml.Node | None) -> ConfigError:
    """Turn the first of pydantic's complaints into one that names the key and its place in the file."""
    fault = error.errors()[0]
    keys = fault["loc"]
    name = ".".join(str(key) for key in keys) or "the file"
    mark = _mark(root, keys)
    place = f"{path}, line 1, column 1" if mark is None else _place(mark)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(kind, keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(f"{place}: unknown key '{name}'", hint)
    if fault["type"] == "missing":
        return ConfigError(f"{place}: the key '{name}' is missing")
    remedy: str | None = None
    # Only what is put together of two files has no mark of its own.
    if fault["type"] == "value_error" and isinstance(fault["input"], dict) and root is not None and not root.start_mark:
        remedy = f"if it is what '{EXTENDS}' brings along that contradicts yours, take that away: key: null"
    return ConfigError(f"{place}: '{name}' is {fault['input']!r:.60}: {_lowered(fault['msg'])}", remedy)


def _lowered(message: str) -> str:
    """Fit pydantic's sentence into the middle of one of ours."""
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _mark(node: yaml.Node | None, keys: tuple[int | str, ...]) -> yaml.Mark | None:
    """Find where the deepest part of ``keys`` stands that is in a file."""
    mark = None if node is None else node.start_mark
    for key in keys:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                if key_node.value == str(key):
                    child, mark = value_node, key_node.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            child = node.value[key]
            mark = child.start_mark
        if child is None:
            break
        node = child
    return mark


def _known_keys(kind: type[Strict], keys: tuple[int | str, ...]) -> list[str]:
    """List the keys that the part of a configuration at ``keys`` knows."""
    for key in keys:
        annotation = kind.model_fields[str(key)].annotation if str(key) in kind.model_fields else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, Strict):
                kind = candidate
                break
    return list(kind.model_fields)
