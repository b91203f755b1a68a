from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.cut.near_duplicates import compute_prints, find_near_duplicates
from stages.cut.sound import (
    SILENT_LEVEL,
    cut_at_pauses,
    find_speech,
    hear_chunk,
    measure_speech_level,
)
from stages.engine.cache import load_entry
from stages.media.audio import SAMPLE_RATE, mix_to_mono, read_channels
from tests.media import ffmpeg


def read_clips(grid: Path, n_clips: int) -> list[np.ndarray]:
    paths = sorted((grid / "s1").glob("*.mpg"))[:n_clips]
    return [mix_to_mono(read_channels(path, 0.0, 3 * SAMPLE_RATE))[0] for path in paths]


def write_sound(path: Path, sound: np.ndarray, *options: object) -> Path:
    raw = path.with_suffix(".raw")
    raw.write_bytes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    ffmpeg("-f", "s16le", "-ar", SAMPLE_RATE, "-ac", 1, "-i", raw, *options, path)
    return path


def test_chunks_of_a_file_are_heard_as_the_whole(
    grid: Path, speech_model: Path, voice_model: Path, tmp_path: Path
) -> None:
    """Five seconds before a chunk are heard too: the detector's memory is longer, so a frame may differ."""
    sound = np.concatenate([*read_clips(grid, 6), np.zeros(SAMPLE_RATE, np.float32)])
    path = write_sound(tmp_path / "talk.wav", sound)

    def hear(first: int, n_frames: int) -> dict[str, np.ndarray]:
        entry = tmp_path / "entry.npz"
        hear_chunk(path, 0.0, first, n_frames, speech_model, voice_model, entry)
        loaded = load_entry(entry)
        assert loaded is not None
        return loaded[1]

    whole, parts = hear(0, 475), [hear(0, 203), hear(203, 272)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert {name: values.shape for name, values in joined.items()} == {
        "speech": (475,), "level": (475,), "prediction": (475, 2), "prints": (475,)
    }  # fmt: skip
    assert np.array_equal(whole["prints"], joined["prints"])
    assert np.abs(whole["level"] - joined["level"]).max() < 0.05
    assert np.abs(whole["prediction"] - joined["prediction"]).max() < 0.05
    change = np.abs(whole["speech"] - joined["speech"])
    assert change.max() < 0.3 and (change > 0.05).mean() < 0.02
    assert find_speech(whole["speech"], 10) == find_speech(joined["speech"], 10)
    assert len(find_speech(whole["speech"], 10)) == 6  # one sentence a clip
    # After the file's end there are values too: of silence.
    assert (whole["level"][-20:] == SILENT_LEVEL).all() and not whole["prints"][-10:].any()
    assert (hear(900, 30)["speech"] == 0).all()


def test_speech_has_hysteresis_bridges_short_pauses_and_never_overlaps() -> None:
    speech = np.zeros(200, np.float32)
    speech[20:60], speech[65:80], speech[100:130], speech[140:142] = 0.9, 0.4, 0.9, 0.9
    assert find_speech(speech, 10) == [(16, 64), (96, 134)]  # 0.4 starts nothing; 2 frames are a knock
    speech[60:65] = 0.4
    assert find_speech(speech, 10) == [(16, 84), (96, 134)]  # and ends nothing
    assert find_speech(speech, 21) == [(16, 146)]
    speech[80:97] = 0.9
    assert find_speech(speech, 2) == [(16, 98), (98, 134)]
    assert find_speech(speech[:0], 10) == find_speech(np.zeros(9), 10) == []


def test_long_speech_is_cut_at_its_pauses() -> None:
    speech = np.ones(1000, np.float32)
    for pause in (200, 260, 520, 770):
        speech[pause : pause + 6] = 0.1
    pieces = cut_at_pauses(speech, (0, 1000), 50, 300)
    assert [end for _, end in pieces[:-1]] == pytest.approx([263, 523, 773], abs=2)
    assert pieces[0][0] == 0 and pieces[-1][1] == 1000
    assert cut_at_pauses(speech, (100, 390), 50, 300) == [(100, 390)]
    # No lengths of 290 to 300 add up to 400: the shortest are those of equal cuts.
    assert cut_at_pauses(np.ones(400), (0, 400), 290, 300) == [(0, 200), (200, 400)]
    level = np.full(400, -20.0)
    level[150:155] = -60
    assert cut_at_pauses(np.ones(400), (0, 400), 50, 300, level)[0][1] == pytest.approx(153, abs=2)


def test_the_level_of_speech_is_over_that_of_the_pauses() -> None:
    speech = np.array([0.9] * 50 + [0.1] * 50)
    assert measure_speech_level(np.where(speech > 0.5, -20.0, -55.0), speech) == pytest.approx((-20, 35))
    assert np.isnan(measure_speech_level(np.full(9, -20.0), np.ones(9))[1])
    assert np.isnan(measure_speech_level(np.full(9, -20.0), np.zeros(9))).all()


def test_sound_that_was_encoded_again_is_found_and_other_sentences_are_not(
    grid: Path, tmp_path: Path
) -> None:
    sounds = read_clips(grid, 20)
    prints = {f"a{n}": compute_prints(sound, 0, 75) for n, sound in enumerate(sounds)}
    prints |= {"silence": np.zeros(75, np.uint32), "quiet": np.zeros(75, np.uint32)}
    prints |= {"hum": np.full(5000, 7, np.uint32), "empty": np.zeros(0, np.uint32)}
    assert find_near_duplicates(prints) == {}
    for name, codec in (("mp3", "libmp3lame"), ("m4a", "aac")):
        path = write_sound(tmp_path / f"again.{name}", 0.3 * sounds[3], "-c:a", codec, "-b:a", "64k")
        sound = mix_to_mono(read_channels(path, 0.213, 2 * SAMPLE_RATE))[0]
        prints[f"b-{name}"] = compute_prints(sound, 0, 50)
    assert find_near_duplicates(prints) == {"b-mp3": "a3", "b-m4a": "a3"}
