"""Compare the whole of mapping with the network's bare forward pass, and that with the plain one in fp32.

    python -m benchmarks.throughput [--scene SCENE.tif] [--model NAME|FOLDER] [--threads N] [--chips 8]
    python -m benchmarks.throughput --side 20000 [--backbone resnet50]          on a GPU

All figures are of one run: megapixels of chips a second of processor time, and their ratios, which a busy machine
disturbs less than the time on the clock; on a GPU, of the time on the clock until it is through. Mapping is what
`landseg run` does without its start, the cloud-optimised copy and polygons; reading is the part of it that comes
before the network. In swaths, as mapping has it, features of ground that chips share are computed once. Where
OpenVINO is installed (`pip install openvino`) it runs the same network on the same chips at the same precision, on
the CPU. The network made ready is timed with other batches, too. Operations are those of the plain network, a
multiplication and an addition counted as two. Where the machine computes in bf16, the share of labels that are the
same in fp32 is printed as well.
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
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.large_scene import DEMO, machine, repeat
from landseg.chips import read_batches
from landseg.config import RunConfig
from landseg.mapping import reading_threads
from landseg.model.bundle import read_bundle, write_bundle
from landseg.model.pspnet import CHOICES, OnSwaths, PSPNet
from landseg.predict import Predictor
from landseg.run import Plan, build_plan, map_labels
from landseg.scene import RasterScene

PLAIN = "plain forward pass, fp32"
SWATHS = "made ready, in swaths"
OPENVINO = "OpenVINO, at that precision"
MAPPING = "mapping the scene"
BATCHES = {"cpu": (1, 2, 4, 16, 32), "cuda": (8, 16, 32, 128)}
ROUNDS = 5
"""Each pass is timed so often, in turn with the others; the median counts."""


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Count the processor time of all threads, or on the clock until a GPU is through."""
    if device.type == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def untrained(model: str, backbone: str, folder: Path) -> str:
    """Write a bundle like a model's, of another backbone, whole, and random weights, which take as long."""
    card = read_bundle(model).card
    architecture = replace(card.architecture, backbone=backbone, stages=4, head_channels=None)
    write_bundle(folder, replace(card, name=backbone, architecture=architecture), PSPNet(architecture))
    return str(folder)


def read_all(plan: Plan) -> None:
    """Read a plan's chips."""
    with RasterScene(plan.info, plan.bands, plan.grid) as scene:
        for _ in read_batches(scene, plan.tiling, batch=plan.batch, threads=reading_threads(plan.device)):
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
    parser.add_argument("--backbone", choices=CHOICES["backbone"], help="in place of the model's, of random weights")
    parser.add_argument("--side", type=int, help="repeat the scene to so many rows and columns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chips", type=int, help="chips in a batch of the bare passes; as landseg run takes them")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # As landseg has it: fp32 is not rounded.
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        scene, model = arguments.scene, arguments.model
        if arguments.side is not None:
            scene = Path(folder) / "scene.vrt"
            repeat(arguments.scene, arguments.side, scene)
        if arguments.backbone is not None:
            model = untrained(model, arguments.backbone, Path(folder) / "model")
        plan = build_plan(str(scene), Path(folder) / "map.gpkg", RunConfig(model=model, batch=arguments.chips))
        device, side = plan.device, plan.tiling.chip_px
        ready = f"forward pass made ready, {plan.precision}"
        name = "the CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        print(f"machine: {machine()}; {arguments.threads} threads, on {name} in {plan.precision}, {plan.batch} chips")
        chips = torch.randn(plan.batch, len(plan.bands), side, side, device=device)
        plain = plan.bundle.load_network().to(device)
        made_ready = Predictor(plan.bundle.load_network(), device, plan.dtype).network
        ready_chips = chips.to(plan.dtype, memory_format=torch.channels_last)
        on_swaths = Predictor(OnSwaths(plan.bundle.load_network(), plan.tiling.stride_px), device, plan.dtype).network
        length, width = plan.tiling.swath_shape
        swaths = torch.randn(plan.tiling.swaths_of(plan.batch), len(plan.bands), side, width, device=device)
        swaths = swaths.to(plan.dtype, memory_format=torch.channels_last)
        passes: dict[str, Callable[[], object]] = {
            PLAIN: lambda: plain(chips),
            ready: lambda: made_ready(ready_chips),
            SWATHS: lambda: on_swaths(swaths),
        }
        if device.type == "cpu" and importlib.util.find_spec("openvino") is not None:
            passes[OPENVINO] = by_openvino(plain, chips, plan.dtype, arguments.threads)
        batches = {f"made ready, {count} chips": count for count in BATCHES[device.type]}
        for label, count in batches.items():
            some_chips = torch.randn(count, len(plan.bands), side, side, device=device)
            some_chips = some_chips.to(plan.dtype, memory_format=torch.channels_last)
            passes[label] = partial(made_ready, some_chips)
        seconds: dict[str, list[float]] = {label: [] for label in passes}
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                plain(chips[:1])
            for some in passes.values():
                some()
            for _ in range(ROUNDS):
                for label, some in passes.items():
                    seconds[label].append(seconds_of(some, device))
        operations_per_px = counter.get_total_flops() / side**2
        print(f"operations of the plain pass: {operations_per_px * 512**2 / 1e9:.0f} GFLOP for 512 x 512 pixels")
        chips_in = batches | {SWATHS: len(swaths) * length}
        per_chip = {
            label: statistics.median(times) / chips_in.get(label, plan.batch) for label, times in seconds.items()
        }
        per_chip["reading the scene"] = seconds_of(lambda: read_all(plan), device) / plan.tiling.chip_count
        per_chip[MAPPING] = seconds_of(lambda: map_labels(plan, Path(folder)), device) / plan.tiling.chip_count
        if plan.dtype != torch.float32:
            same = float((labels_of(plan) == labels_of(replace(plan, dtype=torch.float32))).mean())
            print(f"{f'labels of {plan.precision} as in fp32':36} {same:7.2%}")
    for label, time_s in per_chip.items():
        px_per_s = side**2 / time_s
        is_whole = label in passes and label != SWATHS
        work = f"{operations_per_px * px_per_s / 1e12:7.2f} TFLOP/s" if is_whole else ""
        print(f"{label:36} {px_per_s / 1e6:7.2f} Mpx/s {work}".rstrip())
    plain_s, ready_s = per_chip[PLAIN], per_chip[ready]
    print(f"{'made ready against plain':36} {plain_s / ready_s:7.2f}")
    if OPENVINO in per_chip:
        print(f"{'made ready against OpenVINO':36} {per_chip[OPENVINO] / ready_s:7.2f}")
    print(f"{'in swaths against made ready':36} {ready_s / per_chip[SWATHS]:7.2f}")
    print(f"{'mapping against made ready':36} {ready_s / per_chip[MAPPING]:7.2f}")


if __name__ == "__main__":
    main()
