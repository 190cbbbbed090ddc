"""What only a GPU can show: a map made on it is the one that the processor makes."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray

from tests.conftest import Landseg, SceneMaker

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_makes_the_processor_s_map(
    landseg: Landseg,
    make_scene: SceneMaker,
    city: NDArray[np.uint8],
    small_bundle: Path,
    tmp_path: Path,
    precision: str,
) -> None:
    # Many batches, so that copies, the network and the mosaic overlap; and nodata, which is normalised there too.
    data = city.clip(1)
    data[:, 40:60, :70] = 0
    scene = make_scene(data, nodata=0)

    bands = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device / "map.gpkg"
        out.parent.mkdir()
        options = ("--model", small_bundle, "--device", device, "--precision", precision, "--batch", 2, "--quiet")
        outcome = landseg("run", scene, "--out", out, *options)
        assert outcome.code == 0, outcome.err
        with rasterio.open(out.with_suffix(".tif")) as file:
            bands.append(file.read().astype(int))

    (labels, confidence), (gpu_labels, gpu_confidence) = bands
    assert ((labels == 0) == (gpu_labels == 0)).all()
    assert (labels == gpu_labels).mean() > (0.995 if precision == "fp32" else 0.97)
    assert np.abs(confidence - gpu_confidence).max() <= (1 if precision == "fp32" else 5)
