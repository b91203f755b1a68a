"""Copies for a browser: the source's frames, time stamps and audio, in H.264 and AAC."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from stages import synth
from stages.edit.browser_copy import copy_audio, copy_video
from stages.engine.outcome import Drop
from stages.synth import ClipSpec
from tests.media import ffmpeg, read_audio, read_rgb_frames, read_stamps

PIXELS = 10**6


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser-copy") / "clip.mpg"
    synth.make_clip(path, ClipSpec(seconds=0.8, size=(240, 192)))
    return path


def list_codecs(path: Path) -> list[str]:
    with av.open(str(path)) as container:
        return [stream.codec_context.name for stream in container.streams]


def test_a_copy_has_the_frames_and_the_audio_at_their_times(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.mp4"
    facts = copy_video(clip, out, PIXELS, 1.0).facts
    assert facts["width"] == 240 and facts["seconds"] == "4/5"
    assert list_codecs(clip) == ["mpeg1video", "mp2"] and list_codecs(out) == ["h264", "aac"]
    difference = np.stack(read_rgb_frames(out)).astype(float) - np.stack(read_rgb_frames(clip))
    assert len(difference) == 20
    assert 20 * np.log10(255 / np.sqrt((difference**2).mean())) > 35
    np.testing.assert_allclose(read_stamps(out), np.arange(20) / 25, atol=1e-3)
    start, rate, sound = read_audio(out)
    assert abs(start) < 0.03 and len(sound) / rate == pytest.approx(0.8, abs=0.05)


def test_a_single_silent_frame_with_odd_sides_can_be_copied(tmp_path: Path) -> None:
    source, out = tmp_path / "source.mkv", tmp_path / "copy.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=101x51:rate=10", "-frames:v", "1", "-c:v", "ffv1", source)
    copy_video(source, out, PIXELS, 1.0)
    assert list_codecs(out) == ["h264"]
    assert [image.shape for image in read_rgb_frames(out)] == [(52, 102, 3)]


def test_a_copy_of_audio_alone_has_its_tone(tmp_path: Path) -> None:
    source, out = tmp_path / "source.flac", tmp_path / "copy.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=frequency=1000:duration=0.5", source)
    copy_audio(source, out, 1.0)
    assert list_codecs(out) == ["aac"]
    _, rate, sound = read_audio(out)
    tone = np.fft.rfftfreq(len(sound), 1 / rate)[np.abs(np.fft.rfft(sound)).argmax()]
    assert tone == pytest.approx(1000, abs=5)


def test_a_file_that_is_too_long_is_not_copied(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.mp4"
    with pytest.raises(Drop, match=r"lasts 0\.8 s, expected at most 0\.5 s"):
        copy_video(clip, out, PIXELS, 0.5)
    with pytest.raises(Drop, match=r"lasts 0\.8 s, expected at most 0\.5 s"):
        copy_audio(clip, out, 0.5)
    assert not out.exists()
