"""Training batches: which frames go with each target frame, how they are corrupted, and their noise.

``BatchIndex`` (which frames) -> ``RawBatch`` (their uint8 pixels, from a ``FrameSource``) -> ``Batch`` (what
the network is trained on). ``select_batch`` makes the first, ``make_batch`` the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from model.audio import SILENCE_DB, AudioParams
from model.audio_jitter import N_MEL_UNIFORMS, change_loudness
from model.denoiser import interpolate_gamma
from model.dropout import keys_to_int32
from model.jitter import change_colours, draw_colour_transform, draw_similarity, mirror_boxes, mirror_pixels
from model.unet import UNetParams
from shards.frames import BatchIndex, BoxMargins, ClipTable, FrameSource, NetworkInput, RawBatch
from shards.rng import Keys, Purpose, derive_sample_keys, normals, uniforms
from shards.schema import MAX_SIZE

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
# The lips within the mask box, as x0 y0 x1 y1 in shares of its width and height: all of MediaPipe's lip
# points in all 15,674 frames of seven GRID speakers, with a margin of one pixel. For the default margins.
LIPS = (0.25, 0.06, 0.77, 0.60)
MARGINS = BoxMargins()
# A box that the crop's border cuts off does not tell where the face ends. Then it is taken to be as large as
# the median of GRID's and CREMA-D's, in px of a crop of 128.
FACE_WIDTH, FACE_HEIGHT = 74, 43
CROP = 128  # px of a crop that margins are given for
# The columns of a sample's uniform numbers, by use.
IDENTITY, WARP, BLUR, NOISE, HIDE, DROP_AUDIO, LEVEL = 0, slice(1, 7), 7, 8, 9, 10, 11
CONTEXT_FRAME, CONTEXT, MOVE, COLOUR = 12, 13, slice(14, 18), slice(18, 23)
N_UNIFORMS = 23
# The columns of the uniform numbers of its appearance.
LOOK, MIRROR = slice(0, 6), 6
N_APPEARANCE_UNIFORMS = 7

Edge = Annotated[int, Field(ge=0, le=MAX_SIZE)]  # px


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
    previous_noise: float = Field(default=0.1, ge=0, le=10)  # standard deviation, of frames in [-1, 1]
    previous_warp: float = Field(
        default=2.0, ge=0, le=MAX_SIZE
    )  # px that a corner moves along each axis, at most
    previous_blur: float = Field(default=1.0, ge=0, le=1)  # share of a blur of sigma 1 px
    # Against mumbling: how often the mouth of the previous frame is hidden, so that it cannot be copied. With
    # 1 the network sees none, so in sampling it is hidden in every frame too.
    previous_hidden: float = Field(default=0.5, ge=0, le=1)
    # How often the network gets no audio, for classifier-free guidance.
    audio_dropped: float = Field(default=0.1, ge=0, le=1)
    # Against copying: the share of the samples in which the noisy and the previous frame show another frame
    # of the clip outside the mask. What the mask leaves visible tells the opening of the mouth (r = 0.89 on
    # GRID), so a network that always sees it does not need the audio.
    context_share: float = Field(default=0.0, ge=0, le=1)
    # Only in samples whose share of noise, 1 - gamma, is at least this: below it, the network can learn the
    # border of the mask from the true surroundings. Without effect where `context_share` is 0.
    context_min_noise: float = Field(default=0.0, ge=0, le=1)
    # x0 y0 x1 y1 in px of the crop, x1 and y1 exclusive: a region to generate in place of the dataset's mask
    # boxes, in training and in sampling. It does not move with the face, so its place tells nothing.
    mask_region: tuple[Edge, Edge, Edge, Edge] | None = None
    # Against knowing people by heart: how far target, previous and context frame are moved and coloured, all
    # in one way and the identity frame not. Each number is a maximum; a sample's own is uniform below it.
    jitter_shift: float = Field(default=0.0, ge=0, le=MAX_SIZE)  # px
    jitter_rotation: float = Field(default=0.0, ge=0, le=45)  # degrees
    jitter_scale: float = Field(default=0.0, ge=0, lt=1)  # share of the size
    jitter_colour: float = Field(default=0.0, ge=0, lt=1)  # of contrast, brightness and each channel's own
    # Against painting the skin of the training people onto others: how far skin and light change, in all
    # pictures of a sample alike, so that they can only be known from what is shown. Each number is a maximum.
    # `gamma`: pixels in [0, 1] are raised to a power between 2**-x and 2**x. With 2**2 pale skin of 200, 160,
    # 140 becomes dark skin of 97, 40, 23, and no person is further from any other.
    common_gamma: float = Field(default=0.0, ge=0, le=2)
    common_contrast: float = Field(default=0.0, ge=0, lt=1)  # share, about middle grey
    common_hue: float = Field(default=0.0, ge=0, le=180)  # degrees about the grey axis; 180: any hue
    common_colour: float = Field(default=0.0, ge=0, lt=1)  # share of each channel's gain, as in other light
    # How often all pictures of a sample are mirrored: twice the people, and lips that open to either side.
    mirror_share: float = Field(default=0.0, ge=0, le=1)
    # Both numbers of the sound act on mels alone: speech features are of the recording as it is. Where the
    # network takes no mels (`network.audio.input: speech`), a preset's changes cannot set them.
    # How much lower a sample becomes, at most. Where a dataset's mels are relative to the loudest moment of
    # the whole recording (`mels.reference: clip`), those of a clip of three seconds are 7 dB lower on average
    # within one of 40 clips. The default, `windowed`, corrects that in the mels themselves.
    audio_gain_db: float = Field(default=0.0, ge=0, le=60)
    # Against knowing rooms and microphones by heart: how far a mel band is raised or lowered, at most.
    audio_band_db: float = Field(default=0.0, ge=0, le=60)

    def __post_init__(self) -> None:
        if self.mask_region is not None:
            x0, y0, x1, y1 = self.mask_region
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError(f"mask_region is {self.mask_region}, expected 0 <= x0 < x1 and 0 <= y0 < y1")


@plain_dataclass(frozen=True)
class Batch:
    """What the network is trained on. Images are float in [-1, 1], (B, 3, H, W)."""

    y_0: Tensor  # the target frame
    previous: Tensor
    identity: Tensor
    context: Tensor  # what the noisy frame shows outside the mask: the target, or another frame of the clip
    mask: Tensor  # (B, 1, H, W) float: 1 in the region to generate
    lips: Tensor  # (B, 1, H, W) float: 1 around the lips
    mels: Tensor  # (B, rows, n_mels) dB
    speech: Tensor | None  # (B, rows, D) float16; None if the network takes none
    has_audio: Tensor  # (B,) bool: False where the network gets no audio
    gamma: Tensor  # (B,) float32
    epsilon: Tensor  # (B, 3, H, W)
    dropout_keys: Tensor | None  # (B,) int32; None outside training

    def __len__(self) -> int:
        return len(self.y_0)


ChangeBatch = Callable[[Batch], Batch]


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1. Only this function and ``to_pixels`` change the value range."""
    return pixels.float().div_(127.5).sub_(1)


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


def compute_lip_boxes(boxes: Tensor, size: int, margins: BoxMargins = MARGINS) -> Tensor:
    """Where the lips are, from mask boxes with these margins, in crops of ``size`` px.

    x0 y0 x1 y1, (B, 4) -> (B, 4) float.
    """
    scale = size / CROP
    x0, y0, x1, y1 = boxes.float().unbind(dim=1)
    width, height = x1 - x0, y1 - y0
    if margins != MARGINS:
        # back to the box that the default margins would have made
        below = scale * (margins.below_chin - MARGINS.below_chin)
        beside = scale * (margins.beside_face - MARGINS.beside_face)
        middle, is_whole = (x0 + x1) / 2, (x0 > 0) & (x1 < size)
        y0 = y0 - scale * (margins.below_nose - MARGINS.below_nose)
        width = torch.where(is_whole, width - 2 * beside, torch.full_like(width, scale * FACE_WIDTH))
        height = torch.where(y1 < size, y1 - y0 - below, torch.full_like(height, scale * FACE_HEIGHT))
        x0 = middle - width / 2
    lip_x0, lip_y0, lip_x1, lip_y1 = LIPS
    return torch.stack(
        [x0 + lip_x0 * width, y0 + lip_y0 * height, x0 + lip_x1 * width, y0 + lip_y1 * height], dim=1
    )


def hide_mask_region(images: Tensor, mask: Tensor) -> Tensor:
    """Grey where the mask is 1."""
    return images * (1 - mask)


def build_network_input(network: UNetParams, frames: FrameParams | None = None) -> NetworkInput:
    """What a dataset must provide for this network; with a mask region its boxes may be anywhere."""
    has_region = frames is not None and frames.mask_region is not None
    audio = network.audio
    return NetworkInput(
        network.size,
        audio.n_mels,
        SILENCE_DB,
        top=0 if has_region else network.top,
        speech_size=audio.speech_size if audio.takes_speech else 0,
        mel_pad=max(audio.rows_before, audio.rows_after),
        speech_pad=max(audio.speech_rows_before, audio.speech_rows_after),
    )


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
    chance = uniforms(derive_sample_keys(seed, positions, Purpose.SCALARS), N_UNIFORMS)
    return _select_frames(
        clips, target, positions, chance, frames, audio, with_context=frames.context_share > 0
    )


def make_batch(
    raw: RawBatch,
    *,
    seed: int,
    frames: FrameParams,
    table: Tensor,
    margins: BoxMargins = MARGINS,
    top: int = 0,
) -> Batch:
    """Corrupt the conditioning frames and draw the noise; random numbers depend on the sample's position.

    ``table``: the gammas of the noise schedule, (T,). ``margins``: of the dataset's mask boxes. ``top``: the
    first row that the network looks at; no mask begins above it.
    """
    device, positions = raw.pixels.device, raw.indices.positions
    scalars = torch.from_numpy(uniforms(derive_sample_keys(seed, positions, Purpose.SCALARS), N_UNIFORMS))
    chance = scalars.to(device, torch.float32, non_blocking=True)
    gamma = interpolate_gamma(table, scalars[:, LEVEL]).to(device, torch.float32, non_blocking=True)
    hide = chance[:, HIDE] < frames.previous_hidden
    swap = (chance[:, CONTEXT] < frames.context_share) & (1 - gamma >= frames.context_min_noise)
    sample = _swap_context(_jitter(_read_sample(raw, frames, margins, seed), frames, chance, top), swap)
    hidden = _compute_hidden_mask(raw, sample, frames, hide=hide)
    # hide before the corruption as well, or a warp or blur would carry some of the mouth out of its box
    previous = hide_mask_region(sample.previous, hidden)
    previous = _corrupt(previous, frames, chance, derive_sample_keys(seed, positions, Purpose.PREVIOUS))
    epsilon_keys = derive_sample_keys(seed, positions, Purpose.EPSILON)
    return _build_batch(
        _jitter_mels(raw, frames, seed),
        replace(sample, previous=hide_mask_region(previous, hidden)),
        has_audio=chance[:, DROP_AUDIO] >= frames.audio_dropped,
        gamma=gamma,
        epsilon=normals(epsilon_keys, sample.y_0.shape[1:], device),
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
    listening: bool = False,
) -> Batch:
    """A batch at noise levels ``gamma`` (B,), without corruption or dropout; noise depends on the frame.

    ``listening``: the previous mouth is hidden, and outside the masks another frame of the clip is shown, so
    that only the audio tells how the mouth moves.
    """
    halfway = np.full((len(target), N_UNIFORMS), 0.5)
    indices = _select_frames(data.clips, target, target, halfway, frames, audio, with_context=listening)
    raw = data.read_batch(indices)
    always = torch.full((len(target),), listening, device=data.device)
    sample = _swap_context(_read_images(raw, frames, data.clips.margins), always)
    hidden = _compute_hidden_mask(raw, sample, frames, hide=always)
    epsilon_keys = derive_sample_keys(seed, target, Purpose.EPSILON)
    return _build_batch(
        raw,
        replace(sample, previous=hide_mask_region(sample.previous, hidden)),
        has_audio=torch.ones_like(always),
        gamma=gamma.to(data.device, torch.float32),
        epsilon=normals(epsilon_keys, sample.y_0.shape[1:], data.device),
        dropout_keys=None,
    )


def _select_frames(
    clips: ClipTable,
    target: NDArray[np.int64],
    positions: NDArray[np.int64],
    chance: NDArray[np.float64],
    frames: FrameParams,
    audio: AudioParams,
    *,
    with_context: bool,
) -> BatchIndex:
    """``chance`` (B, N_UNIFORMS) in [0, 1) selects the identity and the context frames."""
    clip = clips.find_clips(target)
    first, length = clips.starts[clip], clips.lengths[clip]
    # distances are counted from the target onwards, wrapping around at the clip's end
    to_identity: NDArray[np.int64] = (first - target) % length
    if frames.identity == "random":
        to_identity = 1 + _choose(chance[:, IDENTITY], length - 1)
    context = None
    if with_context:
        # neither the target nor the identity frame, as far as the clip has others
        is_other = to_identity % length > 0
        to_context = 1 + _choose(chance[:, CONTEXT_FRAME], length - 1 - is_other)
        to_context += is_other & (to_context >= to_identity)
        context = first + (target - first + to_context) % length
    return BatchIndex(
        positions,
        target,
        previous=np.maximum(target - 1, first),
        identity=first + (target - first + to_identity) % length,
        mel_rows=(audio.rows_before, audio.rows_after),
        context=context,
        speech_rows=(audio.speech_rows_before, audio.speech_rows_after) if audio.takes_speech else None,
    )


def _choose(chance: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number from 0 to n - 1, or 0 if there is none, from one in [0, 1): (B,), (B,) -> (B,)."""
    n = np.maximum(n, 1)
    return np.asarray(np.minimum((chance * n).astype(np.int64), n - 1), np.int64)


@plain_dataclass(frozen=True)
class _Images:
    """The frames of the samples, (B, 3, H, W) in [-1, 1], and their regions, (B, 4) x0 y0 x1 y1."""

    y_0: Tensor
    previous: Tensor
    identity: Tensor
    context: Tensor
    box: Tensor  # the region to generate
    previous_box: Tensor
    lips: Tensor


def _read_images(raw: RawBatch, frames: FrameParams, margins: BoxMargins) -> _Images:
    """Pixels to float; without a context frame the context is the target."""
    images = [to_float(pixels.permute(0, 3, 1, 2)) for pixels in raw.pixels]
    y_0, previous, identity = images[:3]
    return _Images(
        y_0,
        previous,
        identity,
        context=images[-1] if raw.indices.context is not None else y_0,
        box=get_mask_boxes(raw.boxes[0], frames),
        previous_box=get_mask_boxes(raw.boxes[1], frames),
        lips=compute_lip_boxes(raw.boxes[0], y_0.shape[-1], margins),
    )


def get_mask_boxes(boxes: Tensor, frames: FrameParams) -> Tensor:
    """The regions to generate: the dataset's mask boxes (B, 4), or ``frames.mask_region`` for all."""
    if frames.mask_region is None:
        return boxes
    return torch.tensor(frames.mask_region, dtype=boxes.dtype, device=boxes.device).expand(len(boxes), 4)


def _swap_context(images: _Images, swap: Tensor) -> _Images:
    """Show the context frame outside both masks where ``swap`` (B,), else the frames themselves."""
    if images.context is images.y_0:
        return images
    swap = swap[:, None, None, None]
    outside = 1 - boxes_to_masks(images.previous_box, images.y_0.shape[-1])
    return replace(
        images,
        context=torch.where(swap, images.context, images.y_0),
        previous=torch.where(swap & (outside > 0), images.context, images.previous),
    )


def _build_batch(
    raw: RawBatch,
    images: _Images,
    *,
    has_audio: Tensor,
    gamma: Tensor,
    epsilon: Tensor,
    dropout_keys: Tensor | None,
) -> Batch:
    size = images.y_0.shape[-1]
    mask = boxes_to_masks(images.box, size)
    return Batch(
        y_0=images.y_0,
        previous=images.previous,
        identity=images.identity,
        context=images.context,
        mask=mask,
        lips=boxes_to_masks(images.lips, size),
        mels=raw.mels,
        speech=raw.speech,
        has_audio=has_audio,
        gamma=gamma,
        epsilon=epsilon,
        dropout_keys=dropout_keys,
    )


def _compute_hidden_mask(raw: RawBatch, images: _Images, frames: FrameParams, *, hide: Tensor) -> Tensor:
    """(B, 1, H, W): 1 where the previous frame is hidden: its mouth where ``hide`` (B,) is set.

    Also at a clip's first frame, whose previous frame is the target itself, unless the recipe shows it.
    """
    if frames.before_first == "hidden":
        is_first = torch.from_numpy(raw.indices.previous == raw.indices.target)
        hide = hide | is_first.to(hide.device, non_blocking=True)
    return boxes_to_masks(images.previous_box, images.y_0.shape[-1]) * hide[:, None, None, None]


def _read_sample(raw: RawBatch, frames: FrameParams, margins: BoxMargins, seed: int) -> _Images:
    """``_read_images``, with the side and the appearance that each sample gets."""
    has_look = frames.common_gamma or frames.common_contrast or frames.common_hue or frames.common_colour
    if not (frames.mirror_share or has_look):
        return _read_images(raw, frames, margins)
    keys = derive_sample_keys(seed, raw.indices.positions, Purpose.APPEARANCE)
    numbers = torch.from_numpy(uniforms(keys, N_APPEARANCE_UNIFORMS))
    chance = numbers.to(raw.pixels.device, torch.float32, non_blocking=True)
    if frames.mirror_share:
        images = _read_mirrored_images(raw, frames, margins, chance[:, MIRROR] < frames.mirror_share)
    else:
        images = _read_images(raw, frames, margins)
    return _change_look(images, frames, chance) if has_look else images


def _change_look(images: _Images, frames: FrameParams, chance: Tensor) -> _Images:
    """Change the colours of all pictures of a sample alike; ``chance`` (B, N_APPEARANCE_UNIFORMS)."""
    change = draw_colour_transform(
        chance[:, LOOK],
        gamma=frames.common_gamma,
        contrast=frames.common_contrast,
        hue=frames.common_hue,
        colour=frames.common_colour,
    ).apply
    y_0 = change(images.y_0)
    return replace(
        images,
        y_0=y_0,
        previous=change(images.previous),
        identity=change(images.identity),
        context=y_0 if images.context is images.y_0 else change(images.context),
    )


def _read_mirrored_images(
    raw: RawBatch, frames: FrameParams, margins: BoxMargins, is_mirrored: Tensor
) -> _Images:
    """``_read_images``, mirrored with their boxes where ``is_mirrored`` (B,); a mask region stays."""
    images = _read_images(raw._replace(pixels=mirror_pixels(raw.pixels, is_mirrored)), frames, margins)
    size = images.y_0.shape[-1]
    images = replace(images, lips=mirror_boxes(images.lips, is_mirrored, size))
    if frames.mask_region is not None:
        return images
    return replace(
        images,
        box=mirror_boxes(images.box, is_mirrored, size),
        previous_box=mirror_boxes(images.previous_box, is_mirrored, size),
    )


def _jitter(images: _Images, frames: FrameParams, chance: Tensor, top: int) -> _Images:
    """Move and colour target, previous and context frame alike; ``chance`` (B, N_UNIFORMS) says how far."""
    jittered = [images.y_0, images.previous]
    if images.context is not images.y_0:
        jittered.append(images.context)
    if frames.jitter_shift or frames.jitter_rotation or frames.jitter_scale:
        similarity = draw_similarity(
            chance[:, MOVE],
            images.y_0.shape[-1],
            shift=frames.jitter_shift,
            rotation=frames.jitter_rotation,
            scale=frames.jitter_scale,
        )
        jittered = [similarity.warp(image) for image in jittered]
        images = replace(images, lips=similarity.move_boxes(images.lips))
        if frames.mask_region is None:
            box, previous_box = (
                similarity.move_boxes(box).clamp(min=torch.tensor([0, top, 0, top], device=box.device))
                for box in (images.box, images.previous_box)
            )
            images = replace(images, box=box, previous_box=previous_box)
    if frames.jitter_colour:
        jittered = [change_colours(image, chance[:, COLOUR], frames.jitter_colour) for image in jittered]
    return replace(
        images, y_0=jittered[0], previous=jittered[1], context=jittered[2 if len(jittered) == 3 else 0]
    )


def _jitter_mels(raw: RawBatch, frames: FrameParams, seed: int) -> RawBatch:
    """Change the loudness of the sound, by position; without jitter the batch itself."""
    if not (frames.audio_gain_db or frames.audio_band_db):
        return raw
    keys = derive_sample_keys(seed, raw.indices.positions, Purpose.MELS)
    uniform = torch.from_numpy(uniforms(keys, N_MEL_UNIFORMS))
    chance = uniform.to(raw.mels.device, torch.float32, non_blocking=True)
    mels = change_loudness(raw.mels, chance, gain_db=frames.audio_gain_db, band_db=frames.audio_band_db)
    return raw._replace(mels=mels)


def _corrupt(images: Tensor, frames: FrameParams, chance: Tensor, noise_keys: Keys) -> Tensor:
    """Warp, blur and add noise, each with a strength of the sample's own; ``chance`` is in [0, 1)."""
    if frames.previous_warp:
        max_shift = 2 * frames.previous_warp / images.shape[-1] / 3  # three terms move a corner
        shift = max_shift * (2 * chance[:, WARP] - 1).reshape(-1, 2, 3)
        grid = F.affine_grid(torch.eye(2, 3, device=images.device) + shift, list(images.shape), False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if frames.previous_blur:
        strength = (frames.previous_blur * chance[:, BLUR])[:, None, None, None]
        images = torch.lerp(images, _blur(images), strength)
    if frames.previous_noise:
        strength = (frames.previous_noise * chance[:, NOISE])[:, None, None, None]
        images = images + strength * normals(noise_keys, images.shape[1:], images.device)
    return images


def _blur(images: Tensor) -> Tensor:
    """Binomial blur, sigma 1 px. As sums of shifted images: on a CPU a tenth of the cost of convolutions."""
    for dim in (2, 3):
        size = images.shape[dim]
        padded = F.pad(images, (0, 0, 2, 2) if dim == 2 else (2, 2, 0, 0), mode="replicate")
        images = torch.zeros_like(images)
        for i, share in enumerate(BINOMIAL):
            images += share * padded.narrow(dim, i, size)
    return images
