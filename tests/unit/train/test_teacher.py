import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from landseg.errors import BundleError
from landseg.model.bundle import read_bundle
from landseg.train.teacher import Teacher, open_teacher

NAMES = ("building", "park", "water")
RGB = ("red", "green", "blue")


class Brightness(nn.Module):
    """Tell two classes apart by their brightness."""

    def forward(self, image: Tensor) -> Tensor:
        grey = image.mean(dim=1, keepdim=True)
        return torch.cat((grey - 100, 100 - grey), dim=1)


class Swapped(nn.Module):
    """Exchange two classes."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.flip(1)


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    path = tmp_path / "brightness.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would have programs of another kind
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Brightness()), path)
    return path


def test_a_bundle_teaches_what_it_would_map(small_bundle: Path) -> None:
    bundle = read_bundle(str(small_bundle))
    card = bundle.card
    image = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 255

    taught = open_teacher([str(small_bundle)], card.bands, card.legend.names, 96)(image)

    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        expected = bundle.load_network()((image - mean) / std).softmax(dim=1)
    torch.testing.assert_close(taught, expected)


def test_torchscript_teaches_from_pixels(scripted: Path) -> None:
    taught = open_teacher([str(scripted)], RGB, ("bright", "dark"), 48)(torch.full((1, 3, 2, 2), 101.0))

    torch.testing.assert_close(taught, torch.tensor([1.0, -1.0]).softmax(dim=0)[None, :, None, None].expand(1, 2, 2, 2))


def test_several_teachers_answer_by_their_mean() -> None:
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255
    opposite = nn.Sequential(Brightness(), Swapped())

    torch.testing.assert_close(Teacher([Brightness(), opposite])(image), torch.full((1, 2, 4, 4), 0.5))


@pytest.mark.parametrize(
    ("bands", "names", "message"),
    [
        (RGB, NAMES[::-1], "the classes of the teacher small are"),
        (("nir", "red", "green"), NAMES, "the bands of the teacher small are"),
    ],
)
def test_a_bundle_of_something_else_is_refused(
    small_bundle: Path, bands: Sequence[str], names: Sequence[str], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        open_teacher([str(small_bundle)], bands, names, 48)


def test_a_network_of_other_classes_is_refused(scripted: Path) -> None:
    with pytest.raises(BundleError, match=re.escape("answers a chip by (1, 2, 48, 48), not (1, 3, 48, 48)")):
        open_teacher([str(scripted)], RGB, NAMES, 48)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").write_text("not a network")
    with pytest.raises(BundleError, match=r"can't read .*teacher\.pt as TorchScript"):
        open_teacher([str(tmp_path / "teacher.pt")], RGB, NAMES, 48)


def test_a_teacher_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no teacher .*teacher\.pt"):
        open_teacher([str(tmp_path / "teacher.pt")], RGB, NAMES, 48)
