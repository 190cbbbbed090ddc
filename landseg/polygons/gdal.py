"""Faces of a raster of labels, traced by GDAL's polygonizer.

Polygons are in pixel coordinates here, (col, row) of corners: whole numbers, so that areas and comparisons are exact.
"""

from array import array
from itertools import chain
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from numpy.typing import NDArray
from shapely import GeometryType


def trace_faces(raster: Path) -> tuple[NDArray[np.object_], NDArray[np.uint8]]:
    """Trace the 4-connected faces of band 1, apart from nodata (0).

    Returns
    -------
    faces
        (N,) shapely Polygons in pixel coordinates, ordered by the face's top-left pixel (row-major). Each has a vertex
        wherever one of its neighbours has one, so that they form a coverage.
    class_id
        (N,) uint8.
    """
    corners, ring_ends, face_ends, labels = array("d"), array("q", [0]), array("q", [0]), array("B")
    with rasterio.open(raster) as dataset:
        band = rasterio.band(dataset, 1)
        for face, label in rasterio.features.shapes(band, mask=band, connectivity=4):
            for ring in face["coordinates"]:
                corners.extend(chain.from_iterable(ring))
                ring_ends.append(len(corners) // 2)
            face_ends.append(len(ring_ends) - 1)
            labels.append(int(label))
        to_pixels = np.reshape(~dataset.transform, (3, 3))
    if not labels:
        return np.empty(0, object), np.empty(0, np.uint8)
    # GDAL has applied the dataset's transform; rounding undoes it to the bit.
    corners_px = np.rint(np.reshape(corners, (-1, 2)) @ to_pixels[:2, :2].T + to_pixels[:2, 2])
    faces = shapely.from_ragged_array(GeometryType.POLYGON, corners_px, (np.array(ring_ends), np.array(face_ends)))
    return _noded_in_order(_repaired(faces), np.array(labels, np.uint8))


def _repaired(faces: NDArray[np.object_]) -> NDArray[np.object_]:
    """Make rings that touch themselves at a pixel corner into outer and inner rings of the same area.

    The pixels of a face are joined by their sides, so its interior is connected and it stays one Polygon. Whether such
    rings occur depends on GDAL's version.
    """
    invalid = ~shapely.is_valid(faces)
    repaired: NDArray[np.object_] = faces.copy()
    repaired[invalid] = shapely.make_valid(faces[invalid])
    return repaired


def _noded_in_order(
    faces: NDArray[np.object_], class_id: NDArray[np.uint8]
) -> tuple[NDArray[np.object_], NDArray[np.uint8]]:
    """Add to each side the corners of other faces that lie on it, and sort the faces by their top-left pixel."""
    _, corners, (ring_ends, face_ends) = shapely.to_ragged_array(faces)
    xy = corners.astype(np.int64)
    span = int(xy.max()) + 1

    # A side's key grows along its line: rows of corners come first, then columns of corners.
    along_row = xy[:, 1] * span + xy[:, 0]
    along_col = (span + xy[:, 0]) * span + xy[:, 1]
    order = np.argsort(np.minimum.reduceat(along_row, ring_ends[face_ends[:-1]]))
    # Not np.unique: from NumPy 2.3 on it hashes, which takes 60 times as long as sorting these keys.
    nodes = np.sort(np.concatenate((along_row, along_col)))
    nodes = nodes[np.diff(nodes, prepend=-1) > 0]

    following = np.r_[1 : len(xy), 0]
    axis = np.where(xy[:, 1] == xy[following, 1], 0, 1)
    key = np.where(axis == 0, along_row, along_col)
    next_key = np.where(axis == 0, along_row[following], along_col[following])
    first = np.searchsorted(nodes, np.minimum(key, next_key), side="right")
    last = np.searchsorted(nodes, np.maximum(key, next_key), side="left") - 1
    added = last - first + 1
    added[ring_ends[1:] - 1] = 0  # a ring's last corner starts no side

    starts = np.concatenate(([0], np.cumsum(added + 1)))
    source = np.repeat(np.arange(len(xy)), added + 1)
    rank = np.arange(starts[-1]) - starts[source]
    new, source_of_new = rank > 0, source[rank > 0]
    forward = next_key[source_of_new] > key[source_of_new]
    node = np.where(forward, first[source_of_new] + rank[new] - 1, last[source_of_new] - rank[new] + 1)
    noded = xy[source]
    noded[np.flatnonzero(new), axis[source_of_new]] = nodes[node] % span
    offsets = starts[ring_ends], face_ends
    return shapely.from_ragged_array(GeometryType.POLYGON, noded.astype(np.float64), offsets)[order], class_id[order]
