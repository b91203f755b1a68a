"""A decoded picture as the encoder takes it, and a patch of RGB laid into it. Nothing else is touched.

Turning a whole picture to RGB and back costs it 1.5 grey levels and half its chroma's precision. So the
picture stays as it was decoded, and only the change that a patch makes is turned to YUV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

Plane = NDArray[np.uint8]

FORMAT = "yuv420p"  # the one that plays everywhere
AS_IT_IS = frozenset({FORMAT, "yuvj420p"})
RGB_MATRIX = 0  # how FFmpeg's AVColorSpace names a picture that has no matrix
# Red's and blue's share of luma by AVColorSpace. Who names none is read as BT.601, as FFmpeg does.
LUMA_SHARES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
BT601 = (0.299, 0.114)


@dataclass(frozen=True, slots=True)
class Colours:
    """What the numbers of a picture mean: FFmpeg's AVColorSpace, AVColorRange, primaries and transfer."""

    matrix: int
    range: int
    primaries: int
    transfer: int

    @property
    def is_full(self) -> bool:
        return self.range == ColorRange.JPEG


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright picture, 8 bits, one chroma sample for each 2 x 2 pixels, even sides."""

    y: Plane  # (H, W)
    u: Plane  # (H / 2, W / 2)
    v: Plane

    def packed(self) -> Plane:
        """The planes one after the other, (H * 3 / 2, W)."""
        flat = np.concatenate([self.y.ravel(), self.u.ravel(), self.v.ravel()])
        return flat.reshape(-1, self.y.shape[1])

    def beside(self, other: Picture) -> Picture:
        """This one on the left, the other on the right."""
        pairs = zip((self.y, self.u, self.v), (other.y, other.u, other.v), strict=True)
        return Picture(*(np.concatenate(pair, axis=1) for pair in pairs))

    def changed(
        self,
        where: tuple[slice, slice],
        change: NDArray[np.floating],
        inside: NDArray[np.bool_],
        colours: Colours,
    ) -> Picture:
        """A picture that differs in the rectangle ``where`` by ``change`` (h, w, 3), in levels of RGB.

        Only pixels ``inside`` (h, w) change, and only the chroma that no other pixel shares.
        """
        delta = change.astype(np.float32) @ rgb_to_yuv(colours).T
        luma = np.where(inside, delta[..., 0], 0)
        # From the rectangle out to whole blocks of 2 x 2.
        margins = [(side.start % 2, side.stop % 2) for side in where]
        rows, columns = (slice(side.start // 2, -(-side.stop // 2)) for side in where)
        whole = np.asarray(_blocks(np.pad(inside, margins)).all(axis=(1, 3)))
        chroma = _blocks(np.pad(delta[..., 1:], [*margins, (0, 0)])).mean(axis=(1, 3))
        return Picture(
            _added(self.y, where, luma),
            _added(self.u, (rows, columns), np.where(whole, chroma[..., 0], 0)),
            _added(self.v, (rows, columns), np.where(whole, chroma[..., 1], 0)),
        )


class ToPicture:
    """Decoded frames as pictures of their own; one for a whole video, as the scaler is dear to set up."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Picture:
        if frame.format.name not in AS_IT_IS:
            frame = self._reformatter.reformat(
                frame,
                format=FORMAT,
                dst_colorspace=Colorspace.ITU709 if frame.colorspace == RGB_MATRIX else None,
                src_color_range=frame.color_range,
                dst_color_range=colours_of(frame).range,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                threads=1,
            )
        y, u, v = (_array(plane) for plane in frame.planes)
        turns = frame.rotation // 90
        return Picture(_even(np.rot90(y, turns)), np.rot90(u, turns).copy(), np.rot90(v, turns).copy())


def _array(plane: VideoPlane) -> Plane:
    """A view of a plane without the padding of its lines."""
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return lines[:, : plane.width]


def colours_of(frame: av.VideoFrame) -> Colours:
    """What the numbers of ``ToPicture``'s picture of a frame mean: as in the source, where that is YUV."""
    matrix, levels = frame.colorspace, frame.color_range
    if matrix == RGB_MATRIX:
        matrix, levels = int(Colorspace.ITU709), int(ColorRange.MPEG)
    elif frame.format.name.startswith("yuvj"):
        levels = int(ColorRange.JPEG)
    return Colours(matrix, levels, frame.color_primaries, frame.color_trc)


def _even(luma: Plane) -> Plane:
    """A copy with even sides: the last column or row is there twice where a side is odd.

    H.264 in 4:2:0 has no odd sides, and 4:4:4 plays in few places. A pixel more, rather than one less:
    nothing of the source is lost and no coordinate moves.
    """
    height, width = luma.shape
    return np.pad(luma, ((0, height % 2), (0, width % 2)), mode="edge")


def rgb_to_yuv(colours: Colours) -> NDArray[np.float32]:
    """What a change of RGB, each 0 to 255, changes in Y, U and V: (3, 3)."""
    red, blue = LUMA_SHARES.get(colours.matrix, BT601)
    luma = np.array([red, 1 - red - blue, blue])
    u = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    v = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    luma_levels, chroma_levels = (255, 255) if colours.is_full else (219, 224)
    scales = np.array([luma_levels, chroma_levels, chroma_levels]) / 255
    return (np.stack([luma, u, v]) * scales[:, None]).astype(np.float32)


def _blocks(plane: NDArray[Any]) -> NDArray[Any]:
    """(2 h, 2 w, ...) -> (h, 2, w, 2, ...)."""
    height, width = plane.shape[:2]
    return plane.reshape(height // 2, 2, width // 2, 2, *plane.shape[2:])


def _added(plane: Plane, where: tuple[slice, slice], change: NDArray[np.floating]) -> Plane:
    changed: Plane = plane.copy()
    changed[where] = np.clip(np.rint(plane[where] + change), 0, 255).astype(np.uint8)
    return changed
