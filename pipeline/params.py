"""Reads params.yaml into frozen dataclasses. The class of a section is beside the code that uses it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.plain_yaml import parse_yaml
from sampler.params import SampleParams
from shards.errors import shorten
from shards.files import read_file
from shards.params import describe_mismatch
from stages.align import AlignParams
from stages.clips import ClipsParams
from stages.cut.params import CutParams
from stages.edit.face_check import FaceCheckParams
from stages.engine.outcome import StageError
from stages.engine.parts import PartParams
from stages.engine.sandbox import LimitParams
from stages.landmarks import LandmarksParams
from stages.mels import MelsParams, load_mels_params
from stages.shard import ShardParams
from stages.speech import NO_ENCODER, SpeechParams

if TYPE_CHECKING:
    from stages.edit.run import EditParams

Section = TypeVar("Section")

DEFAULT_PATH = Path("params.yaml")
MAX_PARAMS_BYTES = 2**18  # ours has 5 KB; a list of datasets and runs may be long
DVC_SECTIONS = frozenset({"datasets", "runs"})  # read by dvc.yaml, not by a stage


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainParams:
    """The recipe and changes to it. It is here because the code that uses it takes long to import."""

    preset: str = "multi-speaker"
    changes: dict[str, Any] = field(default_factory=dict)  # nested as in model.recipe.Recipe


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Params:
    """Every number that changes a result."""

    parts: PartParams = field(default_factory=PartParams)
    clips: ClipsParams = field(default_factory=ClipsParams)
    cut: CutParams = field(default_factory=CutParams)
    landmarks: LandmarksParams = field(default_factory=LandmarksParams)
    align: AlignParams = field(default_factory=AlignParams)
    mels: MelsParams = field(default_factory=MelsParams)
    speech: SpeechParams = field(default_factory=SpeechParams)
    shard: ShardParams = field(default_factory=ShardParams)
    limits: LimitParams = field(default_factory=LimitParams)
    train: TrainParams = field(default_factory=TrainParams)
    sample: SampleParams = field(default_factory=SampleParams)
    face_check: FaceCheckParams = field(default_factory=FaceCheckParams)

    def describe_dataset(self) -> dict[str, Any]:
        """For ``dataset.json``: the params that decide a dataset's bytes, without paths and limits."""
        sections = asdict(self)
        del sections["limits"], sections["train"], sections["sample"], sections["face_check"]
        sections["clips"] = self.choose_clips_params().describe()
        del sections["landmarks"]["model"], sections["speech"]["model"]
        if self.speech.encoder == NO_ENCODER:
            del sections["speech"]  # as in the datasets of versions without this stage
        if self.cut.enabled:
            sections["cut"] = self.cut.describe_dataset()
        else:
            del sections["cut"]
        return sections

    def choose_clips_params(self) -> ClipsParams:
        """Params of the first stage. A file to be cut may have any length, holes, photos, and break off."""
        return self.clips.relax() if self.cut.enabled else self.clips

    def make_edit_params(self, run: Path | None = None, **options: Any) -> EditParams:
        """Params of an edit by the network of a run or of a published file, with the user's options.

        The mels and speech features are made as those that it was trained on; as the sections ``mels`` and
        ``speech`` say where ``run``, a folder or a file, does not tell. Raises StageError, also for an option
        that is out of bounds, and ModelError for a published file that cannot be read.
        """
        from stages.edit.run import EditParams

        mels = None if run is None else _read_run_section(run, "mels", load_mels_params)
        speech = None if run is None else _read_run_section(run, "speech", self._load_speech_params)
        try:
            return EditParams(
                landmarks=self.landmarks,
                align=self.align,
                mels=mels or self.mels,
                speech=speech or self.speech,
                limits=self.limits,
                face_check=self.face_check,
                **options,
            )
        except pydantic.ValidationError as err:
            raise StageError(describe_mismatch(err)) from err

    def make_sample_params(self, run: Path, **options: Any) -> SampleParams:
        """Params of sampling: the section's, over them what a published model needs, over these the options.

        An option that is None is not set. Raises ModelError for one that is out of bounds.
        """
        from sampler.rollout import override_params
        from stages.train.run_file import advise_sampling

        return override_params(override_params(self.sample, **advise_sampling(run)), **options)

    def _load_speech_params(self, section: Mapping[str, Any]) -> SpeechParams:
        """The params of a run's speech features; the path of the encoder's weights is this machine's."""
        return SpeechParams(**{**section, "model": self.speech.model})


def _read_run_section(
    run: Path, name: str, load_section: Callable[[Mapping[str, Any]], Section]
) -> Section | None:
    """How a network's mels or speech features were made; None when ``run`` does not say.

    Raises StageError when it holds something else.
    """
    from stages.train.run_file import read_dataset_sections

    file, sections = read_dataset_sections(run)
    section = sections[name]
    if section is None:
        return None
    try:
        return load_section(section)
    except pydantic.ValidationError as err:
        raise StageError(f"{file}: {name}.{describe_mismatch(err)}") from err


def load(path: Path | None) -> Params:
    """Read a params file; None reads ./params.yaml if it exists, else returns the defaults.

    Raises StageError in one line that names the key, its value and what was expected.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Params()
        path = DEFAULT_PATH
    try:
        content = parse_yaml(read_file(path, MAX_PARAMS_BYTES).decode())
    except FileNotFoundError as err:
        raise StageError(f"{path}: is not there") from err
    except OSError as err:
        raise StageError(f"{path}: cannot be read ({err.strerror})") from err
    except (StageError, UnicodeDecodeError) as err:
        raise StageError(f"{path}: cannot be read as YAML ({err})") from err
    if not isinstance(content, dict | None):
        raise StageError(f"{path}: is {shorten(content)}, expected a mapping of sections")
    sections = {
        name: {} if value is None else value
        for name, value in (content or {}).items()
        if name not in DVC_SECTIONS
    }
    try:
        return pydantic.TypeAdapter(Params).validate_json(json.dumps(sections), strict=True)
    except pydantic.ValidationError as err:
        raise StageError(f"{path}: {describe_mismatch(err, Params)}") from err
