"""Baselines show what they say, inside the boxes and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.reader import open_dataset, read_clip
from shards.schema import ClipSample
from stages.evaluate.baselines import BANDS, bank_clips, bank_of, held, nearest, previous, sounds_of
from tests.model import worlds


@pytest.fixture
def clip(tmp_path: Path) -> ClipSample:
    """Noise, with a box that moves."""
    found = read_clip(open_dataset(worlds.dataset(tmp_path / "shards", (6,))), "s1_clip0")
    boxes = np.array([[4 + k % 2, 8, 12 + k % 2, 15] for k in range(6)], np.int16)
    return replace(found, boxes=boxes)


def test_a_frozen_mouth_is_the_first_frames_pixels_where_each_box_is(clip: ClipSample) -> None:
    frames = held(clip)
    for k, (x0, y0, x1, y1) in enumerate(clip.boxes):
        assert np.array_equal(frames[k, y0:y1, x0:x1], clip.frames[0, y0:y1, x0:x1])
        frames[k, y0:y1, x0:x1] = clip.frames[k, y0:y1, x0:x1]
    assert np.array_equal(frames, clip.frames), "outside the box all is the clip's own"


def test_the_previous_frame_is_one_late_but_for_the_first(clip: ClipSample) -> None:
    frames = previous(clip)
    assert np.array_equal(frames[0], clip.frames[0])
    for k, (x0, y0, x1, y1) in list(enumerate(clip.boxes))[1:]:
        assert np.array_equal(frames[k, y0:y1, x0:x1], clip.frames[k - 1, y0:y1, x0:x1])


def test_the_nearest_mel_is_the_clip_itself_where_it_is_in_the_bank(clip: ClipSample) -> None:
    other = replace(clip, frames=255 - clip.frames, mels=clip.mels[::-1])
    bank = bank_of([other, clip])
    dubbed = nearest(clip, other.mels, bank).astype(int)
    x0, y0, x1, y1 = clip.boxes[0]
    own = nearest(clip, clip.mels, bank).astype(int)
    inside = np.s_[0, y0:y1, x0:x1]
    assert np.abs(own[inside] - clip.frames[inside]).mean() < 25, "but for being scaled up and down"
    assert np.abs(dubbed[inside] - other.frames[inside]).mean() < 25
    assert np.abs(dubbed[inside] - clip.frames[inside]).mean() > 50


def test_a_window_is_five_rows_about_the_frames_own() -> None:
    mels = np.repeat(np.arange(12, dtype=np.float32)[:, None], 64, axis=1)
    sounds = sounds_of(mels).reshape(6, BANDS, 5)
    assert sounds[2, 0].tolist() == [2, 3, 4, 5, 6]
    assert sounds[0, 0].tolist() == [0, 0, 0, 1, 2], "before the first row is the first"


def test_the_bank_is_of_training_clips_that_are_not_scored(tmp_path: Path) -> None:
    dataset = open_dataset(worlds.dataset(tmp_path / "shards", (4, 6, 3, 5), test=["s1_clip1"]))
    assert sorted(bank_clips(dataset, without=set())) == ["s1_clip0", "s1_clip2", "s1_clip3"]
    assert sorted(bank_clips(dataset, without={"s1_clip0", "s1_clip3"})) == ["s1_clip2"]
