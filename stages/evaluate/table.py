"""The rows of the table, clip by clip, and what must be measured for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.checksum import file_sha256
from shards.ledger import DROPPED
from shards.reader import Dataset
from stages.engine.cache import digest, entry_path, versions
from stages.engine.outcome import Outcome
from stages.engine.sandbox import LimitParams
from stages.evaluate import measure
from stages.evaluate.measure import Kind, MeasureItem, MeasureTask, MeasureTools
from stages.evaluate.predictions import GeneratedSystem
from stages.sample.pairs import Pair, count_pair_frames

STAGE = "evaluate"
TRUTH, FROZEN, PREVIOUS, NEAREST = "ground truth", "frozen mouth", "previous frame", "nearest mel"
BASELINES: dict[str, Kind] = {TRUTH: "truth", FROZEN: "held", PREVIOUS: "previous", NEAREST: "nearest"}
MEAN_OPENING = "mean opening by frame number"  # a curve of the training split, without frames
NOT_GENERATED = (*BASELINES, MEAN_OPENING)
NO_TRAINING = Outcome(DROPPED, "no_training", "no training clip is left to take mouths from")


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A clip in a row of the table: the item that measures its frames, or why there is none."""

    row: str
    pair: Pair
    item: MeasureItem | None  # None as well for MEAN_OPENING, whose curve all clips share
    outcome: Outcome = field(default_factory=Outcome)
    obedience_only: bool = False  # a baseline with another clip's speech: it has no other metric


def list_entries(
    systems: Sequence[GeneratedSystem],
    own: Sequence[Pair],
    swapped: Sequence[Pair],
    dataset: Dataset,
    tools: MeasureTools,
) -> list[TableEntry]:
    """Every row: the generated systems, then the baselines, with their own speech and with others'."""
    entries = [
        TableEntry(
            system.row,
            clip.pair,
            None
            if clip.file is None
            else make_item(dataset, tools, "crops", clip.pair, clip.file, clip.full_frame_video),
            clip.outcome,
        )
        for system in systems
        for clip in system.clips
    ]
    for row, kind in BASELINES.items():
        if kind == "nearest" and tools.bank is None:
            entries += [TableEntry(row, pair, None, NO_TRAINING) for pair in own]
            continue
        entries += [TableEntry(row, pair, make_item(dataset, tools, kind, pair)) for pair in own]
        if tools.landmarker is not None:
            entries += [_make_swapped_entry(dataset, tools, row, kind, pair) for pair in swapped]
    if tools.landmarker is not None:
        outcome = NO_TRAINING if tools.bank is None else Outcome()
        entries += [TableEntry(MEAN_OPENING, pair, None, outcome) for pair in own]
        entries += [TableEntry(MEAN_OPENING, pair, None, outcome, obedience_only=True) for pair in swapped]
    return entries


def _make_swapped_entry(
    dataset: Dataset, tools: MeasureTools, row: str, kind: Kind, pair: Pair
) -> TableEntry:
    """A baseline with another clip's speech.

    Only the nearest mel depends on that speech. The ground truth of a swapped pair is the mouth of the
    speech's own clip.
    """
    if kind == "truth":
        item_pair = Pair(pair.audio_clip_id, pair.audio_clip_id)
    else:
        item_pair = pair if kind == "nearest" else Pair(pair.clip_id, pair.clip_id)
    return TableEntry(row, pair, make_item(dataset, tools, kind, item_pair), obedience_only=True)


def make_item(
    dataset: Dataset,
    tools: MeasureTools,
    kind: Kind,
    pair: Pair,
    crops: Path | None = None,
    full_frame_video: Path | None = None,
) -> MeasureItem:
    """What to measure, with a cache key of everything that the result depends on."""
    inputs = {
        "clip": dataset.clips[pair.clip_id]["sha256"],
        "n_frames": count_pair_frames(dataset, pair),
        "own": pair.clip_id == pair.audio_clip_id,
        "landmarker": tools.landmarker_sha256,
        "versions": versions("opencv-python", "numpy", "scikit-image"),
    }
    if tools.mouths_only:
        inputs["mouths_only"] = True
    if kind == "nearest":
        assert tools.bank is not None, "without a bank there are no such items"
        inputs |= {"speech": dataset.clips[pair.audio_clip_id]["sha256"], "bank": tools.bank.stem}
    if crops is not None:
        inputs["crops"] = file_sha256(crops)
    if full_frame_video is not None:
        inputs["whole"] = file_sha256(full_frame_video)
    key = digest(STAGE, measure.VERSION, kind, inputs)
    return MeasureItem(
        kind=kind,
        clip_id=pair.clip_id,
        audio_clip_id=pair.audio_clip_id,
        n_frames=count_pair_frames(dataset, pair),
        crops=None if crops is None else crops.absolute(),
        cache_entry=entry_path(tools.cache, STAGE, key, ".npz"),
        full_frame_video=None if full_frame_video is None else full_frame_video.absolute(),
    )


def make_tasks(items: Iterable[MeasureItem], tools: MeasureTools, limits: LimitParams) -> list[MeasureTask]:
    """One task per clip with the items that the cache does not have."""
    by_clip: dict[str, dict[Path, MeasureItem]] = {}
    for item in items:
        if not item.cache_entry.is_file():
            by_clip.setdefault(item.clip_id, {})[item.cache_entry] = item
    return [MeasureTask(tuple(clip_items.values()), tools, limits) for clip_items in by_clip.values()]
