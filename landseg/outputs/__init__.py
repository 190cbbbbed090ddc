"""Files that people open: rasters, polygons, styles and pictures of a map, and the figures that they share."""

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


def class_areas(polygons: Polygons, legend: Legend) -> tuple[ClassArea, ...]:
    """Sum up a map by class, in legend order; classes that don't occur have an area of 0.

    Law: the areas add up to ``polygons.area_m2.sum()`` and, unless the map is empty, the shares to 1.
    """
    counts = np.bincount(polygons.class_id, minlength=256)
    areas = np.bincount(polygons.class_id, polygons.area_m2, minlength=256)
    weighted = np.bincount(polygons.class_id, polygons.area_m2 * polygons.confidence, minlength=256)
    total = float(areas.sum())
    return tuple(
        ClassArea(
            class_id=c.class_id,
            class_name=c.name,
            area_m2=float(areas[c.class_id]),
            share=float(areas[c.class_id]) / total if total else 0.0,
            polygons=int(counts[c.class_id]),
            confidence=float(weighted[c.class_id] / areas[c.class_id]) if counts[c.class_id] else None,
        )
        for c in legend
    )
