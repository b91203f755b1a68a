"""Generate pairs of a dataset, all frames of a clip at once. Opens no videos and writes no files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from sampler.rollout import ClipRequest, CropFrame, FrameGenerator
from shards.background import prefetch
from shards.reader import Dataset, read_unless_damaged
from shards.schema import ClipSample, Frames, ShardError
from stages.media.pauses import flatten_pauses
from stages.mels import find_reference
from stages.sample.pairs import Pair, count_pair_frames, read_pair

# In memory beside the clips that are being generated: 200 MB of crops of 128 px.
MAX_CLIPS_AHEAD, MAX_FRAMES_AHEAD = 16, 4000


def generate_clips(
    generator: FrameGenerator,
    dataset: Dataset,
    pairs: list[Pair],
    *,
    slots: int,
    on_frame: Callable[[], None] = lambda: None,
    read: Callable[[Dataset, Pair], tuple[ClipSample, ClipSample]] = read_pair,
    skip_damaged: bool = False,
) -> Generator[tuple[Pair, Frames], None, None]:
    """Yield each pair with its frames (T, S, S, 3) as soon as the last one is generated.

    ``on_frame`` is called after each frame; ``read`` may change the pictures that it reads. A thread reads
    the next clips meanwhile, one for each slot: clips of one length end together. A pair that cannot be read
    raises ShardError, or is left out with ``skip_damaged``.
    """
    by_name = {pair.name: pair for pair in pairs}
    unfinished: dict[str, list[Frames]] = {}
    clips = _make_clip_requests(
        dataset, pairs, read, flat_pauses=generator.flat_pauses, skip_damaged=skip_damaged
    )
    with closing(prefetch(clips, choose_clips_ahead(dataset, pairs, slots))) as requests:
        for frame in generator.rollout(requests, slots=slots):
            on_frame()
            frames = unfinished.setdefault(frame.key, [])
            frames.append(frame.pixels)
            if len(frames) == count_pair_frames(dataset, by_name[frame.key]):
                yield by_name[frame.key], np.stack(unfinished.pop(frame.key))


def _make_clip_requests(
    dataset: Dataset,
    pairs: Sequence[Pair],
    read: Callable[[Dataset, Pair], tuple[ClipSample, ClipSample]],
    *,
    flat_pauses: bool,
    skip_damaged: bool,
) -> Generator[ClipRequest, None, None]:
    reference = find_reference(dataset) if flat_pauses else None
    for pair in pairs:
        request = read_unless_damaged(make_clip_request, dataset, pair, read)
        if not isinstance(request, ShardError):
            if flat_pauses:
                mels, speech = flatten_pauses(request.mels, request.speech, reference)
                request = replace(request, mels=mels, speech=speech)
            yield request
        elif not skip_damaged:
            raise request


def choose_clips_ahead(dataset: Dataset, pairs: Sequence[Pair], slots: int) -> int:
    """How many clips wait in memory to be generated, or to be written: fewer where clips are long."""
    longest = max((count_pair_frames(dataset, pair) for pair in pairs), default=1)
    return max(1, min(slots, MAX_CLIPS_AHEAD, MAX_FRAMES_AHEAD // longest))


def make_clip_request(
    dataset: Dataset,
    pair: Pair,
    read: Callable[[Dataset, Pair], tuple[ClipSample, ClipSample]] = read_pair,
) -> ClipRequest:
    """The frames that the two clips of a pair have in common, and the whole speech."""
    clip, speech = read(dataset, pair)
    n_frames = count_pair_frames(dataset, pair)
    frames = (CropFrame(clip.frames[k], clip.boxes[k]) for k in range(n_frames))
    return ClipRequest(pair.name, frames, speech.mels, speech=speech.speech)
