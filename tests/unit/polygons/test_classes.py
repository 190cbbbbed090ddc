"""Rasters of classes that others made: their values, names and colours, and what is none."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from landseg.errors import CrsError, InputError, SceneError
from landseg.polygons.classes import read_class_raster
from tests.conftest import RGB, SceneMaker, write_vrt


def test_values_are_those_that_occur_without_nodata(make_scene: SceneMaker) -> None:
    path = make_scene(np.array([[[0, 4, 4], [2, 255, 0]]], np.uint8), colours=None, nodata=255)
    source = read_class_raster(path)
    assert source.values == (0, 2, 4)
    assert source.grid.shape == (2, 3)
    assert source.confidence_band is None


@pytest.mark.parametrize(
    ("kind", "nodata", "declared"),
    [
        ("int16", -9999, True),
        ("uint16", 65535, True),
        ("int32", -9999, True),
        ("float32", np.nan, False),
        ("float32", np.nan, True),
        ("float64", -1e30, True),
    ],
)
def test_codes_may_be_of_any_type(make_scene: SceneMaker, kind: str, nodata: float, declared: bool) -> None:
    codes = np.array([[[111, 523, nodata]]], kind)
    path = make_scene(codes, colours=None, nodata=nodata if declared else None)
    assert read_class_raster(path).values == (111, 523)


def test_what_a_mask_hides_is_no_class(make_scene: SceneMaker) -> None:
    valid = np.array([[True, True, False]])
    assert read_class_raster(make_scene(np.array([[[0, 3, 9]]], np.uint8), colours=None, valid=valid)).values == (0, 3)


def test_what_a_mask_of_the_band_hides_is_no_class(make_scene: SceneMaker, tmp_path: Path) -> None:
    codes = make_scene(np.array([[[0, 3, 9]]], np.uint8), colours=None)
    mask = make_scene(np.array([[[255, 255, 0]]], np.uint8), "mask.tif", colours=None)
    words = (
        "<NoDataValue>0</NoDataValue><MaskBand><VRTRasterBand dataType='Byte'><SimpleSource>"
        f"<SourceFilename>{mask}</SourceFilename></SimpleSource></VRTRasterBand></MaskBand>"
    )
    assert read_class_raster(write_vrt(tmp_path / "codes.vrt", [(codes, 1, words)])).values == (0, 3)


def test_names_and_colours_are_the_rasters_own(make_scene: SceneMaker) -> None:
    path = make_scene(np.array([[[1, 2]]], np.uint8), colours=None, photometric="palette", nodata=0)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {1: (10, 20, 30, 255), 2: (40, 50, 60, 255)})
    path.with_name(path.name + ".aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><CategoryNames>"
        "<Category>nodata</Category><Category>park</Category><Category>water</Category><Category></Category>"
        "</CategoryNames></PAMRasterBand></PAMDataset>"
    )
    source = read_class_raster(path)
    assert source.names == {1: "park", 2: "water"}
    assert (source.colours[1], source.colours[2]) == ("#0a141e", "#28323c")


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (np.full((3, 2, 2), 7, np.uint8), {"colours": RGB}, "is an image: its first band is red"),
        (np.full((1, 2, 2), 0.5, np.float32), {}, "holds decimals, such as 0.5"),
        (np.arange(300, dtype=np.int16)[None, None], {}, "more than 255 different values"),
        (np.zeros((1, 2, 2), np.uint8), {"nodata": 0}, "no valid pixel"),
        (np.full((1, 2, 2), 2**40, np.int64), {}, "holds 1099511627776, which is too large for a class id"),
        (np.array([[[-(2**31), 3]]], np.int64), {}, "holds -2147483648, which is too large for a class id"),
    ],
)
def test_what_is_no_raster_of_classes_is_refused(
    make_scene: SceneMaker, data: np.ndarray, options: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read_class_raster(make_scene(data, **({"colours": None} | options)))


def test_255_classes_beside_nodata_are_not_too_many(make_scene: SceneMaker) -> None:
    values = np.arange(256, dtype=np.uint8)[None, None]
    assert len(read_class_raster(make_scene(values, colours=None, nodata=9)).values) == 255


def test_what_is_no_raster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.tif").write_text("not a raster")
    with pytest.raises(SceneError, match=r"can't read .*notes\.tif"):
        read_class_raster(tmp_path / "notes.tif")


def test_a_crs_is_asked_for(make_scene: SceneMaker) -> None:
    path = make_scene(np.ones((1, 2, 2), np.uint8), colours=None, crs=None)
    with pytest.raises(CrsError, match="--assume-crs"):
        read_class_raster(path)
    assert read_class_raster(path, "EPSG:32640").grid.crs.to_epsg() == 32640
