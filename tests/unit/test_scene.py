import dataclasses
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.windows import Window

from landseg.errors import BandError, CrsError, EmptySceneError, GsdError, SceneError
from landseg.grid import Grid
from landseg.scene import (
    RasterScene,
    SceneInfo,
    describe_scene,
    is_as_described,
    match_bands,
    value_ranges,
    working_grid,
)
from landseg.scene.stamp import stamp_of
from tests.conftest import DEMO_SCENE, UTM40, SceneMaker, write_vrt

RGB_NAMES = ("red", "green", "blue")
UTM_PIXELS = Affine(1, 0, 339000, 0, -1, 2784000)
GREY = np.zeros((1, 20, 30), dtype=np.uint8)


def info(grid: Grid | None = None, names: tuple[str, ...] = RGB_NAMES, dtype: str = "uint8") -> SceneInfo:
    grid = grid or Grid((100, 200), Affine(1, 0, 339000, 0, -1, 2784000), UTM40)
    return SceneInfo("scene.tif", grid, (dtype,) * len(names), names, "none")


def square(pixel: float, crs: CRS = UTM40, at: tuple[float, float] = (339000, 2784000)) -> Grid:
    return Grid((100, 100), Affine(pixel, 0, at[0], 0, -pixel, at[1]), crs)


class TestDescribe:
    def test_the_demo(self) -> None:
        scene = describe_scene(str(DEMO_SCENE))
        assert scene.grid.shape == (1632, 1528)
        assert scene.grid.crs == UTM40
        assert scene.band_names == RGB_NAMES
        assert (scene.dtypes, scene.validity) == (("uint8",) * 3, "none")

    def test_descriptions_come_before_colours(self, make_scene: SceneMaker) -> None:
        path = make_scene(np.zeros((3, 9, 9), np.uint8), descriptions=("NIR", "Red", "G"))
        assert describe_scene(str(path)).band_names == ("nir", "red", "green")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SceneError, match="there is no scene") as caught:
            describe_scene(str(tmp_path / "no.tif"))
        assert caught.value.exit_code == 3

    def test_not_a_raster(self, tmp_path: Path) -> None:
        (tmp_path / "notes.tif").write_text("not a raster")
        with pytest.raises(SceneError, match="as a raster"):
            describe_scene(str(tmp_path / "notes.tif"))

    def test_a_raster_that_lies_nowhere(self, make_scene: SceneMaker) -> None:
        path = str(make_scene(GREY, crs=None, transform=Affine.identity()))
        with pytest.raises(CrsError, match="does not say where on the ground it lies"):
            describe_scene(path, "EPSG:32640")

    def test_complex_numbers_that_numpy_does_not_know(self, make_scene: SceneMaker) -> None:
        with pytest.raises(SceneError, match="complex numbers"):
            describe_scene(str(make_scene(GREY.astype(np.complex64), dtype="complex_int16")))

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SceneError, match="as a raster"):
            describe_scene(str(tmp_path))

    def test_no_crs(self, make_scene: SceneMaker) -> None:
        path = make_scene(GREY, crs=None)
        with pytest.raises(CrsError, match="no coordinate reference system") as caught:
            describe_scene(str(path))
        assert "--assume-crs" in str(caught.value)
        assert describe_scene(str(path), "EPSG:32640").grid.crs == UTM40

    def test_nonsense_for_a_crs(self, make_scene: SceneMaker) -> None:
        with pytest.raises(CrsError, match="EPSG:oops"):
            describe_scene(str(make_scene(GREY, crs=None)), "EPSG:oops")

    def test_control_points_alone(self, tmp_path: Path) -> None:
        points = [GroundControlPoint(r, c, 339000 + c, 2784000 - r) for r, c in ((0, 0), (0, 30), (20, 0), (20, 30))]
        path = tmp_path / "gcps.tif"
        with rasterio.open(path, "w", driver="GTiff", count=1, height=20, width=30, dtype="uint8") as file:
            file.gcps = points, UTM40
        with pytest.raises(CrsError, match="gdalwarp"):
            describe_scene(str(path))

    def test_complex_numbers(self, make_scene: SceneMaker) -> None:
        with pytest.raises(SceneError, match="complex"):
            describe_scene(str(make_scene(GREY.astype(np.complex64))))

    def test_of_a_file_of_several_rasters_one_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "two.gpkg"
        for table in ("a", "b"):
            with rasterio.open(
                path, "w", driver="GPKG", count=1, height=9, width=9, dtype="uint8", crs=UTM40,
                transform=Affine(1, 0, 339000, 0, -1, 2784000), RASTER_TABLE=table, APPEND_SUBDATASET=table == "b",
            ) as file:  # fmt: skip
                file.write(np.ones((1, 9, 9), np.uint8))
        with pytest.raises(SceneError, match="no raster bands") as caught:
            describe_scene(str(path))
        assert f"one of its 2 subdatasets, such as GPKG:{path}:a" in str(caught.value)
        part = describe_scene(f"GPKG:{path}:a")
        assert part.grid.shape == (9, 9)
        assert part.stamp[0] == path.stat().st_size
        with pytest.raises(SceneError, match="as a raster"):
            describe_scene(f"GPKG:{tmp_path / 'none.gpkg'}:a")


class TestIsAsDescribed:
    def test_a_copy_is(self, make_scene: SceneMaker) -> None:
        path = make_scene(GREY, colours=None)
        scene = describe_scene(str(path))
        os.utime(path, (1, 1))
        assert is_as_described(scene)

    @pytest.mark.parametrize(
        "other",
        [
            {"data": GREY[:, :, :-1]},
            {"data": GREY.reshape(1, 30, 20)},
            {"data": GREY, "transform": Affine(1, 0, 339001, 0, -1, 2784000)},
            {"data": GREY, "compress": "deflate"},
            {"data": GREY.astype(np.int8)},
        ],
        ids=["smaller", "turned", "elsewhere", "another size", "another type"],
    )
    def test_another_file_is_not(self, make_scene: SceneMaker, other: dict[str, Any]) -> None:
        scene = describe_scene(str(make_scene(GREY, colours=None)))
        make_scene(**other, colours=None)
        assert not is_as_described(scene)

    def test_nor_is_a_mosaic_of_other_parts(self, make_scene: SceneMaker, tmp_path: Path) -> None:
        scene = describe_scene(str(write_vrt(tmp_path / "mosaic.vrt", [(make_scene(GREY), 1, "")])))
        assert is_as_described(scene)
        make_scene(GREY, compress="deflate")
        assert not is_as_described(scene)

    def test_nor_what_is_not_there(self, make_scene: SceneMaker) -> None:
        path = make_scene(GREY)
        scene = describe_scene(str(path))
        path.unlink()
        assert not is_as_described(scene)


class TestStamp:
    def test_of_a_single_file_is_its_size_and_time(self, make_scene: SceneMaker) -> None:
        path = make_scene(GREY)
        status = path.stat()
        # As QGIS leaves it.
        path.with_name("scene.tif.aux.xml").write_text("<PAMDataset/>")
        scene = describe_scene(str(path))
        assert len(scene.files) == 2
        assert scene.stamp == (status.st_size, status.st_mtime_ns)

    @pytest.mark.parametrize("beside", ["scene.tif.msk", "scene.tif.ovr", "scene.tfw"])
    def test_changes_with_files_beside_it(self, make_scene: SceneMaker, beside: str) -> None:
        path = make_scene(GREY, transform=None if beside == "scene.tfw" else UTM_PIXELS)
        if beside == "scene.tfw":
            path.with_name(beside).write_text("1\n0\n0\n-1\n339000.5\n2783999.5\n")
        else:
            with (
                rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True),
                rasterio.open(path, "r+") as file,
            ):
                if beside == "scene.tif.msk":
                    file.write_mask(np.ones((20, 30), np.bool_))
                else:
                    file.build_overviews([2])
        before = describe_scene(str(path)).stamp
        os.utime(path.with_name(beside), (1, 1))
        assert describe_scene(str(path)).stamp != before

    def test_changes_with_a_tile_of_a_mosaic_of_mosaics(self, make_scene: SceneMaker, tmp_path: Path) -> None:
        tile = make_scene(GREY)
        inner = write_vrt(tmp_path / "inner.vrt", [(tile, 1, "")])
        outer = str(write_vrt(tmp_path / "outer.VRT", [(inner, 1, "")]))
        before = describe_scene(outer)
        assert [Path(file).name for file in before.files] == ["outer.VRT", "inner.vrt", "scene.tif"]
        os.utime(tile, (1, 1))
        assert describe_scene(outer).stamp != before.stamp

    def test_mosaics_of_each_other(self, make_scene: SceneMaker, tmp_path: Path) -> None:
        first = write_vrt(tmp_path / "first.vrt", [(make_scene(GREY), 1, "")])
        second = write_vrt(tmp_path / "second.vrt", [(first, 1, "")])
        write_vrt(first, [(second, 1, "")])
        assert len(describe_scene(str(first)).files) == 2

    def test_a_tile_that_vanishes_is_named(self, make_scene: SceneMaker, tmp_path: Path) -> None:
        path, gone = str(make_scene(GREY)), str(tmp_path / "gone.tif")
        with pytest.raises(SceneError, match=r"gone\.tif, a part of .*scene\.tif, can't be read"):
            stamp_of(path, (path, gone))


class TestMatchBands:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (("red", "green", "blue"), (1, 2, 3)),
            (("blue", "green", "red", "nir"), (3, 2, 1)),
            (("", "red", "green", "blue", "alpha"), (2, 3, 4)),
        ],
    )
    def test_by_name(self, names: tuple[str, ...], expected: tuple[int, ...]) -> None:
        assert match_bands(info(names=names), RGB_NAMES, None) == expected

    def test_the_user_s_numbers_come_first(self) -> None:
        assert match_bands(info(), RGB_NAMES, (3, 2, 1)) == (3, 2, 1)

    def test_names_that_do_not_settle_it(self) -> None:
        with pytest.raises(BandError, match="which of its bands is blue") as caught:
            match_bands(info(names=("nir", "red", "green")), RGB_NAMES, None)
        assert "--bands" in str(caught.value)

    @pytest.mark.parametrize("names", [("",), ("red", "green", "alpha")])
    def test_too_few(self, names: tuple[str, ...]) -> None:
        with pytest.raises(BandError, match="too few bands"):
            match_bands(info(names=names), RGB_NAMES, None)

    @pytest.mark.parametrize("numbers", [(1, 2), (0, 1, 2), (1, 2, 4)])
    def test_wrong_numbers(self, numbers: tuple[int, ...]) -> None:
        with pytest.raises(BandError, match=r"names 2 bands|has no band"):
            match_bands(info(), RGB_NAMES, numbers)


class TestWorkingGrid:
    @pytest.mark.parametrize("pixel", [0.92, 1.0, 1.09])
    def test_a_scene_within_a_tenth_keeps_its_pixels(self, pixel: float) -> None:
        scene = info(square(pixel))
        assert working_grid(scene, 1.0) is scene.grid

    @pytest.mark.parametrize("pixel", [0.3, 0.85, 1.2, 5.0])
    def test_a_scene_further_off_is_resampled(self, pixel: float) -> None:
        scene = info(square(pixel))
        grid = working_grid(scene, 1.0)
        assert grid.gsd_m == pytest.approx(1.0, rel=1e-3)
        assert grid.corners[0] == scene.grid.corners[0]

    def test_oblong_pixels_become_square(self) -> None:
        grid = working_grid(info(Grid((100, 100), Affine(1, 0, 339000, 0, -2, 2784000), UTM40)), 1.0)
        assert grid.pixel_size_m == pytest.approx((1.0, 1.0), rel=1e-3)
        assert grid.shape[0] == pytest.approx(200, abs=1)

    @pytest.mark.parametrize("pixel", [0.1, 10.0])
    def test_too_far_off_is_refused_unless_forced(self, pixel: float) -> None:
        scene = info(square(pixel))
        with pytest.raises(GsdError, match="made for 1 m"):
            working_grid(scene, 1.0)
        assert working_grid(scene, 1.0, force_gsd=True) is scene.grid

    @pytest.mark.parametrize(
        ("lon", "lat", "epsg"),
        [
            (55.3, 25.2, 32640),
            (-70.6, -33.4, 32719),
            (179.99, 10, 32660),
            (10, 86, 5041),
            (10, -85, 5042),
            # Its centre alone lies in the zone.
            (53.9992, 0.0012, 32740),
        ],
    )
    def test_degrees_are_brought_to_a_local_grid_in_metres(self, lon: float, lat: float, epsg: int) -> None:
        degrees = 1e-5 / np.cos(np.radians(lat))
        own = Grid((300, 200), Affine(degrees, 0, lon, 0, -1e-5, lat), CRS.from_epsg(4326))
        grid = working_grid(info(own), 1.0)
        assert grid.crs.to_epsg() == epsg
        assert (grid.transform.a, grid.transform.e) == (1, -1)
        # It covers the scene: every corner lies within.
        left, bottom, right, top = rasterio.warp.transform_bounds(own.crs, grid.crs, *own.bounds)
        assert grid.bounds[0] <= left
        assert grid.bounds[1] <= bottom
        assert grid.bounds[2] >= right
        assert grid.bounds[3] >= top

    @pytest.mark.parametrize(("step", "force_gsd"), [(0.95e-5, False), (1.2e-5, True)])
    def test_degrees_keep_their_size_where_metres_would(self, step: float, force_gsd: bool) -> None:
        own = Grid((300, 200), Affine(step, 0, 55.3, 0, -step, 25.2), CRS.from_epsg(4326))
        assert abs(own.gsd_m - 1) > 0.002
        assert working_grid(info(own), 1.0, force_gsd=force_gsd).transform.a == own.gsd_m

    def test_nowhere_on_earth(self) -> None:
        with pytest.raises(CrsError):
            working_grid(info(square(1.0, at=(1e12, 1e12))), 1.0)


class TestValueRanges:
    def test_bytes_are_taken_as_they_are(self) -> None:
        assert value_ranges(info(), (1, 2, 3), given=(0, 9)) == ((0.0, 255.0),) * 3

    def test_the_card_s_rule(self) -> None:
        assert value_ranges(info(dtype="uint16"), (1, 2), given=(0, 3000)) == ((0, 3000), (0, 3000))

    def test_each_band_by_its_own_type(self, make_scene: SceneMaker, tmp_path: Path) -> None:
        grey = make_scene(GREY, "grey.tif")
        wide = make_scene(np.arange(600, dtype=np.uint16).reshape(1, 20, 30), "wide.tif")
        scene = describe_scene(str(write_vrt(tmp_path / "both.vrt", [(grey, 1, ""), (wide, 1, "")])))
        as_it_is, stretched = (0, 255), (pytest.approx(12, abs=1), pytest.approx(587, abs=1))
        assert value_ranges(scene, (1,), given=None) == (as_it_is,)
        assert value_ranges(scene, (2, 1), given=None) == (stretched, as_it_is)
        assert value_ranges(scene, (2, 1), given=(0, 3000)) == ((0, 3000), as_it_is)

    def test_percentiles_of_valid_pixels(self, make_scene: SceneMaker) -> None:
        data = np.full((2, 100, 101), -9999, dtype=np.float32)
        data[0, :, :100] = np.arange(10_000).reshape(100, 100)
        data[1, :, :100] = 7
        scene = describe_scene(str(make_scene(data, nodata=-9999)))
        (low, high), constant = value_ranges(scene, (1, 2), given=None)
        assert (low, high) == (pytest.approx(200, abs=2), pytest.approx(9800, abs=2))
        assert constant == (7, 8)

    def test_nan_does_not_count(self, make_scene: SceneMaker) -> None:
        data = np.linspace(0, 1, 10_000, dtype=np.float64).reshape(1, 100, 100)
        data[0, :50] = np.nan
        ((low, high),) = value_ranges(describe_scene(str(make_scene(data))), (1,), given=None)
        assert 0.5 < low < high < 1

    def test_nothing_valid(self, make_scene: SceneMaker) -> None:
        scene = describe_scene(str(make_scene(np.full((1, 9, 9), np.nan, np.float32))))
        with pytest.raises(EmptySceneError, match="no valid pixel"):
            value_ranges(scene, (1,), given=None)


def test_a_truncated_file_is_named_with_the_place(make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    path = make_scene(city)
    os.truncate(path, path.stat().st_size // 2)
    scene = describe_scene(str(path))
    with RasterScene(scene, (1, 2, 3), scene.grid) as reader, pytest.raises(SceneError, match="rows 100 to 120"):
        reader.read(Window(0, 100, 150, 20))


def test_information_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        info().path = "other"  # type: ignore[misc]


def test_a_crs_is_assumed_only_where_there_is_none(
    make_scene: SceneMaker, city: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    scene = str(make_scene(city))
    assert describe_scene(scene, "EPSG:32639").grid.crs.to_epsg() == 32640
    assert "--assume-crs is not heeded" in caplog.text
    caplog.clear()
    describe_scene(scene, "EPSG:32640")
    assert caplog.text == ""
    with pytest.raises(CrsError, match="'castle' is no coordinate reference system"):
        describe_scene(scene, "castle")


def test_the_warning_names_no_code_that_is_not_the_scenes(
    make_scene: SceneMaker, city: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    own = CRS.from_string("+proj=tmerc +lon_0=9 +k=1 +x_0=3500000 +ellps=bessel +towgs84=700,100,500,0,0,0,0")
    describe_scene(str(make_scene(city, crs=own)), "EPSG:5683")
    assert "TOWGS84[700,100,500,0,0,0,0]" in caplog.text


class _Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(int(self.path[1:4]))
        self.send_header("ETag", self.headers.get("Authorization", ""))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def test_a_server_that_fails_does_not_make_a_scene_another_one() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            # S3 signs URLs for GET alone, and refuses HEAD with 403.
            assert {stamp_of(f"{url}/{code}") for code in (400, 401, 403, 404, 405, 501)} == {()}
            with pytest.raises(SceneError, match="its server answers 503") as caught:
                stamp_of(f"{url}/503?sig=secret")
            assert "secret" not in str(caught.value)
            # As base64 has user:p@ss.
            assert stamp_of(f"http://user:p%40ss@127.0.0.1:{server.server_port}/200") == ("Basic dXNlcjpwQHNz",)
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(SceneError, match="can't be reached"):
        stamp_of("http://127.0.0.1:1/a.tif")


def test_where_changes_can_t_be_seen_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert stamp_of("gs://bucket/city.tif") == ()
    assert "whether gs://bucket/city.tif changes can't be seen" in caplog.text
