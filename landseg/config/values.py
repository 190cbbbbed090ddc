"""What all configuration is made of: checked keys, measures with their units, and paths."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from landseg.hrefs import is_remote

_MEASURE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z0-9²]*)\s*", re.IGNORECASE)
_SQUARE_METRES = {"": 1.0, "m2": 1.0, "m²": 1.0, "a": 100.0, "ha": 1e4, "km2": 1e6, "km²": 1e6}
_BYTES = {"": 1.0} | {
    unit + letters: float(base**power)
    for power, unit in enumerate(("k", "m", "g", "t"), start=1)
    for letters, base in (("b", 1000), ("ib", 1024))
}
_METRES = {"": 1.0, "m": 1.0, "cm": 0.01, "km": 1000.0}


def _measured(units: Mapping[str, float]) -> BeforeValidator:
    """Read a number with one of some units."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = _MEASURE.fullmatch(value)
        if found is None or found[2].lower() not in units:
            raise ValueError(f"give a number and a unit: {', '.join(unit for unit in units if unit)}")
        return float(found[1]) * units[found[2].lower()]

    return BeforeValidator(read)


def _local(value: Any) -> Any:
    # As a path, s3://maps would be a folder called s3: at hand.
    if isinstance(value, str) and is_remote(value):
        raise ValueError("give a path on this machine; storage that is mounted has one")
    return value


def _place(value: Any) -> Path | str:
    if isinstance(value, str) and re.match("s3://[^/]", value):
        return value.rstrip("/")
    if not isinstance(value, str | Path) or is_remote(str(value)):
        raise ValueError("give a path on this machine, or s3://bucket/folder")
    return Path(value)


def at_home(path: str) -> str:
    """Give a path whose ``~`` is the home folder, if there is one."""
    return os.path.expanduser(path) if Path(path).parts[:1] == ("~",) else path  # noqa: PTH111 (Path's own raises)


ON_DISK = BeforeValidator(_local)
"""Marks a place that can't be on object storage."""

Place = Annotated[Path | str, BeforeValidator(_place)]
"""A folder on this machine, or as text one on object storage: s3://bucket/folder, without a slash at its end."""

Area = Annotated[float, _measured(_SQUARE_METRES), Field(ge=0, allow_inf_nan=False)]
"""Square metres, or text such as 50m2 or 0.25ha."""

Length = Annotated[float, _measured(_METRES), Field(ge=0, allow_inf_nan=False)]
"""Metres, or text such as 1.5m."""

Size = Annotated[float, _measured(_BYTES), Field(gt=0, allow_inf_nan=False)]
"""Bytes, or text such as 2GB or 512MiB."""


class Strict(BaseModel):
    """Base of all configuration: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return Path(at_home(str(value))) if isinstance(value, Path) else value
