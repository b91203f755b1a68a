"""The published networks, compared with the outputs of published code for the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import astronaut
from torch import Tensor, nn

from stages.engine.outcome import StageError
from stages.metrics.frechet import Moments, frechet_distance
from stages.metrics.inception import Inception, extract_features
from stages.metrics.lpips import AlexNet, Heads, Lpips
from stages.metrics.lse import Lse, compute_lse
from stages.metrics.published import load_published
from stages.metrics.syncnet import SyncNet
from tests.stages.metrics.weights import Mark, make_syncnet_weights, make_weights

ALEXNET_CLASSIFIER = 9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
INCEPTION_CLASSIFIER = 2048 * 1008 + 1008


def make_images(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def load_weights(build: Callable[[], nn.Module], tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    torch.save(tensors, folder / "weights.pth")
    return load_published(build, folder / "weights.pth")


@pytest.mark.parametrize(
    ("build", "n_unused", "file_bytes", "names"),
    [
        (SyncNet, 0, 54_573_114, ["netcnnaud.0.weight", "netcnnlip.19.running_var", "netfclip.3.bias"]),
        (
            Inception,
            INCEPTION_CLASSIFIER,
            95_628_359,
            ["Conv2d_1a_3x3.conv.weight", "Mixed_6e.branch7x7_3.bn.bias", "Mixed_7c.branch3x3_2b.bn.weight"],
        ),
        (AlexNet, ALEXNET_CLASSIFIER, 244_408_911, ["features.0.weight", "features.10.bias"]),
        (Heads, 0, 6_009, ["lin0.model.1.weight", "lin4.model.1.weight"]),
    ],
)  # fmt: skip
def test_a_network_has_as_many_numbers_as_the_published_file(
    build: Callable[[], nn.Module], n_unused: int, file_bytes: int, names: list[str]
) -> None:
    with torch.device("meta"):
        state = build().state_dict()
    assert set(names) <= set(state)
    n_numbers = n_unused + sum(value.numel() for name, value in state.items() if "num_batches" not in name)
    n_other_bytes = file_bytes - 4 * n_numbers
    assert 0 < n_other_bytes < 600 * len(state), "names and the file format"


def test_inceptions_features_are_those_of_pytorch_fid(tmp_path: Path) -> None:
    """pytorch-fid 0.3.0 computed these numbers from the same weights and images."""
    network = load_weights(Inception, make_weights(Inception), tmp_path)
    features = extract_features(network, list(make_images(3, 2, 40, 56)))
    assert features.shape == (2, 2048)
    expected = [
        [1.9646716117858887, 4.534736156463623, 0.0, 0.0861584022641182],
        [2.1552858352661133, 4.590020179748535, 0.0, 0.07182179391384125],
    ]
    assert features[:, ::512] == pytest.approx(np.array(expected), abs=1e-4)


def test_frechet_distance_grows_with_blur_and_noise(tmp_path: Path) -> None:
    """Also for the features of a network that was never trained."""
    network = load_weights(Inception, make_weights(Inception), tmp_path)
    rng = np.random.default_rng(0)
    truth = [astronaut()[y : y + 96, 180:276] for y in (0, 100)]
    noisy = [np.clip(image + rng.normal(0, 20, image.shape), 0, 255) for image in truth]
    sets = {
        "itself": truth,
        "a little blur": [cv2.GaussianBlur(image, (0, 0), 1) for image in truth],
        "much blur": [cv2.GaussianBlur(image, (0, 0), 6) for image in truth],
        "noise": [image.astype(np.uint8) for image in noisy],
    }
    gaussians = {}
    for name, images in sets.items():
        moments = Moments()
        moments.add(extract_features(network, images)[:, :64])
        gaussians[name] = moments.fit_gaussian()
    distances = {name: frechet_distance(gaussians["itself"], other) for name, other in gaussians.items()}
    assert distances["itself"] < 1e-4 * distances["a little blur"]
    assert distances["a little blur"] < distances["much blur"]
    assert distances["noise"] > 100 * distances["itself"]


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    folder = tmp_path_factory.mktemp("lpips")
    heads = {name: value.abs() for name, value in make_weights(Heads).items()}
    return Lpips(load_weights(AlexNet, make_weights(AlexNet), folder), load_weights(Heads, heads, folder))


def test_lpips_equals_that_of_the_package(lpips: Lpips) -> None:
    """lpips 0.1.4 computed these numbers from the same weights and images."""
    a, b = make_images(4, 2, 2, 40, 56)
    assert lpips(a, b) == pytest.approx([0.206442728638649, 0.21071577072143555], abs=1e-6)


def test_lpips_is_zero_for_the_same_image_and_grows_with_blur(lpips: Lpips) -> None:
    truth = np.repeat(make_images(0, 1, 64, 64), 70, axis=0)  # more than a batch
    blurred = truth.copy()
    for k, sigma in enumerate((0.3, 0.6, 1, 2)):
        blurred[66 + k] = cv2.GaussianBlur(truth[0], (0, 0), sigma)
    distances = lpips(truth, blurred)
    assert (distances[:66] == 0).all()
    assert np.all(np.diff(distances[65:]) > 0)


def test_lse_equals_that_of_syncnet_python(tmp_path: Path) -> None:
    """syncnet-python 0.2.3 computed these numbers from the same weights, frames and sound."""
    network = load_weights(SyncNet, make_syncnet_weights(), tmp_path)
    sound = np.random.default_rng(2).integers(-9000, 9000, 24 * 640 + 77).astype(np.int16)
    result = compute_lse(make_images(1, 24, 128, 128), sound, network.embed_lips, network.embed_speech)
    assert isinstance(result, Lse)
    assert (result.offset, result.n_windows) == (15, 19)
    assert result.distance == pytest.approx(163.09423828125, rel=1e-5)
    assert result.confidence == pytest.approx(143.3106689453125, rel=1e-5)


@pytest.mark.parametrize("new_format", [True, False])
def test_old_and_new_files_load_with_and_without_unused_tensors(tmp_path: Path, new_format: bool) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    complete = Small().state_dict() | {"fc.weight": torch.ones(2)}
    bare = make_weights(Small)
    state = torch.get_rng_state()
    for name, tensors in (("complete", complete), ("bare", bare)):
        path = tmp_path / name
        torch.save(tensors, path, _use_new_zipfile_serialization=new_format)
        network = load_published(Small, path, unused=("fc.",))
        assert torch.equal(network.layers[0].weight, tensors["layers.0.weight"])
        assert not network.training and not network.layers[0].weight.requires_grad
        assert network.layers(torch.zeros(1, 3)).shape == (1, 4)
    assert torch.equal(state, torch.get_rng_state())
    path = tmp_path / "wrong"
    torch.save(bare | {"layers.0.bias": torch.zeros(5)}, path)
    with pytest.raises(StageError, match=r"wrong: 2 tensors do not fit Small, e\.g\. layers\.0\.bias"):
        load_published(Small, path)


def test_an_old_file_that_was_saved_on_a_gpu_loads_without_one(tmp_path: Path) -> None:
    path = tmp_path / "gpu.pth"
    heads = make_weights(Heads)
    torch.save(heads, path, _use_new_zipfile_serialization=False)
    saved = path.read_bytes().replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    path.write_bytes(saved.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"))
    assert path.read_bytes().count(b"cuda") >= 2
    state = load_published(Heads, path).state_dict()
    assert all(torch.equal(state[name], value) for name, value in heads.items())


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_of_other_objects_is_refused_in_one_line_and_runs_nothing(
    tmp_path: Path, new_format: bool
) -> None:
    path, mark = tmp_path / "strange.pth", tmp_path / "mark"
    torch.save({"a": Mark(mark)}, path, _use_new_zipfile_serialization=new_format)
    files = [path.read_bytes()]
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=new_format)
    complete = path.read_bytes()
    files += [complete[:cut] for cut in (0, 1, 90, len(complete) // 2, len(complete) - 60)]
    for content in ([torch.ones(2)], {1: torch.ones(2)}, {"a": "b"}):
        torch.save(content, path)
        files.append(path.read_bytes())
    files.append(b"<html>404</html>" * 9)
    for data in files:
        path.write_bytes(data)
        with pytest.raises(StageError) as caught:
            load_published(Heads, path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not mark.exists()
