"""Make many edits: a ledger with a row for each, several at once, and a run that can be continued.

Each edit runs in a worker process with one thread of PyTorch, so that its bytes do not depend on how many
there are. The ledger, ``edits.csv`` in the folder of outputs, is written again as edits are done. A later run
keeps an edit whose row is ok, whose inputs, options, model and libraries are the same, and whose file has the
bytes of its row; all others are made.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import find_checkpoint
from model.execution import Execution, select_device
from model.recipe import ModelError
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator, load_generator
from shards.atomic import make_scratch_folder, write_atomically
from shards.checksum import file_sha256
from shards.errors import shorten_message
from shards.files import read_file
from stages.edit.credentials import Signing
from stages.edit.face_check import MisfitError
from stages.edit.pairs import FORMULA_SIGNS, EditPair
from stages.edit.run import EditResult, edit
from stages.engine.cache import digest, versions
from stages.engine.lock import lock_folder
from stages.engine.outcome import MACHINE_ERRORS, StageError
from stages.engine.progress import Progress, no_progress
from stages.engine.stage import Mapper, run_one_by_one

log = logging.getLogger(__name__)

LEDGER_NAME = "edits.csv"
LIBRARIES = ("torch", "av", "opencv-python", "numpy")  # that decide an edit's bytes
LEDGER_SECONDS = 1.0  # between two writes: of many edits it is large
OK, FAILED, WAITING = "ok", "failed", "waiting"
TRIES = 2  # of an edit that ends its worker
MAX_LEDGER_BYTES = 256 * 2**20
MAX_TABLE_ROWS = 40


@dataclass(frozen=True, slots=True)
class EditRow:
    """A row of the ledger: what became of one edit."""

    line: int  # of the table
    video: str
    audio: str
    out: str  # below the folder of outputs
    status: str  # ok, failed or waiting
    reason: str = ""  # one line, if it failed
    frames: int = 0
    redrawn: int = 0
    not_changed: str = ""  # frames by reason, as in `pipeline edit`
    seconds: float = 0.0  # of the output
    key: str = ""  # of inputs, options and model
    sha256: str = ""  # of the output
    preview_sha256: str = ""


COLUMNS = tuple(column.name for column in fields(EditRow))


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What all edits of a batch share."""

    run: Path  # a run, a checkpoint or a published file
    out: Path  # the folder of outputs
    landmarker: Path
    sampling: SampleParams
    device: str = "auto"
    execution: Execution = field(default_factory=Execution)
    signing: Signing | None = None


@dataclass(frozen=True, slots=True)
class EditTask:
    """One edit, for a worker."""

    pair: EditPair
    row: EditRow
    request: BatchRequest
    attempts: Path  # a file that grows by a byte with each try


def edit_pairs(
    pairs: Sequence[EditPair],
    request: BatchRequest,
    *,
    map_tasks: Mapper = run_one_by_one,
    progress: Progress = no_progress,
) -> list[EditRow]:
    """Make the edits that are not made yet; returns a row for each pair, in their order.

    An edit that is refused, or that ends its worker twice, is a row that says why; the others go on.
    ``progress`` receives the passes "inputs" and "edits". Raises StageError when the folder cannot be used.
    """
    _check_folder(pairs, request.out)
    ledger = request.out / LEDGER_NAME
    busy = f"{request.out}: another process is making edits there; wait for it, or use another folder"
    with lock_folder(request.out, busy=busy), make_scratch_folder(request.out) as scratch:
        old_rows = read_ledger(ledger)
        rows = _plan_rows(pairs, request, old_rows, progress)
        outputs = {pair.out for pair in pairs}
        # Edits of other tables, which a run of theirs keeps.
        others = [row for row in old_rows if row.out not in outputs and row.status == OK]
        order = {pair.line: k for k, pair in enumerate(pairs)}
        tasks = [
            EditTask(pair, row, request, scratch / str(row.line))
            for pair, row in zip(pairs, rows, strict=True)
            if row.status == WAITING
        ]
        write_ledger(ledger, [*rows, *others])
        written = time.monotonic()
        progress("edits", len(pairs) - len(tasks), len(pairs))
        try:
            for n, row in enumerate(map_tasks(edit_pair, tasks, label="edits"), 1):
                rows[order[row.line]] = row
                if time.monotonic() - written >= LEDGER_SECONDS:
                    write_ledger(ledger, [*rows, *others])
                    written = time.monotonic()
                progress("edits", len(pairs) - len(tasks) + n, len(pairs))
        finally:
            write_ledger(ledger, [*rows, *others])
    return rows


def edit_pair(task: EditTask) -> EditRow:
    """Make one edit, in a worker."""
    with task.attempts.open("ab") as attempts:
        attempts.write(b".")
    n_tries = task.attempts.stat().st_size
    if n_tries > TRIES:
        reason = f"its edit ended the process that made it {TRIES} times; it may need more memory"
        return replace(task.row, status=FAILED, reason=reason)
    pair, request = task.pair, task.request
    out = request.out / pair.out
    preview = None if pair.preview is None else request.out / pair.preview
    try:
        for path in (out, preview):
            if path is not None:
                _make_parent(path, request.out)
        generator = _load_generator(request)
        result = edit(
            pair.video,
            pair.recordings,
            out,
            generator,
            model=request.landmarker,
            params=pair.params,
            preview=preview,
            signing=request.signing,
            overlap=False,  # the other cores have edits of their own
        )
    except Exception as err:
        if isinstance(err, OSError) and err.errno in MACHINE_ERRORS:
            raise  # as a full disk, which no other edit would survive
        return replace(task.row, status=FAILED, reason=_describe_failure(err, pair))
    return replace(
        task.row,
        status=OK,
        frames=result.frames,
        redrawn=result.redrawn,
        not_changed=_describe_unchanged(result),
        seconds=round(result.seconds, 3),
        sha256=file_sha256(out),
        preview_sha256="" if preview is None else file_sha256(preview),
    )


@functools.lru_cache(maxsize=1)
def _load_generator(request: BatchRequest) -> FrameGenerator:
    """The generator of a worker, which makes many edits."""
    torch.set_num_threads(1)
    return load_generator(request.run, request.sampling, select_device(request.device), request.execution)


def _describe_failure(err: Exception, pair: EditPair) -> str:
    """One line that says why an edit failed."""
    if isinstance(err, MisfitError):
        text = f"{err}; yes in the column any_face draws all the same"
    elif isinstance(err, (StageError, ModelError)):
        text = str(err)
    elif isinstance(err, OSError):
        text = f"{err.filename}: {err.strerror}" if err.filename else str(err)
    elif isinstance(err, (MemoryError, torch.OutOfMemoryError)):
        text = f"out of memory; --workers 1 needs less ({err})"
    else:
        log.exception("%s: line %d", pair.video, pair.line)
        text = f"{type(err).__name__}: {err}; this is a bug of redub"
    return shorten_message(text)


def _describe_unchanged(result: EditResult) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in result.passed_through.items())


def _check_folder(pairs: Sequence[EditPair], out: Path) -> None:
    """Raise StageError if an output would overwrite an input of any edit."""
    inputs = {os.path.realpath(path) for pair in pairs for path in pair.inputs}
    for pair in pairs:
        for name in (pair.out, pair.preview):
            if name is not None and os.path.realpath(out / name) in inputs:
                raise StageError(f"{out / name}: is an input, which is never overwritten; name another file")
            if name == LEDGER_NAME:
                raise StageError(f"{out / name}: is the ledger; name another file")


def _make_parent(path: Path, folder: Path) -> None:
    """Make the folder of an output. Raises StageError if a link leads out of the folder of outputs."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise StageError(f"{path}: leads out of {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)


# --- what is there already --------------------------------------------------------------------------


def _plan_rows(
    pairs: Sequence[EditPair], request: BatchRequest, old_rows: Sequence[EditRow], progress: Progress
) -> list[EditRow]:
    """A row for each pair: the ledger's, if the edit is as it would be made now, else one that waits."""
    model_key = _hash_model(request.run)
    known = {row.key: row for row in old_rows if row.status == OK}
    hashes: dict[Path, str] = {}
    rows = []
    for k, pair in enumerate(pairs):
        for path in pair.inputs:
            if path not in hashes:
                hashes[path] = _hash_file(path)
        key = _make_key(pair, request, model_key, hashes)
        row = EditRow(pair.line, str(pair.video), pair.describe_recordings(), pair.out, WAITING, key=key)
        old = known.get(key)
        if old is not None and _is_there(old, pair, request.out):
            row = replace(old, line=pair.line, video=row.video, audio=row.audio)
        rows.append(row)
        progress("inputs", k + 1, len(pairs))
    return rows


def _hash_file(path: Path) -> str:
    """The sha256 of a file; nothing for one that cannot be read, which is the result of its edit alone."""
    try:
        return file_sha256(path) if path.is_file() else ""
    except OSError:
        return ""


def _make_key(pair: EditPair, request: BatchRequest, model_key: str, hashes: Mapping[Path, str]) -> str:
    """A digest of all that decides an edit's bytes, and of their names."""
    params = replace(pair.params, landmarks=replace(pair.params.landmarks, model=""))
    return digest(
        versions("redub", *LIBRARIES),
        select_device(request.device).type,
        [hashes[path] for path in pair.inputs],
        [str(face) for face in pair.recordings],
        pair.out,
        pair.preview,
        {
            name: value
            for name, value in asdict(params).items()
            if name not in ("limits", "max_seconds", "max_pixels")
        },
        request.sampling,
        request.execution,
        model_key,
        None if request.signing is None else file_sha256(request.signing.credentials.certificates),
    )


def _hash_model(run: Path) -> str:
    """A digest of a network's files. Raises ModelError when there is none."""
    path = find_checkpoint(run).path
    if path.is_file():
        return file_sha256(path)
    return digest([[each.name, file_sha256(each)] for each in sorted(path.iterdir()) if each.is_file()])


def _is_there(row: EditRow, pair: EditPair, folder: Path) -> bool:
    """Whether an edit's files have the bytes of its row."""
    files = [(folder / pair.out, row.sha256)]
    if pair.preview is not None:
        files.append((folder / pair.preview, row.preview_sha256))
    return all(sha256 and _hash_file(path) == sha256 for path, sha256 in files)


# --- the ledger -------------------------------------------------------------------------------------


def write_ledger(path: Path, rows: Sequence[EditRow]) -> None:
    """Write a ledger, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_make_cells, rows))
    with write_atomically(path) as partial:
        partial.write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))


def _make_cells(row: EditRow) -> dict[str, Any]:
    """The cells of a row; none is a formula of a spreadsheet."""
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_SIGNS) else value
        for name, value in asdict(row).items()
    }


def read_ledger(path: Path) -> list[EditRow]:
    """The rows of an earlier run, none if there is none. Raises StageError for another file of that name."""
    try:
        text = read_file(path, MAX_LEDGER_BYTES, inside=path.parent).decode()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError("other columns")
        return [_parse_row(row) for row in reader]
    except FileNotFoundError:
        return []
    except OSError as err:
        raise StageError(f"{path}: cannot be read ({err.strerror})") from err
    except (ValueError, TypeError, csv.Error) as err:
        message = f"{path}: is no ledger of edits of this version ({err}); move it away"
        raise StageError(shorten_message(message)) from err


def _parse_row(row: Mapping[str, Any]) -> EditRow:
    numbers = {"line": int, "frames": int, "redrawn": int, "seconds": float}
    if None in row or None in row.values():
        raise ValueError("a row is cut off")
    return EditRow(**{name: numbers.get(name, str)(value) for name, value in row.items()})


def format_table(rows: Sequence[EditRow], folder: Path) -> Iterator[str]:
    """Lines for the user: a table of the edits, of many only those that failed, and the counts."""
    shown = [row for row in rows if len(rows) <= MAX_TABLE_ROWS or row.status != OK]
    width = max((len(row.out) for row in shown), default=0)
    for row in shown:
        text = (
            f"{row.redrawn} of {row.frames} frames, {row.seconds:.2f} s" if row.status == OK else row.reason
        )
        more = f"; not changed: {row.not_changed}" if row.not_changed else ""
        yield f"{row.out:<{width}}  {row.status:<6}  {text}{more}"
    n_failed = sum(row.status == FAILED for row in rows)
    yield f"{len(rows)} edits: {len(rows) - n_failed} ok, {n_failed} failed; {folder / LEDGER_NAME}"


def has_failed(rows: Sequence[EditRow]) -> bool:
    """Whether an edit has failed."""
    return any(row.status == FAILED for row in rows)
