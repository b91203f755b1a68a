"""Any tree of the user's own video files. The folder of a file is its speaker."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from stages.corpora.corpus import Identity, split_by_hash

UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
HASH_LETTERS = 8
MAX_LETTERS = 70  # with the hash and the longest member name below the 100 bytes of a plain tar header

NOMINAL_FRAMES: int | None = None
LICENCE = ""
CITATION = "A folder of one's own files: whoever made it knows their licences"
KNOWN_FAULTS: Mapping[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``id12/abc/00001.mp4`` is clip ``id12_abc_00001`` of speaker ``id12_abc``.

    The whole path counts, since corpora name clips ``00001`` in every folder. When characters had to be
    replaced, a hash of the path keeps different names different.
    """
    plain = "_".join(path.with_suffix("").parts)
    clip_id = UNSAFE.sub("-", plain)[:MAX_LETTERS]
    if clip_id != plain:
        clip_id += "-" + hashlib.sha256(str(path).encode()).hexdigest()[:HASH_LETTERS]
    speaker = "_".join(path.parent.parts) or raw_name
    return Identity(clip_id, UNSAFE.sub("-", speaker))


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """By a hash of the clip id."""
    return split_by_hash(identity, test_share)
