"""How frames are drawn: the numbers alone, without torch, which takes long to import."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

SamplerName = Literal["ancestral", "ddim", "dpm++2m"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SampleParams:
    """How frames are drawn."""

    sampler: SamplerName = "dpm++2m"
    # As good by figures as 20 and 50 (docs/performance.md, Sampling).
    steps: int = Field(default=10, ge=1, le=2000)
    # How far to go beyond what the audio says: 1 as trained, 0 deaf. Needs a network that was trained with
    # audio dropout; costs a second pass.
    guidance: float = Field(default=1.0, ge=0)
    # Every so many frames the previous frame's mouth is hidden, as often happens in training, so that an
    # error cannot be handed on for ever. 0: never.
    reanchor_every: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
