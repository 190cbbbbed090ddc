"""The demo's map, made once for all that look at it."""

import subprocess
import sys
from pathlib import Path

import pytest

from landseg.outputs.paths import OutputPaths
from tests.conftest import DEMO_SCENE


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[OutputPaths, str]:
    """Map the demo outside of the repository; give the products and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    options = ("--out", "landuse.gpkg", "--picture", "--qgis-project")
    command = [Path(sys.executable).with_name("landseg"), "run", DEMO_SCENE, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return OutputPaths.of(folder / "landuse.gpkg", picture=True, project=True), done.stdout
