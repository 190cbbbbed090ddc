"""The data catalog: STAC on disk or behind a server, searched for scenes, added to and validated."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
from filelock import FileLock
from urllib3.exceptions import HTTPError

from landseg.errors import CatalogError
from landseg.hrefs import check_plain, is_remote
from landseg.outputs.drafts import write_text, writing
from landseg.outputs.records import ItemRecord, check_record

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    HTTPError,
    pystac.STACError,
    pystac.STACTypeError,
)
"""What pystac raises, by itself or unawares, where JSON is missing or is not what it should be."""

# What can't be a folder's name, here or on Windows, or is another folder's.
_NO_NAME = re.compile(r"[/\\:\x00-\x1f\ud800-\udfff]|^\.*$")

COLLECTIONS = {
    "scenes": "Scenes to map.",
    "training-sets": "Imagery with labels to train on.",
    "models": "Trained networks with their cards.",
    "maps": "Land-use maps that landseg made.",
}
"""Collections that have a use of their own, and what they say of themselves."""

MOST_CATALOGS = 10_000
"""Of a root's: a server that makes up links would lead on for ever."""

MOST_ITEMS = 100_000
"""Of a server's answer, whose pages may do so, too."""


def reason(error: Exception) -> str:
    """Give the first line of what a library's error says, or the error's name where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def open_catalog(href: str) -> pystac.Catalog:
    """Read a static catalog's root.

    Raises
    ------
    CatalogError
        If it can't be read.
    """
    if not is_remote(href) and not Path(href).exists():
        raise CatalogError(f"there is no catalog {href}", "name one by --catalog; 'landseg catalog add' makes it")
    check_plain(href, CatalogError)
    try:
        return pystac.Catalog.from_file(href)
    except UNREADABLE as error:
        raise CatalogError(f"can't read the catalog {href}", reason(error)) from error


def items_of(root: pystac.Catalog) -> Iterator[pystac.Item]:
    """Give all items of a catalog.

    Raises
    ------
    CatalogError
        If a part of it can't be read.
    """
    try:
        yield from all_items(root)
    except UNREADABLE as error:
        raise CatalogError(
            f"can't read all of the catalog {root.get_self_href()}",
            "'landseg catalog validate' says what is wrong with it",
        ) from error


def all_items(root: pystac.Catalog) -> Iterator[pystac.Item]:
    """Give the items of a catalog and of all below it, each catalog's once: links may lead back, or to it many times.

    Raises one of `UNREADABLE` if a part can't be read, and `CatalogError` if there are too many.
    """
    waiting, seen = [root], set[str | None]()
    while waiting:
        catalog = waiting.pop(0)
        place = catalog.get_self_href()
        if place not in seen:
            if len(seen) == MOST_CATALOGS:
                raise CatalogError(
                    f"{root.get_self_href()} leads to more than {MOST_CATALOGS:,} catalogs", "name one of these"
                )
            seen.add(place)
            yield from map(checked, catalog.get_items(recursive=False))
            waiting[:0] = catalog.get_children()


def checked(item: pystac.Item) -> pystac.Item:
    """Give an item as it is, or raise ValueError where what is read of it is of another type than STAC has it."""
    try:
        check_record(ItemRecord, item.to_dict(include_self_link=False, transform_hrefs=False))
        times_of(item)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"item {item.id}: {reason(error)}") from error
    return item


def find_item(root: pystac.Catalog, item_id: str) -> pystac.Item:
    """Find an item by its id, in whatever collection.

    Raises
    ------
    CatalogError
        If there is none.
    """
    for item in items_of(root):
        if item.id == item_id:
            return item
    raise CatalogError(f"the catalog {root.get_self_href()} has no item '{item_id}'", "landseg catalog list names them")


def item_folder(catalog: Path, collection_id: str, item_id: str) -> Path:
    """Say where an item of a catalog lies.

    Raises
    ------
    CatalogError
        If its id, or the collection's, can't be a folder's name.
    """
    for name in (collection_id, item_id):
        if _NO_NAME.search(name):
            raise CatalogError(
                f"'{name}' can't be the name of a folder", "give the item, or its collection, another id"
            )
    return catalog.resolve().parent / collection_id / item_id


def add_item(catalog: Path, item: pystac.Item, collection_id: str) -> Path:
    """Put an item into a collection of a catalog on disk, in place of one with the same id; both are made if need be.

    Parameters
    ----------
    catalog
        ``catalog.json`` of the root.
    item
        Its assets' paths are absolute; in the catalog they are relative to the item.
    collection_id
        The collection's.

    Returns
    -------
    Path
        The item's file.

    Raises
    ------
    CatalogError
        If the catalog can't be read, or an id can't be a folder's name.
    DiskError
        If it can't be written.
    """
    # An id that can't be is refused before anything is made.
    item_folder(catalog, collection_id, item.id)
    # Two that add at the same time would each write the collection without the other's item.
    lock = FileLock(catalog.with_name(f".{catalog.name}.lock"))
    with writing(catalog):
        catalog.resolve().parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        return _add_item(catalog, item, collection_id)
    finally:
        lock.release()


def times_of(item: pystac.Item) -> list[datetime | None]:
    """Give the first and the last moment that an item is of, in UTC; None if that is not known."""
    times = item.common_metadata
    moments = [item.datetime or moment for moment in (times.start_datetime, times.end_datetime)]
    return [None if moment is None else in_utc(moment) for moment in moments]


def in_utc(moment: datetime) -> datetime:
    """Give the same moment in UTC, which is meant where no offset is said."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def has_item(catalog: Path, item: pystac.Item, collection_id: str) -> bool:
    """Tell whether a collection leads to an item of the same id whose files have the same checksums.

    Raises
    ------
    CatalogError
        If the catalog is there and can't be read.
    """
    if not catalog.exists():
        return False
    collection = _collection(open_catalog(str(catalog)), collection_id)
    place = str(item_folder(catalog, collection_id, item.id) / f"{item.id}.json")
    if collection is None or place not in [link.get_absolute_href() for link in collection.get_item_links()]:
        return False
    try:
        return _checksums(pystac.Item.from_file(place)) == _checksums(item)
    except UNREADABLE:
        return False


def _checksums(item: pystac.Item) -> dict[str, Any]:
    return {key: asset.extra_fields.get("file:checksum") for key, asset in item.assets.items()}


def _collection(root: pystac.Catalog, collection_id: str) -> pystac.Catalog | None:
    try:
        return root.get_child(collection_id)
    except UNREADABLE as error:
        place = root.get_self_href()
        raise CatalogError(f"can't read the collection '{collection_id}' of {place}", reason(error)) from error


def _add_item(catalog: Path, item: pystac.Item, collection_id: str) -> Path:
    root = open_catalog(str(catalog)) if catalog.exists() else _new_catalog(catalog)
    # Links are relative, so that the whole can be moved.
    root.catalog_type = pystac.CatalogType.SELF_CONTAINED
    collection = _collection(root, collection_id)
    if collection is None:
        collection = _new_collection(collection_id, item)
        root.add_child(collection)
        collection.set_self_href(str(catalog.resolve().parent / collection_id / "collection.json"))
    if not isinstance(collection, pystac.Collection):
        raise CatalogError(
            f"'{collection_id}' of {catalog} is a catalog and no collection", "choose another --collection"
        )
    item = item.clone()
    item.set_self_href(str(item_folder(catalog, collection_id, item.id) / f"{item.id}.json"))
    item.make_asset_hrefs_relative()
    former = [link for link in collection.get_item_links() if link.get_absolute_href() == item.self_href]
    collection.links = [link for link in collection.links if link not in former]
    collection.add_item(item, set_parent=True)
    try:
        collection.extent = _widened(collection.extent, item)
    except UNREADABLE as error:
        raise CatalogError(f"can't read the extent of the collection '{collection_id}' of {catalog}") from error
    # The leaf first: what a catalog leads to is there.
    for stac in (item, collection, root):
        _write(stac)
    return Path(item.self_href)


def _new_catalog(path: Path) -> pystac.Catalog:
    root = pystac.Catalog(
        path.resolve().parent.name, "Scenes, models and maps.", catalog_type=pystac.CatalogType.SELF_CONTAINED
    )
    root.set_self_href(str(path.resolve()))
    return root


def _new_collection(collection_id: str, item: pystac.Item) -> pystac.Collection:
    return pystac.Collection(
        collection_id,
        COLLECTIONS.get(collection_id, f"{collection_id}."),
        pystac.Extent(
            pystac.SpatialExtent([item.bbox or [-180, -90, 180, 90]]), pystac.TemporalExtent([times_of(item)])
        ),
        license=str(item.properties.get("license", "other")),
    )


def _widened(extent: pystac.Extent, item: pystac.Item) -> pystac.Extent:
    """Stretch an extent over one more item, without reading the others again."""
    west, south, east, north = _sides(extent.spatial.bboxes[0])
    if item.bbox is not None:
        w, s, e, n = _sides(item.bbox)
        south, north = min(south, s), max(north, n)
        # Around the Earth either way, the shorter one.
        spans = [(min(west, w + turn), max(east, e + turn)) for turn in (0, -360, 360)]
        west, east = min(spans, key=lambda span: span[1] - span[0])
    if east - west >= 360:
        west, east = -180.0, 180.0
    else:
        west, east = (lon - 360 * round(lon / 360) for lon in (west, east))
    (start, end), *_ = extent.temporal.intervals
    first, last = times_of(item)
    never, ever = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
    start = None if start is None else min(in_utc(start), first or never)
    end = None if end is None else max(in_utc(end), last or ever)
    return pystac.Extent(pystac.SpatialExtent([[west, south, east, north]]), pystac.TemporalExtent([[start, end]]))


def _sides(bbox: list[float]) -> tuple[float, float, float, float]:
    """Give west, south, east and north of a box with or without heights, the east past 180 degrees if it goes there."""
    half = len(bbox) // 2
    (west, south), (east, north) = bbox[:2], bbox[half : half + 2]
    return west, south, east + 360 if east < west else east, north


def _write(stac: pystac.STACObject) -> None:
    path = Path(stac.self_href)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(stac.to_dict(include_self_link=False), indent=2, ensure_ascii=False) + "\n")
