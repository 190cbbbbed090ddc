"""Turn the Dubai set as it is published into the GeoTIFF pairs that configs/train/dubai.yaml trains on.

    python pipelines/dubai_tiles.py "Semantic segmentation dataset" data/dubai
    landseg train configs/train/dubai.yaml

"Semantic segmentation of aerial imagery" (Humans in the Loop and the Mohammed Bin Rashid Space Center, CC0 1.0) comes
as ``Tile N/images/image_part_00k.jpg`` and ``Tile N/masks/image_part_00k.png``: each tile in 3 x 3 parts, from left to
right and top to bottom. Its classes.json gives other colours than the masks have; those here are the masks'.

The set has no georeferencing. Each tile gets a nominal one, 1 m pixels in EPSG:32640, apart from the others.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

COLOURS = {0x3C1098: 0, 0x8429F6: 1, 0x6EC1E4: 2, 0xFEDD3A: 3, 0xE2A929: 4}
"""Colour in the masks -> 0 building, 1 land, 2 road, 3 vegetation, 4 water."""

UNLABELLED = 255
PLACED_BY_EYE = {2: (339_200, 2_784_800)}
"""Upper left corners of the tiles whose place is known, to about a kilometre: tile 2 is International City."""


def stitch(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put nine parts, (h, w, C) each, together; parts of a row share their height and those of a column their width."""
    return np.concatenate([np.concatenate(parts[row : row + 3], axis=1) for row in (0, 3, 6)], axis=0)


def codes(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn the colours of a mask, (h, w, 3), into class codes, (h, w)."""
    colours = mask.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    result = np.full(colours.shape, UNLABELLED, dtype=np.uint8)
    for colour, code in COLOURS.items():
        result[colours == colour] = code
    return result


def convert(folder: Path, number: int, out: Path) -> None:
    """Write ``dubai_tileN.tif`` and ``dubai_tileN_labels.tif`` from the folder of a published tile."""
    images, masks = (
        stitch(
            [np.asarray(Image.open(folder / kind / f"image_part_{k:03}.{suffix}").convert("RGB")) for k in range(1, 10)]
        )
        for kind, suffix in (("images", "jpg"), ("masks", "png"))
    )
    if images.shape != masks.shape:
        raise ValueError(f"images and masks differ in size: {images.shape[:2]} and {masks.shape[:2]}")
    left, top = PLACED_BY_EYE.get(number, (300_000 + 20_000 * number, 2_780_000))
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "height": images.shape[0],
        "width": images.shape[1],
        "crs": "EPSG:32640",
        "transform": Affine(1, 0, left, 0, -1, top),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
    }
    jpeg = {"compress": "jpeg", "jpeg_quality": 95, "photometric": "ycbcr", "interleave": "pixel"}
    with rasterio.open(out / f"dubai_tile{number}.tif", "w", count=3, **profile, **jpeg) as file:
        file.write(np.moveaxis(images, -1, 0))
    with rasterio.open(
        out / f"dubai_tile{number}_labels.tif", "w", count=1, nodata=UNLABELLED, compress="deflate", **profile
    ) as file:
        file.write(codes(masks), 1)


def main() -> None:
    """Convert every tile of the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder that holds 'Tile 1', 'Tile 2', …")
    parser.add_argument("out", type=Path, help="folder for the GeoTIFFs; made if need be")
    arguments = parser.parse_args()
    tiles = {
        int(m[1]): path for path in arguments.source.glob("Tile *") if (m := re.fullmatch(r"Tile (\d+)", path.name))
    }
    if not tiles:
        sys.exit(f"{arguments.source} holds no 'Tile 1', 'Tile 2', …")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, folder in sorted(tiles.items()):
        try:
            convert(folder, number, arguments.out)
        except (OSError, ValueError) as error:
            sys.exit(f"{folder}: {error}")
        print(arguments.out / f"dubai_tile{number}.tif")


if __name__ == "__main__":
    main()
