"""Items of a catalog: made from a scene's file, or taken over from what a run or a training wrote."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from matplotlib.image import imsave
from numpy.typing import NDArray

from landseg.catalog import UNREADABLE, checked, reason
from landseg.catalog.search import read_interval
from landseg.checksums import FILE_SCHEMA, checksum
from landseg.errors import CatalogError, UsageError
from landseg.grid import Grid
from landseg.hrefs import check_plain, is_remote
from landseg.outputs.drafts import drafted
from landseg.outputs.imagery import Imagery, scaled
from landseg.outputs.manifest import CLASSIFICATION_SCHEMA, PROJECTION_SCHEMA, footprint, grid_properties
from landseg.outputs.storage import StorageFolder
from landseg.scene import SceneInfo, describe_scene, read_overview, value_ranges

EO_SCHEMA = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"
RASTER_SCHEMA = "https://stac-extensions.github.io/raster/v1.1.0/schema.json"

STATISTICS_PX = 1024
"""Longest side of the overview that a band's statistics are of."""

THUMBNAIL_PX = 256

MEDIA_TYPES = {
    ".tif": pystac.MediaType.GEOTIFF,
    ".tiff": pystac.MediaType.GEOTIFF,
    ".jp2": pystac.MediaType.JPEG2000,
    ".png": pystac.MediaType.PNG,
}

COMMON_NAMES = ("coastal", "blue", "green", "red", "rededge", "nir", "swir16", "swir22", "pan", "yellow")
"""Those of the eo extension that landseg's names of bands may be."""


@dataclass(frozen=True)
class Description:
    """What a scene's file does not say of itself.

    Parameters
    ----------
    date
        The day when it was taken, or the first and the last of several as ``2026-03-01/2026-03-31``.
    title
        For people; by default the id.
    licence
        SPDX identifier, or ``other``.
    cloud_cover
        Percent.
    """

    date: str
    title: str | None = None
    licence: str = "other"
    cloud_cover: float | None = None


def scene_item(item_id: str, image: Path, description: Description) -> tuple[pystac.Item, NDArray[np.uint8]]:
    """Describe a scene by its file: footprint, grid, bands, statistics and checksum.

    Returns
    -------
    tuple
        The item, whose asset ``image`` is the file by its absolute path, and a thumbnail, (h, w, 3) uint8.

    Raises
    ------
    SceneError
        If the file can't be read.
    UsageError
        If the date is none.
    """
    start, end = _times(description.date)
    info = describe_scene(str(image))
    numbers = range(1, len(info.band_names) + 1)
    overview = read_overview(info, numbers, STATISTICS_PX)
    geometry, bbox = footprint(info.grid)
    item = pystac.Item(
        item_id,
        geometry=geometry,
        bbox=bbox,
        datetime=start if start == end else None,
        start_datetime=None if start == end else start,
        end_datetime=None if start == end else end,
        properties=_properties(info.grid, description),
        stac_extensions=[EO_SCHEMA, FILE_SCHEMA, PROJECTION_SCHEMA, RASTER_SCHEMA],
    )
    names = [name or f"band {n}" for n, name in zip(numbers, info.band_names, strict=True)]
    fields = {
        "bands": [{"name": name} for name in names],
        "eo:bands": [{"name": n} | ({"common_name": n} if n in COMMON_NAMES else {}) for n in names],
        "raster:bands": [_raster_band(info, n, band) for n, band in zip(numbers, overview, strict=True)],
    }
    item.add_asset("image", _file_asset(image, "Imagery", ["data", "visual"], fields))
    return item, _thumbnail(info, overview)


def add_labels(item: pystac.Item, labels: Path, classes: dict[int, str]) -> None:
    """Give a scene's item reference labels: a raster of class values on the same ground, and what the values mean."""
    describe_scene(str(labels))
    values = [{"value": value, "name": name} for value, name in classes.items()]
    fields = {"bands": [{"name": "class", "classification:classes": values}]}
    item.add_asset("labels", _file_asset(labels, "Reference labels", ["data", "labels"], fields))
    item.stac_extensions.append(CLASSIFICATION_SCHEMA)


def add_thumbnail(item: pystac.Item, path: Path, thumbnail: NDArray[np.uint8]) -> None:
    """Write an item's thumbnail as a PNG."""
    with drafted(path) as draft:
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(draft, thumbnail, format="png", metadata={"Software": "landseg"})
    item.add_asset("thumbnail", _file_asset(path, "Thumbnail", ["thumbnail"], {}))


def read_item(place: Path | str) -> pystac.Item:
    """Read an item that a run, a batch or a training wrote, from a path or a URL on S3, with its files' absolute ones.

    Raises
    ------
    CatalogError
        If it is none.
    """
    try:
        if is_remote(str(place)):
            storage, name = StorageFolder.around(str(place))
            item = pystac.Item.from_dict(json.loads(storage.read_text(name) or "null"), href=str(place))
        else:
            check_plain(place, CatalogError)
            item = pystac.Item.from_file(str(Path(place).resolve()))
        checked(item)
    except UNREADABLE as error:
        raise CatalogError(f"{place} is no STAC item", reason(error)) from error
    item.make_asset_hrefs_absolute()
    for link in item.links:
        link.target = link.get_absolute_href() or link.target
    return item


def kind_of(item: pystac.Item) -> str:
    """Name the collection that an item belongs to by what it holds."""
    if "mlm:name" in item.properties:
        return "models"
    return "maps" if "landseg:areas" in item.properties else "scenes"


def _properties(grid: Grid, description: Description) -> dict[str, Any]:
    properties = {"license": description.licence, **grid_properties(grid), "proj:bbox": list(grid.bounds)}
    if description.title is not None:
        properties["title"] = description.title
    if description.cloud_cover is not None:
        properties["eo:cloud_cover"] = description.cloud_cover
    return properties


def _times(date: str) -> tuple[datetime, datetime]:
    first, _, last = date.partition("/")
    start, _ = read_interval(date)
    end, _ = read_interval(last or first)
    if start is None or end is None:
        raise UsageError(f"--date {date} has an open end", "a scene was taken on a day, or between two")
    return start, end


def _raster_band(info: SceneInfo, number: int, band: np.ma.MaskedArray[Any, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"data_type": info.dtypes[number - 1], "spatial_resolution": round(info.grid.gsd_m, 4)}
    values = np.ma.masked_invalid(band).compressed().astype(np.float64)
    if values.size:
        measures = {"minimum": values.min(), "maximum": values.max(), "mean": values.mean(), "stddev": values.std()}
        statistics = {name: round(float(value), 4) for name, value in measures.items()}
        fields["statistics"] = statistics | {"valid_percent": round(100 * values.size / band.size, 2)}
    return fields


def _thumbnail(info: SceneInfo, overview: np.ma.MaskedArray[Any, Any]) -> NDArray[np.uint8]:
    """Draw red, green and blue, or the first band in grey; white where the scene holds no data."""
    imagery = Imagery.by_name(info)
    bands, ranges = (imagery.bands, imagery.ranges) if imagery else ((1,) * 3, value_ranges(info, (1,), None) * 3)
    step = -(-max(overview.shape[1:]) // THUMBNAIL_PX)
    pixels = overview[[band - 1 for band in bands], ::step, ::step]
    drawn = scaled(pixels.filled(0), ranges)
    drawn[np.ma.getmaskarray(pixels).all(axis=0)] = 255
    return drawn


def _file_asset(path: Path, title: str, roles: list[str], fields: dict[str, Any]) -> pystac.Asset:
    return pystac.Asset(
        str(path.resolve()),
        title,
        media_type=MEDIA_TYPES.get(path.suffix.lower()),
        roles=roles,
        extra_fields={"file:size": path.stat().st_size, "file:checksum": checksum(path)} | fields,
    )
