"""params.yaml -> frozen dataclasses. Each section's class stands beside the code that uses it."""

from __future__ import annotations

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
from stages.media.crops import ShardParams
from stages.mels import MelsParams

if TYPE_CHECKING:
    from stages.edit.run import EditParams

DEFAULT_PATH = Path("params.yaml")
FOR_DVC = frozenset({"datasets", "runs"})  # read by dvc.yaml, not by a stage


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainParams:
    """Which recipe, and what is changed in it. Here, because the code that uses it takes long to import."""

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

    def described(self) -> dict[str, Any]:
        """For ``dataset.json``: what decided the result, and not where files lay or what was allowed."""
        sections = asdict(self)
        del sections["limits"], sections["train"], sections["sample"]
        del sections["landmarks"]["model"]
        return sections

    def for_edit(self, **chosen: Any) -> EditParams:
        """How to edit for a network that learnt from such a dataset, with what the user has chosen."""
        from stages.edit.run import EditParams

        return EditParams(
            landmarks=self.landmarks, align=self.align, mels=self.mels, limits=self.limits, **chosen
        )


def load(path: Path | None) -> Params:
    """Params from a file; with None from ./params.yaml if it is there, else the defaults.

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
        raise StageError(f"{path}: holds {type(sections).__name__}, expected sections")
    sections = {name: value or {} for name, value in sections.items() if name not in FOR_DVC}
    try:
        return Params(**sections)
    except pydantic.ValidationError as err:
        raise StageError(f"{path}: {_first_problem(err)}") from err


def _first_problem(err: pydantic.ValidationError) -> str:
    problem = err.errors()[0]
    where = ".".join(str(step) for step in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        section, _, _ = where.rpartition(".")
        known: Any = Params
        for name in filter(None, section.split(".")):
            known = next(item.default_factory for item in fields(known) if item.name == name)
        names = ", ".join(item.name for item in fields(known))
        return f"{where} is not known; known are {names}"
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if problem["type"] == "value_error" else f" is {problem['input']!r}"
    return f"{where}{value}: {message}"
