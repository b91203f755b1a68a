"""LRS3-TED (Afouras et al. 2018): talks, cut into clips of one face with sound, 25 fps.

https://www.robots.ox.ac.uk/~vgg/data/lip_reading/lrs3.html; ``pretrain``, ``trainval`` and ``test`` hold
a folder for every talk. There are no labels of speakers: the talk stands for its speaker.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from stages.corpora.corpus import (
    CLIP_NUMBER,
    YOUTUBE_ID,
    BadName,
    Identity,
    list_folder_names,
    split_by_subset,
)

SUBSETS = frozenset({"pretrain", "trainval", "test"})

NOMINAL_FRAMES: int | None = None
LICENCE = ""
CITATION = "LRS3-TED, Afouras et al. 2018: https://www.robots.ox.ac.uk/~vgg/data/lip_reading/lrs3.html"
KNOWN_FAULTS: Mapping[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``trainval/0Fi83BHQsMA/00002.mp4``, at any depth, also with ``trainval`` as the raw folder.

    The subset is a part of the clip id, since ``pretrain`` and ``trainval`` both have a 00001 of a talk.
    """
    video, subset = [*list_folder_names(path, raw_name), ""][:2]
    if subset not in SUBSETS or not YOUTUBE_ID.fullmatch(video) or not CLIP_NUMBER.fullmatch(path.stem):
        raise BadName(f"{str(path)!r} is no LRS3 clip like 'trainval/0Fi83BHQsMA/00002.mp4' "
                      "(pretrain, trainval or test; id of the talk; five digits)")  # fmt: skip
    return Identity(f"{subset}_{video}_{path.stem}", video)


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """The corpus's own: ``test``, and everything else is ``train``; ``test_share`` is not used."""
    return split_by_subset(identity)
