"""Small complete datasets for tests, written as the shard stage writes them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.codec import Codec, encode_frame, write_frames
from shards.frames import NetworkInput
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    SPEECH_INDEX_SCHEMA,
    ShardEntry,
    make_shard_rows,
    write_index,
    write_manifest,
)
from shards.ledger import OK, count_by_code, write_ledger
from shards.reader import open_dataset
from shards.resident import Resident, load_resident
from shards.schema import SCHEMA_VERSION
from shards.table import PackedRows, Rows
from shards.writer import PackedClip, describe_shard, write_tar

HOSTILE = "<b onclick=alert(1)>"  # in the name of a file


def pack(
    key: str,
    frames: NDArray[np.uint8],
    *,
    box: Sequence[int],
    mels: NDArray[np.float32],
    speech: NDArray[np.float16] | None = None,
    codec: Codec = "raw",
    **info: Any,
) -> PackedClip:
    """A clip of frames (T, H, H, 3) with the same box in each of them and no alignment."""
    blob = io.BytesIO()
    offsets = write_frames(blob, (encode_frame(frame, codec) for frame in frames))
    fields = {
        "schema_version": SCHEMA_VERSION,
        "clip_id": key,
        "speaker": "s1",
        "split": "train",
        "frames": len(frames),
        "size": frames.shape[1],
        "codec": codec,
        "frame_offsets": offsets,
        "source_sha256": "00",
    }
    return PackedClip(
        key,
        blob.getvalue(),
        np.tile(np.array(box, np.int16), (len(frames), 1)),
        mels,
        np.tile(np.eye(2, 3, dtype=np.float32), (len(frames), 1, 1)),
        fields | info,
        speech,
    )


def make_noise_clip(
    key: str, n_frames: int, size: int, n_mels: int, *, seed: int, speech_size: int = 0
) -> PackedClip:
    """A clip in which no two frames, mel rows and rows of speech features are the same."""
    rng = np.random.default_rng(seed)
    return pack(
        key,
        rng.integers(0, 256, (n_frames, size, size, 3), dtype=np.uint8),
        box=(1, 3, 6, 8),
        mels=rng.uniform(-79, 0, (2 * n_frames, n_mels)).astype(np.float32),
        speech=rng.normal(0, 3, (2 * n_frames, speech_size)).astype(np.float16) if speech_size else None,
    )


def damage_clip(folder: Path, clip_id: str) -> None:
    """Change a byte of a clip's frames."""
    row = open_dataset(folder).clips[clip_id]
    data = bytearray((folder / row["shard"]).read_bytes())
    data[row["frames_offset"]] ^= 255
    (folder / row["shard"]).write_bytes(data)


def write(
    folder: Path,
    clips: Sequence[PackedClip],
    *,
    per_shard: int = 0,
    dropped: Sequence[dict[str, Any]] = (),
    ledger: Sequence[dict[str, Any]] = (),
    **fields: Any,
) -> Path:
    """A complete dataset of one shard, or of shards of ``per_shard`` clips; one of several splits is "train".

    ``dropped`` are ledger rows of files that became no clips; ``ledger`` are the rows of all files, by
    default one for each clip and each of ``dropped``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Rows] = []
    entries: list[ShardEntry] = []
    for first in range(0, len(clips), per_shard or len(clips)):
        packed = write_tar(folder / "new.tar", clips[first : first + (per_shard or len(clips))])
        names = {row["split"] for row in packed}
        split = names.pop() if len(names) == 1 else "train"
        entry = describe_shard(folder / "new.tar", split, len(entries), packed)
        entries.append(entry)
        (folder / "new.tar").rename(folder / entry.name)
        shards.append(make_shard_rows(entry.name, packed))
    has_speech = any(clip.speech is not None for clip in clips)
    if has_speech:  # with null columns where a shard has none
        shards = [PackedRows.from_rows(shard, SPEECH_INDEX_SCHEMA) for shard in shards]
    write_index(folder / INDEX_NAME, shards)
    clip_rows = [
        {"clip_id": clip.key, "path": f"{clip.key}.mpg", "emotion": clip.info.get("emotion")}
        | {"status": "ok", "notes": []}
        for clip in clips
    ]
    corpus = fields.get("dataset")
    write_ledger(
        folder / LEDGER_NAME,
        [{"notes": []} | row | {"corpus": corpus} for row in ledger or [*clip_rows, *dropped]],
    )
    splits: dict[str, dict[str, int]] = {}
    for row in chain.from_iterable(shards):
        counts = splits.setdefault(row["split"], {"shards": 1, "clips": 0, "frames": 0})
        counts["clips"] += 1
        counts["frames"] += row["frames"]
    params = {"speech": {"encoder": "made"}} if has_speech else {}
    fields["params"] = fields.get("params", {}) | params
    defaults = {"dataset": "made", "files_found": len(clips), "dropped": {}, "splits": splits}
    if ledger:
        counts = {code: count for code, count in count_by_code(ledger).items() if code != OK}
        defaults |= {"files_found": len({row["path"] for row in ledger}), "dropped": counts}
    write_manifest(folder / DATASET_NAME, entries, **(defaults | fields))
    return folder


def make_spans(path: str, *spans: tuple[int, str], fps: float = 25.0, **facts: Any) -> list[dict[str, Any]]:
    """Ledger rows of a file that was cut, of frames and code of each span; those without a code are clips."""
    rows, first = [], 0
    n_frames = sum(length for length, _ in spans)
    for length, code in spans:
        last = first + length
        row: dict[str, Any] = {
            "clip_id": f"{Path(path).stem}_{first:06d}-{last:06d}",
            "path": path,
            "stage": "cut",
            "source_frames": round(n_frames * fps / 25),
            "fps": fps,
            "video_codec": "h264",
            "video_start": first / 25,
            "frames": length,
            "start_seconds": first / 25,
            "end_seconds": last / 25,
            "status": "dropped" if code else "ok",
            "code": code,
            "reason": f"is none: {code}" if code else "",
            "notes": [],
        }
        if not code:
            row |= {"track": 0, "sync_confidence": 0.8312, "lag_frames": 2, "sound_shift": -0.08}
            row |= {"face_width": 141.6, "yaw": -12.3, "speech_level": -24.13}
        rows.append(row | facts)
        first = last
    return rows


def write_cut(folder: Path) -> Path:
    """Two clips that were cut out of one of four files. Another has none, and two were not cut."""
    ledger = [
        *make_spans(
            "tv/film.mp4", (310, "no_speech"), (5, ""), (40, "silent_face"), (7, ""), (138, "no_face")
        ),
        *make_spans(f"tv/{HOSTILE}voice.mp4", (1000, "no_face"), (250, "no_speech"), fps=30.0),
        {"path": "tv/damaged.mp4", "clip_id": "damaged", "stage": "clips", "frames": 76, "start_seconds": 0.0,
         "end_seconds": 3.02, "status": "dropped", "code": "truncated", "reason": "is cut short"},
        {"path": "tv/empty.mp4", "clip_id": "empty", "stage": "clips", "status": "dropped", "code": "empty",
         "reason": "has 0 bytes"},
    ]  # fmt: skip
    clips = [
        make_noise_clip(row["clip_id"], row["frames"], 8, 4, seed=row["frames"])
        for row in ledger
        if row["status"] == "ok"
    ]
    return write(folder, clips, ledger=ledger, codec="raw", size=8, n_mels=4)


def load(folder: Path, network_input: NetworkInput, *, pad: int, workers: int = 2) -> Resident:
    """All clips of a dataset in memory; ``pad`` rows of sound before and after each."""
    dataset = open_dataset(folder)
    cpu = torch.device("cpu")
    return load_resident(
        dataset,
        list(dataset.clips),
        replace(network_input, mel_pad=pad, speech_pad=pad),
        device=cpu,
        workers=workers,
    )
