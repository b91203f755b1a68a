"""SyncNet's squares about a face: cut from whole pictures, with crops put in or as they came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.reader import open_dataset, read_clip
from shards.schema import ClipSample
from stages.engine.outcome import Drop
from stages.engine.sandbox import LimitParams
from stages.evaluate.face_squares import squares_of_video, squares_with
from tests import drawings

N_FRAMES = 16
LIMITS = LimitParams()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def clip(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipSample:
    """A clip of a made face, whose source lies in ``raw``."""
    folder = drawings.dataset(tmp_path_factory.mktemp("made") / "shards", {"s1_a": N_FRAMES}, raw=raw)
    return read_clip(open_dataset(folder), "s1_a")


def test_a_clips_own_crops_leave_its_source_as_it_is(clip: ClipSample, raw: Path, landmarker: Path) -> None:
    source = raw / "s1_a.mp4"
    shown = squares_of_video(source, N_FRAMES, landmarker, LIMITS)
    assert shown.shape == (N_FRAMES, 224, 224, 3)
    assert np.array_equal(squares_with(clip.frames, clip, source, landmarker, LIMITS), shown)


def test_another_mouth_is_seen_as_in_a_video_that_shows_it(
    clip: ClipSample, raw: Path, landmarker: Path, tmp_path: Path
) -> None:
    """The same face with its mouth wide open: cut out and put in, and as a video of whole pictures."""
    whole = drawings.source_frames(np.ones(N_FRAMES))
    drawn = drawings.in_the_box(clip.frames, drawings.cropped(whole))
    source, other = raw / "s1_a.mp4", drawings.video(tmp_path / "open.mp4", whole)
    before, put_in, expected = (
        squares.astype(int)
        for squares in (
            squares_of_video(source, N_FRAMES, landmarker, LIMITS),
            squares_with(drawn, clip, source, landmarker, LIMITS),
            squares_of_video(other, N_FRAMES, landmarker, LIMITS),
        )
    )
    # Not nothing: the square's sides are whole numbers, and coding moves the face's box by a part of one.
    assert np.abs(put_in - expected).mean() < 0.7 * np.abs(before - expected).mean()


def test_pictures_without_a_face_and_videos_without_time_are_dropped(
    raw: Path, clip: ClipSample, landmarker: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)
    with pytest.raises(Drop, match="no face in any of its 8 frames"):
        squares_of_video(drawings.video(tmp_path / "noise.mp4", noise), 8, landmarker, LIMITS)
    with pytest.raises(Drop, match="6 frames, expected 7 or more"):
        squares_of_video(raw / "s1_a.mp4", 6, landmarker, LIMITS)
