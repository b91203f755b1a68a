"""Open the data and the run's folder for ``model.loop``."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from model import loop
from model.batch import build_network_input
from model.checkpoint import (
    Checkpoint,
    check_resumable,
    find_run,
    list_checkpoints,
    restore_state,
)
from model.dvclive_log import check_dvclive
from model.execution import Execution, Ranks, join_ranks
from model.recipe import (
    ModelError,
    Recipe,
    compare_recipes,
    iterate_values,
    recipe_from_dict,
    recipe_to_dict,
)
from model.run_log import METRICS, read_metrics
from model.signals import explain_out_of_memory
from model.start import Start
from model.start_record import StartRecord
from model.trial import choose_execution
from model.unet import count_parameters
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator, override_params
from sampler.teacher import Teacher, check_teacher
from shards.atomic import write_atomically
from shards.balance import Balance
from shards.cache import open_shard_store
from shards.clip_stream import ClipStream
from shards.errors import shorten
from shards.files import is_inside
from shards.frames import FrameSource, NetworkInput
from shards.index import get_params_section
from shards.publish import download_dataset, locate_dataset
from shards.reader import Dataset, open_dataset
from shards.resident import TRAIN_SPLIT, Resident, build_clip_table, load_resident, split_held_out
from shards.sources import merge_sources, read_sources
from shards.speech_scale import measure_speech_scale
from shards.storage import LocalStorage, strip_address
from shards.streaming import Cached, Decoder, is_worker_error
from shards.windowed import Windowed
from stages.engine.lock import lock_folder
from stages.engine.outcome import StageError
from stages.engine.progress import Progress, no_progress
from stages.train.run_file import (
    RUN_FILE,
    RunFile,
    advise_sampling,
    read_data_sources,
    read_dataset_sections,
    read_run_file,
)

CHECKPOINT = "the newest checkpoint"  # in a message
MAX_NAMES = 8  # of splits, in a message
MAX_HELD_OUT_CLIPS = 64  # decoded for the held-out loss of a dataset that is too large for this machine

Hold = Literal["resident", "cached", "windowed", "streamed"]
FrameSources = tuple[FrameSource, FrameSource | None]  # of the training clips, of the held-out clips

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train on, where to write the run, and how to read and execute."""

    shards: str  # a folder or an address
    run: Path
    preset: str
    device: str = "auto"  # auto, cpu or cuda
    frames_on: str = "device"  # device or host: whose memory holds the frames of a resident dataset
    workers: int = 1  # threads or processes that decode, per rank
    hold: Hold = "resident"
    cache: Path | None = None  # folder for shards from elsewhere; None: the user's cache
    cache_gb: float = 100.0
    memory_gb: float | None = None  # decoded frames of windows, per rank; None: 16, or what is free if less
    execution: Execution = field(default_factory=Execution)
    trial: bool = False  # of what execution leaves open, at the start of a run on one processor
    start: Start | None = None  # weights to start from; the recipe's network is theirs
    set_aside: bool = False  # rename a run that cannot be resumed so, and start a new one
    dvclive: Path | None = None  # folder for DVC's files on the run; None: none
    report_step: Callable[[int, int], None] | None = None  # called with the steps done and their number


def run(request: TrainRequest, recipe: Recipe, progress: Progress = no_progress) -> str:
    """Start a run or resume it; return why it ended, e.g. "done" or "stopped by SIGTERM".

    ``progress`` receives the loading of clips.

    Raises StageError, ShardError or ModelError with a message of one line.
    """
    if recipe.distill and request.start is None:
        raise ModelError("distill needs a start, whose frames are what is learned: --start-from RUN")
    if request.dvclive is not None:
        check_dvclive(request.dvclive)
    with join_ranks(request.device) as ranks, contextlib.ExitStack() as lock:
        with ranks.share_errors():
            with contextlib.suppress(FileNotFoundError):
                request.run.stat()  # where no folder can be made is said before anything is read
            dataset = _open_dataset(request, recipe, ranks)
            if ranks.is_first:
                if request.set_aside:
                    _set_aside(request, recipe, dataset)
                lock.enter_context(_lock_run(request.run))
        return _train(request, recipe, dataset, ranks, progress if ranks.is_first else no_progress)


def _lock_run(run: Path) -> contextlib.AbstractContextManager[None]:
    return lock_folder(run, busy=f"--run {run}: another process trains there")


def _set_aside(request: TrainRequest, recipe: Recipe, dataset: Dataset) -> None:
    """Rename a run that cannot go on with this recipe, start and dataset to a free RUN-1, RUN-2, ...

    Of a link to a run, the run that it leads to is renamed, and an empty folder takes its place.
    """
    run = request.run
    if not run.is_dir():
        return
    with _lock_run(run):
        checkpoints = list_checkpoints(run)
        try:
            _check_continuation(request, recipe, dataset, checkpoints)
        except ModelError as err:
            folder = run.resolve() if run.is_symlink() else run
            names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
            aside = next(name for name in names if not name.exists())
            folder.rename(aside)
            folder.mkdir()
            log.info("%s is now %s: %s", folder, aside, err)


def _check_continuation(
    request: TrainRequest, recipe: Recipe, dataset: Dataset, checkpoints: list[Checkpoint]
) -> None:
    """Raise ModelError unless the run goes on from its newest checkpoint, or a new start loses nothing.

    Without a checkpoint a run that logged no step starts anew: its numbers may have been wrong. So does one
    that was killed before it saved: its recipe, dataset and start are these, and it logged no step after the
    one at which it would have saved.
    """
    run, digest = request.run, str(dataset.manifest["digest"])
    start = request.start.record if request.start else None
    if checkpoints:
        check_resumable(checkpoints[-1], recipe, digest, start)
        return
    last_step = max((int(line["step"]) for line in read_metrics(run / METRICS)), default=0)
    if last_step and (run / RUN_FILE).exists():
        before = RunFile.model_validate(read_run_file(run))
        if before.recipe and before.digest == digest and _get_sha256(before.start) == _get_sha256(start):
            old_recipe = recipe_from_dict(before.recipe)
            if not compare_recipes(recipe, old_recipe) and last_step <= old_recipe.watch.save_every:
                return
    if last_step:
        raise ModelError(
            f"{run}: has a log up to step {last_step} and no checkpoint; give another --run, or --set-aside "
            "to rename it"
        )


def _get_sha256(start: StartRecord | None) -> str | None:
    return start.sha256 if start else None


def _check_links(run: Path) -> None:
    """Raise ModelError when a name in a run's folder leads out of it: training would write there."""
    for path in sorted(run.iterdir()) if run.is_dir() else []:
        if not is_inside(path, run):
            raise ModelError(f"{path}: leads out of its folder by a link; --run itself may be a link")


def _train(request: TrainRequest, recipe: Recipe, dataset: Dataset, ranks: Ranks, progress: Progress) -> str:
    start, digest = request.start, str(dataset.manifest["digest"])
    with contextlib.ExitStack() as open_files:
        with ranks.share_errors():
            _check_links(request.run)
            checkpoints = list_checkpoints(request.run)
            _check_continuation(request, recipe, dataset, checkpoints)
            teacher_params = _choose_teacher_params(start) if recipe.distill and start else None
        _check_agreement(request, recipe, ranks, digest, checkpoints[-1] if checkpoints else None)
        if _is_finished(request, recipe, checkpoints):
            return "done"
        with ranks.share_errors():
            if request.hold == "resident" and not isinstance(dataset.storage, LocalStorage):
                limit = int(request.cache_gb * 1e9)
                folder = download_dataset(request.shards, request.cache, limit_bytes=limit, progress=progress)
                dataset = open_dataset(folder, hashes=False)
            start_step = checkpoints[-1].step if checkpoints else 0
            tried = _read_tried_execution(request.run) if checkpoints else None
            data, held_out = open_files.enter_context(
                open_frame_sources(request, recipe, dataset, ranks, progress, start_step)
            )
            speech_scale = None
            if recipe.network.audio.takes_speech and not checkpoints and start is None:  # these hold it
                network_input = build_network_input(recipe.network)
                speech_scale = measure_speech_scale(dataset, data.clips.ids, network_input)
            with explain_out_of_memory("the network", ranks.device, advice="try fewer network.channels"):
                initial = start.load_network() if start is not None and not checkpoints else None
                state = loop.create_state(recipe, ranks.device, speech_scale, initial)
                if checkpoints:
                    restore_state(state, checkpoints[-1])
                execution = request.execution
                if tried is not None and execution.is_open(ranks.device):
                    execution = replace(execution, **tried)
                elif request.trial and not checkpoints and ranks.world == 1 and recipe.batch <= len(data):
                    execution = choose_execution(execution, recipe, ranks.device, recipe.steps)
                    if execution != request.execution:
                        tried = {"precision": execution.precision, "compile": execution.compile}
            if ranks.is_first:
                _write_run_file(request, recipe, dataset, tried)
        if ranks.is_first:
            execution.warn_of_slow_precision(ranks.device)
            log.info(
                "%s: %s parameters, %d frames of %d clips to train on, %s, %d of %d clips held out, %s",
                request.preset, f"{count_parameters(state.network):,}", len(data), len(data.clips.ids),
                request.hold, len(held_out) if held_out else 0, len(held_out.clips.ids) if held_out else 0,
                f"going on at step {state.step}" if checkpoints
                else f"new{f' from {start.record}' if start else ''}, on {ranks.world} x {ranks.device.type}",
            )  # fmt: skip
            if recipe.balance != "frames":
                log.info("balance %s: drawn evenly, no exact epochs", recipe.balance)
            elif not data.has_exact_epochs:
                log.info("%s: no exact epochs", request.hold)
        teacher = None
        if start is not None and teacher_params is not None:
            teacher = Teacher(
                FrameGenerator(start.load_network(), start.recipe, teacher_params, ranks.device, execution)
            )
        try:
            return loop.train(
                state,
                data,
                held_out,
                recipe=recipe,
                execution=execution,
                ranks=ranks,
                run=request.run,
                digest=digest,
                start=start.record if start else None,
                change_batch=teacher.change_batch if teacher else None,
                dvclive=request.dvclive,
                report_step=request.report_step,
            )
        except RuntimeError as err:
            if is_worker_error(err):
                raise StageError(f"a decoding process died ({str(err).splitlines()[0]})") from err
            raise


def _choose_teacher_params(start: Start) -> SampleParams:
    """How the network of the start is sampled as a teacher: as its catalogue or run says."""
    params = override_params(SampleParams(), **advise_sampling(start.path))
    check_teacher(start.recipe, params)
    return params


def _is_finished(request: TrainRequest, recipe: Recipe, checkpoints: list[Checkpoint]) -> bool:
    """Whether a run has all of its steps and files. DVC's folder is written anew: DVC may have removed it."""
    has_all_steps = bool(checkpoints) and checkpoints[-1].step >= recipe.steps
    return has_all_steps and request.dvclive is None and (request.run / RUN_FILE).exists()


def _open_dataset(request: TrainRequest, recipe: Recipe, ranks: Ranks) -> Dataset:
    """Open the dataset, downloading its tables. Raises an error for what cannot be trained so.

    All that can be checked before a run is set aside and shards are downloaded is checked here.
    """
    if (request.hold == "windowed") != (recipe.window > 0):
        raise StageError(
            f"--hold {request.hold} cannot be combined with a recipe whose window is {recipe.window}"
        )
    if request.hold == "streamed" and recipe.balance != "frames":
        raise StageError(
            f"--hold streamed cannot be combined with a recipe whose balance is {recipe.balance}: it reads "
            "clips in the shards' order; use --hold resident, cached or windowed"
        )
    request.execution.choose_micro_batch(recipe, ranks.world)
    dataset = open_dataset(locate_dataset(request.shards, request.cache), hashes=False)
    if request.start is not None:
        _check_sound(request.start, dataset)
    train_ids, _ = _split_clips(recipe, dataset)
    n_frames = sum(dataset.clips.column("frames", train_ids))
    if recipe.batch > n_frames:
        raise ModelError(f"batch {recipe.batch} is larger than the {n_frames} frames to train on")
    return dataset


def _check_agreement(
    request: TrainRequest, recipe: Recipe, ranks: Ranks, digest: str, newest: Checkpoint | None
) -> None:
    """Raise ModelError where ranks would train something else, and then wait for each other for ever."""
    values = {
        CHECKPOINT: f"of step {newest.step}, position {newest.position}" if newest else "not there",
        "the dataset": digest[:12],
        "the start": str(request.start.record.sha256 if request.start else None)[:12],
        "--hold": request.hold,
        "--micro-batch": request.execution.micro_batch,
        "redub": version("redub"),
        **dict(iterate_values(asdict(recipe))),
    }
    advice = {
        CHECKPOINT: f"--run {request.run} has to be a folder that all nodes see",
        "": "start the same command on all nodes",
    }
    ranks.check_equal(values, advice)


def _read_tried_execution(run: Path) -> dict[str, Any] | None:
    """What the trial at a run's start chose: a run that is resumed goes on so."""
    return read_run_file(run).get("execution") if (run / RUN_FILE).exists() else None


@contextlib.contextmanager
def open_frame_sources(
    request: TrainRequest,
    recipe: Recipe,
    dataset: Dataset,
    ranks: Ranks,
    progress: Progress,
    start_step: int = 0,
) -> Iterator[FrameSources]:
    """The frames of the training clips and of the held-out clips, held as ``request.hold`` says."""
    train_ids, held_out_ids = _split_clips(recipe, dataset)
    network_input = build_network_input(recipe.network, recipe.frames)
    opener = _FrameSourceOpener(request, recipe, dataset, network_input, ranks, progress)
    if request.hold == "resident":
        yield opener.load_resident(train_ids, held_out_ids)
    elif request.hold == "cached":
        with opener.open_cached(train_ids, held_out_ids) as sources:
            yield sources
    elif request.hold == "windowed":
        with opener.open_windowed(train_ids, held_out_ids) as sources:
            yield sources
    else:
        with opener.open_streamed(train_ids, held_out_ids, start_step) as sources:
            yield sources


def _split_clips(recipe: Recipe, dataset: Dataset) -> tuple[list[str], list[str]]:
    """The clips to train on and those held out. Raises an error if there are none, or none that fit."""
    build_network_input(recipe.network).check_dataset(dataset.manifest, dataset.storage.address)
    ids = dataset.clips.ids_in_split(TRAIN_SPLIT)
    if not ids:
        splits = sorted(dataset.clips.table["split"].unique().to_pylist())[:MAX_NAMES]
        raise StageError(
            f"{dataset.storage.address}: no clip is in the split {TRAIN_SPLIT!r}, all are in "
            f"{', '.join(splits)}; a smaller clips.test_share leaves some to train on"
        )
    return split_held_out(ids, recipe.held_out_share, seed=recipe.seed)


@dataclass(frozen=True)
class _FrameSourceOpener:
    """Opens the frame sources of a dataset, one method for each way to hold the frames."""

    request: TrainRequest
    recipe: Recipe
    dataset: Dataset
    network_input: NetworkInput
    ranks: Ranks
    progress: Progress

    def load_resident(self, train_ids: list[str], held_out_ids: list[str]) -> FrameSources:
        """All frames decoded, in memory."""
        data = self._load("loading training clips", train_ids, balance=self.recipe.balance)
        return data, self._load("loading held-out clips", held_out_ids) if held_out_ids else None

    @contextlib.contextmanager
    def open_cached(self, train_ids: list[str], held_out_ids: list[str]) -> Iterator[FrameSources]:
        """All shards on this machine's disk, each frame decoded when it is used."""
        dataset, workers = self.dataset, self.request.workers
        names, _ = dataset.clips.locate_shards([*train_ids, *held_out_ids])
        entries = [dataset.shards[name] for name in names]
        with open_shard_store(dataset, self.request.cache, self._cache_bytes) as store:
            if self.ranks.is_first:
                total_gb = sum(entry.bytes for entry in entries) / 1e9
                log.info("%d shards, %.2f GB, will be stored on this disk", len(entries), total_gb)
            store.hold(entries)
            held_out = None
            if held_out_ids:
                decoder = Decoder(dataset, build_clip_table(dataset, held_out_ids), store, self.network_input)
                held_out = Cached(decoder, self.ranks.device, workers)
            clips = build_clip_table(dataset, train_ids, self.recipe.balance)
            decoder = Decoder(dataset, clips, store, self.network_input)
            yield Cached(decoder, self.ranks.device, workers), held_out

    @contextlib.contextmanager
    def open_windowed(self, train_ids: list[str], held_out_ids: list[str]) -> Iterator[FrameSources]:
        """The shards of a window or two on this machine's disk; some held-out clips in memory."""
        dataset, window = self.dataset, self.recipe.window
        with open_shard_store(dataset, self.request.cache, self._cache_bytes) as store:
            clips = build_clip_table(dataset, train_ids, self.recipe.balance)
            decoder = Decoder(dataset, clips, store, self.network_input)
            data = Windowed(
                decoder,
                self.ranks.device,
                self.request.workers,
                store=store,
                window=window,
                memory_bytes=None if self.request.memory_gb is None else int(self.request.memory_gb * 1e9),
            )
            if self.ranks.is_first:
                log.info(
                    "windows of %d shards, up to %.2f GB decoded; up to %.2f GB of frames in memory",
                    window, data.window_bytes / 1e9, data.memory_bytes / 1e9,
                )  # fmt: skip
            yield data, self._load_some_held_out(held_out_ids)

    @contextlib.contextmanager
    def open_streamed(
        self, train_ids: list[str], held_out_ids: list[str], start_step: int
    ) -> Iterator[FrameSources]:
        """Shards read from first to last, batches drawn from a buffer; some held-out clips in memory."""
        stream = ClipStream(
            self.dataset,
            train_ids,
            self.network_input,
            self.ranks.device,
            workers=self.request.workers,
            seed=self.recipe.seed,
            start_step=start_step,
            rank=self.ranks.rank,
            world=self.ranks.world,
        )
        with contextlib.closing(stream):
            yield stream, self._load_some_held_out(held_out_ids)

    @property
    def _cache_bytes(self) -> int:
        return int(self.request.cache_gb * 1e9)

    def _load_some_held_out(self, held_out_ids: list[str]) -> Resident | None:
        if not held_out_ids:
            return None
        every = -(-len(held_out_ids) // MAX_HELD_OUT_CLIPS)
        return self._load("loading held-out clips", held_out_ids[::every])

    def _load(self, label: str, clip_ids: list[str], *, balance: Balance = "frames") -> Resident:
        device = self.ranks.device
        n_total = sum(self.dataset.clips.column("frames", clip_ids))
        n_loaded = 0

        def report(n_frames: int) -> None:
            nonlocal n_loaded
            n_loaded += n_frames
            self.progress(label, n_loaded, n_total)

        return load_resident(
            self.dataset,
            clip_ids,
            self.network_input,
            device=device,
            frames_on=torch.device("cpu") if self.request.frames_on == "host" else device,
            workers=self.request.workers,
            balance=balance,
            done=report,
        )


def _check_sound(start: Start, dataset: Dataset) -> None:
    """Raise StageError where the start says that its sound was made otherwise than the dataset's."""
    _, known = read_dataset_sections(find_run(start.path))
    sections = ("mels", "speech") if start.recipe.network.audio.takes_speech else ("mels",)
    for section in sections:
        new = get_params_section(dataset.manifest, section)
        for name, value in (known[section] or {}).items():
            if name in new and new[name] != value:
                raise StageError(
                    f"{dataset.storage.address}: has {section}.{name} {shorten(new[name])}, expected "
                    f"{shorten(value)} as in the dataset of {start.record.name}"
                )


def _write_run_file(
    request: TrainRequest, recipe: Recipe, dataset: Dataset, tried: dict[str, Any] | None
) -> None:
    """Write ``run.json``: enough to start the same run again elsewhere, and to make mels as it knows them."""
    content: dict[str, Any] = {
        "preset": request.preset,
        "shards": strip_address(request.shards),
        "digest": str(dataset.manifest["digest"]),
        "mels": get_params_section(dataset.manifest, "mels") or None,
        "recipe": recipe_to_dict(recipe),
        "versions": {name: version(name) for name in ("redub", "torch", "numpy")},
    }
    if tried is not None:
        content["execution"] = tried
    if recipe.network.audio.takes_speech:
        content["speech"] = get_params_section(dataset.manifest, "speech") or None
    sources = read_sources(dataset.manifest)
    if request.start is not None:
        content["start"] = request.start.record.model_dump()
        sources = merge_sources(read_data_sources(find_run(request.start.path)), sources)
        # A distilled network is not sampled as its start: its recipe says how.
        if not recipe.distill and (advice := advise_sampling(request.start.path)):
            content["sampling"] = advice
    content["data"] = [source.model_dump(exclude_none=True) for source in sources]
    with write_atomically(request.run / RUN_FILE) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")
