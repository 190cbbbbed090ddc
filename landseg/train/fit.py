"""Training: from a `TrainConfig`'s values to a model bundle, run by Lightning, resumable after an interruption."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets import stack_samples
from torchgeo.samplers import RandomGeoSampler

from landseg.config import TrainConfig, legend_of
from landseg.errors import TrainingDataError
from landseg.model.bundle import Bundle, Card, write_bundle
from landseg.model.pspnet import Architecture, PSPNet
from landseg.train.losses import pspnet_loss
from landseg.train.samples import LabelCodes, Pair, band_statistics, class_frequencies, open_pairs


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
    """PSPNet with its auxiliary head, the paper's loss and AdamW with a poly schedule.

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
        self.network = PSPNet(architecture, auxiliary=True).to(memory_format=torch.channels_last)
        self.schedule = schedule
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:  # noqa: ARG002
        """Compute the loss of a batch of samples (see `landseg.train.samples`)."""
        x = ((batch["image"] - self.mean) / self.std).to(memory_format=torch.channels_last)
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
    """Random chips of the pairs; which ones, and how they are varied, follows from the seed and the epoch alone.

    Parameters
    ----------
    pairs, codes, gsd_m
        See `landseg.train.samples.open_pairs`.
    chip_px, batch, batches
        Size of a chip, chips per batch, batches per epoch.
    workers
        Processes that read and augment.
    seed
        Of the choice and variation of chips.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        codes: LabelCodes,
        gsd_m: float,
        *,
        chip_px: int,
        batch: int,
        batches: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset = open_pairs(pairs, codes, gsd_m, augment=True)
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
        sampler = RandomGeoSampler(self.dataset, size=self.chip_px, length=self.batch * self.batches)
        return DataLoader(
            self.dataset,
            batch_size=self.batch,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=stack_samples,
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )


def train(config: TrainConfig, *, quiet: bool = False) -> Bundle:
    """Train a network and write its bundle to ``config.out / config.name``.

    An interrupted training goes on from its last checkpoint when it is called again with the same configuration.

    Raises
    ------
    TrainingDataError
        If scenes and labels can't be trained on: unreadable, apart from each other, or a class without pixels.
    """
    # Lightning advises on hardware that this machine lacks; what matters stands in the log.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING if quiet else logging.INFO)
    legend = legend_of(config.legend)
    pairs = [Pair(config.data.root / p.scene, config.data.root / p.labels) for p in config.data.training]
    codes = LabelCodes(config.data.label_values, legend.names)
    options = config.optimisation
    data = Chips(
        pairs,
        codes,
        config.gsd_m,
        chip_px=config.chip_px,
        batch=options.batch,
        batches=min(options.checkpoint_every, options.steps),
        workers=options.loader_workers,
        seed=options.seed,
    )
    shares = class_frequencies(pairs, codes, len(legend))
    absent = [name for name, share in zip(legend.names, shares, strict=True) if share == 0]
    if absent:
        raise TrainingDataError(f"class '{absent[0]}' has no pixel in the training labels")
    mean, std = band_statistics(pairs)
    architecture = Architecture(
        backbone=config.architecture.backbone,
        in_channels=len(config.bands),
        classes=len(legend),
        output_stride=config.architecture.output_stride,
        bins=config.architecture.bins,
    )
    schedule = Schedule(
        steps=options.steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warm_up_steps=options.warm_up_steps,
        auxiliary_weight=options.auxiliary_weight,
    )
    lightning.seed_everything(options.seed, verbose=False)
    training = Training(architecture, mean, std, schedule)
    checkpoints = config.out / "checkpoints"
    trainer = lightning.Trainer(
        max_steps=options.steps,
        precision=options.precision,
        default_root_dir=config.out,
        callbacks=[ModelCheckpoint(checkpoints, save_last=True, save_top_k=0, every_n_epochs=1)],
        logger=CSVLogger(config.out, name="log", version=""),
        log_every_n_steps=10,
        reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False,
        enable_progress_bar=not quiet,
    )
    last = checkpoints / "last.ckpt"
    trainer.fit(training, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    card = Card(
        name=config.name,
        title=config.card.title,
        description=config.card.description,
        licence=config.card.licence,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        architecture=architecture,
        bands=config.bands,
        gsd_m=config.gsd_m,
        chip_px=config.chip_px,
        mean=mean,
        std=std,
        legend=legend,
        training={
            "data": config.card.training_data,
            "scenes": [str(p.scene) for p in config.data.training],
            "class_shares": {n: round(float(s), 4) for n, s in zip(legend.names, shares, strict=True)},
            "optimisation": options.model_dump(mode="json", exclude={"loader_workers", "checkpoint_every"}),
        },
        limits=config.card.limits,
    )
    return write_bundle(config.out / config.name, card, training.network)
