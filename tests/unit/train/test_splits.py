import re
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.vrt import WarpedVRT

from landseg.errors import TrainingDataError
from landseg.train.labels import IGNORED, LabelCodes
from landseg.train.samples import ModelInput, Pair
from landseg.train.splits import Blocks, Splits, open_splits

NAMES = ("land", "water")
CODES = LabelCodes({1: "land", 2: "water"}, NAMES)
LEFT, TOP = 500_000.0, 2_800_000.0


def write(path: Path, data: NDArray[Any], left: float = 0, **profile: Any) -> Path:
    """Write (C, H, W) as a GeoTIFF of 1 m pixels so many pixels east of a corner."""
    options = {"count": data.shape[0], "height": data.shape[1], "width": data.shape[2], "dtype": data.dtype} | profile
    transform = Affine(1, 0, LEFT + left, 0, -1, TOP)
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32640", transform=transform, **options) as file:
        file.write(data)
    return path


def make_pair(folder: Path, name: str, labels: NDArray[np.uint8], left: float = 0) -> Pair:
    scene = write(folder / f"{name}.tif", np.random.default_rng(0).integers(1, 256, (3, *labels.shape), np.uint8), left)
    return Pair(scene, write(folder / f"{name}_labels.tif", labels[None], left, nodata=255))


def halves(rows: int, cols: int) -> NDArray[np.uint8]:
    """Give land above water, a stripe of each eight rows high in turn."""
    return np.broadcast_to((np.arange(rows)[:, None] // 8 % 2 + 1), (rows, cols)).astype(np.uint8)


def pixels(place: Any) -> tuple[int, int, int, int]:
    """Give a place as (top, bottom, left, right) in pixels from the corner."""
    x, y, _ = place
    edges = (TOP - y.stop, TOP - y.start, x.start - LEFT, x.stop - LEFT)
    assert np.allclose(edges, np.round(edges), atol=1e-4)
    return tuple(round(edge) for edge in edges)  # type: ignore[return-value]


def drawn(splits: Splits, length: int = 300) -> list[tuple[int, int, int, int]]:
    torch.manual_seed(0)
    return [pixels(place) for place in splits.training_sampler(length)]


def held_out(splits: Splits) -> list[tuple[int, int, int, int]]:
    return [pixels(place) for place in splits.validation_sampler()]


def gap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    """Give the pixels between two rectangles, along the axis on which they are farther apart."""
    return max(one[0] - other[1], other[0] - one[1], one[2] - other[3], other[2] - one[3])


def test_without_a_split_chips_come_from_everywhere(tmp_path: Path) -> None:
    splits = open_splits([make_pair(tmp_path, "a", halves(64, 96))], CODES, ModelInput(1.0), chip_px=16)

    places = np.array(drawn(splits, 2000))

    assert splits.validation is None
    assert len(splits.training) == 1
    assert places[:, [0, 2]].min() == 0
    assert places[:, 1].max() >= 63
    assert places[:, 3].max() >= 95
    assert splits.class_px.tolist() == [32 * 96, 32 * 96]
    np.testing.assert_array_equal(splits.class_shares, [0.5, 0.5])


def test_blocks_are_kept_away_from_training_by_the_buffer(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a", halves(160, 160))

    splits = open_splits(
        [pair], CODES, ModelInput(1.0), chip_px=16, validation=Blocks(share=0.25, block_px=40, buffer_px=5)
    )

    chips, training = held_out(splits), drawn(splits)
    # Sixteen blocks of 40 px, four of them held out; nine chips of 16 px cover one.
    assert len(chips) == 36
    covered = np.zeros((160, 160), dtype=bool)
    for top, bottom, left, right in chips:
        covered[top:bottom, left:right] = True
    blocks = covered.reshape(4, 40, 4, 40).transpose(0, 2, 1, 3).reshape(16, 1600)
    assert sorted(blocks.mean(axis=1)) == [0] * 12 + [1] * 4
    assert min(gap(chip, place) for chip in chips for place in training) == 5


def test_chips_may_lie_across_blocks_that_are_not_held_out(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a", halves(160, 160))

    splits = open_splits(
        [pair], CODES, ModelInput(1.0), chip_px=16, validation=Blocks(share=0.25, block_px=40, buffer_px=5)
    )

    allowed = np.ones((160, 160), dtype=bool)
    for top, bottom, left, right in held_out(splits):
        allowed[max(0, top - 5) : bottom + 5, max(0, left - 5) : right + 5] = False
    entered = np.zeros((160, 160), dtype=bool)
    # Rectangles of the index, and not draws: whatever chip is allowed lies within one.
    for bounds in splits.training.index.geometry.bounds.to_numpy():
        left, bottom, right, top = np.round(bounds - [LEFT, TOP, LEFT, TOP]).astype(int)
        entered[-top:-bottom, left:right] = True
    windows = np.lib.stride_tricks.sliding_window_view(allowed, (16, 16))
    expected = np.zeros((160, 160), dtype=bool)
    for top, left in np.argwhere(windows.all(axis=(2, 3))):
        expected[top : top + 16, left : left + 16] = True
    assert np.array_equal(entered, expected)


def test_by_default_blocks_are_of_three_chips_and_half_a_chip_apart(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a", halves(240, 240))

    splits = open_splits([pair], CODES, ModelInput(1.0), chip_px=16, validation=Blocks())

    chips = held_out(splits)
    assert len(chips) == 5 * 9
    assert min(gap(chip, place) for chip in chips for place in drawn(splits, 1000)) == 8


def test_the_seed_alone_decides_what_is_held_out(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a", halves(160, 160))

    def chosen(seed: int) -> list[tuple[int, int, int, int]]:
        torch.manual_seed(seed + 17)
        blocks = Blocks(share=0.25, block_px=40, buffer_px=5)
        return held_out(open_splits([pair], CODES, ModelInput(1.0), chip_px=16, validation=blocks, seed=seed))

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(seed)) for seed in range(5)}) > 1


def test_blocks_without_labels_are_not_held_out_and_not_trained_on(tmp_path: Path) -> None:
    labels = np.full((160, 160), 255, dtype=np.uint8)
    labels[:80, :80] = halves(80, 80)

    splits = open_splits(
        [make_pair(tmp_path, "a", labels)], CODES, ModelInput(1.0), chip_px=16,
        validation=Blocks(share=0.25, block_px=40, buffer_px=0),
    )  # fmt: skip

    assert splits.validation is not None
    assert len(splits.validation) == 9
    assert all((splits.validation[place]["mask"] != IGNORED).all() for place in splits.validation_sampler())
    assert all(top < 80 and left < 80 for top, _, left, _ in drawn(splits))
    assert splits.class_px.sum() == 3 * 40 * 40


def test_chips_find_few_polygons_on_a_large_scene(tmp_path: Path) -> None:
    scene = write(tmp_path / "a.tif", np.ones((3, 640, 640), dtype=np.uint8))
    spots = [shapely.box(LEFT + x, TOP - y - 12, LEFT + x + 12, TOP - y) for x, y in ((100, 500), (404, 40))]
    frame = geopandas.GeoDataFrame({"class_name": NAMES}, geometry=spots, crs="EPSG:32640")
    pyogrio.write_dataframe(frame, tmp_path / "a.gpkg")

    splits = open_splits([Pair(scene, tmp_path / "a.gpkg")], CODES, ModelInput(1.0), chip_px=32)

    torch.manual_seed(0)
    masks = [splits.training[place]["mask"] for place in splits.training_sampler(100)]
    # A chip's place is chosen by cells of a quarter of its side, so some pass a polygon closely.
    assert sum(bool((mask != IGNORED).any()) for mask in masks) > 75
    assert {int(c) for mask in masks for c in mask.unique()} == {0, 1, IGNORED}
    assert splits.class_px.tolist() == [144, 144]


def test_places_are_drawn_evenly_from_rectangles_of_any_size(tmp_path: Path) -> None:
    # Two scenes: one has a single place for a chip, the other 85 x 85.
    pairs = [make_pair(tmp_path, "a", halves(100, 100)), make_pair(tmp_path, "b", halves(16, 16), left=500)]

    splits = open_splits(pairs, CODES, ModelInput(1.0), chip_px=16)

    assert sum(left >= 500 for _, _, left, _ in drawn(splits, 2000)) < 10


@pytest.mark.parametrize("validation", [None, Blocks(share=0.25, block_px=32, buffer_px=0)])
def test_scenes_of_the_same_ground_are_trained_on_each_by_itself(tmp_path: Path, validation: Blocks | None) -> None:
    # Of another day: land has become water, and the light is another.
    before, after = halves(64, 96), 3 - halves(64, 96)
    pairs = [
        Pair(
            write(tmp_path / f"{day}.tif", np.stack([labels + grey] * 3).astype(np.uint8)),
            write(tmp_path / f"{day}_labels.tif", labels[None]),
        )
        for day, labels, grey in (("before", before, 10), ("after", after, 100))
    ]

    splits = open_splits(pairs, CODES, ModelInput(1.0), chip_px=16, validation=validation)

    torch.manual_seed(0)
    seen = [splits.training[place] for place in splits.training_sampler(100)]
    if splits.validation is None:
        assert splits.class_px.tolist() == [64 * 96] * 2
    else:
        seen += [splits.validation[place] for place in splits.validation_sampler()]
    days = [int(sample["image"].min()) // 100 for sample in seen]
    assert 25 < sum(days) < 0.75 * len(days)
    for sample, day in zip(seen, days, strict=True):
        assert torch.equal(sample["image"][0].long(), sample["mask"] + 1 + (100 if day else 10))


def test_validation_scenes_are_read_whole_and_never_varied(tmp_path: Path) -> None:
    training = make_pair(tmp_path, "a", halves(64, 64))
    other = make_pair(tmp_path, "b", halves(40, 50), left=1000)

    splits = open_splits(
        [training],
        CODES,
        ModelInput(1.0),
        chip_px=16,
        validation=[other],
        vary=lambda sample: sample | {"varied": True},
    )

    assert splits.validation is not None
    covered = np.zeros((40, 50), dtype=bool)
    for place in splits.validation_sampler():
        sample = splits.validation[place]
        assert sample.keys() == {"image", "mask"}
        top, bottom, left, right = pixels(place)
        covered[top:bottom, left - 1000 : right - 1000] = True
        assert np.array_equal(sample["mask"] + 1, halves(40, 50)[top:bottom, left - 1000 : right - 1000])
    assert covered.all()
    assert "varied" in splits.training[next(iter(splits.training_sampler(1)))]


def test_ground_of_a_validation_scene_is_left_out_of_the_training(tmp_path: Path) -> None:
    training = make_pair(tmp_path, "a", halves(64, 96))
    other = make_pair(tmp_path, "b", halves(64, 96), left=64)

    splits = open_splits([training], CODES, ModelInput(1.0), chip_px=16, validation=[other])

    assert max(right for *_, right in drawn(splits, 1000)) in (63, 64)
    assert splits.class_px.sum() == 64 * 64


def test_chips_are_counted_and_drawn_at_the_training_s_resolution(tmp_path: Path) -> None:
    splits = open_splits([make_pair(tmp_path, "a", halves(64, 96))], CODES, ModelInput(2.0), chip_px=16)

    assert splits.class_px.sum() == 32 * 48
    assert splits.training[next(iter(splits.training_sampler(1)))]["mask"].shape == (16, 16)


def test_labels_count_where_the_scene_holds_data(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a", halves(64, 96))
    with rasterio.open(pair.scene, "r+") as scene:
        data = scene.read()
        data[:, :, :32] = 0
        scene.write(data)
        scene.nodata = 0

    splits = open_splits([pair], CODES, ModelInput(1.0), chip_px=16)

    assert splits.class_px.sum() == 64 * 64
    assert min(left for _, _, left, _ in drawn(splits, 1000)) == 32 - 15


def refusal(pairs: list[Pair], codes: LabelCodes = CODES, **options: Any) -> TrainingDataError:
    with pytest.raises(TrainingDataError) as caught:
        open_splits(pairs, codes, ModelInput(1.0), **({"chip_px": 16} | options))
    assert caught.value.exit_code == 3
    return caught.value


def test_unknown_values_are_refused_unless_they_are_to_be_ignored(tmp_path: Path) -> None:
    labels = halves(64, 96)
    labels[10, :30], labels[50, :20] = 7, 99
    pair = make_pair(tmp_path, "a", labels)

    error = refusal([pair])

    assert error.what == f"{pair.labels} holds values that are no class: 7 (30 px), 99 (20 px)"
    assert error.hint is not None
    assert "data.ignored_values: [7, 99]" in error.hint
    assert open_splits(
        [pair], LabelCodes({1: "land", 2: "water"}, NAMES, [7, 99]), ModelInput(1.0), chip_px=16
    ).class_px.sum() == (64 * 96 - 50)


def test_a_raster_of_measurements_is_no_raster_of_labels(tmp_path: Path) -> None:
    heights = np.random.default_rng(0).random((1, 64, 96), dtype=np.float32)
    scene = write(tmp_path / "a.tif", np.ones((3, 64, 96), dtype=np.uint8))

    error = refusal([Pair(scene, write(tmp_path / "heights.tif", heights))])

    assert error.what.endswith(" more")


def test_labels_that_are_all_ignored_are_refused(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a", np.full((64, 96), 255, dtype=np.uint8))

    assert "no pixel of the labels has a known class" in refusal([pair]).what


def test_a_class_without_pixels_is_refused(tmp_path: Path) -> None:
    error = refusal([make_pair(tmp_path, "a", np.ones((64, 96), dtype=np.uint8))])

    assert str(error) == "class 'water' has no pixel in the training labels"


def test_a_class_that_is_held_out_whole_is_refused_with_the_reason(tmp_path: Path) -> None:
    labels = np.ones((64, 128), dtype=np.uint8)
    labels[:, 64:] = 2

    error = refusal([make_pair(tmp_path, "a", labels)], validation=Blocks(share=0.5, block_px=64, buffer_px=0))

    assert "has no pixel in the training labels" in error.what
    assert error.hint is not None
    assert "optimisation.seed" in error.hint


def test_held_out_pairs_that_can_t_be_measured_on_are_refused(tmp_path: Path) -> None:
    training = make_pair(tmp_path, "a", halves(64, 96))
    away = make_pair(tmp_path, "b", halves(64, 96), left=500)
    misspelt = make_pair(tmp_path, "c", np.full((64, 96), 77, dtype=np.uint8), left=700)
    bare = make_pair(tmp_path, "d", np.full((64, 96), 255, dtype=np.uint8), left=900)

    for pair, what in (
        (Pair(tmp_path / "none.tif", away.labels), f"there is no scene {tmp_path / 'none.tif'}"),
        (Pair(away.scene, training.labels), f"the labels {training.labels} do not overlap the scene {away.scene}"),
        (misspelt, f"{misspelt.labels} holds values that are no class: 77 (6,144 px)"),
        (bare, f"no pixel of {bare.labels} has a known class where the held-out scene {bare.scene} holds data"),
    ):
        assert refusal([training], held_out=[away, pair]).what == what


@pytest.mark.parametrize("crs", ["EPSG:32640", "EPSG:32639", "EPSG:4326"])
def test_held_out_ground_that_is_trained_on_is_refused(tmp_path: Path, crs: str) -> None:
    training, other = make_pair(tmp_path, "a", halves(64, 96)), make_pair(tmp_path, "b", halves(64, 96), left=48)
    labels = tmp_path / "reprojected.tif"
    with rasterio.open(other.labels) as source, WarpedVRT(source, crs=crs) as warped:
        rasterio.shutil.copy(warped, labels, driver="GTiff")
    scene = tmp_path / "scene.tif"
    with rasterio.open(other.scene) as source, WarpedVRT(source, crs=crs, nodata=0) as warped:
        rasterio.shutil.copy(warped, scene, driver="GTiff", photometric="RGB")

    error = refusal([training], held_out=[Pair(scene, labels)])

    assert re.search(r"^(49|50|51)% of what .*reprojected\.tif labels for data\.held_out", error.what)


def test_held_out_ground_may_lie_beside_what_is_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = make_pair(tmp_path, "a", halves(64, 96))
    neighbour = make_pair(tmp_path, "b", halves(64, 96), left=96)
    overlapping = make_pair(tmp_path, "c", halves(64, 96), left=88)

    open_splits([training], CODES, ModelInput(1.0), chip_px=16, held_out=[neighbour])
    assert not caplog.records
    open_splits([training], CODES, ModelInput(1.0), chip_px=16, held_out=[overlapping])

    assert f"8% of what {overlapping.labels} labels for data.held_out" in caplog.text


def test_other_labels_of_the_same_scene_may_be_held_out(tmp_path: Path) -> None:
    west, east = (np.full((64, 96), 255, dtype=np.uint8) for _ in range(2))
    west[:, :48], east[:, 48:] = halves(64, 48), halves(64, 48)
    training = make_pair(tmp_path, "a", west)
    held_out = Pair(training.scene, make_pair(tmp_path, "b", east).labels)

    splits = open_splits([training], CODES, ModelInput(1.0), chip_px=16, held_out=[held_out])

    assert splits.class_px.sum() == 64 * 48


def test_scenes_smaller_than_a_chip_are_refused(tmp_path: Path) -> None:
    error = refusal([make_pair(tmp_path, "a", halves(64, 96))], chip_px=65)

    assert error.what == "no training scene holds a chip of 65 px at 1.0 m"
    assert "optimisation.augmentation.scale" in str(error.hint)


def test_blocks_of_which_none_is_left_are_refused(tmp_path: Path) -> None:
    error = refusal([make_pair(tmp_path, "a", halves(64, 96))], validation=Blocks(block_px=60))

    assert error.what.startswith("the labels lie in 1 blocks of 60 px that hold a chip of 16 px, of which 1 would be")
    assert error.hint is not None
    assert "block_px" in error.hint


@pytest.mark.parametrize("shape", [(10, 160), (160, 10)])
def test_scenes_that_hold_no_chip_have_no_blocks(tmp_path: Path, shape: tuple[int, int]) -> None:
    pairs = [make_pair(tmp_path, "a", halves(80, 80)), make_pair(tmp_path, "b", halves(*shape), left=1000)]

    splits = open_splits(
        pairs, CODES, ModelInput(1.0), chip_px=16, validation=Blocks(share=0.25, block_px=40, buffer_px=0), seed=2
    )

    # One of the four blocks of the scene that is large enough.
    assert len(held_out(splits)) == 9


def test_a_buffer_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    error = refusal([make_pair(tmp_path, "a", halves(64, 96))], validation=Blocks(block_px=32, buffer_px=90))

    assert error.what.startswith("the blocks held out and their buffer leave no room for a chip of 16 px")
    assert error.hint is not None
    assert "buffer_px" in error.hint


def test_scenes_that_are_both_trained_on_and_held_out_are_refused(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a", halves(64, 96))

    assert "the scenes for validation leave no room" in refusal([pair], validation=[pair]).what


def test_a_validation_scene_smaller_than_a_chip_is_refused(tmp_path: Path) -> None:
    pairs = [make_pair(tmp_path, "a", halves(64, 96)), make_pair(tmp_path, "b", halves(8, 96), left=500)]

    assert "no scene for validation holds" in refusal(pairs[:1], validation=pairs[1:]).what
