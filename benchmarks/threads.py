"""What PyTorch's threads cost where other programs need the cores too: waiting in a busy loop, or asleep.

    python benchmarks/threads.py
    python benchmarks/threads.py --busy 2

Draws frames with a published network by each way of waiting (``OMP_WAIT_POLICY``), in processes of their own
and in turns, alone and beside ``--busy`` processes that compute. `pipeline` sets PASSIVE unless the
environment says otherwise (``pipeline.main``). Prints the fastest of the rounds: seconds of the clock and of
the processor per frame.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

POLICIES = ("ACTIVE", "default", "PASSIVE")
DRAW = """
import sys, time
import numpy as np
from model.execution import Execution, select_device
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, load_generator
from stages.media.networks import find_network

n_frames = int(sys.argv[1])
generator = load_generator(
    find_network("small"),
    SampleParams(steps=2, guidance=2.0),
    select_device("cpu"),
    Execution(precision="fp32"),
)
audio = generator.recipe.network.audio
frame = CropFrame(np.full((128, 128, 3), 128, np.uint8), np.array([24, 60, 104, 124], np.int16))
mels = np.zeros((2 * n_frames, audio.n_mels), np.float32)
speech = np.zeros((2 * n_frames, audio.speech_size), np.float16)
for _ in range(2):  # the first prepares
    began, cpu = time.perf_counter(), time.process_time()
    request = ClipRequest("still", iter([frame] * n_frames), mels, speech=speech)
    list(generator.rollout([request], slots=1))
    seconds = time.perf_counter() - began, time.process_time() - cpu
print(*(value / n_frames for value in seconds))
"""
BUSY = "while True: pass"


def time_frames(policy: str, n_frames: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor per drawn frame."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy != "default":
        environment["OMP_WAIT_POLICY"] = policy
    process = subprocess.run(
        [sys.executable, "-c", DRAW, str(n_frames)],
        check=True, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    wall, cpu = map(float, process.stdout.split())
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes that compute beside it")
    args = parser.parse_args()
    print("| beside it | waiting | clock, s a frame | processor, s a frame |\n| --- | --- | --- | --- |")
    for n_busy in (0, args.busy):
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n_busy)]
        try:
            times: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
            for _ in range(args.rounds):
                for policy in POLICIES:
                    times[policy].append(time_frames(policy, args.frames))
        finally:
            for other in others:
                other.kill()
                other.wait()
        for policy in POLICIES:
            wall, cpu = min(times[policy])
            print(f"| {n_busy or 'nothing'} | {policy} | {wall:.3f} | {cpu:.3f} |", flush=True)


if __name__ == "__main__":
    main()
