"""Clips or speakers take turns: each as often as any other, and none repeats a frame before it must."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.balance import Balance
from shards.frames import ClipTable, Numbers
from shards.reader import open_dataset
from shards.resident import build_clip_table
from shards.rng import derive_key, derive_keys, permute, permute_each
from shards.windows import Windows
from tests import datasets

SEEDS = st.integers(0, 2**64 - 1)
FAR = st.integers(0, 10**12)


def make_table(lengths: Sequence[int], groups: Sequence[int]) -> ClipTable:
    ids = [f"clip{i:02d}" for i in range(len(lengths))]
    return ClipTable.from_lengths(ids, lengths, groups=np.array(groups, np.int64))


@st.composite
def random_tables(draw: st.DrawFn) -> ClipTable:
    """Clips of any lengths, of up to six speakers that are mixed in any way."""
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    groups = draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    return make_table(lengths, groups)


def get_groups(table: ClipTable, frames: Numbers) -> Numbers:
    assert table.groups is not None
    return table.groups[table.find_clips(frames)]


@given(table=random_tables(), seed=SEEDS, start=FAR, n=st.integers(0, 300))
def test_over_any_positions_the_counts_of_two_speakers_differ_by_at_most_one(
    table: ClipTable, seed: int, start: int, n: int
) -> None:
    frames = table.epoch_order(start + np.arange(n), seed=seed)
    assert ((frames >= 0) & (frames < len(table))).all()
    assert table.groups is not None
    counts = [int((get_groups(table, frames) == group).sum()) for group in np.unique(table.groups)]
    assert max(counts) - min(counts) <= 1


@given(table=random_tables(), seed=SEEDS)
def test_no_frame_repeats_before_all_of_its_speakers_frames_are_used(table: ClipTable, seed: int) -> None:
    assert table.groups is not None
    groups = np.unique(table.groups)
    frame_groups = get_groups(table, np.arange(len(table)))
    frames = table.epoch_order(np.arange(3 * len(table) * len(groups)), seed=seed)
    for group in groups:
        own = np.flatnonzero(frame_groups == group)
        drawn = frames[frame_groups[frames] == group]
        for first in range(0, len(drawn) - len(own) + 1, len(own)):
            assert np.array_equal(np.sort(drawn[first : first + len(own)]), own)


@given(table=random_tables(), seed=SEEDS, data=st.data())
def test_a_position_has_the_same_frame_alone_among_others_and_after_a_resume(
    table: ClipTable, seed: int, data: st.DataObject
) -> None:
    start = data.draw(FAR)
    whole = table.epoch_order(start + np.arange(200), seed=seed)
    places = data.draw(st.lists(st.integers(0, 199), max_size=20))
    assert np.array_equal(table.epoch_order(start + np.array(places, int), seed=seed), whole[places])
    resumed = data.draw(st.integers(0, 199))
    assert np.array_equal(table.epoch_order(start + np.arange(resumed, 200), seed=seed), whole[resumed:])


def test_the_frames_of_a_speaker_come_in_another_order_each_time_and_for_each_seed() -> None:
    table = make_table([400, 100, 300], [0, 0, 1])
    orders = [table.epoch_order(np.arange(start, start + 2 * 500), seed=seed)[offset::2][:300]
              for start, seed in ((0, 1), (1000, 1), (0, 2)) for offset in (0, 1)]  # fmt: skip
    for i, one in enumerate(orders):
        assert not (np.diff(one) == 1).mean() > 0.05, "shuffled"
        assert all((one == other).mean() < 0.05 for other in orders[:i])


def test_without_balance_the_order_is_what_it_was() -> None:
    """Numbers that were written down before there was a balance."""
    table = ClipTable.from_lengths(["a", "b", "c"], [4, 5, 3])
    first, second = [0, 2, 1, 3, 9, 4, 10, 11, 5, 6, 8, 7], [5, 6, 10, 0, 7, 1, 11, 3, 8, 2, 4, 9]
    assert table.epoch_order(np.arange(24), seed=7).tolist() == first + second


# --- windows --------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(table=random_tables(), seed=SEEDS, k=st.integers(1, 4), epoch=st.integers(0, 10**6))
def test_in_a_window_its_speakers_take_turns(table: ClipTable, seed: int, k: int, epoch: int) -> None:
    shard_of = np.arange(len(table.ids)) % min(5, len(table.ids))
    windows, n = Windows(table, shard_of, k), len(table)
    positions = epoch * n + np.arange(n)
    frames, groups = windows.epoch_order(positions, seed=seed), get_groups(table, np.arange(n))
    shard_of_frame = np.repeat(shard_of, table.lengths)
    n_drawn = 0
    for window, run in windows.split_positions(positions, seed=seed):
        in_shards = np.isin(shard_of_frame, windows.locate_shards(window, seed=seed))
        drawn = frames[run]
        assert len(drawn) == in_shards.sum()
        assert in_shards[drawn].all(), "only frames of the window's shards"
        counts = []
        for group in np.unique(groups[in_shards]):
            own, ours = np.flatnonzero(in_shards & (groups == group)), drawn[groups[drawn] == group]
            counts.append(len(ours))
            repeats = np.bincount(np.searchsorted(own, ours), minlength=len(own))
            assert repeats.max() - repeats.min() <= 1, "no frame repeats before all are used"
        assert max(counts) - min(counts) <= 1
        n_drawn += len(drawn)
    assert n_drawn == n
    some = positions[:: max(1, n // 7)]
    assert np.array_equal(windows.epoch_order(some, seed=seed), frames[some - epoch * n])


# --- the speakers of a dataset --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "expected"), [("frames", None), ("clips", [0, 1, 2, 3]), ("speakers", [0, 1, 0, 2])]
)
def test_the_groups_of_clips_are_those_of_the_index(
    tmp_path: Path, balance: Balance, expected: list[int] | None
) -> None:
    clips = [
        datasets.pack(
            key,
            np.zeros((3, 8, 8, 3), np.uint8),
            box=(1, 3, 6, 8),
            mels=np.zeros((6, 4), np.float32),
            speaker=speaker,
        )
        for key, speaker in (("a", "s1"), ("b", "s2"), ("c", "s1"), ("d", "s9"))
    ]
    for per_shard in (1, 3):
        dataset = open_dataset(datasets.write(tmp_path / f"{per_shard}", clips, per_shard=per_shard))
        groups = build_clip_table(dataset, dataset.clips, balance).groups
        assert (None if groups is None else groups.tolist()) == expected


# --- many permutations at once --------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=20),
    seed=SEEDS,
    epoch=st.integers(0, 10**6),
    data=st.data(),
)
def test_many_permutations_at_once_are_those_of_one_after_the_other(
    sizes: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    places = np.array([data.draw(st.integers(0, size - 1)) for size in sizes])
    keys = derive_keys(derive_key(seed), np.full(len(sizes), epoch, np.uint64))
    expected = [
        int(permute(np.array([place]), size, seed=seed, epoch=epoch)[0])
        for place, size in zip(places.tolist(), sizes, strict=True)
    ]
    assert permute_each(places, sizes, keys).tolist() == expected
