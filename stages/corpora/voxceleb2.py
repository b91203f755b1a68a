"""VoxCeleb2 (Chung et al. 2018): interviews, cut into clips of one face, 25 fps; 6,112 people.

https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html; its archives of mp4 files, unpacked into ``dev`` and
``test``. Its archives of m4a files hold speech alone and are not read.
"""

from __future__ import annotations

import re
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

SUBSETS = frozenset({"dev", "test"})
SPEAKER = re.compile(r"id[0-9]{5}")

NOMINAL_FRAMES: int | None = None
LICENCE = ""
CITATION = "VoxCeleb2, Chung et al. 2018: https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html"
KNOWN_FAULTS: Mapping[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``dev/mp4/id00012/21Uxsk56VDQ/00001.mp4``, at any depth, also with ``dev`` as the raw folder."""
    video, speaker, kind, subset = [*list_folder_names(path, raw_name), "", "", ""][:4]
    named = SPEAKER.fullmatch(speaker) and YOUTUBE_ID.fullmatch(video) and CLIP_NUMBER.fullmatch(path.stem)
    if not named or kind != "mp4" or subset not in SUBSETS:
        raise BadName(f"{str(path)!r} is no VoxCeleb2 clip like 'dev/mp4/id00012/21Uxsk56VDQ/00001.mp4' "
                      "(dev or test; mp4; person; id of the video; five digits)")  # fmt: skip
    return Identity(f"{subset}_{speaker}_{video}_{path.stem}", speaker)


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """The corpus's own: ``test``, and ``dev`` is ``train``; ``test_share`` is not used."""
    return split_by_subset(identity)
