"""Each pipeline that comes with landseg runs as it stands, on a model that is quick to run."""

import json
from pathlib import Path

import pyogrio
import pystac
import pytest

from landseg.batch import load_pipeline
from landseg.model.bundle import DEFAULT_MODEL
from tests.conftest import ROOT, Landseg

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
