"""Small inputs of a report: clips, samples, a run and an evaluation with seeded random numbers.

One clip, speaker, reason, row and param has a name that tries to inject a script into the page.
"""

from __future__ import annotations

import hashlib
import io
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
from stages.evaluate.run import CLIPS, FRAMES, METRICS, RUN_INFO
from stages.evaluate.scores import CLIPS_SCHEMA, FRAMES_SCHEMA, build_metrics
from stages.evaluate.system_card import CARD, PICTURE
from stages.evaluate.table import FROZEN, TRUTH
from stages.metrics.obedience import Mean
from stages.report.run import ReportRequest, write_report
from stages.sample.pairs import CROPS, SCHEMA, TABLE, write_crops
from stages.sample.pairs import RUN_INFO as SAMPLES_INFO
from tests import datasets

HOSTILE = "<img src=x onerror=alert(1)>"
SIZE, N_FRAMES, BOX = 32, 12, (8, 16, 24, 30)
DROPPED = {"no_face": 2, "silent": 1}  # files that are not in the dataset, by code
OWN, SWAPPED = "ours (own audio)", "ours (swapped audio)"
NOT_COMPUTED = {"lse_c": f"SyncNet weights not found at {HOSTILE}; get them from their official address"}
TYPICAL = {"psnr_box_db": 24.0, "ssim_box": 0.8, "smoothness_box": 1.1, "mouth_distance_px": 1.4}


def write_dataset(folder: Path) -> Dataset:
    """Five clips of noise by three speakers, one of them in both splits, and three dropped files."""
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
    dropped = [
        {"path": f"{code}{number}.mpg", "status": "dropped", "stage": "mels", "code": code, "reason": HOSTILE}
        for code, count in DROPPED.items()
        for number in range(count)
    ]
    params = {"align": {HOSTILE: HOSTILE}}
    return open_dataset(
        datasets.write(folder, clips, dropped=dropped, dataset="grid", codec="webp", params=params)
    )


def write_page(folder: Path) -> Path:
    """A report with all inputs."""
    dataset = write_dataset(folder / "shards")
    test = [clip_id for clip_id, row in dataset.clips.items() if row["split"] == "test"]
    request = ReportRequest(
        shards=str(dataset.folder),
        out=folder / "report.html",
        run=write_run(folder / "run", dataset),
        evaluation=write_evaluation(folder / "evaluation", dataset, test),
        generated=(
            write_samples(folder / "own", dataset, [(clip_id, clip_id) for clip_id in test]),
            write_samples(folder / "swapped", dataset, list(zip(test, test[1:] + test[:1], strict=True))),
        ),
        cards=(
            write_card(folder / "cards" / "a", *make_card(HOSTILE)),
            write_card(folder / "cards" / "b", *make_card("other", digest="d" * 64)),
        ),
    )
    write_report(request)
    return request.out


def make_card(system: str = "ours", **changes: Any) -> tuple[dict[str, Any], bytes]:
    """The content of a card of two clips with their own speech, with changed ``data``; its picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), (90, 60, 50)).save(buffer, "JPEG")
    figure = {"mean": 24.0, "low": 22.0, "high": 25.0, "n": 2}
    scores = {"clips": 2, "scored": 2, "pairs_sha256": "b" * 64, "sampling": {"steps": 2},
              "figures": {"psnr_box_db": figure}, "not_computed": {"lse_c_real": HOSTILE}}  # fmt: skip
    data = {"name": "grid", "digest": "a" * 64, "split": "test", "split_clips": 4, "clips": 2,
            "clips_sha256": "c" * 64, "licences": []}  # fmt: skip
    card = {
        "format": "redub evaluation card",
        "version": 1,
        "redub": "0.1.0",
        "system": system,
        "network": {"name": "small", "step": 7, "weights_sha256": None},
        "data": data | changes,
        "conditions": {"scoring": "3.2", "mouths_only": False, "closures": None, "interval_seed": 0},
        "own": scores,
        "swapped": None,
        "references": {TRUTH: {"psnr_box_db": figure}},
        "picture": {
            "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "clip": "s1_a",
            "speech": "s1_a",
            "frames": [1],
        },
    }
    return card, buffer.getvalue()


def write_card(folder: Path, card: dict[str, Any], picture: bytes) -> Path:
    """A card as ``pipeline evaluate --card`` writes it."""
    folder.mkdir(parents=True)
    (folder / CARD).write_text(json.dumps(card))
    (folder / PICTURE).write_bytes(picture)
    return folder


def write_evaluation(folder: Path, dataset: Dataset, clip_ids: Sequence[str], *, seed: int = 0) -> Path:
    """Scores of these clips in five rows. Only the swapped row has audio obedience; no row has LSE-C."""
    rng = np.random.default_rng(seed)
    clips: list[dict[str, Any]] = []
    frames: list[dict[str, Any]] = []
    for row in (OWN, SWAPPED, TRUTH, FROZEN, HOSTILE):
        typical = {"audio_obedience": 0.2} if row == SWAPPED else TYPICAL
        for number, clip_id in enumerate(clip_ids):
            entry = dataset.clips[clip_id]
            ids = {"name": clip_id, "clip_id": clip_id, "audio_clip_id": clip_id, "frames": entry["frames"]}
            labels = {
                "split": entry["split"],
                "speaker": entry["speaker"],
                "emotion": ("ANG", HOSTILE)[number % 2],
            }
            labels |= {f"audio_{name}": value for name, value in labels.items()}
            scores = {name: mean * rng.uniform(0.8, 1.2) for name, mean in typical.items()}
            clips.append({"row": row, "status": "ok", **ids, **labels, **dict.fromkeys(COLUMNS), **scores})
            openings = np.convolve(rng.uniform(0, 0.4, entry["frames"]), np.ones(5) / 5, "same")
            for k, opening in enumerate(openings):
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
        json.dumps(
            build_metrics(
                clips,
                {OWN: {"fid_box": Mean(31.4, None, None, 36)}},
                NOT_COMPUTED,
                [OWN, SWAPPED, HOSTILE],
            )
        )
    )
    (folder / RUN_INFO).write_text(
        json.dumps(
            {
                "dataset": dataset.manifest["digest"],
                "seed": seed,
                "intervals": "95 % intervals are over clips of 2 people alone",
                "without_lse": {HOSTILE: 2},
                "without_closures": {HOSTILE: 3},
            }
        )
    )
    return folder


def write_samples(folder: Path, dataset: Dataset, pairs: Sequence[tuple[str, str]], *, seed: int = 0) -> Path:
    """Clips with noise added in their boxes, in the files of ``pipeline sample``."""
    rng = np.random.default_rng(seed)
    rows = []
    for clip_id, audio_clip_id in pairs:
        clip = read_clip(dataset, clip_id)
        frames = clip.frames.copy()
        for k, (x0, y0, x1, y1) in enumerate(clip.boxes):
            noise = rng.integers(-30, 30, (y1 - y0, x1 - x0, 3))
            frames[k, y0:y1, x0:x1] = (frames[k, y0:y1, x0:x1] + noise).clip(0, 255)
        name = clip_id if clip_id == audio_clip_id else f"{clip_id}~{audio_clip_id}"
        write_crops(folder / CROPS / f"{name}.tar", frames)
        ids = {"name": name, "clip_id": clip_id, "audio_clip_id": audio_clip_id, "frames": len(frames)}
        rows.append(ids | {"split": dataset.clips[clip_id]["split"]})
    write_rows(folder / TABLE, rows, SCHEMA)
    (folder / SAMPLES_INFO).write_text(
        json.dumps(
            {"dataset": dataset.manifest["digest"], "audio": "own", "params": {"steps": 10, "seed": seed}}
        )
    )
    return folder


def write_run(folder: Path, dataset: Dataset) -> Path:
    """A recipe, metrics and an image, in the files of ``pipeline train``."""
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (64, 32), (90, 60, 50)).save(folder / "pictures" / "held-out-00000020.png")
    recipe = {"optim": {"learning_rate": 1e-3}}
    info = {"preset": "demo", "digest": dataset.manifest["digest"], "recipe": recipe}
    (folder / "run.json").write_text(json.dumps(info))
    constants = {"learning_rate": 1e-3, "grad_norm": 0.5, "frames_per_second": 40.0}
    lines = [{"step": step, "loss": 1 / step, **constants} for step in range(1, 21)]
    lines.append({"step": 20, "held_out_loss": 0.06, "held_out_log_snr/below_-4": 0.02})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
