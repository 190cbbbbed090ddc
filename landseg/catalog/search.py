"""Scenes that a catalog knows: a static STAC catalog on disk or behind HTTP, or a STAC API."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pystac
import shapely
from pystac.utils import str_to_datetime
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from requests import RequestException
from urllib3 import Retry

from landseg.catalog import MOST_ITEMS, UNREADABLE, all_items, checked, in_utc, reason, times_of
from landseg.errors import CatalogError, UsageError
from landseg.hrefs import check_plain, hide_secrets, local_path

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Of a catalog's server, for a connection and for an answer."""

_NEVER = datetime.min.replace(tzinfo=UTC)

Bbox = tuple[float, float, float, float]
Interval = tuple[datetime | None, datetime | None]


@dataclass(frozen=True)
class SceneRef:
    """A scene to map, as a list or a catalog names it.

    Parameters
    ----------
    name
        The file's stem or the item's id.
    href
        Path or URL of the raster.
    date
        When it was taken, in UTC; None if that is not known.
    cloud_cover
        Percent; None if that is not known.
    collection
        The item's; empty for files.
    """

    name: str
    href: str
    date: datetime | None = None
    cloud_cover: float | None = None
    collection: str = ""


def search(
    url: str,
    *,
    collections: Sequence[str] = (),
    bbox: Bbox | None = None,
    dates: str | None = None,
    max_cloud_cover: float | None = None,
    asset: str | None = None,
    attempts: int = 1,
    wait_s: float = 0.0,
) -> list[SceneRef]:
    """Find the scenes of a catalog, oldest first.

    Parameters
    ----------
    url
        Path or URL of a static catalog, or a STAC API's.
    collections
        Ids; if empty, all items but landseg's own maps, models, and those without a raster.
    bbox
        (west, south, east, north) in degrees that the scene must touch.
    dates
        A day, or two of them as ``2026-03-01/2026-03-31``, both included; either may be ``..``.
    max_cloud_cover
        Percent; a scene whose cloud cover is not known is kept.
    asset
        Key of the raster among an item's assets; by default the first GeoTIFF or JPEG 2000 whose role is data.
    attempts, wait_s
        How often a server is asked that does not answer, and the seconds before the second time.

    Raises
    ------
    UsageError
        If ``dates`` makes no sense.
    CatalogError
        If the catalog can't be read, or an item of a collection that was named has no raster, or no such asset.
    """
    interval = None if dates is None else read_interval(dates)
    check_plain(url, CatalogError)
    retry = Retry(
        total=attempts - 1,
        backoff_factor=wait_s,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,  # searches are posts
    )
    try:
        with warnings.catch_warnings():
            # That a static catalog is none of an API's.
            warnings.simplefilter("ignore", PystacClientWarning)
            client = Client.open(url, stac_io=StacApiIO(timeout=TIMEOUT_S, max_retries=retry))
            pick = _ask if client.conforms_to("ITEM_SEARCH") else _walk
            items = [item for item in pick(client, collections, bbox, interval) if _is_clear(item, max_cloud_cover)]
    except (RequestException, APIError) as error:
        raise CatalogError(f"the server of the catalog {url} does not give it", reason(error)) from error
    except (*UNREADABLE, ClientTypeError, shapely.errors.ShapelyError) as error:
        raise CatalogError(f"can't read the catalog {url}", reason(error)) from error
    if not collections:
        items = [item for item in items if _is_scene(item, asset)]
    return [_scene(item, asset) for item in sorted(items, key=lambda item: (times_of(item)[1] or _NEVER, item.id))]


def read_interval(dates: str) -> Interval:
    """Read ``2026-03-01/2026-03-31`` as the first moment that counts and the first that no longer does."""
    first, _, last = dates.partition("/")
    try:
        start, after = _moment(first), _moment(last or first, after=True)
        if start and after and start >= after:
            raise ValueError("it ends before it begins")
        return start, after
    except ValueError as error:
        raise UsageError(
            f"'{dates}' is no interval of dates", "give a day, or two as 2026-03-01/2026-03-31; either may be .."
        ) from error


def _moment(text: str, *, after: bool = False) -> datetime | None:
    if text.strip() == "..":
        return None
    moment = str_to_datetime(text.strip())
    whole_day = len(text.strip()) == len("2026-03-01")
    return in_utc(moment) + timedelta(days=1 if after and whole_day else 0)


def _ask(
    client: Client, collections: Sequence[str], bbox: Bbox | None, interval: Interval | None
) -> Iterator[pystac.Item]:
    # The last microsecond, since an API includes both ends, of which it takes one at least.
    first, after = interval or (None, None)
    datetimes = (first, after and after - timedelta(microseconds=1)) if first or after else None
    found = client.search(collections=list(collections) or None, bbox=bbox, datetime=datetimes).items()
    seen = set[tuple[str | None, str]]()
    for item in map(checked, found):
        if (item.collection_id, item.id) in seen:
            raise ValueError(f"its pages lead back: they have the item {item.id} twice")
        if len(seen) == MOST_ITEMS:
            raise ValueError(f"it has more than {MOST_ITEMS:,} items for this query; ask for less")
        seen.add((item.collection_id, item.id))
        yield item


def _walk(
    root: pystac.Catalog, collections: Sequence[str], bbox: Bbox | None, interval: Interval | None
) -> Iterator[pystac.Item]:
    area = None if bbox is None else _area(bbox)
    for item in all_items(root):
        if collections and item.collection_id not in collections:
            continue
        if area is not None and not (item.geometry and area.intersects(shapely.geometry.shape(item.geometry))):
            continue
        if interval is None or _overlaps(item, interval):
            yield item


def _area(bbox: Bbox) -> shapely.MultiPolygon:
    """Give the ground in a box, whose west is east of its east where it goes across the 180th meridian."""
    west, south, east, north = bbox
    spans = [(west, east)] if west <= east else [(west, 180), (-180, east)]
    return shapely.MultiPolygon([shapely.box(left, south, right, north) for left, right in spans])


def _overlaps(item: pystac.Item, interval: Interval) -> bool:
    start, end = times_of(item)
    first, after = interval
    return (first is None or (end is not None and end >= first)) and (
        after is None or (start is not None and start < after)
    )


def _is_clear(item: pystac.Item, max_cloud_cover: float | None) -> bool:
    return max_cloud_cover is None or float(item.properties.get("eo:cloud_cover") or 0) <= max_cloud_cover


def _is_scene(item: pystac.Item, asset: str | None) -> bool:
    """Tell whether an item is there to be mapped, where no collection was named: a catalog has models and maps too."""
    if item.properties.keys() & {"landseg:areas", "mlm:name"}:
        log.info("the item %s is a map or a model, and no scene", item.id)
    elif asset is None and _image_of(item, asset) is None:
        log.warning("the item %s has no raster to map", item.id)
    else:
        return True
    return False


def _scene(item: pystac.Item, asset: str | None) -> SceneRef:
    cloud_cover = item.properties.get("eo:cloud_cover")
    return SceneRef(
        name=item.id,
        href=local_path(_image(item, asset)),
        date=times_of(item)[1],
        cloud_cover=None if cloud_cover is None else float(cloud_cover),
        collection=item.collection_id or "",
    )


def _image_of(item: pystac.Item, key: str | None) -> pystac.Asset | None:
    """Find an item's raster."""
    rasters = ("image/tiff", "image/jp2")
    for name, asset in item.assets.items():
        is_image = "data" in (asset.roles or ()) and "labels" not in (asset.roles or ())
        if name == key or (key is None and is_image and (asset.media_type or "").startswith(rasters)):
            return asset
    return None


def _image(item: pystac.Item, key: str | None) -> str:
    """Give the absolute path or URL of an item's raster."""
    if (asset := _image_of(item, key)) is not None:
        return asset.get_absolute_href() or asset.href
    place = hide_secrets(item.get_self_href() or "")
    what = f"no asset '{key}'" if key else "no GeoTIFF or JPEG 2000 whose role is data"
    raise CatalogError(f"the item {item.id} ({place}) has {what}", f"its assets: {', '.join(item.assets) or 'none'}")
