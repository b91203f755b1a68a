"""A video to be edited: what is to be known of it, and its frames in any order of showing."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from stages.edit.yuv import Colours, colours_of
from stages.engine.outcome import Drop, Outcome, StageError
from stages.media.video import decode, open_media, packet_spans, upright_size, video_stream

HELD_BYTES = 128 * 2**20  # of decoded frames, while a video runs backwards
EXACT = ("time_base", "seconds", "fps", "pixel_aspect")  # fractions, which JSON has not
BYTES_PER_PIXEL = 3  # of a decoded frame: 4:2:0 has 1.5, 4:2:2 in 10 bits has 4


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a video is like, as a player shows it."""

    width: int  # px, upright
    height: int
    start: int  # ticks, of the first frame on the container's clock
    time_base: Fraction  # seconds a tick
    seconds: Fraction  # from the first frame to the last one's end
    fps: Fraction  # on average
    pixel_aspect: Fraction | None  # width to height of an upright pixel, where it is told
    colours: Colours

    def to_json(self) -> dict[str, Any]:
        numbers = asdict(self)
        return numbers | {name: str(numbers[name]) for name in EXACT if numbers[name] is not None}

    @classmethod
    def from_json(cls, numbers: dict[str, Any]) -> VideoFacts:
        exact = {name: Fraction(numbers[name]) for name in EXACT if numbers[name] is not None}
        return cls(**{**numbers, **exact, "colours": Colours(**numbers["colours"])})


def look(path: str, max_pixels: int) -> Outcome:
    """Facts of a video. Runs in the sandbox; raises Drop when it cannot be edited."""
    with open_media(Path(path)) as container:
        stream = video_stream(container)
        codec = stream.codec_context
        if not 0 < codec.width * codec.height <= max_pixels:
            raise Drop("too_large", f"its frames are {codec.width}x{codec.height}, expected at most "
                       f"{max_pixels} pixels; --max-pixels allows more")  # fmt: skip
        [span] = packet_spans(container, stream)
        if span.seconds <= 0:
            raise Drop("too_short", f"its picture lasts {float(span.seconds):g} s")
        time_base = stream.time_base
        assert time_base is not None, "packet_spans asks for it"
        # Headers of videos whose rate varies say anything, and x264 picks the output's level by it.
        fps = (span.packets / span.seconds).limit_denominator(1001)
        aspect = stream.sample_aspect_ratio
    with open_media(Path(path)) as container:
        first = next(decode(container), None)
        if first is None:
            raise Drop("no_video", "none of its video frames can be decoded")
        width, height = upright_size(first[1])
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
            colours=colours_of(first[1]),
        )
    return Outcome(facts=facts.to_json())


@dataclass(frozen=True, slots=True)
class Stamped:
    """A decoded frame and when it is shown, in ticks from the reel's start."""

    ticks: int
    frame: av.VideoFrame


def stamped_frames(
    container: av.container.InputContainer, facts: VideoFacts
) -> Generator[Stamped, None, None]:
    """Decoded frames whose stamps rise; one that is not later than the one before is never to be seen.

    Raises Drop when the picture changes its size midway.
    """
    last: int | None = None
    for at, frame in decode(container):
        ticks = round(at / facts.time_base) - facts.start
        if last is not None and ticks <= last:
            continue
        last = ticks
        width, height = upright_size(frame)
        if (width, height) != (facts.width, facts.height):
            raise Drop("changes_size", f"its picture changes from {facts.width}x{facts.height} to "
                       f"{width}x{height} at {float(ticks * facts.time_base):.2f} s")  # fmt: skip
        yield Stamped(ticks, frame)


class FrameReader:
    """Frames of a video by their number, in ``with``. In order they are decoded as they come.

    Backwards as many as fit in HELD_BYTES are decoded at a time, from the keyframe before them. So
    memory does not grow with length, and nothing is written to the disk.
    """

    def __init__(self, path: Path, facts: VideoFacts, stamps: Sequence[int]) -> None:
        self._path, self._facts, self._stamps = path, facts, stamps
        self._n_backwards = max(2, HELD_BYTES // (facts.width * facts.height * BYTES_PER_PIXEL))
        self._held: dict[int, av.VideoFrame] = {}

    def __enter__(self) -> FrameReader:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._held = {}
        self._coming.close()
        self._container.close()

    def seconds(self, number: int) -> Fraction:
        """When a frame is shown, after the reel's start."""
        return self._stamps[number] * self._facts.time_base

    def __getitem__(self, number: int) -> av.VideoFrame:
        """Raises StageError when the file does not hold what it held when the stamps were read."""
        if number not in self._held:
            self._held = {}  # before others come
            if number < self._next:
                self._held = self._stretch(max(0, number - self._n_backwards + 1), number)
            else:
                self._held = {number: self._read(number)}
        return self._held[number]

    def _stretch(self, first: int, last: int) -> dict[int, av.VideoFrame]:
        """Frames from ``first`` to ``last``, which lie behind."""
        try:
            self._seek(first)
            return {k: self._read(k) for k in range(first, last + 1)}
        except (StageError, av.FFmpegError):
            # Some containers have no index, or one that leads past the frame.
            self.__exit__()
            self._open()
            return {k: self._read(k) for k in range(first, last + 1)}

    def _read(self, number: int) -> av.VideoFrame:
        """Decode up to and with a frame that lies ahead."""
        wanted = self._stamps[number]
        found = next((one for one in self._coming if one.ticks >= wanted), None)
        if found is None or found.ticks != wanted:
            raise StageError(f"{self._path}: has changed while it was read")
        self._next = number + 1
        return found.frame

    def _open(self) -> None:
        self._container = open_media(self._path)
        self._coming = stamped_frames(self._container, self._facts)
        self._next = 0

    def _seek(self, number: int) -> None:
        """To the keyframe before a frame."""
        stamp = self._facts.start + self._stamps[number]
        self._container.seek(stamp, stream=video_stream(self._container))
        self._coming = stamped_frames(self._container, self._facts)
