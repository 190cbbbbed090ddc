"""The manifest: a STAC Item that says what a map was made from, how, and what it holds."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import shapely
from shapely.affinity import translate

from landseg.checksums import FILE_SCHEMA, checksum, checksum_of
from landseg.errors import InputError
from landseg.grid import Grid, epsg_code
from landseg.hrefs import is_remote
from landseg.legend import Legend
from landseg.outputs import ClassArea
from landseg.outputs.drafts import writing
from landseg.outputs.records import MapRecord, check_record

CLASSIFICATION_SCHEMA = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
PROCESSING_SCHEMA = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"
PROJECTION_SCHEMA = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"

SQLITE_HEADER_BYTES = 100
"""Of a GeoPackage: QGIS writes there, and nowhere else, when a layer is opened for editing and nothing is edited."""

CONTENT = "landseg:content_checksum"
"""Field of a GeoPackage's asset: the checksum of what follows that header."""

_PARTS = 16
"""Of each side of a footprint: short enough for its longitudes to be followed around the Earth."""

MEDIA_TYPES: Mapping[str, str] = {
    ".gpkg": pystac.MediaType.GEOPACKAGE,
    ".parquet": pystac.MediaType.PARQUET,
    ".fgb": pystac.MediaType.FLATGEOBUF,
    ".geojson": pystac.MediaType.GEOJSON,
    ".geojsonl": "application/geo+json-seq",
    ".shp": "application/vnd.shp",
    ".shx": "application/vnd.shx",
    ".dbf": "application/vnd.dbf",
    ".prj": pystac.MediaType.TEXT,
    ".cpg": pystac.MediaType.TEXT,
    ".tif": pystac.MediaType.COG,
    ".xml": pystac.MediaType.XML,
    ".qml": pystac.MediaType.XML,
    ".qgz": "application/x-qgis-project",
    ".png": pystac.MediaType.PNG,
}


def footprint(grid: Grid) -> tuple[dict[str, Any], list[float]]:
    """Give where a grid lies, as an item's geometry and its ``bbox``.

    Across the 180th meridian it is cut there, and the ``bbox`` has its west east of its east (RFC 7946, 3.1.9 and 5.2).
    """
    lons, lats = grid.lonlat_outline(_PARTS)
    lons, lats = np.round(lons - 360 * np.round((lons.min() + lons.max()) / 720), 7), np.round(lats, 7)
    south, north = float(lats.min()), float(lats.max())
    if abs(lons[-1] - lons[0]) > 180:
        # Around a pole.
        lons, south, north = np.array([-180.0, 180.0]), *((south, 90.0) if north > 0 else (-90.0, north))
    west, east = float(lons.min()), float(lons.max())
    if east - west >= 360:
        return shapely.geometry.mapping(shapely.box(-180, south, 180, north)), [-180.0, south, 180.0, north]
    corners = [(float(lon), float(lat)) for lon, lat in zip(lons[:-1:_PARTS], lats[:-1:_PARTS], strict=True)]
    if west >= -180 and east <= 180:
        return {"type": "Polygon", "coordinates": [[*map(list, corners), list(corners[0])]]}, [west, south, east, north]
    whole = shapely.union_all([translate(shapely.Polygon(corners), turn) for turn in (-360, 0, 360)])
    shape = shapely.intersection(whole, shapely.box(-180, -90, 180, 90), grid_size=1e-7)
    west, east = (round(lon - 360 * round(lon / 360), 7) for lon in (west, east))
    return shapely.geometry.mapping(shape), [west, south, east, north]


def grid_properties(grid: Grid) -> dict[str, Any]:
    """Give what an item says of a grid's pixels."""
    properties: dict[str, Any] = {
        "gsd": round(grid.gsd_m, 4),
        "proj:code": epsg_code(grid.crs),
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform),
    }
    if properties["proj:code"] is None:
        properties["proj:wkt2"] = grid.crs.to_wkt(version="WKT2_2019")
    return properties


def read_manifest(path: Path) -> Mapping[str, Any]:
    """Read the manifest of a map; nothing where there is none, or a file of another kind.

    Raises
    ------
    InputError
        If the file is torn, no item, or not as landseg wrote it.
    """
    if not path.is_file():
        return {}
    remedy = "move it away, or map the scene again"
    try:
        item: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}", remedy) from error
    try:
        if "landseg:areas" not in item.get("properties", {}):
            return {}
        check_record(MapRecord, item)
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path} is no STAC item", remedy) from error
    except ValueError as error:
        raise InputError(f"{path} is not as landseg wrote it: {error}", remedy) from error
    return item


def sources_of(manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """Say where that lies which the map of a manifest in a folder was made from."""
    hrefs = [link["href"] for link in manifest["links"] if link["rel"] == pystac.RelType.DERIVED_FROM]
    return [href if is_remote(href) else str(folder / href) for href in hrefs]


def classes_of(legend: Legend) -> list[dict[str, Any]]:
    """Give what the raster's asset says of the classes."""
    return [{"value": c.class_id, "name": c.name, "color_hint": c.colour[1:].upper()} for c in legend]


def listed_files(manifest: str) -> dict[str, Mapping[str, Any]]:
    """Give the assets that a manifest's text lists by their files' names; none if it is no manifest of landseg's."""
    try:
        item = json.loads(manifest)
        if "landseg:areas" not in item["properties"]:
            return {}
        return {Path(asset["href"]).name: dict(asset) for asset in item["assets"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_as_listed(file: BufferedReader, asset: Mapping[str, Any]) -> bool:
    """Tell whether an open file holds what it did when its manifest was written."""
    if file.seek(0, os.SEEK_END) != asset.get("file:size"):
        return False
    if CONTENT in asset:
        return checksum_of(file, SQLITE_HEADER_BYTES) == str(asset[CONTENT])
    return checksum_of(file) == str(asset.get("file:checksum"))


def write_manifest(
    path: Path,
    *,
    grid: Grid,
    legend: Legend,
    areas: Sequence[ClassArea],
    products: Mapping[str, Path],
    title: str,
    sources: Sequence[str],
    versions: Mapping[str, str],
    properties: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a STAC Item for a finished map.

    Parameters
    ----------
    path
        Where to write; the file's stem is the item's id.
    grid
        The map's grid.
    legend, areas
        The classes and what they cover.
    products
        Asset key -> file, drafted beside ``path``, which is where they will stay.
    title
        For people.
    sources
        Paths or URLs of what the map was made from.
    versions
        Software name -> version.
    properties
        What else to record, under ``landseg:`` keys.

    Returns
    -------
    dict
        The item.
    """
    now = datetime.now(UTC)
    geometry, bbox = footprint(grid)
    item = pystac.Item(
        id=path.stem,
        geometry=geometry,
        bbox=bbox,
        datetime=now,
        properties={
            "title": title,
            "created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            **grid_properties(grid),
            "processing:software": dict(versions),
            "landseg:areas": [asdict(area) for area in areas],
            **properties,
        },
        stac_extensions=[CLASSIFICATION_SCHEMA, FILE_SCHEMA, PROCESSING_SCHEMA, PROJECTION_SCHEMA],
    )
    for key, product in products.items():
        extra: dict[str, Any] = {"file:size": product.stat().st_size, "file:checksum": checksum(product)}
        suffix = product.suffix.lower()
        if suffix == ".gpkg":
            extra[CONTENT] = checksum(product, SQLITE_HEADER_BYTES)
        elif suffix == ".tif":
            extra["bands"] = [
                {"name": "land use", "classification:classes": classes_of(legend)},
                {"name": "confidence"},
            ]
        item.add_asset(
            key,
            pystac.Asset(href=f"./{product.name}", media_type=MEDIA_TYPES[suffix], roles=["data"], extra_fields=extra),
        )
    item.add_links([pystac.Link(rel=pystac.RelType.DERIVED_FROM, target=source) for source in sources])
    content: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    with writing(path):
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return content
