"""Images of the page: clips of the dataset, strips of generated clips, images of a training run.

Images are small and their number is limited, so that the page can be sent by mail.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.run_log import PICTURES
from shards.errors import shorten_message
from shards.files import is_regular_file, read_file
from shards.reader import Dataset, read_clip
from shards.schema import VIDEO_FPS, ClipSample, Frames, ShardError
from stages.engine.outcome import StageError
from stages.preview.drawing import draw_mask_box, enlarge
from stages.preview.selection import spread_clips
from stages.preview.sheet import choose_style, draw_cell
from stages.report.inputs import pick_evenly
from stages.sample.pairs import (
    CROPS,
    VIDEOS,
    Pair,
    explain_other_splits,
    list_other_splits,
    read_crops,
    read_pair,
    read_sample_info,
    read_samples,
)

N_CLIPS = 12  # of the dataset
N_STRIPS = 4  # per folder of generated clips
N_VIDEOS = 2  # per folder of generated clips
N_RUN_IMAGES = 3  # of a training run, evenly spaced over its steps
N_FRAMES = 8  # per strip
FRAME_PX, GAP_PX = 160, 3
DIFFERENCE_GAIN = 4
WEBP_QUALITY = 86
MAX_RUN_IMAGE_PX = 4096  # per side
MAX_VIDEO_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image as a data URL, with its size in px and its description."""

    url: str
    width: int
    height: int
    description: str


@dataclass(frozen=True, slots=True)
class SampleStrip:
    """Frames of one generated clip, in rows that show the same frames."""

    name: str
    description: str
    frames: tuple[int, ...]
    rows: tuple[tuple[str, EmbeddedImage], ...]  # label, and all frames of the row side by side
    video: str  # a data URL, or ""
    poster: EmbeddedImage  # shown before the video plays: source and generated middle frame


@dataclass(frozen=True, slots=True)
class GeneratedClips:
    """What the page shows of a folder that ``pipeline sample`` wrote."""

    name: str
    info: dict[str, Any]  # samples.json
    n_clips: int
    strips: tuple[SampleStrip, ...]


def read_picture(path: Path, form: str, max_px: int, *, inside: Path, sha256: str = "") -> Image.Image:
    """A picture of a folder that may come from anyone, as RGB.

    Raises StageError for any but one of the format ``form``, with sides of at most ``max_px`` and with the
    sha256, if there is one, and for a link that leads out of the folder.
    """
    try:
        data = read_file(path, 4 * max_px**2, inside=inside)  # more than its pixels take uncompressed
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise StageError(f"{path}: is not the picture with sha256 {sha256[:12]}...")
        with Image.open(io.BytesIO(data), formats=[form]) as image:
            if max(image.size) > max_px:
                size = f"{image.width}x{image.height}"
                raise StageError(f"{path}: {size} px, expected at most {max_px} per side")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise StageError(shorten_message(f"{path}: not a picture ({reason})")) from err


def embed_image(image: Image.Image, description: str) -> EmbeddedImage:
    """Encode as WebP. Equal pixels give equal URLs."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return EmbeddedImage(_make_data_url("image/webp", buffer.getvalue()), *image.size, description)


def _make_data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def read_example_clips(dataset: Dataset) -> list[ClipSample]:
    """Read N_CLIPS clips, from every split and as many speakers as possible."""
    return [read_clip(dataset, clip_id) for clip_id in spread_clips(dataset, N_CLIPS, seed=0)]


def draw_clips(clips: Sequence[ClipSample]) -> list[EmbeddedImage]:
    """Draw each clip as a cell of the contact sheet."""
    style = choose_style(N_CLIPS)
    return [
        embed_image(draw_cell(clip, style), f"{clip.key}: frames with mask boxes, mels below")
        for clip in clips
    ]


def read_run_images(run: Path) -> list[EmbeddedImage]:
    """Read N_RUN_IMAGES images of a training run, in order of their names, which contain the step."""
    images = []
    for path in pick_evenly(sorted((run / PICTURES).glob("*.png")), N_RUN_IMAGES):
        name, _, step = path.stem.rpartition("-")
        description = f"{name}, step {int(step):,}" if step.isdecimal() else path.stem
        images.append(embed_image(read_picture(path, "PNG", MAX_RUN_IMAGE_PX, inside=run), description))
    return images


def read_generated_clips(folder: Path, dataset: Dataset) -> GeneratedClips:
    """Make strips of N_STRIPS clips, evenly spaced over the sorted names. Raises StageError or ShardError."""
    rows = [row for row in read_samples(folder) if row["reason"] is None]
    matches = [row for row in rows if {row["clip_id"], row["audio_clip_id"]} <= set(dataset.clips)]
    if not matches:
        raise ShardError(f"{folder}: none of its {len(rows)} clips is in {dataset.storage.address}")
    selected = pick_evenly(sorted(matches, key=lambda row: str(row["name"])), N_STRIPS)
    strips = [_make_strip(folder, dataset, row, with_video=i < N_VIDEOS) for i, row in enumerate(selected)]
    info = read_sample_info(folder)
    return GeneratedClips(folder.name, info, len(rows), tuple(strips))


def _make_strip(folder: Path, dataset: Dataset, row: dict[str, Any], *, with_video: bool) -> SampleStrip:
    name = row["name"]
    source, speech = read_pair(dataset, Pair(row["clip_id"], row["audio_clip_id"]))
    crops = folder / CROPS / f"{name}.tar"
    if not is_regular_file(crops, inside=folder):
        raise ShardError(f"{crops}: no file in {folder}")
    generated = read_crops(crops, source.frames.shape[1])
    n_frames = min(len(generated), len(source.frames), len(speech.frames))
    indices = pick_evenly(range(n_frames), N_FRAMES)
    audio = "its own speech" if speech is source else f"speech of {speech.key}"
    if note := explain_other_splits(list_other_splits([row])):
        audio += f" ({note})"
    middle = np.concatenate([source.frames[n_frames // 2], generated[n_frames // 2]], axis=1)
    return SampleStrip(
        name=source.key,
        description=f"{audio}; {row['split']}; {n_frames} frames, {n_frames / VIDEO_FPS:.2f} s",
        frames=tuple(indices),
        rows=tuple(
            (label, _join_images(images, f"{name}: {label}"))
            for label, images in _draw_rows(source, speech, generated, indices).items()
        ),
        video=_embed_video(folder, name) if with_video else "",
        poster=embed_image(Image.fromarray(middle), f"{name}: source and generated"),
    )


def _draw_rows(
    source: ClipSample, speech: ClipSample, generated: Frames, indices: Sequence[int]
) -> dict[str, list[Frames]]:
    """Enlarged frames by label. With a clip's own speech, the source is the ground truth."""
    own = speech.key == source.key
    differences = [
        np.abs(generated[k].astype(np.int16) - source.frames[k]) * DIFFERENCE_GAIN for k in indices
    ]
    source_label = "source (ground truth), with mask box" if own else "source, with mask box"
    rows = {source_label: [draw_mask_box(source.frames[k], source.boxes[k], FRAME_PX) for k in indices]}
    if not own:
        rows[f"audio clip: {speech.key}"] = [enlarge(speech.frames[k], FRAME_PX) for k in indices]
    rows["generated"] = [enlarge(generated[k], FRAME_PX) for k in indices]
    rows[f"|generated - source| x {DIFFERENCE_GAIN}"] = [
        enlarge(difference.clip(0, 255).astype(np.uint8), FRAME_PX) for difference in differences
    ]
    return rows


def _join_images(images: Sequence[Frames], description: str) -> EmbeddedImage:
    gap = ((0, 0), (0, GAP_PX), (0, 0))
    padded = [np.pad(image, gap, constant_values=255) for image in images[:-1]]
    return embed_image(Image.fromarray(np.concatenate([*padded, images[-1]], axis=1)), description)


def _embed_video(folder: Path, name: str) -> str:
    """The mp4 that ``pipeline sample`` wrote; "" for none, a link out, or one above MAX_VIDEO_BYTES."""
    path = folder / VIDEOS / f"{name}.mp4"
    if not is_regular_file(path, inside=folder) or path.stat().st_size > MAX_VIDEO_BYTES:
        return ""
    return _make_data_url("video/mp4", read_file(path, MAX_VIDEO_BYTES, inside=folder))
