"""What a corpus knows about its files: the protocol that each corpus module implements."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from shards.storage import Storage


TRAIN = "train"
TEST = "test"
UNLISTED = "unlisted"  # of a clip whose split the corpus's lists say, where they do not name it

# Names of videos and clips in several corpora.
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
CLIP_NUMBER = re.compile(r"[0-9]{5}")


class BadName(Exception):
    """A file's name is not one of the corpus."""


class BadList(Exception):
    """A list that comes with the corpus is missing, or is something else."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who says what, according to the file's name."""

    clip_id: str  # letters, digits, "_" and "-": it becomes a key in the tar
    speaker: str
    sentence: str | None = None
    emotion: str | None = None
    level: str | None = None


class Corpus(Protocol):
    """A module of ``stages.corpora``. ``folder.py`` is the shortest."""

    NOMINAL_FRAMES: int | None  # of every clip; a clip with another number gets a note
    LICENCE: str  # of its clips; empty where the user has to state it
    CITATION: str  # who made it, its licence, its address
    # Clip id -> what the corpus itself says is wrong with the file. Shown beside what was measured; no rule
    # depends on it.
    KNOWN_FAULTS: Mapping[str, str]

    def identify(self, path: PurePosixPath, raw_name: str) -> Identity:
        """The identity of the file at ``path`` below the raw folder, whose own name is ``raw_name``.

        Raises BadName.
        """

    def choose_split(self, identity: Identity, path: PurePosixPath, test_share: float) -> str:
        """``train``, ``test`` or another split, by the identity, the path or a hash of the clip id.

        Some corpora name their splits by folders, so the path is given too.
        """


@runtime_checkable
class ListedCorpus(Corpus, Protocol):
    """A corpus that says its splits in lists of clips, as files in the raw folder. ``lrs2.py`` is one."""

    def read_splits(self, paths: Iterable[PurePosixPath], raw_name: str, raw: Storage) -> Mapping[str, str]:
        """Clip id -> split, for the clips of which ``choose_split`` says UNLISTED.

        ``paths`` are those of the clips below the raw folder, whose own name is ``raw_name``. The lists are
        strangers' files. Raises BadList.
        """


def hash_to_unit(clip_id: str) -> float:
    """A number in [0, 1) that depends on the clip id alone, so that no clip changes another's split."""
    return int.from_bytes(hashlib.sha256(f"split/{clip_id}".encode()).digest()[:8], "big") / 2**64


def split_by_hash(identity: Identity, test_share: float) -> str:
    """``test`` for about ``test_share`` of the clips. A clip keeps its split when others are added."""
    return TEST if hash_to_unit(identity.clip_id) < test_share else TRAIN


def split_by_subset(identity: Identity) -> str:
    """The corpus's own split, by the subset with which clip ids begin: ``test``, and all else ``train``."""
    return TEST if identity.clip_id.startswith(f"{TEST}_") else TRAIN


def split_by_speaker(identity: Identity, test_share: float) -> str:
    """``test`` for about ``test_share`` of the speakers, with all their clips."""
    return TEST if hash_to_unit(f"speaker/{identity.speaker}") < test_share else TRAIN


def list_folder_names(path: PurePosixPath, raw_name: str) -> list[str]:
    """Names of the folders around a file, nearest first; the raw folder's own name is last."""
    return [*reversed(path.parts[:-1]), raw_name]
