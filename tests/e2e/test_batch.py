"""The installed command on a batch in which one scene is corrupt, one is current and one times out."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tests.conftest import SceneMaker

SECRET = "sig=c2VjcmV0"
HOOK = "/hooks/T0P5ECRET"


class _Handler(SimpleHTTPRequestHandler):
    """Serves files once it is told to be well, and never answers before; takes posts."""

    well: Synchronized

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def do_HEAD(self) -> None:
        self._answer(super().do_HEAD)

    def _answer(self, answer: Any) -> None:
        if self.well.value:
            answer()
        else:
            time.sleep(30)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        (Path(self.directory) / "posted.jsonl").open("ab").write(content + b"\n")
        self.send_response(200 if self.path == HOOK else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def serve(folder: str, port: Synchronized, well: Synchronized) -> None:
    _Handler.well = well
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder)) as server:
        server.daemon_threads = True
        port.value = server.server_port
        server.serve_forever()


@dataclass(frozen=True)
class Server:
    folder: Path
    url: str
    well: Synchronized

    @property
    def posted(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "posted.jsonl").read_text().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    port, well = context.Value("i", 0), context.Value("b", 0)
    process = context.Process(target=serve, args=(str(folder), port, well), daemon=True)
    process.start()
    while not port.value:
        assert process.is_alive()
        time.sleep(0.01)
    yield Server(folder, f"http://127.0.0.1:{port.value}", well)
    process.terminate()
    process.join()


def batch(pipeline: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("landseg"), "batch", pipeline, *options]
    patience = {"GDAL_HTTP_TIMEOUT": "1", "GDAL_HTTP_MAX_RETRY": "0"}
    return subprocess.run(command, env=os.environ | patience | environment, capture_output=True, text=True, check=False)


def test_six_scenes(
    server: Server, make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> None:
    names = ["corrupt", "current", "far", "one", "three", "two"]
    scenes = {name: make_scene(city[:, :48, i * 20 : i * 20 + 50], f"{name}.tif") for i, name in enumerate(names)}
    intact = scenes["corrupt"].read_bytes()
    scenes["corrupt"].write_bytes(intact[:300])
    scenes["far"].rename(server.folder / "far.tif")
    pipeline = tmp_path / "six.yaml"
    content = {"out": "maps", "model": str(small_bundle), "device": "cpu", "attempts": 2, "wait_s": 0.1}
    far = f"{server.url}/far.tif?{SECRET}"
    pipeline.write_text(yaml.safe_dump(content | {"scenes": {"files": ["current.tif"]}}))
    assert batch(pipeline).returncode == 0
    pipeline.write_text(yaml.safe_dump(content | {"scenes": {"files": ["*.tif", far]}}))

    first = batch(pipeline, "--log-json", LANDSEG_WEBHOOK=server.url + HOOK)

    assert first.returncode == 5, first.stderr
    report = json.loads((tmp_path / "maps/run.json").read_text())
    entries = {entry["name"]: entry for entry in report["entries"]}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "corrupt": "failed", "current": "current", "far": "failed", "one": "mapped", "three": "mapped", "two": "mapped",
    }  # fmt: skip
    assert (entries["far"]["attempts"], entries["far"]["unreachable"]) == (2, True)
    assert (entries["corrupt"]["attempts"], entries["corrupt"]["unreachable"]) == (1, False)
    products = {path.name for path in (tmp_path / "maps").iterdir() if not path.name.startswith(".")}
    suffixes = (".gpkg", ".tif", ".tif.aux.xml", ".qml", ".json")
    made = ("current", "one", "two", "three")
    assert products == {"run.json"} | {name + suffix for name in made for suffix in suffixes}
    assert server.posted == [report]
    for line in first.stderr.splitlines():
        assert {"time", "level", "message"} <= json.loads(line).keys()

    server.well.value = 1
    scenes["corrupt"].write_bytes(intact)
    why = batch(pipeline, "--dry-run").stdout
    assert [line.split()[:3] for line in why.splitlines()[1:3]] == [
        ["corrupt", "due", "new"],
        ["current", "current", "nothing"],
    ]
    second = batch(pipeline)

    assert second.returncode == 0, second.stderr
    entries = {entry["name"]: entry for entry in json.loads((tmp_path / "maps/run.json").read_text())["entries"]}
    assert {name for name, entry in entries.items() if entry["status"] == "mapped"} == {"corrupt", "far"}
    assert {name for name, entry in entries.items() if entry["status"] == "current"} == {
        "current",
        "one",
        "two",
        "three",
    }
    told = [first.stdout, first.stderr, second.stdout, second.stderr, why]
    told += [path.read_text() for path in (tmp_path / "maps").glob("*.json")]
    assert not any(secret in text for text in told for secret in (SECRET, HOOK))
