"""The mean and the spread of each speech feature of a dataset, by which a network standardises them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.frames import NetworkInput
from shards.index import SPEECH
from shards.reader import Dataset, read_members
from shards.schema import SPEECH_MEMBER, check_speech, npy_to_array

MAX_CLIPS = 64  # that are read: 64 of 3 s have 10,000 rows
MIN_SHARE = 1e-4  # of the mean spread: a feature that varies by rounding alone is not blown up


class SpeechScale(NamedTuple):
    """Of each feature, (D,) float32."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]  # above 0


def measure_speech_scale(
    dataset: Dataset, clip_ids: Sequence[str], network_input: NetworkInput
) -> SpeechScale:
    """Measure the features of some of the clips, spread evenly over all of them by id.

    Reads no other member. The result does not depend on how clips are sharded. Raises ShardError for a clip
    without features, or with others than the network takes.
    """
    ids = sorted(clip_ids)
    network_input.check_members(dataset.clips, ids, dataset.storage.address)
    places = np.linspace(0, len(ids) - 1, min(MAX_CLIPS, len(ids))).round().astype(int)
    n_rows, total, total_square = 0, np.zeros(1), np.zeros(1)
    for place in places:  # one by one: the features of an hour take half a gigabyte
        rows = _read_speech(dataset, ids[place], network_input).astype(np.float64)
        n_rows += len(rows)
        total, total_square = total + rows.sum(axis=0), total_square + np.square(rows).sum(axis=0)
    mean = total / n_rows
    std = np.sqrt(np.maximum(total_square / n_rows - mean**2, 0))
    floor = MIN_SHARE * std.mean() or 1.0  # all values may be the same
    return SpeechScale(mean.astype(np.float32), np.maximum(std, floor).astype(np.float32))


def _read_speech(dataset: Dataset, clip_id: str, network_input: NetworkInput) -> NDArray[np.float16]:
    name = f"{dataset.storage.address}: {clip_id}"
    data = read_members(dataset, clip_id, [SPEECH])[SPEECH]
    speech = npy_to_array(data, f"{name}.{SPEECH_MEMBER}")
    check_speech(name, dataset.clips[clip_id]["frames"], speech)
    network_input.check_speech(name, speech)
    return speech
