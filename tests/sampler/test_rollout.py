"""Rollout: a clip is independent of its batch, pixels outside the mask are exact, every frame has its key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from model import loop
from model.audio import SILENCE_DB, AudioParams
from model.batch import boxes_to_masks, hide_mask_region, to_float, to_pixels
from model.checkpoint import save_checkpoint
from model.denoiser import embed_noise_level, estimate_y_0
from model.execution import Execution
from model.recipe import ModelError, Recipe
from sampler.params import SampleParams, SamplerName
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator, load_generator, override_params
from sampler.steps import KnownPixels, noise_levels, sample
from shards.rng import Purpose, derive_key, normals
from tests.model import worlds
from tests.model.worlds import CPU, N_MELS, SIZE, TINY

BOX = np.array([4, 8, 12, 15], np.int16)
QUICK = SampleParams(sampler="ancestral", steps=3, guidance=1.0, common_noise=0.0)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A network with a non-trivial output: its last layers are not zero."""
    return worlds.perturb_network(0.1)


def make_generator(
    network: torch.nn.Module, params: SampleParams = QUICK, recipe: Recipe = TINY
) -> FrameGenerator:
    return FrameGenerator(network, recipe, params, CPU, Execution())  # type: ignore[arg-type]


def make_clip(number: int, n_frames: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (n_frames, SIZE, SIZE, 3), dtype=np.uint8)
    return frames, rng.uniform(-80, 0, (2 * n_frames, N_MELS)).astype(np.float32)


def make_request(number: int, n_frames: int = 4) -> ClipRequest:
    frames, mels = make_clip(number, n_frames)
    return ClipRequest(f"clip{number}", (CropFrame(frame, BOX) for frame in frames), mels)


def generate(
    generator: FrameGenerator, requests: list[ClipRequest], slots: int
) -> dict[tuple[str, int], NDArray[np.uint8]]:
    frames = generator.rollout(iter(requests), slots=slots)
    return {(frame.key, frame.number): frame.pixels for frame in frames}


@pytest.mark.parametrize("common_noise", [0.0, 0.9])
@pytest.mark.parametrize("name", ["ancestral", "heun"])
def test_a_clip_is_the_same_alone_and_in_any_batch_and_order(
    network: torch.nn.Module, name: SamplerName, common_noise: float
) -> None:
    """With noise at the start alone, and with noise in later steps too, which ``ancestral`` draws."""
    params = replace(QUICK, sampler=name, common_noise=common_noise)
    lengths = {0: 4, 1: 2, 2: 5, 3: 1, 4: 3}

    def run(numbers: Sequence[int], slots: int) -> dict[tuple[str, int], NDArray[np.uint8]]:
        requests = [make_request(number, lengths[number]) for number in numbers]
        return generate(make_generator(network, params), requests, slots)  # a new one has no past

    together, backwards = run((0, 1, 2, 3, 4), slots=3), run((4, 3, 2, 1, 0), slots=2)
    assert set(together) == {(f"clip{n}", k) for n, length in lengths.items() for k in range(length)}
    for number, length in lengths.items():
        alone = run([number], slots=1)
        assert len(alone) == length
        for place, pixels in alone.items():
            assert np.array_equal(pixels, together[place])
            assert np.array_equal(pixels, backwards[place])


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_the_network_gets_the_embedding_of_the_noise_level_of_each_call(
    network: torch.nn.Module, name: SamplerName
) -> None:
    """The first frame, compared with the same sampler on the network's own ``forward``, level by level."""
    (pixels, *_), mels = make_clip(0, 2)
    generator = make_generator(network, replace(QUICK, sampler=name, steps=5))
    y_0 = to_float(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    mask = boxes_to_masks(torch.from_numpy(BOX)[None], SIZE)
    audio = TINY.network.audio
    padding = ((audio.rows_before, audio.rows_after), (0, 0))
    rows = np.pad(mels, padding, constant_values=SILENCE_DB)[None, : audio.rows]
    images = [hide_mask_region(y_0, mask), y_0] + ([mask] if TINY.network.mask_channel else [])
    assert TINY.frames.before_first == "hidden"
    n_calls = 0

    def denoise(y: Tensor, gamma: float) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        level = torch.full((1,), gamma, dtype=torch.float32)
        embedded = embed_noise_level(level, TINY.noise.embedding)
        prediction = network(torch.cat([y, *images], dim=1), embedded, torch.from_numpy(rows))
        return estimate_y_0(y, prediction, level, TINY.noise.target).clamp(-1, 1)

    def noise(step: int) -> Tensor:
        clip = int.from_bytes(hashlib.sha256(b"clip0").digest()[:8], "big")
        key = derive_key(QUICK.seed, Purpose.SAMPLER, clip, 0, step + 1)
        return normals(np.array([key], np.uint64), y_0.shape[1:], CPU)

    levels = noise_levels(TINY.noise, 5)
    image = sample(name, denoise, noise(-1), levels, noise=noise, known_pixels=KnownPixels(mask, y_0))
    expected = to_pixels(image)[0].permute(1, 2, 0).numpy()
    generated = generate(generator, [make_request(0, 2)], slots=1)["clip0", 0]
    assert np.abs(generated.astype(int) - expected).max() <= 1  # rounding
    assert n_calls == len(generator.steps) == (9 if name == "heun" else 5)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_frame_costs_one_network_call_per_step_and_with_heun_two_except_in_the_last(
    network: torch.nn.Module, guidance: float
) -> None:
    """With guidance as many, at the cleaner half of the levels of twice the images."""
    for name, n_unguided, n_guided in (
        ("ancestral", 2, 2),
        ("ddim", 2, 2),
        ("dpm++2m", 2, 2),
        ("heun", 3, 4),
    ):
        params = SampleParams(sampler=name, steps=4, guidance=guidance)  # type: ignore[arg-type]
        generator = make_generator(network, params)
        forward, batch_sizes = generator.forward, list[int]()

        def count(x: Tensor, *args: Any, forward: Any = forward, sizes: list[int] = batch_sizes) -> Tensor:
            sizes.append(len(x))
            return forward(x, *args)  # type: ignore[no-any-return]

        generator.forward = count
        generate(generator, [make_request(0, 3)], slots=1)
        assert batch_sizes == 3 * ([1] * n_unguided + [1 if guidance == 1 else 2] * n_guided)


@pytest.mark.parametrize(
    ("guidance", "share", "n_guided"),
    [(2, 1, 10), (2, 0.7, 7), (2, 0.5, 5), (2, 0.01, 1), (1, 1, 0), (0, 0.5, 10)],
)
def test_guidance_acts_at_its_share_of_the_levels_the_cleanest(
    network: torch.nn.Module, guidance: float, share: float, n_guided: int
) -> None:
    generator = make_generator(network, SampleParams(steps=10, guidance=guidance, guided_share=share))
    guided = [step.gamma in generator.guided_gammas for step in generator.steps]
    assert guided == [False] * (10 - n_guided) + [True] * n_guided


def test_a_frame_with_guidance_at_the_last_step_begins_as_one_without(network: torch.nn.Module) -> None:
    """Its first step is that of guidance 1, its last that of guidance at all levels."""
    estimates: dict[tuple[float, float], list[Tensor]] = {}
    for guidance, share in ((1.0, 1.0), (2.0, 0.5), (2.0, 1.0)):
        params = SampleParams(steps=2, guidance=guidance, guided_share=share)
        generator, seen = make_generator(network, params), estimates.setdefault((guidance, share), [])
        estimate = generator._estimate

        def keep(*args: Any, estimate: Any = estimate, seen: list[Tensor] = seen) -> Tensor:
            seen.append(estimate(*args))
            return seen[-1]

        generator._estimate = keep  # type: ignore[method-assign]
        generate(generator, [make_request(0, 1)], slots=1)
    without, last, everywhere = estimates.values()
    assert torch.equal(last[0], without[0]) and not torch.equal(last[0], everywhere[0])
    assert not torch.equal(last[1], without[1])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_sound_of_a_frame_is_embedded_once_and_silence_once_for_all_frames(
    network: torch.nn.Module, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, calls = network.compute_audio_films, list[bool]()

    def count(mels: Tensor, has_audio: Tensor, speech: Tensor | None) -> list[Tensor]:
        calls.extend(has_audio.tolist())
        return embed(mels, has_audio, speech)  # type: ignore[no-any-return, operator]

    monkeypatch.setattr(network, "compute_audio_films", count)
    generator = make_generator(network, replace(QUICK, guidance=guidance))
    generate(generator, [make_request(0, 3)], slots=1)
    assert sorted(calls) == ([] if guidance == 1 else [False]) + [True] * 3


@pytest.mark.parametrize(("name", "guidance"), [("ancestral", 1.0), ("dpm++2m", 2.0)])
def test_all_steps_of_all_frames_run_in_a_graph_with_and_one_without_guidance_that_draw_the_same_frames(
    network: torch.nn.Module, name: SamplerName, guidance: float
) -> None:
    """Only tracing is tested: generating code takes minutes."""
    params = SampleParams(sampler=name, steps=4, guidance=guidance)
    plain, compiled = (make_generator(network, params) for _ in range(2))
    n_graphs = CompileCounter()
    compiled._compiled_steps[1] = torch.compile(
        compiled._compute_step, backend=n_graphs, fullgraph=True, dynamic=False
    )
    with torch.no_grad():
        compiled._try_step(1, compiled._compiled_steps[1])
    expected = generate(plain, [make_request(0), make_request(1)], slots=1)
    for place, pixels in generate(compiled, [make_request(0), make_request(1)], slots=1).items():
        assert np.abs(pixels.astype(int) - expected[place]).max() <= 1
    assert n_graphs.frame_count == len({step.gamma in plain.guided_gammas for step in plain.steps})


def test_a_slot_is_filled_again_as_soon_as_its_clip_ends(network: torch.nn.Module) -> None:
    requests = [make_request(0, 6), make_request(1, 2), make_request(2, 2)]
    order = [(frame.key, frame.number) for frame in make_generator(network).rollout(iter(requests), slots=2)]
    assert order == [
        ("clip0", 0), ("clip1", 0), ("clip0", 1), ("clip1", 1), ("clip0", 2), ("clip2", 0),
        ("clip0", 3), ("clip2", 1), ("clip0", 4), ("clip0", 5),
    ]  # fmt: skip


def count_rounds(order: list[tuple[str, int]], slots: int) -> int:
    """How many batches were generated: a batch contains each clip at most once."""
    rounds, in_round = 0, set[str]()
    for key, _ in order:
        if not rounds or key in in_round or len(in_round) == slots:
            rounds, in_round = rounds + 1, set()
        in_round.add(key)
    return rounds


def test_with_the_longest_clips_first_slots_are_idle_for_less_than_a_twentieth_of_the_time(
    network: torch.nn.Module,
) -> None:
    lengths = np.random.default_rng(0).integers(5, 16, 64)
    slots, n_frames = 16, int(lengths.sum())
    generator = make_generator(network, SampleParams(steps=1, guidance=1.0))

    def compute_overhead(order: list[int]) -> float:
        """Time over that of full batches alone, where every batch takes equally long."""
        requests = (make_request(number, int(lengths[number])) for number in order)
        frames = [(frame.key, frame.number) for frame in generator.rollout(requests, slots=slots)]
        assert len(frames) == len(set(frames)) == n_frames
        return count_rounds(frames, slots) * slots / n_frames

    assert compute_overhead(np.argsort(-lengths).tolist()) < 1.05
    padded = sum(int(lengths[k : k + slots].max()) * slots for k in range(0, len(lengths), slots))
    assert padded / n_frames > 1.3, "padding to the longest would cost 30 % and more"


def test_no_more_clips_are_read_than_there_are_slots(network: torch.nn.Module) -> None:
    requested: list[int] = []

    def requests() -> Iterator[ClipRequest]:
        for number in range(4):
            requested.append(number)
            yield make_request(number, 2)

    frames = make_generator(network).rollout(requests(), slots=2)
    next(frames)
    assert requested == [0, 1]


@pytest.mark.parametrize("name", ["dpm++2m", "heun"])
def test_outside_the_mask_every_frame_is_the_source_bit_for_bit(
    network: torch.nn.Module, name: SamplerName
) -> None:
    frames, _ = make_clip(7, 4)
    params = SampleParams(sampler=name, steps=2, guidance=1.7)
    result = generate(make_generator(network, params), [make_request(7)], slots=1)
    x0, y0, x1, y1 = BOX
    outside = np.ones((SIZE, SIZE), bool)
    outside[y0:y1, x0:x1] = False
    for k in range(4):
        assert np.array_equal(result["clip7", k][outside], frames[k][outside])
        assert not np.array_equal(result["clip7", k][~outside], frames[k][~outside])


def test_another_seed_key_or_speech_gives_another_mouth(network: torch.nn.Module) -> None:
    usual = generate(make_generator(network), [make_request(0)], slots=1)
    assert all(
        np.array_equal(usual[k], v)
        for k, v in generate(make_generator(network), [make_request(0)], slots=1).items()
    )
    other_seed = generate(make_generator(network, replace(QUICK, seed=1)), [make_request(0)], slots=1)
    other_name = generate(make_generator(network), [replace(make_request(0), key="another")], slots=1)
    louder = generate(
        make_generator(network), [replace(make_request(0), mels=np.zeros((8, N_MELS), np.float32))], slots=1
    )
    for others in (other_seed, other_name, louder):
        assert not any(np.array_equal(a, b) for a, b in zip(usual.values(), others.values(), strict=True))


def test_a_frame_depends_on_the_generated_one_before_it_and_on_no_true_mouth(
    network: torch.nn.Module,
) -> None:
    frames, mels = make_clip(0, 3)
    x0, y0, x1, y1 = BOX
    mouthless = frames.copy()
    mouthless[1:, y0:y1, x0:x1] = 0  # the first frame is also the identity
    usual = generate(make_generator(network), [make_request(0, 3)], slots=1)
    without_mouths = generate(
        make_generator(network), [ClipRequest("clip0", (CropFrame(f, BOX) for f in mouthless), mels)], slots=1
    )
    assert all(np.array_equal(usual[place], without_mouths[place]) for place in usual)
    reanchored = generate(
        make_generator(network, replace(QUICK, reanchor_every=1)), [make_request(0, 3)], slots=1
    )
    assert np.array_equal(usual["clip0", 0], reanchored["clip0", 0])
    assert not np.array_equal(usual["clip0", 1], reanchored["clip0", 1]), "it depends on the frame before"


@pytest.mark.parametrize("before_first", ["hidden", "target"])
def test_a_network_that_never_saw_a_previous_mouth_is_shown_none(
    network: torch.nn.Module, before_first: Literal["hidden", "target"]
) -> None:
    """Neither a clip's own before its first frame, nor a generated one."""
    x0, y0, x1, y1 = BOX

    def run(previous_hidden: float, params: SampleParams) -> tuple[list[bool], list[NDArray[np.uint8]]]:
        """Whether each frame's previous mouth was hidden, and the frames."""
        frames = replace(TINY.frames, previous_hidden=previous_hidden, before_first=before_first)
        generator, is_hidden = make_generator(network, params, replace(TINY, frames=frames)), list[bool]()
        forward = generator.forward

        def record(x: Tensor, *args: Any) -> Tensor:
            assert x[:, 3:6].any(), "around the mouth it is shown"
            is_hidden.append(not x[:, 3:6, y0:y1, x0:x1].any())
            return forward(x, *args)

        generator.forward = record
        pixels = generate(generator, [make_request(0, 3)], slots=1)
        return is_hidden, list(pixels.values())

    one_step = replace(QUICK, steps=1)
    is_hidden, generated = run(1.0, one_step)
    assert is_hidden == [True] * 3
    assert run(0.99, one_step)[0] == [before_first == "hidden", False, False]
    is_hidden, reanchored = run(0.99, replace(one_step, reanchor_every=1))
    assert is_hidden == [before_first == "hidden", True, True]
    if before_first == "hidden":
        assert np.array_equal(generated, reanchored)


def test_guidance_0_ignores_the_audio_and_others_do_not(network: torch.nn.Module) -> None:
    loud = np.zeros((8, N_MELS), np.float32)
    for guidance, ignores_audio in ((0.0, True), (1.0, False), (2.0, False)):
        params = replace(QUICK, guidance=guidance)
        quiet = generate(make_generator(network, params), [make_request(0)], slots=1)
        other = generate(make_generator(network, params), [replace(make_request(0), mels=loud)], slots=1)
        same = [np.array_equal(quiet[place], other[place]) for place in quiet]
        assert all(same) if ignores_audio else not any(same)


def test_a_share_of_the_noise_is_common_to_the_frames_of_a_clip_and_to_no_other_clip(
    network: torch.nn.Module,
) -> None:
    """The correlation of two frames' noise is the share; each is standard normal for every share."""
    shape = (3, 64, 64)
    for share in (0.0, 0.4, 0.95, 1.0):
        generator = make_generator(network, replace(QUICK, common_noise=share))
        clips = [generator._start_clip(make_request(number)) for number in (0, 1)]
        frames = []
        for k in range(2):
            for clip in clips:
                clip.number = k
            frames.append(generator._draw_noise(clips, shape, -1))
        assert torch.stack(frames).std(dim=(2, 3, 4)).flatten().tolist() == pytest.approx([1] * 4, abs=0.03)
        same_clip, other_clip = (
            float(np.corrcoef(frames[0][0].flatten(), other.flatten())[0, 1])
            for other in (frames[1][0], frames[1][1])
        )
        assert same_clip == pytest.approx(share, abs=0.03)
        assert other_clip == pytest.approx(0, abs=0.03)
        alone = generator._draw_noise(clips[1:], shape, -1)
        assert torch.equal(alone[0], frames[1][1]), "a clip's noise does not depend on its company"
        later = generator._draw_noise(clips[:1], shape, 0)
        other_step = float(np.corrcoef(later[0].flatten(), frames[1][0].flatten())[0, 1])
        assert other_step == pytest.approx(0, abs=0.03), "a later step has other noise"


def test_guidance_of_one_batch_is_the_weighted_sum_of_two_predictions(network: torch.nn.Module) -> None:
    """With one step, the estimate for w is w times the one with audio plus 1 - w times the one without."""
    one_step = replace(QUICK, sampler="ddim", steps=1)
    images = {
        guidance: generate(
            make_generator(network, replace(one_step, guidance=guidance)), [make_request(0, 1)], slots=1
        )["clip0", 0].astype(float)
        for guidance in (0.0, 1.0, 1.5)
    }
    expected = 1.5 * images[1.0] - 0.5 * images[0.0]
    inside = (images[1.0] > 0) & (images[1.0] < 255) & (images[0.0] > 0) & (images[0.0] < 255)
    inside &= (expected > 1) & (expected < 254)
    assert inside.sum() > 50
    assert np.abs(images[1.5] - expected)[inside].max() <= 2, "rounding"


def test_a_part_of_a_clip_hears_what_is_said_before_and_after_it(network: torch.nn.Module) -> None:
    """Only the rows in its window count, also those outside the part."""
    frames, mels = make_clip(0, 8)

    def generate_frame(speech: NDArray[np.float32], offset: int) -> NDArray[np.uint8]:
        request = ClipRequest("part", iter([CropFrame(frames[3], BOX)]), speech, offset)
        return generate(make_generator(network), [request], slots=1)["part", 0]

    whole = generate_frame(mels, 3)
    around = mels[2 * 3 - 2 : 2 * 3 + 4]  # the window is two rows on each side
    assert np.array_equal(whole, generate_frame(around, 1))
    assert not np.array_equal(whole, generate_frame(mels[2 * 3 : 2 * 3 + 2], 0)), "padded with silence"


def test_a_mask_region_of_the_recipe_is_generated_instead_of_the_box(network: torch.nn.Module) -> None:
    region = (1, 5, 15, 16)
    recipe = replace(TINY, frames=replace(TINY.frames, mask_region=region))
    generator = make_generator(network, recipe=recipe)
    frames, _ = make_clip(0, 1)
    changed = (generate(generator, [make_request(0, 1)], slots=1)["clip0", 0] != frames[0]).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == region
    assert generator.select_box(BOX).tolist() == list(region)


def test_a_network_that_predicts_no_change_generates_the_identity_frame_in_the_mask() -> None:
    """An untrained network's last layer is zero; one step goes from noise to its estimate."""
    network = loop.create_state(TINY, CPU).ema
    recipe = replace(TINY, noise=replace(TINY.noise, base="identity"))
    frames, _ = make_clip(0, 4)
    x0, y0, x1, y1 = BOX
    for guidance in (1.0, 3.0):
        params = SampleParams(sampler="ddim", steps=1, guidance=guidance)
        generated = generate(make_generator(network, params, recipe), [make_request(0)], slots=1)
        without = generate(make_generator(network, params), [make_request(0)], slots=1)
        for k in range(4):
            expected = frames[k].copy()
            expected[y0:y1, x0:x1] = frames[0][y0:y1, x0:x1]
            assert np.abs(generated["clip0", k].astype(int) - expected).max() <= 2
            assert np.abs(without["clip0", k].astype(int) - expected).max() > 50


def test_frames_of_a_stream_are_read_one_ahead(network: torch.nn.Module) -> None:
    frames, mels = make_clip(0, 3)
    requested: list[int] = []

    def source() -> Iterator[CropFrame]:
        for k, frame in enumerate(frames):
            requested.append(k)
            yield CropFrame(frame, BOX)

    results = make_generator(network)(source(), mels)
    next(results)
    assert requested == [0, 1], "one frame is on its way to the host while the next is generated"
    assert len(list(results)) == 2


def test_a_run_is_sampled_with_its_averaged_weights(network: torch.nn.Module, tmp_path: Path) -> None:
    state = loop.create_state(TINY, CPU)
    state.ema.load_state_dict(network.state_dict())
    save_checkpoint(state, tmp_path, TINY, "digest", None)
    expected = generate(make_generator(network), [make_request(0)], slots=1)
    generated = generate(load_generator(tmp_path, QUICK, CPU, Execution()), [make_request(0)], slots=1)
    assert all(np.array_equal(expected[place], generated[place]) for place in expected)


def test_invalid_requests_raise_a_message_of_one_line(network: torch.nn.Module, tmp_path: Path) -> None:
    frames, mels = make_clip(0, 3)
    source = lambda pixels, box=BOX: (CropFrame(frame, box) for frame in pixels)  # noqa: E731
    with pytest.raises(ModelError, match=r"clip0: mels are \(6, 3\), expected \(2T, 8\)"):
        generate(make_generator(network), [ClipRequest("clip0", source(frames), mels[:, :3])], slots=1)
    with pytest.raises(ModelError, match="clip0: frame 2 has no mels, there are 4 rows"):
        generate(make_generator(network), [ClipRequest("clip0", source(frames), mels[:4])], slots=1)
    with pytest.raises(ModelError, match=r"crops are \(8, 16, 3\), expected \(16, 16, 3\)"):
        generate(make_generator(network), [ClipRequest("clip0", source(frames[:, :8]), mels)], slots=1)
    lower = replace(TINY, network=replace(TINY.network, top=12))
    with pytest.raises(ModelError, match="begins at row 8, the network looks at rows from 12 on"):
        generate(make_generator(network, recipe=lower), [make_request(0)], slots=1)
    without_null = replace(TINY.network, audio=replace(TINY.network.audio, null=False))
    recipe = replace(TINY, network=without_null, frames=replace(TINY.frames, audio_dropped=0))
    with pytest.raises(ModelError, match=r"guidance 2 needs .* network\.audio\.null"):
        make_generator(network, replace(QUICK, guidance=2.0), recipe)
    with pytest.raises(ModelError, match="no checkpoint here"):
        load_generator(tmp_path, QUICK, CPU, Execution())
    with pytest.raises(ModelError, match="steps is 0"):
        override_params(QUICK, steps=0, seed=None)


# --- speech features --------------------------------------------------------------------------------

D = 5
LISTENERS = {
    name: replace(
        TINY,
        network=replace(
            TINY.network,
            audio=AudioParams(
                n_mels=N_MELS, input=name, speech_size=D, speech_rows_before=2, speech_rows_after=3
            ),
        ),
    )
    for name in ("speech", "both")
}


def make_listener(name: str, params: SampleParams = QUICK) -> FrameGenerator:
    state = loop.create_state(LISTENERS[name], CPU)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in state.ema.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return make_generator(state.ema, params, LISTENERS[name])


def make_speech(number: int, n_frames: int) -> NDArray[np.float16]:
    return np.random.default_rng([number, 9]).normal(0, 1, (2 * n_frames, D)).astype(np.float16)


def make_spoken_request(number: int, n_frames: int = 4) -> ClipRequest:
    return replace(make_request(number, n_frames), speech=make_speech(number, n_frames))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", LISTENERS)
def test_with_speech_too_a_clip_is_the_same_alone_and_in_any_company(name: str, guidance: float) -> None:
    generator = make_listener(name, replace(QUICK, guidance=guidance))
    lengths = {0: 4, 1: 2, 2: 5, 3: 1}
    together = generate(generator, [make_spoken_request(n, length) for n, length in lengths.items()], slots=3)
    backwards = generate(generator, [make_spoken_request(n, lengths[n]) for n in (3, 2, 1, 0)], slots=2)
    for number, length in lengths.items():
        alone = generate(generator, [make_spoken_request(number, length)], slots=1)
        assert len(alone) == length
        for place, pixels in alone.items():
            assert np.array_equal(pixels, together[place]) and np.array_equal(pixels, backwards[place])


@pytest.mark.parametrize("name", LISTENERS)
def test_a_frame_depends_on_the_rows_of_speech_in_its_window_alone(name: str) -> None:
    frames, mels = make_clip(0, 8)
    speech, generator = make_speech(0, 8), make_listener(name)

    def generate_frame(part: slice, offset: int, change: float = 0.0) -> NDArray[np.uint8]:
        request = ClipRequest(
            "part",
            iter([CropFrame(frames[3], BOX)]),
            mels[part],
            offset,
            (speech[part] + change).astype(np.float16),
        )
        return generate(generator, [request], slots=1)["part", 0]

    whole = generate_frame(slice(0, 16), 3)
    assert np.array_equal(whole, generate_frame(slice(2 * 3 - 2, 2 * 3 + 4), 1))
    assert not np.array_equal(whole, generate_frame(slice(2 * 3, 2 * 3 + 2), 0)), "zeros beyond the ends"
    assert not np.array_equal(whole, generate_frame(slice(0, 16), 3, change=2.0))


def test_a_network_of_mels_ignores_speech(network: torch.nn.Module) -> None:
    generator = make_generator(network)
    plain = generate(generator, [make_request(0)], slots=1)
    spoken = generate(generator, [make_spoken_request(0)], slots=1)
    assert all(np.array_equal(plain[place], spoken[place]) for place in plain)


def test_a_request_without_the_speech_that_a_network_takes_raises_one_line() -> None:
    generator, request = make_listener("speech"), make_request(0)
    expected = (
        r"clip0: comes without speech features, which this network takes \(network.audio.input is speech"
    )
    with pytest.raises(ModelError, match=expected):
        generate(generator, [request], slots=1)
    frames, mels = make_clip(0, 4)
    with pytest.raises(ModelError, match="the speech: comes without speech features"):
        next(generator((CropFrame(frame, BOX) for frame in frames), mels))
    for shape in ((8, 4), (6, D), (8,)):
        wrong = replace(make_request(0), speech=np.zeros(shape, np.float16))
        with pytest.raises(
            ModelError, match=rf"speech features are {re.escape(str(shape))}, expected \(8, 5\)"
        ):
            generate(generator, [wrong], slots=1)
    speech = make_speech(0, 4)
    results = list(generator((CropFrame(frame, BOX) for frame in frames), mels, speech=speech))
    assert len(results) == 4
