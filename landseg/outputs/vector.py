"""The map as a layer of polygons, written as they come, in the format that the file's suffix asks for."""

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyogrio
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
from pyogrio.util import vsi_path
from rasterio.crs import CRS

from landseg.errors import DiskError, UsageError
from landseg.grid import Grid
from landseg.legend import Legend
from landseg.machine import trim_memory
from landseg.outputs import AreaCount, ClassArea, places
from landseg.outputs.geopackage import LARGE_VERTICES, LargePolygons, write_class_areas, write_presentation
from landseg.outputs.geoparquet import write_geoparquet
from landseg.polygons import Polygons, polygonize
from landseg.polygons.merge import NO_MERGING, Merging

log = logging.getLogger(__name__)

LAYER = "landuse"
GEOMETRY_COLUMN = "geom"

DRIVERS = {
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".parquet": "GeoParquet",
    ".geojson": "GeoJSON",
    ".geojsonl": "GeoJSONSeq",
    ".shp": "ESRI Shapefile",
}
"""Suffix -> format, by GDAL's name where GDAL writes it."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "GPKG": {
        # Later versions of the format bring nothing that is needed here, and the GDAL of QGIS 3.22 warns of them.
        "dataset_options": {"VERSION": "1.2"},
        "layer_options": {"GEOMETRY_NAME": GEOMETRY_COLUMN, "SPATIAL_INDEX": "YES"},
    },
    "FlatGeobuf": {"layer_options": {"SPATIAL_INDEX": "YES"}},
    # RFC 7946: longitudes and latitudes on WGS 84, counter-clockwise.
    "GeoJSON": {"layer_options": {"RFC7946": "YES"}},
    "GeoJSONSeq": {},
    "ESRI Shapefile": {"layer_options": {"ENCODING": "UTF-8"}},
}

INDEX_BYTES = 2**28
"""What GDAL may hold of a GeoPackage's index, that of four million polygons; from there on it is made on disk."""

FIELDS = [
    pa.field("class_id", pa.int32()),
    pa.field("class_name", pa.string()),
    pa.field("area_m2", pa.float64()),
    pa.field("confidence", pa.float64()),
    pa.field("perimeter_m", pa.float64()),
]


SHAPEFILE_NAMES = {"perimeter_m": "perim_m"}
"""Names of at most ten characters for those that have more."""


def driver_of(path: Path) -> str:
    """Name the format that a file's suffix asks for.

    Raises
    ------
    UsageError
        If there is none.
    """
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise UsageError(f"{path.name} has no suffix of a known format", f"known are {', '.join(DRIVERS)}")
    return driver


def check_format(path: Path) -> None:
    """Refuse a file of no known format, and say where a known one falls short.

    Raises
    ------
    UsageError
        If its suffix is of no known format, or its name can't be written to.
    """
    if (taken_for := vsi_path(path)) != str(path):
        raise UsageError(f"the name {str(path)!r} can't be written to: GDAL gets {taken_for!r}", "choose another --out")
    if driver_of(path) == "ESRI Shapefile":
        log.warning("Shapefiles cut names to ten characters and end at 2 GB; a GeoPackage has no such limits")


def companions(path: Path) -> tuple[Path, ...]:
    """Name the files that a layer consists of besides the main one."""
    if driver_of(path) != "ESRI Shapefile":
        return ()
    return tuple(path.with_suffix(suffix) for suffix in (".shx", ".dbf", ".prj", ".cpg"))


def layer_products(path: Path) -> dict[str, Path]:
    """Give the files that a layer consists of by their keys among a manifest's assets."""
    return {"polygons": path} | {f"polygons-{part.suffix[1:]}": part for part in companions(path)}


def write_layer(path: Path, batches: Iterable[Polygons], legend: Legend, crs: CRS) -> tuple[ClassArea, ...]:
    """Write the layer ``landuse``, and sum up the classes as it passes by.

    A GeoPackage gets a table ``class_areas``, styles that QGIS applies by itself and what the fields mean, too.

    Parameters
    ----------
    path
        A draft that does not exist yet; the caller renames it when it is complete.
    batches
        Polygons in ``crs``.
    legend
        Names and colours of the classes.
    crs
        Coordinate reference system of the polygons.

    Raises
    ------
    UsageError
        If the suffix is of no known format.
    DiskError
        If the disk is full or the folder can't be written to.
    """
    driver = driver_of(path)
    count = AreaCount(legend)
    counted = map(count.passed, batches)
    try:
        if driver == "GPKG":
            with TemporaryFile(dir=path.parent) as aside:
                large = LargePolygons(aside)
                _write_by_gdal(path, driver, _Stream(map(large.boxed, counted), legend), crs)
                large.write(path, LAYER, GEOMETRY_COLUMN)
        elif driver == "GeoParquet":
            stream = _Stream(counted, legend)
            write_geoparquet(path, stream.schema, stream.with_bounds(), crs)
        else:
            names = SHAPEFILE_NAMES if driver == "ESRI Shapefile" else {}
            _write_by_gdal(path, driver, _Stream(counted, legend, names), crs)
        areas = count.areas()
        polygons = sum(area.polygons for area in areas)
        if driver == "GPKG":
            write_class_areas(path, areas, legend)
            write_presentation(path, legend, LAYER, GEOMETRY_COLUMN)
        elif driver == "FlatGeobuf" and polygons:
            # GDAL says nothing where the disk is full at the end of one.
            pyogrio.raw.read(path, fids=[polygons - 1])
    except (OSError, DataSourceError, DataLayerError, FeatureError, sqlite3.OperationalError) as error:
        raise DiskError(f"can't write {path}: {error}", "free some disk space, or write to another folder") from error
    return areas


def draw_layer(
    path: Path,
    raster: Path,
    grid: Grid,
    legend: Legend,
    *,
    class_ids: Sequence[int] | None = None,
    confidence_band: int | None = None,
    merging: Merging = NO_MERGING,
    tolerance_m: float = 0.0,
    threads: int | None = None,
) -> tuple[ClassArea, ...]:
    """Draw the polygons of a raster of classes and write them as they come.

    Parameters
    ----------
    path
        A draft; a temporary file stands beside it until all is written.
    raster
        On ``grid``; band 1 holds the class ids of ``legend``, and whatever else is nodata.
    class_ids
        Those that occur, ascending, where the legend may have more of them than a map can; all of them if None.
    confidence_band, merging, tolerance_m, threads
        See `landseg.polygons.polygonize`.

    Raises
    ------
    DiskError
        If the disk is full.
    """
    polygons = polygonize(
        raster,
        grid,
        work=path.parent,
        class_ids=sorted(legend.class_ids) if class_ids is None else class_ids,
        confidence_band=confidence_band,
        merging=merging,
        tolerance_m=tolerance_m,
        threads=threads,
    )
    with closing(polygons):
        return write_layer(path, polygons, legend, grid.crs)


class _Stream:
    """Batches of polygons as Arrow's record batches, geometries in well-known binary.

    Arrow's readers turn whatever a source of theirs raises into an error of their own; what was raised first is kept.
    Nothing here holds on to a batch: a single polygon may be as large as a map.
    """

    def __init__(self, batches: Iterable[Polygons], legend: Legend, names: Mapping[str, str] = {}) -> None:
        self.batches = batches
        self.legend = legend
        self.raised: BaseException | None = None
        geometry = pa.field("geometry", pa.large_binary(), metadata={"ARROW:extension:name": "ogc.wkb"})
        fields = [field.with_name(names.get(field.name, field.name)) for field in FIELDS]
        self.schema = pa.schema([*fields, geometry])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from map(self._record_batch, self.batches)
        except BaseException as error:
            self.raised = error
            raise

    def with_bounds(self) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float64]]]:
        """Give record batches with their polygons' bounds, (N, 4)."""

        def both(polygons: Polygons) -> tuple[pa.RecordBatch, NDArray[np.float64]]:
            return self._record_batch(polygons), polygons.bounds

        return map(both, self.batches)

    def _record_batch(self, polygons: Polygons) -> pa.RecordBatch:
        columns = [
            polygons.class_id,
            np.array(self.legend.names, object)[places(polygons.class_id, self.legend)],
            polygons.area_m2,
            # Pixels hold whole percents: more digits would only be float32's noise.
            polygons.confidence.astype(np.float64).round(2),
            polygons.perimeter_m,
        ]
        arrays = [pa.array(column, field.type, from_pandas=True) for column, field in zip(columns, FIELDS, strict=True)]
        if len(polygons.xy) >= LARGE_VERTICES:
            trim_memory()
        octets, offsets = polygons.to_wkb()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(octets)]
        geometry = pa.Array.from_buffers(pa.large_binary(), len(polygons), buffers)
        return pa.record_batch([*arrays, geometry], schema=self.schema)


def _write_by_gdal(path: Path, driver: str, stream: _Stream, crs: CRS) -> None:
    reader = pa.RecordBatchReader.from_batches(stream.schema, stream)
    try:
        with _bounded_index():
            pyogrio.write_arrow(
                reader,
                path,
                layer=LAYER,
                driver=driver,
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=crs.to_wkt(),
                **_OPTIONS[driver],
            )
    except Exception as error:
        if stream.raised is not None:
            raise stream.raised from error
        raise


@contextmanager
def _bounded_index() -> Iterator[None]:
    """Let GDAL make a GeoPackage's index at the end, and within `INDEX_BYTES`."""
    options = {
        # By default a tenth of main memory. A number is in bytes; units are not understood.
        "OGR_GPKG_MAX_RAM_USAGE_RTREE": INDEX_BYTES,
        # A thread of GDAL's would hold the index while the map is drawn, and wait five seconds for a lock if on disk.
        "OGR_GPKG_ALLOW_THREADED_RTREE": False,
    }
    pyogrio.set_gdal_config_options(options)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(dict.fromkeys(options))
