"""The layout of the page of ``pipeline app``, and which event calls which action. Built with Gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from model.recipe import PRESETS
from pipeline.app.service import ADAPT_LABEL, ANY_FACE_LABEL, Service
from sampler.steps import SAMPLERS
from stages.edit.face_track import FaceChoice
from stages.edit.run import EditParams
from stages.edit.timing import Fit

HOUR, DAY = 3600, 86_400  # seconds
PLAYER_PX, SPEECH_PX = 320, 190
MAX_QUEUED_EDITS = 20
MAX_STEPS = 100
# Besides video/* and audio/*: suffixes that many systems know as neither.
VIDEO_FILES = ["video", ".flv", ".mpg", ".mkv", ".ts", ".mxf"]
SPEECH_FILES = ["audio", ".flac", ".opus", ".amr", ".caf", *VIDEO_FILES]
FITS: list[tuple[str, Fit]] = [
    ("end with the shorter one", "trim"),
    ("hold the last frame, or be silent, until the longer one ends", "hold"),
    ("end with the video, silent after the speech", "silence"),
    ("end with the speech, the video plays forwards and backwards", "bounce"),
]
FACES: list[tuple[str, FaceChoice]] = [
    ("the largest", "largest"),
    ("the leftmost", "left"),
    ("the second from the left", 1),
    ("the third from the left", 2),
    ("the rightmost", "right"),
]
HEAD = """<h1>redub</h1>
<p>Make the person in a video say other speech. Only the lower face is re-drawn.</p>
<p class="redub-small">At most {seconds:g} s and {megabytes} MB per file. Your files stay on the machine that
serves this page, and are deleted when you close it.</p>
<p class="redub-small">Edit only people who agree to it, and say that the result is edited. Its metadata say
that a model drew part of it{signed}.</p>"""
CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
.redub-head h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.02em; }
.redub-head p { margin: .2rem 0 0; }
.redub-small { opacity: .7; font-size: .88rem; }
.redub-note p { margin: 0; font-size: .92rem; line-height: 1.45; overflow-wrap: anywhere; }
.redub-note { align-self: center; flex: 2 1 0; }
.redub-note:not(:has(p)) { display: none; }
.redub-note .redub-error { border-left: 3px solid #dc2626; padding: .35rem .7rem; background: #dc26261a; }
#result .progress-level-inner { margin: 0 .8rem .3rem; text-align: center; }
/* On a phone the result comes last, and once there is one, the source right above it. */
@media (max-width: 767px) {
  .redub-result { order: 1; }
  .redub-page:has(#result video) > .redub-side { display: contents; }
  .redub-page:has(#result video) > .redub-side > * { order: 1; width: 100%; }
  .redub-page:has(#result video) #source { order: 2; }
  .redub-page:has(#result video) .redub-result { order: 3; }
}
"""
# The source is muted: two voices at once cannot be judged.
PLAY_BOTH = """() => {
  const [source, result] = ["source", "result"].map(name => document.querySelector(`#${name} video`));
  if (!source || !result) return;
  window.redubInStep = false;
  source.muted = true;
  result.muted = false;
  source.currentTime = result.currentTime = 0;
  for (const video of [source, result]) video.play().catch(() => {});  // paused before it began
  window.redubInStep = true;
}"""
# After "Play both", what is done to one player is done to the other, until the source is heard or one of them
# shows another video. The events of players do not bubble, so they are caught on their way down. A player
# that has ended follows no further: with "hold" and "bounce" the source is the shorter one.
KEEP_IN_STEP = """() => {
  const follow = event => {
    const [source, result] = ["source", "result"].map(name => document.querySelector(`#${name} video`));
    const one = event.target;
    if (!window.redubInStep || !source || !result || (one !== source && one !== result)) return;
    const other = one === source ? result : source;
    const align = seconds => {
      const there = Math.min(one.currentTime, other.duration);
      const here = Math.min(other.currentTime, one.duration);
      if (Math.abs(there - here) > seconds) other.currentTime = there;
    };
    if (event.type === "emptied" || !source.muted) window.redubInStep = false;
    else if (event.type === "play") {
      align(0.05);
      if (other.currentTime < other.duration) other.play().catch(() => {});
    } else if (event.type === "pause" && !one.ended) {
      other.pause();
      align(0.02);
    } else if (event.type === "seeking") align(0.05);
    else if (event.type === "ratechange") other.playbackRate = one.playbackRate;
    else if (event.type === "timeupdate" && one === result && !one.seeking && !other.seeking) align(0.15);
  };
  for (const name of ["play", "pause", "seeking", "ratechange", "timeupdate", "volumechange", "emptied"])
    document.addEventListener(name, follow, true);
}"""
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # no API endpoint
UNQUEUED: dict[str, Any] = {**PRIVATE, "queue": False}


def build_page(service: Service) -> gr.Blocks:
    """Build the page; ``pipeline.app.server`` serves it."""
    page = gr.Blocks(title="redub", analytics_enabled=False, delete_cache=(HOUR, DAY))
    with page:
        gr.HTML(
            HEAD.format(
                seconds=service.max_seconds,
                megabytes=service.max_upload_mb,
                signed=", and a signature covers that" if service.credentials else "",
            ),
            elem_classes="redub-head",
        )
        with gr.Row(elem_classes="redub-page"):
            with gr.Column(elem_classes="redub-side"):
                example = gr.Button(
                    "No video at hand? Try an example",
                    size="sm",
                    visible=service.example.is_offered,
                    elem_id="example",
                )
                video, other_video = _add_video_input(service)
                speech = _add_speech_input(service)
            with gr.Column(elem_classes="redub-side"):
                with gr.Column(elem_classes="redub-result"):
                    result = gr.Video(
                        label="Result", interactive=False, height=PLAYER_PX, buttons=[], elem_id="result"
                    )
                    note = _add_note("note")
                    with gr.Row():
                        both = gr.Button("Play both", interactive=False, min_width=120, elem_id="both")
                        download = gr.DownloadButton(
                            "Download", interactive=False, min_width=120, elem_id="download"
                        )
                with gr.Column():
                    settings, any_face = _add_settings(service, page)
                    with gr.Row():
                        start = gr.Button(
                            "Create the video", variant="primary", scale=2, min_width=120, elem_id="start"
                        )
                        stop = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="stop")
        example.click(service.add_example, None, [*video, *speech, any_face], **PRIVATE)
        other_video.click(service.remove_video, None, [*video, any_face], **UNQUEUED)
        begin = start.click(service.begin_edit, None, [result, both, download, note, start, stop], **UNQUEUED)
        edit = begin.then(
            service.edit,
            settings,
            [result, both, download, note],
            concurrency_limit=1,
            show_progress_on=result,
            scroll_to_output=True,
            **PRIVATE,
        )
        edit.then(service.finish_edit, None, [start, stop], **UNQUEUED)
        stop.click(service.stop_edit, None, [note, start, stop], cancels=edit, **UNQUEUED)
        both.click(None, js=PLAY_BOTH)
        page.load(None, js=KEEP_IN_STEP)
        page.unload(service.end_session)
        page.queue(max_size=MAX_QUEUED_EDITS, api_open=False)
    return page


def _add_video_input(service: Service) -> tuple[list[Any], gr.Button]:
    """Add the drop zone for the video, and the player that replaces it after the upload.

    Returns the components that ``Service.add_video`` updates, and the button that removes the video.
    """
    zone = gr.File(label="Video: a person talking", file_types=VIDEO_FILES, height=PLAYER_PX, elem_id="video")
    player = gr.Video(visible=False, interactive=False, height=PLAYER_PX, buttons=[], elem_id="source")
    with gr.Row():
        note = _add_note("video-note")
        other = gr.Button("Choose another video", size="sm", visible=False, elem_id="other-video")
    components = [zone, player, note, other]
    zone.upload(service.add_video, zone, components, preprocess=False, **PRIVATE)
    return components, other


def _add_speech_input(service: Service) -> list[Any]:
    """Add the drop zone and the microphone for the speech, and the player that replaces them.

    Returns the components that ``Service.add_speech`` updates.
    """
    zone = gr.File(
        label="New speech: an audio or a video file",
        file_types=SPEECH_FILES,
        height=SPEECH_PX,
        elem_id="speech",
    )
    microphone = gr.Audio(label="Or record it", sources=["microphone"], elem_id="microphone")
    player = gr.Audio(visible=False, interactive=False, buttons=[], elem_id="speech-player")
    with gr.Row():
        note = _add_note("speech-note")
        other = gr.Button("Choose another speech", size="sm", visible=False, elem_id="other-speech")
    components = [zone, microphone, player, note, other]
    zone.upload(service.add_speech, zone, components, preprocess=False, **PRIVATE)
    microphone.input(service.add_speech, microphone, components, preprocess=False, **PRIVATE)
    other.click(service.remove_speech, None, components, **UNQUEUED)
    return components


def _add_settings(service: Service, page: gr.Blocks) -> tuple[list[Any], gr.Checkbox]:
    """Add the settings; returns them in the order of ``Service.edit``'s arguments, and "any face" again."""
    defaults = service.sections.sample
    run = gr.Dropdown([], label="Model", info="A published one, or a run of your own.", elem_id="run")
    steps = gr.Slider(
        1,
        MAX_STEPS,
        defaults.steps,
        step=1,
        label="Steps",
        info="Sampling steps per frame: fewer are faster.",
        elem_id="steps",
    )
    fit = gr.Radio(FITS, value="trim", label="If video and speech differ in length")
    most = service.max_adapt_minutes
    adapt = gr.Checkbox(
        label=ADAPT_LABEL,
        info="First train it on the person in the video: some minutes, and none for a second edit of it.",
        visible=most > 0,
        elem_id="adapt",
    )
    any_face = gr.Checkbox(
        label=ANY_FACE_LABEL, info="Also one that the model does not fit.", elem_id="any-face"
    )
    with gr.Accordion("More", open=False):
        face = gr.Dropdown(FACES, value="largest", label="Face", info="If there are several.")
        guidance = gr.Slider(
            0,
            4,
            defaults.guidance,
            step=0.1,
            label="Guidance",
            info="Above 1: follow the speech more closely.",
            elem_id="guidance",
        )
        common_noise = gr.Slider(
            0,
            1,
            defaults.common_noise,
            step=0.01,
            label="Common noise",
            info="Share of the noise that all frames have in common: more is steadier.",
            elem_id="common-noise",
        )
        sampler = gr.Dropdown(
            list(SAMPLERS), value=defaults.sampler, label="Sampler", info="Sampling method."
        )
        reanchor_every = gr.Slider(
            0,
            100,
            defaults.reanchor_every,
            step=1,
            label="Re-anchor",
            info="Hide the previous frame's mouth every N frames, against drift. 0: never.",
        )
        seed = gr.Number(defaults.seed, precision=0, minimum=0, label="Seed", info="Random seed.")
        crf = gr.Slider(
            1, 51, EditParams().crf, step=1, label="CRF", info="Quality of x264: lower is better and larger."
        )
        adapt_minutes = gr.Slider(
            0,
            most or 1,
            0,
            step=0.1,
            label="Minutes of training",
            info=f"0: {PRESETS['own'].steps} steps, if {most:g} minutes suffice for them.",
            visible=most > 0,
            elem_id="adapt-minutes",
        )
    advised = [steps, guidance, common_noise, sampler]
    page.load(service.list_runs, None, [run, *advised], **UNQUEUED)
    run.input(service.choose_run, run, advised, **UNQUEUED)
    settings = [run, steps, fit, adapt, any_face, face, sampler, guidance]
    return [*settings, common_noise, reanchor_every, seed, crf, adapt_minutes], any_face


def _add_note(name: str) -> gr.HTML:
    """Add a line of text below a component."""
    return gr.HTML(elem_id=name, elem_classes="redub-note", padding=False)
