"""p, b and m by the recogniser, against GRID's word times."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.reader import open_dataset
from shards.schema import VIDEO_FPS
from stages.engine.sandbox import LimitParams
from stages.engine.stage import run_one_by_one
from stages.evaluate import phonemes
from stages.evaluate import run as evaluate
from stages.evaluate.phonemes import is_installed, recognise_closures
from stages.evaluate.run import RUN_INFO, EvaluateRequest
from stages.evaluate.table import TRUTH
from stages.evaluate.word_times import read_alignment
from stages.media.audio import SAMPLE_RATE
from stages.media.clip_sound import decode_clip_sound
from stages.metrics.closure import REACH_FRAMES, find_closures
from tests import evaluation

needs_recogniser = pytest.mark.skipif(
    not (is_installed() or os.environ.get("REDUB_NEEDS_PHONEMES")), reason="needs the extra phonemes"
)


@needs_recogniser
def test_p_b_and_m_are_heard_where_the_word_times_of_grid_have_them(grid: Path) -> None:
    n_heard = n_said = 0
    for path in sorted((grid / "s1").glob("*.mpg"))[:12]:
        said = find_closures(read_alignment(grid / "alignments" / "s1" / f"{path.stem}.align"))
        heard = np.array(recognise_closures(decode_clip_sound(path, 0.0, 75)))
        assert (np.diff(heard) >= 0).all() and (heard >= 0).all() and (heard < 75).all()
        n_said += len(said)
        n_heard += sum(bool((abs(heard - frame) <= REACH_FRAMES).any()) for frame in said)
        assert len(heard) <= len(said) + 2, f"{path.name}: {heard.tolist()} for {said}"
    assert n_said > 15 and n_heard >= 0.85 * n_said


@needs_recogniser
def test_silence_and_no_sound_have_no_p_b_or_m() -> None:
    for seconds in (0, 0.5, 3):
        assert recognise_closures(np.zeros(int(seconds * SAMPLE_RATE), np.int16)) == []


@needs_recogniser
def test_what_is_said_a_second_later_is_heard_a_second_later(grid: Path) -> None:
    lead = np.zeros(SAMPLE_RATE, np.int16)
    n_early = n_again = 0
    for path in sorted((grid / "s1").glob("*.mpg"))[:8]:
        sound = decode_clip_sound(path, 0.0, 75)
        early = recognise_closures(sound)
        late = np.array(recognise_closures(np.concatenate([lead, sound])))
        n_early += len(early)
        n_again += sum(bool((abs(late - VIDEO_FPS - frame) <= 1).any()) for frame in early)
    assert (
        n_early > 8 and n_again >= 0.8 * n_early
    )  # what stands before a sound changes what is heard a little


@needs_recogniser
def test_clips_that_cannot_be_heard_are_counted_with_the_reason(
    tmp_path: Path, landmarker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    dataset = open_dataset(evaluation.write_manifest(tmp_path / "shards", {"s1_a": 24, "s1_b": 24}, raw=raw))
    (raw / "s1_b.mp4").rename(tmp_path / "elsewhere")

    def score(**options: Any) -> tuple[Any, dict[str, Any]]:
        request = EvaluateRequest(
            str(dataset.folder), tmp_path / "out", tmp_path / "cache", mouths_only=True, **options
        )
        metrics = evaluate.run(request, LimitParams(), run_one_by_one).metrics
        return metrics[TRUTH]["closure"], json.loads((tmp_path / "out" / RUN_INFO).read_text())

    _, info = score(raw=raw)
    assert info["closures"] == "phoneme recogniser" and "hama" in info["versions"]
    assert info["without_closures"] == {f"{raw / 's1_b.mp4'} is no file": 1}
    (tmp_path / "elsewhere").rename(raw / "s1_b.mp4")
    _, info = score(raw=raw)
    assert info["without_closures"] == {}
    (raw / "s1_a.mp4").unlink()
    _, info = score(raw=raw)
    assert info["without_closures"] == {}, "what was heard is cached"

    monkeypatch.setattr(phonemes, "VERSION", -1)  # another version's cache
    (raw / "s1_b.mp4").write_bytes(b"another file")
    closure, info = score(raw=raw)
    assert sorted(info["without_closures"].values()) == [1, 1]
    assert closure.startswith("not computed: ") and "has sha256" in closure + str(info["without_closures"])
    closure, info = score(raw=raw, landmarks=False)
    assert "landmarks" in closure and info["closures"] is None
    monkeypatch.setattr(phonemes, "PACKAGE", "a package that nobody has")
    closure, info = score(raw=raw)
    assert "pip install 'redub[phonemes]'" in closure and info["closures"] is None
