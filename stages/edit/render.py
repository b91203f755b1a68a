"""Render the frames of an edit: generate mouths, a face at a time, and paste them into the source's frames.

Each face has a reader that decodes the video for its crops; one more decodes the frames that generated crops
are pasted into. So it does not matter how many crops a network reads before it returns the first one: no full
frame waits in memory. The crops for the network are decoded by a thread that is a few of them ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampler.paste import Patch, paste
from sampler.rollout import CropFrame
from shards.background import prefetch
from shards.schema import Frame
from stages.edit.face_check import (
    MISFIT,
    FaceCheckParams,
    average_trial,
    choose_trial_instants,
    drop_misfits,
    measure_misfit,
)
from stages.edit.plan import EditPlan
from stages.edit.reader import FrameReader
from stages.edit.timing import FrameTiming
from stages.edit.yuv import YuvConverter, YuvImage
from stages.engine.progress import Progress, no_progress
from stages.media.video import RgbConverter

CROPS_AHEAD = 4  # for the network


class MouthGenerator(Protocol):
    """Generates mouths: crops and boxes at 25 fps and the speech's mels in, re-drawn crops out.

    ``mels`` are (2T, M) float32 dB of the whole speech; row 2(offset + k) is centred on frame k's instant. So
    are the rows of ``speech``, (2T, D) float16, which it gets if it takes them.
    Yields one crop (size, size, 3) uint8 per frame, in order, and may read any number of frames before it
    yields the first. It is called once per face segment, which is a part of the video in which the face is
    visible, and which begins ``offset`` frames after the speech does; before that, on a few frames of some
    segments, whose crops are compared with the source.
    """

    @property
    def size(self) -> int:
        """px of a crop's side."""
        ...

    @property
    def takes_speech(self) -> bool:
        """Whether it needs speech features."""
        ...

    @property
    def flat_pauses(self) -> bool:
        """Whether the pauses of the speech that it gets are flat (``stages.media.pauses``)."""
        ...

    def select_box(self, box: NDArray[np.int16]) -> NDArray[np.int16]:
        """The region that it generates in a crop with this mask box: x0 y0 x1 y1, (4,)."""
        ...

    def __call__(
        self,
        frames: Iterator[CropFrame],
        mels: NDArray[np.float32],
        offset: int,
        speech: NDArray[np.float16] | None,
    ) -> Iterator[NDArray[np.uint8]]: ...


@dataclass(frozen=True, slots=True)
class SoundRows:
    """What a network takes of the whole speech, from its first sample on."""

    mels: NDArray[np.float32]  # (2T, n_mels) dB
    speech: NDArray[np.float16] | None  # (2T, D), features of a speech encoder

    @property
    def is_silent(self) -> bool:
        """Whether nothing is heard from the first row to the last: then all are at the floor."""
        return bool((self.mels == self.mels[0, 0]).all())


@dataclass(frozen=True, slots=True)
class DrawnFace:
    """A face that is re-drawn: where it is in the video, and what it says."""

    plan: EditPlan
    sound: SoundRows


def try_face(
    face: DrawnFace,
    generator: MouthGenerator,
    params: FaceCheckParams,
    progress: Progress = no_progress,
) -> float:
    """Draw a few frames spread over the output: how far their mouths' borders are from the source's, ΔE*ab.

    nan where there is nothing to compare, as in a video without a face.
    """
    plan, sound = face.plan, face.sound
    segments = [plan.get_segment_index(k) for k in range(plan.n_instants)]
    runs = choose_trial_instants(segments, params)
    total, differences = sum(map(len, runs)), list[list[float]]()
    with FrameReader(plan.video, plan.facts, plan.stamps) as reader:
        for instants in runs:
            reader.skip_to(int(plan.source_frames[instants[0]]))
            frames = list(read_crops(plan, reader, instants, generator.size))
            crops = generator(iter(frames), sound.mels, instants[0], sound.speech)
            generated = _check_crops(crops, len(frames), generator.size)
            differences.append([])
            for k, frame, crop in zip(instants, frames, generated, strict=True):
                box, oval = generator.select_box(frame.box), plan.plan_crop(k).oval
                differences[-1].append(measure_misfit(frame.pixels, crop, box, oval))
                progress("trial", sum(map(len, differences)), total)
    return average_trial(differences)


@dataclass(frozen=True, slots=True)
class DrawnMouth:
    """The re-drawn crop that one face shows in a frame of the output."""

    instant: int  # of the output, whose crop it is
    crop: Frame


@dataclass(frozen=True, slots=True)
class DrawnFrame:
    """The re-drawn crops of one frame of the output, not pasted yet."""

    timing: FrameTiming
    mouths: list[DrawnMouth | None]  # of each face; None where it is left as it is
    reasons: list[str | None]  # of each face: a code, if it is not re-drawn here


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """One frame of the output."""

    timing: FrameTiming
    source: YuvImage
    result: YuvImage


def draw_frames(
    faces: Sequence[DrawnFace],
    generator: MouthGenerator,
    check: FaceCheckParams | None,
    report: Callable[[], None],
    stack: ExitStack,
) -> Iterator[DrawnFrame]:
    """The crops of the output's frames, one frame at a time, with every one of ``faces`` re-drawn in them.

    The plans of ``faces`` are of one video, fit and length. Without ``check`` misfits are drawn too.
    ``report`` is called after each generated crop that is checked. ``stack`` closes what is opened.
    """
    mouths = [_MouthReader(face, generator, check, report, stack) for face in faces]
    for timing in faces[0].plan.schedule():
        crops = [mouth.read_crop(timing) for mouth in mouths]
        reasons = [
            mouth.get_reason() if crop is None else None for mouth, crop in zip(mouths, crops, strict=True)
        ]
        yield DrawnFrame(timing, crops, reasons)


class FramePaster:
    """Pastes re-drawn crops into the source's frames, which it decodes, in the order of the output."""

    def __init__(self, faces: Sequence[DrawnFace], generator: MouthGenerator, stack: ExitStack) -> None:
        self._plans, self._generator = [face.plan for face in faces], generator
        plan = self._plans[0]
        self._colours = plan.facts.colours
        self._frames = stack.enter_context(FrameReader(plan.video, plan.facts, plan.stamps))
        self._to_rgb, self._to_yuv = RgbConverter(), YuvConverter()

    def __call__(self, drawn: DrawnFrame) -> OutputFrame:
        frame = self._frames[drawn.timing.source]
        source = result = self._to_yuv(frame)
        if any(mouth is not None for mouth in drawn.mouths):
            image = self._to_rgb(frame)
            # Where the boxes of two faces overlap, the first one's pixels stay.
            changed = np.zeros(image.shape[:2], bool) if len(self._plans) > 1 else None
            for plan, mouth in zip(self._plans, drawn.mouths, strict=True):
                if mouth is None:
                    continue
                patch = self._paste(plan, image, mouth, drawn.timing)
                inside = patch.inside
                if changed is not None:
                    inside = inside & ~changed[patch.region]
                    changed[patch.region] |= inside
                change = patch.pixels.astype(np.float32) - image[patch.region]
                result = result.add_change(patch.region, change, inside, self._colours)
        return OutputFrame(drawn.timing, source, result)

    def _paste(self, plan: EditPlan, image: Frame, mouth: DrawnMouth, timing: FrameTiming) -> Patch:
        """A re-drawn crop in its place in a frame (H, W, 3)."""
        crop_plan = plan.plan_crop(mouth.instant)
        crop, matrix = crop_plan.crop(image, plan.get_source_time(timing.source), self._generator.size)
        box = self._generator.select_box(crop_plan.box)
        return paste(image, crop, mouth.crop, matrix, box, crop_plan.oval)


class _MouthReader:
    """The generated crops of one face, read in the order of the output's frames."""

    def __init__(
        self,
        face: DrawnFace,
        generator: MouthGenerator,
        check: FaceCheckParams | None,
        report: Callable[[], None],
        stack: ExitStack,
    ) -> None:
        plan = face.plan
        reader = stack.enter_context(FrameReader(plan.video, plan.facts, plan.stamps))
        crops = _generate_crops(plan, generator, face.sound, reader, check, report)
        self._generated = stack.enter_context(closing(crops))
        self._plan = plan
        self._k = -1  # the instant of the crop that was read last
        self._crop: Frame | None = None

    def read_crop(self, timing: FrameTiming) -> DrawnMouth | None:
        """The crop that a frame shows, the next one or the last; None where the mouth is left as it is."""
        shown = self._plan.find_shown_instant(timing)
        while self._k < shown:
            self._k, self._crop = self._k + 1, next(self._generated)
        return None if self._crop is None else DrawnMouth(self._k, self._crop)

    def get_reason(self) -> str:
        """The code that says why the crop read last is None."""
        return self._plan.get_reason(self._k) if self._plan.get_segment_index(self._k) < 0 else MISFIT


def _generate_crops(
    plan: EditPlan,
    generator: MouthGenerator,
    sound: SoundRows,
    reader: FrameReader,
    check: FaceCheckParams | None,
    report: Callable[[], None],
) -> Generator[Frame | None, None, None]:
    """The re-drawn crop of each instant; None where there is no face segment, or by ``check`` no fit."""
    for index, group in groupby(range(plan.n_instants), plan.get_segment_index):
        instants = list(group)
        if index < 0:
            yield from [None] * len(instants)
            continue
        with closing(prefetch(read_crops(plan, reader, instants, generator.size), CROPS_AHEAD)) as frames:
            if check is None:
                generated = generator(frames, sound.mels, instants[0], sound.speech)
                yield from _check_crops(generated, len(instants), generator.size)
                continue
            pending: deque[CropFrame] = deque()  # read by the network; their crops are not yet measured
            generated = generator(_store_frames(frames, pending), sound.mels, instants[0], sound.speech)
            crops = _check_crops(generated, len(instants), generator.size)
            ovals = (plan.plan_crop(k).oval for k in instants)
            yield from drop_misfits(_measure_crops(crops, pending, ovals, generator, report), check)


def _store_frames(frames: Iterator[CropFrame], pending: deque[CropFrame]) -> Iterator[CropFrame]:
    for frame in frames:
        pending.append(frame)
        yield frame


def _measure_crops(
    crops: Iterator[Frame],
    pending: deque[CropFrame],
    ovals: Iterator[NDArray[np.float32]],
    generator: MouthGenerator,
    report: Callable[[], None],
) -> Iterator[tuple[Frame, float]]:
    """Each generated crop, and how far its border is from that of the first of ``pending``, which leaves."""
    for crop, oval in zip(crops, ovals, strict=True):
        report()  # a second of crops is checked before the first is written, and an edit can be stopped
        frame = pending.popleft()
        yield crop, measure_misfit(frame.pixels, crop, generator.select_box(frame.box), oval)


def read_crops(
    plan: EditPlan, reader: FrameReader, instants: Sequence[int], size: int
) -> Iterator[CropFrame]:
    """The network's input frames for instants of one segment."""
    to_rgb = RgbConverter()
    last: tuple[int, Frame] | None = None
    for k in instants:
        source, crop_plan = int(plan.source_frames[k]), plan.plan_crop(k)
        if last is None or last[0] != source:
            image = to_rgb(reader[source])
            last = source, crop_plan.crop(image, plan.get_source_time(source), size)[0]
        yield CropFrame(last[1], crop_plan.box)


def _check_crops(crops: Iterator[NDArray[np.uint8]], n: int, size: int) -> Iterator[Frame]:
    """Pass on generated crops. Raises ValueError unless there are exactly ``n`` of the right shape."""
    count = 0
    for crop in crops:
        count += 1
        if count > n or crop.shape != (size, size, 3) or crop.dtype != np.uint8:
            raise ValueError(f"crop {count} of {n} is {crop.dtype} {crop.shape}, expected uint8 "
                             f"({size}, {size}, 3), and not one more than {n}")  # fmt: skip
        yield crop
    if count < n:
        raise ValueError(f"{count} crops came back for {n} frames")
