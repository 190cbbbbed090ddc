"""Options of a network, and what an import has to tell of one."""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from landseg.config.legend import Classes
from landseg.config.values import Strict

Bins = tuple[Annotated[int, Field(ge=1)], ...]
Pooling = Literal["average", "max"]
OutputStride = Literal[8, 16, 32]
FirstBlockDilation = Literal["full", "contracted"]
BasicBlockDilation = Literal["both", "first"]


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
