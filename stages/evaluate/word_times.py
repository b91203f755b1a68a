"""GRID's alignment files, which say when each word is said: DIR/<speaker>/<clip>.align."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from shards.files import is_regular_file, read_file
from shards.names import is_id
from shards.table import Row
from stages.engine.outcome import StageError
from stages.metrics.closure import Word

UNITS_PER_SECOND = 25_000  # of the times in these files
TIME = re.compile("[0-9]{1,12}")
MAX_BYTES = 2**16  # of a file; GRID's have 200


def read_alignments(folder: Path, clips: Mapping[str, Row]) -> dict[str, list[Word]]:
    """The words of the clips that have a file, by clip id. ``clips`` are rows of the index.

    Raises StageError when the folder does not exist, when it has no file for any of the clips, and when a
    file cannot be read.
    """
    if not folder.is_dir():
        raise StageError(f"--alignments {folder}: no such folder")
    paths = {
        clip_id: folder / locate_alignment(clip_id, row["speaker"])
        for clip_id, row in clips.items()
        if is_id(row["speaker"])  # it becomes a part of a path
    }
    words = {}
    for clip_id, path in paths.items():
        if is_regular_file(path, inside=folder):
            try:
                words[clip_id] = read_alignment(path)
            except (OSError, ValueError) as err:
                raise StageError(f"{path}: not an alignment ({err})") from err
    if not words:
        example = f", such as {next(iter(paths.values()))}" if paths else ""
        raise StageError(f"--alignments {folder}: has no file for any of these clips{example}")
    return words


def locate_alignment(clip_id: str, speaker: str) -> Path:
    """A clip's file, relative to the folder: s1/bbaf2n.align for s1_bbaf2n."""
    return Path(speaker, clip_id.removeprefix(f"{speaker}_") + ".align")


def read_alignment(path: Path) -> list[Word]:
    """The words of a file, ``start end word`` in each line. Raises OSError, or ValueError with the line."""
    return parse_alignment(read_file(path, MAX_BYTES).decode("utf-8").splitlines())


def parse_alignment(lines: Iterable[str]) -> list[Word]:
    """The words of these lines. Raises ValueError with the line that is none."""
    words = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not all(TIME.fullmatch(field) for field in fields[:2]):
            raise ValueError(f"line {number} is {line[:80]!r}, expected start, end and word")
        start, end = (int(field) / UNITS_PER_SECOND for field in fields[:2])
        words.append(Word(start, end, fields[2]))
    return words
