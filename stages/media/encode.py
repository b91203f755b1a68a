"""Write frames and audio to an mp4 that plays everywhere. Memory does not grow with its length.

Runs the ffmpeg that comes with imageio-ffmpeg; ffmpeg-python builds its command line.
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
from shards.schema import Frame
from stages.engine.outcome import StageError
from stages.media import mark

MUXER = "mp4"
CRF = 18  # of x264: lower is better and larger; 18 looks like the original
STALL_SECONDS = 120.0  # for ffmpeg to accept one frame, or to finish the file
# AAC starts 1024 samples early and the file tells players to skip them. In a player that does not, the audio
# is 21 ms late at 48 kHz, but 64 ms at 16 kHz.
AAC_RATE = 48_000
MAX_LOG_BYTES = 4096


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """Audio whose first sample plays at 0 s, with the first frame."""

    blocks: Iterable[NDArray[np.float32]]  # (n, channels) each, in [-1, 1], consecutive
    rate: int  # Hz
    channels: int


def write_mp4(
    path: Path,
    frames: Iterable[Frame],
    *,
    fps: Fraction,
    audio: AudioTrack | None = None,
    redrawn: bool = True,
) -> int:
    """Encode RGB frames (H, W, 3) and audio as H.264 and AAC; returns the number of frames written.

    Frame k is shown at k / fps seconds. Frames are consumed one by one as ffmpeg accepts them, and ``path``
    appears when it is complete. It is marked as one whose mouths a network has drawn (``stages.media.mark``),
    except where the caller says that none was: ``redrawn=False``. Raises StageError, with ffmpeg's last line
    of output if it failed.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise StageError(f"{path}: there is no frame to write")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise StageError(f"{path}: frames are {width}x{height}, H.264 in yuv420p needs even sides")
    with write_atomically(path) as partial, tempfile.TemporaryDirectory(prefix="redub.") as scratch:
        audio_path = None
        if audio is not None:
            # Raw, not wav: ffmpeg has one stdin, and a wav file holds at most 4 GB.
            audio_path = Path(scratch, "audio.f32le")
            with audio_path.open("wb") as file:
                for block in audio.blocks:
                    assert block.ndim == 2 and block.shape[1] == audio.channels, "as AudioTrack says"
                    file.write(block.astype("<f4").tobytes())
        tags = mark.make_tags(MUXER) if redrawn else {}
        arguments = _build_command(partial, (width, height), fps, audio, audio_path, tags)
        log = Path(scratch, "log")
        n_frames = _run_ffmpeg(arguments, chain([first], iterator), first.shape, path, log)
        if redrawn:
            mark.append_mark(partial, MUXER)
        return n_frames


def _build_command(
    partial: Path,
    size: tuple[int, int],
    fps: Fraction,
    audio: AudioTrack | None,
    audio_path: Path | None,
    tags: dict[str, str],
) -> list[str]:
    """ffmpeg's command line: raw frames on stdin, and the audio from ``audio_path``."""
    # Without the matrix and the tags players guess, and reds differ between small and large videos.
    video = (
        ffmpeg.input("pipe:0", format="rawvideo", pix_fmt="rgb24", video_size=size, framerate=fps)
        .filter("scale", out_color_matrix="bt709", out_range="tv", flags="bicubic+accurate_rnd")
        .filter("format", "yuv420p")
        .filter("setparams", color_primaries="bt709", color_trc="bt709", colorspace="bt709", range="tv")
    )
    streams = [video]
    options = {"vcodec": "libx264", "crf": CRF, "threads": 1, "movflags": "+faststart"}
    options |= {f"metadata:g:{k}": f"{name}={value}" for k, (name, value) in enumerate(tags.items())}
    if audio is not None:
        streams.append(ffmpeg.input(f"file:{audio_path}", format="f32le", ar=audio.rate, ac=audio.channels))
        options |= {"acodec": "aac", "audio_bitrate": "160k", "ar": AAC_RATE}
    # The partial file's suffix does not name the container, so the format is explicit.
    output = ffmpeg.output(*streams, f"file:{partial}", format=MUXER, **options)
    output = output.global_args("-nostdin", "-hide_banner", "-v", "error", "-filter_complex_threads", "1")
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as err:
        raise StageError(f"no ffmpeg: imageio-ffmpeg has none for this machine ({err})") from err
    arguments: list[str] = ffmpeg.compile(output, cmd=program)
    return arguments


def _run_ffmpeg(
    arguments: list[str], frames: Iterable[Frame], shape: tuple[int, ...], path: Path, log: Path
) -> int:
    """Run ffmpeg on the frames, and kill it when it stalls. Returns the number of frames."""
    with log.open("wb") as stderr:
        try:
            process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr
            )
        except OSError as err:
            raise StageError(f"{arguments[0]}: ffmpeg does not start ({err.strerror})") from err
    assert process.stdin is not None, "stdin is a pipe"
    stalled = threading.Event()
    n_frames = 0
    try:
        for frame in frames:
            assert frame.shape == shape, f"frame {n_frames} is {frame.shape}, the first was {shape}"
            with _kill_after_deadline(process, stalled):
                if not _send_frame(process.stdin, frame):
                    break
            n_frames += 1
        with _kill_after_deadline(process, stalled):
            _close_pipe(process.stdin)
            code = process.wait()
    finally:
        # ffmpeg is still alive here only if ``frames`` raised: that error is the one to report.
        if process.poll() is None:
            process.kill()
            _close_pipe(process.stdin)
            process.wait()
    if stalled.is_set():
        raise StageError(f"{path}: ffmpeg stalled for {STALL_SECONDS:g} s at frame {n_frames}")
    if code != 0:
        message = _read_last_line(log) or f"exit {code}"
        raise StageError(f"{path}: ffmpeg failed at frame {n_frames}: {message}")
    return n_frames


def _send_frame(stdin: IO[bytes], frame: Frame) -> bool:
    """Write a frame to ffmpeg's stdin; False when ffmpeg has ended."""
    try:
        stdin.write(np.ascontiguousarray(frame).data)
    except BrokenPipeError:
        return False
    return True


def _close_pipe(stdin: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        stdin.close()


@contextlib.contextmanager
def _kill_after_deadline(process: subprocess.Popen[bytes], stalled: threading.Event) -> Iterator[None]:
    """Kill ``process`` and set ``stalled`` when the block takes longer than STALL_SECONDS."""

    def kill() -> None:
        stalled.set()
        process.kill()

    timer = threading.Timer(STALL_SECONDS, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read_last_line(log: Path) -> str:
    lines = log.read_bytes()[-MAX_LOG_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
