"""Decoded frames as YUV 4:2:0, and the change of an RGB patch in them. Other pixels stay bit-identical.

Converting a whole frame to RGB and back costs 1.5 grey levels and half the chroma's precision. So frames
stay as they were decoded, and only the change that a patch makes is converted to YUV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from stages.media.presentation import RGB_MATRIX, read_orientation
from stages.media.video import SCALING

Plane = NDArray[np.uint8]

PIXEL_FORMAT = "yuv420p"  # the one that plays everywhere
UNCONVERTED_FORMATS = frozenset({PIXEL_FORMAT, "yuvj420p"})
# Share of red and of blue in luma, by AVColorSpace. An unspecified matrix is read as BT.601, as in FFmpeg.
LUMA_SHARES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
BT601 = (0.299, 0.114)
# The names of chroma planes of so many (columns, rows) per 16 x 16 pixels.
SUBSAMPLINGS = {
    (16, 16): "4:4:4", (8, 16): "4:2:2", (8, 8): "4:2:0", (16, 8): "4:4:0", (4, 16): "4:1:1", (4, 4): "4:1:0",
}  # fmt: skip
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # AVColorTransferCharacteristic


@dataclass(frozen=True, slots=True)
class Colours:
    """What pixel values mean: FFmpeg's AVColorSpace, AVColorRange, primaries and transfer."""

    matrix: int
    range: int
    primaries: int
    transfer: int

    @property
    def is_full(self) -> bool:
        return self.range == ColorRange.JPEG


def describe_loss(pixel_format: str) -> str:
    """What pictures of a format lose by becoming PIXEL_FORMAT, in one sentence; empty where it is nothing."""
    layout = av.VideoFormat(pixel_format, 16, 16)  # px, for the size of its chroma
    colours = [part for part in layout.components if not part.is_alpha]
    bits = max(part.bits for part in colours)
    chroma = min(((part.width, part.height) for part in colours[1:]), default=(8, 8))
    is_rgb = layout.is_rgb or layout.has_palette
    name = "RGB" if is_rgb else SUBSAMPLINGS.get(chroma, "") if len(colours) > 1 else "grey"
    losses = []
    if bits > 8 or is_rgb or max(chroma) > 8:
        losses.append(f"the source's pictures are {bits} bit {name}, written as 8 bit 4:2:0")
    if len(colours) < len(layout.components):
        losses.append("the source's transparency is left out")
    return "; ".join(losses)


@dataclass(frozen=True, slots=True)
class YuvImage:
    """An upright 8 bit image with one chroma sample per 2 x 2 pixels and even sides."""

    y: Plane  # (H, W)
    u: Plane  # (H / 2, W / 2)
    v: Plane

    def to_array(self) -> Plane:
        """The three planes in one array, (H * 3 / 2, W)."""
        flat = np.concatenate([self.y.ravel(), self.u.ravel(), self.v.ravel()])
        return flat.reshape(-1, self.y.shape[1])

    def hstack(self, other: YuvImage) -> YuvImage:
        """This image on the left, the other on the right."""
        pairs = zip((self.y, self.u, self.v), (other.y, other.u, other.v), strict=True)
        return YuvImage(*(np.concatenate(pair, axis=1) for pair in pairs))

    def add_change(
        self,
        where: tuple[slice, slice],
        change: NDArray[np.floating],
        inside: NDArray[np.bool_],
        colours: Colours,
    ) -> YuvImage:
        """A copy that differs in the rectangle ``where`` by ``change`` (h, w, 3), in RGB levels.

        Only pixels ``inside`` (h, w) change, and only chroma samples that belong to no other pixel.
        """
        delta = change.astype(np.float32) @ make_yuv_matrix(colours).T
        luma = np.where(inside, delta[..., 0], 0)
        # Extend the rectangle to whole blocks of 2 x 2.
        margins = [(side.start % 2, side.stop % 2) for side in where]
        rows, columns = (slice(side.start // 2, -(-side.stop // 2)) for side in where)
        is_inside = np.asarray(_split_blocks(np.pad(inside, margins)).all(axis=(1, 3)))
        chroma = _split_blocks(np.pad(delta[..., 1:], [*margins, (0, 0)])).mean(axis=(1, 3))
        return YuvImage(
            _add_to_plane(self.y, where, luma),
            _add_to_plane(self.u, (rows, columns), np.where(is_inside, chroma[..., 0], 0)),
            _add_to_plane(self.v, (rows, columns), np.where(is_inside, chroma[..., 1], 0)),
        )


class YuvConverter:
    """Converts decoded frames to images. Use one for a whole video, as setting up the scaler is slow."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> YuvImage:
        if frame.format.name not in UNCONVERTED_FORMATS:
            frame = self._reformatter.reformat(
                frame,
                format=PIXEL_FORMAT,
                dst_colorspace=Colorspace.ITU709 if frame.colorspace == RGB_MATRIX else None,
                src_color_range=frame.color_range,
                dst_color_range=read_colours(frame).range,
                interpolation=SCALING,
                threads=1,
            )
        y, u, v = (_view_plane(plane) for plane in frame.planes)
        orientation = read_orientation(frame)
        y, u, v = (orientation.apply(plane) for plane in (y, u, v))
        return YuvImage(_pad_to_even(y), u.copy(), v.copy())


def _view_plane(plane: VideoPlane) -> Plane:
    """A view of a plane without the padding of its lines."""
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return lines[:, : plane.width]


def read_colours(frame: av.VideoFrame) -> Colours:
    """The colours of ``YuvConverter``'s image of a frame: the source's own, if the source is YUV."""
    matrix, levels = frame.colorspace, frame.color_range
    if matrix == RGB_MATRIX:
        matrix, levels = int(Colorspace.ITU709), int(ColorRange.MPEG)
    elif frame.format.name.startswith("yuvj"):
        levels = int(ColorRange.JPEG)
    return Colours(matrix, levels, frame.color_primaries, frame.color_trc)


def _pad_to_even(luma: Plane) -> Plane:
    """A copy with even sides: the last column or row is repeated where a side is odd.

    H.264 in 4:2:0 has no odd sides, and 4:4:4 plays in few places. One pixel more rather than one less: no
    source pixel is lost and no coordinate moves.
    """
    height, width = luma.shape
    return np.pad(luma, ((0, height % 2), (0, width % 2)), mode="edge")


def make_yuv_matrix(colours: Colours) -> NDArray[np.float32]:
    """The matrix (3, 3) from a change of RGB, each 0 to 255, to the change of Y, U and V."""
    red, blue = LUMA_SHARES.get(colours.matrix, BT601)
    luma = np.array([red, 1 - red - blue, blue])
    u = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    v = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    luma_levels, chroma_levels = (255, 255) if colours.is_full else (219, 224)
    scales = np.array([luma_levels, chroma_levels, chroma_levels]) / 255
    return (np.stack([luma, u, v]) * scales[:, None]).astype(np.float32)


def _split_blocks(plane: NDArray[Any]) -> NDArray[Any]:
    """(2 h, 2 w, ...) -> (h, 2, w, 2, ...)."""
    height, width = plane.shape[:2]
    return plane.reshape(height // 2, 2, width // 2, 2, *plane.shape[2:])


def _add_to_plane(plane: Plane, where: tuple[slice, slice], change: NDArray[np.floating]) -> Plane:
    result: Plane = plane.copy()
    result[where] = np.clip(np.rint(plane[where] + change), 0, 255).astype(np.uint8)
    return result
