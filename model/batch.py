"""What the network is shown for a frame, in training: the frames beside it, corrupted, and its noise."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from model.audio import SILENCE_DB, AudioParams
from model.denoiser import draw_gamma
from model.rng import Purpose, keys_of, normals, uniforms, words_of
from model.unet import UNetParams
from shards.frames import BatchIndex, ClipTable, FrameSource, NetworkInput, RawBatch

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
# The lips within the mask box, as shares of its width and height: all of MediaPipe's lip points in all 15,674
# frames of seven GRID speakers, and a pixel to spare.
LIPS = (0.25, 0.06, 0.77, 0.60)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FrameParams:
    """Which frames the network sees beside the noisy one, and how they are spoiled in training."""

    # `first`: frame 0, as in the paper, which makes it the target of frame 0. `random`: any frame of the clip
    # but the target, so that nothing is to be learnt from its pose.
    identity: Literal["first", "random"] = "random"
    # What stands before the first frame: `target`, the frame itself, is the paper's and tells the answer;
    # `hidden` is the same without its mouth, as when a previous frame is dropped.
    before_first: Literal["target", "hidden"] = "hidden"
    # Against drift: generated frames are not as clean as the ones trained on. Each is a greatest strength; a
    # sample's own is drawn evenly from 0 to it.
    previous_noise: float = Field(default=0.1, ge=0)  # standard deviation, where frames lie in [-1, 1]
    previous_warp: float = Field(default=2.0, ge=0)  # px that a corner moves along each axis, at most
    previous_blur: float = Field(default=1.0, ge=0, le=1)  # share of a blur of sigma 1 px
    # Against mumbling: how often the previous frame's mouth is hidden, so that it cannot be copied.
    previous_hidden: float = Field(default=0.5, ge=0, le=1)
    # How often the network is not told the audio, so that a sampler can be guided towards it.
    audio_dropped: float = Field(default=0.1, ge=0, le=1)


@plain_dataclass(frozen=True)
class Batch:
    """A batch. Images are float in [-1, 1], (B, 3, H, W)."""

    y_0: Tensor  # the frame itself
    previous: Tensor
    identity: Tensor
    mask: Tensor  # (B, 1, H, W) float: 1 where it is to be drawn
    lips: Tensor  # (B, 1, H, W) float: 1 round the lips
    mels: Tensor  # (B, rows, n_mels) dB
    heard: Tensor  # (B,) bool
    gamma: Tensor  # (B,) float32
    epsilon: Tensor  # (B, 3, H, W)
    words: Tensor | None  # (B,) int32: dropout's keys; none when not training

    def __len__(self) -> int:
        return len(self.y_0)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1. This and ``to_pixels`` are where the range changes."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """float -1..1 -> uint8 0..255, rounded; what lies outside is cut."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def boxes_to_masks(boxes: Tensor, size: int) -> Tensor:
    """x0 y0 x1 y1, (B, 4) -> (B, 1, size, size) float: 1 inside."""
    place = torch.arange(size, device=boxes.device)
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    across = (place >= x0[:, None]) & (place < x1[:, None])
    down = (place >= y0[:, None]) & (place < y1[:, None])
    return (down[:, None, :, None] & across[:, None, None, :]).float()


def lip_boxes(boxes: Tensor) -> Tensor:
    """The part of each mask box that the lips lie in, (B, 4) -> (B, 4) float."""
    x0, y0, x1, y1 = boxes.float().unbind(dim=1)
    width, height = x1 - x0, y1 - y0
    left, top, right, bottom = LIPS
    return torch.stack(
        [x0 + left * width, y0 + top * height, x0 + right * width, y0 + bottom * height], dim=1
    )


def hidden(images: Tensor, mask: Tensor) -> Tensor:
    """Grey where the mask is."""
    return images * (1 - mask)


def required_input(network: UNetParams) -> NetworkInput:
    """What a dataset must be for this network."""
    return NetworkInput(network.size, network.audio.n_mels, SILENCE_DB, network.top)


def select_batch(
    clips: ClipTable,
    target: NDArray[np.int64],
    positions: NDArray[np.int64],
    *,
    seed: int,
    frames: FrameParams,
    audio: AudioParams,
) -> BatchIndex:
    """The frames that go with each of the frames ``target`` (B,), by the chance of its own position (B,)."""
    chance = uniforms(keys_of(seed, positions, Purpose.SCALARS), 1)[:, 0]
    return _wanted(clips, target, positions, chance, frames, audio)


def draw(seen: RawBatch, *, seed: int, frames: FrameParams, table: Tensor) -> Batch:
    """Batch of what was seen, each spoiled by the chance of its own position."""
    device, positions = seen.pixels.device, seen.wanted.positions
    scalars = torch.from_numpy(uniforms(keys_of(seed, positions, Purpose.SCALARS), 12))
    chance = scalars.to(device, torch.float32, non_blocking=True)
    plain = _plain(seen)
    dropped = chance[:, 9] < frames.previous_hidden
    # hidden before as well, or a warp or blur would carry some of the mouth out of its box
    before = _hidden(seen, plain.previous, frames, dropped=dropped)
    spoiled = _spoiled(before, frames, chance[:, 1:9], keys_of(seed, positions, Purpose.PREVIOUS))
    return replace(
        plain,
        previous=_hidden(seen, spoiled, frames, dropped=dropped),
        heard=chance[:, 10] >= frames.audio_dropped,
        gamma=draw_gamma(table, scalars[:, 11]).to(device, torch.float32, non_blocking=True),
        epsilon=normals(keys_of(seed, positions, Purpose.EPSILON), plain.y_0.shape[1:], device),
        words=words_of(keys_of(seed, positions, Purpose.DROPOUT), device),
    )


def make_evaluation_batch(
    data: FrameSource,
    target: NDArray[np.int64],
    gamma: Tensor,
    *,
    seed: int,
    frames: FrameParams,
    audio: AudioParams,
) -> Batch:
    """Batch at noise levels ``gamma`` (B,), nothing spoiled or dropped; a frame's noise is its own."""
    halfway = np.full(len(target), 0.5)
    seen = data.seen(_wanted(data.clips, target, target, halfway, frames, audio))
    plain = _plain(seen)
    return replace(
        plain,
        previous=_hidden(seen, plain.previous, frames, dropped=torch.zeros_like(plain.heard)),
        gamma=gamma.to(data.device, torch.float32),
        epsilon=normals(keys_of(seed, target, Purpose.EPSILON), plain.y_0.shape[1:], data.device),
    )


def _wanted(
    clips: ClipTable,
    target: NDArray[np.int64],
    positions: NDArray[np.int64],
    chance: NDArray[np.float64],
    frames: FrameParams,
    audio: AudioParams,
) -> BatchIndex:
    clip = clips.clip_of(target)
    first, length = clips.starts[clip], clips.lengths[clip]
    identity = first
    if frames.identity == "random":
        # one of the others, counted on from the frame itself and round the clip's end
        others = np.maximum(length - 1, 1)
        step = 1 + np.minimum((chance * others).astype(np.int64), others - 1)
        identity = first + (target - first + step) % length
    before = np.maximum(target - 1, first)
    return BatchIndex(positions, target, before, identity, (audio.rows_before, audio.rows_after))


def _plain(seen: RawBatch) -> Batch:
    """What the data says, without noise."""
    y_0, previous, identity = (to_float(pixels.permute(0, 3, 1, 2)) for pixels in seen.pixels)
    size, boxes = y_0.shape[-1], seen.boxes[0]
    return Batch(
        y_0=y_0,
        previous=previous,
        identity=identity,
        mask=boxes_to_masks(boxes, size),
        lips=boxes_to_masks(lip_boxes(boxes), size),
        mels=seen.mels,
        heard=torch.ones(len(y_0), dtype=torch.bool, device=y_0.device),
        gamma=torch.ones(len(y_0), device=y_0.device),
        epsilon=torch.zeros_like(y_0),
        words=None,
    )


def _hidden(seen: RawBatch, previous: Tensor, frames: FrameParams, *, dropped: Tensor) -> Tensor:
    """Previous frames without their mouths where ``dropped``, and where there is no frame before."""
    if frames.before_first == "hidden":
        begins = torch.from_numpy(seen.wanted.before == seen.wanted.target)
        dropped = dropped | begins.to(dropped.device, non_blocking=True)
    mask = boxes_to_masks(seen.boxes[1], previous.shape[-1])
    return torch.where(dropped[:, None, None, None], hidden(previous, mask), previous)


def _spoiled(images: Tensor, frames: FrameParams, chance: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    """Warped, blurred and noised, each by a strength of the sample's own. ``chance`` (B, 8)."""
    if frames.previous_warp:
        reach = 2 * frames.previous_warp / images.shape[-1] / 3  # three terms move a corner
        moved = reach * (2 * chance[:, :6] - 1).reshape(-1, 2, 3)
        grid = F.affine_grid(torch.eye(2, 3, device=images.device) + moved, list(images.shape), False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if frames.previous_blur:
        strength = (frames.previous_blur * chance[:, 6])[:, None, None, None]
        images = torch.lerp(images, _blurred(images), strength)
    if frames.previous_noise:
        strength = (frames.previous_noise * chance[:, 7])[:, None, None, None]
        images = images + strength * normals(keys, images.shape[1:], images.device)
    return images


def _blurred(images: Tensor) -> Tensor:
    """Binomial blur, sigma 1 px. By shifted sums: on a CPU a tenth of what convolutions cost."""
    for dim in (2, 3):
        size = images.shape[dim]
        padded = F.pad(images, (0, 0, 2, 2) if dim == 2 else (2, 2, 0, 0), mode="replicate")
        images = sum(
            (share * padded.narrow(dim, i, size) for i, share in enumerate(BINOMIAL)), torch.zeros(())
        )
    return images
