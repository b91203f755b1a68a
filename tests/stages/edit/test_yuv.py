from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.edit.yuv import Colours, YuvConverter, YuvImage, describe_loss, make_yuv_matrix, read_colours

BT709, BT601 = Colours(1, 1, 1, 1), Colours(6, 1, 6, 6)


def decode_rgb(
    pixels: np.ndarray, pix_fmt: str = "yuv420p", matrix: int = 6, levels: int = 1
) -> av.VideoFrame:
    """RGB pixels as a decoder would return them."""
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=levels)
    frame.colorspace, frame.color_range = matrix, levels
    return frame


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_frame_decoded_in_420_stays_bit_identical() -> None:
    frame = decode_rgb(noise(64, 48))
    assert np.array_equal(YuvConverter()(frame).to_array(), frame.to_ndarray())


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63)])
def test_odd_sides_repeat_their_last_pixel(height: int, width: int) -> None:
    image = YuvConverter()(decode_rgb(noise(height, width)))
    assert image.y.shape == (48, 64) and image.u.shape == image.v.shape == (24, 32)
    assert np.array_equal(image.y[height:], image.y[height - 1 : height][: 48 - height])
    assert np.array_equal(image.y[:, width:], image.y[:, width - 1 : width][:, : 64 - width])


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv422p10le", "rgb24", "gray", "yuva420p", "nv12", "gbrp"])
def test_other_pixel_formats_become_420_of_the_same_colours(pix_fmt: str) -> None:
    pixels = np.full((32, 32, 3), (180, 90, 60), np.uint8)
    if pix_fmt == "gray":
        pixels[:] = 120
    source = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = source if pix_fmt == "rgb24" else source.reformat(format=pix_fmt)
    if pix_fmt in ("rgb24", "gbrp"):
        frame.colorspace = 0
    colours = read_colours(frame)
    image = YuvConverter()(frame)
    offset = np.array([0 if colours.is_full else 16, 128, 128])
    expected = make_yuv_matrix(colours) @ pixels[0, 0] + offset
    levels = [plane[8, 8] for plane in (image.y, image.u, image.v)]
    assert levels == pytest.approx(expected, abs=2), colours


@pytest.mark.parametrize(
    ("pixel_format", "expected"),
    [
        ("yuv420p", ""),
        ("yuvj420p", ""),
        ("nv12", ""),
        ("gray", ""),
        ("yuvj422p", "the source's pictures are 8 bit 4:2:2, written as 8 bit 4:2:0"),
        ("p010le", "the source's pictures are 10 bit 4:2:0, written as 8 bit 4:2:0"),
        ("yuv444p12le", "the source's pictures are 12 bit 4:4:4, written as 8 bit 4:2:0"),
        ("gbrp", "the source's pictures are 8 bit RGB, written as 8 bit 4:2:0"),
        ("yuva420p", "the source's transparency is left out"),
    ],
)
def test_what_a_pixel_format_loses_is_said(pixel_format: str, expected: str) -> None:
    assert describe_loss(pixel_format) == expected


def test_a_change_of_rgb_changes_yuv_as_in_ffmpeg() -> None:
    for colours in (BT601, BT709, Colours(1, 2, 1, 1), Colours(9, 1, 9, 14)):
        before, after = np.array([120, 110, 130]), np.array([160, 90, 105])
        planes = []
        for value in (before, after):
            frame = decode_rgb(
                np.full((16, 16, 3), value, np.uint8), matrix=colours.matrix, levels=colours.range
            )
            planes.append([int(np.frombuffer(memoryview(plane), np.uint8)[0]) for plane in frame.planes])
        expected = np.subtract(planes[1], planes[0])
        assert make_yuv_matrix(colours) @ (after - before) == pytest.approx(expected, abs=1.1), colours


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
    image = YuvConverter()(decode_rgb(noise(20, 24, seed)))
    where = slice(*sorted(rows)), slice(*sorted(columns))
    shape = where[0].stop - where[0].start, where[1].stop - where[1].start
    inside = rng.random(shape) < 0.8
    change = rng.normal(0, 60, (*shape, 3))
    result = image.add_change(where, change, inside, BT601)
    may_change = np.zeros((20, 24), bool)
    may_change[where] = inside
    assert np.array_equal(result.y[~may_change], image.y[~may_change])
    blocks = may_change.reshape(10, 2, 12, 2).all(axis=(1, 3))
    for plane, before in ((result.u, image.u), (result.v, image.v)):
        assert np.array_equal(plane[~blocks], before[~blocks])
    if blocks.sum() > 5:
        assert (result.u != image.u)[blocks].mean() > 0.5
    same = image.add_change(where, np.zeros((*shape, 3)), inside, BT601)
    assert np.array_equal(same.to_array(), image.to_array())


def test_hstack_puts_images_side_by_side() -> None:
    left, right = (YuvConverter()(decode_rgb(noise(8, 6, seed))) for seed in (1, 2))
    both = left.hstack(right)
    assert isinstance(both, YuvImage)
    assert np.array_equal(both.y, np.hstack([left.y, right.y])) and both.to_array().shape == (12, 12)
