from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from shards.schema import VIDEO_FPS
from stages.clips import ClipsParams, probe_file
from stages.landmarks import LandmarksParams, find_points
from stages.media.faces import MAX_LOOK_CHANGE, N_POINTS, FaceDetection, FaceFinder, compare_looks
from stages.media.jumps import (
    LOOK_SIDE,
    Jump,
    PictureComparison,
    crop_look,
    find_jumps,
)
from stages.media.video import read_frames_at_25fps

MESH = np.random.default_rng(0).uniform(-0.5, 0.5, (N_POINTS, 2))
LOOKS = np.random.default_rng(1).integers(30, 220, (3, LOOK_SIDE, LOOK_SIDE)).astype(np.uint8)
N_FRAMES = 30


def detect(
    k: int,
    *,
    x: float = 0.0,
    zoom: float = 1.0,
    turn: float = 0.0,
    shape: np.ndarray | None = None,
    look: np.ndarray = LOOKS[0],
    seed: int = 0,
) -> FaceDetection:
    """A face of 100 px in frame k, with the landmarker's noise; ``x`` in widths."""
    noise = np.random.default_rng([seed, k]).normal(0, 0.2, (N_POINTS, 2))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (MESH if shape is None else shape) @ rotation.T * 100 * zoom + (300 + 100 * x, 200)
    return FaceDetection.from_points((points + noise).astype(np.float32), look)


def find(faces: Sequence[FaceDetection | None], changes: Sequence[float] | None = None) -> list[Jump]:
    still = [0.5] * len(faces)
    return find_jumps(faces, changes or still, [k / VIDEO_FPS for k in range(len(faces))])


@settings(max_examples=60)
@example(shake=0.0, nod_hertz=1.25, lean=0.0, tilt=0.25, seed=0)  # it starts to move as the clip ends
@example(shake=0.0, nod_hertz=1.2265625, lean=0.0, tilt=0.25, seed=0)  # after it has turned around
@given(
    shake=st.floats(0, 0.3),
    nod_hertz=st.floats(0.2, 1.5),
    lean=st.floats(0, 0.3),
    tilt=st.floats(0, 0.4),
    seed=st.integers(0, 99),
)
def test_a_head_that_moves_however_fast_does_not_jump(
    shake: float, nod_hertz: float, lean: float, tilt: float, seed: int
) -> None:
    phase = 2 * np.pi * nod_hertz * np.arange(N_FRAMES) / VIDEO_FPS
    faces = [
        detect(k, x=shake * np.sin(p), zoom=1 + lean * np.sin(p / 2), turn=tilt * np.sin(p), seed=seed)
        for k, p in enumerate(phase)
    ]
    assert find(faces) == []


@pytest.mark.parametrize(
    "change",
    [{"zoom": 1.1}, {"zoom": 1 / 1.1}, {"zoom": 2.0}, {"x": 0.15}, {"x": -3.0}, {"turn": 0.15}],
    ids=str,
)
@pytest.mark.parametrize("at", [1, 2, 15, N_FRAMES - 2, N_FRAMES - 1])
def test_a_zoom_or_a_move_of_one_face_is_a_jump_at_its_first_frame(change: dict[str, float], at: int) -> None:
    faces = [detect(k, **(change if k >= at else {})) for k in range(N_FRAMES)]
    assert find(faces) == [Jump(at, is_new_face=False)]


@pytest.mark.parametrize("at", [1, 15, N_FRAMES - 1])
def test_another_look_in_the_same_place_is_another_face(at: int) -> None:
    faces = [detect(k, look=LOOKS[int(k >= at)]) for k in range(N_FRAMES)]
    assert find(faces) == [Jump(at, is_new_face=True)]


def test_jumps_near_each_other_are_all_found() -> None:
    zooms = {10: 1.3, 12: 1.0, 20: 1.2}
    faces, zoom = [], 1.0
    for k in range(N_FRAMES):
        zoom = zooms.get(k, zoom)
        faces.append(detect(k, zoom=zoom))
    assert [jump.frame for jump in find(faces)] == [10, 12, 20]


@pytest.mark.parametrize("at", [1, 9, N_FRAMES - 2])
def test_a_picture_that_is_shown_once_has_a_jump_on_both_sides(at: int) -> None:
    stranger = np.random.default_rng(2).uniform(-0.5, 0.5, (N_POINTS, 2))
    faces = [detect(k, shape=stranger, look=LOOKS[1]) if k == at else detect(k) for k in range(N_FRAMES)]
    assert find(faces) == [Jump(at, True), Jump(at + 1, True)]


@pytest.mark.parametrize("n_pictures", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 9, N_FRAMES - 1])
def test_a_flash_that_lights_a_face_for_some_pictures_is_no_cut(at: int, n_pictures: int) -> None:
    faces = [detect(k, look=LOOKS[int(at <= k < at + n_pictures)]) for k in range(N_FRAMES)]
    at_the_end = [
        Jump(k, True) for k in (at, at + n_pictures) if at in (0, N_FRAMES - 1) and 0 < k < N_FRAMES
    ]
    assert find(faces) == at_the_end  # nothing says that the face before the first picture was the same


@pytest.mark.parametrize("at", [11, 12, 13, 14])
def test_a_jump_in_a_gap_is_where_the_picture_changes_most(at: int) -> None:
    """Frames 11 to 13 have no face."""
    faces = [None if 11 <= k <= 13 else detect(k, x=0.4 * (k > 13)) for k in range(N_FRAMES)]
    changes = [25.0 if k == at else 0.5 for k in range(N_FRAMES)]
    assert find(faces, changes) == [Jump(at, is_new_face=False)]
    unmoved = [None if 11 <= k <= 13 else detect(k) for k in range(N_FRAMES)]
    assert find(unmoved, changes) == []  # something else in the picture has changed


@pytest.mark.parametrize("held", [2, 3, 5])
def test_a_low_rate_alone_makes_no_jump_and_hides_none(held: int) -> None:
    """Each picture stands for ``held`` frames, in which the head moves on."""

    def show(zoom_from: int) -> list[Jump]:
        faces = []
        for k in range(60):
            shown = k - k % held
            faces.append(detect(shown, x=0.03 * shown, zoom=1.3 if shown >= zoom_from else 1.0))
        changes = [0.5 if k % held == 0 else 0.0 for k in range(60)]
        return find_jumps(faces, changes, [(k - k % held) / VIDEO_FPS for k in range(60)])

    assert show(1000) == []
    assert show(30) == [Jump(30, is_new_face=False)]


def test_a_change_of_the_picture_s_size_is_a_jump_however_small() -> None:
    compare = PictureComparison()
    pictures = [np.full((288, 360, 3), 90, np.uint8)] * 2 + [np.full((288, 352, 3), 90, np.uint8)] * 2
    changes = [compare(picture) for picture in pictures]
    assert changes == [0, 0, np.inf, 0]
    faces = [detect(k, zoom=1.0 if k < 2 else 0.99) for k in range(4)]
    assert find(faces, changes) == [Jump(2, is_new_face=False)]


@settings(max_examples=60)
@given(n_frames=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_whatever_comes_each_part_between_jumps_has_a_face(n_frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    faces: list[FaceDetection | None] = [
        None if rng.random() < 0.4
        else detect(k, x=rng.choice([0, 0.5]), zoom=rng.choice([1, 1.3]), look=LOOKS[rng.integers(3)])
        for k in range(n_frames)
    ]  # fmt: skip
    changes = rng.choice([0.0, 0.5, 30.0, np.inf], n_frames).tolist()
    starts = [jump.frame for jump in find(faces, changes)]
    assert starts == sorted(set(starts)) and all(0 < k < n_frames for k in starts)
    if any(face is not None for face in faces):
        bounds = [0, *starts, n_frames]
        assert all(any(faces[k] is not None for k in range(*pair)) for pair in pairwise(bounds))


# --- looks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finder(landmarker: Path) -> Iterator[FaceFinder]:
    with FaceFinder(landmarker, 1) as opened:
        yield opened


def test_a_look_is_the_face_s_alone_wherever_and_however_bright_it_is(finder: FaceFinder) -> None:
    photo = np.ascontiguousarray(astronaut()[:256, 96:352])

    def look_at(picture: np.ndarray) -> np.ndarray:
        [points] = finder(picture)
        return crop_look(picture, points)

    plain = look_at(photo)
    wide = np.zeros((400, 600, 3), np.uint8)
    wide[100:356, 300:556] = photo
    dim = (photo * 0.6 + 20).astype(np.uint8)
    for other in (wide, dim, cv2.resize(photo, (460, 460)), photo[:170]):
        assert compare_looks(plain, look_at(np.ascontiguousarray(other))) < MAX_LOOK_CHANGE / 2
    assert compare_looks(plain, look_at(np.ascontiguousarray(photo[:, ::-1]))) > MAX_LOOK_CHANGE
    assert compare_looks(plain, np.zeros_like(plain)) == 0


def test_points_that_fall_on_one_place_have_no_look() -> None:
    picture = np.full((50, 50, 3), 90, np.uint8)
    for points in (np.full((N_POINTS, 2), 7, np.float32), np.full((N_POINTS, 2), 9e9, np.float32)):
        assert not crop_look(picture, points).any()


# --- real clips -------------------------------------------------------------------------------------


def test_real_clips_have_no_jump_and_those_of_two_people_have_one(
    grid: Path, crema_d: Path, finder: FaceFinder
) -> None:
    clips = [sorted((grid / speaker).glob("*.mpg"))[-1] for speaker in ("s1", "s2", "s3", "s4")]
    clips += [sorted((crema_d / "VideoFlash").glob("*.flv"))[0]]
    frames = []
    for clip in clips:
        facts = probe_file(clip, "folder", ClipsParams()).facts
        frames.append(list(read_frames_at_25fps(clip, facts["video_start"], 20)))
        assert find_points(frames[-1], finder, LandmarksParams()).jumps == []
    keep = LandmarksParams(cuts="keep")
    for one in range(4):
        for other in range(4):
            joined = frames[one][:10] + frames[other][10:]
            clip_landmarks = find_points(joined, finder, keep)
            assert clip_landmarks.jumps == ([] if one == other else [10])
            assert clip_landmarks.notes == (() if one == other else ("cut to another face at frame 10",))
