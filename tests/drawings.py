"""A small world to evaluate in: made faces whose mouths follow their mels, and what others drew of them."""

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
from shards.table import write_rows
from stages.media.crops import supersampling, warp
from stages.media.encode import Sound, write_mp4
from stages.sample.pairs import CROPS, SCHEMA, STORY, TABLE, Pair, write_crops
from stages.synth import Mouth, draw_look, draw_portrait
from tests import datasets

Frames = NDArray[np.uint8]

SIZE, N_MELS = 64, 32
WIDTH, HEIGHT = 180, 160  # of the source
FACE = (330, 140, 570, 354)  # x0 y0 x1 y1 of what it shows, in the portrait
BOX = (11, 34, 53, 61)
AFFINE = np.array([[0.42, 0.03, -9.0], [-0.03, 0.42, -3.0]], np.float32)  # source px -> crop px


def openings(seed: int, n_frames: int) -> NDArray[np.float64]:
    """How open a mouth is that speaks: 0 to 1, and neighbours are alike."""
    noise = np.random.default_rng(seed).normal(size=n_frames + 4)
    smooth = np.abs(np.convolve(noise, np.ones(5) / 5, "valid"))
    return np.asarray(np.clip(smooth, 0, 1))


def source_frames(opened: NDArray[np.float64]) -> Frames:
    """One person's whole pictures (T, HEIGHT, WIDTH, 3), with the mouth so far open."""
    look = draw_look(speaker=1, seed=0)
    portrait = draw_portrait(look)
    mouth = Mouth(portrait, mirrored=look.mirrored)
    x0, y0, x1, y1 = FACE
    frames = []
    for opening in opened:
        mouth.draw_on(portrait, float(opening))
        frames.append(cv2.resize(portrait[y0:y1, x0:x1], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def mels_of(opened: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sound that says what the mouth does: the wider the louder, (2T, N_MELS) dB."""
    rows = np.repeat(opened, 2)[:, None] * np.linspace(1, 0.5, N_MELS)
    return np.asarray(-80 + 80 * rows, np.float32)


def cropped(frames: Frames) -> Frames:
    """Crops of whole pictures, as the shard stage cuts them."""
    supersample = supersampling(AFFINE[None], 16)
    return np.stack([warp(frame, AFFINE, SIZE, supersample) for frame in frames])


def dataset(folder: Path, lengths: Mapping[str, int], *, trained: int = 0, raw: Path | None = None) -> Path:
    """Test clips of these lengths, and one to train on if it has frames; with sources in ``raw``."""
    clips = []
    for number, (clip_id, n_frames) in enumerate(
        [*lengths.items(), *([("s1_train", trained)] if trained else [])]
    ):
        opened = openings(number, n_frames)
        whole = source_frames(opened)
        packed = datasets.pack(
            clip_id,
            cropped(whole),
            box=BOX,
            mels=mels_of(opened),
            split="train" if clip_id == "s1_train" else "test",
            source_size=[WIDTH, HEIGHT],
            emotion=("ANG", "SAD")[number % 2],
            **({} if raw is None else source(raw, clip_id, whole)),
        )
        clips.append(replace(packed, affine=np.repeat(AFFINE[None], n_frames, axis=0)))
    return datasets.write(folder, clips, params={"align": {"size": SIZE}, "mels": {"n_mels": N_MELS}})


def source(raw: Path, clip_id: str, whole: Frames) -> dict[str, Any]:
    """A corpus's file of these pictures and of noise to hear; what a clip's json says of it."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (len(whole) * 1920, 1)).astype(np.float32)
    path = raw / f"{clip_id}.mp4"
    write_mp4(path, whole, fps=Fraction(25), sound=Sound([noise], 48_000, 1))
    return {"source": path.name, "source_start": 0.0, "source_sha256": file_sha256(path)}


def in_the_box(frames: Frames, mouths: Frames) -> Frames:
    """The frames with other pictures' boxes in theirs."""
    x0, y0, x1, y1 = BOX
    pasted = frames.copy()
    pasted[:, y0:y1, x0:x1] = mouths[:, y0:y1, x0:x1]
    return pasted


def samples(
    folder: Path, opened: Dataset, drawn: Mapping[Pair, Frames], *, audio: str, seed: int = 0
) -> Path:
    """A folder as `pipeline sample` writes it."""
    rows = []
    for pair, frames in drawn.items():
        path = folder / CROPS / f"{pair.name}.tar"
        write_crops(path, frames)
        rows.append({
            "name": pair.name, "clip_id": pair.clip_id, "audio_clip_id": pair.audio_clip_id, "split": "test",
            "speaker": "s1", "frames": len(frames), "crops_sha256": file_sha256(path),
        })  # fmt: skip
    write_rows(folder / TABLE, rows, SCHEMA)
    story = {
        "run": "runs/x",
        "step": 7,
        "dataset": opened.manifest["digest"],
        "audio": audio,
        "params": {"seed": seed},
    }
    with write_atomically(folder / STORY) as partial:
        partial.write_text(json.dumps(story))
    return folder


def video(path: Path, frames: Frames, fps: int = 25) -> Path:
    """Frames as another system leaves them."""
    write_mp4(path, frames, fps=Fraction(fps))
    return path
