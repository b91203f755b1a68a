"""Writes clips with the file names and folders of a real corpus."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from stages.synth.clip import check_rate, make_clip
from stages.synth.curves import make_rng
from stages.synth.spec import SYNTH_VERSION, ClipSpec, Container, Style, SynthError, SynthParams, Truth


@dataclass(frozen=True, slots=True)
class SynthClip:
    """One clip of a synthetic corpus."""

    path: Path
    truth: Truth
    is_new: bool  # False: it existed already


@dataclass(frozen=True, slots=True)
class CorpusLayout:
    """Formats and limits of a real corpus."""

    container: Container
    fps: str
    size: tuple[int, int]
    max_speaker: int
    max_clips: int


LAYOUTS: dict[Style, CorpusLayout] = {
    "grid": CorpusLayout("mpg", "25", (360, 288), 34, 1000),
    "crema-d": CorpusLayout("flv", "29.97", (480, 360), 91, 72),
    "folder": CorpusLayout("mp4", "25", (480, 360), 1000, 1000),
}
# First letters of command, colour, preposition, letter, digit, adverb: "bbaf2n" is "bin blue at f two now".
GRID_LETTERS = ["blps", "bgrw", "abiw", "abcdefghijklmnopqrstuvxyz", "z123456789", "anps"]
CREMA_D_SENTENCES = [
    "IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI",
]  # fmt: skip
CREMA_D_EMOTIONS = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]


def choose_clip_path(style: Style, *, speaker: int, clip: int, seed: int) -> tuple[str, Path]:
    """The speaker's name, and the clip's path without suffix, as in the real corpus."""
    if style == "grid":
        n_names = int(np.prod([len(letters) for letters in GRID_LETTERS]))
        # One permutation for all speakers: in GRID no two speakers say the same sentence.
        index = (clip - 1) * LAYOUTS["grid"].max_speaker + speaker - 1
        number = make_rng(seed, 3).permutation(n_names)[index]
        indices = np.unravel_index(number, [len(letters) for letters in GRID_LETTERS])
        name = "".join(letters[i] for letters, i in zip(GRID_LETTERS, indices, strict=True))
        return f"s{speaker}", Path(f"s{speaker}", name)
    if style == "crema-d":
        names = [f"{s}_{e}" for s in CREMA_D_SENTENCES for e in CREMA_D_EMOTIONS]
        name = names[make_rng(seed, 4, speaker).permutation(len(names))[clip - 1]]
        return f"{1000 + speaker}", Path("VideoFlash", f"{1000 + speaker}_{name}_XX")
    return f"speaker-{speaker}", Path(f"speaker-{speaker}", f"clip-{clip:03d}")


def _find_existing(path: Path, spec: ClipSpec) -> Truth | None:
    """The ground truth of an existing clip, if the clip is intact and has the same spec."""
    try:
        truth = Truth.load(path)
        data = path.read_bytes()
    except (FileNotFoundError, ValidationError):
        return None
    is_same = truth.version == SYNTH_VERSION and truth.spec == spec
    return truth if is_same and truth.sha256 == hashlib.sha256(data).hexdigest() else None


def make_corpus(to: Path, params: SynthParams) -> list[SynthClip]:
    """Write ``speakers * clips`` clips to the folder ``to``, with the names of the corpus of that style.

    Intact clips with the same spec are not written again. Raises SynthError.
    """
    layout = LAYOUTS[params.style]
    container, fps = params.container or layout.container, params.fps or layout.fps
    check_rate(container, fps)
    last_speaker = params.first_speaker + params.speakers - 1
    if last_speaker > layout.max_speaker:
        raise SynthError(f"speaker {last_speaker} requested, {params.style} has {layout.max_speaker}")
    if params.clips > layout.max_clips:
        raise SynthError(f"{params.clips} clips per speaker requested, {params.style} has {layout.max_clips}")

    synth_clips = []
    for speaker in range(params.first_speaker, last_speaker + 1):
        for clip in range(1, params.clips + 1):
            name, stem = choose_clip_path(params.style, speaker=speaker, clip=clip, seed=params.seed)
            path = to / stem.with_suffix(f".{container}")
            spec = ClipSpec(
                speaker=speaker,
                clip=clip,
                seconds=params.seconds,
                fps=fps,
                size=params.size or layout.size,
                av_offset_ms=params.av_offset_ms,
                antiphase=params.antiphase,
                seed=params.seed,
            )
            existing = _find_existing(path, spec)
            truth = existing or make_clip(path, spec, speaker=name)
            synth_clips.append(SynthClip(path, truth, is_new=existing is None))
    return synth_clips
