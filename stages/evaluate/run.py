"""Stage 8: what was drawn, beside the truth and beside mouths that cost nothing: one table.

OUT/clips.parquet        a row per row of the table and clip: what became of it, and its figures
OUT/frames.parquet       curves by frame
OUT/metrics.json         the table: means over clips with intervals, or why there is none
OUT/plots/*.csv          curves by frame, means over clips
OUT/evaluation.json      what was scored and by what; what the columns are. Written last
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
from stages.engine.outcome import Mapper, Outcome, StageError
from stages.engine.sandbox import LimitParams
from stages.evaluate import measure
from stages.evaluate.baselines import bank_clips, bank_of
from stages.evaluate.columns import COLUMNS
from stages.evaluate.measure import Measured, MeasureItem, MeasureTools, load_measured
from stages.evaluate.metrics.mouth import Mouths
from stages.evaluate.network_metrics import LSE_REAL, load_networks
from stages.evaluate.network_scores import PROTOCOLS, NetworkScores, Sources, network_scores
from stages.evaluate.predictions import GeneratedSystem, brought, systems_of
from stages.evaluate.scores import (
    CLIPS_SCHEMA,
    CURVES,
    FRAMES_SCHEMA,
    clip_scores,
    curve_means,
    curves,
    metrics_of,
    mouths_in,
)
from stages.evaluate.table import BASELINES, TRUTH, Cell, cells_of, item_of, tasks_of
from stages.media import weights
from stages.sample.pairs import Pair, make_pairs

CLIPS, FRAMES, METRICS, STORY, PLOTS = (
    "clips.parquet", "frames.parquet", "metrics.json", "evaluation.json", "plots",
)  # fmt: skip
DRIFT_PLOTS = ("psnr_box_db", "identity_distance")
BY_LANDMARKS = (
    *(name for name in COLUMNS if name.startswith(("mouth_", "opening_", "audio_obedience"))), *LSE_REAL,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What the user asked for."""

    shards: str  # a folder, or an address
    out: Path
    cache: Path  # results kept for reuse
    generated: tuple[tuple[str, Path], ...] = ()  # name, or empty, and folder
    split: str = "test"
    clips: int | None = None  # the first so many, by name; all without
    landmarks: bool = True  # look at mouths, which costs ten times what the other figures do
    landmarker: str = ""
    weights: Path | None = None  # folder of others' networks
    raw: Path | None = None  # the corpus's files, whose sound SyncNet hears
    device: str = "cpu"  # of those networks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of it, for the command to print."""

    rows: list[Row]  # of clips.parquet
    metrics: dict[str, dict[str, Any]]
    unasked: dict[str, tuple[str, ...]]  # row -> files named for no clip that was asked for
    computed: int  # clips measured and not found in the cache


def run(request: EvaluateRequest, limits: LimitParams, mapper: Mapper) -> Evaluation:
    """Score everything; what was measured before is found again. Raises StageError or ShardError."""
    with lock_folder(request.out, busy=f"--out {request.out}: another process evaluates there"):
        return _evaluate(request, limits, mapper)


def _evaluate(request: EvaluateRequest, limits: LimitParams, mapper: Mapper) -> Evaluation:
    found = locate_dataset(request.shards)
    shards = str(found.absolute()) if isinstance(found, Path) else request.shards  # for other processes
    dataset = open_dataset(found)
    own = make_pairs(dataset, request.split, "own", seed=0)[: request.clips]
    systems = brought(_systems(request, dataset), dataset, shards, request.cache, limits, mapper)
    swapped = _swapped(request, dataset, systems, own)
    heard = {name for pair in (*own, *swapped) for name in (pair.clip_id, pair.audio_clip_id)}
    tools, not_computed = _tools(request, dataset, shards, heard)

    cells = cells_of(systems, own, swapped, dataset, tools)
    truths = {name: item_of(dataset, tools, "truth", Pair(name, name)) for name in sorted(heard)}
    items = [*(cell.item for cell in cells if cell.item is not None), *truths.values()]
    tasks = tasks_of(items, tools, limits)
    sizes = [sum(item.n_frames for item in task.items) for task in tasks]
    failed: dict[str, Outcome] = {}
    for failures in mapper(measure.compute, tasks, label="evaluate: clips", sizes=sizes):
        failed |= failures

    rows, frames = _tables(cells, _Found(truths, failed), dataset)
    networks = load_networks(request.weights, with_sound=request.raw is not None, device=request.device)
    sources = Sources(dataset, request.raw, limits)
    looked_at = network_scores(_by_row(cells, rows), networks, sources, dataset, tools, truth=TRUTH)
    for cell, row in zip(cells, rows, strict=True):
        if cell.item is not None and not cell.obeys_only:
            row |= looked_at.clips.get(cell.item.entry, {})

    not_computed |= networks.not_computed
    metrics = metrics_of(rows, looked_at.rows, not_computed)
    story = _story(request, dataset, systems, looked_at, not_computed)
    _write(request.out, rows, frames, metrics, story)
    unasked = {system.row: system.unasked for system in systems if system.unasked}
    return Evaluation(rows, metrics, unasked, sum(len(task.items) for task in tasks))


def _systems(request: EvaluateRequest, dataset: Dataset) -> list[GeneratedSystem]:
    """Every row that the folders give. Raises StageError when two have one name."""
    systems: list[GeneratedSystem] = []
    for name, folder in request.generated:
        systems += systems_of(name, folder, dataset, request.split, request.clips)
    counts = Counter([*(system.row for system in systems), *BASELINES])
    for system in systems:
        if counts[system.row] > 1:
            raise StageError(f"{system.folder}: there is a row {system.row!r} already; "
                             f"name it, --generated NAME={system.folder}")  # fmt: skip
    return systems


def _swapped(
    request: EvaluateRequest, dataset: Dataset, systems: Sequence[GeneratedSystem], own: Sequence[Pair]
) -> list[Pair]:
    """Whose speech the baselines speak: what any system was asked to, or else what ``make_pairs`` says."""
    drawn = [drawing.pair for system in systems for drawing in system.drawings]
    swapped = list(dict.fromkeys(pair for pair in drawn if pair.clip_id != pair.audio_clip_id))
    if swapped or len(own) < 2:
        return swapped
    return make_pairs(dataset, request.split, "swapped", seed=0)[: request.clips]


def _tools(
    request: EvaluateRequest, dataset: Dataset, shards: str, heard: Set[str]
) -> tuple[MeasureTools, dict[str, str]]:
    """What measuring needs, and which columns it cannot give and why. Makes the bank of training mouths."""
    bank, not_computed = "", {}
    if chosen := bank_clips(dataset, without=heard):
        key = digest("bank", measure.VERSION, dataset.manifest["digest"], chosen, versions("opencv-python"))
        path = entry_path(request.cache, "bank", key, ".npz")
        if not path.is_file():
            made = bank_of(read_clip(dataset, clip_id) for clip_id in chosen)
            save_entry(path, Outcome(), {"sounds": made.sounds, "mouths": made.mouths})
        bank = str(path.absolute())
    model = ""
    if request.landmarks:
        try:
            model = str(weights.find(weights.LANDMARKER, request.landmarker).absolute())
        except StageError as err:
            if request.landmarker:
                raise
            not_computed = dict.fromkeys(BY_LANDMARKS, str(err))
    else:
        not_computed = dict.fromkeys(BY_LANDMARKS, "--no-landmarks")
    tools = MeasureTools(
        shards=shards,
        digest=dataset.manifest["digest"],
        cache=str(request.cache.absolute()),
        bank=bank,
        landmarker=model,
        landmarker_sha256=file_sha256(Path(model)) if model else "",
    )
    return tools, not_computed


class _Found:
    """What was measured, read from the cache; of true mouths, which many rows need, once."""

    def __init__(self, truths: Mapping[str, MeasureItem], failed: Mapping[str, Outcome]) -> None:
        self._failed = failed
        self._mouths: dict[str, Mouths | None] = {}
        for clip_id, item in truths.items():
            found = self(item)
            self._mouths[clip_id] = None if isinstance(found, Outcome) else mouths_in(found)

    def __call__(self, item: MeasureItem) -> Measured | Outcome:
        return self._failed.get(item.entry) or load_measured(Path(item.entry))

    def true_mouths(self, clip_id: str) -> Mouths | None:
        return self._mouths[clip_id]


def _by_row(cells: Sequence[Cell], rows: Sequence[Row]) -> dict[str, list[MeasureItem]]:
    """What networks are asked of: everything that was measured, the truth and baselines among it."""
    asked: dict[str, list[MeasureItem]] = {}
    for cell, row in zip(cells, rows, strict=True):
        if cell.item is not None and not cell.obeys_only and row["status"] == OK:
            asked.setdefault(cell.row, []).append(cell.item)
    return asked


def _about_clips(dataset: Dataset, clip_ids: Set[str]) -> dict[str, Row]:
    """Split, speaker, emotion and level of some clips."""
    told = dataset.ledger().only("clip_id", "emotion", "level")
    ledger = {row["clip_id"]: row for row in told if row["clip_id"] in clip_ids}
    return {
        clip_id: {
            "split": dataset.clips[clip_id]["split"],
            "speaker": dataset.clips[clip_id]["speaker"],
            "emotion": ledger.get(clip_id, {}).get("emotion"),
            "level": ledger.get(clip_id, {}).get("level"),
        }
        for clip_id in clip_ids
    }


def _tables(cells: Sequence[Cell], found: _Found, dataset: Dataset) -> tuple[list[Row], pa.Table]:
    """``clips.parquet``, without what networks say, and ``frames.parquet``. Each entry is read once."""
    about = _about_clips(dataset, {cell.pair.clip_id for cell in cells})
    rows, frames = [], [FRAMES_SCHEMA.empty_table()]
    for cell in cells:
        told = cell.outcome if cell.item is None else found(cell.item)
        rows.append(_row(cell, told, found, about[cell.pair.clip_id]))
        if not isinstance(told, Outcome) and not cell.obeys_only:
            frames.append(_frame_rows(cell, told, found))
    return rows, pa.concat_tables(frames).combine_chunks()


def _row(cell: Cell, told: Measured | Outcome, found: _Found, about: Row) -> Row:
    """A row of ``clips.parquet``."""
    outcome = told if isinstance(told, Outcome) else Outcome()
    row: Row = {
        "row": cell.row,
        "name": cell.pair.name,
        "clip_id": cell.pair.clip_id,
        "audio_clip_id": cell.pair.audio_clip_id,
        **about,
        "status": outcome.status,
        "code": outcome.code,
        "reason": outcome.reason,
        "frames": 0,
        **dict.fromkeys(COLUMNS),
    }
    if isinstance(told, Outcome):
        return row
    speech, source = (found.true_mouths(name) for name in (cell.pair.audio_clip_id, cell.pair.clip_id))
    lengths = [len(mouths) for mouths in (speech, source) if mouths is not None]
    row["frames"] = min([len(told["identity_distances"]), *lengths])
    own = cell.pair.clip_id == cell.pair.audio_clip_id
    scores = clip_scores(told, speech, source, own=own)
    if cell.obeys_only:
        scores = {column: score for column, score in scores.items() if column == "audio_obedience"}
    return row | {column: score for column, score in scores.items() if np.isfinite(score)}


def _frame_rows(cell: Cell, told: Measured, found: _Found) -> pa.Table:
    """A clip's rows of ``frames.parquet``."""
    n_frames = len(told["identity_distances"])
    series = curves(told, found.true_mouths(cell.pair.audio_clip_id))
    values = [series.get(curve, np.full(n_frames, np.nan)) for curve in CURVES]
    columns = [
        pa.array([cell.row] * n_frames),
        pa.array([cell.pair.name] * n_frames),
        pa.array(np.arange(n_frames, dtype=np.int32)),
        *(pa.array(curve.astype(np.float32), mask=~np.isfinite(curve)) for curve in values),
    ]
    return pa.Table.from_arrays(columns, schema=FRAMES_SCHEMA)


def _story(
    request: EvaluateRequest,
    dataset: Dataset,
    systems: Sequence[GeneratedSystem],
    looked_at: NetworkScores,
    not_computed: Mapping[str, str],
) -> dict[str, Any]:
    """What was scored, by what, and what the columns are."""
    return {
        "dataset": dataset.manifest["digest"],
        "split": request.split,
        "clips": request.clips,
        "scored": {system.row: {"folder": str(system.folder), **system.story} for system in systems},
        "seed": 0,  # of the intervals
        "versions": versions("redub", "numpy", "opencv-python", "scipy", "mediapipe", "av"),
        "metrics": {name: asdict(column) for name, column in COLUMNS.items()},
        "not_computed": dict(not_computed),
        "protocols": PROTOCOLS,
        "without_lse": dict(Counter(chain.from_iterable(looked_at.skipped.values()))),  # clips by reason
    }


def _write(
    out: Path, rows: Sequence[Row], frames: pa.Table, metrics: Mapping[str, Any], story: Mapping[str, Any]
) -> None:
    """All files, the story last: a folder without it is not whole."""
    (out / STORY).unlink(missing_ok=True)
    write_rows(out / CLIPS, rows, CLIPS_SCHEMA)
    with write_atomically(out / FRAMES) as partial:
        pq.write_table(frames, partial, compression="zstd")
    for curve in DRIFT_PLOTS:
        _write_csv(out / PLOTS / f"{curve}.csv", curve_means(frames, curve))
    _write_json(out / METRICS, metrics)
    _write_json(out / STORY, story)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with write_atomically(path) as partial, partial.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
