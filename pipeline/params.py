"""Reads params.yaml into frozen dataclasses. The class of a section is beside the code that uses it."""

from __future__ import annotations

import json
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from sampler.params import SampleParams
from stages.align import AlignParams
from stages.clips import ClipsParams
from stages.engine.outcome import StageError
from stages.engine.parts import PartParams
from stages.engine.sandbox import LimitParams
from stages.landmarks import LandmarksParams
from stages.mels import MelsParams
from stages.shard import ShardParams

if TYPE_CHECKING:
    from stages.edit.run import EditParams

DEFAULT_PATH = Path("params.yaml")
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
    landmarks: LandmarksParams = field(default_factory=LandmarksParams)
    align: AlignParams = field(default_factory=AlignParams)
    mels: MelsParams = field(default_factory=MelsParams)
    shard: ShardParams = field(default_factory=ShardParams)
    limits: LimitParams = field(default_factory=LimitParams)
    train: TrainParams = field(default_factory=TrainParams)
    sample: SampleParams = field(default_factory=SampleParams)

    def describe_dataset(self) -> dict[str, Any]:
        """For ``dataset.json``: the params that decide a dataset's bytes, without paths and limits."""
        sections = asdict(self)
        del sections["limits"], sections["train"], sections["sample"]
        del sections["landmarks"]["model"]
        return sections

    def make_edit_params(self, run: Path, **options: Any) -> EditParams:
        """Params of an edit by the network of a run, with the user's options.

        The mels are made as those that the run was trained on; as the section ``mels`` says where the run's
        folder does not tell. Raises StageError.
        """
        from stages.edit.run import EditParams

        return EditParams(
            landmarks=self.landmarks,
            align=self.align,
            mels=_read_run_mels_params(run) or self.mels,
            limits=self.limits,
            **options,
        )


def load(path: Path | None) -> Params:
    """Read a params file; None reads ./params.yaml if it exists, else returns the defaults.

    Raises StageError in one line that names the key, its value and what was expected.
    """
    if path is None:
        if not DEFAULT_PATH.is_file():
            return Params()
        path = DEFAULT_PATH
    try:
        sections = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as err:
        raise StageError(f"{path}: cannot be read as YAML ({' '.join(str(err).split())})") from err
    if not isinstance(sections, dict):
        raise StageError(f"{path}: holds {type(sections).__name__}, expected a mapping of sections")
    sections = {name: value or {} for name, value in sections.items() if name not in DVC_SECTIONS}
    try:
        return Params(**sections)
    except pydantic.ValidationError as err:
        raise StageError(f"{path}: {_describe_error(err)}") from err


def _read_run_mels_params(run: Path) -> MelsParams | None:
    """How the mels were made that a run was trained on; None when its folder does not say.

    Raises StageError when its ``run.json`` holds something else.
    """
    from stages.train import RUN_FILE

    path = run / RUN_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None  # a checkpoint that was copied alone
    except (OSError, ValueError, RecursionError) as err:
        raise StageError(f"{path}: cannot be read as JSON ({err})") from err
    if not isinstance(content, dict):
        raise StageError(f"{path}: holds {type(content).__name__}, expected an object")
    section = content.get("mels")
    if section is None:
        return None  # written by an earlier version
    if not isinstance(section, dict):
        raise StageError(f"{path}: mels is {type(section).__name__}, expected an object")
    try:
        return MelsParams(**section)
    except pydantic.ValidationError as err:
        raise StageError(f"{path}: mels.{_describe_error(err, MelsParams)}") from err


def _describe_error(err: pydantic.ValidationError, params_class: Any = Params) -> str:
    """The first problem in one line: the key, its value and what was expected."""
    problem = err.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        section, _, _ = where.rpartition(".")
        for name in filter(None, section.split(".")):
            params_class = next(item.default_factory for item in fields(params_class) if item.name == name)
        names = ", ".join(item.name for item in fields(params_class))
        return f"{where} is not known; known are {names}"
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if problem["type"] == "value_error" else f" is {problem['input']!r}"
    return f"{where}{value}: {message}"
