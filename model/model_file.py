"""A model in one file: averaged weights in float16, with the recipe that they were trained with."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from safetensors.torch import save_file

from model.recipe import MAX_STEPS, ModelError, Recipe, recipe_to_dict
from model.tensor_file import N_LENGTH_BYTES
from model.unet import UNet
from shards.atomic import write_atomically
from shards.documents import Document, parse_object
from shards.errors import ShardError
from shards.files import open_file
from shards.params import describe_params_error

KEY = "redub"  # of the metadata of a safetensors file
FORMAT = 1
MAX_FILE_HEADER_BYTES = 2**22  # of a network of 4000 tensors


class ModelHeader(Document):
    """What a model's file says about itself."""

    format: Literal[1]
    recipe: Recipe
    step: int = Field(ge=0, le=MAX_STEPS)


def save_model(network: UNet, path: Path, recipe: Recipe, step: int) -> None:
    """Write a network's weights to one file, which appears when it is complete."""
    metadata = {KEY: json.dumps({"format": FORMAT, "recipe": recipe_to_dict(recipe), "step": step})}
    tensors = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in network.state_dict().items()
    }
    with write_atomically(path) as partial:
        save_file(tensors, partial, metadata)


def read_model_header(path: Path) -> ModelHeader:
    """The recipe and step in a file's metadata. Raises ModelError for a file that no run has written."""
    try:
        with open_file(path) as file:
            (n_bytes,) = struct.unpack("<Q", file.read(N_LENGTH_BYTES))
            if n_bytes > MAX_FILE_HEADER_BYTES:
                raise ValueError(f"its header claims {n_bytes:,} bytes")
            header: Any = json.loads(file.read(n_bytes))
        text = header["__metadata__"][KEY]
        return ModelHeader.model_validate(parse_object(text, f"{path}"))
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err.strerror or err})") from err
    except pydantic.ValidationError as err:
        raise ModelError(f"{path}: not a model's file: {describe_params_error(err)}") from err
    except (ShardError, ValueError, KeyError, TypeError, struct.error, RecursionError) as err:
        raise ModelError(f"{path}: not a model's file, which `pipeline edit --keep-model` writes") from err
