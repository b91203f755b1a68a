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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from sampler.metrics.mouth import Mouths
from shards.atomic import clear_partials, written_whole
from shards.checksum import file_sha256
from shards.index import LEDGER_NAME
from shards.ledger import OK, read_ledger
from shards.reader import Dataset, open_dataset, read_clip
from shards.storage import at_hand
from shards.table import Row, write_rows
from stages import measure, weights
from stages.baselines import bank_clips, bank_of
from stages.cache import digest, entry_path, save_entry, versions
from stages.columns import COLUMNS
from stages.generated import System, brought, systems_of
from stages.measure import Item, Kind, Measured, MeasureTask, Tools, load_measured
from stages.network_metrics import load_networks
from stages.network_scores import PROTOCOLS, NetworkScores, Voices, network_scores
from stages.samples import Pair, length_of, pairs_of
from stages.sandbox import LimitParams
from stages.scores import (
    CLIPS_SCHEMA,
    CURVES,
    FRAMES_SCHEMA,
    clip_scores,
    curve_means,
    curves,
    metrics_of,
    mouths_in,
)
from stages.work import Mapper, Outcome, StageError

STAGE = "evaluate"
CLIPS, FRAMES, METRICS, STORY, PLOTS = (
    "clips.parquet", "frames.parquet", "metrics.json", "evaluation.json", "plots",
)  # fmt: skip
LOCK_NAME = ".lock"
TRUTH, FROZEN, PREVIOUS, NEAREST = "ground truth", "frozen mouth", "previous frame", "nearest mel"
BASELINES: dict[str, Kind] = {TRUTH: "truth", FROZEN: "held", PREVIOUS: "previous", NEAREST: "nearest"}
DRIFT_PLOTS = ("psnr_box_db", "identity_distance")
MOUTHS = tuple(name for name in COLUMNS if name.startswith(("mouth_", "opening_", "audio_obedience")))


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What the user asked for."""

    shards: str  # a folder, or an address that fsspec reads
    out: Path
    cache: Path  # results kept for reuse
    generated: tuple[tuple[str, Path], ...] = ()  # name, or empty, and folder
    split: str = "test"
    clips: int | None = None  # the first so many, by name; all without
    landmarks: bool = True  # look at mouths, which costs a hundred times what the other figures do
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


@dataclass(frozen=True, slots=True)
class Cell:
    """A clip in a row of the table: the entry that tells of its frames, or what became of it."""

    row: str
    pair: Pair
    item: Item | None
    outcome: Outcome = field(default_factory=Outcome)
    obeys_only: bool = False  # a baseline's mouth beside another's speech: nothing else is asked of it


def run(request: EvaluateRequest, limits: LimitParams, mapper: Mapper) -> Evaluation:
    """Score everything; what was measured before is found again. Raises StageError or ShardError."""
    request.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(request.out / LOCK_NAME, blocking=False):
            clear_partials(request.out)
            return _evaluate(request, limits, mapper)
    except Timeout as err:
        raise StageError(f"--out {request.out}: another process evaluates there") from err


def _evaluate(request: EvaluateRequest, limits: LimitParams, mapper: Mapper) -> Evaluation:
    dataset = open_dataset(at_hand(request.shards))
    own = pairs_of(dataset, request.split, "own", seed=0)[: request.clips]
    systems = _systems(request, dataset)
    systems = brought(systems, dataset, request.cache, limits, mapper)
    tools, not_computed = _tools(request, dataset, [pair.clip_id for pair in own])
    cells = _cells(request, dataset, tools, own, systems)
    named = sorted({name for cell in cells for name in (cell.pair.clip_id, cell.pair.audio_clip_id)})
    truths = {clip_id: _item(dataset, tools, "truth", Pair(clip_id, clip_id)) for clip_id in named}
    items = [cell.item for cell in cells if cell.item is not None] + list(truths.values())
    tasks = _tasks(items, tools, limits)
    failed: dict[str, Outcome] = {}
    sizes = [sum(item.n_frames for item in task.items) for task in tasks]
    for failures in mapper(measure.compute, tasks, label="evaluate: clips", sizes=sizes):
        failed |= failures
    found = _Found(truths, failed)
    networks = load_networks(request.weights, with_sound=request.raw is not None, device=request.device)
    not_computed |= networks.not_computed
    voices = Voices(dataset, request.raw, limits)
    about = _about_clips(dataset)
    rows, curves_of_clips = [], [FRAMES_SCHEMA.empty_table()]
    for cell in cells:
        told = cell.outcome if cell.item is None else found(cell.item)
        rows.append(_row(cell, told, found, about[cell.pair.clip_id]))
        if not isinstance(told, Outcome) and not cell.obeys_only:
            curves_of_clips.append(_frame_rows(cell, told, found))
    looked_at = network_scores(_by_row(cells, rows), networks, voices, dataset, tools, truth=TRUTH)
    for cell, row in zip(cells, rows, strict=True):
        if cell.item is not None and not cell.obeys_only:
            row |= looked_at.clips.get(cell.item.entry, {})
    metrics = metrics_of(rows, looked_at.rows, not_computed)
    (request.out / STORY).unlink(missing_ok=True)  # what is there is not whole any more
    write_rows(request.out / CLIPS, rows, CLIPS_SCHEMA)
    frames = pa.concat_tables(curves_of_clips).combine_chunks()
    with written_whole(request.out / FRAMES) as partial:
        pq.write_table(frames, partial, compression="zstd")
    for curve in DRIFT_PLOTS:
        _write_csv(request.out / PLOTS / f"{curve}.csv", curve_means(frames, curve))
    _write_json(request.out / METRICS, metrics)
    _write_json(request.out / STORY, _story(request, dataset, systems, looked_at, not_computed))
    unasked = {system.row: system.unasked for system in systems if system.unasked}
    return Evaluation(rows, metrics, unasked, sum(len(task.items) for task in tasks))


def _systems(request: EvaluateRequest, dataset: Dataset) -> list[System]:
    """Every row that the folders give. Raises StageError when two have one name."""
    systems: list[System] = []
    for name, folder in request.generated:
        systems += systems_of(name, folder, dataset, request.split, request.clips)
    counts = Counter([*(system.row for system in systems), *BASELINES])
    for system in systems:
        if counts[system.row] > 1:
            raise StageError(f"{system.folder}: there is a row {system.row!r} already; "
                             f"name it, --generated NAME={system.folder}")  # fmt: skip
    return systems


def _tools(request: EvaluateRequest, dataset: Dataset, asked: Sequence[str]) -> tuple[Tools, dict[str, str]]:
    """What measuring needs, and which columns it cannot give and why. Makes the bank of training mouths."""
    bank, not_computed = "", {}
    if chosen := bank_clips(dataset, without=asked):
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
            not_computed = dict.fromkeys(MOUTHS, str(err))
    else:
        not_computed = dict.fromkeys(MOUTHS, "--no-landmarks")
    model_sha256 = file_sha256(Path(model)) if model else ""
    shards, cache = str(dataset.folder.absolute()), str(request.cache.absolute())
    return Tools(shards, cache, bank, model, model_sha256), not_computed


def _item(dataset: Dataset, tools: Tools, kind: Kind, pair: Pair, crops: Path | None = None) -> Item:
    """What is to be measured, under a key that names all that decides the result."""
    made_from = {
        "clip": dataset.clips[pair.clip_id]["sha256"],
        "n_frames": length_of(dataset, pair),
        "own": pair.clip_id == pair.audio_clip_id,
        "landmarker": tools.landmarker_sha256,
        "versions": versions("opencv-python", "numpy"),
    }
    if kind == "nearest":
        made_from |= {"speech": dataset.clips[pair.audio_clip_id]["sha256"], "bank": Path(tools.bank).stem}
    if crops is not None:
        made_from["crops"] = file_sha256(crops)
    key = digest(STAGE, measure.VERSION, kind, made_from)
    return Item(
        kind=kind,
        clip_id=pair.clip_id,
        audio_clip_id=pair.audio_clip_id,
        n_frames=length_of(dataset, pair),
        crops="" if crops is None else str(crops.absolute()),
        entry=str(entry_path(Path(tools.cache), STAGE, key, ".npz")),
    )


def _cells(
    request: EvaluateRequest, dataset: Dataset, tools: Tools, own: Sequence[Pair], systems: Sequence[System]
) -> list[Cell]:
    """Every row of the table, clip by clip: what was generated, then the baselines."""
    cells = [
        Cell(
            system.row,
            drawing.pair,
            None if drawing.file is None else _item(dataset, tools, "crops", drawing.pair, drawing.file),
            drawing.outcome,
        )
        for system in systems
        for drawing in system.drawings
    ]
    swapped = list(dict.fromkeys(cell.pair for cell in cells if cell.pair.clip_id != cell.pair.audio_clip_id))
    if not swapped and len(own) > 1:
        swapped = pairs_of(dataset, request.split, "swapped", seed=0)[: request.clips]
    for row, kind in BASELINES.items():
        if kind == "nearest" and not tools.bank:
            why = Outcome(
                "dropped", "no_training", "no clip of the training split is left to take mouths from"
            )
            cells += [Cell(row, pair, None, why) for pair in own]
            continue
        cells += [Cell(row, pair, _item(dataset, tools, kind, pair)) for pair in own]
        if tools.landmarker:
            cells += [_beside(dataset, tools, row, kind, pair) for pair in swapped]
    return cells


def _beside(dataset: Dataset, tools: Tools, row: str, kind: Kind, pair: Pair) -> Cell:
    """A baseline's mouth beside another's speech. Only the nearest mel hangs on that speech; the truth of a
    swapped pair is the mouth of the speech's own clip."""
    if kind == "truth":
        shown = Pair(pair.audio_clip_id, pair.audio_clip_id)
    else:
        shown = pair if kind == "nearest" else Pair(pair.clip_id, pair.clip_id)
    return Cell(row, pair, _item(dataset, tools, kind, shown), obeys_only=True)


def _tasks(items: Iterable[Item], tools: Tools, limits: LimitParams) -> list[MeasureTask]:
    """What the cache lacks: a clip's baselines together, each generated clip by itself."""
    groups: dict[tuple[str, str], dict[str, Item]] = {}
    for item in items:
        if not Path(item.entry).is_file():
            groups.setdefault((item.clip_id, item.crops), {})[item.entry] = item
    return [MeasureTask(tuple(group.values()), tools, limits) for group in groups.values()]


class _Found:
    """What was measured, read from the cache; of true mouths, which many rows need, once."""

    def __init__(self, truths: Mapping[str, Item], failed: Mapping[str, Outcome]) -> None:
        self._failed = failed
        self._mouths: dict[str, Mouths | None] = {}
        for clip_id, item in truths.items():
            found = self(item)
            self._mouths[clip_id] = None if isinstance(found, Outcome) else mouths_in(found)

    def __call__(self, item: Item) -> Measured | Outcome:
        return self._failed.get(item.entry) or load_measured(Path(item.entry))

    def true_mouths(self, clip_id: str) -> Mouths | None:
        return self._mouths[clip_id]


def _by_row(cells: Sequence[Cell], rows: Sequence[Row]) -> dict[str, list[Item]]:
    """What networks are asked of: everything that was measured, the truth and baselines among it."""
    asked: dict[str, list[Item]] = {}
    for cell, row in zip(cells, rows, strict=True):
        if cell.item is not None and not cell.obeys_only and row["status"] == OK:
            asked.setdefault(cell.row, []).append(cell.item)
    return asked


def _about_clips(dataset: Dataset) -> dict[str, Row]:
    """Split, speaker, emotion and level of each clip."""
    ledger = {row["clip_id"]: row for row in read_ledger(dataset.folder / LEDGER_NAME)}
    return {
        clip_id: {
            "split": row["split"],
            "speaker": row["speaker"],
            "emotion": ledger.get(clip_id, {}).get("emotion"),
            "level": ledger.get(clip_id, {}).get("level"),
        }
        for clip_id, row in dataset.clips.items()
    }


def _row(cell: Cell, told: Measured | Outcome, found: _Found, about: Row) -> Row:
    """A row of ``clips.parquet``, without what networks say."""
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
    row["frames"] = min(len(told["identity_distances"]), *lengths)
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
    systems: Sequence[System],
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
        "without_lse": dict(Counter(looked_at.skipped.values())),  # clips by reason
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with written_whole(path) as partial, partial.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
