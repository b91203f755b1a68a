"""The file of a published model: a network without what only training needs, at half the size.

It is called

    NAME.safetensors    the averaged weights, parameters as float16 and other numbers as float32
                        metadata "redub": format, recipe, step, digest of the dataset, how that dataset's mels
                        and speech features were made, where the training started, the sources and licences of
                        what it was trained on, and how to sample it, where that is not as SampleParams has it
"""

from __future__ import annotations

import json
import math
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import ConfigDict, Field
from safetensors.torch import save
from torch import Tensor

from model.recipe import MAX_STEPS, ModelError, Recipe, recipe_to_dict
from model.sampling_advice import SamplingAdvice
from model.start_record import StartRecord
from model.tensor_file import get_tensors, load_weights, read_metadata
from model.unet import UNet, make_empty_network
from shards.atomic import write_atomically
from shards.documents import parse_object
from shards.errors import ShardError, shorten
from shards.params import describe_mismatch
from shards.sources import DataSources

FORMAT = 1
SUFFIX = ".safetensors"
METADATA = "redub"
MAX_SECTION_VALUES = 100  # of how mels were made; there are eight
# Rounding to float16 moves a weight by at most 2^-11 of its size, if it is above 6e-5. A tensor that changes
# by more holds mostly smaller weights, which float16 cannot tell apart.
MAX_ROUNDING = 1e-3

Section = Annotated[dict[str, Any], Field(max_length=MAX_SECTION_VALUES)]


class PublishedInfo(pydantic.BaseModel):
    """The metadata of a published file. A number that an older redub's recipe lacks has its default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    recipe: Recipe
    step: int = Field(ge=0, le=MAX_STEPS)
    digest: str = Field(default="", max_length=200)  # of the dataset that it was trained on
    mels: Section | None = None  # how that dataset's mels were made; None: not known
    speech: Section | None = None  # and its speech features, if the network takes them
    start: StartRecord | None = None  # where its training started, if from another's weights
    data: DataSources = Field(default_factory=list)  # what it and its start were trained on, with licences
    sampling: SamplingAdvice = Field(default_factory=SamplingAdvice)  # where its start says how


def is_published_file(path: Path) -> bool:
    """Whether a path is, or is meant to be, a published file rather than a folder."""
    return path.is_file() or (path.suffix == SUFFIX and not path.is_dir())


def read_published_info(path: Path) -> PublishedInfo:
    """What a published file says of its network. Raises ModelError, by name for another format."""
    text = read_metadata(path).get(METADATA)
    if text is None:
        raise ModelError(f"{path}: not a published model of redub; `pipeline export` writes one")
    try:
        content = parse_object(text, f"{path}: metadata")
        if (version := content.get("format")) != FORMAT:
            raise ModelError(
                f"{path}: is a published model of format {shorten(version)}, this redub reads format {FORMAT}"
            )
        return PublishedInfo.model_validate_json(text)
    except ShardError as err:
        raise ModelError(str(err)) from err
    except pydantic.ValidationError as err:
        raise ModelError(f"{path}: not a published model: {describe_mismatch(err, PublishedInfo)}") from err


def load_published_network(path: Path) -> tuple[UNet, PublishedInfo]:
    """The network of a published file, float32, on the CPU in evaluation mode. Raises ModelError."""
    info = read_published_info(path)
    network = make_empty_network(info.recipe.network)
    load_weights(network, path, assign=True, published=True)
    return network.eval(), info


def write_published_file(
    network: UNet, info: PublishedInfo, path: Path, *, max_rounding: float = MAX_ROUNDING
) -> float:
    """Write a network and what is known of it; it appears complete or not at all.

    Returns the largest change of a tensor by rounding, relative to its size. Raises ModelError where it
    exceeds ``max_rounding``.
    """
    tensors = get_tensors(network)
    changes = [0.0]
    for name, _ in network.named_parameters():
        rounded = tensors[name].half()
        changes.append(_measure_change(name, tensors[name], rounded, max_rounding))
        tensors[name] = rounded
    content = info.model_dump(mode="json") | {"recipe": recipe_to_dict(info.recipe)}
    content["sampling"] = info.sampling.model_dump(exclude_none=True)
    if not content["sampling"]:
        del content["sampling"]  # which older versions do not know
    if info.start is not None:  # which may be a path: folders of this machine are nobody else's business
        content["start"]["name"] = PurePath(info.start.name).name
    data = save(tensors, {METADATA: json.dumps(content)})
    with write_atomically(path) as partial:
        partial.write_bytes(data)
    return max(changes)


def _measure_change(name: str, value: Tensor, rounded: Tensor, max_rounding: float) -> float:
    """How far float16 is from a tensor, relative to the tensor's size. Raises ModelError if that is far."""
    if not rounded.isfinite().all():
        largest = float(value.abs().max())
        limit = torch.finfo(torch.float16).max
        raise ModelError(f"{name} has the value {largest:g}, float16 holds none beyond {limit:g}")
    size = float(value.double().norm())
    change = float((rounded.double() - value.double()).norm()) / size if size else 0.0
    if not change <= max_rounding or not math.isfinite(size):
        raise ModelError(
            f"{name} does not survive float16: it changes by {change:.2g} of its size, "
            f"expected at most {max_rounding:g}"
        )
    return change
