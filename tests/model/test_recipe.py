"""A recipe: the paper's numbers and ours, changes to them, and words for what cannot be."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from model.recipe import (
    PRESETS,
    LossParams,
    ModelError,
    Recipe,
    build_recipe,
    differences,
    nest_changes,
    recipe_from_dict,
)
from model.unet import UNet, count_parameters

PAPER = ("paper-multi-speaker", "paper-single-speaker")
OURS = ("multi-speaker", "single-speaker", "demo")


@pytest.mark.parametrize(
    ("preset", "count"), [("paper-multi-speaker", 13_698_691), ("paper-single-speaker", 66_655_619)]
)
def test_the_papers_networks_have_the_papers_number_of_parameters(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(build_recipe(preset).network)) == count


@pytest.mark.parametrize("preset", PAPER)
def test_every_repair_of_ours_is_off_in_the_papers_recipes(preset: str) -> None:
    recipe = build_recipe(preset)
    network, frames, optim = recipe.network, recipe.frames, recipe.optim
    assert network.in_channels == 9, "noisy, previous and identity frame, and no mask"
    assert not network.zero_init
    assert (network.patch, network.top) == (1, 0)
    assert network.audio.rows == 4 and network.audio.rows_after == 1
    assert not network.audio.normalised and not network.audio.null and network.audio.encoder == "flat"
    assert frames.identity == "first" and frames.before_first == "target"
    strengths = ("previous_noise", "previous_warp", "previous_blur", "previous_hidden", "audio_dropped")
    assert [getattr(frames, name) for name in strengths] == [0] * 5
    assert recipe.noise.target == "epsilon" and recipe.noise.embedding == "gamma"
    assert recipe.noise.min_snr == 0
    assert recipe.loss == LossParams(over_mask=False, lip_weight=0)
    assert optim.learning_rate == 5e-5 and optim.warmup_steps == 0 and optim.after_warmup == "constant"
    assert optim.max_grad_norm == 0 and optim.weight_decay == 0
    assert optim.ema_decay == 0.9999 and not optim.ema_warmup
    assert recipe.max_loss == 0, "the paper's run is never stopped"


def test_the_papers_two_recipes_have_the_batches_schedules_and_epochs_of_the_paper() -> None:
    multi, single = map(build_recipe, PAPER)
    assert (multi.noise.schedule, multi.noise.steps, multi.batch) == ("cosine", 1000, 160)
    assert (single.noise.schedule, single.noise.steps, single.batch) == ("linear", 2000, 40)
    assert multi.steps * multi.batch == pytest.approx(735 * 432_000, rel=1e-3)
    assert single.steps * single.batch == pytest.approx(895 * 73_704, rel=1e-3)
    assert (multi.network.dropout, single.network.dropout) == (0.1, 0.2)
    assert single.network.attention_sizes == () and single.network.head_channels == 32


@pytest.mark.parametrize("preset", OURS)
def test_every_repair_is_on_in_ours(preset: str) -> None:
    recipe = build_recipe(preset)
    assert recipe.network.in_channels == 10 and recipe.network.zero_init
    assert recipe.network.audio.normalised and recipe.network.audio.null
    assert recipe.frames.identity == "random" and recipe.frames.before_first == "hidden"
    assert recipe.frames.previous_hidden > 0 and recipe.frames.audio_dropped > 0
    assert recipe.noise.embedding == "log_snr" and recipe.loss.over_mask
    assert recipe.optim.max_grad_norm > 0 and recipe.max_loss > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_written_as_json_is_read_back(preset: str) -> None:
    recipe = build_recipe(preset)
    assert recipe_from_dict(json.loads(json.dumps(asdict(recipe)))) == recipe


def test_changes_are_merged_into_the_preset_and_the_last_one_wins() -> None:
    recipe = build_recipe(
        "multi-speaker",
        {"batch": 4, "network": {"multiples": [1, 2], "audio": {"n_mels": 80}}},
        {"network": {"dropout": 0.3, "audio": {"n_mels": 40}}},
    )
    base = PRESETS["multi-speaker"]
    audio = replace(base.network.audio, n_mels=40)
    network = replace(base.network, multiples=(1, 2), dropout=0.3, audio=audio)
    assert recipe == replace(base, batch=4, network=network)
    assert build_recipe("multi-speaker") == base, "the preset is left as it is"


def test_settings_with_dots_are_nested_changes() -> None:
    assert nest_changes({"batch": 8, "optim.betas": [0.9, 0.95], "network.audio.n_mels": 80}) == {
        "batch": 8,
        "optim": {"betas": [0.9, 0.95]},
        "network": {"audio": {"n_mels": 80}},
    }
    assert build_recipe("demo", nest_changes({"optim.learning_rate": "1e-4"})).optim.learning_rate == 1e-4, (
        "YAML takes 1e-4 for a word"
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bacth": 8}, "bacth is not known; known are network, noise, frames, loss, optim, watch, batch"),
        ({"optim.lr": 1}, "optim.lr is not known; known are learning_rate, warmup_steps"),
        ({"network.audio.bins": 1}, "network.audio.bins is not known; known are n_mels, rows_before"),
        ({"batch": "many"}, "batch is 'many': Input should be a valid integer"),
        ({"batch": 0}, "batch is 0: Input should be greater than or equal to 1"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"batch": None}, "batch is None"),
        ({"optim.learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"optim.betas": [0.9]}, "optim.betas"),
        ({"noise.target": "x"}, "noise.target is 'x': Input should be 'epsilon' or 'v'"),
        ({"network.channels": 48}, "network.channels is 48"),
        ({"optim.betas": [1, 0.9]}, "optim.betas.0 is 1: Input should be less than 1"),
        ({"network.size": 130}, "network: size 130 is no multiple of 4"),
        ({"network.head_channels": 48}, "network: head_channels 48 do not divide 64 channels"),
        ({"network.multiples": []}, "network.multiples"),
        ({"network.multiples": [1, 0]}, "network.multiples.1 is 0"),
        ({"optim": 5}, "optim is 5, expected a section of learning_rate, warmup_steps"),
        ({"batch.size": 5}, "batch is {'size': 5}, expected a value, not a section"),
        ({"batch": 5, "batch.size": 5}, "batch.size: batch is set to a value already"),
        ({"network.audio.null": False}, "frames.audio_dropped needs network.audio.null"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_recipe("multi-speaker", nest_changes(settings))
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_one_line_that_lists_them() -> None:
    with pytest.raises(ModelError, match="preset 'big' is not known; known are multi-speaker, single-"):
        build_recipe("big")


def test_differences_are_named_with_both_values() -> None:
    ours, theirs = (
        PRESETS["multi-speaker"],
        build_recipe("multi-speaker", {"seed": 3, "optim": {"betas": [0, 0.5]}}),
    )
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [("optim.betas", (0.9, 0.99), (0.0, 0.5)), ("seed", 0, 3)]
    names = [name for name, _, _ in differences(*map(build_recipe, PAPER))]
    assert names == [
        "network.multiples",
        "network.attention_sizes",
        "network.head_channels",
        "network.dropout",
        "noise.schedule",
        "noise.steps",
    ]


def test_a_run_may_be_watched_otherwise_and_go_on_longer_while_its_rate_stays_constant() -> None:
    def changed(after_warmup: str, **change: Any) -> Recipe:
        return build_recipe("demo", {"optim": {"after_warmup": after_warmup}}, change)

    assert not differences(changed("constant", watch={"log_every": 7, "keep_last": 9}), changed("constant"))
    assert not differences(changed("constant", steps=9), changed("constant", steps=8))
    longer = differences(changed("cosine", steps=9), changed("cosine", steps=8))
    assert longer == [("steps", 9, 8)], "a cosine ends at its last step"
