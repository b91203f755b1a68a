"""Autoregressive generation of many clips at once: each frame is conditioned on the one before it.

A batch has a fixed number of slots; when a clip ends, the next one takes its slot. The random numbers of a
frame are keyed by (seed, clip, frame, step), and those that all frames of a clip share by (seed, clip, step),
so a clip does not depend on the other clips of its batch, nor on its place in it. On a CPU, where batching
gains no speed, clips are processed one by one, which makes that true to the last bit. Previous and identity
frames stay on the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from model.objective import select_base
from model.recipe import ModelError, Recipe
from model.unet import UNet
from sampler.params import SampleParams
from sampler.steps import SAMPLERS, KnownPixels, Noise, Step, apply_steps, noise_levels, run_steps
from shards.params import describe_mismatch
from shards.rng import Purpose, derive_key, normals
from shards.schema import MELS_PER_FRAME, SPEECH_PER_FRAME


@dataclass(frozen=True, slots=True)
class CropFrame:
    """A source frame whose mouth region is to be generated."""

    pixels: NDArray[np.uint8]  # (S, S, 3) RGB
    box: NDArray[np.int16]  # (4,) x0 y0 x1 y1: the region to generate


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """One clip to generate. Its frames may be streamed: they are read one at a time and not stored."""

    key: str  # part of the keys of its random numbers
    frames: Iterator[CropFrame]
    mels: NDArray[np.float32]  # (2T, n_mels) dB, of the whole speech
    offset: int = 0  # in frames, from the start of the speech to the clip's first frame
    # (2T, D), features of the whole speech; a network that takes mels alone ignores them
    speech: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True)
class GeneratedFrame:
    """A finished frame."""

    key: str  # of its clip
    number: int  # of the frame in its clip
    pixels: NDArray[np.uint8]  # (S, S, 3) RGB; outside the box those of the source frame


@dataclass
class _ActiveClip:
    """A clip that occupies a slot."""

    request: ClipRequest
    mels: Tensor  # (2T + padding, n_mels) on the device
    speech: Tensor | None  # (2T + padding, D) float16, on the device; None if the network takes none
    id: int  # the key as a number
    number: int = 0  # of the frame to generate next
    previous: Tensor | None = None  # (1, 3, S, S) float, on the device, as are the next two
    previous_mask: Tensor | None = None
    identity: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """What one frame of each of B clips is conditioned on."""

    known_pixels: KnownPixels
    images: Tensor  # (B, 6 or 7, S, S): previous, identity, and the mask if the network has a mask channel
    identity: Tensor  # (B, 3, S, S)
    mels: Tensor  # (B, rows, n_mels)
    speech: Tensor | None  # (B, rows, D)


@dataclass(frozen=True)
class _Round:
    """The frames that one batch has generated; they may still be on their way to the host."""

    numbers: Sequence[tuple[str, int]]  # of each frame: the key of its clip, and its number in it
    pixels: _HostCopy  # (B, S, S, 3) uint8
    is_finite: _HostCopy  # (B,) bool

    def read(self) -> list[GeneratedFrame]:
        """Wait for the frames. Raises ModelError for one that is not finite."""
        for (key, number), is_finite in zip(self.numbers, self.is_finite.read(), strict=True):
            if not is_finite:
                raise ModelError(
                    f"{key or 'the video'}: frame {number} as the network generates it is not finite; its "
                    f"weights are damaged"
                )
        rows = zip(self.numbers, self.pixels.read(), strict=True)
        return [GeneratedFrame(*number, pixels) for number, pixels in rows]


@dataclass(frozen=True)
class _HostCopy:
    """A tensor on its way from the device to the host."""

    values: Tensor
    event: torch.cuda.Event | None  # after the copy; None where there is nothing to wait for

    def read(self) -> NDArray[Any]:
        """The values, once they have arrived."""
        if self.event is not None:
            self.event.synchronize()
            # A clip's frames wait until it is whole, but not in page-locked memory.
            return np.array(self.values.numpy())
        return np.asarray(self.values.numpy())


def _copy_to_host(values: Tensor) -> _HostCopy:
    """Start to copy a tensor to the host, and do not wait for it."""
    values = values.contiguous()
    if values.device.type != "cuda":
        return _HostCopy(values.cpu(), None)
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    on_host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return _HostCopy(on_host, event)


@dataclass(frozen=True)
class _NoiseLevel:
    """What depends on the noise level alone, so that it is computed once."""

    gamma: Tensor  # (1,) float32
    films: list[Tensor]  # one (1, 2C) per layer of the network


@dataclass(frozen=True)
class _FrameInputs:
    """What steps of one frame of B clips share. With guidance N is 2 B, the half without audio last."""

    images: Tensor  # (N, 6 or 7, S, S)
    audio_films: list[Tensor]  # one (N, 2C) per layer
    base: Tensor | None  # (B, 3, S, S)
    known_pixels: KnownPixels
    guidance: Tensor  # (2,): the weights of both halves; a tensor, or a compiler compiles for every value


# y, y before, y_0 before, noise (B, 3, S, S), weights (5,), level, what the frame's steps share
# -> the next y and y_0, (2, B, 3, S, S)
_CompiledStep = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, _NoiseLevel, _FrameInputs], Tensor]


@dataclass
class FrameGenerator:
    """A network with a sampler, on a device. Raises ModelError for guidance that the network cannot do."""

    network: UNet
    recipe: Recipe
    params: SampleParams
    device: torch.device
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        if self.params.guidance != 1 and not self.recipe.network.audio.null:
            raise ModelError(
                f"guidance {self.params.guidance:g} needs a network that can run without audio, "
                f"this one was trained without network.audio.null; use 1"
            )
        if self.recipe.distill and (self.params.steps != 1 or self.params.guidance != 1):
            raise ModelError(
                f"steps are {self.params.steps} and guidance is {self.params.guidance:g}, expected 1 and 1: "
                "this network draws in one pass; the one that it was distilled from takes others"
            )
        self.execution.warn_of_slow_precision(self.device)
        network = self.execution.round_weights(self.network, self.device)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.forward: Callable[..., Tensor] = self.network.forward_with_films
        self.gammas = noise_levels(self.recipe.noise, self.params.steps)
        self.steps = SAMPLERS[self.params.sampler](self.gammas.tolist())
        self.levels = self._compute_levels([step.gamma for step in self.steps])
        self.weights = torch.tensor([step.weights() for step in self.steps]).to(self.device)
        self.guided_gammas = self._select_guided_gammas()
        self.guidance_weights = torch.tensor([self.params.guidance, 1 - self.params.guidance]).to(self.device)
        self.silent_films = self._compute_silent_films() if self.guided_gammas else []
        self._compiled_steps: dict[int, _CompiledStep | None] = {}

    @torch.no_grad()
    def _compute_levels(self, gammas: Sequence[float]) -> dict[float, _NoiseLevel]:
        """The embeddings of all noise levels that the sampler evaluates, by gamma."""
        unique = list(dict.fromkeys(gammas))
        as_tensor = torch.tensor(unique, dtype=torch.float64).float()
        with self.execution.autocast(self.device):
            embedded = embed_noise_level(as_tensor, self.recipe.noise.embedding).to(self.device)
            films = self.network.compute_noise_films(embedded)
        rows = zip(
            torch.split(as_tensor.to(self.device), 1), *(torch.split(film, 1) for film in films), strict=True
        )
        return {gamma: _NoiseLevel(row[0], list(row[1:])) for gamma, row in zip(unique, rows, strict=True)}

    def _select_guided_gammas(self) -> set[float]:
        """The noise levels with guidance: a share of those that the sampler evaluates, the cleanest."""
        guidance = self.params.guidance
        if guidance == 1:
            return set()
        share = 1 if guidance < 1 else self.params.guided_share  # with 0 no level may take audio
        gammas = sorted(self.levels, reverse=True)
        return set(gammas[: math.ceil(share * len(gammas) - 1e-9)])  # 0.7 of 10 are 7, not 8

    @torch.no_grad()
    def _compute_silent_films(self) -> list[Tensor]:
        """The films of a frame without audio, (1, 2C) each: the same for every frame."""
        return self._compute_audio_films(*self._make_silence(1), has_audio=False)

    def _make_silence(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Windows of mels (n, rows, n_mels) and speech features (n, rows, D) that hold no sound."""
        audio = self.recipe.network.audio
        mels = torch.full((n, audio.rows, audio.n_mels), SILENCE_DB, device=self.device)
        if not audio.takes_speech:
            return mels, None
        return mels, torch.zeros(
            n, audio.speech_rows, audio.speech_size, dtype=torch.float16, device=self.device
        )

    @torch.no_grad()
    def _find_compiled_step(self, n: int) -> _CompiledStep | None:
        """A whole step for n clips as one compiled function; None where nothing is compiled.

        It is compiled for this number when it is first asked for.
        """
        if n not in self._compiled_steps and self.execution.is_compiled(self.device):
            # CUDA graphs: a step is some 200 kernels, and launching them takes longer than running them.
            step = self.execution.try_compile(
                self._compute_step, partial(self._try_step, n), self.device, cuda_graphs=True
            )
            self._compiled_steps[n] = None if step == self._compute_step else step
        return self._compiled_steps.get(n)

    def _try_step(self, n: int, step: _CompiledStep) -> None:
        """One step on zeros, to see whether a compiled function works."""

        def blank(channels: int = 3) -> Tensor:
            return torch.zeros(n, channels, self.size, self.size, device=self.device)

        # All of them apart, as in a rollout: a compiler compiles once more where two are one.
        network = self.recipe.network
        known_pixels = KnownPixels(blank(1), blank())
        conditioning = Conditioning(
            known_pixels, blank(network.in_channels - 3), blank(), *self._make_silence(n)
        )
        by_guidance = self._prepare_inputs(conditioning, n)
        for gamma in {gamma in self.guided_gammas: gamma for gamma in self.levels}.values():
            inputs = _make_contiguous(by_guidance[gamma in self.guided_gammas])
            step(blank(), blank(), blank(), blank(), self.weights[0], self.levels[gamma], inputs)

    @property
    def size(self) -> int:
        """Side of a crop in px."""
        return self.recipe.network.size

    @property
    def takes_speech(self) -> bool:
        """Whether the network needs speech features."""
        return self.recipe.network.audio.takes_speech

    @property
    def flat_pauses(self) -> bool:
        """Whether it is to hear a pause's mean within the pause."""
        return self.params.flat_pauses

    def select_box(self, box: NDArray[np.int16]) -> NDArray[np.int16]:
        """The region that is generated where a dataset has this mask box: x0 y0 x1 y1, (4,)."""
        region = self.recipe.frames.mask_region
        return box if region is None else np.array(region, np.int16)

    def __call__(
        self,
        frames: Iterator[CropFrame],
        mels: NDArray[np.float32],
        offset: int = 0,
        speech: NDArray[np.float16] | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Generate one clip, frame by frame as ``frames`` are read.

        ``mels`` and ``speech`` are of the whole speech; the first frame is ``offset`` frames after its start.
        """
        for frame in self.rollout([ClipRequest("", frames, mels, offset, speech)], slots=1):
            yield frame.pixels

    @torch.no_grad()
    def rollout(self, requests: Iterable[ClipRequest], *, slots: int) -> Iterator[GeneratedFrame]:
        """Generate all clips, ``slots`` at a time; a clip's frames come in order, mixed with others'."""
        rounds = self._generate_rounds(requests, slots)
        previous: _Round | None = None
        while True:
            try:
                current = next(rounds, None)  # the frames before it are on their way to the host meanwhile
            except Exception:  # as of a clip that cannot be read: what is generated is whole all the same
                if previous is not None:
                    yield from previous.read()
                raise
            if previous is not None:
                yield from previous.read()
            if current is None:
                return
            previous = current

    def _generate_rounds(self, requests: Iterable[ClipRequest], slots: int) -> Iterator[_Round]:
        """One frame of each clip that has a slot, again and again."""
        pending = iter(requests)
        active: list[_ActiveClip] = []
        while batch := self._read_next_frames(active, pending, slots):
            yield self._generate_frames(batch, slots)
            active = [clip for clip, _ in batch]
            for clip in active:
                clip.number += 1

    def _read_next_frames(
        self, active: list[_ActiveClip], pending: Iterator[ClipRequest], slots: int
    ) -> list[tuple[_ActiveClip, CropFrame]]:
        """The next frame of each active clip; a clip without one gives its slot to the next pending clip."""
        batch: list[tuple[_ActiveClip, CropFrame]] = []
        clips = chain(active, map(self._start_clip, pending))
        while len(batch) < slots and (clip := next(clips, None)) is not None:
            frame = next(clip.request.frames, None)
            if frame is not None:
                batch.append((clip, frame))
        return batch

    def _start_clip(self, request: ClipRequest) -> _ActiveClip:
        audio = self.recipe.network.audio
        if request.mels.ndim != 2 or request.mels.shape[1] != audio.n_mels:
            raise ModelError(
                f"{request.key or 'the speech'}: mels are {request.mels.shape}, expected (2T, {audio.n_mels})"
            )
        padding = ((audio.rows_before, audio.rows_after), (0, 0))
        mels = np.pad(request.mels, padding, constant_values=SILENCE_DB)
        clip_id = int.from_bytes(hashlib.sha256(request.key.encode()).digest()[:8], "big")
        return _ActiveClip(
            request, torch.from_numpy(mels).to(self.device), self._pad_speech(request), clip_id
        )

    def _pad_speech(self, request: ClipRequest) -> Tensor | None:
        """The speech features of a clip, (2T + padding, D) on the device; None if the network takes none."""
        audio, name = self.recipe.network.audio, request.key or "the speech"
        if not audio.takes_speech:
            return None
        if request.speech is None:
            raise ModelError(
                f"{name}: comes without speech features, which this network takes "
                f"(network.audio.input is {audio.input})"
            )
        n_rows = len(request.mels) // MELS_PER_FRAME * SPEECH_PER_FRAME
        if request.speech.shape != (n_rows, audio.speech_size):
            raise ModelError(
                f"{name}: speech features are {request.speech.shape}, expected {(n_rows, audio.speech_size)}"
            )
        padding = ((audio.speech_rows_before, audio.speech_rows_after), (0, 0))
        return torch.from_numpy(np.pad(request.speech, padding)).to(self.device)

    def _generate_frames(self, batch: Sequence[tuple[_ActiveClip, CropFrame]], slots: int) -> _Round:
        """The next frame of each clip, (S, S, 3); each becomes the previous frame of its clip."""
        clips = [clip for clip, _ in batch]
        sources, masks = self._copy_to_device(batch)
        shape = sources.shape[1:]
        conditioning = [
            self._build_conditioning(*row)
            for row in zip(clips, torch.split(sources, 1), torch.split(masks, 1), strict=True)
        ]
        if self.device.type == "cpu":
            images = [
                self.run_sampler(one, 1, partial(self._draw_noise, [clip], shape))
                for one, clip in zip(conditioning, clips, strict=True)
            ]
        else:
            # Empty slots repeat the first clip: a CUDA graph is captured once per shape.
            rows = [*range(len(clips)), *[0] * (slots - len(clips))]
            all_slots = _concatenate([conditioning[i] for i in rows])
            noise = partial(self._draw_noise, [clips[i] for i in rows], shape)
            images = list(torch.split(self.run_sampler(all_slots, slots, noise), 1))
        for clip, one, image in zip(clips, conditioning, images, strict=False):
            clip.previous, clip.previous_mask = image, one.known_pixels.mask
        generated = torch.cat(images[: len(clips)])
        return _Round(
            [(clip.request.key, clip.number) for clip in clips],
            _copy_to_host(to_pixels(generated).permute(0, 2, 3, 1)),
            _copy_to_host(generated.isfinite().flatten(1).all(dim=1)),
        )

    def _copy_to_device(self, batch: Sequence[tuple[_ActiveClip, CropFrame]]) -> tuple[Tensor, Tensor]:
        """The source crops (B, 3, S, S) and the masks (B, 1, S, S) of a round; crops cross in one copy."""
        for clip, frame in batch:
            if frame.pixels.shape != (self.size, self.size, 3):
                raise ModelError(f"crops are {frame.pixels.shape}, expected {(self.size, self.size, 3)}")
            if (top := self.select_box(frame.box)[1]) < self.recipe.network.top:
                raise ModelError(
                    f"{clip.request.key or 'the video'}: the mask box of frame {clip.number} begins at row "
                    f"{top}, the network looks at rows from {self.recipe.network.top} on"
                )
        pixels = np.stack([frame.pixels for _, frame in batch])
        boxes = np.stack([self.select_box(frame.box) for _, frame in batch])
        on_device = [self._copy_array(array) for array in (pixels, boxes)]
        return to_float(on_device[0].permute(0, 3, 1, 2)), boxes_to_masks(on_device[1], self.size)

    def _copy_array(self, array: NDArray[Any]) -> Tensor:
        """An array on the device. A GPU is not waited for: the copy starts from page-locked memory."""
        on_host = torch.from_numpy(array)
        if self.device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(self.device, non_blocking=True)

    def _build_conditioning(self, clip: _ActiveClip, y_0: Tensor, mask: Tensor) -> Conditioning:
        """What the network sees besides the noise, built as in training but from other frames.

        The previous frame is the generated one, the identity frame is the clip's first, and outside the mask
        there is the source itself: training shows true frames, any identity frame and, by
        ``frames.context_share``, another frame outside the mask.

        ``y_0`` (1, 3, S, S) is the source crop, ``mask`` (1, 1, S, S) what is to be generated in it.
        """
        frames, audio = self.recipe.frames, self.recipe.network.audio
        is_hidden = frames.previous_hidden == 1  # then training never shows a previous mouth
        if clip.previous is None or clip.previous_mask is None:
            clip.identity = previous = y_0
            previous_mask = mask
            is_hidden |= frames.before_first == "hidden"
        else:
            previous, previous_mask = clip.previous, clip.previous_mask
            reanchor_every = self.params.reanchor_every
            is_hidden |= reanchor_every > 0 and clip.number % reanchor_every == 0
        if is_hidden:
            previous = hide_mask_region(previous, previous_mask)
        assert clip.identity is not None, "the first frame of a clip is its identity frame"
        images = [previous, clip.identity] + ([mask] if self.recipe.network.mask_channel else [])
        row = MELS_PER_FRAME * (clip.request.offset + clip.number)
        if row + audio.rows > len(clip.mels):
            raise ModelError(
                f"{clip.request.key or 'the speech'}: frame {clip.number} has no mels, there are "
                f"{len(clip.request.mels)} rows"
            )
        speech = None
        if clip.speech is not None:
            speech_row = SPEECH_PER_FRAME * (clip.request.offset + clip.number)
            speech = clip.speech[None, speech_row : speech_row + audio.speech_rows]
        return Conditioning(
            KnownPixels(mask, y_0),
            torch.cat(images, dim=1),
            clip.identity,
            clip.mels[None, row : row + audio.rows],
            speech,
        )

    @torch.no_grad()
    def run_sampler(self, conditioning: Conditioning, n: int, noise: Noise) -> Tensor:
        """From noise to (n, 3, S, S) float; outside the masks exactly the known pixels.

        ``noise`` gives (n, 3, S, S): of -1 the start noise, of a step's number that of the step.
        """
        known_pixels = conditioning.known_pixels
        by_guidance = self._prepare_inputs(conditioning, n)
        compiled_step = self._find_compiled_step(n)
        if compiled_step is None:
            denoise = partial(self._denoise, by_guidance)
            return run_steps(self.steps, denoise, noise(-1), noise=noise, known_pixels=known_pixels)
        by_guidance = {is_guided: _make_contiguous(inputs) for is_guided, inputs in by_guidance.items()}
        weights = dict(zip(self.steps, self.weights, strict=True))
        blanks = [torch.zeros_like(known_pixels.y_0).contiguous() for _ in range(3)]  # their weights are 0

        def advance(
            step: Step, y: Tensor, y_before: Tensor, y_0_before: Tensor, noise: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            if y_before is y:  # the first step
                y_before, y_0_before = blanks[:2]
            images = (y, y_before, y_0_before, blanks[2] if noise is None else noise)
            inputs = by_guidance[step.gamma in self.guided_gammas]
            results = compiled_step(*images, weights[step], self.levels[step.gamma], inputs)
            y_next, y_0 = results.clone()  # a CUDA graph writes its next output into the same memory
            return y_next, y_0

        return apply_steps(self.steps, advance, known_pixels.pin(noise(-1)).contiguous(), noise=noise)

    def _prepare_inputs(self, conditioning: Conditioning, n: int) -> dict[bool, _FrameInputs]:
        """What the steps of a frame of n clips share, computed once: by whether a step has guidance."""
        films = self._compute_audio_films(conditioning.mels, conditioning.speech, has_audio=True)
        images = conditioning.images
        base = select_base(conditioning.identity, self.recipe)
        inputs = _FrameInputs(images, films, base, conditioning.known_pixels, self.guidance_weights)
        if not self.guided_gammas:
            return {False: inputs}
        silent = (film.expand(n, -1) for film in self.silent_films)
        films = [torch.cat(pair) for pair in zip(films, silent, strict=True)]
        return {False: inputs, True: replace(inputs, images=torch.cat([images, images]), audio_films=films)}

    def _denoise(self, by_guidance: dict[bool, _FrameInputs], y: Tensor, gamma: float) -> Tensor:
        return self._estimate(by_guidance[gamma in self.guided_gammas], y, self.levels[gamma])

    def _estimate(self, inputs: _FrameInputs, y: Tensor, level: _NoiseLevel) -> Tensor:
        """The clean images that the network sees in y: (B, 3, S, S) -> the same."""
        # Classifier-free guidance w: w times the prediction with audio, 1 - w times that without. Both come
        # from one forward pass of twice as many images.
        n = len(y)
        is_guided = len(inputs.images) != n
        noisy = torch.cat([y, y]) if is_guided else y
        x = torch.cat([noisy, inputs.images], dim=1).contiguous(memory_format=torch.channels_last)
        with self.execution.autocast(self.device):
            prediction = self.forward(x, level.films, inputs.audio_films).float()
        if is_guided:
            prediction = inputs.guidance[0] * prediction[:n] + inputs.guidance[1] * prediction[n:]
        y_0 = estimate_y_0(y, prediction, level.gamma, self.recipe.noise.target, inputs.base)
        return y_0.clamp(-1, 1).where(y_0.isfinite(), torch.nan)  # else infinity would become a colour

    def _compute_step(
        self,
        y: Tensor,
        y_before: Tensor,
        y_0_before: Tensor,
        noise: Tensor,
        weights: Tensor,
        level: _NoiseLevel,
        inputs: _FrameInputs,
    ) -> Tensor:
        """A step of ``run_steps`` for any weights, so that one graph serves all steps."""
        y_0 = self._estimate(inputs, y, level)
        terms = (y, y_0, noise, y_before, y_0_before)
        y_next = torch.zeros_like(y)
        for weight, term in zip(weights, terms, strict=True):
            y_next = y_next + weight * term
        return torch.stack([inputs.known_pixels.pin(y_next), y_0])

    def _draw_noise(self, clips: Sequence[_ActiveClip], shape: Sequence[int], step: int) -> Tensor:
        """The noise of one frame of each clip, (B, *shape): start noise if ``step`` is -1, else of a step.

        A share of its variance is common to all frames of the clip.
        """
        share, seed = self.params.common_noise, self.params.seed
        frame_keys = [derive_key(seed, Purpose.SAMPLER, clip.id, clip.number, step + 1) for clip in clips]
        clip_keys = [derive_key(seed, Purpose.COMMON_NOISE, clip.id, step + 1) for clip in clips]
        noise = torch.zeros(len(clips), *shape, device=self.device)
        for keys, variance in ((frame_keys, 1 - share), (clip_keys, share)):
            if variance:
                noise += math.sqrt(variance) * normals(np.array(keys, np.uint64), shape, self.device)
        return noise

    def _compute_audio_films(self, mels: Tensor, speech: Tensor | None, *, has_audio: bool) -> list[Tensor]:
        with self.execution.autocast(self.device):
            rows = torch.full((len(mels),), has_audio, device=self.device)
            return self.network.compute_audio_films(mels, rows, speech)


def _concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    speech = [part.speech for part in parts if part.speech is not None]
    return Conditioning(
        KnownPixels(
            torch.cat([part.known_pixels.mask for part in parts]),
            torch.cat([part.known_pixels.y_0 for part in parts]),
        ),
        torch.cat([part.images for part in parts]),
        torch.cat([part.identity for part in parts]),
        torch.cat([part.mels for part in parts]),
        torch.cat(speech) if speech else None,
    )


def _make_contiguous(inputs: _FrameInputs) -> _FrameInputs:
    """The same in one memory layout, whichever the source's frames had: a compiler compiles for each."""
    return _FrameInputs(
        inputs.images.contiguous(),
        inputs.audio_films,
        None if inputs.base is None else inputs.base.contiguous(),
        KnownPixels(inputs.known_pixels.mask.contiguous(), inputs.known_pixels.y_0.contiguous()),
        inputs.guidance,
    )


def override_params(params: SampleParams, **overrides: Any) -> SampleParams:
    """The params with the overrides that are not None. Raises ModelError for an invalid value."""
    try:
        return replace(params, **{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as err:
        raise ModelError(describe_mismatch(err, type(params))) from err


def load_generator(
    run: Path, params: SampleParams, device: torch.device, execution: Execution
) -> FrameGenerator:
    """A generator with the averaged weights of a run's best checkpoint, or of one checkpoint.

    Raises ModelError.
    """
    network, checkpoint = load_network(run)
    return FrameGenerator(network, checkpoint.recipe, params, device, execution)
