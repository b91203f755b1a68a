from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages import synth
from stages.align import AlignParams, align_clip
from stages.edit.face_track import (
    INSTANT,
    INSTANTS,
    OTHER_FACE,
    FaceChoice,
    FaceObservations,
    FacePath,
    choose_face_paths,
    find_faces,
)
from stages.edit.reader import VideoFacts, probe_video
from stages.engine.outcome import Drop, StageError
from stages.landmarks import LandmarksParams
from stages.media.crops import compute_supersample
from stages.media.faces import MAX_LOOK_CHANGE, N_POINTS, USED_POINTS, FaceDetection, compare_looks
from stages.media.jumps import LOOK_SIDE
from stages.synth import ClipSpec

PARAMS = LandmarksParams()
GAP = PARAMS.max_gap_frames
LOOK = np.full((LOOK_SIDE, LOOK_SIDE), 128, np.uint8)
MESH = np.random.default_rng(0).uniform(-0.5, 0.5, (N_POINTS, 2)).astype(np.float32)


def mesh(x: float, *, width: float = 80, y: float = 150) -> np.ndarray:
    return (MESH * width + (x, y)).astype(np.float32)


def detect(x: float, width: float = 80) -> FaceDetection:
    face = FaceDetection.from_points(mesh(x, width=width), LOOK)
    return FaceDetection(face.points[list(USED_POINTS)], face.centre, face.width, LOOK)


def observe(
    faces: Sequence[Sequence[FaceDetection]], seconds: Sequence[float] | None = None
) -> FaceObservations:
    times = np.arange(len(faces)) / 25 if seconds is None else np.array(seconds)
    sources = np.arange(len(faces))
    changes = np.full(len(faces), 0.5)
    return FaceObservations(sources, changes, sources, times, [list(frame_faces) for frame_faces in faces])


def find_path(faces: Sequence[Sequence[FaceDetection]], choice: FaceChoice = "largest") -> FacePath:
    [path] = choose_face_paths(observe(faces), [choice], PARAMS, AlignParams())
    return path


def locate_crops(path: FacePath) -> list[float | None]:
    """The x of each instant's crop centre in source px, roughly; None where there is no crop."""
    centres: list[float | None] = []
    for k, index in enumerate(path.segment_at):
        if index < 0:
            centres.append(None)
            continue
        segment = path.segments[index]
        matrix = segment.matrices[k - segment.first].astype(float)
        centres.append(float(np.linalg.solve(matrix[:, :2], np.array([63.5, 63.5]) - matrix[:, 2])[0]))
    return centres


def test_a_face_that_stays_is_aligned_like_a_clip_of_a_dataset() -> None:
    meshes = np.stack([mesh(200 + 2 * k + 3 * np.sin(k)) for k in range(40)])
    path = find_path([[detect(200 + 2 * k + 3 * np.sin(k))] for k in range(40)])
    matrices, boxes = align_clip(meshes, AlignParams())
    [segment] = path.segments
    assert np.array_equal(segment.matrices, matrices) and np.array_equal(segment.boxes, boxes)
    assert segment.supersample == compute_supersample(matrices, 16)
    assert not path.segment_at.any() and path.reason_at == ["no_face"] * 40


def test_short_gaps_are_bridged_and_long_ones_end_a_segment() -> None:
    face = [detect(200)]
    faces = [[]] * GAP + [face] * 10 + [[]] * GAP + [face] * 10 + [[]] * (GAP + 1) + [face] * 10 + [[]] * 9
    path = find_path(faces)
    first, second = 2 * GAP + 20, 3 * GAP + 21
    expected = [0] * first + [-1] * (GAP + 1) + [1] * 10 + [-1] * 9
    assert path.segment_at.tolist() == expected
    assert path.segments[1].first == second
    assert {path.reason_at[k] for k, index in enumerate(expected) if index < 0} == {"no_face"}


def test_a_matrix_is_interpolated_between_instants_and_exact_at_them() -> None:
    meshes = [200 + 3 * k for k in range(30)]
    [segment] = find_path([[detect(x)] for x in meshes]).segments
    for k in (0, 1, 7, 29):
        assert segment.interpolate_matrix(k / 25) == pytest.approx(segment.matrices[k], abs=1e-5)
    half = (segment.matrices[7].astype(float) + segment.matrices[8]) / 2
    assert segment.interpolate_matrix(7.5 / 25) == pytest.approx(half, abs=1e-4)
    # Extrapolated by one step at most.
    beyond = 2 * segment.matrices[-1].astype(float) - segment.matrices[-2]
    assert segment.interpolate_matrix(30 / 25) == pytest.approx(beyond, abs=1e-4)
    assert np.array_equal(segment.interpolate_matrix(9), segment.interpolate_matrix(31 / 25))
    assert segment.interpolate_matrix(0.1).dtype == np.float32
    [alone] = find_path([[detect(200)]]).segments
    assert np.array_equal(alone.interpolate_matrix(0.3), alone.matrices[0])


def test_a_matrix_is_exact_at_the_time_stamp_of_the_source_frame() -> None:
    """At 29.97 fps the frame shown at k / 25 s is up to 33 ms older; the face moves 300 px per second."""
    stamps = np.arange(60) * 1001 / 30000
    source_times = [stamps[stamps <= k / 25 + 5e-4][-1] for k in range(45)]
    meshes = np.stack([mesh(100 + 300 * at) for at in source_times])
    observations = observe([[detect(100 + 300 * at)] for at in source_times], source_times)
    [path] = choose_face_paths(observations, ["largest"], PARAMS, AlignParams())
    [segment] = path.segments
    nose = meshes[:, 2]
    for at in stamps[8:46]:
        point = nose[0] + (300 * (at - source_times[0]), 0)
        projected = segment.interpolate_matrix(at).astype(float) @ [*point, 1]
        # Where steps are uneven, the smoothing itself is accurate to a pixel.
        assert projected[0] == pytest.approx(
            segment.interpolate_matrix(source_times[0]).astype(float)[0] @ [*nose[0], 1], abs=1.5
        )


def test_left_right_and_numbers_go_by_where_faces_first_appear() -> None:
    faces = [[detect(400, 90), detect(100 + 5 * k, 80)] for k in range(30)]
    faces += [[detect(400, 90), detect(245, 80), detect(600, 70)] for _ in range(30)]

    def middle(choice: FaceChoice) -> list[float | None]:
        return locate_crops(find_path(faces, choice))

    assert middle("largest")[0] == pytest.approx(400, abs=40)
    assert middle("right")[59] == pytest.approx(600, abs=40)
    assert middle("left")[0] == pytest.approx(100, abs=40) and middle("left")[59] == pytest.approx(
        245, abs=40
    )
    assert middle(0) == middle("left")
    assert middle(1) == middle("largest")
    assert middle(2)[:30] == [None] * 30 and middle(2)[59] == middle("right")[59]
    listing = r"0 at x = \d+, in 60 frames; 1 at x = \d+, in 60 frames; 2 at x = \d+, in 30"
    with pytest.raises(
        StageError, match=f"--face 3: there is no such face; from the left there are {listing}"
    ):
        find_path(faces, 3)


def test_a_speaker_is_tracked_after_a_cut_and_a_listener_is_not() -> None:
    """Two shots of the speaker, the second closer; a listener in the first shot and after the second."""
    listener = detect(600, 45)
    faces = [[detect(200, 80), listener]] * 30 + [[detect(380, 120)]] * 30 + [[listener]] * 20
    xs = locate_crops(find_path(faces))
    assert xs[10] == pytest.approx(200, abs=40) and xs[40] == pytest.approx(380, abs=50)
    assert xs[60:] == [None] * 20
    assert locate_crops(find_path(faces, 0)) == xs


def test_a_face_chosen_by_number_is_followed_across_jumps_by_its_look() -> None:
    """A zoom and back, as in one recording with a punch-in, then a cut to somebody else."""
    own = np.tile(np.arange(1, 16 * LOOK_SIDE, 16, dtype=np.uint8), (LOOK_SIDE, 1))
    wide, close, stranger = (
        replace(detect(x, width), look=look)
        for x, width, look in ((200, 80, own), (380, 120, own), (300, 120, own.T))
    )
    faces = [[wide]] * 30 + [[close]] * 20 + [[wide]] * 30 + [[stranger]] * 30
    xs = locate_crops(find_path(faces, 0))
    assert xs[:30] == pytest.approx([200] * 30, abs=40) and xs[30:50] == pytest.approx([380] * 20, abs=50)
    assert xs[50:80] == pytest.approx([200] * 30, abs=40) and xs[80:] == [None] * 30
    # The close-up is the second from the left, and the same face.
    assert locate_crops(find_path(faces, 2)) == xs
    assert locate_crops(find_path(faces, 1))[:80] == [None] * 80


def draw_look(number: int) -> np.ndarray:
    """A look of its own, far from the others."""
    return np.random.default_rng(number).integers(1, 256, (LOOK_SIDE, LOOK_SIDE), np.uint8)


def show(*people: tuple[int, float, float]) -> list[list[FaceDetection]]:
    """Fifty instants of people, each a number, x and width; they are never quite still."""
    return [
        [replace(detect(x + np.sin(k), width), look=draw_look(number)) for number, x, width in people]
        for k in range(50)
    ]


def count_drawn(faces: Sequence[Sequence[FaceDetection]], choices: Sequence[FaceChoice]) -> list[list[int]]:
    """Of each choice, in how many instants of each fifty it is drawn."""
    paths = choose_face_paths(observe(faces), choices, PARAMS, AlignParams())
    return [
        [int(part.sum()) for part in np.split(path.segment_at >= 0, range(50, len(faces), 50))]
        for path in paths
    ]


def test_two_people_in_one_place_before_and_after_a_cut_are_two_faces() -> None:
    a, b = show((1, 200, 80)), show((2, 200, 80))
    faces = a + b + a
    assert count_drawn(faces, [0]) == count_drawn(faces, [2]) == [[50, 0, 50]]
    assert count_drawn(faces, [1]) == [[0, 50, 0]]
    assert count_drawn(faces, [0, 1]) == [[50, 0, 50], [0, 50, 0]]
    with pytest.raises(StageError, match="--face 0 and --face 2 are the same face"):
        count_drawn(faces, [0, 1, 2])
    # Without a number the next face follows after a cut, as it does elsewhere in the picture.
    assert count_drawn(faces, ["largest"]) == [[50, 50, 50]]


def test_somebody_else_who_comes_to_a_place_while_nobody_is_there_is_another_face() -> None:
    """The change of look that is allowed to one face grows with the time between two pictures."""
    a, b = show((1, 200, 80)), show((2, 200, 80))
    faces: list[list[FaceDetection]] = a + [[]] * 200 + b
    assert count_drawn(faces, [0]) == [[50, 0, 0, 0, 0, 0]]
    assert count_drawn(faces, [1]) == [[0, 0, 0, 0, 0, 50]]


def test_close_ups_of_two_people_in_one_place_belong_to_the_faces_of_the_shot_of_both() -> None:
    faces = show((1, 200, 80), (2, 400, 80)) + show((1, 300, 120)) + show((2, 300, 120))
    assert count_drawn(faces, ["left", "right"]) == [[50, 50, 0], [50, 0, 50]]


def test_a_chosen_face_is_found_again_after_a_reverse_shot_which_is_counted_as_another_face() -> None:
    a, b, a_again = show((1, 200, 80)), show((2, 400, 80)), show((1, 300, 80))
    assert count_drawn(a + b + a_again, [0]) == [[50, 0, 50]]
    path = find_path(a + b + a_again, 0)
    assert {*path.reason_at[50:100]} == {OTHER_FACE}
    assert {*find_path(a + b + [[]] * 50, 0).reason_at[100:]} == {"no_face"}


def test_of_two_people_who_look_alike_the_nearer_one_is_followed() -> None:
    """B's look is within the limit of A's; both are seen together first, each alone after that."""
    look = draw_look(1)
    near = np.where(np.arange(LOOK_SIDE) % 2, look, np.minimum(look + 12.0, 255)).astype(np.uint8)
    assert 1 < compare_looks(look, near) < MAX_LOOK_CHANGE
    a, b = (replace(detect(x), look=each) for x, each in ((100, look), (400, near)))
    b_alone, a_alone = (replace(detect(x, 120), look=each) for x, each in ((250, near), (600, look)))
    faces = [[a, b]] * 50 + [[b_alone]] * 50 + [[a_alone]] * 50
    assert count_drawn(faces, [0, 2]) == [[50, 0, 50], [50, 50, 0]]


def test_a_face_that_reappears_where_it_was_is_the_same_face() -> None:
    faces = [[detect(200)]] * 10 + [[]] * 200 + [[detect(210)]] * 10
    path = find_path(faces, 0)
    assert len(path.segments) == 2 and path.segment_at[-1] == 1


def test_false_detections_and_small_faces_are_not_tracked() -> None:
    with pytest.raises(Drop, match="no face in any of its 9 frames at 25 fps") as none:
        find_path([[]] * 9)
    assert none.value.code == "no_face"
    with pytest.raises(Drop, match=r"its face is 2\d px wide, expected 40 or more") as small:
        find_path([[detect(100, 25)]] * 9)
    assert small.value.code == "small_face"
    # A false detection of two instants gets no number.
    faces = [[detect(300)]] * 10 + [[detect(300), detect(50)]] * 2 + [[detect(300)]] * 10
    assert locate_crops(find_path(faces, "left"))[11] == pytest.approx(300, abs=40)
    # A part of the video in which the face is small is not re-drawn, with a reason.
    path = find_path([[detect(100, 90)]] * 20 + [[]] * 10 + [[detect(400, 30)]] * 10)
    assert path.segment_at.tolist() == [0] * 20 + [-1] * 20
    assert path.reason_at[20:] == ["no_face"] * 10 + ["small_face"] * 10


@pytest.mark.parametrize("width", [88, 120, 300])
def test_a_zoom_begins_another_segment_aligned_on_its_own(width: float) -> None:
    faces = [[detect(200 + k)] for k in range(12)] + [[detect(200 + k, width)] for k in range(12, 30)]
    path = find_path(faces)
    assert path.segment_at.tolist() == [0] * 12 + [1] * 18 and path.borders.tolist() == [12]
    for segment, part in zip(path.segments, (faces[:12], faces[12:]), strict=True):
        [alone] = find_path(part).segments
        assert np.array_equal(segment.matrices, alone.matrices)
        assert np.array_equal(segment.boxes, alone.boxes)


def test_a_border_between_instants_is_the_source_frame_whose_picture_changes_most() -> None:
    """At 75 fps: three source frames to an instant; the zoom is at frame 31, instant 11 shows frame 33."""
    faces = [[detect(200, 80 if k <= 10 else 120)] for k in range(20)]
    changes = np.full(60, 0.5)
    changes[31] = 30.0
    sources = np.arange(0, 60, 3)
    [path] = choose_face_paths(
        FaceObservations(np.arange(60), changes, sources, sources / 75, faces),
        ["largest"],
        PARAMS,
        AlignParams(),
    )
    assert path.segment_at.tolist() == [0] * 11 + [1] * 9 and path.borders.tolist() == [31]


@pytest.mark.parametrize("fps", ["10", "30"])
def test_faces_are_the_same_with_any_number_of_threads(tmp_path: Path, landmarker: Path, fps: str) -> None:
    video = tmp_path / "video.mp4"
    synth.make_clip(video, ClipSpec(seconds=2.0, fps=fps, size=(480, 384)))
    facts = VideoFacts.from_json(probe_video(video, 10**6).facts)
    found = []
    for n_threads in (1, 4):
        for windows in (None, [(3, 4), (4, 9), (30, 41)]):
            folder = tmp_path / f"{n_threads} {windows is None}"
            folder.mkdir()
            find_faces(video, facts, facts.seconds, PARAMS, landmarker, folder, windows, n_threads)
            found.append({path.name: path.read_bytes() for path in folder.iterdir()})
            n_faces = np.fromfile(folder / INSTANTS, INSTANT)["faces"]
            searched = range(50) if windows is None else [*range(3, 9), *range(30, 41)]
            assert np.flatnonzero(n_faces).tolist() == [*searched]
    assert found[:2] == found[2:]
