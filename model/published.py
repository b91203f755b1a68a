"""The catalogue of published models: what each is, what it can and cannot do, and where its file is.

    model/published/models.json    one entry per model
                    NAME.safetensors    of those that are packaged; the others have an address
                    NAME.md        the entry as a page for people

The page is rendered from the entry, so that no fact is written twice.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from model.published_file import SUFFIX
from model.recipe import MAX_STEPS, ModelError
from model.sampling_advice import SamplingAdvice
from shards.checksum import file_sha256
from shards.documents import Line, check_printable, parse_object
from shards.errors import ShardError, shorten, shorten_message
from shards.files import read_file
from shards.params import describe_mismatch

FOLDER = Path(__file__).with_suffix("")
CATALOGUE = "models.json"
FORMAT = 1
MAX_CATALOGUE_BYTES = 2**20  # an entry has 5 KB
MAX_FILE_BYTES = 2**30  # of a file of weights; the paper's largest network has 140 MB as float16
# A name never has a separator or a leading dot, so ./NAME and runs/NAME are always folders.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
PAGE_WIDTH = 100
HEARS = {"mels": "mels", "speech": "speech features", "both": "mels and speech features"}

Lines = Annotated[list[Line], Field(min_length=1, max_length=50)]
Address = Annotated[Line, Field(pattern=r"^https://[^\s/]+/")]


class _Entry(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TrainingData(_Entry):
    """A corpus that a model was trained on."""

    name: Line
    part: Line  # which clips
    licence: Line
    licence_url: Address
    citation: Line
    changes: Line  # what was made of it, as an attribution has to say


class MeasuredFigure(_Entry):
    """One figure with its 95 % interval."""

    name: Line
    value: float
    low: float | None = None  # None: no interval
    high: float | None = None
    unit: Annotated[str, Field(max_length=20), pydantic.AfterValidator(check_printable)] = ""
    conditions: Line

    @pydantic.model_validator(mode="after")
    def _check_interval(self) -> MeasuredFigure:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.name}: has one end of an interval, expected low and high, or neither")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"{self.name} is {self.value:g}, expected within {self.low:g} and {self.high:g}")
        return self


class PublishedModel(_Entry):
    """One entry of the catalogue."""

    name: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
    summary: Line
    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: int = Field(ge=1, le=MAX_FILE_BYTES)
    parameters: int = Field(ge=1, le=MAX_FILE_BYTES)
    step: int = Field(ge=0, le=MAX_STEPS)
    start_step: int = Field(default=0, ge=0, le=MAX_STEPS)  # of the weights that training began with
    audio_input: Literal["mels", "speech", "both"]
    licence: Line  # of the weights
    sampling: SamplingAdvice = Field(default_factory=SamplingAdvice)
    data: list[TrainingData] = Field(min_length=1, max_length=50)
    recipe: Line  # what is special about it, in words; the file has every number
    command: Line  # that trains it again
    figures: list[MeasuredFigure] = Field(min_length=1, max_length=50)
    limits: Lines
    must_not: Lines  # what it must not be used for
    url: Address | None = None  # of one that is not packaged

    @pydantic.model_validator(mode="after")
    def _check_file(self) -> PublishedModel:
        if self.file != f"{self.name}{SUFFIX}":
            raise ValueError(f"file is {shorten(self.file)}, expected {self.name}{SUFFIX}")
        return self


class ModelCatalogue(_Entry):
    """The content of ``models.json``."""

    format: Literal[1] = 1
    models: list[PublishedModel] = Field(max_length=100)

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> ModelCatalogue:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"models has the name {next(n for n in names if names.count(n) > 1)} twice")
        return self


def read_catalogue(folder: Path = FOLDER) -> list[PublishedModel]:
    """The published models, in the order of the catalogue. Raises ModelError."""
    path = folder / CATALOGUE
    try:
        content = parse_object(read_file(path, MAX_CATALOGUE_BYTES), f"{path}")
        if (version := content.get("format")) != FORMAT:
            raise ModelError(f"{path}: has format {shorten(version)}, this redub reads format {FORMAT}")
        return ModelCatalogue.model_validate(content).models
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err.strerror}); install redub again") from err
    except ShardError as err:
        raise ModelError(str(err)) from err
    except pydantic.ValidationError as err:
        raise ModelError(shorten_message(f"{path}: {describe_mismatch(err, ModelCatalogue)}")) from err


def get_model(name: str, models: Sequence[PublishedModel]) -> PublishedModel:
    """The model of a name. Raises ModelError, which lists the names that there are."""
    for model in models:
        if model.name == name:
            return model
    names = ", ".join(model.name for model in models) or "none"
    raise ModelError(f"{shorten(name)}: no published model has this name; known are {names}")


def find_packaged_file(model: PublishedModel, folder: Path = FOLDER) -> Path | None:
    """The file that the package holds, after its contents are checked; None if it holds none.

    Raises ModelError for a file with other contents.
    """
    path = folder / model.file
    if not path.exists():
        return None
    if not matches_file(path, model):
        raise ModelError(
            f"{path}: has other contents than {CATALOGUE} says "
            f"({model.bytes:,} bytes, sha256 {model.sha256[:12]}...); install redub again"
        )
    return path


def matches_file(path: Path, model: PublishedModel) -> bool:
    """Whether a file is the model's, byte for byte."""
    try:
        return path.is_file() and path.stat().st_size == model.bytes and file_sha256(path) == model.sha256
    except OSError:
        return False


def format_figure(figure: MeasuredFigure) -> str:
    """A figure with its unit and interval, e.g. ``0.65 [0.57, 0.73]``."""
    unit = f" {figure.unit}" if figure.unit else ""
    interval = "" if figure.low is None else f" [{figure.low:g}, {figure.high:g}]"
    return f"{figure.value:g}{unit}{interval}"


def render_page(model: PublishedModel) -> str:
    """The page of a model for people, in Markdown."""
    advice = model.sampling.model_dump(exclude_none=True)
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in advice.items())
    lines = [
        f"# The model `{model.name}`",
        "",
        *_wrap(model.summary),
        "",
        *_wrap(
            "This page is made from `models.json`. `pipeline models` prints the summary, figures, data, "
            "limits and what the model must not be used for; `pipeline models --json` prints everything."
        ),
        "",
        "| | |",
        "| --- | --- |",
        f"| file | `{model.file}`, {model.bytes:,} bytes, float16 |",
        f"| sha256 | `{model.sha256}` |",
        f"| parameters | {model.parameters:,} |",
        f"| hears | {HEARS[model.audio_input]} |",
        f"| trained for | {_describe_steps(model)} |",
        f"| sampled with | {settings or 'the defaults'}; an option of the command line overrides it |",
        f"| licence of the weights | {model.licence} |",
        *([f"| address | {model.url} |"] if model.url else []),
        "",
        "## Data and attribution",
        "",
    ]
    for data in model.data:
        lines += _wrap(
            f"- **{data.name}**, {data.part}. Licence: [{data.licence}]({data.licence_url}). {data.citation} "
            f"Changes: {data.changes}",
            indent="  ",
        )
    lines += ["", "## Recipe", "", *_wrap(model.recipe), "", f"    {model.command}", "", "## Figures", ""]
    lines += ["| | value [95 % interval] | conditions |", "| --- | --- | --- |"]
    lines += [f"| {item.name} | {format_figure(item)} | {item.conditions} |" for item in model.figures]
    lines += ["", "## Limits", ""]
    lines += [line for text in model.limits for line in _wrap(f"- {text}", indent="  ")]
    lines += ["", "## It must not be used", ""]
    lines += [line for text in model.must_not for line in _wrap(f"- {text}", indent="  ")]
    lines += ["", "See [responsible use](../../docs/responsible-use.md)."]
    return "\n".join(lines) + "\n"


def _describe_steps(model: PublishedModel) -> str:
    if model.start_step == 0:
        return f"{model.step:,} steps"
    start = f"{model.start_step:,} of the network that it started from"
    return f"{model.start_step + model.step:,} steps: {start}, then {model.step:,}"


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, PAGE_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
