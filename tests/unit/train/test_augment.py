import numpy as np
import pytest
import torch

from landseg.train.augment import Augmentation, CutMix
from landseg.train.labels import IGNORED


def test_augmented_samples_keep_each_pixel_with_its_label() -> None:
    # The image carries the label: whatever symmetry is drawn, the two must move together.
    mask = torch.arange(3).repeat_interleave(12).reshape(6, 6)
    mask[0, 5] = IGNORED
    vary = Augmentation(contrast=0, brightness=0)
    torch.manual_seed(0)

    seen = set()
    for _ in range(200):
        sample = vary({"image": mask[None].repeat(2, 1, 1).float(), "mask": mask, "bounds": "kept"})
        assert torch.equal(sample["image"].long(), sample["mask"][None].repeat(2, 1, 1))
        assert sample["bounds"] == "kept"
        seen.add(sample["mask"].numpy().tobytes())

    turned = [np.rot90(mask.numpy(), k) for k in range(4)]
    assert seen == {np.ascontiguousarray(m).tobytes() for t in turned for m in (t, np.fliplr(t))}


def test_recolouring_changes_pixels_within_bounds_and_never_labels() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    mask = torch.zeros(8, 8, dtype=torch.int64)
    vary = Augmentation()
    torch.manual_seed(0)

    means = []
    for _ in range(100):
        sample = vary({"image": image, "mask": mask})
        assert sample["image"].min() >= 0
        assert sample["image"].max() <= 255
        assert not sample["mask"].any()
        means.append(sample["image"].mean().item())

    # Brightness alone moves the mean by at most 25 for all bands and a third of that for each.
    assert 10 < max(means) - min(means) < 2 * (25 + 25 / 3)
    assert np.mean(means) == pytest.approx(image.mean().item(), abs=5)


def test_pixels_without_data_change_no_others() -> None:
    image = torch.full((3, 40, 40), 100.0)
    image[:, :, :20] = torch.nan
    vary = Augmentation(scale=1.25)
    torch.manual_seed(0)

    for _ in range(50):
        varied = vary({"image": image, "mask": torch.zeros(40, 40, dtype=torch.int64)})["image"]
        empty = varied.isnan()
        assert torch.equal(empty.all(dim=0), empty.any(dim=0))
        assert 0.2 < empty.float().mean() < 0.8
        # All that is left is one colour, as it was.
        assert all(np.ptp(band[~band.isnan()].numpy()) < 1e-2 for band in varied)


def test_augmentation_follows_the_seed() -> None:
    sample = {"image": torch.rand(3, 8, 8) * 255, "mask": torch.zeros(8, 8, dtype=torch.int64)}
    vary = Augmentation()

    torch.manual_seed(5)
    first, second = vary(sample)["image"], vary(sample)["image"]
    torch.manual_seed(5)

    assert torch.equal(vary(sample)["image"], first)
    assert not torch.equal(second, first)


@pytest.mark.parametrize("scale", [1.0, 1.1, 1.25, 1.3, 1.7, 2.0])
@pytest.mark.parametrize("chip_px", [48, 240, 473])
def test_samples_read_for_scaling_come_out_as_chips(scale: float, chip_px: int) -> None:
    vary = Augmentation(scale=scale)
    side = vary.read_px(chip_px)

    sample = vary({"image": torch.zeros(1, side, side), "mask": torch.zeros(side, side, dtype=torch.int64)})

    assert chip_px * scale <= side < chip_px * scale + 1
    assert sample["image"].shape == (1, chip_px, chip_px)
    assert sample["mask"].shape == (chip_px, chip_px)


def test_scaling_magnifies_and_shrinks_within_its_factor_and_keeps_labels_in_place() -> None:
    # A ramp from left to right, whose slope tells the scale; its mask is the ramp in whole steps of 10.
    scale, chip_px = 1.5, 96
    vary = Augmentation(contrast=0, brightness=0, scale=scale)
    side = vary.read_px(chip_px)
    ramp = torch.arange(side).float().repeat(side, 1)
    mask = (ramp // 10).long()
    mask[:, :20] = IGNORED
    torch.manual_seed(0)

    factors = []
    for _ in range(200):
        sample = vary({"image": ramp[None], "mask": mask})
        image, labels = sample["image"][0], sample["mask"]
        known = labels != IGNORED
        # Half a pixel either way for the nearest label, at most 0.75 of the ramp.
        assert (image[known] / 10 - labels[known]).sub(0.5).abs().max() < 0.5 + 0.15
        assert labels.unique().numel() > 2
        factors.append(chip_px / (image.max() - image.min()).item())

    assert 1 / scale - 0.02 < min(factors) < 0.75
    assert 1.3 < max(factors) < scale + 0.05
    assert np.median(factors) == pytest.approx(1, abs=0.08)


def plain_samples(count: int, side: int = 16) -> list[dict[str, torch.Tensor]]:
    """Give samples that are each of one colour and one label, their number."""
    return [{"image": torch.full((2, side, side), float(n)), "mask": torch.full((side, side), n)} for n in range(count)]


def test_mixed_chips_have_a_rectangle_of_another_with_its_labels() -> None:
    torch.manual_seed(0)
    mix, samples = CutMix(1.0), plain_samples(4)

    shares = []
    for _ in range(100):
        batch = mix(samples)
        assert torch.equal(batch["image"].long(), batch["mask"][:, None].expand(-1, 2, -1, -1))
        for n, mask in enumerate(batch["mask"]):
            foreign = mask != n
            assert set(mask[foreign].tolist()) <= {(n - 1) % 4}
            rows, cols = foreign.any(dim=1), foreign.any(dim=0)
            assert torch.equal(foreign, rows[:, None] & cols)
            assert (rows.diff().count_nonzero(), cols.diff().count_nonzero()) <= (2, 2)
            shares.append(foreign.float().mean().item())

    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.std(shares) == pytest.approx(12**-0.5, abs=0.03)
    assert all((sample["mask"] == n).all() for n, sample in enumerate(samples))


def test_a_share_of_the_chips_is_mixed() -> None:
    torch.manual_seed(0)
    mix, samples = CutMix(0.25), plain_samples(8)

    mixed = [
        (batch != torch.arange(8)[:, None, None]).any(dim=(1, 2))
        for batch in (mix(samples)["mask"] for _ in range(100))
    ]

    assert torch.stack(mixed).float().mean() == pytest.approx(0.25, abs=0.05)
