"""Law 8: what is at a final path is complete, whatever stops a run: a signal, a full disk, an error at any step."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from landseg.config import RunConfig
from landseg.errors import RunInterruptedError
from landseg.mapping import Progress
from landseg.outputs.drafts import Drafts
from landseg.run import build_plan, execute
from tests.conftest import Landseg, SceneMaker


@pytest.fixture
def scene(make_scene: SceneMaker, city: NDArray[np.uint8]) -> Path:
    return make_scene(city)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "map.gpkg"


def left(out: Path) -> list[str]:
    """Name what is beside the output's place but for finished strips."""
    return [path.name for path in out.parent.rglob("*") if path.suffix != ".npz" and not list(path.glob("**/*.npz"))]


STEPS = [
    "run.map_rows",
    "outputs.vector.polygonize",
    "outputs.vector.write_layer",
    "outputs.picture.draw_picture",
    "run.write_manifest",
]


@pytest.mark.parametrize(
    ("error", "seen"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, RunInterruptedError)], ids=["error", "Ctrl-C"]
)
@pytest.mark.parametrize("step", STEPS)
def test_an_error_at_any_step_leaves_finished_strips_alone(
    scene: Path,
    out: Path,
    small_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
    seen: type[BaseException],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"landseg.{step}", fail)
    with pytest.raises(seen):
        execute(build_plan(str(scene), out, RunConfig(model=str(small_bundle), picture=True)))
    assert left(out) == []
    assert bool(list(out.parent.rglob("*.npz"))) == (step != "run.map_rows")


@pytest.mark.parametrize("moment", ["map", "raster", "polygons", "outputs"])
def test_an_interruption_at_any_stage_leaves_what_was_there(
    scene: Path, out: Path, small_bundle: Path, moment: str
) -> None:
    plan = build_plan(str(scene), out, RunConfig(model=str(small_bundle), overwrite=True))
    execute(plan)
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}

    def interrupt(progress: Progress) -> None:
        if progress.stage == moment:
            raise KeyboardInterrupt

    with pytest.raises(RunInterruptedError, match="goes on"):
        execute(plan, interrupt)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir() if path.is_file()} == before


def test_the_manifest_appears_last(scene: Path, out: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    publish = Drafts.publish

    def watch(drafts: Drafts, finals: list[Path]) -> None:
        for final in finals:
            publish(drafts, [final])
            seen.append(sorted(path.name for path in out.parent.iterdir() if path.is_file() and path.name[0] != "."))

    monkeypatch.setattr(Drafts, "publish", watch)
    execute(build_plan(str(scene), out, RunConfig(model=str(small_bundle))))
    assert seen[-1] == ["map.gpkg", "map.json", "map.qml", "map.tif", "map.tif.aux.xml"]
    assert all("map.json" not in names for names in seen[:-1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of its own with 4 MB of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small file system to fill up")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_without_room_is_refused_at_once(
    landseg: Landseg, make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, small_disk: Path
) -> None:
    scene = make_scene(np.tile(city, (1, 15, 10)))
    outcome = landseg("run", scene, "--out", small_disk / "map.gpkg", "--model", small_bundle)
    assert outcome.code == 4
    assert "are needed" in outcome.err
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("room", [0, 30_000, 400_000, 1_300_000])
def test_a_disk_that_fills_up(
    landseg: Landseg,
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    small_bundle: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    monkeypatch.setattr("landseg.run.check_space", lambda *_: None)
    (small_disk / "ballast").write_bytes(os.urandom(4 * 2**20 - room))
    scene = make_scene(np.tile(city, (1, 4, 4)))
    outcome = landseg("run", scene, "--out", small_disk / "map.gpkg", "--model", small_bundle, "--quiet")
    assert outcome.code == 4, outcome.err
    assert "disk" in outcome.err
    assert left(small_disk / "map.gpkg") == ["ballast"]

    (small_disk / "ballast").unlink()
    outcome = landseg("run", scene, "--out", small_disk / "map.gpkg", "--model", small_bundle, "--quiet")
    assert outcome.code == 0, outcome.err
