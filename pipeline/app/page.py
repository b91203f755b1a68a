"""The page of ``pipeline app``: what is on it, and what calls what. Built with Gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipeline.app.service import Service
from sampler.steps import SAMPLERS
from stages.edit.face_track import Choice
from stages.edit.run import EditParams
from stages.edit.timing import Fit
from stages.engine.outcome import StageError
from stages.engine.sandbox import MEGABYTE

HOUR, DAY = 3600, 86_400  # seconds
PLAYER_PX, SPEECH_PX = 320, 190
MAX_WAITING = 20  # edits
MAX_STEPS = 100
# Beside video/* and audio/*: what many machines do not know as either.
VIDEO_FILES = ["video", ".flv", ".mpg", ".mkv", ".ts", ".mxf"]
SPEECH_FILES = ["audio", ".flac", ".opus", ".amr", ".caf", *VIDEO_FILES]
FITS: list[tuple[str, Fit]] = [
    ("end with the shorter", "trim"),
    ("hold the last picture, or be silent", "hold"),
    ("run the video to and fro", "loop"),
]
FACES: list[tuple[str, Choice]] = [
    ("the largest", "largest"),
    ("the leftmost", "left"),
    ("the second from the left", 1),
    ("the third from the left", 2),
    ("the rightmost", "right"),
]
HEAD = """<h1>redub</h1>
<p>Make the person in a video say what is heard in a recording. Only the lower face is drawn anew.</p>
<p class="redub-small">Up to {seconds:g} s and {megabytes} MB a file. What you bring stays on the machine
that serves this page, and is removed when you close it.</p>"""
CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
.redub-head h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.02em; }
.redub-head p { margin: .2rem 0 0; }
.redub-small { opacity: .7; font-size: .88rem; }
.redub-note p { margin: 0; font-size: .92rem; line-height: 1.45; overflow-wrap: anywhere; }
.redub-note { align-self: center; }
.redub-note:not(:has(p)) { display: none; }
.redub-note .redub-wrong { border-left: 3px solid #dc2626; padding: .35rem .7rem; background: #dc26261a; }
@media (max-width: 767px) { .redub-result { order: 1; } }
"""
# The source is silent then: two voices at once cannot be judged.
PLAY_BOTH = """() => {
  for (const video of document.querySelectorAll("#source video, #result video")) {
    video.muted = video.closest("#source") !== null;
    video.currentTime = 0;
    video.play();
  }
}"""
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # for the page alone
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}


def page_of(service: Service) -> gr.Blocks:
    """The page, to be launched."""
    page = gr.Blocks(title="redub", analytics_enabled=False, delete_cache=(HOUR, DAY))
    with page:
        gr.HTML(
            HEAD.format(seconds=service.max_seconds, megabytes=service.max_upload_mb),
            elem_classes="redub-head",
        )
        with gr.Row():
            with gr.Column():
                _video(service)
                _speech(service)
            with gr.Column():
                with gr.Column(elem_classes="redub-result"):
                    result = gr.Video(
                        label="Result", interactive=False, height=PLAYER_PX, buttons=[], elem_id="result"
                    )
                    note = _note("note")
                    with gr.Row():
                        both = gr.Button("Play both", interactive=False, min_width=120, elem_id="both")
                        download = gr.DownloadButton(
                            "Download", interactive=False, min_width=120, elem_id="download"
                        )
                with gr.Column():
                    settings = _settings(service, page)
                    with gr.Row():
                        start = gr.Button(
                            "Make the video", variant="primary", scale=2, min_width=120, elem_id="start"
                        )
                        stop = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="stop")
        begun = start.click(service.begin, None, [result, both, download, note, start, stop], **AT_ONCE)
        edited = begun.then(
            service.edit,
            settings,
            [result, both, download, note],
            concurrency_limit=1,
            show_progress_on=result,
            scroll_to_output=True,
            **PRIVATE,
        )
        edited.then(service.rest, None, [start, stop], **AT_ONCE)
        stop.click(service.stop, None, [note, start, stop], cancels=edited, **AT_ONCE)
        both.click(None, js=PLAY_BOTH)
        page.unload(service.leave)
        page.queue(max_size=MAX_WAITING, api_open=False)
    return page


def serve(page: gr.Blocks, *, host: str, port: int | None, max_upload_mb: int) -> str:
    """Start to serve the page, in threads; gives its address. Raises StageError where that cannot be."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_upload_mb * MEGABYTE,
            theme=theme,
            css=CSS,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            enable_monitoring=False,
            run_history=False,
            pwa=False,
            mcp_server=False,
            ssr_mode=False,
            footer_links=[],
            app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        )
    except OSError as err:
        where = f"--host {host}" + (f" --port {port}" if port else "")
        raise StageError(
            f"{where}: cannot be listened on; the port is taken, or the address is not this machine's"
        ) from err
    return url


def _video(service: Service) -> None:
    """Where a video is brought, or shown once it has been."""
    zone = gr.File(
        label="A video of somebody who talks", file_types=VIDEO_FILES, height=PLAYER_PX, elem_id="video"
    )
    player = gr.Video(visible=False, interactive=False, height=PLAYER_PX, buttons=[], elem_id="source")
    with gr.Row():
        note = _note("video-note")
        other = gr.Button("Choose another video", size="sm", visible=False, elem_id="other-video")
    parts = [zone, player, note, other]
    zone.upload(service.take_video, zone, parts, preprocess=False, **PRIVATE)
    other.click(service.drop_video, None, parts, **AT_ONCE)


def _speech(service: Service) -> None:
    """Where speech is brought or recorded, or can be heard once it has been."""
    zone = gr.File(
        label="New speech: a sound or a video",
        file_types=SPEECH_FILES,
        height=SPEECH_PX,
        elem_id="speech",
    )
    microphone = gr.Audio(label="or record it", sources=["microphone"], elem_id="microphone")
    player = gr.Audio(visible=False, interactive=False, buttons=[], elem_id="heard")
    with gr.Row():
        note = _note("speech-note")
        other = gr.Button("Choose another speech", size="sm", visible=False, elem_id="other-speech")
    parts = [zone, microphone, player, note, other]
    zone.upload(service.take_speech, zone, parts, preprocess=False, **PRIVATE)
    microphone.input(service.take_speech, microphone, parts, preprocess=False, **PRIVATE)
    other.click(service.drop_speech, None, parts, **AT_ONCE)


def _settings(service: Service, page: gr.Blocks) -> list[Any]:
    """What can be chosen, in the order in which ``Service.edit`` takes it."""
    drawn = service.sections.sample
    run = gr.Dropdown([], label="Run", info="Whose network draws.", elem_id="run")
    page.load(service.offered, None, run, **AT_ONCE)
    steps = gr.Slider(
        1,
        MAX_STEPS,
        drawn.steps,
        step=1,
        label="Steps",
        info="Passes for each frame: fewer are faster.",
        elem_id="steps",
    )
    fit = gr.Radio(FITS, value="trim", label="Where video and speech differ in length")
    with gr.Accordion("More", open=False):
        face = gr.Dropdown(FACES, value="largest", label="Face", info="Where there are several.")
        guidance = gr.Slider(
            0, 4, drawn.guidance, step=0.1, label="Guidance", info="Beyond 1: follow the speech more closely."
        )
        sampler = gr.Dropdown(list(SAMPLERS), value=drawn.sampler, label="Sampler", info="How noise is left.")
        reanchor_every = gr.Slider(
            0,
            100,
            drawn.reanchor_every,
            step=1,
            label="Re-anchor",
            info="Hide the previous mouth every so many frames, against drift. 0: never.",
        )
        seed = gr.Number(
            drawn.seed, precision=0, minimum=0, label="Seed", info="Another one draws other mouths."
        )
        crf = gr.Slider(
            1, 51, EditParams().crf, step=1, label="CRF", info="x264's: lower is better and larger."
        )
    return [run, steps, fit, face, sampler, guidance, reanchor_every, seed, crf]


def _note(name: str) -> gr.HTML:
    """A line of text under what it speaks of."""
    return gr.HTML(elem_id=name, elem_classes="redub-note", padding=False)
