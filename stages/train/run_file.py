"""What a run, or a published file, says of itself: its recipe, its sound, its data, and how to sample it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from model.checkpoint import find_checkpoint, find_run
from model.published import matches_file, read_catalogue
from model.published_file import is_published_file, read_published_info
from model.recipe import ModelError, recipe_from_dict
from model.sampling_advice import SamplingAdvice, advise_by_recipe
from model.start_record import StartRecord
from shards.checksum import file_sha256
from shards.documents import Document
from shards.schema import Text
from shards.sources import DataSource, DataSources, make_unknown_source
from stages.engine.json_file import read_json_file
from stages.engine.outcome import StageError

RUN_FILE = "run.json"


class TriedExecution(Document):
    """How a run is executed, by a trial at its start."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    precision: Literal["bf16", "fp32"]
    compile: bool


class RunFile(Document):
    """The content of ``run.json``, which the report and the page show. An older redub wrote less of it."""

    preset: Text = ""
    shards: Text = ""
    digest: Text = ""
    recipe: dict[str, Any] = Field(default_factory=dict)
    mels: dict[str, Any] | None = None  # how the dataset's mels were made
    speech: dict[str, Any] | None = None  # and its speech features, if the network takes them
    execution: TriedExecution | None = None
    start: StartRecord | None = None  # where it started, if from another run's weights
    data: DataSources = Field(default_factory=list)  # of the dataset and of the start, with licences
    sampling: SamplingAdvice = Field(default_factory=SamplingAdvice)  # as its start needs it
    versions: dict[str, Text] = Field(default_factory=dict)

    @pydantic.field_validator("recipe")
    @classmethod
    def _check_recipe(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        try:
            recipe_from_dict(recipe)
        except ModelError as err:
            raise ValueError(str(err)) from err
        return recipe


def read_run_file(run: Path) -> dict[str, Any]:
    """The content of a run's ``run.json``. Raises StageError for one that is missing or no run's."""
    return read_json_file(run / RUN_FILE, "pipeline train", RunFile)


def read_dataset_sections(run: Path) -> tuple[Path, dict[str, dict[str, Any] | None]]:
    """How a network's mels and speech features were made, ``mels`` and ``speech``, and the file that says it.

    ``run`` is a run's folder or a published file. A section is None in a checkpoint that was copied alone,
    where an earlier version wrote the run, and of speech features that the network does not take. Raises
    StageError or ModelError for a damaged file.
    """
    file = run
    if is_published_file(run):
        info = read_published_info(run)
        content: dict[str, Any] = {"mels": info.mels, "speech": info.speech}
    else:
        file = run / RUN_FILE
        content = read_run_file(run) if file.exists() else {}
    return file, {name: content.get(name) for name in ("mels", "speech")}


def read_data_sources(run: Path) -> list[DataSource]:
    """What a network was trained on, with licences: of a run's folder or of a published file.

    Of the models of the catalogue, the catalogue says it: the file may not know the licences of a folder of
    clips. A run of an older redub does not say. Raises StageError or ModelError for a damaged file.
    """
    if is_published_file(run):
        sources = _list_catalogue_sources(file_sha256(run)) or read_published_info(run).data
    else:
        content = read_run_file(run) if (run / RUN_FILE).exists() else {}
        sources = [DataSource.model_validate(item) for item in content.get("data", [])]
    return sources or [make_unknown_source(f"what {run.name} was trained on")]


def _list_catalogue_sources(sha256: str) -> list[DataSource]:
    """What the catalogue says of a published file's data."""
    return [
        DataSource(name=data.name, licence=data.licence, citation=data.citation)
        for model in read_catalogue()
        if model.sha256 == sha256
        for data in model.data
    ]


def find_sampling_advice(path: Path) -> SamplingAdvice:
    """How to sample the network at ``path``, where it needs other params than ``SampleParams`` has.

    The catalogue says that of a published model. What was trained further from one, once or again, says it in
    its ``run.json`` or its metadata; where an older redub wrote these, its start is looked up. For other
    networks the recipe says it. No advice where there is none that can be read, which loading it will report.
    """
    models = read_catalogue()
    try:
        checkpoint = find_checkpoint(path)
        recorded = _read_sampling_section(find_run(path))
    except (ModelError, StageError):
        return SamplingAdvice()
    for model in models:
        if matches_file(path, model):
            return model.sampling
    if recorded != SamplingAdvice():
        return recorded
    known = {model.sha256: model.sampling for model in models}
    if checkpoint.recipe.distill:  # unlike its start
        return advise_by_recipe(checkpoint.recipe)
    if checkpoint.start is not None and checkpoint.start.sha256 in known:
        return known[checkpoint.start.sha256]
    return advise_by_recipe(checkpoint.recipe)


def _read_sampling_section(run: Path) -> SamplingAdvice:
    """What a published file or a run's ``run.json`` says of sampling."""
    if is_published_file(run):
        return read_published_info(run).sampling
    content = read_run_file(run) if (run / RUN_FILE).exists() else {}
    return SamplingAdvice.model_validate(content.get("sampling", {}))


def advise_sampling(path: Path) -> dict[str, Any]:
    """``find_sampling_advice`` as fields of ``SampleParams``, those that it has."""
    return find_sampling_advice(path).model_dump(exclude_none=True)
