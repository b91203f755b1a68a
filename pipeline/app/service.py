"""What the page of ``pipeline app`` does: it takes what a visitor brings, and edits it.

What is brought is copied for the browser at once, in the sandbox. That shows whether it can be used before
anybody waits for an edit, and gives the page something to play: browsers play no .mpg.
"""

from __future__ import annotations

import html
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import gradio as gr

from model.recipe import ModelError
from pipeline.app.models import ModelList, told
from pipeline.app.sessions import Kind, Session, Sessions
from pipeline.params import Params
from pipeline.progress import time_left
from sampler.rollout import override_params
from stages.edit.face_track import Choice
from stages.edit.reader import VideoFacts
from stages.edit.run import EditParams, edit
from stages.edit.timing import Fit
from stages.engine import sandbox
from stages.engine.outcome import Outcome, StageError
from stages.engine.sandbox import ClipJob

PASSES = {"faces": "Looking for the face", "frames": "Drawing the mouth"}
STOPPED = "Stopped. Nothing was kept of it."


class Stopped(Exception):
    """The visitor has pressed Stop or gone away."""


@dataclass(frozen=True)
class Service:
    """Answers to what happens on the page: updates of its parts, in the order that the layout names them."""

    shelf: ModelList
    visits: Sessions
    sections: Params
    landmarker: Path
    max_upload_mb: int
    max_seconds: float

    def offered(self) -> gr.Dropdown:
        """The runs as of now."""
        runs = self.shelf.runs()
        choices = [(told(name, saved), name) for name, saved in runs.items()]
        return gr.Dropdown(choices=choices, value=next(iter(runs), None))

    def take_video(self, upload: Mapping[str, Any], request: gr.Request) -> tuple[Any, ...]:
        """Updates of drop zone, player, note and the way back."""
        visit = self._visit(request)
        try:
            shown, outcome = self._take(
                visit,
                "video",
                upload,
                "stages.edit.browser_copy:copy_video",
                max_pixels=EditParams().max_pixels,
            )
        except StageError as err:
            return gr.File(value=None), gr.skip(), _wrong(visit, err), gr.skip()
        facts = VideoFacts.from_json(outcome.facts)
        line = f"{float(facts.seconds):.2f} s, {facts.width}x{facts.height} at {float(facts.fps):.4g} fps"
        return (
            gr.File(value=None, visible=False),
            gr.Video(value=shown, label=f"Source: {_name(upload)}", visible=True),
            _note(line),
            gr.Button(visible=True),
        )

    def take_speech(self, upload: Mapping[str, Any] | None, request: gr.Request) -> tuple[Any, ...]:
        """Updates of drop zone, microphone, player, note and the way back."""
        if upload is None:  # the microphone's recording was thrown away
            return (gr.skip(),) * 5
        visit = self._visit(request)
        try:
            shown, outcome = self._take(visit, "speech", upload, "stages.edit.browser_copy:copy_sound")
        except StageError as err:
            return gr.File(value=None), gr.Audio(value=None), gr.skip(), _wrong(visit, err), gr.skip()
        seconds = float(Fraction(outcome.facts["seconds"]))
        return (
            gr.File(value=None, visible=False),
            gr.Audio(value=None, visible=False),
            gr.Audio(value=shown, label=f"Speech: {_name(upload)}", visible=True),
            _note(f"{seconds:.2f} s"),
            gr.Button(visible=True),
        )

    def _take(
        self, visit: Session, kind: Kind, upload: Mapping[str, Any], copy: str, **args: Any
    ) -> tuple[Path, Outcome]:
        """Keep an upload for the edit, and make a copy that a browser plays."""
        brought = visit.bring(kind, Path(upload["path"]), max_mb=self.max_upload_mb)
        with visit.at_work(), brought as path:
            shown = visit.empty(kind) / f"{path.stem}.mp4"
            args |= {"path": os.fspath(path), "out": os.fspath(shown), "max_seconds": self.max_seconds}
            job = ClipJob(copy, args, self.max_seconds, self.sections.limits)
            return shown, sandbox.run_or_raise(job, path)

    def drop_video(self, request: gr.Request) -> tuple[Any, ...]:
        self._visit(request).drop("video")
        return gr.File(visible=True), gr.Video(value=None, visible=False), "", gr.Button(visible=False)

    def drop_speech(self, request: gr.Request) -> tuple[Any, ...]:
        self._visit(request).drop("speech")
        return (
            gr.File(visible=True),
            gr.Audio(visible=True),
            gr.Audio(value=None, visible=False),
            "",
            gr.Button(visible=False),
        )

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """Updates of the result, its two buttons, its note, and the buttons that start and stop."""
        self._visit(request).begin()
        idle = gr.Button(interactive=False)
        return None, idle, gr.DownloadButton(interactive=False), "", *_buttons(running=True)

    def edit(
        self,
        run: str | None,
        steps: int,
        fit: Fit,
        face: Choice,
        sampler: str,
        guidance: float,
        reanchor_every: int,
        seed: int,
        crf: int,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, by this Gradio knows that it is wanted
    ) -> tuple[Any, ...]:
        """Updates of the result, its two buttons and its note."""
        visit = self._visit(request)
        stop = visit.stop
        try:
            with visit.at_work():
                drawing = override_params(
                    self.sections.sample,
                    sampler=sampler,
                    steps=steps,
                    guidance=guidance,
                    reanchor_every=reanchor_every,
                    seed=seed,
                )
                asked = self.sections.for_edit(fit=fit, face=face, crf=crf, max_seconds=self.max_seconds)
                video, speech = visit.found("video"), visit.found("speech")
                progress(0, desc="Loading the network")
                generator = self.shelf.generator(run or "", drawing)
                out = visit.empty("result") / f"{video.stem} says {speech.stem}.mp4"
                edited = edit(
                    video,
                    speech,
                    out,
                    generator,
                    model=self.landmarker,
                    params=asked,
                    progress=_Watched(progress, stop),
                )
        except Stopped:
            return gr.skip(), gr.skip(), gr.skip(), _note(STOPPED)
        except (StageError, ModelError) as err:
            return gr.skip(), gr.skip(), gr.skip(), _wrong(visit, err)
        shown = gr.Button(interactive=True), gr.DownloadButton(value=out, interactive=True)
        return out, *shown, _note(*edited.told())

    def stop(self, request: gr.Request) -> tuple[Any, ...]:
        """Updates of note and the two buttons."""
        self._visit(request).stop.set()
        return _note(STOPPED), *_buttons(running=False)

    def rest(self) -> tuple[gr.Button, gr.Button]:
        """Updates of the two buttons."""
        return _buttons(running=False)

    def leave(self, request: gr.Request) -> None:
        self.visits.end(request.session_hash or "")

    def _visit(self, request: gr.Request) -> Session:
        return self.visits.of(request.session_hash or "")


class _Watched:
    """Progress of an edit on the page, until its visitor wants no more of it."""

    def __init__(self, bar: gr.Progress, stop: threading.Event) -> None:
        self._bar, self._stop = bar, stop
        self._label, self._started = "", 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped
        now = time.monotonic()
        if label != self._label:
            self._label, self._started = label, now
        left = f", {time_left(done, total, now - self._started)}" if done else ""
        self._bar((done, total), desc=f"{PASSES[label]}{left}", unit="frames")


def _name(upload: Mapping[str, Any]) -> str:
    return Path(upload["path"]).name


def _buttons(*, running: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


def _note(*lines: str) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _wrong(visit: Session, err: Exception) -> str:
    return f'<p class="redub-wrong" role="alert">{html.escape(visit.short(err))}</p>'
