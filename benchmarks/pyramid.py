"""Train the same network with and without its pyramid and print how well each maps tiles that it never saw.

    python -m benchmarks.pyramid [--data-root data/dubai] [--out runs/pyramid] [--seeds 3] [--json]

What is trained, and on what, stands in pyramid.yaml; a random forest, pixel by pixel, is the floor. Runs that
are finished are not run again, and a training that was interrupted goes on from its last checkpoint.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.forest import evaluate_forest, fit_forest
from benchmarks.large_scene import machine
from landseg.config import ArchitectureConfig, PairConfig, TrainConfig, legend_of, load_config, override
from landseg.train.job import train
from landseg.train.material import label_codes
from landseg.train.samples import Pair

CONFIG = Path(__file__).with_suffix(".yaml")
FOREST = "forest"
BINS: dict[str, tuple[int, ...]] = {"none": (), "1": (1,), "1-2-3-6": (1, 2, 3, 6)}
"""Name of a variant of the network -> the bins of its pyramid."""
TITLES = {
    FOREST: "random forest, pixel by pixel",
    "none": "no pyramid",
    "1": "pyramid of bin 1",
    "1-2-3-6": "pyramid of bins 1, 2, 3, 6",
}
"""Name of a method -> what its row of the table is called."""

Spread = Mapping[str, Any]
"""``runs``, a figure for each seed, their ``mean`` and sample standard deviation ``std``; None for a single run."""


def variant(base: TrainConfig, bins: tuple[int, ...], seed: int, out: Path) -> TrainConfig:
    """Make the configuration of one run: the base's but for bins, seed and folder."""
    architecture = base.architecture or ArchitectureConfig()
    return override(
        base,
        {
            "out": out,
            "architecture": architecture.model_dump() | {"bins": bins},
            "optimisation": base.optimisation.model_dump() | {"seed": seed},
        },
    )


def forest_scores(config: TrainConfig, seed: int) -> dict[str, Any]:
    """Train a forest on the configuration's training pairs and score it on those held out."""
    legend = legend_of(config.legend)
    codes = label_codes(config.data.label_values, legend, config.data.ignored_values)

    def located(pairs: Sequence[PairConfig]) -> list[Pair]:
        return [Pair(config.data.root / p.scene, config.data.root / p.labels) for p in pairs]

    forest = fit_forest(located(config.data.training), codes, seed)
    return evaluate_forest(forest, located(config.data.held_out), codes).to_dict(legend)


def run(base: TrainConfig, method: str, seed: int, out: Path) -> dict[str, Any]:
    """Score a method on all held-out pairs together, or read what an earlier run of it wrote.

    Returns
    -------
    dict
        As of `landseg.train.evaluate.Scores.to_dict`.
    """
    file = out / f"{method}-{seed}.json"
    if not file.exists():
        print(f"running {method}, seed {seed}", file=sys.stderr, flush=True)
        if method == FOREST:
            scores = forest_scores(base, seed)
        else:
            bundle = train(variant(base, BINS[method], seed, out / f"{method}-{seed}"), quiet=True)
            scores = dict(bundle.card.held_out)
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(scores, indent=2), encoding="utf-8")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def spread(runs: Sequence[float]) -> Spread:
    """Sum up one figure over the seeds."""
    return {
        "runs": list(runs),
        "mean": statistics.fmean(runs),
        "std": statistics.stdev(runs) if len(runs) > 1 else None,
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Sum up the mean IoU, under ``mIoU``, and the IoU of each class over a method's runs."""
    classes = runs[0]["iou"]
    return {"mIoU": spread([one["miou"] for one in runs])} | {
        name: spread([one["iou"][name] for one in runs]) for name in classes
    }


def table(summaries: Mapping[str, Mapping[str, Spread]]) -> str:
    """Write a row for each method as Markdown."""
    figures = list(next(iter(summaries.values())))
    lines = [["method", *figures], ["---", *["---:"] * len(figures)]]
    for method, summary in summaries.items():
        lines.append([TITLES[method], *[_shown(summary[figure]) for figure in figures]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(figure: Spread) -> str:
    return f"{figure['mean']:.3f}" + ("" if figure["std"] is None else f" ± {figure['std']:.3f}")


def main() -> None:
    """Parse, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of the tiles, by default data/dubai")
    parser.add_argument("--out", type=Path, help="folder of the runs, by default runs/pyramid")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method")
    parser.add_argument("--json", action="store_true", help="print every run's figures as JSON")
    arguments = parser.parse_args()
    base = load_config(CONFIG, TrainConfig)
    if arguments.data_root is not None:
        base = override(base, {"data": base.data.model_dump() | {"root": arguments.data_root}})
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in TITLES}
    # Seeds outermost: stopped at any time, all methods have had nearly the same number of runs.
    for seed in range(1, arguments.seeds + 1):
        for method, finished in runs.items():
            finished.append(run(base, method, seed, arguments.out or base.out))
    summaries = {method: summarise(finished) for method, finished in runs.items()}
    if arguments.json:
        print(json.dumps({"machine": machine(), "methods": summaries}, indent=2))
    else:
        print(f"machine: {machine()}\n\n{table(summaries)}")


if __name__ == "__main__":
    main()
