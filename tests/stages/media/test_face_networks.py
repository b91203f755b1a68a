"""The two networks run by LiteRT give MediaPipe's points; MediaPipe is the reference."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from shards.schema import Frame
from stages.engine.outcome import StageError
from stages.media import face_networks
from stages.media.face_networks import DETECTOR, LANDMARKS, FaceNetworks, merge_boxes
from stages.media.faces import Points
from stages.media.mediapipe_faces import MediaPipeFaces
from stages.media.presentation import read_shown_video
from stages.media.video import count_frames_at_25fps, read_frames_at_25fps
from tests.conftest import real_clips

MAX_PX = 0.15  # the tolerance of docs/performance.md, for 99 of 100 points of a clip


@pytest.fixture(scope="module")
def networks(landmarker: Path) -> FaceNetworks:
    return FaceNetworks(landmarker, 4)


@pytest.fixture(scope="module")
def reference(landmarker: Path) -> Iterator[MediaPipeFaces]:
    with MediaPipeFaces(landmarker, 4) as finder:
        yield finder


@pytest.fixture(scope="module")
def photo() -> Frame:
    """A face of about 90 px in 256 x 256, RGB."""
    return np.ascontiguousarray(astronaut()[:256, 96:352])


def measure_distances(faces: Sequence[Points], others: Sequence[Points]) -> np.ndarray:
    """px between the points of the same faces, in the same order; there must be as many."""
    assert len(faces) == len(others)
    pairs = zip(faces, others, strict=True)
    distances = [np.linalg.norm(one - other, axis=1) for one, other in pairs]
    return np.concatenate([np.zeros(0), *distances])


def read_some_frames(path: Path, step: int, most: int) -> list[Frame]:
    span = read_shown_video(path).span
    n_frames = min(count_frames_at_25fps(span), step * most)
    frames = read_frames_at_25fps(path, float(span.start), n_frames)
    return [frame.image for k, frame in enumerate(frames) if k % step == 0]


@pytest.mark.parametrize(
    "pattern",
    ["grid/s1/*.mpg", "grid/s14/*.mpg", "crema-d/VideoFlash/*.flv", "us_gov/obama/*.mp4", "wild/obama*.mp4"],
)
def test_real_clips_have_mediapipe_s_points(
    networks: FaceNetworks, reference: MediaPipeFaces, pattern: str
) -> None:
    corpus, _, files = pattern.partition("/")
    clip = sorted(real_clips(corpus).glob(files))[0]
    frames = read_some_frames(clip, step=5, most=12)
    distances = np.concatenate([measure_distances(networks(frame), reference(frame)) for frame in frames])
    assert len(distances) >= 478 * len(frames) * 0.8  # faces were seen
    assert np.quantile(distances, 0.99) < MAX_PX and distances.max() < 1


def test_where_mediapipe_finds_no_face_in_a_real_clip_there_is_none(
    networks: FaceNetworks, reference: MediaPipeFaces
) -> None:
    frames = read_some_frames(real_clips("wild") / "nasa_13013_voiceover.mp4", step=10, most=12)
    assert [len(networks(frame)) for frame in frames] == [len(reference(frame)) for frame in frames]


def test_several_faces_come_in_mediapipe_s_order(
    networks: FaceNetworks, reference: MediaPipeFaces, landmarker: Path, photo: Frame
) -> None:
    """More faces than are asked for, of several sizes, some over others."""
    random = np.random.default_rng(0)
    face = photo[40:200, 50:200]
    n_faces = 0
    for _ in range(12):
        frame = np.full((300, 400, 3), 40, np.uint8)
        for scale in random.uniform(0.25, 1.0, 6):
            small = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            y, x = (random.integers(0, most) for most in (300 - len(small), 400 - small.shape[1]))
            frame[y : y + len(small), x : x + small.shape[1]] = small
        faces = networks(frame)
        assert measure_distances(faces, reference(frame)).max(initial=0) < MAX_PX
        assert [face.tobytes() for face in FaceNetworks(landmarker, 1)(frame)] == [
            face.tobytes() for face in faces[:1]
        ]
        n_faces += len(faces)
    assert n_faces > 24


def test_turned_faces_have_mediapipe_s_points(
    networks: FaceNetworks, reference: MediaPipeFaces, photo: Frame
) -> None:
    n_faces = 0
    for degrees in range(-90, 91, 15):
        matrix = cv2.getRotationMatrix2D((127.5, 127.5), degrees, 1)
        frame = np.asarray(cv2.warpAffine(photo, matrix, (256, 256)), np.uint8)
        faces = networks(frame)
        assert measure_distances(faces, reference(frame)).max(initial=0) < MAX_PX
        n_faces += len(faces)
    assert n_faces >= 9


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (3, 500), (500, 3), (7, 9), (16, 16), (99, 77), (1080, 1920)], ids=str
)
def test_a_picture_of_any_size_has_the_faces_that_mediapipe_finds(
    networks: FaceNetworks, reference: MediaPipeFaces, photo: Frame, size: tuple[int, int]
) -> None:
    shrunk = np.asarray(cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    for frame in (np.zeros((*size, 3), np.uint8), np.full((*size, 3), 77, np.uint8), shrunk):
        # Points of an enlarged picture lie as far apart in its larger pixels.
        limit = MAX_PX * max(1, size[0] / 256)
        assert measure_distances(networks(frame), reference(frame)).max(initial=0) < limit


def test_a_face_that_is_cut_off_by_the_picture_s_edge_has_mediapipe_s_points(
    networks: FaceNetworks, reference: MediaPipeFaces, photo: Frame
) -> None:
    n_faces = 0
    for frame in (photo[60:], photo[:, 110:], photo[:150], photo[:, :150], photo[70:170, 90:190]):
        faces = networks(frame)
        assert measure_distances(faces, reference(frame)).max(initial=0) < MAX_PX
        n_faces += len(faces)
    assert n_faces >= 3


def test_threads_that_share_the_networks_get_the_same_bytes(networks: FaceNetworks, photo: Frame) -> None:
    frames = [photo, np.fliplr(photo), np.zeros_like(photo), photo[:200], photo[:, 20:]] * 8
    expected = [b"".join(face.tobytes() for face in networks(frame)) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(networks, frames)
        assert [b"".join(face.tobytes() for face in faces) for faces in results] == expected


def test_two_processes_get_the_same_bytes(landmarker: Path, networks: FaceNetworks, photo: Frame) -> None:
    code = (
        "import hashlib, sys; from pathlib import Path; import numpy as np\n"
        "from skimage.data import astronaut\n"
        "from stages.media.face_networks import FaceNetworks\n"
        "photo = np.ascontiguousarray(astronaut()[:256, 96:352])\n"
        "[face] = FaceNetworks(Path(sys.argv[1]), 4)(photo)\n"
        "print(hashlib.sha256(face.tobytes()).hexdigest())\n"
        "print(*sorted({'mediapipe', 'matplotlib', 'torch'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(landmarker)]
    path = os.pathsep.join(filter(None, sys.path))
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    ).stdout
    [face] = networks(photo)
    assert output == f"{hashlib.sha256(face.tobytes()).hexdigest()}\n\n"


# --- a bundle that is none --------------------------------------------------------------------------


def rewrite_bundle(landmarker: Path, target: Path, **members: bytes | None) -> Path:
    """A copy of the bundle with other members; those that are None are left out."""
    names = {"detector": DETECTOR, "landmarks": LANDMARKS}
    with zipfile.ZipFile(landmarker) as bundle, zipfile.ZipFile(target, "w") as copy:
        for key, name in names.items():
            content = members.get(key, bundle.read(name))
            if content is not None:
                copy.writestr(name, content)
    return target


def test_a_file_that_is_no_bundle_is_refused_in_one_line(landmarker: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(landmarker) as bundle:
        detector = bundle.read(DETECTOR)
    path = tmp_path / "a.task"

    def get_refusal() -> str:
        with pytest.raises(StageError) as caught:
            FaceNetworks(path, 4)
        message = str(caught.value)
        assert message.startswith(f"{path}: expected MediaPipe's face_landmarker.task: ")
        assert "\n" not in message and len(message) < 400
        return message

    path.write_bytes(b"<html>not found</html>")
    assert get_refusal().endswith("File is not a zip file")
    path.write_bytes(landmarker.read_bytes()[:100_000])
    assert get_refusal().endswith("File is not a zip file")
    rewrite_bundle(landmarker, path, landmarks=None)
    assert LANDMARKS in get_refusal()
    rewrite_bundle(landmarker, path, landmarks=detector)
    assert get_refusal().endswith(
        "its input is [(1, 128, 128, 3)], expected float32 of shape (1, 256, 256, 3)"
    )
    for content in (b"", b"TFL3", b"\0" * 1000):
        rewrite_bundle(landmarker, path, detector=content)
        get_refusal()
    rewrite_bundle(landmarker, path, detector=b"\0" * (face_networks.MAX_NETWORK_BYTES + 1))
    assert get_refusal().endswith("has 16777217 bytes, expected at most 16777216")


# --- boxes ------------------------------------------------------------------------------------------


def make_box(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, bottom, *([left, top] * 6)]


def test_boxes_that_overlap_by_more_than_half_become_one_weighted_by_score() -> None:
    boxes = np.array(
        [make_box(0, 0, 1, 1), make_box(2, 2, 3, 3), make_box(0, 0, 1, 0.6), make_box(2.4, 2, 3.4, 3)],
        np.float32,
    )
    first, second, third = merge_boxes(boxes, np.array([0.9, 0.8, 0.6, 0.7], np.float32))
    assert first == pytest.approx([0, 0, 1, (0.9 * 1 + 0.6 * 0.6) / 1.5, *([0] * 12)])
    assert second == pytest.approx(boxes[1]) and third == pytest.approx(boxes[3])  # they overlap by 0.43


def test_a_box_without_an_area_is_left_out() -> None:
    boxes = np.array([make_box(1, 1, 1, 1), make_box(0, 0, 1, 1), make_box(0, 0, -1, 1)], np.float32)
    [box] = merge_boxes(boxes, np.array([0.9, 0.8, 0.7], np.float32))
    assert box == pytest.approx(boxes[1])
