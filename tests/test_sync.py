"""From raw clips with a planted audio offset to shards: the offset is preserved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import MEL_FPS, VIDEO_FPS, ClipSample
from stages.align import project_points
from stages.media.faces import LEFT_PUPIL, LOWER_LIP_INNER, RIGHT_PUPIL, UPPER_LIP_INNER, FaceFinder
from stages.synth import ClipSpec, Truth, make_clip
from tests.barcode import read_counter
from tests.build import build_in_process
from tests.lag import measure_lag_seconds

OFFSETS_MS = (-200, -80, 0, 80, 200)
RATES = (("25", ".mpg"), ("29.97", ".flv"), ("variable", ".mp4"))
TOLERANCE_SECONDS = 0.020


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for i, (fps, suffix) in enumerate(RATES):
        for j, offset in enumerate(OFFSETS_MS):
            path = folder / f"{suffix[1:]}-{fps.replace('.', '')}_{offset:+d}{suffix}"
            make_clip(path, ClipSpec(speaker=i + 1, clip=j + 1, fps=fps, av_offset_ms=offset, seconds=2.4))
    return folder


@pytest.fixture(scope="module")
def dataset(raw: Path, landmarker: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    work = tmp_path_factory.mktemp("work")
    build_in_process(raw, work)
    return open_dataset(work / "shards")


def measure_openings(sample: ClipSample, find: FaceFinder) -> np.ndarray:
    """Gap between the inner lips over the distance of the pupils, measured in the crops: (T,)."""
    openings = []
    for frame in sample.frames:
        (points,) = find(frame)
        gap = np.linalg.norm(points[UPPER_LIP_INNER] - points[LOWER_LIP_INNER])
        openings.append(gap / np.linalg.norm(points[LEFT_PUPIL] - points[RIGHT_PUPIL]))
    return np.array(openings)


def load_truth(sample: ClipSample, raw: Path) -> Truth:
    return Truth.load(raw / sample.info["source"])


def test_the_offset_measured_from_the_shards_is_the_planted_one(
    dataset: Dataset, raw: Path, landmarker: Path
) -> None:
    assert len(dataset.clips) == len(RATES) * len(OFFSETS_MS)
    by_source_time, by_clock, hold_seconds = {}, {}, {}
    with FaceFinder(landmarker, max_faces=1) as find:
        for clip_id in dataset.clips:
            sample = read_clip(dataset, clip_id)
            planted = load_truth(sample, raw).av_offset_ms / 1000
            opening, loudness = measure_openings(sample, find), sample.mels.mean(axis=1)
            rows = np.arange(len(sample.mels)) / MEL_FPS
            clock = np.arange(len(sample.frames)) / VIDEO_FPS
            source = np.array(sample.info["source_seconds"])
            times, first = np.unique(source, return_index=True)  # a repeated frame counts once
            by_source_time[clip_id] = measure_lag_seconds(opening[first], times, loudness, rows) - planted
            by_clock[clip_id] = measure_lag_seconds(opening, clock, loudness, rows) - planted
            hold_seconds[clip_id] = float(np.mean(clock - source))
    assert max(map(abs, by_source_time.values())) <= TOLERANCE_SECONDS, by_source_time
    # The frame on screen at k/25 may have started up to one source frame earlier. That hold, 17 ms on
    # average at 29.97 fps and 0 at 25, is the only error when k/25 is taken as the time of the frame.
    for clip_id, hold in hold_seconds.items():
        assert by_clock[clip_id] == pytest.approx(-hold, abs=0.008), clip_id


def test_frame_k_is_the_source_frame_at_time_k_over_25(dataset: Dataset, raw: Path) -> None:
    for clip_id in dataset.clips:
        sample = read_clip(dataset, clip_id)
        truth = load_truth(sample, raw)
        starts = truth.times_s - truth.times_s[0]
        # Half a millisecond, the resolution of FLV time stamps, absorbs rounding of equal times.
        instants = np.arange(len(sample.frames)) / VIDEO_FPS + 0.0005
        indices = np.searchsorted(starts, instants, side="right") - 1
        for k, frame in enumerate(sample.frames):
            source = truth.frames[indices[k]]
            corners = project_points(sample.affine[k : k + 1], np.asarray(source.corners_px)[None])[0]
            assert read_counter(frame, corners) == source.counter, f"{clip_id}, frame {k}"
            assert sample.info["source_seconds"][k] == pytest.approx(starts[indices[k]], abs=0.0015)


def test_the_number_of_frames_matches_the_duration(dataset: Dataset, raw: Path) -> None:
    for clip_id in dataset.clips:
        sample = read_clip(dataset, clip_id)
        assert len(sample.frames) == pytest.approx(2.4 * VIDEO_FPS, abs=1)
        assert len(sample.mels) == 2 * len(sample.frames)
