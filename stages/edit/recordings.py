"""Which face says which recording, as a user writes it: WHICH, or WHICH=AUDIO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.edit.face_track import FaceChoice
from stages.engine.outcome import StageError

CHOICES: Mapping[str, FaceChoice] = {"largest": "largest", "left": "left", "right": "right"}
EXPECTED = "expected largest, left, right or a number"


def parse_face(text: str) -> FaceChoice:
    """Parse largest, left, right, or a number from the left. Raises StageError."""
    if text in CHOICES:
        return CHOICES[text]
    if text.isascii() and text.isdecimal() and len(text) <= 2:
        return int(text)
    raise StageError(f"{text or 'an empty text'}: {EXPECTED}")


def parse_recordings(audio: Path | None, faces: Sequence[str]) -> dict[FaceChoice, Path]:
    """What each face says: ``audio`` if there is one face, else each of ``faces`` has its own, WHICH=AUDIO.

    Raises StageError.
    """
    if audio is not None:
        if len(faces) != 1 or "=" in faces[0]:
            raise StageError(
                "one recording is said by one face; for several faces, each has its own: left=FILE"
            )
        return {parse_face(faces[0]): audio}
    recordings: dict[FaceChoice, Path] = {}
    for text in faces:
        which, _, path = text.partition("=")
        face = parse_face(which)
        if not path:
            raise StageError(f"face {text}: there is no recording for it")
        if face in recordings:
            raise StageError(f"face {which}: has two recordings, {recordings[face]} and {path}")
        recordings[face] = Path(path)
    return recordings
