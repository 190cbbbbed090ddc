import pickle
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from torchgeo.samplers import GridGeoSampler

from landseg.errors import TrainingDataError
from landseg.train.labels import IGNORED, LabelCodes
from landseg.train.samples import Pair, band_statistics, open_pairs

NAMES = ("building", "land", "water")
CODES = LabelCodes({0: "building", 1: "land", 9: "water"}, NAMES)


def write(
    path: Path, data: NDArray[Any], *, left: float = 500_000, crs: str | None = "EPSG:32640", **profile: Any
) -> Path:
    """Write (C, H, W) as a GeoTIFF of 1 m pixels whose upper edge lies at 2 800 000 m north."""
    bands, rows, cols = data.shape
    transform = Affine(1, 0, left, 0, -1, 2_800_000)
    options = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": data.dtype} | profile
    with rasterio.open(path, "w", crs=crs, transform=transform, **options) as file:
        file.write(data)
    return path


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 96), dtype=np.uint8)


@pytest.fixture
def values() -> NDArray[np.uint8]:
    return np.random.default_rng(1).choice(np.array([0, 1, 9, 77, 255], dtype=np.uint8), (1, 64, 96))


@pytest.fixture
def pair(tmp_path: Path, pixels: NDArray[np.uint8], values: NDArray[np.uint8]) -> Pair:
    return Pair(write(tmp_path / "scene.tif", pixels), write(tmp_path / "labels.tif", values, nodata=255))


def recoded(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.select([values == 0, values == 1, values == 9], [0, 1, 2], IGNORED).astype(np.int64)


def test_samples_hold_the_pixels_and_channels_of_one_place(
    pair: Pair, pixels: NDArray[np.uint8], values: NDArray[np.uint8]
) -> None:
    dataset = open_pairs([pair], CODES, 1.0)

    samples = [dataset[place] for place in GridGeoSampler(dataset, size=32)]

    assert len(samples) == 6
    expected = {
        (pixels[:, r : r + 32, c : c + 32].tobytes(), recoded(values)[0, r : r + 32, c : c + 32].tobytes())
        for r in (0, 32)
        for c in (0, 32, 64)
    }
    assert expected == {(s["image"].to(torch.uint8).numpy().tobytes(), s["mask"].numpy().tobytes()) for s in samples}
    assert samples[0]["image"].dtype == torch.float32
    assert samples[0]["mask"].dtype == torch.int64


def test_samples_are_resampled_to_the_model_s_pixels(pair: Pair) -> None:
    dataset = open_pairs([pair], CODES, 2.0)

    samples = [dataset[place] for place in GridGeoSampler(dataset, size=16)]

    assert len(samples) == 6
    assert {tuple(s["image"].shape) for s in samples} == {(3, 16, 16)}
    assert set(np.unique(np.stack([s["mask"] for s in samples]))) == {0, 1, 2, IGNORED}


def test_band_statistics_are_those_of_all_scenes_together(tmp_path: Path) -> None:
    # Blocks of 8: reading every 8th pixel sees each once. Scenes of different sizes weigh by their pixels.
    draw = np.random.default_rng(0)
    blocks = [draw.integers(0, 256, (2, rows, 4)).astype(np.uint8) for rows in (3, 9)]
    pairs = []
    for i, block in enumerate(blocks):
        scene = write(tmp_path / f"scene{i}.tif", np.kron(block, np.ones((8, 8), dtype=np.uint8)))
        pairs.append(Pair(scene, scene))
    together = np.concatenate([b.reshape(2, -1) for b in blocks], axis=1).astype(float)

    mean, std = band_statistics(pairs)

    np.testing.assert_allclose(mean, together.mean(axis=1), atol=5e-4)
    np.testing.assert_allclose(std, together.std(axis=1), atol=5e-4)


def test_missing_files_are_refused(tmp_path: Path, pair: Pair) -> None:
    for missing in (Pair(tmp_path / "none.tif", pair.labels), Pair(pair.scene, tmp_path / "none.tif")):
        with pytest.raises(TrainingDataError, match=r"can't read .*none\.tif"):
            open_pairs([pair, missing], CODES, 1.0)


def test_files_that_are_no_rasters_are_refused(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "text.tif").write_text("hello")

    with pytest.raises(TrainingDataError, match=r"can't read .*text\.tif"):
        open_pairs([Pair(pair.scene, tmp_path / "text.tif")], CODES, 1.0)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pairs_without_a_crs_are_refused(tmp_path: Path, pair: Pair, values: NDArray[np.uint8]) -> None:
    adrift = write(tmp_path / "adrift.tif", values, crs=None)

    for bare in (Pair(pair.scene, adrift), Pair(adrift, pair.labels)):
        with pytest.raises(TrainingDataError, match=r"adrift\.tif has no coordinate reference system"):
            open_pairs([bare], CODES, 1.0)


def test_scenes_in_degrees_are_refused(tmp_path: Path, pair: Pair, pixels: NDArray[np.uint8]) -> None:
    with rasterio.open(
        tmp_path / "degrees.tif", "w", driver="GTiff", count=3, height=64, width=96, dtype="uint8",
        crs="EPSG:4326", transform=Affine(1e-5, 0, 57, 0, -1e-5, 25.3),
    ) as file:  # fmt: skip
        file.write(pixels)

    with pytest.raises(TrainingDataError, match=r"degrees\.tif is in degrees"):
        open_pairs([Pair(tmp_path / "degrees.tif", pair.labels)], CODES, 1.0)


def test_scenes_of_different_bands_are_refused(tmp_path: Path, pair: Pair, pixels: NDArray[np.uint8]) -> None:
    grey = write(tmp_path / "grey.tif", pixels[:1])

    with pytest.raises(TrainingDataError, match=r"grey\.tif has 1 bands; .*scene\.tif has 3"):
        open_pairs([pair, Pair(grey, pair.labels)], CODES, 1.0)


@pytest.mark.parametrize("crs", ["EPSG:32640", "EPSG:32633"])
def test_labels_of_another_place_are_refused(tmp_path: Path, pair: Pair, values: NDArray[np.uint8], crs: str) -> None:
    elsewhere = write(tmp_path / "elsewhere.tif", values, left=600_000, crs=crs)

    with pytest.raises(TrainingDataError, match=r"elsewhere\.tif do not overlap the scene"):
        open_pairs([Pair(pair.scene, elsewhere)], CODES, 1.0)


def test_ground_that_the_labels_do_not_cover_is_ignored(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    # 0 is a class here, and what GDAL fills with where a raster declares no nodata.
    land = np.full((1, 64, 40), 1, dtype=np.uint8)
    pair = Pair(write(tmp_path / "scene.tif", pixels), write(tmp_path / "labels.tif", land))
    dataset = open_pairs([pair], CODES, 1.0)

    masks = [dataset[place]["mask"] for place in GridGeoSampler(dataset, size=32)]

    assert set(np.unique(np.concatenate([m.ravel() for m in masks]))) <= {1, IGNORED}


def test_rasters_and_polygons_may_label_one_dataset(tmp_path: Path, pair: Pair, values: NDArray[np.uint8]) -> None:
    # The second scene lies to the east of the first; polygons cover its upper half.
    scene = write(tmp_path / "east.tif", np.full((3, 64, 96), 7, dtype=np.uint8), left=500_096)
    frame = geopandas.GeoDataFrame(
        {"class_name": ["water"]}, geometry=[shapely.box(500_096, 2_799_968, 500_192, 2_800_000)], crs="EPSG:32640"
    )
    pyogrio.write_dataframe(frame, tmp_path / "east.gpkg")
    dataset = open_pairs([pair, Pair(scene, tmp_path / "east.gpkg")], CODES, 1.0)

    across = dataset[500_064:500_128, 2_799_936:2_800_000]

    expected = np.full((64, 64), IGNORED)
    expected[:, :32] = recoded(values)[0, :, 64:]
    expected[:32, 32:] = NAMES.index("water")
    assert np.array_equal(across["mask"], expected)
    assert (across["image"][:, :, 32:] == 7).all()


def test_samples_are_varied_on_request(pair: Pair) -> None:
    dataset = open_pairs([pair], CODES, 1.0, vary=lambda sample: sample | {"image": -sample["image"]})

    sample = dataset[500_000:500_032, 2_799_968:2_800_000]

    assert sample.keys() == {"image", "mask"}
    assert sample["image"].max() <= 0


def test_datasets_may_pass_to_other_processes(pair: Pair) -> None:
    dataset = open_pairs([pair], CODES, 1.0)
    place = next(iter(GridGeoSampler(dataset, size=32)))

    copied = pickle.loads(pickle.dumps(dataset))

    assert torch.equal(copied[place]["mask"], dataset[place]["mask"])
    assert torch.equal(copied[place]["image"], dataset[place]["image"])
