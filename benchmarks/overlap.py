"""Say how the labels change with the overlap of the chips: the share that differs from those at an overlap of one half.

    python -m benchmarks.overlap [--scene SCENE.tif] [--model NAME|FOLDER]

docs/performance.md says what follows from it for the default.
"""

import argparse
import tempfile
from pathlib import Path

import rasterio

from benchmarks.large_scene import DEMO, machine
from landseg.config import RunConfig
from landseg.run import build_plan, map_labels

OVERLAPS = (0.5, 0.375, 0.25, 0.125, 0.0)


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=DEMO)
    parser.add_argument("--model", default=RunConfig().model)
    arguments = parser.parse_args()
    print(f"machine: {machine()}")
    reference = None
    for overlap in OVERLAPS:
        with tempfile.TemporaryDirectory() as folder:
            config = RunConfig(model=arguments.model, overlap=overlap)
            plan = build_plan(str(arguments.scene), Path(folder) / "map.gpkg", config)
            with rasterio.open(map_labels(plan, Path(folder))) as file:
                labels = file.read(1)
        reference = labels if reference is None else reference
        changed = (labels != reference).mean()
        print(
            f"overlap {overlap:5.1%}: {plan.tiling.chip_count:5} chips, {changed:.2%} of the labels changed", flush=True
        )


if __name__ == "__main__":
    main()
