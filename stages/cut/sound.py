"""What is heard in a file, frame by frame: whether somebody speaks, how loud, and what a mouth would do."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import speech
from stages.cut.near_duplicates import compute_prints
from stages.engine.cache import save_entry
from stages.engine.outcome import Drop, Outcome
from stages.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, mix_to_mono, read_channels
from stages.media.stretches import Stretch, find_stretches
from stages.mels import count_samples
from stages.metrics.sync import Prediction, predict_mouth

Floats = NDArray[np.float32]

# What is heard before and after a chunk: the detector remembers what was said, the encoder's windows reach
# 1.3 s and their level 2.3 s, a fingerprint 0.3 s. A multiple of STEP_FRAMES.
MARGIN_FRAMES = 128  # 5.12 s
# Sound is read from a multiple of these on, so that the windows of all chunks of a file lie on one grid: of
# the encoder, which begin every 0.32 s, and of the detector, 32 ms each.
STEP_FRAMES = 8
SILENT_LEVEL = -100.0  # dB below full scale; no frame has less

# As in get_speech_timestamps of the package silero-vad: speech begins above one and ends below the other.
START_PROBABILITY = 0.5
END_PROBABILITY = 0.35
MIN_SPEECH_FRAMES = 6  # 0.25 s: shorter ones are knocks and breaths
PADDING_FRAMES = 4  # 0.16 s: the detector hears soft beginnings and ends of words late

PAUSE_FRAMES = 5  # a cut is as good as what is heard in 0.2 s around it
CUT_COST = 0.5  # of one cut more; the middle of a word costs 1
QUIET_DB = 30.0  # below a stretch's loud frames: as much a pause as one that the detector is sure of


def hear_chunk(
    path: Path, start: float, first: int, n_frames: int, encoder: Path, voice: Path, entry: Path
) -> Outcome:
    """Hear frames ``first`` to ``first + n_frames - 1`` of a file, and save arrays. Runs in the sandbox.

    ``start`` is when frame 0 is shown, seconds on the container's clock; ``encoder`` and ``voice`` are the
    weights. Of each frame: ``speech`` (n,) float32, the probability that somebody speaks; ``level`` (n,)
    float32, dB below full scale, so negative; ``prediction`` (n, 2) float32, what ``predict_mouth`` hears;
    ``prints`` (n,) uint32. Raises Drop where the file has no sound, or it is damaged.
    """
    begin = max(0, (first - MARGIN_FRAMES) // STEP_FRAMES * STEP_FRAMES)
    n_heard = first + n_frames + MARGIN_FRAMES - begin
    channels = read_channels(path, start + begin * SAMPLES_PER_FRAME / SAMPLE_RATE, count_samples(n_heard))
    outcome, chunk = Outcome(), slice(first - begin, first - begin + n_frames)
    try:
        sound, notes = mix_to_mono(channels)
    except Drop as err:
        if err.code != "silent":
            raise
        arrays = _make_silence(n_frames)
    else:
        outcome = Outcome(notes=tuple(notes))
        arrays = {
            "speech": hear_speech(sound, n_heard, voice)[chunk],
            "level": measure_level(sound, n_heard)[chunk],
            "prediction": hear_mouth(sound, encoder)[chunk],
            "prints": compute_prints(sound, chunk.start * SAMPLES_PER_FRAME, n_frames),
        }
    assert all(len(values) == n_frames for values in arrays.values()), f"{path}: frame without a value"
    save_entry(entry, outcome, arrays)
    return outcome


def _make_silence(n_frames: int) -> dict[str, NDArray[Any]]:
    return {
        "speech": np.zeros(n_frames, np.float32),
        "level": np.full(n_frames, SILENT_LEVEL, np.float32),
        "prediction": np.zeros((n_frames, 2), np.float32),
        "prints": np.zeros(n_frames, np.uint32),
    }


def hear_speech(sound: Floats, n_frames: int, voice: Path) -> Floats:
    """The probability of speech in each frame, (n_frames,): the greatest of the windows that it overlaps."""
    from stages.media.voice import WINDOW_SAMPLES, compute_voice, load_detector

    windows = compute_voice(sound, load_detector(voice))
    begins = np.arange(n_frames) * SAMPLES_PER_FRAME
    firsts = np.minimum(begins // WINDOW_SAMPLES, len(windows) - 1)
    lasts = np.minimum((begins + SAMPLES_PER_FRAME - 1) // WINDOW_SAMPLES, len(windows) - 1)
    assert SAMPLES_PER_FRAME <= 2 * WINDOW_SAMPLES, "a frame overlaps three windows at most"
    middles = np.minimum(firsts + 1, lasts)
    greatest: Floats = np.maximum(np.maximum(windows[firsts], windows[lasts]), windows[middles])
    return greatest


def measure_level(sound: Floats, n_frames: int) -> Floats:
    """The level of each frame, (n_frames,), dB below full scale, SILENT_LEVEL at least."""
    padded = np.pad(sound, (0, n_frames * SAMPLES_PER_FRAME - len(sound))).reshape(n_frames, -1)
    power = np.einsum("fn,fn->f", padded, padded) / SAMPLES_PER_FRAME
    floor = np.float32(SILENT_LEVEL)
    level: Floats = 10 * np.log10(np.maximum(power, np.float32(10 ** (SILENT_LEVEL / 10))))
    np.maximum(level, floor, out=level)  # some processors round silence to a little less
    return level


def hear_mouth(sound: Floats, encoder: Path) -> Prediction:
    """What a mouth that says this would do in each frame, (n_frames, 2), by ``predict_mouth``."""
    return predict_mouth(speech.compute_speech_rows(sound, speech.load_encoder(encoder))).astype(np.float32)


def warm_up(arguments: Mapping[str, Any]) -> None:
    """Load torch, librosa and both networks' modules before the first chunk's deadline starts."""
    import stages.media.voice  # noqa: F401

    speech.warm_up(arguments)


def find_speech(speech: NDArray[np.floating], min_pause_frames: int) -> list[Stretch]:
    """The stretches in which somebody speaks, by the probability in each frame, (T,).

    They begin where it reaches START_PROBABILITY and end where it falls below END_PROBABILITY, for
    ``min_pause_frames`` at least; PADDING_FRAMES are added on either side. They do not overlap.
    """
    # A frame between both probabilities is what the last frame was that is outside of them.
    above, below = speech >= START_PROBABILITY, speech < END_PROBABILITY
    decided = np.where(above | below, np.arange(len(speech)), -1)
    last = np.maximum.accumulate(decided) if len(speech) else decided
    is_speech = (last >= 0) & above[last]
    stretches: list[list[int]] = []
    for begin, end in find_stretches(is_speech):
        if stretches and begin - stretches[-1][1] < min_pause_frames:
            stretches[-1][1] = end
        else:
            stretches.append([begin, end])
    stretches = [[begin, end] for begin, end in stretches if end - begin >= MIN_SPEECH_FRAMES]
    padded = [[max(0, a - PADDING_FRAMES), min(len(speech), b + PADDING_FRAMES)] for a, b in stretches]
    for (own, following), ((_, end), (begin, _)) in zip(pairwise(padded), pairwise(stretches), strict=True):
        if own[1] > following[0]:
            own[1] = following[0] = (end + begin) // 2
    return [(begin, end) for begin, end in padded]


def cut_at_pauses(
    speech: NDArray[np.floating],
    stretch: Stretch,
    min_frames: int,
    max_frames: int,
    level: NDArray[np.floating] | None = None,
) -> list[Stretch]:
    """A stretch as pieces that follow each other, each of ``min_frames`` to ``max_frames``.

    They are cut where the pauses are deepest and longest: where speech is improbable and, if the ``level`` of
    the frames (T,) is known, quiet. Where no pieces have such lengths, the shortest are as long as those of
    equal cuts would be. A stretch that is not longer than ``max_frames`` stays whole, however short.
    """
    begin, end = stretch
    length = end - begin
    if length <= max_frames:
        return [stretch]
    n_pieces = -(-length // max_frames)
    shortest = max(1, min(min_frames, length // n_pieces))
    costs = _rate_cuts(speech[begin:end], None if level is None else level[begin:end])
    # Dynamic programming: the least cost of cutting at each frame, and where the cut before that is.
    totals = np.full(length + 1, np.inf)
    totals[0] = 0.0
    befores = np.zeros(length + 1, np.int64)
    for at in range(shortest, length + 1):
        first = max(0, at - max_frames)
        before = first + int(np.argmin(totals[first : at - shortest + 1]))
        befores[at] = before
        totals[at] = totals[before] + (CUT_COST + costs[at] if at < length else 0.0)
    cuts = [length]
    while cuts[-1]:
        cuts.append(int(befores[cuts[-1]]))
    cuts.reverse()
    return [(begin + a, begin + b) for a, b in pairwise(cuts)]


def _rate_cuts(speech: NDArray[np.floating], level: NDArray[np.floating] | None) -> NDArray[np.float64]:
    """What a cut before each frame costs, (T,): 0 in a pause, 1 in a word."""
    values = np.clip(np.asarray(speech, np.float64), 0, 1)
    if level is not None:
        loud = np.quantile(level, 0.9)
        values = (values + np.clip((level - loud) / QUIET_DB + 1, 0, 1)) / 2
    half = PAUSE_FRAMES // 2
    padded = np.pad(values, half, mode="edge")
    costs: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(padded, 2 * half).mean(axis=-1)
    return costs[: len(values)]


def measure_speech_level(level: NDArray[np.floating], speech: NDArray[np.floating]) -> tuple[float, float]:
    """(dB below full scale while something is said, dB by which that is above the pauses) of frames (T,).

    The first is the mean of the power where speech is probable, the second is over the median of the frames
    where it is not. nan where there are no such frames.
    """
    spoken, paused = level[speech >= START_PROBABILITY], level[speech < END_PROBABILITY]
    if not len(spoken):
        return np.nan, np.nan
    speech_level = 10 * np.log10(np.mean(10 ** (np.asarray(spoken, np.float64) / 10)))
    return float(speech_level), float(speech_level - np.median(paused)) if len(paused) else np.nan
