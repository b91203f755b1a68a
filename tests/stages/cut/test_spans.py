"""What becomes of every frame of a file, decided from what is seen and heard in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cut.params import CutParams
from stages.cut.pictures import N_QUALITIES, FacePlace, SeenFace, SeenFrame
from stages.cut.spans import Sound, Span, find_spans, limit_shots
from stages.engine.outcome import Outcome
from stages.media.faces import USED_POINTS, FaceDetection

WIDTH = 100.0
MESH = np.random.default_rng(0).uniform(0, WIDTH, (len(USED_POINTS), 2)).astype(np.float32)
LOOKS = np.random.default_rng(1).integers(1, 255, (4, 16, 16)).astype(np.uint8)


def make_voice(n_frames: int, seed: int = 0) -> np.ndarray:
    """What a mouth does that says something: its opening and its change per frame, (T, 2)."""
    noise = np.random.default_rng(seed).normal(size=n_frames + 8)
    opening = np.convolve(noise, np.hanning(7) / 2, "same")
    return np.stack([opening, np.gradient(opening)], axis=1)[:n_frames].astype(np.float32)


def make_sound(voice: np.ndarray, stretches: Sequence[tuple[int, int]]) -> Sound:
    sound = Sound.make_silent(len(voice))
    for first, last in stretches:
        sound.speech[first:last] = 1
        sound.level[first:last] = -20
    sound.prediction[:] = np.where(sound.speech[:, None] > 0, voice, 0)
    return sound


def make_face(k: int, x: float, opening: float, look: int = 0) -> SeenFace:
    points = MESH + np.array([x, 200], np.float32)
    detection = FaceDetection(points, points.mean(axis=0), WIDTH, LOOKS[look])
    return SeenFace(detection, FacePlace(0, k), opening, np.ones(N_QUALITIES, np.float32))


def make_frames(openings: dict[float, np.ndarray]) -> list[SeenFrame]:
    """Frames with a face at each x, whose mouth opens as the array (T,) says; nan: no face."""
    n_frames = len(next(iter(openings.values())))
    return [
        SeenFrame(
            k / 25,
            1.0,
            tuple(
                make_face(k, x, 0.2 + 0.03 * values[k], look=i)
                for i, (x, values) in enumerate(openings.items())
                if np.isfinite(values[k])
            ),
        )
        for k in range(n_frames)
    ]


def find(
    frames: list[SeenFrame],
    sound: Sound,
    shots: Sequence[int] = (0,),
    params: CutParams | None = None,
    unreadable: dict[int, tuple[int, Outcome]] | None = None,
    unusable: dict[int, str] | None = None,
) -> list[Span]:
    spans = list(find_spans(frames, shots, sound, params or CutParams(), 5, unreadable or {}, unusable or {}))
    assert [span.first for span in spans][:1] == [0] and spans[-1].last == len(frames)
    assert all(one.last == other.first for one, other in pairwise(spans)), "spans follow each other"
    return spans


def list_clips(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if not span.code]


def test_of_two_faces_the_one_whose_mouth_says_it_has_the_clip() -> None:
    voice, other = make_voice(100), make_voice(100, seed=1)
    frames = make_frames({100.0: other[:, 0], 500.0: voice[:, 0]})
    [clip] = list_clips(find(frames, make_sound(voice, [(10, 90)])))
    assert clip.track == 1
    assert clip.first <= 10 and clip.last >= 90


def test_a_clip_does_not_reach_over_a_cut() -> None:
    voice = make_voice(200)
    clips = list_clips(find(make_frames({100.0: voice[:, 0]}), make_sound(voice, [(0, 200)]), shots=[0, 110]))
    assert [(clip.first, clip.last) for clip in clips] == [(0, 110), (110, 200)]
    assert clips[0].track != clips[1].track


def test_a_voice_without_a_face_and_a_face_without_a_voice_are_no_clips() -> None:
    voice = make_voice(200)
    openings = np.where(np.arange(200) < 100, np.nan, 0.0)
    spans = find(make_frames({100.0: openings}), make_sound(voice, [(0, 80)]))
    assert not list_clips(spans)
    assert {span.code for span in spans} == {"no_face", "no_speech"}


def test_a_short_absence_is_bridged_and_a_long_one_ends_the_clip() -> None:
    voice = make_voice(200)
    openings = voice[:, 0].copy()
    openings[60:64] = np.nan
    openings[120:140] = np.nan
    clips = list_clips(find(make_frames({100.0: openings}), make_sound(voice, [(0, 200)])))
    assert [(clip.first, clip.last) for clip in clips] == [(0, 120), (140, 200)]
    assert [k for k, place in enumerate(clips[0].faces) if place is None] == [60, 61, 62, 63]


def test_long_speech_becomes_clips_of_allowed_lengths() -> None:
    voice = make_voice(700)
    sound = make_sound(voice, [(0, 700)])
    sound.speech[310:316] = 0.3  # a breath
    clips = list_clips(find(make_frames({100.0: voice[:, 0]}), sound))
    assert sum(map(len, clips)) == 700
    assert all(50 <= len(clip) <= 300 for clip in clips)


def test_frames_that_could_not_be_read_say_why() -> None:
    voice = make_voice(200)
    failure = Outcome("failed", "crash", "the decoder died (tried 2 times)")
    spans = find(
        make_frames({100.0: voice[:, 0]}),
        make_sound(voice, [(0, 200)]),
        shots=[0, 50, 100],
        unreadable={50: (100, failure)},
    )
    [span] = [span for span in spans if span.status == "failed"]
    assert (span.first, span.last, span.reason) == (50, 100, failure.reason)


def test_no_clip_has_frames_of_a_dissolve_or_of_a_picture_that_stands() -> None:
    voice = make_voice(300)
    frames = make_frames({100.0: voice[:, 0]})
    sound = make_sound(voice, [(0, 300)])
    spans = find(frames, sound, shots=[0, 80, 100, 180, 240], unusable={80: "too_short", 180: "still"})
    assert [(span.first, span.last, span.code) for span in spans] == [
        (0, 80, ""),
        (80, 100, "too_short"),
        (100, 180, ""),
        (180, 240, "still"),
        (240, 300, ""),
    ]


def test_a_recording_of_one_camera_is_divided_where_nobody_speaks() -> None:
    speech = np.ones(40_000, np.float32)
    for pause, loudness in ((14_550, 0.1), (14_700, 0.0), (29_500, 0.0)):
        speech[pause : pause + 12] = loudness
    [start, first, second, cut] = limit_shots([0, 39_000], speech)
    assert (start, cut) == (0, 39_000) and 14_702 <= first < 14_710 and 29_502 <= second < 29_510
    assert list(limit_shots([0], np.ones(15_000, np.float32))) == [0]


@settings(max_examples=30)
@given(st.data())
def test_every_frame_is_in_one_span_whatever_is_seen_and_heard(data: st.DataObject) -> None:
    n_frames = data.draw(st.integers(1, 400), label="frames")
    frame = st.integers(0, n_frames - 1)
    shots = sorted({0, *data.draw(st.lists(frame, max_size=4), label="shots")})
    speech = sorted(data.draw(st.lists(frame, max_size=8, unique=True), label="speech"))
    voice = make_voice(n_frames)
    openings = voice[:, 0].copy()
    for first in data.draw(st.lists(frame, max_size=3), label="gaps"):
        openings[first : first + data.draw(st.integers(1, 60), label="gap")] = np.nan
    spans = find(
        make_frames({100.0: openings}),
        make_sound(voice, list(zip(speech[::2], speech[1::2], strict=False))),
        shots,
    )
    for clip in list_clips(spans):
        assert 50 <= len(clip) <= 300
        assert not any(clip.first < shot < clip.last for shot in shots)
        assert clip.faces[0] is not None and clip.faces[-1] is not None


def test_a_clip_id_is_short_enough_for_a_tar() -> None:
    from shards.names import is_id
    from stages.cut.run import make_clip_id

    ids = {make_clip_id("é" * 49 + letter, first, first + 50) for letter in "ab" for first in (0, 999_900)}
    assert len(ids) == 4
    assert all(is_id(clip_id) for clip_id in ids)
    assert make_clip_id("film", 310, 395) == "film_000310-000395"


@pytest.mark.parametrize("seconds", [0.5, 700])
def test_lengths_of_clips_are_bounded(seconds: float) -> None:
    with pytest.raises(ValueError, match="min_seconds"):
        CutParams(min_seconds=seconds)
