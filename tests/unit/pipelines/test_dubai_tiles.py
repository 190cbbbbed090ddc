import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from tests.conftest import DEMO_LABELS, DEMO_SCENE, ROOT

COLOURS = np.array([[0x3C, 0x10, 0x98], [0x84, 0x29, 0xF6], [0x6E, 0xC1, 0xE4], [0xFE, 0xDD, 0x3A], [0xE2, 0xA9, 0x29]])
SIDE = 90


def convert(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "pipelines/dubai_tiles.py", source, out]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Cut a piece of the demo into nine parts, as the set is published; one mask is a palette PNG."""
    window = ((300, 300 + SIDE), (400, 400 + SIDE))
    with rasterio.open(DEMO_SCENE) as scene, rasterio.open(DEMO_LABELS) as labels:
        image, codes = np.moveaxis(scene.read(window=window), 0, -1), labels.read(1, window=window)
    mask = np.where((codes == 255)[..., None], 0x9B, COLOURS[codes.clip(max=4)]).astype(np.uint8)
    # Parts need not be of one size.
    rows, cols = (0, 40, 60, SIDE), (0, 20, 50, SIDE)
    folder = tmp_path / "set" / "Tile 2"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for k in range(9):
        part = slice(rows[k // 3], rows[k // 3 + 1]), slice(cols[k % 3], cols[k % 3 + 1])
        Image.fromarray(image[part]).save(folder / "images" / f"image_part_{k + 1:03}.jpg", quality=95)
        coloured = Image.fromarray(mask[part])
        if k == 4:
            coloured = coloured.quantize(256)
        coloured.save(folder / "masks" / f"image_part_{k + 1:03}.png")
    return folder.parent


def test_the_published_set_becomes_the_pairs_that_training_reads(published: Path, tmp_path: Path) -> None:
    done = convert(published, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    window = ((300, 300 + SIDE), (400, 400 + SIDE))
    with rasterio.open(tmp_path / "out/dubai_tile2_labels.tif") as made, rasterio.open(DEMO_LABELS) as labels:
        assert (made.read(1) == labels.read(1, window=window)).all()
        assert (made.nodata, made.crs, made.transform) == (255, labels.crs, labels.transform)
    with rasterio.open(tmp_path / "out/dubai_tile2.tif") as made, rasterio.open(DEMO_SCENE) as scene:
        # JPEG twice over: close, and nowhere a part in the wrong place.
        difference = np.abs(made.read().astype(int) - scene.read(window=window))
        assert difference.mean() < 6
        assert made.transform == scene.transform


def test_parts_that_do_not_fit_are_refused(published: Path, tmp_path: Path) -> None:
    part = published / "Tile 2/masks/image_part_009.png"
    Image.open(part).resize((5, 5)).save(part)
    done = convert(published, tmp_path / "out")
    assert done.returncode == 1
    assert "Tile 2" in done.stderr


def test_a_folder_without_tiles(tmp_path: Path) -> None:
    assert "Tile 1" in convert(tmp_path, tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()
