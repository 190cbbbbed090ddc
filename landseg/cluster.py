"""A Dask cluster as who computes a job's strips: processes on this machine, or the workers of a running scheduler.

Each task is a strip: it reads its own pixels and may be done twice. The network goes to each worker once. Strips do not
travel: workers put them into the run's work folder, which all of them must see.
"""

import asyncio
import hashlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import dask
import torch
from distributed import (
    Client,
    Future,
    KilledWorker,
    LocalCluster,
    Reschedule,
    Worker,
    WorkerPlugin,
    as_completed,
    get_worker,
    wait,
)
from distributed.utils import get_mp_context

from landseg import __version__
from landseg.errors import LandsegError, MemoryLimitError, ResourceError, SceneError
from landseg.machine import cores
from landseg.mapping import Advance, Arrival, Compute, MapJob, Mapper, StripStore
from landseg.model.pspnet import PSPNet
from landseg.predict import DeviceName, Precision, choose_device, choose_precision
from landseg.scene import is_as_described

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

# Else every connection that comes or goes is news.
logging.getLogger("distributed").setLevel(logging.WARNING)

TRIES = 3
"""How often a strip may end its worker, or find too little memory, before it is given up; at last by single swaths."""

MORE_MEMORY = "give workers more memory, or a smaller --batch; the same command goes on from what is finished"

CONNECT_S = 10

LOST = (CancelledError, TimeoutError, OSError)
"""What a client raises whose scheduler is gone."""

SAME_SOFTWARE = "install the same landseg and torch on all machines, and start their workers anew"


def _software() -> str:
    """Name landseg and torch; sources are told apart by a digest, since the version stands still between releases."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py")):
        digest.update(f"{name}\0{(package / name).read_text(encoding='utf-8')}\0".encode())
    # Machines with and without a GPU have builds of their own, such as 2.15.0+cpu.
    return f"landseg {__version__} ({digest.hexdigest()[:8]}) with torch {torch.__version__.partition('+')[0]}"


SOFTWARE = _software()
"""What this process has imported: looked at now, since the files may be replaced under a worker that goes on."""


def compute_by_workers(workers: int) -> Compute:
    """Compute strips by some processes on this machine, which share its cores."""
    return _compute_by(partial(_local_client, workers), are_ours=True)


def compute_by_scheduler(address: str) -> Compute:
    """Compute strips by the workers of the scheduler at an address such as ``tcp://host:8786``."""
    return _compute_by(partial(_connected, address), are_ours=False)


def _compute_by(connect: Callable[[], AbstractContextManager[Client]], *, are_ours: bool) -> Compute:
    """Compute strips by a cluster that is asked for when there is a strip to compute."""

    def compute(
        job: MapJob, store: StripStore, indices: Sequence[int], advance: Advance
    ) -> Generator[Arrival, None, None]:
        if indices:
            with connect() as client:
                yield from _compute(client, job, store, indices, advance, are_ours=are_ours)

    return compute


def survey(address: str, device: DeviceName, precision: Precision) -> tuple[torch.device, torch.dtype]:
    """Find the device and the type to compute in that all workers of a scheduler have.

    Raises
    ------
    ResourceError
        If there is no scheduler or no worker, the workers differ, or one has another landseg or torch.
    """
    with _connected(address) as client:
        answers = _ask(client, _chosen, device, precision)
    for worker, (software, *_) in answers.items():
        if software != SOFTWARE:
            raise _other_software(worker, software, SOFTWARE)
    found = {(chosen, dtype) for _, chosen, dtype in answers.values()}
    if len(found) > 1:
        raise ResourceError(
            f"the workers of {address} are not alike: {', '.join(sorted(f'{d} in {t}' for d, t in found))}",
            "start them on machines of one kind, or say which --device and --precision",
        )
    return found.pop()


async def _chosen(device: DeviceName, precision: Precision) -> tuple[str, torch.device, torch.dtype]:
    chosen = choose_device(device)
    return SOFTWARE, chosen, choose_precision(precision, chosen)


def _other_software(worker: str, has: str, wanted: str) -> ResourceError:
    return ResourceError(f"the worker {worker} has {has}, and this command {wanted}", SAME_SOFTWARE)


def _ask(client: Client, function: Callable[..., Coroutine[Any, Any, Answer]], *arguments: object) -> dict[str, Answer]:
    """Have the workers answer, by their addresses; those that go away meanwhile are left out.

    Raises
    ------
    LandsegError
        A worker's own.
    ResourceError
        If a worker can't answer, or none is left, or the scheduler is gone.
    """
    try:
        answers = client.run(function, *arguments, on_error="return")
    except LOST as error:
        raise ResourceError("the Dask scheduler was lost", "is it running still?") from error
    for worker, answer in answers.items():
        if isinstance(answer, LandsegError):
            raise type(answer)(f"the worker {worker}: {answer.what}", answer.hint)
        if isinstance(answer, Exception) and not isinstance(answer, OSError):
            raise ResourceError(f"the worker {worker} can't answer: {answer}", SAME_SOFTWARE)
    answers = {worker: answer for worker, answer in answers.items() if not isinstance(answer, OSError)}
    if not answers:
        raise ResourceError("the scheduler's workers are gone", "the same command goes on when there are some again")
    return answers


@contextmanager
def _local_client(workers: int) -> Generator[Client, None, None]:
    # Forked workers are born with torch imported, instead of each taking seconds for it; Windows can't.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with dask.config.set({"distributed.worker.multiprocessing-method": method}):
        if method == "forkserver":
            get_mp_context().set_forkserver_preload(["distributed", __name__])
            _start_forkserver()
        threads = max(1, cores() // workers)
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=threads, memory_limit=0, dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client


def _start_forkserver() -> None:
    """Have workers born deaf to SIGTERM: systemd sends it to all processes, and the client says when to stop."""
    resource_tracker.ensure_running()  # its start, a part of the other's, would unblock the signal
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def _connected(address: str) -> Generator[Client, None, None]:
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Dask scheduler answers at {address}", "is it running, and the address right?"
        ) from error
    with client:
        if not client.nthreads():
            raise ResourceError(f"the scheduler at {address} has no workers", "start some: dask worker " + address)
        yield client


class _Strips(WorkerPlugin):
    """What a worker holds of a job. Strips take turns on it: one fills the cores, or the GPU."""

    def __init__(self, job: MapJob, network: PSPNet, folder: Path, *, are_ours: bool) -> None:
        # The same pixels may be on their way to another place.
        self.name = f"landseg-{job.key}-{uuid4().hex}"
        self.job = job
        self.network = network
        self.folder = folder
        self.are_ours = are_ours
        self.software = SOFTWARE
        self.threads = 1

    def setup(self, worker: Worker) -> None:
        """Take over the worker's share of the cores."""
        self.place = f"{worker.address} on {socket.gethostname()}"
        self.threads = worker.state.nthreads
        self.turn = threading.Lock()
        self.mapper: Mapper | None = None
        if self.are_ours and threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches all processes of the terminal; the client says when to stop.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    @cached_property
    def refusal(self) -> LandsegError | None:
        """Say what speaks against computing strips on this worker, if anything does."""
        if self.software != SOFTWARE:
            return _other_software(self.place, SOFTWARE, self.software)
        if not os.access(self.folder, os.F_OK):
            return ResourceError(
                f"the worker {self.place} does not see {self.folder}", "write to a folder that all workers share"
            )
        if not is_as_described(self.job.info):
            return SceneError(
                f"the worker {self.place} sees no scene {self.job.info.path}, or another one",
                "put it where all workers see the same file, and start again if it was replaced",
            )
        return None

    def map_strip(self, index: int) -> int:
        """Put a strip into the store, if it is not there, and give the number of chips computed."""
        with self.turn:
            # Of a worker that came late.
            if self.refusal is not None:
                raise self.refusal
            torch.set_num_threads(self.threads)
            store = StripStore(self.folder, self.job)
            if store.has(index):
                # A worker was lost before its answer was fetched, but not the strip.
                return 0
            tries = store.count_try(index)
            if tries > TRIES:
                raise MemoryLimitError(f"strip {index} ended its worker {TRIES} times", MORE_MEMORY)
            counted = 0

            def count(_pixels: int, chips: int) -> None:
                nonlocal counted
                counted += chips

            try:
                if self.mapper is None:
                    self.mapper = Mapper(self.job, self.network)
                self.mapper.batch = self.job.batch if tries < TRIES else 1
                store.save(index, *self.mapper.map_strip(index, count))
            except (MemoryError, MemoryLimitError) as error:
                if tries < TRIES:
                    log.warning("strip %d found too little memory; trying it again", index)
                    # The scheduler chooses anew: another worker, if one is free.
                    raise Reschedule from error
                raise MemoryLimitError(f"strip {index} found too little memory {TRIES} times", MORE_MEMORY) from error
            return counted


async def _refusal(name: str, dask_worker: Worker) -> LandsegError | None:
    plugin = dask_worker.plugins.get(name)
    # Disks may be slow, and a worker has to stay in touch.
    return None if plugin is None else await asyncio.to_thread(lambda: cast("_Strips", plugin).refusal)


def _map_strip(name: str, index: int) -> int:
    plugin = cast("_Strips", get_worker().plugins[name])
    try:
        return plugin.map_strip(index)
    except LandsegError as error:
        told = type(error)(error.what, error.hint)
    # Raised anew, without the errors that led to it: GDAL's can't be sent.
    raise told


def _register(client: Client, plugin: _Strips) -> None:
    """Give all workers, also those that come later, what they need; raise what speaks against one that is there."""
    # Registering does not say which worker has no landseg.
    _ask(client, _refusal, plugin.name)
    for attempt in range(1, TRIES + 1):
        try:
            client.register_plugin(plugin)
            client.forward_logging("landseg", logging.WARNING)
            break
        except OSError:
            # A worker went away meanwhile, or the scheduler.
            if attempt == TRIES:
                raise
    for refusal in _ask(client, _refusal, plugin.name).values():
        if refusal is not None:
            raise refusal


def _compute(
    client: Client, job: MapJob, store: StripStore, indices: Sequence[int], advance: Advance, *, are_ours: bool
) -> Generator[Arrival, None, None]:
    # Links are left as they are: they may lead elsewhere on the workers' machines.
    if Path(job.info.path).exists():
        job = replace(job, info=replace(job.info, path=str(Path(job.info.path).absolute())))
    plugin = _Strips(job, job.bundle.load_network(), store.folder.absolute(), are_ours=are_ours)
    upcoming = iter(indices)
    running: dict[Future[int], int] = {}

    def idle() -> range:
        workers = len(client.nthreads())
        if not workers:
            log.warning("no worker is left; waiting for one to join")
        # A strip waits for it.
        return range(max(1, workers) - len(running))

    def submit(index: int) -> Future[int]:
        future: Future[int] = client.submit(_map_strip, plugin.name, index, key=f"{plugin.name}-{index}", pure=False)
        running[future] = index
        return future

    try:
        _register(client, plugin)
        arriving = as_completed([submit(index) for _, index in zip(idle(), upcoming, strict=False)])
        for future in arriving:
            index = running.pop(future)
            if isinstance(future.exception(), KilledWorker):
                # It may have died of another strip; this one's tries are counted.
                running[future] = index
                future.retry()
                arriving.add(future)
                continue
            advance(job.pixels(job.strips[index]), future.result())
            for _, upcoming_index in zip(idle(), upcoming, strict=False):
                arriving.add(submit(upcoming_index))
            yield index, None
    except LOST as error:
        raise ResourceError("the Dask scheduler was lost", "the same command goes on from what is finished") from error
    finally:
        with suppress(*LOST):
            # What is under way is worth waiting for, unless the user insists.
            if client.nthreads():
                wait(list(running))
            # A worker may have been refused before; another run that shares the scheduler may have ended the other.
            with suppress(ValueError):
                client.unregister_worker_plugin(plugin.name)
            with suppress(ValueError):
                client.unforward_logging("landseg")
