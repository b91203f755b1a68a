"""Read video: time spans from the packets, and frames at 25 fps. Files are untrusted: use the sandbox.

The 25 fps clock starts with the first video frame. At each instant ``k / 25`` s after it, the clip shows
the source frame that a player shows then, by the source's own time stamps. So 29.97 fps, variable rates
and lost frames all stay in sync, which counting frames would not give.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import av
import av.container
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS, Frame
from stages.engine.outcome import Drop

Item = TypeVar("Item")

# Demuxers that read one file and nothing else: no playlists, which could name other files.
DEMUXERS = "flv,mpeg,mpegvideo,mpegts,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,ogg,mxf,dv,rm,nut"
# Formats that write their duration in the header, so that a truncated file is recognised.
DECLARES_DURATION = frozenset({"flv", "mov", "matroska", "avi", "asf"})

# Times closer than this count as equal: half of the millisecond in which FLV and Matroska count.
TIME_TOLERANCE = Fraction(1, 2000)


@dataclass(frozen=True, slots=True)
class StreamSpan:
    """When a stream starts and ends on the container's clock, in seconds, and how many packets it has."""

    start: Fraction
    end: Fraction
    packets: int

    @property
    def seconds(self) -> Fraction:
        return self.end - self.start


def open_media(path: Path, *, demuxers: str = DEMUXERS, kind: str = "video") -> av.container.InputContainer:
    """Open a local file without access to any other file or host. Raises Drop if no demuxer reads it."""
    options = {"protocol_whitelist": "file", "format_whitelist": demuxers}
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.FFmpegError as err:
        raise Drop("not_media", f"cannot be opened as {kind} ({err.strerror})") from err


def read_declared_end(container: av.container.InputContainer) -> float | None:
    """When the file ends by its own header, in seconds on its clock; None for formats that do not say."""
    if container.duration is None or container.format.name.split(",")[0] not in DECLARES_DURATION:
        return None
    return (container.duration + (container.start_time or 0)) / av.time_base


def find_video_stream(container: av.container.InputContainer) -> VideoStream:
    """The stream that a player shows. Raises Drop when there is none; a cover picture is not video."""
    best = container.streams.best("video")
    if not isinstance(best, VideoStream) or best.codec_context is None:
        raise Drop("no_video", "has no video stream")
    if best.disposition & av.stream.Disposition.attached_pic:
        raise Drop("no_video", "has a cover picture but no video stream")
    if not best.codec_context.is_open:  # it is open already after a seek
        best.thread_type = "NONE"
    return best


def read_stream_spans(container: av.container.InputContainer, *streams: av.stream.Stream) -> list[StreamSpan]:
    """Time span of each stream, from its packets; nothing is decoded. Raises Drop on an empty stream."""
    packets: dict[int, list[tuple[int, int]]] = {stream.index: [] for stream in streams}
    try:
        for packet in container.demux(*streams):
            stamp = packet.dts if packet.pts is None else packet.pts  # AVI has dts only
            if packet.size and stamp is not None:
                packets[packet.stream.index].append((stamp, packet.duration or 0))
    except av.FFmpegError as err:
        raise Drop("damaged", f"cannot be read to its end ({err.strerror})") from err
    return [_make_span(stream, sorted(packets[stream.index])) for stream in streams]


def read_video_span(path: Path) -> StreamSpan:
    """Time span of a file's video stream."""
    with open_media(path) as container:
        (span,) = read_stream_spans(container, find_video_stream(container))
    return span


def _make_span(stream: av.stream.Stream, packets: list[tuple[int, int]]) -> StreamSpan:
    """Span of packets (time stamp, duration) in presentation order."""
    if not packets or stream.time_base is None:
        raise Drop(f"no_{stream.type}", f"its {stream.type} stream holds no packet with a time stamp")
    (start, _), (last, duration) = packets[0], packets[-1]
    # FLV packets have no duration: use the median step between stamps for the last one.
    steps = [later - earlier for (earlier, _), (later, _) in pairwise(packets) if later > earlier]
    end = last + Fraction(duration or (median(steps) if steps else 0))
    return StreamSpan(start * stream.time_base, end * stream.time_base, len(packets))


def count_frames_at_25fps(span: StreamSpan) -> int:
    """T: the number of instants k / 25 s after the first frame that are before the last frame's end."""
    return count_instants(span.seconds)


def count_instants(seconds: Fraction) -> int:
    """The number of instants k / 25 s before ``seconds``, which is also the index of the first one after.

    A frame with the time stamp ``seconds`` appears at that first instant.
    """
    return math.ceil((seconds - TIME_TOLERANCE) * VIDEO_FPS)


def read_display_size(path: Path) -> tuple[int, int]:
    """Width and height of the video as a player shows it, upright. Raises Drop when nothing decodes."""
    with open_media(path) as container:
        for _, frame in decode_frames(container):
            return get_upright_size(frame)
    raise Drop("no_video", "none of its video frames can be decoded")


def get_upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Width and height of a frame after the rotation that its container asks for."""
    return (frame.height, frame.width) if frame.rotation % 180 else (frame.width, frame.height)


@dataclass(frozen=True, slots=True)
class ClockFrame:
    """The source frame shown at an instant k / 25 s. Instants that show one source frame share one object."""

    source: int  # index of the source frame
    seconds: float  # the source frame's own time stamp, from the start of the 25 fps clock
    image: Frame  # (H, W, 3) RGB, contiguous


def read_frames_at_25fps(path: Path, start: float, n_frames: int) -> Iterator[ClockFrame]:
    """Decode exactly ``n_frames`` frames at 25 fps; frame 0 is at ``start`` seconds on the container's clock.

    Keeps two frames in memory, however long the video is. A frame that cannot be decoded is replaced by
    the one before it, as in a player. Raises Drop when nothing can be decoded.
    """
    convert = RgbConverter()
    with open_media(path) as container:
        items = (
            (at - Fraction(start), (source, frame))
            for source, (at, frame) in enumerate(decode_frames(container))
        )
        current: ClockFrame | None = None
        for seconds, (source, frame) in sample_at_25fps(items, n_frames):
            if current is None or current.source != source:
                current = ClockFrame(source, float(seconds), convert(frame))
            yield current


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


def decode_frames(container: av.container.InputContainer) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Source frames in presentation order, with their time stamps in seconds."""
    stream = find_video_stream(container)
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # a damaged packet loses its own frames only
        for frame in frames:
            assert isinstance(frame, av.VideoFrame), "only the video stream is demuxed"
            stamp = frame.dts if frame.pts is None else frame.pts
            if stamp is not None and frame.time_base is not None:
                yield stamp * frame.time_base, frame


class RgbConverter:
    """Converts decoded frames to upright RGB (H, W, 3).

    Use one for a whole video: setting up a scaler costs five times as much as using it.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Frame:
        rgb = self._reformatter.reformat(frame, format="rgb24", src_color_range=frame.color_range, threads=1)
        return rotate_upright(rgb.to_ndarray(), frame.rotation)


def rotate_upright(image: NDArray[Any], rotation: int) -> Frame:
    """Rotate an image by its container's display matrix (phones store portrait video rotated), contiguous.

    Contiguous because MediaPipe ignores strides: it reads a view as another image, without an error.
    """
    return np.ascontiguousarray(np.rot90(image, rotation // 90))
