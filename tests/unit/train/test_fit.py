"""Training on a corner of the real data: small steps, but everything that a long training does."""

import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from landseg.errors import RunInterruptedError
from landseg.model.pspnet import Architecture
from landseg.train.fit import Chips, Schedule, Training, fit
from landseg.train.samples import LabelCodes, Pair, Source, draw_from_scenes, open_pairs

NAMES = ("building", "land", "road", "vegetation", "water")
CODES = LabelCodes(dict(enumerate(NAMES)), NAMES)
STEPS = 4
EPOCH = 2


class Small(nn.Module):
    """Stands in for PSPNet, whose checkpoints take seconds to write; has normalisation, dropout and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(16, 5, 1))
        self.auxiliary = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor, *, with_auxiliary: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        y = self.features(x)
        return self.head(y), self.auxiliary(y)


class Recorded(Training):
    """A training that notes its batches, and may lose power."""

    def __init__(self, fails_at: int | None = None) -> None:
        schedule = Schedule(steps=STEPS, learning_rate=1e-3, weight_decay=0.05, warm_up_steps=1, auxiliary_weight=0.4)
        super().__init__(Architecture(bins=(1,)), (130.0, 120.0, 110.0), (50.0, 45.0, 40.0), schedule)
        self.network = Small()  # type: ignore[assignment]
        self.fails_at = fails_at
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        if self.global_step == self.fails_at:
            raise OSError("power cut")
        self.seen.append(batch["image"].clone())
        return super().training_step(batch, batch_index)


def run(corner: Pair, folder: Path, training: Recorded, seed: int = 1) -> dict[str, Tensor]:
    dataset = open_pairs([corner], CODES, 1.0, augment=True)
    source = Source(dataset, partial(draw_from_scenes, dataset))
    data = Chips(source, chip_px=48, batch=2, batches=EPOCH, workers=0, seed=seed)
    return fit(training, data, folder, precision="32-true", quiet=True).state_dict()


def fresh(fails_at: int | None = None) -> Recorded:
    torch.manual_seed(0)
    return Recorded(fails_at)


@pytest.fixture(scope="module")
def straight(corner: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorded, dict[str, Tensor]]:
    """Train without interruption."""
    folder, training = tmp_path_factory.mktemp("straight"), fresh()
    return folder, training, run(corner, folder, training)


def test_training_moves_every_weight_for_so_many_steps(straight: tuple[Path, Recorded, dict[str, Tensor]]) -> None:
    _, training, weights = straight
    before = fresh().network.state_dict()

    assert training.global_step == len(training.seen) == STEPS
    assert [name for name, tensor in weights.items() if torch.equal(tensor, before[name])] == []
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_batches_are_chips_of_the_scene_that_differ(straight: tuple[Path, Recorded, dict[str, Tensor]]) -> None:
    _, training, _ = straight

    chips = torch.cat(training.seen)

    assert chips.shape == (STEPS * 2, 3, 48, 48)
    assert len({chip.numpy().tobytes() for chip in chips}) == STEPS * 2


def test_loss_is_logged(straight: tuple[Path, Recorded, dict[str, Tensor]]) -> None:
    folder, _, _ = straight

    with (folder / "log" / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]

    assert len(losses) >= 1
    # Five classes guessed blindly cost (1 + 0.4) ln 5; a fresh network is no far cry from that.
    assert all(0 < loss < 4 * 1.4 * math.log(5) for loss in losses)


@pytest.mark.parametrize("fails_at", [EPOCH, EPOCH + 1])
def test_an_interrupted_training_ends_in_the_same_weights(
    fails_at: int, corner: Pair, tmp_path: Path, straight: tuple[Path, Recorded, dict[str, Tensor]]
) -> None:
    with pytest.raises(OSError, match="power cut"):
        run(corner, tmp_path, fresh(fails_at))
    torch.manual_seed(99)  # a new process knows nothing of the old one's draws
    resumed = Recorded()

    weights = run(corner, tmp_path, resumed)

    _, training, expected = straight
    assert len(resumed.seen) == STEPS - EPOCH
    assert all(torch.equal(a, b) for a, b in zip(resumed.seen, training.seen[EPOCH:], strict=True))
    assert [name for name, tensor in weights.items() if not torch.equal(tensor, expected[name])] == []


def test_a_training_interrupted_before_its_first_checkpoint_starts_again(
    corner: Pair, tmp_path: Path, straight: tuple[Path, Recorded, dict[str, Tensor]]
) -> None:
    with pytest.raises(OSError, match="power cut"):
        run(corner, tmp_path, fresh(1))
    again = fresh()

    weights = run(corner, tmp_path, again)

    assert len(again.seen) == STEPS
    assert all(torch.equal(weights[name], tensor) for name, tensor in straight[2].items())


def test_a_finished_training_is_not_trained_further(
    corner: Pair, straight: tuple[Path, Recorded, dict[str, Tensor]]
) -> None:
    folder, _, expected = straight
    torch.manual_seed(99)
    again = Recorded()

    weights = run(corner, folder, again)

    assert again.seen == []
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_another_seed_draws_other_chips(
    corner: Pair, tmp_path: Path, straight: tuple[Path, Recorded, dict[str, Tensor]]
) -> None:
    other = fresh(fails_at=1)
    with pytest.raises(OSError, match="power cut"):
        run(corner, tmp_path, other, seed=2)

    assert not torch.equal(other.seen[0], straight[1].seen[0])


def test_weights_alone_decay() -> None:
    decayed, plain = fresh().configure_optimizers()["optimizer"].param_groups

    assert decayed["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in plain["params"]} == {1}


def test_learning_rate_rises_linearly_and_falls_as_in_the_paper() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, weight_decay=0, warm_up_steps=4, auxiliary_weight=0.4)

    factors = [schedule.factor(step) for step in range(101)]

    poly = [(1 - step / 100) ** 0.9 for step in range(101)]
    assert [f / p for f, p in zip(factors[:6], poly[:6], strict=True)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert factors[4:] == pytest.approx(poly[4:])
    assert factors[100] == schedule.factor(101) == 0  # Lightning asks for one step more than there are


class Stopped(Recorded):
    """A training whose user presses Ctrl-C."""

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        if self.global_step == EPOCH + 1:
            raise KeyboardInterrupt
        return super().training_step(batch, batch_index)


def test_ctrl_c_says_where_and_how_to_go_on(corner: Pair, tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError, match=f"step {EPOCH + 1}") as caught:
        run(corner, tmp_path, Stopped())
    assert caught.value.exit_code == 130
    assert "again" in str(caught.value)
