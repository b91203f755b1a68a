"""Which clips to show of many."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from shards.reader import Dataset
from shards.schema import ShardError


def clips_named(dataset: Dataset, clip_ids: Sequence[str]) -> list[str]:
    """The clips asked for, each once. Raises ShardError with all that the dataset does not hold."""
    unknown = [clip_id for clip_id in dict.fromkeys(clip_ids) if clip_id not in dataset.clips]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise ShardError(f"{dataset.storage.address}: holds no clip {listed}; `pipeline explain` may know why")
    return list(dict.fromkeys(clip_ids))


def clips_spread(
    dataset: Dataset, n_clips: int, *, seed: int, speaker: str | None = None, split: str | None = None
) -> list[str]:
    """Up to ``n_clips`` clips: from every split, then from as many speakers as there are, then evenly.

    Among a speaker's clips a hash of seed and id draws. Raises ShardError when there are none.
    """
    wanted = {"speaker": speaker, "split": split}
    for name, value in wanted.items():
        known = sorted({row[name] or "" for row in dataset.clips.values()})
        if value is not None and value not in known:
            raise ShardError(
                f"{dataset.storage.address}: has no {name} {value!r}; known are {_shortened(known)}"
            )
    groups: dict[tuple[str, str], list[str]] = {}
    for clip_id, row in dataset.clips.items():
        if all(value in (None, row[name]) for name, value in wanted.items()):
            groups.setdefault((row["split"], row["speaker"] or ""), []).append(clip_id)
    if not groups:
        raise ShardError(f"{dataset.storage.address}: has no clip of speaker {speaker!r} in split {split!r}")
    for members in groups.values():
        members.sort(key=lambda clip_id: _drawn(seed, clip_id), reverse=True)  # taken from the end
    from_split: Counter[str] = Counter()
    of_speaker: Counter[str] = Counter()

    def turn(group: tuple[str, str]) -> tuple[bool, int, int, bytes]:
        split, speaker = group
        return (
            from_split[split] > 0, of_speaker[speaker], from_split[split], _drawn(seed, groups[group][-1]),
        )  # fmt: skip

    shown: list[str] = []
    while groups and len(shown) < n_clips:
        group = min(groups, key=turn)
        shown.append(groups[group].pop())
        from_split[group[0]] += 1
        of_speaker[group[1]] += 1
        if not groups[group]:
            del groups[group]
    return sorted(shown, key=lambda clip_id: (dataset.clips[clip_id]["split"], clip_id))


def _drawn(seed: int, clip_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {clip_id}".encode()).digest()


def _shortened(words: Sequence[str], limit: int = 8) -> str:
    more = f", ... ({len(words)} in all)" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
