"""Any tree of video files of the user's own. The nearest folder is taken for the speaker."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from stages.corpora import TEST, TRAIN, Identity, share_of

UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
HASH_LETTERS = 8
MAX_LETTERS = 70  # with the hash and the longest member name below the 100 that a plain tar header holds

NOMINAL_FRAMES: int | None = None
CITED = "A folder of one's own files: whoever made it knows their licences"
EXPECTED: dict[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``id12/abc/00001.mp4`` is clip ``id12_abc_00001`` of speaker ``id12_abc``.

    The whole path counts, since corpora name clips ``00001`` in every folder. Where letters had to be
    replaced, a hash of the path keeps two names two.
    """
    plain = "_".join(path.with_suffix("").parts)
    clip_id = UNSAFE.sub("-", plain)[:MAX_LETTERS]
    if clip_id != plain:
        clip_id += "-" + hashlib.sha256(str(path).encode()).hexdigest()[:HASH_LETTERS]
    speaker = "_".join(path.parent.parts) or raw_name
    return Identity(clip_id, UNSAFE.sub("-", speaker))


def split(identity: Identity, test_share: float) -> str:
    """By a hash of the clip id, so that a clip stays where it is when others come."""
    return TEST if share_of(identity.clip_id) < test_share else TRAIN
