"""Published land-cover sets, opened by name through torchgeo and drawn from as training samples.

The sets are of two kinds. Images without a place are cropped to chips at their own ground sampling distance. Tiles with
a coordinate reference system are trained on as a user's own pairs of scene and labels are: torchgeo's class finds and
splits them, `landseg.train.samples.open_pairs` reads them.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from torchgeo.datasets import ChesapeakeCVPR, DeepGlobeLandCover, GeoDataset, LandCoverAI, LoveDA

from landseg.errors import ConfigError, TrainingDataError
from landseg.legend import LandClass, Legend
from landseg.train.augment import SMALLER_CHIPS, Augmentation
from landseg.train.labels import LabelCodes
from landseg.train.samples import ModelInput, Pair, Source, open_pairs
from landseg.train.splits import EvenGeoSampler

Split = Literal["training", "validation", "test"]

GSD_TOLERANCE = 0.1
"""How far ``gsd_m`` may be off the images' own, which are never resampled."""

RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class LandCoverSet:
    """A published set: what is in it, and how torchgeo opens it.

    Parameters
    ----------
    title, reference, terms
        Its name, paper and terms of use, for people.
    holds
        What the root folder must hold.
    bands
        Names of the images' bands in their order.
    gsd_m
        Pixel size in metres.
    georeferenced
        Whether it is tiles with a coordinate reference system; images without a place otherwise.
    classes
        Code in its labels -> name and suggested colour. Other codes stand for 'unlabelled'.
    splits
        Split -> torchgeo's name of it; those whose labels are published.
    open
        Makes torchgeo's data set of a root, torchgeo's name of a split, the parts to take and whether to download.
    pairs
        Lists image and label files of such a data set, in its order.
    parts
        What it can be narrowed down to, such as states.
    downloadable
        Whether torchgeo can fetch it.
    """

    title: str
    reference: str
    terms: str
    holds: str
    bands: tuple[str, ...]
    gsd_m: float
    georeferenced: bool
    classes: Mapping[int, tuple[str, str]]
    splits: Mapping[Split, str]
    open: Callable[[Path, str, Sequence[str], bool], Any]
    pairs: Callable[[Any], list[Pair]]
    parts: tuple[str, ...] = ()
    downloadable: bool = True

    @property
    def held_out(self) -> Split:
        """The split that a model's figures come from."""
        return "test" if "test" in self.splits else "validation"

    @property
    def has_validation(self) -> bool:
        """Whether a split is left to look at as a training goes."""
        return "validation" in self.splits and self.held_out != "validation"

    @property
    def legend(self) -> Legend:
        """The suggested legend: all classes in the order of their codes, with ids from 1."""
        classes = enumerate(self.classes.values(), start=1)
        return Legend(tuple(LandClass(class_id, name, colour) for class_id, (name, colour) in classes))

    def codes(self, label_values: Mapping[int | str, str] | None, legend: Legend) -> LabelCodes:
        """Say what the set's codes mean in a legend.

        Parameters
        ----------
        label_values
            Code -> class of the legend; where empty, the set's classes that the legend names. Other codes are ignored.
        legend
            The classes wanted.

        Raises
        ------
        ConfigError
            If a class of the legend gets no code, or a code is mapped to no class of the legend.
        """
        own = {code: name for code, (name, _) in self.classes.items()}
        meant = dict(label_values or {}) or {code: name for code, name in own.items() if name in legend.names}
        described = ", ".join(f"{code} = {name}" for code, name in own.items())
        for name in legend.names:
            if name not in meant.values():
                raise ConfigError(
                    f"class '{name}' of the legend is none of {self.title}'s",
                    f"say in data.label_values which of its codes mean it: {described}",
                )
        for code, name in meant.items():
            if code not in own or name not in legend.names:
                raise ConfigError(
                    f"data.label_values maps {code} to '{name}': no code of {self.title} to a class of the legend",
                    f"its codes: {described}",
                )
        return LabelCodes(meant, legend.names, ignored=set(range(256)) - meant.keys())


def _open_landcoverai(root: Path, split: str, parts: Sequence[str], download: bool) -> Any:  # noqa: ARG001
    return LandCoverAI(root, split, download=download)


def _landcoverai_pairs(images: Any) -> list[Pair]:
    folder = Path(images.root) / "output"
    names = [line.rstrip() for line in images.ids]
    return [Pair(folder / f"{name}.jpg", folder / f"{name}_m.png") for name in names]


def _open_loveda(root: Path, split: str, parts: Sequence[str], download: bool) -> Any:
    return LoveDA(root, split, scene=parts, download=download)


def _loveda_pairs(images: Any) -> list[Pair]:
    return [Pair(Path(one["image"]), Path(one["mask"])) for one in images.files]


def _open_deepglobe(root: Path, split: str, parts: Sequence[str], download: bool) -> Any:  # noqa: ARG001
    return DeepGlobeLandCover(root, split)


def _deepglobe_pairs(images: Any) -> list[Pair]:
    return [Pair(Path(i), Path(m)) for i, m in zip(images.image_fns, images.mask_fns, strict=True)]


def _open_chesapeake(root: Path, split: str, parts: Sequence[str], download: bool) -> Any:
    return ChesapeakeCVPR(root, [f"{part}-{split}" for part in parts], ["naip-new", "lc"], download=download)


def _chesapeake_pairs(tiles: Any) -> list[Pair]:
    # The class itself cuts chips in Web Mercator, whose metre is about 0.78 m on this ground, and refuses those that
    # touch two tiles. Its index is all that is needed.
    root = Path(tiles.root)
    return [Pair(root / naip, root / lc) for naip, lc in zip(tiles.index["naip-new"], tiles.index["lc"], strict=True)]


SETS: Mapping[str, LandCoverSet] = {
    "landcoverai": LandCoverSet(
        title="LandCover.ai",
        reference="Boguszewski et al., 'LandCover.ai', CVPR Workshops 2021, arXiv:2005.02264",
        terms="CC BY-NC-SA 4.0",
        holds="train.txt, val.txt, test.txt and output/ with NAME.jpg and NAME_m.png of 512 x 512 px",
        bands=RGB,
        gsd_m=0.25,
        georeferenced=False,
        classes={
            0: ("background", "#ece2c6"),
            1: ("building", "#d55e00"),
            2: ("woodland", "#009e73"),
            3: ("water", "#56b4e9"),
            4: ("road", "#5a5a5a"),
        },
        splits={"training": "train", "validation": "val", "test": "test"},
        open=_open_landcoverai,
        pairs=_landcoverai_pairs,
    ),
    "loveda": LandCoverSet(
        title="LoveDA",
        reference="Wang et al., 'LoveDA', NeurIPS Datasets and Benchmarks 2021, arXiv:2110.08733",
        terms="CC BY-NC-SA 4.0, and Google Earth's terms",
        holds="Train/ and Val/, each with Urban/ and Rural/, each with images_png/ and masks_png/ of the same names",
        bands=RGB,
        gsd_m=0.3,
        georeferenced=False,
        # 0 is no data.
        classes={
            1: ("background", "#ece2c6"),
            2: ("building", "#d55e00"),
            3: ("road", "#5a5a5a"),
            4: ("water", "#56b4e9"),
            5: ("barren", "#cc79a7"),
            6: ("forest", "#009e73"),
            7: ("agriculture", "#f0e442"),
        },
        # The test split's labels are kept back by its authors.
        splits={"training": "train", "validation": "val"},
        open=_open_loveda,
        pairs=_loveda_pairs,
        parts=("urban", "rural"),
    ),
    "deepglobe": LandCoverSet(
        title="DeepGlobe Land Cover",
        reference="Demir et al., 'DeepGlobe 2018', CVPR Workshops 2018, arXiv:1805.06561",
        terms="DeepGlobe's rules and DigitalGlobe's internal use licence",
        holds="data/training_data/ and data/test_data/, each with images/ID_sat.jpg and masks/ID_mask.png",
        bands=RGB,
        gsd_m=0.5,
        georeferenced=False,
        # 6 is unknown.
        classes={
            0: ("urban", "#d55e00"),
            1: ("agriculture", "#f0e442"),
            2: ("rangeland", "#cc79a7"),
            3: ("forest", "#009e73"),
            4: ("water", "#56b4e9"),
            5: ("barren", "#ece2c6"),
        },
        splits={"training": "train", "test": "test"},
        open=_open_deepglobe,
        pairs=_deepglobe_pairs,
        downloadable=False,
    ),
    "chesapeake": LandCoverSet(
        title="Chesapeake Land Cover",
        reference="Robinson et al., 'Large Scale High-Resolution Land Cover Mapping', CVPR 2019",
        terms="see lila.science/datasets/chesapeakelandcover",
        holds="spatial_index.geojson and the folders STATE_1m_YEAR_extended-debuffered-SPLIT_tiles of both archives",
        bands=(*RGB, "nir"),
        gsd_m=1.0,
        georeferenced=True,
        # 0 and 15 are no data.
        classes={
            1: ("water", "#56b4e9"),
            2: ("tree canopy", "#009e73"),
            3: ("low vegetation", "#f0e442"),
            4: ("barren", "#ece2c6"),
            5: ("impervious", "#d55e00"),
            6: ("road", "#5a5a5a"),
        },
        splits={"training": "train", "validation": "val", "test": "test"},
        open=_open_chesapeake,
        pairs=_chesapeake_pairs,
        parts=("de", "md", "ny", "pa", "va", "wv"),
    ),
}
"""The sets by the names that configurations use."""


class Crop(NamedTuple):
    """Where a chip lies in a set of images."""

    image: int
    row: int
    col: int
    size_px: int


class ImageChips(Dataset[dict[str, Any]]):
    """Chips of images that have no place on the ground.

    Law: ``self[Crop(i, r, c, s)]`` is image ``i`` and its mask at rows r to r + s and columns c to c + s.

    Parameters
    ----------
    images
        torchgeo's data set; its samples hold ``image`` on the scale 0-255 and ``mask``.
    pairs
        The files of those samples, in the same order.
    codes
        What the values of ``mask`` mean.
    vary
        How to vary the chips, if at all.

    Raises
    ------
    TrainingDataError
        If a file is missing or no image, or an image and its labels differ in size.
    """

    def __init__(
        self, images: Dataset[Any], pairs: Sequence[Pair], codes: LabelCodes, vary: Augmentation | None = None
    ) -> None:
        self.images = images
        self.pairs = pairs
        self.channels = torch.from_numpy(codes.of_bytes())
        self.vary = vary
        self.shapes = [_shape(pair) for pair in pairs]

    def __getitem__(self, crop: Crop) -> dict[str, Any]:
        """Read a chip."""
        try:
            sample = self.images[crop.image]
        except OSError as error:
            raise TrainingDataError(f"can't read {self.pairs[crop.image].scene} with its labels: {error}") from error
        rows, cols = slice(crop.row, crop.row + crop.size_px), slice(crop.col, crop.col + crop.size_px)
        mask = self.channels[sample["mask"][rows, cols].long()]
        chip = {"image": sample["image"][:, rows, cols].float(), "mask": mask}
        return chip if self.vary is None else self.vary(chip)


def _shape(pair: Pair) -> tuple[int, int]:
    """Read (rows, cols) of an image and its labels, from the files' headers."""
    try:
        with Image.open(pair.scene) as image, Image.open(pair.labels) as labels:
            if image.size != labels.size:
                raise TrainingDataError(f"{pair.scene} and its labels {pair.labels} differ in size")
            return image.height, image.width
    except OSError as error:
        raise TrainingDataError(f"can't read {pair.scene} with {pair.labels}: {error}") from error


class RandomCrops(Sampler[Crop]):
    """Random places of chips, each place as likely as any other; follows from torch's global generator alone.

    Parameters
    ----------
    chips
        What to draw from; images smaller than a chip are left out.
    length
        How many to draw.
    chip_px
        Side of a chip.

    Raises
    ------
    TrainingDataError
        If no image is as large as a chip.
    """

    def __init__(self, chips: ImageChips, length: int, chip_px: int) -> None:
        places = [max(0, rows - chip_px + 1) * max(0, cols - chip_px + 1) for rows, cols in chips.shapes]
        if not any(places):
            rows, cols = max(chips.shapes)
            raise TrainingDataError(
                f"no image is as large as a chip of {chip_px} px; the largest is {rows} x {cols} px", SMALLER_CHIPS
            )
        self.places = torch.tensor(places, dtype=torch.float64)
        self.shapes = chips.shapes
        self.length = length
        self.chip_px = chip_px

    def __iter__(self) -> Iterator[Crop]:
        for image in torch.multinomial(self.places, self.length, replacement=True).tolist():
            row, col = (int(torch.randint(side - self.chip_px + 1, ())) for side in self.shapes[image])
            yield Crop(image, row, col, self.chip_px)

    def __len__(self) -> int:
        return self.length


def open_split(
    name: str,
    root: Path,
    split: Split,
    codes: LabelCodes,
    model_input: ModelInput,
    *,
    chip_px: int,
    parts: Sequence[str] = (),
    download: bool = False,
    vary: Augmentation | None = None,
) -> Source:
    """Open one split of a named set.

    Parameters
    ----------
    name
        One of `SETS`.
    root
        Folder of the set; see `LandCoverSet.holds`. What it holds as archives torchgeo unpacks there.
    split
        One of the set's splits.
    codes
        What its codes mean; see `LandCoverSet.codes`.
    model_input
        What is read of the images, whose bands are the set's: tiles are resampled to its pixel size, images must have
        it.
    chip_px
        Side of the chips.
    parts
        What to narrow the set down to; by default all of it.
    download
        Whether torchgeo may fetch what is missing.
    vary
        How to vary the samples, if at all.

    Raises
    ------
    ConfigError
        If the set has no such part, its images have other pixels, or it can't be downloaded and should be.
    TrainingDataError
        If the root does not hold the set, or a file of it can't be read.
    """
    chosen = SETS[name]
    for part in parts:
        if part not in chosen.parts:
            known = f"its parts: {', '.join(chosen.parts)}" if chosen.parts else "leave out data.dataset.parts"
            raise ConfigError(f"{chosen.title} has no part '{part}'", known)
    if not chosen.georeferenced and abs(model_input.gsd_m / chosen.gsd_m - 1) > GSD_TOLERANCE:
        raise ConfigError(
            f"gsd_m is {model_input.gsd_m}, and the images of {chosen.title} are never resampled",
            f"give the size of their pixels: gsd_m: {chosen.gsd_m}",
        )
    if download and not chosen.downloadable:
        raise ConfigError(
            f"torchgeo can't download {chosen.title}", f"fetch it yourself; its root must hold {chosen.holds}"
        )
    missing = f"can't find the {split} split of {chosen.title} in {root}"
    hint = f"expected there: {chosen.holds}"
    if chosen.downloadable and not download:
        hint += "; 'download: true' under data.dataset fetches it"
    try:
        # torchgeo prints to stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            opened = chosen.open(root, chosen.splits[split], parts or chosen.parts, download)
    except OSError as error:
        raise TrainingDataError(missing, hint) from error
    pairs = chosen.pairs(opened)
    if not pairs:
        raise TrainingDataError(missing, hint)
    read_px = chip_px if vary is None else vary.read_px(chip_px)
    if chosen.georeferenced:
        # Known, whatever the tiles say of them.
        numbers = tuple(range(1, len(chosen.bands) + 1))
        scenes = open_pairs(pairs, codes, replace(model_input, band_numbers=numbers), vary=vary)
        return Source(scenes, partial(_draw_from_scenes, scenes, read_px))
    chips = ImageChips(opened, pairs, codes, vary)
    return Source(chips, partial(RandomCrops, chips, chip_px=read_px))


def _draw_from_scenes(scenes: GeoDataset, chip_px: int, length: int) -> EvenGeoSampler:
    sampler = EvenGeoSampler(scenes, chip_px, length)
    if not sampler.bounds:
        raise TrainingDataError(f"no scene with labels is as large as a chip of {chip_px} px", SMALLER_CHIPS)
    return sampler
