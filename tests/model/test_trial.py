"""Which way of training is fastest here: what is tried, what is taken, and that a run keeps to it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model import execution, trial
from model.checkpoint import list_checkpoints
from model.execution import Execution
from model.recipe import Recipe
from model.trial import LONG_SECONDS, choose_execution, measure_step_seconds
from model.unet import UNet
from stages.engine.outcome import StageError
from stages.train import run as train
from stages.train.run import TrainRequest
from stages.train.run_file import RUN_FILE
from tests.model import worlds
from tests.model.worlds import CPU, TINY

SECONDS = {("fp32", False): 1.0, ("fp32", True): 0.75, ("bf16", True): 0.5}  # of a step


def measure(_network: UNet, _recipe: Recipe, _device: torch.device, candidate: Execution) -> float:
    """A machine on which everything takes the time of SECONDS."""
    assert candidate.compile is not None
    return SECONDS[candidate.precision, candidate.compile]


@pytest.mark.parametrize(("capability", "fastest"), [("AVX2", "fp32"), ("AVX512", "bf16")])
def test_a_long_run_is_executed_as_is_fastest_and_bf16_is_not_tried_where_it_is_emulated(
    capability: str, fastest: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(execution, "get_cpu_capability", lambda: capability)
    with caplog.at_level("INFO", logger=trial.__name__):
        chosen = choose_execution(Execution(micro_batch=2), TINY, CPU, round(LONG_SECONDS), measure)
    assert chosen == Execution(micro_batch=2, precision=fastest, compile=True)  # type: ignore[arg-type]
    assert caplog.messages[-1].endswith(f"this run uses compiled {fastest}")


def test_a_short_run_and_what_the_user_has_said_are_executed_without_a_trial() -> None:
    for stated in (Execution(precision="fp32"), Execution(compile=False), Execution(compile=True)):
        assert choose_execution(stated, TINY, CPU, 10**9, measure) == stated
    assert choose_execution(Execution(), TINY, CPU, round(LONG_SECONDS) - 1, measure) == Execution()


def test_the_seconds_of_a_step_are_those_of_all_its_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which each micro-batch takes a second."""
    monkeypatch.setattr("model.trial.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    for micro_batch, seconds in ((1, 8), (2, 4), (8, 1)):
        execution = Execution(micro_batch=micro_batch)
        assert measure_step_seconds(UNet(TINY.network), TINY, CPU, execution) == seconds


def test_a_run_goes_on_as_its_trial_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints have the bytes of a run that was told so from the start."""
    shards = worlds.make_dataset(tmp_path / "shards", [9, 8])
    decided = Execution(precision="bf16", compile=False)
    monkeypatch.setattr(train, "choose_execution", lambda *_: decided)

    def run(name: str, steps: int, options: Execution) -> dict[str, bytes]:
        request = TrainRequest(
            str(shards), tmp_path / name, "tiny", device="cpu", execution=options, trial=True
        )
        assert train.run(request, replace(TINY, steps=steps)) == "done"
        folder = list_checkpoints(tmp_path / name)[-1].path
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    run("tried", 2, Execution())

    def refuse_a_trial(stated: Execution, *_: object) -> Execution:
        assert not stated.is_open(CPU)
        return stated

    monkeypatch.setattr(train, "choose_execution", refuse_a_trial)
    assert run("tried", 4, Execution()) == run("told", 4, decided) != run("fp32", 4, Execution(compile=False))

    run("tried", 5, Execution(compile=False))  # of this machine alone; the next goes on as the trial decided
    assert '"precision": "bf16"' in (tmp_path / "tried" / RUN_FILE).read_text()

    (tmp_path / "tried" / RUN_FILE).write_text('{"execution": {"precision": "int4", "compile": false}}')
    with pytest.raises(StageError, match="precision"):
        run("tried", 6, Execution())
