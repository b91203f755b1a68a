"""What stands in the table, row by row and clip by clip, and what is to be measured for it."""

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


@dataclass(frozen=True, slots=True)
class Cell:
    """A clip in a row of the table: the entry that tells of its frames, or what became of it."""

    row: str
    pair: Pair
    item: MeasureItem | None
    outcome: Outcome = field(default_factory=Outcome)
    obeys_only: bool = False  # a baseline's mouth beside another's speech: nothing else is asked of it


def cells_of(
    systems: Sequence[GeneratedSystem],
    own: Sequence[Pair],
    swapped: Sequence[Pair],
    dataset: Dataset,
    tools: MeasureTools,
) -> list[Cell]:
    """Every row: what was generated, then the baselines, with their own speech and beside others'."""
    cells = [
        Cell(
            system.row,
            drawing.pair,
            None
            if drawing.file is None
            else item_of(dataset, tools, "crops", drawing.pair, drawing.file, drawing.whole),
            drawing.outcome,
        )
        for system in systems
        for drawing in system.drawings
    ]
    for row, kind in BASELINES.items():
        if kind == "nearest" and not tools.bank:
            why = Outcome(DROPPED, "no_training", "no training clip is left to take mouths from")
            cells += [Cell(row, pair, None, why) for pair in own]
            continue
        cells += [Cell(row, pair, item_of(dataset, tools, kind, pair)) for pair in own]
        if tools.landmarker:
            cells += [_beside(dataset, tools, row, kind, pair) for pair in swapped]
    return cells


def _beside(dataset: Dataset, tools: MeasureTools, row: str, kind: Kind, pair: Pair) -> Cell:
    """A baseline's mouth beside another's speech. Only the nearest mel hangs on that speech; the truth of a
    swapped pair is the mouth of the speech's own clip."""
    if kind == "truth":
        shown = Pair(pair.audio_clip_id, pair.audio_clip_id)
    else:
        shown = pair if kind == "nearest" else Pair(pair.clip_id, pair.clip_id)
    return Cell(row, pair, item_of(dataset, tools, kind, shown), obeys_only=True)


def item_of(
    dataset: Dataset,
    tools: MeasureTools,
    kind: Kind,
    pair: Pair,
    crops: Path | None = None,
    whole: Path | None = None,
) -> MeasureItem:
    """What is to be measured, under a key that names all that decides the result."""
    made_from = {
        "clip": dataset.clips[pair.clip_id]["sha256"],
        "n_frames": count_pair_frames(dataset, pair),
        "own": pair.clip_id == pair.audio_clip_id,
        "landmarker": tools.landmarker_sha256,
        "versions": versions("opencv-python", "numpy", "scikit-image"),
    }
    if kind == "nearest":
        made_from |= {"speech": dataset.clips[pair.audio_clip_id]["sha256"], "bank": Path(tools.bank).stem}
    if crops is not None:
        made_from["crops"] = file_sha256(crops)
    if whole is not None:
        made_from["whole"] = file_sha256(whole)
    key = digest(STAGE, measure.VERSION, kind, made_from)
    return MeasureItem(
        kind=kind,
        clip_id=pair.clip_id,
        audio_clip_id=pair.audio_clip_id,
        n_frames=count_pair_frames(dataset, pair),
        crops="" if crops is None else str(crops.absolute()),
        entry=str(entry_path(Path(tools.cache), STAGE, key, ".npz")),
        whole="" if whole is None else str(whole.absolute()),
    )


def tasks_of(items: Iterable[MeasureItem], tools: MeasureTools, limits: LimitParams) -> list[MeasureTask]:
    """What the cache lacks, by clip."""
    groups: dict[str, dict[str, MeasureItem]] = {}
    for item in items:
        if not Path(item.entry).is_file():
            groups.setdefault(item.clip_id, {})[item.entry] = item
    return [MeasureTask(tuple(group.values()), tools, limits) for group in groups.values()]
