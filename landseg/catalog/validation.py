"""Whether a catalog is what it says: its JSON by schemas that come with landseg, its files by size and checksum."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pystac
from pystac.validation import JsonSchemaSTACValidator, validate_dict

from landseg.catalog import MOST_CATALOGS, UNREADABLE, checked, reason
from landseg.checksums import SHA256_MULTIHASH, checksum
from landseg.hrefs import is_remote, local_path

SCHEMAS = files("landseg.catalog") / "schemas"
PROJJSON = "https://proj.org/schemas/v0.7/projjson.schema.json"


@dataclass
class Validation:
    """What was looked at, and what is wrong.

    Parameters
    ----------
    objects, assets
        How many catalogs, collections and items, and how many files, were checked.
    unchecked
        What could not be, and why, a line each.
    faults
        What is wrong, a line each.
    """

    objects: int = 0
    assets: int = 0
    unchecked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def validate(root: pystac.Catalog) -> Validation:
    """Check a catalog and all that it leads to: schemas, links, and the files of its assets. Nothing is fetched."""
    found, validator = Validation(), _validator()
    # Links may lead back, or to a catalog many times; and down for ever.
    waiting, seen = [root], set[str]()
    while waiting:
        catalog = waiting.pop()
        if _place(catalog) in seen:
            continue
        if len(seen) == MOST_CATALOGS:
            found.faults.append(f"{_place(root)}: it leads to more than {MOST_CATALOGS:,} catalogs")
            break
        seen.add(_place(catalog))
        waiting += reversed(_check_catalog(catalog, validator, found))
    return found


def _validator() -> JsonSchemaSTACValidator:
    """Give a validator that has all schemas at hand: pystac's of STAC itself, and the extensions' that landseg has."""
    validator = JsonSchemaSTACValidator()
    for entry in SCHEMAS.iterdir():
        if named := re.fullmatch(r"(.+)-(v[\d.]+)\.json", entry.name):
            name, version = named.groups()
            address = f"https://stac-extensions.github.io/{name}/{version}/schema.json"
            validator.schema_cache[PROJJSON if name == "projjson" else address] = json.loads(entry.read_text("utf-8"))
    # What MLM 1.4 takes over from it is in 2.0 as it was, but for names of classes, which landseg always gives.
    cache, classification = validator.schema_cache, "https://stac-extensions.github.io/classification/{}/schema.json"
    cache[classification.format("v1.1.0")] = cache[classification.format("v2.0.0")]
    return validator


def _check_catalog(
    catalog: pystac.Catalog, validator: JsonSchemaSTACValidator, found: Validation
) -> list[pystac.Catalog]:
    """Check a catalog and its items; give the catalogs below it."""
    below = []
    _check_schema(catalog, validator, found)
    for link in catalog.get_links():
        if link.rel in (pystac.RelType.CHILD, pystac.RelType.ITEM):
            try:
                linked = link.resolve_stac_object(root=catalog.get_root()).target
                if isinstance(linked, pystac.Item):
                    checked(linked)
            except UNREADABLE as error:
                found.faults.append(f"{_place(catalog)}: can't read {link.href}: {reason(error)}")
                continue
            if isinstance(linked, pystac.Catalog):
                below.append(linked)
            elif isinstance(linked, pystac.Item):
                _check_schema(linked, validator, found)
                _check_assets(linked, found)
    return below


def _check_schema(stac: pystac.STACObject, validator: JsonSchemaSTACValidator, found: Validation) -> None:
    found.objects += 1
    # As it is stored: what pystac read may have been brought up to date on the way.
    stored: dict[str, Any] = pystac.StacIO.default().read_json(_place(stac))
    version, known = stored.get("stac_version"), pystac.get_stac_version()
    if version != known:
        # The schemas at hand are those of one version.
        found.unchecked.append(f"{_place(stac)}: is of STAC {version}, and was checked as what {known} makes of it")
        stored = stac.to_dict(include_self_link=False, transform_hrefs=False)
    at_hand = [extension for extension in stored.get("stac_extensions") or [] if extension in validator.schema_cache]
    for extension in stored.get("stac_extensions") or []:
        if extension not in at_hand:
            found.unchecked.append(f"{_place(stac)}: landseg does not have the schema {extension}")
    try:
        validate_dict(stored, extensions=at_hand, validator=validator)
    except pystac.STACValidationError as error:
        fault = _deepest(error.source or ())
        where = ".".join(str(part) for part in fault.absolute_path)
        found.faults.append(f"{_place(stac)}: {where or 'the whole'}: {fault.message:.200}")


def _deepest(faults: Sequence[Any]) -> Any:
    """Give the fault that lies deepest: schemas are full of alternatives, and it is in the one that was meant."""
    deepest = max(faults, key=lambda fault: len(fault.absolute_path))
    return _deepest(deepest.context) if deepest.context else deepest


def _check_assets(item: pystac.Item, found: Validation) -> None:
    for key, asset in item.get_assets().items():
        href = local_path(asset.get_absolute_href() or asset.href)
        place = f"{_place(item)}: asset {key}"
        expected = str(asset.extra_fields.get("file:checksum", ""))
        if is_remote(href):
            found.unchecked.append(f"{place} is elsewhere")
        elif not Path(href).is_file():
            found.faults.append(f"{place}: there is no {asset.href}")
        elif not expected.startswith(SHA256_MULTIHASH):
            found.unchecked.append(f"{place} has no SHA-256")
        else:
            found.assets += 1
            if checksum(Path(href)) != expected:
                found.faults.append(f"{place}: {asset.href} is not the file that was added: its checksum differs")


def _place(stac: pystac.STACObject) -> str:
    return stac.get_self_href() or stac.id
