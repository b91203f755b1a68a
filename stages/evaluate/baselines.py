"""Baseline mouths that need no network: a model that scores no better has learnt nothing."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.reader import Dataset
from shards.rng import derive_key
from shards.schema import MELS_PER_FRAME, ClipSample, Frames

BANK_FRAMES = 10_000  # of the training split, at most: a larger bank has hardly any nearer frames
BANK_WIDTH, BANK_HEIGHT = 80, 48  # px of a stored mouth; boxes of 128 px crops are about 75 x 42
BANDS = 32  # that a mel row is averaged to: a tenth of the time, and the same matches
REACH = 2  # mel rows on each side of a frame's own, as in the paper's window


def freeze_mouth(clip: ClipSample) -> Frames:
    """Frozen mouth: each box shows the same region of the first frame."""
    return _fill_boxes(clip, (clip.frames[0, y0:y1, x0:x1] for x0, y0, x1, y1 in clip.boxes.tolist()))


def repeat_previous_frame(clip: ClipSample) -> Frames:
    """Previous frame: each box shows the same region of the frame before; the first frame shows its own."""
    boxes = enumerate(clip.boxes.tolist())
    return _fill_boxes(clip, (clip.frames[max(0, k - 1), y0:y1, x0:x1] for k, (x0, y0, x1, y1) in boxes))


@dataclass(frozen=True, slots=True)
class MouthBank:
    """Mel windows and mouths of N training frames."""

    sounds: NDArray[np.float32]  # (N, V), from ``extract_mel_windows``
    mouths: NDArray[np.uint8]  # (N, h, w, 3), their boxes, resized to one size


def find_nearest_mouths(clip: ClipSample, mels: NDArray[np.float32], bank: MouthBank) -> Frames:
    """Nearest mel: for each frame, the mouth of the training frame whose mel window is nearest.

    ``mels`` (2T, M) are those of the speech, for the T frames of ``clip``.
    """
    windows = extract_mel_windows(mels)
    # |a - b|² = |a|² - 2 a.b + |b|²; the first term is the same for all b.
    distances = np.square(bank.sounds).sum(axis=1) - 2 * (windows @ bank.sounds.T)
    return _fill_boxes(clip, (bank.mouths[n] for n in distances.argmin(axis=1)))


def _fill_boxes(clip: ClipSample, mouths: Iterable[Frames]) -> Frames:
    """The clip's frames with other images in their boxes, resized to fit."""
    frames: Frames = clip.frames.copy()
    for frame, (x0, y0, x1, y1), mouth in zip(frames, clip.boxes.tolist(), mouths, strict=True):
        frame[y0:y1, x0:x1] = cv2.resize(mouth, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return frames


def extract_mel_windows(mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mel window of each frame, averaged to fewer bands and flattened: (2T, M) -> (T, V)."""
    bands = min(BANDS, mels.shape[1])
    rows = cv2.resize(mels, (bands, len(mels)), interpolation=cv2.INTER_AREA)
    rows = np.pad(rows, ((REACH, REACH), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(rows, 2 * REACH + 1, axis=0)[::MELS_PER_FRAME]
    return np.ascontiguousarray(windows.reshape(len(windows), -1))


def choose_bank_clips(dataset: Dataset, excluded: Set[str]) -> list[str]:
    """Training clips for the bank, in the order of a hash of their ids, until there are enough frames."""
    candidates = [clip_id for clip_id in dataset.clips.ids_in_split("train") if clip_id not in excluded]
    chosen, n_frames = [], 0
    for clip_id in sorted(candidates, key=lambda clip_id: derive_key(0, *clip_id.encode())):
        chosen.append(clip_id)
        n_frames += int(dataset.clips[clip_id]["frames"])
        if n_frames >= BANK_FRAMES:
            break
    return chosen


def build_bank(clips: Iterable[ClipSample]) -> MouthBank:
    """The bank of these clips' frames. There must be at least one clip."""
    sounds, mouths = [], []
    for clip in clips:
        sounds.append(extract_mel_windows(clip.mels))
        mouths += [
            cv2.resize(frame[y0:y1, x0:x1], (BANK_WIDTH, BANK_HEIGHT), interpolation=cv2.INTER_AREA)
            for frame, (x0, y0, x1, y1) in zip(clip.frames, clip.boxes.tolist(), strict=True)
        ]
    return MouthBank(np.concatenate(sounds), np.stack(mouths))
