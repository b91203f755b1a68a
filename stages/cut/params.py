"""How files are cut into clips, and which of these clips are kept."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ThresholdParams:
    """Which clips are kept, by the columns of the ledger. Changing them measures nothing again."""

    min_sync_confidence: float = Field(default=0.2, ge=-2, le=2)  # stages.cut.speaker
    min_syncnet_confidence: float = Field(default=0.0, ge=0, le=100)  # where cut.second_opinion is syncnet
    max_lag_frames: int = Field(default=2, ge=0, le=15)  # either way, where cut.correct_lag is off
    # px of the source, as landmarks.min_face_pixels
    min_face_width: float = Field(default=40.0, ge=0, le=16_384)
    min_sharpness: float = Field(default=0.5, ge=0, le=10)  # stages.cut.quality has figures
    max_yaw: float = Field(default=45.0, ge=0, le=180)  # degrees, to either side
    max_pitch: float = Field(default=30.0, ge=0, le=180)  # degrees, up or down
    min_brightness: float = Field(default=20.0, ge=0, le=255)  # of the face
    max_brightness: float = Field(default=235.0, ge=0, le=255)
    min_speech_level: float = Field(default=-50.0, ge=-200, le=100)  # dB of full scale
    min_speech_to_noise: float = Field(default=3.0, ge=-200, le=200)  # dB


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CutParams:
    """How a file of any length becomes clips of one speaking face."""

    enabled: bool = False  # or each file is one clip
    min_seconds: float = Field(default=2.0, ge=1.2, le=600)  # of a clip: in less, sync cannot be judged
    max_seconds: float = Field(default=12.0, ge=2, le=600)  # longer speech is cut at its longest pause
    min_pause_seconds: float = Field(default=0.4, ge=0.1, le=60)  # between words; a longer pause ends a clip
    margin_seconds: float = Field(default=0.4, ge=0, le=10)  # of the pauses around it, at most half of each
    # of a picture that stands in a clip; longer than pictures are shown at low rates
    max_still_seconds: float = Field(default=1.0, ge=0.4, le=86_400)
    voice_model: str = ""  # path of the voice detector's weights; empty: environment, user's cache, download
    correct_lag: bool = True  # read the sound of a clip so much earlier or later as it is late
    near_duplicates: Literal["keep", "drop"] = "keep"  # clips with the sound of an earlier one
    second_opinion: Literal["none", "syncnet"] = "none"  # on who speaks; SyncNet's weights are needed
    thresholds: ThresholdParams = Field(default_factory=ThresholdParams)

    def __post_init__(self) -> None:
        if self.min_seconds > self.max_seconds / 2:
            raise ValueError(
                f"min_seconds is {self.min_seconds:g}, expected at most half of max_seconds "
                f"{self.max_seconds:g}: long speech is cut into pieces of either"
            )
        if self.thresholds.min_syncnet_confidence and not self.with_syncnet:
            raise ValueError(
                f"thresholds.min_syncnet_confidence is {self.thresholds.min_syncnet_confidence:g} and "
                f"second_opinion is {self.second_opinion}, expected syncnet: nothing else measures it"
            )

    @property
    def with_syncnet(self) -> bool:
        """Whether SyncNet scores spans too."""
        return self.second_opinion == "syncnet"

    def describe_dataset(self) -> dict[str, Any]:
        """The params that decide a dataset's bytes; without a second opinion, none of its own."""
        params = asdict(self)
        del params["voice_model"]
        if not self.with_syncnet:  # as in datasets of versions that know none
            del params["second_opinion"], params["thresholds"]["min_syncnet_confidence"]
        return params

    def describe_spans(self) -> dict[str, Any]:
        """The params that decide which spans a file has, and not which of them are kept."""
        params = asdict(self)
        for name in (
            "enabled",
            "voice_model",
            "correct_lag",
            "near_duplicates",
            "second_opinion",
            "thresholds",
        ):
            del params[name]
        return params
