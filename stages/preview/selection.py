"""Select the clips of a dataset to show."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from shards.errors import shorten
from shards.reader import Dataset
from shards.schema import ShardError

MAX_VALUES = 8  # of a column, in an error message


def select_clips(dataset: Dataset, clip_ids: Sequence[str]) -> list[str]:
    """The clip ids without duplicates. Raises ShardError that names all clips the dataset does not hold."""
    unique = list(dict.fromkeys(clip_ids))
    unknown = [clip_id for clip_id in unique if clip_id not in dataset.clips]
    if unknown:
        names = _abbreviate(list(map(shorten, unknown)))
        raise ShardError(f"{dataset.storage.address}: holds no clip {names}; `pipeline explain` may know why")
    return unique


def spread_clips(
    dataset: Dataset, n_clips: int, *, seed: int, speaker: str | None = None, split: str | None = None
) -> list[str]:
    """Up to ``n_clips`` clips: from every split, then from as many speakers as possible, then evenly.

    Which clips of a speaker are selected depends on a hash of seed and clip id. Raises ShardError if no clip
    matches.
    """
    filters = {"speaker": speaker, "split": split}
    for name, value in filters.items():
        values = sorted({row[name] or "" for row in dataset.clips.values()})
        if value is not None and value not in values:
            raise ShardError(
                f"{dataset.storage.address}: has no {name} {shorten(value)}; known are {_abbreviate(values)}"
            )
    groups: dict[tuple[str, str], list[str]] = {}
    for clip_id, row in dataset.clips.items():
        if all(value in (None, row[name]) for name, value in filters.items()):
            groups.setdefault((row["split"], row["speaker"] or ""), []).append(clip_id)
    if not groups:
        raise ShardError(f"{dataset.storage.address}: has no clip of speaker {speaker!r} in split {split!r}")
    for members in groups.values():
        members.sort(key=lambda clip_id: _hash_clip(seed, clip_id), reverse=True)  # selected from the end
    per_split: Counter[str] = Counter()
    per_speaker: Counter[str] = Counter()

    def rank_group(group: tuple[str, str]) -> tuple[bool, int, int, bytes]:
        split, speaker = group
        last_clip = groups[group][-1]
        return per_split[split] > 0, per_speaker[speaker], per_split[split], _hash_clip(seed, last_clip)

    selection: list[str] = []
    while groups and len(selection) < n_clips:
        group = min(groups, key=rank_group)
        selection.append(groups[group].pop())
        per_split[group[0]] += 1
        per_speaker[group[1]] += 1
        if not groups[group]:
            del groups[group]
    return sorted(selection, key=lambda clip_id: (dataset.clips[clip_id]["split"], clip_id))


def _hash_clip(seed: int, clip_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {clip_id}".encode()).digest()


def _abbreviate(values: Sequence[str]) -> str:
    more = f", ... ({len(values)} in all)" if len(values) > MAX_VALUES else ""
    return ", ".join(values[:MAX_VALUES]) + more
