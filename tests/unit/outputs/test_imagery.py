import numpy as np
from affine import Affine
from numpy.typing import NDArray

from landseg.grid import Grid
from landseg.outputs.imagery import Imagery, read_together
from landseg.scene import describe_scene
from tests.conftest import UTM40, SceneMaker

ORIGIN = Affine(1, 0, 339000, 0, -1, 2784000)


def imagery(make_scene: SceneMaker, name: str, pixels: NDArray[np.uint8], col: int) -> Imagery:
    path = make_scene(pixels, name, transform=ORIGIN @ Affine.translation(col, 0), nodata=0)
    found = Imagery.by_name(describe_scene(str(path)))
    assert found is not None
    return found


def test_of_scenes_that_overlap_the_first_counts_where_it_holds_data(make_scene: SceneMaker) -> None:
    first = np.full((3, 20, 30), 50, np.uint8)
    first[:, :10, 20:] = 0
    scenes = [
        imagery(make_scene, "a.tif", first, 0),
        imagery(make_scene, "b.tif", np.full((3, 20, 30), 200, np.uint8), 20),
    ]
    expected = np.zeros((20, 60), np.uint8)
    expected[:, 20:50] = 200
    expected[:, :20] = expected[10:, 20:30] = 50
    grid = Grid((20, 60), ORIGIN, UTM40)

    assert (read_together(scenes, grid, 100) == expected[..., None]).all()
    expected[:, 20:30] = 200
    assert (read_together(scenes[::-1], grid, 100) == expected[..., None]).all()
    assert read_together(scenes, grid, 30).shape == (10, 30, 3)


def test_bands_are_found_by_their_names(make_scene: SceneMaker) -> None:
    pixels = np.zeros((4, 5, 5), np.uint8)
    path = make_scene(pixels, colours=None, descriptions=("nir", "blue", "green", "red"))
    found = Imagery.by_name(describe_scene(str(path)))
    assert found is not None
    assert found.bands == (4, 3, 2)
    assert Imagery.by_name(describe_scene(str(make_scene(pixels[:1], "grey.tif", colours=None)))) is None
