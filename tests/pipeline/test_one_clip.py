"""The page that builds one clip and the stages that build thousands make the same bytes.

One clip is built by the command and its workers, the others by the stages alone.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pipeline.one_clip import clip_from_file
from pipeline.params import Params, load
from shards.codec import encode_frame, write_frames
from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import ClipSample
from shards.writer import PackedClip, compute_members_digest
from stages.engine.outcome import Drop
from stages.synth import ClipSpec, make_clip
from tests.build import build, build_in_process

PARAMS = Params()


def hash_members(sample: ClipSample) -> str:
    """sha256 of the members that a shard would hold for a sample."""
    blob = io.BytesIO()
    offsets = write_frames(blob, (encode_frame(frame, sample.info["codec"]) for frame in sample.frames))
    info = {**sample.info, "frame_offsets": offsets}
    packed = PackedClip(
        sample.key, blob.getvalue(), sample.boxes, sample.mels, sample.affine, info, sample.speech
    )
    return compute_members_digest(packed.members().values())


def check_equal(sample: ClipSample, dataset: Dataset) -> None:
    """A sample equals the clip of a dataset: arrays, json, and the bytes of its members."""
    stored = read_clip(dataset, sample.key)
    for name in ("frames", "boxes", "mels", "affine", "speech"):
        np.testing.assert_array_equal(getattr(sample, name), getattr(stored, name))
    assert dict(sample.info) == {
        name: value for name, value in stored.info.items() if name != "frame_offsets"
    }
    assert hash_members(sample) == dataset.clips[sample.key]["sha256"]


def test_a_made_clip_has_the_bytes_of_the_whole_build(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    make_clip(raw / "ann" / "a.mp4", ClipSpec(seconds=0.8, fps="29.97"))
    build(raw, tmp_path / "work")
    with threadpool_limits(2, user_api="blas"):  # a build's processes have one thread each
        sample = clip_from_file(raw / "ann" / "a.mp4", PARAMS, raw=raw)
    dataset = open_dataset(tmp_path / "work" / "shards")
    check_equal(sample, dataset)
    assert dataset.manifest["params"]["landmarks"]["engine"] == "litert"
    for tools in (dataset.manifest["tools"], sample.info["tools"]):
        assert "ai-edge-litert" in tools and "mediapipe" not in tools


def test_a_dataset_names_the_engine_that_found_its_faces(tmp_path: Path) -> None:
    """Both engines' work is in the same cache; each has its own entries."""
    raw, params = tmp_path / "raw", tmp_path / "params.yaml"
    make_clip(raw / "ann" / "a.mp4", ClipSpec(seconds=0.8))
    build_in_process(raw, tmp_path / "work")
    first = open_dataset(tmp_path / "work" / "shards")
    params.write_text("landmarks: {engine: mediapipe}\n")
    build_in_process(raw, tmp_path / "work", load(params))
    second = open_dataset(tmp_path / "work" / "shards")
    assert second.manifest["params"]["landmarks"]["engine"] == "mediapipe"
    assert second.manifest["tools"].keys() ^ first.manifest["tools"].keys() == {"ai-edge-litert", "mediapipe"}
    assert second.manifest["digest"] != first.manifest["digest"]
    check_equal(clip_from_file(raw / "ann" / "a.mp4", load(params), raw=raw), second)
    assert len(list((tmp_path / "work" / ".cache" / "landmarks").rglob("*.npz"))) == 2


def test_a_made_clip_with_speech_features_has_the_bytes_of_the_whole_build(
    speech_model: Path, tmp_path: Path
) -> None:
    raw, params = tmp_path / "raw", tmp_path / "params.yaml"
    make_clip(raw / "ann" / "a.mp4", ClipSpec(seconds=0.8))
    params.write_text(f"speech: {{encoder: whisper-tiny.en, model: {speech_model}}}\n")
    build_in_process(raw, tmp_path / "work", load(params))
    with threadpool_limits(2, user_api="blas"):
        sample = clip_from_file(raw / "ann" / "a.mp4", load(params), raw=raw)
    assert sample.speech is not None
    check_equal(sample, open_dataset(tmp_path / "work" / "shards"))


def test_a_real_clip_of_each_corpus_has_the_bytes_of_the_whole_build(
    grid: Path, crema_d: Path, tmp_path: Path
) -> None:
    for corpus, source in (
        ("grid", sorted((grid / "s2").glob("*.mpg"))[0]),
        ("crema-d", sorted((crema_d / "VideoFlash").glob("*.flv"))[0]),
    ):
        raw = tmp_path / corpus / source.parent.name
        raw.mkdir(parents=True)
        (raw / source.name).write_bytes(source.read_bytes())
        build_in_process(raw.parent, tmp_path / f"work-{corpus}", PARAMS, dataset=corpus)
        with threadpool_limits(2, user_api="blas"):
            sample = clip_from_file(raw / source.name, PARAMS, corpus=corpus, raw=raw.parent)
        check_equal(sample, open_dataset(tmp_path / f"work-{corpus}" / "shards"))


def test_a_file_that_cannot_be_used_raises_the_reason_of_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(Drop, match="cannot be opened as video") as dropped:
        clip_from_file(tmp_path / "a.mp4", PARAMS)
    assert dropped.value.code == "not_media"
