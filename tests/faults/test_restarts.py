"""A run that is killed or stopped goes on from its finished strips and ends in the same bytes."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import tifffile
import torch
from numpy.typing import NDArray

from landseg.config import RunConfig
from landseg.errors import RunInterruptedError, SceneError
from landseg.mapping import Advance, Mapper, Progress
from landseg.outputs.paths import OutputPaths
from landseg.run import Plan, _fitted, build_plan, execute, map_job
from tests.conftest import Landseg, SceneMaker, write_vrt

Start = Callable[[], BaseProcess]
RGB_IN_WORDS = [f"<ColorInterp>{colour}</ColorInterp>" for colour in ("Red", "Green", "Blue")]


@pytest.fixture
def scene(make_scene: SceneMaker, city: NDArray[np.uint8]) -> Path:
    return make_scene(np.tile(city, (1, 6, 2)), tiled=True, blockxsize=64, blockysize=64)


@pytest.fixture
def config(small_bundle: Path) -> RunConfig:
    # Strips of 16 chips.
    return RunConfig(model=str(small_bundle), device="cpu", batch=1)


@pytest.fixture
def undisturbed(scene: Path, config: RunConfig, tmp_path: Path) -> OutputPaths:
    (tmp_path / "undisturbed").mkdir()
    return execute(build_plan(str(scene), tmp_path / "undisturbed" / "map.gpkg", config)).outputs


def assert_same(outputs: OutputPaths, expected: OutputPaths) -> None:
    assert outputs.raster.read_bytes() == expected.raster.read_bytes()
    polygons, others = (geopandas.read_file(paths.polygons, layer="landuse") for paths in (outputs, expected))
    assert polygons.equals(others)
    assert not outputs.polygons.with_name(outputs.polygons.name + ".landseg").exists()


def run(scene: Path, out: Path, config: RunConfig) -> None:
    execute(build_plan(str(scene), out, config))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Give processes that need not import torch first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["landseg.run"])
    return context


def test_five_kills_at_random_moments(
    scene: Path, config: RunConfig, undisturbed: OutputPaths, processes: ForkServerContext, tmp_path: Path
) -> None:
    out = tmp_path / "map.gpkg"
    arguments = scene, out, config.model_copy(update={"overwrite": True})
    moments = random.Random(0)
    begin = time.monotonic()
    run(*arguments)
    usual_s = time.monotonic() - begin
    kills = 0
    while kills < 5:
        process = processes.Process(target=run, args=arguments)
        process.start()
        process.join(usual_s * moments.random())
        kills += process.is_alive()
        process.kill()
        process.join()
    run(*arguments)
    assert_same(OutputPaths.of(out), undisturbed)


def test_finished_strips_are_not_computed_again(
    scene: Path, config: RunConfig, undisturbed: OutputPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build_plan(str(scene), tmp_path / "map.gpkg", config)
    map_strip, computed = Mapper.map_strip, []

    def fourth_fails(mapper: Mapper, index: int, advance: Advance) -> Any:
        if len(computed) == 3:
            raise SceneError("the scene has vanished")
        computed.append(index)
        return map_strip(mapper, index, advance)

    monkeypatch.setattr(Mapper, "map_strip", fourth_fails)
    with pytest.raises(SceneError, match="vanished"):
        execute(plan)
    assert computed == [0, 1, 2]
    finished = sorted(tmp_path.rglob("*.npz"))
    assert len(finished) == 3
    # As a power cut may leave them, in spite of their names: one cut short, one with a hole.
    finished[1].write_bytes(finished[1].read_bytes()[:-1000])
    content = bytearray(finished[2].read_bytes())
    content[len(content) // 2] ^= 255
    finished[2].write_bytes(content)

    computed.clear()
    monkeypatch.setattr(Mapper, "map_strip", lambda *given: (computed.append(given[1]), map_strip(*given))[1])
    progress: list[Progress] = []
    outputs = execute(plan, progress.append).outputs
    assert computed == list(range(1, len(map_job(plan).strips)))
    done = [step.done for step in progress if step.stage == "map"]
    assert 0 < done[0] < done[-1] == plan.grid.size
    assert_same(outputs, undisturbed)


@pytest.fixture
def damaged(make_scene: SceneMaker, city: NDArray[np.uint8]) -> Path:
    """Give the scene with a block of 64 px in its middle that can't be decoded: rows 320-383, columns 128-191."""
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": "pixel"}
    path = make_scene(np.tile(city, (1, 6, 2)), "damaged.tif", **layout)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0].aspage()
        offset = page.dataoffsets[5 * -(-300 // 64) + 2]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 1000)
    return path


def test_a_damaged_block_stops_the_run_or_becomes_nodata(
    damaged: Path, config: RunConfig, undisturbed: OutputPaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "map.gpkg"
    with pytest.raises(SceneError, match="damaged"):
        execute(build_plan(str(damaged), out, config))
    assert not out.exists()
    kept = list(tmp_path.glob("map.gpkg.landseg/*/*.npz"))
    assert kept

    result = execute(build_plan(str(damaged), out, config.model_copy(update={"on_error": "nodata"})))

    assert result.manifest["properties"]["landseg:lost_windows"] == [[128, 320, 64, 32], [128, 352, 64, 32]]
    assert f"going on with {len(kept)} of" in caplog.text
    assert "4,096 pixels" in caplog.text
    with rasterio.open(out.with_suffix(".tif")) as file, rasterio.open(undisturbed.raster) as whole:
        labels, expected = file.read(1), whole.read(1)
    hole = np.zeros_like(labels, dtype=np.bool_)
    hole[320:384, 128:192] = True
    assert ((labels == 0) == hole).all()
    # Where no chip that touches the hole reaches, nothing has changed.
    assert (labels[:272] == expected[:272]).all()
    assert (labels[432:] == expected[432:]).all()


def test_damage_that_was_let_pass_is_not_let_pass_later(
    damaged: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "map.gpkg"
    monkeypatch.setattr("landseg.outputs.vector.write_layer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(build_plan(str(damaged), out, config.model_copy(update={"on_error": "nodata"})))
    with pytest.raises(SceneError, match="damaged"):
        execute(build_plan(str(damaged), out, config))


def test_a_scene_of_which_nothing_can_be_read_is_not_taken_for_an_empty_one(
    make_scene: SceneMaker, city: NDArray[np.uint8], config: RunConfig, tmp_path: Path
) -> None:
    path = make_scene(city, compress="deflate")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0].aspage()
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(b"\xff" * size)
    with pytest.raises(SceneError, match="damaged or out of reach") as caught:
        execute(build_plan(str(path), tmp_path / "map.gpkg", config.model_copy(update={"on_error": "nodata"})))
    assert caught.type is SceneError


def test_strips_of_another_run_are_not_used(scene: Path, config: RunConfig, tmp_path: Path) -> None:
    def key(**changes: object) -> str:
        plan = build_plan(str(scene), tmp_path / "map.gpkg", config.model_copy(update=changes))
        return map_job(plan).key

    assert key() == key() == key(min_area=50.0, simplify=1.0, picture=True, on_error="nodata")
    others = {key(overlap=0.5), key(bands=(3, 2, 1)), key(views=2), key(nodata_policy="any"), key(batch=2)}
    others |= {key(precision="bf16"), key(precision="fp32")}
    assert len({key()} | others) == 7  # auto is one of the two precisions
    before = key()
    os.utime(scene, (1, 1))
    assert key() != before


def test_strips_of_another_model_or_grid_are_not_used(scene: Path, config: RunConfig, tmp_path: Path) -> None:
    job = map_job(build_plan(str(scene), tmp_path / "map.gpkg", config))
    bundle = job.bundle
    jobs = [
        job,
        replace(job, bundle=replace(bundle, sha256="0" * 64)),
        replace(job, bundle=replace(bundle, card=replace(bundle.card, temperature=2.0))),
        replace(job, grid=job.grid.shrunk(100)),
        replace(job, ranges=((0.0, 100.0),) * 3),
        replace(job, device=torch.device("meta")),
    ]
    assert len({one.key for one in jobs}) == len(jobs)


def test_strips_are_gone_on_with_whatever_memory_is_free_now(scene: Path, small_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.gpkg"

    def planned() -> Plan:
        return build_plan(str(scene), out, RunConfig(model=str(small_bundle), device="cpu", max_memory=1e12))

    # As many as a GPU takes.
    roomy = replace(planned(), batch=64)
    assert _fitted(roomy).batch == 64
    # As when little was free.
    (out.with_name("map.gpkg.landseg") / map_job(replace(roomy, batch=16)).key).mkdir(parents=True)
    assert _fitted(roomy).batch == 16


def test_a_scene_is_the_same_however_its_path_is_spelt(
    scene: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene.parent)
    write_vrt(scene.with_suffix(".vrt"), [(scene, band, RGB_IN_WORDS[band - 1]) for band in (1, 2, 3)])
    for name in (scene.name, scene.with_suffix(".vrt").name):
        spellings = (str(scene.parent / name), name, f"../{scene.parent.name}/{name}")
        assert len({build_plan(path, tmp_path / "map.gpkg", config).scene_fingerprint for path in spellings}) == 1


def test_strips_of_a_mosaic_are_not_used_once_a_tile_has_changed(
    scene: Path, config: RunConfig, tmp_path: Path
) -> None:
    bands = [(scene, band, RGB_IN_WORDS[band - 1]) for band in (1, 2, 3)]
    mosaic = write_vrt(tmp_path / "mosaic.vrt", bands)

    def key() -> str:
        return map_job(build_plan(str(mosaic), tmp_path / "map.gpkg", config)).key

    before = key()
    assert key() == before
    os.utime(scene, (1, 1))
    assert key() != before


def test_a_signal_in_the_last_strip_stops_as_well(
    scene: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build_plan(str(scene), tmp_path / "map.gpkg", config)
    last = len(plan.strips) - 1
    map_strip = Mapper.map_strip

    def interrupted(mapper: Mapper, index: int, advance: Advance) -> Any:
        if index == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return map_strip(mapper, index, advance)

    monkeypatch.setattr(Mapper, "map_strip", interrupted)
    with pytest.raises(RunInterruptedError, match=f"stopped with {last + 1} of {last + 1} strips done"):
        execute(plan)
    assert not plan.outputs.manifest.exists()


def test_a_second_signal_stops_at_once_whatever_a_library_makes_of_it(
    scene: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insisted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object type") from None

    monkeypatch.setattr(Mapper, "map_strip", insisted)
    with pytest.raises(RunInterruptedError, match="nothing was written"):
        execute(build_plan(str(scene), tmp_path / "map.gpkg", config))


def test_a_signal_stops_the_command_at_the_next_strip(
    scene: Path, config: RunConfig, undisturbed: OutputPaths, small_bundle: Path, landseg: Landseg, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "map.gpkg"
    out.parent.mkdir()
    options = "run", str(scene), "--out", str(out), "--model", str(small_bundle), "--batch", "1", "--device", "cpu"
    process = subprocess.Popen([sys.executable, "-m", "landseg", *options], stderr=subprocess.PIPE, text=True)
    while not list(out.parent.rglob("*.npz")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "strips done" in err
    assert "goes on from there" in err
    assert "Traceback" not in err
    assert [path.name for path in out.parent.iterdir()] == ["map.gpkg.landseg"]

    outcome = landseg(*options)
    assert outcome.code == 0
    assert_same(OutputPaths.of(out), undisturbed)
