"""Scenes: what a raster is, which of its bands a model reads, on which grid, and its pixels window by window."""

from landseg.scene.fitting import ValueRanges, match_bands, value_ranges, working_grid
from landseg.scene.gdal import GDAL_OPTIONS, GDAL_VERSION, raster_drivers
from landseg.scene.header import SceneInfo, describe_scene, is_as_described
from landseg.scene.reader import NodataPolicy, Pixels, RasterScene, SceneReader, read_overview
from landseg.scene.salvage import CELL_PX, OnError, SalvagedScene

__all__ = [
    "CELL_PX",
    "GDAL_OPTIONS",
    "GDAL_VERSION",
    "NodataPolicy",
    "OnError",
    "Pixels",
    "RasterScene",
    "SalvagedScene",
    "SceneInfo",
    "SceneReader",
    "ValueRanges",
    "describe_scene",
    "is_as_described",
    "match_bands",
    "raster_drivers",
    "read_overview",
    "value_ranges",
    "working_grid",
]
