"""A run: everything decided and refused in a `Plan`, then executed.

``build_plan(scene, out, config)`` -> ``check(plan)`` -> ``execute(plan)``. Configurations are known here, to
`landseg.batch`, `landseg.cli`, `landseg.polygonizing`, `landseg.importing` and what prepares a training (``job``,
``material``, ``premises``, ``trial``); the stages below take plain values.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landseg import __version__
from landseg.chips import Batch
from landseg.config import RunConfig
from landseg.errors import (
    EmptySceneError,
    MemoryLimitError,
    RunInterruptedError,
    SceneError,
    UsageError,
)
from landseg.grid import Grid, Strip, Tiling, epsg_code, windows_of
from landseg.hrefs import from_folder
from landseg.legend import NODATA
from landseg.machine import ahead, available_bytes, cores
from landseg.mapping import (
    BATCHES_PER_STRIP,
    Compute,
    MapJob,
    Mapper,
    Progress,
    ProgressCallback,
    StripStore,
    compute_here,
    map_rows,
)
from landseg.model.bundle import Bundle, read_bundle
from landseg.mosaic import Mosaic, Rows, Sums
from landseg.outputs import ClassArea
from landseg.outputs.drafts import Drafts, check_space, writing
from landseg.outputs.imagery import Imagery
from landseg.outputs.manifest import write_manifest
from landseg.outputs.paths import OutputPaths, check_places
from landseg.outputs.project import write_project
from landseg.outputs.raster import BLOCK_PX, LabelRaster, read_labels
from landseg.outputs.style import write_style
from landseg.outputs.vector import check_format, draw_layer
from landseg.polygonizing import check_minima, merging_of
from landseg.polygons.strips import projected_bytes, threads_within
from landseg.predict import choose_device, choose_precision
from landseg.scene import (
    CELL_PX,
    GDAL_OPTIONS,
    GDAL_VERSION,
    SceneInfo,
    ValueRanges,
    describe_scene,
    match_bands,
    value_ranges,
)
from landseg.scene import working_grid as choose_grid

log = logging.getLogger(__name__)

BASE_BYTES = 820 * 2**20
"""What Python, torch and GDAL take; measured on Linux with torch 2.15, on the CPU."""

UNRECORDED = {"overwrite", "max_memory", "workers", "scheduler", "work_folder"}
"""Options that a manifest leaves out: how a map was made, and not what of."""


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
    threads
        Of the stage that draws polygons.
    budget_bytes
        Main memory to keep to.
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
    threads: int
    budget_bytes: int
    outputs: OutputPaths

    @property
    def memory_bytes(self) -> int:
        """Projected peak of main memory."""
        base = base_bytes()
        if self.config.scheduler is not None:
            return base + max(self._joining_bytes, self._polygons_bytes)
        if self.config.workers is not None:
            # Strips are drawn after the workers have gone.
            mapping = self.config.workers * (base + self._mapping_bytes) + self._joining_bytes
        else:
            mapping = self._mapping_bytes + self._joining_bytes
        return base + max(mapping, self._polygons_bytes)

    @property
    def _mapping_bytes(self) -> int:
        classes, chip = len(self.bundle.card.legend), self.tiling.chip_px**2
        bands = len(self.bands)
        # The file's 16 bits a weight, widened to 32, and once more while they are made ready.
        weights = 6 * self.bundle.weights_bytes
        # Beside what the network holds, logits and probabilities stand side by side; read-ahead holds two batches more.
        held = self.bundle.card.architecture.floats_per_pixel
        chips = max(self.batch, self.tiling.swath_chips)
        forward = chips * chip * 4 * (held + 4 * classes) if self.device.type == "cpu" else 0
        ahead = 3 * chips * chip * (4 * bands + 1)
        band = 2 * Mosaic.projected_bytes(self.tiling, classes)
        return int(weights + forward + ahead + band + self._strip_bytes)

    @property
    def _strip_bytes(self) -> int:
        strip, cols = self.strips[-1], self.grid.shape[1]
        own, shared = (stop - start for start, stop in (strip.own, self.strips[0].lower))
        # Twice, as its rows are put together.
        return 2 * cols * (2 * own + 2 * shared * Sums.bytes_per_pixel(len(self.bundle.card.legend)))

    @property
    def _joining_bytes(self) -> int:
        return self._strip_bytes + 3 * 2 * BLOCK_PX * self.grid.shape[1]

    @property
    def _polygons_bytes(self) -> int:
        return projected_bytes(self.grid.shape[1], self.threads)

    @property
    def precision(self) -> str:
        """The type to compute in, by torch's name for it."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def strips(self) -> tuple[Strip, ...]:
        """The units of work, from top to bottom; the last is the highest."""
        return self.tiling.strips(BATCHES_PER_STRIP * self.batch)

    @property
    def disk_bytes(self) -> int:
        """Projected room for strips, drafts and products, polygons and their spool at half a byte per pixel each."""
        # Labels compress to about a fifth and confidence to half; the draft and the overviews stand beside them.
        products = int(self.grid.size * (2 * 0.7 * 1.34 + 2 * 0.5))
        # Strips are not compressed, and where two meet both keep their sums.
        shared = sum(stop - start for strip in self.strips for start, stop in (strip.upper, strip.lower))
        sums = shared * self.grid.shape[1] * Sums.bytes_per_pixel(len(self.bundle.card.legend))
        return products + 2 * self.grid.size + sums + 2**20

    @cached_property
    def scene_fingerprint(self) -> str:
        """Changes when the scene's file does: of its path, however it is spelt, its grid and its stamp."""
        local = Path(self.info.path)
        place = str(local.resolve()) if local.exists() else self.info.shown
        known = [place, self.info.grid.shape, tuple(self.info.grid.transform), self.info.stamp]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]

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
                "crs": epsg_code(self.grid.crs) or self.grid.crs.to_wkt(),
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
            "precision": self.precision,
            "memory_bytes": self.memory_bytes,
            "budget_bytes": self.budget_bytes,
            "disk_bytes": self.disk_bytes,
            "work_folder": str(Drafts(self.outputs.polygons).folder),
            "outputs": list(self.outputs.places),
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
            "outputs": list(self.outputs.places),
            "areas": properties["landseg:areas"],
            "valid_pixels": properties["landseg:valid_pixels"],
            "model": properties["landseg:model"]["name"],
            "scene": properties["landseg:scene"]["href"],
        }


def build_plan(scene: str, out: Path | str, config: RunConfig) -> Plan:
    """Decide everything about a run.

    Parameters
    ----------
    scene
        Path or URL of the raster to map.
    out
        The polygons to write: a path, or a URL on S3; the other products stand beside them.
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
    outputs = outputs_of(out, config)
    check_format(outputs.polygons)
    bundle, device, dtype = check_config(config)
    card = bundle.card
    info = describe_scene(scene, config.assume_crs)
    bands = match_bands(info, card.bands, config.bands)
    grid = choose_grid(info, card.gsd_m, force_gsd=config.force_gsd)
    tiling = Tiling.in_swaths(grid.shape, card.chip_px, config.overlap, card.architecture.output_stride)
    plan = Plan(
        config=config,
        info=info,
        bundle=bundle,
        bands=bands,
        grid=grid,
        tiling=tiling,
        device=device,
        dtype=dtype,
        batch=config.batch or (8 if device.type == "cpu" else 64),
        threads=cores(),
        budget_bytes=memory_budget(config),
        outputs=outputs,
    )
    return _fitted(plan)


def outputs_of(out: Path | str, config: RunConfig) -> OutputPaths:
    """Say where the products go: to a path, or by way of a work folder to object storage.

    Raises
    ------
    UsageError
        If it is no URL of a file on S3, or a work folder is named for what needs none.
    """
    return OutputPaths.of(out, picture=config.picture, project=config.qgis_project, work_folder=config.work_folder)


def check_config(config: RunConfig) -> tuple[Bundle, torch.device, torch.dtype]:
    """Look up the model, and where and in what type it runs: what is decided whatever the scene.

    Raises
    ------
    UsageError
        If options exclude each other, or one names what there is not.
    BundleError
        If the model can't be used.
    ResourceError
        If the device or the scheduler asked for is not there.
    """
    bundle = read_bundle(config.model)
    check_minima(config, bundle.card.legend)
    return bundle, *_device(config)


def base_bytes() -> int:
    """Say what main memory a process takes before it maps anything."""
    return BASE_BYTES + int(GDAL_OPTIONS["GDAL_CACHEMAX"])


def memory_budget(config: RunConfig) -> int:
    """Say how much main memory is to be kept to."""
    return int(config.max_memory or available_bytes() / 2)


def _device(config: RunConfig) -> tuple[torch.device, torch.dtype]:
    """Find where and in what type the network runs: here, or on the workers of a scheduler."""
    if config.scheduler is not None:
        if config.workers is not None:
            raise UsageError("--workers and --scheduler exclude each other", "a scheduler brings its own workers")
        from landseg.cluster import survey  # dask is slow to import

        return survey(config.scheduler, config.device, config.precision)
    device = choose_device(config.device)
    if device.type == "cuda" and (config.workers or 1) > 1:
        raise UsageError(
            f"{config.workers} workers would share a GPU",
            "for several GPUs start dask-cuda's workers, and give --scheduler",
        )
    return device, choose_precision(config.precision, device)


def _fitted(plan: Plan) -> Plan:
    """Take fewer chips at once, unless the user said how many, and fewer threads, until the budget suffices.

    Of the numbers of chips that fit, that one is taken whose finished strips an earlier run has left, whatever memory
    was free then; else the largest.
    """
    budget = plan.budget_bytes - base_bytes()
    plans = [replace(plan, threads=threads_within(budget, plan.grid.shape[1], plan.threads))]
    while plans[-1].batch > plan.tiling.swath_chips and plan.config.batch is None:
        plans.append(replace(plans[-1], batch=plans[-1].batch // 2))
    fitting = [one for one in plans if one.memory_bytes <= one.budget_bytes] or plans[-1:]
    if not Drafts(plan.outputs.polygons).folder.is_dir():
        return fitting[0]
    # The scene's values, which the job may look at, are the same for all.
    job = map_job(plan)
    kept = {one.batch: Drafts(plan.outputs.polygons, replace(job, batch=one.batch).key).kept for one in fitting}
    return next((one for one in fitting if kept[one.batch].is_dir()), fitting[0])


def check(plan: Plan) -> None:
    """Refuse what can't end well, before the first pixel is read.

    Raises
    ------
    UsageError
        If the output folder is missing, a product exists and overwriting was not asked for, or something else is in its
        place.
    MemoryLimitError
        If the run would take more memory than it may.
    DiskError
        If the output folder can't be written to or has too little room.
    """
    if plan.memory_bytes > plan.budget_bytes:
        fewer = ", or a smaller --batch" if plan.batch > plan.tiling.swath_chips else ""
        allowed = "--max-memory allows" if plan.config.max_memory else "half of what is free is"
        needed, given = plan.memory_bytes / 1e9, plan.budget_bytes / 1e9
        raise MemoryLimitError(
            f"the run takes up to {needed:.2f} GB of memory; {allowed} {given:.2f} GB",
            f"give it --max-memory {math.ceil(1000 * needed)}MB{fewer}",
        )
    outputs = plan.outputs
    if outputs.storage is not None:
        with writing(outputs.polygons):
            outputs.polygons.parent.mkdir(parents=True, exist_ok=True)
    check_places(outputs, [plan.info.path, *plan.info.files], overwrite=plan.config.overwrite)
    check_space(outputs.polygons.parent, plan.disk_bytes)


def projected_seconds(plan: Plan) -> float:
    """Time one batch of noise, after a warm-up, and scale it to the plan's chips; polygons aside."""
    predictor, tiling = _mapper(plan).predict, plan.tiling
    chips, width = tiling.swath_shape
    swaths = min(tiling.swaths_of(plan.batch), tiling.swath_count)
    noise = torch.randn(swaths, len(plan.bands), tiling.chip_px, width, device=plan.device)
    predictor(noise)
    start = time.perf_counter()
    predictor(noise)
    return (time.perf_counter() - start) / (swaths * chips) * tiling.chip_count


def execute(plan: Plan, on_progress: ProgressCallback = lambda _: None) -> Result:
    """Map the scene and publish the products.

    The whole scene is never in memory, nor is its stack of probabilities: a band of rows one chip high is. Until all
    products are complete nothing appears at their places. After an error or an interruption finished strips are left
    in ``<out>.landseg/``, from which the same plan goes on.

    Raises
    ------
    SceneError
        If the scene can't be read to its end or has no valid pixel.
    ResourceError
        If disk or memory run out.
    RunInterruptedError
        If a signal stopped it.
    """
    try:
        return _execute(plan, on_progress)
    except KeyboardInterrupt as error:
        written = "nothing was written" if plan.outputs.storage is None else "some outputs may be in the bucket by now"
        raise RunInterruptedError(f"stopped; {written}", "the same command goes on from what is finished") from error


def _execute(plan: Plan, on_progress: ProgressCallback) -> Result:
    legend = plan.bundle.card.legend
    outputs = plan.outputs
    job = map_job(plan)
    with Drafts(outputs.polygons, kept=job.key) as drafts:
        store = StripStore(drafts.kept, job)
        labels, valid_pixels = _write_labels(job, store, _computing(plan.config), drafts.folder, on_progress)
        lost = [window.flatten() for window in windows_of(store.lost(), CELL_PX, plan.grid.shape)]
        if lost:
            count = sum(width * height for _, _, width, height in lost)
            log.warning(
                "%s pixels of %s can't be read and are nodata; the manifest says which", f"{count:,}", plan.info.path
            )
        on_progress(Progress("raster"))
        raster = drafts.path(outputs.raster)
        labels.publish(raster)
        write_style(drafts.path(outputs.style), legend)
        on_progress(Progress("polygons"))
        draft = drafts.path(outputs.polygons)
        areas = draw_layer(
            draft,
            raster,
            plan.grid,
            legend,
            confidence_band=2,
            merging=merging_of(plan.config, legend),
            tolerance_m=plan.config.simplify,
            threads=plan.threads,
        )
        on_progress(Progress("outputs"))
        imagery = Imagery.of(plan.info, plan.bundle.card.bands, plan.bands, job.ranges)
        if outputs.picture is not None:
            _draw(plan, raster, drafts.path(outputs.picture), areas, imagery)
        if outputs.project is not None:
            write_project(
                drafts.path(outputs.project),
                polygons=outputs.polygons,
                raster=outputs.raster,
                scene=plan.info,
                imagery=imagery,
                grid=plan.grid,
                legend=legend,
                folder=outputs.folder,
            )
        manifest = write_manifest(
            drafts.path(outputs.manifest),
            grid=plan.grid,
            legend=legend,
            areas=areas,
            products={key: drafts.path(product) for key, product in outputs.assets.items()},
            title=f"Land use of {Path(plan.info.shown).stem}",
            sources=[from_folder(plan.info.shown, outputs.folder)],
            versions=versions(),
            properties=_provenance(plan, job.ranges, valid_pixels, lost),
        )
        if outputs.storage is not None:
            on_progress(Progress("upload"))
        outputs.publish(drafts)
    return Result(outputs, areas, manifest)


def map_labels(plan: Plan, folder: Path, on_progress: ProgressCallback = lambda _: None) -> Path:
    """Write nothing but the plan's label raster into a folder, and give its path.

    Raises
    ------
    SceneError
        If the scene can't be read to its end or has no valid pixel.
    """
    job = map_job(plan)
    return _write_labels(job, StripStore(folder / "strips", job), compute_here, folder, on_progress)[0].path


def map_job(plan: Plan) -> MapJob:
    """Say what the plan's pixels follow from; the scene's values may be looked at for it."""
    return MapJob(
        info=plan.info,
        scene_fingerprint=plan.scene_fingerprint,
        bands=plan.bands,
        grid=plan.grid,
        tiling=plan.tiling,
        ranges=value_ranges(plan.info, plan.bands, plan.bundle.card.value_range),
        nodata_policy=plan.config.nodata_policy,
        on_error=plan.config.on_error,
        bundle=plan.bundle,
        device=plan.device,
        dtype=plan.dtype,
        batch=plan.batch,
        views=plan.config.views,
    )


def _mapper(plan: Plan) -> Mapper:
    return Mapper(map_job(plan), plan.bundle.load_network())


def _computing(config: RunConfig) -> Compute:
    """Choose who computes strips."""
    # dask is slow to import
    if config.scheduler is not None:
        from landseg.cluster import compute_by_scheduler

        return compute_by_scheduler(config.scheduler)
    if config.workers is not None:
        from landseg.cluster import compute_by_workers

        return compute_by_workers(config.workers)
    return compute_here


def _write_labels(
    job: MapJob, store: StripStore, compute: Compute, folder: Path, on_progress: ProgressCallback
) -> tuple[LabelRaster, int]:
    """Write the label raster, rows while those of the next strip are computed; give it and its valid pixels' number."""

    def write(rows: Rows) -> int:
        raster.write(rows.labels, rows.confidence)
        return int(np.count_nonzero(rows.labels))

    with (
        LabelRaster(folder / "labels.tif", job.grid, job.bundle.card.legend) as raster,
        closing(map_rows(job, store, compute, on_progress)) as mapped,
        ThreadPoolExecutor(1, thread_name_prefix="write") as pool,
    ):
        valid_pixels = sum(ahead(pool, write, mapped, workers=1))
    if valid_pixels == 0:
        lost = store.lost()
        store.clear()
        if lost:
            raise SceneError(f"{job.info.path} can't be read: the file is damaged or out of reach")
        raise EmptySceneError(f"{job.info.path} holds no valid pixel", "all of it is nodata; is it the right file?")
    return raster, valid_pixels


def predict_chips(plan: Plan, on_progress: ProgressCallback = lambda _: None) -> Iterator[tuple[Batch, Tensor]]:
    """Give the plan's chips with their probabilities, from top to bottom; chips without a valid pixel are left out.

    Parameters
    ----------
    plan
        What to predict.
    on_progress
        Told before the first batch, when the caller is done with a batch, and at the end.

    Yields
    ------
    tuple
        A batch of M * n chips, and (M * n, K, S, S) float32 on the plan's device that sums to 1 over K.

    Raises
    ------
    SceneError
        If the scene can't be read to its end.
    """
    mapper = _mapper(plan)
    progress = Progress("map", 0, plan.grid.size)
    on_progress(progress)
    with mapper.open_scene() as scene:
        for batch, probabilities in mapper.answers(scene, plan.tiling.whole):
            yield batch, probabilities
            progress = replace(progress, done=progress.done + batch.core_px, chips=progress.chips + len(batch.chips))
            on_progress(progress)
    on_progress(replace(progress, done=plan.grid.size))


def _draw(plan: Plan, raster: Path, picture: Path, areas: tuple[ClassArea, ...], imagery: Imagery | None) -> None:
    from landseg.outputs.picture import PICTURE_PX, draw_picture  # matplotlib is slow to import

    labels, grid = read_labels(raster, plan.grid, PICTURE_PX)
    pixels = None if imagery is None else imagery.read(plan.grid, PICTURE_PX)
    if pixels is not None:
        pixels[labels == NODATA] = 255
    draw_picture(
        picture,
        labels=labels,
        imagery=pixels,
        grid=grid,
        legend=plan.bundle.card.legend,
        areas=areas,
        merged=merging_of(plan.config, plan.bundle.card.legend).is_needed,
        title=f"Land use: {Path(plan.info.shown).stem}",
        source=f"landseg {__version__}, model {plan.bundle.card.name}",
    )


def versions() -> dict[str, str]:
    """Name the software that a map depends on."""
    packages = ("torch", "rasterio", "shapely", "geopandas", "pyogrio", "numpy")
    return {"landseg": __version__, "gdal": GDAL_VERSION} | {name: version(name) for name in packages}


def model_record(bundle: Bundle) -> dict[str, Any]:
    """Say what a manifest records of a model."""
    return {
        "name": bundle.card.name,
        "sha256": bundle.sha256,
        "temperature": bundle.card.temperature,
        "held_out": dict(bundle.card.held_out),
    }


def _provenance(plan: Plan, ranges: ValueRanges, valid_pixels: int, lost: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {
        "landseg:scene": {
            "href": plan.info.shown,
            "fingerprint": plan.scene_fingerprint,
            "bands": list(plan.bands),
            "band_names": list(plan.bundle.card.bands),
            "value_ranges": [list(pair) for pair in ranges],
            "resampled": plan.grid != plan.info.grid,
        },
        "landseg:model": model_record(plan.bundle),
        "landseg:config": plan.config.model_dump(mode="json", exclude=UNRECORDED),
        "landseg:device": str(plan.device),
        "landseg:precision": plan.precision,
        "landseg:valid_pixels": valid_pixels,
        "landseg:lost_windows": [list(window) for window in lost],
    }
