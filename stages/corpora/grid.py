"""GRID (Cooke et al. 2006): 34 speakers, 1000 six-word sentences each, 25 fps, 3 s.

https://doi.org/10.5281/zenodo.3625687, CC BY 4.0. Speaker 21 has no video. In speaker 1 alone, 11 clips
begin with grey frames, 5 have 74 frames and 1 a damaged block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from stages.corpora.corpus import BadName, Identity, list_folder_names, split_by_hash

# command, colour, preposition, letter (no w), digit, adverb: "bbaf2n" is "bin blue at f two now".
SENTENCE = re.compile(r"[blps][bgrw][abiw][a-vx-z][z0-9][anps]")
SPEAKER = re.compile(r"s\d{1,2}")
UNKNOWN_SPEAKER = "s0"  # of a flat folder, which does not say; no two speakers share a sentence

NOMINAL_FRAMES: int | None = 75
LICENCE = "CC BY 4.0"
CITATION = f"GRID, Cooke et al. 2006, {LICENCE}: https://doi.org/10.5281/zenodo.3625687"
KNOWN_FAULTS: Mapping[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``s1/bbaf2n.mpg``, at any depth, also with ``s1`` as the raw folder or with no such folder."""
    sentence = path.stem.lower()
    if not SENTENCE.fullmatch(sentence):
        raise BadName(f"{path.name!r} is no GRID sentence like 'bbaf2n' (command, colour, preposition, "
                      "letter, digit, adverb)")  # fmt: skip
    folders = (name.lower() for name in list_folder_names(path, raw_name))
    speaker = next((name for name in folders if SPEAKER.fullmatch(name)), UNKNOWN_SPEAKER)
    return Identity(f"{speaker}_{sentence}", speaker, sentence)


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """By a hash: the paper draws 950 and 50 of a speaker's 1000 clips, and does not publish the list."""
    return split_by_hash(identity, test_share)
