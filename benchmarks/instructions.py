"""Counts what fixed work costs in redub's hottest functions: a report, to be compared between two commits.

    python benchmarks/instructions.py --json instructions.json
    python benchmarks/instructions.py --counter cpu --only warp webp

In one process and on one thread, the same inputs each time. ``hardware`` counts instructions with the
processor's own counter, where the kernel offers it; on many virtual machines it does not. ``cpu`` is the
processor's time, of several runs the shortest, which another program on the machine may still lengthen by a
third. By default ``hardware``, or else ``cpu``.

Nothing is compared with a limit: what a figure should be is for the reader to say.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import platform
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.codec import encode_frame
from shards.schema import MELS_PER_FRAME, Frame
from stages.media.crops import warp

Work = Callable[[], object]

RUNS = 5  # of which the cheapest counts
SIZE = 128  # px of a crop
PICTURE = (288, 360)  # height and width of GRID's
SAMPLED_FRAMES = 4
# Of linux/perf_event.h: PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, and the bits disabled,
# exclude_kernel, exclude_hv. The syscall has another number on each kind of processor.
HARDWARE, INSTRUCTIONS, FLAGS = 0, 1, 0b1100001
PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
ENABLE, DISABLE, RESET = 0x2400, 0x2401, 0x2403
ATTRIBUTES_BYTES = 128


def make_picture(height: int, width: int, seed: int = 0) -> Frame:
    """A smooth picture with some noise, as of a camera: (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    noise = rng.normal(0, 3, (height, width, 3))
    return np.clip(cv2.resize(coarse, (width, height)) + noise, 0, 255).astype(np.uint8)


MATRIX = np.array([[1.1, 0.02, -120.0], [-0.02, 1.1, -60.0]], np.float32)  # from a picture to a crop


def prepare_warp() -> Work:
    picture = make_picture(*PICTURE)
    return lambda: warp(picture, MATRIX, SIZE, 2)


def prepare_webp() -> Work:
    crop = make_picture(SIZE, SIZE)
    return lambda: encode_frame(crop, "webp")


def prepare_mels() -> Work:
    from stages.mels import MelsParams, compute_mel_rows, count_samples

    sound = np.random.default_rng(0).normal(0, 0.1, count_samples(75)).astype(np.float32)
    params = MelsParams()
    return lambda: compute_mel_rows(sound, params)


def prepare_paste() -> Work:
    from sampler.paste import paste

    picture, redrawn = make_picture(*PICTURE), make_picture(SIZE, SIZE, seed=1)
    crop, box = warp(picture, MATRIX, SIZE, 1), np.array([26, 60, 102, 118])
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    oval = np.stack([64 + 34 * np.sin(angle), 66 - 44 * np.cos(angle)], axis=1).astype(np.float32)
    return lambda: paste(picture, crop, redrawn, MATRIX, box, oval)


def prepare_faces() -> Work:
    from skimage.data import astronaut

    from stages.media import weights
    from stages.media.face_networks import FaceNetworks

    networks = FaceNetworks(weights.find(weights.LANDMARKER), 1)
    picture = np.ascontiguousarray(astronaut()[: PICTURE[0], 60 : 60 + PICTURE[1]])
    assert networks(picture), "the picture shows a face"
    return lambda: networks(picture)


def prepare_sampling() -> Work:
    import torch
    from sample import make_crops

    from model.execution import Execution
    from model.recipe import build_recipe
    from model.unet import UNet
    from sampler.params import SampleParams
    from sampler.rollout import ClipRequest, FrameGenerator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = build_recipe("demo")
    generator = FrameGenerator(
        UNet(recipe.network).eval(),
        recipe,
        SampleParams(steps=2, guidance=1.0),
        torch.device("cpu"),
        Execution(precision="fp32", compile=False),
    )
    mels = np.zeros((MELS_PER_FRAME * SAMPLED_FRAMES, recipe.network.audio.n_mels), np.float32)

    def draw() -> None:
        request = ClipRequest("clip", make_crops(recipe.network.size, SAMPLED_FRAMES, 0), mels)
        assert sum(1 for _ in generator.rollout(iter([request]), slots=1)) == SAMPLED_FRAMES

    return draw


# Name -> how its work is prepared, how often it is done at a time (for about 0.2 s), and what that work is.
PARTS: dict[str, tuple[Callable[[], Work], int, str]] = {
    "warp": (prepare_warp, 200, "one crop of 128 px"),
    "webp": (prepare_webp, 100, "one crop of 128 px"),
    "mels": (prepare_mels, 10, "3 s of sound"),
    "paste": (prepare_paste, 30, "one frame of 360 x 288"),
    "faces": (prepare_faces, 15, "one frame of 360 x 288"),
    "sampling": (prepare_sampling, 1, f"{SAMPLED_FRAMES} frames by the network `demo`, 2 steps"),
}


class HardwareCounter:
    """Instructions of this thread, outside the kernel. Raises OSError where the machine counts none."""

    name, unit = "hardware", "million instructions"

    def __init__(self) -> None:
        number = PERF_EVENT_OPEN.get(platform.machine())
        if number is None or not sys.platform.startswith("linux"):
            raise OSError("no counter is known for this machine")
        fields = struct.pack("IIQQQQQ", HARDWARE, ATTRIBUTES_BYTES, INSTRUCTIONS, 0, 0, 0, FLAGS)
        attributes = ctypes.create_string_buffer(fields, ATTRIBUTES_BYTES)
        self._file = ctypes.CDLL(None, use_errno=True).syscall(number, attributes, 0, -1, -1, 0)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "the kernel counts no instructions")

    def measure(self, work: Work) -> float:
        fcntl.ioctl(self._file, RESET, 0)
        fcntl.ioctl(self._file, ENABLE, 0)
        work()
        fcntl.ioctl(self._file, DISABLE, 0)
        return int.from_bytes(os.read(self._file, 8), sys.byteorder) / 1e6


class CpuClock:
    """The processor's time of this process."""

    name, unit = "cpu", "ms"

    def measure(self, work: Work) -> float:
        start = time.process_time()
        work()
        return 1000 * (time.process_time() - start)


def open_counter(name: str) -> HardwareCounter | CpuClock:
    """The counter of that name; of "auto" the best that there is."""
    if name == "cpu":
        return CpuClock()
    try:
        return HardwareCounter()
    except OSError:
        if name == "hardware":
            raise
        return CpuClock()


def measure_part(name: str, counter: HardwareCounter | CpuClock) -> float:
    """The cost of a part's work once: of several runs the cheapest."""
    prepare, repeats, _ = PARTS[name]
    work = prepare()
    work()  # the first call also loads, allocates and compiles

    def repeat() -> None:
        for _ in range(repeats):
            work()

    return min(counter.measure(repeat) for _ in range(RUNS)) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--counter", choices=["auto", "hardware", "cpu"], default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    counter = open_counter(args.counter)
    costs = {name: measure_part(name, counter) for name in args.only}
    print(f"| part | {counter.unit} ({counter.name}) | of |\n| --- | --- | --- |")
    for name, cost in costs.items():
        print(f"| {name} | {cost:.3f} | {PARTS[name][2]} |")
    if args.json:
        results: dict[str, Any] = {"counter": counter.name, "unit": counter.unit, "costs": costs}
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
