"""LSE-D and LSE-C: SyncNet's distance of lips from speech, as Wav2Lip's scripts compute it.

There are two protocols, and a value without its protocol means little:

``crops``        the whole image is the face, resized to 224 x 224 (Wav2Lip's script for LRS)
``real videos``  a square around the face is cut out first: see ``stages.metrics.face_crops``

Some steps of the scripts are omitted, because they make the result depend on an ffmpeg build: frames pass
through JPEG and, for real videos, twice through MPEG-4, the sound through MP3; tracks of fewer than 101
detections are discarded. Distances do not show a constant delay of up to 0.6 s, so report the offset and the
distance at zero beside them. The zeros that stand for sound before the start and after the end weigh more
the shorter a clip is, so clips of different lengths do not compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.schema import VIDEO_FPS
from stages.metrics.face_crops import PICTURE_PX
from stages.metrics.mfcc import SAMPLE_RATE, mfcc

CROPS = "crops: whole picture resized to 224 px, as Wav2Lip's LRS script"

WINDOW_FRAMES = 5
COLUMNS_PER_FRAME = 4  # of MFCC, 100 a second
WINDOW_COLUMNS = WINDOW_FRAMES * COLUMNS_PER_FRAME
SAMPLES_PER_FRAME = SAMPLE_RATE // VIDEO_FPS
MAX_SHIFT = 15  # frames
EPSILON = 1e-6  # torch's pairwise_distance adds it to each difference
BATCH = 20

Embed = Callable[[Tensor], Tensor]  # windows -> (B, D)


@dataclass(frozen=True, slots=True)
class Lse:
    """Scores of one clip."""

    distance: float  # LSE-D: the least mean distance over all shifts
    confidence: float  # LSE-C: the median of the mean distances less the least
    offset: int  # frames by which the sound is ahead of the lips
    distance_at_zero: float  # mean distance without a shift
    n_windows: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A clip without a score, and why."""

    reason: str


def compute_lse(
    frames: NDArray[np.uint8], samples: NDArray[np.int16], embed_lips: Embed, embed_speech: Embed
) -> Lse | Skipped:
    """Score a clip's frames (T, H, W, 3), RGB at 25 fps, against its sound at 16 kHz.

    ``embed_lips`` and ``embed_speech`` are SyncNet's two branches. Each whole image is resized: protocol
    ``crops``, or ``real videos`` when the images come from ``face_crops``.
    """
    n_windows = count_windows(len(frames), len(samples))
    if n_windows == 0:
        return Skipped(
            f"{len(frames)} frames and {len(samples)} samples of sound: "
            f"more than {WINDOW_FRAMES} frames of both are needed"
        )
    batches = [range(n_windows)[first : first + BATCH] for first in range(0, n_windows, BATCH)]
    columns = torch.from_numpy(mfcc(samples).T).float()
    with torch.inference_mode():
        lips = torch.cat([embed_lips(_stack_frame_windows(frames, batch)) for batch in batches])
        speech = torch.cat([embed_speech(_stack_mfcc_windows(columns, batch)) for batch in batches])
    return score_embeddings(lips.cpu().numpy(), speech.cpu().numpy())


def count_windows(n_frames: int, n_samples: int) -> int:
    """How many windows are compared: one fewer than fit, as in the scripts; 0 for too short a clip."""
    return max(0, min(n_frames, n_samples // SAMPLES_PER_FRAME) - WINDOW_FRAMES)


def score_embeddings(lips: NDArray[np.float32], speech: NDArray[np.float32]) -> Lse:
    """Score the embeddings of N windows of lips and of speech, (N, D) each."""
    means = mean_distances(lips, speech)
    best = int(means.argmin())
    return Lse(
        distance=float(means[best]),
        confidence=float(np.median(means) - means[best]),
        offset=MAX_SHIFT - best,
        distance_at_zero=float(means[MAX_SHIFT]),
        n_windows=len(lips),
    )


def mean_distances(lips: NDArray[np.float32], speech: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean distance of lips v from speech v + k - 15 for k = 0 ... 30: (31,).

    Speech before the first window and after the last is a vector of zeros, and is compared too.
    """
    padded = np.pad(speech, ((MAX_SHIFT, MAX_SHIFT), (0, 0)))
    shifts = [padded[k : k + len(lips)] for k in range(2 * MAX_SHIFT + 1)]
    return np.array([np.linalg.norm(lips - shifted + EPSILON, axis=1).mean() for shifted in shifts])


def _stack_frame_windows(frames: NDArray[np.uint8], windows: range) -> Tensor:
    """Windows of frames as SyncNet takes them, (B, 3, 5, 224, 224): BGR, not scaled to 1."""
    images = [
        cv2.resize(frame, (PICTURE_PX, PICTURE_PX))[:, :, ::-1]
        for frame in frames[windows.start : windows.stop + WINDOW_FRAMES - 1]
    ]
    stacked = torch.from_numpy(np.stack(images)).float()
    return stacked.unfold(0, WINDOW_FRAMES, 1).permute(0, 3, 4, 1, 2)


def _stack_mfcc_windows(columns: Tensor, windows: range) -> Tensor:
    """Windows of MFCC (13, columns) as SyncNet takes them: (B, 1, 13, 20)."""
    starts = [v * COLUMNS_PER_FRAME for v in windows]
    return torch.stack([columns[None, :, start : start + WINDOW_COLUMNS] for start in starts])
