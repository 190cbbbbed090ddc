"""A GPU without one: torch's fake tensors compute nothing, but refuse what a GPU would, tensors that lie elsewhere."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from landseg.chips import Normalisation
from landseg.grid import Tiling
from landseg.model.pspnet import Architecture, PSPNet
from landseg.mosaic import Mosaic
from landseg.predict import Predictor

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch has no GPU's tensors")

GPU = torch.device("cuda")
CLASS_IDS = (1, 2, 3)


def replace_weights(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Move weights as `nn.Module._apply` does, but by new parameters: fake ones can't be changed in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            part._parameters[name] = None if weight is None else nn.Parameter(function(weight.detach()))
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else function(buffer)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [1, 8])
def test_all_that_chips_meet_on_a_gpu_is_there(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, views: int) -> None:
    monkeypatch.setattr(nn.Module, "_apply", replace_weights)
    monkeypatch.setattr(FakeTensor, "numpy", lambda tensor: np.zeros(tensor.shape, np.uint8), raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    tiling = Tiling((100, 130), 48, 12)
    with FakeTensorMode():
        predict = Predictor(PSPNet(Architecture(classes=3)), GPU, dtype, temperature=1.5, views=views)
        normalise = Normalisation.of([(0, 255)] * 3, [100.0] * 3, [50.0] * 3, GPU)
        mosaic = Mosaic(tiling, CLASS_IDS, device=GPU)
        for row in tiling.whole.chip_rows:
            chips = list(tiling.chip_row(row))
            pixels = torch.zeros((len(chips), 3, 48, 48), dtype=torch.uint8, device=GPU)
            valid = torch.ones((len(chips), 48, 48), dtype=torch.bool, device=GPU)
            probabilities = predict.unchecked(normalise(pixels, valid))
            assert (probabilities.device.type, probabilities.dtype) == ("cuda", torch.float32)
            for one in zip(chips, probabilities, valid, strict=True):
                mosaic.add(*one)
            part = mosaic.finish(row)
            assert {sums.levels.device.type for sums in (part.upper, part.lower)} == {"cpu"}
