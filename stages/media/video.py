"""Video in: facts from the packets, and frames on the 25 fps clock. Untrusted files; run it in the sandbox.

The clock starts with the first video frame: ``t_k = k / 25`` after it shows the source frame that a
player shows then, by the source's own time stamps. So 29.97 fps, variable rates and lost frames all
keep sync, where counting frames would not.
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

from shards.schema import VIDEO_FPS
from stages.engine.outcome import Drop

Frame = NDArray[np.uint8]
Item = TypeVar("Item")

# Demuxers that read one file and nothing else: no playlists, which could name other files.
DEMUXERS = "flv,mpeg,mpegvideo,mpegts,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,ogg,mxf,dv,rm,nut"
# These write their duration in the header, so a file that was cut short can be told.
DECLARES_DURATION = frozenset({"flv", "mov", "matroska", "avi", "asf"})

# Times closer than this are one time: half of the millisecond that FLV and Matroska stamp in.
SAME_TIME = Fraction(1, 2000)


@dataclass(frozen=True, slots=True)
class StreamSpan:
    """When a stream starts and ends on the container's clock, in seconds; ``packets`` it holds."""

    start: Fraction
    end: Fraction
    packets: int

    @property
    def seconds(self) -> Fraction:
        return self.end - self.start


def open_media(path: Path, *, demuxers: str = DEMUXERS, kind: str = "video") -> av.container.InputContainer:
    """Open a local file with every door to elsewhere shut. Raises Drop when it is none of ``demuxers``."""
    options = {"protocol_whitelist": "file", "format_whitelist": demuxers}
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.FFmpegError as err:
        raise Drop("not_media", f"cannot be opened as {kind} ({err.strerror})") from err


def declared_end(container: av.container.InputContainer) -> float | None:
    """When the file ends by its own header, in seconds on its clock; None where headers do not tell."""
    if container.duration is None or container.format.name.split(",")[0] not in DECLARES_DURATION:
        return None
    return (container.duration + (container.start_time or 0)) / av.time_base


def video_stream(container: av.container.InputContainer) -> VideoStream:
    """The stream a player shows; cover pictures do not count. Raises Drop when there is none."""
    best = container.streams.best("video")
    if not isinstance(best, VideoStream) or best.codec_context is None:
        raise Drop("no_video", "has no video stream")
    if best.disposition & av.stream.Disposition.attached_pic:
        raise Drop("no_video", "has a cover picture but no video stream")
    if not best.codec_context.is_open:  # it is after a seek
        best.thread_type = "NONE"
    return best


def packet_spans(container: av.container.InputContainer, *wanted: av.stream.Stream) -> list[StreamSpan]:
    """Time span of each stream, from its packets; nothing is decoded. Raises Drop on an empty one."""
    seen: dict[int, list[tuple[int, int]]] = {stream.index: [] for stream in wanted}
    try:
        for packet in container.demux(*wanted):
            stamp = packet.dts if packet.pts is None else packet.pts  # AVI has dts only
            if packet.size and stamp is not None:
                seen[packet.stream.index].append((stamp, packet.duration or 0))
    except av.FFmpegError as err:
        raise Drop("damaged", f"cannot be read to its end ({err.strerror})") from err
    return [_span(stream, sorted(seen[stream.index])) for stream in wanted]


def video_span(path: Path) -> StreamSpan:
    """Time span of a file's video."""
    with open_media(path) as container:
        (span,) = packet_spans(container, video_stream(container))
    return span


def _span(stream: av.stream.Stream, packets: list[tuple[int, int]]) -> StreamSpan:
    """From (time stamp, duration) in order of showing."""
    if not packets or stream.time_base is None:
        raise Drop(f"no_{stream.type}", f"its {stream.type} stream holds no packet with a time stamp")
    (start, _), (last, duration) = packets[0], packets[-1]
    # FLV packets have no duration; the usual step between stamps stands in for the last one's.
    steps = [right - left for (left, _), (right, _) in pairwise(packets) if right > left]
    end = last + Fraction(duration or (median(steps) if steps else 0))
    return StreamSpan(start * stream.time_base, end * stream.time_base, len(packets))


def frames_on_clock(span: StreamSpan) -> int:
    """T: how many instants k / 25 after the first frame fall before the last frame's end."""
    return first_instant(span.seconds)


def first_instant(seconds: Fraction) -> int:
    """Which k / 25 is the first that is not before ``seconds``: a frame with that stamp appears there."""
    return math.ceil((seconds - SAME_TIME) * VIDEO_FPS)


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of the video as a player shows it, upright. Raises Drop when nothing decodes."""
    with open_media(path) as container:
        for _, frame in decode(container):
            return upright_size(frame)
    raise Drop("no_video", "none of its video frames can be decoded")


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Width and height of a frame when it stands as its container says."""
    return (frame.height, frame.width) if frame.rotation % 180 else (frame.width, frame.height)


@dataclass(frozen=True, slots=True)
class ClockFrame:
    """What is to be seen at k / 25 seconds; the same object while the source frame stays."""

    source: int  # count of the source's frames before this one
    seconds: float  # the source frame's own time stamp, after the clock's start
    image: Frame  # (H, W, 3) RGB, contiguous


def read_on_clock(path: Path, start: float, n_frames: int) -> Iterator[ClockFrame]:
    """Decode a video onto the clock: exactly ``n_frames`` frames, t_0 = ``start`` on the container's clock.

    Holds two pictures, however long the video is. A frame that cannot be decoded is bridged by the one
    before it, as a player does. Raises Drop when nothing can be decoded.
    """
    to_rgb = ToRgb()
    with open_media(path) as container:
        stamped = (
            (at - Fraction(start), (source, frame)) for source, (at, frame) in enumerate(decode(container))
        )
        seen: ClockFrame | None = None
        for seconds, (source, frame) in on_clock(stamped, n_frames):
            if seen is None or seen.source != source:
                seen = ClockFrame(source, float(seconds), to_rgb(frame))
            yield seen


def on_clock(shown: Iterable[tuple[Fraction, Item]], n_frames: int) -> Iterator[tuple[Fraction, Item]]:
    """What is to be seen at each k / 25 s, of pairs (seconds from which it is shown, thing) in order.

    Every instant shows the last that has appeared; before the first appears, that one. Takes no more
    from ``shown`` than it needs. Raises Drop when there is nothing.
    """
    pending: tuple[Fraction, Item] | None = None
    k = 0
    for coming in shown:
        # Every instant before this one appears still shows the one before it.
        while pending is not None and k < n_frames and Fraction(k, VIDEO_FPS) + SAME_TIME < coming[0]:
            yield pending
            k += 1
        if k == n_frames:
            return
        pending = coming
    if pending is None:
        raise Drop("no_video", "none of its video frames can be decoded")
    for _ in range(k, n_frames):
        yield pending


def decode(container: av.container.InputContainer) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Source frames in order of showing, with their time stamps in seconds."""
    stream = video_stream(container)
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # a damaged packet costs its own frames only
        for frame in frames:
            assert isinstance(frame, av.VideoFrame), "only the video stream is demuxed"
            stamp = frame.dts if frame.pts is None else frame.pts
            if stamp is not None and frame.time_base is not None:
                yield stamp * frame.time_base, frame


class ToRgb:
    """Decoded frames as upright RGB (H, W, 3). One for a whole video: setting up a scaler costs five
    times as much as using it."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Frame:
        rgb = self._reformatter.reformat(frame, format="rgb24", src_color_range=frame.color_range, threads=1)
        return upright(rgb.to_ndarray(), frame.rotation)


def upright(image: NDArray[Any], rotation: int) -> Frame:
    """Turn a picture as its container says (phones write theirs lying down), into contiguous memory.

    Contiguous because MediaPipe ignores strides: a view is read as another picture, without an error.
    """
    return np.ascontiguousarray(np.rot90(image, rotation // 90))
