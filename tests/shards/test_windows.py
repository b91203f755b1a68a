"""The order in windows: each frame once an epoch, from few shards at a time, however it is divided."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.frames import ClipTable
from shards.windows import Window, Windows

SEEDS = st.integers(0, 2**64 - 1)


@st.composite
def random_windows(draw: st.DrawFn) -> tuple[Windows, list[int], list[int]]:
    """Windows over clips of any lengths in any shards; the lengths; which shard each clip lies in."""
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    shard_ids = draw(st.lists(st.integers(0, 7), min_size=len(lengths), max_size=len(lengths)))
    shard_of = [sorted(set(shard_ids)).index(shard) for shard in shard_ids]  # no shard is empty
    table = ClipTable.from_lengths([f"clip{i:02d}" for i in range(len(lengths))], lengths)
    return Windows(table, shard_of, draw(st.integers(1, 9))), lengths, shard_of


@given(world=random_windows(), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_an_epoch_holds_each_frame_once_and_a_window_those_of_its_k_shards(
    world: tuple[Windows, list[int], list[int]], seed: int, epoch: int
) -> None:
    windows, lengths, shard_of = world
    n = sum(lengths)
    positions = epoch * n + np.arange(n)
    frames = windows.epoch_order(positions, seed=seed)
    assert np.array_equal(np.sort(frames), np.arange(n))

    shard_of_frame = np.repeat(shard_of, lengths)
    place = 0
    for number, (window, in_window) in enumerate(windows.split_positions(positions, seed=seed)):
        assert window == Window(epoch, number)
        shards = windows.locate_shards(window, seed=seed)
        assert 1 <= len(shards) <= windows.size
        length = int(np.isin(shard_of_frame, shards).sum())
        assert in_window == slice(place, place + length)
        assert set(shard_of_frame[frames[in_window]]) == set(shards)
        assert windows.find_windows(positions[in_window], seed=seed) == [window]
        place += length
    assert place == n


@given(world=random_windows(), seed=SEEDS, data=st.data())
def test_a_position_has_the_same_frame_alone_and_among_others(
    world: tuple[Windows, list[int], list[int]], seed: int, data: st.DataObject
) -> None:
    windows, lengths, _ = world
    stream = windows.epoch_order(np.arange(3 * sum(lengths)), seed=seed)
    places = data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=20))
    assert np.array_equal(windows.epoch_order(np.array(places, int), seed=seed), stream[places])


def test_the_order_depends_on_seed_epoch_k_and_the_shards() -> None:
    table = ClipTable.from_lengths([f"clip{i:02d}" for i in range(60)], [25] * 60)
    n, shard_of = len(table), np.arange(60) % 12

    def order(k: int = 4, seed: int = 0, epoch: int = 0, shards: np.ndarray = shard_of) -> np.ndarray:
        return Windows(table, shards, k).epoch_order(epoch * n + np.arange(n), seed=seed)

    assert np.array_equal(order(), order())
    for other in (order(seed=1), order(epoch=1)):
        assert (order() == other).sum() <= 7, "two independent orders (Montmort)"
    for other in (order(k=3), order(shards=shard_of[::-1])):
        assert not np.array_equal(order(), other)


def test_a_batch_mixes_the_clips_of_its_window() -> None:
    """64 frames of 8 shards of 64 clips come from as many distinct clips as independent draws would."""
    table = ClipTable.from_lengths([f"clip{i:04d}" for i in range(2048)], [75] * 2048)
    windows = Windows(table, np.arange(2048) // 64, 8)
    batches = windows.epoch_order(np.arange(64 * 200), seed=0).reshape(200, 64) // 75
    mean_clips = np.mean([len(set(batch)) for batch in batches.tolist()])
    expected = 512 * (1 - (1 - 1 / 512) ** 64)
    assert abs(mean_clips - expected) < 0.5
