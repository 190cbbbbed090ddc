"""A run: everything decided and refused in a `Plan`, then executed.

``build_plan(scene, out, config)`` -> ``check(plan)`` -> ``execute(plan)``. Only this module, `landseg.batch` and
`landseg.cli` know configurations; the stages below take plain values.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landseg import __version__
from landseg.chips import Batch, Normalisation, read_batches
from landseg.config import RunConfig
from landseg.errors import SceneError, UsageError
from landseg.grid import Grid, Tiling
from landseg.legend import NODATA, Legend
from landseg.model.bundle import Bundle, read_bundle
from landseg.mosaic import Mosaic, Rows
from landseg.outputs import ClassArea
from landseg.outputs.drafts import Drafts, check_space, check_writable
from landseg.outputs.manifest import write_manifest
from landseg.outputs.picture import draw_picture
from landseg.outputs.raster import BLOCK_PX, LabelRaster, read_labels
from landseg.outputs.vector import companions, driver_of, write_layer
from landseg.polygons import polygonize
from landseg.polygons.merge import Merging
from landseg.predict import Predictor, choose_device, choose_precision
from landseg.scene import (
    GDAL_OPTIONS,
    GDAL_VERSION,
    RasterScene,
    SceneInfo,
    ValueRanges,
    describe_scene,
    match_bands,
    read_overview,
    value_ranges,
)
from landseg.scene import working_grid as choose_grid

log = logging.getLogger(__name__)

PICTURE_PX = 1600
"""Longest side of the map that the picture is drawn from."""

BASE_BYTES = 800 * 2**20
"""What Python, torch and GDAL take, with a tenth to spare; measured on Linux with torch 2.15, on the CPU."""


@dataclass(frozen=True)
class OutputPaths:
    """Where a run's products are.

    Parameters
    ----------
    polygons
        The layer, in the format of its suffix: see `landseg.outputs.vector.DRIVERS`.
    raster
        Cloud-optimised GeoTIFF; its sidecar is ``<raster>.aux.xml``.
    manifest
        STAC Item.
    picture
        PNG, or None if none was asked for.
    """

    polygons: Path
    raster: Path
    manifest: Path
    picture: Path | None

    @classmethod
    def of(cls, out: Path, *, picture: bool) -> "OutputPaths":
        """Derive all paths from the main product's."""
        return cls(
            polygons=out,
            raster=out.with_suffix(".tif"),
            manifest=out.with_suffix(".json"),
            picture=out.with_suffix(".png") if picture else None,
        )

    @property
    def sidecar(self) -> Path:
        """The raster's class names, in the form that GDAL reads."""
        return self.raster.with_name(self.raster.name + ".aux.xml")

    @property
    def all(self) -> tuple[Path, ...]:
        """Every product, in the order of their appearance: the manifest, which vouches for the others, last."""
        picture = () if self.picture is None else (self.picture,)
        return (self.sidecar, self.raster, *picture, *companions(self.polygons), self.polygons, self.manifest)


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first pixel is read.

    Parameters
    ----------
    config
        The resolved configuration.
    info
        The scene's header.
    bundle
        The model.
    bands
        Band numbers of the scene, in the model's order.
    grid
        What the map is made on.
    tiling
        Its chips.
    device, dtype
        Where and in what type the network runs.
    batch
        Chips per forward pass.
    outputs
        Where the products go.
    """

    config: RunConfig
    info: SceneInfo
    bundle: Bundle
    bands: tuple[int, ...]
    grid: Grid
    tiling: Tiling
    device: torch.device
    dtype: torch.dtype
    batch: int
    outputs: OutputPaths

    @property
    def memory_bytes(self) -> int:
        """Projected peak of main memory, polygons aside."""
        classes, chip = len(self.bundle.card.legend), self.tiling.chip_px**2
        bands = len(self.bands)
        # Beside what the network holds, logits and probabilities stand side by side; read-ahead holds two batches more.
        held = self.bundle.card.architecture.floats_per_pixel
        forward = self.batch * chip * 4 * (held + 4 * classes) if self.device.type == "cpu" else 0
        ahead = 3 * self.batch * chip * (4 * bands + 1)
        writer = 3 * 2 * BLOCK_PX * self.grid.shape[1]
        cache = int(GDAL_OPTIONS["GDAL_CACHEMAX"])
        return BASE_BYTES + forward + ahead + 2 * Mosaic.projected_bytes(self.tiling, classes) + writer + cache

    @property
    def disk_bytes(self) -> int:
        """Projected room for drafts and products, polygons included at half a byte per pixel."""
        # Labels compress to about a fifth and confidence to half; the draft and the overviews stand beside them.
        return int(self.grid.size * (2 * 0.7 * 1.34 + 0.5)) + 2**20

    @cached_property
    def scene_fingerprint(self) -> str:
        """Changes when the scene's file does: of its path, grid and stamp."""
        return _digest([self.info.shown, self.info.grid.shape, tuple(self.info.grid.transform), self.info.stamp])

    def summary(self) -> dict[str, Any]:
        """Tell the plan in plain values, for people and ``--json``."""
        rows, cols = self.grid.shape
        return {
            "scene": self.info.shown,
            "model": self.bundle.card.name,
            "bands": list(self.bands),
            "grid": {
                "rows": rows,
                "cols": cols,
                "crs": self.grid.crs.to_string(),
                "gsd_m": round(self.grid.gsd_m, 4),
                "resampled": self.grid != self.info.grid,
            },
            "chips": {
                "count": self.tiling.chip_count,
                "chip_px": self.tiling.chip_px,
                "overlap_px": self.tiling.overlap_px,
                "batch": self.batch,
            },
            "device": str(self.device),
            "precision": str(self.dtype).removeprefix("torch."),
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "outputs": [str(path) for path in self.outputs.all],
        }


@dataclass(frozen=True)
class Result:
    """A finished run.

    Parameters
    ----------
    outputs
        The products.
    areas
        What each class covers.
    manifest
        The STAC Item.
    """

    outputs: OutputPaths
    areas: tuple[ClassArea, ...]
    manifest: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """Tell the result in plain values, for ``--json``."""
        properties = self.manifest["properties"]
        return {
            "id": self.manifest["id"],
            "outputs": [str(path) for path in self.outputs.all],
            "areas": properties["landseg:areas"],
            "valid_pixels": properties["landseg:valid_pixels"],
            "model": properties["landseg:model"]["name"],
            "scene": properties["landseg:scene"]["href"],
        }


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Parameters
    ----------
    stage
        ``map``, ``raster``, ``polygons`` or ``outputs``.
    done, total
        Pixels of the grid, in the stage ``map``; 0 of 0 elsewhere.
    chips
        Chips that went through the network so far.
    """

    stage: str
    done: int = 0
    total: int = 0
    chips: int = 0


ProgressCallback = Callable[[Progress], None]


def build_plan(scene: str, out: Path, config: RunConfig) -> Plan:
    """Decide everything about a run.

    Parameters
    ----------
    scene
        Path or URL of the raster to map.
    out
        The GeoPackage to write; the other products stand beside it.
    config
        The options.

    Raises
    ------
    UsageError
        If ``out`` or an option does not make sense.
    InputError
        If the scene or the model can't be used.
    ResourceError
        If the device asked for is not there.
    """
    if driver_of(out) == "ESRI Shapefile":
        log.warning("Shapefiles cut names to ten characters and end at 2 GB; a GeoPackage has no such limits")
    bundle = read_bundle(config.model)
    card = bundle.card
    unknown = sorted(config.min_area_of_class.keys() - set(card.legend.names))
    if unknown:
        raise UsageError(
            f"a minimum area is given for '{unknown[0]}', which the model does not map",
            f"its classes: {', '.join(card.legend.names)}",
        )
    info = describe_scene(scene, config.assume_crs)
    bands = match_bands(info, card.bands, config.bands)
    grid = choose_grid(info, card.gsd_m, force_gsd=config.force_gsd)
    device = choose_device(config.device)
    return Plan(
        config=config,
        info=info,
        bundle=bundle,
        bands=bands,
        grid=grid,
        tiling=Tiling(grid.shape, card.chip_px, round(config.overlap * card.chip_px)),
        device=device,
        dtype=choose_precision(config.precision, device),
        batch=config.batch or (8 if device.type == "cpu" else 64),
        outputs=OutputPaths.of(out, picture=config.picture),
    )


def check(plan: Plan) -> None:
    """Refuse what can't end well, before the first pixel is read.

    Raises
    ------
    UsageError
        If the output folder is missing, or a product exists and overwriting was not asked for.
    DiskError
        If the output folder can't be written to or has too little room.
    """
    check_writable(plan.outputs.polygons, plan.outputs.all, overwrite=plan.config.overwrite)
    scene = Path(plan.info.path)
    for product in plan.outputs.all:
        if scene.exists() and product.exists() and product.samefile(scene):
            raise UsageError(f"the output {product} is the scene itself", "choose another --out")
    check_space(plan.outputs.polygons.parent, plan.disk_bytes)


def projected_seconds(plan: Plan) -> float:
    """Time one batch of noise, after a warm-up, and scale it to the plan's chips; polygons aside."""
    predictor = _predictor(plan)
    side = plan.tiling.chip_px
    noise = torch.randn(min(plan.batch, plan.tiling.chip_count), len(plan.bands), side, side)
    predictor(noise)
    start = time.perf_counter()
    predictor(noise)
    return (time.perf_counter() - start) / len(noise) * plan.tiling.chip_count


def execute(plan: Plan, on_progress: ProgressCallback = lambda _: None) -> Result:
    """Map the scene and publish the products.

    The whole scene is never in memory, nor is its stack of probabilities: a band of rows one chip high is. Until all
    products are complete nothing appears at their places, and after an error or an interruption nothing is left.

    Raises
    ------
    SceneError
        If the scene can't be read to its end or has no valid pixel.
    ResourceError
        If disk or memory run out.
    """
    legend = plan.bundle.card.legend
    outputs = plan.outputs
    with Drafts(outputs.polygons) as drafts:
        ranges = _value_ranges(plan)
        draft, valid_pixels = _write_labels(plan, ranges, drafts.folder, on_progress)
        on_progress(Progress("raster"))
        raster = drafts.path(outputs.raster)
        draft.publish(raster)
        on_progress(Progress("polygons"))
        polygons = polygonize(
            raster,
            plan.grid,
            work=drafts.folder,
            merging=merging_of(plan.config, legend),
            tolerance=plan.config.simplify / plan.grid.crs.linear_units_factor[1],
        )
        with closing(polygons):
            areas = write_layer(drafts.path(outputs.polygons), polygons, legend, plan.grid.crs)
        on_progress(Progress("outputs"))
        if outputs.picture is not None:
            _draw(plan, raster, drafts.path(outputs.picture), areas, ranges)
        products = {"polygons": outputs.polygons, "raster": outputs.raster, "raster-classes": outputs.sidecar}
        if outputs.picture is not None:
            products["picture"] = outputs.picture
        manifest = write_manifest(
            drafts.path(outputs.manifest),
            grid=plan.grid,
            legend=legend,
            areas=areas,
            products={key: drafts.path(product) for key, product in products.items()},
            title=f"Land use of {Path(plan.info.shown).stem}",
            sources=[plan.info.shown],
            versions=versions(),
            properties=_provenance(plan, ranges, valid_pixels),
        )
        drafts.publish(outputs.all)
    return Result(outputs, areas, manifest)


def merging_of(config: RunConfig, legend: Legend) -> Merging:
    """Say which faces are too small."""
    ids = {c.name: c.class_id for c in legend}
    return Merging(config.min_area, {ids[name]: area_m2 for name, area_m2 in config.min_area_of_class.items()})


def map_labels(plan: Plan, folder: Path, on_progress: ProgressCallback = lambda _: None) -> Path:
    """Write nothing but the plan's label raster into a folder, and give its path.

    Raises
    ------
    SceneError
        If the scene can't be read to its end or has no valid pixel.
    """
    return _write_labels(plan, _value_ranges(plan), folder, on_progress)[0].path


def _value_ranges(plan: Plan) -> ValueRanges:
    return value_ranges(plan.info, plan.bands, plan.bundle.card.value_range)


def _write_labels(
    plan: Plan, ranges: ValueRanges, folder: Path, on_progress: ProgressCallback
) -> tuple[LabelRaster, int]:
    """Write the label raster; give it and the number of its valid pixels."""
    valid_pixels = 0
    with LabelRaster(folder / "labels.tif", plan.grid, plan.bundle.card.legend) as raster:
        for rows in _map(plan, ranges, on_progress):
            raster.write(rows.labels, rows.confidence)
            valid_pixels += int(np.count_nonzero(rows.labels))
    if valid_pixels == 0:
        raise SceneError(f"{plan.info.path} holds no valid pixel", "all of it is nodata; is it the right file?")
    return raster, valid_pixels


def _predictor(plan: Plan) -> Predictor:
    network, temperature = plan.bundle.load_network(), plan.bundle.card.temperature
    return Predictor(network, plan.device, plan.dtype, temperature=temperature, views=plan.config.views)


def predict_chips(
    plan: Plan, ranges: ValueRanges, on_progress: ProgressCallback = lambda _: None
) -> Iterator[tuple[Batch, Tensor]]:
    """Give the plan's chips with their probabilities, from top to bottom; chips without a valid pixel are left out.

    Parameters
    ----------
    plan
        What to predict.
    ranges
        What the scene's values are scaled from.
    on_progress
        Told before the first batch, when the caller is done with a batch, and at the end.

    Yields
    ------
    tuple
        A batch of N chips, and (N, K, S, S) float32 on the plan's device that sums to 1 over K.

    Raises
    ------
    SceneError
        If the scene can't be read to its end.
    """
    card, tiling = plan.bundle.card, plan.tiling
    predictor = _predictor(plan)
    normalise = Normalisation.of(ranges, card.mean, card.std)
    progress = Progress("map", 0, plan.grid.size)
    with RasterScene(plan.info, plan.bands, plan.grid, nodata_policy=plan.config.nodata_policy) as scene:
        on_progress(progress)
        for batch in read_batches(scene, tiling, normalise, batch=plan.batch):
            yield batch, predictor(batch.pixels)
            core = batch.chips[-1].core
            done = core.row_off * plan.grid.shape[1] + core.height * (core.col_off + core.width)
            progress = replace(progress, done=int(done), chips=progress.chips + len(batch.chips))
            on_progress(progress)
    on_progress(replace(progress, done=plan.grid.size))


def _map(plan: Plan, ranges: ValueRanges, on_progress: ProgressCallback) -> Iterator[Rows]:
    """Give the map's rows from top to bottom."""
    mosaic = Mosaic(plan.tiling, plan.bundle.card.legend.class_ids, plan.device)
    finished = 0
    for batch, probabilities in predict_chips(plan, ranges, on_progress):
        for chip_row in range(finished, batch.chip_row):
            yield mosaic.finish(chip_row)
        finished = batch.chip_row
        for chip, chip_probabilities, valid in zip(batch.chips, probabilities, batch.valid, strict=True):
            mosaic.add(chip, chip_probabilities, valid)
    for chip_row in range(finished, plan.tiling.chip_counts[0]):
        yield mosaic.finish(chip_row)


def _draw(plan: Plan, raster: Path, picture: Path, areas: tuple[ClassArea, ...], ranges: ValueRanges) -> None:
    labels, grid = read_labels(raster, plan.grid, PICTURE_PX)
    draw_picture(
        picture,
        labels=labels,
        imagery=_imagery(plan, grid, ranges, valid=labels != NODATA),
        grid=grid,
        legend=plan.bundle.card.legend,
        areas=areas,
        title=f"Land use: {Path(plan.info.shown).stem}",
        source=f"landseg {__version__}, model {plan.bundle.card.name}",
    )


def _imagery(plan: Plan, grid: Grid, ranges: ValueRanges, *, valid: NDArray[np.bool_]) -> NDArray[np.uint8] | None:
    """Read the scene on the picture's grid as (rows, cols, 3), white where not valid.

    It is None where the model has no red, green and blue.
    """
    names = plan.bundle.card.bands
    if not {"red", "green", "blue"} <= set(names):
        return None
    order = [names.index(name) for name in ("red", "green", "blue")]
    bands = [plan.bands[i] for i in order]
    if plan.grid == plan.info.grid:
        pixels = read_overview(plan.info, bands, PICTURE_PX, average=True).filled(0)
    else:
        with RasterScene(plan.info, bands, grid) as scene:
            pixels = scene.read(grid.window).data
    low, high = np.asarray([ranges[i] for i in order]).T[:, :, None, None]
    scaled = np.nan_to_num((pixels - low) / (high - low)).clip(0, 1) * 255
    imagery: NDArray[np.uint8] = np.moveaxis(scaled, 0, -1).astype(np.uint8)
    imagery[~valid] = 255
    return imagery


def versions() -> dict[str, str]:
    """Name the software that a map depends on."""
    packages = ("torch", "rasterio", "shapely", "geopandas", "pyogrio", "numpy")
    return {"landseg": __version__, "gdal": GDAL_VERSION} | {name: version(name) for name in packages}


def _provenance(plan: Plan, ranges: ValueRanges, valid_pixels: int) -> dict[str, Any]:
    config = plan.config.model_dump(mode="json", exclude={"overwrite"})
    return {
        "landseg:scene": {
            "href": plan.info.shown,
            "fingerprint": plan.scene_fingerprint,
            "bands": list(plan.bands),
            "value_ranges": [list(pair) for pair in ranges],
            "resampled": plan.grid != plan.info.grid,
        },
        "landseg:model": {
            "name": plan.bundle.card.name,
            "sha256": plan.bundle.sha256,
            "temperature": plan.bundle.card.temperature,
            "held_out": dict(plan.bundle.card.held_out),
        },
        "landseg:config": config,
        "landseg:device": str(plan.device),
        "landseg:precision": str(plan.dtype).removeprefix("torch."),
        "landseg:valid_pixels": valid_pixels,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
