import numpy as np
import pytest
import torch
from torch import nn

from landseg.errors import TrainingDataError
from landseg.legend import LandClass, Legend
from landseg.predict import Predictor
from landseg.train.batches import measure, predictions
from landseg.train.evaluate import HALO_PX, score
from landseg.train.labels import IGNORED


def test_bands_and_classes_are_measured_on_the_chips() -> None:
    images = torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    masks = torch.arange(5 * 64).reshape(5, 8, 8) % 4
    masks[masks == 3] = IGNORED
    batches = ({"image": images[i], "mask": masks[i]} for i in ([0, 1], [2, 3], [4]))

    statistics = measure(batches, classes=4)

    np.testing.assert_allclose(statistics.mean, images.mean(dim=(0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(statistics.std, images.std(dim=(0, 2, 3), correction=0), atol=1e-3)
    np.testing.assert_allclose(statistics.shares, [1 / 3, 1 / 3, 1 / 3, 0])


def test_pixels_without_data_are_not_measured() -> None:
    image = torch.full((2, 3, 8, 8), torch.nan)
    image[0], image[1, :, :, :4] = 10.0, 40.0
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)

    statistics = measure(iter([{"image": image, "mask": mask}]), 1)

    assert statistics.mean == (20.0, 20.0, 20.0)
    np.testing.assert_allclose(statistics.std, 14.142, atol=1e-3)


def test_chips_without_a_known_class_are_refused() -> None:
    batch = {"image": torch.zeros(1, 3, 8, 8), "mask": torch.full((1, 8, 8), IGNORED)}

    with pytest.raises(TrainingDataError, match="known class"):
        measure(iter([batch]), classes=2)


def test_predictions_are_class_ids_beside_the_reference() -> None:
    legend = Legend((LandClass(3, "a", "#000000"), LandClass(9, "b", "#ffffff")))
    # The logits are the normalised bands: the first is larger where it lies further above its mean.
    image = torch.tensor([[[[110.0, 100.0]], [[50.0, 60.0]]]])
    mask = torch.tensor([[[0, 0]]])
    predict = Predictor(nn.Identity(), torch.device("cpu"))

    blocks = list(predictions(predict, iter([{"image": image, "mask": mask}]), (100, 50), (10, 5), legend.class_ids))

    assert blocks[0].labels[HALO_PX:-HALO_PX, HALO_PX:-HALO_PX].tolist() == [[3, 9]]
    assert blocks[0].confidence is not None
    assert blocks[0].confidence.tolist() == [[73, 88]]  # of odds e to 1, and 1 to e squared
    assert score(blocks, legend).confusion.tolist() == [[1, 1], [0, 0]]
