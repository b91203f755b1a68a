"""What a player shows: files with oddities in any combination, against the ffmpeg command."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings

from shards.ledger import OK
from stages.clips import ClipsParams, probe_file
from stages.engine.outcome import Drop, Outcome
from stages.media.audio import mix_to_mono, read_channels
from stages.media.video import read_frames_at_25fps
from stages.mels import MelsParams, compute_mel_rows, count_samples
from tests.stages.media.odd_files import Oddities, draw_oddities, make_odd_file, render

# $REDUB_PATIENT=1000 tries so many files.
N_FILES = int(os.environ.get("REDUB_PATIENT") or 0)
PARAMS = ClipsParams(max_av_gap_seconds=9.0, max_still_seconds=9.0, min_seconds=0.1)
# Another version of FFmpeg converts; the frame before or after differs by some 60 levels.
MAX_LEVELS, MAX_DB = 4.0, 1.5
# Their headers are stored once in a file: pictures of another size are decoded to rubbish without an error.
ONE_HEADER = ("libx265", "ffv1")


def probe(path: Path) -> Outcome:
    try:
        return probe_file(path, "folder", PARAMS)
    except Drop as drop:
        return Outcome.from_drop(drop)


def read_pictures(path: Path, facts: dict[str, float]) -> np.ndarray:
    """Each frame as the means of 8 x 8 fields, which do not depend on the scaler."""
    frames = read_frames_at_25fps(path, facts["video_start"], int(facts["frames"]))
    fields = [cv2.resize(frame.image, (8, 8), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack(fields).astype(np.int16)


def read_mels(path: Path, facts: dict[str, float]) -> np.ndarray | None:
    """The mels as the dataset has them; None where the clip is silent."""
    channels = read_channels(path, facts["video_start"], count_samples(int(facts["frames"])))
    try:
        sound, _ = mix_to_mono(channels)
    except Drop:
        return None
    return compute_mel_rows(sound, MelsParams())


def check_against_ffmpeg(folder: Path, odd: Oddities) -> str:
    """Make the file, build it and its rendering, and compare. Returns the verdict."""
    path = make_odd_file(folder, odd)
    if path is None:
        return "cannot be made"
    outcome = probe(path)
    if outcome.status != OK:
        assert outcome.reason, f"{outcome.code} without a reason"
        return outcome.code
    compare_with_ffmpeg(path, outcome)
    return "agrees"


def compare_with_ffmpeg(path: Path, outcome: Outcome) -> None:
    """Assert that a file, probed with ``outcome``, has the pictures and mels of its rendering."""
    rendering = path.with_name("rendering.nut")
    assert render(path, rendering), "accepted, but the ffmpeg command shows nothing"
    shown = probe(rendering)
    assert shown.status == OK, f"accepted, but its rendering is not: {shown.reason}"
    n_frames = min(outcome.facts["frames"], shown.facts["frames"])
    # How long the last picture stands, ASF does not say.
    assert max(outcome.facts["frames"], shown.facts["frames"]) - n_frames <= (path.suffix == ".wmv")
    assert (outcome.facts["width"], outcome.facts["height"]) == (shown.facts["width"], shown.facts["height"])
    pictures, expected = (
        read_pictures(clip, {**facts, "frames": n_frames})
        for clip, facts in ((path, outcome.facts), (rendering, shown.facts))
    )
    levels = np.abs(pictures - expected).mean(axis=(1, 2, 3))
    assert levels.max() < MAX_LEVELS, f"frame {levels.argmax()} differs by {levels.max():.1f} levels"
    mels, heard = (
        read_mels(clip, {**facts, "frames": n_frames})
        for clip, facts in ((path, outcome.facts), (rendering, shown.facts))
    )
    assert (mels is None) == (heard is None)
    if mels is not None and heard is not None:
        decibel = np.abs(mels - heard).mean(axis=1)
        assert np.median(decibel) < MAX_DB, f"mels differ by {np.median(decibel):.1f} dB"
        assert (decibel > 6).sum() <= 4, f"rows {np.flatnonzero(decibel > 6)} differ by more than 6 dB"


@settings(
    max_examples=N_FILES or 40,
    deadline=None,
    derandomize=not N_FILES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(odd=draw_oddities())
def test_an_odd_file_is_a_clip_as_a_player_shows_it_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, odd: Oddities
) -> None:
    # VP8 has no code for errors: what it makes of wrong bits differs from one FFmpeg to the next.
    assume(not (odd.container == "webm" and odd.flipped_bits))
    assume(not (odd.changes_size and odd.codecs and odd.codecs[0] in ONE_HEADER))
    verdict = check_against_ffmpeg(tmp_path_factory.mktemp("odd"), odd)
    event(verdict)
    assume(verdict != "cannot be made")
