"""Compare the whole of mapping with the network's bare forward pass, and that with the plain one in fp32.

    python -m benchmarks.throughput [--scene SCENE.tif] [--model NAME|FOLDER] [--threads N] [--chips 8]

All figures are of one run: megapixels of chips a second of processor time, and their ratios, which a busy machine
disturbs less than the time on the clock. Mapping is what `landseg run` does without its start, the cloud-optimised copy
and polygons; reading is the part of it that comes before the network. Where OpenVINO is installed (`pip install
openvino`) it runs the same network on the same chips at the same precision. The network made ready is timed with other
batches, too. Where the machine computes in bf16, the share of labels that are the same in fp32 is printed as well.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.large_scene import DEMO, machine
from landseg.chips import read_batches
from landseg.config import RunConfig
from landseg.predict import Predictor
from landseg.run import Plan, build_plan, map_labels
from landseg.scene import RasterScene

PLAIN = "plain forward pass, fp32"
OPENVINO = "OpenVINO, at that precision"
MAPPING = "mapping the scene"
BATCHES = (1, 2, 4, 16, 32)
ROUNDS = 5
"""Each pass is timed so often, in turn with the others; the median counts."""


def processor_seconds(function: Callable[[], object]) -> float:
    """Count the processor time of all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def read_all(plan: Plan) -> None:
    """Read a plan's chips."""
    with RasterScene(plan.info, plan.bands, plan.grid) as scene:
        for _ in read_batches(scene, plan.tiling, batch=plan.batch):
            pass


def by_openvino(network: nn.Module, chips: Tensor, dtype: torch.dtype, threads: int) -> Callable[[], object]:
    """Make a network ready as OpenVINO does, and give its pass over some chips."""
    import openvino

    with warnings.catch_warnings():
        # OpenVINO traces it, which torch would no longer have.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        model = openvino.convert_model(network, example_input=chips)
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    pixels = chips.numpy()
    return lambda: compiled([pixels])


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
        ready = f"forward pass made ready, {plan.precision}"
        print(f"machine: {machine()}; {arguments.threads} threads, {plan.device} in {plan.precision}")
        chips = torch.randn(plan.batch, len(plan.bands), side, side)
        plain = plan.bundle.load_network()
        made_ready = Predictor(plan.bundle.load_network(), plan.device, plan.dtype).network
        ready_chips = chips.to(plan.dtype, memory_format=torch.channels_last)
        passes: dict[str, Callable[[], object]] = {
            PLAIN: lambda: plain(chips),
            ready: lambda: made_ready(ready_chips),
        }
        if importlib.util.find_spec("openvino") is not None:
            passes[OPENVINO] = by_openvino(plain, chips, plan.dtype, arguments.threads)
        for count in BATCHES:
            some_chips = torch.randn(count, len(plan.bands), side, side)
            some_chips = some_chips.to(plan.dtype, memory_format=torch.channels_last)
            passes[f"made ready, {count} chips"] = partial(made_ready, some_chips)
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        with torch.inference_mode():
            for some in passes.values():
                some()
            for _ in range(ROUNDS):
                for name, some in passes.items():
                    seconds[name].append(processor_seconds(some))
        chips_in = {f"made ready, {count} chips": count for count in BATCHES}
        per_chip = {name: statistics.median(times) / chips_in.get(name, plan.batch) for name, times in seconds.items()}
        per_chip["reading the scene"] = processor_seconds(lambda: read_all(plan)) / plan.tiling.chip_count
        per_chip[MAPPING] = processor_seconds(lambda: map_labels(plan, Path(folder))) / plan.tiling.chip_count
    if plan.dtype != torch.float32:
        same = float((labels_of(plan) == labels_of(replace(plan, dtype=torch.float32))).mean())
        print(f"{f'labels of {plan.precision} as in fp32':36} {same:7.2%}")
    for name, time_s in per_chip.items():
        print(f"{name:36} {side**2 / time_s / 1e6:7.2f} Mpx/s")
    plain_s, ready_s = per_chip[PLAIN], per_chip[ready]
    print(f"{'made ready against plain':36} {plain_s / ready_s:7.2f}")
    if OPENVINO in per_chip:
        print(f"{'made ready against OpenVINO':36} {per_chip[OPENVINO] / ready_s:7.2f}")
    print(f"{'mapping against made ready':36} {ready_s / per_chip[MAPPING]:7.2f}")


if __name__ == "__main__":
    main()
