"""Law 7: measured peak memory stays within what was projected, and does not grow with the scene's height."""

import multiprocessing
import resource
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray

from landseg.config import RunConfig
from landseg.legend import Legend
from landseg.model.bundle import write_bundle
from landseg.model.pspnet import Architecture, PSPNet
from landseg.run import build_plan, execute
from landseg.scene import GDAL_OPTIONS
from tests.conftest import RGB, UTM40, small_card

COLS = 1024


@pytest.fixture
def model(tmp_path: Path, legend: Legend) -> Path:
    """Give a model of large chips: most of them are nodata here and cost nothing."""
    network = PSPNet(Architecture(classes=len(legend), stem="7x7"))
    return write_bundle(tmp_path / "large", small_card(legend, chip_px=240), network).folder


@pytest.fixture
def processes() -> ForkServerContext:
    """Give processes whose memory holds nothing of the test's own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["landseg.run"])
    return context


def make_sparse(path: Path, rows: int, city: NDArray[np.uint8]) -> None:
    """Write a scene that is empty but for a patch at its top and one at its bottom."""
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=rows, width=COLS, dtype="uint8", nodata=0, crs=UTM40,
        transform=Affine(1, 0, 339000, 0, -1, 2784000), **layout,
    ) as file:  # fmt: skip
        file.colorinterp = RGB
        for top in (0, rows - city.shape[1]):
            file.write(city.clip(1), window=((top, top + city.shape[1]), (0, city.shape[2])))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(scene: Path, out: Path, config: RunConfig, answer: Connection) -> None:
    """Run, and send the plan's projection and this process's peak when all is mapped and at the end."""
    torch.set_num_threads(1)
    # Else the higher scene fills more of the cache.
    pytest.MonkeyPatch().setitem(GDAL_OPTIONS, "GDAL_CACHEMAX", 16 * 2**20)  # type: ignore[arg-type]
    plan = build_plan(str(scene), out, config)
    peaks = {}
    execute(plan, lambda progress: peaks.update({progress.stage: peak_bytes()}))
    answer.send((plan.memory_bytes, peaks["raster"], peak_bytes()))


def test_peak_memory_is_within_the_projection_whatever_the_height(
    model: Path, city: NDArray[np.uint8], processes: ForkServerContext, tmp_path: Path
) -> None:
    config = RunConfig(model=str(model), device="cpu", precision="fp32", batch=2, max_memory=2e9)
    measured = []
    for rows in (4_000, 48_000):
        scene = tmp_path / f"{rows}.tif"
        make_sparse(scene, rows, city)
        mine, its = processes.Pipe()
        process = processes.Process(target=measure, args=(scene, tmp_path / f"{rows}.gpkg", config, its))
        process.start()
        its.close()
        measured.append(mine.recv())
        process.join()
    (projected, mapped, peak), (projected_high, mapped_high, peak_high) = measured
    assert peak <= projected
    assert peak_high <= projected_high
    # Labels and confidence of the higher scene are 98 MB, its pixels 147 MB.
    assert mapped_high - mapped < 60e6
