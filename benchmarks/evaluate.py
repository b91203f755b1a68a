"""How long an evaluation takes without networks, and SSIM beside scikit-image's.

    python benchmarks/evaluate.py --clips 820 --frames 64
    python benchmarks/evaluate.py --small

CREMA-D's test split has 820 clips of some 64 frames. As many are synthesised, of noise as smooth as faces,
with generated versions for their own and for each other's speech. `pipeline evaluate --no-landmarks` scores
both, the ground truth and the three baselines. Goal: under two minutes on two cores. MediaPipe, a network,
would add some 15 ms for each frame of each row.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from processes import run_pipeline
from skimage.metrics import structural_similarity

from sampler.params import SampleParams
from shards.checksum import file_sha256
from shards.codec import encode_frame
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    make_shard_rows,
    write_index,
    write_manifest,
)
from shards.ledger import write_ledger
from shards.reader import open_dataset
from shards.schema import SCHEMA_VERSION, Frames
from shards.table import write_rows
from shards.writer import PackedClip, describe_shard, write_tar
from stages.engine.cache import link_or_copy
from stages.metrics.pixels import ssim_by_frame
from stages.sample.pairs import CROPS, RUN_INFO, SCHEMA, TABLE, make_pairs, write_crops

SIZE, N_MELS = 128, 256
BOX = (25, 80, 99, 122)  # of a GRID clip
N_DISTINCT = 8  # clips; the others have the same frames under other names


def make_frames(seed: int, n_frames: int) -> Frames:
    """A smooth image with a little noise, whose box moves."""
    rng = np.random.default_rng(seed)
    face = cv2.GaussianBlur(rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.float32), (0, 0), 4) * 3 - 256
    x0, y0, x1, y1 = BOX
    frames = np.repeat(face[None], n_frames, axis=0) + rng.normal(0, 2, (n_frames, SIZE, SIZE, 3))
    frames[:, y0:y1, x0:x1] += 20 * np.sin(np.arange(n_frames) + seed)[:, None, None, None]
    return np.clip(frames, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=N_DISTINCT)
def encode_frames(seed: int, n_frames: int) -> list[bytes]:
    return [encode_frame(frame, "webp") for frame in make_frames(seed, n_frames)]


def pack_clip(number: int, n_frames: int) -> PackedClip:
    """A clip as the shard stage packs it."""
    encoded = encode_frames(number % N_DISTINCT, n_frames)
    offsets = [0, *np.cumsum([len(data) for data in encoded]).tolist()]
    rng = np.random.default_rng([1, number])
    key = f"s1_clip{number:04d}"
    info = {
        "schema_version": SCHEMA_VERSION, "clip_id": key, "speaker": "s1", "frames": n_frames, "size": SIZE,
        "split": "train" if number % 2 else "test", "codec": "webp", "frame_offsets": offsets,
        "source_sha256": "00",
    }  # fmt: skip
    return PackedClip(
        key,
        b"".join(encoded),
        np.tile(np.array(BOX, np.int16), (n_frames, 1)),
        rng.uniform(-80, 0, (2 * n_frames, N_MELS)).astype(np.float32),
        np.tile(np.eye(2, 3, dtype=np.float32), (n_frames, 1, 1)),
        info,
    )


def write_shards(folder: Path, n_clips: int, n_frames: int) -> None:
    """A finished dataset with ``n_clips`` test clips and as many training clips, in one shard."""
    folder.mkdir(parents=True)
    clips: Iterator[PackedClip] = (pack_clip(number, n_frames) for number in range(2 * n_clips))
    rows = write_tar(folder / "new.tar", clips)
    entry = describe_shard(folder / "new.tar", "test", 0, rows)
    (folder / "new.tar").rename(folder / entry.name)
    write_index(folder / INDEX_NAME, [make_shard_rows(entry.name, rows)])
    ledger = [
        {"clip_id": row["clip_id"], "path": row["clip_id"], "status": "ok", "notes": []} for row in rows
    ]
    write_ledger(folder / LEDGER_NAME, ledger)
    write_manifest(folder / DATASET_NAME, [entry], params={}, splits={})


def write_samples(folder: Path, shards: Path, audio: Any, n_frames: int) -> None:
    """Generated clips: the ground truth with blurred boxes."""
    dataset = open_dataset(shards)
    rows = []
    x0, y0, x1, y1 = BOX
    for seed in range(N_DISTINCT):
        frames = make_frames(seed, n_frames)
        for frame in frames:
            frame[y0:y1, x0:x1] = cv2.GaussianBlur(frame[y0:y1, x0:x1], (0, 0), 1)
        write_crops(folder / f"{seed}.tar", frames)
    for pair in make_pairs(dataset, "test", audio, seed=0):
        path = folder / CROPS / f"{pair.name}.tar"
        link_or_copy(folder / f"{int(pair.clip_id[-4:]) % N_DISTINCT}.tar", path)
        rows.append({
            "name": pair.name, "clip_id": pair.clip_id, "audio_clip_id": pair.audio_clip_id, "split": "test",
            "speaker": "s1", "frames": n_frames, "crops_sha256": file_sha256(path),
        })  # fmt: skip
    write_rows(folder / TABLE, rows, SCHEMA)
    description = {"dataset": dataset.manifest["digest"], "audio": audio, "params": asdict(SampleParams())}
    (folder / RUN_INFO).write_text(json.dumps(description))


def measure_ms_per_frame(score: Callable[[], object], n_frames: int, repeats: int = 5) -> float:
    """The shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        score()
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / n_frames


def compare_ssim_with_scikit_image() -> dict[str, float]:
    """SSIM of the frames and boxes of one clip that was re-drawn in its boxes; on one core."""
    cv2.setNumThreads(1)
    truth = make_frames(0, 24)
    generated = truth.copy()
    x0, y0, x1, y1 = BOX
    generated[:, y0:y1, x0:x1] = np.roll(truth, 1, axis=0)[:, y0:y1, x0:x1]
    settings: dict[str, Any] = {
        "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255,
        "channel_axis": -1,
    }  # fmt: skip
    cut = np.s_[y0:y1, x0:x1]

    def theirs() -> NDArray[np.float64]:
        pairs = list(zip(generated, truth, strict=True))
        whole = [structural_similarity(a, b, **settings) for a, b in pairs]
        return np.array([whole, [structural_similarity(a[cut], b[cut], **settings) for a, b in pairs]])

    def ours() -> NDArray[np.float64]:
        return np.array(ssim_by_frame(generated, truth, np.tile(BOX, (len(truth), 1))))

    return {
        "ours_ms": measure_ms_per_frame(ours, len(truth)),
        "scikit_image_ms": measure_ms_per_frame(theirs, len(truth)),
        "greatest_difference": float(np.abs(ours() - theirs()).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=820)
    parser.add_argument("--frames", type=int, default=64, help="frames of each clip")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="4 clips of 8 frames")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    n_clips, n_frames = (4, 8) if args.small else (args.clips, args.frames)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_shards(folder / "shards", n_clips, n_frames)
        for audio in ("own", "swapped"):
            write_samples(folder / audio, folder / "shards", audio, n_frames)
        generated = ["--generated", str(folder / "own"), "--generated", str(folder / "swapped")]
        arguments = ["--shards", str(folder / "shards"), "-o", str(folder / "out"), "--no-landmarks"]
        first = run_pipeline("evaluate", *arguments, *generated, "--workers", str(args.workers))
        again = run_pipeline("evaluate", *arguments, *generated, "--workers", str(args.workers))
    ssim = compare_ssim_with_scikit_image()
    results = {
        "clips": n_clips,
        "frames": n_clips * n_frames,
        "wall_seconds": first.wall_seconds,
        "cpu_seconds": first.cpu_seconds,
        "wall_seconds_again": again.wall_seconds,
        "ssim": ssim,
    }
    rows = len(first.summary["metrics"])
    print(f"{n_clips} clips, {n_clips * n_frames} frames, {rows} rows, {args.workers} workers: "
          f"{first.wall_seconds:.1f} s, {first.cpu_seconds:.1f} CPU s; {first.format_peaks()}")  # fmt: skip
    print(f"again, with nothing to measure: {again.wall_seconds:.1f} s")
    print(
        f"SSIM of a frame and its box: {ssim['ours_ms']:.2f} ms, "
        f"scikit-image {ssim['scikit_image_ms']:.2f} ms; at most {ssim['greatest_difference']:.0e} apart"
    )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
