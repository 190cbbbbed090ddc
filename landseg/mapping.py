"""Mapping: strips of a scene, each computed by itself and kept on disk, then joined into the rows of one map.

A `MapJob` is all that a strip depends on, as a frozen value that may be sent to another machine. Whoever computes its
strips, this process or the workers of a cluster (`landseg.cluster`), puts them into a `StripStore`; what is there
already is not computed again.
"""

import hashlib
import logging
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, Self
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from landseg import __version__
from landseg.chips import Batch, Normalisation, on_gpu, read_batches
from landseg.errors import RunInterruptedError
from landseg.grid import Grid, Strip, Tiling
from landseg.machine import cores
from landseg.model.bundle import Bundle
from landseg.model.pspnet import OnSwaths, PSPNet
from landseg.mosaic import Mosaic, Part, Rows, Sums, join
from landseg.outputs.drafts import writing
from landseg.predict import Predictor, Views, telling_memory
from landseg.scene import NodataPolicy, OnError, RasterScene, SalvagedScene, SceneInfo, ValueRanges

log = logging.getLogger(__name__)

BATCHES_PER_STRIP = 16
"""At least: a strip is what a crash costs and how long a wish to stop waits."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Parameters
    ----------
    stage
        ``map``, ``raster``, ``polygons``, ``outputs`` or ``upload``.
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
Advance = Callable[[int, int], None]
"""Told of so many more pixels and chips."""


@dataclass(frozen=True)
class MapJob:
    """What the pixels of a map follow from.

    Parameters
    ----------
    info
        The scene's header.
    scene_fingerprint
        Changes when the scene does.
    bands
        Band numbers of the scene, in the model's order.
    grid, tiling
        What the map is made on, and its chips.
    ranges
        What the scene's values are scaled from.
    nodata_policy
        See `landseg.scene.RasterScene`.
    on_error
        Whether what can't be read is an error, or nodata.
    bundle
        The model.
    device, dtype, batch, views
        How the network runs; see `landseg.predict.Predictor`.
    """

    info: SceneInfo
    scene_fingerprint: str
    bands: tuple[int, ...]
    grid: Grid
    tiling: Tiling
    ranges: ValueRanges
    nodata_policy: NodataPolicy
    on_error: OnError
    bundle: Bundle
    device: torch.device
    dtype: torch.dtype
    batch: int
    views: Views

    @cached_property
    def strips(self) -> tuple[Strip, ...]:
        """The units of work, from top to bottom."""
        return self.tiling.strips(BATCHES_PER_STRIP * self.batch)

    @cached_property
    def key(self) -> str:
        """Changes with whatever a strip depends on: strips under another key are not this job's."""
        # Not on_error: a strip that could be read whole is the same under both.
        parts = (
            *(__version__, torch.__version__, self.scene_fingerprint, self.bands, self.grid, self.tiling, self.ranges),
            *(self.nodata_policy, self.bundle.sha256, self.bundle.card),
            *(str(self.device), self.dtype, self.batch, self.views),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def pixels(self, strip: Strip) -> int:
        """Count the pixels of the grid that a strip's cores cover."""
        first, last = (next(self.tiling.chip_row(row)).core for row in (strip.chip_rows[0], strip.chip_rows[-1]))
        return int(last.row_off + last.height - first.row_off) * self.grid.shape[1]


class StripStore:
    """A folder of finished strips; several processes may write to it.

    Parameters
    ----------
    folder
        Of this job's strips and nothing else; it is made when it is missing.
    job
        What they are strips of.
    """

    def __init__(self, folder: Path, job: MapJob) -> None:
        self.folder = folder
        self.job = job
        with writing(folder):
            folder.mkdir(exist_ok=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06}.npz"

    def finished(self) -> set[int]:
        """Find the strips that are there and undamaged, and remove whatever else is in the folder."""
        indices = {self._path(index): index for index in range(len(self.job.strips))}
        finished = set()
        for path in list(self.folder.iterdir()):
            if path in indices and self._is_usable(path):
                finished.add(indices[path])
            else:
                path.unlink()
        return finished

    def _is_usable(self, path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as file:
                if file.testzip() is not None:
                    return False
        except (zipfile.BadZipFile, OSError):
            return False
        with np.load(path) as arrays:
            return self.job.on_error == "nodata" or not len(arrays["lost"])

    def save(self, index: int, part: Part, lost: set[tuple[int, int]]) -> None:
        """Put a strip into the folder, whole or not at all.

        Raises
        ------
        DiskError
            If the disk is full or the folder can't be written to.
        """
        # Two workers may be at the same strip: one that was thought lost, and the one that took its place.
        draft = self.folder / f"{index:06}.{uuid4().hex}"
        arrays: dict[str, Any] = {"labels": part.own.labels, "confidence": part.own.confidence}
        for side, sums in (("upper", part.upper), ("lower", part.lower)):
            arrays |= {f"{side}_{name}": tensor.numpy() for name, tensor in vars(sums).items()}
        arrays["lost"] = np.array(sorted(lost), dtype=np.int64).reshape(-1, 2)
        try:
            with writing(draft):
                with draft.open("wb") as file:
                    np.savez(file, **arrays)
                draft.replace(self._path(index))
        finally:
            draft.unlink(missing_ok=True)

    def has(self, index: int) -> bool:
        """Tell whether a strip is there; since `finished` was asked, no damaged one is."""
        return self._path(index).exists()

    def count_try(self, index: int) -> int:
        """Note that a strip is about to be computed, and count how often it was since `finished` was asked."""
        with writing(self.folder), (self.folder / f"{index:06}.tries").open("ab") as file:
            file.write(b".")
            return file.tell()

    def load(self, index: int) -> Part:
        """Read a finished strip."""
        with np.load(self._path(index)) as arrays:

            def sums(side: str) -> Sums:
                return Sums(*(torch.from_numpy(arrays[f"{side}_{name}"]) for name in ("levels", "weights", "valid")))

            return Part(sums("upper"), Rows(arrays["labels"], arrays["confidence"]), sums("lower"))

    def clear(self) -> None:
        """Remove the folder and all strips."""
        shutil.rmtree(self.folder)

    def lost(self) -> set[tuple[int, int]]:
        """Name the cells of the grid that could not be read; see `landseg.scene.SalvagedScene`."""
        cells: set[tuple[int, int]] = set()
        for index in range(len(self.job.strips)):
            with np.load(self._path(index)) as arrays:
                cells |= {(int(row), int(col)) for row, col in arrays["lost"]}
        return cells


def reading_threads(device: torch.device) -> int:
    """Say by how many threads to read: a GPU leaves the processors to them, a network on these does not."""
    return 2 if device.type == "cpu" else cores()


class Mapper:
    """Computes strips of a job by its network.

    Parameters
    ----------
    job
        What to map.
    network
        The job's.
    """

    def __init__(self, job: MapJob, network: PSPNet) -> None:
        self.job = job
        self.batch = job.batch
        card = job.bundle.card
        with telling_memory(job.device):
            on_swaths = OnSwaths(network, job.tiling.stride_px)
            self.predict = Predictor(on_swaths, job.device, job.dtype, temperature=card.temperature, views=job.views)
            self.normalise = Normalisation.of(job.ranges, card.mean, card.std, job.device)
            # One for all strips: torch keeps memory apart by stream.
            self.copying = torch.cuda.Stream(job.device) if job.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def answers(self, scene: RasterScene | SalvagedScene, strip: Strip) -> Iterator[tuple[Batch, Tensor]]:
        """Give the chips of a strip in batches with their probabilities, from top to bottom.

        Chips without a valid pixel are left out.

        Yields
        ------
        tuple
            A batch of M * n chips, and (M * n, K, S, S) float32 that sums to 1 over K, both on the job's device.

        Raises
        ------
        BundleError
            At the end, if the network has answered with NaN or infinity.
        """
        batches = read_batches(
            scene,
            self.job.tiling,
            batch=self.batch,
            chip_rows=strip.chip_rows,
            threads=reading_threads(self.job.device),
        )
        arriving = batches if self.copying is None else on_gpu(batches, self.copying)
        with closing(batches), closing(arriving):
            for batch in arriving:
                yield batch, self.predict.unchecked(self.normalise(batch.pixels, batch.valid))
        self.predict.check()

    def open_scene(self) -> RasterScene:
        """Open the job's scene on its grid."""
        job = self.job
        return RasterScene(job.info, job.bands, job.grid, nodata_policy=job.nodata_policy)

    def map_strip(self, index: int, advance: Advance) -> tuple[Part, set[tuple[int, int]]]:
        """Compute a strip.

        Returns
        -------
        tuple
            The strip, and the cells of the grid that could not be read; see `landseg.scene.SalvagedScene`.

        Raises
        ------
        SceneError
            If the scene can't be read and that is not to become nodata.
        ResourceError
            If memory runs out.
        """
        job = self.job
        strip = job.strips[index]
        parts: list[Part] = []
        left = job.pixels(strip)
        with telling_memory(job.device):
            mosaic = Mosaic(job.tiling, job.bundle.card.legend.class_ids, strip, job.device)
            with self.open_scene() as raster:
                scene = SalvagedScene(raster) if job.on_error == "nodata" else raster
                for batch, probabilities in self.answers(scene, strip):
                    parts += [mosaic.finish(row) for row in range(strip.chip_rows.start + len(parts), batch.chip_row)]
                    for answer in zip(batch.chips, probabilities, batch.valid_in_chips, strict=True):
                        mosaic.add(*answer)
                    advance(batch.core_px, len(batch.chips))
                    left -= batch.core_px
            parts += [mosaic.finish(row) for row in range(strip.chip_rows.start + len(parts), strip.chip_rows.stop)]
            part = Part.concatenate(parts)
        advance(left, 0)
        return part, scene.lost if isinstance(scene, SalvagedScene) else set()


Arrival = tuple[int, Part | None]
"""Index of a strip, and the strip itself where it is at hand; else it is in the store."""

Compute = Callable[[MapJob, StripStore, Sequence[int], Advance], Generator[Arrival, None, None]]
"""Computes strips into a store and tells of each when it is computed; all are there when it ends or is closed."""


def compute_here(
    job: MapJob, store: StripStore, indices: Sequence[int], advance: Advance
) -> Generator[Arrival, None, None]:
    """Compute strips in this process, one after the other; each is saved while the next one is computed."""
    if not indices:
        return
    mapper = Mapper(job, job.bundle.load_network())
    saving: Future[None] | None = None
    # However it is left, it waits for what is being saved.
    with ThreadPoolExecutor(1, thread_name_prefix="save") as pool:
        for index in indices:
            part, lost = mapper.map_strip(index, advance)
            if saving is not None:
                saving.result()
            saving = pool.submit(store.save, index, part, lost)
            yield index, part
        if saving is not None:
            saving.result()


def map_rows(
    job: MapJob, store: StripStore, compute: Compute, on_progress: ProgressCallback = lambda _: None
) -> Generator[Rows, None, None]:
    """Give the map's rows from top to bottom, computing the strips that the store lacks.

    Law: the rows depend neither on which strips the store held, nor on who computes the others in what order.

    Raises
    ------
    SceneError
        If the scene can't be read to its end.
    ResourceError
        If disk or memory run out.
    RunInterruptedError
        If a signal asked to stop; what is finished stays in the store.
    """
    finished = store.finished()
    count = len(job.strips)
    missing = [index for index in range(count) if index not in finished]
    progress = Progress("map", sum(job.pixels(job.strips[index]) for index in finished), job.grid.size)
    on_progress(progress)
    if finished:
        log.warning("going on with %d of %d strips done", len(finished), count)

    def advance(pixels: int, chips: int) -> None:
        nonlocal progress
        progress = replace(progress, done=progress.done + pixels, chips=progress.chips + chips)
        on_progress(progress)

    def parts(arriving: Generator[Arrival, None, None], stop: Stop) -> Iterator[Part]:
        def heed() -> None:
            if stop.is_asked:
                # Waits for what is under way.
                arriving.close()
                done = sum(map(store.has, range(count)))
                raise RunInterruptedError(
                    f"stopped with {done} of {count} strips done", "the same command goes on from there"
                )

        arrived: dict[int, Part | None] = {}
        for index in range(count):
            while index not in finished:
                arrived.update([next(arriving)])
                finished.update(arrived)
                heed()
            yield arrived.pop(index, None) or store.load(index)
        arrived.update(arriving)  # the last one may still be being saved
        heed()

    with Stop() as stop, closing(compute(job, store, missing, advance)) as arriving:
        yield from join(parts(arriving, stop), job.bundle.card.legend.class_ids)


class Stop:
    """Takes SIGINT and SIGTERM for a wish to stop when that is convenient; the second one interrupts at once."""

    def __init__(self) -> None:
        self.is_asked = False
        self._is_insisted = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python hears signals in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self._is_insisted and not isinstance(error, KeyboardInterrupt):
            # Libraries in C make an error of their own of an interruption.
            raise KeyboardInterrupt from error

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_asked:
            self._is_insisted = True
            raise KeyboardInterrupt
        self.is_asked = True
        log.warning("stopping when this strip is done; once more to stop at once")
