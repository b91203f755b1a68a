"""Read the video to edit: its facts, and its frames in any order."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
from av.video.frame import PictureType
from av.video.stream import VideoStream

from stages.edit.timing import refine_time_base
from stages.edit.yuv import PIXEL_FORMAT, Colours, read_colours
from stages.engine.outcome import Drop, Outcome, StageError, name_file
from stages.media.container import find_video_stream, open_media
from stages.media.presentation import (
    decode_frames,
    decode_shown_video,
    read_form,
    read_orientation,
    read_timeline,
    stores_no_pts,
)
from stages.media.video import SEEK_MARGIN

BUFFER_BYTES = 128 * 2**20  # of decoded frames, while a video is read backwards
FRACTIONS = ("time_base", "seconds", "fps", "pixel_aspect")  # strings in JSON
MIN_FPS = Fraction(1, 1001)  # the denominator is the largest that a rate gets: 30000/1001 has it
SKIP_FRAMES = 250  # ahead: from there on a seek is worth it; a keyframe's usual distance
# Seconds before a frame, from where on it is decoded. The longer one is for periodic intra refresh: there a
# keyframe is no whole picture, but the place where a refresh begins, which takes up to 250 pictures in x264.
SEEK_MARGINS = (SEEK_MARGIN, 12)
BYTES_PER_PIXEL = 3  # of a decoded frame: 4:2:0 has 1.5, 4:2:2 in 10 bits has 4

PROGRESSIVE, TOP_FIRST, BOTTOM_FIRST, UNKNOWN_FIELDS = "progressive", "top first", "bottom first", "unknown"
# AVFieldOrder of a stream: in which order fields are coded and, where that differs, shown.
FIELD_ORDERS = {2: TOP_FIRST, 3: BOTTOM_FIRST, 4: BOTTOM_FIRST, 5: TOP_FIRST}


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The properties of a video, as a player shows it."""

    width: int  # px, upright, as coded
    height: int
    start: int  # ticks, of the first frame on the container's clock
    time_base: Fraction  # seconds per tick: the stream's own, or a part of it
    seconds: Fraction  # from the first frame to the last one's end
    fps: Fraction  # on average
    pixel_aspect: Fraction | None  # width to height of an upright pixel, if the file says so
    colours: Colours
    pixel_format: str = PIXEL_FORMAT  # FFmpeg's name, of the decoded frames
    # Which lines of interlaced pictures, upright, are shown first. UNKNOWN_FIELDS where the file does not
    # say, and where turning the picture makes columns of them.
    fields: str = PROGRESSIVE
    # Of the file, besides the picture.
    n_sounds: int = 0
    n_subtitles: int = 0  # tracks of them
    n_chapters: int = 0

    @property
    def square_scale(self) -> tuple[float, float]:
        """Factors of x and y from upright coded pixels to square ones, in which faces are found."""
        aspect = float(self.pixel_aspect or 1)
        return max(aspect, 1.0), max(1 / aspect, 1.0)

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
        _check_pixels(codec.width, codec.height, max_pixels)
        (span,) = read_timeline(container, stream).spans
        if stores_no_pts(container):
            span = decode_shown_video(path, span).span
        assert stream.time_base is not None, "read_timeline checks it"
        time_base = refine_time_base(stream.time_base)
    with open_media(path) as container:
        stream = find_video_stream(container)
        first = next(decode_frames(container), None)
        if first is None:
            raise Drop("no_video", "none of its video frames can be decoded")
        start, form = max(span.start, first[0]), read_form(stream, first[1])
        _check_pixels(*form.size, max_pixels)
        seconds = span.end - start
        if seconds <= 0:
            raise Drop("too_short", f"its picture lasts {float(seconds):g} s")
        width, height = form.upright_size
        aspect = 1 / form.pixel_aspect if form.orientation.transposes else form.pixel_aspect
        facts = VideoFacts(
            width=width,
            height=height,
            start=round(start / time_base),
            time_base=time_base,
            seconds=seconds,
            # Headers of videos with a variable rate are unreliable, and x264 derives the output's level
            # from it. One picture of an hour has a rate below the smallest such fraction, not none.
            fps=max(MIN_FPS, (span.packets / span.seconds).limit_denominator(MIN_FPS.denominator)),
            pixel_aspect=aspect if stream.sample_aspect_ratio else None,
            colours=read_colours(first[1]),
            pixel_format=first[1].format.name,
            fields=read_fields(stream, first[1]),
            n_sounds=len(container.streams.audio),
            n_subtitles=len(container.streams.subtitles),
            n_chapters=len(container.chapters()),
        )
    return Outcome(facts=facts.to_json())


def read_fields(stream: VideoStream, frame: av.VideoFrame) -> str:
    """Which lines of the upright pictures of a stream are shown first; ``frame`` is one of them, decoded."""
    if not frame.interlaced_frame:
        return PROGRESSIVE
    order = getattr(stream.codec_context, "field_order", 0)  # PyAV tells it from 18 on
    fields, orientation = FIELD_ORDERS.get(order, UNKNOWN_FIELDS), read_orientation(frame)
    if orientation.transposes:
        return UNKNOWN_FIELDS
    if orientation.flips_rows and fields != UNKNOWN_FIELDS:  # of an even number
        return BOTTOM_FIRST if fields == TOP_FIRST else TOP_FIRST
    return fields


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if not 0 < width * height <= max_pixels:
        raise Drop("too_large", f"its frames are {width}x{height}, expected at most "
                   f"{max_pixels} pixels; --max-pixels allows more")  # fmt: skip


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A decoded frame and its time stamp, in ticks from the first frame."""

    ticks: int
    frame: av.VideoFrame


def decode_timed_frames(
    container: av.container.InputContainer, facts: VideoFacts
) -> Generator[TimedFrame, None, None]:
    """Decoded frames with increasing time stamps. Raises Drop when the picture changes its form midway."""
    last: int | None = None
    for at, frame in decode_frames(container):
        ticks = round(at / facts.time_base) - facts.start
        if ticks < 0 or (last is not None and ticks <= last):
            continue
        last = ticks
        yield TimedFrame(ticks, frame)


class FrameReader:
    """Frames of a video by index. Use it in ``with``.

    Forwards, one frame is decoded at a time. Backwards, as many as fit in BUFFER_BYTES are decoded at a
    time, from a keyframe before them. So memory does not grow with the video's length, and nothing is
    written to disk. Raises StageError when the file cannot be read any more.
    """

    def __init__(self, path: Path, facts: VideoFacts, stamps: Sequence[int]) -> None:
        self._path, self._facts, self._stamps = path, facts, stamps
        self._n_backwards = max(2, BUFFER_BYTES // (facts.width * facts.height * BYTES_PER_PIXEL))
        self._buffer: dict[int, av.VideoFrame] = {}

    def __enter__(self) -> FrameReader:
        with name_file(self._path):
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
            with name_file(self._path):
                if index < self._next:
                    self._buffer = self._read_range(max(0, index - self._n_backwards + 1), index)
                else:
                    self._buffer = {index: self._read_forward(index)}
        return self._buffer[index]

    def skip_to(self, index: int) -> None:
        """Prepare to read frame ``index`` without decoding all frames before it, if it is far ahead."""
        if index >= self._next + SKIP_FRAMES:
            with name_file(self._path):
                self._buffer = self._read_range(index, index)

    def _read_range(self, first: int, last: int) -> dict[int, av.VideoFrame]:
        """Frames ``first`` to ``last``, which are not the next ones."""
        try:
            self._seek(first)
            return {k: self._read_forward(k) for k in range(first, last + 1)}
        except (Drop, StageError, av.FFmpegError):
            # Some containers have no index, or one that points past the frame or to one without a time stamp.
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
        """Seek to a keyframe from which on a frame is decoded as it is from the start."""
        begin, tick = self._facts.start, self._facts.time_base
        stream = find_video_stream(self._container)
        assert stream.time_base is not None, "a stream that is decoded has one"
        for margin in SEEK_MARGINS:
            seconds = (begin + self._stamps[index]) * tick - margin
            if seconds <= begin * tick:
                break
            self._container.seek(int(seconds / stream.time_base), stream=stream)
            self._frames = decode_timed_frames(self._container, self._facts)
            first = next(self._frames, None)  # is not the frame itself
            if margin == SEEK_MARGINS[-1] or (first is not None and first.frame.pict_type == PictureType.I):
                return
        self.__exit__()
        self._open()
