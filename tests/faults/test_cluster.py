"""Whoever computes the strips, the map is the same; workers may die."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from distributed import Client, LocalCluster, WorkerPlugin
from numpy.typing import NDArray

from landseg import cluster as landseg_cluster
from landseg.config import RunConfig
from landseg.errors import MemoryLimitError, ResourceError, SceneError, UsageError
from landseg.mapping import Advance, Mapper, Progress, StripStore
from landseg.run import Plan, build_plan, execute, map_job
from tests.conftest import Landseg, SceneMaker


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landseg_cluster, "cores", lambda: 1)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Give two workers in processes of their own."""
    with landseg_cluster._local_client(2) as client:
        yield client.cluster


@pytest.fixture
def plan(make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path) -> Plan:
    config = RunConfig(model=str(small_bundle), device="cpu", batch=1, overwrite=True)
    return build_plan(str(make_scene(np.tile(city, (1, 6, 2)))), tmp_path / "map.gpkg", config)


@pytest.fixture
def expected(plan: Plan) -> bytes:
    return execute(plan).outputs.raster.read_bytes()


def planned(plan: Plan, **options: object) -> Plan:
    return build_plan(plan.info.path, plan.outputs.polygons, plan.config.model_copy(update=options))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_make_the_same_map(plan: Plan, expected: bytes, workers: int) -> None:
    assert execute(planned(plan, workers=workers)).outputs.raster.read_bytes() == expected


def test_a_worker_that_is_killed_costs_nothing_but_time(plan: Plan, expected: bytes, cluster: LocalCluster) -> None:
    killed: list[int] = []
    with Client(cluster) as client:

        def kill(progress: Progress) -> None:
            if progress.chips > 40 and not killed:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        result = execute(planned(plan, scheduler=cluster.scheduler_address), kill)
    assert killed
    assert result.outputs.raster.read_bytes() == expected


class Restart(logging.Handler):
    """Starts a worker when landseg says that it waits for one."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__()
        self.cluster = cluster

    def emit(self, record: logging.LogRecord) -> None:
        if "no worker is left" in record.getMessage():
            self.cluster.scale(1)


def stop_all(cluster: LocalCluster, client: Client) -> None:
    cluster.scale(0)
    while client.nthreads():
        time.sleep(0.01)


def test_a_run_waits_for_a_worker_when_none_is_left(plan: Plan, expected: bytes) -> None:
    stopped: list[int] = []
    with landseg_cluster._local_client(1) as client:

        def stop(progress: Progress) -> None:
            if progress.chips and not stopped:
                stopped.append(progress.chips)
                stop_all(client.cluster, client)

        restart = Restart(client.cluster)
        logging.getLogger("landseg").addHandler(restart)
        try:
            result = execute(planned(plan, scheduler=client.cluster.scheduler_address), stop)
        finally:
            logging.getLogger("landseg").removeHandler(restart)
    assert stopped
    assert result.outputs.raster.read_bytes() == expected


def die(*_: object, **__: object) -> None:
    os._exit(1)


@pytest.mark.parametrize("asked", ["_chosen", "_Strips.setup"])
def test_a_worker_that_dies_when_it_is_asked_is_done_without(
    plan: Plan, expected: bytes, cluster: LocalCluster, asked: str
) -> None:
    with Client(cluster) as client:
        doomed = next(iter(client.nthreads()))

        def make_deadly() -> None:
            owner = landseg_cluster._Strips if "." in asked else landseg_cluster
            setattr(owner, asked.rpartition(".")[2], die)

        client.run(make_deadly, workers=[doomed])
        result = execute(planned(plan, scheduler=cluster.scheduler_address))
        assert doomed not in client.nthreads()
    assert result.outputs.raster.read_bytes() == expected


@pytest.mark.parametrize(
    ("has", "says"),
    [
        ("other sources", r"the worker tcp://\S+ has landseg \S+ \(\w+\) with torch \S+, and this command landseg"),
        ("no landseg", r"the worker tcp://\S+ can't answer: .*No module named 'landseg'"),
    ],
)
def test_a_worker_without_the_same_landseg_is_refused(plan: Plan, tmp_path: Path, has: str, says: str) -> None:
    installed = tmp_path / "installed"
    sources = Path(landseg_cluster.__file__).parent
    shutil.copytree(sources, installed / "landseg", ignore=shutil.ignore_patterns("__pycache__"))
    with (installed / "landseg/__init__.py").open("a") as file:
        absent = "raise ModuleNotFoundError(\"No module named 'landseg'\")"
        file.write(absent if has == "no landseg" else "# as of another day")
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
        options = "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path)
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, *options]
        environment = os.environ | {"PYTHONPATH": str(installed)}
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment) as worker:
            try:
                client.wait_for_workers(1, timeout=60)
                with pytest.raises(ResourceError, match=says):
                    planned(plan, scheduler=cluster.scheduler_address)
            finally:
                worker.kill()


class Outdated(WorkerPlugin):
    """Makes every worker have another landseg."""

    name = "outdated"

    def setup(self, worker: object) -> None:  # noqa: ARG002
        landseg_cluster.SOFTWARE = "landseg 0.0.9 (01234567) with torch 2.0.0"


def test_a_worker_that_comes_late_is_refused_too(plan: Plan, cluster: LocalCluster) -> None:
    with Client(cluster) as client:

        def replace_all(progress: Progress) -> None:
            if progress.chips:
                stop_all(cluster, client)
                client.register_plugin(Outdated())
                cluster.scale(1)

        with pytest.raises(ResourceError, match=f"on {socket.gethostname()} has landseg 0.0.9"):
            execute(planned(plan, scheduler=cluster.scheduler_address), replace_all)


def test_a_worker_that_sees_another_scene_is_refused(
    plan: Plan, cluster: LocalCluster, make_scene: SceneMaker, city: NDArray[np.uint8]
) -> None:
    believing = planned(plan, scheduler=cluster.scheduler_address)
    make_scene(np.tile(city, (1, 6, 2)), compress="deflate")
    with pytest.raises(SceneError, match=rf"the worker tcp://\S+ on {socket.gethostname()} sees no scene"):
        execute(believing)


def test_a_worker_that_does_not_see_the_folder_is_refused(plan: Plan, cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        client.run(lambda: setattr(os, "access", lambda *_: False))
    with pytest.raises(ResourceError, match=rf"on {socket.gethostname()} does not see"):
        execute(planned(plan, scheduler=cluster.scheduler_address))


def test_workers_follow_links_by_themselves(plan: Plan, expected: bytes, cluster: LocalCluster, tmp_path: Path) -> None:
    # They lead elsewhere on other machines; on this one, later.
    here, there, share = tmp_path / "here", tmp_path / "there", tmp_path / "share"
    here.mkdir()
    shutil.copy(plan.info.path, here)
    share.symlink_to(here)
    config = plan.config.model_copy(update={"scheduler": cluster.scheduler_address})
    linked = build_plan(str(share / "scene.tif"), share / "map.gpkg", config)
    # A single one has nothing under way when a strip of its has come.
    with Client(cluster) as client:
        client.retire_workers(list(client.nthreads())[1:])

    def move(progress: Progress) -> None:
        if progress.chips and not there.exists():
            here.rename(there)
            share.unlink()
            share.symlink_to(there)

    assert execute(linked, move).outputs.raster.read_bytes() == expected


class Poison(WorkerPlugin):
    """Makes every worker die of strip 2, or run out of memory, as long as it takes that many chips at once."""

    name = "poison"

    def __init__(self, deadly_batch: int, error: Exception | None = None) -> None:
        self.deadly_batch = deadly_batch
        self.error = error

    def setup(self, worker: object) -> None:  # noqa: ARG002
        map_strip, deadly_batch, error = Mapper.map_strip, self.deadly_batch, self.error

        def poisoned(mapper: Mapper, index: int, advance: Advance) -> Any:
            if index == 2 and mapper.batch >= deadly_batch:
                if error is not None:
                    raise error
                os._exit(1)
            logging.getLogger("landseg").warning("strip %d is on its way", index)
            return map_strip(mapper, index, advance)

        Mapper.map_strip = poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [None, MemoryError()], ids=["killed", "memory"])
def test_a_strip_that_ends_workers_is_tried_with_one_swath_at_a_time(
    plan: Plan, cluster: LocalCluster, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    with Client(cluster) as client:
        client.register_plugin(Poison(2, error))
    with rasterio.open(execute(planned(plan, batch=2)).outputs.raster) as file:
        expected = file.read(1)
    caplog.clear()
    result = execute(planned(plan, batch=2, scheduler=cluster.scheduler_address))
    with rasterio.open(result.outputs.raster) as file:
        assert (file.read(1) == expected).mean() > 0.999
    assert "strip 0 is on its way" in caplog.text
    assert caplog.text.count("strip 2 found too little memory; trying it again") == (2 if error else 0)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (None, "strip 2 ended its worker 3 times"),
        (MemoryLimitError("memory does not suffice"), "strip 2 found too little memory 3 times"),
    ],
    ids=["killed", "memory"],
)
def test_a_strip_that_ends_every_worker_is_given_up_and_the_rest_is_kept(
    plan: Plan, cluster: LocalCluster, error: Exception | None, says: str
) -> None:
    with Client(cluster) as client:
        client.register_plugin(Poison(1, error))
    with pytest.raises(MemoryLimitError, match=says):
        execute(planned(plan, scheduler=cluster.scheduler_address))
    kept = {path.stem for path in plan.outputs.polygons.parent.rglob("*.npz")}
    # No strip is begun after one was given up; strip 3 may or may not have been.
    assert {"000000", "000001"} <= kept
    assert "000002" not in kept


class DeathAfterStrip(WorkerPlugin):
    """Makes every worker die that has put strip 1 into the store, before it can say so."""

    name = "death after strip"

    def setup(self, worker: object) -> None:  # noqa: ARG002
        save = StripStore.save

        def deadly(store: StripStore, index: int, *strip: Any) -> None:
            save(store, index, *strip)
            if index == 1:
                os._exit(1)

        StripStore.save = deadly  # type: ignore[method-assign]


def test_a_finished_strip_is_not_computed_again_when_its_worker_s_answer_is_lost(
    plan: Plan, expected: bytes, cluster: LocalCluster
) -> None:
    with Client(cluster) as client:
        client.register_plugin(DeathAfterStrip())
    result = execute(planned(plan, scheduler=cluster.scheduler_address))
    assert result.outputs.raster.read_bytes() == expected


def test_two_runs_of_a_scene_may_share_a_scheduler(plan: Plan, cluster: LocalCluster, tmp_path: Path) -> None:
    config = plan.config.model_copy(update={"scheduler": cluster.scheduler_address})
    plans = [build_plan(plan.info.path, tmp_path / f"{name}.gpkg", config) for name in ("first", "second")]
    # Signals are heard in the main thread alone, which neither needs.
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(execute, plans)
    assert first.outputs.raster.read_bytes() == second.outputs.raster.read_bytes()


def test_a_worker_s_error_reaches_the_user(plan: Plan, cluster: LocalCluster) -> None:
    Path(plan.info.path).write_bytes(Path(plan.info.path).read_bytes()[:200_000])
    doomed = planned(plan, scheduler=cluster.scheduler_address)
    with pytest.raises(SceneError, match="damaged or out of reach"):
        execute(doomed)


def test_the_network_runs_where_and_as_the_workers_can(plan: Plan, cluster: LocalCluster) -> None:
    chosen = planned(plan, scheduler=cluster.scheduler_address, device="auto")
    assert (chosen.device, chosen.dtype) == (plan.device, plan.dtype)
    assert map_job(chosen).key == map_job(plan).key


def test_no_scheduler(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landseg_cluster, "CONNECT_S", 0.2)
    with pytest.raises(ResourceError, match="no Dask scheduler answers at tcp://127"):
        planned(plan, scheduler="tcp://127.0.0.1:1")


def test_a_scheduler_has_workers_of_its_own(plan: Plan) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        planned(plan, scheduler="tcp://127.0.0.1:1", workers=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "systemd's stop"])
def test_a_signal_to_all_processes_stops_them_at_the_next_strip(
    plan: Plan, landseg: Landseg, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out" / "map.gpkg"
    out.parent.mkdir()
    model = plan.config.model
    options = "run", plan.info.path, "--out", str(out), "--model", model, "--batch", "1", "--workers", "2"
    command = [sys.executable, "-m", "landseg", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.parent.rglob("*.npz")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    os.killpg(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "strips done" in err
    assert "Traceback" not in err
    assert "Restarting" not in err
    assert [path.name for path in out.parent.iterdir()] == ["map.gpkg.landseg"]
