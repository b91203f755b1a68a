"""How a run is executed on this machine."""

from __future__ import annotations

import logging

import pytest
import torch

from model import execution
from model.execution import Execution


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
