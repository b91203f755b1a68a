"""What the tests share: the model, real clips where they are, and one small made dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from shards import s3 as bucket
from stages.engine.outcome import StageError
from stages.media import weights
from tests import s3

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("REDUB_SHARED", ROOT.parent / "shared"))


MODEL = SHARED / "models" / "face_landmarker.task"


# No test is about the time that an example takes, and a crowded machine takes any.
settings.register_profile("redub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("redub")


def pytest_configure() -> None:
    """Commands that tests start as processes look for the model in the environment."""
    if MODEL.is_file():
        os.environ.setdefault(weights.LANDMARKER.environment, str(MODEL))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole roads take minutes each: first, so that no test process is left waiting for another's last."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def real_clips(corpus: str) -> Path:
    """Folder of real clips of a corpus; the test skips where they are not."""
    folder = SHARED / "data" / corpus
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; $REDUB_SHARED names the folder that holds data/{corpus}")
    return folder


@pytest.fixture(scope="session")
def grid() -> Path:
    """Real GRID clips: 211, four of them damaged."""
    return real_clips("grid")


@pytest.fixture(scope="session")
def crema_d() -> Path:
    """Six real CREMA-D clips of actor 1001."""
    return real_clips("crema-d")


@pytest.fixture(scope="session")
def landmarker() -> Path:
    """MediaPipe's model, found as a user's would be."""
    try:
        return weights.find(weights.LANDMARKER)
    except StageError as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def speech_model() -> Path:
    """The weights of Whisper tiny.en's encoder, found as a user's would be."""
    try:
        return weights.find(weights.SPEECH_ENCODER)
    except StageError as err:
        if os.environ.get("REDUB_NEEDS_SPEECH"):
            raise
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def voice_model() -> Path:
    """The weights of Silero VAD, found as a user's would be."""
    try:
        return weights.find(weights.VOICE_DETECTOR)
    except StageError as err:
        if os.environ.get("REDUB_NEEDS_SPEECH"):
            raise
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    """A real S3 server on loopback; it takes 4 s and 500 MB, so tests that need it share few files."""
    with s3.start_server(tmp_path_factory.mktemp("s3") / "weed") as server:
        yield server


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A connection to a bucket that is silent for two seconds is given up."""
    monkeypatch.setattr(bucket, "SILENCE_SECONDS", 2)
    bucket._make_client.cache_clear()
    yield
    bucket._make_client.cache_clear()


@pytest.fixture
def no_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation finds no weights of others' networks, whatever this machine has."""
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "no weights")
    for network in weights.NETWORKS.values():
        monkeypatch.delenv(network.environment, raising=False)
