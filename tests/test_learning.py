"""The network does learn: real frames by heart, and that it is the sound that moves the mouth."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.execution import Execution
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, load_generator
from shards.reader import open_dataset, read_clip
from shards.resident import split_held_out
from shards.schema import MELS_PER_FRAME, ClipSample
from stages.evaluate.metrics.mouth import correlation, openings
from stages.evaluate.metrics.pixels import compute_psnr, squared_errors
from stages.evaluate.mouths import find_mouths
from stages.media import faces
from stages.synth import SynthParams, make_corpus
from tests import datasets
from tests.build import build, pipeline
from tests.conftest import ROOT

SIZE = 64  # px: a fourth of the work that 128 are
# Minutes on a CPU: few channels, all of them where the mouth is.
TINY = {
    "network.size": SIZE,
    "network.patch": 1,
    "network.top": 36,
    "optim.learning_rate": 3e-3,
    "optim.after_warmup": "cosine",
    "optim.ema_decay": 0.95,
    "watch.evaluate_every": 10_000,
    "watch.save_every": 10_000,
}


def train(shards: Path, run: Path, **changes: object) -> None:
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    pipeline("train", "--preset", "demo", "--device", "cpu", "--shards", shards, "--run", run, *words)


def small_crops(folder: Path) -> Path:
    """A params file for crops of 64 px."""
    path = folder / "params.yaml"
    path.write_text(f"align: {{size: {SIZE}}}\n")
    return path


def drawn(run: Path, clip: ClipSample, mels: NDArray[np.float32], params: SampleParams) -> NDArray[np.uint8]:
    """The clip's frames with mouths drawn by a run, frame after frame, to these mels."""
    generator = load_generator(run, params, torch.device("cpu"), Execution())
    frames = (CropFrame(pixels, box) for pixels, box in zip(clip.frames, clip.boxes, strict=True))
    return np.stack(
        [frame.pixels for frame in generator.rollout([ClipRequest(clip.key, frames, mels)], slots=1)]
    )


def masked_psnr(clip: ClipSample, drawn: NDArray[np.uint8]) -> float:
    """Of all masks together, in dB."""
    return compute_psnr(squared_errors(drawn, clip.frames, clip.boxes))


def seen_openings(frames: NDArray[np.uint8], model: Path) -> NDArray[np.float64]:
    """How far the lips are apart, in units of the pupils' distance: (T,)."""
    with faces.FaceFinder(model, max_faces=1) as find:
        return openings(find_mouths(frames, find))


@pytest.mark.usefixtures("landmarker")
def test_a_tiny_network_learns_eight_real_frames_by_heart(grid: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "s1"
    raw.mkdir(parents=True)
    name = sorted((grid / "s1").glob("*.mpg"))[0].name
    shutil.copy(grid / "s1" / name, raw / name)
    build(tmp_path / "raw", tmp_path / "work", "--params", small_crops(tmp_path), dataset="grid")
    whole = open_dataset(tmp_path / "work" / "shards")
    clip = read_clip(whole, next(iter(whole.clips)))
    cut = slice(20, 28)
    rows = slice(MELS_PER_FRAME * cut.start, MELS_PER_FRAME * cut.stop)
    packed = datasets.pack("s1_cut", clip.frames[cut], box=clip.boxes[cut][0], mels=clip.mels[rows])
    shards = datasets.write(tmp_path / "eight", [packed])

    train(shards, tmp_path / "run", batch=4, steps=500, watch__log_every=200)
    eight = read_clip(open_dataset(shards), "s1_cut")
    result = drawn(tmp_path / "run", eight, eight.mels, SampleParams(sampler="ddim", steps=10))
    assert masked_psnr(eight, result) > 30
    frozen = np.repeat(eight.frames[:1], len(eight.frames), axis=0)
    assert masked_psnr(eight, frozen) < 31.5, "the mouth does move in these frames"


@pytest.fixture(scope="module")
def made(landmarker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of six clips of one made face."""
    folder = tmp_path_factory.mktemp("made")
    make_corpus(folder / "raw", SynthParams(style="folder", speakers=1, clips=6))
    build(folder / "raw", folder / "work", "--params", small_crops(folder))
    return folder / "work" / "shards"


def test_another_speech_moves_the_mouth_of_a_made_face(made: Path, landmarker: Path, tmp_path: Path) -> None:
    train(made, tmp_path / "run", batch=8, steps=160, held_out_share=0.3, watch__log_every=50)

    dataset = open_dataset(made)
    run = tmp_path / "run"
    trained_on, held_out = split_held_out(dataset.clips, 0.3, seed=0)
    assert len(trained_on) == 4
    a, b = (read_clip(dataset, clip_id) for clip_id in held_out)
    assert len(a.frames) == len(b.frames)
    params = SampleParams(steps=8, guidance=2.0)
    seen = {
        "a": seen_openings(a.frames, landmarker),
        "b": seen_openings(b.frames, landmarker),
        "a to its own speech": seen_openings(drawn(run, a, a.mels, params), landmarker),
        "a to b's speech": seen_openings(drawn(run, a, b.mels, params), landmarker),
    }
    assert abs(correlation(seen["a"], seen["b"])) < 0.4, "the two say different things"
    assert correlation(seen["a to its own speech"], seen["a"]) > 0.5
    assert correlation(seen["a to b's speech"], seen["b"]) > 0.5
    assert correlation(seen["a to b's speech"], seen["a"]) < 0.3


def test_the_ablation_gives_each_row_its_minutes_and_tells_drift_and_obedience(
    made: Path, tmp_path: Path
) -> None:
    network = ["network.size=64", "network.patch=2", "network.top=32", "batch=4", "held_out_share=0"]
    words = ["--shards", made, "--to", tmp_path / "runs", "--preset", "demo", "--split", "train"]
    rows = ["--only", "ours,audio never dropped", "--minutes", "0.1", "--clips", "1", "--steps", "2"]
    settings = [word for setting in network for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "benchmarks/ablation.py", *words, *rows, *settings, "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "runs" / "ablation.json").read_text())
    assert list(table) == ["ours", "audio never dropped"]
    for row in table.values():
        assert row["step"] > 0 and row["psnr_start"] > 0 and row["psnr_end"] > 0
        told = row["obedience"]
        assert -2 <= told["low"] <= told["value"] <= told["high"] <= 2 and told["n"] == 1
