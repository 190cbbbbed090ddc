"""Map a large scene and print time and peak resident memory after each stage.

    python benchmarks/large_scene.py --side 20000 [--tile SCENE.tif] [--model NAME|FOLDER] [--overlap 0.25]

The scene is a small one repeated side by side, as a virtual raster: as large as asked for, and real imagery everywhere.
"""

import argparse
import platform
import resource
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import rasterio
import torch

from landseg.config import RunConfig
from landseg.mapping import Progress
from landseg.run import build_plan, execute

DEMO = Path(__file__).parent.parent / "data_catalog/scenes/dubai-tile2/dubai_tile2.tif"


def repeat(tile: Path, side: int, path: Path) -> None:
    """Write a virtual raster of ``side`` squared pixels that repeats a tile."""
    with rasterio.open(tile) as source:
        rows, cols, count, dtype = source.height, source.width, source.count, source.dtypes[0]
        root = ET.Element("VRTDataset", rasterXSize=str(side), rasterYSize=str(side))
        ET.SubElement(root, "SRS").text = source.crs.to_wkt()
        ET.SubElement(root, "GeoTransform").text = ", ".join(map(str, source.transform.to_gdal()))
        colours = [colour.name.capitalize() for colour in source.colorinterp]
    for band in range(1, count + 1):
        element = ET.SubElement(root, "VRTRasterBand", dataType="Byte" if dtype == "uint8" else dtype, band=str(band))
        ET.SubElement(element, "ColorInterp").text = colours[band - 1]
        for top in range(0, side, rows):
            for left in range(0, side, cols):
                part = ET.SubElement(element, "SimpleSource")
                ET.SubElement(part, "SourceFilename", relativeToVRT="0").text = str(tile.resolve())
                ET.SubElement(part, "SourceBand").text = str(band)
                height, width = min(rows, side - top), min(cols, side - left)
                ET.SubElement(part, "SrcRect", xOff="0", yOff="0", xSize=str(width), ySize=str(height))
                ET.SubElement(part, "DstRect", xOff=str(left), yOff=str(top), xSize=str(width), ySize=str(height))
    ET.ElementTree(root).write(path)


def machine() -> str:
    """Describe the machine in a line."""
    memory = psutil.virtual_memory().total / 1e9
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} with {instructions}, {psutil.cpu_count()} cores, {memory:.0f} GB"


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="rows and columns of the scene")
    parser.add_argument("--tile", type=Path, default=DEMO, help="scene to repeat")
    parser.add_argument("--model", default=RunConfig().model)
    parser.add_argument("--overlap", type=float, default=RunConfig().overlap)
    arguments = parser.parse_args()
    start, stage = time.perf_counter(), ""

    def report(progress: Progress) -> None:
        nonlocal stage
        if stage and progress.stage != stage:
            show(stage)
        stage = progress.stage

    def show(finished: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"after {finished:9} {time.perf_counter() - start:8.0f} s   peak {peak / 1e9:.2f} GB", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.vrt"
        repeat(arguments.tile, arguments.side, scene)
        config = RunConfig(model=arguments.model, overlap=arguments.overlap)
        plan = build_plan(str(scene), Path(folder) / "map.gpkg", config)
        print(f"machine: {machine()}; network on {plan.device} in {plan.precision}")
        print(f"scene: {plan.grid.shape[0]} x {plan.grid.shape[1]} px, {plan.tiling.chip_count} chips")
        print(f"projected peak: {plan.memory_bytes / 1e9:.2f} GB", flush=True)
        result = execute(plan, report)
        show(stage)
        print(f"{sum(area.polygons for area in result.areas):,} polygons")


if __name__ == "__main__":
    main()
