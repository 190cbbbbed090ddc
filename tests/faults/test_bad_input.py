"""Bad input gets one or two lines, the right exit code, and leaves nothing at the output path."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.shutil
from numpy.typing import NDArray

from landseg.model.bundle import CARD_FILE, WEIGHTS_FILE
from tests.conftest import DEMO_SCENE, Landseg, Outcome, SceneMaker

Refusal = Callable[..., Outcome]


@pytest.fixture
def refused(landseg: Landseg, small_bundle: Path, tmp_path: Path) -> Refusal:
    """Run on a scene; assert what holds of every refusal, and give the outcome."""
    out = tmp_path / "out"
    out.mkdir()

    def run(scene: Any, *options: Any, code: int, model: Any = small_bundle, to: Path | None = None) -> Outcome:
        outcome = landseg("run", scene, "--out", to or out / "map.gpkg", "--model", model, "--quiet", *options)
        assert outcome.code == code, outcome.err
        assert list(out.iterdir()) == []
        assert outcome.out == ""
        assert outcome.err.startswith("landseg: ")
        assert 1 <= len(outcome.err.splitlines()) <= 2
        assert "Traceback" not in outcome.err
        return outcome

    return run


@pytest.fixture
def scene(make_scene: SceneMaker, city: NDArray[np.uint8]) -> Path:
    return make_scene(city)


def test_a_missing_file(refused: Refusal, tmp_path: Path) -> None:
    assert "there is no scene" in refused(tmp_path / "no.tif", code=3).err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize(
    ("suffix", "command", "code"),
    [
        (".tif", ("run", "{}", "--out", "map.gpkg"), 3),
        (".tif", ("polygonize", "{}", "--out", "map.gpkg"), 3),
        (".tif", ("evaluate", "--scene", DEMO_SCENE, "--labels", "{}"), 3),
        (".gpkg", ("evaluate", "--scene", DEMO_SCENE, "--labels", "{}"), 3),
        (".yaml", ("run", DEMO_SCENE, "--out", "map.gpkg", "--config", "{}"), 2),
        (".yaml", ("batch", "{}"), 2),
        (".gpkg", ("report", "{}", "--out", "page.html"), 3),
        (".json", ("catalog", "list", "--catalog", "{}"), 3),
        (".json", ("catalog", "add", "{}", "--catalog", "catalog/catalog.json"), 3),
    ],
)
def test_a_device(
    landseg: Landseg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, command: tuple[str, ...], code: int
) -> None:
    """Of a pipe or /dev/zero the commands would never come to an end; /dev/null is as little a file."""
    monkeypatch.chdir(tmp_path)
    Path(f"null{suffix}").symlink_to(os.devnull)
    outcome = landseg(*(str(part).format(f"null{suffix}") for part in command))
    assert outcome.code == code
    assert f"null{suffix} is a pipe, a socket or a device, and no file" in outcome.err
    assert len(list(tmp_path.iterdir())) == 1


def test_not_a_raster(refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "notes.tif").write_text("notes")
    assert "notes.tif" in refused(tmp_path / "notes.tif", code=3).err


def test_a_truncated_file(refused: Refusal, scene: Path) -> None:
    os.truncate(scene, scene.stat().st_size * 2 // 3)
    assert "damaged" in refused(scene, code=3).err


def test_too_few_bands(refused: Refusal, make_scene: SceneMaker) -> None:
    assert "too few bands" in refused(make_scene(np.zeros((1, 60, 60), np.uint8)), code=3).err


def test_unnamed_bands(refused: Refusal, make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    path = make_scene(city.astype(np.uint16), colours=None)
    assert "--bands" in refused(path, code=3).err


def test_no_crs(refused: Refusal, make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    assert "--assume-crs" in refused(make_scene(city, crs=None), code=3).err


def test_pixels_of_another_size(refused: Refusal, make_scene: SceneMaker, city: NDArray[np.uint8]) -> None:
    from affine import Affine

    assert "--force-gsd" in refused(make_scene(city, transform=Affine(30, 0, 339000, 0, -30, 2784000)), code=3).err


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_nothing_but_nodata(refused: Refusal, make_scene: SceneMaker, dtype: str) -> None:
    path = make_scene(np.zeros((3, 100, 60), dtype), nodata=0)
    assert "no valid pixel" in refused(path, code=3).err


def test_a_missing_output_folder(refused: Refusal, scene: Path, tmp_path: Path) -> None:
    outcome = refused(scene, to=tmp_path / "no" / "map.gpkg", code=2)
    assert "mkdir -p" in outcome.err
    assert not (tmp_path / "no").exists()


def test_an_output_folder_that_can_t_be_written_to(refused: Refusal, scene: Path) -> None:
    # Not even root may make files there.
    assert "can't write" in refused(scene, to=Path("/proc/map.gpkg"), code=4).err


def test_an_unknown_kind_of_output(refused: Refusal, scene: Path, tmp_path: Path) -> None:
    assert ".gpkg" in refused(scene, to=tmp_path / "map.dwg", code=2).err


@pytest.mark.parametrize("name", ["map.gpkg", "map.tif", "map.qml", "map.json", "map.tif.aux.xml"])
def test_an_existing_output(landseg: Landseg, small_bundle: Path, scene: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    outcome = landseg("run", scene, "--out", tmp_path / "map.gpkg", "--model", small_bundle)
    assert outcome.code == 2
    assert "--overwrite" in outcome.err
    assert (tmp_path / name).read_text() == "precious"


def test_the_scene_itself_as_output(
    landseg: Landseg, small_bundle: Path, make_scene: SceneMaker, city: NDArray[np.uint8]
) -> None:
    scene = make_scene(city, name="map.tif")
    before = scene.read_bytes()
    outcome = landseg("run", scene, "--out", scene.with_suffix(".gpkg"), "--model", small_bundle, "--overwrite")
    assert outcome.code == 2
    assert "is a scene to be mapped" in outcome.err
    assert scene.read_bytes() == before


@pytest.mark.parametrize("command", ["run", "polygonize"])
def test_the_file_that_a_scene_is_a_part_of_as_output(
    landseg: Landseg, small_bundle: Path, make_scene: SceneMaker, city: NDArray[np.uint8], tmp_path: Path, command: str
) -> None:
    pixels = city if command == "run" else city[:1]
    path = tmp_path / "city.gpkg"
    rasterio.shutil.copy(make_scene(pixels, colours=None), path, driver="GPKG", TILE_FORMAT="PNG", RASTER_TABLE="ORTHO")
    before = path.read_bytes()
    model = ("--model", small_bundle, "--bands", "1,2,3") if command == "run" else ()
    outcome = landseg(command, f"GPKG:{path}:ORTHO", "--out", path, *model, "--overwrite")
    assert outcome.code == 2, outcome.err
    assert "is a scene to be mapped" in outcome.err or "is the raster itself" in outcome.err
    assert path.read_bytes() == before


def test_an_unknown_model(refused: Refusal, scene: Path) -> None:
    assert "pspnet-r50-dubai" in refused(scene, model="pspnet-r99", code=2).err


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def test_a_bundle_with_a_wrong_checksum(refused: Refusal, scene: Path, bundle: Path) -> None:
    with (bundle / WEIGHTS_FILE).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert "damaged" in refused(scene, model=bundle, code=3).err


@pytest.mark.parametrize("key", ["mlm:input", "mlm:output", "gsd", "landseg:architecture"])
def test_a_card_without_a_key(refused: Refusal, scene: Path, bundle: Path, key: str) -> None:
    card = json.loads((bundle / CARD_FILE).read_text())
    del card["properties"][key]
    (bundle / CARD_FILE).write_text(json.dumps(card))
    assert key in refused(scene, model=bundle, code=3).err


def test_weights_for_another_network(refused: Refusal, scene: Path, bundle: Path) -> None:
    card = json.loads((bundle / CARD_FILE).read_text())
    card["properties"]["landseg:architecture"]["backbone"] = "resnet34"
    (bundle / CARD_FILE).write_text(json.dumps(card))
    assert "lacks weights" in refused(scene, model=bundle, code=3).err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("overlap: 0.3\noverlop: 0.2\n", ["line 2, column 1", "'overlop'", "did you mean 'overlap'"]),
        ("overlap: much\n", ["line 1, column 1", "'overlap'", "'much'"]),
        ("overlap: [0.2\n", ["not YAML", "line 2"]),
        ("- overlap\n", ["holds no keys"]),
    ],
)
def test_a_config_with_a_fault(refused: Refusal, scene: Path, tmp_path: Path, text: str, expected: list[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    outcome = refused(scene, "--config", config, code=2)
    for part in expected:
        assert part in outcome.err


@pytest.mark.parametrize(("option", "value"), [("--overlap", "0.95"), ("--bands", "3,two"), ("--batch", "0")])
def test_an_option_with_a_wrong_value(refused: Refusal, scene: Path, option: str, value: str) -> None:
    assert option in refused(scene, option, value, code=2).err


def test_a_gpu_that_is_not_there(refused: Refusal, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in refused(scene, "--device", "cuda", code=4).err


def test_debug_shows_the_traceback(
    landseg: Landseg, tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from landseg import cli
    from landseg.errors import SceneError

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        sys, "argv", ["landseg", "run", str(tmp_path / "no.tif"), "--out", str(tmp_path / "a.gpkg"), "--debug"]
    )
    with pytest.raises(SceneError):
        cli.main()


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (KeyError("https://maps.org/a.tif?sig=secret"), 1, "internal error: KeyError: 'https://maps.org/a.tif'"),
        (MemoryError(), 4, "main memory does not suffice"),
    ],
)
def test_what_nobody_foresaw_is_told_in_words(
    landseg: Landseg, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: int, said: str
) -> None:
    def fail() -> None:
        raise fault

    monkeypatch.setattr("landseg.doctor.examine", fail)
    outcome = landseg("doctor")
    assert outcome.code == code
    assert said in outcome.err
    assert "secret" not in outcome.err
    assert "Traceback" not in outcome.err


def test_a_wrong_option(landseg: Landseg) -> None:
    assert landseg("run", "--no-such-option").code == 2


def test_what_is_no_part_of_an_earlier_map_is_not_replaced(
    landseg: Landseg, scene: Path, small_bundle: Path, tmp_path: Path
) -> None:
    options = ("--out", tmp_path / "ortho.gpkg", "--model", small_bundle, "--overwrite", "--quiet")
    shutil.copy(scene, tmp_path / "ortho.tif")
    outcome = landseg("run", scene, *options)
    assert outcome.code == 2
    assert "ortho.tif exists and is no part of an earlier map" in outcome.err
    assert (tmp_path / "ortho.tif").read_bytes() == scene.read_bytes()

    (tmp_path / "ortho.tif").unlink()
    assert landseg("run", scene, *options).code == 0
    assert landseg("run", scene, *options).code == 0
    (tmp_path / "ortho.png").write_text("mine")
    assert landseg("run", scene, *options, "--picture").code == 2
