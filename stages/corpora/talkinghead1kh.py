"""TalkingHead-1KH (Wang et al. 2021): videos of YouTube, cut into 500,000 clips of one face.

https://github.com/tcwang0509/TalkingHead-1KH; its scripts leave the clips in ``train/cropped_clips`` and
``val/cropped_clips``. They download pictures without sound, and cutting leaves out what sound there is: clips
that are to be used here have to be downloaded and cut with it, under the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from stages.corpora.corpus import TEST, TRAIN, YOUTUBE_ID, BadName, Identity, list_folder_names

# The id of the video, the number of its minute, first and last frame, left, top, right and bottom in px.
NAME = re.compile(
    rf"({YOUTUBE_ID.pattern})_[0-9]{{4}}_S[0-9]{{1,6}}_E[0-9]{{1,6}}_L[0-9]{{1,5}}_T[0-9]{{1,5}}"
    r"_R[0-9]{1,5}_B[0-9]{1,5}"
)
CLIPS_FOLDER = "cropped_clips"
SUBSETS: Mapping[str, str] = {"train": TRAIN, "small": TRAIN, "val": TEST}  # small is to try the scripts with
BESIDE_CLIPS = ("raw_videos", "1min_clips")  # folders of the downloads, whole and in minutes

NOMINAL_FRAMES: int | None = None
LICENCE = "CC BY 3.0"  # of every video, by its publisher
CITATION = f"TalkingHead-1KH, Wang et al. 2021, {LICENCE}: https://github.com/tcwang0509/TalkingHead-1KH"
KNOWN_FAULTS: Mapping[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``train/cropped_clips/--Y9imYnfBw_0000_S1015_E1107_L488_T23_R824_B359.mp4``, at any depth.

    The video stands for its speaker: there are no labels.
    """
    match = NAME.fullmatch(path.stem)
    folder, subset = [*list_folder_names(path, raw_name), ""][:2]
    if match is None or folder != CLIPS_FOLDER or subset not in SUBSETS:
        raise BadName(f"{str(path)!r} is no TalkingHead-1KH clip like 'train/cropped_clips/"
                      "--Y9imYnfBw_0000_S1015_E1107_L488_T23_R824_B359.mp4' (train, val or small; "
                      "cropped_clips; id of the video, minute, frames, crop)")  # fmt: skip
    return Identity(f"{subset}_{path.stem}", match[1])


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """The corpus's own: ``val``, its authors' evaluation set, is ``test``; ``test_share`` is not used."""
    return SUBSETS[identity.clip_id.partition("_")[0]]
