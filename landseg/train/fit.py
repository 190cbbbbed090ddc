"""The training loop, run by Lightning, resumable after an interruption."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets import stack_samples

from landseg.errors import RunInterruptedError
from landseg.model.pspnet import Architecture, PSPNet
from landseg.train.losses import pspnet_loss, segmentation_loss
from landseg.train.samples import Source

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the weights are moved.

    Parameters
    ----------
    steps
        Batches in all.
    learning_rate
        AdamW's, at its height.
    weight_decay
        Of convolution weights; normalisation and biases are left alone.
    warm_up_steps
        Steps over which the rate rises linearly; then it falls as ``(1 - step / steps) ** 0.9``, as in the paper.
    auxiliary_weight
        Weight of the auxiliary head's loss.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    warm_up_steps: int
    auxiliary_weight: float

    def factor(self, step: int) -> float:
        """Give the share of the learning rate that holds at a step."""
        rise = min(1.0, (step + 1) / (self.warm_up_steps + 1))
        return float(rise * max(0.0, 1 - step / self.steps) ** 0.9)


class Training(lightning.LightningModule):
    """PSPNet, with its auxiliary head if it has one, the paper's loss and AdamW with a poly schedule.

    Parameters
    ----------
    architecture
        The network to train.
    mean, std
        Of each band on the scale 0-255.
    schedule
        How the weights are moved.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, architecture: Architecture, mean: tuple[float, ...], std: tuple[float, ...], schedule: Schedule
    ) -> None:
        super().__init__()
        self.network = PSPNet(architecture, auxiliary=architecture.auxiliary).to(memory_format=torch.channels_last)
        self.schedule = schedule
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:  # noqa: ARG002
        """Compute the loss of a batch of samples (see `landseg.train.samples`)."""
        x = ((batch["image"] - self.mean) / self.std).to(memory_format=torch.channels_last)
        if self.network.auxiliary is None:
            loss = segmentation_loss(self.network(x), batch["mask"])
        else:
            logits, auxiliary = self.network(x, with_auxiliary=True)
            loss = pspnet_loss(logits, auxiliary, batch["mask"], self.schedule.auxiliary_weight)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Make AdamW and its schedule, in the form that Lightning asks for."""
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.schedule.learning_rate, weight_decay=self.schedule.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Chips(lightning.LightningDataModule):
    """Random chips of a source; which ones, and how they are varied, follows from the seed and the epoch alone.

    Parameters
    ----------
    source
        What they are drawn from.
    chip_px, batch, batches
        Size of a chip, chips per batch, batches per epoch.
    workers
        Processes that read and augment.
    seed
        Of the choice and variation of chips.
    """

    def __init__(self, source: Source, *, chip_px: int, batch: int, batches: int, workers: int, seed: int) -> None:
        super().__init__()
        self.source = source
        self.chip_px = chip_px
        self.batch = batch
        self.batches = batches
        self.workers = workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Make the loader of the coming epoch."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        # A training that resumes at an epoch's start must draw what an uninterrupted one draws there.
        lightning.seed_everything(self.seed + epoch, verbose=False)
        return DataLoader(
            self.source.dataset,
            batch_size=self.batch,
            sampler=self.source.sampler(self.batch * self.batches, self.chip_px),
            num_workers=self.workers,
            collate_fn=stack_samples,
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )


def fit(training: Training, data: Chips, folder: Path, *, precision: Precision, quiet: bool) -> PSPNet:
    """Run a training to its last step, from its last checkpoint where there is one.

    Parameters
    ----------
    training
        Network, loss and schedule.
    data
        The chips; an epoch of theirs ends with a checkpoint.
    folder
        Gets checkpoints and a log of the loss as CSV.
    precision
        Lightning's name of the arithmetic.
    quiet
        Whether to show no progress bar.

    Returns
    -------
    PSPNet
        The trained network.

    Raises
    ------
    RunInterruptedError
        On Ctrl-C.
    """
    # Lightning advises on hardware that this machine lacks; what matters stands in the log.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    last = folder / "checkpoints" / "last.ckpt"
    trainer = lightning.Trainer(
        max_steps=training.schedule.steps,
        precision=precision,
        default_root_dir=folder,
        # Not every_n_epochs: without validation Lightning resumes such a checkpoint in the epoch that it ended.
        callbacks=[
            ModelCheckpoint(last.parent, last.stem, every_n_train_steps=data.batches, enable_version_counter=False)
        ],
        logger=CSVLogger(folder, name="log", version=""),
        log_every_n_steps=min(10, data.batches),
        reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False,
        enable_progress_bar=not quiet,
    )
    try:
        trainer.fit(training, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except SystemExit as leaving:
        # What Lightning makes of Ctrl-C.
        raise RunInterruptedError(
            f"training stopped at step {trainer.global_step}", "run it again to go on from the last checkpoint"
        ) from leaving
    return training.network
