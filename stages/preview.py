"""Look into a dataset: a contact sheet of its clips, or one clip as video with the sound of its mels."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from shards.atomic import written_whole
from shards.index import DATASET_NAME
from shards.reader import Dataset, read_clip
from shards.schema import MEL_FPS, VIDEO_FPS, ClipSample, ShardError

if TYPE_CHECKING:
    from stages.mels import MelsParams

Frame = NDArray[np.uint8]
Color = tuple[int, int, int]

BACKGROUND: Color = (20, 20, 24)
TEXT: Color = (236, 236, 236)
DIM: Color = (160, 160, 168)
BOX: Color = (0, 255, 140)
MARK: Color = (255, 255, 255)
BRIDGED: Color = (255, 96, 80)  # frames between found ones, where no face was found
FLOOR_DB = -80.0  # and below it: black; 0 dB, the clip's loudest cell, is the brightest

FRAMES_SHOWN = 6
GAP_PX = 4
MARGIN_PX = 28
DIGEST_LETTERS = 12

VIDEO_SIDE_PX = 512
VIDEO_SPAN_SECONDS = 6.0  # of mel below the frame; longer clips scroll
GRIFFIN_LIM_STEPS = 64
PEAK = 0.7  # of full scale: the mels know loudness only against the clip's loudest cell


# --- which clips ------------------------------------------------------------------------------


def clips_named(dataset: Dataset, clip_ids: Sequence[str]) -> list[str]:
    """The clips asked for, each once. Raises ShardError with all that the dataset does not hold."""
    unknown = [clip_id for clip_id in dict.fromkeys(clip_ids) if clip_id not in dataset.clips]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise ShardError(f"{dataset.place.address}: holds no clip {listed}; `pipeline explain` may know why")
    return list(dict.fromkeys(clip_ids))


def clips_spread(
    dataset: Dataset, n_clips: int, *, seed: int, speaker: str | None = None, split: str | None = None
) -> list[str]:
    """Up to ``n_clips`` clips: from every split, then from as many speakers as there are, then evenly.

    Among a speaker's clips a hash of seed and id draws. Raises ShardError when there are none.
    """
    wanted = {"speaker": speaker, "split": split}
    for name, value in wanted.items():
        known = sorted({row[name] or "" for row in dataset.clips.values()})
        if value is not None and value not in known:
            raise ShardError(
                f"{dataset.place.address}: has no {name} {value!r}; known are {_shortened(known)}"
            )
    groups: dict[tuple[str, str], list[str]] = {}
    for clip_id, row in dataset.clips.items():
        if all(value in (None, row[name]) for name, value in wanted.items()):
            groups.setdefault((row["split"], row["speaker"] or ""), []).append(clip_id)
    if not groups:
        raise ShardError(f"{dataset.place.address}: has no clip of speaker {speaker!r} in split {split!r}")
    for members in groups.values():
        members.sort(key=lambda clip_id: _drawn(seed, clip_id), reverse=True)  # taken from the end
    from_split: Counter[str] = Counter()
    of_speaker: Counter[str] = Counter()

    def turn(group: tuple[str, str]) -> tuple[bool, int, int, bytes]:
        split, speaker = group
        return (
            from_split[split] > 0, of_speaker[speaker], from_split[split], _drawn(seed, groups[group][-1]),
        )  # fmt: skip

    shown: list[str] = []
    while groups and len(shown) < n_clips:
        group = min(groups, key=turn)
        shown.append(groups[group].pop())
        from_split[group[0]] += 1
        of_speaker[group[1]] += 1
        if not groups[group]:
            del groups[group]
    return sorted(shown, key=lambda clip_id: (dataset.clips[clip_id]["split"], clip_id))


def _drawn(seed: int, clip_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {clip_id}".encode()).digest()


def _shortened(words: Sequence[str], limit: int = 8) -> str:
    more = f", ... ({len(words)} in all)" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


# --- drawing ----------------------------------------------------------------------------------


def boxed(frame: Frame, box: NDArray[np.int16], side: int) -> Frame:
    """A crop (H, W, 3) enlarged to (side, side, 3), with the outline of its mask box.

    The line lies on the outermost masked pixels, so what is inside or under it is masked.
    """
    height, width = frame.shape[:2]
    large = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
    x0, y0, x1, y1 = box * np.array([side / width, side / height] * 2)
    edges = (round(x0), round(y0), round(x1) - 1, round(y1) - 1)
    ImageDraw.Draw(large).rectangle(edges, outline=BOX, width=min(3, max(1, side // 96)))
    return np.array(large)


def mel_picture(mels: NDArray[np.float32], *, start: float, seconds: float, width: int, height: int) -> Frame:
    """Mels (2T, M) from ``start`` on as (height, width, 3): time to the right, low pitch at the bottom.

    Row j is centred on j / 50 s, so half of the first one lies left of second 0.
    """
    times = start + (np.arange(width) + 0.5) / width * seconds
    rows = np.rint(times * MEL_FPS).astype(int).clip(0, len(mels) - 1)
    level = ((mels[rows].T[::-1] - FLOOR_DB) / -FLOOR_DB).clip(0, 1)
    tall = cv2.resize(level, (width, height), interpolation=cv2.INTER_AREA)
    colored = cv2.applyColorMap((255 * tall).astype(np.uint8), cv2.COLORMAP_MAGMA)
    return np.asarray(cv2.cvtColor(colored, cv2.COLOR_BGR2RGB), np.uint8)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_text(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    color: Color,
    *,
    width: float,
    anchor: str = "ls",
) -> float:
    """Write one line, cut to ``width`` px; returns how wide it became. ``anchor`` as in Pillow."""
    font = _font(size)
    line = " ".join(text.split())  # a stranger's label may hold line breaks
    if draw.textlength(line, font) > width:
        fits = bisect_left(range(len(line)), width, key=lambda n: draw.textlength(f"{line[: n + 1]}…", font))
        line = f"{line[:fits]}…"
    draw.text(xy, line, color, font, anchor)
    return draw.textlength(line, font)


def _draw_centred(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    color: Color,
    *,
    between: tuple[float, float],
) -> None:
    """Write a short label centred on ``xy``, or beside it where it would leave ``between`` two x."""
    half = draw.textlength(text, _font(size)) / 2
    x = min(max(xy[0], between[0] + half), between[1] - half)
    draw.text((x, xy[1]), text, color, _font(size), "ms")


def _draw_seconds(
    draw: ImageDraw.ImageDraw, left: float, top: float, width: int, start: float, seconds: float, size: int
) -> None:
    """A time scale below a mel picture."""
    steps = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
    step = next((step for step in steps if step / seconds * width >= 5 * size), steps[-1])
    for n in range(int(np.ceil(start / step - 1e-6)), int((start + seconds) / step) + 1):
        x = left + (n * step - start) / seconds * width
        draw.line((x, top, x, top + 4), DIM)
        _draw_centred(draw, (x, top + 5 + size), f"{n * step:g} s", size, DIM, between=(left, left + width))


def _bridged(sample: ClipSample) -> list[int]:
    """Frames whose landmarks were interpolated; a stranger's json may name anything."""
    told = sample.info.get("interpolated_frames", [])
    listed = told if isinstance(told, list) else []
    return [k for k in listed if isinstance(k, int) and 0 <= k < len(sample.frames)]


def _runs(numbers: Sequence[int]) -> str:
    """[3, 4, 5, 9] as "3-5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


# --- the sheet --------------------------------------------------------------------------------


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
    bridged = _bridged(sample)
    notes = _notes(sample, bridged)
    line, small = round(1.5 * look.text), look.text - 3
    crops_top = line + (line if notes else 0)
    labels_top = crops_top + look.crop
    mel_top, mel_height = labels_top + line, round(0.75 * look.crop)
    cell = Image.new("RGB", (look.cell, mel_top + mel_height + 8 + look.text), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    _draw_caption(draw, sample, look)
    if notes:
        _draw_text(draw, (0, line + look.text), notes, small, BRIDGED, width=look.cell)

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
        _draw_centred(draw, (at, labels_top + small + 2), label, small, color, between=(0, look.cell))
        draw.line((at, mel_top - 5, at, mel_top - 1), color)
        _draw_over(cell, round(at), mel_top, mel_height, color)
    _draw_seconds(draw, 0, mel_top + mel_height, look.cell, 0, seconds, small)
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
    used = _draw_text(draw, (0, look.text), sample.key, look.text, TEXT, width=0.6 * look.cell)
    left = used + look.text
    details = " · ".join(word for word in told if word)
    _draw_text(draw, (left, look.text), details, look.text - 3, DIM, width=look.cell - left)


def _notes(sample: ClipSample, bridged: Sequence[int]) -> str:
    told = sample.info.get("notes", [])
    notes = [str(note) for note in told] if isinstance(told, list) else []
    if bridged:
        notes.insert(0, f"{len(bridged)} frames interpolated: {_runs(bridged)}")
    return "; ".join(notes)


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
    name = str(manifest.get("dataset", Path(dataset.place.address).name))
    left, base = MARGIN_PX, MARGIN_PX + look.text
    used = _draw_text(draw, (left, base), name, look.text + 8, TEXT, width=width / 3)
    line = f"digest {digest} · {n_shown} of {len(dataset.clips)} clips ({splits}; {n_frames} frames in all)"
    _draw_text(draw, (left + used + look.text, base), line, look.text, DIM, width=width - used - look.text)
    base += round(1.6 * look.text)
    for color, words in (
        (BOX, "mask box"),
        (MARK, "frames shown, with number and time"),
        (BRIDGED, "interpolated frames, notes"),
    ):
        swatch = (left, base - look.text // 2 - 2, left + look.text, base - look.text // 2 + 1)
        draw.rectangle(swatch, color)
        left += round(1.5 * look.text)
        left += round(_draw_text(draw, (left, base), words, look.text - 3, DIM, width=width / 3)) + look.text


def write_sheet(dataset: Dataset, clip_ids: Sequence[str], out: Path) -> tuple[int, int]:
    """Write the contact sheet as PNG; returns its width and height in px."""
    sheet = draw_sheet(dataset, clip_ids)
    with written_whole(out) as partial:
        sheet.save(partial, "PNG")
    return sheet.size


# --- the video --------------------------------------------------------------------------------


def video_frames(sample: ClipSample) -> Iterator[Frame]:
    """Each frame of a clip, large, with its box, above the mels and a line where it lies in them."""
    height, width = sample.frames.shape[1:3]
    side = max(1, VIDEO_SIDE_PX // max(height, width)) * max(height, width)
    side += side % 2
    text, line, mel_height = 16, 28, side // 4 // 2 * 2
    mel_top = line + side + GAP_PX
    canvas = Image.new("RGB", (side, mel_top + mel_height + line), BACKGROUND)
    n_frames, bridged = len(sample.frames), set(_bridged(sample))
    total = n_frames / VIDEO_FPS
    span = min(total, VIDEO_SPAN_SECONDS)
    for k in range(n_frames):
        now = k / VIDEO_FPS
        start = min(max(now - span / 2, 0), total - span)
        picture = canvas.copy()
        draw = ImageDraw.Draw(picture)
        what = f"frame {k} of {n_frames} · {now:.2f} s"
        if k in bridged:
            what = f"interpolated · {what}"
        color = BRIDGED if k in bridged else TEXT
        used = _draw_text(draw, (side - 6, 20), what, text, color, width=side, anchor="rs")
        _draw_text(draw, (6, 20), sample.key, text, DIM, width=side - used - 24)
        picture.paste(Image.fromarray(boxed(sample.frames[k], sample.boxes[k], side)), (0, line))
        mel = mel_picture(sample.mels, start=start, seconds=span, width=side, height=mel_height)
        picture.paste(Image.fromarray(mel), (0, mel_top))
        x = round((now - start) / span * side)
        draw.rectangle((x, mel_top - GAP_PX, x + 1, mel_top + mel_height + 3), MARK)
        _draw_seconds(draw, 0, mel_top + mel_height, side, start, span, text - 3)
        yield np.array(picture)


def sound_of(mels: NDArray[np.float32], params: MelsParams) -> NDArray[np.float32]:
    """What mels (2T, M) sound like: (640 T,) at 16 kHz, peak at PEAK, by Griffin and Lim 1984.

    Sample 0 is the centre of row 0, as in librosa's padded frames that made the rows. Phases are guessed,
    so it sounds hollow; times are kept.
    """
    import librosa  # takes two seconds, and a sheet needs no sound

    from stages.audio import SAMPLE_RATE
    from stages.mels import HOP_SAMPLES

    # Silence behind the end, so that a short clip fills a whole window.
    silent_rows = -(-params.n_fft // HOP_SAMPLES)
    padded = np.pad(mels, ((0, silent_rows), (0, 0)), constant_values=min(FLOOR_DB, float(mels.min())))
    magnitudes = librosa.feature.inverse.mel_to_stft(
        librosa.db_to_power(padded.T), sr=SAMPLE_RATE, n_fft=params.n_fft, fmax=params.fmax
    )
    sound = librosa.griffinlim(
        magnitudes,
        n_iter=GRIFFIN_LIM_STEPS,
        hop_length=HOP_SAMPLES,
        win_length=params.win_length,
        n_fft=params.n_fft,
        random_state=0,
    )[: len(mels) * HOP_SAMPLES]
    return np.asarray(PEAK * sound / max(float(np.abs(sound).max()), 1e-9), np.float32)


def write_video(dataset: Dataset, clip_id: str, out: Path) -> int:
    """Write a clip as mp4 with the sound of its mels; returns how many frames it has."""
    from stages.audio import SAMPLE_RATE
    from stages.encode import Sound, write_mp4

    sample = read_clip(dataset, clip_id)
    sound = sound_of(sample.mels, mels_params(dataset))
    track = Sound([sound[:, None]], rate=SAMPLE_RATE, channels=1)
    return write_mp4(out, video_frames(sample), fps=Fraction(VIDEO_FPS), sound=track)


def mels_params(dataset: Dataset) -> MelsParams:
    """The params that made the mels, by the manifest; without them no sound can be made."""
    from stages.mels import MelsParams

    path = f"{dataset.place.address}/{DATASET_NAME}"
    params = dataset.manifest.get("params")
    told = params.get("mels") if isinstance(params, Mapping) else None
    if not isinstance(told, Mapping):
        raise ShardError(f"{path}: names no params.mels, without which mels cannot be made to sound")
    try:
        return MelsParams(**told)
    except ValidationError as err:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
        raise ShardError(f"{path}: params.mels are not those of this redub ({wrong})") from err
