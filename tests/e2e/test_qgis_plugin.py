"""The QGIS plugin as it is built and installed, run by QGIS' own ``qgis_process``."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import pytest

from landseg.model.bundle import DEFAULT_MODEL, read_bundle
from landseg.train.samples import Pair
from tests.conftest import DEMO_LABELS, DEMO_SCENE, ROOT
from tests.e2e.real_qgis import PROCESS, PYTHON, in_qgis, look, needs_qgis

pytestmark = needs_qgis

PLUGINS = Path(".local/share/QGIS/QGIS3/profiles/default/python/plugins")
SETTINGS = Path(".local/share/QGIS/QGIS3/profiles/default/QGIS/QGIS3.ini")

Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which QGIS has the plugin, installed from what ``make plugin`` builds."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(ROOT / "Makefile", home)
    shutil.copytree(ROOT / "qgis_plugin", home / "qgis_plugin")
    subprocess.run(["make", "plugin", f"PYTHON={sys.executable}"], cwd=home, check=True, capture_output=True)
    (home / PLUGINS).mkdir(parents=True)
    with zipfile.ZipFile(home / "dist/landseg-qgis.zip") as archive:
        archive.extractall(home / PLUGINS)
    assert in_qgis(home, PROCESS, "plugins", "enable", "landseg").returncode == 0
    return home


@pytest.fixture(scope="module")
def command_folder(home: Path) -> Path:
    """A folder with the command ``landseg``: that of this checkout, whichever one is installed."""
    command = home / "bin/landseg"
    command.parent.mkdir()
    installed = shlex.quote(str(Path(sys.executable).with_name("landseg")))
    command.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {installed} "$@"\n')
    command.chmod(0o755)
    return command.parent


@pytest.fixture(scope="module")
def process(home: Path, command_folder: Path) -> Process:
    """Run an algorithm with ``landseg`` on the PATH."""

    def run(algorithm: str, **parameters: object) -> "subprocess.CompletedProcess[str]":
        given = [f"--{name}={value}" for name, value in parameters.items()]
        path = f"{command_folder}:{os.defpath}"
        return in_qgis(home, PROCESS, "run", f"landseg:{algorithm}", *given, PATH=path)

    return run


@pytest.fixture(scope="module")
def pair(home: Path) -> Pair:
    """Copies of the demo's scene and labels: QGIS writes statistics beside the rasters that it opens."""
    return Pair(*(Path(shutil.copy(path, home)) for path in (DEMO_SCENE, DEMO_LABELS)))


def results_of(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.split("Results\n----------------")[1].strip().splitlines()
    return dict(line.split(":\t") for line in lines)


def classes_of_the_default_model() -> list[list[Any]]:
    return [[c.class_id, c.name, c.colour] for c in read_bundle(DEFAULT_MODEL).card.legend]


def test_map_land_use_on_the_demo_s_scene(process: Process, home: Path, pair: Pair) -> None:
    done = process("map_land_use", SCENE=pair.scene, MIN_AREA=50, OUTPUT=home / "city.gpkg")

    results = results_of(done)
    assert results == {"OUTPUT": str(home / "city.gpkg"), "LABELS": str(home / "city.tif")}
    # What landseg says is passed on, and moves the bar.
    assert "landseg: drawing polygons" in done.stdout
    assert "80...90..." in re.sub("landseg: .*\n", "", done.stdout)
    seen = look(home, *results.values())
    assert seen["city.gpkg"]["classes"] == classes_of_the_default_model()
    assert seen["city.tif"]["classes"] == classes_of_the_default_model()
    layer = geopandas.read_file(results["OUTPUT"], layer="landuse")
    assert layer.area_m2.min() >= 49.9


def test_options_come_from_the_file_where_they_are_not_set(process: Process, home: Path, corner: Pair) -> None:
    options = home / "options.yaml"
    options.write_text("min_area: 500m2\nsimplify: 1m\n")
    used = []
    for given in ({}, {"MIN_AREA": 0}):
        results_of(process("map_land_use", SCENE=corner.scene, CONFIG=options, OUTPUT=home / "corner.gpkg", **given))
        config = json.loads((home / "corner.json").read_text())["properties"]["landseg:config"]
        used.append((config["min_area"], config["simplify"]))
    assert used == [(500, 1), (0, 1)]


def test_polygonize_classes(process: Process, home: Path, pair: Pair) -> None:
    done = process("polygonize_classes", LABELS=pair.labels, MIN_AREA=1000, SIMPLIFY=2, OUTPUT=home / "labels.gpkg")

    polygons = results_of(done)["OUTPUT"]
    seen = look(home, polygons, check=polygons)["labels.gpkg"]
    assert len(seen["classes"]) == 5
    assert seen["faults"] == []
    layer = geopandas.read_file(home / "labels.gpkg", layer="landuse")
    assert 10 < len(layer) < 300


def test_evaluate_map(process: Process, home: Path, corner: Pair) -> None:
    values = "0=building,1=land,2=road,3=vegetation,4=water"
    done = process(
        "evaluate_map",
        SCENE=corner.scene,
        LABELS=corner.labels,
        LABEL_VALUES=values,
        OUTPUT=home / "scores.json",
        FIGURE=home / "scores.png",
    )

    results = results_of(done)
    scores = json.loads((home / "scores.json").read_text())
    assert float(results["MIOU"]) == pytest.approx(scores["miou"], abs=1e-6)
    assert float(results["OVERALL_ACCURACY"]) == pytest.approx(scores["overall_accuracy"], abs=1e-6)
    assert "IoU of building: 0." in done.stdout
    assert (home / "scores.png").stat().st_size > 10_000


def test_what_landseg_refuses_is_said_in_its_words(process: Process, home: Path, pair: Pair) -> None:
    done = process("map_land_use", SCENE=pair.scene, MODEL="no-such-model", OUTPUT=home / "refused.gpkg")
    assert done.returncode != 0
    assert "no-such-model" in done.stdout + done.stderr
    assert not (home / "refused.gpkg").exists()


def test_the_command_s_place_can_be_a_setting(home: Path, command_folder: Path, pair: Pair) -> None:
    arguments = ("run", "landseg:map_land_use", f"--SCENE={pair.scene}", "--MODEL=none", f"--OUTPUT={home / 'x.gpkg'}")
    nowhere = in_qgis(home, PROCESS, *arguments)
    assert "Settings > Options > Processing > Providers > landseg" in nowhere.stdout + nowhere.stderr

    settings = home / SETTINGS
    before = settings.read_text()
    settings.write_text(f"{before}\n[Processing]\nConfiguration\\LANDSEG_COMMAND={command_folder / 'landseg'}\n")
    found = in_qgis(home, PROCESS, *arguments)
    settings.write_text(before)
    assert "there is no model 'none'" in found.stdout + found.stderr


def test_cancelling_ends_the_command_in_order(home: Path, command_folder: Path) -> None:
    folder = home / "cancelled"
    folder.mkdir()
    script = Path(__file__).with_name("qgis_cancel.py")
    modules = f"{home / PLUGINS}:/usr/share/qgis/python/plugins"
    path = f"{command_folder}:{os.defpath}"

    done = in_qgis(home, PYTHON, script, DEMO_SCENE, folder / "map.gpkg", PATH=path, PYTHONPATH=modules)

    assert done.stdout.startswith("landseg: stopped; nothing was written"), done.stderr
    # The work folder stays: the same run goes on from there.
    assert {path.name for path in folder.iterdir()} <= {"map.gpkg.landseg"}
