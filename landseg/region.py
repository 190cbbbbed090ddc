"""Many maps to one: which of them counts where they overlap, and polygons that know nothing of scene borders.

The maps' rasters are laid over one grid, strip by strip, and polygons are drawn once, of the whole.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from landseg.errors import EmptySceneError, UsageError
from landseg.grid import Grid
from landseg.hrefs import from_folder
from landseg.legend import NODATA, Legend
from landseg.machine import cores
from landseg.outputs import ClassArea, counted
from landseg.outputs.drafts import Drafts, check_space
from landseg.outputs.manifest import write_manifest
from landseg.outputs.paths import OutputPaths
from landseg.outputs.raster import LabelRaster, read_labels
from landseg.outputs.style import write_style
from landseg.outputs.vector import draw_layer
from landseg.polygons.merge import Merging
from landseg.polygons.strips import PIXELS_AT_ONCE, threads_within
from landseg.scene import RasterScene, describe_scene

MergeRule = Literal["newest", "least-cloudy", "most-confident"]

LARGEST_SHARE = 50
"""How many times as many pixels as all maps together a region may have."""

MOST_OPEN = 100
"""Maps that are held open from strip to strip; of those side by side beyond it each strip opens its own.

A system's limit of open files is often 1,024, and 256 on macOS.
"""


@dataclass(frozen=True)
class Part:
    """A map that a region is made of.

    Parameters
    ----------
    name
        The map's.
    raster
        Path or URL of labels and confidence, as a run writes them, with the manifest beside it.
    date
        When its scene was taken; None if that is not known.
    cloud_cover
        Percent of its scene; None if that is not known.
    """

    name: str
    raster: str
    date: datetime | None = None
    cloud_cover: float | None = None

    @property
    def manifest(self) -> str:
        """Path or URL of the map's manifest."""
        return self.raster.removesuffix(".tif") + ".json"


def in_order(parts: Sequence[Part], rule: MergeRule) -> list[Part]:
    """Sort maps so that the first counts where several are valid; under ``most-confident`` where they tie.

    Raises
    ------
    UsageError
        If the rule asks for what is not known of a map.
    """
    unknown = {
        "newest": [part.name for part in parts if part.date is None],
        "least-cloudy": [part.name for part in parts if part.cloud_cover is None],
    }
    if names := unknown.get(rule):
        what = "when it was taken" if rule == "newest" else "its cloud cover"
        raise UsageError(
            f"the rule '{rule}' can't place {names[0]}: {what} is not known",
            "take scenes from a catalog that says so, or the rule 'most-confident'",
        )

    def key(part: Part) -> tuple[float, float, str]:
        age = -part.date.timestamp() if part.date else math.inf
        return (part.cloud_cover or 0.0) if rule == "least-cloudy" else 0.0, age, part.name

    return sorted(parts, key=key)


def region_grid(grids: Sequence[Grid]) -> Grid:
    """Lay one grid over several.

    Its CRS and pixels are those of most of them; where these are rotated or mirrored it has north up.

    Laws: every grid lies within it; those that share its CRS, pixels and their corners are covered pixel for pixel.

    Raises
    ------
    UsageError
        If most of it would be empty.
    """
    kinds = Counter(_kind(grid) for grid in grids)
    first = next(grid for grid in grids if _kind(grid) == kinds.most_common(1)[0][0])
    a, b, _, d, e, _ = first.transform[:6]
    if b or d or a < 0 or e > 0:
        side = math.sqrt(abs(a * e - b * d))
        a, e = side, -side
    boxes = [grid.bounds_in(first.crs) for grid in grids]
    left, bottom, right, top = (f(side) for f, side in zip((min, min, max, max), zip(*boxes, strict=True), strict=True))
    # Whole pixels away from the first grid's corner; a millionth of one is rounding.
    x, y = first.corners[0]
    col, row = math.floor((left - x) / a + 1e-6), math.floor((top - y) / e + 1e-6)
    cols, rows = math.ceil((right - x) / a - 1e-6) - col, math.ceil((bottom - y) / e - 1e-6) - row
    region = Grid((rows, cols), Affine(a, 0, x + col * a, 0, e, y + row * e), first.crs)
    if region.size > LARGEST_SHARE * sum(grid.size for grid in grids):
        raise UsageError(
            f"the scenes lie too far apart for one map: it would have {cols:,} x {rows:,} px, most of them empty",
            "give each area a pipeline of its own, or leave out 'merge'",
        )
    return region


def _kind(grid: Grid) -> tuple[str, float, float, float, float]:
    """Give what grids share that can be laid over each other pixel for pixel, but for their corners."""
    a, b, _, d, e, _ = grid.transform[:6]
    return grid.crs.to_wkt(), a, b, d, e


def merge_rows(
    parts: Sequence[Part], grid: Grid, rule: MergeRule, strip_rows: int | None = None
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Give the region's labels and confidence, (n, cols) each, from top to bottom.

    Law: they do not depend on the order of ``parts`` nor on ``strip_rows``.

    Raises
    ------
    UsageError
        If the rule asks for what is not known of a map.
    SceneError
        If a raster can't be read.
    """
    rows, cols = grid.shape
    step = strip_rows or max(1, PIXELS_AT_ONCE // cols)
    infos = [describe_scene(part.raster) for part in in_order(parts, rule)]
    windows = [grid.window_of(info.grid) for info in infos]
    readers: dict[int, RasterScene] = {}
    try:
        for top in range(0, rows, step):
            bottom = min(top + step, rows)
            labels, confidence = np.zeros((2, bottom - top, cols), np.uint8)
            for index, (info, window) in enumerate(zip(infos, windows, strict=True)):
                end = window.row_off + window.height
                first, last = max(window.row_off, top), min(end, bottom)
                if first >= last:
                    continue
                if index not in readers:
                    readers[index] = RasterScene(info, (1, 2), grid, resampling="nearest")
                found = readers[index].read(Window(window.col_off, first, window.width, last - first)).data
                here = slice(first - top, last - top), slice(window.col_off, window.col_off + window.width)
                _lay_over(labels[here], confidence[here], found, rule)
                if end <= bottom or len(readers) > MOST_OPEN:
                    readers.pop(index).close()
            yield labels, confidence
    finally:
        for reader in readers.values():
            reader.close()


def _lay_over(
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    part: NDArray[np.uint8],
    rule: MergeRule,
) -> None:
    """Put a map's labels and confidence where none are yet, or where it is surer than what is there."""
    counts = labels == NODATA
    if rule == "most-confident":
        counts |= part[1] > confidence
    counts &= part[0] != NODATA
    labels[counts], confidence[counts] = part[:, counts]


def write_region(
    parts: Sequence[Part],
    rule: MergeRule,
    *,
    outputs: OutputPaths,
    legend: Legend,
    merging: Merging,
    simplify_m: float,
    polygons_bytes: int,
    versions: Mapping[str, str],
    properties: Mapping[str, Any],
) -> tuple[ClassArea, ...]:
    """Merge maps and publish the region's products.

    Parameters
    ----------
    parts, rule
        What to merge, and how.
    outputs
        Where the products go.
    legend
        Of all the maps.
    merging, simplify_m
        How polygons are tidied, as in a run.
    polygons_bytes
        Memory that drawing them should keep to.
    versions, properties
        What the manifest records beside the region itself.

    Raises
    ------
    UsageError
        If the maps lie too far apart, or the rule asks for what is not known of one.
    SceneError
        If a map can't be read, or none has a valid pixel.
    DiskError
        If there is too little room, or a product can't be put into its place.
    """
    polygons, raster, picture = outputs.polygons, outputs.raster, outputs.picture
    grid = region_grid([describe_scene(part.raster).grid for part in parts])
    check_space(polygons.parent, 3 * grid.size)
    title = f"Land use of {polygons.stem}"
    with Drafts(polygons) as drafts:
        valid_pixels = 0
        with LabelRaster(drafts.folder / "labels.tif", grid, legend) as merged:
            for labels, confidence in merge_rows(parts, grid, rule):
                merged.write(labels, confidence)
                valid_pixels += int(np.count_nonzero(labels))
        if valid_pixels == 0:
            raise EmptySceneError(f"the maps of {polygons.stem} hold no valid pixel")
        merged.publish(drafts.path(raster))
        write_style(drafts.path(outputs.style), legend)
        areas = draw_layer(
            drafts.path(polygons),
            drafts.path(raster),
            grid,
            legend,
            confidence_band=2,
            merging=merging,
            tolerance_m=simplify_m,
            threads=threads_within(polygons_bytes, grid.shape[1], cores()),
        )
        if picture is not None:
            from landseg.outputs.picture import PICTURE_PX, draw_picture  # matplotlib is slow to import

            shrunk, shrunk_grid = read_labels(drafts.path(raster), grid, PICTURE_PX)
            draw_picture(
                drafts.path(picture),
                labels=shrunk,
                imagery=None,
                grid=shrunk_grid,
                legend=legend,
                areas=areas,
                merged=merging.is_needed,
                title=title,
                source=f"{counted(len(parts), 'scene')}; where they overlap, the {rule} counts",
            )
        write_manifest(
            drafts.path(outputs.manifest),
            grid=grid,
            legend=legend,
            areas=areas,
            products={key: drafts.path(product) for key, product in outputs.assets.items()},
            title=title,
            sources=[from_folder(part.manifest, outputs.folder) for part in in_order(parts, rule)],
            versions=versions,
            properties={**properties, "landseg:valid_pixels": valid_pixels},
        )
        outputs.publish(drafts)
    return areas
