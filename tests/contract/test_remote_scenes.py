"""Scenes behind HTTP and S3 are read window by window, through GDAL's own clients and a real server on loopback."""

import threading
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from landseg.errors import SceneError
from landseg.scene import RasterScene, describe_scene
from tests.conftest import DEMO_SCENE

KEY = f"{DEMO_SCENE.parent.name}/{DEMO_SCENE.name}"
WINDOW = Window(600, 700, 100, 80)


class RangeServer(ThreadingHTTPServer):
    """Serves a folder, ranges included, and counts the bytes that it sent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_RangeHandler, directory=str(folder)))
        self.sent_bytes = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _RangeHandler(SimpleHTTPRequestHandler):
    server: RangeServer

    def do_GET(self) -> None:  # noqa: N802
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
        self.server.sent_bytes += stop - start
        self.wfile.write(content[start:stop])

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[RangeServer]:
    # The grandparent, so that S3 has a folder to call its bucket.
    with RangeServer(DEMO_SCENE.parent.parent) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


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
    info = describe_scene(url)
    assert info.grid.shape == (1632, 1528)
    with RasterScene(info, (1, 2, 3), info.grid) as scene:
        data = scene.read(WINDOW).data
    with rasterio.open(DEMO_SCENE) as local:
        assert np.array_equal(data, local.read(window=WINDOW))
    assert 0 < server.sent_bytes < DEMO_SCENE.stat().st_size / 2


def test_a_remote_scene_that_is_not_there(server: RangeServer) -> None:
    with pytest.raises(SceneError, match=r"can't read http://.*no\.tif"):
        describe_scene(f"http://{server.address}/no.tif")
