"""Files with oddities that hypothesis chooses, and what the ffmpeg command shows of them."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import hypothesis.strategies as st

from tests.media import FFMPEG, ffmpeg
from tests.waiting import GUARD_SECONDS

SECONDS = 1.6
SIZE = (160, 128)
# Of each container the codecs of pictures and sound, the usual ones first.
FORMATS = {
    "mp4": [("libx264", "aac"), ("mpeg4", "libmp3lame"), ("libx265", "ac3"), ("libvpx-vp9", "libopus")],
    "mov": [("libx264", "pcm_s16le"), ("prores_ks", "pcm_s24le"), ("mjpeg", "aac")],
    "mkv": [("libx264", "aac"), ("mpeg2video", "ac3"), ("libvpx-vp9", "libopus"), ("ffv1", "flac")],
    "ts": [("libx264", "mp2"), ("mpeg2video", "aac"), ("libx265", "ac3")],
    "mpg": [("mpeg1video", "mp2"), ("mpeg2video", "mp2"), ("libx264", "mp2")],
    "flv": [("flv1", "libmp3lame"), ("libx264", "aac")],
    "avi": [("mpeg4", "libmp3lame"), ("libx264", "libmp3lame"), ("libx264", "pcm_s16le"), ("mjpeg", "ac3")],
    "webm": [("libvpx", "libvorbis"), ("libvpx-vp9", "libopus")],
    "ogv": [("libtheora", "libvorbis")],
    "wmv": [("wmv2", "wmav2"), ("libx264", "wmav2")],
    "mxf": [("mpeg2video", "pcm_s16le"), ("libx264", "pcm_s16le")],
}
HAS_B_FRAMES = ("libx264", "libx265", "mpeg4", "mpeg1video", "mpeg2video")
PIXELS = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}
TURNS_PICTURES = ("mp4", "mov")


@dataclass(frozen=True, slots=True)
class Oddities:
    """What is odd about a file."""

    container: str
    codecs: tuple[str, str] | None = None  # None: the usual ones
    b_frames: int = 2  # where the codec has such
    fps: str = "25"
    pixel_aspect: Fraction = Fraction(1)
    lost_frames: tuple[int, int] = (0, 0)  # first and last; a hole
    keyframe_interval: int = 12
    audio_delay: float = 0.0  # seconds
    audio_seconds: float = SECONDS
    trim_start: float = 0.0  # cut off without encoding again, as phones do
    trim_end: float = 0.0
    degrees: float = 0.0
    is_mirrored: bool = False
    subtitle_seconds: float = 0.0
    clock_start: float = 0.0
    is_joined: bool = False  # another recording follows, byte after byte
    changes_size: bool = False
    flipped_bits: int = 0
    lost_bytes: float = 0.0  # share of the file that is missing at its end
    seed: int = 0


def draw_oddities() -> st.SearchStrategy[Oddities]:
    """Oddities of any container, in any combination."""
    return st.sampled_from(sorted(FORMATS)).flatmap(draw_oddities_of_container)


def draw_oddities_of_container(container: str) -> st.SearchStrategy[Oddities]:
    """Oddities in any combination, few of them at a time being away from their usual value."""

    def mostly(usual: object, *others: object) -> st.SearchStrategy[object]:
        return st.one_of(st.just(usual), st.just(usual), st.sampled_from(others))

    return st.builds(
        Oddities,
        container=st.just(container),
        codecs=mostly(None, *FORMATS[container]),
        b_frames=mostly(2, 0, 3),
        fps=mostly("25", "30000/1001", "50", "12"),
        pixel_aspect=mostly(Fraction(1), Fraction(2), Fraction(1, 2), Fraction(16, 15), Fraction(12, 11)),
        lost_frames=mostly((0, 0), (0, 6), (5, 9), (10, 24), (30, 39)),
        keyframe_interval=mostly(12, 1, 250),
        audio_delay=mostly(0.0, -0.3, 0.2, 0.47),
        audio_seconds=mostly(SECONDS, 1.3, 2.0),
        trim_start=mostly(0.0, 0.31, 0.8),
        trim_end=mostly(0.0, 0.2, 0.5),
        degrees=mostly(0.0, 90.0, 180.0, 270.0, 5.0, 0.4),
        is_mirrored=mostly(False, True),
        subtitle_seconds=mostly(0.0, 1.0, 9.0),
        # The 33 bit clock of MPEG restarts at 95443.7 s.
        clock_start=mostly(0.0, 0.5, 1000.0, *([95443.0] if container in ("ts", "mpg") else [])),
        is_joined=mostly(False, True),
        changes_size=mostly(False, True),
        flipped_bits=mostly(0, 1, 30),
        lost_bytes=mostly(0.0, 0.1, 0.5),
        seed=st.integers(0, 99),
    )


def make_odd_file(folder: Path, odd: Oddities) -> Path | None:
    """Make the file, or return None where ffmpeg cannot: not every container holds every oddity."""
    try:
        encoded = _encode(folder / f"encoded.{odd.container}", odd, SIZE, pattern="testsrc2", tone=300)
        if odd.changes_size:
            other = _encode(folder / f"small.{odd.container}", odd, (128, 96), pattern="testsrc2", tone=300)
            encoded = _join_packets(folder / f"sizes.{odd.container}", encoded, other)
        path = _copy_with_oddities(folder / f"odd.{odd.container}", encoded, odd)
    except (subprocess.CalledProcessError, av.FFmpegError, OSError, ValueError):
        return None
    data = bytearray(path.read_bytes())
    if odd.is_joined:
        stranger = _encode(folder / f"stranger.{odd.container}", odd, SIZE, pattern="smptehdbars", tone=900)
        data += stranger.read_bytes()
    generator = random.Random(odd.seed)
    for _ in range(odd.flipped_bits):
        data[generator.randrange(len(data) // 8, len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data[: round(len(data) * (1 - odd.lost_bytes))])
    return path


def _encode(path: Path, odd: Oddities, size: tuple[int, int], *, pattern: str, tone: int) -> Path:
    """Pictures whose colours turn by 132 degrees from one to the next, and sound that never repeats."""
    video, audio = odd.codecs or FORMATS[odd.container][0]
    first, last = odd.lost_frames
    select = f"not(between(n\\,{first}\\,{last}))" if last else "1"
    options: list[object] = ["-preset", "ultrafast"] if video in ("libx264", "libx265") else ["-b:v", "2M"]
    options += ["-bf", odd.b_frames] if video in HAS_B_FRAMES else []
    sound = f"sin(2*PI*t*({tone}+400*t))*(0.3+0.6*mod(t*5\\,1))"
    ffmpeg(
        *("-f", "lavfi", "-i", f"{pattern}=size={size[0]}x{size[1]}:rate={odd.fps}:duration={SECONDS}"),
        *("-itsoffset", odd.audio_delay),
        *("-f", "lavfi", "-i", f"aevalsrc={sound}:sample_rate=44100:duration={odd.audio_seconds}"),
        *("-vf", f"hue=H=2.3*n,select={select},setsar={odd.pixel_aspect}", "-fps_mode", "passthrough"),
        *("-pix_fmt", PIXELS.get(video, "yuv420p"), "-c:v", video, *options, "-g", odd.keyframe_interval),
        *("-threads", 1, "-c:a", audio, "-ar", 48000 if odd.container == "mxf" else 44100, path),
    )  # fmt: skip
    return path


def _join_packets(path: Path, first: Path, second: Path) -> Path:
    """One file with the packets of two after each other, whatever their sizes."""
    listing = path.with_suffix(".txt")
    listing.write_text(f"file '{first}'\nfile '{second}'\n")
    ffmpeg("-f", "concat", "-safe", "0", "-i", listing, "-c", "copy", path)
    return path


def _copy_with_oddities(path: Path, source: Path, odd: Oddities) -> Path:
    """Copy packets into another file, with the oddities that a container expresses."""
    before, after = [], ["-c", "copy"]
    if odd.container in TURNS_PICTURES and (odd.degrees or odd.is_mirrored):
        before += ["-display_rotation", odd.degrees, *(["-display_hflip"] if odd.is_mirrored else [])]
    if odd.trim_start:
        before += ["-ss", odd.trim_start]
    inputs: list[object] = [*before, "-i", source]
    if odd.subtitle_seconds and odd.container in ("mp4", "mov", "mkv"):
        subtitle = path.with_suffix(".srt")
        end = f"{odd.subtitle_seconds:06.3f}".replace(".", ",")
        subtitle.write_text(f"1\n00:00:00,000 --> 00:00:{end}\nhello\n")
        inputs += ["-i", subtitle, "-map", 0, "-map", 1]
        after += ["-c:s", "srt" if odd.container == "mkv" else "mov_text"]
    if odd.trim_end:
        after += ["-t", SECONDS - odd.trim_start - odd.trim_end]
    if odd.clock_start:
        after += ["-output_ts_offset", odd.clock_start]
    ffmpeg(*inputs, *after, path)
    return path


def render(path: Path, target: Path) -> bool:
    """What a player shows, as FFV1 and PCM: upright, in square pixels, at its own time stamps.

    False where the ffmpeg command cannot read the file at all.
    """
    square = (
        "scale=w='if(gt(sar,1),round(iw*sar),iw)':h='if(lt(sar,1),round(ih/sar),ih)'"
        ":flags=bicubic+accurate_rnd"
    )
    command = [FFMPEG, "-nostdin", "-loglevel", "error", "-y", "-threads", 1, "-copyts", "-i", path]
    # Times as in the file: with its start subtracted they would be rounded to its clock, 1/25 s in Ogg.
    command += [
        "-sn",
        "-dn",
        "-vf",
        f"{square},setsar=1",
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "demux",
    ]
    command += ["-c:v", "ffv1", "-pix_fmt", "bgr0", "-c:a", "pcm_f32le", "-f", "nut", target]
    result = subprocess.run(list(map(str, command)), check=False, timeout=GUARD_SECONDS, capture_output=True)
    return result.returncode == 0 and target.stat().st_size > 0
