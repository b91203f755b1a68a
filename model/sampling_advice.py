"""How to sample a network that needs other params than the defaults."""

from __future__ import annotations

import pydantic
from pydantic import ConfigDict, Field

from shards.documents import Line


class SamplingAdvice(pydantic.BaseModel):
    """How to sample a model, where that is not as ``SampleParams`` has it. None: as there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    sampler: Line | None = None
    steps: int | None = Field(default=None, ge=1, le=2000)
    guidance: float | None = Field(default=None, ge=0, le=100)
    common_noise: float | None = Field(default=None, ge=0, le=1)
