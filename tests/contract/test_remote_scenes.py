"""Scenes behind HTTP and S3 are read window by window, through GDAL's own clients and a real server on loopback."""

import multiprocessing
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from landseg.errors import SceneError
from landseg.scene import RasterScene, describe_scene
from tests.conftest import DEMO_SCENE

KEY = f"{DEMO_SCENE.parent.name}/{DEMO_SCENE.name}"
NODATA_KEY = KEY.replace(".tif", "_nodata.tif")
WINDOW = Window(600, 700, 100, 80)


class _RangeHandler(SimpleHTTPRequestHandler):
    """Serves files, ranges included, and counts the bytes that it sent."""

    sent_bytes: Synchronized

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = path.read_bytes()
        start, stop = 0, len(content)
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, stop)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        with self.sent_bytes.get_lock():
            self.sent_bytes.value += stop - start
        self.wfile.write(content[start:stop])

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def serve(folder: str, port: Synchronized, sent_bytes: Synchronized) -> None:
    _RangeHandler.sent_bytes = sent_bytes
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_RangeHandler, directory=folder)) as server:
        port.value = server.server_port
        server.serve_forever()


@dataclass(frozen=True)
class RangeServer:
    address: str
    folder: Path
    sent_bytes: Synchronized


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangeServer]:
    # S3 has a folder to call its bucket.
    folder = tmp_path_factory.mktemp("served")
    (folder / KEY).parent.mkdir()
    shutil.copy(DEMO_SCENE, folder / KEY)
    with rasterio.open(shutil.copy(DEMO_SCENE, folder / NODATA_KEY), "r+") as scene:
        scene.nodata = 0
    # In a process of its own: GDAL holds the interpreter's lock while it waits for an answer.
    context = multiprocessing.get_context("spawn")
    port, sent_bytes = context.Value("i", 0), context.Value("q", 0)
    process = context.Process(target=serve, args=(str(folder), port, sent_bytes), daemon=True)
    process.start()
    while not port.value:
        assert process.is_alive()
        time.sleep(0.01)
    yield RangeServer(f"127.0.0.1:{port.value}", folder, sent_bytes)
    process.terminate()
    process.join()


@pytest.fixture(params=["http", "s3"])
def url(request: pytest.FixtureRequest, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "http":
        return f"http://{server.address}/{KEY}"
    options = {
        "AWS_S3_ENDPOINT": server.address,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_NO_SIGN_REQUEST": "YES",
    }
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    return f"s3://{KEY}"


def test_windows_of_a_remote_scene(server: RangeServer, url: str) -> None:
    before = server.sent_bytes.value
    info = describe_scene(url)
    assert info.grid.shape == (1632, 1528)
    with RasterScene(info, (1, 2, 3), info.grid) as scene:
        data = scene.read(WINDOW).data
    with rasterio.open(DEMO_SCENE) as local:
        assert np.array_equal(data, local.read(window=WINDOW))
    assert 0 < server.sent_bytes.value - before < DEMO_SCENE.stat().st_size / 2


def test_some_bands_of_a_remote_scene_on_another_grid(server: RangeServer, url: str) -> None:
    found = []
    for path in (url.replace(KEY, NODATA_KEY), str(server.folder / NODATA_KEY)):
        info = describe_scene(path)
        with RasterScene(info, (1, 2), info.grid.resampled((1.5, 1.5))) as scene:
            found.append(scene.read(WINDOW).data)
    assert np.array_equal(*found)


def test_a_remote_scene_that_is_not_there(server: RangeServer) -> None:
    with pytest.raises(SceneError, match=r"can't read http://.*no\.tif"):
        describe_scene(f"http://{server.address}/no.tif")


def test_a_remote_scene_s_stamp_is_what_its_server_says(server: RangeServer) -> None:
    stamp = describe_scene(f"http://{server.address}/{KEY}").stamp
    assert str(DEMO_SCENE.stat().st_size) in stamp
    assert any("GMT" in str(part) for part in stamp)
