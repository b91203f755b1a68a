"""CREMA-D (Cao et al. 2014): 91 actors, 12 sentences, 6 emotions, 7,442 clips of about 2.5 s.

https://github.com/CheyneyComputerScience/CREMA-D, ODbL 1.0. FLV: VP6F at 29.97 fps with time stamps in whole
milliseconds, MP3 at 44.1 kHz.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from stages.corpora.corpus import TEST, TRAIN, BadName, Identity

NAME = re.compile(
    r"(1\d{3})_(IEO|TIE|IOM|IWW|TAI|MTI|IWL|ITH|DFA|ITS|TSI|WSI)_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX?)"
)
# Paper section 3.3.1 (section 4.3 says 5, a misprint: the authors' files list all ten).
TEST_ACTORS = frozenset({"1015", "1020", "1021", "1030", "1033", "1052", "1062", "1081", "1082", "1089"})

NOMINAL_FRAMES: int | None = None
LICENCE = "ODbL 1.0"
CITATION = f"CREMA-D, Cao et al. 2014, {LICENCE}: https://github.com/CheyneyComputerScience/CREMA-D"
# From the corpus's own README.
KNOWN_FAULTS: Mapping[str, str] = {
    "1076_MTI_NEU_XX": "very short, no audio",
    "1076_MTI_SAD_XX": "error picture, no audio, very short",
    "1064_TIE_SAD_XX": "no duration",
    "1064_IEO_DIS_MD": "one minute long, holds all the emotions",
}


def identify(path: PurePosixPath, raw_name: str) -> Identity:
    """``VideoFlash/1001_DFA_ANG_XX.flv``, at any depth."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        raise BadName(f"{path.name!r} is no CREMA-D clip like '1001_DFA_ANG_XX' (actor, sentence, "
                      "emotion, level)")  # fmt: skip
    actor, sentence, emotion, level = match.groups()
    return Identity(path.stem, actor, sentence, emotion, level)


def choose_split(identity: Identity, path: PurePosixPath, test_share: float) -> str:
    """By actor, as in the paper; ``test_share`` is not used."""
    return TEST if identity.speaker in TEST_ACTORS else TRAIN
