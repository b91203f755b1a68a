"""Frame after frame: alone equals in company, the known stays known, and each chance has its own key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model import loop
from model.checkpoint import save_checkpoint
from model.execution import Execution
from model.recipe import ModelError, Recipe
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator, load_generator, override_params
from tests.model.worlds import CPU, N_MELS, SIZE, TINY

BOX = np.array([4, 8, 12, 15], np.int16)
QUICK = SampleParams(sampler="ancestral", steps=3)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A network that says something: its last layers are not zero."""
    state = loop.create_state(TINY, CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in state.ema.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return state.ema


def generator(
    network: torch.nn.Module, params: SampleParams = QUICK, recipe: Recipe = TINY
) -> FrameGenerator:
    return FrameGenerator(network, recipe, params, CPU, Execution())  # type: ignore[arg-type]


def clip(number: int, n_frames: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (n_frames, SIZE, SIZE, 3), dtype=np.uint8)
    return frames, rng.uniform(-80, 0, (2 * n_frames, N_MELS)).astype(np.float32)


def take(number: int, n_frames: int = 4) -> ClipRequest:
    frames, mels = clip(number, n_frames)
    return ClipRequest(f"clip{number}", (CropFrame(frame, BOX) for frame in frames), mels)


def drawn(
    generator: FrameGenerator, takes: list[ClipRequest], slots: int
) -> dict[tuple[str, int], NDArray[np.uint8]]:
    return {(frame.key, frame.number): frame.pixels for frame in generator.rollout(iter(takes), slots=slots)}


def test_a_clip_is_the_same_alone_and_in_any_company_and_order(network: torch.nn.Module) -> None:
    lengths = {0: 4, 1: 2, 2: 5, 3: 1, 4: 3}
    together = drawn(generator(network), [take(n, length) for n, length in lengths.items()], slots=3)
    backwards = drawn(generator(network), [take(n, lengths[n]) for n in (4, 3, 2, 1, 0)], slots=2)
    assert set(together) == {(f"clip{n}", k) for n, length in lengths.items() for k in range(length)}
    for number, length in lengths.items():
        alone = drawn(generator(network), [take(number, length)], slots=1)
        for place, pixels in alone.items():
            assert np.array_equal(pixels, together[place])
            assert np.array_equal(pixels, backwards[place])


def test_a_slot_is_filled_again_as_soon_as_its_clip_ends(network: torch.nn.Module) -> None:
    takes = [take(0, 6), take(1, 2), take(2, 2)]
    order = [(frame.key, frame.number) for frame in generator(network).rollout(iter(takes), slots=2)]
    assert order == [
        ("clip0", 0), ("clip1", 0), ("clip0", 1), ("clip1", 1), ("clip0", 2), ("clip2", 0),
        ("clip0", 3), ("clip2", 1), ("clip0", 4), ("clip0", 5),
    ]  # fmt: skip


def rounds_of(order: list[tuple[str, int]], slots: int) -> int:
    """How often the network was asked: a round has each clip once, and begins with one that goes on."""
    rounds, in_round = 0, set[str]()
    for key, _ in order:
        if not rounds or key in in_round or len(in_round) == slots:
            rounds, in_round = rounds + 1, set()
        in_round.add(key)
    return rounds


def test_with_the_longest_clips_first_slots_stand_idle_for_less_than_a_twentieth(
    network: torch.nn.Module,
) -> None:
    lengths = np.random.default_rng(0).integers(5, 16, 64)
    slots, n_frames = 16, int(lengths.sum())
    brush = generator(network, SampleParams(steps=1))

    def idle(order: list[int]) -> float:
        """Time, when a full round takes as long as any, over that of all frames in full rounds."""
        takes = (take(number, int(lengths[number])) for number in order)
        seen = [(frame.key, frame.number) for frame in brush.rollout(takes, slots=slots)]
        assert len(seen) == len(set(seen)) == n_frames
        return rounds_of(seen, slots) * slots / n_frames

    assert idle(np.argsort(-lengths).tolist()) < 1.05
    padded = sum(int(lengths[k : k + slots].max()) * slots for k in range(0, len(lengths), slots))
    assert padded / n_frames > 1.3, "padding to the longest would cost 30 % and more"


def test_no_more_clips_are_opened_than_there_are_slots(network: torch.nn.Module) -> None:
    opened: list[int] = []

    def takes() -> Iterator[ClipRequest]:
        for number in range(4):
            opened.append(number)
            yield take(number, 2)

    frames = generator(network).rollout(takes(), slots=2)
    next(frames)
    assert opened == [0, 1]


def test_outside_the_mask_every_frame_is_the_source_bit_for_bit(network: torch.nn.Module) -> None:
    frames, _ = clip(7, 4)
    result = drawn(generator(network, SampleParams(steps=2, guidance=1.7)), [take(7)], slots=1)
    x0, y0, x1, y1 = BOX
    outside = np.ones((SIZE, SIZE), bool)
    outside[y0:y1, x0:x1] = False
    for k in range(4):
        assert np.array_equal(result["clip7", k][outside], frames[k][outside])
        assert not np.array_equal(result["clip7", k][~outside], frames[k][~outside])


def test_another_seed_another_name_or_another_sound_draws_another_mouth(network: torch.nn.Module) -> None:
    usual = drawn(generator(network), [take(0)], slots=1)
    assert all(np.array_equal(usual[k], v) for k, v in drawn(generator(network), [take(0)], slots=1).items())
    other_seed = drawn(generator(network, replace(QUICK, seed=1)), [take(0)], slots=1)
    other_name = drawn(generator(network), [replace(take(0), key="another")], slots=1)
    louder = drawn(generator(network), [replace(take(0), mels=np.zeros((8, N_MELS), np.float32))], slots=1)
    for others in (other_seed, other_name, louder):
        assert not any(np.array_equal(a, b) for a, b in zip(usual.values(), others.values(), strict=True))


def test_a_frame_hangs_on_the_one_drawn_before_it_and_on_no_true_mouth(network: torch.nn.Module) -> None:
    frames, mels = clip(0, 3)
    x0, y0, x1, y1 = BOX
    mouthless = frames.copy()
    mouthless[1:, y0:y1, x0:x1] = 0  # the first frame is also the identity
    usual = drawn(generator(network), [take(0, 3)], slots=1)
    hidden = drawn(
        generator(network), [ClipRequest("clip0", (CropFrame(f, BOX) for f in mouthless), mels)], slots=1
    )
    assert all(np.array_equal(usual[place], hidden[place]) for place in usual)
    again = drawn(generator(network, replace(QUICK, reanchor_every=1)), [take(0, 3)], slots=1)
    assert np.array_equal(usual["clip0", 0], again["clip0", 0])
    assert not np.array_equal(usual["clip0", 1], again["clip0", 1]), "the frame before was seen"


def test_guidance_of_one_is_the_network_alone_and_nought_is_deaf(network: torch.nn.Module) -> None:
    loud = np.zeros((8, N_MELS), np.float32)
    for guidance, is_deaf in ((0.0, True), (1.0, False), (2.0, False)):
        params = replace(QUICK, guidance=guidance)
        quiet = drawn(generator(network, params), [take(0)], slots=1)
        other = drawn(generator(network, params), [replace(take(0), mels=loud)], slots=1)
        same = [np.array_equal(quiet[place], other[place]) for place in quiet]
        assert all(same) if is_deaf else not any(same)


def test_a_stream_is_drawn_as_it_comes(network: torch.nn.Module) -> None:
    frames, mels = clip(0, 3)
    asked: list[int] = []

    def source() -> Iterator[CropFrame]:
        for k, frame in enumerate(frames):
            asked.append(k)
            yield CropFrame(frame, BOX)

    results = generator(network)(source(), mels)
    next(results)
    assert asked == [0]
    assert len(list(results)) == 2


def test_a_run_is_drawn_with_its_averaged_weights(network: torch.nn.Module, tmp_path: Path) -> None:
    state = loop.create_state(TINY, CPU)
    state.ema.load_state_dict(network.state_dict())
    save_checkpoint(state, tmp_path, TINY, "digest", None)
    expected = drawn(generator(network), [take(0)], slots=1)
    found = drawn(load_generator(tmp_path, QUICK, CPU, Execution()), [take(0)], slots=1)
    assert all(np.array_equal(expected[place], found[place]) for place in expected)


def test_what_cannot_be_drawn_is_one_line(network: torch.nn.Module, tmp_path: Path) -> None:
    frames, mels = clip(0, 3)
    source = lambda pixels, box=BOX: (CropFrame(frame, box) for frame in pixels)  # noqa: E731
    with pytest.raises(ModelError, match=r"clip0: mels are \(6, 3\), expected \(2T, 8\)"):
        drawn(generator(network), [ClipRequest("clip0", source(frames), mels[:, :3])], slots=1)
    with pytest.raises(ModelError, match="clip0: frame 2 has no mels, there are 4 rows"):
        drawn(generator(network), [ClipRequest("clip0", source(frames), mels[:4])], slots=1)
    with pytest.raises(ModelError, match=r"crops are \(8, 16, 3\), expected \(16, 16, 3\)"):
        drawn(generator(network), [ClipRequest("clip0", source(frames[:, :8]), mels)], slots=1)
    lower = replace(TINY, network=replace(TINY.network, top=12))
    with pytest.raises(ModelError, match="begins at row 8, the network looks at rows from 12 on"):
        drawn(generator(network, recipe=lower), [take(0)], slots=1)
    deaf = replace(TINY.network, audio=replace(TINY.network.audio, null=False))
    recipe = replace(TINY, network=deaf, frames=replace(TINY.frames, audio_dropped=0))
    with pytest.raises(ModelError, match=r"guidance 2 needs .* network\.audio\.null"):
        generator(network, replace(QUICK, guidance=2.0), recipe)
    with pytest.raises(ModelError, match="no checkpoint here"):
        load_generator(tmp_path, QUICK, CPU, Execution())
    with pytest.raises(ModelError, match="steps is 0"):
        override_params(QUICK, steps=0, seed=None)
