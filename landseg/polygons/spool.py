"""Faces on disk: written in the order in which they are finished, read in the order of their numbers."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from landseg.errors import DiskError
from landseg.polygons.assemble import Rings
from landseg.polygons.compiled import kernel


class Spool:
    """A file of the records of faces; a context manager that removes it.

    Parameters
    ----------
    path
        Where it is, until it is closed.
    faces
        How many there will be.
    """

    def __init__(self, path: Path, faces: int) -> None:
        self._path = path
        self._offsets = np.zeros(faces + 1, np.int64)
        self._sizes = np.zeros(faces + 1, np.int32)
        self._size = 0
        self._reserving = threading.Lock()
        self._written = self._given = 1

    def __enter__(self) -> Self:
        self._file = self._path.open("wb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.callback(self._path.unlink, missing_ok=True)
            self._file.close()

    def write(self, rings: Rings) -> None:
        """Append the records of faces; in any thread.

        Raises
        ------
        DiskError
            If the disk is full.
        """
        with self._reserving:
            place = self._size
            self._size += len(rings.words)
        try:
            _write_at(self._file.fileno(), rings.words.data.cast("B"), place * rings.words.itemsize)
        except OSError as error:
            raise DiskError(f"can't write {self._path}: {error.strerror}", "make room and run it again") from error
        self._offsets[rings.faces] = rings.offsets[:-1] + place
        # Last: from now on they may be read.
        self._sizes[rings.faces] = np.diff(rings.offsets)

    def batches(self, words: int, *, rest: bool = False) -> Iterator[tuple[int, int]]:
        """Divide the faces into runs, [first, stop), of at most so many words each, but of one face at least.

        Runs do not depend on when they are asked for. Each is given once, as soon as its faces and the one after it are
        written; those at the end when ``rest`` is asked for.
        """
        self._written = _first_unwritten(self._sizes, self._written)
        while self._given < self._written:
            stop = _stop(self._sizes, self._given, self._written, words)
            if stop == self._written and not rest:
                return
            yield self._given, stop
            self._given = stop

    def read(self, first: int, stop: int) -> Rings:
        """Give the records of faces ``first`` to ``stop - 1``, which have been written; in any thread."""
        offsets, sizes = self._offsets[first:stop], self._sizes[first:stop]
        gathered = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        # No more than what these need: the file may be growing.
        words = np.memmap(self._path, np.int32, mode="r", shape=(int((offsets + sizes).max()),))
        records = _gather(np.asarray(words), offsets, gathered)
        return Rings(np.arange(first, stop, dtype=np.int32), gathered, records)


def _write_at(descriptor: int, octets: memoryview, place: int) -> None:
    while octets:
        count = os.pwrite(descriptor, octets, place)
        octets, place = octets[count:], place + count


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
