"""Files that people open: rasters, polygons, styles and pictures of a map, and the figures that they share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landseg.legend import Legend

if TYPE_CHECKING:
    from landseg.polygons import Polygons


def places(class_id: NDArray[np.int32], legend: Legend) -> NDArray[np.intp]:
    """Give the place of each class id in the legend that has it."""
    order = np.argsort(legend.class_ids)
    return order[np.searchsorted(np.array(legend.class_ids)[order], class_id)]


def counted(number: int, noun: str) -> str:
    """Give a number with a noun, in the plural where it is not one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class ClassArea:
    """How much of a map is of one class.

    Parameters
    ----------
    class_id, class_name
        As in the legend.
    area_m2
        On the ellipsoid.
    share
        Of the valid area, 0-1.
    polygons
        How many.
    confidence
        Mean percent, 0-100, weighted by area; None if it is unknown or the class has no polygons.
    """

    class_id: int
    class_name: str
    area_m2: float
    share: float
    polygons: int
    confidence: float | None


class AreaCount:
    """Sums up a map by class as its polygons pass by.

    Law: the areas add up to those of all polygons and, unless the map is empty, the shares to 1.

    Parameters
    ----------
    legend
        The classes of the map.
    """

    def __init__(self, legend: Legend) -> None:
        self.legend = legend
        # Of each class: polygons, area in m2, and area times confidence.
        self._sums = np.zeros((3, len(legend)))

    def passed(self, polygons: "Polygons") -> "Polygons":
        """Count a batch and give it back."""
        for sums, weights in zip(
            self._sums, (None, polygons.area_m2, polygons.area_m2 * polygons.confidence), strict=True
        ):
            sums += np.bincount(places(polygons.class_id, self.legend), weights, minlength=len(self.legend))
        return polygons

    def areas(self) -> tuple[ClassArea, ...]:
        """Give what has passed, in legend order; classes that don't occur have an area of 0."""
        total = float(self._sums[1].sum())
        return tuple(
            ClassArea(
                class_id=c.class_id,
                class_name=c.name,
                area_m2=float(area),
                share=float(area) / total if total else 0.0,
                polygons=int(count),
                confidence=float(weighted / area) if count and np.isfinite(weighted) else None,
            )
            for c, (count, area, weighted) in zip(self.legend, self._sums.T, strict=True)
        )
