"""Train the teacher that configs/train/dubai.yaml learns from: a U-Net that has seen ImageNet.

    python pipelines/dubai_teacher.py data/dubai runs/dubai-teacher.pt --weights runs/resnet50-imagenet.safetensors

The encoder is the ResNet-50 that the pupil begins with, see pipelines/imagenet_resnet50.py; a U-Net of
segmentation_models.pytorch is put on top and all of it trained on the tiles that the configuration trains on. What
comes out is TorchScript that maps pixels, (N, 3, H, W) on the scale 0-255, to logits. It takes a quarter of an hour on
two cores with bf16.
"""

import argparse
from pathlib import Path

import lightning
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from landseg.config import DataConfig, TrainConfig, load_config
from landseg.train.fit import Chips, Schedule
from landseg.train.losses import Objective
from landseg.train.material import open_material
from landseg.train.samples import ModelInput

CONFIG = Path(__file__).resolve().parents[1] / "configs/train/dubai.yaml"
WEIGHTS = Path("runs/resnet50-imagenet.safetensors")
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Red, green and blue on the scale 0-255, as the encoder's weights know them."""

STRIDE = 32
"""Of the encoder's last stage, which sides of chips must be multiples of."""

CHIP_PX = 256
BATCH = 8
STEPS = 1000
RATE, ENCODER_RATE = 1e-3, 5e-4
WEIGHT_DECAY = 0.02
LONGEST_STEP = 5.0
"""Largest norm of a step's gradient."""
EMA_DECAY = 0.99
SEED = 13


class Teacher(nn.Module):
    """A U-Net on pixels of any size.

    Parameters
    ----------
    classes
        How many to tell apart.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.unet = smp.Unet("resnet50", encoder_weights=None, classes=classes)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Map pixels, (N, 3, H, W) on the scale 0-255, to logits, (N, K, H, W)."""
        height, width = image.shape[-2:]
        down, across = -height % STRIDE, -width % STRIDE
        top, left = down // 2, across // 2
        x = F.pad((image - self.mean) / self.std, (left, across - left, top, down - top), mode="reflect")
        logits: Tensor = self.unet(x.contiguous(memory_format=torch.channels_last))
        return logits[..., top : top + height, left : left + width]


def train(config: TrainConfig, weights: Path, steps: int) -> Teacher:
    """Train on all of the configuration's pairs, varied as it says, and give the running average of the weights."""
    # All samples can be taught: the validation is the pupil's.
    material = open_material(config, ModelInput(config.gsd_m, config.bands), CHIP_PX)
    chips = Chips(material.training, batch=BATCH, batches=steps, workers=1, seed=SEED)
    chips.trainer = None
    lightning.seed_everything(SEED, verbose=False)
    teacher = Teacher(len(material.legend))
    teacher.unet.encoder.load_state_dict(load_file(weights))
    teacher.to(memory_format=torch.channels_last)
    average = AveragedModel(teacher, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    pretrained = list(teacher.unet.encoder.parameters())
    new = [*teacher.unet.decoder.parameters(), *teacher.unet.segmentation_head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": pretrained, "lr": ENCODER_RATE}, {"params": new, "lr": RATE}], weight_decay=WEIGHT_DECAY
    )
    schedule = Schedule(steps, RATE, WEIGHT_DECAY, warm_up_steps=29)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    objective = Objective(dice=0.5)
    for step, batch in enumerate(chips.train_dataloader()):
        with torch.autocast("cpu", torch.bfloat16):
            logits = teacher(batch["image"])
        loss = objective(logits.float(), batch["mask"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), LONGEST_STEP)
        optimizer.step()
        scheduler.step()
        average.update_parameters(teacher)
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    averaged: Teacher = average.module
    return averaged


def main() -> None:
    """Train the teacher and write it as TorchScript."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path, help="folder of the tiles that pipelines/dubai_tiles.py writes")
    parser.add_argument("out", type=Path, help="TorchScript file to write")
    parser.add_argument("--config", type=Path, default=CONFIG, help="training of the pupil")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="that pipelines/imagenet_resnet50.py writes")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    config = load_config(arguments.config, TrainConfig)
    data = DataConfig.model_validate(config.data.model_dump() | {"root": arguments.data_root, "validation": None})
    teacher = train(config.model_copy(update={"data": data}), arguments.weights, arguments.steps).eval()
    with torch.no_grad():
        program = torch.jit.trace(teacher, torch.zeros(2, 3, config.chip_px, config.chip_px), check_trace=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # Not frozen: the weights of such a program can't be moved to a GPU.
    torch.jit.save(program, arguments.out)


if __name__ == "__main__":
    main()
