"""docs/own-classes.md, followed as it stands on small imagery, but for the length of the training."""

import re
import shlex
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
import yaml
from affine import Affine
from numpy.typing import NDArray

from landseg.model.bundle import read_bundle
from tests.conftest import ROOT, UTM40, Landseg, SceneMaker

PAGE = (ROOT / "docs/own-classes.md").read_text(encoding="utf-8")
QUICK = {"steps": 2, "batch": 2, "loader_workers": 0}


def draw_labels(path: Path, left: float, top: float) -> None:
    """Draw what the page asks for: polygons with a text field ``class_name``, the last one uppermost."""
    drawn = {"open ground": (0, 0, 60, 60), "building": (10, 10, 40, 40), "car park": (70, 0, 140, 110)}
    shapes = [shapely.box(left + x0, top - y1, left + x1, top - y0) for x0, y0, x1, y1 in drawn.values()]
    geopandas.GeoDataFrame({"class_name": list(drawn)}, geometry=shapes, crs=UTM40).to_file(path, layer="labels")


def test_from_polygons_drawn_to_a_map_with_their_classes(
    landseg: Landseg,
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, left in (("city", 339000), ("check", 339500)):
        make_scene(city, f"{name}.tif", transform=Affine(1, 0, left, 0, -1, 2784000))
        draw_labels(tmp_path / ("labels.gpkg" if name == "city" else "check.gpkg"), left, 2784000)
    (configuration,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    values = yaml.safe_load(configuration)
    values["optimisation"] |= QUICK
    Path("my-classes.yaml").write_text(yaml.safe_dump(values | {"chip_px": 48}))

    for command in re.findall(r"^    landseg (.*)$", PAGE, re.MULTILINE):
        outcome = landseg(*shlex.split(command))
        assert outcome.code == 0, f"{command}: {outcome.err}"

    card = read_bundle("runs/my-classes/my-classes").card
    assert card.legend.names == ("building", "open ground", "car park")
    assert card.held_out["data"] == "check.tif"
    classes = geopandas.read_file("landuse.gpkg", layer="class_areas")
    assert classes.class_name.tolist() == list(card.legend.names)
    assert classes.area_m2.sum() == pytest.approx(120 * 150, rel=2e-3)
