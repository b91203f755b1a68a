"""How a run is executed on this machine."""

from __future__ import annotations

import logging

import pytest
import torch

from model import execution
from model.execution import Execution
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
