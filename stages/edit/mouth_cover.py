"""Find the frames in which a mouth is covered by a hand, a microphone or a cup, so that it is left alone.

MediaPipe's model draws its points over whatever covers a mouth, so the points do not tell; the picture does.
The lower face, upright and of one size, is compared with its median in a scene, which is what lies between
two cuts. Two measures decide, in CIE Lab after the eyes and cheeks around them are made equally light:

- difference: the mean distance of lips and chin from the median, ΔE*ab. An object of another colour raises
  it.
- likeness: how strongly the pattern of the lips is there, as a factor of the median's. Skin before the lips,
  as of a hand, lowers it; an open mouth does not.

Measured on 126 real clips (12 GRID speakers, CREMA-D, weekly addresses; 9,200 frames), and on 37 of them with
a drawn object that comes and goes (docs/editing.md has the shares found, of all clips):

    =============  ==========  ==========  =====================================
                   difference  likeness
    =============  ==========  ==========  =====================================
    nothing        to 12.1     from 0.44   all frames
    a microphone   from 18.3               14 frames of each, while it is there
    a cup          from 21.5   to 0.32
    a hand                     to 0.31     of exactly the cheek's colour
    =============  ==========  ==========  =====================================

A cut changes the eyes too: by 4.0 and more to another person, where two successive frames differ by 3.3 at
most (ΔE*ab). So an object that comes in one frame does not end a scene.

What covers the lower lip alone is found in half of these clips. What is there for more than half of a scene
is in its median: then it is taken for the mouth, and the rest of the scene for covered. (How red lips are
does not tell which is which: less than the skin around them in five of eight weekly addresses.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame
from stages.media.crops import fit_template, warp
from stages.media.faces import STABLE_POINTS, LowerFace, Points
from stages.media.stretches import find_stretches

COVERED = "mouth_covered"  # the reason code

MAX_DIFFERENCE = 15.0  # ΔE*ab
MIN_LIKENESS = 0.37

SIDE = 16  # px of a lower face
PX = 4  # of a crop of TEMPLATE_SIZE, in each
ORIGIN = (32.0, 48.0)  # of a lower face in such a crop: x y
SUPERSAMPLE = 8
# Rows and columns of a lower face.
AROUND_EYES = np.s_[..., 0:6, 0:16, :]
LIPS_AND_CHIN = np.s_[..., 8:16, 2:14, :]
LIPS = np.s_[..., 8:14, 3:13, :]

MAX_EYES_CHANGE = 3.6  # ΔE*ab, of one scene
MIN_INSTANTS = 3  # a shorter run is noise
EDGE_INSTANTS = 3  # an object that comes or goes covers less for so long
MAX_HOLE_INSTANTS = 5  # between two runs, which belong together
MIN_REFERENCE_INSTANTS = 25  # a second; a shorter scene has no median worth the name
MAX_REFERENCE_INSTANTS = 1500  # spread over the scene: a median of more costs memory and tells no more


def crop_lower_face(picture: Frame, points: Points) -> LowerFace:
    """The face from the eyes to the chin, upright and of one size: (16, 16, 3) RGB.

    ``points`` are (478, 2), in pixels of the picture (H, W, 3).
    """
    matrix = fit_template(points[list(STABLE_POINTS)], PX, ORIGIN)
    if matrix is None:
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    return warp(picture, matrix, SIDE, SUPERSAMPLE)


def find_covered_mouths(faces: Sequence[LowerFace | None], jumps: Sequence[int]) -> NDArray[np.bool_]:
    """Where the mouth of one face is covered, (T,), in the successive instants of a video.

    ``jumps`` are the instants at which the face does not continue the one before, in order. An instant
    without a face is not covered, unless it lies between two that are.
    """
    is_covered = np.zeros(len(faces), bool)
    starts = [0, *(jump for jump in jumps if not _is_one_scene(faces, jump))]
    for first, end in pairwise([*starts, len(faces)]):
        is_covered[first:end] = _find_in_scene(faces[first:end])
    return is_covered


def _is_one_scene(faces: Sequence[LowerFace | None], jump: int) -> bool:
    """Whether the eyes after a jump are those before it."""
    before = next((k for k in range(jump - 1, -1, -1) if faces[k] is not None), None)
    after = next((k for k in range(jump, len(faces)) if faces[k] is not None), None)
    if before is None or after is None:
        return True
    lab = _convert_to_lab(faces, np.array([before, after]))[AROUND_EYES]
    return bool(np.linalg.norm(lab[0] - lab[1], axis=-1).mean() <= MAX_EYES_CHANGE)


def _find_in_scene(faces: Sequence[LowerFace | None]) -> NDArray[np.bool_]:
    is_covered = np.zeros(len(faces), bool)
    seen = np.array([k for k, face in enumerate(faces) if face is not None])
    if len(seen) < MIN_REFERENCE_INSTANTS:
        return is_covered
    n_reference = min(len(seen), MAX_REFERENCE_INSTANTS)
    reference = seen[np.linspace(0, len(seen) - 1, n_reference).round().astype(int)]
    median = np.median(_convert_to_lab(faces, reference), axis=0)
    for part in np.array_split(seen, -(-len(seen) // MAX_REFERENCE_INSTANTS)):
        lab = _convert_to_lab(faces, part)
        difference = np.linalg.norm(lab[LIPS_AND_CHIN] - median[LIPS_AND_CHIN], axis=-1).mean(axis=(1, 2))
        is_covered[part] = (difference > MAX_DIFFERENCE) | (_measure_likeness(lab, median) < MIN_LIKENESS)
    return _join_runs(is_covered)


def _convert_to_lab(faces: Sequence[LowerFace | None], instants: NDArray[np.int_]) -> NDArray[np.float32]:
    """Lower faces in CIE Lab, (n, 16, 16, 3), less the median colour around their eyes."""
    rgb = np.stack([face for k in instants.tolist() if (face := faces[k]) is not None])
    lab = cv2.cvtColor(rgb.reshape(-1, SIDE, 3).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab = lab.reshape(rgb.shape)
    light = np.median(lab[AROUND_EYES].reshape(len(lab), -1, 3), axis=1)
    return np.asarray(lab - light[:, None, None], np.float32)


def _measure_likeness(lab: NDArray[np.float32], median: NDArray[np.float32]) -> NDArray[np.float32]:
    """The factor (n,) by which the pattern of the median's lips is in each face's, by least squares."""
    pattern = median[LIPS] - median[LIPS].mean(axis=(0, 1))
    return np.asarray((lab[LIPS] * pattern).sum(axis=(1, 2, 3)) / ((pattern**2).sum() + 1e-6))


def _join_runs(is_covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop short runs, join those with a short hole between them, and add their edges."""
    joined = np.zeros_like(is_covered)
    last_end = -MAX_HOLE_INSTANTS - 1
    for first, end in find_stretches(is_covered):
        if end - first < MIN_INSTANTS:
            continue
        start = last_end if first - last_end <= MAX_HOLE_INSTANTS else first
        joined[max(start - EDGE_INSTANTS, 0) : end + EDGE_INSTANTS] = True
        last_end = end
    return joined
