"""Map scenes of several sizes and print each run's peak memory beside what the plan projected.

    python -m benchmarks.memory [--shapes 4096x4096 65536x4096 40000x40000] [--max-memory 3GB] [--model NAME|FOLDER]

The scenes are nodata but for the demo's imagery in their corners and at their middle: what is empty costs the network
nothing, and memory as much as anything else. Each run is a process of its own, from the scene to the GeoPackage.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import rasterio
from affine import Affine
from rasterio.windows import Window

from benchmarks.large_scene import DEMO, machine
from landseg.config import RunConfig
from landseg.run import Plan, build_plan, execute

Shape = tuple[int, int]


def make_scene(shape: Shape, path: Path) -> None:
    """Write an empty scene with imagery at five places."""
    rows, cols = shape
    with rasterio.open(DEMO) as demo:
        patch, crs, colours = demo.read(), demo.crs, demo.colorinterp
    patch = patch[:, : min(1024, rows // 2), : min(1024, cols // 2)].clip(1)
    height, width = patch.shape[1:]
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(
        path, "w", driver="GTiff", count=len(patch), height=rows, width=cols, dtype="uint8", nodata=0, crs=crs,
        transform=Affine(1, 0, 300_000, 0, -1, 2_800_000), bigtiff="if_safer", **layout,
    ) as file:  # fmt: skip
        file.colorinterp = colours
        for down, across in ((0, 0), (0, 1), (0.5, 0.5), (1, 0), (1, 1)):
            top, left = int(down * (rows - height)), int(across * (cols - width))
            file.write(patch, window=Window(left, top, width, height))


def run(scene: Path, config: RunConfig) -> tuple[Plan, int, float]:
    """Map a scene; give the plan, this process's peak in bytes and the seconds."""
    start = time.perf_counter()
    plan = build_plan(str(scene), scene.with_suffix(".gpkg"), config)
    execute(plan)
    return plan, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - start


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "65536x4096", "40000x40000"], help="ROWSxCOLS")
    parser.add_argument("--max-memory", default="3GB")
    parser.add_argument("--model", default=RunConfig().model)
    arguments = parser.parse_args()
    config = RunConfig(model=arguments.model, max_memory=arguments.max_memory)
    print(f"machine: {machine()}; --max-memory {arguments.max_memory}")
    processes = multiprocessing.get_context("spawn")
    for text in arguments.shapes:
        rows, cols = map(int, text.split("x"))
        with tempfile.TemporaryDirectory() as folder, processes.Pool(1) as pool:
            scene = Path(folder) / "scene.tif"
            make_scene((rows, cols), scene)
            plan, peak, seconds = pool.apply(run, (scene, config))
        print(
            f"{rows:6,} x {cols:6,}: projected {plan.memory_bytes / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB, "
            f"{len(plan.strips):4} strips, {seconds:5.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
