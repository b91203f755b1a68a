"""Recipes: the paper's numbers and ours, changes to them, and the messages for invalid ones."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch

from model.recipe import (
    PRESETS,
    LossParams,
    ModelError,
    Recipe,
    build_recipe,
    compare_recipes,
    nest_changes,
    recipe_from_dict,
)
from model.unet import UNet, count_parameters
from tests.conftest import ROOT

PAPER = ("paper-multi-speaker", "paper-single-speaker")
LARGE = ("multi-speaker-256", "single-speaker-256")
OURS = ("multi-speaker", "single-speaker", *LARGE, "demo", "own")


@pytest.mark.parametrize(
    ("preset", "count"), [("paper-multi-speaker", 13_698_691), ("paper-single-speaker", 66_655_619)]
)
def test_the_papers_networks_have_the_papers_number_of_parameters(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(build_recipe(preset).network)) == count


@pytest.mark.parametrize("preset", PAPER)
def test_none_of_our_changes_is_in_the_papers_recipes(preset: str) -> None:
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
    assert frames.context_share == 0 and frames.mask_region is None
    jitters = [
        item.name
        for item in fields(frames)
        if item.name.startswith(("jitter_", "audio_", "common_", "mirror_"))
    ]
    assert len(jitters) == 12 and all(getattr(frames, name) == 0 for name in jitters)
    assert recipe.best_by == "seeing"
    assert recipe.noise.target == "epsilon" and recipe.noise.embedding == "gamma"
    assert recipe.noise.min_snr == 0 and recipe.noise.base == "none" and recipe.balance == "frames"
    assert recipe.loss == LossParams(over_mask=False, lip_weight=0)
    assert optim.learning_rate == 5e-5 and optim.warmup_steps == 0 and optim.after_warmup == "constant"
    assert optim.max_grad_norm == 0 and optim.weight_decay == 0
    assert optim.ema_decay == 0.9999 and not optim.ema_warmup
    assert recipe.max_loss == 0, "the paper never stops a run"


def test_the_papers_two_recipes_have_the_batches_schedules_and_epochs_of_the_paper() -> None:
    multi, single = map(build_recipe, PAPER)
    assert (multi.noise.schedule, multi.noise.steps, multi.batch) == ("cosine", 1000, 160)
    assert (single.noise.schedule, single.noise.steps, single.batch) == ("linear", 2000, 40)
    assert multi.steps * multi.batch == pytest.approx(735 * 432_000, rel=1e-3)
    assert single.steps * single.batch == pytest.approx(895 * 73_704, rel=1e-3)
    assert (multi.network.dropout, single.network.dropout) == (0.1, 0.2)
    assert single.network.attention_sizes == () and single.network.head_channels == 32


@pytest.mark.parametrize("preset", OURS)
def test_our_changes_are_in_our_recipes(preset: str) -> None:
    """With the numbers that were measured (docs/performance.md, Learning)."""
    recipe = build_recipe(preset)
    assert recipe.network.in_channels == 10 and recipe.network.zero_init
    assert recipe.network.audio.normalised and recipe.network.audio.null
    assert recipe.frames.identity == "random" and recipe.frames.before_first == "hidden"
    assert recipe.frames.previous_hidden == 0.7 and recipe.frames.audio_dropped == 0.1
    assert recipe.frames.context_share == 1 and recipe.best_by == "listening"
    assert recipe.noise.log_snr_shift == (-4.4 if preset in LARGE else -3)
    assert recipe.loss == LossParams(over_mask=True, lip_weight=2)
    assert recipe.network.top == 56 * recipe.network.size // 128, "rows above all masks cost 44 %"
    assert recipe.network.audio.encoder == "conv" and recipe.network.audio.rows == 17
    assert recipe.noise.embedding == "log_snr"
    assert recipe.optim.max_grad_norm > 0 and recipe.max_loss > 0


def test_the_docs_list_the_presets_with_their_numbers_of_parameters() -> None:
    page = (ROOT / "docs" / "model.md").read_text()
    for preset in PRESETS:
        with torch.device("meta"):
            n_parameters = count_parameters(UNet(build_recipe(preset).network))
        assert f"| `{preset}` | {n_parameters:,} |" in page


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_survives_a_round_trip_through_json(preset: str) -> None:
    recipe = build_recipe(preset)
    assert recipe_from_dict(json.loads(json.dumps(asdict(recipe)))) == recipe


def test_changes_are_merged_into_the_preset_and_later_ones_override_earlier_ones() -> None:
    recipe = build_recipe(
        "multi-speaker",
        {"batch": 4, "network": {"multiples": [1, 2, 4], "audio": {"n_mels": 80}}},
        {"network": {"dropout": 0.3, "audio": {"n_mels": 40}}},
    )
    base = PRESETS["multi-speaker"]
    audio = replace(base.network.audio, n_mels=40)
    network = replace(base.network, multiples=(1, 2, 4), dropout=0.3, audio=audio)
    assert recipe == replace(base, batch=4, network=network)
    assert build_recipe("multi-speaker") == base, "the preset is not modified"


def test_settings_with_dots_become_nested_changes() -> None:
    assert nest_changes({"batch": 8, "optim.betas": [0.9, 0.95], "network.audio.n_mels": 80}) == {
        "batch": 8,
        "optim": {"betas": [0.9, 0.95]},
        "network": {"audio": {"n_mels": 80}},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bacth": 8}, "bacth is not known; known are network, noise, frames, loss, optim, watch, batch"),
        ({"optim.lr": 1}, "optim.lr is not known; known are learning_rate, warmup_steps"),
        ({"network.audio.bins": 1}, "network.audio.bins is not known; known are n_mels, rows_before"),
        ({"batch": "many"}, "batch is 'many', expected a valid integer"),
        ({"batch": 0}, "batch is 0, expected greater than or equal to 1"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"batch": None}, "batch is None"),
        ({"optim.learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"optim.learning_rate": 2}, "optim.learning_rate is 2, expected less than or equal to 1"),
        ({"optim.learning_rate": 0}, "optim.learning_rate is 0, expected greater than 0"),
        ({"optim.weight_decay": 100}, "optim.weight_decay is 100, expected less than or equal to 10"),
        ({"optim.betas": [0.9]}, "optim.betas"),
        (
            {"noise.target": "epsilon", "noise.base": "identity"},
            "noise: base 'identity' needs the target 'v', got 'epsilon'",
        ),
        ({"balance": "people"}, "balance is 'people', expected 'frames', 'clips' or 'speakers'"),
        ({"frames.common_gamma": 3}, "frames.common_gamma is 3, expected less than or equal to 2"),
        ({"noise.target": "x"}, "noise.target is 'x', expected 'epsilon' or 'v'"),
        ({"network.channels": 48}, "network.channels is 48"),
        ({"optim.betas": [1, 0.9]}, "optim.betas.0 is 1, expected less than 1"),
        ({"network.size": 130}, "network: size 130 is no multiple of 4"),
        (
            {"network.attention_sizes": [32, 24]},
            "network: attention_sizes 24 matches no feature map; with size 128 and patch 1 they are "
            "128, 64, 32 px wide",
        ),
        ({"network.head_channels": 48}, "network: head_channels 48 do not divide 64 channels"),
        ({"network.multiples": []}, "network.multiples"),
        ({"network.multiples": [1, 0]}, "network.multiples.1 is 0"),
        ({"optim": 5}, "optim is 5, expected a section of learning_rate, warmup_steps"),
        ({"batch.size": 5}, "batch is {'size': 5}, expected a value, not a section"),
        ({"batch": 5, "batch.size": 5}, "batch.size: batch is set to a value already"),
        ({"network.audio.null": False}, "frames.audio_dropped needs network.audio.null"),
        (
            {"network.audio.input": "speech", "frames.audio_gain_db": 12},
            "frames.audio_gain_db is 12, expected 0: it acts on mels alone, and with network.audio.input "
            "'speech' the network takes none",
        ),
        ({"network.audio.input": "speech", "frames.audio_band_db": 0.5}, "frames.audio_band_db is 0.5"),
    ],
)
def test_an_invalid_value_raises_one_line_that_names_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_recipe("multi-speaker", nest_changes(settings))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_raises_one_line_that_lists_the_presets() -> None:
    with pytest.raises(ModelError, match="preset 'big' is not known; known are multi-speaker, single-"):
        build_recipe("big")


def test_compare_recipes_names_each_difference_with_both_values() -> None:
    new = PRESETS["multi-speaker"]
    old = build_recipe("multi-speaker", {"seed": 3, "optim": {"betas": [0, 0.5]}})
    assert compare_recipes(new, new) == []
    assert compare_recipes(new, old) == [("optim.betas", (0.9, 0.99), (0.0, 0.5)), ("seed", 0, 3)]
    names = [name for name, _, _ in compare_recipes(*map(build_recipe, PAPER))]
    assert names == [
        "network.multiples",
        "network.attention_sizes",
        "network.head_channels",
        "network.dropout",
        "noise.schedule",
        "noise.steps",
    ]


def test_a_resumed_run_may_change_its_logging_and_be_extended_while_its_learning_rate_is_constant() -> None:
    def build(after_warmup: str, **change: Any) -> Recipe:
        return build_recipe("demo", {"optim": {"after_warmup": after_warmup}}, change)

    assert not compare_recipes(build("constant", watch={"log_every": 7, "keep_last": 9}), build("constant"))
    assert not compare_recipes(build("constant", steps=9), build("constant", steps=8))
    decayed = build_recipe("demo", {"optim": {"after_warmup": "constant", "decay_steps": 5}})
    assert not compare_recipes(decayed, build("constant"))
    longer = compare_recipes(build("cosine", steps=9), build("cosine", steps=8))
    assert longer == [("steps", 9, 8)], "a cosine ends at its last step"


def test_a_run_from_before_with_jitter_of_mels_that_its_network_does_not_take_is_read_and_resumed() -> None:
    """Where the network takes mels too, the jitter is a difference."""

    def build(audio_input: str, gain: float, band: float) -> Recipe:
        recipe = build_recipe("demo", {"network": {"audio": {"input": audio_input}}})
        values = asdict(recipe)
        values["frames"] |= {"audio_gain_db": gain, "audio_band_db": band}
        return recipe_from_dict(values)

    assert not compare_recipes(build("speech", 0, 0), build("speech", 12, 6))
    names = [name for name, _, _ in compare_recipes(build("both", 0, 0), build("both", 12, 6))]
    assert names == ["frames.audio_gain_db", "frames.audio_band_db"]
    [(name, _, _), *_] = compare_recipes(build("mels", 0, 0), build("speech", 12, 6))
    assert name == "network.audio.input"
    both = {"network": {"audio": {"input": "both"}}, "frames": {"audio_gain_db": 12, "audio_band_db": 6}}
    assert build_recipe("demo", both) == build("both", 12, 6)


def test_attention_at_a_size_that_no_feature_map_has_is_refused_instead_of_left_out() -> None:
    """With 256 px crops the feature maps are 256, 128 and 64 px wide; the preset has attention at 32 px."""
    message = r"attention_sizes 32 matches no feature map; .* 256, 128, 64 px wide"
    with pytest.raises(ModelError, match=message):
        build_recipe("multi-speaker", {"network": {"size": 256}})
    recipe = build_recipe("multi-speaker", {"network": {"size": 256, "attention_sizes": [64]}})
    with torch.device("meta"):
        layers = UNet(recipe.network).layers()
    n_attentions = sum(layer.attention is not None for layer in layers)
    assert n_attentions == 2 + 1 + 3, "the two blocks down, the middle, the three blocks up"


@pytest.mark.parametrize("preset", LARGE)
def test_a_preset_for_256_px_differs_by_its_size_and_by_what_is_in_px(preset: str) -> None:
    large, small = build_recipe(preset), build_recipe(preset.removesuffix("-256"))
    changes = {name: (value, old) for name, value, old in compare_recipes(large, small)}
    assert changes.pop("network.multiples") == ((1, *small.network.multiples), small.network.multiples)
    assert changes == {
        "network.size": (256, 128),
        "network.top": (112, 56),
        "noise.log_snr_shift": (-4.4, -3.0),
        "frames.previous_warp": (4.0, 2.0),
    }
    assert large.noise.log_snr_shift == pytest.approx(small.noise.log_snr_shift - math.log(4), abs=0.02)


@pytest.mark.parametrize("preset", LARGE)
def test_a_preset_for_256_px_has_attention_where_that_for_128_px_has_it(preset: str) -> None:
    def list_attention(name: str) -> list[tuple[int, int]]:
        """Width in px and channels of each feature map with attention, from first to last."""
        params = PRESETS[name].network
        with torch.device("meta"), torch.no_grad():
            network = UNet(params)
            maps: list[tuple[int, int]] = []
            for layer in network.layers():
                if layer.attention is not None:
                    layer.attention.register_forward_hook(
                        lambda _layer, _args, result: maps.append((result.shape[-1], result.shape[1]))
                    )
            x = torch.empty(1, params.in_channels, params.size, params.size)
            network(x, torch.empty(1), torch.empty(1, params.audio.rows, params.audio.n_mels))
        return maps

    assert list_attention(preset) == list_attention(preset.removesuffix("-256"))


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("multi-speaker", (128, 64, 32)),
        ("single-speaker", (128, 64, 32, 16)),
        ("multi-speaker-256", (256, 128, 64, 32)),
        ("single-speaker-256", (256, 128, 64, 32, 16)),
        ("paper-multi-speaker", (128, 64, 32)),
        ("paper-single-speaker", (128, 64, 32, 16)),
        ("demo", (64, 32, 16)),
    ],
)
def test_feature_sizes_are_the_widths_of_the_feature_maps(preset: str, sizes: tuple[int, ...]) -> None:
    network_params = PRESETS[preset].network
    assert network_params.feature_sizes == sizes
    with torch.device("meta"):
        network = UNet(network_params)
    widths: list[int] = []
    for layer in network.layers():
        layer.register_forward_hook(lambda _layer, _args, result: widths.append(result.shape[-1]))
    params = network_params.audio
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(1, network_params.in_channels, network_params.size, network_params.size)
        network(x, torch.empty(1), torch.empty(1, params.rows, params.n_mels))
    assert tuple(dict.fromkeys(widths)) == sizes
