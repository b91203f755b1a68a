from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from stages import synth
from stages.align import AlignParams, align_clip
from stages.engine.cache import load_entry
from stages.engine.outcome import Drop
from stages.landmarks import (
    LandmarksParams,
    describe_frames,
    describe_gaps,
    find_landmarks_in_file,
    find_points,
)
from stages.media.faces import FaceFinder, Points
from stages.media.video import ClipFrames, ClockFrame, read_frames_at_25fps
from stages.synth import ClipSpec

PARAMS = LandmarksParams(max_gap_frames=3)


@pytest.fixture(scope="module")
def finder(landmarker: Path) -> Iterator[FaceFinder]:
    with FaceFinder(landmarker, 4) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("landmarks") / "a.mpg"
    synth.make_clip(path, ClipSpec(seconds=0.6, size=(240, 192)))
    return path


@pytest.fixture(scope="module")
def frames(clip: Path) -> list[ClockFrame]:
    """15 frames with one face."""
    return list(read_frames_at_25fps(clip, first_stamp(clip), 15))


def first_stamp(clip: Path) -> float:
    return synth.Truth.load(clip).frames[0].seconds


def without_face(frames: Sequence[ClockFrame], blank: Sequence[int]) -> list[ClockFrame]:
    """The same frames; in those numbered the picture is grey."""
    return [
        ClockFrame(k, frame.seconds, np.full_like(frame.image, 128) if k in blank else frame.image)
        for k, frame in enumerate(frames)
    ]


def test_every_frame_of_a_made_clip_has_its_points(frames: list[ClockFrame], finder: FaceFinder) -> None:
    clip = find_points(frames, finder, PARAMS)
    assert clip.points.shape == (15, 478, 2) and clip.points.dtype == np.float32
    assert clip.is_found.all() and clip.notes == () and clip.jumps == []
    assert np.array_equal(clip.points[7], finder(frames[7].image)[0])


@pytest.mark.parametrize("blank", [(5, 6, 7), (0, 1), (13, 14), (2, 6, 10), (0, 1, 2, 5, 12, 13, 14)])
def test_a_short_gap_is_bridged_and_told(
    frames: list[ClockFrame], finder: FaceFinder, blank: tuple[int, ...]
) -> None:
    whole = find_points(frames, finder, PARAMS).points
    clip = find_points(without_face(frames, blank), finder, PARAMS)
    assert np.flatnonzero(~clip.is_found).tolist() == list(blank)
    assert clip.notes == (f"face interpolated in frames {list(blank)}",)
    assert np.array_equal(clip.points[clip.is_found], whole[clip.is_found])
    assert np.abs(clip.points - whole).max() < 20  # a guess within the head's and the jaw's small movements


@pytest.mark.parametrize(
    ("blank", "words"),
    [
        (range(4), "no face in frames 0-3 of 15, expected gaps of at most 3"),
        (range(10, 15), "no face in frames 10-14 of 15, expected gaps of at most 3"),
        (range(15), "no face in any of its 15 frames"),
        pytest.param(
            range(4, 8),
            "no face in frames 4-7 of 15, expected gaps of at most 3",
        ),
    ],
)
def test_a_longer_gap_drops_the_clip_and_names_the_frames(
    frames: list[ClockFrame], finder: FaceFinder, blank: Sequence[int], words: str
) -> None:
    with pytest.raises(Drop) as caught:
        find_points(without_face(frames, blank), finder, PARAMS)
    assert (caught.value.code, caught.value.reason) == ("no_face", words)


def test_a_note_on_countless_gaps_is_one_line_and_any_other_names_every_frame() -> None:
    is_found = np.ones(60_000, bool)
    is_found[::6] = False
    [note] = describe_gaps(is_found)
    assert note.startswith("face interpolated in frames [0, 6, 12, ") and note.endswith(", 59988, 59994]")
    assert len(note) < 400 and "..." in note
    [note] = describe_gaps(is_found[:50_000])
    assert note == f"face interpolated in frames {list(range(0, 50_000, 6))}"


# --- jumps ------------------------------------------------------------------------------------------


def zoom_in(frames: Sequence[ClockFrame], factor: float) -> list[ClockFrame]:
    """Enlarged about the middle of the picture, of which the same size is shown."""
    zoomed = []
    for frame in frames:
        height, width = frame.image.shape[:2]
        centre = (np.array([width, height]) - 1) / 2
        matrix = np.column_stack([factor * np.eye(2), (1 - factor) * centre])
        zoomed.append(replace(frame, image=cv2.warpAffine(frame.image, matrix, (width, height))))
    return zoomed


def shrink_picture(frames: Sequence[ClockFrame]) -> list[ClockFrame]:
    """As a stream whose picture gets smaller midway."""
    return [replace(frame, image=cv2.resize(frame.image, (200, 160))) for frame in frames]


@pytest.mark.parametrize("change", ["zoom 1.15", "zoom 1.4", "size"])
def test_both_sides_of_a_jump_are_cropped_as_if_they_were_alone(
    frames: list[ClockFrame], finder: FaceFinder, change: str
) -> None:
    before, after = frames[:7], frames[7:]
    after = shrink_picture(after) if change == "size" else zoom_in(after, float(change.split()[1]))
    clip = find_points([*before, *after], finder, PARAMS)
    assert clip.jumps == [7] and clip.notes == ("jump at frame 7",)
    matrices, boxes = align_clip(clip.points, AlignParams(), clip.jumps)
    halves = [align_clip(find_points(half, finder, PARAMS).points, AlignParams()) for half in (before, after)]
    assert np.array_equal(matrices, np.concatenate([half[0] for half in halves]))
    # One box size for the clip: that of the halves, or a few pixels more.
    assert np.abs(boxes - np.concatenate([half[1] for half in halves])).max() <= 3
    smeared, _ = align_clip(clip.points, AlignParams())
    assert np.flatnonzero((np.abs(smeared - matrices) > 1e-3).any(axis=(1, 2))).tolist() == [*range(4, 10)]


@pytest.mark.parametrize("at", [2, 8, 13])
def test_a_face_that_moves_far_at_a_jump_is_still_tracked(
    frames: list[ClockFrame], finder: FaceFinder, at: int
) -> None:
    """By more than half its width, which ends a track; also just after a clip's start or before its end."""
    moved = [replace(frame, image=np.roll(frame.image, 60, axis=1)) for frame in frames[at:]]
    clip = find_points([*frames[:at], *moved], finder, PARAMS)
    assert clip.jumps == [at] and clip.is_found.all()


@pytest.mark.parametrize("at", [6, 7, 8])
def test_a_gap_is_not_bridged_across_a_jump(frames: list[ClockFrame], finder: FaceFinder, at: int) -> None:
    """Frames 6 and 7 have no face; the picture changes at one of them or after."""
    blank = without_face([*frames[:at], *shrink_picture(frames[at:])], (6, 7))
    clip = find_points(blank, finder, PARAMS)
    assert clip.jumps == [at] and np.flatnonzero(~clip.is_found).tolist() == [6, 7]
    for k in (6, 7):
        assert np.array_equal(clip.points[k], clip.points[5 if k < at else 8])


def test_a_clip_is_read_a_second_time_only_to_place_a_jump_in_a_gap(
    frames: list[ClockFrame], finder: FaceFinder
) -> None:
    n_loops = 0
    zoomed = [*frames[:6], *zoom_in(frames[6:], 1.4)]
    for shown, expected in ((frames, 1), (zoomed, 1), (without_face(zoomed, (5, 6)), 2)):

        def read(shown: Sequence[ClockFrame] = shown) -> Iterator[ClockFrame]:
            nonlocal n_loops
            n_loops += 1
            return iter(shown)

        n_loops = 0
        clip = find_points(ClipFrames(read), finder, PARAMS)
        assert n_loops == expected and len(clip.jumps) == (shown is not frames)


@pytest.mark.parametrize("engine", ["litert", "mediapipe"])
def test_a_child_loads_the_engine_of_its_job_and_no_other(engine: str) -> None:
    code = (
        "import sys; from stages import landmarks\n"
        f"landmarks.warm_up({{'params': {{'engine': {engine!r}}}}})\n"
        "print(*sorted({'ai_edge_litert', 'mediapipe'} & sys.modules.keys()))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split() == [{"litert": "ai_edge_litert", "mediapipe": "mediapipe"}[engine]]


def test_a_cut_to_another_face_drops_the_clip_or_is_noted(
    frames: list[ClockFrame], finder: FaceFinder, tmp_path: Path
) -> None:
    other = tmp_path / "b.mpg"
    synth.make_clip(other, ClipSpec(speaker=2, seconds=0.6, size=(240, 192)))
    others = list(read_frames_at_25fps(other, first_stamp(other), 15))
    joined = [*frames[:5], *others[5:10], *frames[10:]]
    with pytest.raises(Drop) as caught:
        find_points(joined, finder, PARAMS)
    reason = "cut to another face at frame 5, 10 of 15; landmarks.cuts: keep accepts such clips"
    assert (caught.value.code, caught.value.reason) == ("cut", reason)
    clip = find_points(joined, finder, replace(PARAMS, cuts="keep"))
    assert clip.jumps == [5, 10] and clip.notes == ("cut to another face at frame 5, 10",)


def test_a_note_names_no_more_than_twenty_frames() -> None:
    assert describe_frames("jump", [15, 30]) == "jump at frame 15, 30"
    assert describe_frames("jump", range(500)).endswith(", 18, 19 and 480 more")


def test_a_face_too_small_is_dropped_with_its_width(frames: list[ClockFrame], finder: FaceFinder) -> None:
    with pytest.raises(Drop, match=r"its face is \d\d px wide, expected 200 or more") as caught:
        find_points(frames[:2], finder, LandmarksParams(min_face_pixels=200))
    assert caught.value.code == "small_face"


def test_a_second_face_is_told(finder: FaceFinder) -> None:
    photo = np.ascontiguousarray(astronaut()[:256, 96:352])
    image = np.full((320, 640, 3), 110, np.uint8)
    image[:256, :256] = photo
    image[:200, 340:540] = cv2.resize(photo, (200, 200), interpolation=cv2.INTER_AREA)
    frame = ClockFrame(0, 0.0, image)
    clip = find_points([frame], finder, LandmarksParams())
    assert clip.notes == ("2 faces seen, the largest followed",)
    assert clip.points[0, :, 0].max() < 256


def test_a_frame_shown_twice_is_looked_at_once(frames: list[ClockFrame], finder: FaceFinder) -> None:
    looked: list[int] = []

    def find(image: np.ndarray) -> list[Points]:
        looked.append(1)
        return finder(image)

    twice = [frame for frame in frames[:4] for _ in range(2)]
    points = find_points(twice, find, PARAMS).points
    assert len(looked) == 4
    assert np.array_equal(points[::2], points[1::2])


def test_a_clip_s_points_do_not_depend_on_the_clips_before_it(
    frames: list[ClockFrame], landmarker: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b.mp4"
    synth.make_clip(other, ClipSpec(speaker=2, seconds=0.4, size=(200, 160)))
    others = list(read_frames_at_25fps(other, first_stamp(other), 10))
    with FaceFinder(landmarker, 4) as finder:
        first = find_points(frames, finder, PARAMS).points
        second = find_points(others, finder, PARAMS).points
    with FaceFinder(landmarker, 4) as finder:
        assert find_points(others, finder, PARAMS).points.tobytes() == second.tobytes()
        find_points(without_face(frames, [3, 4]), finder, PARAMS)
        assert find_points(frames, finder, PARAMS).points.tobytes() == first.tobytes()


def test_what_is_found_in_a_file_is_what_the_cache_holds(
    clip: Path, frames: list[ClockFrame], finder: FaceFinder, landmarker: Path, tmp_path: Path
) -> None:
    from stages.media import faces

    entry = tmp_path / "entry.npz"
    start = first_stamp(clip)
    try:
        outcome = find_landmarks_in_file(clip, start, 15, PARAMS, landmarker, entry)
    finally:  # this process outlives the job, and an open finder must not meet the garbage collector
        while faces._finders:
            faces._finders.popitem()[1].__exit__(None, None, None)
    kept = load_entry(entry)
    assert kept is not None and kept[0] == outcome
    face = find_points(frames, finder, PARAMS)
    assert kept[1]["points"].tobytes() == face.points.tobytes()
    assert kept[1]["found"].tobytes() == face.is_found.tobytes()
    assert not kept[1]["jumps"].any() and len(kept[1]["jumps"]) == 15
