from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shards.table import Rows
from stages import align, clips, landmarks, synth
from stages.align import (
    AlignParams,
    align_clip,
    centred_mean,
    check_boxes,
    check_length,
    compute_mask_boxes,
    make_part_key,
    project_points,
)
from stages.engine.cache import digest
from stages.engine.outcome import Drop, Outcome
from stages.engine.parts import Part, list_columns, read_part, write_part
from stages.engine.stage import Context, Work
from stages.media.crops import PADDED_PIXELS, TEMPLATE, fit_similarity, warp
from stages.media.faces import (
    FACE_OVAL,
    LEFT_PUPIL,
    LOWER_LIP_INNER,
    NOSE_BASE,
    RIGHT_PUPIL,
    STABLE_POINTS,
    UPPER_LIP_INNER,
    USED_POINTS,
    FaceFinder,
    Points,
)
from stages.media.video import read_frames_at_25fps
from stages.synth import ClipSpec

CHIN = 152  # of the mesh of points
PARAMS = AlignParams()
LOOSE_PX = 3  # the ranges below are those of the paper's own crops
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def finder(landmarker: Path) -> Iterator[FaceFinder]:
    with FaceFinder(landmarker, 1) as opened:
        yield opened


def points_of(clip: Path, finder: FaceFinder, most: int = 30) -> Points:
    """Points of a clip's first frames on the clock."""
    facts = clips.probe_file(clip, "folder", clips.ClipsParams()).facts
    frames = read_frames_at_25fps(clip, facts["video_start"], min(most, facts["frames"]))
    return np.stack([finder(frame.image)[0] for frame in frames])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, finder: FaceFinder) -> tuple[Points, np.ndarray]:
    """Points of a made clip of a talking head, and how open its mouth is."""
    clip = tmp_path_factory.mktemp("align") / "a.mpg"
    truth = synth.make_clip(clip, ClipSpec(seconds=1.2, size=(300, 240)))
    return points_of(clip, finder), truth.openings


# --- fit_similarity -------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    scale=st.floats(0.05, 20), angle=st.floats(-np.pi, np.pi), x=st.floats(-1e3, 1e3), y=st.floats(-1e3, 1e3)
)
def test_a_known_scale_turn_and_shift_are_recovered(scale: float, angle: float, x: float, y: float) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    source = np.random.default_rng(0).uniform(0, 400, (3, 5, 2))
    moved = source @ turn.T + (x, y)
    for points, target in zip(source, moved, strict=True):
        [found] = fit_similarity(points[None], target)
        assert found == pytest.approx(np.column_stack([turn, (x, y)]), abs=1e-8 * max(1, scale * 400))


@settings(max_examples=50)
@given(seed=seeds, noise=st.floats(0.1, 50))
def test_with_noise_it_is_the_least_squares_solution(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    source = rng.uniform(0, 400, (4, 5, 2))
    target = TEMPLATE + rng.normal(0, noise, TEMPLATE.shape)
    for points, found in zip(source, fit_similarity(source, target), strict=True):
        # x' = a x - b y + s and y' = b x + a y + t, for numpy
        x, y = points.T
        one, nil = np.ones(5), np.zeros(5)
        rows = np.concatenate([np.stack([x, -y, one, nil], 1), np.stack([y, x, nil, one], 1)])
        (a, b, s, t), *_ = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)
        assert found == pytest.approx(np.array([[a, -b, s], [b, a, t]]), abs=1e-6)


def test_projecting_and_its_inverse_bring_points_back(made: tuple[Points, np.ndarray]) -> None:
    points, _ = made
    matrices, _ = align_clip(points, PARAMS)
    projected = project_points(matrices, points)
    turns = np.linalg.inv(matrices[:, :, :2].astype(np.float64))
    back = (projected - matrices[:, None, :, 2]) @ turns.swapaxes(1, 2)
    assert np.abs(back - points).max() < 1e-3


# --- smoothing --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    n_frames=st.integers(1, 60),
    window=st.sampled_from([1, 3, 7, 99]),
    start=st.floats(-500, 500),
    speed=st.floats(-20, 20),
)
def test_even_motion_is_left_as_it_is(n_frames: int, window: int, start: float, speed: float) -> None:
    moving = start + speed * np.arange(n_frames)[:, None, None] * np.ones((1, 5, 2))
    assert centred_mean(moving, window) == pytest.approx(moving, abs=1e-7)


@settings(max_examples=60)
@given(seed=seeds, n_frames=st.integers(1, 40), radius=st.integers(0, 6))
def test_the_mean_is_the_plain_mean_of_the_frames_around(seed: int, n_frames: int, radius: int) -> None:
    values = np.random.default_rng(seed).normal(0, 100, (n_frames, 3))
    means = centred_mean(values, 2 * radius + 1)
    for k in range(n_frames):
        reach = min(radius, k, n_frames - 1 - k)
        assert means[k] == pytest.approx(values[k - reach : k + reach + 1].mean(axis=0), abs=1e-8)


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected an odd number"):
        AlignParams(smooth_frames=6)


# --- the box ----------------------------------------------------------------------------------------


def check_that_the_lower_face_is_hidden(points: Points, params: AlignParams = PARAMS) -> None:
    """Every point of the oval below the nose lies in the box, but for the margin right under the nose."""
    matrices, boxes = align_clip(points, params)
    projected = project_points(matrices, points)
    oval = projected[:, FACE_OVAL]
    x0, y0, x1, y1 = (side[:, None] for side in boxes.T.astype(float))
    below = oval[..., 1] >= projected[:, NOSE_BASE, 1][:, None] + 1.0  # the anchor is smoothed
    assert below.sum() > 5 * len(points)
    x, y = oval[below].T
    frame = np.nonzero(below)[0]
    assert (x >= x0[frame, 0]).all() and (x <= x1[frame, 0] - 1).all()
    assert (y <= y1[frame, 0] - 1).all()
    assert (boxes[:, 1] - projected[:, NOSE_BASE, 1] < (params.below_nose + 2) * params.size / 128).all()
    lips = projected[:, [UPPER_LIP_INNER, LOWER_LIP_INNER]]
    assert (lips[..., 1] > y0).all() and (lips[..., 1] < y1 - 1).all()


def size_of(boxes: np.ndarray) -> set[tuple[int, int]]:
    return {(int(x1 - x0), int(y1 - y0)) for x0, y0, x1, y1 in boxes}


def test_the_lower_face_is_hidden_in_every_frame_of_a_made_clip(made: tuple[Points, np.ndarray]) -> None:
    points, openings = made
    assert np.ptp(openings) > 0.5
    check_that_the_lower_face_is_hidden(points)


def test_the_lower_face_is_hidden_in_every_frame_of_real_clips(crema_d: Path, finder: FaceFinder) -> None:
    points = points_of(sorted((crema_d / "VideoFlash").glob("*.flv"))[0], finder, 60)
    check_that_the_lower_face_is_hidden(points)
    assert len(size_of(align_clip(points, PARAMS)[1])) == 1


def test_the_box_does_not_tell_how_open_the_mouth_is(made: tuple[Points, np.ndarray]) -> None:
    points, openings = made
    matrices, boxes = align_clip(points, PARAMS)
    assert len(size_of(boxes)) == 1
    chin = project_points(matrices, points)[:, CHIN, 1]
    assert np.corrcoef(openings, chin)[0, 1] > 0.8  # the jaw does move
    assert np.ptp(boxes[:, 3]) <= 2


@settings(max_examples=40)
@given(seed=seeds)
def test_any_face_moving_anyhow_is_hidden_by_a_box_of_one_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_frames = int(rng.integers(1, 25))
    face = rng.uniform(30, 98, (478, 2))
    face[list(STABLE_POINTS)] = TEMPLATE
    face[list(FACE_OVAL)] = np.stack([rng.uniform(35, 92, 36), rng.uniform(20, 110, 36)], -1)
    points = face + rng.normal(0, 1.0, (n_frames, 1, 2)).cumsum(axis=0).clip(-4, 4)
    points[:, CHIN, 1] += rng.uniform(0, 8, n_frames)
    boxes = compute_mask_boxes(points[:, USED_POINTS], PARAMS)
    assert len(size_of(boxes)) == 1 and boxes.dtype == np.int16
    for box, here in zip(boxes, points, strict=True):
        anchor = here[NOSE_BASE, 1]
        low = here[list(FACE_OVAL)]
        low = low[low[:, 1] >= anchor + 5]  # the anchor is smoothed
        assert (low[:, 0] >= box[0] - 4).all() and (low[:, 1] < box[3] + 4).all()


def test_a_clip_that_no_reader_of_shards_accepts_is_dropped_with_a_reason(
    made: tuple[Points, np.ndarray], tmp_path: Path
) -> None:
    lengths = {"s1_fits": 2**32 // (3 * 1024**2), "s1_large": 2**32 // (3 * 1024**2) + 1}
    work = Work("folder", tmp_path, tmp_path, tmp_path, tmp_path)
    rows = [{"clip_id": clip_id, "frames": n_frames} for clip_id, n_frames in lengths.items()]
    schema = pa.schema([("clip_id", pa.string()), ("frames", pa.int32())])
    part = Part("train", 0, Rows.from_rows(rows, schema))
    landmarks_rows = [
        (
            clip_id,
            Outcome(),
            {"points": np.resize(made[0], (n_frames, 478, 2)).tobytes(), "jumps": bytes(n_frames)},
        )
        for clip_id, n_frames in lengths.items()
    ]
    path = work.part_path(landmarks.STAGE, part.name)
    write_part(path, "key", list_columns(landmarks.COLUMNS), landmarks_rows)
    report = align.run(work, [part], AlignParams(size=1024), Context())
    assert report.counts == {"ok": 1, "too_large": 1}
    outcomes = read_part(work.part_path(align.STAGE, part.name))
    assert outcomes["s1_fits"]["status"] == "ok"
    assert outcomes["s1_large"]["reason"] == (
        "its 1366 frames of 1024 px are 4.3 GB, expected at most 4.29; cut it, or choose a smaller align.size"
    )
    with pytest.raises(Drop, match="its 1000001 frames, expected at most 1000000; cut it"):
        check_length(1_000_001, 32)
    check_length(1_000_000, 32)


def test_only_parts_with_a_clip_that_is_too_large_have_another_key_than_before() -> None:
    schema = pa.schema([("frames", pa.int32())])
    fitting, large = (Part("train", 0, Rows.from_rows([{"frames": n}], schema)) for n in (1365, 1366))
    params = AlignParams(size=1024)
    assert make_part_key(fitting, params, "a") == digest(align.STAGE, align.VERSION, params, "a")
    assert make_part_key(large, params, "a") != make_part_key(fitting, params, "a")
    assert make_part_key(large, asdict(params), "a") == make_part_key(large, params, "a")


def test_a_box_with_nothing_in_it_drops_the_clip_and_names_the_frame() -> None:
    boxes = np.array([[10, 20, 90, 110], [10, 128, 90, 128]], np.int16)
    with pytest.raises(Drop, match=r"its box is empty in frame 1: \[10, 128, 90, 128\]") as caught:
        check_boxes(boxes)
    assert caught.value.code == "no_alignment"
    check_boxes(boxes[:1])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
def test_eyes_and_nose_on_one_point_drop_the_clip() -> None:
    with pytest.raises(Drop, match="fall on one point") as caught:
        align_clip(np.full((3, 478, 2), 7, np.float32), PARAMS)
    assert caught.value.code == "no_alignment"


# --- framing ----------------------------------------------------------------------------------------


def framing(points: Points, params: AlignParams = PARAMS) -> dict[str, float]:
    """Medians over a clip, in px of the crop."""
    projected = project_points(align_clip(points, params)[0], points)
    pupils = projected[:, [RIGHT_PUPIL, LEFT_PUPIL]]
    return {
        "eyes_y": float(np.median(projected[:, STABLE_POINTS[1:], 1].mean(axis=1))),
        "eyes_x": float(np.median(projected[:, STABLE_POINTS[1:], 0].mean(axis=1))),
        "pupils": float(np.median(np.linalg.norm(pupils[:, 0] - pupils[:, 1], axis=1))),
        "mouth_y": float(np.median(projected[:, [UPPER_LIP_INNER, LOWER_LIP_INNER], 1])),
        "chin_y": float(np.median(projected[:, CHIN, 1])),
    }


def check_eyes(seen: dict[str, float]) -> None:
    assert seen["eyes_y"] == pytest.approx(53, abs=LOOSE_PX)
    assert seen["eyes_x"] == pytest.approx(63.5, abs=LOOSE_PX)
    assert seen["pupils"] == pytest.approx(33, abs=LOOSE_PX)


def test_crema_d_clips_are_framed_as_in_the_paper(crema_d: Path, finder: FaceFinder) -> None:
    for clip in sorted((crema_d / "VideoFlash").glob("*.flv"))[:3]:
        seen = framing(points_of(clip, finder, 20))
        check_eyes(seen)
        assert 85 - LOOSE_PX <= seen["mouth_y"] <= 89 + LOOSE_PX
        assert 106 - LOOSE_PX <= seen["chin_y"] <= 112 + LOOSE_PX


@pytest.mark.parametrize("speaker", ["s1", "s2", "s3", "s4", "s5", "s14", "s17"])
def test_grid_speakers_have_their_eyes_where_the_paper_has_them(
    grid: Path, finder: FaceFinder, speaker: str
) -> None:
    check_eyes(framing(points_of(sorted((grid / speaker).glob("*.mpg"))[-1], finder, 12)))


def test_crops_of_other_sizes_show_the_same(made: tuple[Points, np.ndarray]) -> None:
    points, _ = made
    _, boxes = align_clip(points, PARAMS)
    expected = project_points(align_clip(points, PARAMS)[0], points) + 0.5  # from the crop's edge
    for size in (64, 256):
        scale = size / 128
        matrices, scaled = align_clip(points, AlignParams(size=size))
        assert project_points(matrices, points) + 0.5 == pytest.approx(scale * expected, abs=1e-3 * scale)
        assert np.abs(scaled - scale * boxes).max() <= 1 + scale
        assert scaled.max() <= size
        assert len(size_of(scaled)) == 1
        check_that_the_lower_face_is_hidden(points, AlignParams(size=size))


@settings(max_examples=150)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    size=st.integers(1, 130),
    supersample=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_crop_has_the_bits_of_three_channels_whatever_its_size(
    height: int, width: int, size: int, supersample: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(0.1, 3)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = turn @ rng.uniform(0, [width, height])
    matrix = np.column_stack([turn, size / 2 - centre]).astype(np.float32)
    side = size * supersample
    fine = matrix.astype(np.float64) * supersample
    fine[:, 2] += (supersample - 1) / 2
    # Where the picture is so much larger, three channels are sampled as they are.
    larger = np.zeros((max(height, PADDED_PIXELS * side**2 // width + 1), width, 3), np.uint8)
    larger[:height] = picture
    for shown in (picture, larger):
        samples = cv2.warpAffine(
            shown, matrix if supersample == 1 else fine, (side, side), flags=cv2.INTER_LINEAR
        )
        expected = cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA)
        assert np.array_equal(warp(shown, matrix, size, supersample), expected)
