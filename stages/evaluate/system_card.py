"""A card of one system: its figures on one dataset in a small JSON file, and a picture, to compare with.

FOLDER/card.json      the figures, and all that must be equal for two cards to compare
FOLDER/picture.jpg    a few frames of one clip: source, generated, truth

A card is made to be sent: it names no folder of this machine. One that comes from elsewhere is read with
limits: the JSON by a strict schema of one version, the picture as a JPEG of a bounded size.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from PIL import Image
from pydantic import ConfigDict, Field

from shards.atomic import write_folder_atomically
from shards.documents import Document
from shards.errors import hide_paths, shorten, shorten_message
from shards.files import is_inside
from shards.ledger import OK
from shards.params import describe_mismatch
from shards.reader import Dataset
from shards.schema import ClipSample, Frames
from shards.table import Row
from stages.engine.cache import versions
from stages.engine.json_file import read_json_file
from stages.engine.outcome import StageError
from stages.evaluate import measure, network_scores
from stages.evaluate.predictions import GeneratedClip, GeneratedSystem
from stages.evaluate.table import FROZEN, TRUTH
from stages.preview.drawing import draw_mask_box, enlarge
from stages.sample.pairs import describe_splits, list_other_splits, read_crops, read_pair

CARD, PICTURE = "card.json", "picture.jpg"
FORMAT, VERSION = "redub evaluation card", 2
REFERENCES = (TRUTH, FROZEN)  # rows of the table that a card repeats: what its figures are measured against
N_FRAMES, FRAME_PX, GAP_PX = 6, 128, 2  # of the picture
JPEG_QUALITY = 88
MAX_CARD_BYTES = 2**18  # one has 10 KB
PICTURE_ROWS = ("source with its mask box", "generated", "truth")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ColumnName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
Number = Annotated[float, Field(ge=-1e38, le=1e38)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Setting = Annotated[int, Field(ge=-(2**53), le=2**53)] | Number | bool | Annotated[str, Field(max_length=200)]


class CardDocument(Document):
    """A JSON object of a card: a key that the version does not have is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class CardFigure(CardDocument):
    """A mean with its 95 % interval; in version 1 one without width stands for none."""

    mean: Number
    low: Number | None
    high: Number | None
    n: Count  # clips, or frames for a figure of all frames together

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None and self.low < self.high


class CardScores(CardDocument):
    """The figures of clips with their own speech, or with another's."""

    clips: Count  # to score
    scored: Count  # of these
    pairs_sha256: Sha256  # of the names of the pairs of face and speech
    sampling: Annotated[dict[Name, Setting], Field(max_length=100)]  # as far as the folder says
    # of the speech, where they are not the faces'
    other_splits: Annotated[list[Name], Field(max_length=50)] = Field(default_factory=list)
    figures: Annotated[dict[ColumnName, CardFigure], Field(max_length=200)]
    not_computed: Annotated[dict[ColumnName, Annotated[str, Field(max_length=1000)]], Field(max_length=200)]


class CardNetwork(CardDocument):
    """What generated the frames, where the folder says it."""

    name: Name
    step: Count | None
    weights_sha256: Sha256 | None  # None: sampled before it was recorded


class CardData(CardDocument):
    """The clips that were scored."""

    name: Name  # of the corpus
    digest: Sha256
    split: Name
    split_clips: Count
    clips: Count
    clips_sha256: Sha256  # of the ids of the clips
    licences: Annotated[list[Name], Field(max_length=50)]  # as the dataset states them; may be empty


class CardConditions(CardDocument):
    """How the clips were scored."""

    scoring: Name  # version of the metrics; figures of two versions do not compare
    mouths_only: bool
    closures: Name | None  # how it is known when p, b and m are said
    interval_seed: Count
    intervals: Annotated[str, Field(max_length=200)] = ""  # what they are over


class CardPicture(CardDocument):
    """What the picture shows: PICTURE_ROWS from top to bottom, frames from left to right."""

    sha256: Sha256
    clip: Name
    speech: Name  # the clip whose speech it is; that clip is the truth
    frames: Annotated[list[Count], Field(min_length=1, max_length=20)]


class SystemCard(CardDocument):
    """The content of ``card.json``."""

    format: Literal["redub evaluation card"]
    version: Literal[1, 2]  # 1 has neither ``other_splits`` nor ``intervals``
    redub: Name
    system: Name
    network: CardNetwork | None  # None: the frames of a folder of videos
    data: CardData
    conditions: CardConditions
    own: CardScores | None
    swapped: CardScores | None
    references: dict[Literal["ground truth", "frozen mouth"], dict[ColumnName, CardFigure]]
    picture: CardPicture


# --- writing ------------------------------------------------------------------------------------


def write_system_cards(
    folder: Path,
    dataset: Dataset,
    systems: Sequence[GeneratedSystem],
    rows: Sequence[Row],
    metrics: Mapping[str, Mapping[str, Any]],
    run_info: Mapping[str, Any],
) -> list[Path]:
    """Write a card of each system that has a scored clip; return their folders, below ``folder``.

    ``rows``, ``metrics`` and ``run_info`` are the contents of an evaluation's files. Each card appears whole
    and replaces an earlier one of its name. Raises StageError.
    """
    by_name: dict[str, list[GeneratedSystem]] = {}
    for system in systems:
        by_name.setdefault(system.name, []).append(system)
    folders = {name: folder / _make_folder_name(name) for name in by_name}
    for name, path in folders.items():
        if list(folders.values()).count(path) > 1:
            raise StageError(f"--card: {path} would be the card of several systems, {shorten(name)} is one")
        _check_replaceable(path)
    scored = {(row["row"], row["name"]) for row in rows if row["status"] == OK}
    written = []
    for name, parts in by_name.items():
        clips = [
            (part, clip) for part in parts for clip in part.clips if (part.row, clip.pair.name) in scored
        ]
        if not clips:
            continue
        # with another's speech if there is such a clip: only that shows whether the mouth follows it
        clips.sort(key=lambda item: (item[0].audio == "own", item[1].pair.name))
        content = _describe_system(name, parts, dataset, scored, metrics, run_info)
        picture, content["picture"] = _draw_picture(dataset, clips[0][1])
        _check_card(content, str(folders[name]))
        with write_folder_atomically(folders[name]) as partial:
            (partial / PICTURE).write_bytes(picture)
            (partial / CARD).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        written.append(folders[name])
    return written


def _make_folder_name(system: str) -> str:
    """ours -> ours, "My system, v2" -> My-system-v2: a plain file name anywhere."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", system)[:60].strip("-") or "card"


def _check_replaceable(path: Path) -> None:
    """Raise StageError for a folder that holds anything but a card, which the new one would delete."""
    if not path.exists():
        return
    is_card = path.is_dir() and {each.name for each in path.iterdir()} <= {CARD, PICTURE}
    if not is_card or path.is_symlink():
        raise StageError(f"--card: {path} is there already and is no card; name another folder")


def _describe_system(
    name: str,
    parts: Sequence[GeneratedSystem],
    dataset: Dataset,
    scored: set[tuple[str, str]],
    metrics: Mapping[str, Mapping[str, Any]],
    run_info: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of a card, without its picture."""
    networks = [_describe_network(part.description) for part in parts if part.description]
    if any(network != networks[0] for network in networks):
        raise StageError(
            f"--card: the rows of {shorten(name)} were generated by two networks, {shorten(networks[0])} and "
            f"{shorten(networks[1])}; name each folder, --generated NAME=DIR"
        )
    clip_ids = sorted({clip.pair.clip_id for part in parts for clip in part.clips})
    manifest = dataset.manifest
    return {
        "format": FORMAT,
        "version": VERSION,
        "redub": versions("redub")["redub"],
        "system": name,
        "network": networks[0] if networks else None,
        "data": {
            "name": str(manifest.get("dataset") or "unknown"),
            "digest": manifest["digest"],
            "split": run_info["split"],
            "split_clips": len(dataset.clips.ids_in_split(run_info["split"])),
            "clips": len(clip_ids),
            "clips_sha256": _hash_names(clip_ids),
            "licences": _list_licences(manifest.get("sources")),
        },
        "conditions": {
            "scoring": f"{measure.VERSION}.{network_scores.VERSION}",
            "mouths_only": run_info["mouths_only"],
            "closures": run_info["closures"],
            "interval_seed": run_info["seed"],
            "intervals": run_info["intervals"],
        },
        **{
            audio: next(
                (_describe_scores(part, dataset, scored, metrics) for part in parts if part.audio == audio),
                None,
            )
            for audio in ("own", "swapped")
        },
        "references": {row: _select_figures(metrics[row]) for row in REFERENCES if row in metrics},
    }


def _describe_network(description: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``samples.json``. The folder of the run is left out: it is of this machine."""
    return {
        "name": Path(str(description.get("run") or "unknown")).name or "unknown",
        "step": description.get("step"),
        "weights_sha256": description.get("weights_sha256"),
    }


def _describe_scores(
    part: GeneratedSystem,
    dataset: Dataset,
    scored: set[tuple[str, str]],
    metrics: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    pairs = [clip.pair.name for clip in part.clips]
    cells = metrics[part.row]
    params = part.description.get("params")
    return {
        "clips": len(pairs),
        "scored": sum((part.row, name) in scored for name in pairs),
        "pairs_sha256": _hash_names(pairs),
        "sampling": dict(params) if isinstance(params, Mapping) else {},
        "other_splits": list_other_splits(describe_splits(dataset, clip.pair) for clip in part.clips)[:50],
        "figures": _select_figures(cells),
        "not_computed": {
            name: _hide_paths(cell.removeprefix("not computed: "))[:1000]
            for name, cell in cells.items()
            if isinstance(cell, str)
        },
    }


def _hide_paths(reason: str) -> str:
    """A reason without the folders of this machine, such as where weights were not found."""
    if " not found at " in reason:
        return reason.partition(" at ")[0]
    return hide_paths(reason)


def _select_figures(cells: Mapping[str, Any]) -> dict[str, Any]:
    """The means; not what is of another system."""
    return {
        name: {key: value for key, value in cell.items() if key != "difference"}
        for name, cell in cells.items()
        if isinstance(cell, Mapping)
    }


def _hash_names(names: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()


def _list_licences(sources: Any) -> list[str]:
    """A line for each corpus of a manifest's ``sources`` and its licence; none of an older dataset."""
    items = [item for item in sources if isinstance(item, Mapping)] if isinstance(sources, list) else []
    return [
        f"{str(item.get('name'))[:90]} ({str(item.get('licence') or 'not stated')[:100]})"
        for item in items[:50]
    ]


def _draw_picture(dataset: Dataset, clip: GeneratedClip) -> tuple[bytes, dict[str, Any]]:
    """The JPEG, and what the card says of it."""
    pair = clip.pair
    source, truth = read_pair(dataset, pair)
    assert clip.file is not None, "a clip that was scored has crops"
    generated = read_crops(clip.file, source.frames.shape[1])
    n_frames = min(len(source.frames), len(truth.frames), len(generated))
    frames = sorted({(2 * i + 1) * n_frames // (2 * N_FRAMES) for i in range(N_FRAMES)})
    data = encode_picture(source, generated, truth, frames)
    return data, {
        "sha256": hashlib.sha256(data).hexdigest(),
        "clip": pair.clip_id,
        "speech": pair.audio_clip_id,
        "frames": frames,
    }


def encode_picture(source: ClipSample, generated: Frames, truth: ClipSample, frames: Sequence[int]) -> bytes:
    """A JPEG of PICTURE_ROWS, with a column for each of ``frames``."""
    rows = [
        [draw_mask_box(source.frames[k], source.boxes[k], FRAME_PX) for k in frames],
        [enlarge(generated[k], FRAME_PX) for k in frames],
        [enlarge(truth.frames[k], FRAME_PX) for k in frames],
    ]
    gap = ((GAP_PX, 0), (GAP_PX, 0), (0, 0))
    image = np.concatenate(
        [np.concatenate([np.pad(frame, gap, constant_values=255) for frame in row], axis=1) for row in rows]
    )
    buffer = io.BytesIO()
    Image.fromarray(image[GAP_PX:, GAP_PX:]).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


# --- reading ------------------------------------------------------------------------------------


def read_system_card(folder: Path) -> SystemCard:
    """The card in a folder that may come from anyone. Raises StageError in one line."""
    path = folder / CARD
    content = read_json_file(path, "pipeline evaluate --card", max_bytes=MAX_CARD_BYTES)
    return _check_card(content, f"{path}")


def _check_card(content: Mapping[str, Any], name: str) -> SystemCard:
    try:
        return SystemCard.model_validate(content)
    except pydantic.ValidationError as err:
        raise StageError(shorten_message(f"{name}: {describe_mismatch(err, SystemCard)}")) from err


def find_cards(path: Path) -> list[Path]:
    """A folder that is a card, or the cards in a folder, by name. Raises StageError when there is none."""
    if (path / CARD).exists():
        return [path]
    try:
        folders = sorted(each for each in path.iterdir() if (each / CARD).exists() and is_inside(each, path))
    except OSError as err:
        raise StageError(shorten_message(f"--card {path}: cannot be listed ({err.strerror})")) from err
    if not folders:
        raise StageError(f"--card {path}: holds no card; `pipeline evaluate --card` writes them")
    return folders
