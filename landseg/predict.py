"""Prediction: a batch of chips to class probabilities, on the device and at the precision that suit the machine."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from landseg.errors import BundleError, MemoryLimitError, ResourceError
from landseg.model.folding import fold

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
Views = Literal[1, 2, 4, 8]

log = logging.getLogger(__name__)


def choose_device(name: DeviceName) -> torch.device:
    """Find the device to run on.

    Raises
    ------
    ResourceError
        If a GPU was asked for and there is none that torch can use.
    """
    usable = name != "cpu" and _has_usable_gpu()
    if name == "cuda" and not usable:
        raise ResourceError(
            "there is no GPU that this torch can use",
            "leave out --device cuda to run on the CPU; 'landseg doctor' tells what torch sees",
        )
    if name == "auto":
        return torch.device("cuda" if usable else "cpu")
    return torch.device(name)


def _has_usable_gpu() -> bool:
    """Tell whether torch sees a GPU and was built for its generation: on others its first sum would fail."""
    if not torch.cuda.is_available():
        return False
    capability = torch.cuda.get_device_capability()
    # Compiled for 8.0 (sm_80) it runs on 8.6, too; what is yet to be compiled (compute_80) runs on all later ones.
    built = re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(torch.cuda.get_arch_list()))
    return not built or any(
        (int(major), int(minor)) <= capability and (kind == "compute" or int(major) == capability[0])
        for kind, major, minor in built
    )


def choose_precision(name: Precision, device: torch.device) -> torch.dtype:
    """Find the type to compute in: bf16 where the hardware multiplies it faster than fp32."""
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


class Predictor:
    """A network made ready for a device; call it with batches.

    Law: with 8 views, whatever symmetry of the square the chips are put through, the answer goes through as well.

    Parameters
    ----------
    network
        Maps (N, C, S, W) to logits of the chips that these swaths hold, n each, (N * n, K, S, S), and the same with
        sides swapped. It is the predictor's from then on: it is folded, see `landseg.model.folding`, and its weights
        are turned to ``dtype``.
    device
        Where it runs.
    dtype
        What it computes in, ``torch.float32`` or ``torch.bfloat16``.
    temperature
        What logits are divided by, above 0. A chip's labels do not depend on it, its probabilities do.
    views
        Over how many of the square's symmetries the probabilities are averaged: as it is; mirrored; upside down and
        both; and all of these transposed. Imagery from above has no up and down. The work grows as much.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        temperature: float = 1.0,
        views: Views = 1,
    ) -> None:
        if device.type == "cuda" and dtype == torch.float32:
            # Else its convolutions round to 10 bits.
            torch.backends.cudnn.allow_tf32 = False
        fold(network.eval())
        self.network = network.to(device, dtype).to(memory_format=torch.channels_last)
        self.device = device
        self.dtype = dtype
        self.temperature = temperature
        self.views = views
        self._limit: int | None = None
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute probabilities; see `unchecked`.

        Raises
        ------
        MemoryLimitError
            If memory does not suffice for a single swath.
        BundleError
            If the network answers with NaN or infinity.
        """
        probabilities = self.unchecked(pixels)
        self.check()
        return probabilities

    @torch.inference_mode()
    def unchecked(self, pixels: Tensor) -> Tensor:
        """Compute probabilities without waiting for a GPU to be through: `check` must follow.

        Where memory runs out the batch is halved, for this call and those that follow.

        Parameters
        ----------
        pixels
            (N, C, S, W) float32, normalised: single chips, or swaths of n.

        Returns
        -------
        Tensor
            (N * n, K, S, S) float32 on the device; sums to 1 over K.

        Raises
        ------
        MemoryLimitError
            If memory does not suffice for a single swath.
        """
        while True:
            part = min(len(pixels), self._limit or len(pixels))
            try:
                return self._in_parts(pixels, part)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            # What failed is let go of by now.
            self._back_off(part)

    def check(self) -> None:
        """Raise if one of the answers so far was not a number, BundleError."""
        if not self._is_finite:
            raise BundleError(
                "the network's answer is not a number", "its weights are damaged, or bf16 is too coarse for them"
            )

    def _in_parts(self, pixels: Tensor, size: int) -> Tensor:
        answers = [self._forward(some) for some in torch.split(pixels, size)]
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _forward(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.device, self.dtype, memory_format=torch.channels_last, non_blocking=True)
        probabilities = self._probabilities(x)
        for view in range(1, self.views):
            probabilities += _turn_back(self._probabilities(_turn(x, view)), view, len(x))
        probabilities /= self.views
        # One that is not a number makes their sum none.
        self._is_finite &= torch.isfinite(probabilities.sum())
        return probabilities

    def _probabilities(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return torch.softmax(logits.float() / self.temperature, dim=1)

    def _back_off(self, failed: int) -> None:
        if failed == 1:
            raise MemoryLimitError(
                f"memory on {self.device} does not suffice for a single swath of chips",
                "close other programs, or use --device cpu",
            )
        self._limit = failed // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("memory on %s does not suffice for %d swaths; going on with %d", self.device, failed, self._limit)


def _turn(x: Tensor, view: int) -> Tensor:
    """Show (N, C, S, W) as one of 8 views: bits 0 and 1 mirror columns and rows, bit 2 then exchanges the two."""
    x = _mirror(x, view)
    return (x.mT if view & 4 else x).contiguous(memory_format=torch.channels_last)


def _turn_back(x: Tensor, view: int, swaths: int) -> Tensor:
    """Undo `_turn` on the chips of so many swaths, (N * n, K, S, S), which mirrored columns put in reverse order."""
    if view & 1:
        x = x.reshape(swaths, -1, *x.shape[1:]).flip(1).flatten(0, 1)
    return _mirror(x.mT if view & 4 else x, view)


def _mirror(x: Tensor, view: int) -> Tensor:
    return x.flip([axis for bit, axis in ((1, -1), (2, -2)) if view & bit])


@contextmanager
def telling_memory(device: torch.device) -> Iterator[None]:
    """Turn finding too little memory on a device, or beside it, into `MemoryLimitError`."""
    main = MemoryLimitError(
        "main memory does not suffice", "close other programs, or take fewer chips at once: --batch"
    )
    try:
        yield
    except MemoryError as error:
        raise main from error
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        if device.type == "cpu":
            raise main from error
        raise MemoryLimitError(
            f"memory on {device} does not suffice", "close other programs, or use --device cpu"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch has a type for what its GPU allocator finds; pinned memory, CUDA's libraries and the CPU say it in words.
    # Where none of cuDNN's algorithms gets the memory that it works in, torch says that it could not find one.
    words = (
        *("can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED"),
        *("unable to find an engine", "when calling `cublasCreate"),
    )
    return isinstance(error, torch.OutOfMemoryError) or any(some in str(error) for some in words)
