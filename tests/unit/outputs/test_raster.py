import itertools
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rio_cogeo import cog_validate

from landseg.errors import DiskError
from landseg.grid import Grid
from landseg.legend import Legend
from landseg.outputs.raster import BLOCK_PX, LabelRaster
from tests.conftest import UTM40

RANDOM = np.random.default_rng(3)


def grid(rows: int, cols: int) -> Grid:
    return Grid((rows, cols), Affine(1, 0, 339000, 0, -1, 2784000), UTM40)


def published(
    folder: Path, legend: Legend, labels: np.ndarray, confidence: np.ndarray, cuts: list[int] | None = None
) -> Path:
    draft = LabelRaster(folder / "draft.tif", grid(*labels.shape), legend)
    edges = [0, *(cuts or []), len(labels)]
    with draft:
        for start, stop in itertools.pairwise(edges):
            draft.write(labels[start:stop], confidence[start:stop])
    path = folder / "map.tif"
    draft.publish(path)
    return path


def arrays(legend: Legend, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    labels = RANDOM.choice(np.array([0, *legend.class_ids], np.uint8), size=(rows, cols))
    return labels, RANDOM.integers(0, 101, size=(rows, cols), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (BLOCK_PX, BLOCK_PX), (1200, 1100)])
def test_it_is_a_valid_cog_with_all_that_was_written(tmp_path: Path, legend: Legend, shape: tuple[int, int]) -> None:
    labels, confidence = arrays(legend, *shape)
    path = published(tmp_path, legend, labels, confidence)
    with rasterio.open(path) as file:
        assert (file.read(1) == labels).all()
        assert (file.read(2) == confidence).all()
        assert file.transform == grid(*shape).transform
        assert (file.crs, file.nodata) == (UTM40, 0)
        # A palette beside an alpha band would make QGIS fade the map by its confidence.
        assert file.colorinterp == (ColorInterp.palette, ColorInterp.undefined)
        assert file.colormap(1)[7] == (0x56, 0xB4, 0xE9, 255)
        assert file.colormap(1)[0][3] == 0
        assert file.compression.value == "DEFLATE"
        assert bool(file.overviews(1)) == (max(shape) > BLOCK_PX)
    valid, errors, warnings = cog_validate(path, strict=True)
    assert valid, errors + warnings


@given(cuts=st.lists(st.integers(0, 700), max_size=8).map(sorted))
def test_where_rows_are_cut_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, legend: Legend, cuts: list[int]
) -> None:
    labels = np.tile(np.array([2, 5, 7, 0, 5], np.uint8), (700, 20))
    folder = tmp_path_factory.mktemp("raster")
    whole = published(folder, legend, labels, labels).read_bytes()
    assert published(folder, legend, labels, labels, cuts).read_bytes() == whole


def test_category_names_are_beside_it(tmp_path: Path, legend: Legend) -> None:
    path = published(tmp_path, legend, *arrays(legend, 9, 9))
    sidecar = path.with_name("map.tif.aux.xml").read_text()
    for name in legend.names:
        assert f"<Category>{name}</Category>" in sidecar


def test_overviews_hold_the_class_that_most_pixels_have(tmp_path: Path, legend: Legend) -> None:
    # Of each four pixels one is of another class, now this and now that.
    rows, cols = np.indices((1024, 1024))
    labels = np.where((rows // 2 + cols // 2) % 4 == rows % 2 * 2 + cols % 2, 2, 7).astype(np.uint8)
    path = published(tmp_path, legend, labels, labels)
    with rasterio.open(path, overview_level=0) as file:
        assert file.shape == (512, 512)
        assert (file.read(1) == 7).all()


def test_a_file_that_does_not_read_back_is_refused(
    tmp_path: Path, legend: Legend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelRaster, "_checksum_of", lambda *_: -1)
    with pytest.raises(DiskError, match="read back"):
        published(tmp_path, legend, *arrays(legend, 9, 9))


def test_a_place_that_cannot_be_written(tmp_path: Path, legend: Legend) -> None:
    with pytest.raises(DiskError, match="can't write"), LabelRaster(tmp_path / "no" / "a.tif", grid(9, 9), legend):
        pass
