"""Weights that others have published: tensors of known names and shapes, and nothing that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.recipe import ModelError

Network = TypeVar("Network", bound=nn.Module)
# How many batches a norm has seen. Old files lack it, and a network that is only used does not ask.
COUNTER = "num_batches_tracked"


def load_published(build: Callable[[], Network], path: Path, *, unused: tuple[str, ...] = ()) -> Network:
    """The network with the tensors of a state dict, on the CPU, to be used and not trained.

    Of the file's tensors those whose names begin with ``unused`` are left out. Raises ModelError when it
    holds anything but tensors, or not just those that the network has.
    """
    with torch.device("meta"):  # draws no first weights, which would move the caller's generator
        network = build()
    tensors = {
        name: value
        for name, value in _read_tensors(path).items()
        if not name.startswith(unused) and not name.endswith(COUNTER)
    }
    state = network.state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(COUNTER)}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        wrong = sorted(set(wanted.items()) ^ set(found.items()))
        name, shape = wrong[0]
        raise ModelError(
            f"{path}: {len(wrong)} tensors do not fit {type(network).__name__}, e.g. {name} {shape}"
        )
    counters = {name: torch.tensor(0) for name in state if name.endswith(COUNTER)}
    network.load_state_dict(tensors | counters, assign=True)
    return network.float().requires_grad_(False).eval()


def select_device(network: nn.Module) -> torch.device:
    """Where its weights are, and so where its input goes."""
    return next(network.parameters()).device


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # a damaged file raises whatever it likes
        # Torch's own words go over many lines and tell how to switch the guard off.
        raise ModelError(f"{path}: not a whole file of plain tensors ({type(err).__name__})") from err
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if not named or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path}: holds {type(found).__name__}, expected tensors by name")
    return dict(found)
