"""Decide what becomes of every frame of a file: clips of one speaking face, and reasons for all the rest.

Shots are taken one after the other. In each, faces are followed, tracks are split where a face jumps, and
every stretch of speech goes to the face whose mouth says it. What is left over has a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.cut.params import CutParams
from stages.cut.pictures import FacePlace, SeenFace, SeenFrame
from stages.cut.quality import summarise_quality
from stages.cut.sound import END_PROBABILITY, cut_at_pauses, find_speech, measure_speech_level
from stages.cut.speaker import SyncCurve, choose_speaker, measure_curve
from stages.engine.outcome import Outcome
from stages.media.faces import FaceDetection, track_faces
from stages.media.jumps import find_jumps
from stages.media.stretches import Stretch

# A longer shot is worked on in pieces, so that memory does not grow with a recording of one camera.
MAX_SHOT_FRAMES = 15_000
LEVEL_MARGIN_FRAMES = 50  # around a clip, in which its pauses are looked for

# Why a span is no clip, whatever the thresholds are.
REASONS = {
    "no_speech": "nobody speaks",
    "no_face": "somebody speaks, and no face is seen",
    "too_short": "somebody speaks, too shortly between pauses, cuts, dissolves and frames without the face",
    "still": "somebody speaks, and the picture stands still",
    "silent_face": "somebody speaks, and no mouth that is seen moves",
}


@dataclass(frozen=True, slots=True)
class Sound:
    """What is heard in each frame of a file; a frame of a chunk that could not be read is silent."""

    speech: NDArray[np.float32]  # (T,), probability
    level: NDArray[np.float32]  # (T,), dB below full scale
    prediction: NDArray[np.float32]  # (T, 2), stages.metrics.sync
    prints: NDArray[np.uint32]  # (T,), stages.cut.near_duplicates

    @classmethod
    def make_silent(cls, n_frames: int) -> Sound:
        """The sound of a file of which nothing has been heard yet."""
        silence = np.zeros(n_frames, np.float32)
        unheard = np.full((n_frames, 2), np.nan, np.float32)
        return cls(silence, silence - 100, unheard, np.zeros(n_frames, np.uint32))

    def add_chunk(self, first: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy what was heard from frame ``first`` on."""
        for name in ("speech", "level", "prediction", "prints"):
            getattr(self, name)[first : first + len(arrays[name])] = arrays[name]


@dataclass(frozen=True, slots=True)
class Span:
    """The frames ``first`` to ``last - 1`` of a file: a clip, unless ``code`` says why not."""

    first: int
    last: int
    code: str = ""
    reason: str = ""
    status: str = "dropped"  # where there is a code
    track: int | None = None
    faces: tuple[FacePlace | None, ...] = ()  # that its frames show
    curve: SyncCurve | None = None
    scores: dict[str, float] = field(default_factory=dict)  # by column of the ledger

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class TrackPart:
    """The part of a track in which its face does not jump. Gaps are no longer than tracking bridges."""

    track: int
    faces: dict[int, SeenFace]  # by frame

    @property
    def first(self) -> int:
        return next(iter(self.faces))

    @property
    def last(self) -> int:
        """The frame after the last one that shows it."""
        return next(reversed(self.faces)) + 1

    def find_part(self, first: int, last: int) -> tuple[int, int]:
        """The part of the frames ``first`` to ``last - 1`` that begins and ends with the face: [a, b)."""
        seen = [frame for frame in self.faces if first <= frame < last]
        return (seen[0], seen[-1] + 1) if seen else (first, first)


def find_spans(
    frames: Iterable[SeenFrame],
    shots: Sequence[int],
    sound: Sound,
    params: CutParams,
    max_gap_frames: int,
    unreadable: Mapping[int, tuple[int, Outcome]],
    unusable: Mapping[int, str],
) -> Iterator[Span]:
    """The spans of a file's frames, in order, from 0 to T: each begins where the one before ends.

    ``shots`` are the first frames of shots, of which the first is 0; ``max_gap_frames`` are those without a
    face that are bridged. ``unreadable`` shots could not be measured: their last frame and what became of
    them, by their first. ``unusable`` shots have no clips, whoever speaks in them: the code, by their first
    frame. Only one shot's faces are in memory.
    """

    def divide() -> Iterator[Span]:
        """The spans; neighbours may have one reason."""
        n_frames = len(sound.speech)
        stretches = find_speech(sound.speech, round(params.min_pause_seconds * VIDEO_FPS))
        margins = _find_margins(stretches, n_frames, round(params.margin_seconds * VIDEO_FPS))
        remaining = iter(frames)
        shot_firsts = set(shots)
        n_tracks = 0
        code: str | None = None
        for first, last in pairwise([*limit_shots(shots, sound.speech), n_frames]):
            if first in shot_firsts:  # or it is a piece of a long shot
                code = unusable.get(first)
            seen = list(islice(remaining, last - first))
            if (failure := find_unreadable(unreadable, first)) is not None:
                yield Span(first, last, failure.code, failure.reason, failure.status)
                continue
            track_parts = find_track_parts(seen, first, n_tracks, max_gap_frames)
            n_tracks = max((track_part.track + 1 for track_part in track_parts), default=n_tracks)
            yield from _divide_shot(first, last, track_parts, margins, sound, params, code)

    return _merge(divide())


def find_unreadable(unreadable: Mapping[int, tuple[int, Outcome]], frame: int) -> Outcome | None:
    """What became of the chunk around a frame, if it could not be measured."""
    return next((outcome for first, (last, outcome) in unreadable.items() if first <= frame < last), None)


def limit_shots(shots: Sequence[int], speech: NDArray[np.float32]) -> Iterator[int]:
    """The first frames of shots; of a very long one several. ``speech`` (T,) is the probability of speech."""
    for shot in pairwise([*shots, len(speech)]):
        for first, _ in cut_at_pauses(speech, shot, MAX_SHOT_FRAMES // 2, MAX_SHOT_FRAMES):
            yield first


@dataclass(frozen=True, slots=True)
class SpokenStretch:
    """Frames in which somebody speaks, and with some of the pauses around them."""

    first: int
    last: int
    wide_first: int
    wide_last: int


def _find_margins(stretches: Sequence[Stretch], n_frames: int, margin: int) -> list[SpokenStretch]:
    """Widen stretches of speech by ``margin`` frames, and by at most half of each pause."""
    ends = [-2 * margin, *(last for _, last in stretches)]
    starts = [*(first for first, _ in stretches), n_frames + 2 * margin]
    return [
        SpokenStretch(
            first,
            last,
            max(0, first - min(margin, (first - ends[i]) // 2)),
            min(n_frames, last + min(margin, (starts[i + 1] - last + 1) // 2)),
        )
        for i, (first, last) in enumerate(stretches)
    ]


def find_track_parts(
    seen: Sequence[SeenFrame], first: int, n_tracks: int, max_gap_frames: int
) -> list[TrackPart]:
    """The faces of a shot that begins at frame ``first``; its tracks are counted from ``n_tracks`` on."""
    by_detection: dict[int, SeenFace] = {id(face.detection): face for frame in seen for face in frame.faces}
    detections = [[face.detection for face in frame.faces] for frame in seen]
    track_parts = []
    for number, track in enumerate(track_faces(detections, max_gap_frames), n_tracks):
        begin, end = track.first, track.last + 1
        line: list[FaceDetection | None] = [track.detections.get(k) for k in range(begin, end)]
        jumps = find_jumps(
            line,
            [frame.change for frame in seen[begin:end]],
            [frame.seconds for frame in seen[begin:end]],
        )
        for part_first, part_last in pairwise([begin, *(begin + jump.frame for jump in jumps), end]):
            faces = {
                first + k: by_detection[id(detection)]
                for k in range(part_first, part_last)
                if (detection := track.detections.get(k)) is not None
            }
            if faces:
                track_parts.append(TrackPart(number, faces))
    return track_parts


def _divide_shot(
    first: int,
    last: int,
    track_parts: Sequence[TrackPart],
    stretches: Sequence[SpokenStretch],
    sound: Sound,
    params: CutParams,
    code: str | None,
) -> Iterator[Span]:
    """The spans of a shot, in order; neighbours may have one reason.

    With a ``code`` none is a clip.
    """
    min_frames, max_frames = (
        round(seconds * VIDEO_FPS) for seconds in (params.min_seconds, params.max_seconds)
    )
    at = first
    for stretch in stretches:
        if min(stretch.last, last) <= max(stretch.first, first):
            continue  # it is not in this shot, whatever its margin is
        begin, end = max(stretch.wide_first, first), min(stretch.wide_last, last)
        if at < begin:
            yield _make_rest(at, begin, "no_speech")
        if code is not None:
            is_seen = any(track_part.first < end and track_part.last > begin for track_part in track_parts)
            yield _make_rest(begin, end, code if is_seen else "no_face")
            at = end
            continue
        for part_first, part_last in cut_at_pauses(
            sound.speech, (begin, end), min_frames, max_frames, sound.level
        ):
            yield from _divide_speech(part_first, part_last, track_parts, sound, min_frames)
        at = end
    if at < last:
        yield _make_rest(at, last, "no_speech")


def _divide_speech(
    first: int, last: int, track_parts: Sequence[TrackPart], sound: Sound, min_frames: int
) -> Iterator[Span]:
    """Give the speech of some frames to the face that says it; what that does not show, to others."""
    if first >= last:
        return
    overlaps = [
        track_part for track_part in track_parts if track_part.first < last and track_part.last > first
    ]
    candidates = [
        _make_candidate(track_part, begin, end, sound)
        for track_part in overlaps
        for begin, end in [track_part.find_part(first, last)]
        if end - begin >= min_frames
    ]
    if not candidates:
        yield _make_rest(first, last, "too_short" if overlaps else "no_face")
        return
    choice = choose_speaker([span.curve for span in candidates])
    # max returns the first of equals
    best = max(candidates, key=len) if choice is None else candidates[choice[0]]
    yield from _divide_speech(first, best.first, track_parts, sound, min_frames)
    yield best
    yield from _divide_speech(best.last, last, track_parts, sound, min_frames)


def _make_candidate(track_part: TrackPart, first: int, last: int, sound: Sound) -> Span:
    """The span in which a face shows the speech of some frames: it is seen in the first and in the last."""
    faces = [track_part.faces.get(k) for k in range(first, last)]
    openings = np.array([np.nan if face is None else face.opening for face in faces])
    curve = measure_curve(openings, sound.prediction, first)
    span = Span(
        first,
        last,
        track=track_part.track,
        faces=tuple(None if face is None else face.place for face in faces),
        curve=curve,
        scores=_measure(faces, sound, first, last),
    )
    if curve is None:
        return replace(span, code="silent_face", reason=REASONS["silent_face"])
    return span


def _measure(faces: Sequence[SeenFace | None], sound: Sound, first: int, last: int) -> dict[str, float]:
    """The quality of a clip by column of the ledger; what cannot be measured is left out."""
    shown = [face for face in faces if face is not None]
    widths = np.array([face.detection.width for face in shown])
    scores = summarise_quality(widths, np.stack([face.quality for face in shown]))
    begin, end = max(0, first - LEVEL_MARGIN_FRAMES), last + LEVEL_MARGIN_FRAMES
    speech = sound.speech[begin:end].copy()
    # Of what is around it only the pauses count: other voices may be louder.
    for outside in (speech[: first - begin], speech[last - begin :]):
        outside[outside >= END_PROBABILITY] = np.nan
    level, to_noise = measure_speech_level(sound.level[begin:end], speech)
    scores |= {"speech_level": round(level, 1), "speech_to_noise": round(to_noise, 1)}
    return {name: value for name, value in scores.items() if value is not None and np.isfinite(value)}


def _make_rest(first: int, last: int, code: str) -> Span:
    return Span(first, last, code, REASONS[code])


def _merge(spans: Iterable[Span]) -> Iterator[Span]:
    """Join neighbours that are no clips for the same reason."""
    last: Span | None = None
    for span in spans:
        is_same = last is not None and (last.code, last.reason) == (span.code, span.reason)
        if last is not None and is_same and last.track is None and span.track is None:
            last = replace(last, last=span.last)
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last
