"""Jitter changes images and their boxes alike, by at most what it is asked for."""

from __future__ import annotations

import math

import pytest
import torch

from model.batch import boxes_to_masks
from model.jitter import (
    ColourTransform,
    change_colours,
    draw_colour_transform,
    draw_similarity,
    mirror_boxes,
    mirror_pixels,
)

SIZE = 64


def draw(rows: int = 200, **limits: float):  # type: ignore[no-untyped-def]
    chance = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0))
    return draw_similarity(chance, SIZE, **{"shift": 0.0, "rotation": 0.0, "scale": 0.0} | limits)


def test_half_of_every_range_changes_nothing() -> None:
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    similarity = draw_similarity(torch.full((2, 4), 0.5), SIZE, shift=5, rotation=30, scale=0.5)
    boxes = torch.tensor([[3, 5, 20, 30], [0, 0, SIZE, SIZE]])
    assert torch.allclose(similarity.warp(images), images, atol=1e-5)
    assert torch.equal(similarity.move_boxes(boxes), boxes.float())
    assert torch.allclose(change_colours(images, torch.full((2, 5), 0.5), 0.4), images)


def test_a_pixel_moves_by_the_shift_that_was_drawn() -> None:
    images = torch.full((1, 1, SIZE, SIZE), -1.0)
    images[..., 20, 30] = 1
    similarity = draw_similarity(torch.tensor([[1.0, 0.0, 0.5, 0.5]]), SIZE, shift=4, rotation=0, scale=0)
    moved = similarity.warp(images)[0, 0]
    assert divmod(int(moved.argmax()), SIZE) == (16, 34), "right and up"


def test_a_rotation_by_90_degrees_is_exact() -> None:
    images = torch.rand(1, 3, SIZE, SIZE)
    similarity = draw_similarity(torch.tensor([[0.5, 0.5, 1.0, 0.5]]), SIZE, shift=0, rotation=90, scale=0)
    assert torch.allclose(similarity.warp(images), images.rot90(-1, (2, 3)), atol=1e-4)


@pytest.mark.parametrize("limits", [{"shift": 6.0}, {"rotation": 20.0}, {"scale": 0.2},
                                    {"shift": 3.0, "rotation": 9.0, "scale": 0.1}])  # fmt: skip
def test_a_moved_box_contains_the_moved_pixels_of_the_box(limits: dict[str, float]) -> None:
    box = torch.tensor([[20, 30, 44, 50]])
    similarity = draw(**limits)
    mask = boxes_to_masks(box, SIZE)
    moved = similarity.warp((2 * mask - 1).expand(200, 1, SIZE, SIZE)) > 0
    moved_boxes = similarity.move_boxes(box.expand(200, 4))
    allowed = boxes_to_masks(moved_boxes, SIZE).bool()
    assert not (moved & ~allowed).any()
    grown = (moved_boxes[:, 2:] - moved_boxes[:, :2]).amax(dim=0)
    assert (grown < 24 * 1.25 + 20 * math.sin(math.radians(20)) + 3).all(), (
        "and is not larger than it must be"
    )


def test_colours_change_by_at_most_their_strength() -> None:
    grey = torch.zeros(500, 3, 2, 2)
    chance = torch.rand(500, 5, generator=torch.Generator().manual_seed(1))
    changed = change_colours(grey, chance, 0.2)
    assert changed.abs().max() <= 0.3 and changed.abs().max() > 0.2
    assert (changed.std(dim=1) > 0).any(), "channels change differently"


# --- appearance -----------------------------------------------------------------------------------

STRONGEST = {"gamma": 2.0, "contrast": 0.9, "hue": 180.0, "colour": 0.9}


def draw_one(*chance: float, **limits: float) -> ColourTransform:
    """A change with one row of numbers: exponent, contrast, hue, and the gains of red, green and blue."""
    return draw_colour_transform(torch.tensor([chance]), **dict.fromkeys(STRONGEST, 0.0) | limits)


def change_colour(appearance: ColourTransform, *colour: float) -> list[float]:
    """A colour in [0, 1] as it becomes."""
    pixel = 2 * torch.tensor(colour)[None, :, None, None] - 1
    changed: list[float] = ((appearance.apply(pixel) + 1) / 2).flatten().tolist()
    return changed


def test_the_appearance_at_half_of_every_range_changes_nothing() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = draw_colour_transform(torch.full((4, 6), 0.5), **STRONGEST).apply(images)
    assert torch.allclose(changed, images, atol=1e-6)


def test_an_exponent_contrast_hue_and_gain_do_what_they_say() -> None:
    half = 0.5
    darker = draw_one(1, half, half, half, half, half, gamma=1)
    assert change_colour(darker, 0.5, 0.2, 1) == pytest.approx([0.25, 0.04, 1], abs=1e-6)
    lighter = draw_one(0, half, half, half, half, half, gamma=1)
    assert change_colour(lighter, 0.25, 0.04, 0) == pytest.approx([0.5, 0.2, 0], abs=1e-6)
    flatter = draw_one(half, 0, half, half, half, half, contrast=0.5)
    assert change_colour(flatter, 0.5, 0, 1) == pytest.approx([0.5, 0.25, 0.75], abs=1e-6)
    turned = draw_one(half, half, 1, half, half, half, hue=120)
    assert change_colour(turned, 0.1, 0.2, 0.3) == pytest.approx([0.3, 0.1, 0.2], abs=1e-6), "red to green"
    warmer = draw_one(half, half, half, 1, half, 0, colour=0.2)
    assert change_colour(warmer, 0.5, 0.5, 0.5) == pytest.approx([0.6, 0.5, 0.4], abs=1e-6)


def test_a_hue_leaves_grey_and_its_lightness_as_they_are() -> None:
    for chance in (0, 0.3, 0.8, 1):
        turned = draw_one(0.5, 0.5, chance, 0.5, 0.5, 0.5, hue=180)
        assert change_colour(turned, 0.3, 0.3, 0.3) == pytest.approx([0.3] * 3, abs=1e-6)
        assert sum(change_colour(turned, 0.5, 0.4, 0.45)) == pytest.approx(1.35, abs=1e-6)


def test_whatever_the_appearance_values_stay_in_range_and_are_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = torch.cat(
        [torch.rand(300, 6, generator=generator).round(), torch.rand(300, 6, generator=generator)]
    )
    images = torch.rand(600, 3, 4, 4, generator=generator) * 2 - 1
    images[:, :, 0, 0], images[:, :, 0, 1] = -1, 1
    changed = draw_colour_transform(chance, **STRONGEST).apply(images)
    assert changed.isfinite().all() and changed.min() >= -1 and changed.max() <= 1
    assert changed.shape == images.shape and changed.std(dim=0).min() > 0.1, "each sample has its own"


def test_a_mirrored_box_contains_the_mirrored_pixels_of_the_box() -> None:
    boxes = torch.tensor([[3, 8, 12, 15], [0, 0, SIZE, SIZE], [3.4, 5, 9.6, 7], [10, 3, 11, 4]])
    masks = boxes_to_masks(boxes, SIZE)
    mirrored = torch.tensor([True, True, True, False])
    pixels = mirror_pixels(masks.permute(0, 2, 3, 1), mirrored).permute(0, 3, 1, 2)
    assert torch.equal(boxes_to_masks(mirror_boxes(boxes, mirrored, SIZE), SIZE), pixels)
    assert torch.equal(pixels[3], masks[3]) and torch.equal(pixels[0], masks[0].flip(-1))
    twice = mirror_boxes(mirror_boxes(boxes, mirrored, SIZE), mirrored, SIZE)
    assert torch.equal(twice[[0, 1, 3]], boxes[[0, 1, 3]])
