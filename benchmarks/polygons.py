"""Time landseg's polygons against GDAL's and shapely's, and print ratios and peak memory.

    python -m benchmarks.polygons [--sides 2048 8192] [--textures fine realistic] [--data-root data/dubai]

Each figure is the median of --runs processes, each of which has loaded the compiled loops before and lets its polygons
go when the clock has been read. References work on one thread, as they do for their users: `rasterio.features.shapes`
with `shapely.geometry.shape`, and `shapely.coverage_simplify` on what comes of them. They get slow, so that
--references and --coverages say up to which side they run at all.
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter
from shapely.geometry import shape

from landseg.config import PolygonConfig
from landseg.polygonizing import polygonize_raster
from landseg.polygons import polygonize
from landseg.scene import describe_scene

TEXTURE_PX = 2048
BLUR_PX = 3.13
"""Makes some 850,000 faces of 8192 squared pixels."""
TOLERANCE_M = 2.0
UTM = CRS.from_epsg(32640)
TRANSFORM = Affine(1, 0, 300_000, 0, -1, 2_700_000)


@dataclass(frozen=True)
class Figure:
    """What a way to make polygons took."""

    seconds: float
    peak_bytes: int
    polygons: int


def fine(_: Path) -> NDArray[np.uint8]:
    """Make five classes of blurred noise whose opposite sides fit together."""
    random = np.random.default_rng(1)
    fields = [
        gaussian_filter(random.standard_normal((TEXTURE_PX, TEXTURE_PX), np.float32), BLUR_PX, mode="wrap")
        for _ in range(5)
    ]
    return (np.argmax(fields, axis=0) + 1).astype(np.uint8)


def realistic(data_root: Path) -> NDArray[np.uint8]:
    """Read the labels of the largest tile; 255 is unlabelled."""
    with rasterio.open(data_root / "dubai_tile8_labels.tif") as file:
        labels: NDArray[np.uint8] = file.read(1)
    return labels


TEXTURES: dict[str, Callable[[Path], NDArray[np.uint8]]] = {"fine": fine, "realistic": realistic}


def write_map(path: Path, texture: NDArray[np.uint8], side: int) -> None:
    """Repeat a texture over a raster of ``side`` squared pixels."""
    columns = np.arange(side) % texture.shape[1]
    nodata = 255 if (texture == 255).any() else None
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": nodata, "crs": UTM, "transform": TRANSFORM}
    with rasterio.open(path, "w", **profile, height=side, width=side, tiled=True, compress="deflate", zlevel=1) as file:
        for top in range(0, side, 256):
            rows = np.arange(top, min(top + 256, side)) % texture.shape[0]
            file.write(texture[rows][:, columns], 1, window=Window(0, top, side, len(rows)))


Made = tuple[int, object]
"""How many polygons there are, and what holds them."""


def to_shapely(raster: Path, work: Path, cores: int, tolerance_m: float = 0.0) -> Made:
    """Make landseg's polygons as shapely's objects, all of them kept, on so many of the cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    grid = describe_scene(str(raster)).grid
    batches = polygonize(raster, grid, work=work, class_ids=range(255), tolerance_m=tolerance_m)
    polygons = [batch.geometry for batch in batches]
    return sum(map(len, polygons)), polygons


def to_file(raster: Path, work: Path, tolerance_m: float = 0.0, suffix: str = ".gpkg") -> Made:
    """Write landseg's polygons, as ``landseg polygonize`` does."""
    layer = polygonize_raster(raster, work / f"layer{suffix}", PolygonConfig(simplify=tolerance_m))
    return sum(area.polygons for area in layer.areas), layer


def by_gdal(raster: Path, _: Path) -> Made:
    """Make GDAL's polygons as shapely's objects."""
    polygons = _gdal_polygons(raster)
    return len(polygons), polygons


def by_coverage_simplify(raster: Path, _: Path) -> Iterator[Made]:
    """Simplify GDAL's polygons as a coverage; only that is timed."""
    polygons = np.array(_gdal_polygons(raster))
    yield len(polygons), polygons
    yield len(polygons), shapely.coverage_simplify(polygons, TOLERANCE_M)


def _gdal_polygons(raster: Path) -> list[shapely.Geometry]:
    with rasterio.open(raster) as file:
        band = rasterio.band(file, 1)
        mask = None if file.nodata is None else file.dataset_mask().astype(bool)
        faces = rasterio.features.shapes(band, mask, connectivity=4, transform=file.transform)
        return [shape(face) for face, _ in faces]


Way = Callable[[Path, Path], Made | Iterator[Made]]


def _measured(way: Way, raster: Path, small: Path) -> Figure:
    """Run in a process of its own: on a small raster first, so that loops are loaded."""
    for one in (small, raster):
        with tempfile.TemporaryDirectory(dir=raster.parent) as work:
            start = time.perf_counter()
            made = way(one, Path(work))
            if isinstance(made, Iterator):
                next(made)
                start, made = time.perf_counter(), next(made)
            seconds = time.perf_counter() - start
    return Figure(seconds, _peak_bytes(), made[0])


def _peak_bytes() -> int:
    """Give this process's largest resident memory; Linux's getrusage would count its parent's as well."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(way: Way, raster: Path, small: Path, runs: int) -> Figure:
    """Measure one way to make polygons; the median of so many processes, each by itself."""
    spawn = multiprocessing.get_context("spawn")
    figures = []
    for _ in range(runs):
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            figures.append(pool.submit(_measured, way, raster, small).result())
    return sorted(figures, key=lambda figure: figure.seconds)[runs // 2]


def main() -> None:
    """Parse, run and print."""
    # Here, since it brings torch, which would count in the processes that are measured.
    from benchmarks.large_scene import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 8192, 16384], help="rows and columns")
    parser.add_argument("--textures", nargs="+", choices=TEXTURES, default=list(TEXTURES))
    parser.add_argument("--data-root", type=Path, default=Path("data/dubai"), help="folder of the labels of realistic")
    parser.add_argument("--references", type=int, default=8192, help="largest side that GDAL works on")
    parser.add_argument("--coverages", type=int, default=2048, help="largest side that coverage_simplify works on")
    parser.add_argument("--runs", type=int, default=3, help="processes for each figure")
    arguments = parser.parse_args()
    print(f"machine: {machine()}\n\n| texture | side | way | polygons | s | ns/px | peak GB | times as fast |")
    print("|---|---:|---|---:|---:|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        raster, small = Path(folder) / "map.tif", Path(folder) / "small.tif"
        for texture in arguments.textures:
            pattern = TEXTURES[texture](arguments.data_root)
            write_map(small, pattern, 256)
            for side in arguments.sides:
                write_map(raster, pattern, side)
                time_it = functools.partial(measure, raster=raster, small=small, runs=arguments.runs)
                compare(texture, side, time_it, arguments.references, arguments.coverages)


def compare(texture: str, side: int, time_it: Callable[[Way], Figure], references: int, coverages: int) -> None:
    """Print a row for each way to make polygons of one raster."""

    def row(way: str, figure: Figure, faster: str = "") -> None:
        cells = (f"{figure.polygons:,}", f"{figure.seconds:.1f}", f"{figure.seconds / side**2 * 1e9:.0f}")
        print(
            f"| {texture} | {side} | {way} | {' | '.join(cells)} | {figure.peak_bytes / 1e9:.2f} | {faster} |",
            flush=True,
        )

    simplified = functools.partial(to_shapely, tolerance_m=TOLERANCE_M)
    ours = {
        "exact": functools.partial(to_shapely, cores=2),
        "exact, one core": functools.partial(to_shapely, cores=1),
        "simplified": functools.partial(simplified, cores=2),
        "simplified, one core": functools.partial(simplified, cores=1),
    }
    figures = {name: time_it(way) for name, way in ours.items()}
    gdal = time_it(by_gdal) if side <= references else None
    coverage = time_it(by_coverage_simplify) if side <= coverages else None
    for name, figure in figures.items():
        one_core = figures.get(f"{name}, one core")
        reference = gdal if name.startswith("exact") else coverage
        faster = [
            f"{slow.seconds / figure.seconds:.1f} x {what}"
            for slow, what in ((one_core, "one core"), (reference, "the reference"))
            if slow is not None
        ]
        row(name, figure, ", ".join(faster))
    if gdal is not None:
        row("reference: rasterio.features.shapes, shapely.geometry.shape", gdal)
    if coverage is not None:
        row("reference: shapely.coverage_simplify", coverage)
    row("simplified, to a GeoPackage", time_it(functools.partial(to_file, tolerance_m=TOLERANCE_M)))
    row("exact, to a GeoPackage", time_it(to_file))


if __name__ == "__main__":
    main()
