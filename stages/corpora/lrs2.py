"""LRS2-BBC (Afouras et al. 2018): sentences of British television, cut into clips of one face, 25 fps.

https://www.robots.ox.ac.uk/~vgg/data/lip_reading/lrs2.html; its archives unpack into ``mvlrs_v1/main`` and
``mvlrs_v1/pretrain``, with a folder for every video. Which clips of ``main`` are for training, validation and
testing is in lists that come beside the archives. There are no labels of speakers: the video stands for its
speaker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from stages.corpora.corpus import (
    CLIP_NUMBER,
    TEST,
    TRAIN,
    UNLISTED,
    BadList,
    BadName,
    Identity,
    list_folder_names,
)

if TYPE_CHECKING:
    from shards.storage import Storage

MAIN, PRETRAIN = "main", "pretrain"
VIDEO = re.compile(r"[0-9]{5,20}")
SPLIT_LISTS: Mapping[str, str] = {"train.txt": TRAIN, "val.txt": "val", "test.txt": TEST}
MAX_LIST_BYTES = 2**24  # the longest, of 45,839 clips, has 1.2 MB
LINE = re.compile(r"([0-9]{5,20})/([0-9]{5})(?: (?:NF|MV))*")  # the flags are the test list's
MAX_QUOTED_LETTERS = 60

NOMINAL_FRAMES: int | None = None
LICENCE = ""
CITATION = "LRS2-BBC, Afouras et al. 2018: https://www.robots.ox.ac.uk/~vgg/data/lip_reading/lrs2.html"
KNOWN_FAULTS: Mapping[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``mvlrs_v1/main/6330311066473698535/00011.mp4``, at any depth, also with ``main`` as the raw folder.

    The subset is a part of the clip id, since ``main`` and ``pretrain`` both have a 00001 of a video.
    """
    video, subset = [*list_folder_names(path, raw_name), ""][:2]
    if subset not in (MAIN, PRETRAIN) or not VIDEO.fullmatch(video) or not CLIP_NUMBER.fullmatch(path.stem):
        raise BadName(f"{str(path)!r} is no LRS2 clip like 'main/6330311066473698535/00011.mp4' "
                      "(main or pretrain; number of the video; five digits)")  # fmt: skip
    return Identity(_make_clip_id(subset, video, path.stem), video)


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """``train`` for ``pretrain``; of ``main`` the lists say it. ``test_share`` is not used."""
    return TRAIN if identity.clip_id.startswith(f"{PRETRAIN}_") else UNLISTED


def read_splits(paths: Iterable[PurePosixPath], raw_name: str, raw: Storage) -> dict[str, str]:
    """Clip id -> split, as train.txt, val.txt and test.txt say; nothing where no file is in ``main``.

    The lists are looked for beside ``main``, then in the folders around that, then in ``main``. Raises
    BadList.
    """
    folders = {path.parent.parent for path in paths if len(path.parts) > 1}
    main = min((folder for folder in folders if (folder.name or raw_name) == MAIN), default=None)
    if main is None:
        return {}
    names = {name: _find_list([*main.parents, main], name, raw) for name in SPLIT_LISTS}
    if missing := [name for name, place in names.items() if place is None]:
        raise BadList(f"{', '.join(missing)} of LRS2, which say the split of each clip in 'main', are not "
                      "there; put them beside that folder")  # fmt: skip
    splits: dict[str, str] = {}
    for name, place in names.items():
        for clip_id in _read_list(place or name, raw):
            other = splits.setdefault(clip_id, SPLIT_LISTS[name])
            if other != SPLIT_LISTS[name]:
                raise BadList(f"{place}: lists {clip_id}, which is in the list of {other!r} too")
    return splits


def _find_list(folders: Iterable[PurePosixPath], name: str, raw: Storage) -> str | None:
    places = (str(folder / name) for folder in folders)
    return next((place for place in places if raw.size(place) is not None), None)


def _read_list(place: str, raw: Storage) -> list[str]:
    """The ids of a list's clips. Raises BadList for anything but a list of LRS2."""
    n_bytes = raw.size(place) or 0
    if n_bytes > MAX_LIST_BYTES:
        raise BadList(f"{place}: has {n_bytes} bytes, expected at most {MAX_LIST_BYTES}")
    clip_ids = []
    for number, line in enumerate(raw.read(place, 0, n_bytes).decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            raise BadList(f"{place}: line {number} is {line[:MAX_QUOTED_LETTERS]!r}, expected e.g. "
                          "'6330311066473698535/00011'")  # fmt: skip
        clip_ids.append(_make_clip_id(MAIN, *match.groups()))
    return clip_ids


def _make_clip_id(subset: str, video: str, number: str) -> str:
    return f"{subset}_{video}_{number}"
