"""p, b and m by the recogniser, against GRID's word times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.schema import VIDEO_FPS
from stages.evaluate.clip_sound import decode_clip_sound
from stages.evaluate.metrics.closure import REACH_FRAMES, find_closures
from stages.evaluate.phonemes import is_installed, recognise_closures
from stages.evaluate.word_times import read_alignment
from stages.media.audio import SAMPLE_RATE

needs_recogniser = pytest.mark.skipif(not is_installed(), reason="needs the extra phonemes")


@needs_recogniser
def test_p_b_and_m_are_heard_where_the_word_times_of_grid_have_them(grid: Path) -> None:
    n_heard = n_said = 0
    for path in sorted((grid / "s1").glob("*.mpg"))[:12]:
        said = find_closures(read_alignment(grid / "alignments" / "s1" / f"{path.stem}.align"))
        heard = np.array(recognise_closures(decode_clip_sound(path, 0.0, 75)))
        assert (np.diff(heard) >= 0).all() and (heard >= 0).all() and (heard < 75).all()
        n_said += len(said)
        n_heard += sum(bool((abs(heard - frame) <= REACH_FRAMES).any()) for frame in said)
        assert len(heard) <= len(said) + 2, f"{path.name}: {heard.tolist()} for {said}"
    assert n_said > 15 and n_heard >= 0.85 * n_said


@needs_recogniser
def test_silence_and_no_sound_have_no_p_b_or_m() -> None:
    for seconds in (0, 0.5, 3):
        assert recognise_closures(np.zeros(int(seconds * SAMPLE_RATE), np.int16)) == []


@needs_recogniser
def test_what_is_said_a_second_later_is_heard_a_second_later(grid: Path) -> None:
    lead = np.zeros(SAMPLE_RATE, np.int16)
    n_early = n_again = 0
    for path in sorted((grid / "s1").glob("*.mpg"))[:8]:
        sound = decode_clip_sound(path, 0.0, 75)
        early = recognise_closures(sound)
        late = np.array(recognise_closures(np.concatenate([lead, sound])))
        n_early += len(early)
        n_again += sum(bool((abs(late - VIDEO_FPS - frame) <= 1).any()) for frame in early)
    assert (
        n_early > 8 and n_again >= 0.8 * n_early
    )  # what stands before a sound changes what is heard a little
