from __future__ import annotations

import os
import subprocess
import warnings
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import librosa
import numpy as np
import pytest
import scipy.signal
from pydantic import ValidationError

from stages import clips, mels
from stages.engine.cache import load_entry
from stages.engine.outcome import Drop
from stages.media.audio import mix_to_mono, read_channels
from stages.media.reference import Reference, compute_reference, restore_levels
from stages.mels import (
    ROWS_AT_ONCE,
    MelsParams,
    compute_mel_power,
    compute_mel_rows,
    compute_mels_of_file,
    count_samples,
    get_reference,
)
from tests.locking import lock_until_told
from tests.waiting import GUARD_SECONDS

PARAMS = MelsParams()
RATE = 16_000


def write_clip(path: Path, n_frames: int, sound: np.ndarray, *, sound_from: float = 0.0) -> Path:
    """A grey video of ``n_frames`` and lossless sound (n,) at 16 kHz, from that second on."""
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for k in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        whole = np.round(sound * 32767).astype(np.int16)
        for at in range(0, len(whole), 800):
            heard = av.AudioFrame.from_ndarray(whole[None, at : at + 800].copy(), format="s16", layout="mono")
            heard.sample_rate, heard.time_base = RATE, Fraction(1, RATE)
            heard.pts = at + round(sound_from * RATE)
            out.mux(audio.encode(heard))
        out.mux(audio.encode(None))
    return path


def find_rows(clip: Path, n_frames: int, entry: Path, start: float = 0.0) -> np.ndarray:
    compute_mels_of_file(clip, start, n_frames, PARAMS, entry)
    kept = load_entry(entry)
    assert kept is not None
    return kept[1]["mels"]


def by_hand(sound: np.ndarray) -> np.ndarray:
    """The paper's mels by scipy alone: float64, Slaney's scale and norm, dB below the loudest."""
    window = np.zeros(2048)
    window[704 : 704 + 640] = scipy.signal.get_window("hann", 640)
    padded = np.pad(sound.astype(np.float64), 1024)
    starts = np.arange(0, len(padded) - 2048 + 1, 320)
    power = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(2048)] * window)) ** 2

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = hertz(np.linspace(0, top, 258))
    bins = np.arange(1025) * RATE / 2048
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    mels = power @ filters.T
    decibel = 10 * np.log10(np.maximum(mels, 1e-10)) - 10 * np.log10(max(mels.max(), 1e-10))
    return np.maximum(decibel, decibel.max() - 80)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=n)).astype(np.float32)


@pytest.mark.parametrize("n_frames", [1, 3, 75, 2048, 2049, 4096, 4100, 6145])
def test_power_is_librosa_s_of_the_whole(n_frames: int) -> None:
    """Though it is found in stretches: an hour's spectrum does not fit in memory. One stretch to the bit."""
    sound = noise(count_samples(n_frames))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a frame's sound is shorter than a window
        whole = librosa.feature.melspectrogram(
            y=sound, sr=RATE, n_fft=2048, win_length=640, hop_length=320, n_mels=256, fmax=8000
        )
    power = compute_mel_power(sound, PARAMS)
    assert np.allclose(power, whole, rtol=1e-5, atol=0)
    assert np.array_equal(power, whole) or n_frames > ROWS_AT_ONCE


@pytest.mark.parametrize("n_frames", [10, 25, 60, 75, 76, 77, 100, 1501])
def test_there_are_two_rows_for_each_frame(n_frames: int) -> None:
    rows = compute_mel_rows(noise(count_samples(n_frames)), PARAMS)
    assert rows.shape == (2 * n_frames, 256)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    assert rows.max() == 0 and rows.min() >= -80


def test_rows_are_those_of_the_paper_computed_by_hand() -> None:
    sound = noise(count_samples(40)) * np.linspace(0, 1, count_samples(40), dtype=np.float32) ** 2
    assert np.abs(compute_mel_rows(sound, PARAMS) - by_hand(sound)).max() < 5e-3


def test_rows_of_real_clips_are_librosa_s_and_ours_by_hand(crema_d: Path, grid: Path, tmp_path: Path) -> None:
    real = [sorted((crema_d / "VideoFlash").glob("*.flv"))[0], sorted((grid / "s2").glob("*.mpg"))[0]]
    for k, clip in enumerate(real):
        facts = clips.probe_file(clip, "folder", clips.ClipsParams()).facts
        rows = find_rows(clip, facts["frames"], tmp_path / f"{k}.npz", facts["video_start"])
        sound, _ = mix_to_mono(read_channels(clip, facts["video_start"], count_samples(facts["frames"])))
        theirs = librosa.power_to_db(
            librosa.feature.melspectrogram(
                y=sound, sr=RATE, n_fft=2048, win_length=640, hop_length=320, n_mels=256, fmax=8000
            ),
            ref=np.max,
        ).T
        assert np.abs(rows - theirs).max() < 1e-4
        assert np.abs(rows - by_hand(sound)).max() < 5e-3
        # A road that shares no code with ours: another FFmpeg, its resampler, its sense of time.
        ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-i", os.fspath(clip)]
        ffmpeg += ["-vn", "-ac", "1", "-ar", str(RATE), "-f", "f32le", "-"]
        done = subprocess.run(ffmpeg, capture_output=True, check=True, timeout=GUARD_SECONDS)
        other = np.frombuffer(done.stdout, np.float32)
        shifts = range(-1200, 1201, 8)
        middle = sound[4000:-4000]
        scores = [np.corrcoef(middle, other[4000 + s : 4000 + s + len(middle)])[0, 1] for s in shifts]
        assert max(scores) > 0.95
        lag_s = shifts[int(np.argmax(scores))] / RATE
        assert lag_s == pytest.approx(facts["video_start"] - facts["audio_start"], abs=0.002)


@pytest.mark.parametrize("row", [0, 1, 7, 30, 49])
def test_row_j_is_centred_on_j_fiftieths_of_a_second(tmp_path: Path, row: int) -> None:
    """A click in the middle of a row's window is loudest in that row, and equally loud on either side."""
    sound = np.zeros(RATE, np.float32)
    sound[max(row * 320 - 2, 0) : row * 320 + 3] = 0.9
    clip = write_clip(tmp_path / "a.mkv", 25, sound)
    loudness = find_rows(clip, 25, tmp_path / "entry.npz").mean(axis=1)
    assert int(np.argmax(loudness)) == row
    if 0 < row < 49:
        assert loudness[row - 1] == pytest.approx(loudness[row + 1], abs=1.0)
    assert (np.delete(loudness, [j for j in (row - 1, row, row + 1) if 0 <= j < 50]) < -70).all()


def test_the_click_moves_with_the_sound_s_own_start(tmp_path: Path) -> None:
    sound = np.zeros(RATE, np.float32)
    sound[20 * 320 - 2 : 20 * 320 + 3] = 0.9
    clip = write_clip(tmp_path / "a.mkv", 25, sound[: RATE - 1600], sound_from=0.1)
    assert int(np.argmax(find_rows(clip, 25, tmp_path / "late.npz").mean(axis=1))) == 25
    later = find_rows(clip, 20, tmp_path / "cut.npz", start=0.2)
    assert int(np.argmax(later.mean(axis=1))) == 15


@pytest.mark.parametrize("sound_seconds", [0.3, 0.98, 1.0, 1.7])
def test_sound_shorter_or_longer_than_the_picture_gives_the_picture_s_rows(
    tmp_path: Path, sound_seconds: float
) -> None:
    sound = noise(int(sound_seconds * RATE))
    clip = write_clip(tmp_path / "a.mkv", 25, sound)
    rows = find_rows(clip, 25, tmp_path / "entry.npz")
    assert rows.shape == (50, 256)
    heard = rows.mean(axis=1) > -40
    last = min(49, int(sound_seconds * 50))
    assert heard[: last - 1].all() and not heard[last + 3 :].any()


def test_silent_sound_is_dropped(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", 25, np.zeros(RATE, np.float32))
    with pytest.raises(Drop, match="silent: peak") as caught:
        find_rows(clip, 25, tmp_path / "entry.npz")
    assert caught.value.code == "silent"
    assert not (tmp_path / "entry.npz").exists()


def test_the_same_sound_gives_the_same_bits(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", 25, noise(RATE))
    first, second = (find_rows(clip, 25, tmp_path / f"{k}.npz") for k in range(2))
    assert first.tobytes() == second.tobytes()
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()


# --- the reference ----------------------------------------------------------------------------------

CLIP = MelsParams(reference="clip")


def speak(seconds: float, seed: int, gain_db: float = 0.0) -> np.ndarray:
    """Something like speech: noise in syllables of a fifth of a second."""
    n = round(seconds * RATE)
    syllables = 0.525 - 0.475 * np.cos(2 * np.pi * 5 * np.arange(n) / RATE)
    return (10 ** (gain_db / 20) * syllables * noise(n, seed)).astype(np.float32)


@pytest.mark.parametrize("n_frames", [1, 10, 70, 75])
def test_the_mels_of_a_clip_within_a_window_are_those_of_the_paper_to_the_bit(n_frames: int) -> None:
    sound = speak(4, 1)[: count_samples(n_frames)]
    assert compute_mel_rows(sound, PARAMS).tobytes() == compute_mel_rows(sound, CLIP).tobytes()


def test_a_clip_keeps_its_mels_in_a_longer_recording_with_louder_ones() -> None:
    levels = [-18, 0, -12, -6, -18, 0]
    parts = [speak(6, seed, gain_db) for seed, gain_db in enumerate(levels)]
    whole = np.concatenate(parts)[:-1]
    drift = {}
    for params in (PARAMS, CLIP):
        long = compute_mel_rows(whole, params)
        changes = []
        for k, part in enumerate(parts):
            alone = compute_mel_rows(part[:-1], params)[100:-100]
            changes.append(np.abs(long[300 * k + 100 : 300 * k + 200] - alone)[alone > -60].mean())
        drift[params.reference] = np.array(changes)
    assert (drift["windowed"] < 1).all()
    assert drift["clip"] == pytest.approx(-np.array(levels), abs=1.5)


def test_no_cell_is_louder_than_the_reference_and_the_floor_is_kept() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        parts = [speak(rng.uniform(0.5, 5), k, rng.uniform(-60, 0)) for k in range(6)]
        sound = np.concatenate(parts)
        rows = compute_mel_rows(sound[: len(sound) // 640 * 640 - 1], PARAMS)
        assert rows.max() <= 0 and rows.min() >= -80 and rows.max() > -1


def test_the_noise_of_a_pause_rises_by_no_more_than_the_largest_boost() -> None:
    pause = noise(10 * RATE, 3) * 10 ** (-50 / 20)
    for sound in (
        np.concatenate([speak(4, 1), pause, speak(4, 2)]),
        np.concatenate([pause, speak(4, 1), pause]),
    ):
        sound = sound[: len(sound) // 640 * 640 - 1].astype(np.float32)
        whole, boosted = compute_mel_rows(sound, CLIP), compute_mel_rows(sound, PARAMS)
        assert (boosted - whole).max() <= PARAMS.max_boost_db + 1e-3
        assert (boosted - whole).max() > 15  # also at the ends, where there is nothing but noise
        assert np.median(whole[300:400]) < -50 and np.median(boosted[300:400]) < -35


def test_the_reference_does_not_jump() -> None:
    loudest = np.concatenate([np.full(400, 0.0), np.full(400, -18.0), np.full(400, -5.0)]).astype(np.float32)
    reference = compute_reference(loudest, Reference(150, 20.0))
    assert np.abs(np.diff(reference)).max() <= 18 / (150 // 4)
    assert (reference >= loudest - 1e-5).all() and len(reference) == 1200
    assert reference[[0, 600, 1199]] == pytest.approx([0, -18, -5])


def test_what_a_reference_that_follows_the_sound_took_from_a_pause_is_restored() -> None:
    """Where the reference falls as far as it may, and between equally loud speech: else it is ambiguous."""
    pause = noise(10 * RATE, 3) * 10 ** (-50 / 20)
    sound = np.concatenate([pause[: 4 * RATE], speak(4, 1), pause, speak(4, 1), pause[: 2 * RATE]])
    sound = sound[: len(sound) // 640 * 640 - 1].astype(np.float32)
    whole, boosted = compute_mel_rows(sound, CLIP), compute_mel_rows(sound, PARAMS)
    reference = get_reference(PARAMS)
    assert reference is not None and get_reference(CLIP) is None
    levels = restore_levels(boosted, reference)
    restored = np.maximum(boosted + levels[:, None], -80)
    audible = whole.max(axis=1) > -79
    assert np.abs(restored.max(axis=1) - whole.max(axis=1))[audible].max() < 0.2
    assert levels.min() < -15 and levels.max() <= 0
    assert not restore_levels(whole[: reference.window_rows], reference).any(), "not longer: one level"


def test_a_window_longer_than_the_transform_is_refused() -> None:
    with pytest.raises(ValidationError, match="win_length 640 is longer than n_fft 512"):
        MelsParams(n_fft=512)


def test_a_wait_for_a_process_that_uses_librosa_for_the_first_time_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mels, "SILENT_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(mels, "compute_mel_rows", lambda *_: None)
    path = tmp_path / "redub" / "librosa.lock"
    path.parent.mkdir()
    lock_until_told(path, monkeypatch)
    mels.warm_up({})
    assert caplog.messages == [f"waiting for another process that prepares librosa; it has locked {path}"]
