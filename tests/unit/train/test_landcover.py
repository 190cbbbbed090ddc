"""Named sets, each opened on a tiny tree of the form that its publisher gives it."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from shapely import box
from torch import Tensor

from landseg.config import DatasetConfig, TrainConfig
from landseg.errors import ConfigError, TrainingDataError
from landseg.legend import LandClass, Legend
from landseg.model.bundle import read_bundle
from landseg.train.augment import Augmentation
from landseg.train.batches import read_chips, settle
from landseg.train.fit import Chips
from landseg.train.job import train
from landseg.train.labels import IGNORED, LabelCodes
from landseg.train.landcover import SETS, Crop, Split, open_split
from landseg.train.premises import of_data
from landseg.train.samples import ModelInput, Source

SIDE = 64
UNLABELLED = {"landcoverai": 200, "loveda": 0, "deepglobe": 6, "chesapeake": 15}
DEEPGLOBE_COLOURS = np.array(
    [[0, 255, 255], [255, 255, 0], [255, 0, 255], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], dtype=np.uint8
)

Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image (C, H, W) and the set's own codes (H, W), as the files hold them."""


@dataclass
class Tree:
    """A named set on disk, and what was written to each of torchgeo's splits."""

    name: str
    root: Path
    samples: dict[str, list[Sample]]

    def open(self, split: Split, **options: Any) -> Source:
        known = SETS[self.name]
        codes = known.codes({}, known.legend)
        return open_split(
            self.name, self.root, split, codes, ModelInput(known.gsd_m, known.bands), **({"chip_px": SIDE} | options)
        )


def sample(name: str, seed: int, side: int = SIDE) -> Sample:
    """Make noise and codes in blocks of 8 px; all of the set's classes occur, and pixels without one."""
    random = np.random.default_rng(seed)
    values = [*SETS[name].classes, UNLABELLED[name]]
    blocks = random.permutation(np.resize(np.array(values, dtype=np.uint8), (side // 8) ** 2)).reshape(side // 8, -1)
    image = random.integers(0, 256, (len(SETS[name].bands), side, side), dtype=np.uint8)
    return image, blocks.repeat(8, axis=0).repeat(8, axis=1)


def save(array: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_landcoverai(root: Path, split: str, samples: list[Sample]) -> None:
    names = [f"M-33-20-D-c-4-2_{split}{i}" for i in range(len(samples))]
    for name, (image, codes) in zip(names, samples, strict=True):
        save(image.transpose(1, 2, 0), root / "output" / f"{name}.jpg")
        save(codes, root / "output" / f"{name}_m.png")
    (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_loveda(root: Path, split: str, samples: list[Sample]) -> None:
    for i, (image, codes) in enumerate(samples):
        folder = root / split.capitalize() / ("Urban", "Rural")[i % 2]
        save(image.transpose(1, 2, 0), folder / "images_png" / f"{i}.png")
        save(codes, folder / "masks_png" / f"{i}.png")


def write_deepglobe(root: Path, split: str, samples: list[Sample]) -> None:
    folder = root / "data" / {"train": "training_data", "test": "test_data"}[split]
    for i, (image, codes) in enumerate(samples):
        save(image.transpose(1, 2, 0), folder / "images" / f"{i}_sat.jpg")
        save(DEEPGLOBE_COLOURS[codes], folder / "masks" / f"{i}_mask.png")


LAYERS = ("buildings", "landsat-leaf-off", "landsat-leaf-on", "lc", "naip-new", "naip-old", "nlcd")
PRIOR = "prior_from_cooccurrences_101_31_no_osm_no_buildings"


def write_chesapeake(root: Path, split: str, samples: list[Sample]) -> None:
    """Write tiles of Delaware, 10 km apart, the index of all splits, and what torchgeo looks for besides."""
    years = {"de": 2013, "md": 2013, "ny": 2013, "pa": 2013, "va": 2014, "wv": 2014}
    for state, year in years.items():
        (root / f"{state}_1m_{year}_extended-debuffered-{split}_tiles").mkdir(parents=True)
    if split == "val":
        for layer in (*LAYERS, PRIOR):
            (root / f"wv_1m_2014_extended-debuffered-val_tiles/m_3708035_ne_17_1_{layer}.tif").touch()
    rows = []
    for i, (image, codes) in enumerate(samples):
        left = 450_000 + 10_000 * i + 100_000 * ("train", "val", "test").index(split)
        stem = f"de_1m_2013_extended-debuffered-{split}_tiles/m_{i}_ne_18_1"
        for layer, data in (("naip-new", image), ("lc", codes[None])):
            with rasterio.open(
                root / f"{stem}_{layer}.tif", "w", driver="GTiff", dtype="uint8", count=len(data), crs="EPSG:26918",
                height=data.shape[1], width=data.shape[2], transform=Affine(1, 0, left, 0, -1, 4_300_000),
                # Else GDAL takes the fourth of four bands for transparency.
                alpha="no",
            ) as file:  # fmt: skip
                file.write(data)
        side = data.shape[1]
        footprint = geopandas.GeoSeries([box(left, 4_300_000 - side, left + side, 4_300_000)], crs="EPSG:26918")
        rows.append(
            {layer: f"{stem}_{layer}.tif" for layer in LAYERS}
            | {"split": f"de-{split}", "geometry": footprint.to_crs(3857).iloc[0]}
        )
    index = root / "spatial_index.geojson"
    known = geopandas.read_file(index).to_dict("records") if index.exists() else []
    geopandas.GeoDataFrame([*known, *rows], crs=3857).to_file(index)


WRITERS: dict[str, Callable[[Path, str, list[Sample]], None]] = {
    "landcoverai": write_landcoverai,
    "loveda": write_loveda,
    "deepglobe": write_deepglobe,
    "chesapeake": write_chesapeake,
}
MakeTree = Callable[[str], Tree]


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    def make(name: str) -> Tree:
        samples = {
            split: [sample(name, seed=10 * k + i) for i in range(2)]
            for k, split in enumerate(("train", "val", "test"))
            if split in SETS[name].splits.values()
        }
        for split, written in samples.items():
            WRITERS[name](tmp_path / name, split, written)
        return Tree(name, tmp_path / name, samples)

    return make


@pytest.fixture(params=sorted(SETS))
def tree(request: pytest.FixtureRequest, make_tree: MakeTree) -> Tree:
    return make_tree(request.param)


def chips_of(source: Source, count: int, seed: int) -> Iterator[dict[str, Tensor]]:
    return read_chips(settle(source, count, seed), batch=4, workers=0, seed=seed)


def whole_images(source: Source, side: int = SIDE) -> set[tuple[bytes, bytes]]:
    """Draw chips as large as the images until all have come."""
    batches = list(chips_of(source, 24, seed=1))
    assert {(b["image"].dtype, b["mask"].dtype) for b in batches} == {(torch.float32, torch.int64)}
    assert {(*b["image"].shape[2:], *b["mask"].shape[1:]) for b in batches} == {(side, side, side, side)}
    return {
        (image.numpy().astype(np.uint8).tobytes(), mask.numpy().tobytes())
        for batch in batches
        for image, mask in zip(batch["image"], batch["mask"], strict=True)
    }


def expected(name: str, written: list[Sample], folder: Path) -> set[tuple[bytes, bytes]]:
    """Recode what was written; the pixels of a JPEG are those that it decodes to."""
    channels = np.full(256, IGNORED, dtype=np.int64)
    channels[list(SETS[name].classes)] = range(len(SETS[name].classes))
    found = set()
    for i, (image, codes) in enumerate(written):
        pixels = image
        if name in ("landcoverai", "deepglobe"):
            save(image.transpose(1, 2, 0), folder / f"{i}.jpg")
            pixels = np.asarray(Image.open(folder / f"{i}.jpg")).transpose(2, 0, 1)
        found.add((pixels.tobytes(), channels[codes].tobytes()))
    return found


def test_samples_of_each_split_are_what_the_files_hold(tree: Tree, tmp_path: Path) -> None:
    for split, own in SETS[tree.name].splits.items():
        assert whole_images(tree.open(split)) == expected(tree.name, tree.samples[own], tmp_path)


def test_a_configuration_can_name_every_set() -> None:
    assert set(get_args(DatasetConfig.model_fields["name"].annotation)) == set(SETS)


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_set_can_be_trained_on_and_held_out(name: str) -> None:
    known = SETS[name]

    assert {"training", known.held_out} <= set(known.splits)
    assert known.legend.class_ids == tuple(range(1, len(known.classes) + 1))
    assert UNLABELLED[name] not in known.classes
    assert len({c.colour for c in known.legend}) == len(known.legend)


def test_chips_are_cut_where_they_are_asked_for(make_tree: MakeTree) -> None:
    tree = make_tree("loveda")
    chips = tree.open("training").dataset
    # torchgeo lists rural before urban.
    image, codes = tree.samples["train"][1]

    chip = chips[Crop(0, 3, 17, 40)]

    np.testing.assert_array_equal(chip["image"], image[:, 3:43, 17:57])
    np.testing.assert_array_equal(chip["mask"], np.where(codes == 0, IGNORED, codes.astype(int) - 1)[3:43, 17:57])


def test_a_set_can_be_narrowed_down_to_its_parts(make_tree: MakeTree, tmp_path: Path) -> None:
    tree = make_tree("loveda")

    urban = whole_images(tree.open("training", parts=("urban",)))

    assert urban == expected("loveda", tree.samples["train"][:1], tmp_path)


def test_varied_samples_keep_their_shape_and_scale(tree: Tree) -> None:
    plain, varied = (
        next(chips_of(tree.open("training", chip_px=48, vary=vary), 4, seed=2)) for vary in (None, Augmentation())
    )

    assert varied["image"].shape == plain["image"].shape == (4, len(SETS[tree.name].bands), 48, 48)
    assert 0 <= float(varied["image"].min()) < float(varied["image"].max()) <= 255
    assert not torch.equal(varied["image"], plain["image"])
    assert torch.equal(varied["mask"].flatten(1).sort().values, plain["mask"].flatten(1).sort().values)


def test_every_place_of_a_chip_is_drawn_and_small_images_are_left_out(tmp_path: Path) -> None:
    # Urban comes first here and second in torchgeo's list.
    write_loveda(tmp_path, "train", [sample("loveda", 1, side=48), sample("loveda", 2, side=56)])
    source = Tree("loveda", tmp_path, {}).open("training", chip_px=54)

    torch.manual_seed(0)
    drawn = list(source.draw(400))

    assert set(drawn) == {Crop(0, row, col, 54) for row in range(3) for col in range(3)}
    assert len(drawn) == len(source.draw(400)) == 400


def test_chips_of_an_epoch_follow_from_the_seed_alone(tree: Tree) -> None:
    def epoch(seed: int) -> list[Tensor]:
        torch.manual_seed(torch.seed())  # a new process knows nothing of the old one's draws
        source = tree.open("training", chip_px=48, vary=Augmentation(scale=1.25))
        data = Chips(source, batch=2, batches=2, workers=0, seed=seed)
        return [batch["image"] for batch in data.train_dataloader()]

    first, again, other = epoch(1), epoch(1), epoch(2)

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_chips_to_measure_leave_the_training_s_randomness_alone(tree: Tree) -> None:
    source = tree.open("training", chip_px=48)
    torch.manual_seed(3)
    before = torch.get_rng_state()

    first, again = (torch.cat([batch["image"] for batch in chips_of(source, 6, seed=5)]) for _ in range(2))

    assert torch.equal(first, again)
    assert len(first) == 6
    assert torch.equal(torch.get_rng_state(), before)


def channels(codes: LabelCodes, values: Iterable[int]) -> list[int | None]:
    return [codes.channel(value) for value in values]


def legend_of(*names: str) -> Legend:
    return Legend(tuple(LandClass(i + 1, name, f"#00000{i}") for i, name in enumerate(names)))


def test_a_legend_chooses_among_the_set_s_classes() -> None:
    codes = SETS["loveda"].codes({}, legend_of("water", "building"))

    assert channels(codes, range(9)) == [255, 255, 1, 255, 0, 255, 255, 255, 255]


def test_several_of_the_set_s_classes_may_become_one() -> None:
    codes = SETS["chesapeake"].codes({5: "sealed", 6: "sealed", 1: "water"}, legend_of("sealed", "water"))

    assert channels(codes, [1, 2, 5, 6, 15]) == [1, 255, 0, 0, 255]


def test_a_class_that_the_set_lacks_must_be_mapped() -> None:
    with pytest.raises(ConfigError, match="'sealed' of the legend is none of Chesapeake") as caught:
        SETS["chesapeake"].codes({}, legend_of("sealed", "water"))
    assert "5 = impervious, 6 = road" in str(caught.value)


@pytest.mark.parametrize("values", [{0: "water", 4: "water"}, {4: "water", 2: "house"}])
def test_label_values_lead_from_the_set_s_codes_to_the_legend(values: dict[int, str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.label_values maps (0 to 'water'|2 to 'house')"):
        SETS["loveda"].codes(values, legend_of("water"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Note where torchgeo would download to, and let it find nothing there."""
    asked: list[Path] = []

    def note(url: str, root: Path, **_: Any) -> None:
        asked.append(root)
        raise ConnectionError("no network in tests")

    for place in ("loveda.download_and_extract_archive", "landcoverai.download_url", "chesapeake.download_url"):
        monkeypatch.setattr(f"torchgeo.datasets.{place}", note)
    return asked


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_missing_set_is_named_with_what_its_folder_must_hold(name: str, tmp_path: Path, offline: list[Path]) -> None:
    with pytest.raises(TrainingDataError) as caught:
        Tree(name, tmp_path / "nowhere", {}).open("training")

    assert str(tmp_path / "nowhere") in caught.value.what
    assert SETS[name].holds in str(caught.value)
    assert ("download: true" in str(caught.value)) == SETS[name].downloadable
    assert offline == []
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", sorted(n for n, known in SETS.items() if known.downloadable))
def test_a_missing_set_is_fetched_where_that_was_asked_for(name: str, tmp_path: Path, offline: list[Path]) -> None:
    with pytest.raises(TrainingDataError, match="can't find the training split"):
        Tree(name, tmp_path, {}).open("training", download=True)

    assert offline == [tmp_path]


def test_a_set_that_torchgeo_can_t_fetch_is_not_promised(make_tree: MakeTree) -> None:
    with pytest.raises(ConfigError, match="can't download DeepGlobe"):
        make_tree("deepglobe").open("training", download=True)


def test_what_torchgeo_prints_does_not_mix_with_results(
    make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree("loveda").open("training", download=True)

    printed = capsys.readouterr()
    assert "already downloaded" in printed.err
    assert printed.out == ""


def test_empty_folders_are_no_set(tmp_path: Path) -> None:
    for scene in ("Urban", "Rural"):
        (tmp_path / "Train" / scene).mkdir(parents=True)

    with pytest.raises(TrainingDataError, match="can't find the training split of LoveDA"):
        Tree("loveda", tmp_path, {}).open("training")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("loveda", "Train/Urban/masks_png/0.png"),
        ("deepglobe", "data/training_data/masks/0_mask.png"),
        ("chesapeake", "de_1m_2013_extended-debuffered-train_tiles/m_0_ne_18_1_lc.tif"),
    ],
)
def test_missing_labels_are_found_before_training(name: str, labels: str, make_tree: MakeTree) -> None:
    tree = make_tree(name)
    (tree.root / labels).unlink()

    with pytest.raises(TrainingDataError, match=labels):
        tree.open("training")


def test_labels_of_another_size_are_refused(make_tree: MakeTree) -> None:
    tree = make_tree("loveda")
    save(np.zeros((8, 8), dtype=np.uint8), tree.root / "Train/Urban/masks_png/0.png")

    with pytest.raises(TrainingDataError, match="differ in size"):
        tree.open("training")


def test_a_damaged_image_is_named(make_tree: MakeTree) -> None:
    tree = make_tree("loveda")
    path = tree.root / "Train/Rural/images_png/1.png"
    path.write_bytes(path.read_bytes()[:2000])

    with pytest.raises(TrainingDataError, match=r"Rural/images_png/1\.png"):
        tree.open("training").dataset[Crop(0, 0, 0, 48)]


def test_chips_larger_than_all_images_are_refused(tree: Tree) -> None:
    with pytest.raises(TrainingDataError, match=r"as large as a chip of 96 px(?s:.*)optimisation\.augmentation\.scale"):
        tree.open("training", chip_px=96).draw(4)


def test_images_are_not_resampled_in_silence(make_tree: MakeTree) -> None:
    tree = make_tree("loveda")
    codes = SETS["loveda"].codes({}, SETS["loveda"].legend)

    with pytest.raises(ConfigError, match=r"gsd_m: 0\.3"):
        open_split("loveda", tree.root, "training", codes, ModelInput(0.5), chip_px=SIDE)


def test_tiles_are_resampled(make_tree: MakeTree) -> None:
    tree = make_tree("chesapeake")
    codes = SETS["chesapeake"].codes({}, SETS["chesapeake"].legend)

    source = open_split(
        "chesapeake", tree.root, "training", codes, ModelInput(2.0, SETS["chesapeake"].bands), chip_px=SIDE // 2
    )

    assert len(whole_images(source, side=SIDE // 2)) == 2


def test_places_in_tiles_are_drawn_evenly(tmp_path: Path) -> None:
    # One tile has a single place for a chip, the other 89 x 89.
    for split, sides in (("train", (56, 144)), ("val", (56,)), ("test", (56,))):
        write_chesapeake(tmp_path, split, [sample("chesapeake", 1, side) for side in sides])
    source = Tree("chesapeake", tmp_path, {}).open("training", chip_px=56)

    torch.manual_seed(0)
    lefts = [x.start for x, _, _ in source.draw(2000)]

    assert sum(left < 455_000 for left in lefts) < 10


def test_an_unknown_part_is_refused(make_tree: MakeTree) -> None:
    with pytest.raises(ConfigError, match="no part 'nj'") as caught:
        make_tree("chesapeake").open("training", parts=("nj",))
    assert "de, md, ny, pa, va, wv" in str(caught.value)


def keys(tree: Tree, out: Path, **changes: Any) -> TrainConfig:
    known = SETS[tree.name]
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "out": out,
            "bands": known.bands,
            "gsd_m": known.gsd_m,
            "chip_px": 48,
            "architecture": {"bins": [1, 2]},
            "data": {"dataset": {"name": tree.name, "root": tree.root, "measured_chips": 6}},
            "optimisation": {"steps": 2, "batch": 2, "checkpoint_every": 2, "loader_workers": 0},
            "card": {"title": "Tiny", "description": "A test.", "licence": "MIT", "training_data": tree.name},
        }
        | changes
    )


@pytest.mark.parametrize("name", ["deepglobe", "chesapeake"])
def test_a_named_set_is_trained_on_and_its_own_split_is_held_out(
    name: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    known = SETS[name]

    train(keys(make_tree(name), tmp_path / "runs"), quiet=True)

    card = read_bundle(str(tmp_path / "runs" / "tiny")).card
    assert (card.legend, card.bands, card.gsd_m) == (known.legend, known.bands, known.gsd_m)
    assert card.training["dataset"] == {"name": name, "parts": list(known.parts)}
    assert sum(card.training["class_shares"].values()) == pytest.approx(1, abs=1e-3)
    assert card.held_out["data"] == f"{known.title}, test split, 6 random chips of 48 px"
    assert 0 < card.held_out["labelled_px"] < 6 * 48**2
    # Noise of the whole range, which JPEG dampens.
    np.testing.assert_allclose(card.mean, 127.5, atol=5)
    assert 45 < min(card.std) <= max(card.std) < 76


def test_classes_of_a_sets_own_legend_may_be_weighted(make_tree: MakeTree, tmp_path: Path) -> None:
    options = {"steps": 2, "batch": 2, "loader_workers": 0, "loss": {"class_weights": {"water": 2.0}}}

    bundle = train(keys(make_tree("deepglobe"), tmp_path / "runs", optimisation=options), quiet=True)

    assert bundle.card.training["optimisation"]["loss"]["class_weights"] == {"water": 2.0}


def test_weighted_classes_that_a_set_has_not_are_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    options = {"steps": 2, "loader_workers": 0, "loss": {"class_weights": {"glacier": 2.0}}}
    config = keys(make_tree("deepglobe"), tmp_path / "runs", optimisation=options)

    with pytest.raises(ConfigError, match="class_weights names 'glacier'") as caught:
        train(config, quiet=True)

    assert "urban, agriculture" in str(caught.value.hint)


@pytest.mark.parametrize(("name", "validated"), [("deepglobe", False), ("landcoverai", True)])
def test_patience_needs_a_set_with_a_validation(
    name: str, validated: bool, make_tree: MakeTree, tmp_path: Path
) -> None:
    options = {"steps": 2, "batch": 2, "checkpoint_every": 2, "loader_workers": 0, "patience": 1}
    config = keys(make_tree(name), tmp_path / "runs", optimisation=options)

    if validated:
        assert train(config, quiet=True).card.training["optimisation"]["patience"] == 1
    else:
        with pytest.raises(ConfigError, match="patience needs a validation"):
            train(config, quiet=True)


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize("name", ["landcoverai", "chesapeake"])
def test_files_of_a_named_set_that_have_changed_are_told(name: str, split: Split, make_tree: MakeTree) -> None:
    tree, known = make_tree(name), SETS[name]
    data = keys(tree, tree.root / "runs").data
    before = of_data(data, known.legend, ())

    labels = known.pairs(known.open(tree.root, known.splits[split], known.parts, False))[0].labels
    os.utime(labels, (1, 1))

    after = of_data(data, known.legend, ())
    assert [key for key in before if after[key] != before[key]] == [f"the files of the {split} split"]


@pytest.mark.parametrize("name", ["loveda", "deepglobe"])
def test_files_that_are_not_trained_on_do_not_matter(name: str, make_tree: MakeTree) -> None:
    tree, known = make_tree(name), SETS[name]
    data = keys(tree, tree.root / "runs").data
    before = of_data(data, known.legend, ())

    held_out = known.open(tree.root, known.splits[known.held_out], known.parts, False)
    os.utime(known.pairs(held_out)[0].labels, (1, 1))

    assert of_data(data, known.legend, ()) == before


def test_bands_of_another_name_are_refused_before_training(make_tree: MakeTree, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bands: \[red, green, blue, nir\]"):
        train(keys(make_tree("chesapeake"), tmp_path / "runs", bands=("red", "green", "blue")), quiet=True)

    assert not (tmp_path / "runs").exists()


def test_a_held_out_split_that_is_missing_is_missed_before_training(make_tree: MakeTree, tmp_path: Path) -> None:
    tree = make_tree("loveda")
    (tree.root / "Val").rename(tree.root / "Elsewhere")

    with pytest.raises(TrainingDataError, match="can't find the validation split of LoveDA"):
        train(keys(tree, tmp_path / "runs"), quiet=True)

    assert not (tmp_path / "runs").exists()
