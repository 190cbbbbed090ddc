import json
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS

from landseg.errors import DiskError, InputError, UsageError
from landseg.legend import LandClass, Legend
from landseg.outputs import AreaCount, ClassArea, vector
from landseg.outputs.vector import DRIVERS, check_format, companions, write_layer
from landseg.polygons import Polygons

UTM = CRS.from_epsg(32640)
LEGEND = Legend(
    (LandClass(3, "water", "#56b4e9"), LandClass(1, "building", "#d55e00"), LandClass(2, "never seen", "#ece2c6"))
)


def squares(count: int, first: int = 0) -> Polygons:
    n = np.arange(first, first + count)
    x = 500_000 + 10.0 * n
    _, xy, (ring_offsets, polygon_offsets) = shapely.to_ragged_array(shapely.box(x, 2_700_000, x + 10, 2_700_010))
    return Polygons(
        face_id=(n + 1).astype(np.int32),
        xy=xy,
        ring_offsets=ring_offsets,
        polygon_offsets=polygon_offsets,
        class_id=np.where(n % 3 == 0, 1, 3).astype(np.int32),
        confidence=(60 + n % 3 * 10).astype(np.float32),
        area_m2=np.full(count, 100.08),
        perimeter_m=np.full(count, 40.016),
    )


@pytest.fixture
def geopackage(tmp_path: Path) -> Path:
    path = tmp_path / "draft.gpkg"
    write_layer(path, batches(6), LEGEND, UTM)
    return path


def batches(count: int, at_once: int = 4) -> Iterator[Polygons]:
    for first in range(0, count, at_once):
        yield squares(min(at_once, count - first), first)


def class_areas(*batches: Polygons) -> tuple[ClassArea, ...]:
    count = AreaCount(LEGEND)
    assert [len(count.passed(b)) for b in batches] == [len(b) for b in batches]
    return count.areas()


def test_class_areas_are_in_legend_order_with_empty_classes() -> None:
    water, building, never_seen = class_areas(*batches(6))
    assert (water.class_id, water.class_name, water.polygons) == (3, "water", 4)
    assert water.area_m2 == pytest.approx(400.32)
    assert water.share == pytest.approx(4 / 6)
    assert water.confidence == pytest.approx(75)
    assert building.confidence == pytest.approx(60)
    assert (never_seen.area_m2, never_seen.share, never_seen.polygons, never_seen.confidence) == (0, 0, 0, None)


def test_confidence_is_weighted_by_area() -> None:
    polygons = replace(
        squares(2),
        class_id=np.array([1, 1], np.int32),
        confidence=np.array([50, 90], np.float32),
        area_m2=np.array([300.0, 100.0]),
    )
    assert class_areas(polygons)[1].confidence == pytest.approx(60)


def test_class_ids_may_be_any_whole_numbers() -> None:
    legend = Legend(
        (LandClass(512, "lake", "#56b4e9"), LandClass(-1, "sea", "#0072b2"), LandClass(111, "x", "#000000"))
    )
    count = AreaCount(legend)
    count.passed(replace(squares(3), class_id=np.array([-1, 512, -1], np.int32)))
    assert [(area.class_id, area.polygons) for area in count.areas()] == [(512, 1), (-1, 2), (111, 0)]


def test_without_confidence_a_class_has_none() -> None:
    water, *_ = class_areas(replace(squares(6), confidence=np.full(6, np.nan, np.float32)))
    assert water.polygons == 4
    assert water.confidence is None


def test_an_empty_map_has_shares_of_0() -> None:
    assert [a.share for a in class_areas()] == [0, 0, 0]


def test_layer_reads_back(geopackage: Path) -> None:
    layer = geopandas.read_file(geopackage, layer="landuse")
    assert layer.columns.tolist() == ["class_id", "class_name", "area_m2", "confidence", "perimeter_m", "geometry"]
    assert layer.crs.to_epsg() == 32640
    assert layer["class_id"].tolist() == [1, 3, 3, 1, 3, 3]
    assert layer["class_name"].tolist() == ["building", "water", "water"] * 2
    assert layer["area_m2"].tolist() == [100.08] * 6
    assert layer["confidence"].tolist() == [60, 70, 80] * 2
    assert shapely.equals_exact(layer.geometry.to_numpy(), squares(6).geometry, normalize=True).all()
    info = pyogrio.read_info(geopackage, layer="landuse")
    assert info["geometry_type"] == "Polygon"
    assert dict(zip(info["fields"], info["dtypes"], strict=True))["class_id"] == "int32"


def test_class_areas_table_reads_back(geopackage: Path) -> None:
    table = geopandas.read_file(geopackage, layer="class_areas")
    assert table.columns.tolist() == [
        *("class_id", "class_name", "colour", "area_m2", "share", "polygons", "confidence")
    ]
    assert table["colour"].tolist() == ["#56b4e9", "#d55e00", "#ece2c6"]
    assert table["class_name"].tolist() == ["water", "building", "never seen"]
    assert table["polygons"].tolist() == [4, 2, 0]
    assert table["confidence"].isna().tolist() == [False, False, True]


def test_database_is_a_geopackage_with_a_default_style(geopackage: Path) -> None:
    with closing(sqlite3.connect(geopackage)) as database:
        contents = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents"))
        assert contents == {"landuse": "features", "class_areas": "attributes", "layer_styles": "attributes"}
        assert database.execute("SELECT count(*) FROM rtree_landuse_geom").fetchone() == (6,)
        assert database.execute(
            "SELECT column_name, geometry_type_name, srs_id FROM gpkg_geometry_columns"
        ).fetchall() == [("geom", "POLYGON", 32640)]
        assert [name for _, name, *_ in database.execute("PRAGMA table_info(layer_styles)")] == [
            *("id", "f_table_catalog", "f_table_schema", "f_table_name", "f_geometry_column", "styleName", "styleQML"),
            *("styleSLD", "useAsDefault", "description", "owner", "ui", "update_time"),
        ]
        # The question that QGIS asks for a layer's style.
        (qml, sld, update_time), *others = database.execute(
            "SELECT styleQML, styleSLD, update_time FROM layer_styles WHERE f_table_schema=''"
            " AND f_table_name='landuse' AND f_geometry_column='geom' ORDER BY useAsDefault DESC"
        )
        assert not others
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert ET.fromstring(qml).tag == "qgis"
    assert ET.fromstring(sld).tag.endswith("StyledLayerDescriptor")
    assert update_time.endswith("Z")


def test_the_database_says_what_its_fields_mean(geopackage: Path) -> None:
    with closing(sqlite3.connect(geopackage)) as database:
        described = database.execute(
            "SELECT title, description FROM gpkg_data_columns WHERE table_name = 'landuse' AND column_name = 'area_m2'"
        ).fetchall()
        (about,) = database.execute("SELECT description FROM gpkg_contents WHERE table_name = 'landuse'").fetchone()
        tables = database.execute("SELECT DISTINCT table_name FROM gpkg_data_columns").fetchall()
    assert described == [("Area (m²)", "Square metres on the ellipsoid, without the holes")]
    assert "area_m2: Square metres on the ellipsoid, without the holes" in about
    assert sorted(tables) == [("class_areas",), ("landuse",)]


def test_an_index_that_does_not_fit_into_memory_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "INDEX_BYTES", 2**20)
    count = 30_000  # GDAL counts some sixty bytes for each
    write_layer(tmp_path / "map.gpkg", batches(count, at_once=1000), LEGEND, UTM)
    with closing(sqlite3.connect(tmp_path / "map.gpkg")) as database:
        assert database.execute("SELECT count(*) FROM rtree_landuse_geom").fetchone() == (count,)
    assert pyogrio.get_gdal_config_option("OGR_GPKG_MAX_RAM_USAGE_RTREE") is None


def test_large_polygons_are_written_as_gdal_writes_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    courtyard = shapely.Polygon(shapely.box(0, 0, 9, 9).exterior, [shapely.box(3, 3, 6, 6).exterior])
    _, xy, (ring_offsets, polygon_offsets) = shapely.to_ragged_array([courtyard])
    one = replace(squares(1), xy=xy, ring_offsets=ring_offsets, polygon_offsets=polygon_offsets)
    for name in ("by_gdal.gpkg", "aside.gpkg"):
        write_layer(tmp_path / name, [squares(3), one, squares(2, 3), squares(1, 5), one], LEGEND, UTM)
        monkeypatch.setattr("landseg.outputs.geopackage.LARGE_VERTICES", len(xy))
        monkeypatch.setattr("landseg.outputs.geopackage.BYTES_AT_ONCE", 100)

    with (
        closing(sqlite3.connect(tmp_path / "by_gdal.gpkg")) as expected,
        closing(sqlite3.connect(tmp_path / "aside.gpkg")) as found,
    ):
        for query in (
            "SELECT * FROM landuse",
            "SELECT * FROM rtree_landuse_geom",
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name",
        ):
            assert found.execute(query).fetchall() == expected.execute(query).fetchall()
    assert pyogrio.read_dataframe(tmp_path / "aside.gpkg", layer="landuse").geometry[3].equals_exact(courtyard)


def test_a_polygon_that_no_geopackage_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landseg.outputs.geopackage.LARGE_VERTICES", 5)
    monkeypatch.setattr("landseg.outputs.geopackage.MOST_BYTES", 100)

    with pytest.raises(UsageError, match=r"5 vertices is too large for a GeoPackage.*\n.*file\.parquet"):
        write_layer(tmp_path / "draft.gpkg", batches(2, at_once=1), LEGEND, UTM)


def test_the_format_is_one_that_older_software_knows(geopackage: Path) -> None:
    with closing(sqlite3.connect(geopackage)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10200,)


def test_ogr_lists_every_table(geopackage: Path) -> None:
    assert set(pyogrio.list_layers(geopackage)[:, 0]) == {"landuse", "class_areas", "layer_styles"}


def test_an_empty_map_is_a_complete_geopackage(tmp_path: Path) -> None:
    path = tmp_path / "empty.gpkg"
    write_layer(path, [], LEGEND, UTM)
    info = pyogrio.read_info(path, layer="landuse")
    assert (info["features"], info["geometry_type"]) == (0, "Polygon")
    assert info["fields"].tolist() == ["class_id", "class_name", "area_m2", "confidence", "perimeter_m"]
    assert info["dtypes"].tolist() == ["int32", "object", "float64", "float64", "float64"]


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [2**14, 2**17, 2**19])
def test_a_full_disk_is_a_disk_error_that_names_the_path(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "draft.gpkg"
    with files_of_at_most(size_bytes), pytest.raises(DiskError, match=r"draft\.gpkg"):
        write_layer(path, batches(5000, 1000), LEGEND, UTM)


@pytest.mark.parametrize("lacking", [1, 100, 4096])
def test_a_disk_that_is_full_at_the_very_end_is_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    """GDAL overlooks that a FlatGeobuf's last bytes did not fit."""
    write = pyogrio.write_arrow

    def cut_short(reader: object, path: Path, **options: object) -> None:
        write(reader, path, **options)
        os.truncate(path, path.stat().st_size - lacking)

    monkeypatch.setattr(pyogrio, "write_arrow", cut_short)
    with pytest.raises(DiskError, match=r"draft\.fgb"):
        write_layer(tmp_path / "draft.fgb", batches(500, 100), LEGEND, UTM)


def test_a_missing_folder_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="nowhere"):
        write_layer(tmp_path / "nowhere" / "draft.gpkg", batches(1), LEGEND, UTM)


@pytest.mark.parametrize("suffix", DRIVERS)
def test_every_format_reads_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"draft{suffix}"

    areas = write_layer(path, batches(6), LEGEND, UTM)

    assert areas == class_areas(squares(6))
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (path, *companions(path))}
    layer = geopandas.read_parquet(path) if suffix == ".parquet" else geopandas.read_file(path, layer=0)
    layer = layer.to_crs(UTM)
    # FlatGeobuf sorts by place.
    layer = layer.iloc[layer.geometry.bounds["minx"].argsort()]
    assert layer["class_id"].tolist() == [1, 3, 3, 1, 3, 3]
    assert layer["class_name"].tolist() == ["building", "water", "water"] * 2
    assert layer["area_m2"].tolist() == pytest.approx([100.08] * 6)
    assert layer["confidence"].tolist() == [60, 70, 80] * 2
    # Seven decimals of a degree are a centimetre.
    assert shapely.hausdorff_distance(layer.geometry.to_numpy(), squares(6).geometry).max() < 0.02
    assert shapely.is_valid(layer.geometry.to_numpy()).all()


def test_geoparquet_can_be_read_by_place(tmp_path: Path) -> None:
    write_layer(tmp_path / "map.parquet", batches(6, 2), LEGEND, UTM)

    found = geopandas.read_parquet(tmp_path / "map.parquet", bbox=(500_011, 2_700_001, 500_019, 2_700_009))

    assert found["class_id"].tolist() == [3]
    assert found.crs == UTM.to_wkt()
    metadata = pq.read_metadata(tmp_path / "map.parquet")
    groups = [metadata.row_group(index).to_dict()["columns"] for index in range(metadata.num_row_groups)]
    lefts = [{column["path_in_schema"]: column for column in group}["bbox.xmin"]["statistics"] for group in groups]
    assert [(left["min"], left["max"]) for left in lefts] == [(500_000 + k, 500_010 + k) for k in (0, 20, 40)]
    geo = json.loads(metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["bbox"] == [500_000, 2_700_000, 500_060, 2_700_010]


@pytest.mark.parametrize("suffix", DRIVERS)
def test_an_error_in_the_making_of_polygons_comes_through(tmp_path: Path, suffix: str) -> None:
    def failing() -> Iterator[Polygons]:
        yield squares(3)
        raise InputError("the map is torn")

    with pytest.raises(InputError, match="torn"):
        write_layer(tmp_path / f"draft{suffix}", failing(), LEGEND, UTM)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"map\.kml") as caught:
        write_layer(tmp_path / "map.kml", [], LEGEND, UTM)
    assert ".gpkg" in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="modes of Unix")
def test_a_group_may_edit_a_geopackage_where_the_umask_says_so(tmp_path: Path) -> None:
    former = os.umask(0o002)
    try:
        folder = tmp_path / "map.gpkg.landseg"
        folder.mkdir()
        write_layer(folder / "map.gpkg", [squares(1)], LEGEND, UTM)
    finally:
        os.umask(former)
    assert (folder / "map.gpkg").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("name", ["a!b.gpkg", "a;b.gpkg", "a\nb.gpkg", "http:b.gpkg"])
def test_a_name_that_pyogrio_reads_as_a_url_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="can't be written to"):
        check_format(Path(name))
