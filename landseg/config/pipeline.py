"""Options of a batch: which scenes, how they are mapped, and where the maps go."""

import string
from datetime import date
from glob import escape, has_magic
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from landseg.config.run import MapConfig, RunConfig
from landseg.config.values import ON_DISK, Place, Strict, at_home
from landseg.hrefs import is_remote

NAME_PARTS = ("scene", "folder", "collection", "date", "model")
"""What the name of a map may be made of."""


def _unquoted(value: Any) -> Any:
    # A day without quotes is a date to YAML.
    return value.isoformat() if isinstance(value, date) else value


class CatalogQuery(Strict):
    """Scenes that a STAC catalog knows."""

    url: str = Field(description="a static catalog's or a STAC API's; a path or a URL")
    collections: tuple[str, ...] = Field((), description="by default all that holds scenes")
    bbox: tuple[float, float, float, float] | None = Field(None, description="west, south, east, north in degrees")
    dates: Annotated[str | None, BeforeValidator(_unquoted)] = Field(
        None, description="as 2026-03-01/2026-03-31; either end may be .."
    )
    max_cloud_cover: float | None = Field(None, ge=0, le=100, description="percent")
    asset: str | None = Field(None, description="which of an item's files; by default the one whose role is data")

    @field_validator("bbox")
    @classmethod
    def _on_earth(cls, bbox: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        # West may be east of east: across the 180th meridian.
        if bbox is not None:
            west, south, east, north = bbox
            if not (-90 <= south <= north <= 90 and -180 <= west <= 180 and -180 <= east <= 180):
                raise ValueError("give west, south, east, north in degrees, the south before the north")
        return bbox


class ScenesConfig(Strict):
    """What a pipeline maps: files, scenes of a catalog, or both."""

    files: tuple[str, ...] = Field((), description="paths, URLs, and patterns such as imagery/2026-*.tif")
    catalog: CatalogQuery | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not self.files and self.catalog is None:
            raise ValueError("name what to map: paths and patterns under 'files', or a query under 'catalog'")
        return self


class MergeConfig(Strict):
    """One map of all scenes, beside theirs."""

    name: str = Field("region", description="name of the map")
    rule: Literal["newest", "least-cloudy", "most-confident"] = Field(
        "most-confident", description="whose class counts where scenes overlap"
    )


class PipelineConfig(MapConfig):
    """What ``landseg batch`` does: which scenes, how they are mapped, and where the maps go.

    Relative paths start at the pipeline's file.
    """

    scenes: ScenesConfig
    out: Place = Field(description="folder of the maps, a path or s3://bucket/folder; made if need be")
    name: str = Field(
        "{scene}", description="name of a scene's map, of {scene}, {folder}, {collection}, {date} and {model}"
    )
    format: str = Field(".gpkg", description="suffix of the polygons' format")
    merge: MergeConfig | None = None
    catalog: Annotated[Path | None, ON_DISK] = Field(
        None, description="a catalog that the maps are added to, under the collection maps"
    )
    attempts: int = Field(3, ge=1, description="how often a source that can't be reached is asked")
    wait_s: float = Field(30.0, ge=0, description="seconds before the second attempt; twice as many before each next")
    webhook: SecretStr | None = Field(None, description="URL that the report is posted to")

    @field_validator("name")
    @classmethod
    def _known_parts(cls, name: str) -> str:
        for _, part, spec, conversion in string.Formatter().parse(name):
            if part is not None and part not in NAME_PARTS:
                raise ValueError(f"there is no {{{part}}}; known are {', '.join(f'{{{p}}}' for p in NAME_PARTS)}")
            if spec or conversion:
                raise ValueError(f"{{{part}}} stands alone: it takes no format, as after ':' or '!'")
        return name

    def at(self, folder: Path) -> Self:
        """Give the same pipeline with its relative paths starting at a folder."""

        def placed(path: str) -> str:
            return path if is_remote(path) else str(folder / at_home(path))

        def placed_pattern(path: str) -> str:
            if not has_magic(path) or is_remote(path) or Path(placed(path)).exists():
                return placed(path)
            # What is a pattern's own in the folder's name is none of the pattern.
            return str(Path(escape(str(folder))) / at_home(path))

        query = self.scenes.catalog
        scenes = ScenesConfig(
            files=tuple(placed_pattern(path) for path in self.scenes.files),
            catalog=None if query is None else query.model_copy(update={"url": placed(query.url)}),
        )
        bundle = folder / at_home(self.model)
        return self.model_copy(
            update={
                "scenes": scenes,
                "out": self.out if isinstance(self.out, str) else folder / self.out,
                "work_folder": None if self.work_folder is None else folder / self.work_folder,
                "catalog": None if self.catalog is None else folder / self.catalog,
                "model": str(bundle) if bundle.is_dir() else self.model,
            }
        )

    def place(self, file: str) -> Path | str:
        """Give the path or URL of a file in the output folder."""
        return f"{self.out}/{file}" if isinstance(self.out, str) else self.out / file

    def run_config(self) -> RunConfig:
        """Give the options that each scene is mapped with; what is not current is replaced."""
        return RunConfig(**self.model_dump(include=set(MapConfig.model_fields)), overwrite=True)
