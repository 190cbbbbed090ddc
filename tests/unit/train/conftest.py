"""A corner of the real data that is quick to train on."""

import pytest
import rasterio
from rasterio.windows import Window

from landseg.train.samples import Pair
from tests.conftest import DEMO_LABELS, DEMO_SCENE

CORNER = Window(832, 704, 192, 192)


@pytest.fixture(scope="session")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Cut the same 192 x 192 px out of the scene and its labels; all five classes occur."""
    folder = tmp_path_factory.mktemp("corner")
    for path in (DEMO_SCENE, DEMO_LABELS):
        with rasterio.open(path) as source:
            profile = {
                "driver": "GTiff", "count": source.count, "dtype": "uint8", "nodata": source.nodata, "crs": source.crs,
                "height": CORNER.height, "width": CORNER.width, "transform": source.window_transform(CORNER),
            }  # fmt: skip
            with rasterio.open(folder / path.name, "w", **profile) as part:
                part.write(source.read(window=CORNER))
    return Pair(folder / DEMO_SCENE.name, folder / DEMO_LABELS.name)
