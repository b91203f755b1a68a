"""The sample stage: each clip is generated once, resumed to the same bytes, by one process or two."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from model import loop
from model.audio import AudioParams
from model.checkpoint import save_checkpoint
from model.execution import Execution
from pipeline.main import cli
from sampler.params import SampleParams
from sampler.rollout import load_generator
from shards.ledger import read_ledger, write_ledger
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import ClipSample, ShardError
from shards.table import write_rows
from stages.engine.outcome import StageError
from stages.evaluate.predictions import find_systems
from stages.media.pauses import EDGE_FRAMES
from stages.sample import run as sample
from stages.sample.generate import generate_clips, make_clip_request
from stages.sample.pairs import (
    CROPS,
    FIRST_SCHEMA,
    RUN_INFO,
    TABLE,
    VIDEOS,
    Pair,
    explain_other_splits,
    make_pairs,
    read_crops,
    read_pair,
    read_samples,
    write_crops,
)
from stages.sample.run import SampleRequest
from tests.build import hash_files
from tests.datasets import damage_clip
from tests.model import worlds
from tests.model.worlds import CPU, SIZE, TINY
from tests.shards.test_publish import serve

QUICK = SampleParams(sampler="ancestral", steps=2)
TEST = tuple(f"s1_clip{number}" for number in range(3))
OPTIONS = ["--sampler", "ancestral", "--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three test clips and one of the training split."""
    return worlds.make_dataset(tmp_path_factory.mktemp("shards") / "shards", (4, 6, 3, 5), test=TEST)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network has a non-trivial output."""
    folder = tmp_path_factory.mktemp("run")
    state = loop.create_state(TINY, CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in state.ema.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_checkpoint(state, folder, TINY, "digest", None)
    return folder


def make_request(shards: Path, run: Path, out: Path, **more: Any) -> SampleRequest:
    return SampleRequest(shards=str(shards), run=run, out=out, split="test", device="cpu", **more)


def hash_results(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in hash_files(out).items() if name.startswith((CROPS, VIDEOS))}


def test_every_clip_of_the_split_is_generated_and_only_inside_its_mask(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    assert sample.run(make_request(shards, trained, tmp_path), QUICK).n_clips == 3
    dataset = open_dataset(shards)
    rows = read_samples(tmp_path)
    assert [row["clip_id"] for row in rows] == list(TEST)
    for row in rows:
        clip = read_clip(dataset, row["clip_id"])
        generated = read_crops(tmp_path / CROPS / f"{row['name']}.tar", SIZE)
        assert row["frames"] == len(generated) == len(clip.frames)
        x0, y0, x1, y1 = clip.boxes[0]
        outside = np.ones((SIZE, SIZE), bool)
        outside[y0:y1, x0:x1] = False
        assert np.array_equal(generated[:, outside], clip.frames[:, outside])
        assert not np.array_equal(generated, clip.frames)
        with av.open(str(tmp_path / VIDEOS / f"{row['name']}.mp4")) as video:
            images = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert np.shape(images) == (len(generated), 2 * SIZE, 4 * SIZE, 3)


def test_clips_are_generated_from_a_dataset_elsewhere_without_a_copy_of_it(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    with serve(shards) as (address, _):
        sample.run(replace(make_request(shards, trained, tmp_path / "far"), shards=address), QUICK)
        assert not isinstance(locate_dataset(address), Path)
    sample.run(make_request(shards, trained, tmp_path / "near"), QUICK)
    assert hash_results(tmp_path / "far") == hash_results(tmp_path / "near")


def test_what_was_lost_is_generated_again_to_the_same_bytes(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    sample.run(make_request(shards, trained, tmp_path), QUICK)
    before = hash_files(tmp_path)
    (tmp_path / CROPS / "s1_clip1.tar").unlink()
    mtime_ns = (tmp_path / CROPS / "s1_clip0.tar").stat().st_mtime_ns
    sample.run(make_request(shards, trained, tmp_path, slots=2), QUICK)
    assert hash_files(tmp_path) == before
    assert (tmp_path / CROPS / "s1_clip0.tar").stat().st_mtime_ns == mtime_ns


def test_videos_that_were_not_asked_for_before_are_written_from_the_crops(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    sample.run(make_request(shards, trained, tmp_path / "at once"), QUICK)
    sample.run(make_request(shards, trained, tmp_path / "later", videos=False), QUICK)
    assert not (tmp_path / "later" / VIDEOS).exists()
    sample.run(make_request(shards, trained, tmp_path / "later"), QUICK)
    assert hash_files(tmp_path / "later") == hash_files(tmp_path / "at once")


def test_a_damaged_clip_costs_no_other_and_is_an_error_at_the_end(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    damaged, out = tmp_path / "damaged", tmp_path / "out"
    shutil.copytree(shards, damaged)
    damage_clip(damaged, TEST[1])
    with pytest.raises(
        StageError, match=r"out: 1 of 3 clips could not be generated.* s1_clip1: .*frames are not"
    ):
        sample.run(make_request(damaged, trained, out, videos=False), QUICK)
    rows = read_samples(out)
    assert [row["reason"] is None for row in rows] == [True, False, True]
    [system] = find_systems("", out, open_dataset(shards), "test", None)
    assert [clip.outcome.code for clip in system.clips] == ["", "not_sampled", ""]
    assert system.clips[1].outcome.reason == rows[1]["reason"]
    sample.run(make_request(shards, trained, out, videos=False), QUICK)
    assert [row["reason"] for row in read_samples(out)] == [None] * 3, "the clip was mended"


def test_a_damaged_clip_whose_video_is_missing_costs_no_other(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "shards", tmp_path / "out"
    shutil.copytree(shards, folder)
    request = make_request(folder, trained, out)
    sample.run(replace(request, videos=False), QUICK)
    damage_clip(folder, TEST[0])
    (out / CROPS / f"{TEST[1]}.tar").write_bytes(b"cut")
    (out / CROPS / f"{TEST[2]}.tar").unlink()
    with pytest.raises(StageError, match=r"out: 2 of 3 clips could not be generated.* s1_clip0: no video"):
        sample.run(request, QUICK)
    damaged, cut, lost = [row["reason"] for row in read_samples(out)]
    assert "frames are not" in damaged and "s1_clip1.tar: not a complete tar" in cut and lost is None
    assert [path.name for path in (out / VIDEOS).iterdir()] == ["s1_clip2.mp4"]
    (out / CROPS / f"{TEST[1]}.tar").unlink()
    sample.run(replace(request, shards=str(shards)), QUICK)
    assert [row["reason"] for row in read_samples(out)] == [None] * 3, "both were mended"
    assert len(list((out / VIDEOS).iterdir())) == 3


def test_two_processes_generate_what_one_generates(shards: Path, trained: Path, tmp_path: Path) -> None:
    sample.run(make_request(shards, trained, tmp_path / "one", audio="swapped"), QUICK)
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "pipeline.main"]
    arguments = ["sample", "--shards", shards, "--run", trained, "-o", tmp_path / "two", "--audio", "swapped"]
    result = subprocess.run(
        [sys.executable, "-m", *several, *map(str, arguments), *OPTIONS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("3 clips of test, with swapped speech") == 1
    assert hash_results(tmp_path / "two") == hash_results(tmp_path / "one")
    assert read_samples(tmp_path / "two") == read_samples(tmp_path / "one")


def test_swapped_pairs_use_every_speech_once_and_never_the_own(shards: Path) -> None:
    dataset = open_dataset(shards)
    pairs = make_pairs(dataset, "test", "swapped", seed=0)
    assert [pair.clip_id for pair in pairs] == list(TEST)
    assert sorted(pair.audio_clip_id for pair in pairs) == list(TEST)
    assert all(pair.clip_id != pair.audio_clip_id for pair in pairs)
    assert make_pairs(dataset, "test", "swapped", seed=0) == pairs
    assert any(make_pairs(dataset, "test", "swapped", seed=seed) != pairs for seed in range(1, 9))
    assert make_pairs(dataset, "test", "own", seed=0) == [Pair(name, name) for name in TEST]


def test_a_split_s_only_clip_is_paired_with_the_speech_of_other_splits(shards: Path, tmp_path: Path) -> None:
    pairs = make_pairs(open_dataset(shards), "train", "swapped", seed=0)
    assert {pair.clip_id for pair in pairs} == {"s1_clip3"}
    assert sorted(pair.audio_clip_id for pair in pairs) == list(TEST)
    assert any(make_pairs(open_dataset(shards), "train", "swapped", seed=seed) != pairs for seed in range(9))
    alone = open_dataset(worlds.make_dataset(tmp_path / "shards", (3,), test=()))
    with pytest.raises(StageError, match="has one clip, so there is no speech to swap with"):
        make_pairs(alone, "train", "swapped", seed=0)


def test_speech_of_another_split_is_recorded_and_said(shards: Path, trained: Path, tmp_path: Path) -> None:
    arguments = ["sample", "--shards", shards, "--run", trained, "-o", tmp_path, "--audio", "swapped"]
    more = ["--split", "train", "--clips", "1", "--no-videos"]
    result = CliRunner().invoke(cli, [*map(str, arguments), *OPTIONS, *more])
    assert result.stdout.endswith(
        "1 clips of train, with swapped speech; the speech is of the split 'test'\n"
    )
    [row] = read_samples(tmp_path)
    assert (row["split"], row["audio_split"]) == ("train", "test")
    assert explain_other_splits(["train"]) == "the speech is of the training split"
    write_rows(tmp_path / TABLE, [row], FIRST_SCHEMA)
    assert read_samples(tmp_path) == [row | {"audio_split": None}], "an older table lacks it"


def test_swapped_clips_have_different_sentences_where_possible(tmp_path: Path) -> None:
    ids = [f"s1_clip{number}" for number in range(4)]
    folder = worlds.make_dataset(tmp_path / "shards", (3,) * 4, test=ids)
    sentences = dict(zip(ids, ("IEO", "IEO", "TIE", "TIE"), strict=True))
    ledger = folder / "ledger.parquet"
    write_ledger(ledger, [row | {"sentence": sentences[row["clip_id"]]} for row in read_ledger(ledger)])
    for seed in range(20):
        pairs = make_pairs(open_dataset(folder), "test", "swapped", seed=seed)
        assert all(sentences[pair.clip_id] != sentences[pair.audio_clip_id] for pair in pairs)


def test_a_pair_is_as_long_as_the_shorter_of_its_two(shards: Path, trained: Path, tmp_path: Path) -> None:
    sample.run(make_request(shards, trained, tmp_path, audio="swapped", videos=False), QUICK)
    frames = dict(zip(TEST, (4, 6, 3), strict=True))
    rows = read_samples(tmp_path)
    assert not (tmp_path / VIDEOS).exists()
    for row in rows:
        assert row["frames"] == min(frames[row["clip_id"]], frames[row["audio_clip_id"]])
        assert row["name"] == f"{row['clip_id']}~{row['audio_clip_id']}"


def test_a_clip_hears_the_whole_speech_also_beyond_its_own_end(shards: Path) -> None:
    """The last frame of a short clip with a longer speech has the speech's next rows in its window."""
    dataset = open_dataset(shards)
    short, long = (read_clip(dataset, clip_id) for clip_id in (TEST[2], TEST[1]))
    assert len(short.frames) < len(long.frames)
    request = make_clip_request(dataset, Pair(short.key, long.key))
    assert np.array_equal(request.mels, long.mels)
    assert len(list(request.frames)) == len(short.frames)


def test_a_pair_brings_the_speech_features_of_the_clip_that_speaks(tmp_path: Path) -> None:
    ids = ["s1_clip0", "s1_clip1"]
    dataset = open_dataset(worlds.make_dataset(tmp_path / "with", (4, 6), test=ids, speech_size=5))
    request = make_clip_request(dataset, Pair(*ids))
    assert request.speech is not None and request.speech.shape == (12, 5)
    assert np.array_equal(request.speech, read_clip(dataset, ids[1]).speech)  # type: ignore[arg-type]
    without = open_dataset(worlds.make_dataset(tmp_path / "without", (4, 6), test=ids))
    assert make_clip_request(without, Pair(*ids)).speech is None


@pytest.mark.parametrize("flat_pauses", [True, False])
def test_noise_within_a_pause_moves_the_mouth_only_where_pauses_are_not_flat(
    trained: Path, tmp_path: Path, flat_pauses: bool
) -> None:
    """Four frames are loud, twelve a pause, whose noise has a mean of 0 in each frame."""
    dataset = open_dataset(worlds.make_dataset(tmp_path, (16,), test=["s1_clip0"]))
    levels = np.full((32, worlds.N_MELS), -60, np.float32)
    levels[:8] = -5
    noise = np.where(np.arange(32) % 2, 9, -9)[:, None].astype(np.float32)
    is_within = np.zeros((32, 1), bool)
    is_within[2 * (4 + EDGE_FRAMES) : 2 * (16 - EDGE_FRAMES)] = True

    def draw(mels: np.ndarray) -> np.ndarray:
        def read(dataset: Dataset, pair: Pair) -> tuple[ClipSample, ClipSample]:
            clip, speech = read_pair(dataset, pair)
            return clip, replace(speech, mels=mels)

        params = replace(QUICK, flat_pauses=flat_pauses)
        generator = load_generator(trained, params, CPU, Execution())
        [(_, frames)] = generate_clips(generator, dataset, [Pair("s1_clip0", "s1_clip0")], slots=1, read=read)
        return frames

    assert np.array_equal(draw(levels), draw(levels + is_within * noise)) == flat_pauses


def test_a_network_of_speech_is_sampled_on_a_dataset_that_has_it_and_refuses_others(tmp_path: Path) -> None:
    ids = ["s1_clip0", "s1_clip1"]
    shards = worlds.make_dataset(tmp_path / "with", (9, 12, 7, 11), test=ids, speech_size=5)
    audio = AudioParams(n_mels=worlds.N_MELS, input="both", speech_size=5)
    recipe = replace(TINY, network=replace(TINY.network, audio=audio), steps=3, batch=4)
    worlds.run_training(shards, tmp_path / "run", recipe)
    request = make_request(shards, tmp_path / "run", tmp_path / "samples", audio="swapped", videos=False)
    assert sample.run(request, QUICK).n_clips == 2
    without = worlds.make_dataset(tmp_path / "without", (9, 12, 7, 11), test=ids)
    request = make_request(without, tmp_path / "run", tmp_path / "none", videos=False)
    with pytest.raises(
        ShardError, match=r"without: has no speech features \(speech.npy\), which the network"
    ):
        sample.run(request, QUICK)


def test_a_folder_from_before_some_params_is_continued_as_it_was_begun(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    independent = replace(QUICK, common_noise=0.0, guided_share=1.0, flat_pauses=False)
    sample.run(make_request(shards, trained, tmp_path, videos=False), independent)
    info = json.loads((tmp_path / RUN_INFO).read_text())
    for name in ("common_noise", "guided_share", "flat_pauses"):
        del info["params"][name]
    (tmp_path / RUN_INFO).write_text(json.dumps(info))
    sample.run(make_request(shards, trained, tmp_path, videos=False), independent)
    for other in ({"common_noise": 0.5}, {"guided_share": 0.5}, {"flat_pauses": True}):
        with pytest.raises(StageError, match=f"was sampled with params .*{next(iter(other))}"):
            sample.run(make_request(shards, trained, tmp_path, videos=False), replace(independent, **other))


def test_the_same_network_by_another_path_continues_a_folder_and_another_does_not(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sample.run(make_request(shards, trained, out, clips=1, videos=False), QUICK)
    (tmp_path / "link").symlink_to(trained)
    sample.run(make_request(shards, tmp_path / "link", out, clips=2, videos=False), QUICK)
    assert len(read_samples(out)) == 2
    info = json.loads((out / RUN_INFO).read_text())
    (out / RUN_INFO).write_text(json.dumps(info | {"weights_sha256": "0" * 64}))
    with pytest.raises(StageError, match="was sampled with weights_sha256 '000"):
        sample.run(make_request(shards, trained, out, clips=2, videos=False), QUICK)


def test_crops_are_read_as_they_were_written(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    write_crops(tmp_path / "a.tar", frames)
    write_crops(tmp_path / "b.tar", frames)
    assert np.array_equal(read_crops(tmp_path / "a.tar", SIZE), frames)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    with pytest.raises(ShardError, match=r"b\.tar"):
        read_crops(tmp_path / "b.tar", SIZE)


def test_what_cannot_be_sampled_raises_one_line(shards: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no clip is in the split 'valid'; it has test, train"):
        sample.run(replace(make_request(shards, trained, tmp_path), split="valid"), QUICK)
    sample.run(make_request(shards, trained, tmp_path / "out", clips=1, videos=False), QUICK)
    with pytest.raises(StageError, match=r"was sampled with params .*'steps': 2.*another --out"):
        sample.run(make_request(shards, trained, tmp_path / "out"), replace(QUICK, steps=3))
    (tmp_path / "out" / "samples.json").write_text("{")
    with pytest.raises(StageError, match=r"samples\.json: not JSON"):
        sample.run(make_request(shards, trained, tmp_path / "out"), QUICK)


def test_the_folder_records_what_generated_it(shards: Path, trained: Path, tmp_path: Path) -> None:
    sample.run(make_request(shards, trained, tmp_path, clips=1, videos=False), QUICK)
    run_info = json.loads((tmp_path / "samples.json").read_text())
    assert run_info["params"]["steps"] == 2
    assert run_info["dataset"] == open_dataset(shards).manifest["digest"]


def test_options_override_the_params_file(shards: Path, trained: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("sample: {sampler: ancestral, steps: 3, seed: 5}\n")
    arguments = ["sample", "--shards", shards, "--run", trained, "-o", tmp_path / "out", "--params", params]
    more = ["--steps", "2", "--device", "cpu", "--clips", "1", "--no-videos"]
    result = CliRunner().invoke(cli, [*map(str, arguments), *more])
    assert result.exit_code == 0, result.output
    params = json.loads((tmp_path / "out" / "samples.json").read_text())["params"]
    assert (params["sampler"], params["steps"], params["seed"]) == ("ancestral", 2, 5)
