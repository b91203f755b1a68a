"""Adapt a network to the person in one video, by minutes of training on the video itself.

The result is a published file (``model.published_file``), which draws this person and nobody else. It is
stored in the user's cache under a key of everything that goes into it, so that a second edit of the same
video takes no training.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from model.checkpoint import load_network
from model.execution import Execution, select_device
from model.published_file import SUFFIX, PublishedInfo, write_published_file
from model.recipe import MAX_STEPS, ModelError, Recipe, build_recipe
from model.start import Start, find_start
from model.trial import measure_step_seconds
from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.schema import VIDEO_FPS
from stages.adapt.clips import CutPlan, CutResult, ExcerptParams, cut_video, plan_cut
from stages.adapt.sync import describe_sync
from stages.cut.params import ThresholdParams
from stages.edit.run import EditParams, check_output
from stages.engine.cache import digest, versions
from stages.engine.outcome import StageError
from stages.engine.progress import Progress, no_progress
from stages.media.weights import cache_folder
from stages.shard import list_libraries
from stages.train import run as train
from stages.train.run_file import find_sampling_advice, read_data_sources

VERSION = 2
FOLDER = "adapted"  # of the user's cache
MAX_CACHED_MODELS = 50  # a small one has 4 MB
MIN_STEPS = 20
# Of a tensor, by float16. Biases that minutes have moved from zero are too small for it, and for any effect.
MAX_ROUNDING = 1.0
# To find the face in an instant and to cut its crop, on one core of 2020.
SECONDS_PER_INSTANT = 0.02
ENOUGH_SECONDS = 10.0  # of one's own speech; with less the mouth follows other speech worse
LITTLE = f"that is little: with {ENOUGH_SECONDS:g} s or more the mouth follows other speech better"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdaptRequest:
    """What to adapt to, from where, and for how long."""

    video: Path
    start: Start
    recipe: Recipe  # of the preset `own` with the start's network
    params: EditParams  # with the mels and speech features that the start knows
    landmarker: Path  # MediaPipe's face model
    minutes: float | None = None  # of training; None: the recipe's steps
    max_minutes: float | None = None  # of training, whatever is asked for; None: no bound
    keep: Path | None = None  # the file to write besides
    device: str = "auto"
    execution: Execution = field(default_factory=Execution)
    excerpt: ExcerptParams = field(default_factory=ExcerptParams)
    thresholds: ThresholdParams = field(
        default_factory=ThresholdParams
    )  # below which a voice is not the mouth's
    cache: Path | None = None  # folder; None: the user's
    scratch: Path | None = None  # folder for what is removed at the end; None: the system's


def make_request(video: Path, network: Path, params: EditParams, landmarker: Path) -> AdaptRequest:
    """What `--adapt` asks for: the network of a run or a published file, and the preset `own`.

    Raises ModelError when there is no such network.
    """
    start = find_start(network)
    return AdaptRequest(video, start, build_recipe("own", start=start.recipe), params, landmarker)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What adapting will take, before it begins."""

    learn_seconds: float  # of the video, that are learned from
    video_seconds: float
    steps: int
    prepare_seconds: float
    train_seconds: float

    def describe(self) -> str:
        """One line for the user."""
        total = self.prepare_seconds + self.train_seconds
        time_text = f"{total / 60:.1f} minutes" if total >= 90 else f"{total:.0f} s"
        advice = f"; {LITTLE}" if self.learn_seconds < ENOUGH_SECONDS else ""
        return (
            f"adapting to {self.learn_seconds:.0f} of {self.video_seconds:.0f} s of the video: "
            f"about {time_text} ({self.steps} steps of training){advice}"
        )


@dataclass(frozen=True, slots=True)
class AdaptResult:
    """An adapted model."""

    path: Path  # a published file
    cut: CutResult | None = None  # None where it was there already
    steps: int = 0
    seconds: float = 0.0  # that everything took
    warnings: tuple[str, ...] = ()  # of the video, that were given before the training

    def describe(self) -> str:
        """One line for the user."""
        if self.cut is None:
            return f"{self.path}: adapted to this video before"
        return (
            f"{self.path}: adapted to {self.cut.seconds:.1f} s of the face in {self.steps} steps, "
            f"{self.seconds:.0f} s"
        )


def adapt(
    request: AdaptRequest,
    progress: Progress = no_progress,
    announce: Callable[[Estimate], None] = lambda estimate: None,
    warn: Callable[[str], None] = log.warning,
) -> AdaptResult:
    """Train a network further on a video, or find the result in the cache; return where it is.

    ``announce`` is called with an estimate before the work begins, unless the result is cached; ``warn`` with
    each line about a video that teaches little or a wrong mouth, before the training. ``progress`` receives
    the passes "faces", "crops", "sync" (if the network takes the features that it is scored by), "loading
    training clips" and "training"; whatever it raises ends the work, and nothing is left behind. Raises
    StageError, ModelError or WriteError in one line, and KeyboardInterrupt after Ctrl-C.
    """
    began = time.monotonic()
    if request.keep is not None:
        _check_keep(request.keep, request.video, request.start.path)
    path = (request.cache or cache_folder() / FOLDER) / f"{_make_key(request)}{SUFFIX}"
    result = AdaptResult(path)
    if _is_readable(path):
        os.utime(path)  # it is among the last that are removed
    else:
        warnings: list[str] = []

        def record_warning(line: str) -> None:
            warnings.append(line)
            warn(line)

        cut, steps = _make_model(request, path, progress, announce, record_warning)
        _remove_oldest(path.parent)
        result = AdaptResult(path, cut, steps, time.monotonic() - began, tuple(warnings))
    if request.keep is not None:
        with write_atomically(request.keep) as partial:
            shutil.copyfile(path, partial)
        result = replace(result, path=request.keep)
    return result


def _check_keep(keep: Path, video: Path, start: Path) -> None:
    """Raise StageError or WriteError unless the model can be written there, and ``--run`` can read it.

    ``start`` is the checkpoint's folder or the published file that the training starts from.
    """
    if keep.suffix != SUFFIX:
        raise StageError(f"{keep}: a model is written as {SUFFIX}")
    check_output(keep, [video, *(start.iterdir() if start.is_dir() else [start])])


def _make_key(request: AdaptRequest) -> str:
    """A digest of all that decides the weights, but rounding and how many steps fit in the minutes."""
    params = request.params
    return digest(
        VERSION,
        versions("redub", "torch", *list_libraries(params.landmarks.engine)),
        file_sha256(request.video),
        request.start.record.sha256,
        asdict(request.recipe),
        request.minutes,
        request.max_minutes,
        request.excerpt,
        request.thresholds.min_sync_confidence,
        params.face,
        replace(params.landmarks, model=""),
        params.align,
        params.mels,
        params.speech.encoder if request.start.recipe.network.audio.takes_speech else None,
    )


def _is_readable(path: Path) -> bool:
    """Whether a cached model is there and whole; one that is not is made again."""
    try:
        return path.is_file() and load_network(path) is not None
    except ModelError as err:
        log.warning("%s; it is made again", err)
        return False


def _remove_oldest(folder: Path) -> None:
    """Remove all but the MAX_CACHED_MODELS models that were used last."""
    paths = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    for path in paths[:-MAX_CACHED_MODELS]:
        path.unlink(missing_ok=True)


def _make_model(
    request: AdaptRequest,
    path: Path,
    progress: Progress,
    announce: Callable[[Estimate], None],
    warn: Callable[[str], None],
) -> tuple[CutResult, int]:
    """Cut the video, train and write the model. Everything else that is written is removed."""
    plan = plan_cut(request.video, request.params, request.excerpt)
    device = select_device(request.device)
    step_seconds = measure_step_seconds(
        request.start.load_network(), request.recipe, device, request.execution
    )
    recipe = _choose_steps(request, step_seconds)
    estimate = _estimate(plan, recipe.steps, step_seconds)
    announce(estimate)
    with TemporaryDirectory(prefix="redub.", dir=request.scratch) as folder:
        shards, run, scratch = (Path(folder, name) for name in ("shards", "run", "scratch"))
        scratch.mkdir()
        cut = cut_video(
            request.video,
            plan,
            shards,
            size=recipe.network.size,
            takes_speech=recipe.network.audio.takes_speech,
            model=request.landmarker,
            params=request.params,
            excerpt=request.excerpt,
            thresholds=request.thresholds,
            scratch=scratch,
            progress=progress,
        )
        for line in _list_warnings(cut, estimate, request.thresholds):
            warn(line)
        recipe = replace(recipe, batch=min(recipe.batch, cut.frames))
        outcome = train.run(
            train.TrainRequest(
                shards=str(shards),
                run=run,
                preset="own",
                device=request.device,
                execution=request.execution,
                start=request.start,
                report_step=lambda done, total: progress(
                    "training", done * recipe.batch, total * recipe.batch
                ),
            ),
            recipe,
            progress,
        )
        if outcome != "done":
            if "SIGINT" in outcome:
                raise KeyboardInterrupt
            raise StageError(f"{request.video}: adapting to it was {outcome}")
        network, checkpoint = load_network(run, which="newest")
        info = PublishedInfo(
            recipe=checkpoint.recipe,
            step=checkpoint.step,
            digest=checkpoint.digest,
            mels=asdict(request.params.mels),
            speech={"encoder": request.params.speech.encoder} if recipe.network.audio.takes_speech else None,
            start=checkpoint.start,
            data=read_data_sources(run),
            sampling=find_sampling_advice(run),
        )
        write_published_file(network, info, path, max_rounding=MAX_ROUNDING)
    return cut, recipe.steps


def _list_warnings(cut: CutResult, estimate: Estimate, thresholds: ThresholdParams) -> Iterator[str]:
    """Lines about a video that teaches little, which the estimate did not know, or a wrong mouth."""
    if cut.seconds < ENOUGH_SECONDS <= estimate.learn_seconds:
        yield f"the face is in sight for {cut.seconds:.1f} s; {LITTLE}"
    line = None if cut.sync is None else describe_sync(cut.sync, thresholds)
    if line is not None:
        yield line


def _choose_steps(request: AdaptRequest, step_seconds: float) -> Recipe:
    """The recipe with as many steps as fit in the minutes; without them, as it is if it fits in the most."""
    if request.minutes is None and request.max_minutes is None:
        return request.recipe
    steps = request.recipe.steps
    if request.minutes is not None:
        steps = round(60 * request.minutes / step_seconds)
    if request.max_minutes is not None:
        steps = min(steps, round(60 * request.max_minutes / step_seconds))
    return replace(request.recipe, steps=min(max(steps, MIN_STEPS), MAX_STEPS))


def _estimate(plan: CutPlan, steps: int, step_seconds: float) -> Estimate:
    return Estimate(
        learn_seconds=float(plan.seconds) if len(plan.windows) == 1 else plan.n_instants / VIDEO_FPS,
        video_seconds=float(plan.facts.seconds),
        steps=steps,
        prepare_seconds=plan.n_instants * SECONDS_PER_INSTANT,
        train_seconds=steps * step_seconds,
    )
