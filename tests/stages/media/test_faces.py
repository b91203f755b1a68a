from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from stages.engine.outcome import StageError
from stages.media import faces
from stages.media.faces import (
    DEFAULT_ENGINE,
    ENGINE_PACKAGES,
    FACE_OVAL,
    N_POINTS,
    STABLE_POINTS,
    Engine,
    FaceDetection,
    FaceFinder,
    Points,
    check_engine,
    compare_all_looks,
    compare_looks,
    find_longest_gap,
    interpolate_gaps,
    measure_face_width,
    track_largest_face,
)
from stages.media.jumps import LOOK_SIDE
from stages.media.mediapipe_faces import MediaPipeFaces, _detect, _detect_without_objects, _has_c_result

MOUTH_PX = (223, 146)  # in the photograph, between the lips
MAX_GAP = 5


@pytest.fixture(scope="module", params=list(ENGINE_PACKAGES))
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture(scope="module")
def finder(landmarker: Path, engine: Engine) -> Iterator[FaceFinder]:
    with FaceFinder(landmarker, 4, engine) as finder:
        yield finder


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A face of about 90 px in 256 x 256, RGB."""
    return np.ascontiguousarray(astronaut()[:256, 96:352])


def make_pair(photo: np.ndarray, left: float, right: float) -> np.ndarray:
    """An image (320, 640, 3) with the face at two scales side by side; 0 means no face."""
    frame = np.full((320, 640, 3), 110, np.uint8)
    for x, scale in ((0, left), (320, right)):
        if scale:
            face = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            frame[: len(face), x : x + face.shape[1]] = face
    return frame


def test_both_mediapipe_calls_give_identical_bits(landmarker: Path, photo: np.ndarray) -> None:
    with MediaPipeFaces(landmarker, 4) as finder:
        compare_calls(finder, photo)


def compare_calls(finder: MediaPipeFaces, photo: np.ndarray) -> None:
    if not _has_c_result(finder.landmarker):
        pytest.skip("this MediaPipe has no C result to read")
    for frame, n_faces in (
        (photo, 1),
        (make_pair(photo, 1.0, 0.8), 2),
        (np.full((240, 320, 3), 99, np.uint8), 0),
        (photo[:, ::-1], 1),
    ):
        image = finder.make_image(frame)
        slow, fast = _detect(finder.landmarker, image), _detect_without_objects(finder.landmarker, image)
        assert len(slow) == len(fast) == n_faces
        for one, other in zip(slow, fast, strict=True):
            assert one.shape == other.shape == (N_POINTS, 2)
            assert one.dtype == other.dtype == np.float32
            assert one.tobytes() == other.tobytes()


def test_a_view_gives_the_same_points_as_its_copy(finder: FaceFinder, photo: np.ndarray) -> None:
    """MediaPipe ignores strides, without an error (google-ai-edge/mediapipe, 0.10.30 to 1.2.2)."""
    wide = make_pair(photo, 1.0, 0)
    bgr = np.ascontiguousarray(photo[:, :, ::-1])
    views = {
        "mirrored": np.fliplr(photo),
        "columns cut": wide[:256, 3:253],
        "rows skipped": wide[::2, ::2],
        "Fortran order": np.asfortranarray(photo),
        "channels turned": bgr[:, :, ::-1],
        "turned by 90 degrees twice": np.rot90(np.rot90(photo)),
    }
    for name, view in views.items():
        assert not view.flags.c_contiguous, name
        points, expected = finder(view), finder(view.copy(order="C"))
        assert len(points) == len(expected) and len(points) <= 1, name
        assert all(a.tobytes() == b.tobytes() for a, b in zip(points, expected, strict=True)), name
    assert finder(views["columns cut"]) and finder(views["mirrored"]) and finder(views["Fortran order"])
    assert np.array_equal(finder(views["channels turned"]), finder(photo))


def test_points_are_in_pixels_of_the_image(finder: FaceFinder, photo: np.ndarray) -> None:
    """An image twice as large, pixel for pixel, has its points at 2 x + 0.5."""
    [points] = finder(photo)
    [doubled] = finder(photo.repeat(2, axis=0).repeat(2, axis=1))
    # MediaPipe's own crop rounds by up to half a pixel of the larger image.
    assert np.median(doubled - (2 * points + 0.5), axis=0) == pytest.approx(0, abs=0.8)
    x, y = points[[13, 14]].mean(axis=0)
    assert (x + 96, y) == pytest.approx(MOUTH_PX, abs=3)


def test_a_mirrored_image_has_mirrored_points(finder: FaceFinder, photo: np.ndarray) -> None:
    [points], [mirrored] = finder(photo), finder(np.fliplr(photo))
    eyes, mirrored_eyes = points[list(STABLE_POINTS)], mirrored[list(STABLE_POINTS)][[0, 4, 3, 2, 1]]
    assert mirrored_eyes[:, 0] == pytest.approx(255 - eyes[:, 0], abs=2)
    assert mirrored_eyes[:, 1] == pytest.approx(eyes[:, 1], abs=2)


def test_points_do_not_depend_on_earlier_frames(landmarker: Path, engine: Engine, photo: np.ndarray) -> None:
    frames = [make_pair(photo, 1.0, 0.8), photo, np.fliplr(photo), np.full((99, 77, 3), 9, np.uint8)]

    def find_points(order: Sequence[int]) -> dict[int, bytes]:
        with FaceFinder(landmarker, 4, engine) as fresh:
            return {k: b"".join(face.tobytes() for face in fresh(frames[k])) for k in order}

    assert (
        find_points([0, 1, 2, 3]) == find_points([3, 2, 1, 0]) == {k: find_points([k])[k] for k in range(4)}
    )


def test_the_larger_of_two_faces_is_tracked_through_a_clip(finder: FaceFinder, photo: np.ndarray) -> None:
    """Also while the other one is larger for a moment, and when it is absent for as long as a gap may be."""
    sizes = [(1.0, 0.8)] * 20 + [(1.0, 1.25)] * 2 + [(1.0, 0.8)] + [(0, 0.8)] * MAX_GAP + [(1.0, 0.8)] * 3
    faces: dict[tuple[float, float], list[Points]] = {
        size: finder(make_pair(photo, *size)) for size in dict.fromkeys(sizes)
    }
    assert [len(faces[size]) for size in faces] == [2, 2, 1]
    tracked = track_points([faces[size] for size in sizes])
    assert [face is not None for face in tracked] == [scale > 0 for scale, _ in sizes]
    centres = [face.mean(axis=0) for face in tracked if face is not None]
    assert np.ptp(centres, axis=0).max() < 3
    assert max(x for x, _ in centres) < 320


def test_an_engine_that_is_not_installed_is_named_and_no_other_takes_its_place(
    landmarker: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_engine(engine)
    monkeypatch.setattr(faces, "ENGINE_PACKAGES", {name: f"no-{name}" for name in ENGINE_PACKAGES})
    other = "mediapipe" if engine == "litert" else "litert"
    words = (
        f"landmarks.engine: {engine} needs the package no-{engine}, which is not installed; "
        f"get it with `pip install no-{engine}`, or choose {other} in params.yaml"
    )
    with pytest.raises(StageError) as caught, FaceFinder(landmarker, 4, engine):
        pass
    assert str(caught.value) == words


def test_the_default_engine_is_litert() -> None:
    assert DEFAULT_ENGINE == "litert"


# --- without an engine ----------------------------------------------------------------------------

LOOK = np.full((LOOK_SIDE, LOOK_SIDE), 128, np.uint8)
ANGLES = np.linspace(0, 2 * np.pi, N_POINTS, endpoint=False)
ROUND = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1) / 2


def face(x: float, y: float, width: float) -> Points:
    """A face that is a circle of points."""
    return (ROUND * width + (x, y)).astype(np.float32)


def track_points(frames: Sequence[Sequence[Points]]) -> list[Points | None]:
    """The points of the largest face."""
    faces = [[FaceDetection.from_points(points, LOOK) for points in frame] for frame in frames]
    return [None if face is None else face.points for face in track_largest_face(faces, MAX_GAP)]


def test_a_face_that_is_absent_for_longer_than_a_gap_starts_another_track() -> None:
    one = face(100, 100, 80)
    frames = [[one]] * 6 + [[]] * (MAX_GAP + 1) + [[one]] * 4
    tracked = track_points(frames)
    assert [points is not None for points in tracked] == [True] * 6 + [False] * (MAX_GAP + 5)
    bridged = track_points([[one]] * 6 + [[]] * MAX_GAP + [[one]] * 4)
    assert sum(points is not None for points in bridged) == 10


def test_frames_without_any_face_give_none() -> None:
    assert track_points([[], [], []]) == [None, None, None]
    assert track_points([]) == []


def test_of_two_equal_faces_the_first_is_tracked() -> None:
    left, right = face(100, 100, 80), face(400, 100, 80)
    assert all(points is left for points in track_points([[left, right]] * 5))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_frames=st.integers(10, 24),
    momentary=st.floats(0.1, 3.0),
    gap=st.integers(0, MAX_GAP),
)
def test_the_larger_face_is_tracked_whatever_the_order_of_detection(
    seed: int, n_frames: int, momentary: float, gap: int
) -> None:
    rng = np.random.default_rng(seed)
    moment = int(rng.integers(0, n_frames))
    # It returns: after its end a face of the same look that begins would continue it, as after a cut.
    away_from = int(rng.integers(1, n_frames - gap))
    steps = rng.uniform(-8, 8, (n_frames, 2)).cumsum(axis=0).clip(-40, 40)
    frames, large = [], []
    for k in range(n_frames):
        here = [face(450 + steps[k, 0], 150 + steps[k, 1], 40 * (momentary if k == moment else 1))]
        if k == 0 or not away_from <= k < away_from + gap:
            large.append(face(150 + steps[k, 0], 150 + steps[k, 1], 120))
            here.append(large[-1])
        else:
            large.append(None)
        frames.append([here[i] for i in rng.permutation(len(here))])
    tracked = track_points(frames)
    for expected, points in zip(large, tracked, strict=True):
        assert points is expected


@settings(max_examples=60)
@given(has_face=st.lists(st.booleans(), min_size=1, max_size=30).filter(any), seed=st.integers(0, 999))
def test_gaps_are_filled_linearly_and_constant_at_the_ends(has_face: list[bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    detected = [k for k, here in enumerate(has_face) if here]
    values = {k: rng.uniform(0, 640, (N_POINTS, 2)).astype(np.float32) for k in detected}
    bridged = interpolate_gaps([values.get(k) for k in range(len(has_face))])
    assert bridged.shape == (len(has_face), N_POINTS, 2) and bridged.dtype == np.float32
    for k in detected:
        assert np.array_equal(bridged[k], values[k])  # detected points stay bit-identical
    frames = range(len(has_face))
    for point, axis in ((0, 0), (77, 1), (477, 0)):
        track = [float(values[k][point, axis]) for k in detected]
        assert bridged[:, point, axis] == pytest.approx(np.interp(frames, detected, track), abs=1e-3)


@settings(max_examples=100)
@given(st.lists(st.booleans(), max_size=40))
def test_the_longest_gap_is_the_first_of_the_longest_runs(has_face: list[bool]) -> None:
    start, length = find_longest_gap(has_face)
    runs = "".join("x" if here else "." for here in has_face).split("x")
    assert length == max(map(len, runs))
    assert not any(has_face[start : start + length])
    if length:
        assert "".join("x" if here else "." for here in has_face).index("." * length) == start


def test_the_width_of_a_face_is_that_of_its_points() -> None:
    assert measure_face_width(face(10, 20, 80)) == pytest.approx(80, abs=0.01)
    assert len(set(FACE_OVAL)) == 36


def test_many_looks_are_compared_as_two_are() -> None:
    looks = np.random.default_rng(0).integers(1, 256, (20, LOOK_SIDE, LOOK_SIDE)).astype(np.uint8)
    for k, look in enumerate(looks[:8]):
        look[:, : k + 1] = 0  # outside the picture: half of it at most
    looks[13] = 128
    distances = compare_all_looks(looks[:15], looks)
    for k, one in enumerate(looks[:15]):
        expected = [compare_looks(one, look) for look in looks]
        assert distances[k] == pytest.approx(expected, rel=1e-4, abs=1e-3)
    looks[11, :, :13] = 0
    assert compare_all_looks(looks[3:4], looks[11:13])[0] == pytest.approx(
        [np.inf, distances[3, 12]], rel=1e-4
    )
