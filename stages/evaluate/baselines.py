"""Mouths that cost nothing, to stand beside what a network draws: whoever is no better has learnt nothing."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.reader import Dataset
from shards.rng import derive_key
from shards.schema import MELS_PER_FRAME, ClipSample

Frames = NDArray[np.uint8]  # (T, S, S, 3)

BANK_FRAMES = 10_000  # of the training split, at most: the nearest of more is hardly nearer
BANK_WIDTH, BANK_HEIGHT = 80, 48  # px of a kept mouth; boxes of 128 px crops are about 75 x 42
BANDS = 32  # that a mel row is averaged to: a tenth of the time, and the same sounds
REACH = 2  # mel rows to either side of a frame's own, as in the paper's window


def held(clip: ClipSample) -> Frames:
    """Frozen mouth: what the first frame shows at a box stays in it."""
    return _pasted(clip, (clip.frames[0, y0:y1, x0:x1] for x0, y0, x1, y1 in clip.boxes.tolist()))


def previous(clip: ClipSample) -> Frames:
    """Previous frame: a box shows what the frame before has there; the first frame shows its own."""
    boxes = enumerate(clip.boxes.tolist())
    return _pasted(clip, (clip.frames[max(0, k - 1), y0:y1, x0:x1] for k, (x0, y0, x1, y1) in boxes))


@dataclass(frozen=True, slots=True)
class Bank:
    """What training frames sound and look like."""

    sounds: NDArray[np.float32]  # (N, V)
    mouths: NDArray[np.uint8]  # (N, h, w, 3), what their boxes show, at one size


def nearest(clip: ClipSample, mels: NDArray[np.float32], bank: Bank) -> Frames:
    """Nearest mel: the mouth of the training frame whose mel window is the nearest, for each frame.

    ``mels`` (2T, M) are the speech's, for the T frames of ``clip``.
    """
    heard = sounds_of(mels)
    # |a - b|² = |a|² - 2 a.b + |b|², of which the first is the same for all b.
    distances = np.square(bank.sounds).sum(axis=1) - 2 * (heard @ bank.sounds.T)
    return _pasted(clip, (bank.mouths[n] for n in distances.argmin(axis=1)))


def _pasted(clip: ClipSample, mouths: Iterable[Frames]) -> Frames:
    """The clip with other pictures in its boxes, brought to their sizes."""
    frames: Frames = clip.frames.copy()
    for frame, (x0, y0, x1, y1), mouth in zip(frames, clip.boxes.tolist(), mouths, strict=True):
        frame[y0:y1, x0:x1] = cv2.resize(mouth, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return frames


def sounds_of(mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mel window of each frame, in fewer bands: (2T, M) -> (T, V)."""
    bands = min(BANDS, mels.shape[1])
    rows = cv2.resize(mels, (bands, len(mels)), interpolation=cv2.INTER_AREA)
    rows = np.pad(rows, ((REACH, REACH), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(rows, 2 * REACH + 1, axis=0)[::MELS_PER_FRAME]
    return np.ascontiguousarray(windows.reshape(len(windows), -1))


def bank_clips(dataset: Dataset, without: Set[str]) -> list[str]:
    """Training clips of which a bank is made, drawn by a hash of their ids until there are frames enough."""
    trained = [name for name in dataset.clips.ids_in_split("train") if name not in without]
    chosen, n_frames = [], 0
    for clip_id in sorted(trained, key=lambda name: derive_key(0, *name.encode())):
        chosen.append(clip_id)
        n_frames += int(dataset.clips[clip_id]["frames"])
        if n_frames >= BANK_FRAMES:
            break
    return chosen


def bank_of(clips: Iterable[ClipSample]) -> Bank:
    """What these clips' frames sound and look like; there must be one."""
    sounds, mouths = [], []
    for clip in clips:
        sounds.append(sounds_of(clip.mels))
        mouths += [
            cv2.resize(frame[y0:y1, x0:x1], (BANK_WIDTH, BANK_HEIGHT), interpolation=cv2.INTER_AREA)
            for frame, (x0, y0, x1, y1) in zip(clip.frames, clip.boxes.tolist(), strict=True)
        ]
    return Bank(np.concatenate(sounds), np.stack(mouths))
