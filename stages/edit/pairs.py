"""Read a table of edits: a CSV file with a video and its new speech in every line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shards.errors import shorten, shorten_message
from shards.files import read_file
from shards.names import MAX_NAME_BYTES
from shards.params import describe_mismatch
from stages.edit.face_track import FaceChoice
from stages.edit.recordings import parse_recordings
from stages.edit.run import EditParams
from stages.engine.outcome import StageError

REQUIRED = ("video", "audio")
OPTIONS = ("fit", "crf", "preset", "any_face")  # of EditParams; an empty cell is the command's own
COLUMNS = (*REQUIRED, "face", "out", "preview", *OPTIONS)
SEPARATOR = ";"  # between the recordings of several faces
MAX_BYTES = 16 * 2**20
MAX_PAIRS = 100_000
DEFAULT_SUFFIX = ".mp4"
FORMULA_SIGNS = ("=", "+", "-", "@")  # a spreadsheet takes a text that begins so for a formula


@dataclass(frozen=True, slots=True)
class EditPair:
    """One edit of a table."""

    line: int  # of the file, the header is line 1
    video: Path
    recordings: dict[FaceChoice, Path]
    out: str  # below the folder of outputs, with forward slashes
    preview: str | None
    params: EditParams

    @property
    def inputs(self) -> list[Path]:
        """The video, then the recordings."""
        return [self.video, *self.recordings.values()]

    def describe_recordings(self) -> str:
        """The recordings as a cell of the table."""
        if len(self.recordings) == 1:
            return str(*self.recordings.values())
        return SEPARATOR.join(f"{face}={path}" for face, path in self.recordings.items())


def read_pairs(path: Path, params: EditParams) -> list[EditPair]:
    """Read a table of edits. Relative paths in it are relative to its folder.

    It has the columns ``video`` and ``audio``, and any of the others of COLUMNS. ``params`` are those of
    empty cells. Raises StageError, which names the line: for a file that is too large, an unknown column, a
    value out of bounds, an output outside its folder, and two lines with one output. Inputs are not looked
    for: what is not there is the result of that edit alone.
    """
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = reader.fieldnames or []
        _check_columns(path, columns)
        pairs: list[EditPair] = []
        for row in reader:
            if len(pairs) == MAX_PAIRS:
                raise StageError(f"{path}: has more than {MAX_PAIRS} edits")
            pairs.append(
                _parse_row(f"{path}: line {reader.line_num}", reader.line_num, row, path.parent, params)
            )
    except OSError as err:
        raise StageError(f"{path}: cannot be read ({err.strerror})") from err
    except (UnicodeDecodeError, csv.Error) as err:
        raise StageError(shorten_message(f"{path}: is no CSV file in UTF-8 ({err})")) from err
    if not pairs:
        raise StageError(f"{path}: has no edit, expected lines with {' and '.join(REQUIRED)}")
    _check_outputs(path, pairs)
    return pairs


def _check_columns(path: Path, columns: Any) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise StageError(f"{path}: column {shorten(name)} is not known, expected {', '.join(COLUMNS)}")
    if len(set(columns)) < len(columns):
        raise StageError(f"{path}: has a column twice")
    for name in REQUIRED:
        if name not in columns:
            raise StageError(f"{path}: has no column {name}")


def _parse_row(where: str, line: int, row: Mapping[str, Any], folder: Path, params: EditParams) -> EditPair:
    if None in row or None in row.values():
        raise StageError(f"{where}: has more or fewer cells than there are columns")
    cells = {name: str(value).strip() for name, value in row.items()}
    if not cells["video"]:
        raise StageError(f"{where}: video is empty")
    if any("\0" in cell for cell in cells.values()):
        raise StageError(f"{where}: holds a zero byte")
    faces = cells.get("face") or str(params.face)
    try:
        audio = Path(cells["audio"]) if cells["audio"] else None
        recordings = parse_recordings(audio, faces.split(SEPARATOR) if audio is None else [faces])
    except StageError as err:
        raise StageError(shorten_message(f"{where}: {err}")) from err
    video = folder / cells["video"]
    recordings = {face: folder / each for face, each in recordings.items()}
    out = cells.get("out") or name_output([video, *recordings.values()], "-")
    preview = cells.get("preview") or None
    for name in (out, preview):
        if name is not None:
            _check_name(where, name)
    return EditPair(line, video, recordings, out, preview, _apply_options(where, cells, params))


def name_output(inputs: Sequence[Path], joint: str) -> str:
    """The stems of an edit's inputs as the name of an mp4.

    Each has at most an equal share of MAX_NAME_BYTES where all of them are longer than a file's name may be:
    80 Chinese letters are 240 bytes.
    """
    stems = [path.stem for path in inputs]
    name = joint.join(stems) + DEFAULT_SUFFIX
    if len(os.fsencode(name)) <= MAX_NAME_BYTES:
        return name
    room = (MAX_NAME_BYTES - len(DEFAULT_SUFFIX) - len(joint) * (len(stems) - 1)) // len(stems)
    return joint.join(_cut_text(stem, room) for stem in stems) + DEFAULT_SUFFIX


def _cut_text(text: str, n_bytes: int) -> str:
    """The beginning of a text, in whole letters."""
    return os.fsencode(text)[:n_bytes].decode(errors="ignore").rstrip()


def _apply_options(where: str, cells: Mapping[str, str], params: EditParams) -> EditParams:
    """The params with a row's own options. Raises StageError for one that is out of bounds."""
    options = {name: cells[name] for name in OPTIONS if cells.get(name)}
    if not options:
        return params
    try:
        return TypeAdapter(EditParams).validate_python(asdict(params) | options)
    except ValidationError as err:
        raise StageError(shorten_message(f"{where}: {describe_mismatch(err)}")) from err


def _check_name(where: str, name: str) -> None:
    """Raise StageError for an output that leaves its folder, or hides in it."""
    parts = PurePosixPath(name).parts
    is_odd = name.startswith(FORMULA_SIGNS) or "\\" in name
    if PurePosixPath(name).is_absolute() or any(part.startswith(".") for part in parts) or is_odd:
        raise StageError(
            shorten_message(
                f"{where}: output {name}: expected a name below the folder of outputs, of visible files"
            )
        )


def _check_outputs(path: Path, pairs: list[EditPair]) -> None:
    """Raise StageError if an output is written twice."""
    lines: dict[str, int] = {}
    for pair in pairs:
        for name in (pair.out, pair.preview):
            if name is None:
                continue
            key = str(PurePosixPath(name)).casefold()  # some file systems know no case
            if key in lines:
                raise StageError(
                    shorten_message(
                        f"{path}: lines {lines[key]} and {pair.line} both write {name}; a column out helps"
                    )
                )
            lines[key] = pair.line
