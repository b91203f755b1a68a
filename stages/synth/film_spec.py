"""Parameters of films made of other clips, and their ground truth."""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from shards.params import MAX_SEED
from stages.synth.spec import Side, Strict, TruthFile

SceneKind = Literal[
    "speaker", "lag", "noise", "punch-in", "two-faces", "voice-over", "no-face", "music", "black"
]
SCENE_KINDS: dict[SceneKind, str] = {
    "speaker": "one person speaks",
    "lag": "the same, with the sound early or late",
    "noise": "the same, with noise",
    "punch-in": "the same, enlarged 1.3 times from its middle on",
    "two-faces": "two faces side by side: one speaks, the other's sound is left out",
    "voice-over": "one person's voice over the face of another, or over a picture of it that stands still",
    "no-face": "a voice over a landscape",
    "music": "music over a face whose sound is left out, or over a landscape",
    "black": "black, and silence",
}
FILM_VERSION = 1  # stored in every ground truth; raise it if the same options give different films
MAX_FILM_SECONDS = 24 * 3600
MAX_LAG_MS = 200


@dataclass(frozen=True, config=Strict)
class FilmParams:
    """Everything that determines films, except the clips that they are made of."""

    films: Annotated[int, Field(ge=1, le=1000)] = 1
    seconds: Annotated[float, Field(ge=1, le=MAX_FILM_SECONDS)] = 60.0  # the last scene may make it longer
    scenes: tuple[SceneKind, ...] = tuple(SCENE_KINDS)
    # Width and height, px. The width is a multiple of 16: else the encoder's output differs between runs.
    size: tuple[Annotated[int, Field(ge=128, le=2048, multiple_of=16)], Side] = (640, 360)
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0

    @field_validator("scenes")
    @classmethod
    def _scenes(cls, scenes: tuple[SceneKind, ...]) -> tuple[SceneKind, ...]:
        if not scenes:
            raise ValueError(f"no scenes, expected some of {', '.join(SCENE_KINDS)}")
        return tuple(kind for kind in SCENE_KINDS if kind in scenes)


@dataclass(frozen=True, config=Strict)
class PersonTruth:
    """A face in a scene."""

    person: str
    clip: str  # path in the folder that it is from
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in px: where this clip is drawn, all of it or its middle
    speaks: bool  # it is this clip's sound that is heard
    is_still: bool  # a picture that stands still


@dataclass(frozen=True, config=Strict)
class SceneTruth:
    """What is seen and heard in the frames [first_frame, end_frame) of a film. One shot, or two."""

    kind: SceneKind
    first_frame: int
    end_frame: int
    faces: list[PersonTruth]  # from left to right
    voice: str | None  # who is heard
    voice_clip: str | None  # path in the folder that it is from
    lag_ms: int  # positive: the sound is late
    speech_to_noise_db: float | None  # None: no noise was added
    # Seconds of the film in which the voice is heard, by its loudness: from the first sound to the last.
    speech_seconds: tuple[float, float] | None
    zoom_frame: int | None  # the first that is enlarged: a shot begins here too


@dataclass(frozen=True, config=Strict)
class FilmTruth(TruthFile):
    """Ground truth of one film."""

    version: int
    film: int  # from 1
    params: FilmParams
    fps: int
    sha256: str  # of the film's file
    scenes: list[SceneTruth]

    @property
    def n_frames(self) -> int:
        return self.scenes[-1].end_frame

    @property
    def shots(self) -> list[int]:
        """The first frames of the shots, 0 included."""
        zooms = [scene.zoom_frame for scene in self.scenes if scene.zoom_frame is not None]
        return sorted([*(scene.first_frame for scene in self.scenes), *zooms])
