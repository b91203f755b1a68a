"""What people and computers leave in a folder of clips that is no clip, told by its name alone.

Trash and other folders of the system, downloads that are not complete, and what ``clips.exclude`` names. The
rules are for a path below the raw folder, so that a bucket is judged like a disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from stages.engine.outcome import Drop

TRASH, PARTIAL, EXCLUDED = "trash", "partial", "excluded"
LEFT_OUT = frozenset({TRASH, PARTIAL, EXCLUDED})  # codes of rows that count as no lost clip

# Lower case. Snapshots and versions hold older states of the same files.
SYSTEM_FOLDERS = frozenset(
    (
        ".trash", ".trashes", "$recycle.bin", "recycler", "#recycle", "@recycle",  # deleted files
        "lost+found", "system volume information", ".spotlight-v100", ".fseventsd", ".temporaryitems",
        ".documentrevisions-v100", ".appledouble", ".appledb", "__macosx", "@eadir", ".@__thumb",
        ".thumbnails", ".snapshot", ".snapshots", "#snapshot", "@recently-snapshot", ".zfs",
        ".stversions", ".sync", ".rsync-partial", ".~tmp~", ".dropbox.cache", ".ipynb_checkpoints",
    )
)  # fmt: skip
SYSTEM_FOLDER = re.compile(r"\.trash-[0-9]+")
TRASH_PATH = ("share", "trash")  # .local/share/Trash

PARTIAL_SUFFIXES = (
    ".part", ".partial", ".crdownload", ".download", ".opdownload", ".fdmdownload", ".filepart",
    ".unfinished", ".incomplete", ".tmp", ".temp", ".aria2", ".ytdl", ".!qb", ".!ut", ".!bt", ".bc!", ".td",
    ".xltd", ".gstmp", "~",
)  # fmt: skip
PARTIAL_PREFIXES = ("~$", ".~lock.", "~syncthing~", ".syncthing.", ".goutputstream-", ".nfs0", ".fuse_hidden")
PARTIAL_NAMES = (
    re.compile(r"\..+\.[a-z0-9]{6}", re.IGNORECASE),  # rsync: .x.mp4.Xy12Zq
    re.compile(r".+\.part-frag[0-9]+(\.part)?", re.IGNORECASE),  # yt-dlp: x.mp4.part-Frag12
    # The AWS command: x.mp4.a1B2c3D4. Eight digits alone are a date.
    re.compile(r".+\.[a-z][a-z0-9]{1,4}\.(?=[0-9]*[a-f])[0-9a-f]{8}", re.IGNORECASE),
)
PARTIAL_FOLDER_SUFFIX = ".download"  # Safari's bundle of a file and its state


def judge_folder(path: PurePosixPath, exclude: Sequence[str]) -> Drop | None:
    """Why a folder is left out, with everything in it; or None."""
    if drop := _find_exclusion(path, exclude):
        return drop
    name = path.name.lower()
    ends_in_trash = tuple(part.lower() for part in path.parts[-2:]) == TRASH_PATH
    if name in SYSTEM_FOLDERS or SYSTEM_FOLDER.fullmatch(name) or ends_in_trash:
        return Drop(TRASH, "is a folder of deleted files or of the system; nothing in it is a clip")
    if name.endswith(PARTIAL_FOLDER_SUFFIX):
        return Drop(PARTIAL, f"is a download that is not complete, by its name (*{PARTIAL_FOLDER_SUFFIX})")
    return None


def judge_file(path: PurePosixPath, exclude: Sequence[str]) -> Drop | None:
    """Why a file is left out, or None."""
    if drop := _find_exclusion(path, exclude):
        return drop
    name = path.name.lower()
    if (
        name.endswith(PARTIAL_SUFFIXES)
        or name.startswith(PARTIAL_PREFIXES)
        or any(pattern.fullmatch(name) for pattern in PARTIAL_NAMES)
    ):
        return Drop(PARTIAL, "is a download or copy that is not complete, by its name")
    return None


def _find_exclusion(path: PurePosixPath, exclude: Sequence[str]) -> Drop | None:
    pattern = next((pattern for pattern in exclude if match_pattern(path, pattern)), None)
    return None if pattern is None else Drop(EXCLUDED, f"is left out by clips.exclude {pattern!r}")


def check_pattern(pattern: str) -> str:
    """Return a pattern of ``clips.exclude``. Raises ValueError when it could match no path."""
    problem = None
    if not pattern.strip("/") or "\0" in pattern:
        problem = "it matches no path"
    elif pattern.startswith("/"):
        problem = "patterns are below the raw folder"
    elif {"", ".", ".."} & set(pattern.removesuffix("/").split("/")):
        problem = "its parts are names, * and **"
    if problem:
        raise ValueError(f"{pattern!r}: {problem}; expected e.g. outtakes, *-raw.mov or s1/**/*.mpg")
    return pattern


def match_pattern(path: PurePosixPath, pattern: str) -> bool:
    """Whether a glob pattern matches a path.

    Without a slash it matches the last name, at any depth. With one it matches the whole path: ``*``, ``?``
    and ``[...]`` stay within one name, and ``**`` stands for any number of folders. Case matters.
    """
    parts = pattern.removesuffix("/").split("/")
    if len(parts) == 1:
        return fnmatchcase(path.name, parts[0])
    # The places in the pattern that may come next, after each name of the path: no backtracking.
    places = _skip_stars(parts, {0})
    for name in path.parts:
        following = set()
        for place in places:
            if place < len(parts) and parts[place] == "**":
                following.add(place)
            elif place < len(parts) and fnmatchcase(name, parts[place]):
                following.add(place + 1)
        places = _skip_stars(parts, following)
    return len(parts) in places


def _skip_stars(parts: Sequence[str], places: set[int]) -> set[int]:
    """The places, and those behind each ``**`` that stands for no folder."""
    result = set(places)
    for place in sorted(places):
        while place < len(parts) and parts[place] == "**":
            place += 1
            result.add(place)
    return result
