import io

import pytest

from landseg.mapping import Progress
from landseg.outputs import ClassArea
from landseg.terminal import duration, print_areas, print_pairs, print_plan, show_progress


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations_are_said_as_people_do(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=True) as update:
        update(Progress("map", 1, 2, 3))
    assert capsys.readouterr() == ("", "")


def test_plain_lines_go_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("landseg.terminal.time.monotonic", lambda: float(next(clock)))
    with show_progress(quiet=False) as update:
        update(Progress("map", 0, 4_000_000, 0))
        update(Progress("map", 1_000_000, 4_000_000, 50))
        update(Progress("map", 4_000_000, 4_000_000, 200))
        update(Progress("raster"))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "landseg: mapping"
    assert lines[1].startswith("landseg: mapping: 25 %, ")
    for unit in ("chips/s", "Mpx/s", "left"):
        assert unit in lines[1]
    assert lines[2:] == ["landseg: writing the raster"]


@pytest.mark.parametrize(
    ("last", "expected"),
    [(Progress("map", 50, 100, 5), ["mapping", "50 %"]), (Progress("polygons"), ["drawing polygons"])],
)
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, last: Progress, expected: list[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr", terminal)
    with show_progress(quiet=False) as update:
        update(Progress("map", 0, 100, 0))
        update(last)
    for text in expected:
        assert text in terminal.getvalue()


def test_the_class_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_areas([ClassArea(1, "building", 123_456.0, 0.25, 1234, 81.4), ClassArea(2, "[park]", 0.0, 0.0, 0, None)])
    heading, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heading == ["class", "area", "(ha)", "share", "polygons", "confidence"]
    assert first == ["building", "12.3", "25.0%", "1,234", "81", "%"]
    assert second == ["[park]", "0.0", "0.0%", "0"]


@pytest.mark.parametrize(
    ("n_bytes", "seconds", "size", "time"),
    [(3e5, 0.3, "1 MB", "under 1 s"), (28.4e6, 1, "28 MB", "about 1 s"), (2.345e9, None, "2.35 GB", "unknown")],
)
def test_a_plan_is_told_in_units_that_fit(
    capsys: pytest.CaptureFixture[str], n_bytes: float, seconds: float | None, size: str, time: str
) -> None:
    grid = {"rows": 4438, "cols": 6447, "gsd_m": 0.5, "crs": "EPSG:32640", "resampled": False}
    chips = {"count": 1, "chip_px": 240, "overlap_px": 60}
    sizes = dict.fromkeys(("memory_bytes", "budget_bytes", "disk_bytes"), n_bytes)
    names = {"scene": "a.tif", "model": "m", "bands": [1], "device": "cpu", "precision": "float32"}
    print_plan({**names, **sizes, "grid": grid, "chips": chips, "work_folder": "w", "outputs": []}, seconds)
    out = capsys.readouterr().out
    assert "6,447 x 4,438 px of 0.5 m" in out
    assert f"up to {size} of {size} allowed" in out
    assert f"up to {size}, in w" in out
    assert time in out


def test_values_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs({"scene": "a[b].tif"})
    assert capsys.readouterr().out.split() == ["scene", "a[b].tif"]
