"""Scores by networks for the table: of each clip, which are cached, and of each row as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.reader import Dataset, read_clip, read_info
from shards.schema import ClipSample, Frames, ShardError
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Outcome
from stages.engine.progress import Progress, no_progress
from stages.engine.sandbox import LimitParams
from stages.evaluate.columns import COLUMNS
from stages.evaluate.face_squares import crop_squares, crop_squares_with_crops
from stages.evaluate.measure import MeasureItem, MeasureTools, cut_clip, load_item_frames
from stages.evaluate.network_metrics import LSE, LSE_REAL, Fid, Networks, score_clip_by_networks
from stages.media.audio import SAMPLES_PER_FRAME
from stages.media.clip_sound import find_source, read_clip_sound
from stages.media.faces import DEFAULT_ENGINE, ENGINE_PACKAGES
from stages.metrics.face_crops import REAL_VIDEOS
from stages.metrics.lse import CROPS, Skipped
from stages.metrics.obedience import Mean

STAGE = "networks"
VERSION = 4
PROTOCOLS = dict.fromkeys(LSE, CROPS) | dict.fromkeys(LSE_REAL, REAL_VIDEOS)

ScoreKey = tuple[Path, str]  # cache entry of the frames, and the clip of the speech: LSE depends on both


@dataclass(frozen=True, slots=True)
class NetworkScores:
    """Scores by networks of all items and rows."""

    clips: dict[ScoreKey, dict[str, float]] = field(default_factory=dict)  # column -> score
    # row -> column -> score of all its frames together, so without an interval; n counts frames
    rows: dict[str, dict[str, Mean]] = field(default_factory=dict)
    skipped: dict[ScoreKey, tuple[str, ...]] = field(default_factory=dict)  # why it has no LSE

    def get_clip_scores(self, item: MeasureItem) -> dict[str, float]:
        """An item's scores by column; none where no network scored it."""
        return self.clips.get(make_score_key(item), {})


def make_score_key(item: MeasureItem) -> ScoreKey:
    """Items with the same frames share a cache entry, whatever their speech."""
    return item.cache_entry, item.audio_clip_id


class RawClips:
    """What shards do not contain, read from the corpus's raw files: speech, and full frames."""

    def __init__(self, dataset: Dataset, raw: Path | None, limits: LimitParams) -> None:
        self._dataset, self._raw, self._limits = dataset, raw, limits
        self._speech: dict[str, NDArray[np.int16] | str] = {}

    def read_speech(self, clip_id: str) -> NDArray[np.int16] | str:
        """(640 T,) at 16 kHz, or why there is none. Each clip is read once."""
        if self._raw is None:
            return "no raw clips"
        if clip_id not in self._speech:
            try:
                info = read_info(self._dataset, clip_id)
                self._speech[clip_id] = read_clip_sound(self._raw, info, self._limits)
            except (Drop, ShardError) as err:
                self._speech[clip_id] = str(err)
        return self._speech[clip_id]

    def crop_squares(
        self, item: MeasureItem, clip: ClipSample, generated: Frames, landmarker: Path
    ) -> Frames | Skipped:
        """Squares around the face in an item's full frames, or why there are none."""
        try:
            if item.full_frame_video is not None:
                return crop_squares(item.full_frame_video, len(generated), landmarker, self._limits)
            assert self._raw is not None, "without raw clips there is no speech either"
            source = find_source(self._raw, clip.info)
            return crop_squares_with_crops(generated, clip, source, landmarker, self._limits)
        except Drop as drop:
            return Skipped(str(drop))


def score_rows_by_networks(
    rows: Mapping[str, Sequence[MeasureItem]],
    networks: Networks,
    raw_clips: RawClips,
    dataset: Dataset,
    tools: MeasureTools,
    *,
    truth: str,
    progress: Progress = no_progress,
) -> NetworkScores:
    """Score every measured item of every row by the networks; FID compares with the row named ``truth``."""
    scores = NetworkScores()
    if networks.syncnet is None and networks.lpips is None and networks.inception is None:
        return scores
    fids: dict[str, Fid] = {}
    done, total = 0, sum(map(len, rows.values()))
    for row, items in rows.items():
        fid = None if networks.inception is None else fids.setdefault(row, Fid(networks.inception))
        for item in items:
            clip = cut_clip(read_clip(dataset, item.clip_id), item.n_frames)
            generated = load_item_frames(clip, item, dataset, tools)[: item.n_frames]
            clip = cut_clip(clip, len(generated))
            speech_sha256 = dataset.clips[item.audio_clip_id]["sha256"]
            values, skipped = _score_item(
                item, clip, generated, networks, raw_clips, tools, speech_sha256=speech_sha256
            )
            scores.clips[make_score_key(item)] = values
            if skipped:
                scores.skipped[make_score_key(item)] = skipped
            if fid is not None:
                fid.add(generated, clip.boxes)
            done += 1
            progress("networks", done, total)
    for row, fid in fids.items():
        if min(fid.n, fids[truth].n) > 1:
            distances = fid.compute_distances(fids[truth]).items()
            scores.rows[row] = {column: Mean(value, None, None, fid.n) for column, value in distances}
    return scores


def _score_item(
    item: MeasureItem,
    clip: ClipSample,
    generated: Frames,
    networks: Networks,
    raw_clips: RawClips,
    tools: MeasureTools,
    *,
    speech_sha256: str,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """A clip's scores, and why it has no LSE if it has none; from the cache if they are there."""
    speech = None if networks.syncnet is None else raw_clips.read_speech(item.audio_clip_id)
    has_networks = [networks.lpips is not None, isinstance(speech, np.ndarray)]
    finder = [] if tools.landmarker is None else [ENGINE_PACKAGES[DEFAULT_ENGINE]]
    libraries = versions("torch", "opencv-python", "av", *finder)
    key = digest(STAGE, VERSION, item.cache_entry.stem, speech_sha256, has_networks, libraries)
    path = entry_path(tools.cache, STAGE, key, ".npz")
    entry = load_entry(path)
    if entry is None:
        sound = speech[: SAMPLES_PER_FRAME * len(generated)] if isinstance(speech, np.ndarray) else None
        squares = None
        if sound is not None and tools.landmarker is not None:  # the item's key includes the landmarker
            squares = raw_clips.crop_squares(item, clip, generated, tools.landmarker)
        result = score_clip_by_networks(networks, generated, clip.frames, clip.boxes, sound, squares)
        outcome = Outcome(facts={"values": result.values, "skipped": result.skipped})
        if not isinstance(squares, Skipped):  # not cached: a deadline, or a file that may come back
            save_entry(path, outcome)
    else:
        outcome, _ = entry
    own = item.clip_id == item.audio_clip_id
    values = {
        column: value
        for column, value in outcome.facts["values"].items()
        if own or not COLUMNS[column].needs_truth
    }
    return values, tuple(outcome.facts["skipped"]) or ((speech,) if isinstance(speech, str) else ())
