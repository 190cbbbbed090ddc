"""Train the same network with and without its pyramid and print how well each maps tiles that it never saw.

    python -m benchmarks.pyramid [--data-root data/dubai] [--out runs/pyramid] [--json]

What is trained, and on what, stands in pyramid.yaml. Runs that are finished are not run again, and one that was
interrupted goes on from its last checkpoint.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from landseg.config import TrainConfig, load_config, override
from landseg.train.job import train

CONFIG = Path(__file__).with_suffix(".yaml")
BINS: dict[str, tuple[int, ...]] = {"none": (), "1": (1,), "1-2-3-6": (1, 2, 3, 6)}
"""Name of a variant -> the bins of its pyramid."""
SEEDS = (1, 2, 3)


def variant(base: TrainConfig, bins: tuple[int, ...], seed: int, out: Path, data_root: Path) -> TrainConfig:
    """Make the configuration of one run: the base's but for bins, seed and folders."""
    return override(
        base,
        {
            "out": out,
            "data": base.data.model_dump() | {"root": data_root},
            "architecture": base.architecture.model_dump() | {"bins": bins},
            "optimisation": base.optimisation.model_dump() | {"seed": seed},
        },
    )


def network_scores(config: TrainConfig) -> dict[str, Any]:
    """Train a network and give what its card says about the held-out tiles."""
    return dict(train(config, quiet=True).card.held_out)


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of the tiles, by default data/dubai")
    parser.add_argument("--out", type=Path, help="folder of the runs, by default runs/pyramid")
    arguments = parser.parse_args()
    base = load_config(CONFIG, TrainConfig)
    out, data_root = arguments.out or base.out, arguments.data_root or base.data.root
    # Seeds outermost: stopped at any time, all variants have had nearly the same number of runs.
    for seed in SEEDS:
        for name, bins in BINS.items():
            file = out / f"{name}-{seed}.json"
            if not file.exists():
                scores = network_scores(variant(base, bins, seed, out / f"{name}-{seed}", data_root))
                file.write_text(json.dumps(scores, indent=2), encoding="utf-8")
            print(name, seed, json.loads(file.read_text(encoding="utf-8"))["miou"], flush=True)


if __name__ == "__main__":
    main()
