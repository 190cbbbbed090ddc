import json
import sys
from pathlib import Path

import pytest

from benchmarks import pyramid
from benchmarks.pyramid import BINS, CONFIG, spread, summarise, table, variant
from landseg.config import TrainConfig, load_config


@pytest.fixture
def base() -> TrainConfig:
    return load_config(CONFIG, TrainConfig)


def test_variants_differ_in_bins_alone(base: TrainConfig) -> None:
    made = {name: variant(base, bins, 2, Path("here")).model_dump() for name, bins in BINS.items()}

    assert {name: values["architecture"].pop("bins") for name, values in made.items()} == {
        "none": (), "1": (1,), "1-2-3-6": (1, 2, 3, 6),
    }  # fmt: skip
    assert made["none"] == made["1"] == made["1-2-3-6"]
    assert (made["none"]["out"], made["none"]["optimisation"]["seed"]) == (Path("here"), 2)


def test_no_tile_is_both_trained_on_and_held_out(base: TrainConfig) -> None:
    seen, held_out = ({str(pair.scene) for pair in pairs} for pairs in (base.data.training, base.data.held_out))

    assert seen == {f"dubai_tile{n}.tif" for n in (1, 3, 4, 8)}
    assert held_out == {f"dubai_tile{n}.tif" for n in (2, 5)}


def test_the_spread_is_of_a_sample() -> None:
    assert spread([0.2, 0.4, 0.6]) == {"runs": [0.2, 0.4, 0.6], "mean": pytest.approx(0.4), "std": pytest.approx(0.2)}
    assert spread([0.3])["std"] is None


def test_the_table_has_a_row_for_each_method() -> None:
    runs = [{"miou": 0.5, "iou": {"road": 0.1, "water": 0.9}}, {"miou": 0.6, "iou": {"road": 0.3, "water": 0.9}}]

    assert table({"none": summarise(runs), "1": summarise(runs[1:])}).splitlines() == [
        "| method | mIoU | road | water |",
        "| --- | ---: | ---: | ---: |",
        "| no pyramid | 0.550 ± 0.071 | 0.200 ± 0.141 | 0.900 ± 0.000 |",
        "| pyramid of bin 1 | 0.600 | 0.300 | 0.900 |",
    ]


def test_finished_runs_are_read_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        for number, method in enumerate(("forest", *BINS)):
            scores = {"miou": 0.1 * number + 0.01 * seed, "iou": {"road": 0.5}}
            (tmp_path / f"{method}-{seed}.json").write_text(json.dumps(scores))
    monkeypatch.setattr(sys, "argv", ["pyramid", "--out", str(tmp_path), "--seeds", "2", "--json"])

    pyramid.main()

    methods = json.loads(capsys.readouterr().out)["methods"]
    assert [methods[name]["mIoU"]["mean"] for name in ("forest", *BINS)] == pytest.approx([0.015, 0.115, 0.215, 0.315])
    assert methods["1-2-3-6"]["mIoU"]["runs"] == pytest.approx([0.31, 0.32])
