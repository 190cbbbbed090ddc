"""Files that people open: rasters, polygons, styles and pictures of a map, and the figures that they share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from landseg.legend import Legend
from landseg.polygons import Polygons


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
        Mean percent, 0-100, weighted by area; None if the class has no polygons.
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
        # Of each class id: polygons, area in m2, and area times confidence.
        self._sums = np.zeros((3, 256))

    def passing(self, batches: Iterable[Polygons]) -> Iterator[Polygons]:
        """Give the same batches, each counted when it is asked for."""
        for polygons in batches:
            for sums, weights in zip(
                self._sums, (None, polygons.area_m2, polygons.area_m2 * polygons.confidence), strict=True
            ):
                sums += np.bincount(polygons.class_id, weights, minlength=256)
            yield polygons

    def areas(self) -> tuple[ClassArea, ...]:
        """Give what has passed, in legend order; classes that don't occur have an area of 0."""
        count, area, weighted = self._sums
        total = float(area.sum())
        return tuple(
            ClassArea(
                class_id=c.class_id,
                class_name=c.name,
                area_m2=float(area[c.class_id]),
                share=float(area[c.class_id]) / total if total else 0.0,
                polygons=int(count[c.class_id]),
                confidence=float(weighted[c.class_id] / area[c.class_id]) if count[c.class_id] else None,
            )
            for c in self.legend
        )
