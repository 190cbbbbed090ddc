"""Outputs that appear complete or not at all.

Products are drafted in ``<out>.landseg/``, beside their final places so that renaming them is atomic, and renamed when
all are done. What a run can go on from stays there when it fails. A lock beside that folder keeps a second run from
the same output.
"""

import errno
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from filelock import FileLock, Timeout

from landseg.errors import DiskError, OutputExistsError, ResourceError, UsageError

LONGEST_NAME = 200
"""Bytes of an output's name: file systems take 255, and drafts of it need some more than it has."""


class Drafts:
    """The work folder of one run; a context manager that leaves nothing behind but finished products.

    After an error the folder stays if ``kept`` has something in it, and so does that, for a run that gives it the same
    name.

    Parameters
    ----------
    main
        Final path of the run's main product; the work folder is named after it.
    kept
        Name of a folder in the work folder for what a later run can go on from. What an earlier run kept under another
        name goes; without a name of one's own it is another's, and one is refused.

    Raises
    ------
    ResourceError
        On entering, if another process is at work on the same output, or the folder can't be written to.
    OutputExistsError
        On entering, if an interrupted run has kept something there and there is no ``kept``, or it is a link.
    """

    def __init__(self, main: Path, kept: str | None = None) -> None:
        self.main = main
        self.folder = main.with_name(main.name + ".landseg")
        self.kept = self.folder / (kept or "kept")
        self._goes_on = kept is not None
        self._lock = FileLock(main.with_name(f".{main.name}.lock"))
        self._owner = main.with_name(f".{main.name}.owner")

    def __enter__(self) -> Self:
        with writing(self.folder):
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise ResourceError(
                    f"{self.main} is being written by {self._read_owner()}", "wait for it, or choose another --out"
                ) from error
            try:
                # Whoever shares the folder may have put links there: neither is written through, nor cleared.
                self._owner.unlink(missing_ok=True)
                with self._owner.open("x", encoding="utf-8") as file:
                    file.write(f"process {os.getpid()} on {socket.gethostname()}")
                self.folder.mkdir(exist_ok=True)
                for folder in (self.folder, self.kept):
                    if folder.is_symlink():
                        raise OutputExistsError(f"{folder} is a link, and no work folder", "remove it")
                if not self._goes_on and any(path.is_dir() for path in self.folder.iterdir()):
                    raise OutputExistsError(
                        f"{self.main} belongs to a run that was interrupted; {self.folder} holds its finished strips",
                        "run that again, delete the folder, or choose another --out",
                    )
                # What a killed run left: its lock went with it.
                self._clear_drafts()
            except (OSError, OutputExistsError):
                self._release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._clear_drafts()
        self._release()

    def _clear_drafts(self) -> None:
        """Remove all but what is kept for a later run."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink() and path != self.kept:
                shutil.rmtree(path, ignore_errors=True)
            elif path != self.kept:
                path.unlink()

    def _release(self) -> None:
        # Folders that hold nothing that is kept go, too.
        with suppress(OSError):
            self.kept.rmdir()
        with suppress(OSError):
            self.folder.rmdir()
        self._owner.unlink(missing_ok=True)
        # While it is held: afterwards it may be another run's. One that waits for it sees that it is gone. Windows
        # removes no file that is open.
        with suppress(PermissionError):
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _read_owner(self) -> str:
        try:
            return self._owner.read_text(encoding="utf-8")
        except FileNotFoundError:
            return "another process"

    def path(self, final: Path) -> Path:
        """Give the place where a product is drafted."""
        return self.folder / final.name

    def publish(self, finals: Sequence[Path]) -> None:
        """Move drafts to their final places, in the order given; the last one to appear is the last named.

        Raises
        ------
        OutputExistsError
            If another program has changes of a file that it replaces still beside it.
        DiskError
            If the folder can't be written to.
        """
        for final in finals:
            _check_journals(final)
        for final in finals:
            with writing(final):
                self.path(final).replace(final)


def _check_journals(path: Path) -> None:
    """Refuse to replace a GeoPackage that has changes beside it: SQLite would put them into the new one."""
    for journal in (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")):
        if journal.exists() and journal.stat().st_size:
            raise OutputExistsError(
                f"{path} has changes of another program beside it, {journal.name}",
                "close it there, in QGIS for example; if no program has it open, open and close it once",
            )


def check_writable(main: Path, products: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse, before anything is computed, what could not be written at the end.

    Raises
    ------
    UsageError
        If the folder is missing, the name is too long or a product's place is taken by a folder.
    OutputExistsError
        If a product exists and ``overwrite`` is False, or has changes beside it that are not in it yet.
    DiskError
        If the folder can't be written to.
    """
    folder = main.parent
    if len(os.fsencode(main.name)) > LONGEST_NAME:
        raise UsageError(f"the output's name {main.name} is too long", f"take one of at most {LONGEST_NAME} bytes")
    if not folder.is_dir():
        raise UsageError(f"the output folder {folder} does not exist", f"make it first: mkdir -p {folder}")
    # The one that was asked for by name comes first.
    for product in (main, *products):
        if product.is_dir():
            raise UsageError(f"the output {product} is a folder", "give a file name")
        if product.exists() and not overwrite:
            raise OutputExistsError(f"{product} exists already", "replace it with --overwrite, or choose another --out")
        _check_journals(product)
    with writing(folder):
        probe = folder / f".landseg-{os.getpid()}"
        probe.touch()
        probe.unlink()


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise `DiskError` where a file system has less room than is needed."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DiskError(
            f"the disk of {folder} has {free / 1e9:.2f} GB free; up to {needed_bytes / 1e9:.2f} GB are needed",
            "make room, or choose another --out",
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises
    ------
    DiskError
        If it can't be written.
    """
    with drafted(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Give the place of a draft beside a path, and rename it when it is complete.

    Raises
    ------
    DiskError
        If it can't be written.
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with writing(path):
            yield draft
            draft.replace(path)
    finally:
        # Where its folder is none there is nothing to remove, and what went wrong before counts.
        with suppress(OSError):
            draft.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write at a path into `DiskError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskError(f"the disk is full: can't write {path}", "make room and run it again") from error
        raise DiskError(
            f"can't write {path}: {error.strerror or error}", "choose another --out, or ask for write permission"
        ) from error
