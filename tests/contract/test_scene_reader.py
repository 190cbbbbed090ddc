"""One suite for every way in which a raster can hold the same pixels: what `RasterScene` gives must be those pixels."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import WarpOptionsError
from rasterio.windows import Window

import landseg.scene.reader
from landseg.errors import SceneError
from landseg.grid import Grid
from landseg.scene import (
    NodataPolicy,
    Pixels,
    RasterScene,
    SalvagedScene,
    SceneReader,
    describe_scene,
    read_overview,
    working_grid,
)
from tests.conftest import UTM40, SceneMaker, write_vrt
from tests.laws.test_mosaic import ArrayScene

ROWS, COLS = 70, 90
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 32}


def truth(dtype: str) -> NDArray[Any]:
    """Give (3, 70, 90) values that use the type's range, zeros among them."""
    random = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=(3, ROWS, COLS)).astype(dtype)
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, size=(3, ROWS, COLS), dtype=dtype, endpoint=True)


def open_scene(path: Path | str, **options: Any) -> RasterScene:
    info = describe_scene(str(path))
    return RasterScene(info, (1, 2, 3), info.grid, **options)


def everything(scene: SceneReader) -> Pixels:
    return scene.read(scene.grid.window)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize(
    "layout", [{}, TILED, {"compress": "lzw"}, {"compress": "zstd", **TILED, "interleave": "band"}]
)
def test_pixels_of_every_type_and_layout(make_scene: SceneMaker, dtype: str, layout: dict[str, Any]) -> None:
    expected = truth(dtype)
    with open_scene(make_scene(expected, **layout)) as scene:
        pixels = everything(scene)
    assert pixels.data.dtype == np.dtype(dtype)
    assert (pixels.data == expected).all()
    # Nothing was declared nodata, so nothing is: zeros are values.
    assert pixels.valid.all()


@pytest.mark.parametrize("compress", ["jpeg", "webp"])
def test_lossy_compression(make_scene: SceneMaker, city: NDArray[np.uint8], compress: str) -> None:
    with open_scene(make_scene(city, compress=compress, interleave="pixel", **TILED)) as scene:
        assert np.abs(everything(scene).data.astype(int) - city).mean() < 12


@pytest.mark.parametrize("driver", ["COG", "VRT", "PNG", "GPKG"])
def test_other_drivers(make_scene: SceneMaker, tmp_path: Path, driver: str) -> None:
    source = make_scene(truth("uint8"))
    path = tmp_path / f"copy.{driver.lower()}"
    options = {"TILE_FORMAT": "PNG"} if driver == "GPKG" else {}
    rasterio.shutil.copy(source, path, driver=driver, **options)
    with open_scene(path) as scene:
        assert (everything(scene).data == truth("uint8")).all()


@pytest.mark.parametrize(
    "transform",
    [
        Affine(1, 0, 339000, 0, -1, 2784000),
        Affine(1, 0, 339000, 0, 1, 2784000),
        Affine.translation(339000, 2784000) @ Affine.rotation(30) @ Affine.scale(1, -1),
    ],
    ids=["north-up", "south-up", "rotated"],
)
def test_any_transform_keeps_its_pixels(make_scene: SceneMaker, transform: Affine) -> None:
    with open_scene(make_scene(truth("uint8"), transform=transform)) as scene:
        assert scene.grid.transform.almost_equals(transform)
        assert (everything(scene).data == truth("uint8")).all()


def half_valid() -> NDArray[np.bool_]:
    valid = np.ones((ROWS, COLS), dtype=np.bool_)
    valid[:, :40] = False
    return valid


def with_nodata(make: SceneMaker) -> Path:
    data = truth("uint8").clip(1)
    data[:, ~half_valid()] = 0
    return make(data, nodata=0)


def with_mask(make: SceneMaker) -> Path:
    return make(truth("uint8"), valid=half_valid())


def with_alpha(make: SceneMaker) -> Path:
    alpha = np.where(half_valid(), 255, 0).astype(np.uint8)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    return make(np.concatenate([truth("uint8"), alpha[None]]), colours=colours)


def with_alpha_of_a_fifth_band(make: SceneMaker) -> Path:
    alpha = np.where(half_valid(), 255, 0).astype(np.uint8)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined, ColorInterp.alpha)
    return make(np.concatenate([truth("uint8"), truth("uint8")[:1], alpha[None]]), colours=colours)


def with_alpha_between_bands_of_int16(make: SceneMaker) -> Path:
    alpha = np.where(half_valid(), 255, 0).astype(np.int16)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha, ColorInterp.undefined)
    return make(np.concatenate([truth("int16"), alpha[None], truth("int16")[:1]]), colours=colours)


def with_mask_of_four_bands(make: SceneMaker) -> Path:
    data = np.concatenate([truth("uint16"), truth("uint16")[:1]])
    return make(data, colours=None, photometric="minisblack", valid=half_valid())


def with_mask_of_int16(make: SceneMaker) -> Path:
    return make(truth("int16"), valid=half_valid())


def with_mask_of_float32(make: SceneMaker) -> Path:
    return make(truth("float32"), valid=half_valid())


def with_nodata_of_float32(make: SceneMaker) -> Path:
    return make(np.where(half_valid(), truth("float32"), np.float32(-9999)), nodata=-9999)


def with_mask_beside_nodata(make: SceneMaker) -> Path:
    data = truth("uint8").clip(1)
    data[:, :, 60:] = 0
    return make(data, nodata=0, valid=half_valid())


def with_mask_beside_alpha(make: SceneMaker) -> Path:
    opaque = np.full((1, ROWS, COLS), 255, np.uint8)
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    return make(np.concatenate([truth("uint8"), opaque]), colours=colours, valid=half_valid())


def with_nodata_beside_alpha(make: SceneMaker) -> Path:
    data = np.full((4, ROWS, COLS), 255, np.uint8)
    data[:3] = np.where(half_valid(), truth("uint8").clip(1), 0)
    return make(data, nodata=0, colours=(ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha))


def with_nodata_of_each_band(make: SceneMaker) -> Path:
    data = truth("uint8").clip(2, 254)
    values = 0, 255, 1
    data[:, ~half_valid()] = np.array(values)[:, None]
    path = make(data)
    words = [f"<NoDataValue>{value}</NoDataValue>" for value in values]
    return write_vrt(path.with_suffix(".vrt"), [(path, band, words[band - 1]) for band in (1, 2, 3)])


def mask_in_words(valid: NDArray[np.bool_], name: str, make: SceneMaker) -> str:
    mask = make(np.where(valid, 255, 0).astype(np.uint8)[None], name, colours=None)
    source = f"<SourceFilename>{mask}</SourceFilename><SourceBand>1</SourceBand>"
    return f'<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource>{source}</SimpleSource></VRTRasterBand></MaskBand>'


def with_masks_of_bands(make: SceneMaker) -> Path:
    path = make(truth("uint8"))
    words = mask_in_words(half_valid(), "mask.tif", make)
    return write_vrt(path.with_suffix(".vrt"), [(path, band, words) for band in (1, 2, 3)])


def with_nan(make: SceneMaker) -> Path:
    data = truth("float32")
    data[1, ~half_valid()] = np.nan
    return make(data)


def with_nan_nodata(make: SceneMaker) -> Path:
    data = truth("float64")
    data[:, ~half_valid()] = np.nan
    return make(data, nodata=np.nan)


VALIDITY: list[Callable[[SceneMaker], Path]] = [
    with_nodata,
    with_mask,
    with_mask_of_four_bands,
    with_mask_of_int16,
    with_mask_of_float32,
    with_nodata_of_float32,
    with_mask_beside_nodata,
    with_mask_beside_alpha,
    with_nodata_beside_alpha,
    with_masks_of_bands,
    with_nodata_of_each_band,
    with_alpha,
    with_alpha_of_a_fifth_band,
    with_alpha_between_bands_of_int16,
    with_nan,
    with_nan_nodata,
]


@pytest.mark.parametrize("make", VALIDITY)
def test_what_holds_no_data_is_invalid(make_scene: SceneMaker, make: Callable[[SceneMaker], Path]) -> None:
    with open_scene(make(make_scene)) as scene:
        assert (everything(scene).valid == half_valid()).all()


@pytest.mark.parametrize("make", VALIDITY)
def test_validity_survives_resampling(make_scene: SceneMaker, make: Callable[[SceneMaker], Path]) -> None:
    info = describe_scene(str(make(make_scene)))
    with RasterScene(info, (1, 2, 3), info.grid.resampled((0.5, 0.5))) as scene:
        valid = everything(scene).valid
    assert valid.shape == (2 * ROWS, 2 * COLS)
    # A bilinear kernel reaches one pixel across the border.
    assert not valid[:, :78].any()
    assert valid[:, 82:].all()


@pytest.mark.parametrize("make", VALIDITY)
def test_an_overview_leaves_out_what_is_invalid(make_scene: SceneMaker, make: Callable[[SceneMaker], Path]) -> None:
    overview = read_overview(describe_scene(str(make(make_scene))), (1, 2, 3), 1000)
    invalid = np.ma.getmaskarray(np.ma.masked_invalid(overview)).any(axis=0)
    assert (invalid == ~half_valid()).all()


def test_bands_stay_what_they_are_beside_an_alpha_band(make_scene: SceneMaker) -> None:
    info = describe_scene(str(with_alpha_between_bands_of_int16(make_scene)))
    with RasterScene(info, (1, 2, 3, 5), info.grid.resampled((0.5, 0.5)), resampling="nearest") as scene:
        data = everything(scene).data[:, ::2, 80::2]
    assert (data[:3] == truth("int16")[:, :, 40:]).all()
    assert (data[3] == truth("int16")[0, :, 40:]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32"])
@pytest.mark.parametrize("bands", [3, 4])
def test_what_lies_beyond_a_scene_in_degrees_is_invalid(make_scene: SceneMaker, dtype: str, bands: int) -> None:
    data = np.ones((bands, 200, 200), dtype)
    transform = Affine(1e-5, 0, 55.3, 0, -1e-5, 25.2)
    path = make_scene(data, colours=None, photometric="minisblack", crs=CRS.from_epsg(4326), transform=transform)
    info = describe_scene(str(path))
    with RasterScene(info, range(1, bands + 1), working_grid(info, 1.0)) as scene:
        pixels = everything(scene)
    assert 0.9 < pixels.valid.mean() < 0.99
    assert (pixels.data[:, pixels.valid] == 1).all()


@pytest.mark.parametrize("left", [179.9996, -180.0005, 359.9995])
def test_a_scene_across_the_end_of_the_longitudes_is_read_whole(make_scene: SceneMaker, left: float) -> None:
    transform = Affine(1e-5, 0, left, 0, -1e-5, -17.0)
    info = describe_scene(str(make_scene(truth("uint8").clip(1), crs=CRS.from_epsg(4326), transform=transform)))
    with RasterScene(info, (1, 2, 3), working_grid(info, 1.0)) as scene:
        valid = everything(scene).valid
    assert valid.mean() > 0.9
    assert valid[valid.shape[0] // 2, [2, -3]].all()


def test_a_scene_that_can_t_be_resampled_is_not_read_as_it_is(
    make_scene: SceneMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise WarpOptionsError

    info = describe_scene(str(make_scene(truth("uint8"))))
    with RasterScene(info, (1, 2, 3), info.grid.resampled((0.5, 0.5))) as scene:
        monkeypatch.setattr(landseg.scene.reader, "WarpedVRT", refuse)
        for _ in range(2):
            with pytest.raises(SceneError, match="can't be read"):
                everything(scene)
        monkeypatch.undo()
        assert everything(scene).data.shape == (3, 2 * ROWS, 2 * COLS)


def test_the_policy_decides_where_some_bands_are_nodata(make_scene: SceneMaker) -> None:
    data = truth("uint8").clip(1)
    data[0, :10] = 0
    data[:, 10:20] = 0
    path = make_scene(data, nodata=0)
    with open_scene(path, nodata_policy="all") as scene:
        assert (everything(scene).valid.any(axis=1) == ~((np.arange(ROWS) >= 10) & (np.arange(ROWS) < 20))).all()
    with open_scene(path, nodata_policy="any") as scene:
        assert (everything(scene).valid.any(axis=1) == (np.arange(ROWS) >= 20)).all()


def partly_valid() -> NDArray[np.bool_]:
    valid = np.repeat(half_valid()[None], 3, axis=0)
    valid[0, :, :60] = False
    return valid


def partly_nodata(make: SceneMaker, **options: Any) -> Path:
    return make(np.where(partly_valid(), 100, -9999).astype(np.int16), nodata=-9999, **options)


def partly_nodata_beside_a_band_that_is_not_read(make: SceneMaker, **options: Any) -> Path:
    read = np.where(partly_valid(), 100, -9999)
    data = np.concatenate([read, np.full((1, ROWS, COLS), 50)]).astype(np.int16)
    return make(data, nodata=-9999, colours=None, **options)


def partly_nodata_of_each_band(make: SceneMaker, **options: Any) -> Path:
    values = -9999, -1, 9999
    path = make(np.where(partly_valid(), 100, np.array(values)[:, None, None]).astype(np.int16), **options)
    words = [f"<NoDataValue>{value}</NoDataValue>" for value in values]
    return write_vrt(path.with_suffix(".vrt"), [(path, band, words[band - 1]) for band in (1, 2, 3)])


def partly_masked(make: SceneMaker, **options: Any) -> Path:
    path = make(np.where(partly_valid(), 100, -9999).astype(np.int16), **options)
    words = [mask_in_words(valid, f"mask{band}.tif", make) for band, valid in enumerate(partly_valid())]
    return write_vrt(path.with_suffix(".vrt"), [(path, band, words[band - 1]) for band in (1, 2, 3)])


@pytest.mark.parametrize(
    "make",
    [partly_nodata, partly_nodata_beside_a_band_that_is_not_read, partly_nodata_of_each_band, partly_masked],
)
@pytest.mark.parametrize(("policy", "share"), [("all", 50 / COLS), ("any", 30 / COLS)])
@pytest.mark.parametrize("how", ["native", "finer", "coarser", "degrees"])
def test_the_policy_holds_on_every_grid(
    make_scene: SceneMaker, make: Callable[..., Path], policy: NodataPolicy, share: float, how: str
) -> None:
    degrees = {"crs": CRS.from_epsg(4326), "transform": Affine(1e-5, 0, 55.3, 0, -1e-5, 25.2)}
    info = describe_scene(str(make(make_scene, **(degrees if how == "degrees" else {}))))
    factor = {"native": 1, "finer": 0.5, "coarser": 1.5}
    grid = working_grid(info, 1.0) if how == "degrees" else info.grid.resampled((factor[how], factor[how]))
    with RasterScene(info, (1, 2, 3), info.grid if how == "native" else grid, nodata_policy=policy) as scene:
        pixels = everything(scene)
        pixel_m2, own_pixel_m2 = (math.prod(grid.pixel_size_m) for grid in (scene.grid, info.grid))
    assert pixels.valid.sum() * pixel_m2 / (ROWS * COLS * own_pixel_m2) == pytest.approx(share, abs=0.02)
    # Nothing of what is nodata has got into what is not.
    assert (pixels.data[1:, pixels.valid] == 100).all()
    assert policy == "all" or (pixels.data[0, pixels.valid] == 100).all()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint8", 0), ("uint8", 255), ("float32", math.nan), ("float32", -3.4028234663852886e38)]
)
def test_a_band_that_is_not_read_changes_nothing(make_scene: SceneMaker, dtype: str, nodata: float) -> None:
    read = np.where(partly_valid(), 100, nodata).astype(dtype)
    found = []
    for data in (read, np.concatenate([read, np.full((1, ROWS, COLS), 50, dtype)])):
        info = describe_scene(str(make_scene(data, nodata=nodata, colours=None, photometric="minisblack")))
        with RasterScene(info, (3, 1, 2), info.grid.resampled((0.5, 0.5))) as scene:
            found.append(everything(scene))
    assert (found[0].valid == found[1].valid).all()
    np.testing.assert_array_equal(found[0].data, found[1].data)


@pytest.mark.parametrize(
    "words",
    ["{path}", "GTIFF_DIR:1:{path}", "/vsizip/{folder}/scene.zip/it's & more.tif", "vrt://{path}?bands=3,2,1,4"],
    ids=["file", "subdataset", "archive", "bands of another order"],
)
def test_some_bands_are_resampled_however_the_scene_is_named(
    make_scene: SceneMaker, tmp_path: Path, words: str
) -> None:
    read = np.where(half_valid(), truth("uint8").clip(1), 0)
    data = np.concatenate([read, np.full((1, ROWS, COLS), 50, np.uint8)])
    name = "it's.tif" if "vrt:" in words else "it's & more.tif"
    path = make_scene(data, name, colours=None, photometric="minisblack", nodata=0)
    with ZipFile(tmp_path / "scene.zip", "w") as archive:
        archive.write(path, path.name)
    info = describe_scene(words.format(path=path, folder=tmp_path))
    with RasterScene(info, (1, 2, 3), info.grid.resampled((0.5, 0.5)), resampling="nearest") as scene:
        pixels = everything(scene)
    assert (pixels.valid[::2, ::2] == half_valid()).all()
    assert (pixels.data[:, ::2, ::2] == (read[::-1] if "vrt:" in words else read)).all()


def test_nodata_of_a_band_that_is_not_read_leaves_what_lies_beyond_invalid(
    make_scene: SceneMaker, tmp_path: Path
) -> None:
    path = make_scene(truth("uint8"), crs=CRS.from_epsg(4326), transform=Affine(1e-5, 0, 55.3, 0, -1e-5, 25.2))
    words = "", "", "", "<NoDataValue>0</NoDataValue>"
    info = describe_scene(
        str(write_vrt(tmp_path / "four.vrt", list(zip([path] * 4, (1, 2, 3, 1), words, strict=True))))
    )
    with RasterScene(info, (1, 2, 3), working_grid(info, 1.0)) as scene:
        assert 0.9 < everything(scene).valid.mean() < 0.99


@pytest.mark.parametrize("factor", [1, 0.5])
def test_bands_of_different_types_are_read_together(make_scene: SceneMaker, tmp_path: Path, factor: float) -> None:
    files = [make_scene(truth(dtype), f"{dtype}.tif") for dtype in ("uint8", "uint16", "float32")]
    info = describe_scene(str(write_vrt(tmp_path / "mixed.vrt", [(file, 1, "") for file in files])))
    grid = info.grid if factor == 1 else info.grid.resampled((factor, factor))
    for bands, dtype in (((1,), "uint8"), ((1, 2), "uint16"), ((2, 1, 3), "float32")):
        with RasterScene(info, bands, grid, resampling="nearest") as scene:
            pixels = everything(scene)
            salvaged = SalvagedScene(scene)._read_cells(grid.window)
        assert pixels.data.dtype == salvaged.data.dtype == dtype
        expected = [truth(("uint8", "uint16", "float32")[band - 1])[0] for band in bands]
        assert (pixels.data[:, :: int(1 / factor), :: int(1 / factor)] == expected).all()
        assert pixels.valid.all()
        assert (read_overview(info, bands, 1000) == expected).all()


def test_nodata_of_bands_that_are_not_read_does_not_count(make_scene: SceneMaker) -> None:
    data = np.concatenate([truth("uint8").clip(1), np.zeros((1, ROWS, COLS), np.uint8)])
    with open_scene(make_scene(data, colours=None, nodata=0), nodata_policy="any") as scene:
        assert everything(scene).valid.all()


def test_resampling_averages_and_stays_in_place(make_scene: SceneMaker) -> None:
    """A gradient resampled to half its resolution is the same gradient."""
    ramp = np.broadcast_to(np.arange(COLS, dtype=np.float32), (3, ROWS, COLS)).copy()
    info = describe_scene(str(make_scene(ramp)))
    with RasterScene(info, (1, 2, 3), info.grid.resampled((2, 2))) as scene:
        data = everything(scene).data
    inner = data[:, 2:-2, 2:-2]
    expected = np.broadcast_to(2 * np.arange(COLS // 2) + 0.5, data.shape)[:, 2:-2, 2:-2]
    assert np.abs(inner - expected).max() < 0.05


def test_degrees_are_brought_to_metres(make_scene: SceneMaker) -> None:
    """A mark at a known longitude and latitude appears at its UTM coordinates."""
    data = np.zeros((3, 200, 200), dtype=np.uint8)
    data[:, 90:110, 90:110] = 255
    step = 1e-5
    path = make_scene(data, crs=CRS.from_epsg(4326), transform=Affine(step, 0, 55.3, 0, -step, 25.2))
    info = describe_scene(str(path))
    xs, ys = rasterio.warp.transform(CRS.from_epsg(4326), UTM40, [55.3 + 100 * step], [25.2 - 100 * step])
    to_utm = Affine(1, 0, xs[0] - 171.3, 0, -1, ys[0] + 188.8)
    with RasterScene(info, (1, 2, 3), Grid((400, 400), to_utm, UTM40)) as scene:
        pixels = everything(scene)
    rows, cols = np.nonzero(pixels.data[0] > 127)
    x, y = to_utm @ (cols.mean() + 0.5, rows.mean() + 0.5)
    assert abs(x - xs[0]) < 0.6
    assert abs(y - ys[0]) < 0.6
    assert 0 < pixels.valid.mean() < 1


READERS = ["array", "raster", "resampled", "resampled by bands"]


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, make_scene: SceneMaker) -> SceneReader:
    data = truth("uint8")
    if request.param == "array":
        return ArrayScene(data, half_valid())
    by_bands = request.param == "resampled by bands"
    path = with_masks_of_bands(make_scene) if by_bands else make_scene(data, valid=half_valid(), **TILED)
    info = describe_scene(str(path))
    grid = info.grid if request.param == "raster" else info.grid.resampled((1.5, 1.5))
    return RasterScene(info, (1, 2, 3), grid)


@given(data=st.data())
def _windows_are_parts_of_the_whole(reader: SceneReader, data: st.DataObject) -> None:
    whole = everything(reader)
    rows, cols = reader.grid.shape
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    height, width = data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, cols - left))
    part = reader.read(Window(left, top, width, height))
    inside = slice(top, top + height), slice(left, left + width)
    assert (part.valid == whole.valid[inside]).all()
    same = part.valid
    assert (part.data[:, same] == whole.data[:, *inside][:, same]).all()


def test_windows_are_parts_of_the_whole(reader: SceneReader) -> None:
    """Law: read(w) == read(everything)[w]."""
    _windows_are_parts_of_the_whole(reader)
    reader.close()


def test_threads_read_alike(reader: SceneReader) -> None:
    whole = everything(reader)
    start = threading.Barrier(4)

    def read(column: int) -> Pixels:
        start.wait()
        return reader.read(Window(column, 0, 10, reader.grid.shape[0]))

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(read, (0, 10, 20, 30)))
    reader.close()
    assert (np.concatenate([part.valid for part in parts], axis=1) == whole.valid[:, :40]).all()
    for index, part in enumerate(parts):
        expected = whole.data[:, :, 10 * index : 10 * index + 10]
        assert (part.data[:, part.valid] == expected[:, part.valid]).all()
