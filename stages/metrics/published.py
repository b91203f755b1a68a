"""Load published weights from files of plain tensors, without running any code in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from stages.engine.outcome import StageError

Network = TypeVar("Network", bound=nn.Module)
# The batch counter of a norm layer. Old files lack it, and inference does not use it.
COUNTER = "num_batches_tracked"


def load_published(build: Callable[[], Network], path: Path, *, unused: tuple[str, ...] = ()) -> Network:
    """The network with the tensors of a state dict, on the CPU, frozen and in eval mode.

    Tensors of the file whose names begin with ``unused`` are ignored. Raises StageError when the file holds
    anything but tensors, or when names or shapes do not match the network's.
    """
    with torch.device("meta"):  # no initial weights, which would advance the caller's random state
        network = build()
    tensors = {
        name: value
        for name, value in _read_tensors(path).items()
        if not name.startswith(unused) and not name.endswith(COUNTER)
    }
    state = network.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(COUNTER)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != shapes:
        wrong = sorted(set(expected.items()) ^ set(shapes.items()))
        name, shape = wrong[0]
        raise StageError(
            f"{path}: {len(wrong)} tensors do not fit {type(network).__name__}, e.g. {name} {shape}"
        )
    counters = {name: torch.tensor(0) for name in state if name.endswith(COUNTER)}
    network.load_state_dict(tensors | counters, assign=True)
    return network.float().requires_grad_(False).eval()


def get_device(network: nn.Module) -> torch.device:
    """The device of a network's weights, where its input must be too."""
    return next(network.parameters()).device


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # a damaged file raises anything
        # Torch's own message has many lines and explains how to disable the check.
        raise StageError(f"{path}: not a complete file of plain tensors ({type(err).__name__})") from err
    is_named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not is_named or not all(isinstance(value, Tensor) for value in content.values()):
        raise StageError(f"{path}: holds {type(content).__name__}, expected tensors by name")
    return dict(content)
