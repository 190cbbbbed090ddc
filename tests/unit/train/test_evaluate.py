import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject

from landseg.errors import TrainingDataError
from landseg.legend import LandClass, Legend
from landseg.train import evaluate
from landseg.train.evaluate import Scores, evaluate_map, score
from landseg.train.labels import IGNORED, LabelCodes

# Ids that are neither the channels nor in order, so that mixing them up shows.
LEGEND = Legend((LandClass(7, "water", "#56b4e9"), LandClass(2, "land", "#ece2c6"), LandClass(4, "road", "#000000")))
CODES = LabelCodes({0: "water", 1: "land", 5: "road"}, LEGEND.names)
UTM40 = "EPSG:32640"
METRE = Affine(1, 0, 500_000, 0, -1, 2_800_000)

Array = NDArray[Any]


def write(path: Path, data: Array, transform: Affine = METRE, crs: str | None = UTM40, **profile: Any) -> Path:
    options = {"driver": "GTiff", "count": 1, "height": data.shape[0], "width": data.shape[1], "dtype": data.dtype}
    with rasterio.open(path, "w", crs=crs, transform=transform, **(options | profile)) as file:
        file.write(data, 1)
    return path


def drawn(shape: tuple[int, int], choices: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).choice(np.array(choices, dtype=np.uint8), shape)


def counted(predicted: Array, reference: Array) -> Array:
    """Count pixel by pixel, from class ids and channels."""
    confusion = np.zeros((3, 3), dtype=int)
    for label, channel in zip(predicted.ravel(), reference.ravel(), strict=True):
        if label != 0 and channel != IGNORED:
            confusion[channel, {7: 0, 2: 1, 4: 2}[int(label)]] += 1
    return confusion


def channels(values: Array) -> NDArray[np.int64]:
    return np.select([values == 0, values == 1, values == 5], [0, 1, 2], IGNORED).astype(np.int64)


def test_scores_follow_from_the_confusion() -> None:
    scores = Scores(np.array([[5, 1, 0], [2, 3, 0], [4, 0, 0]]))

    assert scores.labelled_px == 15
    assert scores.overall_accuracy == pytest.approx(8 / 15)
    np.testing.assert_allclose(scores.iou, [5 / 12, 3 / 6, 0 / 4])
    np.testing.assert_allclose(scores.f1, [10 / 17, 6 / 9, 0])
    assert scores.miou == pytest.approx((5 / 12 + 3 / 6 + 0) / 3)


def test_a_class_that_is_predicted_but_not_there_has_a_score_but_no_say_in_the_mean() -> None:
    scores = Scores(np.array([[5, 1, 2], [0, 3, 0], [0, 0, 0]]))

    np.testing.assert_allclose(scores.iou, [5 / 8, 3 / 4, 0])
    assert scores.miou == pytest.approx((5 / 8 + 3 / 4) / 2)


def test_a_class_on_neither_side_has_no_score() -> None:
    scores = Scores(np.array([[5, 1, 0], [2, 3, 0], [0, 0, 0]]))

    np.testing.assert_array_equal(np.isnan(scores.iou), [False, False, True])
    np.testing.assert_array_equal(np.isnan(scores.f1), [False, False, True])
    assert scores.miou == pytest.approx((5 / 8 + 3 / 6) / 2)


def test_without_pixels_every_score_is_nan() -> None:
    scores = Scores(np.zeros((3, 3), dtype=np.int64))

    assert scores.labelled_px == 0
    assert math.isnan(scores.miou)
    assert math.isnan(scores.overall_accuracy)
    assert np.isnan([scores.iou, scores.f1]).all()


def test_scores_can_be_written_as_json() -> None:
    scores = Scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))

    assert json.loads(json.dumps(scores.to_dict(LEGEND), allow_nan=False)) == {
        "labelled_px": 8,
        "miou": pytest.approx((3 / 4 + 4 / 5) / 2),
        "overall_accuracy": 7 / 8,
        "iou": {"water": 3 / 4, "land": 4 / 5, "road": None},
        "f1": {"water": pytest.approx(6 / 7), "land": pytest.approx(8 / 9), "road": None},
        "confusion": [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
    }


def test_confusion_counts_reference_by_prediction_and_skips_the_unknown() -> None:
    predicted = np.array([[7, 7, 2, 0], [4, 2, 2, 7]], dtype=np.uint8)
    reference = np.array([[0, 2, 0, 1], [2, IGNORED, 1, 1]], dtype=np.int64)

    confusion = score([(predicted, reference)], LEGEND).confusion

    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("cuts", [[], [1], [4, 9], list(range(1, 12))])
def test_blocks_do_not_matter(cuts: list[int]) -> None:
    predicted, reference = drawn((12, 7), (0, 2, 4, 7), 0), channels(drawn((12, 7), (0, 1, 5, 9), 1))

    blocks = list(zip(np.split(predicted, cuts), np.split(reference, cuts), strict=True))

    expected = counted(predicted, reference)
    assert np.array_equal(score(blocks, LEGEND).confusion, expected)
    assert np.array_equal(score(reversed(blocks), LEGEND).confusion, expected)


def test_blocks_are_taken_one_at_a_time() -> None:
    held = []

    def blocks() -> Iterator[evaluate.Block]:
        for _ in range(5):
            held.append("made")
            yield drawn((4, 4), (2, 4, 7), 0), channels(drawn((4, 4), (0, 1, 5), 1))
            held.append("asked for the next")

    score(blocks(), LEGEND)

    assert held == ["made", "asked for the next"] * 5


def test_no_blocks_at_all_give_empty_scores() -> None:
    assert score([], LEGEND).labelled_px == 0


def test_a_class_id_that_the_legend_lacks_is_refused_even_where_nothing_is_known() -> None:
    predicted, reference = np.array([[7, 9]], dtype=np.uint8), np.array([[0, IGNORED]], dtype=np.int64)

    with pytest.raises(TrainingDataError, match="class id 9, which is not in the legend") as caught:
        score([(predicted, reference)], LEGEND)

    assert caught.value.exit_code == 3


def test_maps_on_one_grid_are_compared_pixel_by_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK_PX", 16)
    predicted, values = drawn((40, 50), (0, 2, 4, 7), 0), drawn((40, 50), (0, 1, 5, 77, 255), 1)
    prediction = write(tmp_path / "map.tif", predicted, nodata=0)
    labels = write(tmp_path / "labels.tif", values, nodata=255)

    scores = evaluate_map(prediction, labels, CODES, LEGEND)

    assert np.array_equal(scores.confusion, counted(predicted, channels(values)))
    assert scores.labelled_px > 500


def test_a_reference_of_coarser_pixels_is_read_at_the_nearest(tmp_path: Path) -> None:
    predicted, values = drawn((40, 60), (0, 2, 4, 7), 0), drawn((10, 15), (0, 1, 5, 255), 1)
    prediction = write(tmp_path / "map.tif", predicted)
    labels = write(tmp_path / "labels.tif", values, METRE @ Affine.scale(4), nodata=255)

    scores = evaluate_map(prediction, labels, CODES, LEGEND)

    spread = np.kron(values, np.ones((4, 4), dtype=np.uint8))
    assert np.array_equal(scores.confusion, counted(predicted, channels(spread)))


@pytest.mark.parametrize("nodata", [None, 255])
def test_ground_that_the_reference_does_not_cover_takes_no_part(tmp_path: Path, nodata: int | None) -> None:
    # 0 means water in the reference, and is what a warper fills with.
    predicted, values = drawn((30, 30), (2, 4, 7), 0), drawn((20, 20), (0, 1, 5), 1)
    prediction = write(tmp_path / "map.tif", predicted)
    labels = write(tmp_path / "labels.tif", values, METRE @ Affine.translation(15, -5), nodata=nodata)

    scores = evaluate_map(prediction, labels, CODES, LEGEND)

    # The reference covers the map's rows 0 to 15 and columns 15 to 30: its own rows 5 to 20 and columns 0 to 15.
    assert np.array_equal(scores.confusion, counted(predicted[:15, 15:], channels(values[5:, :15])))
    assert scores.labelled_px == 225


def test_a_reference_in_another_crs_is_brought_to_the_map(tmp_path: Path) -> None:
    predicted, values = drawn((40, 40), (2, 4, 7), 0), drawn((100, 100), (0, 1, 5), 1)
    prediction = write(tmp_path / "map.tif", predicted)
    # About a pixel's size in degrees, around the map's corner at 57 E, 25.3 N.
    degrees = Affine(1e-5, 0, 56.9998, 0, -1e-5, 25.3168)
    labels = write(tmp_path / "labels.tif", values, degrees, "EPSG:4326", nodata=255)

    scores = evaluate_map(prediction, labels, CODES, LEGEND)

    placed = np.full((40, 40), 255, dtype=np.uint8)
    reproject(
        values,
        placed,
        src_transform=degrees,
        src_crs=CRS.from_epsg(4326),
        dst_transform=METRE,
        dst_crs=CRS.from_epsg(32640),
        src_nodata=255,
        dst_nodata=255,
        resampling=Resampling.nearest,
    )
    assert (placed != 255).sum() > 100
    assert np.array_equal(scores.confusion, counted(predicted, channels(placed)))


def test_a_reference_of_polygons_is_drawn_on_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK_PX", 16)
    predicted = drawn((40, 50), (0, 2, 4, 7), 0)
    prediction = write(tmp_path / "map.tif", predicted, nodata=0)
    zones = geopandas.GeoDataFrame(
        {"zone": ["water", "5", "castle"]},
        geometry=[shapely.box(500_000 + x, 2_799_965, 500_000 + x + 10, 2_800_000) for x in (0, 12, 30)],
        crs=UTM40,
    )
    pyogrio.write_dataframe(zones, tmp_path / "zones.gpkg", layer="zones")

    scores = evaluate_map(prediction, tmp_path / "zones.gpkg", CODES, LEGEND, class_column="zone", layer="zones")

    reference = np.full((40, 50), IGNORED)
    reference[:35, :10], reference[:35, 12:22] = 0, 2
    assert np.array_equal(scores.confusion, counted(predicted, reference))


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_values_beyond_8_bits_are_unknown(tmp_path: Path, dtype: str) -> None:
    predicted = np.array([[7, 2, 4, 7]], dtype=np.uint8)
    wide = {"int16": [0, 1, -1, -251], "uint16": [0, 1, 261, 65535], "float32": [0, 1, np.nan, 1e9]}[dtype]
    prediction = write(tmp_path / "map.tif", predicted)
    labels = write(tmp_path / "labels.tif", np.array([wide], dtype=dtype))

    assert evaluate_map(prediction, labels, CODES, LEGEND).confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_a_map_with_confidence_in_a_second_band_is_read_by_its_first(tmp_path: Path) -> None:
    predicted = drawn((20, 20), (2, 4, 7), 0)
    prediction = tmp_path / "map.tif"
    with rasterio.open(
        prediction,
        "w",
        driver="GTiff",
        count=2,
        height=20,
        width=20,
        dtype="uint8",
        crs=UTM40,
        transform=METRE,
        nodata=0,
    ) as file:
        file.write(np.stack([predicted, np.full_like(predicted, 99)]))
    values = drawn((20, 20), (0, 1, 5), 1)

    scores = evaluate_map(prediction, write(tmp_path / "labels.tif", values), CODES, LEGEND)

    assert np.array_equal(scores.confusion, counted(predicted, channels(values)))


@pytest.mark.parametrize("crs", [UTM40, "EPSG:32633", "EPSG:4326", "EPSG:2193"])
def test_rasters_of_different_places_are_refused(tmp_path: Path, crs: str) -> None:
    elsewhere = Affine(1e-5, 0, 10, 0, -1e-5, 50) if crs == "EPSG:4326" else METRE @ Affine.translation(5000, 0)
    prediction = write(tmp_path / "map.tif", drawn((10, 10), (2, 4, 7), 0))
    labels = write(tmp_path / "labels.tif", drawn((10, 10), (0, 1, 5), 1), elsewhere, crs)

    with pytest.raises(TrainingDataError, match=r"labels\.tif do not overlap the map"):
        evaluate_map(prediction, labels, CODES, LEGEND)


def test_a_reference_of_unknown_values_is_refused(tmp_path: Path) -> None:
    prediction = write(tmp_path / "map.tif", drawn((10, 10), (2, 4, 7), 0))
    labels = write(tmp_path / "labels.tif", np.full((10, 10), 77, dtype=np.uint8))

    with pytest.raises(TrainingDataError, match="has a known class") as caught:
        evaluate_map(prediction, labels, CODES, LEGEND)

    assert caught.value.hint is not None
    assert "label_values" in caught.value.hint


@pytest.mark.parametrize("bare", ["map.tif", "labels.tif"])
def test_rasters_without_a_crs_are_refused(tmp_path: Path, bare: str) -> None:
    for name in ("map.tif", "labels.tif"):
        write(tmp_path / name, drawn((10, 10), (2, 4, 7), 0), crs=None if name == bare else UTM40)

    with pytest.raises(TrainingDataError, match=f"{bare} has no coordinate reference system"):
        evaluate_map(tmp_path / "map.tif", tmp_path / "labels.tif", CODES, LEGEND)


def test_files_that_can_t_be_read_are_named(tmp_path: Path) -> None:
    prediction = write(tmp_path / "map.tif", drawn((10, 10), (2, 4, 7), 0))

    with pytest.raises(TrainingDataError, match=r"none\.tif"):
        evaluate_map(prediction, tmp_path / "none.tif", CODES, LEGEND)


def test_a_truncated_map_is_refused(tmp_path: Path) -> None:
    prediction = write(tmp_path / "map.tif", drawn((200, 200), (2, 4, 7), 0))
    prediction.write_bytes(prediction.read_bytes()[:20_000])
    labels = write(tmp_path / "labels.tif", drawn((200, 200), (0, 1, 5), 1))

    with pytest.raises(TrainingDataError, match=r"can't read .*map\.tif"):
        evaluate_map(prediction, labels, CODES, LEGEND)
