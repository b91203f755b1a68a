"""Jitter of the sound changes loudness and tone colour, and leaves silence silent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.audio import SILENCE_DB, AudioParams
from model.audio_jitter import N_MEL_UNIFORMS, change_loudness
from model.batch import Batch, FrameParams, make_batch, select_batch
from model.denoiser import NoiseParams, gammas
from shards.resident import Resident
from tests.model import worlds

SPEECH_SIZE = 3
AUDIO = AudioParams(n_mels=worlds.N_MELS, input="both", speech_size=SPEECH_SIZE)
TABLE = torch.from_numpy(gammas(NoiseParams()))
JITTERED = FrameParams(audio_gain_db=20, audio_band_db=6)


def draw_mels(n: int = 200) -> Tensor:
    """Mels of which a quarter are silent: (n, 5, 16)."""
    mels = SILENCE_DB * torch.rand(n, 5, 16, generator=torch.Generator().manual_seed(0)) / 0.75
    return mels.clamp(min=SILENCE_DB)


def draw_chance(n: int = 200) -> Tensor:
    return torch.rand(n, N_MEL_UNIFORMS, generator=torch.Generator().manual_seed(1))


def test_silence_stays_silent_and_nothing_is_more_silent() -> None:
    mels = draw_mels()
    changed = change_loudness(mels, draw_chance(), gain_db=20, band_db=30)
    assert (mels == SILENCE_DB).any() and (changed[mels == SILENCE_DB] == SILENCE_DB).all()
    assert changed.min() == SILENCE_DB


def test_without_strength_nothing_changes() -> None:
    mels = draw_mels()
    assert torch.equal(change_loudness(mels, draw_chance(), gain_db=0, band_db=0), mels)


def test_a_gain_lowers_all_values_of_a_sample_alike_down_to_silence() -> None:
    mels, chance = draw_mels(), draw_chance()
    changed = change_loudness(mels, chance, gain_db=20, band_db=0)
    expected = (mels - 20 * chance[:, :1, None]).clamp(min=SILENCE_DB)
    torch.testing.assert_close(changed, expected)


def test_bands_change_by_at_most_their_strength_alike_in_all_rows_and_smoothly() -> None:
    change = change_loudness(torch.full((200, 5, 64), -40.0), draw_chance(), gain_db=0, band_db=6) + 40
    assert 5 < change.abs().max() <= 6
    assert abs(change.mean().item()) < 0.5, "as often up as down"
    assert (change == change[:, :1]).all()
    assert change.diff(dim=2).abs().max() < 2 * 6 * (N_MEL_UNIFORMS - 2) / 63 + 1e-4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    folder = worlds.make_dataset(tmp_path_factory.mktemp("sound"), (9, 12), speech_size=SPEECH_SIZE)
    return worlds.load_dataset(folder, pad=8, speech_size=SPEECH_SIZE)


def draw_batch(data: Resident, frames: FrameParams, positions: list[int], seed: int = 0) -> Batch:
    """Frame 5 at each position."""
    indices = select_batch(
        data.clips, np.full(len(positions), 5), np.array(positions), seed=seed, frames=frames, audio=AUDIO
    )
    return make_batch(data.read_batch(indices), seed=seed, frames=frames, table=TABLE)


def test_the_sound_of_a_sample_depends_on_its_position_and_the_seed_alone(data: Resident) -> None:
    together = draw_batch(data, JITTERED, [3, 4, 900])
    alone = draw_batch(data, JITTERED, [4])
    assert torch.equal(together.mels[1], alone.mels[0])
    assert not torch.equal(together.mels[0], together.mels[1])
    assert not torch.equal(alone.mels, draw_batch(data, JITTERED, [4], seed=1).mels)


def test_jitter_of_the_sound_changes_the_mels_and_nothing_else(data: Resident) -> None:
    plain = replace(JITTERED, audio_gain_db=0, audio_band_db=0)
    with_jitter, without = draw_batch(data, JITTERED, [3, 4]), draw_batch(data, plain, [3, 4])
    for name, value in vars(without).items():
        assert torch.equal(getattr(with_jitter, name), value) == (name != "mels"), name


def test_without_jitter_the_mels_are_those_of_the_dataset(data: Resident) -> None:
    indices = select_batch(
        data.clips, np.arange(9), np.arange(9), seed=0, frames=FrameParams(), audio=AUDIO
    )  # fmt: skip
    raw = data.read_batch(indices)
    assert make_batch(raw, seed=0, frames=FrameParams(), table=TABLE).mels is raw.mels
