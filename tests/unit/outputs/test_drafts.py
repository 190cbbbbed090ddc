import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from landseg.errors import DiskError, OutputExistsError, ResourceError, UsageError
from landseg.outputs.drafts import Drafts, check_space, check_writable, write_text, writing


def test_nothing_appears_before_publication(tmp_path: Path) -> None:
    finals = [tmp_path / "a.tif", tmp_path / "a.gpkg"]
    with Drafts(finals[1]) as drafts:
        for final in finals:
            drafts.path(final).write_text("whole")
            assert not final.exists()
        drafts.publish(finals)
        assert [final.read_text() for final in finals] == ["whole", "whole"]
    assert sorted(tmp_path.iterdir()) == sorted(finals)


def fail(final: Path) -> None:
    """Begin to write a product and fail."""

    def write() -> None:
        with Drafts(final) as drafts:
            drafts.path(final).write_text("half")
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        write()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    fail(tmp_path / "a.gpkg")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_product_stays_until_it_is_replaced(tmp_path: Path) -> None:
    final = tmp_path / "a.gpkg"
    final.write_text("old")
    fail(final)
    assert final.read_text() == "old"


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_changes_that_are_not_in_a_product_yet_are_not_put_into_the_new_one(tmp_path: Path, suffix: str) -> None:
    final, journal = tmp_path / "a.gpkg", tmp_path / f"a.gpkg{suffix}"
    final.write_text("old")
    journal.touch()
    check_writable(final, [final], overwrite=True)
    journal.write_text("changes")
    with pytest.raises(OutputExistsError, match=f"changes of another program beside it, {journal.name}"):
        check_writable(final, [final], overwrite=True)
    with Drafts(final) as drafts:
        for product in (raster := tmp_path / "a.tif", final):
            drafts.path(product).write_text("new")
        with pytest.raises(OutputExistsError):
            drafts.publish([raster, final])
    assert (final.read_text(), journal.read_text()) == ("old", "changes")
    assert not raster.exists()


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    final = tmp_path / "a.gpkg"
    with Drafts(final) as first:
        first.path(final).write_text("whole")
        with pytest.raises(ResourceError, match=f"process {os.getpid()} on ") as caught, Drafts(final):
            pass
        assert caught.value.exit_code == 4
        first.publish([final])
    assert final.read_text() == "whole"


def test_a_lock_that_is_released_is_not_taken_from_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, release, runs = tmp_path / "a.gpkg", FileLock.release, ExitStack()

    def release_and_be_followed(lock: FileLock) -> None:
        release(lock)
        monkeypatch.undo()
        runs.enter_context(Drafts(final))

    monkeypatch.setattr(FileLock, "release", release_and_be_followed)
    with Drafts(final):
        pass
    with runs, pytest.raises(ResourceError, match="is being written"), Drafts(final):
        pass


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    final = tmp_path / "a.gpkg"
    (tmp_path / "a.gpkg.landseg").mkdir()
    (tmp_path / "a.gpkg.landseg" / "old.tif").write_text("half")
    with Drafts(final) as drafts:
        assert list(drafts.folder.iterdir()) == []


def test_what_an_interrupted_run_kept_is_left_to_it(tmp_path: Path) -> None:
    final = tmp_path / "a.gpkg"
    strips = tmp_path / "a.gpkg.landseg/key/strip.npz"
    strips.parent.mkdir(parents=True)
    strips.touch()
    with pytest.raises(OutputExistsError, match=r"a\.gpkg\.landseg holds its finished strips"), Drafts(final):
        pass
    assert strips.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "a.gpkg.landseg"]
    with Drafts(final, kept="key") as drafts:
        assert list(drafts.kept.iterdir()) == [strips]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_product_needs_overwrite(tmp_path: Path) -> None:
    final = tmp_path / "a.gpkg"
    final.touch()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_writable(final, [final], overwrite=False)
    check_writable(final, [final], overwrite=True)


def test_a_missing_folder(tmp_path: Path) -> None:
    final = tmp_path / "no" / "a.gpkg"
    with pytest.raises(UsageError, match="does not exist"):
        check_writable(final, [final], overwrite=False)


def test_a_folder_in_a_product_s_place(tmp_path: Path) -> None:
    (tmp_path / "a.gpkg").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_writable(tmp_path / "a.gpkg", [tmp_path / "a.gpkg"], overwrite=True)


def test_a_text_whose_folder_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "maps").touch()
    with pytest.raises(DiskError, match="can't write"):
        write_text(tmp_path / "maps" / "run.json", "{}")


def test_a_name_that_leaves_no_room_for_drafts_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("ü" * 120 + ".gpkg")
    with pytest.raises(UsageError, match="too long"):
        check_writable(long, [long], overwrite=False)


def test_the_check_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.gpkg", [tmp_path / "a.gpkg"], overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(DiskError, match="are needed"):
        check_space(tmp_path, 10**18)


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied")])
def test_refusals_of_the_operating_system(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(DiskError, match=message), writing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))


@pytest.mark.skipif(os.name == "nt", reason="links take rights there")
@pytest.mark.parametrize("linked", ["a.gpkg.landseg", "a.gpkg.landseg/strips"])
def test_a_work_folder_that_is_a_link_is_not_cleared(tmp_path: Path, linked: str) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "precious").write_text("precious")
    link = tmp_path / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(others)
    with pytest.raises(OutputExistsError, match="is a link"), Drafts(tmp_path / "a.gpkg", kept="strips"):
        pass
    assert (others / "precious").read_text() == "precious"


@pytest.mark.skipif(os.name == "nt", reason="links take rights there")
def test_no_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.gpkg.owner").symlink_to("precious")
    with Drafts(tmp_path / "a.gpkg"):
        assert (tmp_path / ".a.gpkg.owner").read_text().startswith("process")
    assert (tmp_path / "precious").read_text() == "precious"
