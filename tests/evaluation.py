"""A small dataset to evaluate on: synthetic faces whose mouths follow their mels, and generated clips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.reader import Dataset
from shards.schema import Frames
from shards.table import write_rows
from stages.media.crops import compute_supersample, warp
from stages.media.encode import AudioTrack, write_mp4
from stages.sample.pairs import CROPS, RUN_INFO, SCHEMA, TABLE, Pair, write_crops
from stages.synth.appearance import sample_appearance
from stages.synth.face import Mouth, draw_portrait
from tests import datasets

SIZE, N_MELS = 64, 32
WIDTH, HEIGHT = 180, 160  # of the source
FACE = (330, 140, 570, 354)  # x0 y0 x1 y1 of the source frame in the portrait
BOX = (11, 34, 53, 61)
AFFINE = np.array([[0.42, 0.03, -9.0], [-0.03, 0.42, -3.0]], np.float32)  # source px -> crop px


def make_openings(seed: int, n_frames: int) -> NDArray[np.float64]:
    """How open a speaking mouth is in each frame: 0 to 1, and smooth."""
    noise = np.random.default_rng(seed).normal(size=n_frames + 4)
    smooth = np.abs(np.convolve(noise, np.ones(5) / 5, "valid"))
    return np.asarray(np.clip(smooth, 0, 1))


def draw_source_frames(openings: NDArray[np.float64]) -> Frames:
    """One person's full frames (T, HEIGHT, WIDTH, 3), with these mouth openings."""
    appearance = sample_appearance(speaker=1, seed=0)
    portrait = draw_portrait(appearance)
    mouth = Mouth(portrait, mirrored=appearance.mirrored)
    x0, y0, x1, y1 = FACE
    frames = []
    for opening in openings:
        mouth.draw_on(portrait, float(opening))
        frames.append(cv2.resize(portrait[y0:y1, x0:x1], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def make_mels(openings: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mels that follow the mouth, the wider the louder: (2T, N_MELS) dB."""
    rows = np.repeat(openings, 2)[:, None] * np.linspace(1, 0.5, N_MELS)
    return np.asarray(-80 + 80 * rows, np.float32)


def crop_frames(frames: Frames) -> Frames:
    """Crops of full frames, as the shard stage cuts them."""
    supersample = compute_supersample(AFFINE[None], 16)
    return np.stack([warp(frame, AFFINE, SIZE, supersample) for frame in frames])


def write_manifest(
    folder: Path, lengths: Mapping[str, int], *, n_train_frames: int = 0, raw: Path | None = None
) -> Path:
    """Test clips of these lengths, a training clip if it has frames, and source files if there is ``raw``."""
    clips = []
    for number, (clip_id, n_frames) in enumerate(
        [*lengths.items(), *([("s1_train", n_train_frames)] if n_train_frames else [])]
    ):
        openings = make_openings(number, n_frames)
        full_frames = draw_source_frames(openings)
        packed = datasets.pack(
            clip_id,
            crop_frames(full_frames),
            box=BOX,
            mels=make_mels(openings),
            split="train" if clip_id == "s1_train" else "test",
            source_size=[WIDTH, HEIGHT],
            emotion=("ANG", "SAD")[number % 2],
            **({} if raw is None else write_source(raw, clip_id, full_frames)),
        )
        clips.append(replace(packed, affine=np.repeat(AFFINE[None], n_frames, axis=0)))
    return datasets.write(folder, clips, params={"align": {"size": SIZE}, "mels": {"n_mels": N_MELS}})


def write_source(raw: Path, clip_id: str, full_frames: Frames) -> dict[str, Any]:
    """Write a raw file with these frames and noise as sound. Returns its entries for the clip's json."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (len(full_frames) * 1920, 1)).astype(np.float32)
    path = raw / f"{clip_id}.mp4"
    write_mp4(path, full_frames, fps=Fraction(25), audio=AudioTrack([noise], 48_000, 1))
    return {"source": path.name, "source_start": 0.0, "source_sha256": file_sha256(path)}


def replace_boxes(frames: Frames, other: Frames) -> Frames:
    """The frames, with the boxes of other frames."""
    x0, y0, x1, y1 = BOX
    pasted = frames.copy()
    pasted[:, y0:y1, x0:x1] = other[:, y0:y1, x0:x1]
    return pasted


def write_samples(
    folder: Path, dataset: Dataset, clips: Mapping[Pair, Frames], *, audio: str, seed: int = 0
) -> Path:
    """A folder as `pipeline sample` writes it."""
    rows = []
    for pair, frames in clips.items():
        path = folder / CROPS / f"{pair.name}.tar"
        write_crops(path, frames)
        rows.append({
            "name": pair.name, "clip_id": pair.clip_id, "audio_clip_id": pair.audio_clip_id,
            "split": dataset.clips[pair.clip_id]["split"], "speaker": "s1", "frames": len(frames),
            "crops_sha256": file_sha256(path),
        })  # fmt: skip
    write_rows(folder / TABLE, rows, SCHEMA)
    description = {
        "run": "runs/x",
        "step": 7,
        "dataset": dataset.manifest["digest"],
        "audio": audio,
        "params": {"seed": seed},
    }
    with write_atomically(folder / RUN_INFO) as partial:
        partial.write_text(json.dumps(description))
    return folder


def write_video(path: Path, frames: Frames, fps: int = 25) -> Path:
    """A video as another system writes it."""
    write_mp4(path, frames, fps=Fraction(fps))
    return path
