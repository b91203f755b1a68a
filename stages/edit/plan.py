"""Plan an edit: which source frame the output shows when, and how its crops are cut. No pixels.

Instants are multiples of 1/25 s. There are two clocks: the output's, on which mouths are generated, and the
source video's, on which faces were found. They agree until the video has ended and is held or plays
backwards.
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

from shards.schema import VIDEO_FPS, Frame
from stages.edit.face_track import FacePath, FaceSegment
from stages.edit.reader import VideoFacts
from stages.edit.timing import Fit, FrameTiming, compute_median_step, schedule_frames
from stages.media.crops import warp
from stages.media.video import count_instants, sample_at_25fps


@dataclass(frozen=True)
class EditPlan:
    """When the output shows which source frame, and where the face is in it."""

    video: Path
    facts: VideoFacts
    fit: Fit
    seconds: Fraction  # of the output
    stamps: list[int]  # ticks of the source frames
    path: FacePath  # by instant of the source video

    @property
    def n_instants(self) -> int:
        """T: the number of instants of the output."""
        return max(1, count_instants(self.seconds))

    @cached_property
    def step(self) -> int:
        """Ticks of a frame that is held."""
        return compute_median_step(self.stamps, self.facts.time_base, self.facts.fps)

    def schedule(self) -> Iterator[FrameTiming]:
        """The frames of the output."""
        return schedule_frames(
            self.stamps, self.fit, seconds=self.seconds, time_base=self.facts.time_base, step=self.step
        )

    @cached_property
    def source_frames(self) -> NDArray[np.int32]:
        """(T,): the source frame shown at each instant of the output."""
        starts = ((timing.at * self.facts.time_base, timing.source) for timing in self.schedule())
        return np.fromiter((source for _, source in sample_at_25fps(starts, self.n_instants)), np.int32)

    @cached_property
    def source_instants(self) -> NDArray[np.int32]:
        """(T,): the instant of the source video that shows the same frame."""
        last = len(self.path.segment_at) - 1
        instants = (min(count_instants(self.get_source_time(k)), last) for k in self.source_frames.tolist())
        return np.fromiter(instants, np.int32)

    def get_source_time(self, source: int) -> Fraction:
        """When the source video shows a frame, in seconds."""
        return self.stamps[source] * self.facts.time_base

    def find_nearest_instant(self, at: int) -> int:
        """The output's instant nearest to one of its ticks; of two the earlier."""
        nearest = math.ceil(at * self.facts.time_base * VIDEO_FPS - Fraction(1, 2))
        return min(nearest, self.n_instants - 1)

    def find_shown_instant(self, timing: FrameTiming) -> int:
        """The output's instant whose crop belongs to a frame of the output: of those near, one like it.

        That is the nearest one, unless there is a cut between them: then the one on this side of it.
        """
        nearest = self.find_nearest_instant(timing.at)
        side = self._count_borders(timing.source)
        for k in (nearest, nearest + 1, nearest - 1):
            if 0 <= k < self.n_instants and self._count_borders(int(self.source_frames[k])) == side:
                return k
        return nearest

    def _count_borders(self, source: int) -> int:
        """How many segments, and stretches without one, begin up to a source frame."""
        return int(np.searchsorted(self.path.borders, source, side="right"))

    def get_segment_index(self, k: int) -> int:
        """The face segment that instant k of the output shows, or -1."""
        return int(self.path.segment_at[self.source_instants[k]])

    def get_reason(self, k: int) -> str:
        """The code that says why instant k of the output has no face segment."""
        return self.path.reason_at[int(self.source_instants[k])]

    def plan_crop(self, k: int) -> CropPlan:
        """How to cut the crop of instant k, which has a face segment."""
        segment = self.path.segments[self.get_segment_index(k)]
        place = self.source_instants[k] - segment.first
        return CropPlan(segment, segment.boxes[place], segment.ovals[place])


@dataclass(frozen=True, slots=True)
class CropPlan:
    """How to cut crops from the frames around an instant."""

    segment: FaceSegment
    box: NDArray[np.int16]  # (4,)
    oval: NDArray[np.float32]  # (36, 2), the outline of the face in the crop, px

    def crop(self, image: Frame, seconds: Fraction, size: int) -> tuple[Frame, NDArray[np.float32]]:
        """The crop (size, size, 3) of the source frame at ``seconds``, and its matrix."""
        matrix = self.segment.interpolate_matrix(float(seconds))
        return warp(image, matrix, size, self.segment.supersample), matrix
