"""One clip in its container, and the truth beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from stages.synth.barcode import BARCODE_BITS
from stages.synth.curves import generator, speech_opening
from stages.synth.frames import barcode_corners, draw_frames, frame_ticks, head_poses
from stages.synth.looks import draw_look
from stages.synth.sound import speech_sound
from stages.synth.spec import (
    MPEG1_RATES,
    SAMPLE_RATE,
    SYNTH_VERSION,
    ClipSpec,
    Container,
    FrameTruth,
    Image,
    SynthError,
    Truth,
    Weights,
    frame_rate,
)


@dataclass(frozen=True, slots=True)
class Format:
    """How a container is written, at a quality that leaves the landmarks alone."""

    muxer: str
    muxer_options: dict[str, str]
    video_codec: str
    video_options: dict[str, str]
    audio_codec: str
    clock: Fraction | None  # seconds; None: one frame
    channels: int


MPEG_OPTIONS = {"qmin": "2", "qmax": "3", "b": "6000000", "threads": "1"}
# x264's mbtree gives other bytes from run to run, even on one thread, if width % 16 is not 0.
H264_OPTIONS = {"crf": "14", "preset": "veryfast", "x264-params": "mbtree=0", "threads": "1"}
FORMATS: dict[Container, Format] = {
    # preload: MPEG-PS would begin half a second late, GRID's do not
    "mpg": Format("mpeg", {"preload": "0"}, "mpeg1video", MPEG_OPTIONS, "mp2", None, 2),
    "flv": Format("flv", {}, "flv", MPEG_OPTIONS, "libmp3lame", Fraction(1, 1000), 1),
    "mp4": Format("mp4", {}, "libx264", H264_OPTIONS, "aac", Fraction(1, 90_000), 2),
    "mkv": Format("matroska", {}, "libx264", H264_OPTIONS, "aac", Fraction(1, 1000), 2),
}
AUDIO_BITS_PER_SECOND = 160_000  # per channel


def _container(path: Path) -> Container:
    suffix = path.suffix.removeprefix(".")
    for container in FORMATS:
        if suffix == container:
            return container
    raise SynthError(f"{path}: cannot write {path.suffix!r}, known are {', '.join(FORMATS)}")


def check_rate(container: Container, fps: str) -> None:
    if container == "mpg" and (fps == "variable" or frame_rate(fps) not in MPEG1_RATES):
        known = ", ".join(f"{float(rate):.5g}" for rate in sorted(MPEG1_RATES))
        raise SynthError(f"fps is {fps!r}, and an mpg has one of {known}; use mp4, mkv or flv")


def _encode(
    path: Path,
    how: Format,
    *,
    frames: Iterator[Image],
    ticks: list[int],
    clock: Fraction,
    rate: Fraction,
    size: tuple[int, int],
    sound: Callable[[int], Weights],
    seconds: float,
) -> None:
    """`sound(n)` gives n samples, (channels, n): the last codec frame is filled with more of it."""
    # bitexact: no dates, no encoder names, no random ids; same clip, same bytes
    with av.open(
        str(path), "w", format=how.muxer, options={**how.muxer_options, "fflags": "+bitexact"}
    ) as out:
        video = out.add_stream(
            how.video_codec, rate=rate, options={**how.video_options, "flags": "+bitexact"}
        )
        audio = out.add_stream(how.audio_codec, rate=SAMPLE_RATE, options={"flags": "+bitexact"})
        assert isinstance(video, av.VideoStream), "a video codec was asked for"
        assert isinstance(audio, av.AudioStream), "an audio codec was asked for"
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = clock
        audio.bit_rate = AUDIO_BITS_PER_SECOND * how.channels
        audio.layout = "stereo" if how.channels == 2 else "mono"
        out.start_encoding()
        chunk = audio.codec_context.frame_size
        n_chunks = -(-round(seconds * SAMPLE_RATE) // chunk)
        samples = sound(n_chunks * chunk)
        n_written = 0

        def write_sound(until_s: float) -> None:
            nonlocal n_written
            while n_written < samples.shape[1] and n_written / SAMPLE_RATE <= until_s:
                part = np.ascontiguousarray(samples[:, n_written : n_written + chunk])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=audio.layout.name)
                frame.sample_rate, frame.pts = SAMPLE_RATE, n_written
                frame.time_base = Fraction(1, SAMPLE_RATE)
                out.mux(audio.encode(frame))
                n_written += chunk

        for tick, image in zip(ticks, frames, strict=True):
            write_sound(float(tick * clock))
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = tick, clock
            out.mux(video.encode(picture))
        write_sound(seconds)
        out.mux(audio.encode(None))
        out.mux(video.encode(None))


def _stamps_s(path: Path) -> list[float]:
    """The time stamps that the video's frames came to have in the file, in order."""
    with av.open(str(path)) as clip:
        return sorted(
            float(packet.pts * packet.time_base) for packet in clip.demux(video=0) if packet.pts is not None
        )


def make_clip(path: Path, spec: ClipSpec, *, speaker: str | None = None) -> Truth:
    """Write one clip and the truth beside it. They appear under their names when they are whole."""
    container = _container(path)
    check_rate(container, spec.fps)
    how = FORMATS[container]
    rate = frame_rate(spec.fps)
    clock = how.clock or 1 / rate
    if spec.antiphase:
        how = replace(how, channels=2)

    look = draw_look(speaker=spec.speaker, seed=spec.seed)
    # A stream for each thing: one clip at two frame rates says the same with the same head.
    speech_rng, head_rng, sound_rng, stamps_rng = (
        generator(spec.seed, spec.speaker, 2, spec.clip, part) for part in range(4)
    )
    opening = speech_opening(speech_rng, seconds=spec.seconds)
    ticks = frame_ticks(stamps_rng, seconds=spec.seconds, fps=spec.fps, clock=clock)
    times_s = np.array([float(tick * clock) for tick in ticks])
    openings = opening(times_s)
    poses = head_poses(head_rng, look, times_s, size=spec.size)

    def sound(n_samples: int) -> Weights:
        mono = speech_sound(sound_rng, look, opening, n_samples=n_samples, offset_s=spec.av_offset_ms / 1000)
        right = -mono if spec.antiphase else mono
        return np.stack([mono, right][: how.channels]).astype(np.float32)

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    _encode(
        partial,
        how,
        frames=draw_frames(look, openings, poses, size=spec.size),
        ticks=ticks,
        clock=clock,
        rate=rate,
        size=spec.size,
        sound=sound,
        seconds=spec.seconds,
    )
    stamps = _stamps_s(partial)
    assert len(stamps) == len(ticks), f"{path}: {len(ticks)} frames went in, {len(stamps)} came out"
    # A container may move all streams to make room for the sound's first, empty samples.
    moved = np.array(stamps) - times_s
    assert np.ptp(moved) < 1.5e-3, f"{path}: time stamps moved unevenly, by {np.ptp(moved)} s"

    corners = np.round(barcode_corners(poses, look), 2)
    truth = Truth(
        version=SYNTH_VERSION,
        speaker=speaker or f"speaker-{spec.speaker}",
        container=container,
        fps=spec.fps,
        av_offset_ms=spec.av_offset_ms,
        seed=spec.seed,
        sample_rate=SAMPLE_RATE,
        channels=how.channels,
        sha256=hashlib.sha256(partial.read_bytes()).hexdigest(),
        spec=spec,
        frames=[
            FrameTruth(
                seconds=round(stamps[i], 6),
                opening=round(float(openings[i]), 6),
                counter=i % 2**BARCODE_BITS,
                corners_px=[(float(x), float(y)) for x, y in corners[i]],
            )
            for i in range(len(ticks))
        ],
    )
    truth_partial = Truth.path_for(path).with_suffix(".json.partial")
    truth_partial.write_text(truth.to_json())
    Truth.path_for(path).unlink(missing_ok=True)  # an old truth must not stand beside a new clip
    partial.rename(path)
    truth_partial.rename(Truth.path_for(path))
    return truth
