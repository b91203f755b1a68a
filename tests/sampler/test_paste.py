from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from benchmarks.surroundings import measure_surroundings
from sampler.face_region import CHIN_DROP, TRANSPARENT, Floats
from sampler.paste import MAX_CAST, Patch, correct_colours, paste
from stages.media.crops import compute_supersample, warp

SIZE = 128
BOX = np.array([30, 78, 98, 118], np.int16)
FACE_PX = (223, 130)  # in the photograph
Image = np.ndarray


@pytest.fixture(scope="module")
def photo() -> Image:
    return np.ascontiguousarray(astronaut()[:320, 60:400])


def make_affine(scale: float, degrees: float = 0.0, centre: tuple[float, float] = (163, 130)) -> np.ndarray:
    """Frame to crop: ``centre`` is mapped to the crop's centre, a pixel of the frame to ``scale`` pixels."""
    angle = math.radians(degrees)
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.column_stack([linear, np.array([63.5, 63.5]) - linear @ centre]).astype(np.float32)


def cut_crop(frame: Image, matrix: np.ndarray) -> Image:
    return warp(frame, matrix, SIZE, compute_supersample(matrix[None], 16))


def apply_patch(frame: Image, patch: Patch) -> Image:
    result = frame.copy()
    result[patch.region] = patch.pixels
    return result


def compute_depth(frame: Image, matrix: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How far inside the box each pixel's centre is, px of the crop; negative outside. (H, W)."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    u, v = np.einsum("ij,jhw->ihw", matrix[:, :2].astype(float), np.stack([x, y]).astype(float)) + matrix[
        :, 2, None, None
    ].astype(float)
    return np.minimum.reduce([u - box[0] + 0.5, box[2] - 0.5 - u, v - box[1] + 0.5, box[3] - 0.5 - v])


@settings(max_examples=60)
@given(
    scale=st.floats(0.15, 4),
    degrees=st.floats(-180, 180),
    x=st.floats(-60, 380),
    y=st.floats(-60, 300),
    seed=st.integers(0, 99),
)
def test_no_bit_changes_on_the_border_of_the_box_or_outside_it(
    scale: float, degrees: float, x: float, y: float, seed: int
) -> None:
    """Also where the box extends beyond the frame, or is outside it."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (240, 320, 3), np.uint8)
    matrix = make_affine(scale, degrees, (x, y))
    crop, redrawn = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    patch = paste(frame, crop, redrawn, matrix, BOX)
    assert patch.pixels.shape == frame[patch.region].shape
    depth = compute_depth(frame, matrix, BOX)
    changed = (apply_patch(frame, patch) != frame).any(axis=-1)
    assert not changed[depth <= 0].any()
    assert not (patch.inside & (depth[patch.region] < -1e-9)).any()
    # And inside, away from the border, noise was replaced by other noise.
    deep = depth > 10
    assert changed[deep].mean() > 0.95 if deep.sum() > 20 else True


def test_only_a_rectangle_around_the_box_is_processed(photo: Image) -> None:
    matrix = make_affine(1.0)
    patch = paste(photo, cut_crop(photo, matrix), np.zeros((SIZE, SIZE, 3), np.uint8), matrix, BOX)
    height, width = patch.pixels.shape[:2]
    assert height <= 40 + 2 and width <= 68 + 2


def test_an_unchanged_crop_changes_nothing_at_any_size_of_the_face(photo: Image) -> None:
    for scale, degrees in ((0.2, 3), (0.5, -8), (1.0, 20), (1.9, 0), (3.0, 45)):
        matrix = make_affine(scale, degrees)
        crop = cut_crop(photo, matrix)
        assert np.array_equal(apply_patch(photo, paste(photo, crop, crop, matrix, BOX)), photo), scale


def make_oval(width: float = 50, height: float = 80, centre: tuple[float, float] = (64, 66)) -> Floats:
    angle = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    return np.stack(
        [centre[0] + width / 2 * np.sin(angle), centre[1] - height / 2 * np.cos(angle)], 1
    ).astype(np.float32)


@settings(max_examples=30)
@given(scale=st.floats(0.2, 3), degrees=st.floats(-180, 180), seed=st.integers(0, 99))
def test_no_bit_changes_beside_the_face_and_its_middle_is_the_networks(
    scale: float, degrees: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (240, 320, 3), np.uint8)
    matrix = make_affine(scale, degrees)
    crop, redrawn = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    oval = make_oval()
    result, whole = (
        apply_patch(frame, paste(frame, crop, redrawn, matrix, BOX, each)) for each in (oval, None)
    )
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    u, v = (
        np.einsum("ij,jhw->ihw", matrix[:, :2], np.stack([x, y]).astype(np.float32))
        + matrix[:, 2, None, None]
    )
    beside = np.abs(u - 64) > 25 + TRANSPARENT * SIZE + 2 + 2 / scale
    below = v > 106 + (CHIN_DROP + TRANSPARENT) * SIZE + 2 + 2 / scale
    assert np.array_equal(result[beside | below], frame[beside | below])
    in_middle = (np.abs(u - 64) < 12 - 1 / scale) & (v > BOX[1] + 8) & (v < 104)
    assert (np.abs(result.astype(int) - whole)[in_middle] <= 1).all()


def test_a_chin_that_drops_lower_than_the_sources_is_seen_and_the_collar_beside_it_stays() -> None:
    frame = np.full((SIZE, SIZE, 3), (30, 60, 90), np.uint8)
    box = np.array([20, 60, 108, 124], np.int16)
    oval = make_oval(height=80)  # down to row 106
    cv2.fillPoly(frame, [np.rint(oval).astype(np.int32)], (190, 140, 120))
    redrawn = frame.copy()
    redrawn[60:124, 20:108] = (200, 0, 0)  # all is smeared
    cv2.fillPoly(redrawn, [np.rint(oval + np.float32([0, 7])).astype(np.int32)], (190, 140, 120))
    identity = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    result = apply_patch(frame, paste(frame, frame, redrawn, identity, box, oval))
    assert np.abs(result[110, 64].astype(int) - (190, 140, 120)).max() < 12
    assert np.array_equal(result[118, 30], frame[118, 30]) and np.array_equal(result[80, 24], frame[80, 24])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.9])
def test_texture_that_a_network_smooths_away_stays_the_sources(scale: float) -> None:
    """Stubble and the knit of a collar are finer than what a small network draws, coarser than a pixel."""
    rng = np.random.default_rng(0)
    skin = cv2.GaussianBlur(rng.normal(0, 60, (320, 340, 1)).astype(np.float32), (0, 0), 1.2 / scale)
    frame = np.clip(np.array([190, 140, 120]) + skin[..., None], 0, 255).astype(np.uint8)
    matrix = make_affine(scale)
    crop = cut_crop(frame, matrix)
    redrawn = cv2.GaussianBlur(crop, (0, 0), 2)
    mouth = (slice(92, 104), slice(50, 78))
    redrawn[mouth] = (60, 10, 20)
    result = cut_crop(apply_patch(frame, paste(frame, crop, redrawn, matrix, BOX)), matrix).astype(int)
    x0, y0, x1, y1 = BOX
    far = np.zeros((SIZE, SIZE), bool)
    far[y0:y1, x0:x1] = True
    far[mouth[0].start - 14 : mouth[0].stop + 14, mouth[1].start - 14 : mouth[1].stop + 14] = False
    texture = np.abs(crop.astype(int) - cv2.GaussianBlur(crop, (0, 0), 2))[far].mean()
    assert np.abs(result - crop)[far].mean() < 0.25 * texture  # without it, all is lost
    inner = result[mouth][3:-3, 3:-3].reshape(-1, 3)
    assert np.abs(np.median(inner, axis=0) - (60, 10, 20)).max() < 12  # the mouth is the network's


@pytest.mark.parametrize("cast", [(9, -7, 12), (-20, -20, -20), (MAX_CAST - 2, 0, 0)])
def test_a_colour_cast_of_the_redrawn_disappears(photo: Image, cast: tuple[int, int, int]) -> None:
    matrix = make_affine(0.8, 5)
    frame = np.clip(photo, 40, 215)  # so that no colour is clipped
    crop = cut_crop(frame, matrix)
    redrawn = (crop.astype(int) + cast).astype(np.uint8)
    assert correct_colours(crop, redrawn, BOX) == pytest.approx(crop, abs=0.1)
    difference = np.abs(apply_patch(frame, paste(frame, crop, redrawn, matrix, BOX)).astype(int) - frame)
    assert difference.max() <= 1


def test_a_cast_is_found_although_the_mouth_and_a_part_of_the_border_differ() -> None:
    """A third of the border shows something else, as where the jaw has moved."""
    rng = np.random.default_rng(0)
    crop = np.full((SIZE, SIZE, 3), (190, 140, 120), np.uint8)
    redrawn = (crop + np.array([10, -8, 6]) + rng.integers(-3, 4, crop.shape)).astype(np.uint8)
    redrawn[88:108, 45:85] = (90, 20, 30)
    redrawn[-24:, :] = (40, 60, 70)
    added = correct_colours(crop, redrawn, BOX) - redrawn
    for row, column in ((80, 32), (80, 96), (98, 64), (98, 40)):
        assert added[row, column] == pytest.approx([-10, 8, -6], abs=0.5)


def test_the_two_cheeks_are_corrected_each_by_what_it_needs_and_the_middle_by_what_lies_between() -> None:
    crop = np.full((SIZE, SIZE, 3), (190, 140, 120), np.uint8)
    x0, y0, x1, y1 = BOX
    cast = np.linspace(-20, 20, x1 - x0)[None, :, None]
    redrawn = crop.copy()
    redrawn[y0:y1, x0:x1] = np.rint(crop[y0:y1, x0:x1] + cast)
    error = np.abs(correct_colours(crop, redrawn, BOX).astype(int) - crop)[y0:y1, x0:x1]
    assert error[:, [0, -1]].max() <= 10 and error[:, 34].max() < 2
    assert error.mean() < 4  # 10 without, or with one cast for all


def test_other_colours_are_no_cast() -> None:
    crop = np.full((SIZE, SIZE, 3), (190, 140, 120), np.uint8)
    blue = np.full((SIZE, SIZE, 3), (0, 60, 255), np.uint8)
    assert np.array_equal(correct_colours(crop, blue, BOX), blue)
    # And the correction grows gradually with the share of the border that is the same.
    offsets = []
    for columns in range(30, 99, 2):
        redrawn = blue.copy()
        redrawn[:, :columns] = (180, 140, 120)
        offsets.append((correct_colours(crop, redrawn, BOX) - redrawn)[90, 30, 0])
    assert offsets[0] == 0 and offsets[-1] == pytest.approx(10, abs=0.01)
    assert np.all(np.diff(offsets) >= 0) and np.max(np.diff(offsets)) < 3


def test_the_crop_is_pasted_where_the_affine_maps_it(photo: Image) -> None:
    """A disc drawn in the crop is centred on the expected pixel, however the face is rotated and scaled."""
    for scale, degrees in ((0.25, 10), (0.7, -30), (1.0, 0), (2.3, 100)):
        matrix = make_affine(scale, degrees)
        crop = cut_crop(photo, matrix)
        redrawn = crop.copy()
        redrawn[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (0, 0, 255)
        cv2.circle(redrawn, (64, 98), 9, (255, 255, 0), -1)
        result = apply_patch(photo, paste(photo, crop, redrawn, matrix, BOX)).astype(int)
        yellow = (result[..., 0] > 128) & (result[..., 2] < 128) & (compute_depth(photo, matrix, BOX) > 8)
        y, x = np.nonzero(yellow)
        expected = np.linalg.solve(matrix[:, :2].astype(float), np.array([64, 98]) - matrix[:, 2])
        assert (x.mean(), y.mean()) == pytest.approx(expected, abs=0.6)
        assert np.sqrt(yellow.sum() / math.pi) * scale == pytest.approx(9, abs=1)


def test_the_feather_has_no_step(photo: Image) -> None:
    """White on black: neighbouring pixels never differ by more than the feather's slope allows."""
    frame = np.zeros_like(photo)
    for scale in (0.25, 1.0):
        matrix = make_affine(scale)
        crop = cut_crop(frame, matrix)
        result = apply_patch(frame, paste(frame, crop, np.full_like(crop, 255), matrix, BOX)).astype(int)[
            ..., 0
        ]
        assert result.max() == 255
        steepest = max(np.abs(np.diff(result, axis=0)).max(), np.abs(np.diff(result, axis=1)).max())
        assert steepest <= 1.5 / 6 * scale * 255 + 2


def test_a_shrunken_crop_does_not_alias() -> None:
    """Stripes finer than the frame's pixels become their mean, not other stripes."""
    frame = np.full((200, 200, 3), 128, np.uint8)
    matrix = make_affine(3.0, 0, (100, 100))
    crop = cut_crop(frame, matrix)
    stripes = np.where(np.arange(SIZE) % 2, 20, 236).astype(np.uint8)
    redrawn = np.broadcast_to(stripes[None, :, None], crop.shape).copy()
    result = apply_patch(frame, paste(frame, crop, redrawn, matrix, BOX)).astype(int)
    deep = compute_depth(frame, matrix, BOX) > 7
    assert np.abs(result[deep] - 128).max() <= 40  # 3 stripes a pixel: their mean is off by a third at most
    assert result[deep].mean() == pytest.approx(128, abs=2)


def test_unchanged_skin_keeps_its_grain_and_a_new_mouth_has_nothing_of_the_old_one() -> None:
    """A face four times as large as the crop, with grain that is too fine for the crop."""
    rng = np.random.default_rng(0)
    frame = np.clip(150 + rng.normal(0, 4, (600, 600, 1)), 0, 255).repeat(3, axis=2).astype(np.uint8)
    matrix = make_affine(0.25, 0, (300, 250))
    mouth = (
        np.linalg.solve(matrix[:, :2].astype(float), np.array([64, 98]) - matrix[:, 2]).round().astype(int)
    )
    cv2.circle(frame, tuple(mouth.tolist()), 30, (60, 60, 60), -1)
    crop = cut_crop(frame, matrix)
    redrawn = crop.copy()
    cv2.circle(redrawn, (64, 98), 12, (150, 150, 150), -1)  # the mouth has gone, all is skin
    result = apply_patch(frame, paste(frame, crop, redrawn, matrix, BOX)).astype(int)
    y, x = np.mgrid[:600, :600]
    off_mouth = np.hypot(x - mouth[0], y - mouth[1])
    assert np.abs(result - frame)[off_mouth > 90].max() <= 1
    # No edge of the old mouth is left, round which there was grain.
    rim = [result[(off_mouth > radius) & (off_mouth <= radius + 2)] for radius in range(20, 40, 2)]
    assert all(abs(float(ring.mean()) - 150) <= 3 for ring in rim)
    assert max(float(ring.std()) for ring in rim) <= 5


@pytest.mark.parametrize("scale", [0.7, 0.34, 0.23], ids=["360x288", "720p", "1080p"])
@pytest.mark.parametrize("deviation", [1.5, 4.0])
def test_another_mouth_has_the_grain_and_the_texture_of_its_surroundings(
    photo: Image, scale: float, deviation: float
) -> None:
    """The whole lower face is another one, smoother than the source: a network's at 128 px."""
    large = cv2.resize(photo, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_CUBIC)
    rng = np.random.default_rng(0)
    frame = np.clip(large + rng.normal(0, deviation, large.shape), 0, 255).round().astype(np.uint8)
    centre = tuple(side / 2 for side in large.shape[1::-1])
    matrix = make_affine(scale, 0, centre)
    crop = cut_crop(frame, matrix)
    other = cv2.GaussianBlur(np.roll(crop, 9, axis=1).astype(np.float32), (0, 0), 0.7)
    redrawn = np.clip(other + 25, 0, 255).round().astype(np.uint8)
    depth = compute_depth(frame, matrix, BOX)
    fit = measure_surroundings(apply_patch(frame, paste(frame, crop, redrawn, matrix, BOX)), frame, depth)
    assert fit.grain == pytest.approx(1, abs=0.15)
