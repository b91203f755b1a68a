"""The new speech in the output, against what the ffmpeg command makes of the recording."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from stages.edit.speech import Speech, probe_speech
from stages.edit.writer import CONTAINERS, OutputFormat, VideoWriter, can_copy_audio, select_container
from stages.edit.yuv import Colours, YuvImage
from stages.engine.outcome import Drop
from stages.media.audio import SAMPLE_RATE, decode_blocks, read_channels
from stages.media.container import open_audio
from stages.media.presentation import read_shown_video
from tests.media import ffmpeg
from tests.stages.media.odd_files import Oddities, draw_oddities, make_odd_file, render

# $REDUB_PATIENT=1000 tries so many files.
N_FILES = int(os.environ.get("REDUB_PATIENT") or 0)


def write_beside_grey(path: Path, speech: Speech) -> None:
    """The speech as the sound of a grey video that lasts as long."""
    output_format = OutputFormat(
        width=64,
        height=48,
        time_base=Fraction(1, 1000),
        fps=Fraction(25),
        pixel_aspect=None,
        colours=Colours(6, 1, 6, 6),
        seconds=speech.seconds,
        crf=30,
        preset="ultrafast",
    )
    image = YuvImage(*(np.full(shape, 128, np.uint8) for shape in ((48, 64), (24, 32), (24, 32))))
    with VideoWriter(path, select_container(path), output_format, [speech]) as writer:
        for at in range(0, round(speech.seconds * 1000), 40):
            writer.write(image, at, 40)


def read_from_first_sample(path: Path) -> np.ndarray:
    with open_audio(path) as container:
        first = next(decode_blocks(container))
    return read_mono(path, float(first.start))


def read_mono(path: Path, start: float) -> np.ndarray:
    return read_channels(path, start, SAMPLE_RATE * 5).mean(axis=0)


def check_against_ffmpeg(folder: Path, odd: Oddities, suffix: str) -> str:
    """Write the file's sound into an output, and compare it with its rendering. Returns the verdict."""
    path = make_odd_file(folder, odd)
    if path is None:
        return "cannot be made"
    try:
        speech = Speech.from_facts(path, probe_speech(path).facts)
    except Drop as drop:
        return drop.code
    out, rendering = folder / f"out{suffix}", folder / "rendering.nut"
    write_beside_grey(out, speech)
    assert render(path, rendering), "accepted, but the ffmpeg command plays nothing"
    expected = read_from_first_sample(rendering)
    # Matroska declares no lead, so that picture and sound start a few hundredths of a second late.
    start = float(read_shown_video(out).span.start)
    sound = read_mono(out, start)
    with open_audio(out) as container:
        assert next(decode_blocks(container)).start >= start - 0.06, "plays what was cut off"
    end = round(float(speech.seconds) * SAMPLE_RATE) - SAMPLE_RATE // 20
    if end <= 0:
        return "too short to compare"
    loudness = [np.sqrt(np.square(s[:end]).mean()) for s in (sound, expected)]
    assert loudness[0] == pytest.approx(loudness[1], rel=0.1)
    # Millisecond clocks and encoders move the sound by less than a fiftieth of a frame.
    spectrum = np.fft.rfft(sound[:end], 2 * end) * np.conj(np.fft.rfft(expected[:end], 2 * end))
    lag = (int(np.argmax(np.fft.irfft(spectrum))) + end) % (2 * end) - end
    assert abs(lag) <= 0.002 * SAMPLE_RATE, f"starts {lag / SAMPLE_RATE * 1000:.1f} ms late"
    early, late = max(0, -lag), max(0, lag)
    assert np.corrcoef(sound[late : end - early], expected[early : end - late])[0, 1] > 0.95
    return "copied" if can_copy_audio(select_container(out), [speech]) else "encoded"


@settings(
    max_examples=N_FILES or 20,
    deadline=None,
    derandomize=not N_FILES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(odd=draw_oddities(), suffix=st.sampled_from(sorted(CONTAINERS)))
def test_speech_from_an_odd_file_sounds_as_a_player_plays_it(
    tmp_path_factory: pytest.TempPathFactory, odd: Oddities, suffix: str
) -> None:
    verdict = check_against_ffmpeg(tmp_path_factory.mktemp("speech"), odd, suffix)
    event(verdict)
    assume(verdict != "cannot be made")


def test_a_recording_is_silent_only_if_all_of_it_is(tmp_path: Path) -> None:
    silent, late = tmp_path / "silent.wav", tmp_path / "late.wav"
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000", "-t", 2, silent)
    ffmpeg("-f", "lavfi", "-i", "aevalsrc=0.1*sin(t*2000)*gte(t\\,5):duration=6", late)
    assert probe_speech(late).facts["seconds"] == "6"
    with pytest.raises(Drop, match="its sound is silent: peak 0") as caught:
        probe_speech(silent)
    assert caught.value.code == "silent"


def test_channels_that_ffmpeg_cannot_mix_are_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "nine.wav"
    ffmpeg("-f", "lavfi", "-i", f"aevalsrc={'|'.join(['sin(t*2000)'] * 9)}:duration=0.5", path)
    with pytest.raises(Drop, match="its 9 channels cannot be mixed to stereo") as caught:
        probe_speech(path)
    assert caught.value.code == "odd_channels"
