"""All that decides what a stage makes of a clip is in the digest that its keys are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages import landmarks, mels, speech
from stages.engine.stage import Context, Work
from stages.landmarks import LandmarksParams
from stages.media import weights
from stages.mels import MelsParams
from stages.speech import SpeechParams

Digest = Callable[..., str]
SPEECH = SpeechParams("whisper-tiny.en")


@pytest.fixture
def make_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Digest:
    """Makes the digest of a stage with params, and with ``library`` in another version."""
    model = tmp_path / "model"
    model.write_bytes(b"one")
    monkeypatch.setattr(weights, "find", lambda wanted, path: Path(path or model))
    monkeypatch.setattr(landmarks, "check_engine", lambda engine: None)
    work = Work("folder", *(tmp_path / name for name in ("raw", "work", "out", "cache")))

    def make(stage: ModuleType, params: Any, library: str = "") -> str:
        digests: list[str] = []

        def count_versions(*names: str) -> dict[str, str]:
            return {name: "2" if name == library else "1" for name in names}

        def take_digest(*_: object, params_digest: str, **__: object) -> None:
            digests.append(params_digest)

        with monkeypatch.context() as patch:
            patch.setattr(stage, "versions", count_versions)
            patch.setattr(stage, "run_per_clip", take_digest)
            stage.run(work, [], params, Context())
        (digest,) = digests
        return digest

    return make


@pytest.mark.parametrize(
    ("stage", "params", "library"),
    [
        *((mels, MelsParams(), name) for name in ("av", "librosa", "numpy", "scipy", "soxr")),
        *((speech, SPEECH, name) for name in ("av", "librosa", "numpy", "soxr", "torch")),
        *((landmarks, LandmarksParams(), name) for name in ("ai-edge-litert", "av", "opencv-python")),
        (landmarks, LandmarksParams(engine="mediapipe"), "mediapipe"),
    ],
)
def test_it_depends_on_the_version_of_a_library(
    stage: ModuleType, params: Any, library: str, make_digest: Digest
) -> None:
    assert make_digest(stage, params) != make_digest(stage, params, library)
    assert make_digest(stage, params) == make_digest(stage, params, "pytest")


@pytest.mark.parametrize(
    ("stage", "params"), [(mels, MelsParams()), (speech, SPEECH), (landmarks, LandmarksParams())]
)
def test_it_depends_on_the_version_of_the_stage(
    stage: ModuleType, params: Any, make_digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_digest(stage, params)
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    assert make_digest(stage, params) != before


@pytest.mark.parametrize(
    ("stage", "params", "changes"),
    [
        (
            mels,
            MelsParams(),
            {"n_fft": 1024, "win_length": 400, "n_mels": 80, "fmax": 7600.0, "top_db": 70.0,
             "reference": "clip", "window_seconds": 4.0, "max_boost_db": 10.0},
        ),
        (
            landmarks,
            LandmarksParams(),
            {"engine": "mediapipe", "max_faces": 1, "max_gap_frames": 2, "min_face_pixels": 20.0,
             "cuts": "keep"},
        ),
    ],
)  # fmt: skip
def test_it_depends_on_every_param_but_the_path_of_a_model(
    stage: ModuleType, params: Any, changes: dict[str, Any], make_digest: Digest
) -> None:
    assert {*changes, "model"} >= vars(params).keys(), "every param is tried"
    others = [replace(params, **{name: value}) for name, value in changes.items()]
    assert len({make_digest(stage, each) for each in [params, *others]}) == 1 + len(changes)


def test_that_of_landmarks_depends_on_the_model_and_not_on_its_path(
    make_digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_digest(landmarks, LandmarksParams())
    assert make_digest(landmarks, LandmarksParams(model="elsewhere")) == before
    monkeypatch.setattr(weights, "LANDMARKER", replace(weights.LANDMARKER, sha256="f" * 64))
    assert make_digest(landmarks, LandmarksParams()) != before


def test_that_of_speech_depends_on_the_encoder_and_its_weights_and_not_on_their_path(
    make_digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_digest(speech, SPEECH)
    assert make_digest(speech, replace(SPEECH, model="elsewhere")) == before
    another = SpeechParams("whisper-tiny.en")
    object.__setattr__(another, "encoder", "whisper-base.en")  # of a version that has two
    assert make_digest(speech, another) != before
    monkeypatch.setattr(weights, "SPEECH_ENCODER", replace(weights.SPEECH_ENCODER, sha256="f" * 64))
    assert make_digest(speech, SPEECH) != before
