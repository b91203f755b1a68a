"""Contact sheets: one cell per clip, with frames, mask boxes and mels."""

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
    DIM,
    GAP_PX,
    INTERPOLATED,
    MARK,
    TEXT,
    Color,
    draw_centred,
    draw_mask_box,
    draw_mels,
    draw_seconds,
    draw_text,
    find_interpolated_frames,
)

FRAMES_PER_CELL = 6
MARGIN_PX = 28
DIGEST_LETTERS = 12


@dataclass(frozen=True, slots=True)
class SheetStyle:
    """Layout and sizes of a contact sheet, in px."""

    columns: int
    crop: int  # side of a frame
    text: int

    @property
    def cell(self) -> int:
        """Width of a cell."""
        return FRAMES_PER_CELL * self.crop + (FRAMES_PER_CELL - 1) * GAP_PX

    @property
    def width(self) -> int:
        """Width of the sheet."""
        return self.columns * (self.cell + MARGIN_PX) + MARGIN_PX


def choose_style(n_clips: int) -> SheetStyle:
    """Large cells for few clips, several columns for many; a sheet is 1600 to 2500 px wide."""
    if n_clips <= 3:
        return SheetStyle(columns=1, crop=256, text=22)
    if n_clips <= 16:
        return SheetStyle(columns=2, crop=192, text=19)
    return SheetStyle(columns=3, crop=128, text=15)


def draw_cell(sample: ClipSample, style: SheetStyle) -> Image.Image:
    """Draw a clip: caption, frames with mask boxes, and mels with marks at the times of these frames."""
    n_frames = len(sample.frames)
    seconds = n_frames / VIDEO_FPS
    interpolated = find_interpolated_frames(sample)
    notes = _format_notes(sample, interpolated)
    line, small = round(1.5 * style.text), style.text - 3
    crops_top = line + (line if notes else 0)
    labels_top = crops_top + style.crop
    mel_top, mel_height = labels_top + line, round(0.75 * style.crop)
    cell = Image.new("RGB", (style.cell, mel_top + mel_height + 8 + style.text), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    _draw_caption(draw, sample, style)
    if notes:
        draw_text(draw, (0, line + style.text), notes, small, INTERPOLATED, width=style.cell)

    mel = draw_mels(sample.mels, start=0, seconds=seconds, width=style.cell, height=mel_height)
    cell.paste(Image.fromarray(mel), (0, mel_top))
    for k in interpolated:
        x0, x1 = k / n_frames * style.cell, (k + 1) / n_frames * style.cell
        draw.rectangle((x0, mel_top, x1, mel_top + style.crop // 32), INTERPOLATED)

    n_crops = min(FRAMES_PER_CELL, n_frames)
    for i in range(n_crops):
        k = (2 * i + 1) * n_frames // (2 * n_crops)
        x0 = i * (style.crop + GAP_PX)
        crop = draw_mask_box(sample.frames[k], sample.boxes[k], style.crop)
        cell.paste(Image.fromarray(crop), (x0, crops_top))
        color = INTERPOLATED if k in interpolated else TEXT
        if k in interpolated:
            edges = (x0, crops_top, x0 + style.crop - 1, crops_top + style.crop - 1)
            draw.rectangle(edges, outline=INTERPOLATED, width=3)
        x = k / n_frames * style.cell
        label = f"{k} · {k / VIDEO_FPS:.2f} s"
        draw_centred(draw, (x, labels_top + small + 2), label, small, color, between=(0, style.cell))
        draw.line((x, mel_top - 5, x, mel_top - 1), color)
        _draw_translucent_line(cell, round(x), mel_top, mel_height, color)
    draw_seconds(draw, 0, mel_top + mel_height, style.cell, 0, seconds, small)
    return cell


def _draw_translucent_line(cell: Image.Image, x: int, top: int, height: int, color: Color) -> None:
    """A vertical line through which the mels are visible."""
    region = (x, top, x + 1, top + height)
    background = cell.crop(region)
    cell.paste(Image.blend(background, Image.new("RGB", background.size, color), 0.45), region)


def _draw_caption(draw: ImageDraw.ImageDraw, sample: ClipSample, style: SheetStyle) -> None:
    info = sample.info
    details = [
        str(info.get("split") or "no split"),
        f"speaker {info['speaker']}" if info.get("speaker") else "",
        " ".join(str(info[name]) for name in ("emotion", "level") if info.get(name)),
        f"{len(sample.frames)} frames, {len(sample.frames) / VIDEO_FPS:.2f} s",
    ]
    x0 = style.text + draw_text(draw, (0, style.text), sample.key, style.text, TEXT, width=0.6 * style.cell)
    line = " · ".join(detail for detail in details if detail)
    draw_text(draw, (x0, style.text), line, style.text - 3, DIM, width=style.cell - x0)


def _format_notes(sample: ClipSample, interpolated: Sequence[int]) -> str:
    entries = sample.info.get("notes", [])
    notes = [str(note) for note in entries] if isinstance(entries, list) else []
    if interpolated:
        notes.insert(0, f"{len(interpolated)} frames interpolated: {_format_ranges(interpolated)}")
    return "; ".join(notes)


def _format_ranges(numbers: Sequence[int]) -> str:
    """[3, 4, 5, 9] -> "3-5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def draw_sheet(dataset: Dataset, clip_ids: Sequence[str]) -> Image.Image:
    """Draw one cell per clip, in this order, below a header that describes the dataset."""
    style = choose_style(len(clip_ids))
    cells = [draw_cell(read_clip(dataset, clip_id), style) for clip_id in clip_ids]
    rows = [cells[i : i + style.columns] for i in range(0, len(cells), style.columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    header = MARGIN_PX + 4 * style.text
    sheet = Image.new("RGB", (style.width, header + sum(heights) + MARGIN_PX * len(rows)), BACKGROUND)
    _draw_header(ImageDraw.Draw(sheet), dataset, len(clip_ids), style)
    top = header
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN_PX + column * (style.cell + MARGIN_PX), top))
        top += height + MARGIN_PX
    return sheet


def _draw_header(draw: ImageDraw.ImageDraw, dataset: Dataset, n_clips: int, style: SheetStyle) -> None:
    manifest = dataset.manifest
    per_split: dict[str, int] = {}
    for row in dataset.clips.values():
        per_split[row["split"]] = per_split.get(row["split"], 0) + 1
    splits = ", ".join(f"{count} {split}" for split, count in sorted(per_split.items()))
    n_frames = sum(row["frames"] for row in dataset.clips.values())
    digest = str(manifest.get("digest", ""))[:DIGEST_LETTERS]
    width = style.width - 2 * MARGIN_PX
    name = str(manifest.get("dataset", Path(dataset.storage.address).name))
    x0, base = MARGIN_PX, MARGIN_PX + style.text
    name_width = style.text + draw_text(draw, (x0, base), name, style.text + 8, TEXT, width=width / 3)
    line = f"digest {digest} · {n_clips} of {len(dataset.clips)} clips ({splits}; {n_frames} frames in all)"
    draw_text(draw, (x0 + name_width, base), line, style.text, DIM, width=width - name_width)
    base += round(1.6 * style.text)
    for color, label in (
        (BOX, "mask box"),
        (MARK, "frames shown, with number and time"),
        (INTERPOLATED, "interpolated frames, notes"),
    ):
        swatch = (x0, base - style.text // 2 - 2, x0 + style.text, base - style.text // 2 + 1)
        draw.rectangle(swatch, color)
        x0 += round(1.5 * style.text)
        x0 += round(draw_text(draw, (x0, base), label, style.text - 3, DIM, width=width / 3)) + style.text


def write_sheet(dataset: Dataset, clip_ids: Sequence[str], out: Path) -> tuple[int, int]:
    """Write a contact sheet as PNG; return its width and height in px."""
    sheet = draw_sheet(dataset, clip_ids)
    with write_atomically(out) as partial:
        sheet.save(partial, "PNG")
    return sheet.size
