"""The training loop, run by Lightning, resumable after an interruption."""

import logging
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets import stack_samples
from torchmetrics.classification import MulticlassConfusionMatrix

from landseg.errors import ResourceError, RunInterruptedError, TrainingDataError, UsageError
from landseg.model.pspnet import Architecture, PSPNet
from landseg.predict import choose_device
from landseg.train.augment import CutMix
from landseg.train.evaluate import Scores
from landseg.train.labels import IGNORED
from landseg.train.losses import Objective
from landseg.train.samples import Sample, Sites, Source
from landseg.train.teacher import Teacher

OptimiserName = Literal["adamw", "sgd"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

EXPECTED_WARNINGS = (
    # What Lightning does with a newer torch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # A training that is resumed finds its own folders.
    "Experiment logs directory",
    "Checkpoint directory .* exists and is not empty",
    # The last epoch has the steps that are left.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    "You're resuming from a checkpoint that ended before the epoch ended",
    # A Mac's.
    "GPU available but not used",
)
"""Beginnings of warnings that tell users nothing."""

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, in a training's."""

LAST = "last.ckpt"
"""The one that a training goes on from."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the weights are moved.

    Parameters
    ----------
    steps
        Batches in all.
    learning_rate
        At its height.
    weight_decay
        Of convolution weights; normalisation and biases are left alone.
    warm_up_steps
        Steps over which the rate rises linearly; then it falls as ``(1 - step / steps) ** 0.9``, as in the paper.
    optimiser
        ``adamw``, or the paper's ``sgd``, with Nesterov's momentum switched off.
    momentum
        Of SGD.
    coarse_steps
        Steps at the beginning in which the backbone works at output stride 16 where the network's is 8: a third of the
        work, and the same weights.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    warm_up_steps: int = 0
    optimiser: OptimiserName = "adamw"
    momentum: float = 0.9
    coarse_steps: int = 0

    def factor(self, step: int) -> float:
        """Give the share of the learning rate that holds at a step."""
        rise = min(1.0, (step + 1) / (self.warm_up_steps + 1))
        return float(rise * max(0.0, 1 - step / self.steps) ** 0.9)


class Training(lightning.LightningModule):
    """PSPNet, with its auxiliary head if it has one, a loss and a poly schedule.

    Parameters
    ----------
    architecture
        The network to train.
    mean, std
        Of each band on the scale 0-255.
    schedule
        How the weights are moved.
    objective
        What they are moved towards.
    teacher
        Answers each batch as well, for the objective's loss towards it.
    """

    def __init__(
        self,
        architecture: Architecture,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        schedule: Schedule,
        objective: Objective | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.network = PSPNet(architecture, auxiliary=architecture.auxiliary).to(memory_format=torch.channels_last)
        self.schedule = schedule
        self.objective = objective or Objective()
        self.teacher = teacher
        self.confusion = MulticlassConfusionMatrix(architecture.classes, ignore_index=IGNORED, validate_args=False)
        # No buffers, since a running average of the weights takes those in, and rounds them a little each time.
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def normalise(self, image: Tensor) -> Tensor:
        """Bring pixels, (N, C, H, W) on the scale 0-255, to what the network sees."""
        mean, std = self.mean.to(image.device), self.std.to(image.device)
        return ((image - mean) / std).to(memory_format=torch.channels_last)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:  # noqa: ARG002
        """Set the output stride that holds at this step, which a resumed training may enter anywhere."""
        if self.schedule.coarse_steps:
            fine = self.network.architecture.output_stride
            coarse = self.global_step < self.schedule.coarse_steps
            self.network.backbone.set_output_stride(max(fine, 16) if coarse else fine)

    def on_validation_start(self) -> None:
        """Validate the network that there will be, at its own output stride."""
        if self.schedule.coarse_steps:
            self.network.backbone.set_output_stride(self.network.architecture.output_stride)

    def on_train_end(self) -> None:
        """Leave the network at its own output stride, also when the coarse steps were the last."""
        self.on_validation_start()

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:  # noqa: ARG002
        """Compute the loss of a batch of samples (see `landseg.train.samples`)."""
        x, mask = self.normalise(batch["image"]), batch["mask"]
        taught = self._taught(batch)
        if self.network.auxiliary is None:
            loss = self.objective(self.network(x), mask, taught)
        else:
            logits, auxiliary = self.network(x, with_auxiliary=True)
            loss = self.objective.of_both_heads(logits, auxiliary, mask, taught)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:  # noqa: ARG002
        """Compare the answer to a batch with its labels."""
        logits = self.network(self.normalise(batch["image"]))
        self.confusion.update(logits, batch["mask"])
        loss = self.objective(logits, batch["mask"], self._taught(batch))
        self.log("val_loss", loss, batch_size=len(logits), sync_dist=True)

    def _taught(self, batch: dict[str, Tensor]) -> Tensor | None:
        return None if self.teacher is None else self.teacher(batch["image"])

    def on_validation_epoch_end(self) -> None:
        """Log the mean IoU over all batches."""
        confusion = self.confusion.compute().cpu().numpy()
        self.log("val_miou", replace(Scores.nothing(len(confusion)), confusion=confusion).miou, prog_bar=True)
        self.confusion.reset()

    def configure_optimizers(self) -> Any:
        """Make the optimiser and its schedule, in the form that Lightning asks for."""
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        rate, decay = self.schedule.learning_rate, self.schedule.weight_decay
        optimizer = (
            torch.optim.AdamW(groups, rate, weight_decay=decay)
            if self.schedule.optimiser == "adamw"
            else torch.optim.SGD(groups, rate, self.schedule.momentum, weight_decay=decay)
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass(frozen=True, eq=False)
class _Epoch(Dataset[Sample]):
    """The training batches of an epoch, each varied by a seed of its own, whichever process makes it and when."""

    dataset: Dataset[Sample]
    places: list[list[Any]]
    seeds: list[int]
    collate: Callable[[list[Sample]], Sample]

    def __getitem__(self, index: int) -> Sample:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seeds[index])
            return self.collate([self.dataset[place] for place in self.places[index]])

    def __len__(self) -> int:
        return len(self.places)


class Chips(lightning.LightningDataModule):
    """Random chips; which ones, and how they are varied, follows from the seed and the epoch alone.

    Parameters
    ----------
    training
        What they are drawn from.
    validation
        What is looked at after each epoch and not trained on.
    batch, batches
        Chips per batch, batches per epoch; a training's last epoch has those that are left.
    workers
        Processes that read and augment.
    seed
        Of the choice and variation of chips.
    cutmix
        Share of the training chips that get a rectangle of another.
    """

    def __init__(
        self,
        training: Source,
        validation: Sites | None = None,
        *,
        batch: int,
        batches: int,
        workers: int,
        seed: int,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__()
        self.training = training
        self.validation = validation
        self.batch = batch
        self.batches = batches
        self.workers = workers
        self.seed = seed
        self.cutmix = cutmix

    def train_dataloader(self) -> DataLoader[Any]:
        """Make the loader of the coming epoch."""
        epoch, rank, batches = 0, 0, self.batches
        if self.trainer is not None:
            epoch, rank = self.trainer.current_epoch, self.trainer.global_rank
            batches = min(batches, self.trainer.max_steps - epoch * batches)
        # A training that resumes at an epoch's start must draw what an uninterrupted one draws there; and each of
        # several GPUs chips of its own.
        own, *seeds = np.random.SeedSequence(self.seed, spawn_key=(epoch, rank)).generate_state(1 + batches).tolist()
        torch.manual_seed(own)
        # All at once: dropout draws from torch's global generator too.
        places = list(self.training.draw(batches * self.batch))
        grouped = [places[start : start + self.batch] for start in range(0, len(places), self.batch)]
        collate = CutMix(self.cutmix) if self.cutmix else stack_samples
        return DataLoader(
            _Epoch(self.training.dataset, grouped, seeds, collate),
            batch_size=None,
            num_workers=self.workers,
            # Else each iterator would take a number from the global one, and a training that resumes makes fewer.
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Make the loader of the validation."""
        if self.validation is None:
            raise ValueError("there is nothing to validate with")
        return DataLoader(
            self.validation.dataset,
            batch_size=self.batch,
            sampler=self.validation.places,
            num_workers=self.workers,
            collate_fn=stack_samples,
        )


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a training is carried out; apart from `ema_decay` and `patience` it does not change what is learnt.

    Parameters
    ----------
    precision
        Lightning's name of the arithmetic.
    ema_decay
        Share of the running average of the weights that each step keeps; None keeps the last step's weights instead.
    patience
        Validations in a row without a better mean IoU that end the training, with the best one's weights.
    devices
        GPUs, or processes where there is none.
    tensorboard
        Whether to log for TensorBoard as well.
    quiet
        Whether to show no progress bar.
    """

    precision: Precision = "32-true"
    ema_decay: float | None = None
    patience: int | None = None
    devices: int = 1
    tensorboard: bool = False
    quiet: bool = False


def fit(training: Training, data: Chips, folder: Path, conduct: Conduct) -> PSPNet:
    """Run a training to its last step, from its last checkpoint where there is one.

    Parameters
    ----------
    training
        Network, loss and schedule.
    data
        The chips; an epoch of theirs ends with a checkpoint.
    folder
        Gets checkpoints, and under ``log`` the loss and the mean IoU as CSV, a folder for each start. Checkpoints that
        it has must be this training's.
    conduct
        How to carry it out.

    Returns
    -------
    PSPNet
        The trained network.

    Raises
    ------
    ResourceError
        If there are fewer GPUs than asked for.
    UsageError
        If TensorBoard is asked for and not installed.
    TrainingDataError
        If the checkpoint to go on from is damaged.
    RunInterruptedError
        On Ctrl-C.
    """
    device = choose_device("auto")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus and conduct.devices > gpus:
        raise ResourceError(f"there are {gpus} GPUs, not {conduct.devices}", "give fewer as optimisation.devices")
    # Lightning advises on hardware that this machine lacks; what matters stands in the log.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for expected in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", expected)
    checkpoints = folder / CHECKPOINTS
    last = checkpoints / LAST
    stop = None
    if conduct.patience is not None:
        stop = EarlyStopping("val_miou", mode="max", patience=conduct.patience, check_on_train_epoch_end=False)
    if last.exists() and _has_ended(last, training.schedule.steps, stop):
        # Lightning would give the last step's weights, whether or not it is their average that was asked for.
        return _restored(training, last if stop is None else checkpoints / "best.ckpt")
    best = ModelCheckpoint(
        checkpoints,
        "best",
        monitor="val_miou",
        mode="max",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = []
    if stop is not None:
        callbacks += [stop, best]
    # After validation, whose outcome a resumed training must know; without one after an epoch's last step, since a
    # checkpoint of the epoch's end Lightning would resume in the epoch that it ended.
    when = {"every_n_train_steps": data.batches} if data.validation is None else {"save_on_train_epoch_end": False}
    callbacks.append(ModelCheckpoint(checkpoints, last.stem, enable_version_counter=False, **when))
    if conduct.ema_decay is not None:
        # Where the network will be, which it is not yet when the average is made.
        callbacks.append(EMAWeightAveraging(device, decay=conduct.ema_decay))
    loggers: list[Logger] = [CSVLogger(folder, name="log")]
    if conduct.tensorboard:
        if find_spec("tensorboard") is None:
            raise UsageError("TensorBoard is not installed", "pip install tensorboard, or leave the key out")
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    trainer = lightning.Trainer(
        max_steps=training.schedule.steps,
        precision=conduct.precision,
        # Else Lightning would take a Mac's GPU, where the weights' average is not.
        accelerator=device.type,
        devices=conduct.devices,
        strategy="auto" if conduct.devices == 1 else "ddp",
        sync_batchnorm=conduct.devices > 1 and gpus > 0,
        # The samplers draw for each process by themselves.
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=min(10, data.batches),
        num_sanity_val_steps=0,
        limit_val_batches=0 if data.validation is None else None,
        reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False,
        enable_progress_bar=not conduct.quiet,
    )
    try:
        trainer.fit(training, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except SystemExit as leaving:
        # What Lightning makes of Ctrl-C.
        raise RunInterruptedError(
            f"training stopped at step {trainer.global_step}", "run it again to go on from the last checkpoint"
        ) from leaving
    if data.validation is None and trainer.global_step % data.batches:
        trainer.save_checkpoint(last)
    if not trainer.is_global_zero:
        # The first process alone writes what comes of it.
        sys.exit()
    return _restored(training, Path(best.best_model_path)) if best.best_model_path else training.network


def _has_ended(checkpoint: Path, steps: int, stop: EarlyStopping | None) -> bool:
    """Tell whether a training did all its steps or ran out of patience; Lightning would go on from the latter."""
    state = _read(checkpoint)
    if state["global_step"] >= steps:
        return True
    going_on = EarlyStoppingReason.NOT_STOPPED.value
    return stop is not None and state["callbacks"][stop.state_key]["stopping_reason"] != going_on


def _restored(training: Training, checkpoint: Path) -> PSPNet:
    """Give the network the weights of a checkpoint, averaged ones if the training averages."""
    training.load_state_dict(_read(checkpoint)["state_dict"])
    return training.network


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        state = torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")
        return {key: state[key] for key in ("state_dict", "global_step", "callbacks")}
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError) as error:
        raise TrainingDataError(
            f"the checkpoint {checkpoint} is damaged", f"delete {checkpoint.parent} to begin the training anew"
        ) from error
