"""Check that the polygons of whole label tiles are a coverage, at every minimum area and tolerance.

    python -m benchmarks.coverage [--data-root data/dubai]

Prints a row for each tile and combination, and exits with 1 if any of them is not valid.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import shapely

from landseg.polygons import Merging, Polygons, polygonize
from landseg.polygons.classes import read_class_raster

MIN_AREAS_M2 = (0.0, 25.0, 100.0, 2500.0)
TOLERANCES_M = (0.0, 1.0, 2.0, 5.0)


def faults(polygons: Polygons) -> list[str]:
    """Say in words what is wrong with polygons that should be a coverage."""
    found = []
    if not shapely.is_valid(polygons.geometry).all():
        found.append("a polygon is not valid")
    if not shapely.coverage_is_valid(polygons.geometry):
        found.append("polygons overlap or leave gaps")
    if not (shapely.area(polygons.geometry) > 0).all():
        found.append("a polygon has no area")
    return found


def main() -> None:
    """Parse, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data/dubai"), help="folder of the label tiles")
    arguments = parser.parse_args()
    tiles = sorted(arguments.data_root.glob("*_labels.tif"))
    if not tiles:
        sys.exit(f"{arguments.data_root} has no file *_labels.tif")
    failed = False
    print("| tile | min area m² | tolerance m | polygons | vertices | |\n|---|---:|---:|---:|---:|---|")
    for tile, (min_area_m2, tolerance_m) in itertools.product(tiles, itertools.product(MIN_AREAS_M2, TOLERANCES_M)):
        source = read_class_raster(tile)
        with tempfile.TemporaryDirectory() as work:
            batches = polygonize(
                tile,
                source.grid,
                work=Path(work),
                class_ids=source.values,
                merging=Merging(min_area_m2),
                tolerance_m=tolerance_m,
            )
            polygons = Polygons.concatenate(batches)
        found = faults(polygons)
        failed |= bool(found)
        vertices = int(np.sum(shapely.get_num_coordinates(polygons.geometry)))
        cells = (tile.stem, f"{min_area_m2:g}", f"{tolerance_m:g}", f"{len(polygons):,}", f"{vertices:,}")
        print(f"| {' | '.join(cells)} | {', '.join(found) or 'a coverage'} |", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
