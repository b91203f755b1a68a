"""How to sample a network that needs other params than the defaults."""

from __future__ import annotations

import pydantic
from pydantic import ConfigDict, Field

from model.recipe import Recipe
from shards.documents import Line


class SamplingAdvice(pydantic.BaseModel):
    """How to sample a model, where that is not as ``SampleParams`` has it. None: as there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    sampler: Line | None = None
    steps: int | None = Field(default=None, ge=1, le=2000)
    guidance: float | None = Field(default=None, ge=0, le=100)
    guided_share: float | None = Field(default=None, gt=0, le=1)
    common_noise: float | None = Field(default=None, ge=0, le=1)
    flat_pauses: bool | None = None


# With 70 % of the noise common `fast` flickers as the truth, with 90 % less (docs/performance.md).
ONE_PASS = SamplingAdvice(sampler="ddim", steps=1, guidance=1.0, common_noise=0.7)


def advise_by_recipe(recipe: Recipe) -> SamplingAdvice:
    """How to sample a network of the paper's recipe: as the paper does, with 100 steps of eq. 6.

    In a few steps of another sampler its frames are noise (docs/performance.md, The ablation). Without a null
    embedding there is no guidance. A distilled network has one step, and its guidance in its weights. No
    advice for other recipes.
    """
    if recipe.distill:
        return ONE_PASS
    is_paper = recipe.noise.target == "epsilon"
    return SamplingAdvice(
        sampler="ancestral" if is_paper else None,
        steps=100 if is_paper else None,
        guidance=None if recipe.network.audio.null else 1.0,
        common_noise=0.0 if is_paper else None,
        flat_pauses=False if is_paper else None,
    )
