"""Stage 8: score generated clips beside the ground truth and baselines, in one table.

OUT/clips.parquet        a row per row of the table and clip: its outcome and its scores
OUT/frames.parquet       curves by frame
OUT/metrics.json         the table: means over clips with intervals, or why there is none
OUT/plots/*.csv          curves by frame, means over clips
OUT/evaluation.json      what was scored and with which versions; the columns. Written last
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.ledger import OK
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset, read_clip
from shards.table import Row, write_rows
from stages.engine.cache import digest, entry_path, save_entry, versions
from stages.engine.lock import lock_folder
from stages.engine.outcome import Outcome, StageError
from stages.engine.progress import Progress, no_progress
from stages.engine.sandbox import LimitParams
from stages.engine.stage import Mapper
from stages.evaluate import measure
from stages.evaluate.baselines import build_bank, choose_bank_clips
from stages.evaluate.columns import COLUMNS
from stages.evaluate.measure import MeasureItem, Measurements, MeasureTools, load_measurements
from stages.evaluate.metrics.mouth import Mouths
from stages.evaluate.network_metrics import LSE_REAL, load_networks
from stages.evaluate.network_scores import PROTOCOLS, NetworkScores, RawClips, score_rows_by_networks
from stages.evaluate.predictions import GeneratedSystem, crop_videos, find_systems
from stages.evaluate.scores import (
    CLIPS_SCHEMA,
    CURVES,
    FRAMES_SCHEMA,
    average_curves,
    build_metrics,
    compute_curves,
    get_mouths,
    score_clip,
)
from stages.evaluate.table import BASELINES, TRUTH, TableEntry, list_entries, make_item, make_tasks
from stages.media import weights
from stages.sample.pairs import Pair, make_pairs

CLIPS, FRAMES, METRICS, RUN_INFO, PLOTS = (
    "clips.parquet", "frames.parquet", "metrics.json", "evaluation.json", "plots",
)  # fmt: skip
DRIFT_PLOTS = ("psnr_box_db", "identity_distance")
LANDMARK_COLUMNS = (
    *(name for name in COLUMNS if name.startswith(("mouth_", "opening_", "audio_obedience"))), *LSE_REAL,
)  # fmt: skip


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
    weights: Path | None = None  # folder of published networks
    raw: Path | None = None  # the corpus's raw files, for the sound that SyncNet needs
    device: str = "cpu"  # of those networks


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The result, for the command to print."""

    rows: list[Row]  # of clips.parquet
    metrics: dict[str, dict[str, Any]]
    unmatched_files: dict[str, tuple[str, ...]]  # row -> files whose name matches no clip to score
    n_measured: int  # items that were measured, not read from the cache


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
    tools, not_computed = _prepare_tools(request, dataset, shards, clip_ids)

    entries = list_entries(systems, own, swapped, dataset, tools)
    truths = {name: make_item(dataset, tools, "truth", Pair(name, name)) for name in sorted(clip_ids)}
    items = [*(entry.item for entry in entries if entry.item is not None), *truths.values()]
    tasks = make_tasks(items, tools, limits)
    sizes = [sum(item.n_frames for item in task.items) for task in tasks]
    failures: dict[Path, Outcome] = {}
    for task_failures in map_tasks(measure.measure_task, tasks, label="evaluate: clips", sizes=sizes):
        failures |= task_failures

    rows, frames = _build_tables(entries, _MeasurementReader(truths, failures), dataset)
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
    for entry, row in zip(entries, rows, strict=True):
        if entry.item is not None and not entry.obedience_only:
            row |= network_scores.clips.get(entry.item.cache_entry, {})

    not_computed |= networks.not_computed
    metrics = build_metrics(rows, network_scores.rows, not_computed)
    run_info = _describe_run(request, dataset, systems, network_scores, not_computed)
    _write(request.out, rows, frames, metrics, run_info)
    unmatched_files = {system.row: system.unmatched_files for system in systems if system.unmatched_files}
    return EvaluationResult(rows, metrics, unmatched_files, sum(len(task.items) for task in tasks))


def _find_all_systems(request: EvaluateRequest, dataset: Dataset) -> list[GeneratedSystem]:
    """The rows of all folders. Raises StageError when two have the same name."""
    systems: list[GeneratedSystem] = []
    for name, folder in request.generated:
        systems += find_systems(name, folder, dataset, request.split, request.clips)
    counts = Counter([*(system.row for system in systems), *BASELINES])
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
) -> tuple[MeasureTools, dict[str, str]]:
    """What measuring needs, and which columns cannot be computed and why.

    Builds the bank of training mouths from clips other than ``clip_ids``.
    """
    bank = None
    if bank_clips := choose_bank_clips(dataset, excluded=clip_ids):
        inputs = [measure.VERSION, dataset.manifest["digest"], bank_clips, versions("opencv-python")]
        bank = entry_path(request.cache, "bank", digest("bank", *inputs), ".npz").absolute()
        if not bank.is_file():
            content = build_bank(read_clip(dataset, clip_id) for clip_id in bank_clips)
            save_entry(bank, Outcome(), {"sounds": content.sounds, "mouths": content.mouths})
    model, not_computed = None, {}
    if request.landmarks:
        try:
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
    )
    return tools, not_computed


class _MeasurementReader:
    """Reads measurements from the cache; those of ground truth mouths, which many rows need, once."""

    def __init__(self, truths: Mapping[str, MeasureItem], failures: Mapping[Path, Outcome]) -> None:
        self._failures = failures
        self._mouths: dict[str, Mouths | None] = {}
        for clip_id, item in truths.items():
            result = self.read(item)
            self._mouths[clip_id] = None if isinstance(result, Outcome) else get_mouths(result)

    def read(self, item: MeasureItem) -> Measurements | Outcome:
        """An item's measurements, or why there are none."""
        return self._failures.get(item.cache_entry) or load_measurements(item.cache_entry)

    def get_true_mouths(self, clip_id: str) -> Mouths | None:
        """Landmarks of a clip's own frames."""
        return self._mouths[clip_id]


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
    descriptions = _describe_clips(dataset, {entry.pair.clip_id for entry in entries})
    rows, frames = [], [FRAMES_SCHEMA.empty_table()]
    for entry in entries:
        result = entry.outcome if entry.item is None else reader.read(entry.item)
        rows.append(_make_clip_row(entry, result, reader, descriptions[entry.pair.clip_id]))
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
        "status": outcome.status,
        "code": outcome.code,
        "reason": outcome.reason,
        "frames": 0,
        **dict.fromkeys(COLUMNS),
    }
    if isinstance(result, Outcome):
        return row
    speech, source = (reader.get_true_mouths(name) for name in (pair.audio_clip_id, pair.clip_id))
    lengths = [len(mouths) for mouths in (speech, source) if mouths is not None]
    row["frames"] = min([len(result["identity_distances"]), *lengths])
    scores = score_clip(result, speech, source, own=pair.clip_id == pair.audio_clip_id)
    if entry.obedience_only:
        scores = {column: score for column, score in scores.items() if column == "audio_obedience"}
    return row | {column: score for column, score in scores.items() if np.isfinite(score)}


def _make_frame_rows(entry: TableEntry, measurements: Measurements, reader: _MeasurementReader) -> pa.Table:
    """A clip's rows of ``frames.parquet``."""
    n_frames = len(measurements["identity_distances"])
    curves = compute_curves(measurements, reader.get_true_mouths(entry.pair.audio_clip_id))
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
    network_scores: NetworkScores,
    not_computed: Mapping[str, str],
) -> dict[str, Any]:
    """The content of ``evaluation.json``."""
    return {
        "dataset": dataset.manifest["digest"],
        "split": request.split,
        "clips": request.clips,
        "scored": {system.row: {"folder": str(system.folder), **system.description} for system in systems},
        "seed": 0,  # of the intervals
        "versions": versions("redub", "numpy", "opencv-python", "scipy", "mediapipe", "av"),
        "metrics": {name: asdict(column) for name, column in COLUMNS.items()},
        "not_computed": dict(not_computed),
        "protocols": PROTOCOLS,
        "without_lse": dict(Counter(chain.from_iterable(network_scores.skipped.values()))),  # by reason
    }


def _write(
    out: Path, rows: Sequence[Row], frames: pa.Table, metrics: Mapping[str, Any], run_info: Mapping[str, Any]
) -> None:
    """Write all files, ``evaluation.json`` last: a folder without it is incomplete."""
    (out / RUN_INFO).unlink(missing_ok=True)
    write_rows(out / CLIPS, rows, CLIPS_SCHEMA)
    with write_atomically(out / FRAMES) as partial:
        pq.write_table(frames, partial, compression="zstd")
    for curve in DRIFT_PLOTS:
        _write_csv(out / PLOTS / f"{curve}.csv", average_curves(frames, curve))
    _write_json(out / METRICS, metrics)
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
