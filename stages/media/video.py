"""Read video: frames at 25 fps, as a player shows them. Files are untrusted: use the sandbox.

The 25 fps clock starts with the first video frame. At each instant ``k / 25`` s after it, the clip shows
the source frame that a player shows then, by the source's own time stamps. So 29.97 fps, variable rates
and lost frames all stay in sync, which counting frames would not give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TypeVar

import av
import av.container
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from shards.schema import VIDEO_FPS, Frame
from stages.engine.outcome import Drop
from stages.media.container import find_video_stream, open_media
from stages.media.presentation import (
    TIME_TOLERANCE,
    StreamSpan,
    decode_frames,
    read_form,
    read_orientation,
    stores_no_pts,
)

Item = TypeVar("Item")
TimedPicture = tuple[Fraction, av.VideoFrame]  # with the time stamp on the container's clock

SEEK_SECONDS = 10  # from the video's start: what is nearer is decoded from there on
# Before the place that is sought: a group of pictures without a keyframe of its own is repaired by then.
SEEK_MARGIN = 2

# FFmpeg's flag. PyAV names it from 18 on, which needs Python 3.11; older ones take its number.
ACCURATE_RND = 0x40000
# Of pixels that are not square, and of formats that are converted. Bicubic, as in ffmpeg and most players.
SCALING = int(Interpolation.BICUBIC) | ACCURATE_RND


def count_frames_at_25fps(span: StreamSpan) -> int:
    """T: the number of instants k / 25 s after the first frame that are before the last frame's end."""
    return count_instants(span.seconds)


def count_instants(seconds: Fraction) -> int:
    """The number of instants k / 25 s before ``seconds``, which is also the index of the first one after.

    A frame with the time stamp ``seconds`` appears at that first instant.
    """
    return math.ceil((seconds - TIME_TOLERANCE) * VIDEO_FPS)


@dataclass(frozen=True, slots=True)
class ClockFrame:
    """The source frame shown at an instant k / 25 s. Instants that show one source frame share one object."""

    source: int  # index of the source frame, from where decoding began
    seconds: float  # the source frame's own time stamp, from the start of the 25 fps clock
    image: Frame  # (H, W, 3) RGB, contiguous


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """Frames that can be looped over several times: each loop calls ``read``, which decodes them anew."""

    read: Callable[[], Iterator[ClockFrame]]

    def __iter__(self) -> Iterator[ClockFrame]:
        return self.read()


def read_frames_at_25fps(path: Path, start: float, n_frames: int) -> Iterator[ClockFrame]:
    """Decode exactly ``n_frames`` frames at 25 fps; frame 0 is at ``start`` seconds on the container's clock.

    Keeps two frames in memory, however long the video is. A frame that cannot be decoded is replaced by
    the one before it, as in a player. What is far from the video's start is decoded from the keyframe before
    it on, where the file can be searched. Raises Drop when nothing can be decoded.
    """
    with _decode_near(path, Fraction(start)) as (stream, decoded):
        convert = RgbConverter(stream)
        items = ((at - Fraction(start), (source, frame)) for source, (at, frame) in enumerate(decoded))
        current: ClockFrame | None = None
        for seconds, (source, frame) in sample_at_25fps(items, n_frames):
            if current is None or current.source != source:
                current = ClockFrame(source, float(seconds), convert(frame))
            yield current


@contextmanager
def _decode_near(path: Path, start: Fraction) -> Iterator[tuple[VideoStream, Iterator[TimedPicture]]]:
    """The video stream, and its frames in order: the one shown at ``start`` and all after it, at least."""
    with open_media(path) as container:
        stream = find_video_stream(container)
        begin = Fraction(container.start_time or 0, av.time_base)
        if start - begin <= SEEK_SECONDS or stores_no_pts(container):
            yield stream, decode_frames(container)
            return
        decoded = _seek(container, stream, start)
        if decoded is not None:
            yield stream, decoded
            return
    with open_media(path) as container:
        yield find_video_stream(container), decode_frames(container)


def _seek(
    container: av.container.InputContainer, stream: VideoStream, start: Fraction
) -> Iterator[TimedPicture] | None:
    """Frames from some keyframe before ``start`` on; None where the file's index does not lead there."""
    assert stream.time_base is not None, "a stream that is decoded has one"
    try:
        container.seek(int((start - SEEK_MARGIN) / stream.time_base), stream=stream)
        decoded = decode_frames(container)
        first = next(decoded, None)
    except (av.FFmpegError, Drop):
        return None
    return None if first is None or first[0] > start else chain([first], decoded)


def sample_at_25fps(items: Iterable[tuple[Fraction, Item]], n_frames: int) -> Iterator[tuple[Fraction, Item]]:
    """The pair (seconds, item) shown at each instant k / 25 s, of pairs in order of their first second.

    Each instant shows the last item that has appeared; instants before the first item show the first.
    Consumes no more of ``items`` than it needs. Raises Drop when there are none.
    """
    current: tuple[Fraction, Item] | None = None
    k = 0
    for item in items:
        # Instants before this item appears still show the one before it.
        while current is not None and k < n_frames and Fraction(k, VIDEO_FPS) + TIME_TOLERANCE < item[0]:
            yield current
            k += 1
        if k == n_frames:
            return
        current = item
    if current is None:
        raise Drop("no_video", "none of its video frames can be decoded")
    for _ in range(k, n_frames):
        yield current


class RgbConverter:
    """Converts decoded frames of a stream to upright RGB (H, W, 3), contiguous, in square pixels or as coded.

    Use one for a whole video: setting up a scaler costs five times as much as using it.
    """

    def __init__(self, stream: VideoStream | None = None) -> None:
        """With ``stream`` pixels become square by its aspect; without it they stay as they are coded."""
        self._reformatter = VideoReformatter()
        self._stream = stream

    def __call__(self, frame: av.VideoFrame) -> Frame:
        if self._stream is None:
            (width, height), orientation = (frame.width, frame.height), read_orientation(frame)
        else:
            form = read_form(self._stream, frame)
            (width, height), orientation = form.square_size, form.orientation
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            format="rgb24",
            src_color_range=frame.color_range,
            interpolation=None if (width, height) == (frame.width, frame.height) else SCALING,
            threads=1,
        )
        # Contiguous because MediaPipe ignores strides: it reads a view as another image, without an error.
        return np.ascontiguousarray(orientation.apply(rgb.to_ndarray()))
