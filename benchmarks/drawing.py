"""Measure how long the thread that draws waits for what is beside it: reading, pasting, sound, encoding.

    python benchmarks/drawing.py --shards data/grid/shards
    python benchmarks/drawing.py --video me.mp4 --audio speech.wav --steps 20 --json drawing.json

The network is a stand-in of ``--ms`` milliseconds a step that needs no processor, as a GPU is to the machine
beside it. Drawing is preparing the network's input, its steps, and the start of the copies; all other time of
the thread is waiting, until the last file is there: for other threads, or because it does their work itself
(``other_cpu_ms_per_round``, which does not depend on how busy the machine is). `sample` is measured with
--shards, `edit` with --video.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stages.edit.run
import stages.sample.run
from model.checkpoint import load_network
from model.execution import Execution, select_device
from pipeline.params import load as load_params
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator
from stages.edit.run import edit
from stages.media import weights
from stages.media.networks import find_network
from stages.sample.run import SampleRequest


class Clock:
    """Adds up the seconds that functions take, of the clock and of this thread on the processor."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.calls = 0

    def start(self) -> None:
        """Begin a stretch."""
        self.seconds -= time.perf_counter()
        self.cpu_seconds -= time.thread_time()

    def stop(self) -> None:
        """End a stretch."""
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.thread_time()
        self.calls += 1

    def time(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function; its calls are added up."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop()

        return timed


def install_stand_in(generator: FrameGenerator, step_seconds: float, drawing: Clock) -> None:
    """Have a generator wait ``step_seconds`` in each step instead of computing; time what it draws."""

    def forward(x: Tensor, *_: Any) -> Tensor:
        time.sleep(step_seconds)
        return torch.zeros(len(x), 3, *x.shape[2:], device=x.device)

    generator.forward = forward
    generator._generate_frames = drawing.time(generator._generate_frames)  # type: ignore[method-assign]


def measure_sample(args: argparse.Namespace, params: SampleParams) -> dict[str, float]:
    drawing, whole = Clock(), Clock()

    def make_generator(*arguments: Any) -> FrameGenerator:
        generator = FrameGenerator(*arguments)
        install_stand_in(generator, args.ms / 1000, drawing)
        return generator

    def generate(*arguments: Any, **options: Any) -> Any:
        whole.start()  # what is before it, as opening the dataset, does not count
        return generate_clips(*arguments, **options)

    generate_clips = stages.sample.run.generate_clips
    stages.sample.run.FrameGenerator = make_generator  # type: ignore[misc, assignment]
    stages.sample.run.generate_clips = generate
    with tempfile.TemporaryDirectory() as out:
        request = SampleRequest(
            shards=args.shards, run=args.run, out=Path(out), split=args.split, clips=args.clips,
            slots=args.slots, device="cpu",
        )  # fmt: skip
        result = stages.sample.run.run(request, params)
        whole.stop()
    return make_row(drawing, whole) | {"clips": result.n_clips}


def measure_edit(args: argparse.Namespace, params: SampleParams) -> dict[str, float]:
    drawing, whole = Clock(), Clock()
    network, checkpoint = load_network(args.run)
    generator = FrameGenerator(network, checkpoint.recipe, params, select_device("cpu"), Execution())
    install_stand_in(generator, args.ms / 1000, drawing)
    stages.edit.run._write_outputs = whole.time(stages.edit.run._write_outputs)
    with tempfile.TemporaryDirectory() as folder:
        edit(
            args.video, args.audio, Path(folder, "out.mp4"), generator,
            model=weights.find(weights.LANDMARKER),
            params=load_params(None).make_edit_params(args.run, any_face=True),
        )  # fmt: skip
    return make_row(drawing, whole)


def make_row(drawing: Clock, whole: Clock) -> dict[str, float]:
    return {
        "rounds": drawing.calls,
        "seconds": whole.seconds,
        "drawing_ms_per_round": 1000 * drawing.seconds / drawing.calls,
        "other_cpu_ms_per_round": 1000 * (whole.cpu_seconds - drawing.cpu_seconds) / drawing.calls,
        "waiting": 1 - drawing.seconds / whole.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=find_network, default="small")
    parser.add_argument("--shards", help="a dataset, for `sample`")
    parser.add_argument("--split", default="test")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--video", type=Path, help="a video, for `edit`")
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--ms", type=float, default=1.0, help="of a step of the stand-in")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    params = SampleParams(steps=args.steps, guidance=1.0)
    results = {}
    if args.shards:
        results["sample"] = measure_sample(args, params)
    if args.video:
        results["edit"] = measure_edit(args, params)
    for name, row in results.items():
        print(f"{name}: {row.pop('rounds'):.0f} rounds, " + ", ".join(f"{k} {v:.3g}" for k, v in row.items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
