"""Adapting to one video: what is learned from it, what is left behind, and that it is learned once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import loop
from model.checkpoint import EMA, find_checkpoint, load_network, save_checkpoint
from model.execution import Execution
from model.published_file import PublishedInfo, read_published_info, write_published_file
from model.recipe import build_recipe
from model.start import find_start
from pipeline.one_clip import clip_from_file
from pipeline.params import Params
from sampler.params import SampleParams
from sampler.rollout import CropFrame, load_generator
from shards.atomic import WriteError
from shards.reader import open_dataset, read_clip
from stages import synth
from stages.adapt import run
from stages.adapt.clips import CutResult, ExcerptParams, cut_video, plan_cut, spread_windows
from stages.adapt.run import MIN_STEPS, AdaptRequest, Estimate, adapt
from stages.cut.params import ThresholdParams
from stages.cut.speaker import SpeakerScore
from stages.edit.run import EditParams
from stages.engine.outcome import StageError
from stages.media import weights
from stages.media.networks import find_network
from stages.mels import MelsParams
from stages.metrics.border import border_distances
from stages.synth import ClipSpec
from stages.train.run_file import advise_sampling
from tests.conftest import real_clips
from tests.media import ffmpeg
from tests.model.worlds import CPU, TINY

SIZE = 32
PARAMS = EditParams(mels=MelsParams(n_mels=TINY.network.audio.n_mels))
pytestmark = pytest.mark.usefixtures("landmarker")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run of a few channels, and a clip of three seconds."""
    folder = tmp_path_factory.mktemp("world")
    recipe = replace(TINY, network=replace(TINY.network, size=SIZE))
    save_checkpoint(loop.create_state(recipe, CPU), folder / "run", recipe, "digest", None)
    synth.make_clip(folder / "clip.mp4", ClipSpec(seconds=3, size=(240, 192)))
    return folder


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this process."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def make_request(world: Path, landmarker: Path, cache: Path, **changes: Any) -> AdaptRequest:
    start = find_start(world / "run")
    recipe = build_recipe("own", {"steps": 3, "batch": 4}, start=start.recipe)
    request = AdaptRequest(world / "clip.mp4", start, recipe, PARAMS, landmarker, device="cpu", cache=cache)
    return replace(request, **changes)


def cut(video: Path, out: Path, landmarker: Path, size: int = SIZE, **changes: Any) -> CutResult:
    params, numbers = replace(PARAMS, mels=MelsParams()), ExcerptParams(**changes)
    (out / "scratch").mkdir(parents=True)
    return cut_video(
        video,
        plan_cut(video, params, numbers),
        out / "shards",
        size=size,
        takes_speech=False,
        model=landmarker,
        params=params,
        excerpt=numbers,
        thresholds=ThresholdParams(),
        scratch=out / "scratch",
        progress=lambda *_: None,
    )


# --- cutting ------------------------------------------------------------------------------------------


def test_clips_are_those_that_the_dataset_stages_make(world: Path, tmp_path: Path, landmarker: Path) -> None:
    params = Params()
    expected = clip_from_file(world / "clip.mp4", params)
    result = cut(world / "clip.mp4", tmp_path, landmarker, size=params.align.size)
    assert result == CutResult(clips=1, frames=75) and result.seconds == 3
    dataset = open_dataset(tmp_path / "shards")
    sample = read_clip(dataset, "own_0000")
    assert np.array_equal(sample.boxes, expected.boxes)
    assert np.array_equal(sample.mels, expected.mels)
    np.testing.assert_allclose(sample.affine, expected.affine, atol=1e-4)
    difference = np.abs(sample.frames.astype(int) - expected.frames.astype(int))
    assert difference.mean() < 0.01, difference.mean()
    assert sample.info["source_sha256"] == expected.info["source_sha256"]


def test_a_longer_shot_is_cut_into_equal_clips(world: Path, tmp_path: Path, landmarker: Path) -> None:
    assert cut(world / "clip.mp4", tmp_path, landmarker, clip_seconds=1.2) == CutResult(clips=3, frames=75)
    dataset = open_dataset(tmp_path / "shards")
    whole = cut(world / "clip.mp4", tmp_path / "whole", landmarker)
    assert whole.clips == 1
    [sample] = [read_clip(open_dataset(tmp_path / "whole" / "shards"), "own_0000")]
    parts = [read_clip(dataset, clip_id) for clip_id in sorted(dataset.clips)]
    for name in ("frames", "boxes", "mels", "affine"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(sample, name))


def test_windows_are_spread_over_a_long_video(world: Path, tmp_path: Path, landmarker: Path) -> None:
    numbers = ExcerptParams(seconds=20, clip_seconds=5)
    assert spread_windows(500, numbers) == [(0, 500)], "all of a video that is short enough"
    assert spread_windows(2000, numbers) == [(0, 125), (625, 750), (1250, 1375), (1875, 2000)]
    result = cut(world / "clip.mp4", tmp_path, landmarker, seconds=2, clip_seconds=1)
    assert result == CutResult(clips=2, frames=50)
    dataset = open_dataset(tmp_path / "shards")
    seconds = [read_clip(dataset, clip_id).info["source_seconds"][0] for clip_id in sorted(dataset.clips)]
    assert seconds == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("-t", 1.2),
            "has 1.2 s of picture with sound, expected at least 2 s to adapt to, better 10 s or more",
        ),
        (("-an",), "has no sound; adapting learns from the video's own speech"),
        (("-vf", "drawbox=color=black:t=fill"), "no face in any of its 75 frames"),
        (
            ("-vf", "drawbox=color=black:t=fill:enable='gt(t,1.4)'"),
            "the face is in sight for 1.4 s, expected at least 2 s to adapt to, better 10 s or more",
        ),
    ],
)
def test_a_video_that_teaches_nothing_is_refused_in_one_line(
    world: Path, tmp_path: Path, scratch: Path, landmarker: Path, arguments: tuple[object, ...], message: str
) -> None:
    video = tmp_path / "video.mp4"
    ffmpeg("-i", world / "clip.mp4", *arguments, video)
    with pytest.raises(StageError) as caught:
        adapt(make_request(world, landmarker, tmp_path / "cache", video=video))
    assert str(caught.value).startswith(f"{video}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(scratch.iterdir()) and not (tmp_path / "cache").exists()


# --- training -----------------------------------------------------------------------------------------


def test_a_video_is_learned_once_and_then_found(
    world: Path, tmp_path: Path, scratch: Path, landmarker: Path
) -> None:
    torch.set_num_threads(1)
    cache, kept = tmp_path / "cache", tmp_path / "kept.safetensors"
    passes: list[tuple[str, int, int]] = []
    estimates: list[Estimate] = []
    request = make_request(world, landmarker, cache, keep=kept)
    first = adapt(request, lambda label, done, total: passes.append((label, done, total)), estimates.append)
    assert list(dict.fromkeys(label for label, _, _ in passes)) == [
        "faces", "crops", "loading training clips", "training",
    ]  # fmt: skip
    assert passes[-1] == ("training", 12, 12)
    [estimate] = estimates
    assert estimate.steps == 3 and estimate.train_seconds > 0
    assert estimate.describe().startswith("adapting to 3 of 3 s of the video: about ")
    assert "that is little: with 10 s or more" in estimate.describe()
    assert "little" not in replace(estimate, learn_seconds=10.0).describe()
    assert (first.path, first.steps) == (kept, 3)
    assert first.cut == CutResult(1, 75)
    assert first.describe().startswith(f"{kept}: adapted to 3.0 s of the face in 3 steps, ")
    assert not first.warnings, "the estimate has said that it is little"
    assert not list(scratch.iterdir()), "shards and run are removed"

    info = read_published_info(kept)
    assert info.recipe.network == request.start.recipe.network and info.step == 3
    assert info.mels is not None and info.mels["n_mels"] == TINY.network.audio.n_mels
    new, old = load_network(kept)[0].state_dict(), request.start.load_network().state_dict()
    assert any(not torch.equal(new[name], old[name]) for name in old)

    again = adapt(request, lambda *_: pytest.fail("nothing is left to do"), estimates.append)
    assert again.cut is None and len(estimates) == 1
    assert again.describe() == f"{kept}: adapted to this video before"
    [cached] = cache.iterdir()
    assert cached.read_bytes() == kept.read_bytes()
    repeated = adapt(replace(request, cache=tmp_path / "other", keep=None))
    assert repeated.path.read_bytes() == kept.read_bytes(), "the same video gives the same model"


def test_another_start_face_or_time_is_another_model(world: Path, tmp_path: Path, landmarker: Path) -> None:
    request = make_request(world, landmarker, tmp_path / "cache")
    others = [
        request,
        replace(request, params=replace(PARAMS, face="left")),
        replace(request, recipe=replace(request.recipe, steps=4)),
        replace(request, excerpt=ExcerptParams(seconds=2)),
    ]
    paths = {adapt(each).path for each in others}
    assert len(paths) == len(others)
    damaged = sorted(paths)[0]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert sum(adapt(each).cut is None for each in others) == len(others) - 1, "a damaged one is made again"


def test_another_version_of_redub_or_its_libraries_makes_another_model(
    world: Path, tmp_path: Path, landmarker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(world, landmarker, tmp_path)
    keys = []
    for newer in ("none", "redub", "torch"):

        def read_versions(*names: str, newer: str = newer) -> dict[str, str]:
            return {name: "99.9" if name == newer else "1" for name in names}

        monkeypatch.setattr(run, "versions", read_versions)
        keys.append(run._make_key(request))
    assert len(set(keys)) == 3


def test_how_the_start_is_sampled_is_written_into_the_model(
    world: Path, tmp_path: Path, landmarker: Path
) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    advice = {"steps": 2, "guidance": 2.0}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"sampling": advice}))
    start = find_start(tmp_path / "run")
    model = adapt(make_request(world, landmarker, tmp_path / "cache", start=start)).path
    assert advise_sampling(model) == advice


class Stopped(Exception):
    """What ends an adaptation before its training."""


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (CutResult(5, 300), []),
        (CutResult(5, 200), ["the face is in sight for 8.0 s; that is little: with 10 s or more"]),
        (CutResult(5, 300, SpeakerScore(0.5, 0, 0.6)), []),
        (CutResult(5, 300, SpeakerScore(0.0, -9, 0.1)), ["the mouth hardly follows the voice"]),
        (
            CutResult(5, 200, SpeakerScore(0.5, -9, 0.6)),
            ["the face is in sight", "the sound is 0.36 s late"],
        ),
    ],
)
def test_what_is_wrong_with_a_video_is_said_before_the_training(
    world: Path,
    tmp_path: Path,
    landmarker: Path,
    monkeypatch: pytest.MonkeyPatch,
    result: CutResult,
    words: list[str],
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(run, "cut_video", lambda *_, **__: result)
    monkeypatch.setattr(run, "_estimate", lambda *_: Estimate(12, 12, 3, 1, 1))
    monkeypatch.setattr(run.train, "run", stop)
    lines: list[str] = []
    with pytest.raises(Stopped):
        adapt(make_request(world, landmarker, tmp_path / "cache"), warn=lines.append)
    assert len(lines) == len(words)
    assert all(line.startswith(word) for line, word in zip(lines, words, strict=True)), lines


def test_minutes_decide_how_many_steps_there_are(
    world: Path, tmp_path: Path, landmarker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine on which a step takes half a second."""
    monkeypatch.setattr("stages.adapt.run.measure_step_seconds", lambda *_: 0.5)
    estimates: list[Estimate] = []

    def refuse(estimate: Estimate) -> None:
        estimates.append(estimate)
        raise StageError("enough")

    for minutes, max_minutes, steps in (
        (1, None, 120),
        (10, None, 1200),
        (10, 2.5, 300),
        (None, None, 3),
        (None, 0.001, MIN_STEPS),
        (10, 0.001, MIN_STEPS),
    ):
        request = make_request(
            world, landmarker, tmp_path / "cache", minutes=minutes, max_minutes=max_minutes
        )
        with pytest.raises(StageError, match="enough"):
            adapt(request, announce=refuse)
        assert (estimates[-1].steps, estimates[-1].train_seconds) == (steps, steps / 2)


def test_a_strangers_own_video_brings_the_colours_that_are_drawn_a_fifth_nearer_to_theirs(
    tmp_path: Path, landmarker: Path
) -> None:
    """A real person whom the packaged model does not know, after 960 samples. Measured: from 8.5 to 6.5."""
    clips, small = real_clips("us_gov/obama"), find_network("small")
    params = Params().make_edit_params(small)
    if params.speech.encoder != "none":
        try:
            weights.find(weights.SPEECH_ENCODER)
        except StageError as err:
            pytest.skip(str(err))
    start = find_start(small)
    recipe = build_recipe("own", {"steps": 120, "batch": 8}, start=start.recipe)
    video = clips / "learning_more.mp4"
    model = adapt(
        AdaptRequest(video, start, recipe, params, landmarker, device="cpu", cache=tmp_path / "cache")
    ).path
    clip = clip_from_file(video, Params(mels=params.mels, speech=params.speech))
    sampling = SampleParams(steps=2, guidance=2)
    distances = []
    for path in (small, model):
        generator = load_generator(path, sampling, CPU, Execution())
        frames = islice(map(CropFrame, clip.frames, clip.boxes), 12)
        crops = np.stack(list(generator(frames, clip.mels, 0, clip.speech)))
        distances.append(float(np.median(border_distances(crops, clip.frames[:12], clip.boxes[:12]))))
    assert distances[1] < 0.8 * distances[0], distances


class Cancelled(Exception):
    """What a caller's progress raises."""


def test_a_cancelled_or_interrupted_adaptation_leaves_nothing(
    world: Path, tmp_path: Path, scratch: Path, landmarker: Path
) -> None:
    def cancel_at(name: str) -> Any:
        def progress(label: str, done: int, total: int) -> None:
            if label == name:
                raise Cancelled

        return progress

    def interrupt(label: str, done: int, total: int) -> None:
        if label == "training" and done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    request = make_request(world, landmarker, tmp_path / "cache", keep=tmp_path / "kept.safetensors")
    for name in ("faces", "crops", "training"):
        with pytest.raises(Cancelled):
            adapt(request, cancel_at(name))
    with pytest.raises(KeyboardInterrupt):
        adapt(request, interrupt)
    assert not list(scratch.iterdir())
    assert not (tmp_path / "cache").exists() and not request.keep.exists()  # type: ignore[union-attr]


def test_a_thread_can_adapt_as_the_page_does(world: Path, tmp_path: Path, landmarker: Path) -> None:
    results = []
    request = make_request(world, landmarker, tmp_path / "cache")
    thread = threading.Thread(target=lambda: results.append(adapt(request)))
    thread.start()
    thread.join()
    assert [result.steps for result in results] == [3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pt", "a model is written as .safetensors"),
        ("no/model.safetensors", "there is no folder"),
        ("folder.safetensors", "is a folder; name a file in it"),
        ("/proc/model.safetensors", r"/proc/model\.safetensors"),
    ],
)
def test_a_place_that_cannot_hold_the_model_is_refused_before_the_work(
    world: Path, tmp_path: Path, landmarker: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    request = make_request(world, landmarker, tmp_path / "cache", keep=tmp_path / name)
    with pytest.raises((StageError, WriteError), match=message):
        adapt(request, lambda *_: pytest.fail("the work has begun"))


@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize("is_published", [False, True])
def test_the_model_that_the_training_starts_from_is_not_overwritten(
    world: Path, tmp_path: Path, landmarker: Path, is_published: bool, is_link: bool
) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    model = find_checkpoint(run).path / EMA
    if is_published:
        model = run = tmp_path / "start.safetensors"
        network, checkpoint = load_network(world / "run")
        info = PublishedInfo(
            recipe=checkpoint.recipe, step=checkpoint.step, digest=checkpoint.digest, mels=asdict(PARAMS.mels)
        )
        write_published_file(network, info, model, max_rounding=1.0)
    content, keep = model.read_bytes(), model
    if is_link:
        keep = tmp_path / "link.safetensors"
        keep.symlink_to(model)
    request = make_request(world, landmarker, tmp_path / "cache", start=find_start(run), keep=keep)
    with pytest.raises(StageError, match=r"is an input, which is never overwritten"):
        adapt(request, lambda *_: pytest.fail("the work has begun"))
    assert model.read_bytes() == content
