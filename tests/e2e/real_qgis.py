"""The real QGIS, of the Debian packages ``qgis`` and ``python3-qgis``, without a screen."""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PYTHON = Path("/usr/bin/python3")
# Debian's qgis_process is a script that gives this program an option which it does not know.
PROCESS = Path("/usr/bin/qgis_process.bin")
SESSION = Path(__file__).with_name("qgis_session.py")


@cache
def has_qgis() -> bool:
    if not (PYTHON.exists() and PROCESS.exists()):
        return False
    return subprocess.run([PYTHON, "-c", "import qgis.core"], capture_output=True, check=False).returncode == 0


needs_qgis = pytest.mark.skipif(not has_qgis(), reason="QGIS is not installed: apt-get install qgis python3-qgis")


def in_qgis(home: Path, program: Path, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a program of QGIS' with a home of its own, so that no one's settings matter."""
    home.chmod(0o700)
    own = {"PATH": os.defpath, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "QT_QPA_PLATFORM": "offscreen"}
    environment = own | variables
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=home, env=environment)


def look(home: Path, *sources: object, check: object = "") -> dict[str, Any]:
    """Open layers and projects; tell what QGIS sees by file name, and draw each into ``<home>/<file name>.png``.

    A style among the sources is applied to the layer before it. Of a raster ``<home>/<file name>.sld`` is what QGIS
    writes of its look. ``check`` is the one among the sources whose geometries are to be checked too.
    """
    done = in_qgis(home, PYTHON, SESSION, home, check, *sources)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
