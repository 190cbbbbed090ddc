"""Fixtures that several rooms share: a scene maker, a small bundle and the command line in this process."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from landseg.legend import LandClass, Legend
from landseg.model.bundle import Card, write_bundle
from landseg.model.pspnet import Architecture, PSPNet
from landseg.train.samples import Pair

# Timings are for benchmarks/: a busy machine must not fail a law.
settings.register_profile("landseg", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("landseg")

ROOT = Path(__file__).parent.parent
DEMO_SCENE = ROOT / "data_catalog/scenes/dubai-tile2/dubai_tile2.tif"
DEMO_LABELS = ROOT / "data_catalog/scenes/dubai-tile2/dubai_tile2_labels.tif"
CORNER = Window(832, 704, 192, 192)
UTM40 = CRS.from_epsg(32640)
RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@pytest.fixture(scope="session")
def legend() -> Legend:
    """Three classes whose ids are not their channels."""
    return Legend(
        (LandClass(2, "building", "#d55e00"), LandClass(5, "park", "#009e73"), LandClass(7, "water", "#56b4e9"))
    )


def small_card(legend: Legend, **changes: Any) -> Card:
    """Describe a network that is quick to run: ResNet-18 on chips of 48 px."""
    values: dict[str, Any] = {
        "name": "small",
        "title": "Small model for tests",
        "description": "Random weights.",
        "licence": "CC0-1.0",
        "created": "2026-01-01T00:00:00Z",
        "architecture": Architecture(classes=len(legend), stem="7x7"),
        "bands": ("red", "green", "blue"),
        "gsd_m": 1.0,
        "chip_px": 48,
        "mean": (110.0, 105.0, 100.0),
        "std": (40.0, 42.0, 44.0),
        "legend": legend,
    }
    return Card(**(values | changes))


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, legend: Legend) -> Path:
    """Give the folder of a bundle with random weights that is quick to run."""
    torch.manual_seed(0)
    network = PSPNet(Architecture(classes=len(legend), stem="7x7"), auxiliary=True)
    return write_bundle(tmp_path_factory.mktemp("models") / "small", small_card(legend), network).folder


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Cut the same 192 x 192 px out of the scene and its labels; all five classes occur."""
    folder = tmp_path_factory.mktemp("corner")
    for path in (DEMO_SCENE, DEMO_LABELS):
        with rasterio.open(path) as source:
            profile = {
                "driver": "GTiff", "count": source.count, "dtype": "uint8", "nodata": source.nodata, "crs": source.crs,
                "height": CORNER.height, "width": CORNER.width, "transform": source.window_transform(CORNER),
            }  # fmt: skip
            with rasterio.open(folder / path.name, "w", **profile) as part:
                part.write(source.read(window=CORNER))
    return Pair(folder / DEMO_SCENE.name, folder / DEMO_LABELS.name)


@pytest.fixture(scope="session")
def apart(tmp_path_factory: pytest.TempPathFactory, corner: Pair) -> Pair:
    """Give the corner again, on other ground."""
    folder = tmp_path_factory.mktemp("apart")
    for path in (corner.scene, corner.labels):
        moved = Path(shutil.copy(path, folder / path.name.replace("tile2", "tile0")))
        with rasterio.open(moved, "r+") as file:
            file.transform = Affine.translation(1000, 0) @ file.transform
    return Pair(folder / "dubai_tile0.tif", folder / "dubai_tile0_labels.tif")


@pytest.fixture(scope="session")
def city() -> NDArray[np.uint8]:
    """Give real imagery, (3, 120, 150) uint8, from the bundled scene."""
    with rasterio.open(DEMO_SCENE) as scene:
        return scene.read(window=((600, 720), (500, 650)))


SceneMaker = Callable[..., Path]


@pytest.fixture
def make_scene(tmp_path: Path) -> SceneMaker:
    """Write a (C, H, W) array as a GeoTIFF; keywords go to rasterio, but for the five named ones."""

    def make(
        data: NDArray[Any],
        name: str = "scene.tif",
        *,
        colours: tuple[ColorInterp, ...] | None = RGB,
        descriptions: tuple[str, ...] | None = None,
        valid: NDArray[np.bool_] | None = None,
        **options: Any,
    ) -> Path:
        path = tmp_path / name
        bands, rows, cols = data.shape
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "count": bands,
            "height": rows,
            "width": cols,
            "dtype": data.dtype,
            "crs": UTM40,
            "transform": Affine(1, 0, 339000, 0, -1, 2784000),
        }
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", **(profile | options)) as file,
        ):
            file.write(data)
            if colours is not None and len(colours) == bands:
                file.colorinterp = colours
            if descriptions is not None:
                file.descriptions = descriptions
            if valid is not None:
                file.write_mask(valid)
        return path

    return make


def write_vrt(path: Path, bands: Sequence[tuple[Path, int, str]]) -> Path:
    """Put bands of files of one size beside each other: each a file, its band, and what else the VRT says of it."""
    with rasterio.open(bands[0][0]) as first:
        size = f'rasterXSize="{first.width}" rasterYSize="{first.height}"'
        place = ", ".join(map(str, first.transform.to_gdal()))
        place = f"<SRS>{first.crs.to_wkt()}</SRS><GeoTransform>{place}</GeoTransform>"
    stacked = []
    for number, (file, band, words) in enumerate(bands, start=1):
        with rasterio.open(file) as source:
            kind = typename_fwd[dtype_rev[source.dtypes[band - 1]]]
        pixels = f"<SourceFilename>{file}</SourceFilename><SourceBand>{band}</SourceBand>"
        stacked.append(
            f'<VRTRasterBand dataType="{kind}" band="{number}">{words}'
            f"<SimpleSource>{pixels}</SimpleSource></VRTRasterBand>"
        )
    path.write_text(f"<VRTDataset {size}>{place}{''.join(stacked)}</VRTDataset>", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str


Landseg = Callable[..., Outcome]


@pytest.fixture
def landseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Landseg:
    """Run the command line in this process: torch takes seconds to import in another."""
    from landseg import cli

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["landseg", *map(str, arguments)])
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        captured = capsys.readouterr()
        code = leaving.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
