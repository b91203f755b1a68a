"""Frame after frame, many clips at once: each frame is drawn after the one before it, on the same device.

A fixed number of slots; a clip that ends leaves its slot to the next. All chance of a frame is keyed by
(seed, clip, frame, step), so a clip's result does not depend on its company or its place in it. On a CPU,
where company buys no speed, each slot is worked out alone, which makes that true to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from model.audio import SILENCE_DB
from model.batch import boxes_to_masks, hide_mask_region, to_float, to_pixels
from model.checkpoint import load_network
from model.denoiser import embed_noise_level, estimate_y_0
from model.execution import Execution
from model.recipe import ModelError, Recipe
from model.unet import UNet
from sampler.params import SampleParams
from sampler.steps import KnownPixels, levels, sample
from shards.rng import Purpose, derive_key, normals
from shards.schema import MELS_PER_FRAME


@dataclass(frozen=True, slots=True)
class CropFrame:
    """A frame to draw a mouth into."""

    pixels: NDArray[np.uint8]  # (S, S, 3) RGB
    box: NDArray[np.int16]  # (4,) x0 y0 x1 y1: what is to be drawn anew


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """One clip to draw. Its frames may come from a stream; none is kept but the first and the last."""

    key: str  # names its chance: another key, another drawing
    frames: Iterator[CropFrame]
    mels: NDArray[np.float32]  # (2T, n_mels) dB


@dataclass(frozen=True, slots=True)
class GeneratedFrame:
    """A finished frame."""

    key: str
    number: int  # of the frame in its take
    pixels: NDArray[np.uint8]  # (S, S, 3) RGB; outside the box the source's own


@dataclass
class _Slot:
    """A take under way."""

    take: ClipRequest
    mels: Tensor  # (2T + padding, n_mels) on the device
    clip: int  # the key as a number
    number: int = 0  # of the frame to draw next
    previous: Tensor | None = None  # (1, 3, S, S) float, on the device, as are all below
    previous_mask: Tensor | None = None
    identity: Tensor | None = None


@dataclass(frozen=True)
class _Conditioning:
    """What the network is shown for one frame of each slot."""

    known: KnownPixels
    beside: Tensor  # (B, 6 or 7, S, S): previous, identity, perhaps the mask
    mels: Tensor  # (B, rows, n_mels)


@dataclass
class FrameGenerator:
    """A network, ready to draw on a device. Raises ModelError when it cannot do what is asked."""

    network: UNet
    recipe: Recipe
    params: SampleParams
    device: torch.device
    machine: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        if self.params.guidance != 1 and not self.recipe.network.audio.null:
            raise ModelError(
                f"guidance {self.params.guidance:g} needs a network that knows no audio, "
                f"this one was trained without network.audio.null; use 1"
            )
        self.network = self.network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.gammas = levels(self.recipe.noise, self.params.steps)
        with torch.no_grad(), self.machine.autocast(self.device):
            told = embed_noise_level(self.gammas[:-1].float(), self.recipe.noise.embedding).to(self.device)
            # one row per step: all samples of a step share a noise level
            self.by_noise = [torch.split(rows, 1) for rows in self.network.compute_noise_films(told)]
        # CUDA graphs: a step is some 300 kernels, and launching them takes longer than running them
        self.given = self.machine.try_compile(
            self.network.forward_with_films, self._trial, self.device, mode="reduce-overhead"
        )

    @torch.no_grad()
    def _trial(self, given: Callable[..., Tensor]) -> None:
        """One step, whatever comes of it."""
        audio, size = self.recipe.network.audio, self.size
        x = torch.zeros(1, self.recipe.network.in_channels, size, size, device=self.device)
        mels = torch.full((1, audio.rows, audio.n_mels), SILENCE_DB, device=self.device)
        by_audio = self._by_audio(mels, heard=True)
        with self.machine.autocast(self.device):
            given(x, [rows[0] for rows in self.by_noise], by_audio)

    @property
    def size(self) -> int:
        """px of a crop."""
        return self.recipe.network.size

    def __call__(self, frames: Iterator[CropFrame], mels: NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
        """One clip by itself, as it streams by."""
        for frame in self.rollout([ClipRequest("", frames, mels)], slots=1):
            yield frame.pixels

    @torch.no_grad()
    def rollout(self, takes: Iterable[ClipRequest], *, slots: int) -> Iterator[GeneratedFrame]:
        """Draw all takes, ``slots`` at a time: the frames of a take in order, those of several mixed."""
        waiting = iter(takes)
        under_way: list[_Slot] = []
        while shown := self._next_frames(under_way, waiting, slots):
            for (slot, _), pixels in zip(shown, self._drawn(shown, slots), strict=True):
                yield GeneratedFrame(slot.take.key, slot.number, pixels)
                slot.number += 1
            under_way = [slot for slot, _ in shown]

    def _next_frames(
        self, under_way: list[_Slot], waiting: Iterator[ClipRequest], slots: int
    ) -> list[tuple[_Slot, CropFrame]]:
        """A frame for each slot; a take that has none leaves its slot to the next that waits."""
        shown: list[tuple[_Slot, CropFrame]] = []
        ready = chain(under_way, map(self._seated, waiting))
        while len(shown) < slots and (slot := next(ready, None)) is not None:
            frame = next(slot.take.frames, None)
            if frame is not None:
                shown.append((slot, frame))
        return shown

    def _seated(self, take: ClipRequest) -> _Slot:
        audio = self.recipe.network.audio
        if take.mels.ndim != 2 or take.mels.shape[1] != audio.n_mels:
            raise ModelError(
                f"{take.key or 'the speech'}: mels are {take.mels.shape}, expected (2T, {audio.n_mels})"
            )
        padding = ((audio.rows_before, audio.rows_after), (0, 0))
        mels = np.pad(take.mels, padding, constant_values=SILENCE_DB)
        clip = int.from_bytes(hashlib.sha256(take.key.encode()).digest()[:8], "big")
        return _Slot(take, torch.from_numpy(mels).to(self.device), clip)

    def _drawn(self, shown: Sequence[tuple[_Slot, CropFrame]], slots: int) -> list[NDArray[np.uint8]]:
        """The next frame of each slot; the slots remember it as their previous one."""
        sights = [self._sight(slot, frame) for slot, frame in shown]
        if self.device.type == "cpu":
            images = [self._sampled(sight, [slot]) for sight, (slot, _) in zip(sights, shown, strict=True)]
        else:
            # Empty slots repeat the first: a fixed shape is captured once.
            filled = [*range(len(sights)), *[0] * (slots - len(sights))]
            chosen = [shown[i][0] for i in filled]
            images = list(torch.split(self._sampled(_joined([sights[i] for i in filled]), chosen), 1))
        pixels = []
        for (slot, _), sight, image in zip(shown, sights, images, strict=False):
            slot.previous, slot.previous_mask = image, sight.known.mask
            pixels.append(to_pixels(image)[0].permute(1, 2, 0))
        return list(torch.stack(pixels).cpu().numpy())

    def _sight(self, slot: _Slot, frame: CropFrame) -> _Conditioning:
        """What is shown: as in training, but the frame before is the one drawn."""
        if frame.pixels.shape != (self.size, self.size, 3):
            raise ModelError(f"crops are {frame.pixels.shape}, expected {(self.size, self.size, 3)}")
        y_0 = to_float(torch.from_numpy(frame.pixels).to(self.device).permute(2, 0, 1)[None])
        if frame.box[1] < self.recipe.network.top:
            raise ModelError(
                f"{slot.take.key or 'the video'}: the mask box of frame {slot.number} begins at row "
                f"{frame.box[1]}, the network looks at rows from {self.recipe.network.top} on"
            )
        mask = boxes_to_masks(torch.from_numpy(frame.box).to(self.device)[None], self.size)
        frames, audio = self.recipe.frames, self.recipe.network.audio
        if slot.previous is None or slot.previous_mask is None:
            slot.identity = y_0
            previous = hide_mask_region(y_0, mask) if frames.before_first == "hidden" else y_0
        elif self.params.reanchor_every and slot.number % self.params.reanchor_every == 0:
            previous = hide_mask_region(slot.previous, slot.previous_mask)
        else:
            previous = slot.previous
        assert slot.identity is not None, "the first frame is everyone's identity"
        beside = [previous, slot.identity] + ([mask] if self.recipe.network.mask_channel else [])
        row = MELS_PER_FRAME * slot.number
        if row + audio.rows > len(slot.mels):
            raise ModelError(
                f"{slot.take.key or 'the speech'}: frame {slot.number} has no mels, there are "
                f"{len(slot.take.mels)} rows"
            )
        return _Conditioning(
            KnownPixels(mask, y_0), torch.cat(beside, dim=1), slot.mels[None, row : row + audio.rows]
        )

    def _sampled(self, sight: _Conditioning, slots: Sequence[_Slot]) -> Tensor:
        """From noise to (B, 3, S, S) float: exact outside the masks."""
        shape = sight.known.y_0.shape[1:]

        def noise(step: int) -> Tensor:
            keys = [
                derive_key(self.params.seed, Purpose.SAMPLER, slot.clip, slot.number, step + 1)
                for slot in slots
            ]
            return normals(np.array(keys, np.uint64), shape, self.device)

        told = [(self._by_audio(sight.mels, heard=True), self.params.guidance)]
        if self.params.guidance != 1:
            told.append((self._by_audio(sight.mels, heard=False), 1 - self.params.guidance))
        step = iter(range(self.params.steps))

        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            i = next(step)
            by_noise = [rows[i] for rows in self.by_noise]
            x = torch.cat([y, sight.beside], dim=1).contiguous(memory_format=torch.channels_last)
            said = torch.zeros_like(y)
            with self.machine.autocast(self.device):
                for by_audio, weight in told:
                    said = said + weight * self.given(x, by_noise, by_audio).float()
            return estimate_y_0(y, said, gamma, self.recipe.noise.target).clamp(-1, 1)

        return sample(self.params.sampler, denoise, noise(-1), self.gammas, noise=noise, known=sight.known)

    def _by_audio(self, mels: Tensor, *, heard: bool) -> list[Tensor]:
        with self.machine.autocast(self.device):
            told = torch.full((len(mels),), heard, device=self.device)
            return self.network.compute_audio_films(mels, told)


def _joined(sights: Sequence[_Conditioning]) -> _Conditioning:
    return _Conditioning(
        KnownPixels(
            torch.cat([sight.known.mask for sight in sights]),
            torch.cat([sight.known.y_0 for sight in sights]),
        ),
        torch.cat([sight.beside for sight in sights]),
        torch.cat([sight.mels for sight in sights]),
    )


def override_params(params: SampleParams, **told: Any) -> SampleParams:
    """The params, but for what is told; None is not told. Raises ModelError."""
    try:
        return replace(params, **{name: value for name, value in told.items() if value is not None})
    except ValidationError as err:
        problem = err.errors()[0]
        raise ModelError(f"{problem['loc'][0]} is {problem['input']!r}: {problem['msg']}") from err


def load_generator(
    run: Path, params: SampleParams, device: torch.device, machine: Execution
) -> FrameGenerator:
    """The best network of a run, or one checkpoint's, with its averaged weights. Raises ModelError."""
    network, saved = load_network(run)
    return FrameGenerator(network, saved.recipe, params, device, machine)
