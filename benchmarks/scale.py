"""Run the real scheduler on a scene of 10^12 pixels, with strips whose work is left out, and print what it costs.

    python -m benchmarks.scale [--side 1000000] [--workers 16]

What is printed: the strips, the time and memory that scheduler and client take for them, and what a plan projects for
scenes of several widths.
"""

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from affine import Affine
from distributed import Client, LocalCluster
from torch import nn

from benchmarks.large_scene import DEMO, machine
from landseg import cluster
from landseg.config import RunConfig
from landseg.grid import Grid
from landseg.mapping import StripStore
from landseg.model.bundle import Bundle
from landseg.run import Plan, build_plan, map_job


def widened(plan: Plan, rows: int, cols: int) -> Plan:
    """Give the plan of a scene of another size, which need not exist."""
    grid = Grid((rows, cols), Affine(0.5, 0, 300_000, 0, -0.5, 3_000_000), plan.grid.crs)
    tiling = replace(plan.tiling, shape=grid.shape)
    return replace(plan, info=replace(plan.info, grid=grid), grid=grid, tiling=tiling)


def left_out(_name: str, _index: int) -> int:
    """Stand in for the work on a strip."""
    return 0


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10**6, help="rows and columns of the scene")
    parser.add_argument("--workers", type=int, default=16)
    arguments = parser.parse_args()
    demo = build_plan(str(DEMO), Path("map.gpkg"), RunConfig(device="cpu", max_memory=1e15))
    plan = widened(demo, arguments.side, arguments.side)
    job = map_job(plan)
    # Workers are threads here: each would hold a network of its own.
    Bundle.load_network = lambda _: nn.Identity()  # type: ignore[assignment,method-assign,return-value]
    cluster._map_strip = left_out
    # There is no such scene.
    cluster._Strips.refusal = None  # type: ignore[assignment]
    print(f"machine: {machine()}")
    print(f"scene: {plan.grid.size:.1e} px, {plan.tiling.chip_count:,} chips, {len(job.strips):,} strips", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=arguments.workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as workers,
        Client(workers) as client,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        store = StripStore(Path(folder), job)
        indices = range(len(job.strips))
        done = sum(1 for _ in cluster._compute(client, job, store, indices, lambda *_: None, are_ours=False))
        seconds = time.process_time() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{done:,} strips: {1e3 * seconds / done:.1f} ms of processor time each, client and scheduler together")
    print(f"memory: {grown / 1e6:.0f} MB more than before the first strip")
    for device in ("cpu", "cuda"):
        for cols in (10_000, 40_000, 100_000, 1_000_000):
            wide = replace(widened(demo, cols, cols), device=torch.device(device))
            print(f"projected for {cols:,} columns on {device}: {wide.memory_bytes / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
