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
from rasterio.enums import Resampling
from rasterio.windows import Window
from torch.utils.data import DataLoader
from torchgeo.samplers import GridGeoSampler

from landseg.errors import TrainingDataError
from landseg.scene import RasterScene, describe_scene, value_ranges, working_grid
from landseg.train.augment import Augmentation
from landseg.train.labels import IGNORED, LabelCodes
from landseg.train.samples import ModelInput, Pair, band_statistics, open_pairs, open_scene

NAMES = ("building", "land", "water")
CODES = LabelCodes({0: "building", 1: "land", 9: "water"}, NAMES)


def write(
    path: Path, data: NDArray[Any], *, left: float = 500_000, crs: str | None = "EPSG:32640", **profile: Any
) -> Path:
    """Write (C, H, W) as a GeoTIFF of 1 m pixels whose upper edge lies at 2 800 000 m north."""
    bands, rows, cols = data.shape
    options: dict[str, Any] = {
        "driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": data.dtype, "crs": crs,
        "transform": Affine(1, 0, left, 0, -1, 2_800_000),
    }  # fmt: skip
    with rasterio.open(path, "w", **(options | profile)) as file:
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
    dataset = open_pairs([pair], CODES, ModelInput(1.0))

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


# The central pixel of a scene in US feet, and of one in Web Mercator at 60 degrees north, is a metre wide.
@pytest.mark.parametrize(
    ("crs", "left", "top", "side"),
    [
        ("EPSG:32640", 500_000, 2_800_000, 0.5),
        ("EPSG:2263", 980_000, 200_000, 1 / 0.3048006),
        ("EPSG:2263", 980_000, 200_000, 0.5 / 0.3048006),
        ("EPSG:3857", 1_000_000, 8_400_000, 2.0),
        ("EPSG:3857", 1_000_000, 8_400_000, 1.0),
    ],
)
def test_samples_have_the_pixels_that_mapping_sees(
    tmp_path: Path, pixels: NDArray[np.uint8], crs: str, left: float, top: float, side: float
) -> None:
    transform = Affine(side, 0, left, 0, -side, top)
    scene = write(tmp_path / "scene.tif", pixels, crs=crs, transform=transform)
    pair = Pair(scene, write(tmp_path / "labels.tif", pixels[:1] // 128, crs=crs, transform=transform))
    info = describe_scene(str(scene))
    grid = working_grid(info, 1.0)
    with RasterScene(info, (1, 2, 3), grid) as mapped:
        expected = mapped.read(Window(5, 3, 20, 20)).data

    dataset = open_pairs([pair], CODES, ModelInput(1.0))
    width, height = dataset.res
    x, y = grid.transform @ (5, 3)
    sample = dataset[x : x + 20 * width, y - 20 * height : y]

    assert (grid == info.grid) == (side in (1 / 0.3048006, 2.0))
    np.testing.assert_allclose(sample["image"], expected, atol=1)
    assert grid.gsd_m == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize(("width", "height"), [(1.0, 0.95), (0.95, 1.0)])
def test_a_scene_of_oblong_pixels_is_read_to_its_edges(
    tmp_path: Path, pixels: NDArray[np.uint8], values: NDArray[np.uint8], width: float, height: float
) -> None:
    transform = Affine(width, 0, 500_000, 0, -height, 2_800_000)
    scene, labels = (write(tmp_path / f"{len(data)}.tif", data, transform=transform) for data in (pixels, values))

    dataset = open_pairs([Pair(scene, labels)], CODES, ModelInput(1.0))
    sample = dataset[500_000 : 500_000 + 96 * width, 2_800_000 - 64 * height : 2_800_000]

    np.testing.assert_array_equal(sample["image"], pixels)
    np.testing.assert_array_equal(sample["mask"], recoded(values)[0])


SPECKLE = np.random.default_rng(5).integers(300, 3001, (3, 64, 96), dtype=np.uint16)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("value_range", [None, (0.0, 10_000.0)])
def test_scenes_of_other_types_are_scaled_as_for_mapping(
    tmp_path: Path, pair: Pair, dtype: str, value_range: tuple[float, float] | None
) -> None:
    scene = write(tmp_path / "deep.tif", SPECKLE.astype(dtype))
    model_input = ModelInput(1.0, band_numbers=(1, 2, 3), value_range=value_range)
    ranges = value_ranges(describe_scene(str(scene)), (1, 2, 3), value_range)
    low, high = (np.array(side)[:, None, None] for side in zip(*ranges, strict=True))
    expected = (np.clip(SPECKLE, low, high) - low) * 255 / (high - low)

    sample = open_pairs([Pair(scene, pair.labels)], CODES, model_input)[500_000:500_096, 2_799_936:2_800_000]
    mean, std = band_statistics([open_scene(scene, model_input)])

    np.testing.assert_allclose(sample["image"], expected, atol=1e-3)
    # Every eighth pixel of a row of 96 and a column of 64, that is.
    np.testing.assert_allclose(mean, expected[:, 4::8, 4::8].mean(axis=(1, 2)), atol=1e-3)
    np.testing.assert_allclose(std, expected[:, 4::8, 4::8].std(axis=(1, 2)), atol=1e-3)


def hollow(path: Path, pixels: NDArray[np.uint8], kind: str) -> Path:
    """Write a scene whose 40 columns in the west hold no data, and say so in one of several ways."""
    data: NDArray[Any] = pixels.copy()
    data[:, :, :40] = 0
    if kind == "nodata":
        data[:, :, 40:] = np.maximum(data[:, :, 40:], 1)
        return write(path, data, nodata=0)
    if kind == "nan":
        data = data.astype(np.float32)
        data[0, :, :40] = np.nan
        return write(path, data)
    valid = np.where(np.arange(96) < 40, 0, 255).astype(np.uint8) * np.ones((64, 1), dtype=np.uint8)
    if kind == "alpha":
        return write(path, np.concatenate([data, valid[None]]), photometric="RGB", alpha="YES")
    write(path, data)
    with rasterio.open(path, "r+") as file:
        file.write_mask(valid)
    return path


@pytest.mark.parametrize("kind", ["nodata", "nan", "alpha", "mask"])
def test_pixels_without_data_have_no_label_and_are_the_mean(
    tmp_path: Path, pair: Pair, pixels: NDArray[np.uint8], kind: str
) -> None:
    scene = hollow(tmp_path / "hollow.tif", pixels, kind)
    mean = (10.0, 20.0, 30.0)
    model_input = ModelInput(1.0, band_numbers=(1, 2, 3), value_range=(0.0, 255.0), mean=mean)

    plain = open_pairs([pair], CODES, model_input)[500_000:500_064, 2_799_936:2_800_000]
    sample = open_pairs([Pair(scene, pair.labels)], CODES, model_input)[500_000:500_064, 2_799_936:2_800_000]

    assert (sample["mask"][:, :40] == IGNORED).all()
    assert (sample["image"][:, :, :40] == torch.tensor(mean)[:, None, None]).all()
    assert torch.equal(sample["mask"][:, 40:], plain["mask"][:, 40:])
    torch.testing.assert_close(sample["image"][:, :, 40:], plain["image"][:, :, 40:], rtol=0, atol=1)


def test_pixels_without_data_are_the_mean_however_samples_are_varied(
    tmp_path: Path, pair: Pair, pixels: NDArray[np.uint8]
) -> None:
    scene = hollow(tmp_path / "hollow.tif", pixels, "nodata")
    land = write(tmp_path / "land.tif", np.ones((1, 64, 96), dtype=np.uint8))
    mean = torch.tensor([10.1, 20.2, 30.3])
    model_input = ModelInput(1.0, mean=tuple(mean.tolist()))
    dataset = open_pairs([Pair(scene, land)], CODES, model_input, vary=Augmentation(scale=1.25))
    torch.manual_seed(0)

    for _ in range(20):
        sample = dataset[500_010:500_070, 2_799_940:2_800_000]
        # To the network: 0, as in mapping.
        empty = (sample["image"] - mean[:, None, None] == 0).all(dim=0)
        assert 0.2 < empty.float().mean() < 0.8
        assert torch.equal(empty, sample["mask"] == IGNORED)


@pytest.mark.parametrize("kind", ["nodata", "nan", "alpha", "mask"])
def test_pixels_without_data_are_not_measured(tmp_path: Path, pixels: NDArray[np.uint8], kind: str) -> None:
    scene = hollow(tmp_path / "hollow.tif", pixels, kind)

    model_input = ModelInput(1.0, band_numbers=(1, 2, 3), value_range=(0.0, 255.0))
    mean, std = band_statistics([open_scene(scene, model_input)])

    seen = pixels[:, 4::8, 44::8].astype(float)
    np.testing.assert_allclose(mean, seen.mean(axis=(1, 2)), atol=0.05)
    np.testing.assert_allclose(std, seen.std(axis=(1, 2)), atol=0.05)


def test_corners_of_a_turned_scene_hold_no_data(tmp_path: Path, values: NDArray[np.uint8]) -> None:
    turned = Affine(1, 0, 500_000, 0, -1, 2_800_000) @ Affine.rotation(30)
    scene = write(tmp_path / "turned.tif", np.full((3, 96, 96), 200, dtype=np.uint8), transform=turned)
    ground = np.zeros((1, 150, 200), dtype=np.uint8)
    pair = Pair(scene, write(tmp_path / "labels.tif", ground, left=499_900))
    dataset = open_pairs([pair], CODES, ModelInput(1.0, mean=(200.0, 200.0, 200.0)))
    x, y, _ = dataset.bounds

    sample = dataset[x.start : x.start + 140, y.stop - 140 : y.stop]

    inside = (sample["mask"] == 0).sum()
    assert inside == pytest.approx(96 * 96, rel=0.05)
    assert (sample["image"] > 195).all()


def test_statistics_are_not_those_of_overviews(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).integers(0, 256, (3, 512, 512), dtype=np.uint8)
    scene = write(tmp_path / "scene.tif", draw)
    with rasterio.open(scene, "r+") as file:
        file.build_overviews([2, 4, 8], Resampling.average)

    _, std = band_statistics([open_scene(scene, ModelInput(1.0))])

    np.testing.assert_allclose(std, draw.std(axis=(1, 2)), rtol=0.03)


def test_bands_are_found_by_name_or_number(tmp_path: Path, pair: Pair, pixels: NDArray[np.uint8]) -> None:
    scene = write(tmp_path / "mixed.tif", pixels)
    with rasterio.open(scene, "r+") as file:
        file.descriptions = ("nir", "Green", "R")
    place = slice(500_000, 500_096), slice(2_799_936, 2_800_000)

    named = open_pairs([Pair(scene, pair.labels)], CODES, ModelInput(1.0, ("red", "nir")))[place]
    numbered = open_pairs([Pair(scene, pair.labels)], CODES, ModelInput(1.0, ("red", "nir"), (2, 3)))[place]

    assert np.array_equal(named["image"], pixels[[2, 0]])
    assert np.array_equal(numbered["image"], pixels[[1, 2]])


def test_bands_that_names_do_not_settle_are_refused_with_the_key_that_does(tmp_path: Path, pair: Pair) -> None:
    scene = write(tmp_path / "deep.tif", SPECKLE)

    with pytest.raises(TrainingDataError, match=r"deep\.tif does not say which of its bands is red") as caught:
        open_pairs([Pair(scene, pair.labels)], CODES, ModelInput(1.0))

    assert caught.value.hint is not None
    assert "data.band_numbers: [n, n, n]" in caught.value.hint


def test_scenes_far_from_the_pixel_size_are_refused(pair: Pair) -> None:
    with pytest.raises(TrainingDataError, match=r"scene\.tif is 1 m wide(?s:.*)gsd_m"):
        open_pairs([pair], CODES, ModelInput(10.0))


def test_band_statistics_are_those_of_all_scenes_together(tmp_path: Path) -> None:
    # Blocks of 8: reading every 8th pixel sees each once. Scenes of different sizes weigh by their pixels.
    draw = np.random.default_rng(0)
    blocks = [draw.integers(0, 256, (3, rows, 4)).astype(np.uint8) for rows in (3, 9)]
    scenes = [
        write(tmp_path / f"scene{i}.tif", np.kron(block, np.ones((8, 8), dtype=np.uint8)))
        for i, block in enumerate(blocks)
    ]
    together = np.concatenate([b.reshape(3, -1) for b in blocks], axis=1).astype(float)

    mean, std = band_statistics([open_scene(scene, ModelInput(1.0)) for scene in scenes])

    np.testing.assert_allclose(mean, together.mean(axis=1), atol=5e-4)
    np.testing.assert_allclose(std, together.std(axis=1), atol=5e-4)


def test_missing_files_are_refused(tmp_path: Path, pair: Pair) -> None:
    for missing in (Pair(tmp_path / "none.tif", pair.labels), Pair(pair.scene, tmp_path / "none.tif")):
        with pytest.raises(TrainingDataError, match=r"(can't read|there is no scene) .*none\.tif"):
            open_pairs([pair, missing], CODES, ModelInput(1.0))


def test_files_that_are_no_rasters_are_refused(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "text.tif").write_text("hello")

    with pytest.raises(TrainingDataError, match=r"can't read .*text\.tif"):
        open_pairs([Pair(pair.scene, tmp_path / "text.tif")], CODES, ModelInput(1.0))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pairs_without_a_crs_are_refused(tmp_path: Path, pair: Pair, values: NDArray[np.uint8]) -> None:
    adrift = write(tmp_path / "adrift.tif", values, crs=None)

    for bare in (Pair(pair.scene, adrift), Pair(adrift, pair.labels)):
        with pytest.raises(TrainingDataError, match=r"adrift\.tif has no coordinate reference system"):
            open_pairs([bare], CODES, ModelInput(1.0))


def test_scenes_in_degrees_are_refused(tmp_path: Path, pair: Pair, pixels: NDArray[np.uint8]) -> None:
    with rasterio.open(
        tmp_path / "degrees.tif", "w", driver="GTiff", count=3, height=64, width=96, dtype="uint8",
        crs="EPSG:4326", transform=Affine(1e-5, 0, 57, 0, -1e-5, 25.3),
    ) as file:  # fmt: skip
        file.write(pixels)

    with pytest.raises(TrainingDataError, match=r"degrees\.tif is in degrees"):
        open_pairs([Pair(tmp_path / "degrees.tif", pair.labels)], CODES, ModelInput(1.0))


def test_scenes_that_lack_bands_are_refused(tmp_path: Path, pair: Pair, pixels: NDArray[np.uint8]) -> None:
    grey = write(tmp_path / "grey.tif", pixels[:1])

    with pytest.raises(TrainingDataError, match=r"grey\.tif has too few bands: 1; the model reads 3"):
        open_pairs([pair, Pair(grey, pair.labels)], CODES, ModelInput(1.0))


@pytest.mark.parametrize("crs", ["EPSG:32640", "EPSG:32633"])
def test_labels_of_another_place_are_refused(tmp_path: Path, pair: Pair, values: NDArray[np.uint8], crs: str) -> None:
    elsewhere = write(tmp_path / "elsewhere.tif", values, left=600_000, crs=crs)

    with pytest.raises(TrainingDataError, match=r"elsewhere\.tif do not overlap the scene"):
        open_pairs([Pair(pair.scene, elsewhere)], CODES, ModelInput(1.0))


def test_ground_that_the_labels_do_not_cover_is_ignored(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    # 0 is a class here, and what GDAL fills with where a raster declares no nodata.
    land = np.full((1, 64, 40), 1, dtype=np.uint8)
    pair = Pair(write(tmp_path / "scene.tif", pixels), write(tmp_path / "labels.tif", land))
    dataset = open_pairs([pair], CODES, ModelInput(1.0))

    masks = [dataset[place]["mask"] for place in GridGeoSampler(dataset, size=32)]

    assert set(np.unique(np.concatenate([m.ravel() for m in masks]))) <= {1, IGNORED}


def test_rasters_and_polygons_may_label_one_dataset(tmp_path: Path, pair: Pair, values: NDArray[np.uint8]) -> None:
    # The second scene lies to the east of the first; polygons cover its upper half.
    scene = write(tmp_path / "east.tif", np.full((3, 64, 96), 7, dtype=np.uint8), left=500_096)
    frame = geopandas.GeoDataFrame(
        {"class_name": ["water"]}, geometry=[shapely.box(500_096, 2_799_968, 500_192, 2_800_000)], crs="EPSG:32640"
    )
    pyogrio.write_dataframe(frame, tmp_path / "east.gpkg")
    dataset = open_pairs([pair, Pair(scene, tmp_path / "east.gpkg")], CODES, ModelInput(1.0))

    across = dataset[500_064:500_128, 2_799_936:2_800_000]

    expected = np.full((64, 64), IGNORED)
    expected[:, :32] = recoded(values)[0, :, 64:]
    expected[:32, 32:] = NAMES.index("water")
    assert np.array_equal(across["mask"], expected)
    assert (across["image"][:, :, 32:] == 7).all()


def test_image_and_mask_of_a_pixel_are_of_one_pair(tmp_path: Path) -> None:
    # Two dates of the same ground; the first holds no data in the west, and its labels say nothing of the east.
    dates = [np.full((3, 64, 96), grey, dtype=np.uint8) for grey in (50, 200)]
    dates[0][:, :, :32] = 0
    land = np.ones((1, 64, 96), dtype=np.uint8)
    land[:, :, 64:] = 255
    water = np.full((1, 64, 96), 9, dtype=np.uint8)
    pairs = [
        Pair(write(tmp_path / f"{i}.tif", date, nodata=0), write(tmp_path / f"{i}_labels.tif", labels, nodata=255))
        for i, (date, labels) in enumerate(zip(dates, (land, water), strict=True))
    ]

    sample = open_pairs(pairs, CODES, ModelInput(1.0))[500_000:500_096, 2_799_936:2_800_000]

    columns = np.arange(96) // 32
    assert (sample["image"] == torch.from_numpy(np.array([200, 50, 50])[columns])).all()
    assert (sample["mask"] == torch.from_numpy(np.array([2, 1, IGNORED])[columns])).all()


def test_samples_are_varied_on_request(pair: Pair) -> None:
    dataset = open_pairs([pair], CODES, ModelInput(1.0), vary=lambda sample: sample | {"image": -sample["image"]})

    sample = dataset[500_000:500_032, 2_799_968:2_800_000]

    assert sample.keys() == {"image", "mask"}
    assert sample["image"].max() <= 0


def test_datasets_may_pass_to_other_processes(pair: Pair) -> None:
    dataset = open_pairs([pair], CODES, ModelInput(1.0))
    place = next(iter(GridGeoSampler(dataset, size=32)))

    copied = pickle.loads(pickle.dumps(dataset))

    assert torch.equal(copied[place]["mask"], dataset[place]["mask"])
    assert torch.equal(copied[place]["image"], dataset[place]["image"])


def test_processes_that_load_samples_read_what_their_parent_has_open(pair: Pair) -> None:
    dataset = open_pairs([pair], CODES, ModelInput(1.0))
    sites = 10 * list(GridGeoSampler(dataset, size=32))
    expected = [dataset[place] for place in sites]

    loaded = list(DataLoader(dataset, batch_size=None, sampler=sites, num_workers=2))

    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(loaded, expected, strict=True))
