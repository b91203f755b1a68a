"""Does the network fit the face? What it draws at the mouth's border against what the video has there.

A network that has not learnt a face paints the skin of its training people into it. At the border of the
region that it draws, the video shows the same skin in the same place and moves little, so a difference of
colour there is a misfit and not speech. It is measured twice: on a few frames before an edit, and on every
frame while it is drawn. Both compare the network's own colours, before `sampler.paste` corrects them: a
correction hides the edge of a picture that is wrong in the middle too. Of the border only what is in the face
counts, as all beside it stays the source's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from sampler.face_region import fill_outline
from shards.schema import Frame
from stages.engine.outcome import StageError
from stages.metrics.border import find_ring, measure_difference

MISFIT = "no_fit"  # the reason of a frame that is left as it is because the network does not fit


class MisfitError(StageError):
    """The network does not fit the face. What to do about it is for the caller to say."""


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FaceCheckParams:
    """When a face is one that the network does not fit. Differences are ΔE*ab (CIE 1976), as evaluated."""

    # Median over the trial. In two networks' drawings of 13 people (docs/evaluation.md), no edge is seen at
    # 2.8 to 4.6, faint ones about 5, and from 8 it is another person's skin. A true face has 1.9 to 2.3
    # against itself 0.16 s before, one that turns up to 5.0.
    max_difference: float = Field(default=5.0, gt=0, le=1000)
    # Mean over the window, from which a stretch is not drawn; it is drawn again below max_difference. With
    # one number for both, a face near it would change between the drawn and the source's mouth all the time;
    # and a head that turns has 5.7 in a drawing that looks right.
    leave_difference: float = Field(default=8.0, gt=0, le=1000)
    window_frames: int = Field(default=25, ge=1, le=999)  # a second; centred, so that a misfit is not begun
    # 15 frames, a fifth of a clip of 3 s. Frames of one place differ by less than places do.
    trial_places: int = Field(default=5, ge=1, le=999)
    trial_frames: int = Field(default=3, ge=1, le=999)  # of a place; its first has no generated one before it


@dataclass(frozen=True, slots=True)
class FaceTrial:
    """A few frames, drawn before an edit, against the source: the difference at their border, ΔE*ab.

    It is nan where there is nothing to compare.
    """

    difference: float
    limit: float  # above it the network does not fit the face
    before: float | None = None  # drawn by the network before it was adapted; None: it was not

    @property
    def is_misfit(self) -> bool:
        """Whether the network does not fit the face."""
        return self.difference > self.limit

    def describe(self) -> str:
        """One line for the user about an adapted network."""
        if math.isnan(self.difference):
            return "colours at the mouth's border were not compared with the video's: none is in sight"
        before = "" if self.before is None else f"{self.before:.1f} before adapting, "
        advice = "; the network still does not fit this face" if self.is_misfit else ""
        return (
            f"colours at the mouth's border differ from the video's (CIE 1976) by {before}"
            f"{self.difference:.1f} after, expected at most {self.limit:g}{advice}"
        )


def measure_misfit(
    source: Frame, generated: Frame, box: NDArray[np.int16], oval: NDArray[np.float32]
) -> float:
    """ΔE of a generated crop (S, S, 3) along the border inside ``box`` (4,), of what is in the face there.

    ``oval`` (N, 2) is the outline of the source's face. nan where the face is not at the border.
    """
    size = len(source)
    in_face = find_ring((size, size), *box.tolist()) & fill_outline(oval, size)
    return measure_difference(generated, source, in_face)


def choose_trial_instants(segment_indices: Sequence[int], params: FaceCheckParams) -> list[list[int]]:
    """Runs of successive instants, spread evenly over those with a face (whose index is not negative)."""
    indices = np.asarray(segment_indices)
    with_face = np.flatnonzero(indices >= 0)
    runs: dict[int, list[int]] = {}
    for place in range(params.trial_places if len(with_face) else 0):
        first = int(with_face[int((place + 0.5) / params.trial_places * len(with_face))])
        run = [first]
        while len(run) < params.trial_frames and _is_same(indices, first, run[-1] + 1):
            run.append(run[-1] + 1)
        while len(run) < params.trial_frames and _is_same(indices, first, run[0] - 1):
            run.insert(0, run[0] - 1)
        runs[run[0]] = run
    return list(runs.values())


def _is_same(indices: NDArray[np.int_], first: int, other: int) -> bool:
    return bool(0 <= other < len(indices) and indices[other] == indices[first])


def average_trial(differences: Sequence[Sequence[float]]) -> float:
    """The trial's difference: the median of its places', so that one hand before a mouth does not decide."""
    places = [_average(run[1:] or run) for run in differences]
    places = [place for place in places if not np.isnan(place)]
    return float(np.median(places)) if places else float("nan")


def drop_misfits(crops: Iterable[tuple[Frame, float]], params: FaceCheckParams) -> Iterator[Frame | None]:
    """The generated crops of one stretch; None where they do not fit, given the difference of each.

    It decides by the mean over the window around a crop, so it holds back half a window of crops.
    """
    half = params.window_frames // 2
    differences: deque[float] = deque(maxlen=2 * half + 1)
    pending: deque[Frame] = deque()
    fits = True

    def pass_on() -> Frame | None:
        nonlocal fits
        mean = _average(differences)
        limit = params.leave_difference if fits else min(params.max_difference, params.leave_difference)
        fits = not mean > limit  # nan is no misfit
        crop = pending.popleft()
        return crop if fits else None

    for crop, difference in crops:
        differences.append(difference)
        pending.append(crop)
        if len(pending) > half:
            yield pass_on()
    while pending:
        while len(differences) > len(pending) + half:
            differences.popleft()
        yield pass_on()


def _average(differences: Iterable[float]) -> float:
    """The mean of those that are not nan; nan if there are none."""
    known = [difference for difference in differences if not np.isnan(difference)]
    return float(np.mean(known)) if known else float("nan")
