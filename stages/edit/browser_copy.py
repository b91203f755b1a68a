"""Copies that a browser plays, H.264 and AAC, of whatever somebody brought.

GRID comes in MPEG-1 and CREMA-D in FLV, which no browser plays. All is decoded to be copied, so these run
in the sandbox, and what they have read once can be edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av

from stages.edit.reader import Stamped, VideoFacts, look, stamped_frames
from stages.edit.speech import Speech, encoded, listen, speech_of
from stages.edit.writer import BITEXACT, CONTAINERS, OutputFormat, VideoWriter
from stages.edit.yuv import ToPicture
from stages.engine.outcome import Drop, Outcome
from stages.media.video import open_media

# Of what an mp4 may hold, browsers play these.
MP4 = replace(CONTAINERS[".mp4"], sound=frozenset({"aac", "mp3", "opus", "flac"}))
CRF, PRESET = 20, "veryfast"  # to be looked at and thrown away


def copy_video(path: str, out: str, max_pixels: int, max_seconds: float) -> Outcome:
    """Write a video as an mp4 with its own time stamps, upright; gives the facts that ``look`` finds.

    Raises Drop when it cannot be edited or lasts too long.
    """
    outcome = look(path, max_pixels)
    facts = VideoFacts.from_json(outcome.facts)
    _check_length(facts.seconds, max_seconds)
    film_facts = OutputFormat.like(facts, seconds=facts.seconds, crf=CRF, preset=PRESET)
    to_picture, end = ToPicture(), round(facts.seconds / facts.time_base)
    with (
        open_media(Path(path)) as source,
        VideoWriter(Path(out), MP4, film_facts, _own_sound(path, facts)) as film,
    ):
        for stamped, ticks in _shown(stamped_frames(source, facts), end):
            film.write(to_picture(stamped.frame), stamped.ticks, ticks)
    return outcome


def copy_sound(path: str, out: str, max_seconds: float) -> Outcome:
    """Write the sound of a file as AAC in an mp4; gives the facts that ``listen`` finds.

    Raises Drop when there is none or it lasts too long.
    """
    outcome = listen(path)
    speech = speech_of(Path(path), outcome)
    _check_length(speech.seconds, max_seconds)
    with av.open(
        f"file:{out}", "w", format=MP4.muxer, options=MP4.options, container_options=BITEXACT
    ) as copy:
        for _, packet in encoded(speech, copy, speech.seconds):
            copy.mux(packet)
    return outcome


def _check_length(seconds: Fraction, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise Drop("too_long", f"lasts {float(seconds):.1f} s, expected at most {max_seconds:g} s")


def _own_sound(path: str, facts: VideoFacts) -> Speech | None:
    """What a video sounds like, from its first picture on; where it must be encoded, from its own start."""
    try:
        speech = speech_of(Path(path), listen(path))
    except Drop:
        return None
    return replace(speech, start=facts.start * facts.time_base)


def _shown(frames: Iterator[Stamped], end: int) -> Iterator[tuple[Stamped, int]]:
    """Each frame and for how many ticks it is shown; the last one until tick ``end``."""
    this = next(frames)
    for following in frames:
        yield this, following.ticks - this.ticks
        this = following
    yield this, max(1, end - this.ticks)
