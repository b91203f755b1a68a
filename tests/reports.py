"""What a report is made from, in small: clips, samples, a run and an evaluation of seeded numbers.

One clip, speaker, reason, row and param is named by somebody who wants a page to run his script.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards.reader import Dataset, open_dataset, read_clip
from shards.table import write_rows
from stages.evaluate.columns import COLUMNS
from stages.evaluate.metrics.obedience import Mean
from stages.evaluate.run import CLIPS, FRAMES, METRICS, RUN_INFO
from stages.evaluate.scores import CLIPS_SCHEMA, FRAMES_SCHEMA, build_metrics
from stages.evaluate.table import FROZEN, TRUTH
from stages.report.run import ReportRequest, write
from stages.sample.pairs import CROPS, SCHEMA, TABLE, write_crops
from stages.sample.pairs import STORY as SAMPLES_STORY
from tests import datasets

HOSTILE = "<img src=x onerror=alert(1)>"
SIZE, N_FRAMES, BOX = 32, 12, (8, 16, 24, 30)
LOST = {"no_face": 2, "silent": 1}  # files that are not in the dataset, by code
OWN, SWAPPED = "ours (own audio)", "ours (swapped audio)"
NOT_COMPUTED = {"lse_c": f"SyncNet weights not found at {HOSTILE}; get them from their official address"}
TYPICAL = {"psnr_box_db": 24.0, "ssim_box": 0.8, "smoothness_box": 1.1, "mouth_distance_px": 1.4}


def dataset(folder: Path) -> Dataset:
    """Five clips of noise by three speakers, one of them in both splits; three files more in the ledger."""
    rng = np.random.default_rng(0)
    clips = [
        datasets.pack(
            key,
            rng.integers(0, 256, (N_FRAMES, SIZE, SIZE, 3), dtype=np.uint8),
            box=BOX,
            mels=rng.uniform(-80, 0, (2 * N_FRAMES, 40)).astype(np.float32),
            codec="webp",
            speaker=speaker,
            split=split,
        )
        for key, speaker, split in (
            ("s1_a", "s1", "train"), ("s1_b", "s1", "test"), ("s2_a", "s2", "train"),
            ("s3_a", HOSTILE, "test"), (HOSTILE, HOSTILE, "test"),
        )
    ]  # fmt: skip
    lost = [
        {"path": f"{code}{number}.mpg", "status": "dropped", "stage": "mels", "code": code, "reason": HOSTILE}
        for code, count in LOST.items()
        for number in range(count)
    ]
    params = {"align": {HOSTILE: HOSTILE}}
    return open_dataset(datasets.write(folder, clips, lost=lost, dataset="grid", codec="webp", params=params))


def page(folder: Path) -> Path:
    """A report of everything."""
    made = dataset(folder / "shards")
    test = [clip_id for clip_id, row in made.clips.items() if row["split"] == "test"]
    request = ReportRequest(
        shards=str(made.folder),
        out=folder / "report.html",
        run=run(folder / "run", made),
        evaluation=evaluation(folder / "evaluation", made, test),
        generated=(
            samples(folder / "own", made, [(clip_id, clip_id) for clip_id in test]),
            samples(folder / "swapped", made, list(zip(test, test[1:] + test[:1], strict=True))),
        ),
    )
    write(request)
    return request.out


def evaluation(folder: Path, dataset: Dataset, clip_ids: Sequence[str], *, seed: int = 0) -> Path:
    """Scores of these clips in five rows; only the swapped one has any obedience, and LSE-C has nothing."""
    rng = np.random.default_rng(seed)
    clips: list[dict[str, Any]] = []
    frames: list[dict[str, Any]] = []
    for row in (OWN, SWAPPED, TRUTH, FROZEN, HOSTILE):
        typical = {"audio_obedience": 0.2} if row == SWAPPED else TYPICAL
        for number, clip_id in enumerate(clip_ids):
            facts = dataset.clips[clip_id]
            known = {"name": clip_id, "clip_id": clip_id, "audio_clip_id": clip_id, "frames": facts["frames"]}
            about = {
                "split": facts["split"],
                "speaker": facts["speaker"],
                "emotion": ("ANG", HOSTILE)[number % 2],
            }
            scores = {name: mean * rng.uniform(0.8, 1.2) for name, mean in typical.items()}
            clips.append({"row": row, "status": "ok", **known, **about, **dict.fromkeys(COLUMNS), **scores})
            said = np.convolve(rng.uniform(0, 0.4, facts["frames"]), np.ones(5) / 5, "same")
            for k, opening in enumerate(said):
                frames.append(
                    {
                        "row": row,
                        "name": clip_id,
                        "frame": k,
                        "psnr_box_db": None if row == TRUTH else 32 - 6 * k / (k + 20) + rng.normal(),
                        "identity_distance": 1 + 0.02 * k,
                        "opening": opening if row == TRUTH else 0.6 * opening + rng.normal(0, 0.02),
                        "opening_speech": opening,
                    }
                )
    write_rows(folder / CLIPS, clips, CLIPS_SCHEMA)
    pq.write_table(pa.Table.from_pylist(frames, FRAMES_SCHEMA), folder / FRAMES)
    (folder / METRICS).write_text(
        json.dumps(build_metrics(clips, {OWN: {"fid_box": Mean(31.4, 31.4, 31.4, 36)}}, NOT_COMPUTED))
    )
    (folder / RUN_INFO).write_text(
        json.dumps({"dataset": dataset.manifest["digest"], "seed": seed, "without_lse": {HOSTILE: 2}})
    )
    return folder


def samples(folder: Path, dataset: Dataset, pairs: Sequence[tuple[str, str]], *, seed: int = 0) -> Path:
    """Clips whose boxes were drawn by noise, as ``pipeline sample`` leaves them."""
    rng = np.random.default_rng(seed)
    rows = []
    for clip_id, audio_clip_id in pairs:
        clip = read_clip(dataset, clip_id)
        drawn = clip.frames.copy()
        for k, (x0, y0, x1, y1) in enumerate(clip.boxes):
            noise = rng.integers(-30, 30, (y1 - y0, x1 - x0, 3))
            drawn[k, y0:y1, x0:x1] = (drawn[k, y0:y1, x0:x1] + noise).clip(0, 255)
        name = clip_id if clip_id == audio_clip_id else f"{clip_id}~{audio_clip_id}"
        write_crops(folder / CROPS / f"{name}.tar", drawn)
        known = {"name": name, "clip_id": clip_id, "audio_clip_id": audio_clip_id, "frames": len(drawn)}
        rows.append(known | {"split": dataset.clips[clip_id]["split"]})
    write_rows(folder / TABLE, rows, SCHEMA)
    (folder / SAMPLES_STORY).write_text(
        json.dumps({"dataset": dataset.manifest["digest"], "params": {"steps": 10}})
    )
    return folder


def run(folder: Path, dataset: Dataset) -> Path:
    """A recipe, lines and a picture, as ``pipeline train`` leaves them."""
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (64, 32), (90, 60, 50)).save(folder / "pictures" / "held-out-00000020.png")
    recipe = {"optim": {"learning_rate": 1e-3}}
    story = {"preset": "demo", "digest": dataset.manifest["digest"], "recipe": recipe}
    (folder / "run.json").write_text(json.dumps(story))
    told = {"learning_rate": 1e-3, "grad_norm": 0.5, "frames_per_second": 40.0}
    lines = [{"step": step, "loss": 1 / step, **told} for step in range(1, 21)]
    lines.append({"step": 20, "held_out_loss": 0.06, "held_out_log_snr/below_-4": 0.02})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
