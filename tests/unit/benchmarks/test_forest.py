import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from benchmarks import forest
from benchmarks.forest import MARGIN_PX, WINDOWS_PX, evaluate_forest, features, fit_forest, labelled_px, labelled_strips
from landseg.train.labels import LabelCodes
from landseg.train.samples import Pair

NAMES = ("building", "land", "road", "vegetation", "water")
CODES = LabelCodes(dict(enumerate(NAMES)), NAMES)


def test_features_are_those_of_the_windows_mirrored_at_the_edge(city: NDArray[np.uint8]) -> None:
    described = features(city)

    assert described.shape == (120, 150, 5 + 6 * len(WINDOWS_PX))
    mirrored = np.pad(city.astype(float), ((0, 0), (13, 13), (13, 13)), mode="symmetric")
    for row, col in ((0, 0), (0, 149), (60, 70), (119, 3)):
        red, green, blue = city[:, row, col].astype(float)
        total = red + green + blue
        expected = [red, green, blue, total / 3, (2 * green - red - blue) / total]
        for half in (1, 4, 13):
            square = mirrored[:, row + 13 - half : row + 14 + half, col + 13 - half : col + 14 + half]
            expected += [*square.mean(axis=(1, 2)), *square.std(axis=(1, 2))]
        np.testing.assert_allclose(described[row, col], expected, rtol=1e-5, atol=1e-4)


def test_a_black_and_flat_image_has_features() -> None:
    np.testing.assert_array_equal(features(np.zeros((3, 4, 5), np.uint8)), 0)


def test_a_part_with_its_margin_has_the_features_of_the_whole(city: NDArray[np.uint8]) -> None:
    part = features(city[:, 30 - MARGIN_PX : 50 + MARGIN_PX, : 40 + MARGIN_PX])[MARGIN_PX:-MARGIN_PX, :-MARGIN_PX]

    np.testing.assert_allclose(part, features(city)[30:50, :40], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("strip_px", [50, 192])
def test_strips_hold_every_labelled_pixel_once(corner: Pair, strip_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "STRIP_PX", strip_px)
    codes = LabelCodes({1: "land", 2: "road"}, NAMES)
    described, channels = (np.concatenate(part) for part in zip(*labelled_strips(corner, codes), strict=True))

    with rasterio.open(corner.scene) as scene, rasterio.open(corner.labels) as labels:
        whole, values = features(scene.read()), labels.read(1)
    known = (values == 1) | (values == 2)
    assert labelled_px(corner, codes) == known.sum() == channels.size
    np.testing.assert_array_equal(channels, values[known])
    np.testing.assert_allclose(described, whole[known], rtol=1e-6, atol=1e-4)


def test_a_forest_knows_the_ground_that_it_has_seen(corner: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "SAMPLE_PX", 3000)

    scores = evaluate_forest(fit_forest([corner], CODES, seed=1), [corner, corner], CODES)

    assert scores.labelled_px == 2 * labelled_px(corner, CODES)
    # Guessing the commonest class everywhere would give a fifth of its own IoU.
    assert scores.miou > 0.5
