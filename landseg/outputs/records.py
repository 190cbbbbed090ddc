"""What landseg reads of STAC items, and of what types it must be: people and programs change files of JSON."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator

ValueT = TypeVar("ValueT")
Pair = Annotated[list[ValueT], Field(min_length=2, max_length=2)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)


class _Link(_Record):
    rel: str
    href: str


class _Band(_Record):
    name: str | None = None


class _Asset(_Record):
    href: str
    type: str | None = None
    roles: list[str] | None = None
    bands: list[_Band] = []


class _Properties(_Record):
    title: str | None = None
    description: str | None = None
    license: str | None = None
    gsd: FiniteFloat | None = None
    bands: list[_Band] = []
    shape: Pair[FiniteFloat] | None = Field(None, alias="proj:shape")
    code: str | None = Field(None, alias="proj:code")
    cloud_cover: FiniteFloat | None = Field(None, alias="eo:cloud_cover")


class ItemRecord(_Record):
    """Any item of a catalog."""

    id: str
    collection: str | None = None
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=6)] | None = None
    properties: _Properties
    links: list[_Link]
    assets: dict[str, _Asset]


class _Scene(_Record):
    href: str
    bands: list[PositiveInt]
    band_names: list[str]
    value_ranges: list[Pair[FiniteFloat]]

    @model_validator(mode="after")
    def _of_each_band(self) -> Self:
        if not len(self.bands) == len(self.band_names) == len(self.value_ranges):
            raise ValueError("bands, their names and their ranges differ in number")
        return self


class _HeldOut(_Record):
    data: str
    miou: FiniteFloat


class _Model(_Record):
    name: str
    sha256: str
    temperature: float
    held_out: _HeldOut | Annotated[dict[str, Any], Field(max_length=0)]


class _Config(_Record):
    assume_crs: str | None


class _Part(_Record):
    map: str
    date: str | None


class _Merge(_Record):
    rule: str
    parts: list[_Part]
    missing: list[str]


class _MapProperties(_Record):
    created: str
    gsd: FiniteFloat
    code: str | None = Field(alias="proj:code")
    shape: Pair[Annotated[int, Field(gt=0, lt=2**31)]] = Field(alias="proj:shape")
    transform: Annotated[list[FiniteFloat], Field(min_length=9, max_length=9)] = Field(alias="proj:transform")
    software: dict[str, str] = Field(alias="processing:software")
    # One of the two.
    scene: _Scene | None = Field(None, alias="landseg:scene")
    merge: _Merge | None = Field(None, alias="landseg:merge")
    model: _Model = Field(alias="landseg:model")
    config: _Config = Field(alias="landseg:config")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        a, b, _, d, e, _ = self.transform[:6]
        if a * e == b * d:
            raise ValueError("its pixels have no area")
        if self.merge is not None and (a < 0 or b or d or e > 0):
            raise ValueError("a region has north up")
        given = [getattr(self, name) for name in self.model_fields_set & {"scene", "merge"}]
        if len(given) != 1 or given[0] is None:
            raise ValueError("it must be of a scene or of a region")
        return self


class _Raster(_Record):
    checksum: str = Field(alias="file:checksum")


class _MapAssets(_Record):
    raster: _Raster


class MapRecord(_Record):
    """The manifest of a map by landseg."""

    properties: _MapProperties
    links: list[_Link]
    assets: _MapAssets


def check_record(kind: type[BaseModel], content: Mapping[str, Any]) -> None:
    """Raise ValueError where what is read of an item is missing or of another type; the message names the key."""
    # JSON may escape what is no text, and nothing could be written of it.
    json.dumps(content, ensure_ascii=False).encode()
    try:
        kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the whole"
        message = fault["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {message[0].lower()}{message[1:]}") from error
