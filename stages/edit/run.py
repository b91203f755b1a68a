"""Edit a video of a person talking: re-draw the mouth to match other speech, and change nothing else.

The video is read twice. First the sandbox's child finds the face at each instant k / 25 s, as for a dataset;
it stores one and a half kilobytes for each face in it. Then this process decodes the video again, for the
network and for the output. By then the child has decoded every frame that is used, with the same code: a file
that hangs, crashes or uses too much memory has already ended the edit with a one-line error. Here, too, it is
opened without access to other files.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import cv2
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.atomic import check_writable, write_atomically
from shards.background import BackgroundWriter
from shards.schema import VIDEO_FPS
from stages.align import AlignParams
from stages.edit.credentials import Signing, check_signing, sign_when_written
from stages.edit.face_check import FaceCheckParams, FaceTrial, MisfitError
from stages.edit.face_track import FaceChoice, choose_face_paths, count_face_threads, observe_faces
from stages.edit.plan import EditPlan
from stages.edit.reader import VideoFacts, probe_video
from stages.edit.render import (
    DrawnFace,
    DrawnFrame,
    FramePaster,
    MouthGenerator,
    OutputFrame,
    SoundRows,
    draw_frames,
    try_face,
)
from stages.edit.speech import Speech, probe_speech
from stages.edit.timing import Fit, compute_output_seconds
from stages.edit.writer import OutputFormat, VideoWriter, can_copy_audio, select_container
from stages.engine import sandbox
from stages.engine.outcome import StageError, name_file
from stages.engine.progress import Progress, no_progress
from stages.engine.sandbox import DAY, MAX_PIXELS, ClipJob, LimitParams
from stages.landmarks import LandmarksParams
from stages.media.faces import check_engine
from stages.media.pauses import flatten_pauses
from stages.media.video import count_instants
from stages.mels import MelsParams, compute_mels_of_file, get_reference
from stages.speech import SpeechParams, compute_speech_of_file, find_model

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]
# A child that reads audio keeps it and its mels in memory: so many MB more for each second of it.
AUDIO_MB_PER_SECOND = 1.0
MIN_BYTES_PER_SECOND = 8000
# How much waits in memory: crops to be pasted (50 KB), and whole frames to be encoded (14 MB of 4K).
CROPS_WAITING, FRAMES_WAITING = 8, 2


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
class FaceResult:
    """What an edit did to one face."""

    face: FaceChoice
    redrawn: int  # frames
    passed_through: dict[str, int]  # frames in which it is as in the source, by reason
    trial: FaceTrial | None = None  # before the edit; None: any face is drawn
    is_silent: bool = False  # its speech begins after the output's end


@dataclass(frozen=True, slots=True)
class EditInputs:
    """What an edit reads, without its pictures and sounds."""

    facts: VideoFacts
    speeches: list[Speech]  # of each recording
    seconds: Fraction  # of the output


@dataclass(frozen=True, slots=True)
class EditResult:
    """What an edit did.

    The reasons for a face that is not re-drawn are no_face, other_face, small_face, no_alignment,
    mouth_covered and no_fit.
    """

    frames: int  # in the output
    redrawn: int  # of these, with at least one face re-drawn
    faces: list[FaceResult]
    seconds: float
    fps: float  # of the source, on average
    source_size: tuple[int, int]  # displayed width and height, px
    size: tuple[int, int]  # of the output: even
    audio: Literal["copied", "encoded"]
    changes: list[str]  # what the output's format changes of the source's, a sentence each

    @property
    def passed_through(self) -> dict[str, int]:
        """How often a face is as in the source, by reason: frames, summed over the faces."""
        return dict(sum((Counter(face.passed_through) for face in self.faces), Counter()))

    def summary_lines(self) -> list[str]:
        """A few lines for the user."""
        width, height = self.size
        lines = [f"{self.redrawn} of {self.frames} frames re-drawn, {self.seconds:.2f} s, "
                 f"{width}x{height} at {self.fps:.4g} fps, audio {self.audio}"]  # fmt: skip
        if self.size != self.source_size:
            source = "x".join(str(side) for side in self.source_size)
            lines.append(f"H.264 needs even sides: the last row or column of {source} is repeated")
        lines += self.changes
        for face in self.faces:
            name = f"face {face.face}, " if len(self.faces) > 1 else ""
            if face.is_silent:
                lines.append(f"{name}speech silent: nothing is heard in its first {self.seconds:.2f} s")
            if face.trial is not None and face.trial.before is not None:  # of an adapted network
                lines.append(f"{name}{face.trial.describe()}")
            if face.passed_through:
                reasons = ", ".join(f"{count} {reason}" for reason, count in face.passed_through.items())
                lines.append(f"{name}frames not changed: {reasons}")
        return lines


def edit(
    video: Path,
    audio: Path | Mapping[FaceChoice, Path],
    out: Path,
    generator: MouthGenerator,
    *,
    model: Path,
    params: EditParams,
    preview: Path | None = None,
    signing: Signing | None = None,
    progress: Progress = no_progress,
    overlap: bool = True,
    adapted_from: MouthGenerator | None = None,
) -> EditResult:
    """Write ``out``: ``video`` with the mouth re-drawn by ``generator``, and with ``audio`` as its sound.

    Reads any container, size and frame rate that FFmpeg reads. The output has the source's frames at their
    own time stamps, counted from the first frame, which is when the speech starts. All pixels but the mouth's
    are the decoded ones of the source, as 8 bit 4:2:0, encoded once. The output is upright; odd sides get one
    pixel more.
    A frame that stands for longer than 0.15 s is repeated at 25 fps, as its mouth goes on speaking.
    Each frame shows the crop of the nearest instant k / 25 s, pasted where the face is at the frame's own
    time stamp. Memory does not grow with the video's length, except for some 40 KB per second and face.

    ``audio`` is what ``params.face`` says, or what each of several faces says: ``{"left": a, "right": b}``.
    Then the output's sound is their sum, its length is by the longest, and each face is one person. A
    recording with a picture that begins before its sound has silence there.

    The speech is analysed while faces are looked for, each in a child process; without ``overlap`` one comes
    after the other, in the same child: as fast on one core, in less memory.

    ``model`` is MediaPipe's face model. ``preview`` is a second mp4 to write: source and result side by side.
    ``progress`` receives the passes "faces" (of instants), "trial before" of a network before it was adapted,
    "trial" and "frames". Files appear when they are complete; after Ctrl-C there is none. The same inputs
    give the same bytes.

    What is written says that a model drew it (``stages.media.mark``). With ``signing`` it also has signed
    content credentials (``stages.edit.credentials``), whose bytes differ each time.

    A face that ``generator`` does not fit is refused before anything is written, and frames in which it stops
    to fit are left as they are; ``params.any_face`` draws all the same (``stages.edit.face_check``).
    ``adapted_from`` draws what ``generator`` drew before it was adapted to this video: then the face is never
    refused, and the result says how both fit it.

    Raises StageError, in one line, on whatever the user can fix; MisfitError for such a face; WriteError
    where the system refuses to write.
    """
    cv2.setNumThreads(1)
    recordings = audio if isinstance(audio, Mapping) else {params.face: audio}
    inputs = read_inputs(video, recordings.values(), out, params, preview)
    speeches, seconds = inputs.speeches, inputs.seconds
    if signing is not None:
        check_signing(signing, [out] if preview is None else [out, preview])
    encoder = find_speech_encoder(params) if generator.takes_speech else None
    with TemporaryDirectory(prefix="redub.") as scratch:
        n_instants = max(1, count_instants(seconds))
        with _compute_sounds(
            speeches, n_instants, encoder, params, flat_pauses=generator.flat_pauses, overlap=overlap
        ) as sounds:
            plans = make_plans(
                video,
                inputs.facts,
                seconds,
                size=generator.size,
                model=model,
                params=params,
                faces=[*recordings],
                scratch=Path(scratch),
                progress=progress,
                n_threads=count_face_threads() if overlap else 1,
            )
            faces = [DrawnFace(plan, sound) for plan, sound in zip(plans, sounds, strict=True)]
        trials: list[FaceTrial | None] = []
        for choice, face in zip(recordings, faces, strict=True):
            trial = None
            if not params.any_face:
                trial = _try_face(face, generator, adapted_from, params.face_check, progress)
                if adapted_from is None:
                    _refuse_misfit(face, f" (--face {choice})" if len(faces) > 1 else "", trial)
            trials.append(trial)
        return _write_outputs(
            faces,
            choices=[*recordings],
            trials=trials,
            generator=generator,
            speeches=speeches,
            out=out,
            preview=preview,
            params=params,
            signing=signing,
            progress=progress,
        )


def read_inputs(
    video: Path, audio: Iterable[Path], out: Path, params: EditParams, preview: Path | None = None
) -> EditInputs:
    """Check what an edit reads and writes; it takes moments, and an edit begins with it.

    Raises StageError unless the paths are good, the video can be edited, the recordings have sound, and the
    output is not too long; WriteError where the system refuses to write the output.
    """
    recordings = [*audio]
    check_paths(video, recordings, out, preview)
    facts = read_video_facts(video, params)
    speeches = [read_speech_facts(path, params) for path in recordings]
    if len(speeches) > 1:  # they have one clock
        speeches = [speech.begin_with_picture() for speech in speeches]
    longest = max(speech.seconds for speech in speeches)
    seconds = compute_output_seconds(params.fit, facts.seconds, longest)
    if seconds > params.max_seconds:
        raise StageError(f"{out}: would last {float(seconds):.1f} s, expected at most "
                         f"{params.max_seconds:g} s; --max-seconds allows more")  # fmt: skip
    return EditInputs(facts, speeches, seconds)


def check_paths(video: Path, audio: Iterable[Path], out: Path, preview: Path | None) -> None:
    """Raise StageError unless the inputs exist and the outputs can be written; WriteError of the system's."""
    inputs = [video, *audio]
    for path in inputs:
        if not path.is_file():
            raise StageError(f"{path}: there is no such file")
    select_container(out)
    if preview is not None and preview.suffix.lower() != ".mp4":
        raise StageError(f"{preview}: a preview is written as .mp4")
    outputs = [out] if preview is None else [out, preview]
    for path in outputs:
        check_output(path, inputs)
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise StageError(f"{preview}: preview and output are the same file; name another")


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise StageError unless a file can be written there that is no input; WriteError of the system's.

    Called before the work, not after it.
    """
    if not path.parent.is_dir():
        raise StageError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise StageError(f"{path}: is a folder; name a file in it")
    if path.exists() and any(path.samefile(other) for other in inputs):
        raise StageError(f"{path}: is an input, which is never overwritten; name another file")
    check_writable(path)


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


def find_speech_encoder(params: EditParams) -> Path:
    """The weights of the encoder whose features a network takes. Raises StageError."""
    encoder = find_model(params.speech)
    if encoder is None:
        raise StageError(
            f"the network takes speech features; speech.encoder is {params.speech.encoder!r}, expected the "
            "one that its dataset has them from"
        )
    return encoder


@contextmanager
def _compute_sounds(
    speeches: Sequence[Speech],
    n_instants: int,
    encoder: Path | None,
    params: EditParams,
    *,
    flat_pauses: bool,
    overlap: bool,
) -> Iterator[Iterator[SoundRows]]:
    """The sound of each of ``speeches``, in order. With ``overlap`` a thread computes them from now on.

    Where the ``with`` block is left it ends, and so does the process that it waits for.
    """
    is_left = threading.Event()

    def check_block() -> None:
        if is_left.is_set():
            raise InterruptedError("the edit has ended")

    def compute(speech: Speech) -> SoundRows:
        sound = compute_sound(speech, n_instants, encoder, params, check_block, may_be_silent=True)
        if not flat_pauses:
            return sound
        return SoundRows(*flatten_pauses(sound.mels, sound.speech, get_reference(params.mels)))

    if not overlap:
        yield map(compute, speeches)
        return
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(compute, speech) for speech in speeches]
        try:
            yield (future.result() for future in futures)
        finally:
            is_left.set()
            for future in futures:
                future.cancel()


def compute_sound(
    speech: Speech,
    n_instants: int,
    encoder: Path | None,
    params: EditParams,
    on_poll: Callable[[], None] = lambda: None,
    *,
    may_be_silent: bool = False,
) -> SoundRows:
    """Mels and speech features, by the dataset's own functions, in the sandbox; ``on_poll`` as there.

    Raises StageError when they cannot be computed, as of silence, which ``may_be_silent`` accepts.
    """

    def make_mels_job(entry: Path) -> ClipJob:
        return ClipJob(
            compute_mels_of_file,
            path=speech.path,
            start=float(speech.start),
            n_frames=n_instants,
            params=params.mels,
            entry=entry,
            may_be_silent=may_be_silent,
        )

    mels = _run_sound_job(make_mels_job, speech, n_instants, params, on_poll)["mels"]
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
            may_be_silent=may_be_silent,
        )

    return SoundRows(mels, _run_sound_job(make_speech_job, speech, n_instants, params, on_poll)["speech"])


def _run_sound_job(
    make_job: Callable[[Path], ClipJob],
    speech: Speech,
    n_instants: int,
    params: EditParams,
    on_poll: Callable[[], None],
) -> dict[str, NDArray[Any]]:
    """The arrays that a job on the speech has saved. Raises StageError when there are none."""
    seconds = n_instants / VIDEO_FPS
    memory_mb = params.limits.memory_mb + math.ceil(AUDIO_MB_PER_SECOND * seconds)
    limits = replace(params.limits, memory_mb=memory_mb)
    with name_file(speech.path):
        return sandbox.run_for_arrays(make_job, limits, video_seconds=seconds, on_poll=on_poll)


def make_plans(
    video: Path,
    facts: VideoFacts,
    seconds: Fraction,
    *,
    size: int,
    model: Path,
    params: EditParams,
    faces: Sequence[FaceChoice],
    scratch: Path,
    progress: Progress,
    windows: Sequence[tuple[int, int]] | None = None,
    n_threads: int = 1,
) -> list[EditPlan]:
    """Find ``faces`` in the part of the video that the output shows; the rest is as in ``find_faces``."""
    check_engine(params.landmarks.engine)
    observations = observe_faces(
        video,
        facts,
        min(seconds, facts.seconds),
        params=params.landmarks,
        limits=params.limits,
        model=model,
        folder=scratch,
        progress=progress,
        windows=windows,
        n_threads=n_threads,
    )
    align = replace(params.align, size=size)
    with name_file(video):
        paths = choose_face_paths(observations, faces, params.landmarks, align, scale=facts.square_scale)
    stamps = observations.stamps.tolist()
    return [EditPlan(video, facts, params.fit, seconds, stamps, path) for path in paths]


def _try_face(
    face: DrawnFace,
    generator: MouthGenerator,
    adapted_from: MouthGenerator | None,
    params: FaceCheckParams,
    progress: Progress,
) -> FaceTrial:
    """Have a few frames drawn, also by the network as it was before it was adapted."""

    def report_before(label: str, done: int, total: int) -> None:
        progress(f"{label} before", done, total)

    before = None if adapted_from is None else try_face(face, adapted_from, params, report_before)
    return FaceTrial(try_face(face, generator, params, progress), params.max_difference, before)


def _refuse_misfit(face: DrawnFace, name: str, trial: FaceTrial) -> None:
    """Raise MisfitError if the network does not fit the face."""
    if trial.is_misfit:
        raise MisfitError(
            f"{face.plan.video}: the network does not fit this face{name}: its colours at the mouth's border "
            f"differ from the video's by {trial.difference:.1f} (CIE 1976), expected at most {trial.limit:g}"
        )


def _write_outputs(
    faces: Sequence[DrawnFace],
    *,
    choices: Sequence[FaceChoice],
    trials: Sequence[FaceTrial | None],
    generator: MouthGenerator,
    speeches: Sequence[Speech],
    out: Path,
    preview: Path | None,
    params: EditParams,
    signing: Signing | None,
    progress: Progress,
) -> EditResult:
    """Generate the mouths, paste them and encode the result."""
    plan = faces[0].plan
    facts = plan.facts
    output_format = OutputFormat.from_source(
        facts, seconds=plan.seconds, crf=params.crf, preset=params.preset
    )
    total = sum(1 for _ in plan.schedule())
    n_frames = n_redrawn = n_written = 0
    counts: list[Counter[str]] = [Counter() for _ in faces]

    outputs = [out] if preview is None else [out, preview]
    formats = [output_format, replace(output_format, width=2 * output_format.width)]
    recordings = [speech.path for speech in speeches]
    with ExitStack() as stack:
        # Left in reverse: both files are complete and signed before one gets its name, the preview's last.
        partials = [stack.enter_context(write_atomically(path)) for path in reversed(outputs)][::-1]
        if signing is not None:
            partials = [
                stack.enter_context(
                    sign_when_written(partial, path, plan.video, recordings, signing, params.limits,
                                      float(plan.seconds))
                )
                for partial, path in zip(partials, outputs, strict=True)
            ]  # fmt: skip
        writers = [
            stack.enter_context(VideoWriter(partial, select_container(path), video_format, speeches))
            for partial, path, video_format in zip(partials, outputs, formats, strict=False)
        ]
        writer, preview_writer = writers[0], None if preview is None else writers[1]

        def encode(frame: OutputFrame) -> None:
            nonlocal n_written
            writer.write(frame.result, frame.timing.at, frame.timing.ticks)
            if preview_writer is not None:
                side_by_side = frame.source.hstack(frame.result)
                preview_writer.write(side_by_side, frame.timing.at, frame.timing.ticks)
            n_written += 1

        def report() -> None:
            progress("frames", n_written, total)

        check = None if params.any_face else params.face_check
        drawn_frames = draw_frames(faces, generator, check, report, stack)
        paste = FramePaster(faces, generator, stack)
        # This thread draws, one pastes and one encodes what is drawn. The slowest sets the pace.
        encoder = BackgroundWriter(encode, n_waiting=FRAMES_WAITING)
        paster = BackgroundWriter[DrawnFrame](
            lambda drawn: encoder.put(paste(drawn)), n_waiting=CROPS_WAITING
        )
        with encoder, paster:
            for drawn in drawn_frames:
                paster.put(drawn)
                n_frames += 1
                n_redrawn += None in drawn.reasons
                for count, reason in zip(counts, drawn.reasons, strict=True):
                    if reason is not None:
                        count[reason] += 1
                report()
        report()
    return EditResult(
        frames=n_frames,
        redrawn=n_redrawn,
        faces=[
            FaceResult(choice, n_frames - count.total(), dict(count), trial, face.sound.is_silent)
            for choice, face, count, trial in zip(choices, faces, counts, trials, strict=True)
        ],
        seconds=float(plan.seconds),
        fps=float(facts.fps),
        source_size=(facts.width, facts.height),
        size=(output_format.width, output_format.height),
        audio="copied" if can_copy_audio(select_container(out), speeches) else "encoded",
        changes=output_format.describe_changes(facts),
    )
