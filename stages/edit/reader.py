"""Read the video to edit: its facts, and its frames in any order."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from stages.edit.yuv import Colours, read_colours
from stages.engine.outcome import Drop, Outcome, StageError
from stages.media.video import (
    decode_frames,
    find_video_stream,
    get_upright_size,
    open_media,
    read_stream_spans,
)

BUFFER_BYTES = 128 * 2**20  # of decoded frames, while a video is read backwards
FRACTIONS = ("time_base", "seconds", "fps", "pixel_aspect")  # strings in JSON
BYTES_PER_PIXEL = 3  # of a decoded frame: 4:2:0 has 1.5, 4:2:2 in 10 bits has 4


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The properties of a video, as a player shows it."""

    width: int  # px, upright
    height: int
    start: int  # ticks, of the first frame on the container's clock
    time_base: Fraction  # seconds per tick
    seconds: Fraction  # from the first frame to the last one's end
    fps: Fraction  # on average
    pixel_aspect: Fraction | None  # width to height of an upright pixel, if the file says so
    colours: Colours

    def to_json(self) -> dict[str, Any]:
        facts = asdict(self)
        return facts | {name: str(facts[name]) for name in FRACTIONS if facts[name] is not None}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> VideoFacts:
        fractions = {name: Fraction(facts[name]) for name in FRACTIONS if facts[name] is not None}
        return cls(**{**facts, **fractions, "colours": Colours(**facts["colours"])})


def probe_video(path: Path, max_pixels: int) -> Outcome:
    """Read the facts of a video. Raises Drop when it cannot be edited. Runs in the sandbox."""
    with open_media(path) as container:
        stream = find_video_stream(container)
        codec = stream.codec_context
        if not 0 < codec.width * codec.height <= max_pixels:
            raise Drop("too_large", f"its frames are {codec.width}x{codec.height}, expected at most "
                       f"{max_pixels} pixels; --max-pixels allows more")  # fmt: skip
        [span] = read_stream_spans(container, stream)
        if span.seconds <= 0:
            raise Drop("too_short", f"its picture lasts {float(span.seconds):g} s")
        time_base = stream.time_base
        assert time_base is not None, "read_stream_spans checks it"
        # Headers of videos with a variable rate are unreliable, and x264 derives the output's level from it.
        fps = (span.packets / span.seconds).limit_denominator(1001)
        aspect = stream.sample_aspect_ratio
    with open_media(path) as container:
        first = next(decode_frames(container), None)
        if first is None:
            raise Drop("no_video", "none of its video frames can be decoded")
        width, height = get_upright_size(first[1])
        if aspect and first[1].rotation % 180:
            aspect = 1 / aspect
        facts = VideoFacts(
            width=width,
            height=height,
            start=round(span.start / time_base),
            time_base=time_base,
            seconds=span.seconds,
            fps=fps,
            pixel_aspect=aspect,
            colours=read_colours(first[1]),
        )
    return Outcome(facts=facts.to_json())


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A decoded frame and its time stamp, in ticks from the first frame."""

    ticks: int
    frame: av.VideoFrame


def decode_timed_frames(
    container: av.container.InputContainer, facts: VideoFacts
) -> Generator[TimedFrame, None, None]:
    """Decoded frames with increasing time stamps. A frame not later than the one before is never shown.

    Raises Drop when the frame size changes midway.
    """
    last: int | None = None
    for at, frame in decode_frames(container):
        ticks = round(at / facts.time_base) - facts.start
        if last is not None and ticks <= last:
            continue
        last = ticks
        width, height = get_upright_size(frame)
        if (width, height) != (facts.width, facts.height):
            raise Drop("changes_size", f"its picture changes from {facts.width}x{facts.height} to "
                       f"{width}x{height} at {float(ticks * facts.time_base):.2f} s")  # fmt: skip
        yield TimedFrame(ticks, frame)


class FrameReader:
    """Frames of a video by index. Use it in ``with``.

    Forwards, one frame is decoded at a time. Backwards, as many as fit in BUFFER_BYTES are decoded at a
    time, from the keyframe before them. So memory does not grow with the video's length, and nothing is
    written to disk.
    """

    def __init__(self, path: Path, facts: VideoFacts, stamps: Sequence[int]) -> None:
        self._path, self._facts, self._stamps = path, facts, stamps
        self._n_backwards = max(2, BUFFER_BYTES // (facts.width * facts.height * BYTES_PER_PIXEL))
        self._buffer: dict[int, av.VideoFrame] = {}

    def __enter__(self) -> FrameReader:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._buffer = {}
        self._frames.close()
        self._container.close()

    def __getitem__(self, index: int) -> av.VideoFrame:
        """Raises StageError when the file's frames no longer match the stamps."""
        if index not in self._buffer:
            self._buffer = {}  # frees them before others are decoded
            if index < self._next:
                self._buffer = self._read_range(max(0, index - self._n_backwards + 1), index)
            else:
                self._buffer = {index: self._read_forward(index)}
        return self._buffer[index]

    def _read_range(self, first: int, last: int) -> dict[int, av.VideoFrame]:
        """Frames ``first`` to ``last``, which are behind the current position."""
        try:
            self._seek(first)
            return {k: self._read_forward(k) for k in range(first, last + 1)}
        except (StageError, av.FFmpegError):
            # Some containers have no index, or one that points past the frame.
            self.__exit__()
            self._open()
            return {k: self._read_forward(k) for k in range(first, last + 1)}

    def _read_forward(self, index: int) -> av.VideoFrame:
        """Decode up to and including a frame ahead of the current position."""
        stamp = self._stamps[index]
        timed = next((timed for timed in self._frames if timed.ticks >= stamp), None)
        if timed is None or timed.ticks != stamp:
            raise StageError(f"{self._path}: has changed while it was read")
        self._next = index + 1
        return timed.frame

    def _open(self) -> None:
        self._container = open_media(self._path)
        self._frames = decode_timed_frames(self._container, self._facts)
        self._next = 0

    def _seek(self, index: int) -> None:
        """Seek to the keyframe before a frame."""
        stamp = self._facts.start + self._stamps[index]
        self._container.seek(stamp, stream=find_video_stream(self._container))
        self._frames = decode_timed_frames(self._container, self._facts)
