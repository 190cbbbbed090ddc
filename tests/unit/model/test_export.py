import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from landseg.errors import DiskError
from landseg.legend import Legend
from landseg.model.bundle import CARD_FILE, Bundle, write_bundle
from landseg.model.export import CellMaxima, export_onnx, export_torchscript
from landseg.model.pspnet import Architecture, PSPNet
from tests.conftest import Landseg, small_card


def make(folder: Path, legend: Legend, chip_px: int = 56, **options: Any) -> Bundle:
    """Write a bundle whose chips of 56 px make bins that are not equal."""
    torch.manual_seed(0)
    architecture = Architecture(classes=len(legend), stages=2, **options)
    network = PSPNet(architecture)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return write_bundle(folder, small_card(legend, architecture=architecture, chip_px=chip_px), network)


@pytest.fixture
def bundle(tmp_path: Path, legend: Legend) -> Bundle:
    return make(tmp_path / "model", legend)


def chips(bundle: Bundle, number: int) -> Tensor:
    side = bundle.card.chip_px
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(number))


def check_same(actual: Tensor, bundle: Bundle, x: Tensor) -> None:
    with torch.inference_mode():
        expected = bundle.load_network()(x)
    assert expected.std() > 0.01
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("options", [{}, {"pooling": "max", "stem": "7x7", "align_corners": False}])
def test_onnx_answers_as_torch_for_any_number_of_chips(tmp_path: Path, legend: Legend, options: dict[str, Any]) -> None:
    bundle = make(tmp_path / "model", legend, **options)

    export_onnx(bundle, tmp_path / "model.onnx")

    onnx.checker.check_model(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 56, 56]
    assert session.get_outputs()[0].shape[1:] == [3, 56, 56]
    for number in (1, 3):
        x = chips(bundle, number)
        (logits,) = session.run(["logits"], {"chip": x.numpy()})
        check_same(torch.from_numpy(logits), bundle, x)
    card = session.get_modelmeta().custom_metadata_map[CARD_FILE]
    assert json.loads(card) == json.loads((bundle.folder / CARD_FILE).read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_answers_as_torch_for_any_number_of_chips(bundle: Bundle, tmp_path: Path) -> None:
    export_torchscript(bundle, tmp_path / "model.pt")

    extra = {CARD_FILE: ""}
    program = torch.jit.load(tmp_path / "model.pt", _extra_files=extra)
    for number in (1, 3):
        x = chips(bundle, number)
        with torch.inference_mode():
            check_same(program(x), bundle, x)
    assert json.loads(extra[CARD_FILE]) == json.loads((bundle.folder / CARD_FILE).read_text(encoding="utf-8"))


@pytest.mark.parametrize("size", [(6, 6), (7, 10), (3, 5)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_maxima_of_cells_are_torch_s(size: tuple[int, int], bins: int) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    assert torch.equal(CellMaxima(bins)(x), nn.AdaptiveMaxPool2d(bins)(x))


def test_a_failed_export_leaves_what_was_there(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_program: Any, path: str, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.jit.save", full)
    out = tmp_path / "out" / "model.pt"
    out.parent.mkdir()
    out.write_bytes(b"old")

    with pytest.raises(DiskError, match="No space left"):
        export_torchscript(bundle, out)

    assert out.read_bytes() == b"old"
    assert [path.name for path in out.parent.iterdir()] == ["model.pt"]


def test_an_export_to_nowhere_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        export_torchscript(bundle, tmp_path / "none" / "model.pt")


def test_the_command_writes_the_file_and_tells_its_path(bundle: Bundle, tmp_path: Path, landseg: Landseg) -> None:
    out = tmp_path / "model.onnx"

    done = landseg("models", "export", bundle.folder, "--format", "onnx", "--out", out)
    again = landseg("models", "export", bundle.folder, "--format", "onnx", "--out", out)

    assert (done.code, done.out) == (0, f"{out}\n")
    assert [end.name for end in onnx.load(out).graph.input] == ["chip"]
    assert again.code == 2
    assert "--overwrite" in again.err


def test_a_place_that_can_t_be_written_to_is_refused_before_the_model_is_read(tmp_path: Path, landseg: Landseg) -> None:
    folder = tmp_path / "folder.pt"
    folder.mkdir()
    for out, says in ((tmp_path / "none" / "model.pt", "mkdir -p"), (folder, "is a folder")):
        refused = landseg("models", "export", "none", "--format", "torchscript", "--out", out, "--overwrite")

        assert refused.code == 2
        assert says in refused.err


def test_without_the_extra_the_command_says_what_to_install(
    bundle: Bundle, tmp_path: Path, landseg: Landseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())

    refused = landseg("models", "export", bundle.folder, "--format", "onnx", "--out", tmp_path / "model.onnx")

    assert refused.code == 2
    assert "'export'" in refused.err


def test_damaged_bundles_are_not_exported(bundle: Bundle, tmp_path: Path, landseg: Landseg) -> None:
    weights = bundle.folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    refused = landseg("models", "export", bundle.folder, "--format", "torchscript", "--out", tmp_path / "model.pt")

    assert refused.code == 3
    assert refused.out == ""
    assert not (tmp_path / "model.pt").exists()
