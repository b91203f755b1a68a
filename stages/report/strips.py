"""Pictures of the page: clips of the dataset, sample strips with truth and difference, a run's pictures.

Each picture is small and their number is bounded, so the page stays one that can be mailed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.run_log import PICTURES
from shards.reader import Dataset, read_clip
from shards.schema import VIDEO_FPS, ClipSample, ShardError
from stages.preview.choice import clips_spread
from stages.preview.drawing import boxed
from stages.preview.sheet import draw_cell, look_for
from stages.report.inputs import evenly, read_object
from stages.sample.pairs import CROPS, STORY, VIDEOS, Pair, read_crops, read_pair, read_samples

Frames = NDArray[np.uint8]

CLIPS_SHOWN = 12  # of the dataset
STRIPS_SHOWN = 4  # of each folder of samples
VIDEOS_SHOWN = 2  # of each folder of samples
RUN_PICTURES = 3  # of a run, spread over its steps
FRAMES_SHOWN = 8
FRAME_PX, GAP_PX = 160, 3
DIFFERENCE_GAIN = 4
QUALITY = 86  # of WebP
MAX_PICTURE_PX = 4096  # a side; what a folder holds may be a stranger's
MAX_VIDEO_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as a data: address, with its size in px and what it shows."""

    address: str
    width: int
    height: int
    shows: str


@dataclass(frozen=True, slots=True)
class Strip:
    """Frames of one drawn clip, in rows that lie over one another."""

    name: str
    told: str
    frames: tuple[int, ...]
    rows: tuple[tuple[str, Picture], ...]  # label, and all frames of the row side by side
    video: str  # a data: address, or ""
    poster: Picture  # what a video shows before it plays: source and drawn, in the middle


@dataclass(frozen=True, slots=True)
class Samples:
    """What the page shows of a folder that ``pipeline sample`` wrote."""

    name: str
    story: dict[str, Any]
    clips: int
    strips: tuple[Strip, ...]


def picture(image: Image.Image, shows: str) -> Picture:
    """Same pixels, same address."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
    return Picture(_address("image/webp", buffer.getvalue()), *image.size, shows)


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def clips_shown(dataset: Dataset) -> list[ClipSample]:
    """From every split and as many speakers as there are."""
    return [read_clip(dataset, clip_id) for clip_id in clips_spread(dataset, CLIPS_SHOWN, seed=0)]


def sheet(clips: Sequence[ClipSample]) -> list[Picture]:
    """A cell of the contact sheet for each clip."""
    look = look_for(CLIPS_SHOWN)
    return [
        picture(draw_cell(clip, look), f"{clip.key}: frames with mask boxes, mels below") for clip in clips
    ]


def pictures_of_run(run: Path) -> list[Picture]:
    """The first, the last and some between, by their names, which tell the steps."""
    paths = sorted((run / PICTURES).glob("*.png"))
    found = []
    for path in evenly(paths, RUN_PICTURES):
        try:
            with Image.open(path) as image:
                if max(image.size) > MAX_PICTURE_PX:
                    raise ShardError(f"{path}: {image.width}x{image.height} px, expected at most "
                                     f"{MAX_PICTURE_PX} a side")  # fmt: skip
                name, _, step = path.stem.rpartition("-")
                found.append(picture(image, f"{name}, step {int(step):,}" if step.isdecimal() else path.stem))
        except (OSError, Image.DecompressionBombError) as err:
            raise ShardError(f"{path}: not a picture ({err})") from err
    return found


def samples(folder: Path, dataset: Dataset) -> Samples:
    """Strips of some clips, evenly spread over their names. Raises StageError or ShardError."""
    rows = read_samples(folder)
    known = [row for row in rows if {row["clip_id"], row["audio_clip_id"]} <= set(dataset.clips)]
    if not known:
        raise ShardError(f"{folder}: none of its {len(rows)} clips is in {dataset.storage.address}")
    shown = evenly(sorted(known, key=lambda row: str(row["name"])), STRIPS_SHOWN)
    strips = [_strip(folder, dataset, row, with_video=i < VIDEOS_SHOWN) for i, row in enumerate(shown)]
    return Samples(folder.name, read_object(folder / STORY, "pipeline sample"), len(rows), tuple(strips))


def _strip(folder: Path, dataset: Dataset, row: dict[str, Any], *, with_video: bool) -> Strip:
    name = str(row["name"])
    if Path(name).name != name:
        raise ShardError(f"{folder}: {name!r} is not a plain file name")
    source, speech = read_pair(dataset, Pair(row["clip_id"], row["audio_clip_id"]))
    drawn = read_crops(folder / CROPS / f"{name}.tar", source.frames.shape[1])
    n_frames = min(len(drawn), len(source.frames), len(speech.frames))
    shown = evenly(range(n_frames), FRAMES_SHOWN)
    told = "its own speech" if speech is source else f"speech of {speech.key}"
    middle = np.concatenate([source.frames[n_frames // 2], drawn[n_frames // 2]], axis=1)
    return Strip(
        name=source.key,
        told=f"{told}; {row['split']}; {n_frames} frames, {n_frames / VIDEO_FPS:.2f} s",
        frames=tuple(shown),
        rows=tuple(
            (label, _side_by_side(images, f"{name}: {label}"))
            for label, images in _rows(source, speech, drawn, shown).items()
        ),
        video=_video(folder / VIDEOS / f"{name}.mp4") if with_video else "",
        poster=picture(Image.fromarray(middle), f"{name}: source and drawn"),
    )


def _rows(
    source: ClipSample, speech: ClipSample, drawn: Frames, shown: Sequence[int]
) -> dict[str, list[Frames]]:
    """Large frames by what they are. To its own speech, a clip's source is the truth."""
    own = speech.key == source.key
    differ = [np.abs(drawn[k].astype(np.int16) - source.frames[k]) * DIFFERENCE_GAIN for k in shown]
    truth = "source: the truth, with the mask's box" if own else "source, with the mask's box"
    rows = {truth: [boxed(source.frames[k], source.boxes[k], FRAME_PX) for k in shown]}
    if not own:
        rows[f"who says it: {speech.key}"] = [_enlarged(speech.frames[k]) for k in shown]
    rows["drawn"] = [_enlarged(drawn[k]) for k in shown]
    rows[f"|drawn - source| x {DIFFERENCE_GAIN}"] = [
        _enlarged(difference.clip(0, 255).astype(np.uint8)) for difference in differ
    ]
    return rows


def _enlarged(frame: Frames) -> Frames:
    return np.array(Image.fromarray(frame).resize((FRAME_PX, FRAME_PX), Image.Resampling.BICUBIC))


def _side_by_side(images: Sequence[Frames], shows: str) -> Picture:
    gap = ((0, 0), (0, GAP_PX), (0, 0))
    apart = [np.pad(image, gap, constant_values=255) for image in images[:-1]]
    return picture(Image.fromarray(np.concatenate([*apart, images[-1]], axis=1)), shows)


def _video(path: Path) -> str:
    """The mp4 that ``pipeline sample`` laid beside the crops, unless it is not there or too large."""
    if not path.is_file() or path.stat().st_size > MAX_VIDEO_BYTES:
        return ""
    return _address("video/mp4", path.read_bytes())
