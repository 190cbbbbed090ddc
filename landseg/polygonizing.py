"""From a raster of classes, landseg's own or anyone's, to a layer of polygons."""

import colorsys
from dataclasses import dataclass
from pathlib import Path

from landseg.config import LegendConfig, PolygonConfig, legend_of, load_config
from landseg.errors import InputError, UsageError
from landseg.legend import LandClass, Legend
from landseg.outputs import ClassArea
from landseg.outputs.drafts import Drafts, check_space, check_writable
from landseg.outputs.vector import check_format, companions, draw_layer
from landseg.polygons.classes import ClassRaster, read_class_raster
from landseg.polygons.merge import Merging
from landseg.scene import describe_scene

BYTES_PER_PIXEL = 1.0
"""Room on disk that a realistic map's polygons take: their spool, and as much for the layer beside it."""

OKABE_ITO = ("#d55e00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#cc79a7", "#e69f00", "#5a5a5a")
"""Colours for classes that have none, the first eight: Okabe and Ito, "Color Universal Design", 2008."""


@dataclass(frozen=True)
class Layer:
    """Polygons that were written.

    Parameters
    ----------
    files
        The layer's own, and those that belong to it.
    areas
        What each class covers.
    """

    files: tuple[Path, ...]
    areas: tuple[ClassArea, ...]


def polygonize_raster(
    raster: Path, out: Path, config: PolygonConfig, legend: Path | None = None, *, overwrite: bool = False
) -> Layer:
    """Draw the polygons of band 1 of a raster of classes.

    What the raster declares as nodata, masks or holds as not-a-number has no polygons; every other value is a class,
    0 among them. A second band named ``confidence``, as landseg's own maps have it, gives the polygons' confidence.

    Parameters
    ----------
    raster
        Any raster of whole numbers that GDAL reads.
    out
        The layer to write, in the format of its suffix.
    config
        The options.
    legend
        YAML file of names, colours and affinities, a `LegendConfig`; by default the raster's category names and
        colour table say what they know.
    overwrite
        Whether to replace a layer that is there.

    Raises
    ------
    UsageError
        If ``out`` or an option does not make sense.
    InputError
        If it is no raster of classes, or holds values that the legend lacks.
    ResourceError
        If disk or memory run out.
    """
    check_format(out)
    files = (*companions(out), out)
    check_writable(out, files, overwrite=overwrite)
    if out.exists() and any(out.samefile(file) for file in describe_scene(str(raster), config.assume_crs).files):
        raise UsageError(f"the output {out} is the raster itself", "choose another --out")
    source = read_class_raster(raster, config.assume_crs)
    known = _own_legend(source) if legend is None else _given_legend(source, legend)
    check_minima(config, known)
    check_space(out.parent, int(source.grid.size * BYTES_PER_PIXEL))
    with Drafts(out) as drafts:
        areas = draw_layer(
            drafts.path(out),
            raster,
            source.grid,
            known,
            class_ids=source.values,
            confidence_band=source.confidence_band,
            merging=merging_of(config, known),
            tolerance_m=config.simplify,
        )
        drafts.publish(files)
    return Layer(files, areas)


def check_minima(config: PolygonConfig, legend: Legend) -> None:
    """Raise `UsageError` where a minimum area is given for a class that there is not."""
    unknown = sorted(config.min_area_of_class.keys() - set(legend.names))
    if unknown:
        raise UsageError(
            f"a minimum area is given for '{unknown[0]}', which is no class of the map",
            f"its classes: {', '.join(legend.names)}",
        )


def merging_of(config: PolygonConfig, legend: Legend) -> Merging:
    """Say which polygons of a map are too small, and what they prefer to join."""
    ids = {c.name: c.class_id for c in legend}
    minima = {ids[name]: area_m2 for name, area_m2 in config.min_area_of_class.items()}
    return Merging(config.min_area, minima, legend.affinity)


def _given_legend(source: ClassRaster, file: Path) -> Legend:
    """Read a legend and check that it has all classes of a raster."""
    legend = legend_of(load_config(file, LegendConfig).legend)
    unknown = [value for value in source.values if value not in legend.class_ids]
    if unknown:
        raise InputError(
            f"{source.path} holds {', '.join(map(str, unknown[:5]))}, which {file} does not name",
            "name it there, or declare it as nodata in the raster: gdal_edit.py -a_nodata",
        )
    return legend


def _own_legend(source: ClassRaster) -> Legend:
    """Make a legend of what a raster says of its values; a name that stands twice has the value after it.

    Classes that are named and don't occur are listed too, as `landseg run` lists them.
    """
    values = sorted({*source.values, *source.names})
    # XML may break a name into lines.
    names = [" ".join(source.names.get(value, "").split()) or str(value) for value in values]
    try:
        return Legend(
            tuple(
                LandClass(
                    value,
                    name if names.count(name) == 1 else f"{name} ({value})",
                    source.colours.get(value, _colour(place)),
                )
                for place, (value, name) in enumerate(zip(values, names, strict=True))
            )
        )
    except ValueError as error:
        raise InputError(f"{source.path}: {error}", "name its classes by --legend") from error


def _colour(place: int) -> str:
    """Give a colour unlike those before it: hues a golden section apart, beyond the first few."""
    if place < len(OKABE_ITO):
        return OKABE_ITO[place]
    rgb = colorsys.hsv_to_rgb(place * 0.618034 % 1, 0.45 + 0.15 * (place % 3), 0.85)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in rgb))
