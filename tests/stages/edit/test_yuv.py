from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.edit.yuv import Colours, Picture, ToPicture, colours_of, rgb_to_yuv

BT709, BT601 = Colours(1, 1, 1, 1), Colours(6, 1, 6, 6)


def decoded(pixels: np.ndarray, pix_fmt: str = "yuv420p", matrix: int = 6, levels: int = 1) -> av.VideoFrame:
    """RGB as a decoder would give it."""
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=levels)
    frame.colorspace, frame.color_range = matrix, levels
    return frame


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_what_was_decoded_in_420_stays_as_it_is_to_the_bit() -> None:
    frame = decoded(noise(64, 48))
    assert np.array_equal(ToPicture()(frame).packed(), frame.to_ndarray())


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63)])
def test_odd_sides_get_their_last_pixel_twice(height: int, width: int) -> None:
    picture = ToPicture()(decoded(noise(height, width)))
    assert picture.y.shape == (48, 64) and picture.u.shape == picture.v.shape == (24, 32)
    assert np.array_equal(picture.y[height:], picture.y[height - 1 : height][: 48 - height])
    assert np.array_equal(picture.y[:, width:], picture.y[:, width - 1 : width][:, : 64 - width])


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv422p10le", "rgb24", "gray", "yuva420p", "nv12", "gbrp"])
def test_other_forms_become_420_of_the_same_colours(pix_fmt: str) -> None:
    pixels = np.full((32, 32, 3), (180, 90, 60), np.uint8)
    if pix_fmt == "gray":
        pixels[:] = 120
    source = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = source if pix_fmt == "rgb24" else source.reformat(format=pix_fmt)
    if pix_fmt in ("rgb24", "gbrp"):
        frame.colorspace = 0
    colours = colours_of(frame)
    picture = ToPicture()(frame)
    offset = np.array([0 if colours.is_full else 16, 128, 128])
    expected = rgb_to_yuv(colours) @ pixels[0, 0] + offset
    found = [plane[8, 8] for plane in (picture.y, picture.u, picture.v)]
    assert found == pytest.approx(expected, abs=2), colours


def test_a_change_of_rgb_changes_yuv_as_ffmpeg_would() -> None:
    for colours in (BT601, BT709, Colours(1, 2, 1, 1), Colours(9, 1, 9, 14)):
        before, after = np.array([120, 110, 130]), np.array([160, 90, 105])
        planes = []
        for value in (before, after):
            frame = decoded(
                np.full((16, 16, 3), value, np.uint8), matrix=colours.matrix, levels=colours.range
            )
            planes.append([int(np.frombuffer(memoryview(plane), np.uint8)[0]) for plane in frame.planes])
        expected = np.subtract(planes[1], planes[0])
        assert rgb_to_yuv(colours) @ (after - before) == pytest.approx(expected, abs=1.1), colours


@settings(max_examples=60)
@given(
    rows=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    columns=st.tuples(st.integers(0, 24), st.integers(0, 24)),
    seed=st.integers(0, 99),
)
def test_only_pixels_inside_and_chroma_of_whole_blocks_change(
    rows: tuple[int, int], columns: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    picture = ToPicture()(decoded(noise(20, 24, seed)))
    where = slice(*sorted(rows)), slice(*sorted(columns))
    shape = where[0].stop - where[0].start, where[1].stop - where[1].start
    inside = rng.random(shape) < 0.8
    change = rng.normal(0, 60, (*shape, 3))
    changed = picture.changed(where, change, inside, BT601)
    may = np.zeros((20, 24), bool)
    may[where] = inside
    assert np.array_equal(changed.y[~may], picture.y[~may])
    blocks = may.reshape(10, 2, 12, 2).all(axis=(1, 3))
    for plane, before in ((changed.u, picture.u), (changed.v, picture.v)):
        assert np.array_equal(plane[~blocks], before[~blocks])
    if blocks.sum() > 5:
        assert (changed.u != picture.u)[blocks].mean() > 0.5
    same = picture.changed(where, np.zeros((*shape, 3)), inside, BT601)
    assert np.array_equal(same.packed(), picture.packed())


def test_side_by_side_is_side_by_side() -> None:
    left, right = (ToPicture()(decoded(noise(8, 6, seed))) for seed in (1, 2))
    both = left.beside(right)
    assert isinstance(both, Picture)
    assert np.array_equal(both.y, np.hstack([left.y, right.y])) and both.packed().shape == (12, 12)
