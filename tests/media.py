"""Make small media files for tests with ffmpeg, and read files without our code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

from tests.waiting import GUARD_SECONDS

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*args: object) -> None:
    command = [FFMPEG, "-nostdin", "-loglevel", "error", "-y", *map(str, args)]
    subprocess.run(command, check=True, timeout=GUARD_SECONDS)


def read_yuv_frames(path: Path) -> list[np.ndarray]:
    """The planes of every frame as PyAV returns them, not rotated: (H * 3 / 2, W) uint8."""
    with av.open(os.fspath(path)) as container:
        return [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]


def read_rgb_frames(path: Path) -> list[np.ndarray]:
    """Every frame as RGB."""
    with av.open(os.fspath(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def read_stamps(path: Path) -> np.ndarray:
    """When each frame is shown, seconds."""
    with av.open(os.fspath(path)) as container:
        return np.array([frame.time for frame in container.decode(video=0)])


def measure_video_seconds(path: Path) -> float:
    """From the first frame to the end of the last one, by the packets."""
    with av.open(os.fspath(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        first = min(packet.pts for packet in packets)
        last = max(packet.pts + packet.duration for packet in packets)
        return float((last - first) * stream.time_base)


def read_audio(path: Path) -> tuple[float, int, np.ndarray]:
    """When the audio starts in seconds, its rate, and the mean of its channels (n,)."""
    with av.open(os.fspath(path)) as container:
        to_float = av.AudioResampler("fltp", "mono")
        frames = list(container.decode(audio=0))
        start = frames[0].time
        samples = [out.to_ndarray()[0] for frame in [*frames, None] for out in to_float.resample(frame)]
        return float(start), frames[0].sample_rate, np.concatenate(samples)


def read_audio_packets(path: Path) -> list[bytes]:
    with av.open(os.fspath(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
