"""What the network is shown: the right frames, spoiled as much as was said, the same in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import AudioParams
from model.batch import (
    BINOMIAL,
    Batch,
    FrameParams,
    boxes_to_masks,
    draw,
    lip_boxes,
    make_evaluation_batch,
    select_batch,
    to_float,
    to_pixels,
)
from model.denoiser import NoiseParams, gammas
from model.monitor import even_gammas
from shards.resident import Resident
from tests.model import worlds
from tests.model.worlds import N_MELS, SIZE

LENGTHS = (9, 2, 7)
AUDIO = AudioParams(n_mels=N_MELS, rows_before=2, rows_after=1)
TABLE = torch.from_numpy(gammas(NoiseParams()))
CLEAN = FrameParams(
    previous_noise=0, previous_warp=0, previous_blur=0, previous_hidden=0, audio_dropped=0
)  # fmt: skip
SPOILED = FrameParams(previous_noise=0.3, previous_warp=2, previous_blur=1, previous_hidden=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """Three clips of noise."""
    return worlds.resident(worlds.dataset(tmp_path_factory.mktemp("examples"), LENGTHS))


def drawn(
    data: Resident,
    frames: FrameParams = CLEAN,
    index: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Batch:
    """Examples of all frames, or of those asked for."""
    chosen = np.arange(len(data)) if index is None else np.asarray(index)
    places = np.arange(len(chosen)) if positions is None else np.asarray(positions)
    wanted = select_batch(data.clips, chosen, places, seed=seed, frames=frames, audio=AUDIO)
    return draw(data.seen(wanted), seed=seed, frames=frames, table=TABLE)


def pixels_of(data: Resident, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """FrameSource as a network takes them: (B, 3, H, W)."""
    return data.frames[torch.as_tensor(index)].permute(0, 3, 1, 2)


def numbered(data: Resident) -> Resident:
    """The same clips, but that every pixel of a frame says the frame's number."""
    numbers = torch.arange(len(data), dtype=torch.uint8)[:, None, None, None]
    return replace(data, frames=numbers.expand_as(data.frames).contiguous())


def numbers_of(images: Tensor) -> list[int]:
    """The frames' numbers, read off ``numbered`` pixels outside the mask."""
    return to_pixels(images)[:, 0, 0, 0].tolist()


# --- values, masks --------------------------------------------------------------------------------


def test_all_256_values_go_to_floats_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    images = to_float(pixels)
    assert images[0] == -1 and images[255] == 1
    assert torch.equal(to_pixels(images), pixels)
    assert torch.equal(to_pixels(images + 0.49 / 127.5), pixels), "rounded, not cut off"
    assert to_pixels(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_a_mask_is_one_on_the_boxs_pixels_alone() -> None:
    boxes = torch.tensor([[4, 8, 12, 15], [0, 0, 1, 1], [0, 0, 16, 16], [15, 2, 16, 9]], dtype=torch.int16)
    masks = boxes_to_masks(boxes, SIZE)
    assert masks.shape == (4, 1, SIZE, SIZE)
    assert masks.sum(dim=(1, 2, 3)).tolist() == [8 * 7, 1, 256, 7]
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        assert (mask[0, y0:y1, x0:x1] == 1).all()


def test_the_lips_lie_in_the_box() -> None:
    boxes = torch.tensor([[4, 8, 12, 15], [0, 0, 128, 128], [30, 70, 100, 127]], dtype=torch.int16)
    x0, y0, x1, y1 = (lip_boxes(boxes) - boxes).unbind(dim=1)
    assert (x0 > 0).all() and (y0 > 0).all() and (x1 < 0).all() and (y1 < 0).all()
    inside = boxes_to_masks(lip_boxes(boxes), 128)
    assert (inside <= boxes_to_masks(boxes, 128)).all()
    area = inside.sum(dim=(1, 2, 3)) / boxes_to_masks(boxes, 128).sum(dim=(1, 2, 3))
    assert area[1:].tolist() == pytest.approx([0.28, 0.28], abs=0.02)


# --- which frames ---------------------------------------------------------------------------------


def test_the_frame_itself_the_one_before_and_its_sound_belong_together(data: Resident) -> None:
    shown = drawn(data, replace(CLEAN, before_first="target"))
    assert torch.equal(to_pixels(shown.y_0), pixels_of(data, range(len(data))))
    assert numbers_of(drawn(numbered(data)).previous) == [0, *range(8), 9, 9, 11, *range(11, 17)]
    assert torch.equal(shown.mels, data.mels[data.mel_row[:, None] + torch.arange(-2, 2)])
    assert shown.heard.all()


def test_the_identity_is_any_frame_of_the_clip_but_the_target(data: Resident) -> None:
    world = numbered(data)
    clips = [range(9), range(9, 11), range(11, 18)]
    for clip in clips:
        for frame in clip:
            times = 60 * len(clip)
            shown = drawn(world, index=[frame] * times)
            seen, counts = np.unique(numbers_of(shown.identity), return_counts=True)
            assert seen.tolist() == [other for other in clip if other != frame]
            expected = times / (len(clip) - 1)
            assert np.abs(counts - expected).max() < 4.5 * expected**0.5, "each as often as any other"


def test_the_papers_identity_is_frame_0_of_the_clip(data: Resident) -> None:
    shown = drawn(numbered(data), replace(CLEAN, identity="first"))
    assert numbers_of(shown.identity) == [0] * 9 + [9] * 2 + [11] * 7


@pytest.mark.parametrize("frames", [CLEAN, SPOILED])
def test_a_clips_first_frame_shows_its_mouth_to_the_papers_network_and_not_to_ours(
    data: Resident, frames: FrameParams
) -> None:
    """FrameSource that differ in their mouths alone: is what stands before them the same?"""
    x0, y0, x1, y1 = data.boxes[0].tolist()
    other = data.frames.clone()
    other[:, y0:y1, x0:x1] = 255 - other[:, y0:y1, x0:x1]
    turned = replace(data, frames=other)
    firsts = [0, 9, 11] * 20
    for before_first, leaks in (("target", True), ("hidden", False)):
        params = replace(frames, before_first=before_first, previous_hidden=0)  # type: ignore[arg-type]
        ours, theirs = drawn(data, params, firsts), drawn(turned, params, firsts)
        assert torch.equal(ours.previous, theirs.previous) != leaks
    sampled = [
        make_evaluation_batch(
            world, np.array([0, 9, 11]), torch.ones(3), seed=0, frames=frames, audio=AUDIO
        ).previous
        for world in (data, turned)
    ]
    assert torch.equal(*sampled)


@pytest.mark.parametrize("frames", [CLEAN, SPOILED])
def test_a_hidden_mouth_cannot_be_copied(data: Resident, frames: FrameParams) -> None:
    x0, y0, x1, y1 = data.boxes[0].tolist()
    other = data.frames.clone()
    other[:, y0:y1, x0:x1] = 255 - other[:, y0:y1, x0:x1]
    hiding = replace(frames, previous_hidden=1)
    shown = drawn(data, hiding).previous
    assert torch.equal(shown, drawn(replace(data, frames=other), hiding).previous)
    assert (shown[..., y0:y1, x0:x1] == 0).all(), "grey"


def test_what_is_hidden_is_the_box_of_the_frame_before_and_nothing_else(data: Resident) -> None:
    boxes = data.boxes.clone()
    boxes[3] = torch.tensor([1, 2, 5, 4])
    world = replace(data, boxes=boxes)
    shown = drawn(world, replace(CLEAN, previous_hidden=1), index=[4])
    frame = to_float(pixels_of(data, [3]))
    mask = boxes_to_masks(boxes[3:4], SIZE).bool().expand_as(frame)
    assert (shown.previous[mask] == 0).all()
    assert torch.equal(shown.previous[~mask], frame[~mask])


# --- how they are spoiled -------------------------------------------------------------------------


def test_strengths_of_0_leave_the_frame_bit_for_bit(data: Resident) -> None:
    shown = drawn(data, replace(CLEAN, before_first="target"))
    before = [0, *range(8), 9, 9, 11, *range(11, 17)]
    assert torch.equal(shown.previous, to_float(pixels_of(data, before)))


def test_no_pixel_is_warped_further_than_was_said(data: Resident) -> None:
    """On frames whose red says x and green says y, a warped pixel tells where it came from."""
    place = 16 * torch.arange(SIZE, dtype=torch.uint8)
    ramp = torch.zeros_like(data.frames)
    ramp[..., 0], ramp[..., 1] = place[None, None, :], place[None, :, None]
    frames = replace(CLEAN, previous_warp=1.5, before_first="target")
    shown = drawn(replace(data, frames=ramp), frames, index=[5] * 600)
    came_from = (shown.previous[:, :2] + 1) * 127.5 / 16
    moved = (came_from - torch.stack(torch.meshgrid([torch.arange(SIZE)] * 2, indexing="xy"))).abs()
    assert moved.max() <= 1.5 + 1e-4
    assert moved.max() > 1.1, "600 draws come near the limit"
    assert moved.mean(dim=0).min() > 0.1, "every pixel moves"


def test_a_blur_spreads_a_point_and_keeps_its_light(data: Resident) -> None:
    point = torch.full_like(data.frames, 0)
    point[:, 8, 8] = 255
    frames = replace(CLEAN, previous_blur=1, before_first="target")
    shown = drawn(replace(data, frames=point), frames, index=[5] * 50)
    light = (shown.previous + 1) / 2
    assert torch.allclose(light.sum(dim=(2, 3)), torch.ones(50, 3), atol=1e-4)
    strength = (1 - light[:, 0, 8, 8]) / (1 - BINOMIAL[2] ** 2)
    assert strength.min() >= 0 and strength.max() <= 1 and strength.std() > 0.2
    assert torch.allclose(light[:, 0, 6, 8], strength * BINOMIAL[0] * BINOMIAL[2], atol=1e-5)


def test_noise_has_at_most_the_strength_that_was_said(data: Resident) -> None:
    frames = replace(CLEAN, previous_noise=0.2, before_first="target")
    index = [5] * 200
    noise = (
        drawn(data, frames, index).previous - drawn(data, replace(frames, previous_noise=0), index).previous
    )
    strengths = noise.std(dim=(1, 2, 3))
    assert strengths.max() < 0.2 * 1.1
    assert strengths.mean().item() == pytest.approx(0.1, abs=0.02)


def test_mouths_and_sound_are_dropped_as_often_as_was_said(data: Resident) -> None:
    frames = replace(CLEAN, previous_hidden=0.5, audio_dropped=0.1)
    shown = drawn(data, frames, index=[5] * 2000)
    x0, y0, _, _ = data.boxes[5].tolist()
    hidden = (shown.previous[:, :, y0, x0] == 0).all(dim=1)
    assert hidden.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (~shown.heard).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert abs(np.corrcoef(hidden.numpy(), shown.heard.numpy())[0, 1]) < 0.1, "one has no say in the other"


def test_noise_levels_lie_within_the_schedule(data: Resident) -> None:
    gamma = drawn(data, index=[5] * 2000).gamma.double()
    assert gamma.min() >= TABLE[-1].float() and gamma.max() <= TABLE[0].float()
    place = np.interp(gamma.numpy(), TABLE.numpy()[::-1], np.linspace(1, 0, len(TABLE)))
    assert np.quantile(place, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.04)


# --- the same in every batch ----------------------------------------------------------------------


def equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(getattr(left, item.name), getattr(right, item.name)) for item in fields(left))


def part(shown: Batch, rows: slice) -> Batch:
    return Batch(**{item.name: getattr(shown, item.name)[rows] for item in fields(shown)})


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_a_sample_is_the_same_alone_and_in_any_batch(data: Resident, micro: int) -> None:
    index, positions = [4, 9, 0, 17, 4, 12, 3, 3, 8, 10], list(range(70, 80))
    together = drawn(data, SPOILED, index, positions)
    for k in range(0, 10, micro):
        rows = slice(k, k + micro)
        assert equal(drawn(data, SPOILED, index[rows], positions[rows]), part(together, rows))


def test_a_frame_drawn_again_is_noised_and_spoiled_anew(data: Resident) -> None:
    shown = drawn(data, SPOILED, index=[5, 5], positions=[3, 900])
    for name in ("previous", "identity", "gamma", "epsilon", "words"):
        assert not torch.equal(getattr(shown, name)[0], getattr(shown, name)[1]), name
    assert torch.equal(shown.y_0[0], shown.y_0[1])
    assert not torch.equal(shown.epsilon, drawn(data, SPOILED, [5, 5], [3, 900], seed=1).epsilon)


def test_held_out_examples_are_the_same_at_every_call_and_spoiled_by_nothing(data: Resident) -> None:
    index = np.arange(len(data))

    def told() -> Batch:
        levels = even_gammas(len(data), TABLE)
        return make_evaluation_batch(data, index, levels, seed=0, frames=SPOILED, audio=AUDIO)

    one, two = told(), told()
    assert one.words is None
    assert equal(replace(one, words=one.heard), replace(two, words=two.heard))
    assert one.heard.all()
    first = torch.isin(torch.arange(len(data)), torch.from_numpy(data.clips.starts))
    before = to_float(pixels_of(data, index - 1))
    assert torch.equal(one.previous[~first], before[~first])
    place = np.interp(one.gamma.double(), TABLE.numpy()[::-1], np.linspace(1, 0, len(TABLE)))
    assert np.diff(np.sort(place)).max() < 2 / len(data), "levels are spread evenly"
