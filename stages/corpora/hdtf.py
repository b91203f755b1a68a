"""HDTF (Zhang et al. 2021): some 400 clips of speeches and interviews at up to 1080p, of some 300 people.

https://github.com/MRzzm/HDTF lists videos, times and crops, and has the script of
https://github.com/universome/HDTF, which downloads and cuts them: ``RD_Radio1_000.mp4`` is subset, video and
number of the clip. Who cuts them as its page says has ``Radio1_0.mp4``. Its authors publish no split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from stages.corpora.corpus import BadName, Identity, split_by_speaker

NAME = re.compile(r"(?:(?:RD|WDA|WRA)_)?([A-Za-z][A-Za-z-]{0,60})([0-9]{0,4})_[0-9]{1,3}")
RADIO = "Radio"  # Radio1, Radio2, ...: videos of which nobody says who speaks
OTHER_NAMES: Mapping[str, str] = {"WhipJimClyburn": "JamesClyburn"}  # one person, one video, under two names
BESIDE_CLIPS = ("_videos_raw",)  # folder of the downloads, before they are cut

NOMINAL_FRAMES: int | None = None
# Its authors give what they publish under CC BY 4.0; the videos are those of their publishers on YouTube.
LICENCE = ""
CITATION = "HDTF, Zhang et al. 2021, its lists CC BY 4.0: https://github.com/MRzzm/HDTF"
KNOWN_FAULTS: Mapping[str, str] = {}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``WDA_NancyPelosi1_000.mp4``, at any depth: a clip of ``NancyPelosi``, whose other videos have numbers.

    Of the subset RD every video is a speaker of its own.
    """
    match = NAME.fullmatch(path.stem)
    if match is None:
        raise BadName(f"{path.name!r} is no HDTF clip like 'RD_Radio1_000' (RD, WDA or WRA; video; number of "
                      "the clip)")  # fmt: skip
    name, number = match.groups()
    speaker = name + number if name == RADIO else OTHER_NAMES.get(name, name)
    return Identity(path.stem, speaker)


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """By a hash of the speaker: a person's clips are all in one split, as the corpus names people."""
    return split_by_speaker(identity, test_share)
