"""First pass: number the faces of a raster that is read strip by strip.

A face is a 4-connected set of equal labels. Within a strip, parts of faces are numbered from 1 in the order of their
first pixels (row-major); across strips these numbers run on, and parts that touch over a seam are united. A part's
parent always has the smaller number, hence a face's root is the part that holds its top-left pixel, and ranking the
roots ranks the faces by their top-left pixels wherever the seams are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from landseg.legend import NODATA
from landseg.polygons.compiled import kernel


@dataclass(frozen=True)
class Faces:
    """Which parts of strips make up which faces.

    Parameters
    ----------
    face_of_part
        (parts + 1,) int32, from 1; ``face_of_part[0] == 0`` is nodata.
    first_part
        (strips,) int64: part 1 of strip ``k`` is part ``first_part[k] + 1`` of the raster.
    label
        (faces + 1,) uint8; ``label[0] == 0``.
    """

    face_of_part: NDArray[np.int32]
    first_part: NDArray[np.int64]
    label: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.label) - 1

    def joined(self, tally: "Tally", parent: NDArray[np.int32], label: NDArray[np.uint8]) -> "tuple[Faces, Tally]":
        """Give the faces that are left when others become part of smaller ones.

        Parameters
        ----------
        tally
            Of the faces as they are.
        parent
            (faces + 1,) int32: the smallest of the faces that each one becomes part of.
        label
            (faces + 1,) uint8: the new label of these.
        """
        rank = parent.copy()
        _rank(rank)
        is_left = parent == np.arange(len(parent))
        faces = Faces(rank[self.face_of_part], self.first_part, label[is_left])
        return faces, Tally(_sum(rank, tally.pixels).astype(np.int64), _sum(rank, tally.confidence_sum))

    def of_pixels(self, index: int, strip: "LabelledStrip") -> NDArray[np.int32]:
        """Give the faces of a strip's pixels in a frame of 0 that is a pixel wide, (rows + 2, cols + 2) int32."""
        first = int(self.first_part[index])
        faces = self.face_of_part[first : first + len(strip.label)].copy()
        faces[0] = 0
        framed = np.empty((strip.parts.shape[0] + 2, strip.parts.shape[1] + 2), np.int32)
        _replace(strip.parts, faces, framed)
        return framed


@dataclass(frozen=True)
class Tally:
    """What is counted of faces.

    Parameters
    ----------
    pixels
        (faces + 1,) int64: how many.
    confidence_sum
        (faces + 1,) float64: over the face's pixels, percent; NaN if it is unknown.
    """

    pixels: NDArray[np.int64]
    confidence_sum: NDArray[np.float64]

    def confidence(self) -> NDArray[np.float32]:
        """Give the mean over each face's pixels, (faces + 1,) float32, percent; NaN if it is unknown."""
        means: NDArray[np.float32] = (self.confidence_sum / self.pixels.clip(min=1)).astype(np.float32)
        return means


@dataclass(frozen=True)
class LabelledStrip:
    """Parts of faces within a strip.

    Parameters
    ----------
    parts
        (rows, cols) int32, from 1; 0 is nodata.
    label
        (n + 1,) uint8.
    tally
        (2, n + 1) float64: of each part, how many pixels it has and the sum of their confidence, which is NaN if it is
        unknown.
    """

    parts: NDArray[np.int32]
    label: NDArray[np.uint8]
    tally: NDArray[np.float64]

    @classmethod
    def of(cls, labels: NDArray[np.uint8], confidence: NDArray[np.uint8] | None = None) -> "LabelledStrip":
        """Find the parts of (rows, cols) labels; confidence, of the same shape, is in percent."""
        return cls(*_label(labels, np.empty((0, 0), np.uint8) if confidence is None else confidence))


class SeamJoiner:
    """Unites the parts of strips that are given from top to bottom."""

    def __init__(self) -> None:
        self._labels = [np.zeros(1, np.uint8)]
        self._tallies: list[NDArray[np.float64]] = []
        self._first_part: list[int] = []
        self._count = 0
        self._last_row: tuple[NDArray[np.int32], NDArray[np.uint8]] | None = None
        self._unions: list[NDArray[np.int32]] = []

    def add(self, strip: LabelledStrip) -> None:
        """Append the strip below those that were added."""
        (top, top_label), last_row = self._row(strip, 0), self._row(strip, -1)
        if self._last_row is not None:
            bottom, bottom_label = self._last_row
            pairs = np.stack((bottom, top), axis=1)[(bottom_label == top_label) & (top_label != NODATA)]
            changes = np.ones(len(pairs), np.bool_)
            changes[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
            self._unions.append(pairs[changes])
        self._last_row = last_row
        self._first_part.append(self._count)
        self._labels.append(strip.label[1:])
        self._tallies.append(strip.tally)
        self._count += len(strip.label) - 1

    def _row(self, strip: LabelledStrip, row: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Give the numbers of a row's parts among all strips, and their labels."""
        parts = strip.parts[row]
        return parts + np.int32(self._count), strip.label[parts]

    def finish(self) -> tuple[Faces, Tally]:
        """Rank the faces of all strips."""
        parent = np.arange(self._count + 1, dtype=np.int32)
        for pairs in self._unions:
            _unite(parent, pairs)
        label = np.zeros(_rank(parent) + 1, np.uint8)
        label[parent] = np.concatenate(self._labels)
        # float64 holds these sums exactly.
        tally = np.zeros((2, len(label)))
        for first, part in zip(self._first_part, self._tallies, strict=True):
            _add(tally, parent[first : first + part.shape[1]], part)
        faces = Faces(parent, np.array(self._first_part, np.int64), label)
        return faces, Tally(tally[0].astype(np.int64), tally[1])


def _sum(face: NDArray[np.int32], values: NDArray[np.number]) -> NDArray[np.float64]:
    """Sum up values by the faces that they belong to."""
    return np.bincount(face, values).astype(np.float64, copy=False)


@kernel
def _add(tally: NDArray[np.float64], face: NDArray[np.int32], part: NDArray[np.float64]) -> None:
    """Add the tally of a strip's parts to that of the faces that they belong to; part 0 is nodata."""
    for k in range(1, part.shape[1]):
        tally[0, face[k]] += part[0, k]
        tally[1, face[k]] += part[1, k]


@kernel
def find_root(parent: NDArray[np.int32], part: int) -> int:
    """Find the smallest part that this one was united with, and shorten the way to it."""
    while parent[part] != part:
        parent[part] = parent[parent[part]]
        part = parent[part]
    return part


@kernel
def _unite(parent: NDArray[np.int32], pairs: NDArray[np.int32]) -> None:
    """Unite the parts of each of (N, 2) pairs; ``parent[i] <= i`` throughout."""
    for k in range(len(pairs)):
        a, b = find_root(parent, pairs[k, 0]), find_root(parent, pairs[k, 1])
        parent[max(a, b)] = min(a, b)


@kernel
def _rank(parent: NDArray[np.int32]) -> int:
    """Replace each part's parent by the rank of its root among all roots, from 1; 0 stays 0. Return their number."""
    rank = 0
    for part in range(1, len(parent)):
        if parent[part] == part:
            rank += 1
            parent[part] = rank
        else:
            parent[part] = parent[parent[part]]
    return rank


@kernel
def _label(
    labels: NDArray[np.uint8], confidence: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float64]]:
    """Find the 4-connected parts of (rows, cols) labels run by run, and what `LabelledStrip` says of them."""
    rows, cols = labels.shape
    parts = np.empty((rows, cols), np.int32)
    parent = np.empty(rows * cols + 1, np.int32)
    label_of = np.empty(rows * cols + 1, np.uint8)
    tally = np.empty((rows * cols + 1, 2))
    parent[0] = 0
    label_of[0] = NODATA
    tally[0] = 0
    count = 0
    for row in range(rows):
        # Above the first row these are views of the last one, which is not looked at.
        own_labels, labels_above = labels[row], labels[row - 1]
        own_parts, parts_above = parts[row], parts[row - 1]
        col = 0
        while col < cols:
            start, label, own = col, own_labels[col], 0
            seen = 0
            while col < cols and own_labels[col] == label:
                if row > 0 and label != NODATA and labels_above[col] == label and parts_above[col] != seen:
                    seen = parts_above[col]
                    root = find_root(parent, seen)
                    if own == 0:
                        own = root
                    elif root != own:
                        parent[max(root, own)] = min(root, own)
                        own = min(root, own)
                col += 1
            if own == 0 and label != NODATA:
                count += 1
                own = count
                parent[own] = own
                label_of[own] = label
                tally[own] = 0
            for k in range(start, col):
                own_parts[k] = own
            tally[own, 0] += col - start
            if confidence.size:
                for k in range(start, col):
                    tally[own, 1] += confidence[row, k]
    parent = parent[: count + 1]
    _rank(parent)
    found = 0
    for part in range(1, count + 1):
        if parent[part] > found:
            found += 1
            label_of[found] = label_of[part]
    tallies = np.zeros((2, found + 1))
    for part in range(count + 1):
        tallies[0, parent[part]] += tally[part, 0]
        tallies[1, parent[part]] += tally[part, 1] if confidence.size else np.nan
    for row in range(rows):
        for col in range(cols):
            parts[row, col] = parent[parts[row, col]]
    return parts, label_of[: found + 1].copy(), tallies


@kernel
def _replace(parts: NDArray[np.int32], faces: NDArray[np.int32], framed: NDArray[np.int32]) -> None:
    rows, cols = parts.shape
    framed[0] = 0
    framed[rows + 1] = 0
    for row in range(rows):
        framed[row + 1, 0] = framed[row + 1, cols + 1] = 0
        for col in range(cols):
            framed[row + 1, col + 1] = faces[parts[row, col]]
