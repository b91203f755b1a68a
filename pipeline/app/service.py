"""The actions of the page of ``pipeline app``: accept uploads, edit them, train a model on them.

An upload is copied at once, in the sandbox, to a format that browsers play (they play no .mpg). This also
checks whether it can be used, before anyone waits for an edit.
"""

from __future__ import annotations

import html
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gradio as gr

from model.checkpoint import Checkpoint, find_checkpoint, find_run
from model.execution import leave_core
from model.recipe import ModelError
from pipeline.app.example import Example
from pipeline.app.models import ModelList, describe_run
from pipeline.app.sessions import Kind, Session, Sessions
from pipeline.errors import describe_error
from pipeline.params import Params
from pipeline.progress import format_time_left
from sampler.rollout import override_params
from shards.errors import shorten
from stages.adapt.run import AdaptResult, Estimate, adapt, make_request
from stages.edit.browser_copy import copy_audio, copy_video
from stages.edit.credentials import Credentials, CredentialsError, make_signing
from stages.edit.face_check import MISFIT, MisfitError
from stages.edit.face_track import FaceChoice
from stages.edit.pairs import name_output
from stages.edit.reader import VideoFacts
from stages.edit.run import EditParams, edit, read_inputs
from stages.edit.timing import Fit
from stages.engine import sandbox
from stages.engine.outcome import Outcome, StageError
from stages.engine.sandbox import ClipJob
from stages.media.networks import find_trainable
from stages.train.run_file import advise_sampling

PASS_LABELS = {
    "faces": "Finding the face",
    "crops": "Cutting out the face",
    "loading training clips": "Loading the frames",
    "training": "Training the model",
    "sync": "Checking the sync",
    "trial before": "Trying the face",
    "trial": "Trying the face",
    "frames": "Generating the mouth",
}
ADAPT_LABEL, ANY_FACE_LABEL = "Make the model mine", "Draw any face"
STOPPED = "Stopped. No file was written."
BUG = "This is a bug of redub. The server's log has the details."
UNSIGNED = "The result cannot be signed, so there is none. The server's log has the reason."

FOLDERS = re.compile(r"(?<![\w.~:/])/([^/\s]+/)+")  # of this machine, in a message

log = logging.getLogger(__name__)


class EditStopped(Exception):
    """The visitor has pressed Stop or left the page."""


@dataclass(frozen=True)
class Service:
    """The page's event handlers. Each returns updates of components, in the order that the layout lists."""

    models: ModelList
    sessions: Sessions
    sections: Params
    landmarker: Path
    example: Example
    max_upload_mb: int
    max_seconds: float
    max_pixels: int
    max_adapt_minutes: float  # of training for one edit; 0: none at all
    credentials: Credentials | None = None  # the server's, which sign the results

    def make_edit_params(self, run: Path | None = None, **options: Any) -> EditParams:
        """Params of an edit by the network of a run, within the server's limits.

        Raises StageError for an option that is out of bounds.
        """
        return self.sections.make_edit_params(
            run, max_seconds=self.max_seconds, max_pixels=self.max_pixels, **options
        )

    def list_runs(self) -> tuple[Any, ...]:
        """Updates of the list of networks, and of the settings that the first of them needs."""
        runs = self.models.find_runs()
        choices = [(describe_run(name, checkpoint), name) for name, checkpoint in runs.items()]
        first = next(iter(runs), None)
        return gr.Dropdown(choices=choices, value=first), *self.choose_run(first)

    def choose_run(self, run: str | None) -> tuple[Any, ...]:
        """Updates of steps, guidance, common noise and sampler: as a published model needs them."""
        params = self.sections.sample
        if run is not None:
            try:
                params = self.sections.make_sample_params(self.models.get_checkpoint(run).path)
            except ModelError as err:  # a run that was removed meanwhile; an edit says so
                log.warning("%s", err)
        return params.steps, params.guidance, params.common_noise, params.sampler

    def add_video(self, upload: Mapping[str, Any], request: gr.Request) -> tuple[Any, ...]:
        """Updates of drop zone, player, note and "choose another" button."""
        session = self._get_session(request)
        try:
            return self._show_video(session, _get_path(upload))
        except Exception as err:
            return gr.File(value=None), gr.skip(), _format_failure(session, err), gr.skip()

    def _show_video(self, session: Session, upload: Path, *remarks: str) -> tuple[Any, ...]:
        """The updates of ``add_video``, with remarks below the video's facts. Raises StageError."""

        def make_job(path: Path, out: Path) -> ClipJob:
            return ClipJob(
                copy_video,
                path=path,
                out=out,
                max_pixels=self.max_pixels,
                max_seconds=self.max_seconds,
            )

        copy, outcome = self._copy_upload(session, "video", upload, make_job)
        facts = VideoFacts.from_json(outcome.facts)
        line = f"{float(facts.seconds):.2f} s, {facts.width}x{facts.height} at {float(facts.fps):.4g} fps"
        return (
            gr.File(value=None, visible=False),
            gr.Video(value=copy, label=f"Source: {upload.name}", visible=True),
            _format_note(line, *remarks),
            gr.Button(visible=True),
        )

    def add_speech(self, upload: Mapping[str, Any] | None, request: gr.Request) -> tuple[Any, ...]:
        """Updates of drop zone, microphone, player, note and "choose another" button."""
        if upload is None:  # the microphone's recording was discarded
            return (gr.skip(),) * 5
        session = self._get_session(request)
        try:
            return self._show_speech(session, _get_path(upload))
        except Exception as err:
            return (
                gr.File(value=None),
                gr.Audio(value=None),
                gr.skip(),
                _format_failure(session, err),
                gr.skip(),
            )

    def _show_speech(self, session: Session, upload: Path) -> tuple[Any, ...]:
        """The updates of ``add_speech``. Raises StageError."""

        def make_job(path: Path, out: Path) -> ClipJob:
            return ClipJob(copy_audio, path=path, out=out, max_seconds=self.max_seconds)

        copy, outcome = self._copy_upload(session, "speech", upload, make_job)
        seconds = float(Fraction(outcome.facts["seconds"]))
        return (
            gr.File(value=None, visible=False),
            gr.Audio(value=None, visible=False),
            gr.Audio(value=copy, label=f"Speech: {upload.name}", visible=True),
            _format_note(f"{seconds:.2f} s"),
            gr.Button(visible=True),
        )

    def add_example(self, request: gr.Request) -> tuple[Any, ...]:
        """Updates of the components of ``add_video``, of ``add_speech``, and of the "any face" checkbox."""
        session = self._get_session(request)
        remark = f'A made clip. The models do not know this face, so "{ANY_FACE_LABEL}" is ticked.'
        try:
            self.sessions.check_space()
            with self.example.make() as clips:
                video = self._show_video(session, clips.video, remark)
                speech = self._show_speech(session, clips.speech)
        except Exception as err:
            return gr.skip(), gr.skip(), _format_failure(session, err), *(gr.skip(),) * 7
        return *video, *speech, True

    def _copy_upload(
        self,
        session: Session,
        kind: Kind,
        upload: Path,
        make_job: Callable[[Path, Path], ClipJob],
    ) -> tuple[Path, Outcome]:
        """Store an upload for the edit, and copy it to a format that browsers play."""
        check = session.check_upload(kind, upload, max_mb=self.max_upload_mb)
        with session.keep_files(), check as path:
            copy = session.make_empty_folder(kind) / name_output([path], "")
            outcome = sandbox.run_or_raise(
                make_job(path, copy), self.sections.limits, path, video_seconds=self.max_seconds
            )
            return copy, outcome

    def remove_video(self, request: gr.Request) -> tuple[Any, ...]:
        """Updates of the components of ``add_video``, and of the "any face" checkbox: another is checked."""
        self._get_session(request).remove_upload("video")
        return gr.File(visible=True), gr.Video(value=None, visible=False), "", gr.Button(visible=False), False

    def remove_speech(self, request: gr.Request) -> tuple[Any, ...]:
        self._get_session(request).remove_upload("speech")
        return (
            gr.File(visible=True),
            gr.Audio(visible=True),
            gr.Audio(value=None, visible=False),
            "",
            gr.Button(visible=False),
        )

    def begin_edit(self, request: gr.Request) -> tuple[Any, ...]:
        """Updates of the result, its two buttons, its note, and the start and stop buttons."""
        self._get_session(request).renew_stop()
        disabled = gr.Button(interactive=False)
        return None, disabled, gr.DownloadButton(interactive=False), "", *_update_buttons(running=True)

    def edit(
        self,
        run: str | None,
        steps: int,
        fit: Fit,
        is_adapting: bool,
        any_face: bool,
        face: FaceChoice,
        sampler: str,
        guidance: float,
        common_noise: float,
        reanchor_every: int,
        seed: int,
        crf: int,
        adapt_minutes: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, Gradio recognises progress by this default
    ) -> tuple[Any, ...]:
        """Updates of the result, its two buttons and its note."""
        session = self._get_session(request)
        stop = session.stop
        try:
            with session.keep_files():
                sample_params = override_params(
                    self.sections.sample,
                    sampler=sampler,
                    steps=steps,
                    guidance=guidance,
                    common_noise=common_noise,
                    reanchor_every=reanchor_every,
                    seed=seed,
                )
                options: dict[str, Any] = {"fit": fit, "face": face, "crf": crf, "any_face": any_face}
                self.make_edit_params(**options)  # refuses options that are out of bounds
                self.sessions.check_space()
                video, speech = session.get_upload("video"), session.get_upload("speech")
                progress(0, desc="Loading the network")
                checkpoint = self.models.get_checkpoint(str(run or ""))
                edit_params = self.make_edit_params(find_run(checkpoint.path), **options)
                out = session.make_empty_folder("result") / name_output([video, speech], " says ")
                lines, model, trial_generator = [], checkpoint.path, None
                if is_adapting:
                    start = find_trainable(checkpoint.path)
                    if start != checkpoint.path:  # which is drawn otherwise
                        checkpoint = find_checkpoint(start)
                        sample_params = override_params(sample_params, **advise_sampling(start))
                    read_inputs(video, [speech], out, edit_params)  # before minutes of training
                    bar = _PageProgress(progress, stop)
                    own = self._adapt(session, checkpoint, video, edit_params, adapt_minutes, bar)
                    model = own.path
                    generator = self.models.load_adapted_generator(model, sample_params)
                    lines = [own.describe().removeprefix(f"{own.path}: "), *own.warnings]
                    if not any_face:
                        execution = replace(self.models.execution, compile=False)  # of a few frames
                        trial_generator = self.models.load_generator(checkpoint, sample_params, execution)
                else:
                    generator = self.models.load_generator(checkpoint, sample_params)
                with leave_core(self.models.device):
                    result = edit(
                        video,
                        speech,
                        out,
                        generator,
                        model=self.landmarker,
                        params=edit_params,
                        signing=None if self.credentials is None else make_signing(self.credentials, model),
                        progress=_PageProgress(progress, stop),
                        adapted_from=trial_generator,
                    )
                if trial_generator is not None and MISFIT in result.passed_through:
                    lines.append(f'"{ANY_FACE_LABEL}" draws these frames too')
        except EditStopped:
            return gr.skip(), gr.skip(), gr.skip(), _format_note(STOPPED)
        except MisfitError as err:
            offer = f'"{ADAPT_LABEL}" trains it on this video, ' if self.max_adapt_minutes else ""
            advice = f'{offer}"{ANY_FACE_LABEL}" draws all the same'
            return gr.skip(), gr.skip(), gr.skip(), _format_error(session, MisfitError(f"{err}; {advice}"))
        except CredentialsError as err:  # which names files of this machine
            log.warning("%s", err)
            return gr.skip(), gr.skip(), gr.skip(), _format_error(session, StageError(UNSIGNED))
        except Exception as err:
            return gr.skip(), gr.skip(), gr.skip(), _format_failure(session, err)
        buttons = gr.Button(interactive=True), gr.DownloadButton(value=out, interactive=True)
        return out, *buttons, _format_note(*result.summary_lines(), *lines)

    def _adapt(
        self,
        session: Session,
        checkpoint: Checkpoint,
        video: Path,
        params: EditParams,
        minutes: float,
        bar: _PageProgress,
    ) -> AdaptResult:
        """Train a network further on the visitor's video. The result is deleted with the video.

        Raises StageError or ModelError, and EditStopped.
        """
        if not self.max_adapt_minutes:
            raise StageError(f'"{ADAPT_LABEL}" is switched off here (--max-adapt-minutes)')
        if not 0 <= minutes <= self.max_adapt_minutes:
            raise StageError(
                f"the minutes of training are {minutes:g}, expected 0 to {self.max_adapt_minutes:g}"
            )
        request = replace(
            make_request(video, checkpoint.path, params, self.landmarker),
            minutes=minutes or None,
            max_minutes=self.max_adapt_minutes,
            device=self.models.device.type,
            execution=self.models.execution,
            thresholds=self.sections.cut.thresholds,
            cache=session.get_model_folder(),
            scratch=session.folder,  # crops of the face: they go with the server's folder whatever happens
        )
        return adapt(request, bar, announce=bar.announce, warn=bar.warn)

    def stop_edit(self, request: gr.Request) -> tuple[Any, ...]:
        """Updates of the note and the start and stop buttons."""
        self._get_session(request).stop.set()
        return _format_note(STOPPED), *_update_buttons(running=False)

    def finish_edit(self) -> tuple[gr.Button, gr.Button]:
        """Updates of the start and stop buttons."""
        return _update_buttons(running=False)

    def end_session(self, request: gr.Request) -> None:
        self.sessions.end(request.session_hash or "")

    def _get_session(self, request: gr.Request) -> Session:
        try:
            return self.sessions.get(request.session_hash or "")
        except StageError as err:
            log.warning("%s", err)
            raise gr.Error(str(err), print_exception=False) from err


class _PageProgress:
    """Shows an edit's progress on the page; raises EditStopped when the edit is cancelled."""

    def __init__(self, bar: gr.Progress, stop: threading.Event) -> None:
        self._bar, self._stop = bar, stop
        self._label, self._pass_start, self._first = "", 0.0, 0
        self._estimate = ""

    def announce(self, estimate: Estimate) -> None:
        """Show how long adapting will take, from now on until it is over."""
        self._estimate = f"; {estimate.describe()}"
        self._bar(0, desc=f"Beginning{self._estimate}")

    def warn(self, line: str) -> None:
        """Show a line about the video, too."""
        self._estimate += f"; {line}"

    def __call__(self, label: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise EditStopped
        now = time.monotonic()
        if label != self._label:
            self._label, self._pass_start, self._first = label, now, done
        done_since = done - self._first
        seconds = now - self._pass_start
        remaining = f", {format_time_left(done_since, total - self._first, seconds)}" if done_since else ""
        self._bar(
            (done, total), desc=f"{PASS_LABELS.get(label, label)}{remaining}{self._estimate}", unit="frames"
        )


def _get_path(upload: Any) -> Path:
    """The path of an upload, as the page names it. Raises StageError for what no page sends."""
    path = upload.get("path") if isinstance(upload, dict) else None
    if not isinstance(path, str):
        raise StageError(f"the upload is {shorten(upload)}, expected a file")
    return Path(path)


def _update_buttons(*, running: bool) -> tuple[gr.Button, gr.Button]:
    """Updates of the start and stop buttons."""
    return gr.Button(interactive=not running), gr.Button(interactive=running)


def _format_note(*lines: str) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _format_error(session: Session, err: Exception) -> str:
    return f'<p class="redub-error" role="alert">{html.escape(session.shorten_paths(err))}</p>'


def _format_failure(session: Session, err: Exception) -> str:
    """The note on whatever ended an action. A bug, which tells a visitor nothing, is logged."""
    if isinstance(err, StageError | ModelError):
        return _format_error(session, err)
    line = describe_error(err)
    if line is None:
        log.error("%s", BUG, exc_info=err)
        return _format_error(session, StageError(BUG))
    log.warning("%s", line)
    return _format_error(session, StageError(FOLDERS.sub("", line)))
