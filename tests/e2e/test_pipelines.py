"""Each pipeline that comes with landseg runs as it stands, on a model that is quick to run."""

import base64
import json
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from landseg.batch import load_pipeline
from landseg.model.bundle import DEFAULT_MODEL
from tests.conftest import ROOT, Landseg, SceneMaker

PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_it_runs(
    path: Path, landseg: Landseg, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_stands = load_pipeline(path, {})
    assert as_it_stands.model == DEFAULT_MODEL
    assert as_it_stands.out.resolve() == ROOT / "out" / path.stem
    out = tmp_path / "maps"
    monkeypatch.setenv("LANDSEG_OUT", str(out))
    planned = landseg("batch", path, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["counts"] == {"due": len(json.loads(planned.out)["entries"])}

    monkeypatch.setenv("LANDSEG_MODEL", str(small_bundle))
    monkeypatch.setenv("LANDSEG_OVERLAP", "0")
    outcome = landseg("batch", path, "--json")
    assert outcome.code == 0, outcome.err
    for entry in json.loads(outcome.out)["entries"]:
        assert entry["status"] == "mapped"
        polygons, manifest = (Path(p) for p in entry["outputs"][-2:])
        assert pyogrio.read_info(polygons, layer="landuse")["features"] > 0
        assert pystac.Item.from_file(str(manifest)).properties["gsd"] == pytest.approx(1, abs=1e-3)
    assert set(json.loads(landseg("batch", path, "--json").out)["counts"]) == {"current"}


def test_a_region_of_overlapping_scenes_is_the_newest_of_each(
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    landseg: Landseg,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalog = tmp_path / "catalog.json"
    for name, row, date in (("north", 0, "2026-03-01"), ("middle", 30, "2026-05-01"), ("south", 60, "2026-04-01")):
        corner = Affine(1, 0, 339000, 0, -1, 2784000 - row)
        scene = make_scene(city[:, row : row + 60, :100], f"{name}.tif", transform=corner)
        landseg("catalog", "add", scene, "--catalog", catalog, "--date", date)
    monkeypatch.setenv("LANDSEG_SCENES", f"{{catalog: {{url: {catalog}}}}}")
    monkeypatch.setenv("LANDSEG_MERGE", "{rule: newest}")
    monkeypatch.setenv("LANDSEG_MODEL", str(small_bundle))
    monkeypatch.setenv("LANDSEG_OUT", str(tmp_path / "maps"))
    monkeypatch.setenv("LANDSEG_CATALOG", str(catalog))

    outcome = landseg("batch", ROOT / "pipelines/region.yaml")

    assert outcome.code == 0, outcome.err
    maps = {}
    for name in ("region", "north", "middle", "south"):
        with rasterio.open(tmp_path / f"maps/{name}.tif") as file:
            maps[name] = file.read()
    assert maps["region"].shape == (2, 120, 100)
    assert (maps["region"][:, 30:90] == maps["middle"]).all()
    assert (maps["region"][:, :30] == maps["north"][:, :30]).all()
    assert (maps["region"][:, 90:] == maps["south"][:, 30:]).all()
    layer = geopandas.read_file(tmp_path / "maps/region.gpkg", layer="landuse")
    assert shapely.coverage_is_valid(layer.geometry.to_numpy())
    assert layer.area.sum() == 120 * 100
    page = tmp_path / "region.html"
    reported = landseg("report", tmp_path / "maps/region.gpkg", "--out", page)
    assert (reported.code, reported.err) == (0, "")
    shown = json.loads(page.read_text().split('id="report">')[1].split("</script>")[0])
    jpeg = base64.b64decode(shown["imagery"].removeprefix("data:image/jpeg;base64,"))
    with MemoryFile(jpeg) as memory, memory.open() as picture:
        difference = picture.read().astype(int) - city[:, :, :100]
    assert np.abs(difference).mean() < 5
    told = dict(shown["provenance"])
    assert told["Scenes"] == "3: north, 2026-03-01; south, 2026-04-01; middle, 2026-05-01"
    assert told["Where they overlap"] == "the newest counts"
    assert told["Model"].startswith("small, ")
    checked = landseg("catalog", "validate", "--catalog", catalog)
    assert (checked.code, checked.err) == (0, "")
    assert "10 objects and 22 files checked, 0 faults" in checked.out
