"""Write a run's network as a published file; with its facts, as a model of the package.

    python -m pipeline.export --run RUN --name NAME --facts FACTS.json

adds or replaces a packaged model: it writes ``model/published/NAME.safetensors``, its entry in
``models.json`` and its page. FACTS.json holds the fields of ``PublishedModel`` that no file tells; those that
it lacks stay as they are in the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pydantic

from model import published
from model.checkpoint import find_run, load_network
from model.published_file import SUFFIX, PublishedInfo, write_published_file
from model.recipe import ModelError
from model.unet import count_parameters
from pipeline.main import print_errors
from pipeline.options import FILE, NETWORK
from sampler.params import SampleParams
from sampler.rollout import override_params
from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.documents import parse_object
from shards.files import read_file
from shards.params import describe_mismatch
from stages.train.run_file import find_sampling_advice, read_data_sources, read_dataset_sections


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written."""

    info: PublishedInfo
    n_parameters: int
    rounding: float  # the largest change of a tensor, relative to its size


def export_network(run: Path, out: Path, *, which: Literal["best", "newest"] = "best") -> ExportResult:
    """Write the averaged weights of a run, a checkpoint or a published file. Raises ModelError or StageError.

    A file in the way is replaced when the new one is complete.
    """
    network, checkpoint = load_network(run, which=which)
    _, sections = read_dataset_sections(find_run(checkpoint.path))
    if sections["speech"] is not None:
        sections["speech"].pop("model", None)  # a path of the machine that trained it
    info = PublishedInfo(
        recipe=checkpoint.recipe,
        step=checkpoint.step,
        digest=checkpoint.digest,
        mels=sections["mels"],
        speech=sections["speech"],
        start=checkpoint.start,
        data=read_data_sources(find_run(checkpoint.path)),
        sampling=find_sampling_advice(checkpoint.path),
    )
    rounding = write_published_file(network, info, out)
    return ExportResult(info, count_parameters(network), rounding)


def publish_network(
    run: Path,
    facts: dict[str, Any],
    *,
    name: str,
    which: Literal["best", "newest"] = "best",
    folder: Path = published.FOLDER,
) -> published.PublishedModel:
    """Make a run's network a packaged model: its file, its entry in the catalogue, and its page.

    Raises ModelError for facts that are not those of a model, before anything is replaced.
    """
    models = {model.name: model for model in published.read_catalogue(folder)}
    partial = folder / f".new-{name}{SUFFIX}"
    try:
        result = export_network(run, partial, which=which)
        if result.info.mels is None:
            raise ModelError(f"{run}: has no run.json that says how its mels were made")
        entry = {
            **(models[name].model_dump() if name in models else {}),
            **facts,
            "name": name,
            "file": f"{name}{SUFFIX}",
            "sha256": file_sha256(partial),
            "bytes": partial.stat().st_size,
            "parameters": result.n_parameters,
            "step": result.info.step,
            "start_step": _count_start_steps(result.info, models.values()),
            "audio_input": result.info.recipe.network.audio.input,
        }
        try:
            models[name] = model = published.PublishedModel.model_validate(entry)
            catalogue = published.ModelCatalogue(models=list(models.values()))
        except pydantic.ValidationError as err:
            raise ModelError(f"the facts: {describe_mismatch(err, published.PublishedModel)}") from err
        override_params(SampleParams(), **model.sampling.model_dump())
        partial.replace(folder / model.file)
    finally:
        partial.unlink(missing_ok=True)
    for path, text in (
        (folder / published.CATALOGUE, json.dumps(catalogue.model_dump(exclude_none=True), indent=1) + "\n"),
        (folder / f"{name}.md", published.render_page(model)),
    ):
        with write_atomically(path) as file:
            file.write_text(text, encoding="utf-8")
    return model


def _count_start_steps(info: PublishedInfo, models: Iterable[published.PublishedModel]) -> int:
    """Steps before the run's own: of its start, and of what a packaged start had started from."""
    if info.start is None:
        return 0
    return info.start.step + sum(model.start_step for model in models if model.sha256 == info.start.sha256)


@click.command()
@click.option("--run", type=NETWORK, required=True)
@click.option("--facts", type=FILE, required=True)
@click.option("--name", required=True)
@click.option("--newest", is_flag=True)
def command(run: Path, facts: Path, name: str, newest: bool) -> None:
    """Add or replace a packaged model: the network of a run, with the facts of a JSON file."""
    with print_errors():
        content = parse_object(read_file(facts, published.MAX_CATALOGUE_BYTES), f"{facts}")
        model = publish_network(run, content, name=name, which="newest" if newest else "best")
    click.echo(f"{published.FOLDER / model.file}: {model.bytes:,} bytes, sha256 {model.sha256}")


if __name__ == "__main__":
    command()
