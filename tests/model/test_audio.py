"""The audio encoders: what they read of a window of mel rows, and what an embedding depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.audio import AudioEncoder, AudioParams
from tests.model.worlds import build_encoder

EMBEDDING, N_MELS = 24, 12
WINDOWS = [
    AudioParams(n_mels=N_MELS),
    AudioParams(n_mels=N_MELS, rows_before=8, rows_after=8, encoder="conv"),
    AudioParams(n_mels=N_MELS, rows_before=8, rows_after=8, encoder="temporal"),
    AudioParams(n_mels=N_MELS, rows_before=31, rows_after=31, encoder="temporal"),
    AudioParams(n_mels=N_MELS, rows_before=20, rows_after=3, encoder="temporal"),
    AudioParams(n_mels=N_MELS, rows_before=0, rows_after=0, encoder="temporal"),
]
each_window = pytest.mark.parametrize("params", WINDOWS, ids=lambda params: f"{params.encoder}-{params.rows}")


def draw_mels(n: int, rows: int) -> Tensor:
    return -80 * torch.rand(n, rows, N_MELS, generator=torch.Generator().manual_seed(1))


@each_window
def test_a_window_becomes_one_embedding(params: AudioParams) -> None:
    assert build_encoder(params)(draw_mels(3, params.rows)).shape == (3, EMBEDDING)


@each_window
def test_samples_without_audio_get_the_null_embedding(params: AudioParams) -> None:
    encoder, mels = build_encoder(params), draw_mels(3, params.rows)
    embedding = encoder(mels, torch.tensor([True, False, True]))
    assert encoder.null is not None and torch.equal(embedding[1], encoder.null)
    assert torch.equal(embedding[[0, 2]], encoder(mels)[[0, 2]])


@each_window
def test_a_sample_does_not_depend_on_the_others_of_its_batch(params: AudioParams) -> None:
    encoder, mels = build_encoder(params), draw_mels(4, params.rows)
    torch.testing.assert_close(encoder(mels)[2:3], encoder(mels[2:3]), rtol=1e-4, atol=1e-5)


@each_window
def test_every_row_of_the_window_matters(params: AudioParams) -> None:
    encoder, mels = build_encoder(params), draw_mels(1, params.rows)
    others = mels.repeat(params.rows, 1, 1)
    others.diagonal().add_(-5.0)  # the first bands of another row in each sample
    for row, embedding in enumerate(encoder(others)):
        assert not torch.allclose(embedding, encoder(mels)[0], atol=1e-7), f"row {row}"


@pytest.mark.parametrize("side", [1, 8, 15, 31])
def test_convolutions_over_time_reach_both_ends_of_the_window_and_no_normalisation_is_needed_for_it(
    side: int,
) -> None:
    encoder = build_encoder(
        AudioParams(n_mels=N_MELS, rows_before=side, rows_after=side, encoder="temporal")
    )  # fmt: skip
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.GroupNorm):
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, nn.Identity())
    mels = draw_mels(1, 2 * side + 1).requires_grad_()
    encoder(mels).sum().backward()
    assert mels.grad is not None
    assert (mels.grad[0].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("normalised", [True, False])
def test_the_temporal_encoder_learns_under_autocast_to_bfloat16(normalised: bool) -> None:
    params = AudioParams(
        n_mels=N_MELS, rows_before=8, rows_after=8, encoder="temporal", normalised=normalised
    )  # fmt: skip
    encoder, mels = build_encoder(params), draw_mels(4, params.rows)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = encoder(mels, torch.tensor([True, True, True, False]))
    embedding.float().square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("changes", "most"), [({}, 400_000), ({"rows_before": 31, "rows_after": 31}, 600_000)]
)  # fmt: skip
def test_the_temporal_encoder_is_small(changes: dict[str, Any], most: int) -> None:
    encoder = AudioEncoder(AudioParams(encoder="temporal", **changes), 256)
    assert sum(parameter.numel() for parameter in encoder.parameters()) < most
