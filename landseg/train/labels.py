"""What is known of the ground: label rasters and labelled polygons, read on any grid as channels of the legend."""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioIOError
from rasterio.features import rasterize
from rasterio.warp import transform_bounds

from landseg.errors import SceneError, TrainingDataError
from landseg.grid import Grid
from landseg.hrefs import check_plain
from landseg.scene import RasterScene, describe_scene

IGNORED = 255
"""Channel of pixels without a label; they take no part in losses and metrics."""

CLASS_COLUMN = "class_name"
"""Column of polygons that names their class, as landseg's own maps have it."""

_ID_COLUMN = "class_id"
_OWN_LEGEND = "class_areas"  # the table of landseg's own maps that lists their classes

MANY_VALUES = 1000
"""A file of more values than these that are no class holds measurements; further ones need not be counted."""

Bounds = tuple[float, float, float, float]
Value = int | str

_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_NOTHING = -1
_POLYGONS = (3, 6)
_COLLECTION = 7
_MANY_VERTICES = 256


class LabelCodes:
    """Turn the values of labels, numbers or text, into channel indices.

    Class names always mean themselves. Text that spells a whole number is that number: a column's ``"111"`` and a
    configuration's ``111`` are the same code.

    Parameters
    ----------
    label_values
        Value in the labels -> class name.
    names
        Class names in channel order.
    ignored
        Values that are meant to have no class.
    """

    def __init__(
        self,
        label_values: Mapping[int, str] | Mapping[Value, str],
        names: Sequence[str],
        ignored: Collection[Value] = (),
    ) -> None:
        self.names = tuple(names)
        meanings = {name: name for name in names} | dict(label_values)
        self._channels = {_canonical(value): self.names.index(name) for value, name in meanings.items()}
        self._channels |= {_canonical(value): IGNORED for value in ignored}

    def channel(self, value: Value | float) -> int | None:
        """Give the channel of one value, `IGNORED` for those that are to be ignored; None if it is unknown."""
        return self._channels.get(_canonical(value))

    def of_bytes(self) -> NDArray[np.int64]:
        """Give the channels of the values 0 to 255, (256,); `IGNORED` for those that are unknown."""
        channels = [self.channel(value) for value in range(256)]
        return np.array([IGNORED if channel is None else channel for channel in channels], dtype=np.int64)

    def explain(self, unknown: Mapping[Value | float, int], path: Path) -> TrainingDataError:
        """Say which values of a file have no meaning, how many pixels have them, and what to do."""
        most = sorted(unknown, key=lambda value: -unknown[value])[:8]
        told = [f"{value!r} ({unknown[value]:,} px{self._nearest(value)})" for value in most]
        more = f" and {len(unknown) - len(most)} more" if len(unknown) > len(most) else ""
        return TrainingDataError(
            f"{path} holds values that are no class: {', '.join(told)}{more}",
            "say what they mean: data.label_values, or --label-values; or that they are to have no class: "
            f"--ignored-values, or data.ignored_values: {most}",
        )

    def _nearest(self, value: Value | float) -> str:
        near = difflib.get_close_matches(str(value), self.names, n=1)
        return f"; did you mean '{near[0]}'?" if near else ""


def _canonical(value: Value | float) -> Value | float:
    """Give whole numbers as int, however they are written, and text without blanks around it."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _WHOLE.fullmatch(text) else text
    return int(value) if float(value).is_integer() else float(value)


class Reading(NamedTuple):
    """Labels on a grid.

    Parameters
    ----------
    channels
        (rows, cols) int64, channel indices; `IGNORED` where nothing is known.
    unknown
        Values that no class has -> pixels that have them; these are `IGNORED` among the channels.
    """

    channels: NDArray[np.int64]
    unknown: Counter[Value | float]


class _Meanings:
    """What each of some distinct values means."""

    def __init__(self, values: Iterable[Value | float], codes: LabelCodes) -> None:
        self.values = [_canonical(value) for value in values]
        channels = [codes.channel(value) for value in self.values]
        # One entry more, which the index -1 finds: where there is no value.
        self.channels = np.array([*(IGNORED if c is None else c for c in channels), IGNORED], dtype=np.int64)
        self.known = np.array([*(c is not None for c in channels), True])

    def reading(self, indices: NDArray[np.integer[Any]]) -> Reading:
        """Look up values by their indices, -1 for none."""
        unknown, counts = np.unique(indices[~self.known[indices]], return_counts=True)
        pixels = {self.values[i]: int(count) for i, count in zip(unknown, counts, strict=True)}
        return Reading(self.channels[indices], Counter(pixels))


class Labels(Protocol):
    """Labels of some ground. Not safe to share between threads; may be copied to other processes."""

    path: Path
    bounds: Bounds
    """Around all that is labelled, in the CRS that the labels were opened for."""

    def read(self, grid: Grid) -> Reading:
        """Read the labels on a grid in the CRS that they were opened for; what they do not cover is `IGNORED`."""

    def fingerprint(self) -> str:
        """Give what changes when the labels do."""


def file_stamp(path: Path) -> str:
    """Give a file's size and time of change; nothing of one that is in an archive."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def open_labels(
    path: Path,
    codes: LabelCodes,
    crs: CRS,
    bounds: Bounds,
    ground: str,
    *,
    class_column: str = CLASS_COLUMN,
    layer: str | None = None,
) -> Labels:
    """Open a raster of labels, or a file of labelled polygons, over some ground.

    Parameters
    ----------
    path
        Anything that GDAL reads as a raster, or as polygons.
    codes
        What its values mean.
    crs
        Coordinate reference system of the grids to read on.
    bounds
        Of the ground, in ``crs``.
    ground
        What the messages call the ground.
    class_column
        Column of polygons that holds names of classes, or codes.
    layer
        Layer of the polygons; may be left out where there is only one with geometry.

    Raises
    ------
    TrainingDataError
        If the file can't be read or placed, lies elsewhere, or lacks the layer or the column.
    """
    check_plain(path, TrainingDataError)
    try:
        with rasterio.open(path):
            is_raster = True
    except RasterioIOError as error:
        if not _is_vector(path):
            raise TrainingDataError(f"can't read {path}, neither as a raster nor as polygons: {error}") from error
        is_raster = False
    labels = (
        RasterLabels(path, codes, crs) if is_raster else VectorLabels(path, codes, crs, bounds, class_column, layer)
    )
    if not overlap(labels.bounds, bounds):
        raise TrainingDataError(f"the labels {path} do not overlap {ground}")
    return labels


def _is_vector(path: Path) -> bool:
    try:
        return len(pyogrio.list_layers(path)) > 0
    except DataSourceError:
        return False


def overlap(one: Bounds, other: Bounds) -> bool:
    """Say whether two bounds in one CRS share ground."""
    # Comparisons with the NaN of bounds around nothing are false.
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


_NOWHERE = (np.nan, np.nan, np.nan, np.nan)


def _transformed(bounds: Bounds, source: CRS, target: CRS) -> Bounds:
    """Give bounds in another CRS; NaN if there is no way between the two."""
    try:
        left, bottom, right, top = transform_bounds(source, target, *bounds)
    except CRSError:
        return _NOWHERE
    return left, bottom, right, top


class RasterLabels:
    """The first band of a raster, read at the nearest pixel; what it masks or declares nodata is unknown.

    Parameters
    ----------
    path, codes, crs
        See `open_labels`.
    """

    def __init__(self, path: Path, codes: LabelCodes, crs: CRS) -> None:
        self.path = path
        self.codes = codes
        try:
            self._info = describe_scene(str(path))
        except SceneError as error:
            # That of mapping names an option that labels do not have.
            hint = "georeference it first" if "--assume-crs" in (error.hint or "") else error.hint
            raise TrainingDataError(error.what, hint) from error
        self.bounds = _transformed(self._info.grid.bounds, self._info.grid.crs, crs)

    def read(self, grid: Grid) -> Reading:
        """Read the labels on a grid of any CRS.

        Raises
        ------
        TrainingDataError
            If the file is damaged.
        """
        try:
            # Opened anew each time: an open file must not pass on to the processes that load samples. Other bands have
            # no say, not even in what is nodata.
            with RasterScene(self._info, (1,), grid, nodata_policy="any", resampling="nearest") as raster:
                pixels = raster.read(grid.window)
        except SceneError as error:
            # The place that it tells is one within the grid.
            raise TrainingDataError(
                f"can't read {self.path}: the file is damaged or out of reach", error.hint
            ) from error
        indices, numbers = pd.factorize(pixels.data.ravel())
        indices[~pixels.valid.ravel()] = _NOTHING
        return _Meanings((number.item() for number in numbers), self.codes).reading(indices.reshape(grid.shape))

    def fingerprint(self) -> str:
        """Give the file's stamp."""
        return file_stamp(self.path)


class VectorLabels:
    """Polygons with a column of class names or codes.

    A pixel has the class of the polygon that its centre lies in; where polygons overlap, of the one with the highest
    feature number, which QGIS draws last. Pixels outside of all polygons are unknown. Polygons without a class or a
    geometry are as if they were not there; one whose class is to be ignored hides what lies below it.

    All polygons within the bounds are read at once, and found again by a spatial index: a file of GeoJSON has none.

    Parameters
    ----------
    path, codes, crs, bounds, class_column, layer
        See `open_labels`.
    """

    def __init__(
        self, path: Path, codes: LabelCodes, crs: CRS, bounds: Bounds, class_column: str, layer: str | None
    ) -> None:
        self.path = path
        geometry, column = _read_polygons(path, crs, bounds, class_column, _layer(path, layer))
        kept = column.notna().to_numpy() & (column.astype(str).str.strip() != "").to_numpy()
        kept &= ~(shapely.is_missing(geometry) | shapely.is_empty(geometry))
        indices, values = pd.factorize(column[kept])
        self._meanings = _Meanings(values, codes)
        self._indices = indices
        self._tree = shapely.STRtree(geometry[kept])
        left, bottom, right, top = shapely.total_bounds(geometry) if geometry.size else _NOWHERE
        self.bounds: Bounds = (float(left), float(bottom), float(right), float(top))

    def read(self, grid: Grid) -> Reading:
        """Read the labels on a grid in the CRS that they were opened for."""
        pixel = max(abs(grid.transform.a), abs(grid.transform.b), abs(grid.transform.d), abs(grid.transform.e))
        left, bottom, right, top = grid.bounds
        around = (left - pixel, bottom - pixel, right + pixel, top + pixel)
        found = np.sort(self._tree.query(shapely.box(*around)))
        shapes = _clipped(self._tree.geometries[found], around)
        solid = shapely.area(shapes) > 0
        if not solid.any():
            return Reading(np.full(grid.shape, IGNORED, dtype=np.int64), Counter())
        drawn = zip(shapes[solid], self._indices[found][solid], strict=True)
        indices = rasterize(drawn, out_shape=grid.shape, transform=grid.transform, fill=_NOTHING, dtype=np.int32)
        return self._meanings.reading(indices)

    def fingerprint(self) -> str:
        """Digest the polygons themselves: QGIS changes a GeoPackage that it only shows, and keeps edits beside it."""
        digest = hashlib.sha256(repr((self._meanings.values, self._indices.tolist())).encode())
        for polygon in shapely.to_wkb(self._tree.geometries):
            digest.update(polygon)
        return digest.hexdigest()


def _layer(path: Path, layer: str | None) -> str:
    """Find the layer to read: the one that is asked for, or the only one with geometry."""
    layers = {str(name): kind for name, kind in pyogrio.list_layers(path)}
    drawn = [name for name, kind in layers.items() if kind is not None]
    if layer is not None and layer not in layers:
        raise TrainingDataError(f"{path} has no layer '{layer}'", f"its layers: {', '.join(layers)}")
    if layer is None and len(drawn) != 1:
        raise TrainingDataError(
            f"{path} has {len(drawn)} layers with geometry",
            f"name one of them by data.layer or --layer: {', '.join(drawn)}" if drawn else "polygons are needed",
        )
    return layer or drawn[0]


def _read_polygons(
    path: Path, crs: CRS, bounds: Bounds, column: str, layer: str
) -> tuple[NDArray[np.object_], "pd.Series[Any]"]:
    """Read polygons, in ``crs``, and their classes, in the order of their feature numbers."""
    try:
        info = pyogrio.read_info(path, layer=layer)
        _check_column(path, column, dict(zip(info["fields"], info["dtypes"], strict=True)))
        if info["crs"] is None:
            raise TrainingDataError(f"{path} has no coordinate reference system", "set one in QGIS: Layer > Set CRS")
        theirs = CRS.from_user_input(info["crs"])
        within = _transformed(bounds, crs, theirs)
        if not np.isfinite(within).all():
            return np.empty(0, dtype=object), pd.Series(dtype=object)
        own_legend = _own_legend(path, column, info["fields"])
        columns = [column] if own_legend is None else [_ID_COLUMN, CLASS_COLUMN]
        table = pyogrio.read_dataframe(
            path, layer=layer, columns=columns, bbox=within, force_2d=True, fid_as_index=True
        ).sort_index()
    except (DataSourceError, DataLayerError, FeatureError, GeometryError, shapely.errors.ShapelyError) as error:
        raise TrainingDataError(f"can't read {path}: {error}") from error
    if own_legend is not None:
        _check_agreement(path, table, own_legend)
    geometry = _areas(path, table.geometry.to_numpy())
    if theirs != crs:
        width, height = within[2] - within[0], within[3] - within[1]
        # A country's outline reaches to where the scene's projection knows no coordinates.
        near = (within[0] - width, within[1] - height, within[2] + width, within[3] + height)
        to_ours = Transformer.from_crs(theirs.to_wkt(), crs.to_wkt(), always_xy=True)
        geometry = shapely.transform(
            _clipped(geometry, near, vertices=0), lambda xy: np.column_stack(to_ours.transform(*xy.T))
        )
    return geometry, table[column]


def _check_column(path: Path, column: str, types: Mapping[str, str]) -> None:
    if column not in types:
        raise TrainingDataError(
            f"{path} has no column '{column}'",
            f"name one of its columns by data.class_column or --class-column: {', '.join(types)}",
        )
    if not types[column].startswith(("object", "str", "int", "uint", "float")):
        raise TrainingDataError(
            f"column '{column}' of {path} is of type {types[column]}", "names of classes or whole numbers are needed"
        )


def _own_legend(path: Path, column: str, fields: Collection[str]) -> dict[Any, Any] | None:
    """Read class id -> name from a map of landseg's own, whose style goes by the one column and people by the other."""
    both = [_ID_COLUMN, CLASS_COLUMN]
    if column not in both or not set(both) <= set(fields) or _OWN_LEGEND not in pyogrio.list_layers(path)[:, 0]:
        return None
    if not set(both) <= set(pyogrio.read_info(path, layer=_OWN_LEGEND)["fields"]):
        # A table of the user's that is called the same.
        return None
    return dict(_classes(pyogrio.read_dataframe(path, layer=_OWN_LEGEND, columns=both)).values())


def _classes(table: pd.DataFrame) -> dict[int, tuple[Any, Any]]:
    """Give class id and name of the features that have both, by feature number."""
    both = table[[_ID_COLUMN, CLASS_COLUMN]].dropna()
    return {int(fid): (_canonical(i), _canonical(name)) for fid, i, name in both.itertuples(name=None)}


def _check_agreement(path: Path, table: pd.DataFrame, legend: Mapping[Any, Any]) -> None:
    """Refuse a feature of which one column was edited and not the other; classes new to the legend may be added."""
    names = set(legend.values())
    for fid, (class_id, name) in _classes(table).items():
        if (class_id in legend or name in names) and legend.get(class_id) != name:
            means = f"which is '{legend[class_id]}'" if class_id in legend else "which is no class of the map"
            raise TrainingDataError(
                f"feature {fid} of {path} has the {CLASS_COLUMN} '{name}' and the {_ID_COLUMN} {class_id}, {means}",
                "make the two agree in QGIS, here and wherever else one was edited alone; or delete the field "
                f"'{_ID_COLUMN}'",
            )


def _areas(path: Path, geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Repair what crosses itself, and refuse what is no area."""
    kinds = shapely.get_type_id(geometry)
    alien = geometry[(kinds >= 0) & ~np.isin(kinds, (*_POLYGONS, _COLLECTION)) & ~shapely.is_empty(geometry)]
    if alien.size:
        raise TrainingDataError(
            f"{path} holds {alien.size} features that are no polygons, such as a {alien[0].geom_type}",
            "labels are areas: buffer lines and points in QGIS, to the width that they have on the ground",
        )
    faulty = (kinds == _COLLECTION) | ((kinds >= 0) & ~shapely.is_valid(geometry))
    repaired = geometry.copy()
    for i in np.flatnonzero(faulty):
        parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(geometry[i])))
        repaired[i] = shapely.multipolygons(parts[shapely.get_type_id(parts) == _POLYGONS[0]])
    return repaired


def _clipped(geometry: NDArray[np.object_], bounds: Bounds, *, vertices: int = _MANY_VERTICES) -> NDArray[np.object_]:
    """Cut to bounds those that have many vertices and reach beyond: drawing takes time for each vertex."""
    left, bottom, right, top = shapely.bounds(geometry).T
    beyond = (left < bounds[0]) | (bottom < bounds[1]) | (right > bounds[2]) | (top > bounds[3])
    beyond &= shapely.get_num_coordinates(geometry) > vertices
    clipped = geometry.copy()
    clipped[beyond] = shapely.clip_by_rect(geometry[beyond], *bounds)
    return clipped
