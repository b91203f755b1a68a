"""Edit a video of a person talking: re-draw the mouth to match other speech, and change nothing else.

The video is read twice. First the sandbox's child finds the face at each instant k / 25 s, as for a dataset;
it stores a few hundred bytes per frame. Then this process decodes the video again, for the network and for
the output. By then the child has decoded every frame that is used, with the same code: a file that hangs,
crashes or uses too much memory has already ended the edit with a one-line error. Here, too, it is opened
without access to other files.

In the second pass two readers decode the video, one for the crops and one for the frames that generated crops
are pasted into. So it does not matter how many crops the network reads before it returns the first one: no
full frame waits in memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from sampler.paste import paste
from sampler.rollout import CropFrame
from shards.atomic import write_atomically
from shards.schema import VIDEO_FPS, Frame
from stages.align import AlignParams
from stages.edit.face_check import (
    MISFIT,
    FaceCheckParams,
    MisfitError,
    average_trial,
    choose_trial_instants,
    drop_misfits,
    measure_difference,
)
from stages.edit.face_track import FaceChoice, choose_face_path, observe_faces
from stages.edit.plan import EditPlan
from stages.edit.reader import FrameReader, VideoFacts, probe_video
from stages.edit.speech import Speech, probe_speech
from stages.edit.timing import Fit, FrameTiming, compute_output_seconds
from stages.edit.writer import OutputFormat, VideoWriter, can_copy_audio, select_container
from stages.edit.yuv import YuvConverter, YuvImage
from stages.engine import sandbox
from stages.engine.outcome import Drop, StageError
from stages.engine.progress import Progress, no_progress
from stages.engine.sandbox import DAY, MAX_PIXELS, ClipJob, LimitParams
from stages.landmarks import LandmarksParams
from stages.media.faces import check_engine
from stages.media.video import RgbConverter
from stages.mels import MelsParams, compute_mels_of_file
from stages.speech import SpeechParams, compute_speech_of_file, find_model

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]
# A child that reads audio keeps it and its mels in memory: so many MB more for each second of it.
AUDIO_MB_PER_SECOND = 1.0
MIN_BYTES_PER_SECOND = 8000


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


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class EditParams:
    """The user's options, and how the network's dataset was made."""

    fit: Fit = "trim"
    face: FaceChoice = "largest"  # or left, right, or a number from the left; 0 is the leftmost
    crf: int = Field(default=18, ge=1, le=51)  # of x264: lower is better and larger
    preset: Preset = "medium"  # of x264
    max_seconds: float = Field(default=3600.0, gt=0, le=DAY)  # of the output
    max_pixels: int = Field(default=4096 * 2304, gt=0, le=MAX_PIXELS)  # of a frame
    any_face: bool = False  # draw also where the network does not fit the face
    landmarks: LandmarksParams = field(default_factory=LandmarksParams)
    align: AlignParams = field(default_factory=AlignParams)  # its size is the network's
    mels: MelsParams = field(default_factory=MelsParams)
    speech: SpeechParams = field(default_factory=SpeechParams)
    limits: LimitParams = field(default_factory=LimitParams)
    face_check: FaceCheckParams = field(default_factory=FaceCheckParams)


@dataclass(frozen=True, slots=True)
class EditResult:
    """What an edit did."""

    frames: int  # in the output
    redrawn: int  # of these
    passed_through: dict[str, int]  # unchanged frames by reason: no_face, small_face, no_alignment, no_fit
    seconds: float
    fps: float  # of the source, on average
    source_size: tuple[int, int]  # displayed width and height, px
    size: tuple[int, int]  # of the output: even
    audio: Literal["copied", "encoded"]

    def summary_lines(self) -> list[str]:
        """One to three lines for the user."""
        width, height = self.size
        lines = [f"{self.redrawn} of {self.frames} frames re-drawn, {self.seconds:.2f} s, "
                 f"{width}x{height} at {self.fps:.4g} fps, audio {self.audio}"]  # fmt: skip
        if self.size != self.source_size:
            source = "x".join(str(side) for side in self.source_size)
            lines.append(f"H.264 needs even sides: the last row or column of {source} is repeated")
        if self.passed_through:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.passed_through.items())
            lines.append(f"frames not changed: {reasons}")
        return lines


def edit(
    video: Path,
    audio: Path,
    out: Path,
    generator: MouthGenerator,
    *,
    model: Path,
    params: EditParams,
    preview: Path | None = None,
    progress: Progress = no_progress,
) -> EditResult:
    """Write ``out``: ``video`` with the mouth re-drawn by ``generator``, and with ``audio`` as its sound.

    Reads any container, size and frame rate that FFmpeg reads. The output has the source's frames at their
    own time stamps, counted from the first frame, which is when the speech starts. All pixels but the mouth's
    are the decoded ones of the source, encoded once. The output is upright; odd sides get one pixel more.
    Each frame shows the crop of the nearest instant k / 25 s, pasted where the face is at the frame's own
    time stamp. Memory does not grow with the video's length, except for a few kilobytes per second.

    ``model`` is MediaPipe's face model. ``preview`` is a second mp4 to write: source and result side by side.
    ``progress`` receives the passes "faces" (of instants), "trial" and "frames". Files appear when they are
    complete; after Ctrl-C there is none. The same inputs give the same bytes.

    A face that ``generator`` does not fit is refused before anything is written, and frames in which it stops
    to fit are left as they are; ``params.any_face`` draws all the same (``stages.edit.face_check``).

    Raises StageError, in one line, on whatever the user can fix; MisfitError for such a face.
    """
    cv2.setNumThreads(1)
    check_paths(video, audio, out, preview)
    encoder = find_speech_encoder(params) if generator.takes_speech else None
    with TemporaryDirectory(prefix="redub.") as scratch:
        facts = read_video_facts(video, params)
        speech = read_speech_facts(audio, params)
        seconds = compute_output_seconds(params.fit, facts.seconds, speech.seconds)
        if seconds > params.max_seconds:
            raise StageError(f"{out}: would last {float(seconds):.1f} s, expected at most "
                             f"{params.max_seconds:g} s; --max-seconds allows more")  # fmt: skip
        plan = make_plan(video, facts, seconds, generator.size, model, params, Path(scratch), progress)
        sound = compute_sound(speech, plan.n_instants, encoder, params)
        if not params.any_face:
            _check_face(plan, generator, sound, params.face_check, progress)
        return _write_outputs(plan, generator, sound, speech, out, preview, params, progress)


def check_paths(video: Path, audio: Path, out: Path, preview: Path | None) -> None:
    """Raise StageError unless the inputs exist and the outputs can be written."""
    for path in (video, audio):
        if not path.is_file():
            raise StageError(f"{path}: there is no such file")
    select_container(out)
    if preview is not None and preview.suffix.lower() != ".mp4":
        raise StageError(f"{preview}: a preview is written as .mp4")
    outputs = [out] if preview is None else [out, preview]
    for path in outputs:
        if not path.parent.is_dir():
            raise StageError(f"{path}: there is no folder {path.parent}")
        for other in (video, audio):
            if path.exists() and path.samefile(other):
                raise StageError(f"{path}: is an input, which is never overwritten; name another file")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise StageError(f"{preview}: preview and output are the same file; name another")


def read_video_facts(video: Path, params: EditParams) -> VideoFacts:
    """The facts of a video, read in the sandbox. Raises StageError when it cannot be edited."""
    job = ClipJob(probe_video, path=video, max_pixels=params.max_pixels)
    outcome = sandbox.run_or_raise(job, params.limits, video, video_seconds=_estimate_max_seconds(video))
    return VideoFacts.from_json(outcome.facts)


def read_speech_facts(audio: Path, params: EditParams) -> Speech:
    """The facts of a recording, read in the sandbox. Raises StageError when it cannot be played."""
    job = ClipJob(probe_speech, path=audio)
    outcome = sandbox.run_or_raise(job, params.limits, audio, video_seconds=_estimate_max_seconds(audio))
    return Speech.from_facts(audio, outcome.facts)


def _estimate_max_seconds(path: Path) -> float:
    """An upper bound of a file's duration, for a deadline, before the file is read."""
    return path.stat().st_size / MIN_BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class SoundRows:
    """What a network takes of the whole speech, from its first sample on."""

    mels: NDArray[np.float32]  # (2T, n_mels) dB
    speech: NDArray[np.float16] | None  # (2T, D), features of a speech encoder


def find_speech_encoder(params: EditParams) -> Path:
    """The weights of the encoder whose features a network takes. Raises StageError."""
    encoder = find_model(params.speech)
    if encoder is None:
        raise StageError(
            f"the network takes speech features; speech.encoder is {params.speech.encoder!r}, expected the "
            "one that its dataset has them from"
        )
    return encoder


def compute_sound(speech: Speech, n_instants: int, encoder: Path | None, params: EditParams) -> SoundRows:
    """Mels and speech features, by the dataset's own functions, in the sandbox."""

    def make_mels_job(entry: Path) -> ClipJob:
        return ClipJob(
            compute_mels_of_file,
            path=speech.path,
            start=float(speech.start),
            n_frames=n_instants,
            params=params.mels,
            entry=entry,
        )

    mels = _run_sound_job(make_mels_job, speech, n_instants, params)["mels"]
    if encoder is None:
        return SoundRows(mels, None)

    def make_speech_job(entry: Path) -> ClipJob:
        return ClipJob(
            compute_speech_of_file,
            path=speech.path,
            start=float(speech.start),
            n_frames=n_instants,
            model=encoder,
            entry=entry,
        )

    return SoundRows(mels, _run_sound_job(make_speech_job, speech, n_instants, params)["speech"])


def _run_sound_job(
    make_job: Callable[[Path], ClipJob], speech: Speech, n_instants: int, params: EditParams
) -> dict[str, NDArray[Any]]:
    """The arrays that a job on the speech has saved. Raises StageError when there are none."""
    seconds = n_instants / VIDEO_FPS
    memory_mb = params.limits.memory_mb + math.ceil(AUDIO_MB_PER_SECOND * seconds)
    limits = replace(params.limits, memory_mb=memory_mb)
    try:
        return sandbox.run_for_arrays(make_job, limits, video_seconds=seconds)
    except Drop as drop:
        raise StageError(f"{speech.path}: {drop.reason}") from drop


def make_plan(
    video: Path,
    facts: VideoFacts,
    seconds: Fraction,
    size: int,
    model: Path,
    params: EditParams,
    scratch: Path,
    progress: Progress,
    windows: Sequence[tuple[int, int]] | None = None,
) -> EditPlan:
    """Find the face in the part of the video that the output shows; ``windows`` as in ``find_faces``."""
    check_engine(params.landmarks.engine)
    observations = observe_faces(
        video,
        facts,
        min(seconds, facts.seconds),
        params.landmarks,
        params.limits,
        model,
        scratch,
        progress,
        windows,
    )
    align = replace(params.align, size=size)
    try:
        path = choose_face_path(observations, params.face, params.landmarks, align, scale=facts.square_scale)
    except Drop as drop:
        raise StageError(f"{video}: {drop.reason}") from drop
    return EditPlan(video, facts, params.fit, seconds, observations.stamps.tolist(), path)


def _check_face(
    plan: EditPlan,
    generator: MouthGenerator,
    sound: SoundRows,
    params: FaceCheckParams,
    progress: Progress,
) -> None:
    """Raise MisfitError if a few frames as the network draws them do not fit the face."""
    difference = try_face(plan, generator, sound, params, progress)
    if difference > params.max_difference:
        raise MisfitError(
            f"{plan.video}: the network does not fit this face: its colours at the mouth's border differ "
            f"from the video's by {difference:.1f} (CIE 1976), expected at most {params.max_difference:g}"
        )


def try_face(
    plan: EditPlan,
    generator: MouthGenerator,
    sound: SoundRows,
    params: FaceCheckParams,
    progress: Progress = no_progress,
) -> float:
    """Draw a few frames spread over the output: how far their mouths' borders are from the source's, ΔE*ab.

    nan where there is nothing to compare, as in a video without a face.
    """
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
            for frame, crop in zip(frames, generated, strict=True):
                box = generator.select_box(frame.box)
                differences[-1].append(measure_difference(frame.pixels, crop, box))
                progress("trial", sum(map(len, differences)), total)
    return average_trial(differences)


def _write_outputs(
    plan: EditPlan,
    generator: MouthGenerator,
    sound: SoundRows,
    speech: Speech,
    out: Path,
    preview: Path | None,
    params: EditParams,
    progress: Progress,
) -> EditResult:
    """Generate the mouths, paste them and encode the result."""
    facts = plan.facts
    output_format = OutputFormat.from_source(
        facts, seconds=plan.seconds, crf=params.crf, preset=params.preset
    )
    total = sum(1 for _ in plan.schedule())
    n_frames = n_redrawn = 0
    passed_through: dict[str, int] = {}
    with ExitStack() as stack:
        writer = _open_writer(stack, out, output_format, speech)
        preview_writer = None
        if preview is not None:
            preview_format = replace(output_format, width=2 * output_format.width)
            preview_writer = _open_writer(stack, preview, preview_format, speech)

        def report() -> None:
            progress("frames", n_frames, total)

        for frame in _render_frames(plan, generator, sound, params, report, stack):
            writer.write(frame.result, frame.timing.at, frame.timing.ticks)
            if preview_writer is not None:
                side_by_side = frame.source.hstack(frame.result)
                preview_writer.write(side_by_side, frame.timing.at, frame.timing.ticks)
            n_frames += 1
            if frame.reason is None:
                n_redrawn += 1
            else:
                passed_through[frame.reason] = passed_through.get(frame.reason, 0) + 1
            report()
    return EditResult(
        frames=n_frames,
        redrawn=n_redrawn,
        passed_through=passed_through,
        seconds=float(plan.seconds),
        fps=float(facts.fps),
        source_size=(facts.width, facts.height),
        size=(output_format.width, output_format.height),
        audio="copied" if can_copy_audio(select_container(out), speech) else "encoded",
    )


def _open_writer(stack: ExitStack, path: Path, output_format: OutputFormat, speech: Speech) -> VideoWriter:
    partial = stack.enter_context(write_atomically(path))
    return stack.enter_context(VideoWriter(partial, select_container(path), output_format, speech))


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """One frame of the output."""

    timing: FrameTiming
    source: YuvImage
    result: YuvImage
    reason: str | None  # a code, if it is not re-drawn


def _render_frames(
    plan: EditPlan,
    generator: MouthGenerator,
    sound: SoundRows,
    params: EditParams,
    report: Callable[[], None],
    stack: ExitStack,
) -> Iterator[OutputFrame]:
    """The output's frames, one at a time; ``report`` is called after each generated crop that is checked."""
    crop_reader, frame_reader = (
        stack.enter_context(FrameReader(plan.video, plan.facts, plan.stamps)) for _ in range(2)
    )
    check = None if params.any_face else params.face_check
    crops = _generate_crops(plan, generator, sound, crop_reader, check, report)
    generated = stack.enter_context(closing(crops))
    to_rgb, to_yuv = RgbConverter(), YuvConverter()
    k = -1  # the instant of new_crop
    new_crop: Frame | None = None
    for timing in plan.schedule():
        shown = plan.find_shown_instant(timing)
        while k < shown:
            k, new_crop = k + 1, next(generated)
        frame = frame_reader[timing.source]
        source = to_yuv(frame)
        if new_crop is None:
            reason = plan.get_reason(k) if plan.get_segment_index(k) < 0 else MISFIT
            yield OutputFrame(timing, source, source, reason)
            continue
        image, crop_plan = to_rgb(frame), plan.plan_crop(k)
        crop, matrix = crop_plan.crop(image, plan.get_source_time(timing.source), generator.size)
        patch = paste(image, crop, new_crop, matrix, generator.select_box(crop_plan.box))
        change = patch.pixels.astype(np.float32) - image[patch.region]
        result = source.add_change(patch.region, change, patch.inside, plan.facts.colours)
        yield OutputFrame(timing, source, result, None)


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
        frames = read_crops(plan, reader, instants, generator.size)
        pending: deque[CropFrame] = deque()  # read by the network; their crops are not yet measured
        if check is not None:
            frames = _store_frames(frames, pending)
        generated = generator(frames, sound.mels, instants[0], sound.speech)
        crops = _check_crops(generated, len(instants), generator.size)
        if check is None:
            yield from crops
        else:
            yield from drop_misfits(_measure_crops(crops, pending, generator, report), check)


def _store_frames(frames: Iterator[CropFrame], pending: deque[CropFrame]) -> Iterator[CropFrame]:
    for frame in frames:
        pending.append(frame)
        yield frame


def _measure_crops(
    crops: Iterator[Frame], pending: deque[CropFrame], generator: MouthGenerator, report: Callable[[], None]
) -> Iterator[tuple[Frame, float]]:
    """Each generated crop, and how far its border is from that of the first of ``pending``, which leaves."""
    for crop in crops:
        report()  # a second of crops is checked before the first is written, and an edit can be stopped
        frame = pending.popleft()
        yield crop, measure_difference(frame.pixels, crop, generator.select_box(frame.box))


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
