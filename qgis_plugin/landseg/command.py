"""Calls the command ``landseg`` in its own environment, with progress and cancellation passed through."""

import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import time

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import QgsProcessingException

COMMAND_SETTING = "LANDSEG_COMMAND"

# What QGIS sets for its own Python, GDAL and PROJ would mislead those that landseg brings.
OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_DATA", "PROJ_LIB")

MAPPED = re.compile(r"mapping: (\d+) %")
MAPPING_PERCENT = 90
"""What mapping takes of the progress bar; the rest is for what follows it."""

FOLLOWING = {"writing the raster": 90, "drawing polygons": 92, "writing the outputs": 98}
"""Where the progress bar stands when landseg says that it has come to these."""

POLL_S = 0.2
"""How soon a click on Cancel is seen."""

PATIENCE_S = 5
"""Seconds that landseg has to finish the strip at hand, when it is cancelled; then that strip is given up."""


def run_landseg(arguments, feedback):
    """Run landseg and give what it wrote to stdout.

    Parameters
    ----------
    arguments
        What follows ``landseg`` on the command line.
    feedback
        Told what landseg says on stderr; asked whether to go on.

    Raises
    ------
    QgsProcessingException
        If landseg is not there, fails or was cancelled; the message is landseg's own.
    """
    command = [find_command(), *map(str, arguments)]
    feedback.pushCommandInfo(subprocess.list2cmdline(command))
    environment = {name: value for name, value in os.environ.items() if name not in OF_QGIS}
    environment["PYTHONUTF8"] = "1"
    with tempfile.TemporaryFile(mode="w+", encoding="utf-8") as out:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            env=environment,
            encoding="utf-8",
            errors="replace",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        ) as process:
            said = _follow(process, feedback)
        if process.returncode != 0:
            raise QgsProcessingException(_last_words(said) or f"landseg ended with code {process.returncode}")
        out.seek(0)
        return out.read()


def find_command():
    """Give the path of landseg: from the settings, else on the PATH."""
    command = ProcessingConfig.getSetting(COMMAND_SETTING) or shutil.which("landseg")
    if not command:
        raise QgsProcessingException(
            "The command landseg is not on the PATH. Install it (see the README of landseg), then name it under "
            "Settings > Options > Processing > Providers > landseg."
        )
    return command


def _follow(process, feedback):
    """Pass on what the process says until it ends; give it as lines."""
    lines = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line.rstrip()) for line in process.stderr], daemon=True)
    reader.start()
    said, wishes = [], _wishes_to_stop()
    while reader.is_alive() or not lines.empty():
        if feedback.isCanceled() and next(wishes):
            process.terminate()
        try:
            line = lines.get(timeout=POLL_S)
        except queue.Empty:
            continue
        said.append(line)
        feedback.pushInfo(line)
        progress = _progress(line)
        if progress is not None:
            feedback.setProgress(progress)
    return said


def _wishes_to_stop():
    """Say whether it is time to ask landseg to stop: at once, and once more when `PATIENCE_S` are over.

    Asked once it stops when a strip is done, asked twice where it is. A third time would disturb its tidying up.
    """
    begin = time.monotonic()
    yield True
    while time.monotonic() - begin < PATIENCE_S:
        yield False
    yield True
    while True:
        yield False


def _last_words(said):
    """Give what landseg said last: an error and what to do about it."""
    begins = [index for index, line in enumerate(said) if line.startswith("landseg: ")]
    return "\n".join(said[begins[-1] if begins else 0 :])


def _progress(line):
    """Give the percent that a line of landseg's stands for, or None."""
    mapped = MAPPED.search(line)
    if mapped:
        return MAPPING_PERCENT * int(mapped[1]) / 100
    return FOLLOWING.get(line.removeprefix("landseg: "))
