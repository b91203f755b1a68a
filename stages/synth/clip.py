"""Writes one clip and the file with its ground truth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from shards.atomic import write_atomically
from stages.synth.appearance import sample_appearance
from stages.synth.barcode import BARCODE_BITS
from stages.synth.curves import make_opening_curve, make_rng
from stages.synth.frames import compute_barcode_corners, draw_frames, make_frame_ticks, make_head_poses
from stages.synth.spec import (
    MPEG1_RATES,
    SAMPLE_RATE,
    SYNTH_VERSION,
    ClipSpec,
    Container,
    Floats32,
    FrameTruth,
    Image,
    SynthError,
    Truth,
    parse_frame_rate,
)
from stages.synth.voice import synthesize_speech


@dataclass(frozen=True, slots=True)
class ContainerFormat:
    """Encoder settings of a container, at a quality that does not affect the landmarks."""

    muxer: str
    muxer_options: dict[str, str]
    video_codec: str
    video_options: dict[str, str]
    audio_codec: str
    clock: Fraction | None  # seconds per tick; None: one frame
    channels: int


MPEG_OPTIONS = {"qmin": "2", "qmax": "3", "b": "6000000", "threads": "1"}
# With mbtree, x264's output differs between runs, even on one thread, unless width % 16 is 0.
H264_OPTIONS = {"crf": "14", "preset": "veryfast", "x264-params": "mbtree=0", "threads": "1"}
FORMATS: dict[Container, ContainerFormat] = {
    # Without preload=0, MPEG-PS starts half a second late; GRID's files do not.
    "mpg": ContainerFormat("mpeg", {"preload": "0"}, "mpeg1video", MPEG_OPTIONS, "mp2", None, 2),
    "flv": ContainerFormat("flv", {}, "flv", MPEG_OPTIONS, "libmp3lame", Fraction(1, 1000), 1),
    "mp4": ContainerFormat("mp4", {}, "libx264", H264_OPTIONS, "aac", Fraction(1, 90_000), 2),
    "mkv": ContainerFormat("matroska", {}, "libx264", H264_OPTIONS, "aac", Fraction(1, 1000), 2),
}
AUDIO_BITS_PER_SECOND = 160_000  # per channel


def _parse_container(path: Path) -> Container:
    suffix = path.suffix.removeprefix(".")
    for container in FORMATS:
        if suffix == container:
            return container
    raise SynthError(f"{path}: cannot write {path.suffix!r}, supported are {', '.join(FORMATS)}")


def check_rate(container: Container, fps: str) -> None:
    """Raises SynthError if the container does not support the frame rate."""
    if container == "mpg" and (fps == "variable" or parse_frame_rate(fps) not in MPEG1_RATES):
        rates = ", ".join(f"{float(rate):.5g}" for rate in sorted(MPEG1_RATES))
        raise SynthError(f"fps is {fps!r}, and an mpg has one of {rates}; use mp4, mkv or flv")


def _encode(
    path: Path,
    settings: ContainerFormat,
    *,
    frames: Iterator[Image],
    ticks: list[int],
    clock: Fraction,
    rate: Fraction,
    size: tuple[int, int],
    make_audio: Callable[[int], Floats32],
    seconds: float,
) -> None:
    """Encode and mux a clip.

    ``make_audio(n)`` returns n samples, (channels, n); n is a multiple of the codec's frame size.
    """
    # bitexact: no dates, encoder names or random ids, so that the same clip gives the same bytes
    with av.open(
        str(path), "w", format=settings.muxer, options={**settings.muxer_options, "fflags": "+bitexact"}
    ) as out:
        video = out.add_stream(
            settings.video_codec, rate=rate, options={**settings.video_options, "flags": "+bitexact"}
        )
        audio = out.add_stream(settings.audio_codec, rate=SAMPLE_RATE, options={"flags": "+bitexact"})
        assert isinstance(video, av.VideoStream), "the codec is a video codec"
        assert isinstance(audio, av.AudioStream), "the codec is an audio codec"
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = clock
        audio.bit_rate = AUDIO_BITS_PER_SECOND * settings.channels
        audio.layout = "stereo" if settings.channels == 2 else "mono"
        out.start_encoding()
        chunk = audio.codec_context.frame_size
        n_chunks = -(-round(seconds * SAMPLE_RATE) // chunk)
        samples = make_audio(n_chunks * chunk)
        n_written = 0

        def write_audio(until_s: float) -> None:
            nonlocal n_written
            while n_written < samples.shape[1] and n_written / SAMPLE_RATE <= until_s:
                block = np.ascontiguousarray(samples[:, n_written : n_written + chunk])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=audio.layout.name)
                frame.sample_rate, frame.pts = SAMPLE_RATE, n_written
                frame.time_base = Fraction(1, SAMPLE_RATE)
                out.mux(audio.encode(frame))
                n_written += chunk

        for tick, image in zip(ticks, frames, strict=True):
            write_audio(float(tick * clock))
            video_frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            video_frame.pts, video_frame.time_base = tick, clock
            out.mux(video.encode(video_frame))
        write_audio(seconds)
        out.mux(audio.encode(None))
        out.mux(video.encode(None))


def _read_time_stamps(path: Path) -> list[float]:
    """The time stamps of the video frames in the file, sorted."""
    with av.open(str(path)) as clip:
        return sorted(
            float(packet.pts * packet.time_base) for packet in clip.demux(video=0) if packet.pts is not None
        )


def make_clip(path: Path, spec: ClipSpec, *, speaker: str | None = None) -> Truth:
    """Write one clip and its ground truth. Both appear under their names only when complete.

    Raises SynthError if the container is unknown or does not support the frame rate.
    """
    container = _parse_container(path)
    check_rate(container, spec.fps)
    settings = FORMATS[container]
    rate = parse_frame_rate(spec.fps)
    clock = settings.clock or 1 / rate
    if spec.antiphase:
        settings = replace(settings, channels=2)

    appearance = sample_appearance(speaker=spec.speaker, seed=spec.seed)
    # One generator per component, so that a clip at two frame rates has the same speech and head motion.
    speech_rng, head_rng, audio_rng, stamps_rng = (
        make_rng(spec.seed, spec.speaker, 2, spec.clip, component) for component in range(4)
    )
    opening = make_opening_curve(speech_rng, seconds=spec.seconds)
    ticks = make_frame_ticks(stamps_rng, seconds=spec.seconds, fps=spec.fps, clock=clock)
    times_s = np.array([float(tick * clock) for tick in ticks])
    openings = opening(times_s)
    poses = make_head_poses(head_rng, appearance, times_s, size=spec.size)

    def make_audio(n_samples: int) -> Floats32:
        mono = synthesize_speech(
            audio_rng, appearance, opening, n_samples=n_samples, offset_s=spec.av_offset_ms / 1000
        )
        right = -mono if spec.antiphase else mono
        return np.stack([mono, right][: settings.channels]).astype(np.float32)

    with write_atomically(path) as partial:
        _encode(
            partial,
            settings,
            frames=draw_frames(appearance, openings, poses, size=spec.size),
            ticks=ticks,
            clock=clock,
            rate=rate,
            size=spec.size,
            make_audio=make_audio,
            seconds=spec.seconds,
        )
        stamps = _read_time_stamps(partial)
        assert len(stamps) == len(ticks), f"{path}: {len(ticks)} frames encoded, {len(stamps)} in the file"
        # A container may shift all streams to make room for the audio encoder's priming samples.
        shifts = np.array(stamps) - times_s
        assert np.ptp(shifts) < 1.5e-3, f"{path}: time stamps shifted unevenly, by {np.ptp(shifts)} s"

        corners = np.round(compute_barcode_corners(poses, appearance), 2)
        truth = Truth(
            version=SYNTH_VERSION,
            speaker=speaker or f"speaker-{spec.speaker}",
            container=container,
            fps=spec.fps,
            av_offset_ms=spec.av_offset_ms,
            seed=spec.seed,
            sample_rate=SAMPLE_RATE,
            channels=settings.channels,
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
        # a new clip must never have the ground truth of an old one
        Truth.path_for(path).unlink(missing_ok=True)
    with write_atomically(Truth.path_for(path)) as partial:
        partial.write_text(truth.to_json())
    return truth
