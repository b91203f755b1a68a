"""A network that takes speech features: what it reads of them, and that it learns from them alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model import loop
from model.audio import AudioParams
from model.batch import build_network_input
from model.checkpoint import (
    EMA,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    check_resumable,
    find_checkpoint,
    list_checkpoints,
    load_network,
)
from model.execution import Execution
from model.monitor import compute_held_out_losses
from model.recipe import PRESETS, ModelError, Recipe, recipe_from_dict, recipe_to_dict
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator
from shards.reader import open_dataset, read_clip
from shards.schema import ClipSample, ShardError
from shards.speech_scale import SpeechScale, measure_speech_scale
from stages.train import run as train
from stages.train.run import TrainRequest
from stages.train.run_file import RUN_FILE, read_run_file
from tests import datasets
from tests.model import worlds
from tests.model.worlds import ALONE, CPU, N_MELS, SIZE, TINY, build_encoder

D = 6
EMBEDDING = 24
SPEECH = AudioParams(
    n_mels=N_MELS, input="speech", speech_size=D, speech_rows_before=2, speech_rows_after=3
)  # fmt: skip
INPUTS = [
    SPEECH,
    replace(SPEECH, speech_rows_before=0, speech_rows_after=0),
    replace(SPEECH, speech_encoder="temporal", speech_rows_before=8, speech_rows_after=8),
    replace(SPEECH, input="both"),
    replace(SPEECH, input="both", encoder="conv", rows_before=8, rows_after=8, speech_encoder="temporal"),
]
each_input = pytest.mark.parametrize(
    "params", INPUTS, ids=lambda params: f"{params.input}-{params.speech_encoder}-{params.speech_rows}"
)
LISTENER = replace(TINY, network=replace(TINY.network, audio=SPEECH))
# What networks of mels had before there were speech features.
MELS_NUMBERS = {"n_mels", "rows_before", "rows_after", "normalised", "encoder", "null"}


def draw_sound(params: AudioParams, n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mels = -80 * torch.rand(n, params.rows, N_MELS, generator=generator)
    return mels, torch.randn(n, params.speech_rows, D, generator=generator).half()


@each_input
def test_a_sample_does_not_depend_on_its_batch_and_without_audio_it_gets_the_null_embedding(
    params: AudioParams,
) -> None:
    encoder, (mels, speech) = build_encoder(params), draw_sound(params, 4)
    together = encoder(mels, torch.tensor([True, False, True, True]), speech)
    assert together.shape == (4, EMBEDDING)
    assert torch.equal(together[1], encoder.null)  # type: ignore[arg-type]
    torch.testing.assert_close(together[2:3], encoder(mels[2:3], None, speech[2:3]), rtol=1e-4, atol=1e-5)


@each_input
def test_every_row_of_speech_matters_and_mels_do_if_the_network_takes_both(params: AudioParams) -> None:
    encoder, (mels, speech) = build_encoder(params), draw_sound(params, 1)
    plain = encoder(mels, None, speech)[0]
    for row in range(params.speech_rows):
        other = speech.clone()
        other[0, row, 2] += 3
        assert not torch.allclose(encoder(mels, None, other)[0], plain, atol=1e-6), f"row {row}"
    changed = encoder(mels - 5, None, speech)[0]
    assert torch.equal(changed, plain) == (params.input == "speech")


@each_input
def test_each_feature_counts_by_its_own_scale(params: AudioParams) -> None:
    """Features in other units, with the scale that they have then, give the same embedding."""
    encoder, (mels, speech) = build_encoder(params), draw_sound(params, 3)
    encoder.speech.set_scale(torch.zeros(D), torch.ones(D))
    plain = encoder(mels, None, speech)
    units, shift = torch.tensor([100.0, 1.0, 0.01, 7.0, 1.0, 0.3]), torch.tensor([500.0, 0, -3.0, 1, 2, 0])
    encoder.speech.set_scale(shift, units)
    torch.testing.assert_close(
        encoder(mels, None, speech.float() * units + shift), plain, rtol=1e-3, atol=1e-3
    )


def test_numbers_of_speech_change_nothing_in_a_network_of_mels_nor_in_its_files(tmp_path: Path) -> None:
    other = replace(
        AudioParams(n_mels=N_MELS), speech_size=9, speech_rows_before=3, speech_encoder="temporal"
    )
    recipe = replace(TINY, network=replace(TINY.network, audio=other))
    ours, theirs = (loop.create_state(each, CPU).network.state_dict() for each in (TINY, recipe))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    data = worlds.load_dataset(worlds.make_dataset(tmp_path / "data"))
    for name, each in (("ours", TINY), ("theirs", recipe)):
        worlds.train_on(data, tmp_path / name, each)
    one, two = (find_checkpoint(tmp_path / name, which="newest") for name in ("ours", "theirs"))
    for file in (STATE, WEIGHTS, EMA, OPTIMIZER):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes(), file
    assert json.loads((one.path / STATE).read_text())["recipe"]["network"]["audio"].keys() == MELS_NUMBERS
    check_resumable(two, recipe, "d")  # its file lacks the numbers that differ


@pytest.mark.parametrize(
    "preset", [name for name, recipe in PRESETS.items() if not recipe.network.audio.takes_speech]
)
def test_the_files_of_every_preset_of_mels_are_as_before_there_were_speech_features(preset: str) -> None:
    recipe = PRESETS[preset]
    values = json.loads(json.dumps(recipe_to_dict(recipe)))
    assert values["network"]["audio"].keys() == MELS_NUMBERS
    assert recipe_from_dict(values) == recipe


def test_a_run_does_not_go_on_with_another_input() -> None:
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(LISTENER)))) == LISTENER
    assert recipe_to_dict(LISTENER) | {"distill": False} == asdict(LISTENER)
    checkpoint: Any = type(
        "Saved", (), {"path": "run", "recipe": TINY, "digest": "d", "step": 0, "start": None}
    )
    with pytest.raises(ModelError, match=r"trained with network.audio.input 'mels', not 'speech'"):
        check_resumable(checkpoint, LISTENER, "d")
    checkpoint.recipe = LISTENER
    with pytest.raises(ModelError, match=r"trained with network.audio.input 'speech', not 'mels'"):
        check_resumable(checkpoint, TINY, "d")
    wider = replace(LISTENER, network=replace(TINY.network, audio=replace(SPEECH, speech_rows_after=4)))
    with pytest.raises(ModelError, match=r"trained with network.audio.speech_rows_after 3, not 4"):
        check_resumable(checkpoint, wider, "d")


# --- training ---------------------------------------------------------------------------------------


def train_by_command(shards: Path, run: Path, recipe: Recipe, **settings: Any) -> str:
    return train.run(TrainRequest(str(shards), run, "tiny", device="cpu", **settings), recipe)


def read_weights(run: Path) -> list[bytes]:
    path = list_checkpoints(run)[-1].path
    return [(path / name).read_bytes() for name in (WEIGHTS, EMA, OPTIMIZER)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_dataset(
        tmp_path_factory.mktemp("shards") / "shards", (9, 12, 7, 11, 8), per_shard=1, speech_size=D
    )


def test_a_run_on_speech_is_the_same_however_it_is_held_and_resumed(shards: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    recipe = replace(LISTENER, steps=9)
    for hold in ("resident", "cached"):
        assert train_by_command(shards, tmp_path / hold, recipe, hold=hold) == "done"
    train_by_command(shards, tmp_path / "resumed", replace(recipe, steps=4))
    train_by_command(shards, tmp_path / "resumed", recipe)
    assert read_weights(tmp_path / "resident") == read_weights(tmp_path / "cached")
    assert read_weights(tmp_path / "resident") == read_weights(tmp_path / "resumed")
    for hold, window in (("windowed", 2), ("streamed", 0)):
        both = replace(recipe, window=window, network=replace(TINY.network, audio=INPUTS[3]))
        assert train_by_command(shards, tmp_path / hold, both, hold=hold) == "done"
        network, _ = load_network(tmp_path / hold)
        scale = network.embed_audio.speech.mean
        assert torch.equal(scale, load_network(tmp_path / "resident")[0].embed_audio.speech.mean)
        assert not torch.equal(scale, torch.zeros(D))
    assert read_run_file(tmp_path / "resident")["speech"] == {"encoder": "made"}


def test_a_dataset_without_speech_is_refused_before_training(shards: Path, tmp_path: Path) -> None:
    without = worlds.make_dataset(tmp_path / "without")
    for hold in ("resident", "cached", "streamed"):
        with pytest.raises(ShardError) as caught:
            train_by_command(without, tmp_path / "run", LISTENER, hold=hold)
        assert str(caught.value) == (
            f"{without}: has no speech features (speech.npy), which the network takes; "
            "build it with --speech-encoder whisper-tiny.en, or speech.encoder in the params"
        )
    other = replace(LISTENER, network=replace(TINY.network, audio=replace(SPEECH, speech_size=D + 1)))
    with pytest.raises(ShardError, match=f"holds {D} speech features, the network takes {D + 1}"):
        train_by_command(shards, tmp_path / "run", other, hold="cached")
    train_by_command(shards, tmp_path / "mels", replace(TINY, steps=2))
    assert "speech" not in json.loads((tmp_path / "mels" / RUN_FILE).read_text())


def make_world(folder: Path, brightness: Sequence[Sequence[int]]) -> Path:
    """Clips whose masked region is as bright as one of their speech features says; the mels tell nothing.

    That feature is a thousand times smaller than the others, which are noise.
    """
    clips = []
    for number, levels in enumerate(brightness):
        rng = np.random.default_rng(number)
        frames = np.full((len(levels), SIZE, SIZE, 3), 90, np.uint8)
        frames[:, 8:15, 4:12] = np.array(levels, np.uint8)[:, None, None, None]
        speech = rng.normal(0, 10, (2 * len(levels), D))
        speech[:, 2] = np.repeat((np.array(levels) - 128) / 12_800, 2)
        mels = np.full((2 * len(levels), N_MELS), -40, np.float32)
        key = f"s1_clip{number}"
        clips.append(
            datasets.pack(key, frames, box=(4, 8, 12, 15), mels=mels, speech=speech.astype(np.float16))
        )
    params = {"align": {"size": SIZE}, "mels": {"n_mels": N_MELS, "top_db": 80.0}}
    return datasets.write(folder, clips, params=params)


def generate(generator: FrameGenerator, clip: ClipSample, speech: ClipSample) -> list[float]:
    """The mean value in the box of each frame that is generated for the speech of another clip."""
    frames = (CropFrame(pixels, box) for pixels, box in zip(clip.frames, clip.boxes, strict=True))
    request = ClipRequest("clip", frames, speech.mels, speech=speech.speech)
    return [float(frame.pixels[8:15, 4:12].mean()) for frame in generator.rollout([request], slots=1)]


def test_a_network_learns_what_speech_alone_tells(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    brightness = [rng.choice([30, 100, 170, 230], 12).tolist() for _ in range(10)]
    dataset = open_dataset(make_world(tmp_path / "world", brightness))
    recipe = replace(
        LISTENER,
        network=replace(TINY.network, audio=replace(SPEECH, speech_rows_before=1, speech_rows_after=1)),
        frames=replace(TINY.frames, context_share=1.0, previous_hidden=1.0),
        optim=replace(TINY.optim, learning_rate=4e-3),
        batch=16,
        steps=150,
        watch=replace(TINY.watch, save_every=1000, log_every=100, held_out_frames=24),
    )
    network_input = build_network_input(recipe.network)
    ids = [f"s1_clip{number}" for number in range(8)]
    data = worlds.load_dataset(tmp_path / "world", ids, speech_size=D)
    scale = measure_speech_scale(dataset, ids, network_input)
    assert isinstance(scale, SpeechScale) and scale.std[2] < 0.01 < 1 < scale.std[0]
    state = loop.create_state(recipe, CPU, scale)
    worlds.train_on(data, tmp_path / "run", recipe, state=state)

    unseen = worlds.load_dataset(tmp_path / "world", ["s1_clip8", "s1_clip9"], speech_size=D)
    losses = compute_held_out_losses(state.ema, unseen, recipe, ALONE, Execution())
    assert losses["deaf_loss"] > 1.5 * losses["listening_loss"]
    generator = FrameGenerator(state.ema, recipe, SampleParams(steps=4, guidance=1.0), CPU)
    a, b = (read_clip(dataset, clip_id) for clip_id in ("s1_clip8", "s1_clip9"))
    for speech, levels in ((a, brightness[8]), (b, brightness[9])):
        correlation = np.corrcoef(generate(generator, a, speech), levels)[0, 1]
        assert correlation > 0.95, correlation
