"""Options of a training."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StrictInt, StrictStr, model_validator

from landseg.config.legend import Classes
from landseg.config.model import ArchitectureConfig
from landseg.config.values import ON_DISK, Strict

LabelValue = StrictInt | StrictStr


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
