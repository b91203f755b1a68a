"""The figures of networks, for the table: clip by clip, kept in the cache, and over a row as a whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shards.reader import Dataset, read_clip
from shards.schema import ClipSample, ShardError
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import LimitParams
from stages.evaluate.clip_sound import clip_speech, source_of
from stages.evaluate.columns import COLUMNS
from stages.evaluate.face_squares import squares_of_video, squares_with
from stages.evaluate.measure import MeasureItem, MeasureTools, cut_to, frames_of
from stages.evaluate.metrics.face_crops import REAL_VIDEOS
from stages.evaluate.metrics.lse import CROPS, Skipped
from stages.evaluate.metrics.obedience import Mean
from stages.evaluate.network_metrics import LSE, LSE_REAL, Fid, Networks, clip_values
from stages.media.audio import SAMPLES_PER_FRAME
from stages.sample.pairs import Frames

STAGE = "networks"
VERSION = 2
PROTOCOLS = dict.fromkeys(LSE, CROPS) | dict.fromkeys(LSE_REAL, REAL_VIDEOS)


@dataclass(frozen=True, slots=True)
class NetworkScores:
    """What the networks found."""

    clips: dict[str, dict[str, float]] = field(default_factory=dict)  # entry -> column -> figure
    # row -> column -> figure of all its frames together, so without an interval; n counts frames
    rows: dict[str, dict[str, Mean]] = field(default_factory=dict)
    skipped: dict[str, tuple[str, ...]] = field(default_factory=dict)  # entry -> why it has no LSE


class Sources:
    """What shards do not hold, from the corpus's own files: the sound of speech, and whole pictures."""

    def __init__(self, dataset: Dataset, raw: Path | None, limits: LimitParams) -> None:
        self._dataset, self._raw, self._limits = dataset, raw, limits
        self._known: dict[str, NDArray[np.int16] | str] = {}

    def speech(self, clip_id: str) -> NDArray[np.int16] | str:
        """(640 T,) at 16 kHz, or why there is none. Each is read once."""
        if self._raw is None:
            return "no raw clips"
        if clip_id not in self._known:
            try:
                info = read_clip(self._dataset, clip_id).info
                self._known[clip_id] = clip_speech(self._raw, info, self._limits)
            except (Drop, ShardError) as err:
                self._known[clip_id] = str(err)
        return self._known[clip_id]

    def squares(
        self, item: MeasureItem, clip: ClipSample, drawn: Frames, landmarker: Path
    ) -> Frames | Skipped:
        """Squares about the face in an item's whole pictures, or why there are none."""
        try:
            if item.whole:
                return squares_of_video(Path(item.whole), len(drawn), landmarker, self._limits)
            assert self._raw is not None, "there is no speech either"
            return squares_with(drawn, clip, source_of(self._raw, clip.info), landmarker, self._limits)
        except Drop as drop:
            return Skipped(str(drop))


def network_scores(
    rows: Mapping[str, Sequence[MeasureItem]],
    networks: Networks,
    sources: Sources,
    dataset: Dataset,
    tools: MeasureTools,
    *,
    truth: str,
) -> NetworkScores:
    """Ask the networks of every measured item of every row; ``truth`` names the row that FID compares to."""
    found = NetworkScores()
    if networks.syncnet is None and networks.lpips is None and networks.inception is None:
        return found
    seen: dict[str, Fid] = {}
    total = sum(map(len, rows.values()))
    with tqdm(total=total, desc="networks", unit=" clips", disable=not sys.stderr.isatty()) as bar:
        for row, items in rows.items():
            fid = None if networks.inception is None else seen.setdefault(row, Fid(networks.inception))
            for item in items:
                clip = cut_to(read_clip(dataset, item.clip_id), item.n_frames)
                drawn = frames_of(clip, item, dataset, tools)[: item.n_frames]
                clip = cut_to(clip, len(drawn))
                scores, skipped = _of_clip(item, clip, drawn, networks, sources, tools)
                found.clips[item.entry] = scores
                if skipped:
                    found.skipped[item.entry] = skipped
                if fid is not None:
                    fid.add(drawn, clip.boxes)
                bar.update()
    for row, fid in seen.items():
        if min(fid.n, seen[truth].n) > 1:
            distances = fid.against(seen[truth]).items()
            found.rows[row] = {column: Mean(value, value, value, fid.n) for column, value in distances}
    return found


def _of_clip(
    item: MeasureItem,
    clip: ClipSample,
    drawn: Frames,
    networks: Networks,
    sources: Sources,
    tools: MeasureTools,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """A clip's figures, and why it has no LSE where it has none; from the cache if they are there."""
    speech = None if networks.syncnet is None else sources.speech(item.audio_clip_id)
    asked = [networks.lpips is not None, isinstance(speech, np.ndarray)]
    made_by = versions("torch", "opencv-python", "mediapipe", "av")
    key = digest(STAGE, VERSION, Path(item.entry).stem, asked, made_by)
    path = entry_path(Path(tools.cache), STAGE, key, ".npz")
    entry = load_entry(path)
    if entry is None:
        heard = speech[: SAMPLES_PER_FRAME * len(drawn)] if isinstance(speech, np.ndarray) else None
        squares = None
        if heard is not None and tools.landmarker:  # which the item's key names
            squares = sources.squares(item, clip, drawn, Path(tools.landmarker))
        found = clip_values(networks, drawn, clip.frames, clip.boxes, heard, squares)
        outcome = Outcome(facts={"values": found.values, "skipped": found.skipped})
        if not isinstance(squares, Skipped):  # for a deadline, or a file that may come back
            save_entry(path, outcome)
    else:
        outcome, _ = entry
    own = item.clip_id == item.audio_clip_id
    scores = {
        column: value
        for column, value in outcome.facts["values"].items()
        if own or not COLUMNS[column].needs_truth
    }
    return scores, tuple(outcome.facts["skipped"]) or ((speech,) if isinstance(speech, str) else ())
