"""Models for other software: ONNX and TorchScript files that map chips to logits.

Chips have the card's size, since the pyramid pools over the whole chip; any number of them goes in at once. The card
travels inside the file, so that bands, scaling and classes stay with the weights.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from landseg.errors import DiskError
from landseg.model.bundle import CARD_FILE, Bundle
from landseg.model.pspnet import PSPNet

INPUT, OUTPUT = "chip", "logits"
"""Names of the graph's ends, as on the card."""


class CellMaxima(nn.Module):
    """Do what ``nn.AdaptiveMaxPool2d`` does, in operations that ONNX has."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, bins, bins)."""
        rows, cols = (self.cells(size) for size in x.shape[-2:])
        x = torch.stack([x[:, :, start:stop].amax(dim=2) for start, stop in rows], dim=2)  # (N, C, bins, w)
        return torch.stack([x[..., start:stop].amax(dim=3) for start, stop in cols], dim=3)  # (N, C, bins, bins)

    def cells(self, size: int) -> list[tuple[int, int]]:
        """Cut a side into cells that cover it and, where they don't divide it, overlap by a pixel."""
        return [(i * size // self.bins, -(-(i + 1) * size // self.bins)) for i in range(self.bins)]


def export_onnx(bundle: Bundle, path: Path) -> None:
    """Write a bundle's network as ONNX; the card is the model's metadata ``model.json``.

    The graph maps ``chip``, (N, C, chip_px, chip_px) float32, normalised, to ``logits``, (N, K, chip_px, chip_px).

    Raises
    ------
    BundleError
        If the weights are not those of the card's architecture.
    DiskError
        If the file can't be written.
    """
    network, chips = _network_and_chips(bundle)
    if network.architecture.pooling == "max":
        for bins, level in zip(network.architecture.bins, network.pyramid.levels, strict=True):
            level.register_module("0", CellMaxima(bins))
    with warnings.catch_warnings():
        # torch's exporter warns of what it and onnxscript will change in themselves.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (chips,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing back")
    program.model.metadata_props[CARD_FILE] = _card(bundle)
    with _draft(path) as draft:
        program.save(draft, external_data=False)


def export_torchscript(bundle: Bundle, path: Path) -> None:
    """Write a bundle's network as TorchScript; the card is the extra file ``model.json``.

    See `export_onnx` for what it maps and raises.
    """
    network, chips = _network_and_chips(bundle)
    with warnings.catch_warnings(), torch.inference_mode():
        # torch would have programs of its own kind instead, which only torch of about the same version reads.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.jit.trace(network, chips, check_trace=False)  # type: ignore[no-untyped-call]
        with _draft(path) as draft:
            torch.jit.save(program, str(draft), _extra_files={CARD_FILE: _card(bundle)})


def _network_and_chips(bundle: Bundle) -> tuple[PSPNet, Tensor]:
    """Load the network and make two chips for it; with a single one, exporters would take the number for fixed."""
    card = bundle.card
    return bundle.load_network(), torch.zeros(2, card.architecture.in_channels, card.chip_px, card.chip_px)


def _card(bundle: Bundle) -> str:
    return (bundle.folder / CARD_FILE).read_text(encoding="utf-8")


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there on leaving appears at ``path`` by rename, or not at all."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            yield Path(folder) / path.name
            (Path(folder) / path.name).replace(path)
    except OSError as error:
        raise DiskError(f"can't write {path}: {os.strerror(error.errno) if error.errno else error}") from error
