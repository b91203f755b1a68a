"""Video out: frames and sound to an mp4 that plays everywhere. Memory does not grow with its length.

The ffmpeg that imageio-ffmpeg carries does the work; ffmpeg-python words its command line.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO

import ffmpeg  # type: ignore[import-untyped]
import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from shards.atomic import write_atomically
from stages.engine.outcome import StageError

Frame = NDArray[np.uint8]

CRF = 18  # x264's quality: lower is better and larger, 18 looks like the original
STALL_SECONDS = 120.0  # for ffmpeg to take one frame, or to finish the file
# AAC starts 1024 samples early and the file tells players to skip them. In one that does not, the sound
# comes 21 ms late at 48 kHz, but 64 ms at 16 kHz.
SOUND_RATE = 48_000
MAX_LOG_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Sound:
    """Sound whose first sample is heard at 0 s, when the first frame appears."""

    blocks: Iterable[NDArray[np.float32]]  # (n, channels) each, in [-1, 1], one after the other
    rate: int  # Hz
    channels: int


def write_mp4(path: Path, frames: Iterable[Frame], *, fps: Fraction, sound: Sound | None = None) -> int:
    """Encode RGB frames (H, W, 3) and sound as H.264 and AAC; returns how many frames were written.

    Frame k is shown from k / fps seconds on. Frames are taken one by one as ffmpeg asks for them, and
    ``path`` appears when it is whole. Raises StageError, with ffmpeg's last words where it failed.
    """
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise StageError(f"{path}: there is no frame to write")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise StageError(f"{path}: frames are {width}x{height}, H.264 in yuv420p needs even sides")
    with write_atomically(path) as partial, tempfile.TemporaryDirectory(prefix="redub.") as scratch:
        track = None
        if sound is not None:
            # Raw, not wav: ffmpeg has one stdin, and a wav holds no more than 4 GB.
            track = Path(scratch, "sound.f32le")
            with track.open("wb") as file:
                for block in sound.blocks:
                    assert block.ndim == 2 and block.shape[1] == sound.channels, "as Sound says"
                    file.write(block.astype("<f4").tobytes())
        arguments = _command(partial, (width, height), fps, sound, track)
        return _run(arguments, chain([first], pictures), first.shape, path, Path(scratch, "log"))


def _command(
    partial: Path, size: tuple[int, int], fps: Fraction, sound: Sound | None, track: Path | None
) -> list[str]:
    """ffmpeg's command line: raw frames on stdin, and the sound from ``track``."""
    # Without the matrix and the tags players guess, and reds shift between small and large videos.
    video = (
        ffmpeg.input("pipe:0", format="rawvideo", pix_fmt="rgb24", video_size=size, framerate=fps)
        .filter("scale", out_color_matrix="bt709", out_range="tv", flags="bicubic+accurate_rnd")
        .filter("format", "yuv420p")
        .filter("setparams", color_primaries="bt709", color_trc="bt709", colorspace="bt709", range="tv")
    )
    streams = [video]
    options = {"vcodec": "libx264", "crf": CRF, "threads": 1, "movflags": "+faststart"}
    if sound is not None:
        streams.append(ffmpeg.input(f"file:{track}", format="f32le", ar=sound.rate, ac=sound.channels))
        options |= {"acodec": "aac", "audio_bitrate": "160k", "ar": SOUND_RATE}
    # The partial file's suffix says nothing, so the container is named.
    output = ffmpeg.output(*streams, f"file:{partial}", format="mp4", **options)
    output = output.global_args("-nostdin", "-hide_banner", "-v", "error", "-filter_complex_threads", "1")
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as err:
        raise StageError(f"no ffmpeg: imageio-ffmpeg carries none for this machine ({err})") from err
    arguments: list[str] = ffmpeg.compile(output, cmd=program)
    return arguments


def _run(arguments: list[str], frames: Iterable[Frame], shape: tuple[int, ...], path: Path, log: Path) -> int:
    """Run ffmpeg on the frames, and kill it when it stands still."""
    with log.open("wb") as stderr:
        try:
            process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr
            )
        except OSError as err:
            raise StageError(f"{arguments[0]}: ffmpeg does not start ({err.strerror})") from err
    assert process.stdin is not None, "it was asked for"
    stalled = threading.Event()
    n_frames = 0
    try:
        for frame in frames:
            assert frame.shape == shape, f"frame {n_frames} is {frame.shape}, the first was {shape}"
            with _deadline(process, stalled):
                if not _take(process.stdin, frame):
                    break
            n_frames += 1
        with _deadline(process, stalled):
            _close(process.stdin)
            code = process.wait()
    finally:
        # Reached with ffmpeg alive only when the frames' maker failed: its error is the one to see.
        if process.poll() is None:
            process.kill()
            _close(process.stdin)
            process.wait()
    if stalled.is_set():
        raise StageError(f"{path}: ffmpeg stood still for {STALL_SECONDS:g} s at frame {n_frames}")
    if code != 0:
        raise StageError(f"{path}: ffmpeg failed at frame {n_frames}: {_last_line(log) or f'exit {code}'}")
    return n_frames


def _take(stdin: IO[bytes], frame: Frame) -> bool:
    """Give ffmpeg a frame; False when it has gone."""
    try:
        stdin.write(np.ascontiguousarray(frame).data)
    except BrokenPipeError:
        return False
    return True


def _close(stdin: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        stdin.close()


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[bytes], stalled: threading.Event) -> Iterator[None]:
    """Kill ``process`` and set ``stalled`` when the block takes longer than STALL_SECONDS."""

    def end() -> None:
        stalled.set()
        process.kill()

    timer = threading.Timer(STALL_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-MAX_LOG_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
