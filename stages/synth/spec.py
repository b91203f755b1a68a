"""Parameters of synthetic clips, and their ground truth."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass

from shards.params import MAX_SEED

Image = NDArray[np.uint8]  # (H, W, 3), RGB
Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Container = Literal["mpg", "flv", "mp4", "mkv"]
Style = Literal["grid", "crema-d", "folder"]

SYNTH_VERSION = 1  # stored in every ground truth; raise it if the same spec gives different clips
SAMPLE_RATE = 44_100
MAX_OFFSET_MS = 500.0


class SynthError(Exception):
    """The requested clip cannot be made, or a signal cannot be measured."""


def parse_frame_rate(fps: str) -> Fraction:
    """Frames per second of "25", "29.97" or "30000/1001"; for "variable", before frames are dropped."""
    if fps == "variable":
        return Fraction(30)
    rate = Fraction(fps)
    # 29.97 means 30000/1001
    return next((exact for exact in NTSC_RATES if abs(rate - exact) < 0.005), rate)


NTSC_RATES = [Fraction(24_000, 1001), Fraction(30_000, 1001), Fraction(60_000, 1001)]
# The frame rates that an MPEG-1 sequence header supports.
MPEG1_RATES = [*NTSC_RATES, *map(Fraction, (24, 25, 30, 50, 60))]


def _check_fps(fps: str) -> str:
    expected = f"{fps!r} is not a rate, expected variable or a rate in [5, 120] such as 25 or 30000/1001"
    try:
        rate = parse_frame_rate(fps)
    except (ValueError, ZeroDivisionError) as err:
        raise ValueError(expected) from err
    if not 5 <= rate <= 120:
        raise ValueError(expected)
    return fps


Side = Annotated[int, Field(ge=128, le=2048, multiple_of=2)]
Seconds = Annotated[float, Field(ge=0.4, le=600)]
OffsetMs = Annotated[float, Field(ge=-MAX_OFFSET_MS, le=MAX_OFFSET_MS)]
Strict = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=Strict)
class SynthParams:
    """Parameters of ``make_corpus``. None means the value of the corpus of that style."""

    speakers: Annotated[int, Field(ge=1, le=1000)] = 2
    clips: Annotated[int, Field(ge=1, le=1000)] = 3  # per speaker
    seconds: Seconds = 2.4
    style: Style = "grid"
    fps: str | None = None  # "25", "29.97", "30000/1001", ... or "variable"
    container: Container | None = None
    size: tuple[Side, Side] | None = None  # width, height, px
    av_offset_ms: OffsetMs = 0.0  # positive: the audio is late
    antiphase: bool = False  # stereo whose right channel is minus the left
    first_speaker: Annotated[int, Field(ge=1, le=1000)] = 1  # crema-d: 15 is actor 1015
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0

    @field_validator("fps")
    @classmethod
    def _fps(cls, fps: str | None) -> str | None:
        return None if fps is None else _check_fps(fps)


@dataclass(frozen=True, config=Strict)
class ClipSpec:
    """Everything that determines a clip, except the container, which the file suffix selects."""

    speaker: Annotated[int, Field(ge=1, le=MAX_SEED)] = 1  # selects appearance and voice
    clip: Annotated[int, Field(ge=1, le=MAX_SEED)] = 1  # selects speech and head motion
    seconds: Seconds = 2.4
    fps: str = "25"
    size: tuple[Side, Side] = (360, 288)
    av_offset_ms: OffsetMs = 0.0
    antiphase: bool = False
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0

    @field_validator("fps")
    @classmethod
    def _fps(cls, fps: str) -> str:
        return _check_fps(fps)


@dataclass(frozen=True, config=Strict)
class FrameTruth:
    """Ground truth of one frame."""

    seconds: float  # the frame's time stamp in the file, on the same clock as the audio
    opening: float  # of the mouth, 0 closed to 1 wide open
    counter: int  # that the barcode shows: the frame's number modulo 2**BARCODE_BITS
    corners_px: list[tuple[float, float]]  # (4, 2), x y of the barcode's corners in source px, clockwise


OwnType = TypeVar("OwnType", bound="TruthFile")


class TruthFile:
    """The ground truth of a clip or a film, stored beside it as ``<name>.truth.json``."""

    @staticmethod
    def path_for(video: Path) -> Path:
        return video.with_suffix(".truth.json")

    @classmethod
    def load(cls: type[OwnType], video: Path) -> OwnType:
        """Read the ground truth of a video. Raises FileNotFoundError or ValidationError."""
        return TypeAdapter(cls).validate_json(cls.path_for(video).read_bytes())

    def to_json(self) -> str:
        return json.dumps(TypeAdapter(type(self)).dump_python(self, mode="json"), indent=1) + "\n"


@dataclass(frozen=True, config=Strict)
class Truth(TruthFile):
    """Ground truth of one clip."""

    version: int
    speaker: str
    container: Container
    fps: str
    av_offset_ms: float
    seed: int
    sample_rate: int
    channels: int
    sha256: str  # of the clip's file
    spec: ClipSpec
    frames: list[FrameTruth]

    @property
    def times_s(self) -> Floats:
        return np.array([frame.seconds for frame in self.frames])

    @property
    def openings(self) -> Floats:
        return np.array([frame.opening for frame in self.frames])
