"""Compare the whole of mapping with the network's bare forward pass, and that with the plain one in fp32.

    python -m benchmarks.throughput [--scene SCENE.tif] [--model NAME|FOLDER] [--threads N] [--chips 8]

All figures are of one run: megapixels of chips a second of processor time, and their ratios, which a busy machine
disturbs less than the time on the clock. Mapping is what `landseg run` does without its start, the cloud-optimised copy
and polygons. Where the machine computes in bf16, the share of labels that are the same in fp32 is printed too.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.large_scene import DEMO, machine
from landseg.config import RunConfig
from landseg.predict import Predictor
from landseg.run import Plan, build_plan, map_labels


def processor_seconds(function: Callable[[], object]) -> float:
    """Count the processor time of all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def labels_of(plan: Plan) -> NDArray[np.uint8]:
    """Map a plan's scene."""
    with tempfile.TemporaryDirectory() as folder, rasterio.open(map_labels(plan, Path(folder))) as file:
        labels: NDArray[np.uint8] = file.read(1)
    return labels


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=DEMO)
    parser.add_argument("--model", default=RunConfig().model)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chips", type=int, default=8, help="chips in a batch of the bare passes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        plan = build_plan(
            str(arguments.scene), Path(folder) / "map.gpkg", RunConfig(model=arguments.model, batch=arguments.chips)
        )
        side = plan.tiling.chip_px
        precision = str(plan.dtype).removeprefix("torch.")
        print(f"machine: {machine()}; {arguments.threads} threads, {plan.device} in {precision}")
        chips = torch.randn(plan.batch, len(plan.bands), side, side)
        plain = plan.bundle.load_network()
        made_ready = Predictor(plan.bundle.load_network(), plan.device, plan.dtype).network
        ready_chips = chips.to(plan.dtype, memory_format=torch.channels_last)

        def forward(network: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
            with torch.inference_mode():
                network(pixels)
                return min(processor_seconds(lambda: network(pixels)) for _ in range(3)) / len(pixels)

        seconds = {
            "plain forward pass, fp32": forward(plain, chips),
            f"forward pass made ready, {precision}": forward(made_ready, ready_chips),
            "mapping the scene": processor_seconds(lambda: map_labels(plan, Path(folder))) / plan.tiling.chip_count,
        }
    if plan.dtype != torch.float32:
        same = float((labels_of(plan) == labels_of(replace(plan, dtype=torch.float32))).mean())
        print(f"{f'labels of {precision} as in fp32':36} {same:7.2%}")
    for name, per_chip in seconds.items():
        print(f"{name:36} {side**2 / per_chip / 1e6:7.2f} Mpx/s")
    plain_s, ready_s, mapping_s = seconds.values()
    print(f"{'made ready against plain':36} {plain_s / ready_s:7.2f}")
    print(f"{'mapping against made ready':36} {ready_s / mapping_s:7.2f}")


if __name__ == "__main__":
    main()
