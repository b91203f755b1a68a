"""Beside stage 4, optional: features of a speech encoder, exactly two rows for each video frame.

Row j is centred on j / 50 s of the clip's clock, as a mel row is. The encoder attends to everything that it
is given, so how sound is cut into windows is part of the format. docs/performance.md has the measurements
behind each number here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as params_dataclass

from shards.ledger import OK, find_sound_start
from shards.schema import SPEECH_PER_FRAME, VIDEO_FPS
from shards.table import Row
from stages import mels
from stages.engine.cache import digest, save_entry, versions
from stages.engine.outcome import Outcome
from stages.engine.parts import Part, update_parts
from stages.engine.per_clip import assemble_part, run_per_clip
from stages.engine.sandbox import ClipJob
from stages.engine.stage import Context, Report, Work
from stages.media import weights
from stages.media.audio import SAMPLE_RATE, SILENCE_PEAK, measure_peak, mix_to_mono, read_channels
from stages.media.reference import Reference, compute_reference
from stages.media.whisper_weights import N_MELS, WIDTH
from stages.mels import count_samples

STAGE = "speech"
VERSION = 1  # of the rule, too, by which sound is cut into windows
NO_ENCODER = "none"
COLUMNS = {"speech": np.float16}  # (2T, 384)
N_FEATURES = WIDTH
LIBRARIES = ("librosa", "numpy", "soxr", "av", "torch")  # what is heard of a file depends on their versions

ROW_SAMPLES = SAMPLE_RATE // (VIDEO_FPS * SPEECH_PER_FRAME)  # 320
MELS_PER_ROW = 2  # of the encoder's input, at 100 Hz
WINDOW_ROWS = 64  # 1.28 s: what the encoder is given at once
HOP_ROWS = WINDOW_ROWS // 4  # so four windows hear each row, at four places
WINDOWS_AT_ONCE = 8
MARGIN_SAMPLES = (WINDOW_ROWS // 2 + 1) * ROW_SAMPLES  # that windows reach beyond the sound's ends, at most
# Speech at a normal level: log10 of the power of the loudest cell, the median of GRID's clips.
NORMAL_LOG_POWER = 1.5
# The level of a place, as for mels: the loudest cell of 3 s around it.
LEVEL = Reference(window_rows=150, max_boost_db=20.0)
DECIBELS = 10  # per unit of log10 of power
LEVEL_ROWS_AT_ONCE = 2048

EncoderName = Literal["none", "whisper-tiny.en"]
Features = NDArray[np.float16]
Encode = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SpeechParams:
    """Which encoder a dataset's speech features are from."""

    encoder: EncoderName = "none"
    model: str = ""  # path of its weights; empty: environment, user's cache, download


def compute_speech_rows(sound: NDArray[np.float32], encode: Encode) -> Features:
    """Mono sound of 640 T - 1 samples at 16 kHz -> (2T, 384) float16.

    Windows of 1.28 s begin every 0.32 s. Each row is the mean of those that hear it, four at most, weighted
    by sin^2, so that the middle of a window counts most. There is one for each middle in the sound; beyond
    its ends the sound is mirrored. ``encode`` maps log-mels (B, 80, 128) to features (B, 64, 384). It gets a
    few windows at a time: memory is that of the sound and of the features.
    """
    from threadpoolctl import threadpool_limits

    n_rows = (len(sound) + 1) // ROW_SAMPLES
    mirrored = np.pad(sound, MARGIN_SAMPLES, mode="reflect")
    with threadpool_limits(1):  # the number of threads changes the order of sums, and so the last bits
        return _average_windows(_encode_windows(mirrored, n_rows, encode), n_rows)


def compute_silent_rows(n_rows: int, encode: Encode) -> Features:
    """The features of silence, (n_rows, 384): those in the middle of a long pause of louder sound."""
    from threadpoolctl import threadpool_limits

    from stages.media.whisper import RANGE, scale_log_power

    floor = np.full((1, N_MELS, MELS_PER_ROW * WINDOW_ROWS), NORMAL_LOG_POWER - RANGE, np.float32)
    with threadpool_limits(1):
        [window] = encode(scale_log_power(floor, NORMAL_LOG_POWER))
    return _average_windows(((start, window) for start in _list_window_starts(n_rows)), n_rows)


def _list_window_starts(n_rows: int) -> range:
    return range(-WINDOW_ROWS // 2, n_rows - WINDOW_ROWS // 2, HOP_ROWS)


def _average_windows(windows: Iterable[tuple[int, NDArray[np.float32]]], n_rows: int) -> Features:
    """The weighted mean of the windows that hear each row; each is (first row, features (64, 384))."""
    features = np.empty((n_rows, N_FEATURES), np.float16)
    places = (np.arange(WINDOW_ROWS, dtype=np.float32) + 0.5) / WINDOW_ROWS
    shares = np.square(np.sin(np.pi * places))[:, None]
    sums = np.zeros((WINDOW_ROWS, N_FEATURES), np.float32)  # of the rows of the last window
    totals = np.zeros_like(shares)
    for start, window in windows:
        for ring, values in ((sums, shares * window), (totals, shares)):
            ring[:-HOP_ROWS] = ring[HOP_ROWS:].copy()
            ring[-HOP_ROWS:] = 0
            ring += values
        first = max(start, 0)
        rows = features[first : start + WINDOW_ROWS]
        rows[:] = (sums / totals)[first - start :][: len(rows)]  # the next windows replace all but some
    return features


def _encode_windows(
    mirrored: NDArray[np.float32], n_rows: int, encode: Encode
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, features (64, 384)) of every window, in order. Log-mels exist for a few at a time only."""
    from stages.media.whisper import scale_log_power

    levels = _measure_levels(mirrored, n_rows)
    starts = _list_window_starts(n_rows)
    for at in range(0, len(starts), WINDOWS_AT_ONCE):
        batch = starts[at : at + WINDOWS_AT_ONCE]
        first, last = batch[0], batch[-1] + WINDOW_ROWS
        level = levels[np.clip(np.arange(first, last), 0, n_rows - 1)].repeat(MELS_PER_ROW)[:, None]
        log_power = _compute_log_power(mirrored, first, last) - level + NORMAL_LOG_POWER
        log_mels = scale_log_power(log_power, NORMAL_LOG_POWER)
        places = [MELS_PER_ROW * (start - first) for start in batch]
        windows = np.stack([log_mels[place : place + MELS_PER_ROW * WINDOW_ROWS].T for place in places])
        yield from zip(batch, encode(windows), strict=True)


def _measure_levels(mirrored: NDArray[np.float32], n_rows: int) -> NDArray[np.float32]:
    """The level of each row, (n_rows,), as log10 of power: that of a quiet pause is at most 20 dB lower."""
    loudest = np.empty(n_rows, np.float32)
    for first in range(0, n_rows, LEVEL_ROWS_AT_ONCE):
        last = min(first + LEVEL_ROWS_AT_ONCE, n_rows)
        log_power = _compute_log_power(mirrored, first, last)
        loudest[first:last] = log_power.reshape(last - first, -1).max(axis=1)
    if n_rows <= LEVEL.window_rows:
        return np.full(n_rows, loudest.max())
    levels: NDArray[np.float32] = compute_reference(DECIBELS * loudest, LEVEL) / np.float32(DECIBELS)
    return levels


def _compute_log_power(mirrored: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
    """Log power around rows first to last - 1, two mel rows for each: (2 (last - first), 80)."""
    from stages.media.whisper import HOP_SAMPLES, N_FFT, compute_log_power

    begin = MARGIN_SAMPLES + first * ROW_SAMPLES - N_FFT // 2
    n_samples = (MELS_PER_ROW * (last - first) - 1) * HOP_SAMPLES + N_FFT
    return compute_log_power(mirrored[begin : begin + n_samples])


def compute_speech_of_file(
    path: Path, start: float, n_frames: int, model: Path, entry: Path, *, may_be_silent: bool = False
) -> Outcome:
    """Compute the features of a file's sound and save them as a cache entry; silence as for mels.

    Runs in the sandbox.
    """
    channels = read_channels(path, start, count_samples(n_frames))
    if may_be_silent and measure_peak(channels) < SILENCE_PEAK:
        rows = compute_silent_rows(n_frames * SPEECH_PER_FRAME, load_encoder(model))
    else:
        sound, _ = mix_to_mono(channels)  # the mels have its notes
        rows = compute_speech_rows(sound, load_encoder(model))
    assert len(rows) == n_frames * SPEECH_PER_FRAME, f"{n_frames} frames, {len(rows)} rows of features"
    save_entry(entry, Outcome(), {"speech": rows})
    return Outcome()


@functools.lru_cache(maxsize=1)
def load_encoder(model: Path) -> Encode:
    """The encoder whose weights are at ``model``, as a function of arrays; loaded once for a process."""
    import torch

    from stages.media.whisper import load_whisper

    whisper = load_whisper(model)

    def encode(log_mels: NDArray[np.float32]) -> NDArray[np.float32]:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more change the order of sums
        try:
            features: NDArray[np.float32] = whisper(torch.from_numpy(log_mels)).numpy()
        finally:
            torch.set_num_threads(n_threads)
        return features

    return encode


def warm_up(arguments: Mapping[str, Any]) -> None:
    """Load torch and librosa before the first clip's deadline starts. No other job needs torch."""
    import torch  # noqa: F401

    mels.warm_up(arguments)


def find_model(params: SpeechParams) -> Path | None:
    """The weights of the encoder that ``params`` name, or None for none. Raises StageError."""
    if params.encoder == NO_ENCODER:
        return None
    return weights.find(weights.SPEECH_ENCODER, params.model)


def make_params_digest(encoder: str) -> str:
    """Digest of everything that decides a clip's features besides its sound: also the rule of the windows."""
    return digest(
        STAGE,
        VERSION,
        encoder,
        weights.SPEECH_ENCODER.sha256,
        versions(*LIBRARIES),
    )


def run(work: Work, parts: Sequence[Part], params: SpeechParams, context: Context) -> Report:
    """Write ``speech/<part>.parquet``: the features of every usable clip. Without an encoder, nothing."""
    model = find_model(params)
    if model is None:
        report = Report(STAGE)
        work.stage_folder(STAGE).mkdir(parents=True, exist_ok=True)  # an out of dvc.yaml
        update_parts(work.stage_folder(STAGE), [], assemble_part, context.map_tasks, report)
        n_clips = sum(len(part.rows) for part in parts)
        report.clips, report.counts = n_clips, {OK: n_clips}
        return report

    def make_job(row: Row, entry: Path) -> ClipJob:
        return ClipJob(
            compute_speech_of_file,
            path=work.raw.resolve() / row["path"],
            start=find_sound_start(row),
            n_frames=row["frames"],
            model=model,
            entry=entry,
        )

    return run_per_clip(
        STAGE,
        work,
        parts,
        context,
        params_digest=make_params_digest(params.encoder),
        make_job=make_job,
        columns=COLUMNS,
    )
