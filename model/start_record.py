"""Where a network's training started that did not start from nothing."""

from __future__ import annotations

import pydantic
from pydantic import ConfigDict, Field

from model.recipe import MAX_STEPS


class StartRecord(pydantic.BaseModel):
    """Where a run started that did not start from nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(max_length=4096)  # as the user gave it
    sha256: str = Field(max_length=200)  # of the file of weights
    step: int = Field(ge=0, le=MAX_STEPS)  # how far the run was that they are from

    def __str__(self) -> str:
        return f"{self.name} of step {self.step}, sha256 {self.sha256[:12]}"
