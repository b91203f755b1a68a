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
from stages.edit.speech import Speech, listen, speech_of
from stages.edit.writer import CONTAINERS, OutputFormat, VideoWriter, container_of, sound_is_copied
from stages.edit.yuv import Colours, Picture
from stages.engine.outcome import StageError
from stages.synth import ClipSpec
from tests.media import ffmpeg, pictures, sound_of, sound_packets, stamps_s, video_seconds

SECONDS = Fraction(12, 10)
FACTS = OutputFormat(
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
    """A second and a half of made speech."""
    clip = tmp_path_factory.mktemp("voice") / "voice.mp4"
    synth.make_clip(clip, ClipSpec(seconds=1.5, size=(128, 128)))
    return clip


@pytest.fixture(scope="module")
def recorded(voice: Path) -> Callable[[str], Path]:
    """The same speech as a file of another kind."""

    def make(suffix: str) -> Path:
        path = voice.with_suffix(f".{suffix}")
        if not path.exists():
            ffmpeg("-i", voice, "-vn", "-c:a", CODECS[suffix], "-ar", 48_000, path)
        return path

    return make


def heard(path: Path) -> Speech:
    return speech_of(path, listen(str(path)))


def grey(level: int, facts: OutputFormat = FACTS) -> Picture:
    y = np.full((facts.height, facts.width), level, np.uint8)
    u = np.full((facts.height // 2, facts.width // 2), 128, np.uint8)
    return Picture(y, u, u.copy())


def write(path: Path, speech: Speech, facts: OutputFormat = FACTS, ms: list[int] | None = None) -> Path:
    ms = ms or VARIABLE_MS
    with VideoWriter(path, container_of(path), facts, speech) as film:
        for k, at in enumerate(ms):
            film.write(grey(20 + 5 * k, facts), at, [*ms, round(facts.seconds * 1000)][k + 1] - at)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_pictures_keep_their_times_and_the_last_one_its_length(
    tmp_path: Path, suffix: str, recorded: Callable[[str], Path]
) -> None:
    out = write(tmp_path / f"out{suffix}", heard(recorded("wav")))
    times = stamps_s(out)
    assert times - times[0] == pytest.approx(np.array(VARIABLE_MS) / 1000, abs=1e-6)
    assert [round(float(planes[:48].mean())) for planes in pictures(out)] == pytest.approx(
        [20 + 5 * k for k in range(len(VARIABLE_MS))], abs=1
    )
    if suffix != ".mkv":  # which has no length of the last one
        assert times[0] == 0 and video_seconds(out) == pytest.approx(float(SECONDS), abs=1e-6)


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("kind", CODECS)
def test_the_speech_is_heard_from_the_first_picture_on_whatever_holds_it(
    tmp_path: Path, suffix: str, kind: str, recorded: Callable[[str], Path]
) -> None:
    """Copied or encoded: encoders put silence before the first sample, and containers tell of it."""
    source = recorded(kind)
    out = write(tmp_path / f"out{suffix}", heard(source))
    start, rate, sound = sound_of(out)
    _, source_rate, original = sound_of(source)
    assert rate == source_rate == 48_000
    # Matroska tells of no silence before the first sample; then all else begins so much later.
    lead = round((stamps_s(out)[0] - start) * rate)
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
    tmp_path: Path, kind: str, suffix: str, copied: bool, recorded: Callable[[str], Path]
) -> None:
    source = recorded(kind)
    out = tmp_path / f"out{suffix}"
    speech = heard(source)
    assert sound_is_copied(out, speech) == copied
    write(out, speech)
    with av.open(os.fspath(out)) as container:
        codec = container.streams.audio[0].codec_context.codec.canonical_name
    assert codec == (speech.codec if copied else "aac")
    if copied:
        theirs, ours = sound_packets(source), sound_packets(out)
        if kind == "wav":  # no packets in there: readers cut it as they like
            theirs, ours = [b"".join(theirs)], [b"".join(ours)]
            assert theirs[0].startswith(ours[0])
        else:
            assert ours == theirs[: len(ours)]
            # No more of it than the pictures last, and no less.
            missing = len(theirs) - len(ours)
            assert missing == pytest.approx(len(theirs) * 0.3 / 1.5, abs=2)


def test_sound_ends_with_the_film_and_a_film_goes_on_behind_its_sound(
    tmp_path: Path, recorded: Callable[[str], Path]
) -> None:
    for kind in ("wav", "m4a"):
        out = write(tmp_path / "out.mp4", heard(recorded(kind)))
        _, rate, sound = sound_of(out)
        assert len(sound) / rate == pytest.approx(float(SECONDS), abs=0.025)
        longer = replace(FACTS, seconds=Fraction(2))
        out = write(tmp_path / "out.mp4", heard(recorded(kind)), longer)
        _, rate, sound = sound_of(out)
        assert len(sound) / rate == pytest.approx(1.5, abs=0.06) and video_seconds(out) == 2.0


def test_colours_shape_and_uprightness_are_told(tmp_path: Path, recorded: Callable[[str], Path]) -> None:
    colours = Colours(matrix=1, range=2, primaries=1, transfer=13)
    facts = replace(FACTS, colours=colours, pixel_aspect=Fraction(4, 3))
    out = write(tmp_path / "out.mp4", heard(recorded("wav")), facts)
    with av.open(os.fspath(out)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        told = (codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc)
        assert told == (colours.matrix, colours.range, colours.primaries, colours.transfer)
        assert stream.sample_aspect_ratio == Fraction(4, 3)
        frame = next(container.decode(video=0))
        assert frame.rotation == 0 and frame.format.name in ("yuv420p", "yuvj420p")


def test_a_name_that_is_no_container_is_an_error_that_lists_the_known() -> None:
    for name in ("out.webm", "out.avi", "out"):
        with pytest.raises(StageError, match=rf"{name}: known are \.mp4, \.mov, \.mkv"):
            container_of(Path(name))
    assert container_of(Path("OUT.MP4")) is CONTAINERS[".mp4"]


SCRIPT = """
import sys
from tests.stages.edit.test_writer import *
facts = replace(FACTS, width=136, height=104, preset="medium")
world = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8).repeat(8, 0).repeat(8, 1)
for suffix in CONTAINERS:
    out = Path(sys.argv[1], "film" + suffix)
    with VideoWriter(out, container_of(out), facts, heard(Path(sys.argv[2]))) as film:
        for k in range(60):
            y = np.ascontiguousarray(world[k : k + 104, 2 * k : 2 * k + 136])
            film.write(Picture(y, y[::2, ::2].copy(), y[1::2, 1::2].copy()), 40 * k, 40)
"""


def test_the_same_film_has_the_same_bytes_whatever_lies_in_memory(
    tmp_path: Path, recorded: Callable[[str], Path]
) -> None:
    """x264 with mbtree has not: it reads memory that nobody wrote (on machines with AVX-512)."""
    films = []
    for fill in ("", "1", "77"):
        folder = tmp_path / f"memory-{fill}"
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", SCRIPT, folder, recorded("wav")],
            env=os.environ | {"MALLOC_PERTURB_": fill, "PYTHONPATH": os.fspath(Path(__file__).parents[2])},
            check=True,
            timeout=60,
        )
        films.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(films[0]) == len(CONTAINERS)
    assert films[0] == films[1] == films[2]
