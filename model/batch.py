"""Training batches: which frames go with each target frame, how they are corrupted, and their noise.

``BatchIndex`` (which frames) -> ``RawBatch`` (their uint8 pixels, from a ``FrameSource``) -> ``Batch`` (what
the network is trained on). ``select_batch`` makes the first, ``make_batch`` the last.
"""

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
from model.denoiser import interpolate_gamma
from model.dropout import keys_to_int32
from model.unet import UNetParams
from shards.frames import BatchIndex, ClipTable, FrameSource, NetworkInput, RawBatch
from shards.rng import Keys, Purpose, derive_sample_keys, normals, uniforms

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
# The lips within the mask box, as x0 y0 x1 y1 in shares of its width and height: all of MediaPipe's lip
# points in all 15,674 frames of seven GRID speakers, with a margin of one pixel.
LIPS = (0.25, 0.06, 0.77, 0.60)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FrameParams:
    """Which frames condition the noisy one, and how they are corrupted in training."""

    # `first`: frame 0, as in the paper, which makes it the target of frame 0. `random`: any frame of the clip
    # except the target, so that its pose carries no information.
    identity: Literal["first", "random"] = "random"
    # The previous frame of a clip's first frame. `target`: the frame itself, as in the paper, which leaks the
    # answer. `hidden`: the same with its mask region hidden, as when a previous frame is dropped.
    before_first: Literal["target", "hidden"] = "hidden"
    # Against drift: generated frames are less clean than the training frames. Each number is the maximum
    # strength; the strength of a sample is uniform between 0 and it.
    previous_noise: float = Field(default=0.1, ge=0)  # standard deviation, of frames in [-1, 1]
    previous_warp: float = Field(default=2.0, ge=0)  # px that a corner moves along each axis, at most
    previous_blur: float = Field(default=1.0, ge=0, le=1)  # share of a blur of sigma 1 px
    # Against mumbling: how often the mouth of the previous frame is hidden, so that it cannot be copied.
    previous_hidden: float = Field(default=0.5, ge=0, le=1)
    # How often the network gets no audio, for classifier-free guidance.
    audio_dropped: float = Field(default=0.1, ge=0, le=1)


@plain_dataclass(frozen=True)
class Batch:
    """What the network is trained on. Images are float in [-1, 1], (B, 3, H, W)."""

    y_0: Tensor  # the target frame
    previous: Tensor
    identity: Tensor
    mask: Tensor  # (B, 1, H, W) float: 1 in the region to generate
    lips: Tensor  # (B, 1, H, W) float: 1 around the lips
    mels: Tensor  # (B, rows, n_mels) dB
    has_audio: Tensor  # (B,) bool: False where the network gets no audio
    gamma: Tensor  # (B,) float32
    epsilon: Tensor  # (B, 3, H, W)
    dropout_keys: Tensor | None  # (B,) int32; None outside training

    def __len__(self) -> int:
        return len(self.y_0)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1. Only this function and ``to_pixels`` change the value range."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """float -1..1 -> uint8 0..255, rounded and clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def boxes_to_masks(boxes: Tensor, size: int) -> Tensor:
    """x0 y0 x1 y1, (B, 4) -> (B, 1, size, size) float: 1 inside."""
    place = torch.arange(size, device=boxes.device)
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    in_columns = (place >= x0[:, None]) & (place < x1[:, None])
    in_rows = (place >= y0[:, None]) & (place < y1[:, None])
    return (in_rows[:, None, :, None] & in_columns[:, None, None, :]).float()


def compute_lip_boxes(boxes: Tensor) -> Tensor:
    """The part of each mask box that contains the lips, (B, 4) -> (B, 4) float."""
    x0, y0, x1, y1 = boxes.float().unbind(dim=1)
    width, height = x1 - x0, y1 - y0
    lip_x0, lip_y0, lip_x1, lip_y1 = LIPS
    return torch.stack(
        [x0 + lip_x0 * width, y0 + lip_y0 * height, x0 + lip_x1 * width, y0 + lip_y1 * height], dim=1
    )


def hide_mask_region(images: Tensor, mask: Tensor) -> Tensor:
    """Grey where the mask is 1."""
    return images * (1 - mask)


def build_network_input(network: UNetParams) -> NetworkInput:
    """What a dataset must provide for this network."""
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
    """The frames that go with each target frame (B,); random choices depend on its position (B,)."""
    chance = uniforms(derive_sample_keys(seed, positions, Purpose.SCALARS), 1)[:, 0]
    return _select_frames(clips, target, positions, chance, frames, audio)


def make_batch(raw: RawBatch, *, seed: int, frames: FrameParams, table: Tensor) -> Batch:
    """Corrupt the previous frames and draw the noise; every random number depends on the sample's position.

    ``table``: the gammas of the noise schedule, (T,).
    """
    device, positions = raw.pixels.device, raw.indices.positions
    scalars = torch.from_numpy(uniforms(derive_sample_keys(seed, positions, Purpose.SCALARS), 12))
    chance = scalars.to(device, torch.float32, non_blocking=True)
    clean = _convert(raw)
    hide = chance[:, 9] < frames.previous_hidden
    # hide before the corruption as well, or a warp or blur would carry some of the mouth out of its box
    previous = _hide_previous(raw, clean.previous, frames, hide=hide)
    previous = _corrupt(
        previous, frames, chance[:, 1:9], derive_sample_keys(seed, positions, Purpose.PREVIOUS)
    )
    epsilon_keys = derive_sample_keys(seed, positions, Purpose.EPSILON)
    return replace(
        clean,
        previous=_hide_previous(raw, previous, frames, hide=hide),
        has_audio=chance[:, 10] >= frames.audio_dropped,
        gamma=interpolate_gamma(table, scalars[:, 11]).to(device, torch.float32, non_blocking=True),
        epsilon=normals(epsilon_keys, clean.y_0.shape[1:], device),
        dropout_keys=keys_to_int32(derive_sample_keys(seed, positions, Purpose.DROPOUT), device),
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
    """A batch at noise levels ``gamma`` (B,), without corruption or dropout; noise depends on the frame."""
    halfway = np.full(len(target), 0.5)
    raw = data.read_batch(_select_frames(data.clips, target, target, halfway, frames, audio))
    clean = _convert(raw)
    epsilon_keys = derive_sample_keys(seed, target, Purpose.EPSILON)
    return replace(
        clean,
        previous=_hide_previous(raw, clean.previous, frames, hide=torch.zeros_like(clean.has_audio)),
        gamma=gamma.to(data.device, torch.float32),
        epsilon=normals(epsilon_keys, clean.y_0.shape[1:], data.device),
    )


def _select_frames(
    clips: ClipTable,
    target: NDArray[np.int64],
    positions: NDArray[np.int64],
    chance: NDArray[np.float64],
    frames: FrameParams,
    audio: AudioParams,
) -> BatchIndex:
    """``chance`` (B,) in [0, 1) selects the identity frames."""
    clip = clips.find_clips(target)
    first, length = clips.starts[clip], clips.lengths[clip]
    identity = first
    if frames.identity == "random":
        # one of the other frames: 1 .. length - 1 steps after the target, wrapping around at the clip's end
        n_others = np.maximum(length - 1, 1)
        distance = 1 + np.minimum((chance * n_others).astype(np.int64), n_others - 1)
        identity = first + (target - first + distance) % length
    previous = np.maximum(target - 1, first)
    return BatchIndex(positions, target, previous, identity, (audio.rows_before, audio.rows_after))


def _convert(raw: RawBatch) -> Batch:
    """Pixels to float, boxes to masks; no noise and no corruption."""
    y_0, previous, identity = (to_float(pixels.permute(0, 3, 1, 2)) for pixels in raw.pixels)
    size, boxes = y_0.shape[-1], raw.boxes[0]
    return Batch(
        y_0=y_0,
        previous=previous,
        identity=identity,
        mask=boxes_to_masks(boxes, size),
        lips=boxes_to_masks(compute_lip_boxes(boxes), size),
        mels=raw.mels,
        has_audio=torch.ones(len(y_0), dtype=torch.bool, device=y_0.device),
        gamma=torch.ones(len(y_0), device=y_0.device),
        epsilon=torch.zeros_like(y_0),
        dropout_keys=None,
    )


def _hide_previous(raw: RawBatch, previous: Tensor, frames: FrameParams, *, hide: Tensor) -> Tensor:
    """Hide the mouth of a previous frame where ``hide`` (B,), and for a clip's first frame as the target."""
    if frames.before_first == "hidden":
        is_first = torch.from_numpy(raw.indices.previous == raw.indices.target)
        hide = hide | is_first.to(hide.device, non_blocking=True)
    mask = boxes_to_masks(raw.boxes[1], previous.shape[-1])
    return torch.where(hide[:, None, None, None], hide_mask_region(previous, mask), previous)


def _corrupt(images: Tensor, frames: FrameParams, chance: Tensor, noise_keys: Keys) -> Tensor:
    """Warp, blur and add noise, each with a strength of the sample's own. ``chance`` (B, 8) in [0, 1)."""
    if frames.previous_warp:
        max_shift = 2 * frames.previous_warp / images.shape[-1] / 3  # three terms move a corner
        shift = max_shift * (2 * chance[:, :6] - 1).reshape(-1, 2, 3)
        grid = F.affine_grid(torch.eye(2, 3, device=images.device) + shift, list(images.shape), False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if frames.previous_blur:
        strength = (frames.previous_blur * chance[:, 6])[:, None, None, None]
        images = torch.lerp(images, _blur(images), strength)
    if frames.previous_noise:
        strength = (frames.previous_noise * chance[:, 7])[:, None, None, None]
        images = images + strength * normals(noise_keys, images.shape[1:], images.device)
    return images


def _blur(images: Tensor) -> Tensor:
    """Binomial blur, sigma 1 px. As sums of shifted images: on a CPU a tenth of the cost of convolutions."""
    for dim in (2, 3):
        size = images.shape[dim]
        padded = F.pad(images, (0, 0, 2, 2) if dim == 2 else (2, 2, 0, 0), mode="replicate")
        images = sum(
            (share * padded.narrow(dim, i, size) for i, share in enumerate(BINOMIAL)), torch.zeros(())
        )
    return images
