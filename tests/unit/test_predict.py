import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from landseg.errors import BundleError, MemoryLimitError, ResourceError
from landseg.predict import Predictor, Views, choose_device, choose_precision, telling_memory

CPU = torch.device("cpu")


class Doubling(nn.Module):
    """Logits that are known: band 0 and twice band 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 2 * x], dim=1)


class Hungry(Doubling):
    """Runs out of memory above so many chips, in the words of torch's allocators."""

    def __init__(self, most: int, error: RuntimeError) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise self.error
        return super().forward(x)


GPU_FULL = torch.OutOfMemoryError("CUDA out of memory")
CUDNN_FULL = RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")
NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")
NO_HANDLE = RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 4 TB")


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    x = torch.randn(3, 1, 4, 4)
    probabilities = Predictor(Doubling(), CPU)(x)
    assert probabilities.shape == (3, 2, 4, 4)
    assert torch.allclose(probabilities[:, 1], torch.sigmoid(x[:, 0]), atol=1e-6)
    assert torch.allclose(probabilities.sum(1), torch.ones(3, 4, 4))


class Lopsided(nn.Module):
    """A network that knows up from down and left from right."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(x)
        return y


@pytest.mark.parametrize("symmetry", range(8))
def test_eight_views_turn_with_the_chip(symmetry: int) -> None:
    def turned(x: Tensor) -> Tensor:
        return (x.flip(-1) if symmetry > 3 else x).rot90(symmetry, (-2, -1))

    x = torch.randn(2, 2, 6, 6)
    predictor, plain = Predictor(Lopsided(), CPU, views=8), Predictor(Lopsided(), CPU)

    assert torch.allclose(predictor(turned(x)), turned(predictor(x)), atol=1e-6)
    assert symmetry == 0 or not torch.allclose(plain(turned(x)), turned(plain(x)), atol=1e-3)


def test_views_are_averaged() -> None:
    x = torch.randn(2, 2, 6, 6)
    predictor = Predictor(Lopsided(), CPU)

    mirrored = predictor(x.flip(-1)).flip(-1)
    upside_down = predictor(x.flip(-2)).flip(-2)
    both = predictor(x.flip(-2, -1)).flip(-2, -1)

    two, four = (predictor(x) + mirrored) / 2, (predictor(x) + mirrored + upside_down + both) / 4
    assert torch.allclose(Predictor(Lopsided(), CPU, views=2)(x), two, atol=1e-6)
    assert torch.allclose(Predictor(Lopsided(), CPU, views=4)(x), four, atol=1e-6)


class InChips(Lopsided):
    """Answers swaths by chips of 6 pixels that stand at a stride of 4."""

    def forward(self, x: Tensor) -> Tensor:
        answer = super().forward(x).unfold(2, 6, 4).unfold(3, 6, 4)  # (N, K, 1, n, 6, 6) or n, 1
        return answer.flatten(2, 3).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_views_of_swaths_are_of_the_same_chips(views: Views) -> None:
    x = torch.randn(2, 2, 6, 6 + 2 * 4)
    whole = Predictor(Lopsided(), CPU, views=views)(x)
    chips = torch.stack([swath[..., left : left + 6] for swath in whole for left in (0, 4, 8)])
    assert torch.allclose(Predictor(InChips(), CPU, views=views)(x), chips, atol=1e-6)


def test_a_temperature_divides_the_logits_and_keeps_the_labels() -> None:
    x = torch.randn(3, 1, 4, 4)
    plain, cooled = Predictor(Doubling(), CPU)(x), Predictor(Doubling(), CPU, temperature=2.5)(x)
    assert torch.allclose(cooled[:, 1], torch.sigmoid(x[:, 0] / 2.5), atol=1e-6)
    assert torch.equal(cooled.argmax(1), plain.argmax(1))


def test_dropout_and_batch_statistics_are_off() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    x = torch.randn(2, 1, 8, 8)
    predictor = Predictor(network, CPU)
    assert torch.equal(predictor(x), predictor(x))
    assert torch.allclose(predictor(x)[:1], predictor(x[:1]), atol=1e-6)


def test_bf16_is_near_fp32() -> None:
    network = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 16, 16)
    exact, coarse = Predictor(network, CPU)(x), Predictor(network, CPU, torch.bfloat16)(x)
    assert coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    assert torch.allclose(exact, coarse, atol=0.02)


@pytest.mark.parametrize("error", [GPU_FULL, CPU_FULL], ids=["gpu", "cpu"])
def test_out_of_memory_halves_the_batch_and_says_so_once(error: RuntimeError, caplog: pytest.LogCaptureFixture) -> None:
    network = Hungry(3, error)
    predictor = Predictor(network, CPU)
    x = torch.randn(8, 1, 4, 4)
    with caplog.at_level(logging.WARNING):
        first = predictor(x)
        second = predictor(x)
    assert torch.allclose(first, Predictor(Doubling(), CPU)(x))
    assert torch.equal(first, second)
    assert network.seen == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [record.message.split(";")[-1] for record in caplog.records] == [" going on with 4", " going on with 2"]


def test_memory_for_less_than_one_chip() -> None:
    with pytest.raises(MemoryLimitError) as caught:
        Predictor(Hungry(0, CPU_FULL), CPU)(torch.randn(2, 1, 4, 4))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("error", "device", "says"),
    [
        (CPU_FULL, "cpu", "main memory does not suffice"),
        (MemoryError(), "cpu", "main memory does not suffice"),
        (MemoryError(), "cuda:0", "main memory does not suffice"),
        (GPU_FULL, "cuda:0", "memory on cuda:0 does not suffice"),
        (CUDNN_FULL, "cuda:0", "memory on cuda:0 does not suffice"),
        (NO_ENGINE, "cuda:0", "memory on cuda:0 does not suffice"),
        (NO_HANDLE, "cuda:0", "memory on cuda:0 does not suffice"),
    ],
)
def test_too_little_memory_is_told_by_where_it_is(error: Exception, device: str, says: str) -> None:
    with pytest.raises(MemoryLimitError, match=says), telling_memory(torch.device(device)):
        raise error


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        Predictor(Hungry(0, RuntimeError("shape mismatch")), CPU)(torch.randn(2, 1, 4, 4))


def test_an_answer_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(BundleError, match="not a number"):
        Predictor(Doubling(), CPU)(torch.full((1, 1, 2, 2), float("nan")))


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ResourceError, match="no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((8, 6), "sm_75 sm_80 sm_90a", "cuda"),
        ((8, 0), "sm_75 sm_86 sm_90", "cpu"),
        ((7, 0), "sm_75 sm_80 sm_120", "cpu"),
        ((12, 1), "sm_90 sm_120", "cuda"),
        ((12, 0), "sm_80 compute_90", "cuda"),
        ((9, 4), "gfx90a gfx942", "cuda"),
    ],
)
def test_a_gpu_that_torch_is_not_built_for_is_none(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", built.split)
    assert choose_device("auto") == torch.device(expected)
    if expected == "cpu":
        with pytest.raises(ResourceError, match="no GPU"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"), [(1, 1, torch.bfloat16), (0, 1, torch.bfloat16), (0, 0, torch.float32)]
)
def test_bf16_is_chosen_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, expected: torch.dtype
) -> None:
    known = SimpleNamespace(_is_amx_tile_supported=lambda: amx, _is_avx512_bf16_supported=lambda: avx512)
    monkeypatch.setattr(torch, "cpu", known)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16
