from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from matplotlib.image import imread
from numpy.typing import NDArray
from rasterio.crs import CRS

from landseg.errors import DiskError
from landseg.grid import Grid
from landseg.legend import LandClass, Legend
from landseg.outputs import ClassArea
from landseg.outputs.picture import _hectares, _panel_boxes, _round_length, draw_picture

RED, BLUE = (200, 30, 20), (20, 60, 220)
LEGEND = Legend((LandClass(1, "red $1 & $2", "#c81e14"), LandClass(2, "blue", "#143cdc")))
AREAS = (ClassArea(1, "red $1 & $2", 75e4, 0.75, 3, 80.0), ClassArea(2, "blue", 25e4, 0.25, 1, 60.0))
UTM = CRS.from_epsg(32640)


def grid(shape: tuple[int, int], degrees: float = 0) -> Grid:
    a, b = 10 * np.cos(np.radians(degrees)), 10 * np.sin(np.radians(degrees))
    return Grid(shape, Affine(a, b, 500_000, b, -a, 2_700_000), UTM)


def drawn(
    path: Path, labels: NDArray[np.uint8], imagery: NDArray[np.uint8] | None = None, *, merged: bool = False
) -> NDArray[np.uint8]:
    draw_picture(
        path,
        labels=labels,
        imagery=imagery,
        grid=grid((labels.shape[0], labels.shape[1])),
        legend=LEGEND,
        areas=AREAS,
        merged=merged,
        title="Title",
        source="Source",
    )
    return np.round(imread(path, format="png")[..., :3] * 255).astype(np.uint8)


def share_of(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels.astype(int) - colour).max(axis=-1) <= 2).mean())


def test_the_map_is_drawn_in_the_legends_colours(tmp_path: Path) -> None:
    labels = np.ones((100, 100), np.uint8)
    labels[:, 50:] = 2
    pixels = drawn(tmp_path / "map.draft", labels)
    assert pixels.shape == (1125, 2000, 3)
    assert share_of(pixels, RED) == pytest.approx(share_of(pixels, BLUE), rel=0.02)
    assert share_of(pixels, RED) > 0.1


def test_nodata_stays_white(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "map.png", np.zeros((100, 100), np.uint8))
    assert share_of(pixels, RED) == pytest.approx(share_of(pixels, BLUE), rel=0.05)
    assert share_of(pixels, RED) < 0.002  # only its swatch
    assert share_of(pixels, (255, 255, 255)) > 0.95


def test_the_small_print_says_where_the_areas_are_not_of_the_pixels_shown(tmp_path: Path) -> None:
    labels = np.ones((100, 100), np.uint8)
    before, after = (drawn(tmp_path / "map.png", labels, merged=merged) for merged in (False, True))
    changed = np.argwhere((before != after).any(axis=-1))
    assert (changed[:, 0] > 1030).all()
    assert np.ptp(changed[:, 1]) > 500


def test_imagery_stands_left_of_the_map(tmp_path: Path) -> None:
    green = np.zeros((100, 100, 3), np.uint8)
    green[..., 1] = 180
    pixels = drawn(tmp_path / "map.png", np.ones((100, 100), np.uint8), green)
    is_green = np.abs(pixels.astype(int) - (0, 180, 0)).max(axis=-1) <= 2
    left, right = is_green[:, :650].sum(), is_green[:, 750:].sum()
    assert left > 300_000
    assert right == 0
    assert share_of(pixels[:, 750:1400], RED) > 0.4


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 900), (900, 3)])
@pytest.mark.parametrize("with_imagery", [True, False])
def test_any_shape_is_drawn_within_the_margins(tmp_path: Path, shape: tuple[int, int], with_imagery: bool) -> None:
    imagery = np.full((*shape, 3), 90, np.uint8) if with_imagery else None
    pixels = drawn(tmp_path / "map.png", np.ones(shape, np.uint8), imagery)
    margin = np.ones(pixels.shape[:2], bool)
    margin[50:-40, 80:-80] = False
    assert (pixels[margin] == 255).all()


@pytest.mark.parametrize("aspect", [0.001, 0.3, 1, 3, 1000])
@pytest.mark.parametrize("count", [1, 2])
def test_panels_keep_their_aspect_and_do_not_overlap(aspect: float, count: int) -> None:
    boxes = _panel_boxes(count, aspect)
    assert len(boxes) == count
    for _, _, width, height in boxes:
        assert height / width == pytest.approx(aspect) or min(width, height) == 0.02
    if count == 2:
        (left, bottom, width, height), (left2, bottom2, _, height2) = boxes
        assert left + width < left2 or bottom2 + height2 < bottom


def test_wide_pictures_stand_below_each_other_and_others_side_by_side() -> None:
    wide, square = _panel_boxes(2, 0.1), _panel_boxes(2, 1)
    assert wide[0][0] == wide[1][0]
    assert square[0][1] == square[1][1]


@pytest.mark.parametrize("degrees", [0, 30, -120, 180])
def test_the_arrow_turns_with_the_grid(degrees: float) -> None:
    rotated = grid((200, 200), degrees)
    right, up = rotated.north
    # One step along the arrow on the picture is a step north on the ground.
    origin, ahead = (rotated.transform @ point for point in ((0, 0), (right, -up)))
    assert ahead[0] - origin[0] == pytest.approx(0, abs=0.01)
    assert ahead[1] - origin[1] == pytest.approx(10, abs=0.01)


def test_the_arrow_does_not_turn_with_the_shape_of_pixels() -> None:
    square = grid((200, 200), 30)
    oblong = Grid((200, 100), square.transform @ Affine.scale(2, 1), UTM)
    assert oblong.north == pytest.approx(square.north, abs=1e-4)


@pytest.mark.parametrize(("most", "expected"), [(1.0, 1), (1.99, 1), (2, 2), (4999, 2000), (5000, 5000), (0.3, 0.2)])
def test_scales_are_round(most: float, expected: float) -> None:
    assert _round_length(most) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("area_m2", "text"), [(0, "0 ha"), (456, "0.05 ha"), (34_560, "3.5 ha"), (12_345_678, "1,235 ha")]
)
def test_hectares(area_m2: float, text: str) -> None:
    assert _hectares(area_m2) == text


def test_many_classes_with_long_names_stay_within_the_margins(tmp_path: Path) -> None:
    legend = Legend(tuple(LandClass(i, f"a class with a very long name {i}" * 2, "#c81e14") for i in range(1, 60)))
    areas = tuple(ClassArea(c.class_id, c.name, 1e9, 1 / 59, 1, 50.0) for c in legend)
    path = tmp_path / "map.png"
    draw_picture(
        path,
        labels=np.ones((9, 9), np.uint8),
        imagery=None,
        grid=grid((9, 9)),
        legend=legend,
        areas=areas,
        merged=True,
        title="A title that is much longer than a slide is wide " * 5,
        source="And a source " * 60,
    )
    pixels = imread(path)[..., :3]
    assert (pixels[:, -80:] == 1).all()
    assert (pixels[-40:] == 1).all()


def test_a_missing_folder_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="nowhere"):
        drawn(tmp_path / "nowhere" / "map.png", np.ones((2, 2), np.uint8))
