import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landseg import __version__
from landseg.doctor import examine
from tests.conftest import Landseg, SceneMaker


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["train"],
        ["evaluate"],
        ["models", "list"],
        ["models", "calibrate"],
        ["report"],
        ["style"],
        ["doctor"],
    ],
)
def test_help(landseg: Landseg, command: list[str]) -> None:
    outcome = landseg(*command, "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_version(landseg: Landseg) -> None:
    assert landseg("--version").out.strip() == f"landseg {__version__}"


def imported_by(*arguments: str) -> set[str]:
    program = (
        "import sys\n"
        f"sys.argv = ['landseg', *{list(arguments)!r}]\n"
        "from landseg.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('MODULES', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MODULES")]
    return set(line.split()[1:])


def test_help_imports_nothing_heavy() -> None:
    assert not imported_by("--help") & {"torch", "numba", "rasterio", "geopandas", "numpy", "pydantic", "matplotlib"}


def test_mapping_imports_nothing_of_training(
    make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    modules = imported_by(
        "run", str(make_scene(city)), "--out", str(tmp_path / "map.gpkg"), "--model", str(small_bundle), "--quiet"
    )
    assert (tmp_path / "map.gpkg").exists()
    assert "torch" in modules
    assert not modules & {"torchvision", "torchgeo", "lightning", "torchmetrics"}


def test_json_is_the_result_for_scripts(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    outcome = landseg("run", make_scene(city), "--out", tmp_path / "map.gpkg", "--model", small_bundle, "--json")
    result = json.loads(outcome.out)
    assert {area["class_name"] for area in result["areas"]} == {"building", "park", "water"}
    assert sum(area["share"] for area in result["areas"]) == pytest.approx(1)
    assert result["valid_pixels"] == 120 * 150
    assert all(Path(path).exists() for path in result["outputs"])
    assert "mapping" in outcome.err


def test_dry_run_prints_the_plan_and_writes_nothing(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    scene = make_scene(city)
    arguments = ("run", scene, "--out", tmp_path / "map.gpkg", "--model", small_bundle, "--dry-run")
    outcome = landseg(*arguments)
    for word in ("grid", "chips", "memory", "disk", "time"):
        assert word in outcome.out
    assert json.loads(landseg(*arguments, "--json").out)["seconds"] >= 0
    assert list(tmp_path.iterdir()) == [scene]


def test_a_dry_run_tells_the_plan_though_outputs_exist(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "map.gpkg").write_text("precious")
    options = ("--out", tmp_path / "map.gpkg", "--model", small_bundle, "--dry-run", "--json")
    outcome = landseg("run", make_scene(city), *options)
    assert outcome.code == 2
    assert "map.gpkg exists already" in outcome.err
    assert json.loads(outcome.out)["chips"]["count"] > 1


def test_options_come_before_the_file_s(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {small_bundle}\noverlap: 0.5\nbatch: 3\n")
    outcome = landseg(
        "run",
        make_scene(city),
        "--out",
        tmp_path / "map.gpkg",
        "--config",
        config,
        "--overlap",
        "0",
        "--dry-run",
        "--json",
    )
    chips = json.loads(outcome.out)["chips"]
    assert (chips["overlap_px"], chips["batch"]) == (0, 3)


def test_a_model_s_card(landseg: Landseg, small_bundle: Path) -> None:
    assert "Small model for tests" in landseg("models", "show", small_bundle).out
    card = json.loads(landseg("models", "show", small_bundle, "--json").out)
    assert card["properties"]["mlm:name"] == "small"


@pytest.mark.parametrize(("figure", "says"), [("scores.pdf", "does not end in .png"), ("none/scores.png", "mkdir")])
def test_figures_that_could_not_be_written_are_refused_first(
    landseg: Landseg, small_bundle: Path, tmp_path: Path, figure: str, says: str
) -> None:
    arguments = ("--scene", "s.tif", "--labels", "l.tif", "--model", small_bundle, "--figure", tmp_path / figure)
    outcome = landseg("evaluate", *arguments)
    assert outcome.code == 2
    assert says in outcome.err


def test_a_style_is_written_in_the_form_that_its_suffix_asks_for(
    landseg: Landseg, small_bundle: Path, tmp_path: Path
) -> None:
    for name, begins in (("city.qml", "<qgis"), ("city.sld", "<sld:StyledLayerDescriptor")):
        done = landseg("style", "export", "--model", small_bundle, "--out", tmp_path / name)
        assert (done.code, done.out.strip()) == (0, str(tmp_path / name))
        written = (tmp_path / name).read_text(encoding="utf-8")
        assert written.startswith(begins)
        assert "#d55e00" in written
    assert landseg("style", "export", "--out", tmp_path / "city.qml").code == 2
    refused = landseg("style", "export", "--out", tmp_path / "city.lyr")
    assert refused.code == 2
    assert ".qml" in refused.err


def test_doctor(landseg: Landseg) -> None:
    findings = json.loads(landseg("doctor", "--json").out)
    assert findings["landseg"] == __version__
    assert "GTiff" in findings["gdal"]
    assert "runs on" in landseg("doctor").out


def test_a_doctor_survives_a_driver_that_is_too_old_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert examine()["gpu"] == "none that torch can use"


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--label-values", "0"),
        ("--label-values", "=building"),
        ("--label-values", "0=castle"),
        ("--ignored-values", "0,"),
    ],
)
def test_label_values_that_make_no_sense(landseg: Landseg, small_bundle: Path, option: str, text: str) -> None:
    outcome = landseg("evaluate", "--scene", "s.tif", "--labels", "l.tif", "--model", small_bundle, option, text)
    assert outcome.code == 2
    assert option in outcome.err


def test_a_report_does_not_take_the_place_of_a_map(landseg: Landseg, tmp_path: Path) -> None:
    (tmp_path / "map.gpkg").write_text("a map")
    outcome = landseg("report", tmp_path / "map.gpkg", "--out", tmp_path / "map.gpkg", "--overwrite")
    assert outcome.code == 2
    assert "does not end in .html" in outcome.err
    assert (tmp_path / "map.gpkg").read_text() == "a map"
