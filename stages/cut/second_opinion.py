"""A second opinion on who speaks, where it is asked for: SyncNet's confidence and lag of a span of a file.

It is LSE-C by the protocol "real videos" (stages.metrics.lse): the square around the face, by the
points that this stage has found, against the sound as it is in the file, whatever lag is corrected later.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.engine.cache import read_entry, save_entry
from stages.engine.outcome import Drop, Outcome
from stages.media.clip_sound import decode_clip_sound
from stages.media.video import read_frames_at_25fps
from stages.metrics.face_crops import crop_faces, face_boxes

if TYPE_CHECKING:
    from stages.metrics.syncnet import SyncNet

LIBRARIES = ("av", "numpy", "opencv-python", "scipy", "soxr", "torch")  # that decide the scores


def score_span(
    path: Path, start: float, first: int, n_frames: int, points: Path, model: Path, entry: Path
) -> Outcome:
    """Score frames ``first`` to ``first + n_frames - 1`` of a file by SyncNet. Runs in the sandbox.

    ``start`` is when frame 0 is shown, seconds on the container's clock; ``points`` is the entry with the
    face's points (n_frames, 478, 2), source px, ``model`` SyncNet's weights. Saves an entry whose facts are
    ``syncnet_confidence``, 0 or more, and ``syncnet_lag``, frames by which the mouth is late; without them
    where the span is too short for a score. Raises Drop where its face, pictures or sound give none.
    """
    _, arrays = read_entry(points)
    begin = start + first / VIDEO_FPS
    frames = (frame.image for frame in read_frames_at_25fps(path, begin, n_frames))
    try:
        squares = crop_faces(frames, face_boxes(arrays["points"]))
    except (ValueError, cv2.error) as err:  # too few frames; a face that is beyond the picture's edge
        raise Drop("no_square", f"no square can be cut out around its face ({err})") from err
    outcome = Outcome(facts=score_squares(squares, decode_clip_sound(path, begin, n_frames), model))
    save_entry(entry, outcome)
    return outcome


def score_squares(squares: NDArray[np.uint8], sound: NDArray[np.int16], model: Path) -> dict[str, float]:
    """The columns of a span whose squares (T, 224, 224, 3) and sound (640 T,) these are; none: too short."""
    from stages.metrics.lse import Skipped, compute_lse

    syncnet = load_syncnet(model)
    score = compute_lse(squares, sound, syncnet.embed_lips, syncnet.embed_speech)
    if isinstance(score, Skipped):
        return {}
    # Sound that is ahead of the lips by some frames is a mouth that is late by as many.
    return {"syncnet_confidence": round(score.confidence, 3), "syncnet_lag": score.offset}


@functools.lru_cache(maxsize=1)
def load_syncnet(model: Path) -> SyncNet:
    """The network whose weights are at ``model``; loaded once for a process."""
    from stages.metrics.published import load_published
    from stages.metrics.syncnet import SyncNet

    return load_published(SyncNet, model)


def warm_up(arguments: Mapping[str, Any]) -> None:
    """Load torch and the network before the first span's deadline starts."""
    load_syncnet(Path(arguments["model"]))
