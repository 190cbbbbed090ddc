"""Map a scene by landseg and by geo-inference with the same network, and compare their processor time.

    python3 -m venv .venv-geo-inference && .venv-geo-inference/bin/pip install geo-inference==3.2.4
    python -m benchmarks.geo_inference .venv-geo-inference/bin/python [--scene SCENE.tif] [--model NAME|FOLDER]

Each works as it does by default, in a process of its own on one thread: geo-inference with chips of the model's size,
its fixed overlap of one half and the network as TorchScript, landseg with its default overlap, at the precision that it
chooses. Both write a raster of labels; start-up and polygons are left out. What the maps show is not compared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarks.large_scene import DEMO, machine
from landseg.config import RunConfig
from landseg.model.bundle import Bundle, FromPixels, read_bundle

MEASURED = """
import json, os, resource, sys, time
import torch
torch.set_num_threads(1)
{prepare}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
{work}
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"seconds": seconds, "grown_bytes": (peak - before) * 1024}}))
"""

GEO_INFERENCE = MEASURED.format(
    prepare="""
from geo_inference.geo_inference import GeoInference
scene, network, classes, chip_px, folder = sys.argv[1:]
infer = GeoInference(model=network, work_dir=folder, device="cpu", num_classes=int(classes))
""",
    work="infer(inference_input=scene, patch_size=int(chip_px), workers=1)",
)

LANDSEG = MEASURED.format(
    prepare="""
from pathlib import Path
from landseg.config import RunConfig
from landseg.run import build_plan, map_labels
scene, model, folder = sys.argv[1:]
plan = build_plan(scene, Path(folder) / "map.gpkg", RunConfig(model=model, device="cpu"))
""",
    work="map_labels(plan, Path(folder))",
)


def write_torchscript(bundle: Bundle, path: Path) -> None:
    """Write what geo-inference reads."""
    card = bundle.card
    chip = torch.zeros(1, len(card.bands), card.chip_px, card.chip_px, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        # See `landseg.model.export.export_torchscript`.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(FromPixels(bundle), chip, check_trace=False), path)


def measure(python: str | Path, program: str, *arguments: str | int | Path) -> dict[str, float]:
    """Run a program of `MEASURED` and give what it measured."""
    command = [python, "-c", program, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="interpreter of an environment with geo-inference")
    parser.add_argument("--scene", type=Path, default=DEMO)
    parser.add_argument("--model", default=RunConfig().model)
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network.pt"
        write_torchscript(bundle, network)
        theirs = measure(
            *(arguments.python.absolute(), GEO_INFERENCE, arguments.scene.resolve()),
            *(network, len(bundle.card.legend), bundle.card.chip_px, folder),
        )
        ours = measure(sys.executable, LANDSEG, arguments.scene.resolve(), arguments.model, folder)
    print(f"machine: {machine()}; one thread")
    for name, figures in (("geo-inference", theirs), ("landseg", ours)):
        grown_mb = figures["grown_bytes"] / 1e6
        print(f"{name:14} {figures['seconds']:6.1f} s of processor time, {grown_mb:6.0f} MB more than before")
    print(f"times as fast: {theirs['seconds'] / ours['seconds']:.1f}")


if __name__ == "__main__":
    main()
