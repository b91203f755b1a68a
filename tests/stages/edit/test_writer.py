from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stages import synth
from stages.edit.reader import VideoFacts, decode_timed_frames, probe_video
from stages.edit.speech import Speech, probe_speech
from stages.edit.writer import CONTAINERS, OutputFormat, VideoWriter, can_copy_audio, select_container
from stages.edit.yuv import Colours, YuvConverter, YuvImage
from stages.engine.outcome import StageError
from stages.media.container import open_media
from stages.synth import ClipSpec
from tests.media import (
    ffmpeg,
    measure_video_seconds,
    read_audio,
    read_audio_packets,
    read_stamps,
    read_yuv_frames,
)
from tests.waiting import GUARD_SECONDS

SECONDS = Fraction(12, 10)
FORMAT = OutputFormat(
    width=64,
    height=48,
    time_base=Fraction(1, 1000),
    fps=Fraction(30),
    pixel_aspect=None,
    colours=Colours(6, 1, 6, 6),
    seconds=SECONDS,
    crf=18,
    preset="ultrafast",
)
VARIABLE_MS = [0, 33, 70, 80, 200, *range(233, 1180, 33)]
CODECS = {
    "wav": "pcm_s16le", "m4a": "aac", "aac": "aac", "mp3": "libmp3lame", "flac": "flac", "ogg": "libvorbis",
    "opus": "libopus",
}  # fmt: skip


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half of synthetic speech."""
    clip = tmp_path_factory.mktemp("voice") / "voice.mp4"
    synth.make_clip(clip, ClipSpec(seconds=1.5, size=(128, 128)))
    return clip


@pytest.fixture(scope="module")
def record(voice: Path) -> Callable[[str], Path]:
    """The same speech as a file of another format."""

    def make(suffix: str) -> Path:
        path = voice.with_suffix(f".{suffix}")
        if not path.exists():
            ffmpeg("-i", voice, "-vn", "-c:a", CODECS[suffix], "-ar", 48_000, path)
        return path

    return make


def probe(path: Path) -> Speech:
    return Speech.from_facts(path, probe_speech(path).facts)


def test_what_a_source_has_besides_its_picture_and_one_sound_is_counted(tmp_path: Path, voice: Path) -> None:
    many, titles, chapters = (tmp_path / name for name in ("many.mkv", "titles.srt", "chapters.txt"))
    titles.write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n")
    chapters.write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=900\ntitle=One\n")
    ffmpeg("-i", voice, "-i", titles, "-i", chapters, "-map", "0:v", "-map", "0:a", "-map", "0:a", "-map",
           "0:a", "-map", "1", "-map_chapters", "2", "-c:v", "copy", many)  # fmt: skip
    for path, lines in (
        (voice, []),
        (many, ["not in the output: the source's 2 further sound tracks, 1 subtitle track, 1 chapter"]),
    ):
        facts = VideoFacts.from_json(probe_video(path, 10**6).facts)
        output_format = OutputFormat.from_source(facts, seconds=SECONDS, crf=18, preset="ultrafast")
        assert output_format.describe_changes(facts) == lines


def grey(level: int, output_format: OutputFormat = FORMAT) -> YuvImage:
    y = np.full((output_format.height, output_format.width), level, np.uint8)
    u = np.full((output_format.height // 2, output_format.width // 2), 128, np.uint8)
    return YuvImage(y, u, u.copy())


def write(
    path: Path, speech: Speech, output_format: OutputFormat = FORMAT, ms: list[int] | None = None
) -> Path:
    ms = ms or VARIABLE_MS
    ends = [*ms[1:], round(output_format.seconds * 1000)]
    with VideoWriter(path, select_container(path), output_format, [speech]) as writer:
        for k, at in enumerate(ms):
            writer.write(grey(20 + 5 * k, output_format), at, ends[k] - at)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_frames_keep_their_times_and_the_last_one_its_duration(
    tmp_path: Path, suffix: str, record: Callable[[str], Path]
) -> None:
    out = write(tmp_path / f"out{suffix}", probe(record("wav")))
    times = read_stamps(out)
    assert times - times[0] == pytest.approx(np.array(VARIABLE_MS) / 1000, abs=1e-6)
    assert [round(float(planes[:48].mean())) for planes in read_yuv_frames(out)] == pytest.approx(
        [20 + 5 * k for k in range(len(VARIABLE_MS))], abs=1
    )
    if suffix != ".mkv":  # which has no duration of the last frame
        assert times[0] == 0 and measure_video_seconds(out) == pytest.approx(float(SECONDS), abs=1e-6)


def make_interlaced(folder: Path, top_first: bool, turned: int) -> Path:
    path, turned_path = folder / "interlaced.mp4", folder / "turned.mp4"
    scan = "tff" if top_first else "bff"
    pictures = f"testsrc2=size=160x128:rate=50:duration=0.6,interlace=scan={scan}:lowpass=off"
    ffmpeg("-f", "lavfi", "-i", pictures, "-c:v", "libx264", "-x264-params", f"{scan}=1", path)
    if not turned:
        return path
    ffmpeg("-display_rotation", turned, "-i", path, "-c", "copy", turned_path)
    return turned_path


def read_flags(path: Path) -> tuple[int, set[bool]]:
    """The order of fields that a file's stream says, and whether its frames are interlaced."""
    with av.open(os.fspath(path)) as container:
        order = container.streams.video[0].codec_context.field_order
        return order, {frame.interlaced_frame for frame in container.decode(video=0)}


@pytest.mark.skipif(
    int(av.__version__.split(".")[0]) < 18, reason="PyAV tells the order of fields from 18 on"
)
@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize(
    ("top_first", "turned", "expected"),
    [(True, 0, (2, {True})), (False, 0, (3, {True})), (True, 180, (3, {True})), (True, 90, (1, {False}))],
)
def test_interlaced_pictures_stay_interlaced_unless_they_are_turned(
    tmp_path: Path, suffix: str, top_first: bool, turned: int, expected: tuple[int, set[bool]]
) -> None:
    source, out = make_interlaced(tmp_path, top_first, turned), tmp_path / f"out{suffix}"
    facts = VideoFacts.from_json(probe_video(source, 10**7).facts)
    output_format = OutputFormat.from_source(facts, seconds=facts.seconds, crf=12, preset="ultrafast")
    convert, pictures = YuvConverter(), []
    with (
        VideoWriter(out, select_container(out), output_format, []) as writer,
        open_media(source) as container,
    ):
        for timed in decode_timed_frames(container, facts):
            pictures.append(convert(timed.frame))
            writer.write(pictures[-1], timed.ticks, 512)
    assert read_flags(out) == expected
    [line] = output_format.describe_changes(facts)
    assert ("stay so" in line) == (True in expected[1]) and line.count("interlaced") == 1
    for picture, written in zip(pictures, read_yuv_frames(out), strict=True):
        assert np.abs(picture.to_array().astype(int) - written).mean() < 3, "both fields are where they were"


def test_a_height_that_no_interlaced_picture_may_have_is_written_and_said() -> None:
    time_base = Fraction(1, 25)
    facts = VideoFacts(
        720, 486, 0, time_base, SECONDS, Fraction(25), None, FORMAT.colours, fields="top first"
    )
    output_format = OutputFormat.from_source(facts, seconds=SECONDS, crf=12, preset="ultrafast")
    assert output_format.fields == "progressive"
    [line] = output_format.describe_changes(facts)
    assert line.endswith("which the output does not say: H.264 needs a height that is a multiple of 4")


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("kind", CODECS)
def test_the_speech_starts_with_the_first_frame_in_every_container(
    tmp_path: Path, suffix: str, kind: str, record: Callable[[str], Path]
) -> None:
    """Copied or encoded: encoders put silence before the first sample, and containers declare it."""
    source = record(kind)
    out = write(tmp_path / f"out{suffix}", probe(source))
    start, rate, sound = read_audio(out)
    _, source_rate, original = read_audio(source)
    assert rate == source_rate == 48_000
    # Matroska declares no silence before the first sample; then everything else starts that much later.
    lead = round((read_stamps(out)[0] - start) * rate)
    n = min(len(sound) - lead, len(original), rate)
    spectrum = np.fft.rfft(sound[lead : lead + n], 2 * n) * np.conj(np.fft.rfft(original[:n], 2 * n))
    lag = (int(np.argmax(np.fft.irfft(spectrum))) + n) % (2 * n) - n
    assert lag == pytest.approx(0, abs=rate // 1000)  # Matroska's times are whole milliseconds
    early, late = max(0, -lag), max(0, lag)
    same = sound[lead + late : lead + n - early], original[early : n - late]
    assert np.corrcoef(*same)[0, 1] > 0.98


@pytest.mark.parametrize(
    ("kind", "suffix", "copied"),
    [("m4a", ".mp4", True), ("mp3", ".mp4", True), ("opus", ".mp4", True), ("wav", ".mp4", False),
     ("ogg", ".mp4", False), ("wav", ".mov", True), ("opus", ".mov", False), ("m4a", ".mkv", True),
     ("ogg", ".mkv", True), ("wav", ".mkv", True), ("flac", ".mkv", True)],
)  # fmt: skip
def test_packets_are_copied_bit_for_bit_where_the_container_can_hold_them(
    tmp_path: Path, kind: str, suffix: str, copied: bool, record: Callable[[str], Path]
) -> None:
    source = record(kind)
    out = tmp_path / f"out{suffix}"
    speech = probe(source)
    assert can_copy_audio(select_container(out), [speech]) == copied
    write(out, speech)
    with av.open(os.fspath(out)) as container:
        codec = container.streams.audio[0].codec_context.codec.canonical_name
    assert codec == (speech.codec if copied else "aac")
    if copied:
        theirs, ours = read_audio_packets(source), read_audio_packets(out)
        if kind == "wav":  # it has no packets of its own: readers split it as they like
            theirs, ours = [b"".join(theirs)], [b"".join(ours)]
            assert theirs[0].startswith(ours[0])
        else:
            assert ours == theirs[: len(ours)]
            # As much of it as the frames last.
            missing = len(theirs) - len(ours)
            assert missing == pytest.approx(len(theirs) * 0.3 / 1.5, abs=2)


def test_audio_ends_with_the_video_and_the_video_continues_after_its_audio(
    tmp_path: Path, record: Callable[[str], Path]
) -> None:
    for kind in ("wav", "m4a"):
        out = write(tmp_path / "out.mp4", probe(record(kind)))
        _, rate, sound = read_audio(out)
        assert len(sound) / rate == pytest.approx(float(SECONDS), abs=0.025)
        longer = replace(FORMAT, seconds=Fraction(2))
        out = write(tmp_path / "out.mp4", probe(record(kind)), longer)
        _, rate, sound = read_audio(out)
        assert len(sound) / rate == pytest.approx(1.5, abs=0.06) and measure_video_seconds(out) == 2.0


def test_colours_pixel_aspect_and_orientation_are_written(
    tmp_path: Path, record: Callable[[str], Path]
) -> None:
    colours = Colours(matrix=1, range=2, primaries=1, transfer=13)
    output_format = replace(FORMAT, colours=colours, pixel_aspect=Fraction(4, 3))
    out = write(tmp_path / "out.mp4", probe(record("wav")), output_format)
    with av.open(os.fspath(out)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        tags = (codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc)
        assert tags == (colours.matrix, colours.range, colours.primaries, colours.transfer)
        assert stream.sample_aspect_ratio == Fraction(4, 3)
        frame = next(container.decode(video=0))
        assert frame.rotation == 0 and frame.format.name in ("yuv420p", "yuvj420p")


def test_an_unknown_suffix_is_an_error_that_lists_the_supported_ones() -> None:
    for name in ("out.webm", "out.avi", "out"):
        with pytest.raises(StageError, match=rf"{name}: supported are \.mp4, \.mov, \.mkv"):
            select_container(Path(name))
    assert select_container(Path("OUT.MP4")) is CONTAINERS[".mp4"]


SCRIPT = """
import sys
from tests.stages.edit.test_writer import *
output_format = replace(FORMAT, width=136, height=104, preset="medium")
world = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8).repeat(8, 0).repeat(8, 1)
for suffix in CONTAINERS:
    out = Path(sys.argv[1], "video" + suffix)
    with VideoWriter(out, select_container(out), output_format, [probe(Path(sys.argv[2]))]) as writer:
        for k in range(60):
            y = np.ascontiguousarray(world[k : k + 104, 2 * k : 2 * k + 136])
            writer.write(YuvImage(y, y[::2, ::2].copy(), y[1::2, 1::2].copy()), 40 * k, 40)
"""


def test_the_same_video_has_the_same_bytes_whatever_is_in_memory(
    tmp_path: Path, record: Callable[[str], Path]
) -> None:
    """Not so with x264's mbtree: it reads uninitialised memory (on machines with AVX-512)."""
    outputs = []
    for fill in ("", "1", "77"):
        folder = tmp_path / f"memory-{fill}"
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", SCRIPT, folder, record("wav")],
            env=os.environ | {"MALLOC_PERTURB_": fill, "PYTHONPATH": os.fspath(Path(__file__).parents[3])},
            check=True,
            timeout=GUARD_SECONDS,
        )
        outputs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(outputs[0]) == len(CONTAINERS)
    assert outputs[0] == outputs[1] == outputs[2]
