"""Operations are counted as by hand, and each call is timed on tensors like its own."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from gan_t2i.doctor.flops import Call, FlopCounter, Layout, ceiling, convolution_rate, matmul_rate, median_seconds, seconds_alone

CPU = torch.device("cpu")
# pictures, channels in and out, and sides of the pictures and of the kernel
N, C_IN, C_OUT, H, W, K = 2, 4, 8, 6, 5, 3
FORWARD = 2 * N * C_OUT * C_IN * H * W * K * K


def test_a_convolution_is_counted_as_by_hand() -> None:
    x, weight = torch.randn(N, C_IN, H, W, requires_grad=True), torch.randn(C_OUT, C_IN, K, K, requires_grad=True)
    with FlopCounter() as forward:
        y = F.conv2d(x, weight, padding=1)
    assert forward.total == FORWARD
    with FlopCounter() as backward:
        y.sum().backward()
    assert backward.total == 2 * FORWARD  # the gradients of the input and of the weight
    with FlopCounter() as product:
        _ = torch.randn(3, 5) @ torch.randn(5, 7)
    assert product.total == 2 * 3 * 5 * 7


def test_a_second_derivative_is_counted() -> None:
    x, weight = torch.randn(N, C_IN, H, W, requires_grad=True), torch.randn(C_OUT, C_IN, K, K, requires_grad=True)
    (slope,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).square().sum(), x, create_graph=True)
    with FlopCounter() as counter:
        slope.square().sum().backward()
    assert counter.total >= 3 * FORWARD


def test_calls_are_alike_by_operator_shape_stride_and_precision() -> None:
    a = torch.randn(4, 4)
    with FlopCounter() as counter:
        for _ in range(2):
            _ = a @ a
        _ = a @ a.T
        _ = a.bfloat16() @ a.bfloat16()
        _ = a + a
    assert sorted(counter.calls.values()) == [1, 1, 2]
    assert counter.total == 4 * 2 * 4**3
    assert {call.kind for call in counter.calls} == {"matmul float32", "matmul bfloat16"}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3, 4, 5),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(2, 3).T,
        torch.zeros(3, 1).expand(3, 4),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(0, 3),
    ],
    ids=["plain", "channels last", "transposed", "expanded", "bfloat16", "empty"],
)
def test_a_fresh_tensor_has_the_layout(tensor: torch.Tensor) -> None:
    fresh = Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device).fresh()
    assert (fresh.shape, fresh.stride(), fresh.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    assert fresh.numel() == 0 or fresh.float().std() > 0


def test_each_call_is_timed_as_it_was_made() -> None:
    x = torch.randn(N, C_IN, H, W).to(memory_format=torch.channels_last).requires_grad_()
    layer, linear = torch.nn.Conv2d(C_IN, C_OUT, K, padding=1), torch.nn.Linear(W, 3)
    with FlopCounter() as counter:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = linear(layer(x))
        z = torch.baddbmm(torch.zeros(1), y[:, 0].float(), y[:, 1].float().transpose(1, 2), alpha=0.5)
        z.sum().backward()
    kinds = {call.kind for call in counter.calls}
    assert kinds == {"convolution bfloat16", "matmul bfloat16", "matmul float32"}
    assert [call.named for call in counter.calls if call.named] == [(("alpha", 0.5),)]
    for call in counter.calls:
        with FlopCounter() as again:
            assert seconds_alone(call) > 0
        assert set(again.calls) == {call}


def test_the_ceiling_is_all_operations_over_all_seconds() -> None:
    slow, fast = (Call(name, (Layout((1,), (1,), torch.float32, CPU),), (), flop) for name, flop in (("mm", 1_000_000_000), ("conv", 10**10)))
    found = ceiling({slow: 3, fast: 1}, {slow: 2.0, fast: 0.5})
    assert (found.gflop, found.seconds) == (13, 6.5)
    assert found.rate == 2
    assert ceiling({}, {}).rate == 0
    assert (slow.kind, fast.kind) == ("matmul float32", "convolution float32")


def test_rates_are_operations_over_a_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 0, 8, 0, 2, 0, 1, 0, 40])  # two calls that are not counted, then 2, 1 and 40 seconds
    monkeypatch.setattr("gan_t2i.doctor.flops.time", SimpleNamespace(perf_counter=clock.__next__))
    assert median_seconds(lambda: None, 3, CPU) == 2

    def once(work: Callable[[], object], repeats: int, device: torch.device) -> float:
        with FlopCounter() as counter:
            work()
        done.append(counter)
        return 0.5

    done: list[FlopCounter] = []
    monkeypatch.setattr("gan_t2i.doctor.flops.median_seconds", once)
    rates = [convolution_rate(CPU, "float32"), matmul_rate(CPU, torch.bfloat16, size=64)]
    assert rates == [counter.total / 0.5 / 1e9 for counter in done]
    assert [{call.kind for call in counter.calls} for counter in done] == [{"convolution float32"}, {"matmul bfloat16"}]
