"""A network as the teacher of one that learns to draw in one pass what it draws in several.

The student is trained from pure noise alone, and its target is the frame that the teacher's sampler makes of
the same noise, with the teacher's guidance: the progressive distillation of Salimans and Ho (2022), down to
one step at once, and the distillation of guidance of Meng et al. (2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from model.batch import Batch
from model.objective import list_conditions
from model.recipe import ModelError, Recipe
from sampler.params import SampleParams
from sampler.rollout import Conditioning, FrameGenerator
from sampler.steps import SAMPLERS, KnownPixels, noise_levels


def check_teacher(recipe: Recipe, params: SampleParams) -> None:
    """Raise ModelError for a sampler that adds fresh noise: its frames are no function of the start noise."""
    gammas = noise_levels(recipe.noise, params.steps).tolist()
    if any(step.sigma for step in SAMPLERS[params.sampler](gammas)):
        raise ModelError(
            f"the start is sampled by {params.sampler!r}, which adds noise in its steps, "
            "expected a sampler that draws the same frame from the same noise"
        )


@dataclass(frozen=True)
class Teacher:
    """A generator, as ``check_teacher`` allows it, whose frames are a student's targets."""

    generator: FrameGenerator

    def change_batch(self, batch: Batch) -> Batch:
        """The same batch with the teacher's frames as its targets, all from pure noise and with audio."""
        generator = self.generator
        conditioning = Conditioning(
            KnownPixels(batch.mask, batch.context),
            torch.cat(list_conditions(batch, generator.recipe), dim=1),
            batch.identity,
            batch.mels,
            batch.speech,
        )
        y_0 = generator.run_sampler(conditioning, len(batch), lambda _: batch.epsilon)
        gamma = torch.full_like(batch.gamma, generator.steps[0].gamma)
        return replace(batch, y_0=y_0, gamma=gamma, has_audio=torch.ones_like(batch.has_audio))
