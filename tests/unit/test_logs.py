import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from landseg.logs import FACTS, log_to_stderr

log = logging.getLogger("landseg.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("landseg")
    handlers, level = root.handlers, ours.level
    yield
    root.handlers = handlers
    ours.setLevel(level)


def tell() -> None:
    log.info("reading %s", "https://me:pass@x.org/a.tif?sig=1", extra={FACTS: {"event": "start", "url": "s3://b?k=1"}})
    try:
        raise ValueError("no https://x.org/b?sig=2")
    except ValueError:
        log.exception("failed")


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=False, quiet=False)
    tell()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["landseg: reading https://x.org/a.tif", "landseg: failed"]
    assert lines[-1] == "ValueError: no https://x.org/b"


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=True, quiet=False)
    tell()
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "message": "reading https://x.org/a.tif", "event": "start", "url": "s3://b"}
    assert second["level"] == "error"
    assert "sig=2" not in second["traceback"]


def test_quiet_leaves_what_went_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=False, quiet=True)
    tell()
    assert capsys.readouterr().err.startswith("landseg: failed\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_the_work_outlives_its_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=False, quiet=False)
    full = Path("/dev/full").open("w")  # noqa: SIM115
    monkeypatch.setattr("sys.stderr", full)
    log.info("nobody reads this")
    monkeypatch.setattr("sys.stderr", None)
    log.info("nor this")
    assert capsys.readouterr().out == ""
    with suppress(OSError):
        full.close()
