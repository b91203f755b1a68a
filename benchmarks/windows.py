"""An experiment: a network that draws F successive frames at a time, with attention from frame to frame.

The row "context, speech, four at a time" of ``ablation.py`` is trained and sampled by it. A batch is a row of
windows of F frames. The frames of a window share the noise level, the identity frame, and the frame before
the window as their previous frame; a share of the noise's variance is common, in training as in sampling.

It replaces names in the modules of a process that does nothing else: redub itself draws one frame at a time.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from model import checkpoint, loop
from model.batch import Batch, hide_mask_region, to_pixels
from model.blocks import GROUPS, zero_parameters
from model.epochs import EpochCounter, load_batches
from model.execution import Execution, Ranks
from model.recipe import Recipe
from model.unet import UNet, UNetParams
from sampler import rollout
from sampler.rollout import ClipRequest, FrameGenerator
from shards.frames import BatchIndex, FrameSource, Numbers, RawBatch
from shards.resident import Resident
from shards.rng import Purpose, derive_sample_keys, normals

WINDOW = 4  # frames, F
COMMON_NOISE = 0.9  # as in sampling


class FrameAttention(nn.Module):
    """Attention of each pixel to itself in the F frames of its window, added to the input."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.place = nn.Parameter(torch.zeros(WINDOW, channels, 1, 1))
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        zero_parameters(self.out)

    def forward(self, x: Tensor) -> Tensor:
        """(N F, C, H, W) -> the same shape."""
        b, c, h, w = x.shape
        placed = self.norm(x).view(b // WINDOW, WINDOW, c, h, w) + self.place
        qkv = self.to_qkv(placed.view(b, c, h, w))
        q, k, v = qkv.view(b // WINDOW, WINDOW, 3, self.heads, c // self.heads, h, w).unbind(dim=2)
        # Sums of products and no matrices, which would be 4 x 4 and many.
        logits = (q[:, :, None] * k[:, None]).sum(dim=4, keepdim=True) / math.sqrt(c // self.heads)
        attended = (logits.softmax(dim=2) * v[:, None]).sum(dim=2)
        result: Tensor = x + self.out(attended.reshape(b, c, h, w))
        return result


class WindowUNet(UNet):
    """``UNet`` with attention over frames at the end of each resolution, down and up, and in the middle."""

    def __init__(self, params: UNetParams) -> None:
        super().__init__(params)
        up = [layer for layer, after in pairwise([*self.up, None]) if ends_resolution(layer, after)]
        for layer in [*(layer for layer in self.down if layer.block.resample == "none"), self.middle_in, *up]:
            layer.over_frames = FrameAttention(layer.block.conv_out.out_channels, params.head_channels)
            layer.register_forward_hook(attend_over_frames)


def ends_resolution(layer: Any, after: Any) -> bool:
    """Whether a layer is the last one before the picture grows, or of all."""
    return layer.block.resample == "none" and (after is None or after.block.resample == "up")


def attend_over_frames(layer: Any, _: object, output: Tensor) -> Tensor:
    """A hook: the output of a layer, with its attention over frames."""
    attended: Tensor = layer.over_frames(output)
    return attended


@dataclass(frozen=True)
class WindowSource(Resident):
    """Clips in memory whose frames come in windows. No clip is shorter than two windows and a frame."""

    @property
    def has_exact_epochs(self) -> bool:
        return False

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        """The frames of one window after the other; none begins with a clip's first frame."""
        positions = np.asarray(positions, np.int64)
        starts = super().epoch_order(positions // WINDOW, seed=seed)
        clips = self.clips.find_clips(starts)
        first, length = self.clips.starts[clips], self.clips.lengths[clips]
        return first + 1 + (starts - first) % (length - WINDOW) + positions % WINDOW

    def prefetch(self, indices: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        return super().prefetch(map(self._share_within_windows, indices), seed=seed)

    def _share_within_windows(self, indices: BatchIndex) -> BatchIndex:
        """The first frame's choices for all frames of a window; its random numbers too."""
        assert indices.context is not None, "the recipes of this experiment have other surroundings"
        n, places = len(indices.target), np.arange(len(indices.target)) % WINDOW
        leader = np.arange(n) - places
        clips = self.clips.find_clips(indices.target)
        first, length = self.clips.starts[clips], self.clips.lengths[clips]
        start = indices.target[leader]

        def move_away(frames: Numbers, size: int) -> Numbers:
            """The first of ``size`` frames outside the window, by the choice for its first frame."""
            distance = WINDOW + (frames[leader] - start) % (length - WINDOW - size + 1)
            return (start - first + distance) % length

        return indices._replace(
            positions=indices.positions[leader],
            previous=start - 1,
            identity=first + move_away(indices.identity, 1),
            context=first + (move_away(indices.context, WINDOW) + places) % length,
        )


def load_windows(
    data: FrameSource,
    recipe: Recipe,
    ranks: Ranks,
    execution: Execution,
    start: int,
    counter: EpochCounter,
    *,
    prefetch: bool = True,
) -> Generator[list[Batch], None, None]:
    """``load_batches``, where only a share of the noise is common to a window.

    ``prefetch`` is ignored: ``WindowSource.prefetch`` is what makes windows, and the frames of the ablation
    are on the device, so it reads nothing ahead.
    """
    position = start
    for step in load_batches(data, recipe, ranks, execution, start, counter):
        yield [mix_noise(batch, position, recipe.seed) for batch in step]
        position += recipe.batch


def mix_noise(batch: Batch, position: int, seed: int) -> Batch:
    """A step's batch, all of it, with noise of each frame's own beside that of its window."""
    keys = derive_sample_keys(seed, position + np.arange(len(batch)), Purpose.COMMON_NOISE)
    own = normals(keys, batch.epsilon.shape[1:], batch.epsilon.device)
    return replace(batch, epsilon=math.sqrt(COMMON_NOISE) * batch.epsilon + math.sqrt(1 - COMMON_NOISE) * own)


class WindowGenerator(FrameGenerator):
    """A generator that draws the frames of a clip window by window, one clip after the other."""

    def _generate_rounds(self, requests: Iterable[ClipRequest], slots: int) -> Iterator[rollout._Round]:
        for request in requests:
            clip = self._start_clip(request)
            while frames := list(islice(request.frames, WINDOW)):
                yield self._generate_window(clip, frames)

    def _generate_window(
        self, clip: rollout._ActiveClip, frames: Sequence[rollout.CropFrame]
    ) -> rollout._Round:
        """The next frames of a clip; the last window repeats its last frame, which nobody sees."""
        places = [min(k, len(frames) - 1) for k in range(WINDOW)]
        sources, masks = self._copy_to_device([(clip, frames[k]) for k in places])
        if clip.previous is None:
            clip.identity, clip.previous = sources[:1], hide_mask_region(sources[:1], masks[:1])
            clip.previous_mask = masks[:1]
        clips = [replace(clip, number=clip.number + k) for k in places]
        rows = zip(clips, torch.split(sources, 1), torch.split(masks, 1), strict=True)
        conditioning = rollout._concatenate([self._build_conditioning(*row) for row in rows])
        images = self._run_sampler(conditioning, clips)[: len(frames)]
        numbers = [(clip.request.key, each.number) for each in clips[: len(frames)]]
        clip.previous, clip.previous_mask = images[-1:], masks[len(frames) - 1 :][:1]
        clip.number += len(frames)
        return rollout._Round(
            numbers,
            rollout._copy_to_host(to_pixels(images).permute(0, 2, 3, 1)),
            rollout._copy_to_host(images.isfinite().flatten(1).all(dim=1)),
        )


def use_windows() -> None:
    """Replace what it must: from now on this process trains and loads networks that draw windows."""
    loop.UNet = WindowUNet
    checkpoint.UNet = WindowUNet
    loop.load_batches = load_windows


def make_window_source(data: Resident) -> WindowSource:
    return WindowSource(**vars(data))
