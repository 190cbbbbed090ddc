"""A page to look at: one HTML file with the map, its figures and how it was made; it needs no network.

The page with its style and script is in ``page/``, beside Leaflet, which draws the map. Here it is filled with what a
GeoPackage holds and with what its manifest says.
"""

import base64
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib.resources import files
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.io import MemoryFile

from landseg.errors import InputError, SceneError
from landseg.grid import Grid
from landseg.hrefs import check_plain
from landseg.legend import LandClass, Legend
from landseg.outputs import counted
from landseg.outputs.drafts import writing
from landseg.outputs.geopackage import CLASS_AREAS
from landseg.outputs.imagery import Imagery, read_together
from landseg.outputs.manifest import read_manifest, sources_of
from landseg.outputs.vector import LAYER
from landseg.scene import describe_scene

log = logging.getLogger(__name__)

OVERLAY_PX = 4096
"""Longest side of the picture of the classes, which is shown from afar."""

BAND_ROWS = 64
"""Of that picture; they are drawn together."""

IMAGERY_PX = 2048
"""Longest side of the imagery."""

PART = 4096
"""Polygons whose outlines are read together."""

LARGEST = 100_000
"""Most polygons that are in the page, the largest ones; the overlay shows those that are not."""

UNITS_PER_PX = 16
"""Coordinates are whole sixteenths of a pixel, as fine as a map of simplified borders needs."""

UNSURE_BELOW = 50
"""Percent; below it the network gives more than half of the probability to other classes."""

UNSURE_LISTED = 20
NAMED = 10
"""How many of a region's scenes are named."""

BIN = 5
"""Percent that a bar of the histogram stands for."""


@dataclass(frozen=True)
class MapFile:
    """What a GeoPackage by landseg holds, and what its manifest says.

    Parameters
    ----------
    path
        The file.
    polygons
        The fields of the layer; `outlines` gives their shapes.
    classes
        The table ``class_areas``, with polygons and areas counted anew.
    crs
        Of the polygons.
    manifest
        Properties of the STAC Item beside the file; empty where there is none.
    sources
        What it says that the map was made from: the scene, or the manifests of a region's maps.
    """

    path: Path
    polygons: pd.DataFrame
    classes: pd.DataFrame
    crs: CRS
    manifest: Mapping[str, Any]
    sources: Sequence[str]

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Rows of ``classes`` that the polygons belong to; class ids may be any numbers."""
        places: NDArray[np.intp] = pd.Index(self.classes["class_id"]).get_indexer(self.polygons["class_id"])
        return places

    def outlines(self) -> Iterator[tuple[slice, NDArray[np.object_]]]:
        """Read the shapes in parts, since all of them may not fit memory; each with its place among ``polygons``.

        Raises
        ------
        InputError
            If one has no shape, or is no single polygon.
        """
        begin = 0
        with pyogrio.open_arrow(self.path, layer=LAYER, columns=[], batch_size=PART, use_pyarrow=True) as (info, parts):
            for part in parts:
                shapes = shapely.from_wkb(part.column(info["geometry_name"]).to_numpy(zero_copy_only=False))
                _check_shapes(self.path, shapes)
                yield slice(begin, begin + len(shapes)), shapes
                begin += len(shapes)

    @cached_property
    def grid(self) -> Grid:
        """The map's pixels; those of the overlay where no manifest tells them."""
        if "proj:shape" in self.manifest:
            rows, cols = self.manifest["proj:shape"]
            return Grid((rows, cols), Affine(*self.manifest["proj:transform"][:6]), self.crs)
        bounds = np.array([shapely.total_bounds(shapes) for _, shapes in self.outlines()])
        (left, bottom), (right, top) = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
        side = max(right - left, top - bottom) / OVERLAY_PX
        shape = (max(1, round((top - bottom) / side)), max(1, round((right - left) / side)))
        return Grid(shape, Affine(side, 0, left, 0, -side, top), self.crs)


def read_map(path: Path) -> MapFile:
    """Read a GeoPackage that landseg wrote, and the manifest beside it.

    Raises
    ------
    InputError
        If it can't be read, or holds no map.
    """
    check_plain(path, InputError)
    try:
        header, _, _, columns = pyogrio.raw.read(path, layer=LAYER, read_geometry=False)
        classes = pyogrio.read_dataframe(path, layer=CLASS_AREAS)
        crs = CRS.from_user_input(header["crs"])
        if not (crs.is_projected or crs.is_geographic):
            raise CRSError("it is of no place on the Earth")
    except (DataSourceError, DataLayerError, FeatureError, GeometryError) as error:
        raise InputError(f"{path} is no GeoPackage that landseg wrote: {error}", "give the .gpkg of a run") from error
    except CRSError as error:
        raise InputError(f"{path} has no coordinate reference system", "set one in QGIS: Layer > Set CRS") from error
    polygons = pd.DataFrame(dict(zip(header["fields"], columns, strict=True)))
    if polygons.empty:
        raise InputError(f"{path} holds no polygons")
    _check_polygons(path, polygons, classes)
    classes = _summed_up(path, polygons, classes)
    manifest = read_manifest(path.with_suffix(".json"))
    return MapFile(
        path,
        polygons,
        classes,
        crs,
        manifest.get("properties", {}),
        sources_of(manifest, path.parent) if manifest else [],
    )


def _check_shapes(path: Path, shapes: NDArray[np.object_]) -> None:
    """Refuse outlines that an edited map may hold and a page can't show."""
    if count := int((shapely.is_missing(shapes) | shapely.is_empty(shapes)).sum()):
        raise InputError(f"{path} holds {counted(count, 'polygon')} without a shape", "draw or delete them in QGIS")
    if (shapely.get_type_id(shapes) != shapely.GeometryType.POLYGON).any():
        raise InputError(f"{path} holds more than single polygons", "split them up: Multipart to singleparts in QGIS")


def _check_polygons(path: Path, polygons: pd.DataFrame, classes: pd.DataFrame) -> None:
    """Refuse what an edited map may hold and a page can't show."""
    tables = {
        LAYER: (polygons, ["class_id"], ["area_m2", "confidence", "perimeter_m"]),
        CLASS_AREAS: (classes, ["class_id", "class_name", "colour"], ["area_m2", "polygons"]),
    }
    for name, (table, fields, numbers) in tables.items():
        lost = [field for field in (*fields, *numbers) if field not in table]
        lost += [field for field in numbers if field in table and not is_numeric_dtype(table[field])]
        if lost:
            raise InputError(
                f"{path}: the table {name} has no {lost[0]}, or one that holds no numbers",
                "give the field its name and type again, or map the scene again",
            )
    try:
        Legend(tuple(LandClass(*row) for row in classes[["class_id", "class_name", "colour"]].itertuples(index=False)))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: {CLASS_AREAS} holds no legend: {error}", "fill it in, in QGIS for example"
        ) from error
    strange = ~polygons["class_id"].isin(classes["class_id"]) | ~np.isfinite(polygons["area_m2"])
    strange |= (polygons["confidence"] < 0) | (polygons["confidence"] > 100)
    if count := int(strange.sum()):
        raise InputError(
            f"{path}: no area_m2, no class_id that {CLASS_AREAS} names, or no confidence within 0 to 100, "
            f"has {counted(count, 'polygon')}",
            "fill them in, in QGIS for example",
        )


def _summed_up(path: Path, polygons: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """Give the table of classes with what their polygons sum up to, and say where an edit has made that another."""
    areas = polygons.groupby("class_id")["area_m2"]
    sums = areas.agg(polygons="size", area_m2="sum").reindex(classes["class_id"], fill_value=0).reset_index(drop=True)
    # Far less than a pixel; the order of the sum is worth some 1e-13.
    if not np.allclose(sums, classes[list(sums)], rtol=1e-10, atol=0):
        log.warning(
            "the polygons of %s were changed: the page sums up their area_m2 as it stands, %s is of the map as it was",
            path,
            CLASS_AREAS,
        )
    return classes.assign(**sums, share=sums["area_m2"] / (sums["area_m2"].sum() or 1))


def write_report(path: Path, content: MapFile, imagery: Sequence[Imagery]) -> None:
    """Write the page.

    Parameters
    ----------
    path
        A draft; the caller renames it when it is complete.
    content
        The map.
    imagery
        What to show below it, as `find_imagery` gives it.

    Raises
    ------
    InputError
        If the map holds a polygon without a shape, or more than single polygons.
    SceneError
        If the imagery can't be read.
    DiskError
        If the disk is full or the folder can't be written to.
    """
    grid = content.grid
    overlay = draw_classes(content, grid)
    area = content.polygons["area_m2"].to_numpy()
    shown = np.sort(np.argsort(-area, kind="stable")[:LARGEST])
    is_shown = np.isin(np.arange(len(area)), shown)
    outlines = (shapes[is_shown[part]] for part, shapes in content.outlines())
    counts, packed = polygon_data(outlines, content.polygons.iloc[shown], content.places[shown], grid)
    report = {
        "classes": content.classes[["class_name", "colour", "area_m2", "share", "polygons"]].to_dict("records"),
        "polygon_count": len(area),
        "headline": _headline(content.manifest),
        "histogram": confidence_histogram(content.polygons),
        "unsure": unsure_polygons(content.polygons.assign(place=content.places), shown),
        "provenance": provenance(content),
        "grid": {
            "rows": grid.shape[0],
            "cols": grid.shape[1],
            "metres_per_px": grid.gsd_m,
            "north": grid.north,
            "px_per_overlay_px": grid.shape[0] / overlay.shape[0],
        },
        "overlay": _data_url(overlay, "PNG"),
        "imagery": _data_url(read_together(imagery, grid, IMAGERY_PX), "JPEG", quality=80) if imagery else None,
        "counts": counts,
        "units_per_px": UNITS_PER_PX,
    }
    with writing(path):
        path.write_text(_fill(f"Land use: {_scene_name(content)}", report, packed), encoding="utf-8")


def find_imagery(content: MapFile, scene: str | None) -> list[Imagery]:
    """Open the imagery of a map, what counts first where scenes overlap at the front; nothing where there is none.

    Parameters
    ----------
    content
        The map.
    scene
        Path or URL; by default the scene that was mapped, or those of a region, as far as they are still there.

    Raises
    ------
    SceneError
        If ``scene`` is given and can't be used.
    """
    recorded = content.manifest.get("landseg:scene")
    if scene is not None:
        imagery = _mapped_imagery(scene, content.manifest) if recorded else _imagery_by_name(scene)
        return [_on_map(imagery, content.grid)]
    if not content.manifest:
        log.warning("no manifest is beside %s: the page will have no imagery, unless --scene names it", content.path)
        return []
    if recorded:
        mapped = [(source, content.manifest) for source in content.sources]
    else:
        mapped = [pair for source in content.sources for pair in _scenes_of(Path(source))]
    found, lost = [], []
    for source, manifest in mapped:
        try:
            found.append(_on_map(_mapped_imagery(source, manifest), content.grid))
        except SceneError as error:
            lost.append(error.what)
    if lost:
        rest = f", nor {counted(len(lost) - 1, 'other')}" if len(lost) > 1 else ""
        log.warning("%s%s; the page will have no imagery there, unless --scene names it", lost[0], rest)
    return found


def _scenes_of(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Give what a map was made from, each with what its manifest says."""
    manifest = read_manifest(path)
    properties = manifest.get("properties", {})
    if "landseg:scene" not in properties:
        return []
    return [(source, properties) for source in sources_of(manifest, path.parent)]


def _mapped_imagery(scene: str, manifest: Mapping[str, Any]) -> Imagery:
    """Show a scene as the network saw it."""
    recorded = manifest["landseg:scene"]
    info = describe_scene(scene, manifest["landseg:config"]["assume_crs"])
    if max(recorded["bands"], default=0) > len(info.dtypes):
        raise SceneError(f"{scene} has fewer bands than when it was mapped")
    imagery = Imagery.of(info, recorded["band_names"], recorded["bands"], recorded["value_ranges"])
    return imagery or _imagery_by_name(scene)


def _on_map(imagery: Imagery, grid: Grid) -> Imagery:
    """Give imagery as it is, or refuse it where it shows none of the map."""
    left, bottom, right, top = imagery.info.grid.bounds_in(grid.crs)
    if not (left < grid.bounds[2] and grid.bounds[0] < right and bottom < grid.bounds[3] and grid.bounds[1] < top):
        raise SceneError(f"{imagery.info.shown} lies elsewhere than the map")
    return imagery


def _imagery_by_name(scene: str) -> Imagery:
    imagery = Imagery.by_name(describe_scene(scene))
    if imagery is None:
        raise SceneError(f"{scene} does not say which of its bands are red, green and blue")
    return imagery


def polygon_data(
    outlines: Iterable[NDArray[np.object_]], polygons: pd.DataFrame, places: NDArray[np.intp], grid: Grid
) -> tuple[dict[str, int], bytes]:
    """Pack polygons, whose outlines come in parts, for the page's script: numbers, and bytes that ``page.js`` reads.

    Law: positions are what the deltas sum up to, and differ from the polygons' own by half a unit at most.
    """
    to_pixels = ~grid.transform
    parts = []
    for shapes in outlines:
        if len(shapes):
            _, coordinates, (ring_ends, polygon_ends) = shapely.to_ragged_array(shapes)
            x, y = coordinates.T
            cols = to_pixels.a * x + to_pixels.b * y + to_pixels.c
            rows = to_pixels.d * x + to_pixels.e * y + to_pixels.f
            units = [np.rint(v * UNITS_PER_PX).astype(np.int32) for v in (cols, rows)]
            parts.append((*units, np.diff(ring_ends), np.diff(polygon_ends)))
    cols, rows, ring_sizes, polygon_sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    columns = chain(
        (np.diff(v, prepend=np.int32(0)).astype("<i4") for v in (cols, rows)),
        (np.cumsum(sizes).astype("<i4") for sizes in (ring_sizes, polygon_sizes)),
        (polygons[name].to_numpy().astype("<f4") for name in ("area_m2", "confidence", "perimeter_m")),
        [places.astype("<u2")],
    )
    counts = {"vertices": len(cols), "rings": len(ring_sizes), "polygons": len(polygon_sizes)}
    # Without a time in it, the same map gives the same page.
    packer = zlib.compressobj(level=6, wbits=16 + zlib.MAX_WBITS)
    packed = [packer.compress(column.tobytes()) for column in columns]
    return counts, b"".join([*packed, packer.flush()])


def confidence_histogram(polygons: pd.DataFrame) -> list[float]:
    """Give the share of the area, 0-1, in each `BIN` percent of confidence; nothing, where no confidence is known."""
    polygons = polygons[polygons["confidence"].notna()]
    if polygons.empty:
        return []
    bins = np.arange(0, 100 + BIN, BIN)
    area, _ = np.histogram(polygons["confidence"], bins, weights=polygons["area_m2"])
    shares: list[float] = (area / (area.sum() or 1)).tolist()
    return shares


def unsure_polygons(polygons: pd.DataFrame, shown: NDArray[np.intp]) -> dict[str, Any]:
    """Sum up the polygons below `UNSURE_BELOW`, and list the largest; ``index`` is their place among those shown."""
    candidates = polygons[polygons["confidence"] < UNSURE_BELOW]
    largest = candidates[candidates.index.isin(shown)].nlargest(UNSURE_LISTED, "area_m2")
    listed = largest[["place", "area_m2", "confidence"]].assign(index=np.searchsorted(shown, largest.index))
    area = float(candidates["area_m2"].sum())
    return {
        "below": UNSURE_BELOW,
        "polygons": len(candidates),
        "area_m2": area,
        "share": area / float(polygons["area_m2"].sum() or 1),
        "largest": listed.to_dict("records"),
    }


def provenance(content: MapFile) -> list[tuple[str, str]]:
    """Say how a map was made, as terms and texts."""
    grid, manifest = content.grid, content.manifest
    if not manifest:
        return [("Map", content.path.name), ("Manifest", "none beside the map")]
    model, config = manifest["landseg:model"], manifest["landseg:config"]
    scene = manifest.get("landseg:scene", {})
    held_out = model["held_out"]
    accuracy = f"mean IoU {held_out['miou']:.2f} on {held_out['data']}" if held_out else "not measured"
    calibrated = "as the network gives it" if model["temperature"] == 1 else "calibrated"
    resampled = ", resampled from the scene's" if scene.get("resampled") else ""
    chosen = {name: value for name, value in config.items() if value not in (None, False, {})}
    return [
        ("Map", content.path.name),
        *(_about_scene(scene) if scene else _about_region(manifest["landseg:merge"])),
        ("Pixels", f"{grid.shape[0]:,} x {grid.shape[1]:,} of {manifest['gsd']:.4g} m{resampled}"),
        ("CRS", manifest["proj:code"] or "without an EPSG code"),
        ("Model", f"{model['name']}, sha256 {model['sha256'][:12]}…"),
        ("Held-out accuracy", accuracy),
        ("Confidence", calibrated),
        ("Options", ", ".join(f"{name} {value}" for name, value in chosen.items())),
        ("Made", manifest["created"].replace("T", " ").replace("Z", " UTC")),
        ("Software", ", ".join(f"{name} {version}" for name, version in manifest["processing:software"].items())),
    ]


def _about_scene(scene: Mapping[str, Any]) -> list[tuple[str, str]]:
    bands = zip(scene["bands"], scene["band_names"], strict=True)
    return [("Scene", scene["href"]), ("Bands", ", ".join(f"{band} {name}" for band, name in bands))]


def _about_region(merge: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name a region's scenes by their maps, with their dates where they are known, and the rule that chose."""
    dates = [f", {part['date'][:10]}" if part["date"] else "" for part in merge["parts"]]
    names = [part["map"] + date for part, date in zip(merge["parts"], dates, strict=True)]
    rest = f"; and {counted(len(names) - NAMED, 'other')}" if len(names) > NAMED else ""
    rows = [
        ("Scenes", f"{len(names)}: {'; '.join(names[:NAMED])}{rest}"),
        ("Where they overlap", f"the {merge['rule']} counts"),
    ]
    return [*rows, ("Missing", "; ".join(merge["missing"]))] if merge["missing"] else rows


def _headline(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest:
        return []
    return [f"model {manifest['landseg:model']['name']}", f"made {manifest['created'][:10]}"]


def _scene_name(content: MapFile) -> str:
    scene = content.manifest.get("landseg:scene")
    return Path(scene["href"] if scene else content.path).stem


def draw_classes(content: MapFile, grid: Grid) -> NDArray[np.uint8]:
    """Draw the polygons in their colours as (rows, cols, 4), transparent where there are none.

    The label raster would not do: it has what `landseg run --min-area` merged away.
    """
    small = grid.shrunk(OVERLAY_PX)
    places = np.zeros(small.shape, np.uint16)
    for part, shapes in content.outlines():
        _burn(shapes, (content.places[part] + 1).astype(np.uint16), small, places)
    colours = [[0, 0, 0, 0], *([*bytes.fromhex(colour[1:]), 255] for colour in content.classes["colour"])]
    pixels: NDArray[np.uint8] = np.array(colours, np.uint8)[places]
    return pixels


def _burn(geometry: NDArray[np.object_], values: NDArray[np.uint16], grid: Grid, burnt: NDArray[np.uint16]) -> None:
    """Burn polygons into the pixels of a grid.

    GDAL looks at all of a polygon's sides for each row, so that one of a million corners would take minutes. Rows are
    burnt a band at a time, with what is there of each polygon.
    """
    rows, cols = grid.shape
    a, b, c, d, e, f = (~grid.transform)[:6]
    in_pixels = shapely.transform(geometry, lambda xy: xy @ [[a, d], [b, e]] + [c, f])
    tree = shapely.STRtree(in_pixels)
    for top in range(0, rows, BAND_ROWS):
        bottom = min(top + BAND_ROWS, rows)
        # With the rows beside it, whose centres are far from what is cut.
        extent = -1, top - 1, cols + 1, bottom + 1
        found = np.sort(tree.query(shapely.box(*extent)))
        parts = shapely.clip_by_rect(in_pixels[found], *extent)
        shapes = [(part, value) for part, value in zip(parts, values[found], strict=True) if part.area]
        if shapes:
            rasterize(shapes, out=burnt[top:bottom], transform=Affine.translation(0, top))


def _data_url(pixels: NDArray[np.uint8], driver: str, **options: Any) -> str:
    """Encode (rows, cols, bands) as a picture that stands in the page."""
    height, width, count = pixels.shape
    with MemoryFile() as memory:
        with memory.open(driver=driver, count=count, height=height, width=width, dtype="uint8", **options) as file:
            file.write(np.moveaxis(pixels, -1, 0))
        content = base64.b64encode(memory.read()).decode()
    return f"data:image/{driver.lower()};base64,{content}"


def _fill(title: str, report: Mapping[str, Any], polygons: bytes) -> str:
    page = files("landseg.outputs") / "page"
    parts = {
        "leaflet_css": "leaflet/leaflet.css",
        "leaflet_js": "leaflet/leaflet.js",
        "leaflet_licence": "leaflet/LICENSE",
        "page_css": "page.css",
        "page_js": "page.js",
    }
    texts = {name: (page / part).read_text(encoding="utf-8") for name, part in parts.items()}
    return Template((page / "page.html").read_text(encoding="utf-8")).substitute(
        texts,
        title=escape(title),
        # Within a script only the end of the script means anything.
        report=json.dumps(report, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        polygons=base64.b64encode(polygons).decode(),
    )
