"""The networks that `--run` can name: published models on this machine, folders and files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import find_checkpoint
from model.published import (
    NAME,
    PublishedModel,
    find_packaged_file,
    get_model,
    matches_file,
    read_catalogue,
)
from model.recipe import ModelError
from stages.media import weights
from stages.media.weights import Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishedNetwork:
    """A published model, and its file if it is on this machine."""

    model: PublishedModel
    path: Path | None
    is_packaged: bool


def find_network(name: str) -> Path:
    """The file of a published model, or ``name`` as the path of a run, a checkpoint or a published file.

    A published model wins over a folder of its name, so that a command means the same wherever it is run;
    ``./NAME`` is always the folder. Raises ModelError for a name that is neither, and for a model that has
    to be downloaded first.
    """
    path = Path(name)
    if not NAME.fullmatch(name):
        return path
    models = read_catalogue()
    if path.exists() and all(model.name != name for model in models):
        return path
    try:
        model = get_model(name, models)
    except ModelError as err:
        raise ModelError(f"{err}, and there is no such folder") from err
    if path.exists():
        log.warning("%s is the published model; the folder of this name is ./%s", name, name)
    network = _locate(model)
    if network.path is None:
        raise ModelError(_describe_missing_file(model))
    return network.path


def find_trainable(path: Path) -> Path:
    """The network itself, or the published model that it was distilled from: that alone can be trained.

    Raises ModelError where that is none of the published models on this machine.
    """
    checkpoint = find_checkpoint(path)
    if not checkpoint.recipe.distill:
        return path
    for model in read_catalogue():
        if checkpoint.start is not None and checkpoint.start.sha256 == model.sha256:
            return find_network(model.name)
    start = "another network" if checkpoint.start is None else checkpoint.start.name
    raise ModelError(
        f"{path}: draws in one pass and cannot be trained further, expected {start}, from which it was "
        "distilled"
    )


def list_networks() -> list[PublishedNetwork]:
    """All published models, those on this machine first. Raises ModelError."""
    networks = [_locate(model) for model in read_catalogue()]
    return sorted(networks, key=lambda network: (not network.is_packaged, network.path is None))


def fetch_network(name: str) -> PublishedNetwork:
    """A published model whose file is on this machine: it is there, or it is downloaded to the user's cache.

    Raises ModelError for a name that is not known, StageError when it cannot be downloaded.
    """
    model = get_model(name, read_catalogue())
    network = _locate(model)
    if network.path is not None:
        return network
    if model.url is None:
        raise ModelError(_describe_missing_file(model))
    return PublishedNetwork(model, weights.fetch(_make_weights(model, model.url)), is_packaged=False)


def _locate(model: PublishedModel) -> PublishedNetwork:
    path = find_packaged_file(model)
    if path is not None:
        return PublishedNetwork(model, path, is_packaged=True)
    downloaded = weights.cache_folder() / model.file
    return PublishedNetwork(model, downloaded if matches_file(downloaded, model) else None, is_packaged=False)


def _describe_missing_file(model: PublishedModel) -> str:
    if model.url is None:
        return f"{model.name}: its file is missing from the package; install redub again"
    return f"{model.name}: is not on this machine; `pipeline fetch --model {model.name}` downloads it"


def _make_weights(model: PublishedModel, url: str) -> Weights:
    return Weights(
        name=model.file,
        sha256=model.sha256,
        url=url,
        environment="",
        option="--run",
        title=f"model {model.name}",
    )
