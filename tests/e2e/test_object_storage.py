"""Maps of scenes on S3, written to S3: the installed command against a server that speaks its protocol, on loopback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from affine import Affine
from filelock import FileLock
from numpy.typing import NDArray
from pyarrow.fs import FileSelector, S3FileSystem

from landseg.catalog import open_catalog
from landseg.catalog.validation import validate
from landseg.checksums import checksum
from landseg.outputs.storage import StorageFolder
from landseg.scene.stamp import stamp_of
from tests.conftest import ROOT, Landseg, SceneMaker

SERVER = ROOT / ".venv-s3server"
"""moto needs an older dateutil than landseg's tests: it has an environment of its own, made by `make s3server`."""

PROGRAM = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""

READER = """
import json, sys
import boto3, requests
iam = boto3.client("iam", "us-east-1", endpoint_url=sys.argv[1], aws_access_key_id="a", aws_secret_access_key="b")
allowed = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}
iam.create_user(UserName="reader")
policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
iam.put_user_policy(UserName="reader", PolicyName="reads", PolicyDocument=policy)
key = iam.create_access_key(UserName="reader")["AccessKey"]
requests.post(sys.argv[1] + "/moto-api/reset-auth", data="0", timeout=20).raise_for_status()
print(key["AccessKeyId"], key["SecretAccessKey"])
"""
"""Has the server heed permissions, and prints the keys of somebody who may only read."""

LOCK = ".landseg-batch.lock"

WritePipeline = Callable[..., Path]

SECRET = "a-secret-that-no-one-may-see"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    if not (SERVER / "installed").exists():
        pytest.skip("there is no server of S3: make s3server")
    with subprocess.Popen(
        [SERVER / "bin/python", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@pytest.fixture
def storage(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3FileSystem:
    """Give the server as the command finds it: by variables of the environment alone; the bucket `maps` is empty."""
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    files = S3FileSystem(
        access_key="someone",
        secret_key=SECRET,
        endpoint_override=endpoint,
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )
    if any(info.path == "maps" for info in files.get_file_info(FileSelector(""))):
        files.delete_dir("maps")
    files.create_dir("maps")
    return files


@pytest.fixture
def scene(make_scene: SceneMaker, city: NDArray[np.uint8]) -> Path:
    return make_scene(city)


def upload(storage: S3FileSystem, path: str, content: bytes) -> None:
    with storage.open_output_stream(path) as file:
        file.write(content)


def names(storage: S3FileSystem) -> list[str]:
    found = storage.get_file_info(FileSelector("maps", recursive=True))
    return sorted(info.path for info in found if info.is_file)


def content_of(storage: S3FileSystem, path: str) -> bytes:
    with storage.open_input_file(path) as file:
        return bytes(file.read())


def run(scene: str, out: str, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, since GDAL and landseg read the environment when they start."""
    command = [sys.executable, "-m", "landseg", "run", scene, "--out", out, "--model", str(model), "--batch", "1"]
    return subprocess.run([*command, "--device", "cpu", *options], capture_output=True, text=True, check=False)


def test_a_scene_on_s3_is_another_one_when_it_is_replaced(storage: S3FileSystem, scene: Path) -> None:
    stamps = []
    for content in (scene.read_bytes(), scene.read_bytes() + b"\0"):
        upload(storage, "maps/in put/scene.tif", content)
        stamps.append(stamp_of("s3://maps/in put/scene.tif"))
    assert stamp_of("/vsis3/maps/in put/scene.tif") == stamps[1]
    assert [stamp[0] for stamp in stamps] == [scene.stat().st_size, scene.stat().st_size + 1]
    assert stamps[0][1] <= stamps[1][1]


def test_a_scene_on_s3_becomes_a_map_on_s3(
    storage: S3FileSystem, scene: Path, small_bundle: Path, landseg: Landseg, tmp_path: Path
) -> None:
    upload(storage, "maps/in put/scene.tif", scene.read_bytes())
    options = "--picture", "--qgis-project", "--work-folder", str(tmp_path / "work")
    done = run("s3://maps/in put/scene.tif", "s3://maps/city/landuse.gpkg", small_bundle, *options)
    assert done.returncode == 0, done.stderr
    suffixes = ("gpkg", "json", "png", "qgz", "qml", "tif", "tif.aux.xml")
    assert names(storage) == [*(f"maps/city/landuse.{suffix}" for suffix in suffixes), "maps/in put/scene.tif"]
    assert done.stdout.split()[-7:] == [
        f"s3://maps/city/landuse.{suffix}" for suffix in ("tif.aux.xml", "qml", "tif", "png", "qgz", "gpkg", "json")
    ]

    manifest = content_of(storage, "maps/city/landuse.json")
    item = json.loads(manifest)
    copy = tmp_path / "copy"
    for asset in item["assets"].values():
        copy.write_bytes(content_of(storage, f"maps/city/{asset['href']}"))
        assert asset["file:checksum"] == checksum(copy)
    assert item["links"][0]["href"] == "s3://maps/in put/scene.tif"
    assert SECRET not in manifest.decode() + done.stdout + done.stderr
    assert list((tmp_path / "work/maps/city").iterdir()) == []

    local = tmp_path / "local.gpkg"
    assert landseg("run", scene, "--out", local, "--model", small_bundle, "--batch", "1", "--device", "cpu").code == 0
    assert content_of(storage, "maps/city/landuse.tif") == local.with_suffix(".tif").read_bytes()


@pytest.fixture
def here(
    landseg: Landseg, small_bundle: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run in this process; give what was said on stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(out: str, *options: object, code: int, scene: object = scene) -> str:
        outcome = landseg("run", scene, "--out", out, "--model", small_bundle, "--quiet", "--batch", "1", *options)
        assert outcome.code == code, outcome.err
        assert SECRET not in outcome.err
        return outcome.err

    return run


def test_what_is_there_is_replaced_when_that_is_asked_for(storage: S3FileSystem, here: Callable[..., str]) -> None:
    out = "s3://maps/landuse.gpkg"
    upload(storage, "maps/landuse.gpkg", b"old")
    assert "s3://maps/landuse.gpkg exists already" in here(out, code=2)
    assert content_of(storage, "maps/landuse.gpkg") == b"old"
    here(out, "--overwrite", code=0)
    here(out, "--overwrite", code=0)
    upload(storage, "maps/landuse.png", b"mine")
    assert "landuse.png exists and is no part of an earlier map" in here(out, "--overwrite", "--picture", code=2)


def test_an_upload_that_fails_is_gone_on_with(
    storage: S3FileSystem, here: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from landseg.mapping import Advance, Mapper

    upload_all, map_strip, computed = StorageFolder.upload, Mapper.map_strip, []

    def cut_short(folder: StorageFolder, files: list[Path]) -> None:
        upload_all(folder, files[:2])
        if len(files) > 1:
            # As if the bucket had gone by then.
            upload_all(StorageFolder("gone", ""), files[2:])

    def counted(mapper: Mapper, index: int, advance: Advance) -> Any:
        computed.append(index)
        return map_strip(mapper, index, advance)

    monkeypatch.setattr(StorageFolder, "upload", cut_short)
    monkeypatch.setattr(Mapper, "map_strip", counted)
    out, work = "s3://maps/landuse.gpkg", tmp_path / "work"
    assert "no access to s3://gone" in here(out, "--work-folder", work, code=4)
    drafted = "maps/landuse.gpkg.landseg/landuse.json"
    assert names(storage) == [drafted, "maps/landuse.qml", "maps/landuse.tif.aux.xml"]
    assert list((work / "maps/landuse.gpkg.landseg").rglob("*.npz"))

    computed_before = len(computed)
    monkeypatch.setattr(StorageFolder, "upload", upload_all)
    here(out, "--work-folder", work, "--overwrite", code=0)
    assert len(computed) == computed_before > 0
    assert "maps/landuse.json" in names(storage)
    assert drafted not in names(storage)


def test_what_can_t_be_uploaded_is_refused_first(
    storage: S3FileSystem, here: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "there is no bucket typo" in here("s3://typo/landuse.gpkg", code=2)
    assert "nothing can be written to gs://" in here("gs://maps/landuse.gpkg", code=2)
    assert "AWS_" in here(f"s3://someone:{SECRET}@maps/landuse.gpkg", code=2)
    assert "a work folder is of no use" in here(str(tmp_path / "a.gpkg"), "--work-folder", tmp_path, code=2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "no access to s3://maps" in here("s3://maps/landuse.gpkg", code=4)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.fixture
def write_pipeline(
    make_scene: SceneMaker, city: NDArray[np.uint8], small_bundle: Path, tmp_path: Path
) -> WritePipeline:
    """Write a pipeline of two scenes beside it, whose maps go into the bucket."""
    for name, col in (("a", 0), ("b", 40)):
        make_scene(city[:, :48, col : col + 48], f"{name}.tif", transform=Affine(1, 0, 339000 + col, 0, -1, 2784000))

    def write(**keys: Any) -> Path:
        values = {"scenes": {"files": ["[ab].tif"]}, "out": "s3://maps/city/", "work_folder": "work", "batch": 1}
        path = tmp_path / "nightly.yaml"
        path.write_text(yaml.safe_dump(values | {"model": str(small_bundle), "device": "cpu"} | keys))
        return path

    return write


def statuses(storage: S3FileSystem) -> dict[str, str]:
    """Give what the report in the bucket says."""
    report = json.loads(content_of(storage, "maps/city/run.json"))
    return {entry["name"]: f"{entry['status']}: {entry['why']}" for entry in report["entries"]}


def written(storage: S3FileSystem) -> dict[str, int]:
    """Say when each map in the bucket was written."""
    found = storage.get_file_info(FileSelector("maps/city", recursive=True))
    return {info.path: info.mtime_ns for info in found if info.is_file and info.base_name != "run.json"}


def test_a_batch_keeps_its_maps_on_s3(
    storage: S3FileSystem, write_pipeline: WritePipeline, landseg: Landseg, tmp_path: Path
) -> None:
    """What is current is told by the bucket alone: the next night's machine is another one."""
    keys = {"name": "2026/{scene}", "merge": {}, "catalog": "catalog.json", "picture": True}
    command = [sys.executable, "-m", "landseg", "batch", str(write_pipeline(**keys)), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert statuses(storage) == dict.fromkeys(("2026/a", "2026/b", "region"), "mapped: new")
    suffixes = ("gpkg", "json", "png", "qml", "tif", "tif.aux.xml")
    products = [f"maps/city/{name}.{suffix}" for name in ("2026/a", "2026/b", "region") for suffix in suffixes]
    assert names(storage) == [*products, "maps/city/run.json"]
    assert {path.name for path in (tmp_path / "work").rglob("*") if path.is_file()} <= {"run.json", LOCK}

    local = {"out": str(tmp_path / "local"), "work_folder": None, "catalog": None}
    assert landseg("batch", write_pipeline(**keys | local), "--quiet").code == 0
    for name in ("2026/a.tif", "region.tif"):
        assert content_of(storage, f"maps/city/{name}") == (tmp_path / "local" / name).read_bytes()

    root = open_catalog(str(tmp_path / "catalog.json"))
    (item,) = [item for item in root.get_items(recursive=True) if item.id == "2026-a"]
    assert item.assets["raster"].href == "s3://maps/city/2026/a.tif"
    assert validate(root).faults == []

    before, added = written(storage), (tmp_path / "maps/2026-a/2026-a.json").stat().st_mtime_ns
    outcome = landseg("batch", write_pipeline(**keys, work_folder="elsewhere"), "--quiet")
    assert outcome.code == 0, outcome.err
    assert statuses(storage) == dict.fromkeys(("2026/a", "2026/b", "region"), "current: nothing changed")
    assert written(storage) == before
    assert (tmp_path / "maps/2026-a/2026-a.json").stat().st_mtime_ns == added


def test_what_changed_is_mapped_again_on_s3(
    storage: S3FileSystem, write_pipeline: WritePipeline, landseg: Landseg, tmp_path: Path
) -> None:
    path = write_pipeline()
    assert landseg("batch", path, "--quiet").code == 0
    os.utime(tmp_path / "a.tif", ns=(0, 0))
    storage.delete_file("maps/city/b.qml")
    shutil.rmtree(tmp_path / "work")
    before = names(storage), written(storage), content_of(storage, "maps/city/run.json")
    planned = landseg("batch", path, "--dry-run", "--json", "--quiet")
    entries = {entry["name"]: entry["why"] for entry in json.loads(planned.out)["entries"]}
    assert entries == {"a": "the scene changed", "b": "b.qml is missing"}
    assert (names(storage), written(storage), content_of(storage, "maps/city/run.json")) == before
    assert not (tmp_path / "work").exists()

    # Of the same size, as corrected polygons may be.
    corrected = bytearray(content_of(storage, "maps/city/b.gpkg"))
    corrected[-1] ^= 1
    upload(storage, "maps/city/b.gpkg", bytes(corrected))
    assert landseg("batch", path, "--quiet").code == 5
    found = statuses(storage)
    assert found["a"] == "mapped: the scene changed"
    assert found["b"].startswith("failed: s3://maps/city/b.gpkg was changed since it was made")
    assert content_of(storage, "maps/city/b.gpkg") == corrected


def test_a_batch_that_was_stopped_while_it_uploaded_goes_on_anywhere(
    storage: S3FileSystem, write_pipeline: WritePipeline, landseg: Landseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_all = StorageFolder.upload

    def stopped(folder: StorageFolder, files: list[Path]) -> None:
        upload_all(folder, [file for file in files if len(files) == 1 or file.suffix != ".json"])
        if len(files) > 1:
            raise KeyboardInterrupt

    for expected in ("mapped: new", "mapped: options changed: overlap"):
        keys = {"overlap": 0.5} if "overlap" in expected else {}
        monkeypatch.setattr(StorageFolder, "upload", stopped)
        assert landseg("batch", write_pipeline(**keys), "--quiet").code == 130
        assert statuses(storage) == dict.fromkeys("ab", "due: not reached")
        monkeypatch.setattr(StorageFolder, "upload", upload_all)
        outcome = landseg("batch", write_pipeline(**keys, work_folder="elsewhere"), "--quiet")
        assert outcome.code == 0, outcome.err
        assert statuses(storage) == dict.fromkeys("ab", expected)
        assert not [name for name in names(storage) if ".landseg" in name]


def test_a_batch_that_can_t_write_is_refused_first(
    storage: S3FileSystem,
    endpoint: str,
    write_pipeline: WritePipeline,
    landseg: Landseg,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def refusal(code: int, *options: str, **keys: Any) -> str:
        outcome = landseg("batch", write_pipeline(**keys), "--quiet", *options)
        assert outcome.code == code, outcome.err
        return outcome.err

    assert "there is no bucket typo" in refusal(2, out="s3://typo/city")
    assert "there is no bucket typo" in refusal(2, "--dry-run", out="s3://typo/city")
    assert "a map can't be called 'run' here" in refusal(2, merge={"name": "run"})
    assert "maps/../other.gpkg is not of the form" in refusal(2, out="s3://maps", merge={"name": "../other"})
    work = tmp_path / "work/maps/city"
    work.mkdir(parents=True)
    with FileLock(work / LOCK):
        assert "another batch is at work" in refusal(4)
    assert names(storage) == []

    keys = subprocess.check_output([SERVER / "bin/python", "-c", READER, endpoint], text=True).split()
    for name, key in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), keys, strict=True):
        monkeypatch.setenv(name, key)
    try:
        assert "no access to s3://maps/city" in refusal(4)
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data="inf", timeout=20)
    assert names(storage) == []
