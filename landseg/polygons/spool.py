"""Faces on disk: written in the order in which they are finished, read in the order of their numbers."""

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

    def __enter__(self) -> Self:
        self._file = self._path.open("w+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.callback(self._path.unlink, missing_ok=True)
            self._file.close()

    def write(self, rings: Rings) -> None:
        """Append the records of faces.

        Raises
        ------
        DiskError
            If the disk is full.
        """
        self._offsets[rings.faces] = rings.offsets[:-1] + self._size
        self._sizes[rings.faces] = np.diff(rings.offsets)
        self._size += len(rings.words)
        try:
            self._file.write(rings.words.data)
            self._file.flush()
        except OSError as error:
            raise DiskError(f"can't write {self._path}: {error.strerror}", "make room and run it again") from error

    def batches(self, words: int) -> Iterator[tuple[int, int]]:
        """Divide all faces into runs, [first, stop), of at most so many words each, but of one face at least."""
        ends = np.cumsum(self._sizes, dtype=np.int64)
        first = 1
        while first < len(ends):
            stop = max(first + 1, int(np.searchsorted(ends, ends[first - 1] + words, side="right")))
            yield first, stop
            first = stop

    def read(self, first: int, stop: int) -> Rings:
        """Give the records of faces ``first`` to ``stop - 1``, once all have been written; in any thread."""
        offsets = self._offsets[first:stop]
        gathered = np.concatenate(([0], np.cumsum(self._sizes[first:stop], dtype=np.int64)))
        words = np.memmap(self._path, np.int32, mode="r")
        records = _gather(np.asarray(words), offsets, gathered)
        return Rings(np.arange(first, stop, dtype=np.int32), gathered, records)


@kernel
def _gather(words: NDArray[np.int32], offsets: NDArray[np.int64], gathered: NDArray[np.int64]) -> NDArray[np.int32]:
    records = np.empty(gathered[-1], np.int32)
    for k in range(len(offsets)):
        size = gathered[k + 1] - gathered[k]
        records[gathered[k] : gathered[k + 1]] = words[offsets[k] : offsets[k] + size]
    return records
