"""Fit the sync score's predictor on the clips of some people, and measure it on people it never saw.

    python benchmarks/fit_sync.py --train data/grid --unseen data/strangers --to stages/metrics

DIR is a --work folder of `pipeline shard` with `speech.encoder: whisper-tiny.en`. People of --unseen are
scored all together and each alone, by their whole clips, 3 s and 2 s of them; without --train by the packaged
weights. Without --unseen each training speaker is scored by a predictor fitted on the others.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards.ledger import OK
from shards.schema import SPEECH_PER_FRAME, VIDEO_FPS
from stages import landmarks, speech
from stages.engine.parts import list_columns, read_part
from stages.engine.per_clip import read_array
from stages.media import faces
from stages.metrics import sync
from stages.metrics.mouth import Mouths, openings
from stages.metrics.mouth_finder import PUPILS, UPPER_AND_LOWER

COMPONENTS = 96  # of the features that are kept: fewer people than features, so the rest is fitted to noise
RIDGE = 300.0


@dataclass(frozen=True, slots=True)
class Clip:
    """What is seen and heard in a clip of T frames."""

    speaker: str
    openings: NDArray[np.float64]  # (T,)
    speech: NDArray[np.float16]  # (2T, 384)


def read_clips(work: Path) -> Iterator[Clip]:
    """The clips of a --work folder that have landmarks and speech features."""
    speakers = {row["clip_id"]: row["speaker"] for row in pq.read_table(work / "clips.parquet").to_pylist()}
    for path in sorted((work / speech.STAGE).glob("*.parquet")):
        heard = read_part(path, list_columns(speech.COLUMNS))
        seen = read_part(work / landmarks.STAGE / path.name, list_columns(landmarks.COLUMNS))
        for clip_id in sorted(heard):
            if heard[clip_id]["status"] != OK or seen[clip_id]["status"] != OK:
                continue
            points = read_array(seen[clip_id], "points", landmarks.COLUMNS, (-1, faces.N_POINTS, 2))
            shape = (SPEECH_PER_FRAME * len(points), sync.N_FEATURES)
            features = read_array(heard[clip_id], "speech", speech.COLUMNS, shape)
            mouths = Mouths(points[:, UPPER_AND_LOWER], points[:, PUPILS])
            yield Clip(speakers[clip_id], openings(mouths), features)


def fit(clips: Sequence[Clip]) -> NDArray[np.float16]:
    """Weights (offsets, features, 2). Each speaker counts by the root of their number of clips."""
    features = np.concatenate([clip.speech.astype(np.float64) for clip in clips])
    scale = features.std(axis=0)
    _, vectors = np.linalg.eigh(np.cov((features / scale).T))
    basis = vectors[:, ::-1][:, :COMPONENTS] / scale[:, None]
    n_inputs = len(sync.OFFSETS) * COMPONENTS
    gram, target = RIDGE * np.eye(n_inputs), np.zeros((n_inputs, 2))
    counts = Counter(clip.speaker for clip in clips)
    for clip in clips:
        x = (sync.stack_windows(clip.speech) @ basis).reshape(len(clip.openings), -1)
        x -= x.mean(axis=0)
        y = sync.describe_motion(clip.openings)
        y = (y - y.mean(axis=0)) / y.std(axis=0)
        weight = 5 / np.sqrt(counts[clip.speaker])
        gram += weight * x.T @ x
        target += weight * x.T @ y
    inner = np.linalg.solve(gram, target).reshape(len(sync.OFFSETS), COMPONENTS, 2)
    return np.einsum("fc,ock->ofk", basis, inner).astype(np.float16)


def report(name: str, clips: Sequence[Clip], weights: NDArray[np.float16], seconds: float | None) -> None:
    """Print the area under the curve of true against foreign speech, and the lags of true speech."""
    heard = [sync.predict_mouth(clip.speech, weights.astype(np.float32)) for clip in clips]
    n_frames = 10**9 if seconds is None else round(VIDEO_FPS * seconds)
    true, foreign, lags = [], [], []
    for i, clip in enumerate(clips):
        for j, prediction in enumerate(heard):
            # from the middle, where GRID's sentences are: the first half second is silent
            shared = min(len(clip.openings), len(prediction))
            first = max(0, (shared - n_frames) // 2)
            part = slice(first, min(shared, first + n_frames))
            score = sync.score_sync(clip.openings[part], prediction[part])
            if score is None:
                continue
            (true if i == j else foreign).append(score.confidence)
            if i == j:
                lags.append(score.lag)
    above = np.greater.outer(true, foreign).mean() if foreign else float("nan")
    within = np.mean(np.abs(lags) <= 1)
    print(f"| {name} | {len(true)} | {above:.3f} | {np.mean(true):.2f} / {np.mean(foreign):.2f} | "
          f"{100 * within:.0f} % | {np.median(lags):+.0f} |")  # fmt: skip


def group_by_speaker(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """The clips of each speaker, in order of their names."""
    speakers = sorted({clip.speaker for clip in clips})
    return {speaker: [clip for clip in clips if clip.speaker == speaker] for speaker in speakers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, nargs="*", default=[])
    parser.add_argument("--unseen", type=Path, nargs="*", default=[])
    parser.add_argument("--to", type=Path, help="write the weights into this folder")
    args = parser.parse_args()
    if not args.train and (args.to is not None or not args.unseen):
        parser.error("expected --train DIR, or --unseen DIR to score the packaged weights by")
    clips = [clip for work in args.train for clip in read_clips(work)]
    print("| whose clips | clips | AUC | confidence, true / foreign | lag within a frame | median lag |")
    print("| --- | --- | --- | --- | --- | --- |")
    if not args.unseen:
        for speaker, theirs in group_by_speaker(clips).items():
            weights = fit([clip for clip in clips if clip.speaker != speaker])
            report(speaker, theirs[:40], weights, None)
        return
    weights = fit(clips) if clips else sync.load_predictor()
    for work in args.unseen:
        unseen = list(read_clips(work))
        alone = {name: theirs for name, theirs in group_by_speaker(unseen).items() if len(theirs) > 1}
        for seconds in (None, 3.0, 2.0):
            length = "whole clips" if seconds is None else f"{seconds:g} s"
            for name, group in {"all": unseen, **alone}.items():
                report(f"{work}: {name}, {length}", group, weights, seconds)
    if args.to is not None:
        np.save(args.to / sync.WEIGHTS.name, weights)
        print(f"{args.to / sync.WEIGHTS.name}: {weights.nbytes} bytes")


if __name__ == "__main__":
    main()
