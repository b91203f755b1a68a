"""Stage 8: score generated clips beside the ground truth and baselines, in one table.

OUT/clips.parquet        a row per row of the table and clip: its outcome and its scores
OUT/frames.parquet       curves by frame
OUT/metrics.json         the table: means over clips with intervals, or why there is none
OUT/summary.json         a few means of each generated system, for ``dvc exp show``
OUT/plots/*.csv          curves by frame, means over clips
OUT/evaluation.json      what was scored and with which versions; the columns. Written last
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.ledger import OK
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset, read_clip, read_unless_damaged
from shards.schema import ClipSample, ShardError
from shards.table import Row, write_rows
from stages.engine.cache import digest, entry_path, save_entry, versions
from stages.engine.lock import lock_folder
from stages.engine.outcome import Outcome, StageError
from stages.engine.progress import Progress, no_progress
from stages.engine.sandbox import LimitParams
from stages.engine.stage import Mapper
from stages.evaluate import measure, phonemes
from stages.evaluate.baselines import build_bank, choose_bank_clips
from stages.evaluate.columns import COLUMNS
from stages.evaluate.listening import OBEDIENCE
from stages.evaluate.measure import MeasureItem, Measurements, MeasureTools, load_measurements
from stages.evaluate.network_metrics import FID, LPIPS, LSE, LSE_REAL, load_networks
from stages.evaluate.network_scores import PROTOCOLS, NetworkScores, RawClips, score_rows_by_networks
from stages.evaluate.predictions import GeneratedSystem, crop_videos, find_systems
from stages.evaluate.scores import (
    CLIPS_SCHEMA,
    CPBD,
    CURVES,
    FRAMES_SCHEMA,
    SSIM,
    TrueClip,
    average_curves,
    average_openings,
    build_metrics,
    compute_curves,
    explain_intervals,
    get_mouths,
    score_clip,
    score_mean_opening,
)
from stages.evaluate.system_card import write_system_cards
from stages.evaluate.table import (
    MEAN_OPENING,
    NOT_GENERATED,
    TRUTH,
    TableEntry,
    list_entries,
    make_item,
    make_tasks,
)
from stages.evaluate.word_times import read_alignments
from stages.media import weights
from stages.media.faces import DEFAULT_ENGINE, ENGINE_PACKAGES, check_engine
from stages.metrics import sync
from stages.metrics.closure import find_closures
from stages.metrics.mouth import openings
from stages.metrics.obedience import INTERVAL_SEED
from stages.sample.pairs import Pair, make_pairs

CLIPS, FRAMES, METRICS, SUMMARY, RUN_INFO, PLOTS = (
    "clips.parquet", "frames.parquet", "metrics.json", "summary.json", "evaluation.json", "plots",
)  # fmt: skip
# Of a system's many columns, what a list of runs shows: by swapped audio where that has it, else by own.
SUMMARY_COLUMNS = ("audio_obedience", "audio_obedience_net", "opening_correlation", "psnr_box_db")
DRIFT_PLOTS = ("psnr_box_db", "identity_distance")
MOUTHS = ("mouth_", "opening_", "sync_", "audio_obedience", "obedience_", "silence_", "closure")
LANDMARK_COLUMNS = (*(name for name in COLUMNS if name.startswith(MOUTHS)), *LSE_REAL)
CLOSURES = ("closure", "closure_truth")
SYNC = ("sync_confidence", "sync_lag")
NO_SPEECH = f"needs speech features: build the dataset with speech.encoder: {sync.ENCODER} in the params"
NO_WORD_TIMES = (
    "needs word times, such as GRID's .align files (--alignments DIR), or the sound (--raw DIR) and a "
    "phoneme recogniser: pip install 'redub[phonemes]'"
)
SLOW_COLUMNS = (*SSIM, *CPBD, *LPIPS, *FID, *LSE, *LSE_REAL)  # that --mouths-only leaves out
MEAN_OPENING_CLIPS = 48  # of the training split: their mean opening has a seventh of a clip's own spread


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What to score, and with what."""

    shards: str  # a folder or a web address
    out: Path
    cache: Path
    generated: tuple[tuple[str, Path], ...] = ()  # name, or empty, and folder
    split: str = "test"
    clips: int | None = None  # only the first so many, by name; None: all
    landmarks: bool = True  # mouth metrics, which cost ten times what the others do
    landmarker: str = ""
    mouths_only: bool = False  # neither SSIM nor CPBD nor any network's scores
    alignments: Path | None = None  # folder of GRID's word times
    weights: Path | None = None  # folder of published networks
    raw: Path | None = None  # the corpus's raw files, for the sound: of SyncNet and of p, b and m
    device: str = "cpu"  # of those networks
    card: Path | None = None  # folder for a card of each generated system


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The result, for the command to print."""

    rows: list[Row]  # of clips.parquet
    metrics: dict[str, dict[str, Any]]
    unmatched_files: dict[str, tuple[str, ...]]  # row -> files whose name matches no clip to score
    n_measured: int  # items that were measured, not read from the cache
    cards: list[Path]  # folders of the cards that were written
    unreadable: dict[str, str]  # training clips that the bank of mouths lacks -> why


def run(
    request: EvaluateRequest,
    limits: LimitParams,
    map_tasks: Mapper,
    progress: Progress = no_progress,
) -> EvaluationResult:
    """Score everything; earlier measurements come from the cache. Raises StageError or ShardError.

    ``progress`` counts clips scored by networks; ``map_tasks`` reports the rest.
    """
    with lock_folder(request.out, busy=f"--out {request.out}: another process evaluates there"):
        return _evaluate(request, limits, map_tasks, progress)


def _evaluate(
    request: EvaluateRequest, limits: LimitParams, map_tasks: Mapper, progress: Progress
) -> EvaluationResult:
    location = locate_dataset(request.shards)
    shards = str(location.absolute()) if isinstance(location, Path) else request.shards  # for other processes
    dataset = open_dataset(location)
    own = make_pairs(dataset, request.split, "own", seed=0)[: request.clips]
    systems = _find_all_systems(request, dataset)
    systems = crop_videos(systems, dataset, shards, request.cache, limits, map_tasks)
    swapped = _choose_swapped_pairs(request, dataset, systems, own)
    clip_ids = {clip_id for pair in (*own, *swapped) for clip_id in (pair.clip_id, pair.audio_clip_id)}
    tools, not_computed, unreadable = _prepare_tools(request, dataset, shards, clip_ids)

    closures = _find_all_closures(request, dataset, clip_ids, tools, limits, map_tasks)
    if not closures.frames:
        why = next(iter(closures.reasons), NO_WORD_TIMES)
        not_computed = dict.fromkeys(CLOSURES, why) | not_computed
    if not sync.has_features(dataset.manifest):
        not_computed = dict.fromkeys(SYNC, NO_SPEECH) | not_computed
    entries = list_entries(systems, own, swapped, dataset, tools)
    truths = {name: make_item(dataset, tools, "truth", Pair(name, name)) for name in sorted(clip_ids)}
    timing = _list_training_mouths(dataset, tools, clip_ids)
    items = [*(entry.item for entry in entries if entry.item is not None), *truths.values(), *timing]
    tasks = make_tasks(items, tools, limits)
    sizes = [sum(item.n_frames for item in task.items) for task in tasks]
    failures: dict[Path, Outcome] = {}
    for task_failures in map_tasks(measure.measure_task, tasks, label="evaluate: clips", sizes=sizes):
        failures |= task_failures

    rows, frames = _build_tables(
        entries, _MeasurementReader(truths, failures, timing, closures.frames), dataset
    )
    network_scores = NetworkScores()
    if request.mouths_only:
        not_computed |= dict.fromkeys(SLOW_COLUMNS, "--mouths-only")
    else:
        networks = load_networks(request.weights, with_sound=request.raw is not None, device=request.device)
        raw_clips = RawClips(dataset, request.raw, limits)
        network_scores = score_rows_by_networks(
            _group_items_by_row(entries, rows),
            networks,
            raw_clips,
            dataset,
            tools,
            truth=TRUTH,
            progress=progress,
        )
        not_computed |= networks.not_computed
    for entry, row in zip(entries, rows, strict=True):
        if entry.item is not None and not entry.obedience_only:
            row |= network_scores.get_clip_scores(entry.item)

    metrics = build_metrics(rows, network_scores.rows, not_computed, [system.row for system in systems])
    run_info = _describe_run(request, dataset, systems, rows, network_scores, closures, not_computed)
    run_info["without_bank"] = dict(Counter(unreadable.values()))  # number of clips by reason
    _write(request.out, rows, frames, metrics, _summarize(systems, metrics), run_info)
    cards = []
    if request.card is not None:
        cards = write_system_cards(request.card, dataset, systems, rows, metrics, run_info)
    unmatched_files = {system.row: system.unmatched_files for system in systems if system.unmatched_files}
    n_measured = sum(len(task.items) for task in tasks)
    return EvaluationResult(rows, metrics, unmatched_files, n_measured, cards, unreadable)


def _find_all_systems(request: EvaluateRequest, dataset: Dataset) -> list[GeneratedSystem]:
    """The rows of all folders. Raises StageError when two have the same name."""
    systems: list[GeneratedSystem] = []
    for name, folder in request.generated:
        systems += find_systems(name, folder, dataset, request.split, request.clips)
    counts = Counter([*(system.row for system in systems), *NOT_GENERATED])
    for system in systems:
        if counts[system.row] > 1:
            raise StageError(f"{system.folder}: there is a row {system.row!r} already; "
                             f"name it, --generated NAME={system.folder}")  # fmt: skip
    return systems


def _choose_swapped_pairs(
    request: EvaluateRequest, dataset: Dataset, systems: Sequence[GeneratedSystem], own: Sequence[Pair]
) -> list[Pair]:
    """Pairs with another's speech, for the baselines: those of the systems, else those of ``make_pairs``."""
    pairs = [clip.pair for system in systems for clip in system.clips]
    swapped = list(dict.fromkeys(pair for pair in pairs if pair.clip_id != pair.audio_clip_id))
    if swapped or len(own) < 2:
        return swapped
    return make_pairs(dataset, request.split, "swapped", seed=0)[: request.clips]


def _prepare_tools(
    request: EvaluateRequest, dataset: Dataset, shards: str, clip_ids: Set[str]
) -> tuple[MeasureTools, dict[str, str], dict[str, str]]:
    """What measuring needs, which columns cannot be computed and why, and the same of clips of the bank.

    Builds the bank of training mouths from clips other than ``clip_ids``.
    """
    bank, unreadable = _prepare_bank(dataset, request.cache, choose_bank_clips(dataset, excluded=clip_ids))
    model, not_computed = None, {}
    if request.landmarks:
        try:
            check_engine(DEFAULT_ENGINE)
            model = weights.find(weights.LANDMARKER, request.landmarker).absolute()
        except StageError as err:
            if request.landmarker:
                raise
            not_computed = dict.fromkeys(LANDMARK_COLUMNS, str(err))
    else:
        not_computed = dict.fromkeys(LANDMARK_COLUMNS, "--no-landmarks")
    tools = MeasureTools(
        shards=shards,
        digest=dataset.manifest["digest"],
        cache=request.cache.absolute(),
        bank=bank,
        landmarker=model,
        landmarker_sha256="" if model is None else file_sha256(model),
        mouths_only=request.mouths_only,
    )
    return tools, not_computed, unreadable


def _prepare_bank(
    dataset: Dataset, cache: Path, clip_ids: Sequence[str]
) -> tuple[Path | None, dict[str, str]]:
    """The bank of these clips in the cache, and why some are not in it; None if none is."""
    inputs = [measure.VERSION, dataset.manifest["digest"], clip_ids, versions("opencv-python")]
    bank = entry_path(cache, "bank", digest("bank", *inputs), ".npz").absolute()
    unreadable: dict[str, str] = {}
    if not clip_ids or bank.is_file():
        return (bank if clip_ids else None), unreadable

    def read_clips() -> Iterator[ClipSample]:
        for clip_id in clip_ids:
            clip = read_unless_damaged(read_clip, dataset, clip_id)
            if isinstance(clip, ShardError):
                unreadable[clip_id] = str(clip)
            else:
                yield clip

    clips = read_clips()
    first = next(clips, None)
    if first is None:
        return None, unreadable
    content = build_bank(chain([first], clips))
    if unreadable:  # not under the name of the whole bank: the clips may be mended
        bank = entry_path(cache, "bank", digest("bank", *inputs, sorted(unreadable)), ".npz").absolute()
    save_entry(bank, Outcome(), {"sounds": content.sounds, "mouths": content.mouths})
    return bank, unreadable


def _list_training_mouths(dataset: Dataset, tools: MeasureTools, excluded: Set[str]) -> list[MeasureItem]:
    """The training clips whose mean opening by frame number is a row; none without landmarks."""
    if tools.landmarker is None:
        return []
    clip_ids = choose_bank_clips(dataset, excluded=excluded)[:MEAN_OPENING_CLIPS]
    return [make_item(dataset, tools, "mouths", Pair(clip_id, clip_id)) for clip_id in clip_ids]


@dataclass(frozen=True, slots=True)
class _Closures:
    """When p, b and m close the lips, and how that is known."""

    frames: Mapping[str, list[int]] = field(default_factory=dict)  # by clip id; not of all clips
    source: Literal["word times", "phoneme recogniser"] | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)  # why there are none -> number of clips


def _find_all_closures(
    request: EvaluateRequest,
    dataset: Dataset,
    clip_ids: Set[str],
    tools: MeasureTools,
    limits: LimitParams,
    map_tasks: Mapper,
) -> _Closures:
    """From word times if a folder of them is given, else from the sound. Never both: they differ a little."""
    if request.alignments is not None:
        clips = {clip_id: dataset.clips[clip_id] for clip_id in sorted(clip_ids)}
        words = read_alignments(request.alignments, clips)
        frames = {clip_id: find_closures(words[clip_id]) for clip_id in words}
        n_missing = len(clips) - len(words)
        return _Closures(frames, "word times", {"no .align file": n_missing} if n_missing else {})
    if request.raw is None or tools.landmarker is None or not phonemes.is_installed():
        return _Closures()
    heard = phonemes.find_closures_by_sound(dataset, sorted(clip_ids), request.raw, tools, limits, map_tasks)
    frames = {clip_id: each for clip_id, each in heard.items() if not isinstance(each, Outcome)}
    reasons = Counter(each.reason for each in heard.values() if isinstance(each, Outcome))
    return _Closures(frames, "phoneme recogniser", reasons)


class _MeasurementReader:
    """Reads measurements from the cache; those of the ground truth, which many rows need, once."""

    def __init__(
        self,
        truths: Mapping[str, MeasureItem],
        failures: Mapping[Path, Outcome],
        timing: Sequence[MeasureItem],
        closures: Mapping[str, Sequence[int]],
    ) -> None:
        self._failures = failures
        self._true_clips: dict[str, TrueClip] = {}
        for clip_id, item in truths.items():
            result = self.read(item)
            self._true_clips[clip_id] = (
                TrueClip()
                if isinstance(result, Outcome)
                else TrueClip(
                    get_mouths(result),
                    result["is_silent"],
                    closures.get(clip_id),
                    result.get("mouth_by_speech"),
                )
            )
        results = [result for item in timing if not isinstance(result := self.read(item), Outcome)]
        self.mean_opening = average_openings(
            [openings(mouths) for result in results if (mouths := get_mouths(result)) is not None]
        )

    def read(self, item: MeasureItem) -> Measurements | Outcome:
        """An item's measurements, or why there are none."""
        return self._failures.get(item.cache_entry) or load_measurements(item.cache_entry)

    def get_true_clip(self, clip_id: str) -> TrueClip:
        """Mouth and pauses of a clip's own frames and speech."""
        return self._true_clips[clip_id]


def _group_items_by_row(entries: Sequence[TableEntry], rows: Sequence[Row]) -> dict[str, list[MeasureItem]]:
    """What the networks score: everything that was measured, ground truth and baselines included."""
    items: dict[str, list[MeasureItem]] = {}
    for entry, row in zip(entries, rows, strict=True):
        if entry.item is not None and not entry.obedience_only and row["status"] == OK:
            items.setdefault(entry.row, []).append(entry.item)
    return items


def _describe_clips(dataset: Dataset, clip_ids: Set[str]) -> dict[str, Row]:
    """Split, speaker, emotion and level of some clips."""
    rows = dataset.ledger().select_columns("clip_id", "emotion", "level")
    ledger = {row["clip_id"]: row for row in rows if row["clip_id"] in clip_ids}
    return {
        clip_id: {
            "split": dataset.clips[clip_id]["split"],
            "speaker": dataset.clips[clip_id]["speaker"],
            "emotion": ledger.get(clip_id, {}).get("emotion"),
            "level": ledger.get(clip_id, {}).get("level"),
        }
        for clip_id in clip_ids
    }


def _build_tables(
    entries: Sequence[TableEntry], reader: _MeasurementReader, dataset: Dataset
) -> tuple[list[Row], pa.Table]:
    """``clips.parquet`` without scores by networks, and ``frames.parquet``. Each cache entry is read once."""
    descriptions = _describe_clips(
        dataset, {name for entry in entries for name in (entry.pair.clip_id, entry.pair.audio_clip_id)}
    )
    rows, frames = [], [FRAMES_SCHEMA.empty_table()]
    for entry in entries:
        result = entry.outcome if entry.item is None else reader.read(entry.item)
        of_speech = descriptions[entry.pair.audio_clip_id]
        description = descriptions[entry.pair.clip_id] | {
            f"audio_{name}": value for name, value in of_speech.items()
        }
        rows.append(_make_clip_row(entry, result, reader, description))
        if not isinstance(result, Outcome) and not entry.obedience_only:
            frames.append(_make_frame_rows(entry, result, reader))
    return rows, pa.concat_tables(frames).combine_chunks()


def _make_clip_row(
    entry: TableEntry, result: Measurements | Outcome, reader: _MeasurementReader, description: Row
) -> Row:
    """A row of ``clips.parquet``."""
    outcome = result if isinstance(result, Outcome) else Outcome()
    pair = entry.pair
    row: Row = {
        "row": entry.row,
        "name": pair.name,
        "clip_id": pair.clip_id,
        "audio_clip_id": pair.audio_clip_id,
        **description,
        **outcome.to_columns(),
        "frames": 0,
        **dict.fromkeys(COLUMNS),
    }
    speech, source = (reader.get_true_clip(name) for name in (pair.audio_clip_id, pair.clip_id))
    own = pair.clip_id == pair.audio_clip_id
    if entry.row == MEAN_OPENING and outcome.status == OK:
        scores = score_mean_opening(reader.mean_opening, speech, source, own=own)
    elif isinstance(result, Outcome):
        return row
    else:
        lengths = [len(each.mouths) for each in (speech, source) if each.mouths is not None]
        row["frames"] = min([len(result["identity_distances"]), *lengths])
        scores = score_clip(result, speech, source, own=own)
    if entry.obedience_only:
        scores = {column: score for column, score in scores.items() if column in OBEDIENCE}
    return row | {column: score for column, score in scores.items() if np.isfinite(score)}


def _make_frame_rows(entry: TableEntry, measurements: Measurements, reader: _MeasurementReader) -> pa.Table:
    """A clip's rows of ``frames.parquet``."""
    n_frames = len(measurements["identity_distances"])
    curves = compute_curves(measurements, reader.get_true_clip(entry.pair.audio_clip_id).mouths)
    values = [curves.get(name, np.full(n_frames, np.nan)) for name in CURVES]
    columns = [
        pa.array([entry.row] * n_frames),
        pa.array([entry.pair.name] * n_frames),
        pa.array(np.arange(n_frames, dtype=np.int32)),
        *(pa.array(curve.astype(np.float32), mask=~np.isfinite(curve)) for curve in values),
    ]
    return pa.Table.from_arrays(columns, schema=FRAMES_SCHEMA)


def _describe_run(
    request: EvaluateRequest,
    dataset: Dataset,
    systems: Sequence[GeneratedSystem],
    rows: Sequence[Row],
    network_scores: NetworkScores,
    closures: _Closures,
    not_computed: Mapping[str, str],
) -> dict[str, Any]:
    """The content of ``evaluation.json``."""
    recognisers = [phonemes.PACKAGE] if closures.source == "phoneme recogniser" else []
    finder = [] if not_computed.keys() >= set(LANDMARK_COLUMNS) else [ENGINE_PACKAGES[DEFAULT_ENGINE]]
    return {
        "dataset": dataset.manifest["digest"],
        "split": request.split,
        "clips": request.clips,
        "mouths_only": request.mouths_only,
        "alignments": None if request.alignments is None else str(request.alignments),
        "scored": {system.row: {"folder": str(system.folder), **system.description} for system in systems},
        "seed": INTERVAL_SEED,
        "intervals": explain_intervals(rows),
        "versions": versions("redub", "numpy", "opencv-python", "scipy", "av", *finder, *recognisers),
        "metrics": {name: asdict(column) for name, column in COLUMNS.items()},
        "not_computed": dict(not_computed),
        "protocols": PROTOCOLS,
        "closures": closures.source,  # how it is known when p, b and m are said
        "without_closures": dict(closures.reasons),  # number of clips by reason
        "without_lse": dict(Counter(chain.from_iterable(network_scores.skipped.values()))),  # by reason
    }


def _summarize(
    systems: Sequence[GeneratedSystem], metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """The content of ``summary.json``: system -> column -> mean."""
    summary: dict[str, dict[str, float]] = {system.name: {} for system in systems}
    for system in sorted(systems, key=lambda system: system.audio):  # swapped last: it replaces own
        cells = metrics.get(system.row, {})
        means = {name: cells[name] for name in SUMMARY_COLUMNS if isinstance(cells.get(name), Mapping)}
        summary[system.name] |= {name: mean["mean"] for name, mean in means.items()}
    return summary


def _write(
    out: Path,
    rows: Sequence[Row],
    frames: pa.Table,
    metrics: Mapping[str, Any],
    summary: Mapping[str, Any],
    run_info: Mapping[str, Any],
) -> None:
    """Write all files, ``evaluation.json`` last: a folder without it is incomplete."""
    (out / RUN_INFO).unlink(missing_ok=True)
    write_rows(out / CLIPS, rows, CLIPS_SCHEMA)
    with write_atomically(out / FRAMES) as partial:
        pq.write_table(frames, partial, compression="zstd")
    for curve in DRIFT_PLOTS:
        _write_csv(out / PLOTS / f"{curve}.csv", average_curves(frames, curve))
    _write_json(out / METRICS, metrics)
    _write_json(out / SUMMARY, summary)
    _write_json(out / RUN_INFO, run_info)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with write_atomically(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
