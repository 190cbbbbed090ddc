import pytest
import torch
from torch import Tensor

from landseg.errors import TrainingDataError
from landseg.train import calibrate
from landseg.train.calibrate import COLDEST, HOTTEST, fit_temperature
from landseg.train.labels import IGNORED


def honest(seed: int = 0, shape: tuple[int, int, int] = (4, 64, 64)) -> tuple[Tensor, Tensor]:
    """Draw logits of 5 classes and labels that are as likely as the logits say."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], 5, *shape[1:], generator=generator)
    drawn = torch.multinomial(torch.softmax(logits.movedim(1, -1).reshape(-1, 5), 1), 1, generator=generator)
    return logits, drawn.reshape(shape)


@pytest.mark.parametrize("boast", [0.5, 1.0, 3.0])
def test_a_known_scaling_is_found(boast: float) -> None:
    logits, mask = honest()

    assert fit_temperature([(boast * logits, mask)]) == pytest.approx(boast, rel=0.03)


def test_the_temperature_scales_as_the_logits_do() -> None:
    logits, mask = honest()

    assert fit_temperature([(3 * logits, mask)]) == pytest.approx(3 * fit_temperature([(logits, mask)]), rel=1e-4)


def test_it_is_where_labels_are_the_most_likely() -> None:
    logits, mask = honest()
    logits = 1.7 * logits

    best = fit_temperature([(logits, mask)])

    loss = [
        float(torch.nn.functional.cross_entropy(logits.double() / t, mask)) for t in (0.99 * best, best, 1.01 * best)
    ]
    assert loss[1] < min(loss[0], loss[2])


def test_log_probabilities_do_as_well_as_logits() -> None:
    logits, mask = honest()

    assert fit_temperature([(torch.log_softmax(logits, 1), mask)]) == pytest.approx(
        fit_temperature([(logits, mask)]), rel=1e-5
    )


def test_ignored_pixels_take_no_part() -> None:
    logits, mask = honest()
    spoilt, unsure = logits.clone(), mask.clone()
    unsure[:, ::2] = IGNORED
    spoilt[:, :, ::2] = 100

    assert fit_temperature([(spoilt, unsure)]) == pytest.approx(fit_temperature([(logits[:, :, 1::2], mask[:, 1::2])]))


def test_batches_are_one_sample() -> None:
    logits, mask = honest()

    whole = fit_temperature([(logits, mask)])
    parts = fit_temperature(zip(logits.split(1), mask.split(1), strict=True))

    assert parts == pytest.approx(whole, rel=1e-6)


def test_of_many_pixels_some_are_drawn_from_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SAMPLE_PX", 6000)
    batches = [(boast * logits, mask) for boast in (1, 4) for logits, mask in [honest(boast)]]

    drawn = fit_temperature(batches)

    monkeypatch.undo()
    assert drawn == pytest.approx(fit_temperature(batches), rel=0.05)
    assert 1.3 < drawn < 3.7


@pytest.mark.parametrize(
    ("right", "expected", "said"), [(True, COLDEST, "is 0.05, the lowest"), (False, HOTTEST, "is 20, the highest")]
)
def test_a_network_that_is_always_right_or_wrong_has_a_bound(
    right: bool, expected: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    logits, mask = honest()
    fit_temperature([(logits, mask)])
    assert not caplog.records
    mask = logits.argmax(1) if right else logits.argmin(1)

    assert fit_temperature([(logits, mask)]) == pytest.approx(expected, rel=1e-6)
    assert said in caplog.text


@pytest.mark.parametrize("batches", [[], [(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), IGNORED))]])
def test_nothing_to_calibrate_on(batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(TrainingDataError, match="no pixel to calibrate on"):
        fit_temperature(batches)
