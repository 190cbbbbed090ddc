"""Merging of faces that are too small to be mapped.

The smallest face below its class's minimum joins the neighbour with which it shares the longest border, and so on until
no face below its minimum has a neighbour; the order among equals is by class id, then by face. Nothing is deleted, so
that the valid area stays what it is. Neighbours of a merged face that have its new class become one face with it: the
result is the same as the faces of the raster with its pixels relabelled.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from landseg.grid import Grid
from landseg.polygons.compiled import kernel
from landseg.polygons.label import Faces, Tally, find_root


@dataclass(frozen=True)
class Merging:
    """Which faces are too small, and which neighbours they prefer.

    Parameters
    ----------
    min_area_m2
        Faces below it are merged.
    min_area_m2_of_class
        Other minima, by class id.
    affinity
        By (class id of the small face, class id of a neighbour): how much a metre of border with that neighbour counts;
        1 where nothing is said, 0 for a neighbour to be joined only where there is no other.
    """

    min_area_m2: float = 0.0
    min_area_m2_of_class: Mapping[int, float] = field(default_factory=dict)
    affinity: Mapping[tuple[int, int], float] = field(default_factory=dict)

    @property
    def is_needed(self) -> bool:
        """Whether any face can be too small."""
        return max(self.min_area_m2, *self.min_area_m2_of_class.values(), 0.0) > 0

    def min_pixels(self, class_ids: Sequence[int], grid: Grid) -> NDArray[np.int64]:
        """Give the smallest number of pixels that is no less than the minimum, by label, (N + 1,) int64."""
        minima = [0.0, *(self.min_area_m2_of_class.get(class_id, self.min_area_m2) for class_id in class_ids)]
        pixel_m2 = grid.pixel_size_m[0] * grid.pixel_size_m[1]
        return np.ceil(np.array(minima) / pixel_m2 - 1e-6).astype(np.int64)

    def weights(self, class_ids: Sequence[int]) -> NDArray[np.float64]:
        """Give the affinities as a table by labels, (N + 1, N + 1) float64."""
        table = np.ones((len(class_ids) + 1, len(class_ids) + 1))
        label = {class_id: place for place, class_id in enumerate(class_ids, start=1)}
        for (small, neighbour), weight in self.affinity.items():
            if small in label and neighbour in label:
                table[label[small], label[neighbour]] = weight
        return table


NO_MERGING = Merging()


@dataclass(frozen=True)
class Borders:
    """Lengths of the borders between faces, each pair of faces once or more.

    Parameters
    ----------
    pairs
        (N, 2) int32: two faces, the smaller first.
    lengths
        (N, 2) int64: how many horizontal and how many vertical sides of pixels they share.
    """

    pairs: NDArray[np.int32]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, faces: NDArray[np.int32]) -> "Borders":
        """Measure the borders between a strip's pixels, and with the row above it.

        Parameters
        ----------
        faces
            (rows + 1, cols) int32, the first row being that above; 0 is none.
        """
        return cls(*_borders(faces)).summed()

    @classmethod
    def concatenate(cls, parts: "list[Borders]") -> "Borders":
        """Put those of several strips together and sum them up."""
        return cls(
            np.concatenate([part.pairs for part in parts]), np.concatenate([part.lengths for part in parts])
        ).summed()

    def summed(self) -> "Borders":
        """Give each pair once, in ascending order."""
        if not len(self.pairs):
            return self
        key = self.pairs[:, 0].astype(np.int64) << 32 | self.pairs[:, 1]
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        return Borders(self.pairs[order[first]], np.add.reduceat(self.lengths[order], first, axis=0))


def merge_small(
    faces: Faces, tally: Tally, borders: Borders, merging: Merging, class_ids: Sequence[int], grid: Grid
) -> tuple[Faces, Tally]:
    """Merge the faces below their minimum.

    Parameters
    ----------
    faces, tally
        All faces of a raster.
    borders
        All borders between them.
    merging
        What is too small.
    class_ids
        Of each label from 1, ascending.
    grid
        Says how long a pixel's sides are and how large it is.
    """
    a, b, _, d, e, _ = grid.transform[:6]
    # Borders are compared in units of the shorter side and rounded to 2^-20 of it, so that equal ones are equal.
    sides = np.hypot([a, b], [d, e])
    lengths = np.rint(borders.lengths @ (sides / sides.min()) * 2**20).astype(np.int64)
    joined, label = _merge(
        borders.pairs,
        lengths,
        tally.pixels,
        faces.label,
        merging.min_pixels(class_ids, grid),
        merging.weights(class_ids),
    )
    return faces.joined(tally, joined, label)


@kernel
def _borders(faces: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Give runs of border sides, one pair of faces each; horizontal ones first."""
    rows, cols = faces.shape
    count = 0
    for row in range(1, rows):
        for col in range(cols):
            count += faces[row, col] != faces[row - 1, col]
            count += col > 0 and faces[row, col] != faces[row, col - 1]
    pairs = np.empty((count, 2), np.int32)
    lengths = np.zeros((count, 2), np.int64)
    beside = np.full(cols, -1, np.int64)  # the last run of each column of vertical sides
    n = 0
    for row in range(1, rows):
        above = -1
        for col in range(cols):
            here = faces[row, col]
            for axis in range(1 + (col > 0)):
                other = faces[row - 1, col] if axis == 0 else faces[row, col - 1]
                if here == 0 or other == 0 or other == here:
                    continue
                run = above if axis == 0 else beside[col]
                low, high = min(here, other), max(here, other)
                if run < 0 or pairs[run, 0] != low or pairs[run, 1] != high:
                    run = n
                    n += 1
                    pairs[run, 0], pairs[run, 1] = low, high
                lengths[run, axis] += 1
                if axis == 0:
                    above = run
                else:
                    beside[col] = run
    return pairs[:n].copy(), lengths[:n].copy()


@kernel
def _merge(
    pairs: NDArray[np.int32],
    lengths: NDArray[np.int64],
    face_pixels: NDArray[np.int64],
    face_label: NDArray[np.uint8],
    min_pixels: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Merge faces until none below its minimum has a neighbour.

    Each face has a list of its borders, of which ``2 * k`` is that of ``pairs[k, 0]`` with ``pairs[k, 1]`` and
    ``2 * k + 1`` the same from the other side. Lists are put together when faces merge, and read only for small faces;
    borders that have come to lie inside a face are skipped then.

    Returns
    -------
    parent
        (faces + 1,) int32: the smallest face that each one was merged with, itself if none.
    label
        (faces + 1,) uint8, right for those.
    """
    faces = len(face_pixels)
    pixels, label = face_pixels.copy(), face_label.copy()
    parent = np.arange(faces).astype(np.int32)
    first, last = np.full(faces, -1, np.int64), np.full(faces, -1, np.int64)
    following = np.full(2 * len(pairs), -1, np.int64)
    for border in range(2 * len(pairs)):
        face = pairs[border >> 1, border & 1]
        following[border] = first[face]
        first[face] = border
        if last[face] < 0:
            last[face] = border
    queue = [(pixels[face], label[face], face) for face in range(1, faces) if pixels[face] < min_pixels[label[face]]]
    heapq.heapify(queue)
    shared = np.zeros(faces, np.int64)
    neighbours = np.empty(faces, np.int64)
    while len(queue):
        size, own_label, face = heapq.heappop(queue)
        if parent[face] != face or pixels[face] != size or label[face] != own_label:
            continue
        count = 0
        border = first[face]
        while border >= 0:
            other = find_root(parent, pairs[border >> 1, 1 - (border & 1)])
            if other != face:
                if shared[other] == 0:
                    neighbours[count] = other
                    count += 1
                shared[other] += lengths[border >> 1]
            border = following[border]
        if count == 0:
            continue
        best = neighbours[0]
        for k in range(1, count):
            other = neighbours[k]
            gain = shared[other] * weights[own_label, label[other]]
            most = shared[best] * weights[own_label, label[best]]
            if gain > most or (gain == most and (label[other], other) < (label[best], best)):
                best = other
        new_label = label[best]
        merged = face
        for k in range(count):
            other = neighbours[k]
            shared[other] = 0
            if label[other] == new_label:
                low, high = min(merged, other), max(merged, other)
                parent[high] = low
                pixels[low] += pixels[high]
                if last[low] < 0:
                    first[low] = first[high]
                else:
                    following[last[low]] = first[high]
                if last[high] >= 0:
                    last[low] = last[high]
                merged = low
        label[merged] = new_label
        if pixels[merged] < min_pixels[new_label]:
            heapq.heappush(queue, (pixels[merged], new_label, merged))
    for face in range(faces):
        parent[face] = find_root(parent, face)
    return parent, label
