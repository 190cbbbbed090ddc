"""Faces on disk: written in the order in which they are finished, read in the order of their numbers."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from landseg.errors import DiskError
from landseg.polygons.assemble import Rings
from landseg.polygons.compiled import kernel


class Run(NamedTuple):
    """Consecutive faces whose records are written.

    Parameters
    ----------
    first
        Face that it begins with.
    offsets, sizes
        (N,) int64 and int32, in words: where each face's record begins, and how long it is.
    """

    first: int
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]


class Spool:
    """A file of the records of faces; a context manager that removes it.

    Of faces that were given in batches nothing is held.

    Parameters
    ----------
    path
        Where it is, until it is closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        # Of each face from the first one on, as in `Run`; a size of 0 says that it is not written.
        self._first = 1
        self._offsets = np.zeros(0, np.int64)
        self._sizes = np.zeros(0, np.int32)
        self._lock = threading.Lock()
        self._written = self._given = 1

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        finally:
            self._path.unlink(missing_ok=True)

    def write(self, rings: Rings) -> None:
        """Append the records of faces; in any thread.

        Raises
        ------
        DiskError
            If the disk is full.
        """
        if not len(rings.faces):
            return
        with self._lock:
            try:
                self._file.write(rings.words.data)
                self._file.flush()
            except OSError as error:
                raise DiskError(f"can't write {self._path}: {error.strerror}", "make room and run it again") from error
            self._make_room(int(rings.faces[-1]) + 1)
            places = rings.faces - self._first
            self._offsets[places] = rings.offsets[:-1] + self._size
            self._sizes[places] = np.diff(rings.offsets)
            self._size += len(rings.words)

    def _make_room(self, stop: int) -> None:
        """Make room for faces before ``stop``, and let go of those that were given."""
        if stop - self._first <= len(self._sizes):
            return
        first = self._given
        # For as many again, so that those that stay are not moved with every strip.
        room = 2 * (stop - first)
        offsets, sizes = self._offsets[first - self._first :], self._sizes[first - self._first :]
        self._first, self._offsets, self._sizes = first, np.zeros(room, np.int64), np.zeros(room, np.int32)
        self._offsets[: len(offsets)] = offsets
        self._sizes[: len(sizes)] = sizes

    def batches(self, words: int, *, rest: bool = False) -> Iterator[Run]:
        """Divide the faces into runs of at most so many words each, but of one face at least.

        Runs do not depend on when they are asked for. Each is given once, as soon as its faces and the one after it are
        written; those at the end when ``rest`` is asked for.
        """
        with self._lock:
            first, offsets, sizes = self._first, self._offsets, self._sizes
        self._written = first + _first_unwritten(sizes, self._written - first)
        while self._given < self._written:
            start = self._given - first
            stop = _stop(sizes, start, self._written - first, words)
            if first + stop == self._written and not rest:
                return
            yield Run(self._given, offsets[start:stop].copy(), sizes[start:stop].copy())
            self._given = first + stop

    def read(self, run: Run) -> Rings:
        """Give the records of faces; in any thread."""
        gathered = np.concatenate(([0], np.cumsum(run.sizes, dtype=np.int64)))
        # No more than what these need: the file may be growing.
        words = np.memmap(self._path, np.int32, mode="r", shape=(int((run.offsets + run.sizes).max()),))
        records = _gather(np.asarray(words), run.offsets, gathered)
        return Rings(np.arange(run.first, run.first + len(run.sizes), dtype=np.int32), gathered, records)


@kernel
def _first_unwritten(sizes: NDArray[np.int32], face: int) -> int:
    """Find the first face from one on that has no record yet."""
    while face < len(sizes) and sizes[face]:
        face += 1
    return face


@kernel
def _stop(sizes: NDArray[np.int32], first: int, written: int, words: int) -> int:
    """Say where a run ends, before ``written`` or at it."""
    total = sizes[first]
    stop = first + 1
    while stop < written and total + sizes[stop] <= words:
        total += sizes[stop]
        stop += 1
    return stop


@kernel
def _gather(words: NDArray[np.int32], offsets: NDArray[np.int64], gathered: NDArray[np.int64]) -> NDArray[np.int32]:
    records = np.empty(gathered[-1], np.int32)
    for k in range(len(offsets)):
        size = gathered[k + 1] - gathered[k]
        records[gathered[k] : gathered[k + 1]] = words[offsets[k] : offsets[k] + size]
    return records
