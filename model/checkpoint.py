"""What a resumed run needs, kept without pickles: safetensors beside a json; a folder is whole or absent.

    runs/NAME/checkpoints/step-00001000/
        weights.safetensors    the network that is trained
        ema.safetensors        the average that a sampler uses
        optimizer.safetensors  AdamW's two moments and step, by parameter
        state.json             step, frames drawn, held-out loss, recipe, digest of the dataset

There is no generator to keep: chance is a function of (seed, frames drawn), see ``model.rng``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.recipe import ModelError, Recipe, differences, recipe_from_dict
from model.unet import UNet
from shards.atomic import PARTIAL_SUFFIX

CHECKPOINTS = "checkpoints"
STATE, WEIGHTS, EMA, OPTIMIZER = (
    "state.json", "weights.safetensors", "ema.safetensors", "optimizer.safetensors",
)  # fmt: skip
FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TrainState:
    """A run at one moment."""

    network: UNet
    ema: UNet
    optimizer: torch.optim.AdamW
    step: int = 0
    drawn: int = 0  # frames, over all ranks and epochs: the place in the order of ``shards.rng``


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: Path
    step: int
    drawn: int
    held_out: float | None
    recipe: Recipe
    digest: str


def listed(run: Path) -> list[Checkpoint]:
    """Checkpoints of a run, oldest first. Raises ModelError for one that cannot be read."""
    return [_read_state(path) for path in sorted((run / CHECKPOINTS).glob("step-*"))]


def find_best(saved: list[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest held-out loss; the newest when none was measured."""
    measured = [item for item in saved if item.held_out is not None]
    if measured:
        return min(measured, key=lambda item: item.held_out or 0.0)
    return saved[-1] if saved else None


def save(state: TrainState, run: Path, recipe: Recipe, digest: str, held_out: float | None) -> Checkpoint:
    """Write a checkpoint; it appears when it is whole. One that is there already is replaced."""
    path = run / CHECKPOINTS / f"step-{state.step:08d}"
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # A file of weights alone is enough to build the network again.
    described = {"redub": json.dumps({"format": FORMAT, "recipe": asdict(recipe), "step": state.step})}
    save_file(_tensors(state.network), partial / WEIGHTS, described)
    save_file(_tensors(state.ema), partial / EMA, described)
    save_file(_moments(state), partial / OPTIMIZER)
    story = {
        "format": FORMAT,
        "step": state.step,
        "drawn": state.drawn,
        "held_out": held_out,
        "digest": digest,
        "recipe": asdict(recipe),
    }
    (partial / STATE).write_text(json.dumps(story, indent=1) + "\n")
    for file in partial.iterdir():
        _flush(file)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    _flush(path.parent)
    return Checkpoint(path, state.step, state.drawn, held_out, recipe, digest)


def prune(run: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best."""
    saved = listed(run)
    best = find_best(saved)
    for item in saved[:-keep_last]:
        if item != best:
            shutil.rmtree(item.path)


def check_same(saved: Checkpoint, recipe: Recipe, digest: str) -> None:
    """Raise ModelError unless going on from ``saved`` is going on with the same run."""
    for name, ours, theirs in differences(recipe, saved.recipe):
        raise ModelError(
            f"{saved.path} was trained with {name} {theirs!r}, not {ours!r}; give this one another --run"
        )
    if saved.digest != digest:
        raise ModelError(
            f"{saved.path} was trained on the dataset {saved.digest[:12]}, not {digest[:12]}; "
            f"give this one another --run"
        )


def load_into(state: TrainState, saved: Checkpoint) -> None:
    """Make ``state`` what it was when ``saved`` was written. Raises ModelError when a file is not whole."""
    _fill(state.network, saved.path / WEIGHTS)
    _fill(state.ema, saved.path / EMA)
    parameters = dict(state.network.named_parameters()) if saved.step else {}
    moments = _read_fitting(
        saved.path / OPTIMIZER,
        {
            f"{name}.{moment}": () if moment == "step" else tuple(parameter.shape)
            for name, parameter in parameters.items()
            for moment in MOMENTS
        },
    )
    for name, parameter in parameters.items():
        kept: dict[str, Tensor] = {}
        for moment in MOMENTS:
            value = moments[f"{name}.{moment}"]
            like = parameter if value.dim() else value.to(parameter.device)
            # in the parameter's memory layout, as AdamW itself would have made it
            kept[moment] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.optimizer.state[parameter] = kept
    state.step, state.drawn = saved.step, saved.drawn


def pick(place: Path, *, which: Literal["best", "newest"] = "best") -> Checkpoint:
    """The checkpoint to use of a run, or the one that ``place`` itself is. Raises ModelError without any."""
    if (place / STATE).is_file():
        return _read_state(place)
    saved = listed(place)
    chosen = find_best(saved) if which == "best" else (saved[-1] if saved else None)
    if chosen is None:
        raise ModelError(f"{place}: no checkpoint here; `pipeline train --run {place}` makes one")
    return chosen


def load_network(
    place: Path, *, weights: Literal["ema", "trained"] = "ema", which: Literal["best", "newest"] = "best"
) -> tuple[UNet, Checkpoint]:
    """The network of a run's folder, or of one checkpoint, on the CPU, ready to sample. Raises ModelError."""
    chosen = pick(place, which=which)
    with torch.device("meta"):  # draws no first weights, which would move the caller's generator
        network = UNet(chosen.recipe.network)
    _fill(network, chosen.path / (EMA if weights == "ema" else WEIGHTS), assign=True)
    return network.eval(), chosen


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def _moments(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}.{moment}": state.optimizer.state[parameter][moment].detach().cpu().contiguous()
        for name, parameter in state.network.named_parameters()
        if parameter in state.optimizer.state
        for moment in MOMENTS
    }


def _fill(module: nn.Module, path: Path, *, assign: bool = False) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(_read_fitting(path, wanted), assign=assign)


def _read_fitting(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of these names and shapes, no more and no fewer."""
    tensors = _read_tensors(path)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        wrong = sorted(set(wanted.items()) ^ set(found.items()))
        raise ModelError(
            f"{path}: {len(wrong)} tensors do not fit its recipe, e.g. {wrong[0][0]} {wrong[0][1]}"
        )
    return tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as err:
        raise ModelError(f"{path}: is missing, so this is no whole checkpoint") from err
    except (OSError, safetensors.SafetensorError) as err:
        raise ModelError(f"{path}: not a whole safetensors file ({err})") from err


def _read_state(path: Path) -> Checkpoint:
    file = path / STATE
    try:
        story: Mapping[str, Any] = json.loads(file.read_text())
        if story["format"] != FORMAT:
            raise ModelError(f"format {story['format']!r}, this redub reads {FORMAT}")
        held_out = story["held_out"]
        return Checkpoint(
            path=path,
            step=int(story["step"]),
            drawn=int(story["drawn"]),
            held_out=None if held_out is None or not math.isfinite(held_out) else float(held_out),
            recipe=recipe_from_dict(story["recipe"]),
            digest=str(story["digest"]),
        )
    except FileNotFoundError as err:
        raise ModelError(f"{file}: is missing, so {path} is no whole checkpoint") from err
    except ModelError as err:
        raise ModelError(f"{file}: {err}") from err
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        raise ModelError(f"{file}: not a checkpoint's state ({type(err).__name__}: {err})") from err


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
