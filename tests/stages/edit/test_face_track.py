from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stages.align import USED_POINTS, AlignParams, align_clip
from stages.edit.face_track import Choice, FaceObservations, FacePath, face_path
from stages.engine.outcome import Drop, StageError
from stages.landmarks import LandmarksParams
from stages.media.crops import supersampling
from stages.media.faces import N_POINTS, Sighting, sight

RULES = LandmarksParams()
GAP = RULES.max_gap_frames
MESH = np.random.default_rng(0).uniform(-0.5, 0.5, (N_POINTS, 2)).astype(np.float32)


def mesh(x: float, *, width: float = 80, y: float = 150) -> np.ndarray:
    return (MESH * width + (x, y)).astype(np.float32)


def seen(x: float, width: float = 80) -> Sighting:
    whole = sight(mesh(x, width=width))
    return Sighting(whole.points[list(USED_POINTS)], whole.centre, whole.width)


def watched(faces: Sequence[Sequence[Sighting]], seconds: Sequence[float] | None = None) -> FaceObservations:
    times = np.arange(len(faces)) / 25 if seconds is None else np.array(seconds)
    return FaceObservations(np.arange(len(faces)), times, [list(found) for found in faces])


def path_of(faces: Sequence[Sequence[Sighting]], choice: Choice = "largest") -> FacePath:
    return face_path(watched(faces), choice, RULES, AlignParams())


def where(path: FacePath) -> list[float | None]:
    """About where on x each instant's crop is cut: the crop's middle, in px of the source."""
    centres: list[float | None] = []
    for k, index in enumerate(path.stretch_at):
        if index < 0:
            centres.append(None)
            continue
        stretch = path.stretches[index]
        matrix = stretch.matrices[k - stretch.first].astype(float)
        centres.append(float(np.linalg.solve(matrix[:, :2], np.array([63.5, 63.5]) - matrix[:, 2])[0]))
    return centres


def test_a_face_that_stays_is_aligned_as_a_clip_of_a_dataset() -> None:
    meshes = np.stack([mesh(200 + 2 * k + 3 * np.sin(k)) for k in range(40)])
    path = path_of([[seen(200 + 2 * k + 3 * np.sin(k))] for k in range(40)])
    matrices, boxes = align_clip(meshes, AlignParams())
    [stretch] = path.stretches
    assert np.array_equal(stretch.matrices, matrices) and np.array_equal(stretch.boxes, boxes)
    assert stretch.supersample == supersampling(matrices, 16)
    assert not path.stretch_at.any() and path.why_not == ["no_face"] * 40


def test_short_gaps_are_bridged_and_long_ones_end_a_stretch() -> None:
    face = [seen(200)]
    faces = [[]] * GAP + [face] * 10 + [[]] * GAP + [face] * 10 + [[]] * (GAP + 1) + [face] * 10 + [[]] * 9
    path = path_of(faces)
    first, second = 2 * GAP + 20, 3 * GAP + 21
    expected = [0] * first + [-1] * (GAP + 1) + [1] * 10 + [-1] * 9
    assert path.stretch_at.tolist() == expected
    assert path.stretches[1].first == second
    assert {path.why_not[k] for k, index in enumerate(expected) if index < 0} == {"no_face"}


def test_between_its_instants_a_matrix_is_between_theirs_and_at_them_theirs() -> None:
    meshes = [200 + 3 * k for k in range(30)]
    [stretch] = path_of([[seen(x)] for x in meshes]).stretches
    for k in (0, 1, 7, 29):
        assert stretch.affine(k / 25) == pytest.approx(stretch.matrices[k], abs=1e-5)
    half = (stretch.matrices[7].astype(float) + stretch.matrices[8]) / 2
    assert stretch.affine(7.5 / 25) == pytest.approx(half, abs=1e-4)
    # Beyond the ends by a step at most.
    beyond = 2 * stretch.matrices[-1].astype(float) - stretch.matrices[-2]
    assert stretch.affine(30 / 25) == pytest.approx(beyond, abs=1e-4)
    assert np.array_equal(stretch.affine(9), stretch.affine(31 / 25))
    assert stretch.affine(0.1).dtype == np.float32
    [alone] = path_of([[seen(200)]]).stretches
    assert np.array_equal(alone.affine(0.3), alone.matrices[0])


def test_a_matrix_is_right_at_the_time_of_the_frame_that_was_seen() -> None:
    """At 29.97 fps the frame seen at k / 25 is up to 33 ms older; the face moves 300 px a second."""
    stamps = np.arange(60) * 1001 / 30000
    shown = [stamps[stamps <= k / 25 + 5e-4][-1] for k in range(45)]
    meshes = np.stack([mesh(100 + 300 * at) for at in shown])
    watch = watched([[seen(100 + 300 * at)] for at in shown], shown)
    [stretch] = face_path(watch, "largest", RULES, AlignParams()).stretches
    nose = meshes[:, 2]
    for at in stamps[8:46]:
        point = nose[0] + (300 * (at - shown[0]), 0)
        projected = stretch.affine(at).astype(float) @ [*point, 1]
        # The smoothing itself is even to a pixel where steps are uneven.
        assert projected[0] == pytest.approx(
            stretch.affine(shown[0]).astype(float)[0] @ [*nose[0], 1], abs=1.5
        )


def test_left_right_and_numbers_go_by_where_faces_first_appear() -> None:
    faces = [[seen(400, 90), seen(100 + 5 * k, 80)] for k in range(30)]
    faces += [[seen(400, 90), seen(245, 80), seen(600, 70)] for _ in range(30)]

    def middle(choice: Choice) -> list[float | None]:
        return where(path_of(faces, choice))

    assert middle("largest")[0] == pytest.approx(400, abs=40)
    assert middle("right")[59] == pytest.approx(600, abs=40)
    assert middle("left")[0] == pytest.approx(100, abs=40) and middle("left")[59] == pytest.approx(
        245, abs=40
    )
    assert middle(0) == middle("left")
    assert middle(1) == middle("largest")
    assert middle(2)[:30] == [None] * 30 and middle(2)[59] == middle("right")[59]
    known = r"0 at x = \d+, in 60 frames; 1 at x = \d+, in 60 frames; 2 at x = \d+, in 30"
    with pytest.raises(StageError, match=f"--face 3: there is no such face; from the left there are {known}"):
        path_of(faces, 3)


def test_a_speaker_after_a_cut_is_followed_and_a_listener_is_not() -> None:
    """Two shots of her, the second one closer; in the first and after them somebody else."""
    listener = seen(600, 45)
    faces = [[seen(200, 80), listener]] * 30 + [[seen(380, 120)]] * 30 + [[listener]] * 20
    xs = where(path_of(faces))
    assert xs[10] == pytest.approx(200, abs=40) and xs[40] == pytest.approx(380, abs=50)
    assert xs[60:] == [None] * 20
    # Who asks for one by number gets that one and nobody else.
    assert where(path_of(faces, 0))[30:] == [None] * 50


def test_a_face_comes_back_to_where_it_was_as_the_same() -> None:
    faces = [[seen(200)]] * 10 + [[]] * 200 + [[seen(210)]] * 10
    path = path_of(faces, 0)
    assert len(path.stretches) == 2 and path.stretch_at[-1] == 1


def test_what_is_no_face_or_too_small_is_not_followed() -> None:
    with pytest.raises(Drop, match="no face in any of its 9 frames at 25 fps") as none:
        path_of([[]] * 9)
    assert none.value.code == "no_face"
    with pytest.raises(Drop, match=r"its face is 2\d px wide, expected 40 or more") as small:
        path_of([[seen(100, 25)]] * 9)
    assert small.value.code == "small_face"
    # A false face of two instants is nobody's number 0.
    faces = [[seen(300)]] * 10 + [[seen(300), seen(50)]] * 2 + [[seen(300)]] * 10
    assert where(path_of(faces, "left"))[11] == pytest.approx(300, abs=40)
    # A part of the video in which the face is small is left as it is, and says so.
    path = path_of([[seen(100, 90)]] * 20 + [[]] * 10 + [[seen(400, 30)]] * 10)
    assert path.stretch_at.tolist() == [0] * 20 + [-1] * 20
    assert path.why_not[20:] == ["no_face"] * 10 + ["small_face"] * 10
