"""The dataset card: what the manifest, the index and the ledger tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.ledger import OK, count_by_code
from shards.reader import Dataset
from shards.schema import VIDEO_FPS
from shards.table import Row
from stages import corpora
from stages.corpora.corpus import TRAIN

Floats = NDArray[np.float64]

EXAMPLES = 3  # of each reason
FORMATS = 8  # of source files that are listed
PEOPLE = 120  # that are listed, those with the most clips first


@dataclass(frozen=True, slots=True)
class Split:
    """One split, by the index."""

    name: str
    clips: int
    frames: int
    speakers: int
    shards: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Reason:
    """Why clips are not in the dataset."""

    code: str
    clips: int
    stages: str
    examples: tuple[Row, ...]  # rows of the ledger


@dataclass(frozen=True, slots=True)
class Share:
    """How many clips of each split carry a label: a speaker, an emotion, a level."""

    label: str
    frames: int
    clips: Mapping[str, int]  # by split


@dataclass(frozen=True, slots=True)
class Card:
    """Counts and distributions of a whole dataset."""

    name: str
    cited: tuple[str, ...]
    found: int  # files, by the ledger
    kept: int
    frames: int
    splits: tuple[Split, ...]
    reasons: tuple[Reason, ...]
    people: int
    speakers: tuple[Share, ...]  # those with the most clips
    emotions: tuple[Share, ...]
    levels: tuple[Share, ...]
    formats: Mapping[str, int]  # of the source files of kept clips
    leaks: tuple[str, ...]  # sentences on what two splits share
    seconds: Floats  # of each kept clip
    sound_starts_ms: Floats  # after the picture, by the containers' clocks
    sound_ends_ms: Floats


def card_of(dataset: Dataset) -> Card:
    """Read the ledger and put it beside the index. Raises ShardError."""
    ledger = dataset.ledger()
    kept = [row for row in ledger if row["status"] == OK and row["clip_id"] in dataset.clips]
    clips = list(dataset.clips.values())
    labels = {row["clip_id"]: row for row in kept}
    return Card(
        name=str(dataset.manifest.get("dataset", dataset.folder.name)),
        cited=_cited({str(row["corpus"] or "") for row in ledger}),
        found=len(ledger),
        kept=len(clips),
        frames=sum(row["frames"] for row in clips),
        splits=_splits(dataset),
        reasons=_reasons(ledger),
        people=len({row["speaker"] for row in clips}),
        speakers=_shares(clips, {row["clip_id"]: row["speaker"] for row in clips}),
        emotions=_shares(clips, {clip_id: row["emotion"] for clip_id, row in labels.items()}),
        levels=_shares(clips, {clip_id: row["level"] for clip_id, row in labels.items()}),
        formats=dict(Counter(map(_format, kept)).most_common(FORMATS)),
        leaks=leaks(clips, {clip_id: row["sentence"] for clip_id, row in labels.items()}),
        seconds=np.array([row["frames"] / VIDEO_FPS for row in clips]),
        sound_starts_ms=_milliseconds(kept, lambda row: row["audio_start"] - row["video_start"]),
        sound_ends_ms=_milliseconds(
            kept,
            lambda row: row["audio_start"] + row["audio_seconds"] - row["video_start"] - row["video_seconds"],
        ),
    )


def _cited(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(corpora.CORPORA[name].CITATION for name in sorted(names) if name in corpora.CORPORA)


def _splits(dataset: Dataset) -> tuple[Split, ...]:
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in dataset.clips.values():
        rows[row["split"]].append(row)
    held = {name: {row["shard"] for row in members} for name, members in rows.items()}
    return tuple(
        Split(
            name=name,
            clips=len(members),
            frames=sum(row["frames"] for row in members),
            speakers=len({row["speaker"] for row in members}),
            shards=len(held[name]),
            bytes=sum(dataset.shards[shard].bytes for shard in held[name]),
        )
        for name, members in sorted(rows.items())
    )


def _reasons(ledger: Sequence[Row]) -> tuple[Reason, ...]:
    """In the order of ``count_by_code``, without the clips that were kept."""
    by_code: dict[str, list[Row]] = defaultdict(list)
    for row in ledger:
        by_code[row["code"] or row["status"]].append(row)
    return tuple(
        Reason(
            code=code,
            clips=clips,
            stages=", ".join(sorted({str(row["stage"]) for row in by_code[code]})),
            examples=tuple(by_code[code][:EXAMPLES]),
        )
        for code, clips in count_by_code(ledger).items()
        if code != OK
    )


def _shares(clips: Sequence[Mapping[str, Any]], label_of: Mapping[str, str | None]) -> tuple[Share, ...]:
    """The most frequent first; clips without a label are left out."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    frames: Counter[str] = Counter()
    for row in clips:
        label = label_of.get(row["clip_id"])
        if label:
            counts[label][row["split"]] += 1
            frames[label] += row["frames"]
    order = sorted(counts, key=lambda label: (-counts[label].total(), label))
    return tuple(Share(label, frames[label], counts[label]) for label in order[:PEOPLE])


def _format(row: Row) -> str:
    rate = f"{row['fps']:.2f} fps" if row["fps"] else "unknown rate"
    sound = f"{row['audio_codec']} {row['audio_rate']} Hz, {row['audio_channels']} channels"
    return f"{row['video_codec']} {row['width']}x{row['height']} at {rate}; {sound}"


def _milliseconds(rows: Iterable[Row], between: Any) -> Floats:
    """Of the clips whose containers tell it."""
    columns = ("audio_start", "audio_seconds", "video_start", "video_seconds")
    told = [row for row in rows if all(row[column] is not None for column in columns)]
    return 1000 * np.array([between(row) for row in told], np.float64)


def leaks(clips: Sequence[Mapping[str, Any]], sentence_of: Mapping[str, str | None]) -> tuple[str, ...]:
    """What each other split shares with the training clips, said plainly, one sentence a fact."""
    train = [row for row in clips if row["split"] == TRAIN]
    seen, sources = ({row[column] for row in train} for column in ("speaker", "source_sha256"))
    said = {sentence_of.get(row["clip_id"]) for row in train} - {None}
    told = []
    for split in sorted({row["split"] for row in clips} - {TRAIN}) if train else []:
        rows = [row for row in clips if row["split"] == split]
        known = sum(row["speaker"] in seen for row in rows)
        same = sum(sentence_of.get(row["clip_id"]) in said for row in rows)
        twice = sum(row["source_sha256"] in sources for row in rows)
        told.append(
            f"{known} of {len(rows)} {split} clips show a speaker who is also in {TRAIN}: figures on them "
            f"tell of people the network has seen, not of new ones."
            if known
            else f"No speaker of {split} is in {TRAIN}: figures tell of new people."
        )
        if said:
            told.append(f"{same} of {len(rows)} {split} clips say a sentence that is also in {TRAIN}.")
        if twice:
            told.append(f"{twice} {split} clips are byte for byte files that are also in {TRAIN}.")
    return tuple(told)
