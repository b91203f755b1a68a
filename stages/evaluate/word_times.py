"""GRID's alignment files, which say when each word is said: DIR/<speaker>/<clip>.align."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from shards.table import Row
from stages.engine.outcome import StageError
from stages.evaluate.metrics.closure import Word

UNITS_PER_SECOND = 25_000  # of the times in these files
MAX_BYTES = 2**16  # of a file; GRID's have 200


def read_alignments(folder: Path, clips: Mapping[str, Row]) -> dict[str, list[Word]]:
    """The words of the clips that have a file, by clip id. ``clips`` are rows of the index.

    Raises StageError when the folder does not exist, when it has no file for any of the clips, and when a
    file cannot be read.
    """
    if not folder.is_dir():
        raise StageError(f"--alignments {folder}: no such folder")
    paths = {
        clip_id: folder / locate_alignment(clip_id, str(row["speaker"])) for clip_id, row in clips.items()
    }
    words = {}
    for clip_id, path in paths.items():
        # A dataset may be hostile: its names must not lead out of the folder.
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
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
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    return parse_alignment(path.read_text(encoding="utf-8").splitlines())


def parse_alignment(lines: Iterable[str]) -> list[Word]:
    """The words of these lines. Raises ValueError with the line that is none."""
    words = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise ValueError(f"line {number} is {line[:80]!r}, expected start, end and word")
        start, end = (int(field) / UNITS_PER_SECOND for field in fields[:2])
        words.append(Word(start, end, fields[2]))
    return words
