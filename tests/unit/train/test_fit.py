"""Training on a corner of the real data: small steps, but everything that a long training does."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchgeo.samplers import GridGeoSampler

from landseg.chips import Normalisation
from landseg.errors import RunInterruptedError, TrainingDataError
from landseg.model.pspnet import Architecture, PSPNet
from landseg.train.augment import Augmentation
from landseg.train.fit import Chips, Conduct, Schedule, Training, fit
from landseg.train.labels import LabelCodes
from landseg.train.samples import ModelInput, Pair, Sites, Source
from landseg.train.splits import open_splits

NAMES = ("building", "land", "road", "vegetation", "water")
CODES = LabelCodes(dict(enumerate(NAMES)), NAMES)
STEPS = 4
EPOCH = 2
QUIET = Conduct(quiet=True)


class Small(nn.Module):
    """Stands in for PSPNet, whose checkpoints take seconds to write; has normalisation, dropout and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(16, 5, 1))
        self.auxiliary = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor, *, with_auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        y = self.features(x)
        return (self.head(y), self.auxiliary(y)) if with_auxiliary else self.head(y)


class Recorded(Training):
    """A training that notes its batches, and may lose power."""

    def __init__(self, fails_at: int | None = None, steps: int = STEPS) -> None:
        schedule = Schedule(steps=steps, learning_rate=1e-3, weight_decay=0.05, warm_up_steps=1)
        super().__init__(Architecture(bins=(1,)), (130.0, 120.0, 110.0), (50.0, 45.0, 40.0), schedule)
        self.network = Small()  # type: ignore[assignment]
        self.fails_at = fails_at
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        if self.global_step == self.fails_at:
            raise OSError("power cut")
        self.seen.append(batch["image"].clone())
        return super().training_step(batch, batch_index)


def run(
    corner: Pair,
    folder: Path,
    training: Recorded,
    seed: int = 1,
    conduct: Conduct = QUIET,
    *,
    validate: bool = False,
    epoch: int = EPOCH,
) -> dict[str, Tensor]:
    vary = Augmentation(scale=1.25)
    splits = open_splits([corner], CODES, ModelInput(1.0), chip_px=48, read_px=vary.read_px(48), vary=vary)
    seen = open_splits([corner], CODES, ModelInput(1.0), chip_px=48).training
    sites = Sites(seen, GridGeoSampler(seen, size=48, stride=48))
    source = Source(splits.training, splits.training_sampler)
    data = Chips(source, sites if validate else None, batch=2, batches=epoch, workers=0, seed=seed)
    return fit(training, data, folder, conduct).state_dict()


def fresh(fails_at: int | None = None, steps: int = STEPS) -> Recorded:
    torch.manual_seed(0)
    return Recorded(fails_at, steps)


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

    losses = logged(folder, "loss")

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


@pytest.mark.parametrize("left", [0, 10_000])
def test_a_damaged_checkpoint_is_told(corner: Pair, tmp_path: Path, left: int) -> None:
    last = tmp_path / "checkpoints/last.ckpt"
    run(corner, tmp_path, fresh(steps=EPOCH))
    with last.open("r+b") as file:
        file.truncate(left)
    with pytest.raises(TrainingDataError, match=r"last\.ckpt is damaged"):
        run(corner, tmp_path, fresh())
    torch.save({"state_dict": {}}, last)
    with pytest.raises(TrainingDataError, match=r"last\.ckpt is damaged"):
        run(corner, tmp_path, fresh())


def test_another_seed_draws_other_chips(
    corner: Pair, tmp_path: Path, straight: tuple[Path, Recorded, dict[str, Tensor]]
) -> None:
    other = fresh()

    run(corner, tmp_path, other, seed=2)

    # Nor in another epoch, which would make the networks of an ensemble alike.
    mine, theirs = ({chip.numpy().tobytes() for chip in torch.cat(one.seen)} for one in (other, straight[1]))
    assert mine.isdisjoint(theirs)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_chips_follow_from_the_seed_whoever_reads_them(corner: Pair) -> None:
    vary = Augmentation(scale=1.25)
    splits = open_splits([corner], CODES, ModelInput(1.0), chip_px=48, read_px=vary.read_px(48), vary=vary)
    source = Source(splits.training, splits.training_sampler)

    def drawn(workers: int) -> tuple[list[dict[str, Tensor]], Tensor]:
        batches = []
        for batch in Chips(source, batch=2, batches=4, workers=workers, seed=1, cutmix=0.5).train_dataloader():
            batches.append(batch)
            torch.rand(8)  # as dropout does
        return batches, torch.rand(8)

    (expected, dropout), *others = (drawn(workers) for workers in (0, 1, 2))

    for batches, draws in others:
        assert torch.equal(draws, dropout)
        for one, other in zip(batches, expected, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("image", "mask"))


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize(("steps", "conduct"), [(4, Conduct(ema_decay=0.9, quiet=True)), (5, QUIET)])
def test_steps_that_are_no_whole_epoch_are_validated_and_kept_too(
    steps: int, conduct: Conduct, validate: bool, corner: Pair, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    training = fresh(steps=steps)
    expected = run(corner, whole, training, conduct=conduct, validate=validate, epoch=3)
    assert len(training.seen) == steps
    assert len(logged(whole, "val_miou")) == (2 if validate else 0)
    again = fresh(steps=steps)
    kept = run(corner, whole, again, conduct=conduct, validate=validate, epoch=3)
    with pytest.raises(OSError, match="power cut"):
        run(corner, cut, fresh(steps - 1, steps), conduct=conduct, validate=validate, epoch=3)
    resumed = fresh(steps=steps)

    weights = run(corner, cut, resumed, conduct=conduct, validate=validate, epoch=3)

    assert (len(again.seen), len(resumed.seen)) == (0, steps - 3)
    for name, tensor in expected.items():
        assert torch.equal(kept[name], tensor)
        assert torch.equal(weights[name], tensor)
    assert logged(cut, "val_miou") == logged(whole, "val_miou")


class Watched(Recorded):
    """A training that notes its weights after each step."""

    def __init__(self, fails_at: int | None = None, steps: int = STEPS) -> None:
        super().__init__(fails_at, steps)
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.after.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})


def logged(folder: Path, column: str) -> list[float]:
    """Read a column of the log, all starts of the training together."""
    values = []
    for path in sorted(folder.glob("log/*/metrics.csv")):
        with path.open() as file:
            values += [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
    return values


def test_the_average_of_the_weights_is_what_is_kept(corner: Pair, tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = Watched()

    kept = run(corner, tmp_path, training, conduct=Conduct(ema_decay=0.9, quiet=True))

    average = {name: tensor.double() for name, tensor in training.after[0].items()}
    for weights in training.after[1:]:
        average = {name: 0.9 * tensor + 0.1 * weights[name] for name, tensor in average.items()}
    assert all(not torch.equal(kept[name], training.after[-1][name]) for name in ("head.1.weight", "auxiliary.weight"))
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-7)
    # And so it is when a training that has ended is called again.
    again = run(corner, tmp_path, fresh(), conduct=Conduct(ema_decay=0.9, quiet=True))
    assert all(torch.equal(again[name], tensor) for name, tensor in kept.items())


def test_pixels_are_normalised_as_for_mapping() -> None:
    training, image = fresh(), 255 * torch.rand((2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    card = [tuple(values.flatten().tolist()) for values in (training.mean, training.std)]
    mapped = Normalisation.of(((0.0, 255.0),) * 3, *card)

    torch.testing.assert_close(training.normalise(image), mapped(image, torch.ones((2, 4, 5), dtype=torch.bool)))


def test_an_average_leaves_the_normalisation_as_it_was(corner: Pair, tmp_path: Path) -> None:
    training, image = fresh(), torch.full((1, 3, 4, 4), 100.0)
    before = training.normalise(image)

    run(corner, tmp_path, training, conduct=Conduct(ema_decay=0.993, quiet=True))

    assert torch.equal(training.normalise(image), before)


def test_a_validated_and_averaged_training_resumes_to_the_same_weights(corner: Pair, tmp_path: Path) -> None:
    conduct = Conduct(ema_decay=0.9, patience=5, quiet=True)
    expected = run(corner, tmp_path / "straight", fresh(), conduct=conduct, validate=True)
    with pytest.raises(OSError, match="power cut"):
        run(corner, tmp_path / "cut", fresh(EPOCH + 1), conduct=conduct, validate=True)
    torch.manual_seed(99)

    weights = run(corner, tmp_path / "cut", Recorded(), conduct=conduct, validate=True)

    assert [name for name, tensor in weights.items() if not torch.equal(tensor, expected[name])] == []
    assert logged(tmp_path / "cut", "val_miou") == logged(tmp_path / "straight", "val_miou")


def test_validation_is_logged_after_each_epoch(corner: Pair, tmp_path: Path) -> None:
    run(corner, tmp_path, fresh(), validate=True)

    assert len(logged(tmp_path, "val_loss")) == STEPS // EPOCH
    assert all(0 <= miou < 0.6 for miou in logged(tmp_path, "val_miou"))


def test_tensorboard_gets_the_same_losses(corner: Pair, tmp_path: Path) -> None:
    run(corner, tmp_path, fresh(), conduct=Conduct(tensorboard=True, quiet=True))

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [event.value for event in events] == pytest.approx(logged(tmp_path, "loss"), rel=1e-6)


class Standing(Watched):
    """A training that does not get better after its first epoch."""

    def on_validation_epoch_end(self) -> None:
        self.log("val_miou", 0.3 - 0.1 * self.current_epoch)
        self.confusion.reset()


@pytest.mark.parametrize("steps", [2 * EPOCH, 5 * EPOCH])
def test_training_ends_early_with_the_best_weights(corner: Pair, tmp_path: Path, steps: int) -> None:
    torch.manual_seed(0)
    training = Standing(steps=steps)

    kept = run(corner, tmp_path, training, conduct=Conduct(patience=1, quiet=True), validate=True)

    assert len(training.seen) == 2 * EPOCH
    assert all(torch.equal(tensor, training.after[EPOCH - 1][name]) for name, tensor in kept.items())
    # It has ended, though there are steps left.
    for _ in range(2):
        again = Standing(steps=steps)
        weights = run(corner, tmp_path, again, conduct=Conduct(patience=1, quiet=True), validate=True)
        assert again.seen == []
        assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())


def test_a_training_that_was_cut_off_in_its_patience_has_not_ended(corner: Pair, tmp_path: Path) -> None:
    conduct = Conduct(patience=2, quiet=True)
    with pytest.raises(OSError, match="power cut"):
        run(corner, tmp_path, Standing(fails_at=2 * EPOCH, steps=5 * EPOCH), conduct=conduct, validate=True)
    resumed = Standing(steps=5 * EPOCH)

    run(corner, tmp_path, resumed, conduct=conduct, validate=True)

    # One validation of two was in vain before.
    assert len(resumed.seen) == EPOCH


def test_first_steps_are_coarse_also_when_resumed() -> None:
    class At(Training):
        """A training that stands at some step."""

        global_step = 0

    torch.manual_seed(0)
    schedule = Schedule(steps=4, learning_rate=1e-3, weight_decay=0.05, coarse_steps=2)
    training = At(Architecture(stem="7x7"), (0.0,) * 3, (1.0,) * 3, schedule).eval()

    sides = []
    for step in (0, 1, 2, 3, 1):
        training.global_step = step
        training.on_train_batch_start({}, 0)
        with torch.inference_mode():
            sides.append(training.network.backbone(torch.zeros(1, 3, 96, 96))[-1].shape[-1])

    assert sides == [6, 6, 12, 12, 6]


class Strided(Recorded):
    """A training that notes the output strides that it trains and validates at."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[int] = []
        self.validated: set[int] = set()

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        self.trained.append(self.network.backbone.output_stride)
        return super().training_step(batch, batch_index)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        self.validated.add(self.network.backbone.output_stride)
        super().validation_step(batch, batch_index)


def test_a_training_whose_steps_were_all_coarse_gives_a_network_of_its_own_stride(corner: Pair, tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = Strided()
    training.network = PSPNet(Architecture(bins=(1,), stem="7x7"), auxiliary=True)
    training.schedule = replace(training.schedule, steps=EPOCH, coarse_steps=EPOCH)

    run(corner, tmp_path, training, validate=True, epoch=1)

    assert training.trained == [16] * EPOCH
    assert training.validated == {8}
    with torch.inference_mode():
        assert training.network.eval().backbone(torch.zeros(1, 3, 96, 96))[-1].shape[-1] == 12


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimisers(name: Literal["adamw", "sgd"], kind: type[torch.optim.Optimizer]) -> None:
    training = fresh()
    training.schedule = replace(training.schedule, optimiser=name, momentum=0.8)

    optimizer = training.configure_optimizers()["optimizer"]

    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 1e-3
    assert name == "adamw" or (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.8, False)


def test_weights_alone_decay() -> None:
    decayed, plain = fresh().configure_optimizers()["optimizer"].param_groups

    assert decayed["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {4}
    assert {p.ndim for p in plain["params"]} == {1}


def test_learning_rate_rises_linearly_and_falls_as_in_the_paper() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, weight_decay=0, warm_up_steps=4)

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


def test_a_mac_s_gpu_is_left_alone(corner: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    run(corner, tmp_path, fresh(), conduct=Conduct(ema_decay=0.9, quiet=True))
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
