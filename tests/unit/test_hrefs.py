import os
import socket
import sys
from pathlib import Path

import pytest

from landseg.errors import SceneError
from landseg.hrefs import check_plain, from_folder, hide_secrets, is_remote, s3_endpoint, stem


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@x.org/a.tif", "https://x.org/a.tif"),
        ("can't read https://x.org/a.tif?sig=1&k=2: the file", "can't read https://x.org/a.tif: the file"),
        ("'https://x.org/a.tif?k=1', '/vsicurl/http://y/b?c'", "'https://x.org/a.tif', '/vsicurl/http://y/b'"),
        ("/vsicurl?header.Authorization=Bearer%20x&url=y", "/vsicurl"),
        ("https://x.org/a@2x.tif is new? yes", "https://x.org/a@2x.tif is new? yes"),
        ("no answer from x.org: /search?token=1&k=2 (refused)", "no answer from x.org: /search (refused)"),
        ("a.tif, s3://bucket/b.tif", "a.tif, s3://bucket/b.tif"),
        ("https://user:p@ss@host/a.tif", "https://host/a.tif"),
        ("https://x.org/a.tif?sig=a'b&se=2", "https://x.org/a.tif"),
        ("https://x.org/a.tif#token=1 is gone", "https://x.org/a.tif is gone"),
        ("/vsicurl?header.Authorization=Bearer xyz&url=https://x.org/a.tif", "/vsicurl"),
    ],
)
def test_secrets_of_urls_are_hidden(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown


def test_errors_show_no_secrets() -> None:
    error = SceneError("no https://x.org/a.tif?sig=1", "ask https://me:pass@x.org")
    assert (str(error), error.hint) == ("no https://x.org/a.tif\n  ask https://x.org", "ask https://x.org")


def test_names_of_files() -> None:
    assert stem("https://x.org/maps/a.b.tif?sig=1.2/3") == "a.b"
    assert stem("imagery/city.tif") == "city"


def test_what_leads_off_the_machine() -> None:
    assert is_remote("s3://bucket/a.tif")
    assert is_remote("/vsicurl/https://x.org/a.tif")
    assert not is_remote("/data/a.tif")


def test_local_files_are_named_from_a_document_s_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tif").touch()
    assert from_folder(str(tmp_path / "data" / "a.tif"), tmp_path / "out") == "../data/a.tif"
    assert from_folder("https://x.org/a.tif", tmp_path) == "https://x.org/a.tif"
    assert from_folder(str(tmp_path / "data" / ".." / "data" / "a.tif"), None) == str(tmp_path / "data" / "a.tif")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_that_is_a_link_is_left_from_where_it_leads_to(tmp_path: Path) -> None:
    scene, out, link = tmp_path / "data/a.tif", tmp_path / "far/away", tmp_path / "link"
    for folder in (scene.parent, out):
        folder.mkdir(parents=True)
    scene.touch()
    link.symlink_to(out, target_is_directory=True)
    assert from_folder(str(scene), link) == "../../data/a.tif"
    assert (link / from_folder(str(scene), link)).exists()


def test_the_server_of_s3_is_the_one_that_amazon_s_tools_would_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert s3_endpoint() is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all.example:9000")
    assert s3_endpoint() == ("http", "all.example:9000", "", "", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    assert s3_endpoint() == ("https", "s3.example", "", "", "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_what_might_be_read_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("zeros").symlink_to("/dev/zero")
    Path("file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "zeros", "socket"):
            with pytest.raises(SceneError, match=f"{name} is a pipe, a socket or a device"):
                check_plain(name, SceneError)
    for name in ("file", ".", "gone", "https://x.org/pipe"):
        check_plain(name, SceneError)
