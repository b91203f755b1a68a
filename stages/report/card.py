"""The dataset card: counts from the manifest, the index and the ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.ledger import OK, count_by_code, is_span
from shards.reader import Dataset
from shards.schema import VIDEO_FPS
from shards.sources import read_sources
from shards.spans import count_files
from shards.table import Row
from stages import corpora
from stages.corpora.corpus import TRAIN

Floats = NDArray[np.float64]

MAX_EXAMPLES = 3  # per drop reason
MAX_FORMATS = 8  # of source files, the most frequent first
MAX_LABELS = 120  # speakers, emotions or levels, those with the most clips first


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """One split, by the index."""

    name: str
    clips: int
    frames: int
    speakers: int
    shards: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DropReason:
    """Why clips are not in the dataset."""

    code: str
    clips: int
    stages: str
    examples: tuple[Row, ...]  # rows of the ledger


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Clips per split that carry one label: a speaker, an emotion or a level."""

    label: str
    frames: int
    clips: Mapping[str, int]  # by split


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """Counts and distributions of a whole dataset."""

    name: str
    citations: tuple[str, ...]
    n_files: int  # by the ledger
    n_clips: int  # in the dataset
    n_frames: int
    n_speakers: int
    splits: tuple[SplitCounts, ...]
    drops: tuple[DropReason, ...]
    speakers: tuple[LabelCounts, ...]
    emotions: tuple[LabelCounts, ...]
    levels: tuple[LabelCounts, ...]
    formats: Mapping[str, int]  # clips of the dataset by the format of their source files
    overlaps: tuple[str, ...]  # sentences on what the other splits share with the training split
    seconds: Floats  # length of each clip
    audio_starts_ms: Floats  # audio start minus video start, by the containers' time stamps
    audio_ends_ms: Floats  # audio end minus video end


def build_card(dataset: Dataset) -> DatasetCard:
    """Summarize the ledger and the index. Raises ShardError."""
    ledger = dataset.ledger()
    rows = [row for row in ledger if row["status"] == OK and row["clip_id"] in dataset.clips]
    clips = list(dataset.clips.values())
    labels = {row["clip_id"]: row for row in rows}
    whole = [row for row in rows if not is_span(row)]  # of a file, not of what was cut out of one
    return DatasetCard(
        name=str(dataset.manifest.get("dataset", dataset.folder.name)),
        citations=_list_citations(dataset, {str(row["corpus"] or "") for row in ledger}),
        n_files=count_files(ledger),
        n_clips=len(clips),
        n_frames=sum(row["frames"] for row in clips),
        n_speakers=len({row["speaker"] for row in clips}),
        splits=_count_splits(dataset),
        drops=_count_drops(ledger),
        speakers=_count_labels(clips, {row["clip_id"]: row["speaker"] for row in clips}),
        emotions=_count_labels(clips, {clip_id: row["emotion"] for clip_id, row in labels.items()}),
        levels=_count_labels(clips, {clip_id: row["level"] for clip_id, row in labels.items()}),
        formats=dict(Counter(map(_describe_format, rows)).most_common(MAX_FORMATS)),
        overlaps=describe_overlaps(clips, {clip_id: row["sentence"] for clip_id, row in labels.items()}),
        seconds=np.array([row["frames"] / VIDEO_FPS for row in clips]),
        audio_starts_ms=_compute_offsets_ms(whole, lambda row: row["audio_start"] - row["video_start"]),
        audio_ends_ms=_compute_offsets_ms(
            whole,
            lambda row: row["audio_start"] + row["audio_seconds"] - row["video_start"] - row["video_seconds"],
        ),
    )


def _list_citations(dataset: Dataset, names: Iterable[str]) -> tuple[str, ...]:
    """What the manifest says of its sources; of a dataset of an older redub, what is known of its corpora."""
    if dataset.manifest.get("sources"):
        sources = read_sources(dataset.manifest)
        return tuple(source.citation or f"{source.name}, licence: {source.licence}" for source in sources)
    return tuple(corpora.CORPORA[name].CITATION for name in sorted(names) if name in corpora.CORPORA)


def _count_splits(dataset: Dataset) -> tuple[SplitCounts, ...]:
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in dataset.clips.values():
        rows[row["split"]].append(row)
    shards = {name: {row["shard"] for row in members} for name, members in rows.items()}
    return tuple(
        SplitCounts(
            name=name,
            clips=len(members),
            frames=sum(row["frames"] for row in members),
            speakers=len({row["speaker"] for row in members}),
            shards=len(shards[name]),
            bytes=sum(dataset.shards[shard].bytes for shard in shards[name]),
        )
        for name, members in sorted(rows.items())
    )


def _count_drops(ledger: Sequence[Row]) -> tuple[DropReason, ...]:
    """In the order of ``count_by_code``, without the clips that are in the dataset."""
    by_code: dict[str, list[Row]] = defaultdict(list)
    for row in ledger:
        by_code[row["code"] or row["status"]].append(row)
    return tuple(
        DropReason(
            code=code,
            clips=clips,
            stages=", ".join(sorted({str(row["stage"]) for row in by_code[code]})),
            examples=tuple(by_code[code][:MAX_EXAMPLES]),
        )
        for code, clips in count_by_code(ledger).items()
        if code != OK
    )


def _count_labels(
    clips: Sequence[Mapping[str, Any]], labels: Mapping[str, str | None]
) -> tuple[LabelCounts, ...]:
    """``labels`` is by clip id. The most frequent come first; clips without a label are skipped."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    frames: Counter[str] = Counter()
    for row in clips:
        label = labels.get(row["clip_id"])
        if label:
            counts[label][row["split"]] += 1
            frames[label] += row["frames"]
    order = sorted(counts, key=lambda label: (-counts[label].total(), label))
    return tuple(LabelCounts(label, frames[label], counts[label]) for label in order[:MAX_LABELS])


def _describe_format(row: Row) -> str:
    rate = f"{row['fps']:.2f} fps" if row["fps"] else "unknown rate"
    audio = f"{row['audio_codec']} {row['audio_rate']} Hz, {row['audio_channels']} channels"
    return f"{row['video_codec']} {row['width']}x{row['height']} at {rate}; {audio}"


def _compute_offsets_ms(rows: Iterable[Row], compute_seconds: Callable[[Row], float]) -> Floats:
    """Skips clips whose containers lack time stamps."""
    columns = ("audio_start", "audio_seconds", "video_start", "video_seconds")
    complete = [row for row in rows if all(row[column] is not None for column in columns)]
    return 1000 * np.array([compute_seconds(row) for row in complete], np.float64)


def describe_overlaps(
    clips: Sequence[Mapping[str, Any]], sentences: Mapping[str, str | None]
) -> tuple[str, ...]:
    """What each other split shares with the training split, one sentence per fact.

    ``sentences`` is by clip id.
    """
    train = [row for row in clips if row["split"] == TRAIN]
    train_speakers, train_sources = (
        {row[column] for row in train} for column in ("speaker", "source_sha256")
    )
    train_sentences = {sentences.get(row["clip_id"]) for row in train} - {None}
    lines = []
    for split in sorted({row["split"] for row in clips} - {TRAIN}) if train else []:
        rows = [row for row in clips if row["split"] == split]
        same_speaker = sum(row["speaker"] in train_speakers for row in rows)
        same_sentence = sum(sentences.get(row["clip_id"]) in train_sentences for row in rows)
        same_file = sum(row["source_sha256"] in train_sources for row in rows)
        lines.append(
            f"{same_speaker} of {len(rows)} {split} clips show a speaker who is also in {TRAIN}: their "
            f"metrics do not measure generalization to new speakers."
            if same_speaker
            else f"No speaker of {split} is in {TRAIN}: metrics on {split} are for unseen speakers."
        )
        if train_sentences:
            lines.append(
                f"{same_sentence} of {len(rows)} {split} clips use a sentence that is also in {TRAIN}."
            )
        if same_file:
            lines.append(f"{same_file} {split} clips have the same source bytes as a file in {TRAIN}.")
    return tuple(lines)
