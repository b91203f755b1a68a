"""Copy a video or its audio to H.264 and AAC, which a browser plays.

GRID is MPEG-1 and CREMA-D is FLV, which no browser plays. A copy decodes the whole file, so it runs in the
sandbox, and a file that has been copied can be edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av

from stages.edit.reader import PROGRESSIVE, TimedFrame, VideoFacts, decode_timed_frames, probe_video
from stages.edit.speech import Speech, encode_packets, probe_speech
from stages.edit.writer import BITEXACT, CONTAINERS, OutputFormat, VideoWriter
from stages.edit.yuv import YuvConverter
from stages.engine.outcome import Drop, Outcome
from stages.media.container import open_media

# Of the codecs that an mp4 may hold, browsers play these.
MP4 = replace(CONTAINERS[".mp4"], audio_codecs=frozenset({"aac", "mp3", "opus", "flac"}))
CRF, PRESET = 20, "veryfast"  # for a preview


def copy_video(path: Path, out: Path, max_pixels: int, max_seconds: float) -> Outcome:
    """Write a video as an upright mp4 with its own time stamps; returns the facts of ``probe_video``.

    Raises Drop when it cannot be edited or is too long.
    """
    outcome = probe_video(path, max_pixels)
    facts = VideoFacts.from_json(outcome.facts)
    _check_length(facts.seconds, max_seconds)
    output_format = OutputFormat.from_source(facts, seconds=facts.seconds, crf=CRF, preset=PRESET)
    output_format = replace(output_format, fields=PROGRESSIVE)  # no browser deinterlaces
    convert, end = YuvConverter(), round(facts.seconds / facts.time_base)
    with (
        open_media(path) as source,
        VideoWriter(out, MP4, output_format, _probe_own_audio(path, facts), redrawn=False) as writer,
    ):
        for timed, ticks in _add_durations(decode_timed_frames(source, facts), end):
            writer.write(convert(timed.frame), timed.ticks, ticks)
    return outcome


def copy_audio(path: Path, out: Path, max_seconds: float) -> Outcome:
    """Write a file's audio as AAC in an mp4; returns the facts of ``probe_speech``.

    Raises Drop when there is none or it is too long.
    """
    outcome = probe_speech(path)
    speech = Speech.from_facts(path, outcome.facts)
    _check_length(speech.seconds, max_seconds)
    with av.open(
        f"file:{out}", "w", format=MP4.muxer, options=MP4.options, container_options=BITEXACT
    ) as copy:
        for _, packet in encode_packets([speech], copy, speech.seconds):
            copy.mux(packet)
    return outcome


def _check_length(seconds: Fraction, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise Drop("too_long", f"lasts {float(seconds):.1f} s, expected at most {max_seconds:g} s")


def _probe_own_audio(path: Path, facts: VideoFacts) -> list[Speech]:
    """The audio of a video, if it has any.

    It is in sync with the frames if copied; if encoded, it starts with the first frame.
    """
    try:
        speech = Speech.from_facts(path, probe_speech(path).facts)
    except Drop:
        return []
    return [replace(speech, start=facts.start * facts.time_base)]


def _add_durations(frames: Iterator[TimedFrame], end: int) -> Iterator[tuple[TimedFrame, int]]:
    """Each frame with its duration in ticks; the last one ends at tick ``end``."""
    current = next(frames)
    for following in frames:
        yield current, following.ticks - current.ticks
        current = following
    yield current, max(1, end - current.ticks)
