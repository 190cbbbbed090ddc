"""What a GeoPackage holds besides what GDAL writes: polygons too large for it, figures of classes, styles, meanings."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyogrio

from landseg.errors import UsageError
from landseg.legend import Legend
from landseg.machine import trim_memory
from landseg.outputs import ClassArea
from landseg.outputs.style import COLUMNS, TABLE_COLUMNS, Column, polygon_sld, qml, table_qml
from landseg.polygons import Polygons

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

LARGE_VERTICES = 2**18
"""Of a polygon that is worth steps of its own: its writers hold it several times."""

HEADER_BYTES = 40
"""Of a polygon, before its well-known binary (https://www.geopackage.org/spec121/#gpb_format)."""

MOST_BYTES = 10**9
"""That SQLite takes as one value."""

BYTES_AT_ONCE = 2**20


class LargePolygons:
    """Polygons that a GeoPackage gets when the map is drawn.

    A single polygon may be as large as a map, and on its way through GDAL there would be four of it in memory beside
    what the drawing holds. GDAL is given a box in its place.

    Parameters
    ----------
    aside
        A temporary file for them; it may grow to their size.
    """

    def __init__(self, aside: IO[bytes]) -> None:
        self._aside = aside
        self._passed = 0
        # Row in the layer -> bytes of its polygon, in the order of the file.
        self._sizes: dict[int, int] = {}

    def boxed(self, polygons: Polygons) -> Polygons:
        """Put a large polygon aside and give its bounds in its place; give others as they are.

        Raises
        ------
        UsageError
            If a polygon is too large for any GeoPackage.
        """
        self._passed += len(polygons)
        # Polygons come in batches of about as many vertices: a large one has a batch to itself.
        if len(polygons) > 1 or len(polygons.xy) < LARGE_VERTICES:
            return polygons
        rings = polygons.ring_offsets
        size = 9 + 4 * (len(rings) - 1) + polygons.xy.nbytes
        if HEADER_BYTES + size > MOST_BYTES:
            raise UsageError(
                f"a polygon of {len(polygons.xy):,} vertices is too large for a GeoPackage, whose values end at 1 GB",
                "simplify the polygons, or write to a file.parquet",
            )
        self._aside.write(b"\1" + np.array([3, len(rings) - 1], "<u4").tobytes())
        for first, stop in pairwise(rings.tolist()):
            self._aside.write(np.array(stop - first, "<u4").tobytes())
            self._aside.write(polygons.xy[first:stop].data)
        self._sizes[self._passed] = size
        left, bottom, right, top = polygons.bounds[0]
        box = np.array([[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]])
        ends = np.array([0, 1])
        return replace(polygons, xy=box, ring_offsets=len(box) * ends, polygon_offsets=ends)

    def write(self, path: Path, layer: str, geometry_column: str) -> None:
        """Put the polygons in the places of their boxes, whose bounds they share."""
        if not self._sizes:
            return
        trim_memory()  # SQLite holds a polygon twice
        self._aside.seek(0)
        with closing(sqlite3.connect(path)) as database, database:
            # The spatial index is right already, and its triggers call functions that only GDAL has.
            triggers = database.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (layer,)
            ).fetchall()
            for name, _ in triggers:
                database.execute(f'DROP TRIGGER "{name}"')
            for row, size in self._sizes.items():
                with database.blobopen(layer, geometry_column, row, readonly=True) as box:
                    header = box.read(HEADER_BYTES)
                make_room = f"UPDATE {layer} SET {geometry_column} = zeroblob(?) WHERE rowid = ?"  # noqa: S608
                database.execute(make_room, (HEADER_BYTES + size, row))
                with database.blobopen(layer, geometry_column, row) as polygon:
                    polygon.write(header)
                    for start in range(0, size, BYTES_AT_ONCE):
                        polygon.write(self._aside.read(min(BYTES_AT_ONCE, size - start)))
            for _, statement in triggers:
                database.execute(statement)


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
    # SQLite lets a group only read, whatever the umask; the folder was made by it.
    with suppress(OSError):  # some shares know no modes
        path.chmod(path.parent.stat().st_mode & 0o666)


def _explain(database: sqlite3.Connection, table: str, summary: str, columns: Mapping[str, Column]) -> None:
    """Describe a table, which QGIS shows under Information, and its fields."""
    fields = "\n".join(f"{name}: {column.meaning}" for name, column in columns.items())
    database.execute("UPDATE gpkg_contents SET description = ? WHERE table_name = ?", (f"{summary}.\n{fields}", table))
    database.executemany(
        "INSERT INTO gpkg_data_columns (table_name, column_name, title, description) VALUES (?, ?, ?, ?)",
        [(table, name, column.title, column.meaning) for name, column in columns.items()],
    )
