import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.features import shapes

from landseg.errors import TrainingDataError
from landseg.grid import Grid
from landseg.train.labels import IGNORED, LabelCodes, Labels, open_labels, overlap

NAMES = ("building", "land", "water")
CODES = LabelCodes({0: "building", 1: "land", 9: "water"}, NAMES)
UTM40 = CRS.from_epsg(32640)
GRID = Grid((64, 96), Affine(1, 0, 500_000, 0, -1, 2_800_000), UTM40)
BUILDING, LAND, WATER = range(3)


def box(left: float, top: float, right: float, bottom: float) -> shapely.Polygon:
    """Give a rectangle in pixels of the grid."""
    return shapely.box(500_000 + left, 2_800_000 - bottom, 500_000 + right, 2_800_000 - top)


def polygons(geometry: list[Any], crs: Any = UTM40, **columns: list[Any]) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=geometry, crs=crs)


def save(path: Path, frame: geopandas.GeoDataFrame, **options: Any) -> Path:
    pyogrio.write_dataframe(frame, path, **options)
    return path


def raster(path: Path, values: NDArray[Any], **profile: Any) -> Path:
    options = {"driver": "GTiff", "count": 1, "height": 64, "width": 96, "dtype": values.dtype, "crs": UTM40}
    with rasterio.open(path, "w", transform=GRID.transform, **(options | profile)) as file:
        file.write(values, 1)
    return path


def opened(path: Path, codes: LabelCodes = CODES, **options: Any) -> Labels:
    return open_labels(path, codes, GRID.crs, GRID.bounds, "the scene", **options)


def channels(path: Path, codes: LabelCodes = CODES, **options: Any) -> NDArray[np.int64]:
    return opened(path, codes, **options).read(GRID).channels


def drawn(*parts: tuple[tuple[slice, slice], int]) -> NDArray[np.int64]:
    expected = np.full(GRID.shape, IGNORED, dtype=np.int64)
    for where, channel in parts:
        expected[where] = channel
    return expected


@pytest.fixture
def patchwork() -> NDArray[np.uint8]:
    """Give labels with holes, single pixels, pixels that touch at corners, and a margin without labels."""
    values = np.random.default_rng(0).choice(np.array([0, 1, 9, 255], dtype=np.uint8), (64, 96))
    values[20:40, 30:70] = 1
    values[25:30, 40:50] = 9
    values[:, :8] = 255
    return values


def faces(values: NDArray[np.uint8]) -> geopandas.GeoDataFrame:
    found = [(shapely.geometry.shape(s), v) for s, v in shapes(values, values != 255, transform=GRID.transform)]
    return polygons([s for s, _ in found], code=[int(v) for _, v in found])


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb"])
def test_polygons_of_a_raster_give_the_raster_s_labels(
    tmp_path: Path, patchwork: NDArray[np.uint8], suffix: str
) -> None:
    labels = opened(save(tmp_path / f"labels{suffix}", faces(patchwork)), class_column="code")

    expected = opened(raster(tmp_path / "labels.tif", patchwork, nodata=255)).read(GRID)

    assert np.array_equal(labels.read(GRID).channels, expected.channels)
    assert set(np.unique(expected.channels)) == {BUILDING, LAND, WATER, IGNORED}


def test_parts_of_the_ground_are_read_as_the_whole_is(tmp_path: Path, patchwork: NDArray[np.uint8]) -> None:
    # One polygon of each class, of thousands of vertices: what is cut to the part before it is drawn.
    whole = faces(patchwork).dissolve("code", as_index=False)
    labels = opened(save(tmp_path / "labels.gpkg", whole), class_column="code")
    assert shapely.get_num_coordinates(whole.geometry.to_numpy()).min() > 1000

    for top, left in ((0, 0), (7, 13), (32, 64)):
        part = Grid((32, 32), GRID.transform @ Affine.translation(left, top), UTM40)
        assert np.array_equal(labels.read(part).channels, labels.read(GRID).channels[top : top + 32, left : left + 32])


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_polygons_named_by_class_need_no_codes_and_leave_the_rest_unknown(tmp_path: Path, suffix: str) -> None:
    # A hundred-thousandth of a degree is a metre; centres of pixels keep clear of the rounded edges.
    frame = polygons([box(0.2, 0.2, 20.2, 10.2), box(40.2, 20.2, 60.2, 50.2)], class_name=["water", "land"])
    path = save(tmp_path / f"labels{suffix}", frame.to_crs(4326) if suffix == ".geojson" else frame)

    found = channels(path, LabelCodes({}, NAMES))

    assert np.array_equal(found, drawn((np.s_[0:10, 0:20], WATER), (np.s_[20:50, 40:60], LAND)))


def test_polygons_of_another_projection_are_brought_to_the_grid(tmp_path: Path) -> None:
    frame = polygons([box(10.2, 20.2, 60.2, 50.2)], class_name=["land"])

    found = channels(save(tmp_path / "labels.gpkg", frame.to_crs(32639)))

    assert np.array_equal(found, drawn((np.s_[20:50, 10:60], LAND)))


def test_polygons_that_reach_around_the_world_are_drawn(tmp_path: Path) -> None:
    frame = polygons([shapely.box(-180, -90, 180, 90)], 4326, class_name=["water"])

    assert (channels(save(tmp_path / "labels.gpkg", frame)) == WATER).all()


def test_the_later_polygon_wins(tmp_path: Path) -> None:
    rectangles = [box(0, 0, 60, 40), box(20, 10, 90, 60), box(30, 0, 40, 64)]
    path = save(tmp_path / "labels.gpkg", polygons(rectangles, class_name=["land", "water", "building"]))

    assert np.array_equal(
        channels(path),
        drawn((np.s_[0:40, 0:60], LAND), (np.s_[10:60, 20:90], WATER), (np.s_[0:64, 30:40], BUILDING)),
    )


@pytest.mark.parametrize("codes", [["1", " 9 "], [1, 9], [1.0, 9.0]])
def test_codes_may_be_numbers_or_text(tmp_path: Path, codes: list[Any]) -> None:
    path = save(tmp_path / "labels.gpkg", polygons([box(0, 0, 20, 10), box(40, 20, 60, 50)], zone=codes))

    found = channels(path, class_column="zone")

    assert np.array_equal(found, drawn((np.s_[0:10, 0:20], LAND), (np.s_[20:50, 40:60], WATER)))


def test_text_and_large_codes_are_mapped(tmp_path: Path) -> None:
    codes = LabelCodes({"Gewässer": "water", 11100: "building"}, NAMES)
    text = save(tmp_path / "text.gpkg", polygons([box(0, 0, 20, 10)], class_name=["Gewässer"]))
    number = save(tmp_path / "number.gpkg", polygons([box(0, 0, 20, 10)], code=[11100]))

    assert np.array_equal(channels(text, codes), drawn((np.s_[0:10, 0:20], WATER)))
    assert np.array_equal(channels(number, codes, class_column="code"), drawn((np.s_[0:10, 0:20], BUILDING)))


def test_polygons_without_a_class_or_a_shape_are_as_if_not_there(tmp_path: Path) -> None:
    shapes = [box(0, 0, 20, 10), box(5, 0, 10, 10), box(10, 0, 15, 10), None, shapely.Polygon()]
    path = save(tmp_path / "labels.gpkg", polygons(shapes, class_name=["land", None, " ", "water", "water"]))

    assert np.array_equal(channels(path), drawn((np.s_[0:10, 0:20], LAND)))


def test_a_polygon_of_an_ignored_class_hides_what_lies_below(tmp_path: Path) -> None:
    codes = LabelCodes({}, NAMES, ignored=["unclear"])
    path = save(
        tmp_path / "labels.gpkg",
        polygons([box(0, 0, 20, 10), box(5, 0, 10, 10)], class_name=["land", "unclear"]),
    )

    reading = opened(path, codes).read(GRID)

    assert np.array_equal(reading.channels, drawn((np.s_[0:10, 0:20], LAND), (np.s_[0:10, 5:10], IGNORED)))
    assert not reading.unknown


def test_polygons_that_cross_themselves_are_repaired(tmp_path: Path) -> None:
    # A bow tie: two triangles whose tips meet at column 20.
    tie = shapely.Polygon([box(0, 0, 40, 40).exterior.coords[i] for i in (0, 2, 1, 3)])
    assert not tie.is_valid
    path = save(tmp_path / "labels.gpkg", polygons([tie, box(60, 0, 70, 10)], class_name=["land", "water"]))

    found = channels(path)

    assert (found == LAND).sum() == pytest.approx(800, abs=40)
    assert (found == WATER).sum() == 100


def test_values_without_a_meaning_are_counted(tmp_path: Path) -> None:
    values = np.full((64, 96), 9, dtype=np.int16)
    values[0, :5], values[1, :3], values[2, :7] = -1, 300, 255
    reading = opened(raster(tmp_path / "labels.tif", values, nodata=255)).read(GRID)
    frame = polygons([box(0, 0, 5, 4), box(10, 0, 20, 1), box(30, 0, 31, 1)], class_name=["watr", "road", "land"])
    drawn_reading = opened(save(tmp_path / "labels.gpkg", frame)).read(GRID)

    assert reading.unknown == {-1: 5, 300: 3}
    assert (reading.channels != WATER).sum() == 15
    assert drawn_reading.unknown == {"watr": 20, "road": 10}
    assert (drawn_reading.channels != IGNORED).sum() == 1


def test_fractions_are_not_rounded_to_codes(tmp_path: Path) -> None:
    values = np.full((64, 96), 1.0, dtype=np.float32)
    values[0, 0], values[0, 1], values[0, 2] = 1.5, np.nan, np.inf

    reading = opened(raster(tmp_path / "labels.tif", values)).read(GRID)

    assert reading.unknown == {1.5: 1, np.inf: 1}
    assert np.array_equal(reading.channels, drawn((np.s_[:, :], LAND), (np.s_[0, :3], IGNORED)))


def test_what_a_raster_declares_nodata_is_unknown_even_if_the_value_is_a_class(tmp_path: Path) -> None:
    values = np.zeros((64, 96), dtype=np.uint8)
    values[10:20] = 1

    found = channels(raster(tmp_path / "labels.tif", values, nodata=0))

    assert np.array_equal(found, drawn((np.s_[10:20], LAND)))


@pytest.mark.parametrize(
    ("dtype", "bands"),
    [("uint8", 1), ("uint8", 2), ("uint8", 5), ("int8", 1), ("int16", 1), ("uint16", 3), ("int32", 1), ("float32", 1)],
)
@pytest.mark.parametrize("kind", ["none", "mask", "alpha", "mask and alpha"])
def test_ground_that_a_raster_masks_or_does_not_reach_is_unknown(
    tmp_path: Path, dtype: str, bands: int, kind: str
) -> None:
    # 0 is a class here, and what the warper fills with.
    valid = np.full((32, 48), kind == "none")
    valid[:16] = True
    data = np.ones((bands, 32, 48), dtype=dtype)
    colours = [ColorInterp.gray] + [ColorInterp.undefined] * (bands - 1)
    if "alpha" in kind:
        opaque = (valid if kind == "alpha" else np.ones_like(valid))[None]
        data, colours = np.concatenate([data, opaque.astype(dtype) * 127]), [*colours, ColorInterp.alpha]
    options = {"driver": "GTiff", "count": len(data), "height": 32, "width": 48, "dtype": dtype, "crs": UTM40}
    path = tmp_path / "labels.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", transform=GRID.transform, photometric="MINISBLACK", **options) as file,
    ):
        file.colorinterp = colours
        file.write(data)
        if "mask" in kind:
            file.write_mask(valid)

    assert np.array_equal(channels(path), drawn((np.s_[: 32 if kind == "none" else 16, :48], LAND)))


def test_a_mask_that_the_first_band_has_to_itself_is_heeded(tmp_path: Path) -> None:
    # 0 is a class here, and what the warper fills with.
    valid = np.zeros((64, 96), dtype=np.uint8)
    valid[:16] = 255
    mask, values = raster(tmp_path / "mask.tif", valid), raster(tmp_path / "values.tif", valid * 0)
    path = tmp_path / "labels.vrt"
    with rasterio.open(values) as file:
        rasterio.shutil.copy(file, path, driver="VRT")
    source = f"<SimpleSource><SourceFilename>{mask}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
    own = f'<MaskBand><VRTRasterBand dataType="Byte">{source}</VRTRasterBand></MaskBand></VRTRasterBand>'
    path.write_text(path.read_text().replace("</VRTRasterBand>", own))

    assert np.array_equal(channels(path), drawn((np.s_[:16], BUILDING)))
    wider = Grid((84, 116), GRID.transform @ Affine.translation(-10, -10), UTM40)
    assert np.array_equal(opened(path).read(wider).channels[10:74, 10:106], drawn((np.s_[:16], BUILDING)))
    assert (opened(path).read(wider).channels == BUILDING).sum() == 16 * 96


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint32", "int64", "uint64", "float64"])
@pytest.mark.parametrize("bands", [1, 2])
def test_nodata_of_the_first_band_counts_on_any_grid(tmp_path: Path, dtype: str, bands: int) -> None:
    data = np.ones((bands, 64, 96), dtype=dtype)
    # The warper makes 1 of a 2 that is nodata where another band holds data.
    codes = LabelCodes({1: "land", 2: "water"}, NAMES)
    data[0, 16:] = 2
    path = raster(tmp_path / "labels.tif", data[0], count=bands, nodata=2, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as file:
        file.write(data)

    wider = Grid((84, 116), GRID.transform @ Affine.translation(-10, -10), UTM40)
    for grid, (top, left) in ((GRID, (0, 0)), (wider, (10, 10))):
        expected = np.full(grid.shape, IGNORED)
        expected[top : top + 16, left : left + 96] = LAND
        assert np.array_equal(opened(path, codes).read(grid).channels, expected)


def test_the_message_about_unknown_values_says_what_to_do() -> None:
    error = CODES.explain({"watr": 1200, 255: 34_000}, Path("zones.gpkg"))

    assert error.what == (
        "zones.gpkg holds values that are no class: 255 (34,000 px), 'watr' (1,200 px; did you mean 'water'?)"
    )
    assert error.hint == (
        "say what they mean: data.label_values, or --label-values; or that they are to have no class: "
        "--ignored-values, or data.ignored_values: [255, 'watr']"
    )


@pytest.fixture
def zones(tmp_path: Path) -> Path:
    """Give two layers of polygons and a table, as landseg's own maps have one."""
    path = tmp_path / "zones.gpkg"
    frame = polygons([box(0, 0, 20, 10)], class_name=["land"], code=[1], since=pd.to_datetime(["2026-01-01"]))
    save(path, frame, layer="now")
    save(path, frame.assign(class_name="water"), layer="then", append=True)
    save(path, pd.DataFrame({"class_name": ["land"], "area_m2": [200.0]}), layer="areas", append=True)
    return path


@pytest.fixture
def own_map(tmp_path: Path) -> Path:
    """Give a map as landseg writes it, of classes 1, 2 and 5, in which one polygon is yet to be corrected."""
    path = tmp_path / "landuse.gpkg"
    frame = polygons(
        [box(0, 0, 20, 10), box(20, 0, 40, 10), box(40, 0, 60, 10), box(60, 0, 80, 10)],
        class_id=[1, 2, 2, None],
        class_name=["building", "land", "land", "water"],
    )
    save(path, frame, layer="landuse")
    save(path, pd.DataFrame({"class_id": [1, 2, 5], "class_name": NAMES}), layer="class_areas", append=True)
    return path


def edit(path: Path, change: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        # What triggers keep, an index of places, has functions that this SQLite lacks.
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute(f"UPDATE landuse SET {change} WHERE fid = 3")


@pytest.mark.parametrize("class_column", ["class_name", "class_id"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("class_name = 'water'", "the class_name 'water' and the class_id 2, which is 'land'"),
        ("class_name = 'car park'", "the class_name 'car park' and the class_id 2, which is 'land'"),
        ("class_id = 1", "the class_name 'land' and the class_id 1, which is 'building'"),
        ("class_id = 7", "the class_name 'land' and the class_id 7, which is no class of the map"),
    ],
)
def test_a_map_of_which_one_column_alone_was_edited_is_refused(
    own_map: Path, change: str, said: str, class_column: str
) -> None:
    edit(own_map, change)

    error = refusal(own_map, class_column=class_column)

    assert error.what == f"feature 3 of {own_map} has {said}"
    assert "make the two agree in QGIS" in str(error.hint)


@pytest.mark.parametrize(
    ("change", "channel"),
    [
        ("class_id = class_id", LAND),
        ("class_id = 5, class_name = 'water'", WATER),
        ("class_id = 7, class_name = 'car park'", IGNORED),
        ("class_name = NULL", IGNORED),
    ],
)
def test_a_map_that_was_corrected_is_a_label_file(own_map: Path, change: str, channel: int) -> None:
    edit(own_map, change)

    expected = ((np.s_[:10, :20], BUILDING), (np.s_[:10, 20:40], LAND), (np.s_[:10, 60:80], WATER))
    assert np.array_equal(channels(own_map), drawn(*expected, (np.s_[:10, 40:60], channel)))


def test_a_table_that_is_called_as_a_map_s_legend_is_none(own_map: Path) -> None:
    save(own_map, pd.DataFrame({"zone": ["north"], "area": [3.5]}), layer="class_areas", append=False)
    edit(own_map, "class_name = 'water'")
    assert (channels(own_map)[:10, 40:60] == WATER).all()


def refusal(path: Path, **options: Any) -> TrainingDataError:
    with pytest.raises(TrainingDataError) as caught:
        opened(path, **options)
    return caught.value


def test_the_layer_is_chosen_by_name(zones: Path) -> None:
    assert np.array_equal(channels(zones, layer="then"), drawn((np.s_[0:10, 0:20], WATER)))


def test_several_layers_ask_for_a_name(zones: Path) -> None:
    error = refusal(zones)

    assert error.what == f"{zones} has 2 layers with geometry"
    assert error.hint == "name one of them by data.layer or --layer: now, then"


def test_a_layer_that_is_not_there_is_told_with_those_that_are(zones: Path) -> None:
    error = refusal(zones, layer="past")

    assert error.what == f"{zones} has no layer 'past'"
    assert error.hint == "its layers: now, then, areas"


def test_a_column_that_is_not_there_is_told_with_those_that_are(zones: Path) -> None:
    error = refusal(zones, layer="now", class_column="klass")

    assert error.what == f"{zones} has no column 'klass'"
    assert error.hint is not None
    assert error.hint.endswith(": class_name, code, since")


def test_a_column_of_dates_holds_no_classes(zones: Path) -> None:
    assert "column 'since' of" in refusal(zones, layer="now", class_column="since").what


@pytest.mark.parametrize(
    "shape", [shapely.Point(500_010, 2_799_990), shapely.LineString([(500_010, 2_799_990), (500_020, 2_799_980)])]
)
def test_lines_and_points_are_refused(tmp_path: Path, shape: Any) -> None:
    error = refusal(save(tmp_path / "labels.gpkg", polygons([shape], class_name=["land"])))

    assert f"1 features that are no polygons, such as a {shape.geom_type}" in error.what


def test_polygons_without_a_crs_are_refused(tmp_path: Path) -> None:
    frame = polygons([box(0, 0, 20, 10)], None, class_name=["land"])
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        path = save(tmp_path / "labels.shp", frame)

    assert refusal(path).what.endswith("has no coordinate reference system")


@pytest.mark.parametrize("epsg", [32640, 4326, 2193])
def test_polygons_of_another_place_are_refused(tmp_path: Path, epsg: int) -> None:
    frame = polygons([shapely.box(600_000, 2_700_000, 600_100, 2_700_100)], class_name=["land"]).to_crs(epsg)

    error = refusal(save(tmp_path / "labels.gpkg", frame))

    assert error.what == f"the labels {tmp_path / 'labels.gpkg'} do not overlap the scene"


@pytest.mark.parametrize("beside", [(10, 0, 20, 10), (-10, 0, 0, 10), (0, 10, 10, 20), (0, -10, 10, 0)])
def test_ground_on_any_side_of_another_is_not_shared(beside: tuple[float, float, float, float]) -> None:
    left, bottom, right, top = beside
    assert not overlap((0, 0, 10, 10), beside)
    assert overlap((0, 0, 10, 10), (left - 1, bottom - 1, right + 1, top + 1))


@pytest.mark.parametrize("content", [None, "hello", '{"type": "FeatureCollection", "features": ['])
def test_files_that_are_neither_rasters_nor_polygons_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "labels.geojson").write_text(content)

    assert refusal(tmp_path / "labels.geojson").what.startswith(f"can't read {tmp_path / 'labels.geojson'}")


def test_a_truncated_raster_is_refused_when_it_is_read(tmp_path: Path, patchwork: NDArray[np.uint8]) -> None:
    path = raster(tmp_path / "labels.tif", patchwork)
    path.write_bytes(path.read_bytes()[:3000])
    labels = opened(path)

    with pytest.raises(TrainingDataError, match=r"can't read .*labels\.tif: the file is damaged") as caught:
        labels.read(GRID)
    assert "rows" not in caught.value.what


def test_rasters_that_can_t_be_labels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    values = np.ones((64, 96), dtype=np.uint8)

    bare = refusal(raster(tmp_path / "bare.tif", values, crs=None))
    assert bare.what.endswith("bare.tif has no coordinate reference system")
    assert bare.hint == "georeference it first"
    numbers = raster(tmp_path / "complex.tif", values.astype(np.complex64))
    assert refusal(numbers).what == f"{numbers} holds complex numbers"
