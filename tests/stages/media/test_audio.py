from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import synth
from stages.engine.outcome import Drop
from stages.media import audio
from stages.media.audio import SAMPLE_RATE, AudioBlock, copy_samples, join_blocks, mix_to_mono, read_channels
from stages.media.container import find_audio_stream, find_video_stream, open_audio, open_media
from stages.synth import ClipSpec
from tests.lag import measure_lag_seconds
from tests.media import ffmpeg

SOURCE_RATE = 44_100


@given(n=st.integers(1, 30), at=st.integers(-50, 50), n_samples=st.integers(0, 40))
def test_samples_are_copied_to_their_index_and_nowhere_else(n: int, at: int, n_samples: int) -> None:
    sound = np.arange(1, 2 * n + 1, dtype=np.float32).reshape(2, n)
    target = np.zeros((2, n_samples), np.float32)
    copy_samples(sound, at, target)
    for k in range(n_samples):
        expected = sound[:, k - at] if 0 <= k - at < n else 0
        assert np.array_equal(target[:, k], np.broadcast_to(expected, 2))


def test_mono_is_the_mean_of_the_channels() -> None:
    left = np.sin(np.arange(2000) / 9).astype(np.float32)
    mono, notes = mix_to_mono(np.stack([left, 0.5 * left]))
    assert mono == pytest.approx(0.75 * left, abs=1e-6) and notes == []
    alone, notes = mix_to_mono(left[None])
    assert np.array_equal(alone, left) and notes == []


def test_opposite_channels_are_noted_and_not_silent() -> None:
    left = np.sin(np.arange(2000) / 9).astype(np.float32)
    mono, notes = mix_to_mono(np.stack([left, -0.97 * left]))
    assert np.array_equal(mono, left)
    assert notes == ["antiphase sound: one channel taken, not the mean"]


def test_silence_is_dropped_with_its_peak_and_a_whisper_is_not() -> None:
    with pytest.raises(Drop, match=r"peak 0\.0e\+00 of full scale, expected 3\.1e-05 or more") as caught:
        mix_to_mono(np.zeros((2, 1000), np.float32))
    assert caught.value.code == "silent"
    with pytest.raises(Drop, match=r"peak 2\.0e-05"):
        mix_to_mono(np.full((1, 9), -2e-5, np.float32))
    whisper = np.full((1, 1000), 4e-5, np.float32)
    assert np.array_equal(mix_to_mono(whisper)[0], whisper[0])
    with pytest.raises(Drop, match="silent"):
        mix_to_mono(np.zeros((1, 0), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_dropped(bad: float) -> None:
    sound = np.ones((2, 50), np.float32)
    sound[1, 20] = bad
    with pytest.raises(Drop, match="not finite") as caught:
        mix_to_mono(sound)
    assert caught.value.code == "damaged_audio"


def test_antiphase_clips_are_noted_in_every_container(tmp_path: Path) -> None:
    for container in ("mpg", "flv", "mp4"):
        clip = tmp_path / f"clip.{container}"
        truth = synth.make_clip(clip, ClipSpec(seconds=0.8, size=(128, 128), antiphase=True))
        channels = read_channels(clip, truth.times_s[0], 12_799)
        mono, notes = mix_to_mono(channels)
        assert notes == ["antiphase sound: one channel taken, not the mean"], container
        assert np.std(mono) > 0.5 * np.std(channels)


@pytest.mark.parametrize(
    ("container", "fps", "offset_ms"),
    [
        ("mpg", "25", 80),
        ("flv", "29.97", -120),
        ("flv", "29.97", 0),
        ("mp4", "variable", 200),
        ("mkv", "25", -40),
    ],
)
def test_a_known_offset_is_measured_on_the_25_fps_clock(
    tmp_path: Path, container: str, fps: str, offset_ms: float
) -> None:
    clip = tmp_path / f"clip.{container}"
    truth = synth.make_clip(clip, ClipSpec(fps=fps, av_offset_ms=offset_ms, size=(160, 128)))
    start = truth.times_s[0]
    sound, _ = mix_to_mono(read_channels(clip, start, int(2.4 * SAMPLE_RATE)))
    window = 320
    level = 10 * np.log10(np.square(sound.reshape(-1, window)).mean(axis=1) + 1e-9)
    window_times = (np.arange(len(level)) + 0.5) * window / SAMPLE_RATE
    lag = measure_lag_seconds(truth.openings, truth.times_s - start, level, window_times)
    assert 1000 * lag == pytest.approx(offset_ms, abs=5)


def write_clicks(
    path: Path,
    codec: str,
    clicks_s: list[float],
    *,
    seconds: float = 1.0,
    audio_start: float = 0.0,
    video_start: float = 0.0,
    is_lost: Callable[[float], bool] = lambda at: False,
) -> Path:
    """A grey video, and short bursts at these seconds on the container's clock; some packets are lost."""
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = out.add_stream(codec, rate=SOURCE_RATE, layout="mono")
        audio.codec_context.format = "s16" if codec == "pcm_s16le" else "fltp"
        times = np.arange(int(seconds * SOURCE_RATE)) / SOURCE_RATE + audio_start
        sound = np.zeros(len(times), np.float32)
        for click in clicks_s:
            near = np.abs(times - click) < 0.002
            sound[near] = 0.8 * np.cos(2 * np.pi * 2000 * (times[near] - click))
        for k in range(int(seconds * 25)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (video_start + k / 25)), Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        step = audio.codec_context.frame_size or 1024
        sample_format = audio.codec_context.format.name
        for at in range(0, len(sound), step):
            part = sound[None, at : at + step]
            if sample_format == "s16":
                part = (part * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(part), format=sample_format, layout="mono"
            )
            frame.sample_rate, frame.time_base = SOURCE_RATE, Fraction(1, SOURCE_RATE)
            frame.pts = at + round(audio_start * SOURCE_RATE)
            for packet in audio.encode(frame):
                if not is_lost(float(packet.pts * packet.time_base)):
                    out.mux(packet)
        for packet in audio.encode(None):
            out.mux(packet)
    return path


def find_bursts(sound: np.ndarray) -> list[float]:
    """The centres of the loud parts, in seconds."""
    loud = np.flatnonzero(np.abs(sound) > 0.3)
    parts = np.split(loud, np.flatnonzero(np.diff(loud) > 400) + 1)
    return [float(part.mean()) / SAMPLE_RATE for part in parts if len(part)]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_a_click_is_heard_at_its_time(tmp_path: Path, suffix: str) -> None:
    clip = write_clicks(tmp_path / f"a.{suffix}", "pcm_s16le" if suffix != "mp4" else "aac", [0.25, 0.7])
    sound = read_channels(clip, 0.0, SAMPLE_RATE)[0]
    assert find_bursts(sound) == pytest.approx([0.25, 0.7], abs=0.001)


def test_the_clock_starts_with_the_first_frame(tmp_path: Path) -> None:
    """Audio before the first frame is cut; audio that starts after it begins with silence."""
    early = write_clicks(tmp_path / "early.mkv", "pcm_s16le", [0.1, 0.5], video_start=0.2)
    assert find_bursts(read_channels(early, 0.2, 12_000)[0]) == pytest.approx([0.3], abs=0.001)
    late = write_clicks(tmp_path / "late.mkv", "pcm_s16le", [0.5], audio_start=0.3)
    sound = read_channels(late, 0.0, SAMPLE_RATE)[0]
    assert find_bursts(sound) == pytest.approx([0.5], abs=0.001)
    assert np.abs(sound[: int(0.29 * SAMPLE_RATE)]).max() < 1e-3


def test_lost_packets_become_silence_and_move_nothing_after_them(tmp_path: Path) -> None:
    clip = write_clicks(
        tmp_path / "a.mkv", "pcm_s16le", [0.1, 0.45, 0.9], is_lost=lambda at: 0.3 < at < 0.6
    )  # fmt: skip
    assert find_bursts(read_channels(clip, 0.0, SAMPLE_RATE)[0]) == pytest.approx([0.1, 0.9], abs=0.001)


@pytest.mark.parametrize("n_samples", [3 * 640 - 1, 12_799, 40_000])
def test_the_result_has_the_requested_length_whatever_the_file_has(tmp_path: Path, n_samples: int) -> None:
    clip = write_clicks(tmp_path / "a.mkv", "pcm_s16le", [0.05])
    sound = read_channels(clip, 0.0, n_samples)
    assert sound.shape == (1, n_samples) and sound.dtype == np.float32
    assert not sound[:, SAMPLE_RATE + 10 :].any()


def test_a_file_without_audio_is_dropped(tmp_path: Path) -> None:
    clip = tmp_path / "mute.mkv"
    with av.open(os.fspath(clip), "w") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        out.mux(video.encode(None))
    with pytest.raises(Drop, match="has no sound") as caught:
        read_channels(clip, 0.0, 100)
    assert caught.value.code == "no_audio"


@given(
    buffer=st.integers(1, 40),
    steps=st.lists(st.tuples(st.integers(-40, 60), st.integers(1, 30)), min_size=1, max_size=20),
)
def test_blocks_joined_piece_by_piece_equal_blocks_copied_at_once(
    buffer: int, steps: list[tuple[int, int]]
) -> None:
    """With gaps, and with blocks that go back and overwrite earlier ones by up to the buffer's length."""
    rng, rate, end = np.random.default_rng(0), 10, 0
    blocks = []
    for step, n in steps:
        at = max(end + max(step, -buffer), 0)
        blocks.append(AudioBlock(Fraction(0), rate, at, rng.random((2, n), np.float32)))
        end = max(end, at + n)
    whole = np.zeros((2, end), np.float32)
    for block in blocks:
        copy_samples(block.samples, block.at, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "BUFFER_SECONDS", buffer / rate)
        pieces = list(join_blocks(iter(blocks)))
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)
    assert max(piece.shape[1] for piece in pieces) <= buffer + rate


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000])
def test_resampling_is_bit_identical_to_librosa(tmp_path: Path, rate: int) -> None:
    import librosa

    sound = np.random.default_rng(0).normal(0, 0.1, (2, 12 * rate + 77)).astype(np.float32)
    path = tmp_path / "noise.wav"
    with av.open(os.fspath(path), "w") as out:
        stream = out.add_stream("pcm_f32le", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T).reshape(1, -1), "flt", "stereo")
        frame.sample_rate = rate
        out.mux([*stream.encode(frame), *stream.encode(None)])
    expected = librosa.resample(sound, orig_sr=rate, target_sr=SAMPLE_RATE)
    assert np.array_equal(read_channels(path, 0.0, expected.shape[1]), expected)
    with pytest.raises(Drop, match="cannot be opened as sound"):
        read_channels(Path(__file__), 0.0, 10)


def test_vorbis_in_ogg_has_no_gaps_where_its_blocks_change_length(tmp_path: Path) -> None:
    ogg, wav = tmp_path / "sound.ogg", tmp_path / "sound.wav"
    sound = "sin(2*PI*t*(300+400*t))*(0.3+0.6*mod(t*5\\,1))"
    ffmpeg("-f", "lavfi", "-i", f"aevalsrc={sound}:sample_rate=44100:duration=1.6", "-c:a", "libvorbis", ogg)
    ffmpeg("-i", ogg, "-c:a", "pcm_f32le", wav)  # wav has no time stamps
    sounds = [read_channels(path, 0.0, int(1.5 * SAMPLE_RATE)) for path in (ogg, wav)]
    assert sounds[0] == pytest.approx(sounds[1], abs=1e-3)


def test_the_sound_of_a_broadcast_belongs_to_its_picture(tmp_path: Path) -> None:
    """Two programmes; the other one's sound has a higher rate and more channels, its picture is smaller."""
    path = tmp_path / "broadcast.ts"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=1",
           "-f", "lavfi", "-i", "aevalsrc=sin(t*2000):duration=1",
           "-f", "lavfi", "-i", "color=size=64x64:rate=25:duration=1",
           "-f", "lavfi", "-i", "aevalsrc=sin(t*9000)|sin(t*9000):duration=1",
           "-map", 0, "-map", 1, "-map", 2, "-map", 3, "-c:v", "libx264", "-c:a", "mp2",
           "-b:a:0", "48k", "-b:a:1", "384k", "-program", "st=0:st=1", "-program", "st=2:st=3",
           path)  # fmt: skip
    with open_media(path) as container:
        video, sound = find_video_stream(container), find_audio_stream(container)
        assert (video.width, sound.index) == (320, 1)
    channels = read_channels(path, 0.0, 3 * SAMPLE_RATE)
    assert len(channels) == 1 and measure_frequency(channels[0]) == pytest.approx(2000 / 2 / np.pi, abs=5)


def measure_frequency(sound: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(sound)))) * SAMPLE_RATE / len(sound)


SEEK_CODECS = {  # AAC without the noise that its decoder would make up
    "mp4": ("aac", "-aac_coder", "fast", "-aac_pns", "0", "-ar", "44100"),
    "mkv": ("aac", "-aac_coder", "fast", "-aac_pns", "0", "-ar", "48000"),
    "flv": ("libmp3lame", "-ar", "44100"),
    "mpg": ("mp2", "-ar", "44100"),
    "ts": ("mp2", "-ar", "48000"),
    "webm": ("libvorbis", "-ar", "48000"),
    "wav": ("pcm_s16le", "-ar", "22050"),
}


def read_whole(path: Path, start: float, n_samples: int) -> np.ndarray:
    with open_audio(path) as container:
        return audio._place_blocks(audio.decode_blocks(container), 0, start, n_samples)


def test_sound_far_inside_a_file_is_that_of_a_whole_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 2e-4 of full scale: the noise of one sample too early or too late would differ by more than 0.1."""
    seeks: list[object] = []
    seek_blocks = audio._seek_blocks

    def watch(*args: Any) -> object:
        seeks.append(seek_blocks(*args))
        return seeks[-1]

    monkeypatch.setattr(audio, "_seek_blocks", watch)
    for container, codec in SEEK_CODECS.items():
        path = tmp_path / f"sound.{container}"
        video = [] if container == "wav" else ["-f", "lavfi", "-i", "color=s=32x32:r=25:d=17"]
        noise = "anoisesrc=d=17:r=16000:a=0.3:seed=1,lowpass=3000"
        encode = ["-c:v", {"webm": "vp8", "flv": "flv1"}.get(container, "mpeg1video")] if video else []
        ffmpeg(*video, "-f", "lavfi", "-i", noise, *encode, "-c:a", *codec, path)
        with open_audio(path) as opened:
            first = float(next(audio.decode_blocks(opened)).start)
        for start in (first + 12.0, first + 14.0173, first + 16.5):
            seeks.clear()
            near, whole = (read(path, start, SAMPLE_RATE) for read in (read_channels, read_whole))
            assert np.abs(near - whole).max() < 2e-4, (container, start)
            assert seeks[-1] is not None, (container, start)
            assert np.abs(whole[:, :100]).max() > 0.1


def test_sound_after_a_gap_is_found_from_before_it(tmp_path: Path) -> None:
    path = write_clicks(
        tmp_path / "gap.mkv", "pcm_s16le", [1.0, 27.0], seconds=28.0, is_lost=lambda at: 12.0 < at < 26.0
    )
    near = read_channels(path, 25.5, 2 * SAMPLE_RATE)
    assert np.abs(near - read_whole(path, 25.5, 2 * SAMPLE_RATE)).max() < 1e-5
    assert find_bursts(near[0]) == pytest.approx([1.5], abs=0.002)
