"""Scenes are found alike in a static catalog on disk, behind HTTP, and in a STAC API: a real one, on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pystac
import pytest
import requests
import shapely

from landseg.catalog.search import SceneRef, search
from landseg.errors import CatalogError, UsageError

JANUARY = datetime(2026, 1, 31, 23, 30, tzinfo=UTC)
SCENES = {
    "january": ("ortho", (0, 0, 1, 1), JANUARY, 5.0),
    "february": ("ortho", (2, 0, 3, 1), datetime(2026, 2, 1, tzinfo=UTC), 60.0),
    "march": ("drone", (0, 0, 1, 1), datetime(2026, 3, 5, tzinfo=UTC), None),
}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def item(name: str) -> pystac.Item:
    _, bbox, date, cloud_cover = SCENES[name]
    properties = {} if cloud_cover is None else {"eo:cloud_cover": cloud_cover}
    made = pystac.Item(name, shapely.box(*bbox).__geo_interface__, list(bbox), date, properties)
    made.add_asset("labels", pystac.Asset("https://x.org/l.tif", media_type="image/tiff", roles=["data", "labels"]))
    made.add_asset("thumbnail", pystac.Asset("https://x.org/t.png", media_type="image/png", roles=["thumbnail"]))
    made.add_asset("image", pystac.Asset(f"https://x.org/{name}.tif", media_type=pystac.MediaType.COG, roles=["data"]))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a static catalog of two collections."""
    folder = tmp_path_factory.mktemp("catalog")
    catalog = pystac.Catalog("all", "All scenes.")
    for name in ("ortho", "drone"):
        extent = pystac.Extent(pystac.SpatialExtent([0, 0, 3, 1]), pystac.TemporalExtent([[JANUARY, None]]))
        collection = pystac.Collection(name, name, extent, license="CC0-1.0")
        collection.add_items([item(scene) for scene, (where, *_) in SCENES.items() if where == name])
        catalog.add_child(collection)
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder


@pytest.fixture(scope="module")
def static_url(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/catalog.json"
        server.shutdown()


@pytest.fixture(scope="module")
def api_url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the same collections and items by rustac, which implements the STAC API with item search."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    catalog = pystac.Catalog.from_file(str(folder / "catalog.json"))
    content = {"items": pystac.ItemCollection(catalog.get_items(recursive=True)).to_dict()}
    content |= {child.id: child.to_dict() | {"links": []} for child in catalog.get_children()}
    files = [tmp_path_factory.mktemp("api") / f"{name}.json" for name in content]
    for path, value in zip(files, content.values(), strict=True):
        path.write_text(json.dumps(value))
    command = [Path(sys.executable).with_name("rustac"), "serve", "--addr", address, *files]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while True:
        assert process.poll() is None, process.communicate()
        try:
            requests.get(f"http://{address}", timeout=5)
            break
        except requests.ConnectionError:
            time.sleep(0.05)
    yield f"http://{address}"
    process.terminate()
    process.communicate()


@pytest.fixture(params=["disk", "http", "api"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "disk":
        return str(folder / "catalog.json")
    value: str = request.getfixturevalue({"http": "static_url", "api": "api_url"}[request.param])
    return value


def names(scenes: list[SceneRef]) -> list[str]:
    return [scene.name for scene in scenes]


def test_all_scenes_oldest_first(url: str) -> None:
    found = search(url)
    assert names(found) == ["january", "february", "march"]
    assert found[0] == SceneRef("january", "https://x.org/january.tif", JANUARY, 5.0, "ortho")
    assert found[2].cloud_cover is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"collections": ["ortho"]}, ["january", "february"]),
        ({"collections": ["ortho", "drone"], "bbox": (0.5, 0.5, 0.6, 0.6)}, ["january", "march"]),
        ({"bbox": (10, 10, 11, 11)}, []),
        ({"dates": "2026-01-31"}, ["january"]),
        ({"dates": "2026-02-01/2026-03-04"}, ["february"]),
        ({"dates": "2026-02-01/.."}, ["february", "march"]),
        ({"dates": "../2026-01-31"}, ["january"]),
        ({"dates": "../.."}, ["january", "february", "march"]),
        ({"dates": "2026-01-31T23:40:00Z/2026-03-05T00:00:01Z"}, ["february", "march"]),
        ({"max_cloud_cover": 20}, ["january", "march"]),
    ],
)
def test_queries(url: str, query: dict[str, Any], expected: list[str]) -> None:
    assert names(search(url, **query)) == expected


def test_a_collection_is_no_catalog(folder: Path) -> None:
    with pytest.raises(CatalogError, match="found type=Collection"):
        search(str(folder / "ortho/collection.json"))


def test_an_asset_by_its_key(url: str) -> None:
    assert search(url, asset="labels")[0].href == "https://x.org/l.tif"
    with pytest.raises(CatalogError, match=r"january .* has no asset 'red'\n.*image"):
        search(url, asset="red")


def test_items_without_a_raster_are_left_out_unless_their_collection_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    place = tmp_path / "drone/march/march.json"
    content = json.loads(place.read_text())
    del content["assets"]["image"]
    place.write_text(json.dumps(content))
    assert names(search(str(tmp_path / "catalog.json"))) == ["january", "february"]
    assert "the item march has no raster to map" in caplog.text
    with pytest.raises(CatalogError, match=r"march .* has no GeoTIFF"):
        search(str(tmp_path / "catalog.json"), collections=["drone"])


@pytest.mark.parametrize("dates", ["May", "2026-13-01", "2026-01-01/soon", "2026-02-01/2026-01-01"])
def test_dates_that_are_none(folder: Path, dates: str) -> None:
    with pytest.raises(UsageError, match="is no interval"):
        search(str(folder / "catalog.json"), dates=dates)


def test_catalogs_that_can_t_be_read(tmp_path: Path, static_url: str) -> None:
    (tmp_path / "list.json").write_text(json.dumps([1]))
    (tmp_path / "text.json").write_text("no JSON")
    missing = [
        static_url.replace("catalog.json", "none.json"),
        "http://127.0.0.1:9/?key=secret",
        tmp_path / "none.json",
    ]
    for url in [*missing, tmp_path / "list.json", tmp_path / "text.json"]:
        with pytest.raises(CatalogError, match="the catalog") as refusal:
            search(str(url))
        assert len(str(refusal.value).splitlines()) <= 2
        assert "secret" not in str(refusal.value)
    with pytest.raises(CatalogError, match="and no file"):
        search(os.devnull)


def test_a_server_that_stumbles_is_asked_again(folder: Path) -> None:
    asked: list[str] = []

    class Stumbling(_Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            if len(asked) < 3:
                self.send_error(503)
            else:
                super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Stumbling, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/catalog.json"
        assert len(search(url, attempts=3, wait_s=0.01)) == 3
        asked.clear()
        with pytest.raises(CatalogError):
            search(url, attempts=2, wait_s=0.01)
        server.shutdown()


class _Endless(_Quiet):
    """A catalog whose catalogs each lead to another, and an API whose pages do."""

    answers: Callable[[int], str]

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        number = int(self.path.rpartition("/")[2] or 0)
        content: dict[str, Any] = {"type": "Catalog", "stac_version": "1.1.0", "id": f"c{number}", "description": "d"}
        if self.path.startswith("/catalog"):
            content["links"] = [{"rel": "child", "href": f"{here}/catalog/{number + 1}"}]
        elif self.path == "/":
            content["conformsTo"] = [
                "https://api.stacspec.org/v1.0.0/core",
                "https://api.stacspec.org/v1.0.0/item-search",
            ]
            content["links"] = [{"rel": "search", "href": f"{here}/search/0", "type": "application/geo+json"}]
        else:
            found = item("january").to_dict(include_self_link=False)
            again = {"rel": "next", "href": f"{here}/search/{number + 1}", "method": "POST", "body": {}}
            content = {
                "type": "FeatureCollection",
                "features": [found | {"id": self.answers(number)}],
                "links": [again],
            }
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(
    ("path", "answers", "says"),
    [
        ("", str, "more than 30 items"),
        ("", lambda number: str(number % 3), "lead back: they have the item 0 twice"),
        ("catalog/0", str, "more than 30 catalogs"),
    ],
)
def test_what_leads_on_for_ever_is_refused(
    monkeypatch: pytest.MonkeyPatch, path: str, answers: Callable[[int], str], says: str
) -> None:
    monkeypatch.setattr("landseg.catalog.search.MOST_ITEMS", 30)
    monkeypatch.setattr("landseg.catalog.MOST_CATALOGS", 30)
    monkeypatch.setattr(_Endless, "answers", staticmethod(answers), raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(CatalogError, match=says):
            search(f"http://127.0.0.1:{server.server_port}/{path}")
        server.shutdown()
