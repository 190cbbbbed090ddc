"""Classes as configurations list them."""

from typing import Annotated

from pydantic import AfterValidator, Field

from landseg.config.values import Strict
from landseg.legend import LandClass, Legend


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
