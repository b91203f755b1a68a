"""Films made of other clips, with known ground truth: who is seen, who speaks, and how late the sound is.

A film is a list of scenes, each with a clip or two of a folder of talking faces, such as GRID or the clips of
``make_corpus``. The scenes' kinds are dealt in rounds, one of each, and so are persons and their clips: none
comes again before all others have. A film is written scene by scene: memory does not grow with its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.ledger import OK
from shards.schema import VIDEO_FPS, Frame
from stages.clips import ClipsParams, find_files, probe_file
from stages.corpora import folder
from stages.engine import sandbox
from stages.engine.outcome import Drop
from stages.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, mix_to_mono, read_channels
from stages.media.encode import AudioTrack, write_mp4
from stages.media.video import read_frames_at_25fps
from stages.synth.curves import make_rng
from stages.synth.film_spec import (
    FILM_VERSION,
    MAX_LAG_MS,
    FilmParams,
    FilmTruth,
    PersonTruth,
    SceneKind,
    SceneTruth,
)
from stages.synth.spec import SynthError

Sound = NDArray[np.float32]  # (n,) in [-1, 1] at SAMPLE_RATE
Item = TypeVar("Item")

MAX_SCENE_FRAMES = 8 * VIDEO_FPS  # of a longer clip the beginning is used
BLACK_FRAMES = (VIDEO_FPS, 2 * VIDEO_FPS)  # least and most
NO_CLIP_FRAMES = 3 * VIDEO_FPS  # of music over a landscape
ZOOM = 1.3
# In ms, multiples of half a frame of the clock: a lag that is found can only be a whole frame.
LAG_STEP_MS = 20
NOISE_DB = (20.0, 10.0, 5.0, 0.0)  # speech to noise
SPEECH_RANGE_DB = 40.0  # what is quieter than the loudest by more is quiet
QUIET_PERCENT = 10  # of a clip is quieter than its noise
SPEECH_WINDOW = SAMPLE_RATE // 50
MUSIC_RMS = 0.1
CHORD_SECONDS = 0.75
CHORDS_HZ = ((220.0, 277.2, 329.6), (196.0, 246.9, 293.7), (174.6, 220.0, 261.6), (164.8, 207.7, 246.9))
BACKDROP_SIDE = 16  # px, of the picture that is enlarged behind a narrower one


@dataclass(frozen=True, slots=True)
class SourceClip:
    """A usable clip of the folder."""

    path: Path
    name: str  # its path in the folder
    person: str
    start: float  # of its picture, seconds
    n_frames: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene before it is drawn: the truth, and where its pictures and its sound come from."""

    truth: SceneTruth
    clips: tuple[SourceClip, ...]  # of truth.faces
    voice: SourceClip | None
    seed: int

    @property
    def n_frames(self) -> int:
        return self.truth.end_frame - self.truth.first_frame


class ClipPool:
    """The clips of a folder, by person. A file is probed when its turn comes; unusable ones are left out."""

    def __init__(self, folder_path: Path) -> None:
        self._root = folder_path
        self._persons: dict[str, list[str]] = {}
        self._probed: dict[str, SourceClip | None] = {}
        for file in find_files(folder_path, ClipsParams()):
            if file.problem is None:
                person = folder.identify(file.path, folder_path.resolve().name).speaker
                self._persons.setdefault(person, []).append(str(file.path))
        if not self._persons:
            raise SynthError(f"--from {folder_path}: holds no file that could be a clip")

    @property
    def persons(self) -> list[str]:
        return sorted(self._persons)

    def names(self, person: str) -> list[str]:
        return self._persons[person]

    def probe(self, person: str, name: str) -> SourceClip | None:
        """A clip's facts, read in the sandbox; None if it cannot be used."""
        if name not in self._probed:
            path = self._root / name
            job = sandbox.ClipJob(probe_file, path=path, corpus="folder", params=ClipsParams())
            outcome = sandbox.run(job, sandbox.LimitParams())
            facts = outcome.facts
            self._probed[name] = (
                SourceClip(path, name, person, facts["video_start"], facts["frames"])
                if outcome.status == OK
                else None
            )
        return self._probed[name]


class Dealer:
    """Deals kinds of scenes, persons and clips at random, each in rounds."""

    def __init__(self, pool: ClipPool, params: FilmParams, film: int) -> None:
        self.rng = make_rng(params.seed, film, 1)
        self._pool = pool
        self._kinds = self._deal(params.scenes)
        self._persons = self._deal(pool.persons)
        self._names = {person: self._deal(pool.names(person)) for person in pool.persons}
        self._usable: dict[str, bool] = {}

    def _deal(self, items: Sequence[Item]) -> Iterator[Item]:
        while True:
            for i in self.rng.permutation(len(items)):
                yield items[int(i)]

    def next_kind(self) -> SceneKind:
        return next(self._kinds)

    def next_clip(self, besides: str | None = None) -> SourceClip:
        """A clip of the next person, who is not ``besides``. Raises SynthError where there is none."""
        tried: set[str] = set()
        while len(tried | {besides}) < len(self._pool.persons) + (besides is None):
            person = next(self._persons)
            if person == besides or person in tried:
                continue
            for _ in self._pool.names(person):
                clip = self._pool.probe(person, next(self._names[person]))
                if clip is not None:
                    return clip
            tried.add(person)
        raise SynthError(
            "--from: none of its files is a usable clip"
            if besides is None
            else f"--from: holds usable clips of {besides} alone, two faces need two persons (folders)"
        )


def make_films(to: Path, source: Path, params: FilmParams) -> list[tuple[Path, FilmTruth]]:
    """Write films of the clips in a folder. Raises SynthError where they do not suffice."""
    pool = ClipPool(source)
    films = []
    for film in range(1, params.films + 1):
        path = to / f"film-{film:03d}.mp4"
        films.append((path, write_film(path, pool, params, film)))
    return films


def write_film(path: Path, pool: ClipPool, params: FilmParams, film: int = 1) -> FilmTruth:
    """Write one film and its ground truth; both appear under their names only when complete."""
    scenes = list(plan_scenes(pool, params, film))
    truth_path = FilmTruth.path_for(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    truth_path.unlink(missing_ok=True)  # a new film must never have the ground truth of an old one
    n_frames = write_mp4(
        path,
        (frame for scene in scenes for frame in draw_scene(scene, params.size)),
        fps=Fraction(VIDEO_FPS),
        audio=AudioTrack((make_sound(scene)[0][:, None] for scene in scenes), SAMPLE_RATE, 1),
        redrawn=False,
    )
    truths = [scene.truth for scene in scenes]
    assert n_frames == truths[-1].end_frame, "the scenes follow each other without a gap"
    truth = FilmTruth(FILM_VERSION, film, params, VIDEO_FPS, file_sha256(path), truths)
    with write_atomically(truth_path) as partial:
        partial.write_text(truth.to_json())
    return truth


def plan_scenes(pool: ClipPool, params: FilmParams, film: int) -> Iterator[Scene]:
    """The scenes of a film, until it is as long as requested."""
    dealer = Dealer(pool, params, film)
    first = 0
    while first < params.seconds * VIDEO_FPS:
        scene = _plan_scene(dealer, dealer.next_kind(), params.size, first)
        speech = make_sound(scene)[1]
        truth = replace(scene.truth, speech_seconds=speech)
        yield replace(scene, truth=truth)
        first = truth.end_frame


def _plan_scene(dealer: Dealer, kind: SceneKind, size: tuple[int, int], first: int) -> Scene:
    rng = dealer.rng
    seed = int(rng.integers(2**53))
    clips: list[SourceClip] = []
    voice: SourceClip | None = None
    lag_ms = 0
    if kind in ("speaker", "lag", "noise", "punch-in"):
        voice = dealer.next_clip()
        clips = [voice]
    elif kind in ("two-faces", "voice-over"):
        voice = dealer.next_clip()
        other = dealer.next_clip(besides=voice.person)
        clips = [other] if kind == "voice-over" else [voice, other]
        if kind == "two-faces" and rng.random() < 0.5:
            clips.reverse()
    elif kind == "no-face":
        voice = dealer.next_clip()
    elif kind == "music" and rng.random() < 0.5:
        clips = [dealer.next_clip()]
    is_still = kind == "voice-over" and rng.random() < 0.5
    if kind == "lag":
        steps = MAX_LAG_MS // LAG_STEP_MS
        lag_ms = LAG_STEP_MS * int(rng.choice([-1, 1]) * rng.integers(1, steps + 1))
    noise_db = float(rng.choice(NOISE_DB)) if kind == "noise" else None

    lengths = [clip.n_frames for clip in ([voice] if is_still else [*clips, voice]) if clip is not None]
    n_frames = min([*lengths, MAX_SCENE_FRAMES]) if lengths else NO_CLIP_FRAMES
    if kind == "black":
        n_frames = int(rng.integers(BLACK_FRAMES[0], BLACK_FRAMES[1] + 1))
    width, height = size
    boxes = [(0, 0, width, height)]
    if len(clips) == 2:
        boxes = [(0, 0, width // 2, height), (width // 2, 0, width, height)]
    faces = [
        PersonTruth(clip.person, clip.name, box, clip is voice, is_still)
        for clip, box in zip(clips, boxes[: len(clips)], strict=True)
    ]
    truth = SceneTruth(
        kind=kind,
        first_frame=first,
        end_frame=first + n_frames,
        faces=faces,
        voice=None if voice is None else voice.person,
        voice_clip=None if voice is None else voice.name,
        lag_ms=lag_ms,
        speech_to_noise_db=noise_db,
        speech_seconds=None,
        zoom_frame=first + n_frames // 2 if kind == "punch-in" else None,
    )
    return Scene(truth, tuple(clips), voice, seed)


def draw_scene(scene: Scene, size: tuple[int, int]) -> Iterator[Frame]:
    """The frames of a scene, (H, W, 3) RGB."""
    truth = scene.truth
    if not scene.clips:
        draw: Callable[[int], Frame] = (
            _make_landscape(scene.seed, size) if truth.kind != "black" else _make_black(size)
        )
        for k in range(scene.n_frames):
            yield draw(k)
        return
    readers = [_read_pictures(clip, scene.n_frames, truth.faces[0].is_still) for clip in scene.clips]
    for k, pictures in enumerate(zip(*readers, strict=True)):
        canvas = np.empty((size[1], size[0], 3), np.uint8)
        for picture, face in zip(pictures, truth.faces, strict=True):
            x0, y0, x1, y1 = face.box
            place = _fit_inside if len(pictures) == 1 else _crop_middle
            canvas[y0:y1, x0:x1] = place(picture, (x1 - x0, y1 - y0))
        if truth.zoom_frame is not None and truth.first_frame + k >= truth.zoom_frame:
            canvas = _zoom(canvas)
        yield canvas


def _read_pictures(clip: SourceClip, n_frames: int, is_still: bool) -> Iterator[Frame]:
    pictures = (frame.image for frame in read_frames_at_25fps(clip.path, clip.start, n_frames))
    try:
        if not is_still:
            yield from pictures
            return
        picture = next(pictures)
        for _ in range(n_frames):
            yield picture
    except Drop as err:
        raise SynthError(f"{clip.path}: {err}") from err


def _fit_inside(picture: Frame, size: tuple[int, int]) -> Frame:
    """The whole picture in the middle of ``size`` (width, height), over a blurred one of itself."""
    height, width = picture.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    small = _resize(picture, (BACKDROP_SIDE, BACKDROP_SIDE))
    canvas = _resize(small, size)
    x, y = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[y : y + inner[1], x : x + inner[0]] = _resize(picture, inner)
    return canvas


def _crop_middle(picture: Frame, size: tuple[int, int]) -> Frame:
    """The middle of the picture, as much of it as fills ``size`` (width, height)."""
    height, width = picture.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    outer = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    x, y = (outer[0] - size[0]) // 2, (outer[1] - size[1]) // 2
    return _resize(picture, outer)[y : y + size[1], x : x + size[0]]


def _zoom(picture: Frame) -> Frame:
    height, width = picture.shape[:2]
    middle = (width - 1) / 2, (height - 1) / 2
    matrix = cv2.getRotationMatrix2D(middle, 0, ZOOM)
    return np.asarray(cv2.warpAffine(picture, matrix, (width, height)), np.uint8)


def _resize(picture: Frame, size: tuple[int, int]) -> Frame:
    is_smaller = size[0] < picture.shape[1]
    interpolation = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)


def _make_black(size: tuple[int, int]) -> Callable[[int], Frame]:
    black = np.zeros((size[1], size[0], 3), np.uint8)
    return lambda k: black


def _make_landscape(seed: int, size: tuple[int, int]) -> Callable[[int], Frame]:
    """Hills from noise before a sky, which the camera passes slowly: frame k."""
    rng = make_rng(seed, 2)
    width, height = size
    wide = width + MAX_SCENE_FRAMES
    texture = np.zeros((height, wide, 3))
    for divisor in (4, 16, 64):
        shape = max(2, height // divisor), max(2, wide // divisor), 3
        noise = rng.normal(size=shape).astype(np.float32)
        texture += cv2.resize(noise, (wide, height), interpolation=cv2.INTER_CUBIC) * divisor / 3
    ridge = cv2.resize(rng.normal(size=(1, 9)).astype(np.float32), (wide, 1), interpolation=cv2.INTER_CUBIC)
    horizon = height * (0.45 + 0.1 * ridge[0])
    is_sky = np.arange(height)[:, None] < horizon
    texture += np.where(is_sky[..., None], rng.uniform(120, 230, 3), rng.uniform(30, 120, 3))
    picture = np.clip(texture, 0, 255).astype(np.uint8)
    return lambda k: picture[:, k : k + width]


def make_sound(scene: Scene) -> tuple[Sound, tuple[float, float] | None]:
    """The sound of a scene, (n_frames * SAMPLES_PER_FRAME,), and the film's seconds in which it is speech."""
    truth, voice = scene.truth, scene.voice
    n_samples = scene.n_frames * SAMPLES_PER_FRAME
    if truth.kind == "music":
        return _make_music(scene.seed, n_samples), None
    if voice is None:
        return np.zeros(n_samples, np.float32), None
    start = voice.start - truth.lag_ms / 1000
    try:
        sound, _ = mix_to_mono(read_channels(voice.path, start, n_samples))
    except Drop as err:
        raise SynthError(f"{voice.path}: {err}") from err
    speech = _find_speech(sound, truth.first_frame / VIDEO_FPS)
    if truth.speech_to_noise_db is not None:
        noise = make_rng(scene.seed, 3).normal(size=n_samples)
        level = np.sqrt(np.square(sound, dtype=np.float64).mean()) * 10 ** (-truth.speech_to_noise_db / 20)
        sound = (sound + level * noise).astype(np.float32)
    return np.clip(sound, -1, 1), speech


def _find_speech(sound: Sound, first_second: float) -> tuple[float, float] | None:
    """Between the quiet and the loudest, in dB: in 60 clips of GRID 0.05 s off the words' times (median)."""
    n_windows = len(sound) // SPEECH_WINDOW
    windows = sound[: n_windows * SPEECH_WINDOW].reshape(n_windows, SPEECH_WINDOW)
    level = 10 * np.log10(np.square(windows, dtype=np.float64).mean(axis=1) + 1e-10)
    quiet = max(np.percentile(level, QUIET_PERCENT), level.max() - SPEECH_RANGE_DB)
    loud = np.flatnonzero(level > (quiet + level.max()) / 2)
    if not len(loud):
        return None
    first, last = (first_second + k * SPEECH_WINDOW / SAMPLE_RATE for k in (loud[0], loud[-1] + 1))
    return round(float(first), 3), round(float(last), 3)


def _make_music(seed: int, n_samples: int) -> Sound:
    """Chords, struck one after the other."""
    rng = make_rng(seed, 4)
    seconds = np.arange(n_samples) / SAMPLE_RATE
    since_chord = seconds % CHORD_SECONDS
    chords = rng.integers(len(CHORDS_HZ), size=math.ceil(n_samples / SAMPLE_RATE / CHORD_SECONDS) + 1)
    notes = np.array(CHORDS_HZ)[chords[(seconds // CHORD_SECONDS).astype(int)]]
    harmonics = sum(np.sin(2 * np.pi * k * notes * seconds[:, None]) / k**1.5 for k in (1, 2, 3, 4))
    music = np.asarray(harmonics).sum(axis=1) * np.exp(-2 * since_chord) * np.minimum(since_chord / 0.01, 1)
    return np.asarray(music * (MUSIC_RMS / np.sqrt(np.square(music).mean())), np.float32)
