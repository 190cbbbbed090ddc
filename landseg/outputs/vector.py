"""The map as a GeoPackage that opens in QGIS already coloured."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import geopandas
import pandas as pd
import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
from rasterio.crs import CRS

from landseg.errors import DiskError
from landseg.legend import Legend
from landseg.outputs import ClassArea
from landseg.outputs.style import qml, sld
from landseg.polygons import Polygons

LAYER = "landuse"
GEOMETRY_COLUMN = "geom"

# As QGIS creates it (QgsOgrProviderMetadata::saveStyle); it finds styles by the names of these columns.
_CREATE_LAYER_STYLES = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256),
    f_table_schema TEXT(256),
    f_table_name TEXT(256),
    f_geometry_column TEXT(256),
    styleName TEXT(30),
    styleQML TEXT,
    styleSLD TEXT,
    useAsDefault BOOLEAN,
    description TEXT,
    owner TEXT(30),
    ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)"""


def write_geopackage(path: Path, polygons: Polygons, legend: Legend, crs: CRS, areas: Sequence[ClassArea]) -> None:
    """Write layer ``landuse``, table ``class_areas`` and the style that QGIS applies by itself.

    Parameters
    ----------
    path
        A draft that ends in ``.gpkg`` and does not exist yet; the caller renames it when it is complete.
    polygons
        In ``crs``.
    legend
        Names and colours of the classes.
    crs
        Coordinate reference system of the polygons.
    areas
        Rows of ``class_areas``.

    Raises
    ------
    DiskError
        If the disk is full or the folder can't be written to.
    """
    try:
        _write_layer(path, polygons, legend, crs)
        pyogrio.write_dataframe(pd.DataFrame([asdict(a) for a in areas]), path, layer="class_areas", driver="GPKG")
        _write_style(path, legend)
    except (OSError, DataSourceError, DataLayerError, FeatureError, sqlite3.OperationalError) as error:
        raise DiskError(f"can't write {path}: {error}", "free some disk space, or write to another folder") from error


def _write_layer(path: Path, polygons: Polygons, legend: Legend, crs: CRS) -> None:
    layer = geopandas.GeoDataFrame(
        {
            "class_id": polygons.class_id.astype("int32"),
            "class_name": pd.Series(polygons.class_id).map({c.class_id: c.name for c in legend}).astype(object),
            "area_m2": polygons.area_m2,
            # Pixels hold whole percents: more digits would only be float32's noise.
            "confidence": polygons.confidence.astype("float64").round(2),
            "perimeter_m": polygons.perimeter_m,
        },
        geometry=polygons.geometry,
        crs=crs.to_wkt(),
    )
    pyogrio.write_dataframe(
        layer,
        path,
        layer=LAYER,
        driver="GPKG",
        geometry_type="Polygon",
        # Later versions of the format bring nothing that is needed here, and the GDAL of QGIS 3.22 warns of them.
        dataset_options={"VERSION": "1.2"},
        layer_options={"GEOMETRY_NAME": GEOMETRY_COLUMN, "SPATIAL_INDEX": "YES"},
    )


def _write_style(path: Path, legend: Legend) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_CREATE_LAYER_STYLES)
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES (?, 'attributes', ?)",
            ("layer_styles", "layer_styles"),
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
            " styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, ?, 1, ?, '')",
            (LAYER, GEOMETRY_COLUMN, "Land use", qml(legend), sld(legend), "Land-use classes, by landseg"),
        )
