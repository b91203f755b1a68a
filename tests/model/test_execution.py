"""How a run is executed on this machine."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import torch
from torch import Tensor

from model import execution
from model.blocks import attend
from model.execution import Execution, leave_core
from model.unet import UNet
from tests.model import worlds
from tests.model.worlds import CPU


@pytest.mark.parametrize(("capability", "n_lines"), [("AVX2", 1), ("AVX512", 0)])
def test_bf16_is_warned_of_where_the_processor_emulates_it(
    capability: str, n_lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(execution, "get_cpu_capability", lambda: capability)
    with caplog.at_level(logging.WARNING):
        Execution(precision="fp32").warn_of_slow_precision(torch.device("cpu"))
        Execution(precision="auto").warn_of_slow_precision(torch.device("cpu"))
        assert not caplog.messages
        Execution(precision="bf16").warn_of_slow_precision(torch.device("cpu"))
    assert ["--precision fp32" in message for message in caplog.messages] == [True] * n_lines


def test_weights_that_are_rounded_once_give_the_same_bits_as_weights_rounded_at_every_use() -> None:
    network, bf16 = UNet(worlds.TINY.network).eval(), Execution(precision="bf16")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    rounded = bf16.round_weights(network, CPU)
    params = worlds.TINY.network
    x = torch.rand(
        2, params.in_channels, params.size, params.size, generator=torch.Generator().manual_seed(1)
    )
    mels = -20 * torch.ones(2, params.audio.rows, params.audio.n_mels)
    with torch.no_grad(), bf16.autocast(CPU):
        assert torch.equal(
            network(x, torch.tensor([1.0, 9.0]), mels), rounded(x, torch.tensor([1.0, 9.0]), mels)
        )
    assert network.out.weight.dtype == torch.float32 and rounded.out.weight.dtype == torch.bfloat16
    assert Execution(precision="fp32").round_weights(network, CPU) is network


def test_attention_in_bf16_on_a_processor_rounds_its_inputs_and_its_result_and_nothing_between() -> None:
    """Its own kernel for bf16 rounds the weights of the places too, and its gradients take longer."""
    shape, generator = (2, 3, 20, 8), torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(shape, generator=generator).bfloat16() for _ in range(4))
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        inputs = [each.detach().to(dtype, copy=True).requires_grad_() for each in (q, k, v)]
        with Execution(precision="bf16").autocast(CPU):
            result = attend(*inputs) if dtype == torch.bfloat16 else compute_attention(*inputs)
        result.backward(upstream.to(dtype))
        results.append([result.detach(), *(each.grad for each in inputs)])
    for ours, exact in zip(*results, strict=True):
        assert ours is not None and exact is not None and ours.dtype == torch.bfloat16
        difference = (ours.double() - exact).abs() / (exact.abs() + 1e-3)
        assert difference.max() < 0.004, "half a unit in the last place of eight bits"


def compute_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition."""
    with torch.autocast("cpu", enabled=False):
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


@pytest.mark.parametrize(
    ("device", "n_cores", "n_threads", "expected"),
    [("cpu", 8, 8, 7), ("cpu", 2, 2, 1), ("cpu", 1, 1, 1), ("cpu", 8, 3, 3), ("cuda", 8, 8, 8)],
)
def test_a_network_that_draws_on_a_processor_leaves_one_core(
    device: str, n_cores: int, n_threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "count_cores_per_rank", lambda: n_cores)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with leave_core(torch.device(device)):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)


def test_a_thread_that_begins_to_draw_beside_another_ends_with_the_number_of_threads_from_before_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execution, "count_cores_per_rank", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    counts = []

    def draw() -> None:  # PyTorch gives a new thread the number of the last one that set it
        with leave_core(torch.device("cpu")):
            counts.append(torch.get_num_threads())
            is_first_done.wait(60)
        counts.append(torch.get_num_threads())

    is_first_done = threading.Event()
    second = threading.Thread(target=draw)
    try:
        with leave_core(torch.device("cpu")):
            second.start()
            while not counts and second.is_alive():
                time.sleep(0.01)
        is_first_done.set()
        second.join()
        assert counts == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
