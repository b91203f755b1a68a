"""Write the edited video: H.264 frames with their own time stamps, and the new speech.

With PyAV, not through a pipe to ffmpeg as in stages.media.encode: a pipe of raw frames has no time stamps,
and here each frame keeps the one that it has in the source.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from stages.edit.reader import BOTTOM_FIRST, PROGRESSIVE, TOP_FIRST, VideoFacts
from stages.edit.speech import Packets, Speech, copy_packets, encode_packets
from stages.edit.yuv import HDR_TRANSFERS, PIXEL_FORMAT, Colours, YuvImage, describe_loss
from stages.engine.outcome import StageError
from stages.media import mark


@dataclass(frozen=True, slots=True)
class Container:
    """A container format, and the audio codecs that can be copied into it."""

    muxer: str
    options: dict[str, str]
    audio_codecs: frozenset[str]
    has_edit_lists: bool  # so that a player skips what comes before the first sample


# +faststart: the index comes first, so that a browser can play the file before all of it has arrived.
MP4 = {"movflags": "+faststart"}
COMMON_AUDIO_CODECS = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
CONTAINERS = {
    ".mp4": Container("mp4", MP4, COMMON_AUDIO_CODECS | {"opus", "flac"}, True),
    ".mov": Container("mov", MP4, COMMON_AUDIO_CODECS | {"pcm_s16le", "pcm_s24le"}, True),
    ".mkv": Container(
        "matroska",
        {},
        COMMON_AUDIO_CODECS | {"opus", "flac", "vorbis", "mp2", "pcm_s16le", "pcm_s24le", "pcm_f32le"},
        False,
    ),
}
# What an encoder puts before the first sample: up to 2112 samples of AAC at 44.1 kHz.
MAX_LEAD_SECONDS = Fraction(6, 100)
# A fixed number, since x264's bytes depend on it.
THREADS = 4
# mbtree=0: with AVX-512, x264's mbtree reads uninitialised memory, and the same frames give different bytes
# from run to run.
X264 = {"x264-params": "mbtree=0", "threads": str(THREADS), "flags": "+bitexact+frame_duration"}
# To encode interlaced pictures: x264's option, and FFmpeg's AVFieldOrder for the container.
FIELD_OPTIONS = {TOP_FIRST: ("tff=1", 2), BOTTOM_FIRST: ("bff=1", 3)}
INTERLACED_ROWS = 4  # of which interlaced 4:2:0 has a multiple
BITEXACT = {"fflags": "+bitexact"}  # no dates, no encoder names, no random ids


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The format of the output's video stream."""

    width: int  # px, even
    height: int
    time_base: Fraction  # seconds per tick of the frames' time stamps
    fps: Fraction  # on average
    pixel_aspect: Fraction | None
    colours: Colours
    seconds: Fraction
    crf: int  # of x264: lower is better and larger
    preset: str  # of x264, ultrafast to veryslow
    fields: str = PROGRESSIVE  # or TOP_FIRST, BOTTOM_FIRST: interlaced

    @classmethod
    def from_source(cls, source: VideoFacts, *, seconds: Fraction, crf: int, preset: str) -> OutputFormat:
        """The format for frames of a source video."""
        height = source.height + source.height % 2
        can_interlace = source.fields in FIELD_OPTIONS and height % INTERLACED_ROWS == 0
        return cls(
            width=source.width + source.width % 2,
            height=height,
            time_base=source.time_base,
            fps=source.fps,
            pixel_aspect=source.pixel_aspect,
            colours=source.colours,
            seconds=seconds,
            crf=crf,
            preset=preset,
            fields=source.fields if can_interlace else PROGRESSIVE,
        )

    def describe_changes(self, source: VideoFacts) -> list[str]:
        """What the format changes besides the mouth, and what is odd in what it keeps: a sentence each."""
        lines = []
        if loss := describe_loss(source.pixel_format):
            lines.append(loss)
        if (transfer := HDR_TRANSFERS.get(self.colours.transfer)) is not None:
            lines.append(
                f"the source's colours are HDR ({transfer}): the network gets them as they are coded"
            )
        if self.fields != PROGRESSIVE:
            lines.append(
                f"the pictures are interlaced, {self.fields}, and stay so; the network sees both fields"
            )
        elif source.fields != PROGRESSIVE:
            reason = "the order of their fields is unknown"
            if source.fields in FIELD_OPTIONS:
                reason = f"H.264 needs a height that is a multiple of {INTERLACED_ROWS}"
            lines.append(f"the source's pictures are interlaced, which the output does not say: {reason}")
        if left_out := _list_left_out(source):
            lines.append(f"not in the output: the source's {left_out}")
        return lines


def _list_left_out(source: VideoFacts) -> str:
    """What a video has besides its picture and the sound that is replaced, with commas; "" if nothing."""
    counts = {
        "further sound track": source.n_sounds - 1,
        "subtitle track": source.n_subtitles,
        "chapter": source.n_chapters,
    }
    return ", ".join(f"{n} {noun}" + "s" * (n > 1) for noun, n in counts.items() if n > 0)


def select_container(path: Path) -> Container:
    """The container for a file's suffix. Raises StageError when the suffix is not supported."""
    try:
        return CONTAINERS[path.suffix.lower()]
    except KeyError:
        # WebM would need VP9, which takes ten times as long to encode as the rest of an edit.
        raise StageError(f"{path}: supported are {', '.join(CONTAINERS)}") from None


def can_copy_audio(container: Container, speeches: Sequence[Speech]) -> bool:
    """Whether there is one speech, which can be copied unchanged and then plays as its own file does.

    Otherwise it is encoded as AAC. A recording that was cut without encoding keeps what was cut off, and
    Matroska has no edit list to hide it.
    """
    if len(speeches) != 1:
        return False
    [speech] = speeches
    hides_lead = container.has_edit_lists or speech.lead_seconds <= MAX_LEAD_SECONDS
    return speech.codec in container.audio_codecs and speech.is_continuous and hides_lead


class VideoWriter:
    """Writes a video file. Use it in ``with``.

    ``path`` may be a partial file, so its suffix does not select the container. The sound is the sum of
    ``speeches``; without any the file has no audio stream. The file is marked as one whose mouths a network
    has drawn (``stages.media.mark``), except where the caller says that none was: ``redrawn=False``.
    """

    def __init__(
        self,
        path: Path,
        container: Container,
        output_format: OutputFormat,
        speeches: Sequence[Speech],
        *,
        redrawn: bool = True,
    ) -> None:
        self._path, self._container, self._format, self._speeches = path, container, output_format, speeches
        self._redrawn = redrawn

    def __enter__(self) -> VideoWriter:
        output = self._format
        self._out = av.open(
            f"file:{self._path}",
            "w",
            format=self._container.muxer,
            options=self._container.options,
            container_options=BITEXACT,
        )
        if self._redrawn:
            self._out.metadata.update(mark.make_tags(self._container.muxer))
        options = {**X264, "crf": str(output.crf), "preset": output.preset}
        field_option, field_order = FIELD_OPTIONS.get(output.fields, ("", 0))
        if field_option:
            options["x264-params"] += f":{field_option}"
        self._video = self._out.add_stream("libx264", rate=output.fps, options=options)
        codec = self._video.codec_context
        if field_option:
            codec.field_order = field_order
        self._video.width, self._video.height, self._video.pix_fmt = output.width, output.height, PIXEL_FORMAT
        codec.time_base = output.time_base
        if output.pixel_aspect is not None:
            codec.sample_aspect_ratio = output.pixel_aspect
        codec.colorspace, codec.color_range = output.colours.matrix, output.colours.range
        codec.color_primaries, codec.color_trc = output.colours.primaries, output.colours.transfer
        self._audio = self._add_audio()
        self._next_audio = next(self._audio, None)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._mux(self._video.encode(None))
                self._mux_audio(self._format.seconds)
        finally:
            self._audio.close()
            try:
                self._out.close()
            except av.FFmpegError as err:
                if kind is None:  # otherwise the first error is the one to report
                    raise _make_error(err, self._path) from err
        if kind is None and self._redrawn:
            mark.append_mark(self._path, self._container.muxer)

    def _add_audio(self) -> Packets:
        """Add the audio stream; returns its packets."""
        if not self._speeches:
            return _no_packets()
        if can_copy_audio(self._container, self._speeches):
            return copy_packets(self._speeches[0], self._out, self._format.seconds)
        return encode_packets(self._speeches, self._out, self._format.seconds)

    def write(self, image: YuvImage, at: int, ticks: int) -> None:
        """Show an image from tick ``at`` on, for ``ticks``."""
        frame = av.VideoFrame.from_ndarray(image.to_array(), format=PIXEL_FORMAT)
        frame.pts, frame.duration, frame.time_base = at, ticks, self._format.time_base
        self._mux_audio(at * self._format.time_base)
        self._mux(self._video.encode(frame))

    def _mux_audio(self, until: Fraction) -> None:
        """Write the audio up to a time, so that neither stream is far ahead of the other in the file."""
        while self._next_audio is not None and self._next_audio[0] <= until:
            self._mux([self._next_audio[1]])
            self._next_audio = next(self._audio, None)

    def _mux(self, packets: Sequence[av.Packet[Any]]) -> None:
        try:
            self._out.mux(packets)
        except av.FFmpegError as err:
            raise _make_error(err, self._path) from err


def _no_packets() -> Packets:
    yield from ()


def _make_error(err: av.FFmpegError, path: Path) -> Exception:
    """What to raise instead: an OSError that names the path when the system refuses to write."""
    if isinstance(err, OSError):
        return OSError(err.errno, err.strerror, os.fspath(path))
    return StageError(f"the output cannot be written ({err.strerror})")
