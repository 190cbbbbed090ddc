"""The report of the demo's map in Chromium, as the Debian package ``chromium`` has it."""

import io
import math
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import geopandas
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from playwright.sync_api import Page, sync_playwright

from landseg.legend import Legend
from landseg.model.bundle import DEFAULT_MODEL, read_bundle
from landseg.outputs.paths import OutputPaths

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def legend() -> Legend:
    return read_bundle(DEFAULT_MODEL).card.legend


@pytest.fixture(scope="module")
def report(demo: tuple[OutputPaths, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    command = [Path(sys.executable).with_name("landseg"), "report", demo[0].polygons, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    return out


@pytest.fixture(params=["light", "dark"])
def page(report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Open the report; in the end nothing must have gone wrong or been asked for over a network."""
    scheme: Literal["light", "dark"] = request.param
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: wrong.append(sent.url) if sent.url.startswith("http") else None)
        page.goto(report.as_uri())
        page.wait_for_selector("body[data-ready]")
        yield page
        browser.close()
    assert wrong == []


def picture_of(page: Page, selector: str) -> NDArray[np.uint8]:
    png = page.locator(selector).screenshot(animations="disabled")
    picture: NDArray[np.uint8] = (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)
    return picture


def share_of(picture: NDArray[np.uint8], rgb: tuple[int, int, int]) -> float:
    return float((picture == rgb).all(axis=-1).mean())


SETTLED = """() => {
    const tiles = [...document.querySelectorAll('#map canvas.leaflet-tile')];
    const drawn = (tile) => tile.classList.contains('leaflet-tile-loaded') && getComputedStyle(tile).opacity === '1';
    return tiles.length > 0 && !document.querySelector('#map .leaflet-zoom-anim') && tiles.every(drawn);
}"""
"""Whether the map stands still, with all tiles there and faded in."""


def opaque(page: Page) -> None:
    page.locator("#opacity").fill("100")


@pytest.mark.parametrize(
    ("north", "says"), [([0, 1], "North is up"), ([-0.5, 0.75**0.5], "North is 30° to the left of up")]
)
def test_an_arrow_points_to_the_north(page: Page, report: Path, tmp_path: Path, north: list[float], says: str) -> None:
    text = report.read_text(encoding="utf-8")
    assert '"north": [0.0, 1.0]' in text
    (tmp_path / "report.html").write_text(text.replace('"north": [0.0, 1.0]', f'"north": {north}'), encoding="utf-8")
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("body[data-ready]")
    turned = page.locator("#north").evaluate(
        "arrow => new DOMMatrix(getComputedStyle(arrow).transform).transformPoint({y: -1})"
    )
    # A page's y goes down.
    assert (turned["x"], -turned["y"]) == pytest.approx(north, abs=0.01)
    assert page.get_by_role("img", name=says).is_visible()


def test_the_map_has_the_legend_s_colours(page: Page, legend: Legend, demo: tuple[OutputPaths, str]) -> None:
    over_imagery = picture_of(page, "#map")
    opaque(page)
    drawn = picture_of(page, "#map")
    areas = geopandas.read_file(demo[0].polygons, layer="class_areas").set_index("class_id")
    shares = {c.class_id: share_of(drawn, c.rgb) for c in legend}
    assert sum(shares.values()) > 0.3
    for c in legend:
        assert shares[c.class_id] / sum(shares.values()) == pytest.approx(areas.share[c.class_id], abs=0.05), c.name
        assert share_of(over_imagery, c.rgb) < shares[c.class_id] / 10


def test_from_near_polygons_are_drawn_in_the_same_colours(page: Page, legend: Legend) -> None:
    opaque(page)
    # The smallest of the list, which is looked at from nearest.
    page.locator("#unsure button").last.click()
    page.wait_for_function(SETTLED)
    drawn = picture_of(page, "#map")
    assert sum(share_of(drawn, c.rgb) for c in legend) > 0.5


def test_a_click_gives_a_polygon_s_figures(page: Page, demo: tuple[OutputPaths, str]) -> None:
    layer = geopandas.read_file(demo[0].polygons, layer="landuse")
    water = layer[layer.class_name == "water"].nlargest(1, "area_m2").iloc[0]
    inside = water.geometry.representative_point()
    left, bottom, right, top = layer.total_bounds
    box = page.locator("#map img.imagery").bounding_box()
    assert box is not None
    x = box["x"] + (inside.x - left) / (right - left) * box["width"]
    y = box["y"] + (top - inside.y) / (top - bottom) * box["height"]

    page.mouse.click(x, y)

    popup = page.locator(".leaflet-popup-content").inner_text()
    assert "water" in popup
    assert f"{water.area_m2 / 1e4:.1f} ha" in popup
    assert f"{math.floor(water.confidence * 10 + 1e-3) / 10:.1f} %" in popup
    assert f"{water.perimeter_m:,.0f} m" in popup


def test_it_can_be_used_without_a_mouse(page: Page) -> None:
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"map", "opacity"} <= set(reached)

    page.locator("#map").focus()
    page.keyboard.press("Enter")
    assert "Mean confidence" in page.locator(".leaflet-popup-content").inner_text()
    page.keyboard.press("Escape")
    # It fades out, and would be taken for the next one.
    page.locator(".leaflet-popup-content").wait_for(state="detached")

    page.locator("#opacity").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#opacity-value").inner_text() == "61 %"

    page.locator("#unsure button").nth(3).focus()
    page.keyboard.press("Enter")
    listed = page.locator("#unsure .figures").nth(3).inner_text()
    assert listed.split(",")[0] in page.locator(".leaflet-popup-content").inner_text()


def test_figures_are_those_of_the_map(page: Page, demo: tuple[OutputPaths, str]) -> None:
    areas = geopandas.read_file(demo[0].polygons, layer="class_areas")
    rows = page.locator("#areas tbody tr").all_inner_texts()
    assert len(rows) == len(areas)
    for row, (name, area_m2) in zip(rows, zip(areas.class_name, areas.area_m2, strict=True), strict=True):
        assert row.startswith(name)
        assert f"{area_m2 / 1e4:.1f} ha" in row
    unsure = page.locator("#unsure .figures").all_inner_texts()
    assert len(unsure) == 20
    assert all(float(figures.split(", ")[1].removesuffix(" %")) < 50 for figures in unsure)
    assert DEFAULT_MODEL in page.locator("#provenance").inner_text()


def test_a_print_has_the_legend_s_colours_on_white(page: Page, legend: Legend) -> None:
    """Browsers print no backgrounds unless told to, and a dark page would come out grey on white."""
    streams = re.findall(rb"stream\r?\n(x.*?)endstream", page.pdf(format="A4", print_background=False), re.DOTALL)
    drawn = b"".join(zlib.decompressobj().decompress(stream) for stream in streams)
    fills = {
        tuple(round(255 * float(v)) for v in fill) for fill in re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", drawn)
    }
    ink, bars = (31, 41, 51), (11, 102, 183)
    assert {c.rgb for c in legend} | {ink, bars} <= fills


@pytest.mark.parametrize("width", [1600, 1000, 390])
def test_long_class_names_keep_their_rows_low_and_the_page_as_wide_as_the_screen(
    page: Page, report: Path, tmp_path: Path, width: int
) -> None:
    name = "Industrial, commercial, public and military units"
    renamed = tmp_path / "report.html"
    renamed.write_text(report.read_text(encoding="utf-8").replace('"vegetation"', f'"{name}"'), encoding="utf-8")
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(renamed.as_uri())
    page.wait_for_selector("body[data-ready]")
    row = page.locator("#areas tbody tr", has_text=name)
    assert row.evaluate("row => row.offsetHeight / row.previousSibling.offsetHeight") < (3 if width == 1600 else 6)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.getElementById('areas').offsetWidth") <= page.evaluate(
        "document.getElementById('areas').parentElement.clientWidth"
    )


@pytest.mark.parametrize("width", [1600, 1400, 390])
def test_names_of_the_unsure_stand_beside_their_swatches(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    heights = page.locator("#unsure button").evaluate_all("buttons => buttons.map((button) => button.offsetHeight)")
    assert len(set(heights)) == 1
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_it_follows_the_system_s_light_or_dark(page: Page) -> None:
    ground = picture_of(page, "header").reshape(-1, 3)
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert bool(np.median(ground) < 60) == dark
    # What is written can be read.
    assert int(ground.max()) - int(ground.min()) > 150
