"""The edited video out: pictures with their own time stamps, H.264, and the new speech beside them.

By PyAV and not, as stages.media.encode, by a pipe to ffmpeg: a pipe of raw pictures has no time stamps, and
here each picture keeps the one that it had in the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container

from stages.edit.reader import VideoFacts
from stages.edit.speech import Packets, Speech, copied, encoded, silent
from stages.edit.yuv import FORMAT, Colours, Picture
from stages.engine.outcome import StageError


@dataclass(frozen=True, slots=True)
class Container:
    """A kind of file, and the codecs of sound that it takes as they are."""

    muxer: str
    options: dict[str, str]
    sound: frozenset[str]


# +faststart: the index comes first, so that a browser plays before it has the whole file.
MP4 = {"movflags": "+faststart"}
EVERYWHERE = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
CONTAINERS = {
    ".mp4": Container("mp4", MP4, EVERYWHERE | {"opus", "flac"}),
    ".mov": Container("mov", MP4, EVERYWHERE | {"pcm_s16le", "pcm_s24le"}),
    ".mkv": Container(
        "matroska", {}, EVERYWHERE | {"opus", "flac", "vorbis", "mp2", "pcm_s16le", "pcm_s24le", "pcm_f32le"}
    ),
}
# Always so many, since x264's bytes depend on it.
THREADS = 4
# mbtree=0: with AVX-512 x264's mbtree reads memory that nobody wrote, and the same pictures give other
# bytes from run to run.
X264 = {"x264-params": "mbtree=0", "threads": str(THREADS), "flags": "+bitexact+frame_duration"}
BITEXACT = {"fflags": "+bitexact"}  # no dates, no names of encoders, no random ids


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How a film is to be."""

    width: int  # px, even
    height: int
    time_base: Fraction  # seconds a tick of the pictures' time stamps
    fps: Fraction  # on average
    pixel_aspect: Fraction | None
    colours: Colours
    seconds: Fraction
    crf: int  # x264's quality: lower is better and larger
    preset: str  # x264's, ultrafast to veryslow

    @classmethod
    def like(cls, reel: VideoFacts, *, seconds: Fraction, crf: int, preset: str) -> OutputFormat:
        """A film of the pictures of a reel."""
        return cls(
            width=reel.width + reel.width % 2,
            height=reel.height + reel.height % 2,
            time_base=reel.time_base,
            fps=reel.fps,
            pixel_aspect=reel.pixel_aspect,
            colours=reel.colours,
            seconds=seconds,
            crf=crf,
            preset=preset,
        )


def container_of(path: Path) -> Container:
    """The container that a file's name asks for. Raises StageError on one that is not known."""
    try:
        return CONTAINERS[path.suffix.lower()]
    except KeyError:
        # WebM would need VP9, which takes ten times as long to encode as the rest of an edit.
        raise StageError(f"{path}: known are {', '.join(CONTAINERS)}") from None


def sound_is_copied(path: Path, speech: Speech) -> bool:
    """Whether the speech goes into that file as it is; else it becomes AAC."""
    return speech.codec in container_of(path).sound


class VideoWriter:
    """A file being written, in ``with``. ``path`` says nothing of its kind: it may be a partial file.

    Without ``speech`` it is silent.
    """

    def __init__(self, path: Path, container: Container, facts: OutputFormat, speech: Speech | None) -> None:
        self._path, self._container, self._facts, self._speech = path, container, facts, speech

    def __enter__(self) -> VideoWriter:
        facts = self._facts
        self._out = av.open(
            f"file:{self._path}",
            "w",
            format=self._container.muxer,
            options=self._container.options,
            container_options=BITEXACT,
        )
        self._video = self._out.add_stream(
            "libx264", rate=facts.fps, options={**X264, "crf": str(facts.crf), "preset": facts.preset}
        )
        codec = self._video.codec_context
        self._video.width, self._video.height, self._video.pix_fmt = facts.width, facts.height, FORMAT
        codec.time_base = facts.time_base
        if facts.pixel_aspect is not None:
            codec.sample_aspect_ratio = facts.pixel_aspect
        codec.colorspace, codec.color_range = facts.colours.matrix, facts.colours.range
        codec.color_primaries, codec.color_trc = facts.colours.primaries, facts.colours.transfer
        self._sound = self._sounding()
        self._next_sound = next(self._sound, None)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._mux(self._video.encode(None))
                self._mux_sound(self._facts.seconds)
        finally:
            self._sound.close()
            try:
                self._out.close()
            except av.FFmpegError as err:
                if kind is None:  # else the first error is the one to see
                    raise _unwritable(err) from err

    def _sounding(self) -> Packets:
        """The packets of the sound, whose stream is added at once."""
        if self._speech is None:
            return silent()
        into = copied if self._speech.codec in self._container.sound else encoded
        return into(self._speech, self._out, self._facts.seconds)

    def write(self, picture: Picture, at: int, ticks: int) -> None:
        """Show a picture from tick ``at`` on, for so many ticks."""
        frame = av.VideoFrame.from_ndarray(picture.packed(), format=FORMAT)
        frame.pts, frame.duration, frame.time_base = at, ticks, self._facts.time_base
        self._mux_sound(at * self._facts.time_base)
        self._mux(self._video.encode(frame))

    def _mux_sound(self, until: Fraction) -> None:
        """What is to be heard up to then, so that no stream runs ahead of the other in the file."""
        while self._next_sound is not None and self._next_sound[0] <= until:
            self._mux([self._next_sound[1]])
            self._next_sound = next(self._sound, None)

    def _mux(self, packets: Sequence[av.Packet[Any]]) -> None:
        try:
            self._out.mux(packets)
        except av.FFmpegError as err:
            raise _unwritable(err) from err


def _unwritable(err: av.FFmpegError) -> StageError:
    return StageError(f"the output cannot be written ({err.strerror})")
