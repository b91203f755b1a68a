"""`pipeline edit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from pipeline import params as params_file
from pipeline.options import (
    DEFAULT_NETWORK,
    FAST_NETWORK,
    FILE,
    MAX_ADAPT_MINUTES,
    MAX_WORKERS,
    NETWORK,
    LocalPath,
    NumberRange,
    device_options,
    landmarker_option,
    params_option,
    sampler_options,
    signing_options,
)
from pipeline.progress import ProgressBars
from stages.edit.timing import Fit

if TYPE_CHECKING:
    from model.execution import Execution
    from sampler.params import SampleParams
    from stages.cut.params import ThresholdParams
    from stages.edit.credentials import Credentials, Signing
    from stages.edit.face_track import FaceChoice
    from stages.edit.pairs import EditPair
    from stages.edit.run import EditParams, Preset


WORKER_BYTES = 1_500_000_000  # of memory, with the child that reads the video
GPU_WORKERS = 2  # edits at a time on a GPU: one decodes and encodes while another draws


@click.command("edit")
@click.option("--video", type=FILE, help="Input video: a person talking.")
@click.option("--audio", type=FILE, help="The new speech: an audio or a video file.")
@click.option(
    "--batch",
    type=FILE,
    metavar="CSV",
    help="Make many edits instead: a table with columns video and audio, and any of face, out, preview, fit, "
    "crf, preset, any_face. OUT is then a folder.",
)
@click.option(
    "--run",
    type=NETWORK,
    help="A published model (`pipeline models` lists them), the folder of a run or checkpoint, or a file of "
    f"`pipeline export`.  [default: {FAST_NETWORK}, or with --adapt {DEFAULT_NETWORK}]",
)
@click.option(
    "-o",
    "--out",
    type=LocalPath(path_type=Path),
    required=True,
    help="Video to write: .mp4, .mov or .mkv. With --batch, the folder of the videos and their ledger.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    help="Edits of --batch at a time.  [default: one per core that has 1.5 GB of memory, two on a GPU]",
)
@click.option(
    "--adapt",
    is_flag=True,
    help="First train the model on the person in VIDEO and on their own speech in it: some minutes, and none "
    "for a second edit of the same video.",
)
@click.option(
    "--adapt-minutes",
    type=NumberRange(0, MAX_ADAPT_MINUTES, min_open=True),
    metavar="M",
    help="How long --adapt trains.  [default: as many steps as the preset own has]",
)
@click.option(
    "--keep-model",
    type=FILE,
    metavar="FILE",
    help="Also write the model of --adapt to this .safetensors file, for --run.",
)
@click.option(
    "--fit",
    type=click.Choice(get_args(Fit)),
    default="trim",
    show_default=True,
    help="What to do when the lengths differ. trim: end with the shorter one. hold: the last frame stays, or "
    "the audio is silent, until the longer one ends. silence: the video plays once, silent after the speech. "
    "bounce: the video plays forwards and backwards until the speech ends.",
)
@click.option(
    "--face",
    "faces",
    multiple=True,
    default=("largest",),
    show_default=True,
    metavar="WHICH[=AUDIO]",
    help="Face to re-draw: largest, left, right, or a number from the left; 0 is the leftmost. For several "
    "faces, instead of --audio: --face left=a.wav --face right=b.wav.",
)
@click.option(
    "--preview", type=FILE, metavar="FILE", help="Also write the source and the result side by side (.mp4)."
)
@click.option(
    "--crf",
    type=click.IntRange(1, 51),
    default=18,
    show_default=True,
    help="x264 quality; lower is better.",
)
@click.option(
    "--preset",
    type=click.Choice(
        ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
    ),
    default="medium",
    show_default=True,
    help="x264 preset; slower gives a smaller file.",
)
@click.option(
    "--max-seconds",
    type=NumberRange(0, 86_400, min_open=True),
    default=3600.0,
    show_default=True,
    help="Longest output.",
)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=4096 * 2304, show_default=True, help="Largest frame."
)
@click.option("--any-face", is_flag=True, help="Draw also where the network does not fit the face.")
@signing_options
@params_option
@landmarker_option
@sampler_options
@device_options
def command(
    video: Path | None,
    audio: Path | None,
    batch: Path | None,
    run: Path | None,
    out: Path,
    workers: int | None,
    adapt: bool,
    adapt_minutes: float | None,
    keep_model: Path | None,
    fit: Fit,
    faces: tuple[str, ...],
    preview: Path | None,
    crf: int,
    preset: Preset,
    max_seconds: float,
    max_pixels: int,
    any_face: bool,
    credentials: Credentials | None,
    params: Path | None,
    landmarker: str,
    sampling: dict[str, Any],
    device: str,
    execution: dict[str, Any],
) -> None:  # fmt: skip
    """Make the person in VIDEO say the speech in AUDIO.

    Only the lower face is re-drawn. Size, frames, their times and all other pixels are the source's; the
    video is encoded once. The audio is copied unchanged where the container can hold it. A face that the
    network does not fit is refused; a mouth that is covered is left alone. The file's metadata say that a
    model drew it; --sign signs that.

    A published model, a run that started from one, a distilled network and one of the paper's recipe say how
    they are sampled; for any other it is the section `sample` of the params file. --sampler to --seed
    override both.
    """
    from model.checkpoint import find_run
    from model.execution import Execution
    from stages.edit.credentials import check_credentials, check_formats
    from stages.edit.pairs import read_pairs
    from stages.edit.recordings import parse_face, parse_recordings
    from stages.edit.run import check_paths, read_inputs
    from stages.engine.outcome import StageError
    from stages.media.networks import find_network, find_trainable

    _check_options(batch=batch, video=video, audio=audio, faces=faces, preview=preview, workers=workers,
                   adapt=adapt, adapt_minutes=adapt_minutes, keep_model=keep_model)  # fmt: skip
    run = run or find_network(FAST_NETWORK)
    if adapt:
        run = find_trainable(run)
    try:
        recordings = {} if batch else parse_recordings(audio, faces)
        face = next(iter(recordings), None)  # of several, each has its own recording
        face = parse_face(faces[0]) if face is None else face
    except StageError as err:
        raise click.UsageError(f"--face: {err}") from err
    sections = params_file.load(params)
    if video is not None:
        check_paths(video, recordings.values(), out, preview)  # now, not after a download
    edit_params = sections.make_edit_params(
        find_run(run),
        fit=fit,
        face=face,
        crf=crf,
        preset=preset,
        max_seconds=max_seconds,
        max_pixels=max_pixels,
        any_face=any_face,
    )
    pairs = None if batch is None else read_pairs(batch, edit_params)
    network = _NetworkOptions(
        run=run,
        landmarker=_find_weights(run, landmarker or sections.landmarks.model, edit_params),
        sampling=sections.make_sample_params(run, **sampling),
        device=device,
        execution=Execution(**execution),
        credentials=credentials,
    )
    if credentials is not None:
        check_credentials(credentials)  # now, not after minutes of training
    if pairs is not None:
        _edit_pairs(pairs, out, network, workers)
        return
    assert video is not None, "checked above"
    if credentials is not None:
        check_formats([out] if preview is None else [out, preview])
    if adapt:
        read_inputs(video, recordings.values(), out, edit_params, preview)  # now, as the credentials
        thresholds = sections.cut.thresholds
        own = _adapt(video, network, edit_params, adapt_minutes, keep_model, thresholds)
        network = replace(network, run=own)
    _edit_video(video, recordings, out, network, edit_params, preview, adapted_from=run if adapt else None)


@dataclass(frozen=True, slots=True)
class _NetworkOptions:
    """What draws the mouths, and what finds the faces."""

    run: Path
    landmarker: Path
    sampling: SampleParams
    device: str
    execution: Execution
    credentials: Credentials | None  # who signs what is drawn, if anybody

    def make_signing(self) -> Signing | None:
        from stages.edit.credentials import make_signing

        return None if self.credentials is None else make_signing(self.credentials, self.run)


def _find_weights(run: Path, landmarker: str, params: EditParams) -> Path:
    """The file of the landmarker, once the network's speech encoder is there too, if it takes one.

    Raises StageError, which names both where both are missing.
    """
    from model.checkpoint import find_checkpoint
    from stages.edit.run import find_speech_encoder
    from stages.engine.outcome import StageError
    from stages.media import weights

    paths, problems = list[Path](), list[str]()
    searches: list[Callable[[], Path]] = [lambda: weights.find(weights.LANDMARKER, landmarker)]
    if find_checkpoint(run).recipe.network.audio.takes_speech:
        searches.append(lambda: find_speech_encoder(params))
    for search in searches:
        try:
            paths.append(search())
        except StageError as err:
            problems.append(str(err))
    if problems:
        raise StageError("; ".join(problems))
    return paths[0]


def _check_options(*, batch: Path | None, video: Path | None, faces: tuple[str, ...], **others: Any) -> None:
    """Raise UsageError for options that do not go together."""
    if batch is not None:
        alone = ("video", "audio", "preview", "adapt", "keep_model")
        for name, value in {"video": video, **others}.items():
            if name in alone and value:
                raise click.UsageError(f"--{name.replace('_', '-')} is of one edit, and --batch makes many")
        if len(faces) > 1 or "=" in faces[0]:
            raise click.UsageError("--face: with --batch, several faces have their recordings in the table")
    else:
        if video is None:
            raise click.UsageError("Missing option '--video', or '--batch'.")
        if others["audio"] is None and not any("=" in face for face in faces):
            raise click.UsageError("Missing option '--audio'.")
        if others["workers"] is not None:
            raise click.UsageError("--workers needs --batch")
    if others["adapt"] and len(faces) > 1:
        raise click.UsageError("--adapt trains on one face; edit one after the other, or without it")
    for name in ("adapt_minutes", "keep_model"):
        if others[name] is not None and not others["adapt"]:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --adapt")


def _edit_video(
    video: Path,
    recordings: Mapping[FaceChoice, Path],
    out: Path,
    network: _NetworkOptions,
    params: EditParams,
    preview: Path | None,
    adapted_from: Path | None = None,
) -> None:
    """Make one edit, with progress bars; ``adapted_from`` is the network that was adapted to the video."""
    from model.execution import leave_core, select_device
    from sampler.rollout import load_generator
    from stages.edit.face_check import MISFIT, MisfitError
    from stages.edit.run import edit

    device = select_device(network.device)
    generator = load_generator(network.run, network.sampling, device, network.execution)
    trial_generator = None
    if adapted_from is not None and not params.any_face:
        execution = replace(network.execution, compile=False)  # of a few frames
        trial_generator = load_generator(adapted_from, network.sampling, device, execution)
    try:
        with ProgressBars() as bars, leave_core(device):
            result = edit(
                video,
                recordings,
                out,
                generator,
                model=network.landmarker,
                params=params,
                preview=preview,
                signing=network.make_signing(),
                progress=bars,
                adapted_from=trial_generator,
            )
    except MisfitError as err:
        advice = "--adapt trains it on this video, --any-face draws all the same"
        if len(recordings) > 1:  # which --adapt refuses
            advice = "--any-face draws all the same, --adapt helps an edit of that face alone"
        raise MisfitError(f"{err}; {advice}") from err
    lines = result.summary_lines()
    if adapted_from is not None and MISFIT in result.passed_through:
        lines.append("--any-face draws these frames too, and a longer --adapt-minutes may mend them")
    click.echo(f"{out}: " + "\n  ".join(lines))


def _edit_pairs(pairs: list[EditPair], out: Path, network: _NetworkOptions, workers: int | None) -> None:
    """Make the edits of a table; print what became of them. Exits with 1 if one has failed."""
    from model.execution import select_device
    from pipeline.runner import DaskMapper
    from shards.cores import count_cores
    from shards.memory import find_free_memory
    from stages.edit.batch import BatchRequest, edit_pairs, format_table, has_failed

    on_gpu = select_device(network.device).type == "cuda"
    fitting = max(1, find_free_memory() // WORKER_BYTES)
    n_default = GPU_WORKERS if on_gpu else min(count_cores(), fitting)
    request = BatchRequest(
        run=network.run,
        out=out,
        landmarker=network.landmarker,
        sampling=network.sampling,
        device=network.device,
        execution=network.execution,
        signing=network.make_signing(),
    )
    with ProgressBars("edits") as bars, DaskMapper(workers or n_default, None, quiet=True) as mapper:
        rows = edit_pairs(pairs, request, map_tasks=mapper, progress=bars)
    for line in format_table(rows, out):
        click.echo(line)
    if has_failed(rows):
        raise click.exceptions.Exit(1)


def _adapt(
    video: Path,
    network: _NetworkOptions,
    params: EditParams,
    minutes: float | None,
    keep: Path | None,
    thresholds: ThresholdParams,
) -> Path:
    """Train a network further on the video's own person, with progress bars; the file of the result."""
    from stages.adapt.run import adapt, make_request

    request = replace(
        make_request(video, network.run, params, network.landmarker),
        minutes=minutes,
        keep=keep,
        device=network.device,
        execution=network.execution,
        thresholds=thresholds,
    )
    with ProgressBars() as bars:
        result = adapt(
            request,
            bars,
            announce=lambda estimate: click.echo(estimate.describe(), err=True),
            warn=lambda line: click.echo(line, err=True),
        )
    click.echo(result.describe())
    return result.path
