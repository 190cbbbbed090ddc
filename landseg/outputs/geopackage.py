"""What a GeoPackage holds besides its layer: figures of each class, styles that QGIS applies, what the fields mean."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyogrio

from landseg.legend import Legend
from landseg.outputs import ClassArea
from landseg.outputs.style import COLUMNS, TABLE_COLUMNS, Column, polygon_sld, qml, table_qml

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

# The GeoPackage's own words for what fields mean (https://www.geopackage.org/spec121/#extension_schema); QGIS shows
# them where its GDAL is 3.7 or later.
_CREATE_DATA_COLUMNS = """
CREATE TABLE gpkg_data_columns (
    table_name TEXT NOT NULL,
    column_name TEXT NOT NULL,
    name TEXT,
    title TEXT,
    description TEXT,
    mime_type TEXT,
    constraint_name TEXT,
    CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name),
    CONSTRAINT gdc_tn UNIQUE (table_name, name)
);
CREATE TABLE gpkg_data_column_constraints (
    constraint_name TEXT NOT NULL,
    constraint_type TEXT NOT NULL,
    value TEXT,
    min NUMERIC,
    min_is_inclusive BOOLEAN,
    max NUMERIC,
    max_is_inclusive BOOLEAN,
    description TEXT,
    CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value)
);
INSERT INTO gpkg_extensions (table_name, column_name, extension_name, definition, scope) VALUES
    ('gpkg_data_columns', NULL, 'gpkg_schema', 'http://www.geopackage.org/spec121/#extension_schema', 'read-write'),
    ('gpkg_data_column_constraints', NULL, 'gpkg_schema', 'http://www.geopackage.org/spec121/#extension_schema',
     'read-write');
"""

CLASS_AREAS = "class_areas"


def write_class_areas(path: Path, areas: Sequence[ClassArea], legend: Legend) -> None:
    """Add the table ``class_areas``, a row for each class of the legend."""
    table = pd.DataFrame([asdict(area) for area in areas])
    table.insert(2, "colour", [legend[area.class_id].colour for area in areas])
    pyogrio.write_dataframe(table, path, layer=CLASS_AREAS, driver="GPKG")


def write_presentation(path: Path, legend: Legend, layer: str, geometry_column: str) -> None:
    """Say how the layer and the table ``class_areas`` look in QGIS, and what their fields mean."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_CREATE_LAYER_STYLES)
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES (?, 'attributes', ?)",
            ("layer_styles", "layer_styles"),
        )
        database.executemany(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
            " styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, ?, 1, ?, '')",
            [
                (layer, geometry_column, "Land use", qml(legend), polygon_sld(legend), "Land-use classes, by landseg"),
                (CLASS_AREAS, "", "Class areas", table_qml(), "", "Names of the fields, by landseg"),
            ],
        )
        database.executescript(_CREATE_DATA_COLUMNS)
        _explain(database, layer, "Land use by landseg, a polygon for each connected area of a class", COLUMNS)
        _explain(database, CLASS_AREAS, "What each class of the layer covers", TABLE_COLUMNS)


def _explain(database: sqlite3.Connection, table: str, summary: str, columns: Mapping[str, Column]) -> None:
    """Describe a table, which QGIS shows under Information, and its fields."""
    fields = "\n".join(f"{name}: {column.meaning}" for name, column in columns.items())
    database.execute("UPDATE gpkg_contents SET description = ? WHERE table_name = ?", (f"{summary}.\n{fields}", table))
    database.executemany(
        "INSERT INTO gpkg_data_columns (table_name, column_name, title, description) VALUES (?, ?, ?, ?)",
        [(table, name, column.title, column.meaning) for name, column in columns.items()],
    )
