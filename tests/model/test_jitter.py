"""Jitter moves images and their boxes alike, by at most what it is asked for."""

from __future__ import annotations

import math

import pytest
import torch

from model.batch import boxes_to_masks
from model.jitter import change_colours, draw_similarity

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
