"""A video of somebody who talks, and other speech: the mouth drawn anew to go with it, and nothing else.

Twice over the video. First the faces are found, at each k / 25 s as for a dataset, in the sandbox's child;
what is kept of a frame is a few hundred bytes. Then the video is decoded again, here, for the network and
for the output. By then the child has decoded every frame of it to be used, with the same code, and lived:
a file that hangs, crashes or eats memory has ended the edit with one line. Here it is opened with the
same doors shut.

In the second pass the video is decoded by two readers, one for the crops and one for the pictures that they
are laid into. So it does not matter how many crops the network wants before it gives the first one back:
no full picture ever waits for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from sampler.paste import paste
from sampler.rollout import CropFrame
from shards.atomic import write_atomically
from shards.schema import MELS_PER_FRAME, VIDEO_FPS
from stages.align import AlignParams
from stages.edit.face_track import Choice, face_path, watch
from stages.edit.plan import Plan
from stages.edit.reader import FrameReader, VideoFacts
from stages.edit.speech import Speech, speech_of
from stages.edit.timing import Fit, FrameTiming, output_seconds
from stages.edit.writer import OutputFormat, VideoWriter, container_of, sound_is_copied
from stages.edit.yuv import Picture, ToPicture
from stages.engine import sandbox
from stages.engine.cache import load_entry
from stages.engine.outcome import Drop, StageError
from stages.engine.sandbox import ClipJob, LimitParams
from stages.landmarks import LandmarksParams
from stages.media.video import Frame, ToRgb
from stages.mels import MelsParams

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]
# A child that reads sound keeps it and its mels: so many more MB for each second of it.
SOUND_MB_PER_SECOND = 1.0
LEAST_BYTES_PER_SECOND = 8000


class MouthGenerator(Protocol):
    """Draws mouths: given crops and boxes on the 25 fps clock and the speech's mels, yields re-drawn crops.

    ``mels`` are (2T, M) float32 dB for T frames, row 2k centred on frame k's instant. One crop
    (size, size, 3) uint8 comes back for each frame, in order. It may take as many frames as it likes before
    it gives the first. It is called once for each stretch of the video in which the face is to be seen.
    """

    @property
    def size(self) -> int:
        """px of a crop's side."""
        ...

    def __call__(
        self, frames: Iterator[CropFrame], mels: NDArray[np.float32]
    ) -> Iterator[NDArray[np.uint8]]: ...


class Progress(Protocol):
    """Is told how far an edit is: first of "faces", whose total is instants, then of "frames"."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


def silent(label: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class EditParams:
    """What an end user may choose, and how the network's dataset was made."""

    fit: Fit = "trim"
    face: Choice = "largest"  # or left, right, or a number from the left, the leftmost is 0
    crf: int = Field(default=18, ge=1, le=51)  # x264's quality: lower is better and larger
    preset: Preset = "medium"  # x264's
    max_seconds: float = Field(default=3600.0, gt=0)  # of the output
    max_pixels: int = Field(default=4096 * 2304, gt=0)  # of a frame
    landmarks: LandmarksParams = field(default_factory=LandmarksParams)
    align: AlignParams = field(default_factory=AlignParams)  # but for its size, which the network knows
    mels: MelsParams = field(default_factory=MelsParams)
    limits: LimitParams = field(default_factory=LimitParams)


@dataclass(frozen=True, slots=True)
class EditResult:
    """What came of an edit."""

    frames: int  # in the output
    redrawn: int  # of these
    passed_through: dict[str, int]  # untouched frames by reason: no_face, small_face, no_alignment
    seconds: float
    fps: float  # of the source, on average
    source_size: tuple[int, int]  # width and height as shown, px
    size: tuple[int, int]  # of the output: even
    sound: Literal["copied", "encoded"]

    def told(self) -> list[str]:
        """What came of it, in a line or a few."""
        width, height = self.size
        lines = [f"{self.redrawn} of {self.frames} frames re-drawn, {self.seconds:.2f} s, "
                 f"{width}x{height} at {self.fps:.4g} fps, sound {self.sound}"]  # fmt: skip
        if self.size != self.source_size:
            source = "x".join(str(side) for side in self.source_size)
            lines.append(f"H.264 has even sides: the last pixels of {source} are there twice")
        if self.passed_through:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.passed_through.items())
            lines.append(f"frames left as they were: {reasons}")
        return lines


def edit(
    video: Path,
    audio: Path,
    out: Path,
    redraw: MouthGenerator,
    *,
    model: Path,
    params: EditParams,
    preview: Path | None = None,
    progress: Progress = silent,
) -> EditResult:
    """Write ``out``: ``video`` with the mouth that ``redraw`` draws, and with ``audio`` as its sound.

    Any container, size and frame rate that FFmpeg reads. The output has the source's frames at the source's
    own time stamps, counted from the first one, which is when the speech starts; its pixels but for the
    mouth are the source's decoded ones, encoded once. It stands upright. Odd sides get one pixel more.
    Each frame shows the crop of the instant k / 25 s nearest to it, laid to where the face is at the
    frame's own time stamp. Memory does not grow with the video's length but for some kilobytes a second.

    ``model`` is MediaPipe's face model. ``preview`` is an mp4 to write too: source and result side by side.
    Files appear when they are whole, also after Ctrl-C. Same inputs, same bytes.

    Raises StageError, in one line, on whatever the user can mend.
    """
    cv2.setNumThreads(1)
    _check_paths(video, audio, out, preview)
    with TemporaryDirectory(prefix="redub.") as scratch:
        facts = _look(video, params)
        speech = _listen(audio, params)
        seconds = output_seconds(params.fit, facts.seconds, speech.seconds)
        if seconds > params.max_seconds:
            raise StageError(f"{out}: would last {float(seconds):.1f} s, expected at most "
                             f"{params.max_seconds:g} s; --max-seconds allows more")  # fmt: skip
        plan = _plan(video, facts, seconds, redraw.size, model, params, Path(scratch), progress)
        mels = _mels(speech, plan.n_instants, params, Path(scratch))
        return _write(plan, redraw, mels, speech, out, preview, params, progress)


def _check_paths(video: Path, audio: Path, out: Path, preview: Path | None) -> None:
    """Raise StageError unless the inputs are there and the outputs may be written."""
    for path in (video, audio):
        if not path.is_file():
            raise StageError(f"{path}: there is no such file")
    container_of(out)
    if preview is not None and preview.suffix.lower() != ".mp4":
        raise StageError(f"{preview}: a preview is written as .mp4")
    outputs = [out] if preview is None else [out, preview]
    for path in outputs:
        if not path.parent.is_dir():
            raise StageError(f"{path}: there is no folder {path.parent}")
        for other in (video, audio):
            if path.exists() and path.samefile(other):
                raise StageError(f"{path}: is an input, which is never written to; name another file")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise StageError(f"{preview}: preview and output are one file; name another")


def _look(video: Path, params: EditParams) -> VideoFacts:
    args = {"path": os.fspath(video), "max_pixels": params.max_pixels}
    job = ClipJob("stages.edit.reader:look", args, _longest_seconds(video), params.limits)
    outcome = sandbox.run_or_raise(job, video)
    return VideoFacts.from_json(outcome.facts)


def _listen(audio: Path, params: EditParams) -> Speech:
    args = {"path": os.fspath(audio)}
    job = ClipJob("stages.edit.speech:listen", args, _longest_seconds(audio), params.limits)
    return speech_of(audio, sandbox.run_or_raise(job, audio))


def _longest_seconds(path: Path) -> float:
    """How long a file could last, for a deadline, before anything is known of it."""
    return path.stat().st_size / LEAST_BYTES_PER_SECOND


def _mels(speech: Speech, n_instants: int, params: EditParams, scratch: Path) -> NDArray[np.float32]:
    """The speech from its first sample on, by the dataset's own function: (2T, n_mels) dB."""
    seconds = n_instants / VIDEO_FPS
    entry = scratch / "mels.npz"
    args = {
        "path": os.fspath(speech.path),
        "start": float(speech.start),
        "n_frames": n_instants,
        "params": asdict(params.mels),
        "entry": os.fspath(entry),
    }
    memory_mb = params.limits.memory_mb + math.ceil(SOUND_MB_PER_SECOND * seconds)
    limits = replace(params.limits, memory_mb=memory_mb)
    sandbox.run_or_raise(ClipJob("stages.mels:mels_of_file", args, seconds, limits), speech.path)
    loaded = load_entry(entry)
    assert loaded is not None, "the job has just written it"
    mels: NDArray[np.float32] = loaded[1]["mels"]
    return mels


def _plan(
    video: Path,
    facts: VideoFacts,
    seconds: Fraction,
    size: int,
    model: Path,
    params: EditParams,
    scratch: Path,
    progress: Progress,
) -> Plan:
    """Find the face in as much of the video as is to be seen."""
    folder = scratch / "faces"
    folder.mkdir()

    def tell(done: int, total: int) -> None:
        progress("faces", done, total)

    watched = watch(
        video, facts, min(seconds, facts.seconds), params.landmarks, params.limits, model, folder, tell
    )
    try:
        path = face_path(watched, params.face, params.landmarks, replace(params.align, size=size))
    except Drop as drop:
        raise StageError(f"{video}: {drop.reason}") from drop
    return Plan(video, facts, params.fit, seconds, watched.stamps.tolist(), path)


def _write(
    plan: Plan,
    redraw: MouthGenerator,
    mels: NDArray[np.float32],
    speech: Speech,
    out: Path,
    preview: Path | None,
    params: EditParams,
    progress: Progress,
) -> EditResult:
    """Draw, lay in and encode."""
    facts = plan.facts
    film_facts = OutputFormat.like(facts, seconds=plan.seconds, crf=params.crf, preset=params.preset)
    total = sum(1 for _ in plan.showings())
    n_frames = n_redrawn = 0
    passed: dict[str, int] = {}
    with ExitStack() as opened:
        film = _film(opened, out, film_facts, speech)
        both = None
        if preview is not None:
            both = _film(opened, preview, replace(film_facts, width=2 * film_facts.width), speech)
        for frame in _frames(plan, redraw, mels, opened):
            film.write(frame.result, frame.showing.at, frame.showing.ticks)
            if both is not None:
                both.write(frame.source.beside(frame.result), frame.showing.at, frame.showing.ticks)
            n_frames += 1
            if frame.why_not is None:
                n_redrawn += 1
            else:
                passed[frame.why_not] = passed.get(frame.why_not, 0) + 1
            progress("frames", n_frames, total)
    return EditResult(
        frames=n_frames,
        redrawn=n_redrawn,
        passed_through=passed,
        seconds=float(plan.seconds),
        fps=float(facts.fps),
        source_size=(facts.width, facts.height),
        size=(film_facts.width, film_facts.height),
        sound="copied" if sound_is_copied(out, speech) else "encoded",
    )


def _film(opened: ExitStack, path: Path, facts: OutputFormat, speech: Speech) -> VideoWriter:
    partial = opened.enter_context(write_atomically(path))
    return opened.enter_context(VideoWriter(partial, container_of(path), facts, speech))


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """One frame of the output."""

    showing: FrameTiming
    source: Picture
    result: Picture
    why_not: str | None  # a code, where it is not re-drawn


def _frames(
    plan: Plan, redraw: MouthGenerator, mels: NDArray[np.float32], opened: ExitStack
) -> Iterator[OutputFrame]:
    """The output's frames, one at a time."""
    for_crops, for_pictures = (
        opened.enter_context(FrameReader(plan.video, plan.facts, plan.stamps)) for _ in range(2)
    )
    drawn = opened.enter_context(closing(_drawn(plan, redraw, mels, for_crops)))
    to_rgb, to_picture = ToRgb(), ToPicture()
    k = -1  # the instant whose crop is at hand
    new: Frame | None = None
    for showing in plan.showings():
        nearest = plan.nearest(showing.at)
        while k < nearest:
            k, new = k + 1, next(drawn)
        frame = for_pictures[showing.source]
        source = to_picture(frame)
        if new is None:
            yield OutputFrame(showing, source, source, plan.path.why_not[plan.instants[k]])
            continue
        image, cut = to_rgb(frame), plan.cut(k)
        crop, affine = cut.crop(image, plan.stamp(showing.source), redraw.size)
        patch = paste(image, crop, new, affine, cut.box)
        change = patch.pixels.astype(np.float32) - image[patch.where]
        result = source.changed(patch.where, change, patch.inside, plan.facts.colours)
        yield OutputFrame(showing, source, result, None)


def _drawn(
    plan: Plan, redraw: MouthGenerator, mels: NDArray[np.float32], reel: FrameReader
) -> Generator[Frame | None, None, None]:
    """For each instant of the output its re-drawn crop, or None where the face is not followed."""
    for index, run in groupby(range(plan.n_instants), plan.stretch_index):
        instants = list(run)
        if index < 0:
            yield from [None] * len(instants)
            continue
        rows = mels[instants[0] * MELS_PER_FRAME : (instants[-1] + 1) * MELS_PER_FRAME]
        frames = _crop_frames(plan, reel, instants, redraw.size)
        yield from _one_each(redraw(frames, rows), len(instants), redraw.size)


def _crop_frames(plan: Plan, reel: FrameReader, instants: Sequence[int], size: int) -> Iterator[CropFrame]:
    """What the network sees of instants in one stretch."""
    to_rgb = ToRgb()
    last: tuple[int, Frame] | None = None
    for k in instants:
        source, cut = int(plan.shown[k]), plan.cut(k)
        if last is None or last[0] != source:
            last = source, cut.crop(to_rgb(reel[source]), plan.stamp(source), size)[0]
        yield CropFrame(last[1], cut.box)


def _one_each(crops: Iterator[NDArray[np.uint8]], n: int, size: int) -> Iterator[Frame]:
    """Pass on what a network drew. Raises ValueError when it is not ``n`` crops: that is its fault."""
    count = 0
    for crop in crops:
        count += 1
        if count > n or crop.shape != (size, size, 3) or crop.dtype != np.uint8:
            raise ValueError(f"crop {count} of {n} is {crop.dtype} {crop.shape}, expected uint8 "
                             f"({size}, {size}, 3), and not one more than {n}")  # fmt: skip
        yield crop
    if count < n:
        raise ValueError(f"{count} crops came back for {n} frames")
