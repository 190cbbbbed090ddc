"""Options of a map."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from landseg.config.values import Area, Length, Size, Strict

Fraction = Annotated[float, Field(ge=0, le=0.9)]


class PolygonConfig(Strict):
    """How polygons are drawn from a raster of classes."""

    assume_crs: str | None = Field(None, description="coordinate reference system of a raster that names none")
    min_area: Area = Field(0.0, description="smaller polygons join the neighbour with the longest common border")
    min_area_of_class: dict[str, Area] = Field({}, description="other minima, by class name")
    simplify: Length = Field(0.0, description="how far outlines may be from the pixels' corners")


class MapConfig(PolygonConfig):
    """How a map is made."""

    model: str = Field("pspnet-r50-dubai", description="name of a shipped model, or a bundle's folder")
    bands: tuple[int, ...] | None = Field(None, description="band numbers from 1, in the order of the model's bands")
    overlap: Fraction = Field(0.25, description="part of a chip's side that neighbouring chips share")
    views: Literal[1, 2, 4, 8] = Field(1, description="symmetries of a chip that its answer is averaged over")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the network runs")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    batch: int | None = Field(None, ge=1, description="chips per forward pass, in swaths of up to 8; None: by device")
    nodata_policy: Literal["all", "any"] = Field(
        "all", description="a pixel is invalid when all of the model's bands are nodata, or when any is"
    )
    on_error: Literal["fail", "nodata"] = Field("fail", description="what becomes of pixels that can't be read")
    force_gsd: bool = Field(False, description="take the pixels as they are, whatever their size")
    workers: int | None = Field(None, ge=1, description="processes on this machine that share the work; by default one")
    scheduler: str | None = Field(None, description="address of a Dask scheduler whose workers do the work")
    max_memory: Size | None = Field(None, description="main memory to keep to; by default half of what is free")
    picture: bool = Field(False, description="write a picture of the map too")
    qgis_project: bool = Field(False, description="write a QGIS project of the map over its scene too")
    work_folder: Path | None = Field(
        None, description="where outputs on object storage are made before they are uploaded; by default in the cache"
    )


class RunConfig(MapConfig):
    """Options of ``landseg run``; the command line's options of the same names come before the file's."""

    overwrite: bool = Field(False, description="replace existing outputs")
