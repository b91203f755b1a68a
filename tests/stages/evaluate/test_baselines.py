"""Baselines change what they should, inside the boxes and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.reader import open_dataset, read_clip
from shards.schema import ClipSample
from stages.evaluate.baselines import (
    BANDS,
    build_bank,
    choose_bank_clips,
    extract_mel_windows,
    find_nearest_mouths,
    freeze_mouth,
    repeat_previous_frame,
)
from tests.model import worlds


@pytest.fixture
def clip(tmp_path: Path) -> ClipSample:
    """Noise, with a box that moves."""
    sample = read_clip(open_dataset(worlds.make_dataset(tmp_path / "shards", (6,))), "s1_clip0")
    boxes = np.array([[4 + k % 2, 8, 12 + k % 2, 15] for k in range(6)], np.int16)
    return replace(sample, boxes=boxes)


def test_a_frozen_mouth_is_the_first_frames_pixels_where_each_box_is(clip: ClipSample) -> None:
    frames = freeze_mouth(clip)
    for k, (x0, y0, x1, y1) in enumerate(clip.boxes):
        assert np.array_equal(frames[k, y0:y1, x0:x1], clip.frames[0, y0:y1, x0:x1])
        frames[k, y0:y1, x0:x1] = clip.frames[k, y0:y1, x0:x1]
    assert np.array_equal(frames, clip.frames), "outside the box nothing changes"


def test_the_previous_frame_is_one_late_except_for_the_first(clip: ClipSample) -> None:
    frames = repeat_previous_frame(clip)
    assert np.array_equal(frames[0], clip.frames[0])
    for k, (x0, y0, x1, y1) in list(enumerate(clip.boxes))[1:]:
        assert np.array_equal(frames[k, y0:y1, x0:x1], clip.frames[k - 1, y0:y1, x0:x1])


def test_the_nearest_mel_is_the_clip_itself_when_the_bank_has_it(clip: ClipSample) -> None:
    other = replace(clip, frames=255 - clip.frames, mels=clip.mels[::-1])
    bank = build_bank([other, clip])
    swapped = find_nearest_mouths(clip, other.mels, bank).astype(int)
    x0, y0, x1, y1 = clip.boxes[0]
    own = find_nearest_mouths(clip, clip.mels, bank).astype(int)
    inside = np.s_[0, y0:y1, x0:x1]
    assert np.abs(own[inside] - clip.frames[inside]).mean() < 25, "it was only scaled up and down"
    assert np.abs(swapped[inside] - other.frames[inside]).mean() < 25
    assert np.abs(swapped[inside] - clip.frames[inside]).mean() > 50


def test_a_window_is_five_rows_around_the_frames_own() -> None:
    mels = np.repeat(np.arange(12, dtype=np.float32)[:, None], 64, axis=1)
    windows = extract_mel_windows(mels).reshape(6, BANDS, 5)
    assert windows[2, 0].tolist() == [2, 3, 4, 5, 6]
    assert windows[0, 0].tolist() == [0, 0, 0, 1, 2], "the first row is repeated before it"


def test_the_bank_has_training_clips_that_are_not_scored(tmp_path: Path) -> None:
    dataset = open_dataset(worlds.make_dataset(tmp_path / "shards", (4, 6, 3, 5), test=["s1_clip1"]))
    assert sorted(choose_bank_clips(dataset, excluded=set())) == ["s1_clip0", "s1_clip2", "s1_clip3"]
    assert sorted(choose_bank_clips(dataset, excluded={"s1_clip0", "s1_clip3"})) == ["s1_clip2"]
