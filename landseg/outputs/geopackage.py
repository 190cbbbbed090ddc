"""What a GeoPackage holds besides its layer: the figures of each class, and the style that QGIS applies by itself."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyogrio

from landseg.legend import Legend
from landseg.outputs import ClassArea
from landseg.outputs.style import qml, sld

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


def write_class_areas(path: Path, areas: Sequence[ClassArea]) -> None:
    """Add the table ``class_areas``, a row for each class of the legend."""
    pyogrio.write_dataframe(pd.DataFrame([asdict(area) for area in areas]), path, layer="class_areas", driver="GPKG")


def write_default_style(path: Path, legend: Legend, layer: str, geometry_column: str) -> None:
    """Add a style to a layer, in the table ``layer_styles`` that QGIS looks for."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_CREATE_LAYER_STYLES)
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES (?, 'attributes', ?)",
            ("layer_styles", "layer_styles"),
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
            " styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, ?, 1, ?, '')",
            (layer, geometry_column, "Land use", qml(legend), sld(legend), "Land-use classes, by landseg"),
        )
