"""Measures how well files are cut into clips, on films with known truth (``pipeline synth --style film``).

    python benchmarks/cut.py --from data/grid/raw --films 3 --seconds 120
    python benchmarks/cut.py --raw films --work work

The first makes films of the clips of a folder; the second takes films that are there. Printed are the shots
that are found, the speech that becomes clips, whether the right one of two faces is chosen, the lag that is
found and what of it remains, clips where nobody is seen to speak (there should be none), what becomes of each
kind of scene, and CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from processes import run_pipeline

from shards.ledger import OK, read_ledger
from shards.schema import VIDEO_FPS
from stages.cut.shots import ContentComparison, find_shots
from stages.engine.cache import load_entry
from stages.synth.film_spec import FilmTruth, SceneTruth

MAX_SHOT_ERROR = 1  # frames
MAX_LAG_ERROR = 1.0  # frames
SPEAKER_IS_SEEN = ("speaker", "lag", "noise", "punch-in", "two-faces")
STAGES = ("clips", "cut", "landmarks", "align", "mels", "shard")


@dataclass
class Counts:
    """What is found in films."""

    shots: Counter[str] = field(default_factory=Counter)
    speech_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by kind of scene
    clip_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # of this speech
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # frames, by code
    speakers: Counter[bool] = field(default_factory=Counter)  # right or wrong, of two faces
    lag_errors: list[float] = field(default_factory=list)  # frames, of clips whose speaker is seen
    residues: list[float] = field(default_factory=list)  # frames: the lag that remains
    wrong_clips: list[str] = field(default_factory=list)  # where nobody is seen to speak
    clips_over_cuts: list[str] = field(default_factory=list)
    unaccounted_frames: int = 0


def count_shots(path: Path, truth: FilmTruth, counts: Counts) -> None:
    """Compare the shots of a film with its truth; cuts between two clips of one person count apart."""
    compare = ContentComparison()
    with av.open(str(path)) as container:
        content = [compare(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    shots = np.array(find_shots(np.array(content, np.float32)))
    same_person = find_jumps_of_one_person(truth)
    for shot in truth.shots[1:]:
        kind = "one person" if shot in same_person else "other"
        counts.shots[f"{kind}, all"] += 1
        counts.shots[f"{kind}, found"] += bool((np.abs(shots - shot) <= MAX_SHOT_ERROR).any())
    true_shots = np.array(truth.shots)
    is_false = np.abs(shots[:, None] - true_shots).min(axis=1) > MAX_SHOT_ERROR
    counts.shots["false"] += int(is_false.sum())


def find_jumps_of_one_person(truth: FilmTruth) -> set[int]:
    """First frames of shots that show the person of the shot before, in the same place."""
    zooms = {scene.zoom_frame for scene in truth.scenes if scene.zoom_frame is not None}
    scenes = zip(truth.scenes, truth.scenes[1:], strict=False)
    return zooms | {
        after.first_frame for before, after in scenes if list_persons(before) == list_persons(after)
    }


def list_persons(scene: SceneTruth) -> list[Any]:
    """Who is seen; where nobody is, the scene itself."""
    return [(face.person, face.box) for face in scene.faces] or [scene.first_frame]


def count_film(rows: Sequence[dict[str, Any]], truth: FilmTruth, work: Path, counts: Counts) -> None:
    """Compare the spans of a film, in order, with its truth."""
    end = 0
    for row in rows:
        first, last = (round(row[name] * VIDEO_FPS) for name in ("start_seconds", "end_seconds"))
        counts.unaccounted_frames += abs(first - end)
        end = last
        for scene in truth.scenes:
            shared = min(last, scene.end_frame) - max(first, scene.first_frame)
            if shared > 0:
                counts.outcomes[scene.kind]["clip" if row["status"] == OK else row["code"]] += shared
        if row["status"] == OK:
            count_clip(row, first, last, truth, work, counts)
    counts.unaccounted_frames += abs(truth.n_frames - end)
    for scene in truth.scenes:
        if scene.kind in SPEAKER_IS_SEEN and scene.speech_seconds is not None:
            counts.speech_seconds[scene.kind] += scene.speech_seconds[1] - scene.speech_seconds[0]


def count_clip(
    row: dict[str, Any], first: int, last: int, truth: FilmTruth, work: Path, counts: Counts
) -> None:
    name = row["clip_id"]
    middle = (first + last) // 2
    scene = next(scene for scene in truth.scenes if scene.first_frame <= middle < scene.end_frame)
    if any(first + MAX_SHOT_ERROR < shot < last - MAX_SHOT_ERROR for shot in truth.shots):
        counts.clips_over_cuts.append(name)
    if scene.kind not in SPEAKER_IS_SEEN:
        counts.wrong_clips.append(f"{name} ({scene.kind})")
        return
    if scene.speech_seconds is not None:
        start, end = scene.speech_seconds
        shared = min(end, row["end_seconds"]) - max(start, row["start_seconds"])
        counts.clip_seconds[scene.kind] += max(0.0, shared)
    if scene.kind == "two-faces":
        entry = load_entry(work / "cut" / "points" / f"{name}.npz")
        assert entry is not None, f"{name}: no points of this clip"
        x, y = entry[1]["points"].mean(axis=(0, 1))
        [face] = [
            face for face in scene.faces if face.box[0] <= x < face.box[2] and face.box[1] <= y < face.box[3]
        ] or [None]
        counts.speakers[face is not None and face.speaks] += 1
        if face is None or not face.speaks:
            return
    lag = scene.lag_ms / 1000 * VIDEO_FPS  # frames by which the sound is late
    counts.lag_errors.append(row["lag_frames"] + lag)
    counts.residues.append(lag - row["sound_shift"] * VIDEO_FPS)


def describe(counts: Counts, cpu_seconds: dict[str, float], n_frames: int) -> dict[str, Any]:
    """The figures as JSON."""
    hours = n_frames / VIDEO_FPS / 3600

    def share_within(values: list[float]) -> float | None:
        return float(np.mean(np.abs(values) <= MAX_LAG_ERROR)) if values else None

    return {
        "hours": hours,
        "shots": dict(counts.shots),
        "speech_in_clips": {
            kind: counts.clip_seconds[kind] / seconds for kind, seconds in counts.speech_seconds.items()
        },
        "right_speaker": [counts.speakers[True], counts.speakers.total()],
        "clips_with_lag": len(counts.lag_errors),
        "lag_within_a_frame": share_within(counts.lag_errors),
        "remaining_within_a_frame": share_within(counts.residues),
        "wrong_clips": counts.wrong_clips,
        "clips_over_cuts": counts.clips_over_cuts,
        "unaccounted_frames": counts.unaccounted_frames,
        "scenes": {
            kind: {code: frames / VIDEO_FPS for code, frames in codes.most_common()}
            for kind, codes in counts.outcomes.items()
        },
        "cpu_seconds_per_hour": {stage: seconds / hours for stage, seconds in cpu_seconds.items()},
    }


def print_figures(figures: dict[str, Any]) -> None:
    """One line per figure."""
    shots = figures["shots"]
    for kind in ("other", "one person"):
        print(
            f"shots after one of {kind}: {shots.get(f'{kind}, found', 0)} of {shots.get(f'{kind}, all', 0)}"
        )
    print(f"false shots: {shots.get('false', 0)}")
    for kind, share in figures["speech_in_clips"].items():
        print(f"speech in clips, {kind}: {share:.1%}")
    print("right one of two faces: {} of {}".format(*figures["right_speaker"]))
    for name in ("lag_within_a_frame", "remaining_within_a_frame"):
        if figures[name] is not None:
            print(f"{name.replace('_', ' ')}: {figures[name]:.1%} of {figures['clips_with_lag']} clips")
    for name in ("wrong_clips", "clips_over_cuts"):
        print(f"{name.replace('_', ' ')}: {len(figures[name])} {', '.join(figures[name][:10])}")
    print(f"frames not accounted for: {figures['unaccounted_frames']}")
    for kind, codes in figures["scenes"].items():
        print(f"{kind}: " + ", ".join(f"{code} {seconds:.1f} s" for code, seconds in codes.items()))
    for stage, seconds in figures["cpu_seconds_per_hour"].items():
        print(f"{stage}: {seconds:.0f} CPU s per hour of video")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="source", type=Path, help="folder of clips, one in it for each person")
    source.add_argument("--raw", type=Path, help="folder of films with their truth")
    parser.add_argument("--films", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the results, kept  [default: a temporary one]")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        raw, work = args.raw or Path(scratch, "raw"), args.work or Path(scratch, "work")
        if args.source is not None:
            # By the command: its children would be taken for those of the commands that are measured.
            films = ["--films", f"{args.films}", "--seconds", f"{args.seconds}", "--seed", f"{args.seed}"]
            run_pipeline("synth", "--style", "film", "--from", f"{args.source}", "--to", f"{raw}", *films)
        options = ["--dataset", "folder", "--cut", "--raw", f"{raw}", "--work", f"{work}"]
        options += ["--workers", args.workers]
        cpu_seconds = {}
        for stage in STAGES:
            only = ["--only"] if stage == "shard" else []
            cpu_seconds[stage] = run_pipeline(stage, *only, *options).cpu_seconds
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in read_ledger(work / "clips.parquet"):
            rows[row["path"]].append(row)
        counts, n_frames = Counts(), 0
        for path in sorted(raw.rglob("*.mp4")):
            truth = FilmTruth.load(path)
            n_frames += truth.n_frames
            count_shots(path, truth, counts)
            spans = sorted(rows[path.relative_to(raw).as_posix()], key=lambda row: row["start_seconds"])
            count_film(spans, truth, work, counts)
    figures = describe(counts, cpu_seconds, n_frames)
    print_figures(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
