"""SyncNet's squares around a face: cut from full frames, with crops pasted in or without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.reader import open_dataset, read_clip
from shards.schema import ClipSample
from stages.engine.outcome import Drop
from stages.engine.sandbox import LimitParams
from stages.evaluate.face_squares import crop_squares, crop_squares_with_crops
from tests import evaluation

N_FRAMES = 16
LIMITS = LimitParams()
PADDING = 110  # grey, of what a square shows beyond a frame's border


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def clip(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipSample:
    """A clip of a synthetic face, whose source is in ``raw``."""
    folder = evaluation.write_manifest(
        tmp_path_factory.mktemp("made") / "shards", {"s1_a": N_FRAMES}, raw=raw
    )
    return read_clip(open_dataset(folder), "s1_a")


def test_a_clips_own_crops_leave_its_source_unchanged(clip: ClipSample, raw: Path, landmarker: Path) -> None:
    source = raw / "s1_a.mp4"
    squares = crop_squares(source, N_FRAMES, landmarker, LIMITS)
    assert squares.shape == (N_FRAMES, 224, 224, 3)
    assert np.array_equal(crop_squares_with_crops(clip.frames, clip, source, landmarker, LIMITS), squares)


def test_a_pasted_mouth_looks_as_in_a_video_with_that_mouth(
    clip: ClipSample, raw: Path, landmarker: Path, tmp_path: Path
) -> None:
    """The same face with its mouth wide open: as pasted crops, and as a video of full frames."""
    full_frames = evaluation.draw_source_frames(np.ones(N_FRAMES))
    generated = evaluation.replace_boxes(clip.frames, evaluation.crop_frames(full_frames))
    source, other = raw / "s1_a.mp4", evaluation.write_video(tmp_path / "open.mp4", full_frames)
    before, pasted, expected = (
        squares.astype(int)
        for squares in (
            crop_squares(source, N_FRAMES, landmarker, LIMITS),
            crop_squares_with_crops(generated, clip, source, landmarker, LIMITS),
            crop_squares(other, N_FRAMES, landmarker, LIMITS),
        )
    )
    # Not zero: the square's sides are whole numbers, and coding moves the face box by a fraction of a pixel.
    assert np.abs(pasted - expected).mean() < 0.7 * np.abs(before - expected).mean()


def test_of_two_faces_the_square_of_a_span_shows_that_of_its_crop(
    clip: ClipSample, raw: Path, landmarker: Path, tmp_path: Path
) -> None:
    """A larger, darker face beside the clip's own, which is the one that speaks."""
    frames = evaluation.draw_source_frames(np.zeros(N_FRAMES))
    larger = np.stack([cv2.resize(frame, None, fx=1.5, fy=1.5) for frame in frames]) // 2
    (height, width), (total_height, larger_width) = frames.shape[1:3], larger.shape[1:3]
    both = np.full((N_FRAMES, total_height, width + 80 + larger_width, 3), PADDING, np.uint8)
    both[:, :height, :width], both[:, :, width + 80 :] = frames, larger
    source = evaluation.write_video(tmp_path / "two.mp4", both)
    whole, span = (
        crop_squares_with_crops(
            clip.frames, replace(clip, info=clip.info | facts), source, landmarker, LIMITS
        )
        for facts in ({}, {"track": 1})
    )
    own = crop_squares(raw / "s1_a.mp4", N_FRAMES, landmarker, LIMITS).astype(int)
    assert np.abs(span - own).mean() < 0.5 * np.abs(whole - own).mean()


def test_frames_without_a_face_and_videos_that_are_too_short_are_dropped(
    raw: Path, clip: ClipSample, landmarker: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)
    with pytest.raises(Drop, match="no face in any of its 8 frames"):
        crop_squares(evaluation.write_video(tmp_path / "noise.mp4", noise), 8, landmarker, LIMITS)
    with pytest.raises(Drop, match="6 frames, expected 7 or more"):
        crop_squares(raw / "s1_a.mp4", 6, landmarker, LIMITS)
