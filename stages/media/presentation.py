"""What a player shows of a file: which pictures, at which times, upright and in square pixels.

A file's packets are not what a player shows. Edit lists discard some, a display matrix turns or mirrors the
picture, pixels need not be square, and a damaged packet decodes to a wrong picture or to none. All of that is
decided here, for the dataset, the edit, the evaluation and the page alike. What cannot be shown as a player
would, such as two recordings one after the other under one clock, is refused by name. docs/inputs.md lists
each oddity with its outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
import av.container
import cv2
import numpy as np
from av.sidedata.sidedata import SideData, SideDataContainer
from av.stream import Stream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stages.engine.outcome import Drop
from stages.media.container import find_video_stream, open_media

# Formats that write one duration in the header, so that a truncated file is recognised.
DECLARES_DURATION = frozenset({"flv", "matroska", "asf"})
# Formats whose duration counts from 0, not from their first packet. Some writers of Matroska count otherwise.
COUNTS_FROM_ZERO = frozenset({"matroska", "flv", "asf"})
# Formats that store no presentation times. FFmpeg guesses some, up to two frames wrong for H.264 and Xvid.
STORES_NO_PTS = frozenset({"avi", "asf"})
# AVFMT_TS_DISCONT: the clock of a format, such as MPEG, may jump.
TS_DISCONT = 0x0200
# Times closer than this count as equal: half of the millisecond in which FLV and Matroska count.
TIME_TOLERANCE = Fraction(1, 2000)
# A decoding time that goes back further than this is a restarted clock. No muxer writes one, and none of 526
# real clips has one; Ogg's are up to 14 ms wrong. ffmpeg allows 0.1 s, in which two recordings can overlap.
MAX_BACKWARD_SECONDS = Fraction(1, 50)
# A longer step forwards, in a format whose clock may jump (MPEG), is a jump and not a pause. As in ffmpeg.
MAX_FORWARD_SECONDS = 10
# An orientation within one degree of a quarter turn counts as that one, as in ffmpeg.
ORIENTATION_TOLERANCE = np.sin(np.pi / 180)
# A picture stands while no field of a grid (columns, rows) changes its mean brightness by more levels. The
# encoder of a photo goes on refining it. In 169 real clips no picture stands for more than 0.14 s so.
STILL_GRID = (64, 48)
STILL_LEVELS = 1
MAX_LISTED_FRAMES = 5
# Pictures whose times do not increase are not shown. More than so many, and more than one in so many, and the
# times are not what a player shows: FFmpeg's guess of them is wrong, for H.264 in MXF for example.
MAX_DISORDERED = 5
# How a picture's Y, U and V are made of red, green and blue: AVColorSpace, which are the numbers of ITU-T
# H.273. FFmpeg's scaler converts from these; from others that have a name, it cannot.
CONVERTIBLE_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
RGB_MATRIX, UNSPECIFIED_MATRIX = 0, 2
OTHER_MATRICES = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    12: "derived from the primaries",
    13: "derived from the primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}


@dataclass(frozen=True, slots=True)
class StreamSpan:
    """When a player starts and ends a stream, in seconds on the container's clock, and packets in between."""

    start: Fraction
    end: Fraction
    packets: int

    @property
    def seconds(self) -> Fraction:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the packets of a file say about times; nothing is decoded."""

    spans: tuple[StreamSpan, ...]  # of the streams that were asked for
    end: Fraction  # of the last packet of these streams
    missing_seconds: float  # how much longer the file is by its own header


def read_timeline(container: av.container.InputContainer, *streams: Stream) -> Timeline:
    """Read the packets of a file to its end. Raises Drop on an empty stream, and where a clock restarts."""
    clocks = {stream.index: _PacketClock(stream, container) for stream in streams}
    # Of any stream: a subtitle that runs on is part of what the header declares.
    last_end = Fraction(0)
    n_packets = 0
    try:
        for packet in container.demux():
            if not packet.size:
                continue
            n_packets += 1
            stamp = _read_stamp(packet, container)
            if stamp is not None:
                last_end = max(last_end, (stamp + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index in clocks:
                clocks[packet.stream.index].add(packet)
    except av.FFmpegError as err:
        raise Drop("damaged", f"cannot be read to its end ({err.strerror})") from err
    if not n_packets:
        raise Drop("damaged", "holds a header and nothing else")
    spans = tuple(clocks[stream.index].make_span() for stream in streams)
    end = max(span.end for span in spans)
    return Timeline(spans, end, _find_missing_seconds(container, streams, spans, max(end, last_end)))


def _read_stamp(item: av.Packet[Any] | av.VideoFrame, container: av.container.InputContainer) -> int | None:
    """When a packet or a picture is shown, in ticks; None where the file does not say."""
    return item.dts if item.pts is None or stores_no_pts(container) else item.pts


def stores_no_pts(container: av.container.InputContainer) -> bool:
    """Whether a file stores decoding times only."""
    return container.format.name in STORES_NO_PTS


class _PacketClock:
    """Collects the packets of one stream that a player shows, and checks that their clock runs on."""

    def __init__(self, stream: Stream, container: av.container.InputContainer) -> None:
        self._stream = stream
        self._container = container
        self._can_jump = bool(container.format.flags & TS_DISCONT)
        self._last: Fraction | None = None  # decoding time
        self._packets: list[tuple[int, int]] = []  # time stamp and duration

    def add(self, packet: av.Packet[Any]) -> None:
        # Before each part of an edit list, decoding goes back to a key picture: those packets are discarded.
        if packet.is_discard:
            return
        if packet.dts is not None:
            self._check_clock(packet.dts * packet.time_base)
        stamp = _read_stamp(packet, self._container)
        if stamp is not None:
            self._packets.append((stamp, packet.duration or 0))

    def _check_clock(self, now: Fraction) -> None:
        last, self._last = self._last, now
        if last is None:
            return
        if now < last - MAX_BACKWARD_SECONDS:
            raise Drop("clock", f"its {self._stream.type} clock restarts: {float(last):.2f} s is followed by "
                       f"{float(now):.2f} s, as in recordings that were joined")  # fmt: skip
        if self._can_jump and now > last + MAX_FORWARD_SECONDS:
            raise Drop("clock", f"its {self._stream.type} clock jumps from {float(last):.2f} s to "
                       f"{float(now):.2f} s, as in recordings that were joined")  # fmt: skip

    def make_span(self) -> StreamSpan:
        """The span of the packets that are shown, in presentation order."""
        packets, stream = sorted(self._packets), self._stream
        if not packets or stream.time_base is None:
            raise Drop(f"no_{stream.type}", f"its {stream.type} stream holds no packet with a time stamp")
        (start, _), (last, duration) = packets[0], packets[-1]
        # FLV packets have no duration: use the median step between stamps for the last one.
        steps = [later - earlier for (earlier, _), (later, _) in pairwise(packets) if later > earlier]
        end = last + Fraction(duration or (median(steps) if steps else 0))
        return StreamSpan(start * stream.time_base, end * stream.time_base, len(packets))


def _find_missing_seconds(
    container: av.container.InputContainer,
    streams: tuple[Stream, ...],
    spans: tuple[StreamSpan, ...],
    last_end: Fraction,
) -> float:
    """By how much a file's packets end before its header says; 0 for formats that do not say."""
    kind = container.format.name.split(",")[0]
    if kind == "mov":
        return max(float(_find_lost_seconds(container, stream)) for stream in streams)
    if kind == "avi":  # declares how many pictures it has; the rest is FFmpeg's estimate by the file's size
        counts = [
            float((stream.frames or 0) * (stream.time_base or 0) - span.end)
            for stream, span in zip(streams, spans, strict=True)
            if stream.type == "video"
        ]
        return max(counts, default=0.0)
    if container.duration is None or kind not in DECLARES_DURATION:
        return 0.0
    start = 0 if kind in COUNTS_FROM_ZERO else container.start_time or 0
    return (container.duration + start) / av.time_base - float(last_end)


def _find_lost_seconds(container: av.container.InputContainer, stream: Stream) -> Fraction:
    """How long the packets last that the index of an mp4 places behind the end of the file."""
    entries, stamps = stream.index_entries, []
    for k in reversed(range(len(entries))):
        entry = entries[k]
        if entry.is_discard:
            continue
        if entry.pos + entry.size <= container.size:
            break
        stamps.append(entry.timestamp)
    return (stamps[0] - stamps[-1]) * (stream.time_base or Fraction(0)) if stamps else Fraction(0)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a decoded picture becomes upright: transposed first, then its rows or columns reversed."""

    transposes: bool = False
    flips_rows: bool = False  # top and bottom change places
    flips_columns: bool = False

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """A view of an image (H, W, ...) as a player shows it."""
        upright = image.swapaxes(0, 1) if self.transposes else image
        return upright[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1]


def read_orientation(frame: av.VideoFrame) -> Orientation:
    """The orientation that a frame's display matrix asks for. Raises Drop unless it is one of the eight.

    The matrix has the images of the unit vectors, in 16.16 fixed point: (x, y) goes to
    (a x + c y, b x + d y), with y downwards. A scale in it changes nothing, as in ffmpeg.
    """
    # Not frame.side_data, which keeps the frame alive until the garbage collector finds the circle.
    data = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    if not isinstance(data, SideData):
        return Orientation()
    a, b, _, c, d = np.frombuffer(memoryview(data), np.int32, 5).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, c = np.array([a, c]) / np.hypot(a, c)
        b, d = np.array([b, d]) / np.hypot(b, d)
    large, small = (np.abs([a, d]), np.abs([b, c]))
    transposes = bool(small.min() > large.max())
    if transposes:
        large, small = small, large
    if not (np.isfinite([*large, *small]).all() and small.max() < ORIENTATION_TOLERANCE):
        degrees = np.degrees(np.arctan2(b, a))
        raise Drop("odd_rotation", f"is shown turned by {degrees:.1f} degrees, expected a multiple of 90")
    if transposes:
        return Orientation(True, flips_rows=bool(b < 0), flips_columns=bool(c < 0))
    return Orientation(False, flips_rows=bool(d < 0), flips_columns=bool(a < 0))


@dataclass(frozen=True, slots=True)
class PictureForm:
    """The size, the shape of pixels and the orientation of a decoded picture."""

    width: int  # px, as coded
    height: int
    pixel_aspect: Fraction  # width to height of a coded pixel
    orientation: Orientation

    @property
    def square_size(self) -> tuple[int, int]:
        """Width and height in square pixels, not yet turned upright; no side is shorter than as coded."""
        if self.pixel_aspect >= 1:
            return round(self.width * self.pixel_aspect), self.height
        return self.width, round(self.height / self.pixel_aspect)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as a player shows them: upright, in square pixels."""
        width, height = self.square_size
        return (height, width) if self.orientation.transposes else (width, height)

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright picture in coded pixels."""
        return (self.height, self.width) if self.orientation.transposes else (self.width, self.height)

    def describe(self) -> str:
        width, height = self.size
        return f"{width}x{height}"


def read_form(stream: VideoStream, frame: av.VideoFrame) -> PictureForm:
    """The form of a decoded frame of ``stream``."""
    # The container's own aspect is the one that counts, then the codec's, which may change midway.
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if aspect is None or aspect <= 0:
        aspect = Fraction(1)
    return PictureForm(frame.width, frame.height, Fraction(aspect), read_orientation(frame))


@dataclass(slots=True)
class DecodeReport:
    """What went wrong while a stream was decoded."""

    damaged: list[int] = field(default_factory=list)  # indices of frames that the decoder had to repair
    n_lost: int = 0  # packets that could not be decoded
    n_disordered: int = 0  # frames left out, since their time stamps are not after that of the frame before

    @property
    def count(self) -> int:
        return len(self.damaged) + self.n_lost + self.n_disordered

    def describe(self, kind: str) -> str:
        """For example "2 frames damaged (3, 4), 1 packet of video cannot be decoded"."""
        parts = []
        if self.damaged:
            listed = ", ".join(map(str, self.damaged[:MAX_LISTED_FRAMES]))
            more = ", ..." if len(self.damaged) > MAX_LISTED_FRAMES else ""
            parts.append(f"{_count(len(self.damaged), 'frame')} damaged ({listed}{more})")
        if self.n_lost:
            parts.append(f"{_count(self.n_lost, 'packet')} of {kind} cannot be decoded")
        if self.n_disordered:
            parts.append(f"{_count(self.n_disordered, 'frame')} left out, with times that do not increase")
        return ", ".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def decode_frames(
    container: av.container.InputContainer, report: DecodeReport | None = None
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """The frames that a player shows, with their time stamps in seconds, which increase.

    A frame without a time stamp follows the one before, as in ffmpeg; a frame that is not later than the one
    before is never shown. Raises Drop where the first frames have no time stamp, where colours cannot be
    converted, and where the form of the picture changes: a player would scale or turn it, and landmarks
    before and after would not fit together.
    """
    report = DecodeReport() if report is None else report
    stream = find_video_stream(container)
    last: Fraction | None = None
    step = Fraction(0)
    form: PictureForm | None = None
    n_frames = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            report.n_lost += 1  # a damaged packet loses its own frames only
            continue
        for frame in frames:
            assert isinstance(frame, av.VideoFrame), "only the video stream is demuxed"
            stamp, tick = _read_stamp(frame, container), frame.time_base or Fraction(0)
            if stamp is not None:
                at = stamp * tick
            elif last is not None:
                at = last + (step or frame.duration * tick)  # AVI: a tick, even where each lasts many
            else:
                raise Drop("clock", "its first pictures have no time stamps")
            if last is not None:
                if at <= last:
                    report.n_disordered += 1
                    if report.n_disordered > max(MAX_DISORDERED, n_frames // MAX_DISORDERED):
                        raise Drop("clock", f"the times of {report.n_disordered} of its first "
                                   f"{n_frames + report.n_disordered} pictures do not increase")  # fmt: skip
                    continue
                step = at - last
            last = at
            now = read_form(stream, frame)
            if form is not None and now != form:
                raise _make_change(form, now, at)
            form = now
            check_matrix(frame)
            if frame.is_corrupt:
                report.damaged.append(n_frames)
            n_frames += 1
            yield at, frame


def check_matrix(frame: av.VideoFrame) -> None:
    """Raise Drop on a colour matrix that cannot be converted; a reserved one becomes the unspecified one."""
    matrix = frame.colorspace
    if matrix in CONVERTIBLE_MATRICES:
        return
    if frame.format.is_rgb or matrix not in OTHER_MATRICES:  # RGB has no matrix, whatever its file says
        frame.colorspace = RGB_MATRIX if frame.format.is_rgb else UNSPECIFIED_MATRIX
        return
    raise Drop("colours", f"its colour matrix is {matrix} ({OTHER_MATRICES[matrix]}), expected one of "
               f"{', '.join(map(str, sorted(CONVERTIBLE_MATRICES)))}")  # fmt: skip


def _make_change(before: PictureForm, after: PictureForm, at: Fraction) -> Drop:
    if before.size == after.size:
        return Drop("changes_size", "its picture changes its orientation or its pixels' shape at "
                    f"{float(at):.2f} s")  # fmt: skip
    return Drop("changes_size", f"its picture changes from {before.describe()} to {after.describe()} at "
                f"{float(at):.2f} s")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShownVideo:
    """The pictures of a file, as a player shows them."""

    span: StreamSpan  # from the first frame that is shown to the last one's end
    form: PictureForm
    still_start: float  # seconds from the first frame, where the same picture stands longest
    still_seconds: float
    report: DecodeReport


def read_shown_video(path: Path) -> ShownVideo:
    """Decode a file's video once. Raises Drop when it cannot be shown."""
    with open_media(path) as container:
        (span,) = read_timeline(container, find_video_stream(container)).spans
    return decode_shown_video(path, span)


def decode_shown_video(path: Path, span: StreamSpan) -> ShownVideo:
    """As ``read_shown_video``, for a file whose packets have been read."""
    report = DecodeReport()
    stamps: list[Fraction] = []
    changed = Fraction(0)
    still_picture = np.zeros(0, np.int16)
    form: PictureForm | None = None
    still = (Fraction(0), Fraction(0))
    with open_media(path) as container:
        stream = find_video_stream(container)
        for at, frame in decode_frames(container, report):
            stamps.append(at)
            brightness = _measure_brightness(frame)
            if form is None:
                changed = at
                form = read_form(stream, frame)
                still_picture = brightness
            elif np.abs(brightness - still_picture).max() > STILL_LEVELS:
                still = max(still, (at - changed, -changed))
                changed, still_picture = at, brightness
        if form is None:
            raise Drop("no_video", "none of its video frames can be decoded")
        end = max(span.end, changed)
        if stores_no_pts(container):  # the decoder's delay: pictures come later than their packets
            steps = [later - earlier for earlier, later in pairwise(stamps)]
            end = stamps[-1] + (median(steps) if steps else span.seconds / span.packets)
    still = max(still, (end - changed, -changed))
    # Packets before the first frame that can be decoded show nothing.
    start = span.start if abs(stamps[0] - span.start) <= TIME_TOLERANCE else stamps[0]
    still_start, still_seconds = float(-still[1] - start), float(still[0])
    return ShownVideo(StreamSpan(start, end, span.packets), form, still_start, still_seconds, report)


def _measure_brightness(frame: av.VideoFrame) -> NDArray[np.int16]:
    """Mean brightness (0 to 255) of STILL_GRID fields of a frame."""
    plane, layout = frame.planes[0], frame.format
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    if not layout.is_planar:  # all colours
        luma = lines[:, : plane.width * layout.padded_bits_per_pixel // 8]
    elif (bits := layout.components[0].bits) > 8:
        samples = lines[:, : plane.width * 2].copy().view(">u2" if layout.is_big_endian else "<u2")
        luma = (samples >> (bits - 8)).astype(np.uint8)
    else:
        luma = lines[:, : plane.width]
    fields = cv2.resize(np.ascontiguousarray(luma), STILL_GRID, interpolation=cv2.INTER_AREA)
    return np.asarray(fields, np.int16)
