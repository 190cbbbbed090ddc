"""Say what the overlap of chips does to a map: how labels change with it, how right they are, and whether seams show.

    python -m benchmarks.overlap [--scene SCENE.tif --labels LABELS.tif --label-values 0=building,…] [--model NAME]

For each overlap, as near as chips can have it: the share of labels that differ from those at an overlap of one half;
the mean IoU with the reference; and how much more often neighbouring pixels differ across the lines where a chip
begins or ends than across others, 1 where no seam shows. Last, an overlap of one half again, of the scene less some
rows and columns, so that chips stand elsewhere: what changes then is no overlap's doing. docs/performance.md says
what follows from it for the default.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from benchmarks.large_scene import DEMO, machine
from landseg.config import RunConfig
from landseg.grid import Tiling
from landseg.run import Plan, build_plan, map_labels
from landseg.train.evaluate import evaluate_map
from landseg.train.labels import LabelCodes

OVERLAPS = (0.5, 0.375, 0.25, 0.125, 0.0)
CUTS_PX = (64, 61)
"""Rows and columns at the scene's beginning that the last maps go without: whole cells of features, and others."""

DEMO_VALUES = "0=building,1=land,2=road,3=vegetation,4=water"


def seam_ratio(labels: NDArray[np.uint8], tiling: Tiling) -> float:
    """Compare how often neighbours differ where a chip's kept part begins or ends with how often elsewhere.

    Parameters
    ----------
    labels
        (rows, cols), the map.
    tiling
        Of its chips.
    """
    across = {int(edge) for chip in tiling for edge in (chip.kept.col_off, chip.kept.col_off + chip.kept.width)}
    down = {int(edge) for chip in tiling for edge in (chip.kept.row_off, chip.kept.row_off + chip.kept.height)}
    at_seams, elsewhere = [], []
    for rates, edges in (
        ((labels[:, 1:] != labels[:, :-1]).mean(axis=0), across),
        ((labels[1:] != labels[:-1]).mean(axis=1), down),
    ):
        is_seam = np.isin(np.arange(1, len(rates) + 1), list(edges))
        at_seams.append(rates[is_seam])
        elsewhere.append(rates[~is_seam])
    return float(np.concatenate(at_seams).mean() / np.concatenate(elsewhere).mean())


def map_scene(scene: Path, model: str, overlap: float, folder: Path) -> tuple[Plan, Path, NDArray[np.uint8]]:
    """Map a scene; give the plan, the raster's path and its labels."""
    plan = build_plan(str(scene), folder / "map.gpkg", RunConfig(model=model, overlap=overlap))
    path = map_labels(plan, folder)
    with rasterio.open(path) as file:
        return plan, path, file.read(1)


def cut(scene: Path, cut_px: int, path: Path) -> None:
    """Write a scene without its first rows and columns."""
    with rasterio.open(scene) as source:
        window = Window(cut_px, cut_px, source.width - cut_px, source.height - cut_px)
        profile = {key: source.profile[key] for key in ("count", "dtype", "nodata", "crs")}
        size = {"height": window.height, "width": window.width, "transform": source.window_transform(window)}
        with rasterio.open(path, "w", driver="GTiff", **profile, **size) as file:
            file.write(source.read(window=window))
            file.colorinterp = source.colorinterp


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=DEMO)
    parser.add_argument("--labels", type=Path, default=DEMO.with_name("dubai_tile2_labels.tif"))
    parser.add_argument("--label-values", default=DEMO_VALUES)
    parser.add_argument("--model", default=RunConfig().model)
    arguments = parser.parse_args()
    values = {int(value): name for value, name in (pair.split("=") for pair in arguments.label_values.split(","))}
    print(f"machine: {machine()}")
    maps: list[NDArray[np.uint8]] = []
    for overlap in OVERLAPS:
        with tempfile.TemporaryDirectory() as folder:
            plan, path, labels = map_scene(arguments.scene, arguments.model, overlap, Path(folder))
            legend = plan.bundle.card.legend
            scores = evaluate_map(path, arguments.labels, LabelCodes(values, legend.names), legend)
        maps.append(labels)
        changed = (labels != maps[0]).mean()
        share = plan.tiling.overlap_px / plan.tiling.chip_px
        print(
            f"overlap {share:5.1%}: {plan.tiling.chip_count:5} chips, {changed:5.2%} of the labels changed, "
            f"mean IoU {scores.miou:.4f}, seams {seam_ratio(labels, plan.tiling):.2f}",
            flush=True,
        )
    for cut_px in CUTS_PX:
        with tempfile.TemporaryDirectory() as folder:
            cut(arguments.scene, cut_px, Path(folder) / "scene.tif")
            _, _, labels = map_scene(Path(folder) / "scene.tif", arguments.model, OVERLAPS[0], Path(folder))
        changed = (labels != maps[0][cut_px:, cut_px:]).mean()
        print(f"overlap {OVERLAPS[0]:5.1%}, chips {cut_px} px further on: {changed:5.2%} of the labels changed")


if __name__ == "__main__":
    main()
