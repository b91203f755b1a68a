from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from shards.checksum import file_sha256
from stages.engine.outcome import Drop
from stages.engine.sandbox import LimitParams
from stages.media.clip_sound import read_clip_sound

SOUND = np.random.default_rng(0).integers(-32768, 32767, 16_000, endpoint=True).astype(np.int16)
SOUND[8000:8002] = -32768, 32767
LIMITS = LimitParams()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "s1").mkdir(parents=True)
    wavfile.write(folder / "s1" / "bbaf2n.wav", 16_000, SOUND)
    wavfile.write(folder / "silent.wav", 16_000, SOUND * 0)
    return folder


def make_info(raw: Path, source: str = "s1/bbaf2n.wav", **changes: Any) -> dict[str, Any]:
    """The json of a clip whose video begins half a second after its sound."""
    entries = {"source": source, "source_start": 0.5, "frames": 15}
    if (raw / source).is_file():
        entries["source_sha256"] = file_sha256(raw / source)
    return entries | changes


def test_a_clips_sound_equals_its_sources_sample_by_sample(raw: Path) -> None:
    sound = read_clip_sound(raw, make_info(raw), LIMITS)
    assert sound.dtype == np.int16 and sound.shape == (15 * 640,)
    assert np.array_equal(sound[:8000], SOUND[8000:])
    assert not sound[8000:].any(), "after the file's end"
    late = read_clip_sound(raw, make_info(raw, sound_shift=0.08), LIMITS)
    assert np.array_equal(late[:6720], SOUND[9280:]), "of a clip whose sound is two frames late in its file"


def test_a_file_that_is_not_the_clips_source_is_dropped_with_a_reason(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes((raw / "s1" / "bbaf2n.wav").read_bytes())
    for info, code, reason in (
        (make_info(raw, "../secret.wav"), "outside", r"its source \.\./secret\.wav is not below"),
        (make_info(raw, str(tmp_path / "secret.wav")), "outside", "is not below"),
        (make_info(raw, "s1/gone.wav"), "absent", r"gone\.wav is no file"),
        (make_info(raw, source_sha256="0" * 64), "changed", "has sha256 .*, the clip's source has 0000"),
        (make_info(raw, "silent.wav"), "silent", "its sound is silent"),
    ):
        with pytest.raises(Drop, match=reason) as caught:
            read_clip_sound(raw, info, LIMITS)
        assert caught.value.code == code
