"""What an edited video shows when, and how its crops are cut; no pixels.

Two clocks of 25 instants a second: the output's, on which mouths are drawn, and the video's own, on which
faces were found. They are one until the video has run to its end and is held or runs backwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.edit.face_track import FacePath, FaceSegment
from stages.edit.reader import VideoFacts
from stages.edit.timing import Fit, FrameTiming, showings, usual_step
from stages.media.crops import warp
from stages.media.video import Frame, first_instant, on_clock


@dataclass(frozen=True)
class Plan:
    """What is shown when, and where the face is in it; no pixels."""

    video: Path
    facts: VideoFacts
    fit: Fit
    seconds: Fraction  # of the output
    stamps: list[int]  # ticks of the source's frames
    path: FacePath  # on the clock of the video; an instant of the output may show another one of it

    @property
    def n_instants(self) -> int:
        """T: how many instants k / 25 s the output has."""
        return max(1, first_instant(self.seconds))

    @cached_property
    def step(self) -> int:
        return usual_step(self.stamps, self.facts.time_base, self.facts.fps)

    def showings(self) -> Iterator[FrameTiming]:
        """The output's frames."""
        return showings(
            self.stamps, self.fit, seconds=self.seconds, time_base=self.facts.time_base, step=self.step
        )

    @cached_property
    def shown(self) -> NDArray[np.int32]:
        """(T,): the source's frame to be seen at each instant."""
        starts = ((one.at * self.facts.time_base, one.source) for one in self.showings())
        return np.fromiter((source for _, source in on_clock(starts, self.n_instants)), np.int32)

    @cached_property
    def instants(self) -> NDArray[np.int32]:
        """(T,): the instant on the video's own clock at which that frame is to be seen."""
        last = len(self.path.stretch_at) - 1
        own = (min(first_instant(self.stamp(source)), last) for source in self.shown.tolist())
        return np.fromiter(own, np.int32)

    def stamp(self, source: int) -> Fraction:
        """When the video itself shows a frame, seconds."""
        return self.stamps[source] * self.facts.time_base

    def nearest(self, at: int) -> int:
        """The output's instant nearest to a tick of it; of two the earlier."""
        nearest = math.ceil(at * self.facts.time_base * VIDEO_FPS - Fraction(1, 2))
        return min(nearest, self.n_instants - 1)

    def stretch_index(self, k: int) -> int:
        """Which stretch of the path instant k of the output shows, or -1."""
        return int(self.path.stretch_at[self.instants[k]])

    def cut(self, k: int) -> CropPlan:
        """How instant k is cut, where it has a stretch."""
        stretch = self.path.stretches[self.stretch_index(k)]
        return CropPlan(stretch, stretch.boxes[self.instants[k] - stretch.first])


@dataclass(frozen=True, slots=True)
class CropPlan:
    """How crops are cut from frames around an instant."""

    stretch: FaceSegment
    box: NDArray[np.int16]  # (4,)

    def crop(self, image: Frame, seconds: Fraction, size: int) -> tuple[Frame, NDArray[np.float32]]:
        """The crop (size, size, 3) of a frame that the video shows at ``seconds``, and its matrix."""
        affine = self.stretch.affine(float(seconds))
        return warp(image, affine, size, self.stretch.supersample), affine
