"""Batches hold the right frames, corrupted with the right strength, and do not depend on the batching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

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
    build_network_input,
    compute_lip_boxes,
    hide_mask_region,
    make_batch,
    make_evaluation_batch,
    select_batch,
    to_float,
    to_pixels,
)
from model.denoiser import NoiseParams, gammas
from model.epochs import EpochCounter, load_batches
from model.execution import Execution
from model.monitor import spread_gammas
from model.objective import add_noise_in_mask
from model.unet import UNetParams
from shards.frames import BoxMargins
from shards.resident import Resident
from shards.schema import ShardError
from tests.model import worlds
from tests.model.worlds import ALONE, N_MELS, SIZE, TINY

LENGTHS = (9, 2, 7)
SPEECH_SIZE = 3
AUDIO = AudioParams(
    n_mels=N_MELS,
    rows_before=2,
    rows_after=1,
    input="both",
    speech_size=SPEECH_SIZE,
    speech_rows_before=1,
    speech_rows_after=2,
)
TABLE = torch.from_numpy(gammas(NoiseParams()))
CLEAN = FrameParams(
    previous_noise=0, previous_warp=0, previous_blur=0, previous_hidden=0, audio_dropped=0
)  # fmt: skip
CORRUPTED = FrameParams(previous_noise=0.3, previous_warp=2, previous_blur=1, previous_hidden=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """Three clips of noise."""
    folder = worlds.make_dataset(tmp_path_factory.mktemp("examples"), LENGTHS, speech_size=SPEECH_SIZE)
    return worlds.load_dataset(folder, speech_size=SPEECH_SIZE)


def draw_batch(
    data: Resident,
    frames: FrameParams = CLEAN,
    index: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Batch:
    """A batch of all frames, or of the frames ``index``."""
    target = np.arange(len(data)) if index is None else np.asarray(index)
    places = np.arange(len(target)) if positions is None else np.asarray(positions)
    batch_index = select_batch(data.clips, target, places, seed=seed, frames=frames, audio=AUDIO)
    return make_batch(data.read_batch(batch_index), seed=seed, frames=frames, table=TABLE)


def get_pixels(data: Resident, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """Frames in the layout of the network: (B, 3, H, W) uint8."""
    return data.frames[torch.as_tensor(index)].permute(0, 3, 1, 2)


def number_frames(data: Resident) -> Resident:
    """The same clips, with every pixel of a frame set to the frame's number."""
    numbers = torch.arange(len(data), dtype=torch.uint8)[:, None, None, None]
    return replace(data, frames=numbers.expand_as(data.frames).contiguous())


def read_numbers(images: Tensor) -> list[int]:
    """The numbers that ``number_frames`` wrote, read outside the mask."""
    return to_pixels(images)[:, 0, 0, 0].tolist()


# --- values, masks --------------------------------------------------------------------------------


def test_all_256_values_survive_a_round_trip_through_float() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    images = to_float(pixels)
    assert images[0] == -1 and images[255] == 1
    assert torch.equal(to_pixels(images), pixels)
    assert torch.equal(to_pixels(images + 0.49 / 127.5), pixels), "rounded, not truncated"
    assert to_pixels(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_a_mask_is_1_on_the_pixels_of_the_box_only() -> None:
    boxes = torch.tensor([[4, 8, 12, 15], [0, 0, 1, 1], [0, 0, 16, 16], [15, 2, 16, 9]], dtype=torch.int16)
    masks = boxes_to_masks(boxes, SIZE)
    assert masks.shape == (4, 1, SIZE, SIZE)
    assert masks.sum(dim=(1, 2, 3)).tolist() == [8 * 7, 1, 256, 7]
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        assert (mask[0, y0:y1, x0:x1] == 1).all()


def test_the_lip_box_is_inside_the_mask_box() -> None:
    boxes = torch.tensor([[4, 8, 12, 15], [0, 0, 128, 128], [30, 70, 100, 127]], dtype=torch.int16)
    x0, y0, x1, y1 = (compute_lip_boxes(boxes, 128) - boxes).unbind(dim=1)
    assert (x0 > 0).all() and (y0 > 0).all() and (x1 < 0).all() and (y1 < 0).all()
    inside = boxes_to_masks(compute_lip_boxes(boxes, 128), 128)
    assert (inside <= boxes_to_masks(boxes, 128)).all()
    area = inside.sum(dim=(1, 2, 3)) / boxes_to_masks(boxes, 128).sum(dim=(1, 2, 3))
    assert area[1:].tolist() == pytest.approx([0.28, 0.28], abs=0.02)


# --- which frames ---------------------------------------------------------------------------------


def test_the_target_its_previous_frame_and_its_mels_belong_together(data: Resident) -> None:
    batch = draw_batch(data, replace(CLEAN, before_first="target"))
    assert torch.equal(to_pixels(batch.y_0), get_pixels(data, range(len(data))))
    assert read_numbers(draw_batch(number_frames(data)).previous) == [0, *range(8), 9, 9, 11, *range(11, 17)]
    assert torch.equal(batch.mels, data.mels[data.mel_row[:, None] + torch.arange(-2, 2)])
    assert batch.has_audio.all()


def test_the_identity_is_any_frame_of_the_clip_but_the_target(data: Resident) -> None:
    source = number_frames(data)
    clips = [range(9), range(9, 11), range(11, 18)]
    for clip in clips:
        for frame in clip:
            times = 60 * len(clip)
            batch = draw_batch(source, index=[frame] * times)
            numbers, counts = np.unique(read_numbers(batch.identity), return_counts=True)
            assert numbers.tolist() == [other for other in clip if other != frame]
            expected = times / (len(clip) - 1)
            assert np.abs(counts - expected).max() < 4.5 * expected**0.5, "all are equally frequent"


def test_the_identity_of_the_paper_is_frame_0_of_the_clip(data: Resident) -> None:
    batch = draw_batch(number_frames(data), replace(CLEAN, identity="first"))
    assert read_numbers(batch.identity) == [0] * 9 + [9] * 2 + [11] * 7


@pytest.mark.parametrize("frames", [CLEAN, CORRUPTED])
def test_the_mouth_of_a_clips_first_frame_leaks_in_the_papers_recipe_and_not_in_ours(
    data: Resident, frames: FrameParams
) -> None:
    """For frames that differ in their mouths only: are their previous frames equal?"""
    x0, y0, x1, y1 = data.boxes[0].tolist()
    other = data.frames.clone()
    other[:, y0:y1, x0:x1] = 255 - other[:, y0:y1, x0:x1]
    inverted = replace(data, frames=other)
    firsts = [0, 9, 11] * 20
    for before_first, leaks in (("target", True), ("hidden", False)):
        params = replace(frames, before_first=before_first, previous_hidden=0)  # type: ignore[arg-type]
        one, two = draw_batch(data, params, firsts), draw_batch(inverted, params, firsts)
        assert torch.equal(one.previous, two.previous) != leaks
    previous = [
        make_evaluation_batch(
            source, np.array([0, 9, 11]), torch.ones(3), seed=0, frames=frames, audio=AUDIO
        ).previous
        for source in (data, inverted)
    ]
    assert torch.equal(*previous)


@pytest.mark.parametrize("frames", [CLEAN, CORRUPTED])
def test_a_hidden_mouth_cannot_be_copied(data: Resident, frames: FrameParams) -> None:
    x0, y0, x1, y1 = data.boxes[0].tolist()
    other = data.frames.clone()
    other[:, y0:y1, x0:x1] = 255 - other[:, y0:y1, x0:x1]
    hiding = replace(frames, previous_hidden=1)
    previous = draw_batch(data, hiding).previous
    assert torch.equal(previous, draw_batch(replace(data, frames=other), hiding).previous)
    assert (previous[..., y0:y1, x0:x1] == 0).all(), "grey"


def test_only_the_mask_box_of_the_previous_frame_is_hidden(data: Resident) -> None:
    boxes = data.boxes.clone()
    boxes[3] = torch.tensor([1, 2, 5, 4])
    source = replace(data, boxes=boxes)
    batch = draw_batch(source, replace(CLEAN, previous_hidden=1), index=[4])
    frame = to_float(get_pixels(data, [3]))
    mask = boxes_to_masks(boxes[3:4], SIZE).bool().expand_as(frame)
    assert (batch.previous[mask] == 0).all()
    assert torch.equal(batch.previous[~mask], frame[~mask])


# --- what lies outside the mask -------------------------------------------------------------------


def read_context(batch: Batch) -> list[int]:
    """The numbers that ``number_frames`` wrote, in what the noisy frame shows outside the mask."""
    return read_numbers(add_noise_in_mask(batch))


def test_outside_the_mask_the_network_sees_the_target_and_the_previous_frame_by_default(
    data: Resident,
) -> None:
    batch = draw_batch(number_frames(data))
    assert read_context(batch) == list(range(len(data)))
    assert read_numbers(batch.previous) == [0, *range(8), 9, 9, 11, *range(11, 17)]


def test_outside_the_mask_the_network_sees_a_third_frame_of_the_clip(data: Resident) -> None:
    """Not the target nor the identity frame; the same in the noisy and in the previous frame."""
    for index, clip in (([4] * 300, range(9)), ([13] * 300, range(11, 18))):
        batch = draw_batch(number_frames(data), replace(CLEAN, context_share=1), index)
        context = read_context(batch)
        assert read_numbers(batch.previous) == context
        assert set(context) == set(clip) - {index[0]}
        assert all(frame != other for frame, other in zip(context, read_numbers(batch.identity), strict=True))


@pytest.mark.parametrize("frames", [CLEAN, CORRUPTED])
def test_with_another_context_nothing_that_the_network_sees_depends_on_the_target(
    data: Resident, frames: FrameParams
) -> None:
    """Of two datasets that differ in the target frame only, inputs are equal but for the noisy mouth."""
    other = data.frames.clone()
    other[4] = 255 - other[4]
    sources = data, replace(data, frames=other)

    def read_inputs(share: float) -> list[list[Tensor]]:
        params = replace(frames, context_share=share, previous_hidden=1)
        batches = [draw_batch(source, params, index=[4] * 20) for source in sources]
        return [[hide_mask_region(add_noise_in_mask(batch), batch.mask), batch.previous, batch.identity]
                for batch in batches]  # fmt: skip

    assert all(map(torch.equal, *read_inputs(share=1)))
    assert not all(map(torch.equal, *read_inputs(share=0)))


def test_the_context_is_another_frame_in_its_share_of_the_samples_and_only_at_high_noise(
    data: Resident,
) -> None:
    source, index = number_frames(data), [4] * 2000
    batch = draw_batch(source, replace(CLEAN, context_share=0.3), index)
    is_other = np.array(read_context(batch)) != 4
    assert is_other.mean() == pytest.approx(0.3, abs=0.04)
    limited = draw_batch(source, replace(CLEAN, context_share=1, context_min_noise=0.5), index)
    assert ((np.array(read_context(limited)) != 4) == (1 - limited.gamma.numpy() >= 0.5)).all()
    assert (np.array(read_numbers(limited.previous)) == 3)[1 - limited.gamma.numpy() < 0.5].all()


def test_a_clip_of_two_frames_has_no_third_frame(data: Resident) -> None:
    batch = draw_batch(number_frames(data), replace(CLEAN, context_share=1), index=[9, 10])
    assert read_context(batch) == [9, 10]


def make_evaluation(
    data: Resident, index: Sequence[int], *, listening: bool, audio: AudioParams = AUDIO
) -> Batch:
    gamma = torch.full((len(index),), 0.5)
    return make_evaluation_batch(
        data, np.array(index), gamma, seed=0, frames=CORRUPTED, audio=audio, listening=listening
    )


@pytest.mark.parametrize("listening", [True, False])
def test_an_evaluation_shows_a_third_frame_and_no_previous_mouth_only_when_it_is_of_listening(
    data: Resident, listening: bool
) -> None:
    """Of clips whose frames have one colour each, and a mask box that moves."""
    boxes = data.boxes.clone()
    boxes[::2] = torch.tensor([1, 6, 9, 14])
    source = replace(number_frames(data), boxes=boxes)
    index = [*range(1, 9), *range(12, 18)]
    batch = make_evaluation(source, index, listening=listening)
    noisy, numbers = to_pixels(add_noise_in_mask(batch))[:, 0], to_pixels(batch.previous)[:, 0]
    identity = read_numbers(batch.identity)
    for row, frame in enumerate(index):
        clip = range(9) if frame < 9 else range(11, 18)
        is_mouth, was_mouth = boxes_to_masks(boxes[[frame, frame - 1]], SIZE)[:, 0].bool()
        [context] = set(noisy[row][~is_mouth].tolist())
        [surroundings] = set(numbers[row][~was_mouth].tolist())
        if listening:
            assert context == surroundings and context in set(clip) - {frame, identity[row]}
            assert (batch.previous[row][:, was_mouth] == 0).all(), "grey"
        else:
            assert (context, surroundings) == (frame, frame - 1)
            assert (numbers[row] == frame - 1).all(), "with its mouth"


def test_an_evaluation_of_listening_does_not_depend_on_what_the_target_shows_outside_the_mask(
    data: Resident,
) -> None:
    """Of two datasets that differ there only."""
    index, other = 4, data.frames.clone()
    is_outside = boxes_to_masks(data.boxes[[index]], SIZE)[0, 0] == 0
    other[index][is_outside] = 255 - other[index][is_outside]

    def read_inputs(listening: bool) -> list[list[Tensor]]:
        batches = [
            make_evaluation(source, [index], listening=listening)
            for source in (data, replace(data, frames=other))
        ]
        return [[add_noise_in_mask(batch), batch.previous, batch.identity] for batch in batches]

    assert all(map(torch.equal, *read_inputs(listening=True)))
    assert not all(map(torch.equal, *read_inputs(listening=False)))


def test_a_mask_region_replaces_the_boxes_of_the_dataset(data: Resident) -> None:
    frames = replace(CLEAN, mask_region=(1, 5, 15, 16), previous_hidden=1)
    batch = draw_batch(data, frames)
    expected = torch.zeros(1, 1, SIZE, SIZE)
    expected[..., 5:16, 1:15] = 1
    assert torch.equal(batch.mask, expected.expand_as(batch.mask))
    hidden = (batch.previous == 0).all(dim=1, keepdim=True)
    assert torch.equal(hidden.float(), batch.mask)
    assert torch.equal(batch.lips, draw_batch(data).lips), "the lips stay where they are"


@pytest.mark.parametrize(
    "margins",
    [
        BoxMargins(below_nose=-12),
        BoxMargins(below_chin=20, beside_face=9),
        BoxMargins(below_nose=6, below_chin=0),
    ],
)
def test_the_lips_are_found_for_every_margin_of_the_mask_boxes(margins: BoxMargins) -> None:
    """The same face with other margins: the lips are in the same place."""
    box = torch.tensor([[30.0, 60.0, 90.0, 100.0]])
    wider = torch.tensor([[
        30 - (margins.beside_face - 2), 60 + (margins.below_nose - 2), 90 + (margins.beside_face - 2),
        100 + (margins.below_chin - 4),
    ]])  # fmt: skip
    assert torch.allclose(compute_lip_boxes(wider, 128, margins), compute_lip_boxes(box, 128))


def test_the_lips_of_a_box_that_the_crops_edge_cuts_off_are_those_of_a_usual_face() -> None:
    """The default box of this face ends at row 123; with 60 px below the chin it ends at the edge."""
    default = compute_lip_boxes(torch.tensor([[23, 80, 97, 123]]), 128)
    cut_off = compute_lip_boxes(torch.tensor([[17, 80, 103, 128]]), 128, BoxMargins(2, 60, 8))
    assert torch.allclose(cut_off, default)


@pytest.mark.parametrize("change", [{}, {"mirror_share": 1.0}, {"common_gamma": 0.5}])
def test_the_lips_of_a_dataset_with_other_margins_are_in_the_same_place_in_training_and_evaluation(
    tmp_path: Path, change: dict[str, float]
) -> None:
    """One face in crops of 16 px, whose box begins 2 px below the nose of a crop of 128 or 14 px above it."""
    datasets = [
        worlds.make_dataset(tmp_path / "default", box=(4, 8, 12, 15)),
        worlds.make_dataset(tmp_path / "higher", box=(4, 6, 12, 15), below_nose=-14),
    ]
    recipe = replace(TINY, frames=replace(TINY.frames, **change))  # type: ignore[arg-type]
    training, evaluation = [], []
    for data in map(worlds.load_dataset, datasets):
        counter = EpochCounter(len(data))
        batches = load_batches(data, recipe, ALONE, Execution(), 0, counter, prefetch=False)
        training.append(next(batches)[0])
        evaluation.append(make_evaluation(data, [4, 5], listening=False, audio=TINY.network.audio))
        batches.close()
    for default, higher in (training, evaluation):
        assert torch.equal(default.lips, higher.lips) and default.lips.any()
        assert not torch.equal(default.mask, higher.mask)


# --- jitter ---------------------------------------------------------------------------------------


def test_target_previous_and_context_are_jittered_alike_and_the_identity_not(data: Resident) -> None:
    """In a clip of equal frames they stay equal to each other, and differ from the identity."""
    still = replace(data, frames=data.frames[4].expand_as(data.frames))
    frames = replace(
        CLEAN, context_share=1, jitter_shift=2, jitter_rotation=4, jitter_scale=0.05, jitter_colour=0.1,
    )  # fmt: skip
    batch = draw_batch(still, frames, index=[4] * 10)
    assert torch.equal(batch.y_0, batch.previous) and torch.equal(batch.y_0, batch.context)
    assert torch.equal(to_pixels(batch.identity), get_pixels(still, [4] * 10))
    assert (batch.y_0 - batch.identity).abs().mean(dim=(1, 2, 3)).min() > 0.01
    assert (batch.y_0[0] - batch.y_0[1]).abs().mean() > 0.01, "each sample has its own"


LOOK = FrameParams(**{f"common_{name}": 0.9 for name in ("gamma", "contrast", "colour")}, common_hue=90)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_pictures_of_a_sample_have_the_same_other_appearance(data: Resident, share: float) -> None:
    """In a clip of equal frames all four stay equal to each other."""
    still = replace(data, frames=data.frames[4].expand_as(data.frames))
    look = {name: getattr(LOOK, name) for name in ("common_gamma", "common_contrast", "common_hue",
                                                   "common_colour")}  # fmt: skip
    batch = draw_batch(still, replace(CLEAN, context_share=share, **look), index=[4] * 10)
    pictures = (batch.previous, batch.identity, batch.context)
    assert all(torch.equal(batch.y_0, picture) for picture in pictures)
    assert (batch.y_0 - to_float(get_pixels(still, [4] * 10))).abs().mean(dim=(1, 2, 3)).min() > 0.02
    assert (batch.y_0[0] - batch.y_0[1]).abs().mean() > 0.02, "each sample has its own"
    assert batch.y_0.min() >= -1 and batch.y_0.max() <= 1


@pytest.mark.parametrize("change", [{"common_gamma": 1.0}, {"common_contrast": 0.3}, {"common_hue": 20.0},
                                    {"common_colour": 0.3}, {"mirror_share": 0.5}])  # fmt: skip
def test_another_appearance_changes_pictures_alone_and_depends_on_the_position(
    data: Resident, change: dict[str, float]
) -> None:
    frames = replace(CORRUPTED, context_share=1.0)
    plain, changed = draw_batch(data, frames), draw_batch(data, replace(frames, **change))
    pictures = {"y_0", "previous", "identity", "context"}
    for name in {item.name for item in fields(Batch)} - (
        {"mask", "lips"} if "mirror_share" in change else set()
    ):
        is_equal = torch.equal(getattr(plain, name), getattr(changed, name))
        assert is_equal == (name not in pictures), name
    some = draw_batch(data, replace(frames, **change), index=[9, 4], positions=[9, 4])
    for name in pictures:
        assert torch.equal(getattr(some, name), getattr(changed, name)[[9, 4]]), name


def test_a_mirrored_sample_is_mirrored_in_every_picture_and_mask(data: Resident) -> None:
    boxes = data.boxes.clone()
    boxes[::2] = torch.tensor([1, 6, 9, 14])
    source = replace(data, boxes=boxes)
    frames = replace(CLEAN, context_share=1, previous_hidden=0.5)
    plain, mirrored = draw_batch(source, frames), draw_batch(source, replace(frames, mirror_share=1))
    for name in ("y_0", "previous", "identity", "context", "mask", "lips"):
        assert torch.equal(getattr(mirrored, name), getattr(plain, name).flip(-1)), name
    half = draw_batch(source, replace(frames, mirror_share=0.5), index=[4] * 400).y_0
    is_mirrored = (half == mirrored.y_0[4]).all(dim=(1, 2, 3))
    assert is_mirrored.float().mean() == pytest.approx(0.5, abs=0.1)
    assert (is_mirrored | (half == plain.y_0[4]).all(dim=(1, 2, 3))).all()
    region = replace(frames, mask_region=(1, 5, 15, 16), mirror_share=1)
    assert torch.equal(
        draw_batch(source, region).mask, draw_batch(source, replace(region, mirror_share=0)).mask
    )


def test_a_jittered_mask_does_not_begin_above_the_rows_that_the_network_looks_at(data: Resident) -> None:
    boxes = torch.tensor([4, 8, 12, 15], dtype=torch.int16).expand(len(data), 4).clone()
    source = replace(data, boxes=boxes)
    tops = {}
    for top in (0, 8):
        network, frames = replace(TINY.network, top=top), replace(CLEAN, jitter_shift=4)
        recipe = replace(TINY, network=network, frames=frames, batch=200)
        batches = load_batches(source, recipe, ALONE, Execution(), 0, EpochCounter(len(data)), prefetch=False)
        [batch] = next(batches)
        tops[top] = int(batch.mask.amax(dim=(0, 1, 3)).nonzero().min())
        batches.close()
    assert tops == {0: 4, 8: 8}


def test_with_a_mask_region_the_boxes_of_a_dataset_may_be_anywhere() -> None:
    network = UNetParams(top=56)
    boxes, mels = np.array([[4, 40, 100, 120]]), np.zeros((2, 256))
    with pytest.raises(ShardError, match="begins at row 40"):
        build_network_input(network).check_clip("a", 1, (1, 128, 128, 3), boxes, mels)
    frames = FrameParams(mask_region=(14, 60, 114, 128))
    build_network_input(network, frames).check_clip("a", 1, (1, 128, 128, 3), boxes, mels)


# --- corruption -----------------------------------------------------------------------------------


def test_strengths_of_0_do_not_change_the_frame(data: Resident) -> None:
    batch = draw_batch(data, replace(CLEAN, before_first="target"))
    before = [0, *range(8), 9, 9, 11, *range(11, 17)]
    assert torch.equal(batch.previous, to_float(get_pixels(data, before)))


def test_no_pixel_is_warped_further_than_previous_warp(data: Resident) -> None:
    """In frames whose red is x and whose green is y, a warped pixel contains its origin."""
    place = 16 * torch.arange(SIZE, dtype=torch.uint8)
    ramp = torch.zeros_like(data.frames)
    ramp[..., 0], ramp[..., 1] = place[None, None, :], place[None, :, None]
    frames = replace(CLEAN, previous_warp=1.5, before_first="target")
    batch = draw_batch(replace(data, frames=ramp), frames, index=[5] * 600)
    origin = (batch.previous[:, :2] + 1) * 127.5 / 16
    shift = (origin - torch.stack(torch.meshgrid([torch.arange(SIZE)] * 2, indexing="xy"))).abs()
    assert shift.max() <= 1.5 + 1e-4
    assert shift.max() > 1.1, "the maximum of 600 samples is near the limit"
    assert shift.mean(dim=0).min() > 0.1, "every pixel moves"


def test_a_blur_spreads_a_point_and_preserves_its_brightness(data: Resident) -> None:
    point = torch.full_like(data.frames, 0)
    point[:, 8, 8] = 255
    frames = replace(CLEAN, previous_blur=1, before_first="target")
    batch = draw_batch(replace(data, frames=point), frames, index=[5] * 50)
    brightness = (batch.previous + 1) / 2
    assert torch.allclose(brightness.sum(dim=(2, 3)), torch.ones(50, 3), atol=1e-4)
    strength = (1 - brightness[:, 0, 8, 8]) / (1 - BINOMIAL[2] ** 2)
    assert strength.min() >= 0 and strength.max() <= 1 and strength.std() > 0.2
    assert torch.allclose(brightness[:, 0, 6, 8], strength * BINOMIAL[0] * BINOMIAL[2], atol=1e-5)


def test_noise_has_at_most_the_strength_previous_noise(data: Resident) -> None:
    frames = replace(CLEAN, previous_noise=0.2, before_first="target")
    index = [5] * 200
    noise = (
        draw_batch(data, frames, index).previous
        - draw_batch(data, replace(frames, previous_noise=0), index).previous
    )
    strengths = noise.std(dim=(1, 2, 3))
    assert strengths.max() < 0.2 * 1.1
    assert strengths.mean().item() == pytest.approx(0.1, abs=0.02)


def test_mouths_and_audio_are_dropped_with_their_probabilities(data: Resident) -> None:
    frames = replace(CLEAN, previous_hidden=0.5, audio_dropped=0.1)
    batch = draw_batch(data, frames, index=[5] * 2000)
    x0, y0, _, _ = data.boxes[5].tolist()
    is_hidden = (batch.previous[:, :, y0, x0] == 0).all(dim=1)
    assert is_hidden.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (~batch.has_audio).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert abs(np.corrcoef(is_hidden.numpy(), batch.has_audio.numpy())[0, 1]) < 0.1, "the two are independent"


def test_noise_levels_are_uniform_within_the_schedule(data: Resident) -> None:
    gamma = draw_batch(data, index=[5] * 2000).gamma.double()
    assert gamma.min() >= TABLE[-1].float() and gamma.max() <= TABLE[0].float()
    place = np.interp(gamma.numpy(), TABLE.numpy()[::-1], np.linspace(1, 0, len(TABLE)))
    assert np.quantile(place, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.04)


# --- the same in every batch ----------------------------------------------------------------------


def are_equal(one: Batch, two: Batch) -> bool:
    return all(torch.equal(getattr(one, item.name), getattr(two, item.name)) for item in fields(one))


def select_rows(batch: Batch, rows: slice) -> Batch:
    return Batch(**{item.name: getattr(batch, item.name)[rows] for item in fields(batch)})


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_a_sample_is_the_same_alone_and_in_any_batch(data: Resident, micro: int) -> None:
    index, positions = [4, 9, 0, 17, 4, 12, 3, 3, 8, 10], list(range(70, 80))
    together = draw_batch(data, CORRUPTED, index, positions)
    for k in range(0, 10, micro):
        rows = slice(k, k + micro)
        assert are_equal(
            draw_batch(data, CORRUPTED, index[rows], positions[rows]), select_rows(together, rows)
        )


def test_a_frame_at_another_position_gets_other_noise_and_corruption(data: Resident) -> None:
    batch = draw_batch(data, CORRUPTED, index=[5, 5], positions=[3, 900])
    for name in ("previous", "identity", "gamma", "epsilon", "dropout_keys"):
        assert not torch.equal(getattr(batch, name)[0], getattr(batch, name)[1]), name
    assert torch.equal(batch.y_0[0], batch.y_0[1])
    assert not torch.equal(batch.epsilon, draw_batch(data, CORRUPTED, [5, 5], [3, 900], seed=1).epsilon)


def test_evaluation_batches_are_the_same_at_every_call_and_not_corrupted(data: Resident) -> None:
    index = np.arange(len(data))

    def evaluate() -> Batch:
        levels = spread_gammas(len(data), TABLE)
        return make_evaluation_batch(data, index, levels, seed=0, frames=CORRUPTED, audio=AUDIO)

    one, two = evaluate(), evaluate()
    assert one.dropout_keys is None
    assert are_equal(replace(one, dropout_keys=one.has_audio), replace(two, dropout_keys=two.has_audio))
    assert one.has_audio.all()
    first = torch.isin(torch.arange(len(data)), torch.from_numpy(data.clips.starts))
    before = to_float(get_pixels(data, index - 1))
    assert torch.equal(one.previous[~first], before[~first])
    places = np.interp(one.gamma.double(), TABLE.numpy()[::-1], np.linspace(1, 0, len(TABLE)))
    assert np.diff(np.sort(places)).max() < 2 / len(data), "levels are spread evenly"
