"""A teacher's targets are the frames that it would draw, and its students learn to draw them in one pass."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batch import Batch, boxes_to_masks, hide_mask_region, to_float, to_pixels
from model.checkpoint import list_checkpoints, load_network
from model.execution import Execution
from model.objective import compute_losses
from model.recipe import ModelError, Recipe, build_recipe
from model.start import find_start
from model.unet import UNet
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator, override_params
from sampler.teacher import Teacher, check_teacher
from stages.train import run as train
from stages.train.run import TrainRequest
from stages.train.run_file import advise_sampling
from tests.model import worlds
from tests.model.test_objective import make_batch as make_any_batch
from tests.model.worlds import CPU, N_MELS, SIZE, TINY

ONE_STEP = SampleParams(sampler="ddim", steps=1, guidance=1.0)
BOX = np.array([3, 6, 13, 15], np.int16)


@pytest.fixture(scope="module")
def network() -> UNet:
    """A network whose frames depend on all that it sees, and stay within -1 and 1."""
    return worlds.perturb_network(0.03)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps, and its dataset."""
    folder = tmp_path_factory.mktemp("base")
    worlds.run_training(worlds.make_dataset(folder / "shards"), folder / "run", replace(TINY, steps=60))
    return folder


def make_batch() -> Batch:
    return replace(make_any_batch(), dropout_keys=None)


def make_teacher(network: UNet, params: SampleParams, recipe: Recipe = TINY) -> Teacher:
    return Teacher(FrameGenerator(network, recipe, params, CPU, Execution()))


def make_recipe(run: Path, steps: int) -> Recipe:
    changes = {"batch": 8, "steps": steps, "distill": True, "optim": {"after_warmup": "constant"}}
    return build_recipe("own", changes, start=find_start(run).recipe)


def distill(base: Path, run: Path, steps: int) -> None:
    start = find_start(base / "run")
    request = TrainRequest(str(base / "shards"), run, "own", device="cpu", start=start)
    assert train.run(request, make_recipe(base / "run", steps)) == "done"


def test_a_network_has_nothing_to_learn_from_its_own_one_step(network: UNet) -> None:
    batch = make_teacher(network, ONE_STEP).change_batch(make_batch())
    inside = batch.y_0[batch.mask.expand_as(batch.y_0) > 0]
    assert inside.abs().max() < 1 and inside.std() > 0.01, "nothing is clamped, and there is something"
    with torch.no_grad():
        assert compute_losses(network, batch, TINY) == pytest.approx(0, abs=1e-9)
        assert compute_losses(network, make_batch(), TINY).min() > 0.1
    guided = make_teacher(network, SampleParams()).change_batch(make_batch())
    with torch.no_grad():
        assert compute_losses(network, guided, TINY).min() > 1e-6, "two steps with guidance are others"


def test_a_target_is_the_frame_that_sampling_draws_from_the_same_noise(network: UNet) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    mels = rng.uniform(-80, 0, (2, N_MELS)).astype(np.float32)
    generator = FrameGenerator(network, TINY, SampleParams(), CPU, Execution())
    request = ClipRequest("clip", iter([CropFrame(pixels, BOX)]), mels)
    clip = generator._start_clip(replace(request, frames=iter([])))
    y_0 = to_float(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    mask = boxes_to_masks(torch.from_numpy(BOX)[None], SIZE)
    template = make_batch()
    batch = Batch(
        y_0=torch.zeros_like(y_0),
        previous=hide_mask_region(y_0, mask),
        identity=y_0,
        context=y_0,
        mask=mask,
        lips=mask,
        mels=clip.mels[None, : TINY.network.audio.rows],
        speech=None,
        has_audio=template.has_audio[1:],
        gamma=template.gamma[:1],
        epsilon=generator._draw_noise([clip], y_0.shape[1:], -1),
        dropout_keys=None,
    )
    changed = Teacher(generator).change_batch(batch)
    [frame] = generator.rollout([request], slots=1)
    assert np.array_equal(to_pixels(changed.y_0)[0].permute(1, 2, 0).numpy(), frame.pixels)
    assert changed.has_audio.all() and changed.gamma == pytest.approx(generator.steps[0].gamma)


def test_outside_the_mask_a_target_is_what_the_noisy_frame_shows_there(network: UNet) -> None:
    batch = make_batch()
    changed = make_teacher(network, SampleParams()).change_batch(batch)
    outside = (batch.mask == 0).expand_as(batch.y_0)
    assert torch.equal(changed.y_0[outside], batch.context[outside])
    assert changed.y_0[~outside].abs().max() <= 1


def test_a_sampler_that_adds_noise_is_no_teacher() -> None:
    check_teacher(TINY, SampleParams())
    with pytest.raises(ModelError, match="sampled by 'ancestral', which adds noise in its steps, expected"):
        check_teacher(TINY, replace(SampleParams(), sampler="ancestral", steps=3))


def test_a_student_draws_in_one_pass_what_its_start_draws_in_two_steps_with_guidance(
    base: Path, tmp_path: Path
) -> None:
    distill(base, tmp_path / "run", 150)
    advice = advise_sampling(tmp_path / "run")
    assert advice == {"sampler": "ddim", "steps": 1, "guidance": 1.0, "common_noise": 0.7}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "loss" in lines and "deaf_loss" not in lines and not (tmp_path / "run" / "pictures").exists()
    network, saved = load_network(base / "run")
    student, distilled = load_network(tmp_path / "run")
    with pytest.raises(ModelError, match="steps are 2 and guidance is 2, expected 1 and 1: this"):
        make_teacher(student, SampleParams(), distilled.recipe)
    alone = shutil.copytree(distilled.path, tmp_path / "alone")
    assert advise_sampling(alone) == advice, "without the run's file too"
    target = make_teacher(network, SampleParams(), saved.recipe).change_batch(make_batch())
    one_pass = override_params(SampleParams(), **advice)
    errors = [
        (make_teacher(each, one_pass, saved.recipe).change_batch(make_batch()).y_0 - target.y_0)
        .square()
        .mean()
        for each in (network, student)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_a_distilled_run_is_resumed_bit_for_bit(base: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    distill(base, tmp_path / "whole", 7)
    for steps in (3, 7):
        distill(base, tmp_path / "parts", steps)
    files = [
        [
            path.read_bytes()
            for path in sorted(list_checkpoints(tmp_path / run)[-1].path.glob("*.safetensors"))
        ]
        for run in ("whole", "parts")
    ]
    assert files[0] == files[1] and files[0]


def test_what_cannot_be_distilled_is_one_line(base: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, distill=True)
    with pytest.raises(ModelError, match=r"^distill needs a start, whose frames are what is learned: "):
        train.run(TrainRequest(str(base / "shards"), tmp_path / "run", "demo", device="cpu"), recipe)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match=r"^the start draws in one pass and cannot be trained further"):
        build_recipe("own", start=recipe)
