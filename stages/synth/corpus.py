"""Clips named and laid out as those of a real corpus."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from stages.synth.clip import check_rate, make_clip
from stages.synth.curves import generator
from stages.synth.spec import SYNTH_VERSION, ClipSpec, Container, Style, SynthError, SynthParams, Truth


@dataclass(frozen=True, slots=True)
class MadeClip:
    path: Path
    truth: Truth
    is_new: bool  # False: it was there already


@dataclass(frozen=True, slots=True)
class Corpus:
    container: Container
    fps: str
    size: tuple[int, int]
    max_speaker: int
    max_clips: int


CORPORA: dict[Style, Corpus] = {
    "grid": Corpus("mpg", "25", (360, 288), 34, 1000),
    "crema-d": Corpus("flv", "29.97", (480, 360), 91, 72),
    "folder": Corpus("mp4", "25", (480, 360), 1000, 1000),
}
# command, colour, preposition, letter, digit, adverb: "bbaf2n" is "bin blue at f two now"
GRID_WORDS = ["blps", "bgrw", "abiw", "abcdefghijklmnopqrstuvxyz", "z123456789", "anps"]
CREMA_D_SENTENCES = [
    "IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI",
]  # fmt: skip
CREMA_D_EMOTIONS = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]


def clip_place(style: Style, *, speaker: int, clip: int, seed: int) -> tuple[str, Path]:
    """The speaker's name, and where the clip lies, without suffix, as in the real corpus."""
    if style == "grid":
        n_names = int(np.prod([len(words) for words in GRID_WORDS]))
        # One shuffled deck for all speakers: in GRID no two of them say the same sentence.
        place = (clip - 1) * CORPORA["grid"].max_speaker + speaker - 1
        number = generator(seed, 3).permutation(n_names)[place]
        letters = np.unravel_index(number, [len(words) for words in GRID_WORDS])
        name = "".join(words[i] for words, i in zip(GRID_WORDS, letters, strict=True))
        return f"s{speaker}", Path(f"s{speaker}", name)
    if style == "crema-d":
        deck = [f"{s}_{e}" for s in CREMA_D_SENTENCES for e in CREMA_D_EMOTIONS]
        name = deck[generator(seed, 4, speaker).permutation(len(deck))[clip - 1]]
        return f"{1000 + speaker}", Path("VideoFlash", f"{1000 + speaker}_{name}_XX")
    return f"speaker-{speaker}", Path(f"speaker-{speaker}", f"clip-{clip:03d}")


def _standing(path: Path, spec: ClipSpec) -> Truth | None:
    """The truth of the clip that is there already, if it is whole and what would be made."""
    try:
        truth = Truth.load(path)
        data = path.read_bytes()
    except (FileNotFoundError, ValidationError):
        return None
    same = truth.version == SYNTH_VERSION and truth.spec == spec
    return truth if same and truth.sha256 == hashlib.sha256(data).hexdigest() else None


def make_corpus(to: Path, params: SynthParams) -> list[MadeClip]:
    """Write `speakers * clips` clips under `to`, named and laid out as the corpus of that style.

    A clip that is there and is the one that would be made is kept.
    """
    corpus = CORPORA[params.style]
    container, fps = params.container or corpus.container, params.fps or corpus.fps
    check_rate(container, fps)
    last_speaker = params.first_speaker + params.speakers - 1
    if last_speaker > corpus.max_speaker:
        raise SynthError(f"speaker {last_speaker} asked for, {params.style} has {corpus.max_speaker}")
    if params.clips > corpus.max_clips:
        raise SynthError(f"{params.clips} clips per speaker asked for, {params.style} has {corpus.max_clips}")

    made = []
    for speaker in range(params.first_speaker, last_speaker + 1):
        for clip in range(1, params.clips + 1):
            name, place = clip_place(params.style, speaker=speaker, clip=clip, seed=params.seed)
            path = to / place.with_suffix(f".{container}")
            spec = ClipSpec(
                speaker=speaker,
                clip=clip,
                seconds=params.seconds,
                fps=fps,
                size=params.size or corpus.size,
                av_offset_ms=params.av_offset_ms,
                antiphase=params.antiphase,
                seed=params.seed,
            )
            standing = _standing(path, spec)
            truth = standing or make_clip(path, spec, speaker=name)
            made.append(MadeClip(path, truth, is_new=standing is None))
    return made
