from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from landseg.errors import DiskError
from landseg.legend import LandClass, Legend
from landseg.train import figures
from landseg.train.evaluate import Scores
from landseg.train.figures import draw_curves, draw_examples, draw_scores
from landseg.train.labels import IGNORED

LEGEND = Legend(
    (LandClass(2, "building", "#d55e00"), LandClass(5, "park & $green$", "#009e73"), LandClass(7, "water", "#56b4e9"))
)


def some_scores(classes: int = 3, *, confidence: bool = True) -> Scores:
    rng = np.random.default_rng(classes)
    boundaries, claims = rng.integers(1, 50, (2, 2, classes)), np.zeros((2, 101), dtype=np.int64)
    boundaries[:, 1] += boundaries[:, 0]
    if confidence:
        claims[:, 40:90] = [[3], [5]]
    return Scores(rng.integers(0, 10**6, (classes, classes)), boundaries, claims)


def picture(path: Path) -> NDArray[np.uint8]:
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


def has(path: Path, colour: tuple[int, int, int]) -> int:
    return int((picture(path) == colour).all(axis=-1).sum())


@pytest.mark.parametrize("classes", [2, 3, 14])
def test_scores_are_drawn(tmp_path: Path, classes: int) -> None:
    legend = Legend(tuple(LandClass(i + 1, f"class {i}", "#000000") for i in range(classes)))

    draw_scores(some_scores(classes), legend, tmp_path / "scores.png")

    assert min(picture(tmp_path / "scores.png").shape[:2]) > 500
    # The reliability curve's blue.
    assert has(tmp_path / "scores.png", (0x00, 0x72, 0xB2)) > 200
    assert [path.name for path in tmp_path.iterdir()] == ["scores.png"]


def test_names_that_begin_alike_are_told_apart() -> None:
    crops = [f"permanent crops that are irrigated: {name}" for name in ("olive groves", "orchards", "vineyards")]

    shown = figures._shortened(["permanent crops, mixed with pastures", "water", *crops], 24)

    assert len(set(shown)) == 5
    assert max(map(len, shown)) == len("permanent crops that are irrigated: ol…")
    assert figures._shortened(["costs $, taken all together"], 24) == [r"costs \$, taken all toge…"]


def test_without_confidence_there_is_no_curve(tmp_path: Path) -> None:
    draw_scores(some_scores(confidence=False), LEGEND, tmp_path / "scores.png")

    assert has(tmp_path / "scores.png", (0x00, 0x72, 0xB2)) == 0


def test_scores_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    draw_scores(Scores.nothing(3), LEGEND, tmp_path / "scores.png")

    assert (tmp_path / "scores.png").stat().st_size > 0


def test_a_log_is_read_with_its_gaps(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    # Steps 9 and 19 stand twice, since the training went on from a checkpoint.
    log.write_text("epoch,loss,step,val_miou\n0,2.0,9,\n0,1.5,19,\n0,,19,0.25\n0,1.9,9,\n0,1.4,19,\n1,nan,29,0.5\n")

    series = figures._read_logs([log])

    assert {name: (steps.tolist(), values.tolist()) for name, (steps, values) in series.items()} == {
        "loss": ([9, 19], [1.9, 1.4]),
        "val_miou": ([19, 29], [0.25, 0.5]),
    }


@pytest.mark.parametrize("rows", [0, 3, 100])
def test_curves_are_drawn(tmp_path: Path, rows: int) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(
        "epoch,loss,step,val_loss,val_miou\n" + "".join(f"0,{2 / (n + 1)},{10 * n},,\n" for n in range(rows))
    )
    without = tmp_path / "without.png"
    draw_curves([log], without)
    with log.open("a") as file:
        file.write("0,,5,1.9,0.2\n1,,25,1.5,0.4\n")

    draw_curves([log], tmp_path / "with.png")

    assert has(without, (0x00, 0x72, 0xB2)) > 0 or rows == 0
    # A second panel, and the second curve's vermilion in the first where there is a first curve.
    assert len(picture(tmp_path / "with.png")) > len(picture(without)) + 300
    assert has(tmp_path / "with.png", (0xD5, 0x5E, 0x00)) > 0 or rows == 0


def test_examples_show_the_legend_s_colours(tmp_path: Path) -> None:
    image = np.full((48, 48, 3), (10, 20, 30), dtype=np.uint8)
    reference, predicted = np.zeros((48, 48), dtype=np.int64), np.full((48, 48), 2)
    reference[:24] = IGNORED

    draw_examples([(image, reference, predicted)] * 2, LEGEND, tmp_path / "examples.png")

    page = tmp_path / "examples.png"
    shown = {name: has(page, colour) for name, colour in (("image", (10, 20, 30)), *((c.name, c.rgb) for c in LEGEND))}
    # Half of the reference is unlabelled; a class on neither side stands in the legend alone.
    assert shown["building"] == pytest.approx(shown["image"] / 2, rel=0.05)
    assert shown["water"] == pytest.approx(shown["image"], rel=0.05)
    assert 100 < shown["park & $green$"] < shown["image"] / 20


def test_a_figure_replaces_what_is_there_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.png"
    path.write_bytes(b"before")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", fail)
        with pytest.raises(DiskError, match="disk is full"):
            draw_scores(some_scores(), LEGEND, path)
    assert path.read_bytes() == b"before"

    draw_scores(some_scores(), LEGEND, path)

    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]
