"""The sampler's parameters, without torch, which is slow to import."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from shards.params import MAX_SEED

SamplerName = Literal["ancestral", "ddim", "dpm++2m", "heun"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SampleParams:
    """How frames are generated."""

    sampler: SamplerName = "dpm++2m"
    # Noise levels per frame. 2 score as well as 3 (docs/performance.md, Sampling). The network is evaluated
    # once per level, by `heun` twice, except at the last.
    steps: int = Field(default=2, ge=1, le=2000)
    # Classifier-free guidance on the audio: 1 as trained, 0 ignores the audio, above 1 exaggerates it. With 2
    # the mouth follows the speech more closely than with 1 (docs/performance.md, The ablation). Other values
    # than 1 need a network that was trained with audio dropout, and make a forward pass twice as large.
    guidance: float = Field(default=2.0, ge=0, le=100)  # 7 is much for images, 100 absurd
    # Share of the noise levels at which guidance above 1 acts, the cleanest ones (Kynkäänniemi et al. 2024
    # leave out the noisiest too). At the second of two levels alone it does what it does at both, for three
    # quarters of the work; at the first alone it does little (docs/performance.md, Sampling).
    guided_share: float = Field(default=0.5, gt=0, le=1)
    # Share of the variance of a frame's noise that is the same in all frames of its clip. With independent
    # noise (0, as in the paper) the generated mouth flickers, with the same noise (1) it moves too little.
    common_noise: float = Field(default=0.9, ge=0, le=1)
    # Within a pause of the speech the network hears the pause's mean, so that breath and noise in it move no
    # mouth: with `small` it moves 1.16 times as much as the true one in the pauses of s1, without 1.77.
    flat_pauses: bool = True
    # Every this many frames the mouth of the previous frame is hidden, as often happens in training, so that
    # errors do not accumulate. 0: never.
    reanchor_every: int = Field(default=0, ge=0, le=10**6)  # 11 hours
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
