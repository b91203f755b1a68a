"""A contact sheet: a cell for each clip, with frames, boxes and mels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from shards.atomic import write_atomically
from shards.reader import Dataset, read_clip
from shards.schema import VIDEO_FPS, ClipSample
from stages.preview.drawing import (
    BACKGROUND,
    BOX,
    BRIDGED,
    DIM,
    GAP_PX,
    MARK,
    TEXT,
    Color,
    boxed,
    bridged_frames,
    draw_centred,
    draw_seconds,
    draw_text,
    mel_picture,
)

FRAMES_SHOWN = 6
MARGIN_PX = 28
DIGEST_LETTERS = 12


@dataclass(frozen=True, slots=True)
class Look:
    """How large a sheet's things are, in px."""

    columns: int
    crop: int  # side of a shown frame
    text: int

    @property
    def cell(self) -> int:
        """Width of one clip's cell."""
        return FRAMES_SHOWN * self.crop + (FRAMES_SHOWN - 1) * GAP_PX

    @property
    def width(self) -> int:
        return self.columns * (self.cell + MARGIN_PX) + MARGIN_PX


def look_for(n_clips: int) -> Look:
    """Few clips are drawn large, many beside each other; a sheet is 1600 to 2500 px wide."""
    if n_clips <= 3:
        return Look(columns=1, crop=256, text=22)
    if n_clips <= 16:
        return Look(columns=2, crop=192, text=19)
    return Look(columns=3, crop=128, text=15)


def draw_cell(sample: ClipSample, look: Look) -> Image.Image:
    """One clip: caption, frames with boxes, and its mel picture with marks where those frames are."""
    n_frames = len(sample.frames)
    seconds = n_frames / VIDEO_FPS
    bridged = bridged_frames(sample)
    notes = _notes(sample, bridged)
    line, small = round(1.5 * look.text), look.text - 3
    crops_top = line + (line if notes else 0)
    labels_top = crops_top + look.crop
    mel_top, mel_height = labels_top + line, round(0.75 * look.crop)
    cell = Image.new("RGB", (look.cell, mel_top + mel_height + 8 + look.text), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    _draw_caption(draw, sample, look)
    if notes:
        draw_text(draw, (0, line + look.text), notes, small, BRIDGED, width=look.cell)

    mel = mel_picture(sample.mels, start=0, seconds=seconds, width=look.cell, height=mel_height)
    cell.paste(Image.fromarray(mel), (0, mel_top))
    for k in bridged:
        left, right = k / n_frames * look.cell, (k + 1) / n_frames * look.cell
        draw.rectangle((left, mel_top, right, mel_top + look.crop // 32), BRIDGED)

    n_shown = min(FRAMES_SHOWN, n_frames)
    for i in range(n_shown):
        k = (2 * i + 1) * n_frames // (2 * n_shown)
        left = i * (look.crop + GAP_PX)
        cell.paste(Image.fromarray(boxed(sample.frames[k], sample.boxes[k], look.crop)), (left, crops_top))
        color = BRIDGED if k in bridged else TEXT
        if k in bridged:
            edges = (left, crops_top, left + look.crop - 1, crops_top + look.crop - 1)
            draw.rectangle(edges, outline=BRIDGED, width=3)
        at = k / n_frames * look.cell
        label = f"{k} · {k / VIDEO_FPS:.2f} s"
        draw_centred(draw, (at, labels_top + small + 2), label, small, color, between=(0, look.cell))
        draw.line((at, mel_top - 5, at, mel_top - 1), color)
        _draw_over(cell, round(at), mel_top, mel_height, color)
    draw_seconds(draw, 0, mel_top + mel_height, look.cell, 0, seconds, small)
    return cell


def _draw_over(cell: Image.Image, x: int, top: int, height: int, color: Color) -> None:
    """A half transparent line, so that the mels under it can still be read."""
    place = (x, top, x + 1, top + height)
    below = cell.crop(place)
    cell.paste(Image.blend(below, Image.new("RGB", below.size, color), 0.45), place)


def _draw_caption(draw: ImageDraw.ImageDraw, sample: ClipSample, look: Look) -> None:
    info = sample.info
    told = [
        str(info.get("split") or "no split"),
        f"speaker {info['speaker']}" if info.get("speaker") else "",
        " ".join(str(info[name]) for name in ("emotion", "level") if info.get(name)),
        f"{len(sample.frames)} frames, {len(sample.frames) / VIDEO_FPS:.2f} s",
    ]
    used = draw_text(draw, (0, look.text), sample.key, look.text, TEXT, width=0.6 * look.cell)
    left = used + look.text
    details = " · ".join(word for word in told if word)
    draw_text(draw, (left, look.text), details, look.text - 3, DIM, width=look.cell - left)


def _notes(sample: ClipSample, bridged: Sequence[int]) -> str:
    told = sample.info.get("notes", [])
    notes = [str(note) for note in told] if isinstance(told, list) else []
    if bridged:
        notes.insert(0, f"{len(bridged)} frames interpolated: {_runs(bridged)}")
    return "; ".join(notes)


def _runs(numbers: Sequence[int]) -> str:
    """[3, 4, 5, 9] as "3-5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def draw_sheet(dataset: Dataset, clip_ids: Sequence[str]) -> Image.Image:
    """A cell for each clip, in the order given, below a line that says what dataset it is."""
    look = look_for(len(clip_ids))
    cells = [draw_cell(read_clip(dataset, clip_id), look) for clip_id in clip_ids]
    rows = [cells[i : i + look.columns] for i in range(0, len(cells), look.columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    header = MARGIN_PX + 4 * look.text
    sheet = Image.new("RGB", (look.width, header + sum(heights) + MARGIN_PX * len(rows)), BACKGROUND)
    _draw_header(ImageDraw.Draw(sheet), dataset, len(clip_ids), look)
    top = header
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN_PX + column * (look.cell + MARGIN_PX), top))
        top += height + MARGIN_PX
    return sheet


def _draw_header(draw: ImageDraw.ImageDraw, dataset: Dataset, n_shown: int, look: Look) -> None:
    manifest = dataset.manifest
    per_split: dict[str, int] = {}
    for row in dataset.clips.values():
        per_split[row["split"]] = per_split.get(row["split"], 0) + 1
    splits = ", ".join(f"{count} {split}" for split, count in sorted(per_split.items()))
    n_frames = sum(row["frames"] for row in dataset.clips.values())
    digest = str(manifest.get("digest", ""))[:DIGEST_LETTERS]
    width = look.width - 2 * MARGIN_PX
    name = str(manifest.get("dataset", Path(dataset.storage.address).name))
    left, base = MARGIN_PX, MARGIN_PX + look.text
    used = draw_text(draw, (left, base), name, look.text + 8, TEXT, width=width / 3)
    line = f"digest {digest} · {n_shown} of {len(dataset.clips)} clips ({splits}; {n_frames} frames in all)"
    draw_text(draw, (left + used + look.text, base), line, look.text, DIM, width=width - used - look.text)
    base += round(1.6 * look.text)
    for color, words in (
        (BOX, "mask box"),
        (MARK, "frames shown, with number and time"),
        (BRIDGED, "interpolated frames, notes"),
    ):
        swatch = (left, base - look.text // 2 - 2, left + look.text, base - look.text // 2 + 1)
        draw.rectangle(swatch, color)
        left += round(1.5 * look.text)
        left += round(draw_text(draw, (left, base), words, look.text - 3, DIM, width=width / 3)) + look.text


def write_sheet(dataset: Dataset, clip_ids: Sequence[str], out: Path) -> tuple[int, int]:
    """Write the contact sheet as PNG; returns its width and height in px."""
    sheet = draw_sheet(dataset, clip_ids)
    with write_atomically(out) as partial:
        sheet.save(partial, "PNG")
    return sheet.size
