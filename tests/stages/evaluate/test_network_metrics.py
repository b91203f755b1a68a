"""Networks of the published shapes with random weights, loaded as a user's would be."""

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

from shards.checksum import file_sha256
from stages.engine.outcome import StageError
from stages.evaluate.network_metrics import (
    FID,
    LPIPS,
    LSE,
    LSE_REAL,
    Fid,
    Networks,
    load_networks,
    score_clip_by_networks,
)
from stages.media.weights import NETWORKS, Weights
from stages.metrics.inception import Inception
from stages.metrics.lpips import AlexNet, Heads
from stages.metrics.lse import Skipped
from tests.stages.metrics.weights import Mark, make_syncnet_weights, make_weights

BOXES = np.tile([20, 40, 76, 90], (8, 1))


@pytest.fixture(scope="module")
def folder_and_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Weights]]:
    """A folder of files like the published ones, with the unused classifiers, and their checksums."""
    folder = tmp_path_factory.mktemp("weights")
    states = {
        "syncnet": make_syncnet_weights(),
        "inception": make_weights(Inception) | {"fc.weight": torch.zeros(3)},
        "alexnet": make_weights(AlexNet) | {"classifier.1.weight": torch.zeros(3)},
        "lpips": {name: value.abs() for name, value in make_weights(Heads).items()},
    }
    for key, tensors in states.items():
        torch.save(tensors, folder / NETWORKS[key].name)
    return folder, {
        key: replace(item, sha256=file_sha256(folder / item.name)) for key, item in NETWORKS.items()
    }


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no weights in the environment's folder or in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REDUB_WEIGHTS", raising=False)


@pytest.fixture
def weights_folder(
    folder_and_weights: tuple[Path, dict[str, Weights]], no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of weights with the expected checksums."""
    monkeypatch.setattr("stages.evaluate.network_metrics.NETWORKS", folder_and_weights[1])
    return folder_and_weights[0]


@pytest.fixture(scope="module")
def networks(folder_and_weights: tuple[Path, dict[str, Weights]]) -> Iterator[Networks]:
    folder, weights = folder_and_weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.evaluate.network_metrics.NETWORKS", weights)
        yield load_networks(folder, with_sound=True)


def make_clip(n_frames: int = 8) -> NDArray[np.uint8]:
    """A face that moves by one pixel per frame."""
    return np.stack([astronaut()[20:116, 180 + k : 276 + k] for k in range(n_frames)])


def blur(frames: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames]).astype(np.uint8)


@pytest.mark.usefixtures("no_weights")
def test_without_weights_every_column_says_why(tmp_path: Path) -> None:
    networks = load_networks(tmp_path, with_sound=False)
    assert set(networks.not_computed) == {*LSE, *LSE_REAL, *LPIPS, *FID}
    assert networks.not_computed["lse_d"] == (
        f"SyncNet weights not found at {tmp_path}/syncnet_v2.model, {tmp_path}/cache/redub/syncnet_v2.model; "
        "get them from https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model "
        "(sha256 961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442)"
    )
    assert networks.not_computed["lpips_box"].startswith("AlexNet weights not found at ")
    assert networks.not_computed["fid_frame"].startswith("Inception weights not found at ")
    assert (
        score_clip_by_networks(
            networks, make_clip(), make_clip(), BOXES, np.zeros(8 * 640, np.int16), None
        ).values
        == {}
    )


def test_a_missing_network_removes_only_its_own_columns(weights_folder: Path, tmp_path: Path) -> None:
    for key in ("syncnet", "alexnet"):
        (tmp_path / NETWORKS[key].name).symlink_to(weights_folder / NETWORKS[key].name)
    networks = load_networks(tmp_path, with_sound=False)
    assert networks.inception is None and networks.lpips is None and networks.syncnet is not None
    assert networks.not_computed["lse_c"] == "needs the raw clips' sound: --raw DIR"
    assert networks.not_computed["lpips_frame"].startswith("LPIPS weights not found at ")


def test_the_ground_truth_is_perfect_and_blur_is_not(networks: Networks) -> None:
    assert networks.not_computed == {}
    truth = make_clip()
    scores = [
        score_clip_by_networks(networks, frames, truth, BOXES, None, None).values
        for frames in (truth, blur(truth, 0.7), blur(truth, 3))
    ]
    assert scores[0] == {"lpips_frame": 0, "lpips_box": 0}
    for column in LPIPS:
        assert scores[0][column] < scores[1][column] < scores[2][column]


def test_lpips_of_the_box_ignores_the_rest_of_the_frame(networks: Networks) -> None:
    truth = make_clip()
    generated = truth.copy()
    generated[:, 90:] = 0
    values = score_clip_by_networks(networks, generated, truth, BOXES, None, None).values
    assert values["lpips_box"] == 0 < values["lpips_frame"]
    small = np.tile([20, 40, 50, 90], (8, 1))  # 30 px wide
    assert "lpips_box" not in score_clip_by_networks(networks, generated, truth, small, None, None).values


def test_a_clip_without_ground_truth_has_lse_and_no_lpips(networks: Networks) -> None:
    speech = np.random.default_rng(0).integers(-900, 900, 8 * 640).astype(np.int16)
    result = score_clip_by_networks(networks, make_clip(), None, BOXES, speech, None)
    assert set(result.values) == set(LSE) and result.skipped == ()
    assert result.values["lse_d"] <= result.values["lse_d_at_zero"]
    short = score_clip_by_networks(networks, make_clip(5), None, BOXES[:5], speech, None)
    assert short.values == {}
    assert short.skipped[0].startswith("crops: 5 frames and 5120 samples of sound: ")


def test_each_protocol_of_lse_uses_its_own_images(networks: Networks) -> None:
    speech = np.random.default_rng(0).integers(-900, 900, 8 * 640).astype(np.int16)
    other = make_clip()[:, ::-1]
    both = score_clip_by_networks(networks, make_clip(), None, BOXES, speech, other).values
    assert set(both) == {*LSE, *LSE_REAL}
    alone = score_clip_by_networks(networks, other, None, BOXES, speech, None).values
    assert [both[column] for column in LSE_REAL] == [alone[column] for column in LSE]
    assert both["lse_d"] != both["lse_d_real"]
    no_face = score_clip_by_networks(
        networks, make_clip(), None, BOXES, speech, Skipped("no face in any of its 8 frames")
    )
    assert set(no_face.values) == set(LSE)
    assert no_face.skipped == ("real videos: no face in any of its 8 frames",)


class TwoColours(nn.Module):
    """In place of Inception: the features are the mean of each channel, and of its square."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.square().mean(dim=(2, 3))], 1)


def test_fid_covers_all_frames_of_a_row_and_their_boxes() -> None:
    def add_clips(*clips: NDArray[np.uint8]) -> Fid:
        fid = Fid(TwoColours())  # type: ignore[arg-type]
        for frames in clips:
            fid.add(frames, BOXES[: len(frames)])
        return fid

    truth = make_clip()
    whole = add_clips(truth)
    assert whole.n == 8
    assert set(whole.compute_distances(whole)) == set(FID)
    assert all(distance < 1e-9 for distance in whole.compute_distances(whole).values())
    parts = add_clips(truth[:3], truth[3:])
    assert parts.compute_distances(whole) == pytest.approx(whole.compute_distances(whole), abs=1e-9)
    outside = truth.copy()
    outside[:, 90:] = 255
    distances = add_clips(outside).compute_distances(whole)
    assert distances["fid_box"] < 1e-9 < 1e-3 < distances["fid_frame"]


@pytest.mark.usefixtures("no_weights")
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mark = tmp_path / "syncnet_v2.model", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Mark(mark)))
    with pytest.raises(StageError, match=r"syncnet_v2\.model has sha256") as caught:
        load_networks(tmp_path, with_sound=True)
    assert "\n" not in str(caught.value)
    # A pickle with the expected digest is not executed either.
    expected = {**NETWORKS, "syncnet": replace(NETWORKS["syncnet"], sha256=file_sha256(path))}
    monkeypatch.setattr("stages.evaluate.network_metrics.NETWORKS", expected)
    with pytest.raises(StageError, match=r"syncnet_v2\.model: not a complete file of plain tensors"):
        load_networks(tmp_path, with_sound=True)
    assert not mark.exists()
