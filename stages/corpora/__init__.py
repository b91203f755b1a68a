"""The corpora that redub can read, by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from stages.corpora import crema_d, folder, grid, hdtf, lrs2, lrs3, talkinghead1kh, voxceleb2
from stages.corpora.corpus import Corpus
from stages.engine.outcome import StageError

CORPORA: Mapping[str, Corpus] = {
    "grid": grid,
    "crema-d": crema_d,
    "lrs2": lrs2,
    "lrs3": lrs3,
    "voxceleb2": voxceleb2,
    "hdtf": hdtf,
    "talkinghead1kh": talkinghead1kh,
    "folder": folder,
}

# What a corpus's own scripts leave beside its clips: patterns that are added to clips.exclude.
BESIDE_CLIPS: Mapping[str, tuple[str, ...]] = {
    "hdtf": hdtf.BESIDE_CLIPS,
    "talkinghead1kh": talkinghead1kh.BESIDE_CLIPS,
}

FETCH_FOLDER = ".fetch"  # in a corpus's folder: downloads of `pipeline fetch`; it holds no clips


def get_corpus(name: str) -> Corpus:
    """The corpus of this name. Raises StageError for an unknown name."""
    if name not in CORPORA:
        raise StageError(f"--dataset {name!r} is not known; known are {', '.join(CORPORA)}")
    return CORPORA[name]
