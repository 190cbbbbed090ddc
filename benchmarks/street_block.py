"""Draw one street block as pixels, as polygons simplified one by one, and as landseg's polygons.

    python -m benchmarks.street_block [--out docs/images/polygons.png]

Gaps are drawn in red and overlaps in black; their share of the block is printed.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import rasterio.features
import shapely
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from rasterio.windows import Window
from shapely.geometry import shape

from benchmarks.large_scene import DEMO
from landseg.grid import Grid
from landseg.legend import Legend
from landseg.model.bundle import DEFAULT_MODEL, read_bundle
from landseg.polygons import Merging, Polygons, polygonize

LABELS = DEMO.with_name("dubai_tile2_labels.tif")
BLOCK = Window(1015, 640, 140, 140)
TOLERANCE_M = 2.0
MIN_AREA_M2 = 25.0

Parts = tuple[NDArray[np.object_], list[int]]
"""Polygons and their class ids."""


def one_by_one(labels: NDArray[np.uint8], grid: Grid) -> Parts:
    """Take GDAL's polygons, drop small ones and simplify each by itself, as many tools do."""
    faces = rasterio.features.shapes(labels, labels > 0, connectivity=4, transform=grid.transform)
    polygons, classes = zip(*((shape(face), int(label)) for face, label in faces), strict=True)
    large = shapely.area(polygons) >= MIN_AREA_M2
    return shapely.simplify(np.array(polygons)[large], TOLERANCE_M), np.array(classes)[large].tolist()


def by_landseg(raster: Path, grid: Grid, work: Path) -> Parts:
    """Merge small faces and simplify the arcs that neighbours share."""
    merging = Merging(MIN_AREA_M2)
    found = Polygons.concatenate(polygonize(raster, grid, work=work, merging=merging, tolerance_m=TOLERANCE_M))
    return found.geometry, found.class_id.tolist()


def draw(axes: Axes, parts: Parts, legend: Legend, block: shapely.Polygon) -> str:
    """Draw polygons with their faults, and say how large these are."""
    polygons, classes = parts
    for polygon, class_id in zip(polygons, classes, strict=True):
        _fill(axes, polygon, facecolor=legend[class_id].colour, edgecolor="#404040", linewidth=0.5)
    gaps = shapely.difference(block, shapely.union_all(polygons))
    pairs = shapely.STRtree(polygons).query(polygons, predicate="intersects").T
    overlaps = shapely.union_all([shapely.intersection(polygons[a], polygons[b]) for a, b in pairs if a < b])
    for faults, colour in ((gaps, "#ff0000"), (overlaps, "#000000")):
        for part in shapely.get_parts(faults):
            if part.geom_type == "Polygon":
                _fill(axes, part, facecolor=colour, edgecolor="none")
    gap_share, overlap_share = (part.area / block.area for part in (gaps, overlaps))
    return f"{gap_share:.1%} gaps, {overlap_share:.1%} overlaps"


def _fill(axes: Axes, polygon: shapely.Polygon, **look: object) -> None:
    rings = [Outline(np.asarray(ring.coords), closed=True) for ring in (polygon.exterior, *polygon.interiors)]
    axes.add_patch(PathPatch(Outline.make_compound_path(*rings), **look))


def main() -> None:
    """Parse, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/polygons.png"))
    arguments = parser.parse_args()
    legend = read_bundle(DEFAULT_MODEL).card.legend
    with rasterio.open(LABELS) as file, tempfile.TemporaryDirectory() as folder:
        labels = file.read(1, window=BLOCK)
        # Codes of the set begin at 0, and 255 is unlabelled.
        labels = np.where(labels == file.nodata, 0, labels + 1).astype(np.uint8)
        grid = Grid(labels.shape, file.window_transform(BLOCK), file.crs)
        raster = Path(folder) / "block.tif"
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": grid.crs, "transform": grid.transform}
        with rasterio.open(raster, "w", **profile, height=labels.shape[0], width=labels.shape[1]) as block:
            block.write(labels, 1)
        ours, theirs = by_landseg(raster, grid, Path(folder)), one_by_one(labels, grid)
    left, bottom, right, top = grid.bounds
    area = shapely.box(left, bottom, right, top)
    figure, (pixels, separate, shared) = plt.subplots(1, 3, figsize=(15, 5.9), layout="constrained")
    image = np.array([(255, 255, 255), *(legend[c].rgb for c in legend.class_ids)], np.uint8)[labels]
    pixels.imshow(image, extent=(left, right, bottom, top), interpolation="nearest")
    pixels.set_title("pixels")
    faults = {
        "GDAL's polygons, simplified one by one": draw(separate, theirs, legend, area),
        "landseg's polygons": draw(shared, ours, legend, area),
    }
    for axes, (title, says) in zip((separate, shared), faults.items(), strict=True):
        axes.set_title(f"{title}\n{says}")
        print(f"{title}: {says}")
    for axes in (pixels, separate, shared):
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
