import json
import math
import random
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
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject

from landseg.errors import TrainingDataError
from landseg.grid import Grid
from landseg.legend import LandClass, Legend
from landseg.train import evaluate
from landseg.train.evaluate import HALO_PX, Block, Scores, evaluate_map, score
from landseg.train.labels import IGNORED, LabelCodes, RasterLabels, Reading

# Ids that are neither the channels nor in order, so that mixing them up shows.
LEGEND = Legend((LandClass(7, "water", "#56b4e9"), LandClass(2, "land", "#ece2c6"), LandClass(4, "road", "#000000")))
CODES = LabelCodes({0: "water", 1: "land", 5: "road"}, LEGEND.names, ignored=[77])
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


def of_confusion(rows: list[list[int]]) -> Scores:
    return Scores.nothing(3) + Scores(np.array(rows), np.zeros((2, 2, 3), dtype=int), np.zeros((2, 101), dtype=int))


def cut(
    predicted: Array, reference: Array, confidence: Array | None = None, rows: int = 999, cols: int = 999
) -> list[Block]:
    """Cut whole arrays into blocks with halos."""
    labels = np.pad(predicted, HALO_PX, constant_values=0)
    channels_ = np.pad(reference, HALO_PX, constant_values=IGNORED)
    blocks = []
    for top in range(0, predicted.shape[0], rows):
        for left in range(0, predicted.shape[1], cols):
            core = np.s_[top : top + rows, left : left + cols]
            halo = np.s_[top : top + rows + 2 * HALO_PX, left : left + cols + 2 * HALO_PX]
            blocks.append(Block(labels[halo], channels_[halo], None if confidence is None else confidence[core]))
    return blocks


def test_scores_follow_from_the_confusion() -> None:
    scores = of_confusion([[5, 1, 0], [2, 3, 0], [4, 0, 0]])

    assert scores.labelled_px == 15
    assert scores.overall_accuracy == pytest.approx(8 / 15)
    np.testing.assert_allclose(scores.iou, [5 / 12, 3 / 6, 0 / 4])
    np.testing.assert_allclose(scores.f1, [10 / 17, 6 / 9, 0])
    assert scores.miou == pytest.approx((5 / 12 + 3 / 6 + 0) / 3)


def test_a_class_that_is_predicted_but_not_there_has_a_score_but_no_say_in_the_mean() -> None:
    scores = of_confusion([[5, 1, 2], [0, 3, 0], [0, 0, 0]])

    np.testing.assert_allclose(scores.iou, [5 / 8, 3 / 4, 0])
    assert scores.miou == pytest.approx((5 / 8 + 3 / 4) / 2)


def test_a_class_on_neither_side_has_no_score() -> None:
    scores = of_confusion([[5, 1, 0], [2, 3, 0], [0, 0, 0]])

    np.testing.assert_array_equal(np.isnan(scores.iou), [False, False, True])
    np.testing.assert_array_equal(np.isnan(scores.f1), [False, False, True])
    assert scores.miou == pytest.approx((5 / 8 + 3 / 6) / 2)


def test_without_pixels_every_score_is_nan() -> None:
    scores = Scores.nothing(3)

    assert scores.labelled_px == 0
    assert math.isnan(scores.miou)
    assert math.isnan(scores.overall_accuracy)
    assert math.isnan(scores.mean_boundary_f1)
    assert math.isnan(scores.reliability.error)
    assert np.isnan([scores.iou, scores.f1, scores.boundary_f1]).all()


def test_scores_can_be_written_as_json() -> None:
    boundaries, claims = np.zeros((2, 2, 3), dtype=int), np.zeros((2, 101), dtype=int)
    boundaries[..., 0] = [[1, 4], [3, 4]]
    claims[:, [20, 21, 90]] = [[1, 1, 3], [2, 2, 4]]
    scores = of_confusion([[3, 1, 0], [0, 4, 0], [0, 0, 0]]) + Scores(np.zeros((3, 3), dtype=int), boundaries, claims)
    empty = {"pixels": 0, "confidence": None, "accuracy": None}
    # Bins of 6 2/3 %: 20 % closes the third, 21 % opens the fourth.
    reliability = [empty] * 15
    reliability[2] = {"pixels": 2, "confidence": pytest.approx(0.20), "accuracy": 0.5}
    reliability[3] = {"pixels": 2, "confidence": pytest.approx(0.21), "accuracy": 0.5}
    reliability[13] = {"pixels": 4, "confidence": pytest.approx(0.9), "accuracy": 0.75}

    assert json.loads(json.dumps(scores.to_dict(LEGEND), allow_nan=False)) == {
        "labelled_px": 8,
        "miou": pytest.approx((3 / 4 + 4 / 5) / 2),
        "overall_accuracy": 7 / 8,
        "iou": {"water": 3 / 4, "land": 4 / 5, "road": None},
        "f1": {"water": pytest.approx(6 / 7), "land": pytest.approx(8 / 9), "road": None},
        "confusion": [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
        "boundary_tolerance_px": 3,
        "mean_boundary_f1": pytest.approx(2 * 0.25 * 0.75 / (0.25 + 0.75)),
        "boundary_f1": {"water": pytest.approx(0.375), "land": None, "road": None},
        "ece": pytest.approx((2 * 0.3 + 2 * 0.29 + 4 * 0.15) / 8),
        "reliability": reliability,
    }


def test_confusion_counts_reference_by_prediction_and_skips_the_unknown() -> None:
    predicted = np.array([[7, 7, 2, 0], [4, 2, 2, 7]], dtype=np.uint8)
    reference = np.array([[0, 2, 0, 1], [2, IGNORED, 1, 1]], dtype=np.int64)

    confusion = score(cut(predicted, reference), LEGEND).confusion

    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]


def boundary_counts(predicted: Array, reference: Array) -> Array:
    """Count boundary pixels as the definition says, pixel by pixel over the whole map."""
    known = (predicted != 0) & (reference != IGNORED)
    sides = [
        np.where(known, side, -1) for side in (np.select([predicted == i for i in (7, 2, 4)], [0, 1, 2]), reference)
    ]
    unknown = np.argwhere(np.pad(~known, 4, constant_values=True)) - 4
    edges: list[dict[tuple[int, int], int]] = []
    for side in sides:
        edge = {}
        for (row, col), channel in np.ndenumerate(side):
            ways = [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
            others = {int(side[r, c]) for r, c in ways if 0 <= r < side.shape[0] and 0 <= c < side.shape[1]}
            if channel >= 0 and others - {-1, int(channel)}:
                edge[row, col] = int(channel)
        edges.append(edge)
    counts = np.zeros((2, 2, 3), dtype=int)
    for index, (own, other) in enumerate((edges, edges[::-1])):
        for place, channel in own.items():
            if (np.hypot(*(unknown - place).T) > 3).all():
                counts[index, 1, channel] += 1
                counts[index, 0, channel] += any(
                    math.dist(place, there) <= 3 for there, its in other.items() if its == channel
                )
    return counts


@st.composite
def maps(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Draw a patchy map, a reference that resembles it, and confidence."""
    rows, cols = draw(st.integers(1, 26)), draw(st.integers(1, 26))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grain = draw(st.integers(1, 9))
    patches = rng.choice([7, 2, 4], (rows // grain + 1, cols // grain + 1)).repeat(grain, 0).repeat(grain, 1)
    predicted = patches[:rows, :cols].astype(np.uint8)
    moved = np.roll(predicted, draw(st.tuples(st.integers(0, 4), st.integers(0, 4))), (0, 1))
    reference = np.select([moved == 7, moved == 2], [0, 1], 2).astype(np.int64)
    predicted[rng.random(predicted.shape) < draw(st.sampled_from([0, 0.01, 0.3]))] = 0
    reference[rng.random(reference.shape) < draw(st.sampled_from([0, 0.01, 0.3]))] = IGNORED
    return predicted, reference, rng.integers(0, 101, predicted.shape, dtype=np.uint8)


@given(maps(), st.integers(1, 30), st.integers(1, 30), st.randoms(use_true_random=False))
def test_blocks_do_not_matter(arrays: tuple[Array, Array, Array], rows: int, cols: int, order: random.Random) -> None:
    predicted, reference, confidence = arrays
    blocks = cut(predicted, reference, confidence, rows, cols)
    order.shuffle(blocks)

    scores = score(blocks, LEGEND)

    assert np.array_equal(scores.confusion, counted(predicted, reference))
    assert np.array_equal(scores.boundaries, boundary_counts(predicted, reference))
    known = (predicted != 0) & (reference != IGNORED)
    right = known & (np.select([predicted == i for i in (7, 2, 4)], [0, 1, 2]) == reference)
    assert np.array_equal(scores.claims, [np.bincount(confidence[some], minlength=101) for some in (right, known)])


def square(row: int, col: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw a lake of 20 x 20 px with its corner at a place, as class ids and as channels."""
    predicted = np.full((60, 60), 2, dtype=np.uint8)
    predicted[row : row + 20, col : col + 20] = 7
    return predicted, np.where(predicted == 7, 0, 1)


@pytest.mark.parametrize(("shift", "least", "most"), [(0, 1, 1), (3, 1, 1), (4, 0.4, 0.9), (15, 0, 0.6)])
def test_boundaries_may_be_off_by_three_pixels(shift: int, least: float, most: float) -> None:
    scores = score(cut(square(20, 10 + shift)[0], square(20, 10)[1]), LEGEND)

    assert least <= scores.boundary_f1[0] <= most
    assert least <= scores.boundary_f1[1] <= most
    assert scores.mean_boundary_f1 == pytest.approx(scores.boundary_f1[:2].mean())
    assert np.isnan(scores.boundary_f1[2])


@pytest.mark.parametrize(("moved", "expected"), [(4, 1), (5, 0)])
def test_the_tolerance_is_euclidean(moved: int, expected: float) -> None:
    # A diagonal moved by 4 px is 2 rows and 2 columns away, 2.8 px; moved by 5 px it is 3.6 px away.
    predicted = np.where(np.eye(60, k=moved) > 0, 7, 2).astype(np.uint8)
    reference = np.where(np.eye(60) > 0, 0, 1)

    assert score(cut(predicted, reference), LEGEND).boundary_f1[0] == expected


def test_a_boundary_of_one_side_alone_scores_nothing() -> None:
    lake, _ = square(20, 20)

    scores = score(cut(lake, np.ones((60, 60), dtype=np.int64)), LEGEND)

    assert scores.boundary_f1[:2].tolist() == [0, 0]
    assert math.isnan(scores.mean_boundary_f1)


def test_sides_with_unknown_ground_are_no_boundaries() -> None:
    predicted, reference = np.full((40, 40), 7, dtype=np.uint8), np.zeros((40, 40), dtype=np.int64)
    predicted[:, 20:], reference[15:25] = 0, IGNORED

    scores = score(cut(predicted, reference), LEGEND)

    assert scores.labelled_px > 0
    assert not scores.boundaries.any()


def test_what_may_match_in_unknown_ground_is_not_counted() -> None:
    predicted, reference = square(20, 20)
    # The reference leaves out a seam around its lake, as references do where the shore is uncertain.
    reference[18:42, 18:42] = IGNORED
    reference[22:38, 22:38] = 0

    assert not score(cut(predicted, reference), LEGEND).boundaries.any()


def test_claims_that_come_true_have_no_error() -> None:
    # Of 100 pixels of each confidence, as many are right.
    percent = np.repeat(np.arange(101, dtype=np.uint8), 100).reshape(101, 100)
    right = np.arange(100) < np.arange(101)[:, None]
    predicted, reference = np.full((101, 100), 7, dtype=np.uint8), np.where(right, 0, 1)

    honest = score(cut(predicted, reference, percent), LEGEND)
    boasting = score(cut(predicted, reference, np.minimum(percent + 10, 100).astype(np.uint8)), LEGEND)

    assert honest.reliability.error == pytest.approx(0, abs=1e-12)
    # 10 points for confidences up to 90 %, and less above.
    assert boasting.reliability.error == pytest.approx((91 * 0.1 + sum(range(10)) / 100) / 101)
    assert honest.reliability.pixels.sum() == 101 * 100


def test_a_map_without_confidence_has_no_calibration_error() -> None:
    scores = score(cut(*square(20, 20)), LEGEND)

    assert math.isnan(scores.reliability.error)
    assert scores.labelled_px == 3600


def test_a_confidence_above_100_percent_is_refused() -> None:
    with pytest.raises(TrainingDataError, match="holds 101, which is no confidence"):
        score(cut(*square(20, 20), np.full((60, 60), 101, dtype=np.uint8)), LEGEND)


def test_scores_add_up() -> None:
    first, second = (cut(*square(20, 10 + shift), np.full((60, 60), 80, np.uint8)) for shift in (2, 9))

    total, both = score(first, LEGEND) + score(second, LEGEND), score(first + second, LEGEND)

    assert total.to_dict(LEGEND) == both.to_dict(LEGEND)
    assert total.labelled_px == 7200


def test_blocks_are_taken_one_at_a_time() -> None:
    held = []

    def blocks() -> Iterator[evaluate.Block]:
        for _ in range(5):
            held.append("made")
            yield from cut(drawn((4, 4), (2, 4, 7), 0), channels(drawn((4, 4), (0, 1, 5), 1)))
            held.append("asked for the next")

    score(blocks(), LEGEND)

    assert held == ["made", "asked for the next"] * 5


def test_no_blocks_at_all_give_empty_scores() -> None:
    assert score([], LEGEND).labelled_px == 0


def test_a_class_id_that_the_legend_lacks_is_refused_even_where_nothing_is_known() -> None:
    predicted, reference = np.array([[7, 9]], dtype=np.uint8), np.array([[0, IGNORED]], dtype=np.int64)

    with pytest.raises(TrainingDataError, match="class id 9, which is not in the legend") as caught:
        score(cut(predicted, reference), LEGEND)

    assert caught.value.exit_code == 3


def test_maps_on_one_grid_are_compared_pixel_by_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK_PX", 16)
    predicted, values = drawn((40, 50), (0, 2, 4, 7), 0), drawn((40, 50), (0, 1, 5, 77, 255), 1)
    prediction = write(tmp_path / "map.tif", predicted, nodata=0)
    labels = write(tmp_path / "labels.tif", values, nodata=255)

    scores = evaluate_map(prediction, labels, CODES, LEGEND)

    assert np.array_equal(scores.confusion, counted(predicted, channels(values)))
    assert np.array_equal(scores.boundaries, score(cut(predicted, channels(values)), LEGEND).boundaries)
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
        {"zone": ["water", "5", "77"]},
        geometry=[shapely.box(500_000 + x, 2_799_965, 500_000 + x + 10, 2_800_000) for x in (0, 12, 30)],
        crs=UTM40,
    )
    pyogrio.write_dataframe(zones, tmp_path / "zones.gpkg", layer="zones")

    scores = evaluate_map(prediction, tmp_path / "zones.gpkg", CODES, LEGEND, class_column="zone", layer="zones")

    reference = np.full((40, 50), IGNORED)
    reference[:35, :10], reference[:35, 12:22] = 0, 2
    assert np.array_equal(scores.confusion, counted(predicted, reference))


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_values_beyond_8_bits_are_no_others(tmp_path: Path, dtype: str) -> None:
    predicted = np.array([[7, 2, 4, 7]], dtype=np.uint8)
    wide = {"int16": [0, 1, -1, -251], "uint16": [0, 1, 261, 65535], "float32": [0, 1, np.nan, 1e9]}[dtype]
    prediction = write(tmp_path / "map.tif", predicted)
    labels = write(tmp_path / "labels.tif", np.array([wide], dtype=dtype))
    codes = LabelCodes({0: "water", 1: "land", 5: "road"}, LEGEND.names, ignored=[-1, -251, 261, 65535, 10**9])

    assert evaluate_map(prediction, labels, codes, LEGEND).confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_confidence_is_read_from_the_second_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK_PX", 16)
    predicted, percent = drawn((20, 20), (2, 4, 7), 0), drawn((20, 20), tuple(range(101)), 2)
    prediction = tmp_path / "map.tif"
    options = {"driver": "GTiff", "count": 2, "height": 20, "width": 20, "dtype": "uint8", "nodata": 0}
    with rasterio.open(prediction, "w", crs=UTM40, transform=METRE, **options) as file:
        file.write(np.stack([predicted, percent]))
    values = drawn((20, 20), (0, 1, 5), 1)

    scores = evaluate_map(prediction, write(tmp_path / "labels.tif", values), CODES, LEGEND)

    assert np.array_equal(scores.confusion, counted(predicted, channels(values)))
    assert np.array_equal(scores.claims, score(cut(predicted, channels(values), percent), LEGEND).claims)


@pytest.mark.parametrize("crs", [UTM40, "EPSG:32633", "EPSG:4326", "EPSG:2193"])
def test_rasters_of_different_places_are_refused(tmp_path: Path, crs: str) -> None:
    elsewhere = Affine(1e-5, 0, 10, 0, -1e-5, 50) if crs == "EPSG:4326" else METRE @ Affine.translation(5000, 0)
    prediction = write(tmp_path / "map.tif", drawn((10, 10), (2, 4, 7), 0))
    labels = write(tmp_path / "labels.tif", drawn((10, 10), (0, 1, 5), 1), elsewhere, crs)

    with pytest.raises(TrainingDataError, match=r"labels\.tif do not overlap the map"):
        evaluate_map(prediction, labels, CODES, LEGEND)


def test_a_reference_whose_values_are_all_ignored_is_refused(tmp_path: Path) -> None:
    prediction = write(tmp_path / "map.tif", drawn((10, 10), (2, 4, 7), 0))
    labels = write(tmp_path / "labels.tif", np.full((10, 10), 77, dtype=np.uint8))

    with pytest.raises(TrainingDataError, match="has a known class") as caught:
        evaluate_map(prediction, labels, CODES, LEGEND)

    assert caught.value.hint is not None
    assert "label_values" in caught.value.hint


def test_values_of_the_reference_that_are_not_explained_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BLOCK_PX", 16)
    prediction = write(tmp_path / "map.tif", drawn((40, 50), (2, 4, 7), 0))
    values = drawn((40, 50), (0, 1, 5, 255), 1)
    values[38:, 48:], values[0, 0] = 33, 44
    labels = write(tmp_path / "labels.tif", values, nodata=255)
    zones = geopandas.GeoDataFrame(
        {"class_name": ["land", "lnad"]},
        geometry=[shapely.box(500_000 + x, 2_799_990, 500_000 + x + 5, 2_800_000) for x in (0, 20)],
        crs=UTM40,
    )
    pyogrio.write_dataframe(zones, tmp_path / "zones.gpkg")

    for path, found in ((labels, "33 (4 px), 44 (1 px)"), (tmp_path / "zones.gpkg", "'lnad' (50 px; did you mean")):
        with pytest.raises(TrainingDataError) as caught:
            evaluate_map(prediction, path, CODES, LEGEND)
        assert f"{path} holds values that are no class: {found}" in caught.value.what
        assert "--ignored-values" in str(caught.value.hint)


def test_a_reference_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK_PX", 16)
    prediction = write(tmp_path / "map.tif", drawn((32, 48), (2, 4, 7), 0))
    labels = write(tmp_path / "labels.tif", drawn((32, 48), (0, 1, 5), 1))
    grids: list[Grid] = []
    read = RasterLabels.read

    def noted(self: RasterLabels, grid: Grid) -> Reading:
        grids.append(grid)
        return read(self, grid)

    monkeypatch.setattr(RasterLabels, "read", noted)

    assert evaluate_map(prediction, labels, CODES, LEGEND).labelled_px == 32 * 48
    assert len(grids) == 2 * 3


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
