"""The stage with networks of the published shapes and weights drawn by seed, found as a user's would be."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import astronaut
from torch import Tensor, nn

from model.recipe import ModelError
from shards.checksum import file_sha256
from stages.engine.outcome import StageError
from stages.evaluate.metrics.inception import Inception
from stages.evaluate.metrics.lpips import AlexNet, Heads
from stages.evaluate.metrics.lse import Skipped
from stages.evaluate.network_metrics import (
    FID,
    LPIPS,
    LSE,
    LSE_REAL,
    Fid,
    Networks,
    clip_values,
    load_networks,
)
from stages.media.weights import NETWORKS, Weights
from tests.stages.evaluate.metrics.weights import Mark, seeded, syncnet_weights

BOXES = np.tile([20, 40, 76, 90], (8, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Weights]]:
    """A folder of files as the published ones, with the classifiers that are not needed; what they are."""
    folder = tmp_path_factory.mktemp("weights")
    states = {
        "syncnet": syncnet_weights(),
        "inception": seeded(Inception) | {"fc.weight": torch.zeros(3)},
        "alexnet": seeded(AlexNet) | {"classifier.1.weight": torch.zeros(3)},
        "lpips": {name: value.abs() for name, value in seeded(Heads).items()},
    }
    for key, tensors in states.items():
        torch.save(tensors, folder / NETWORKS[key].name)
    return folder, {
        key: replace(item, sha256=file_sha256(folder / item.name)) for key, item in NETWORKS.items()
    }


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor the user's cache has any weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REDUB_WEIGHTS", raising=False)


@pytest.fixture
def here(made: tuple[Path, dict[str, Weights]], nowhere: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights that are what is expected."""
    monkeypatch.setattr("stages.evaluate.network_metrics.NETWORKS", made[1])
    return made[0]


@pytest.fixture(scope="module")
def networks(made: tuple[Path, dict[str, Weights]]) -> Iterator[Networks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.evaluate.network_metrics.NETWORKS", made[1])
        yield load_networks(made[0], with_sound=True)


def clip(n_frames: int = 8) -> NDArray[np.uint8]:
    """A face that moves a pixel a frame."""
    return np.stack([astronaut()[20:116, 180 + k : 276 + k] for k in range(n_frames)])


def blurred(frames: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames]).astype(np.uint8)


@pytest.mark.usefixtures("nowhere")
def test_without_weights_every_column_says_why(tmp_path: Path) -> None:
    found = load_networks(tmp_path, with_sound=False)
    assert set(found.not_computed) == {*LSE, *LSE_REAL, *LPIPS, *FID}
    assert found.not_computed["lse_d"] == (
        f"SyncNet weights not found at {tmp_path}/syncnet_v2.model, {tmp_path}/cache/redub/syncnet_v2.model; "
        "get them from https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model "
        "(sha256 961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442)"
    )
    assert found.not_computed["lpips_box"].startswith("AlexNet weights not found at ")
    assert found.not_computed["fid_frame"].startswith("Inception weights not found at ")
    assert clip_values(found, clip(), clip(), BOXES, np.zeros(8 * 640, np.int16), None).values == {}


def test_one_network_that_is_absent_takes_its_own_columns_only(here: Path, tmp_path: Path) -> None:
    for key in ("syncnet", "alexnet"):
        (tmp_path / NETWORKS[key].name).symlink_to(here / NETWORKS[key].name)
    found = load_networks(tmp_path, with_sound=False)
    assert found.inception is None and found.lpips is None and found.syncnet is not None
    assert found.not_computed["lse_c"] == "needs the raw clips' sound: --raw DIR"
    assert found.not_computed["lpips_frame"].startswith("LPIPS weights not found at ")


def test_the_truth_is_perfect_and_blur_is_not(networks: Networks) -> None:
    assert networks.not_computed == {}
    truth = clip()
    scores = [
        clip_values(networks, drawn, truth, BOXES, None, None).values
        for drawn in (truth, blurred(truth, 0.7), blurred(truth, 3))
    ]
    assert scores[0] == {"lpips_frame": 0, "lpips_box": 0}
    for column in LPIPS:
        assert scores[0][column] < scores[1][column] < scores[2][column]


def test_lpips_of_the_box_knows_nothing_of_the_rest(networks: Networks) -> None:
    truth = clip()
    drawn = truth.copy()
    drawn[:, 90:] = 0
    values = clip_values(networks, drawn, truth, BOXES, None, None).values
    assert values["lpips_box"] == 0 < values["lpips_frame"]
    small = np.tile([20, 40, 50, 90], (8, 1))  # 30 px wide
    assert "lpips_box" not in clip_values(networks, drawn, truth, small, None, None).values


def test_speech_gives_lse_and_a_clip_without_truth_no_lpips(networks: Networks) -> None:
    speech = np.random.default_rng(0).integers(-900, 900, 8 * 640).astype(np.int16)
    found = clip_values(networks, clip(), None, BOXES, speech, None)
    assert set(found.values) == set(LSE) and found.skipped == ()
    assert found.values["lse_d"] <= found.values["lse_d_at_zero"]
    short = clip_values(networks, clip(5), None, BOXES[:5], speech, None)
    assert short.values == {}
    assert short.skipped[0].startswith("crops: 5 frames and 5120 samples of sound: ")


def test_each_protocol_of_lse_sees_its_own_pictures(networks: Networks) -> None:
    speech = np.random.default_rng(0).integers(-900, 900, 8 * 640).astype(np.int16)
    other = clip()[:, ::-1]
    by_both = clip_values(networks, clip(), None, BOXES, speech, other).values
    assert set(by_both) == {*LSE, *LSE_REAL}
    alone = clip_values(networks, other, None, BOXES, speech, None).values
    assert [by_both[column] for column in LSE_REAL] == [alone[column] for column in LSE]
    assert by_both["lse_d"] != by_both["lse_d_real"]
    unseen = clip_values(networks, clip(), None, BOXES, speech, Skipped("no face in any of its 8 frames"))
    assert set(unseen.values) == set(LSE)
    assert unseen.skipped == ("real videos: no face in any of its 8 frames",)


class TwoColours(nn.Module):
    """An eye that sees the mean of each channel, and of its square."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.cat([pictures.mean(dim=(2, 3)), pictures.square().mean(dim=(2, 3))], 1)


def test_fid_is_of_all_frames_of_a_row_and_of_their_boxes() -> None:
    def seen(*clips: NDArray[np.uint8]) -> Fid:
        row = Fid(TwoColours())  # type: ignore[arg-type]
        for frames in clips:
            row.add(frames, BOXES[: len(frames)])
        return row

    truth = clip()
    whole = seen(truth)
    assert whole.n == 8
    assert set(whole.against(whole)) == set(FID)
    assert all(distance < 1e-9 for distance in whole.against(whole).values())
    parts = seen(truth[:3], truth[3:])
    assert parts.against(whole) == pytest.approx(whole.against(whole), abs=1e-9)
    outside = truth.copy()
    outside[:, 90:] = 255
    distances = seen(outside).against(whole)
    assert distances["fid_box"] < 1e-9 < 1e-3 < distances["fid_frame"]


@pytest.mark.usefixtures("nowhere")
def test_a_file_that_is_wrong_stops_it_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mark = tmp_path / "syncnet_v2.model", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Mark(mark)))
    with pytest.raises(StageError, match=r"syncnet_v2\.model has sha256") as caught:
        load_networks(tmp_path, with_sound=True)
    assert "\n" not in str(caught.value)
    # Even one whose digest is as expected runs nothing.
    expected = {**NETWORKS, "syncnet": replace(NETWORKS["syncnet"], sha256=file_sha256(path))}
    monkeypatch.setattr("stages.evaluate.network_metrics.NETWORKS", expected)
    with pytest.raises(ModelError, match=r"syncnet_v2\.model: not a whole file of plain tensors"):
        load_networks(tmp_path, with_sound=True)
    assert not mark.exists()
