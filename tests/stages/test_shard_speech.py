"""The shard stage packs the parts of the stage `speech` where the params name an encoder, and only then."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.params import Params
from shards.ledger import DROPPED, FAILED, read_ledger
from shards.reader import open_dataset, read_clip, read_members
from shards.schema import ShardError
from shards.verify import verify
from stages import align, clips, landmarks, mels, shard
from stages import speech as speech_stage
from stages.engine import per_clip
from stages.engine.outcome import Outcome, StageError
from stages.engine.parts import Part, list_columns, plan_parts, read_part, read_part_key, write_part
from stages.engine.stage import Context, Report, Work
from stages.synth import SynthParams, make_corpus
from tests.build import build_in_process, hash_files

D = 384
SETTINGS = Params()


@pytest.fixture(scope="module")
def built(landmarker: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A folder of three made clips, built without speech features."""
    folder = tmp_path_factory.mktemp("built")
    make_corpus(folder / "raw", SynthParams(style="folder", speakers=1, clips=3, seconds=0.8))
    return build_in_process(folder / "raw", folder / "work")


@pytest.fixture
def work(built: Work, tmp_path: Path) -> Work:
    """A copy of it."""
    shutil.copytree(built.root, tmp_path / "work")
    root = tmp_path / "work"
    return Work("folder", built.raw, root, root / "shards", root / ".cache")


def list_parts(work: Work) -> list[Part]:
    return plan_parts(clips.read_clips(work), SETTINGS.parts)


def make_speech(clip_id: str, n_frames: int) -> NDArray[np.float16]:
    return np.random.default_rng(list(clip_id.encode())).normal(0, 2, (2 * n_frames, D)).astype(np.float16)


def write_speech_parts(
    work: Work,
    others: Mapping[str, tuple[Outcome, bytes | None]] = MappingProxyType({}),
) -> None:
    """The parts of the stage, under their own keys; ``others`` are the outcomes of some clips by id."""
    params_digest = speech_stage.make_params_digest("whisper-tiny.en")
    for part in list_parts(work):
        rows = []
        for row in part.rows:
            clip_id, outcome = row["clip_id"], Outcome()
            data: bytes | None = make_speech(clip_id, row["frames"]).tobytes()
            if clip_id in others:
                outcome, data = others[clip_id]
            rows.append((clip_id, outcome, {"speech": data}))
        clip_keys = [(row["clip_id"], per_clip._make_clip_key(params_digest, row, None)) for row in part.rows]
        failures = [clip_id for clip_id, outcome, _ in rows if outcome.status == FAILED]
        key = per_clip._make_part_key("speech", clip_keys, failures)
        write_part(work.part_path("speech", part.name), key, list_columns({"speech": np.float16}), rows)


def run_shard(work: Work, speech: Mapping[str, Any] | None, licence: str = "") -> Report:
    """Run the stage and write the dataset's tables, as a build with these params of speech does."""
    params = SETTINGS.describe_dataset()
    params.pop("speech", None)
    if speech is not None:
        params["speech"] = dict(speech)
    parts = list_parts(work)
    report = shard.run(work, parts, SETTINGS.shard, Context(limits=SETTINGS.limits, dataset_params=params))
    shards = shard.read_packed(work, parts)
    shard.finish_dataset(work, SETTINGS.shard, params, shards, read_ledger(work.ledger), licence=licence)
    return report


def list_ids(work: Work) -> list[str]:
    return sorted(row["clip_id"] for part in list_parts(work) for row in part.rows)


def test_parts_of_speech_become_members_of_the_shards(built: Work, work: Work) -> None:
    write_speech_parts(work)
    run_shard(work, {"encoder": "whisper-tiny.en", "model": ""}, "CC0")
    before, dataset = open_dataset(built.out), open_dataset(work.out)
    assert sorted(dataset.clips) == list_ids(work) and len(dataset.clips) == 3
    assert list(verify(work.out, full=True)) == []
    for clip_id in dataset.clips:
        clip = read_clip(dataset, clip_id)
        assert clip.speech is not None
        assert clip.speech.tobytes() == make_speech(clip_id, len(clip.frames)).tobytes()
        assert clip.info == read_clip(before, clip_id).info
        members = read_members(dataset, clip_id)
        for name, data in read_members(before, clip_id).items():
            assert members[name] == data, "the other members are as without it"
    assert dataset.manifest["params"]["speech"]["encoder"] == "whisper-tiny.en"
    assert dataset.manifest["sources"] == [{"name": work.corpus, "licence": "CC0"}]


@pytest.mark.parametrize("section", [None, {"encoder": "none", "model": ""}])
def test_without_an_encoder_the_shards_are_those_from_before_whatever_parts_are_there(
    built: Work, work: Work, section: Mapping[str, Any] | None
) -> None:
    write_speech_parts(work)
    report = run_shard(work, section)
    assert report.parts["built"] == 0, "the keys of the parts are the same"
    changed = {name for name, sha256 in hash_files(work.out).items() if hash_files(built.out)[name] != sha256}
    assert changed <= ({"dataset.json"} if section else set())


def test_a_part_is_packed_again_when_its_speech_has_changed(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = {"encoder": "whisper-tiny.en"}
    write_speech_parts(work)
    n_parts = len(list_parts(work))
    assert run_shard(work, speech).parts["built"] == n_parts
    first = hash_files(work.out)
    assert run_shard(work, speech).parts["built"] == 0
    monkeypatch.setattr(speech_stage, "VERSION", speech_stage.VERSION + 1)
    with pytest.raises(StageError, match=r"run `pipeline speech --dataset folder` with the same options"):
        run_shard(work, speech)
    write_speech_parts(work)
    assert run_shard(work, speech).parts["built"] == n_parts
    assert hash_files(work.out) == first


def test_a_shard_with_one_bit_altered_is_reported_and_packed_again(work: Work) -> None:
    first = hash_files(work.out)
    shard_path, *_ = work.out.glob("*.tar")
    data, status = bytearray(shard_path.read_bytes()), shard_path.stat()
    data[len(data) // 2] ^= 1
    shard_path.write_bytes(data)
    os.utime(shard_path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does that fails
    [problem] = verify(work.out, full=False)
    assert problem.endswith("; build or download it again")
    assert run_shard(work, None).parts["built"] == 1
    assert {name: first[name] for name in first if name != "dataset.json"} == {
        name: sha256 for name, sha256 in hash_files(work.out).items() if name != "dataset.json"
    }
    assert list(verify(work.out, full=True)) == []
    assert run_shard(work, None).parts["built"] == 0


def test_a_clip_that_the_stage_dropped_is_in_no_shard(work: Work) -> None:
    dropped, failed, *others = list_ids(work)
    outcomes = {
        dropped: Outcome(DROPPED, "silent", "is silent"),
        failed: Outcome(FAILED, "hang", "no answer"),
    }
    write_speech_parts(work, {clip_id: (outcome, None) for clip_id, outcome in outcomes.items()})
    run_shard(work, {"encoder": "whisper-tiny.en"})
    assert sorted(open_dataset(work.out).clips) == others


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("landmarks", {"min_face_pixels": 39.0}), ("mels", {"n_mels": 80}), ("align", {"smooth_frames": 5})],
)
def test_parts_of_other_params_are_refused_in_a_line_that_says_what_to_run(
    work: Work, stage: str, changes: dict[str, Any]
) -> None:
    params = SETTINGS.describe_dataset()
    params[stage] |= changes
    context = Context(limits=SETTINGS.limits, dataset_params=params)
    with pytest.raises(
        StageError, match=f"^[^\\n]*{stage}[^\\n]* run `pipeline {stage} --dataset folder` with "
    ):
        shard.run(work, list_parts(work), SETTINGS.shard, context)


def test_parts_of_other_clips_are_refused(work: Work) -> None:
    [part] = list_parts(work)
    context = Context(limits=SETTINGS.limits, dataset_params=SETTINGS.describe_dataset())
    fewer = Part(part.split, part.number, part.rows[1:])
    with pytest.raises(StageError, match=r"was made of other clips, .* run `pipeline landmarks"):
        shard.run(work, [fewer], SETTINGS.shard, context)


@pytest.mark.parametrize("stage", [landmarks, align, mels])
def test_a_clip_of_which_a_stage_says_nothing_is_not_left_out_in_silence(work: Work, stage: Any) -> None:
    [part] = list_parts(work)
    path = work.part_path(stage.STAGE, part.name)
    columns, key = list_columns(stage.COLUMNS), read_part_key(path)
    (missing, _), *others = read_part(path, columns).items()
    rows = [(clip_id, Outcome(), {name: row[name] for name in stage.COLUMNS}) for clip_id, row in others]
    assert key is not None
    write_part(path, key, columns, rows)
    shutil.rmtree(work.cache / shard.STAGE)
    work.part_path(shard.STAGE, part.name).unlink()
    with pytest.raises(StageError, match=f"has no row of {missing}; .* run `pipeline {stage.STAGE} "):
        run_shard(work, None)


def test_parts_that_are_missing_or_of_other_shapes_are_refused_in_one_line(work: Work) -> None:
    speech = {"encoder": "whisper-tiny.en"}
    with pytest.raises(StageError, match=r"not there; run `pipeline speech --dataset folder` first"):
        run_shard(work, speech)
    clip_id = list_ids(work)[0]
    write_speech_parts(work, {clip_id: (Outcome(), bytes(7))})
    with pytest.raises(StageError, match=f"{clip_id}: its part has speech of 7 bytes"):
        run_shard(work, speech)
    n_frames = read_clip(open_dataset(work.out), clip_id).info["frames"]
    spoiled = np.full((2 * n_frames, D), np.nan, np.float16).tobytes()
    write_speech_parts(work, {clip_id: (Outcome(), spoiled)})
    with pytest.raises(ShardError, match=f"{clip_id}: speech features of row 0 are not finite"):
        run_shard(work, speech)
