"""Checkpoints: everything that a resumed run needs, as safetensors and JSON, without pickles.

    runs/NAME/checkpoints/step-00001000/
        weights.safetensors    the network that is trained
        ema.safetensors        the moving average of the weights, which sampling uses
        optimizer.safetensors  AdamW's two moments and step, by parameter
        state.json             step, position in the epoch order, held-out loss and how many frames and clips
                               it was measured on, recipe, digest of the data; where the run started, if from
                               another run's weights

A checkpoint's folder appears when it is complete. No generator state is saved: random numbers are a function
of (seed, position), see ``shards.rng``.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pydantic
import safetensors
import torch
from pydantic import ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor

from model.published_file import (
    PublishedInfo,
    is_published_file,
    load_published_network,
    read_published_info,
)
from model.recipe import MAX_BATCH, MAX_STEPS, ModelError, Recipe, compare_recipes, recipe_to_dict
from model.start_record import StartRecord
from model.tensor_file import MAX_MOMENT, get_tensors, load_weights, read_tensors
from model.unet import UNet, make_empty_network
from shards.atomic import WriteError, remove_atomically, write_folder_atomically
from shards.checksum import file_sha256
from shards.files import read_file
from shards.params import describe_mismatch

CHECKPOINTS = "checkpoints"
STATE, WEIGHTS, EMA, OPTIMIZER = (
    "state.json", "weights.safetensors", "ema.safetensors", "optimizer.safetensors",
)  # fmt: skip
FORMAT = 1
NAME = re.compile(r"step-[0-9]{8,}")  # no other folder is read or removed
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
MAX_STATE_BYTES = 2**20  # one has 3 KB

Digest = Annotated[str, Field(max_length=200)]  # a sha256 has 64 digits

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """A run at one moment: everything that training changes."""

    network: UNet
    ema: UNet
    optimizer: torch.optim.AdamW
    step: int = 0
    position: int = 0  # frames trained on, over all ranks and epochs: the next position of the epoch order


class HeldOutSize(NamedTuple):
    """What a held-out loss was measured on: with other numbers it is that of other frames."""

    frames: int
    clips: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk, or a published model."""

    path: Path  # a folder; of a published model its file
    step: int
    position: int
    held_out_loss: float | None  # None: not measured at this step
    recipe: Recipe
    digest: str
    start: StartRecord | None = None
    held_out_size: HeldOutSize | None = None  # of the loss; None: an older redub did not write it


class StateFile(pydantic.BaseModel):
    """The content of ``state.json``. A number that an older redub's recipe lacks has its default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    step: int = Field(ge=0, le=MAX_STEPS)
    drawn: int = Field(ge=0, le=MAX_STEPS * MAX_BATCH)
    held_out: float | None  # may be NaN or infinite: a loss that was
    held_out_frames: int | None = Field(default=None, ge=1, le=10**9)
    held_out_clips: int | None = Field(default=None, ge=1, le=10**9)
    digest: Digest
    recipe: Recipe
    start: StartRecord | None = None  # of a run that started from another


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first.

    One that cannot be read is skipped with a warning when there is a newer one that can; else ModelError,
    which names the newest that can be read.
    """
    checkpoints: list[Checkpoint] = []
    newest_error: tuple[Path, ModelError] | None = None
    paths = [path for path in (run / CHECKPOINTS).glob("step-*") if NAME.fullmatch(path.name)]
    for path in sorted(paths, key=lambda path: int(path.name.removeprefix("step-")), reverse=True):
        try:
            checkpoints.append(_read_state(path))
        except ModelError as err:
            if checkpoints:
                _warn_once(f"{err}; skipped, since there are newer ones")
            elif newest_error is None:
                newest_error = path, err
    if newest_error is not None:
        path, cause = newest_error
        raise ModelError(f"{cause}{_advise_older(path, checkpoints)}") from cause
    return checkpoints[::-1]


def _advise_older(path: Path, readable: list[Checkpoint]) -> str:
    """What to do about a damaged checkpoint, where one of those that can be read is older."""
    step = int(path.name.removeprefix("step-"))
    older = max((item.step for item in readable if item.step < step), default=None)
    return "" if older is None else f"; delete {path} to go on from step {older}"


@functools.cache
def _warn_once(message: str) -> None:  # a run lists its checkpoints at each save
    log.warning(message)


def find_best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest held-out loss; the newest if none was measured.

    Only losses of the same frames as the newest loss are compared; one of an older redub, which did not write
    its frames, counts as such.
    """
    measured = [item for item in checkpoints if item.held_out_loss is not None]
    if not measured:
        return checkpoints[-1] if checkpoints else None
    size = measured[-1].held_out_size
    comparable = [item for item in measured if not size or item.held_out_size in (size, None)]
    return min(comparable, key=lambda item: item.held_out_loss or 0.0)


def save_checkpoint(
    state: TrainState,
    run: Path,
    recipe: Recipe,
    digest: str,
    held_out_loss: float | None,
    start: StartRecord | None = None,
    held_out_size: HeldOutSize | None = None,
) -> Checkpoint:
    """Write a checkpoint, which appears when it is complete. Replaces one of the same step."""
    path = run / CHECKPOINTS / f"step-{state.step:08d}"
    # A file of weights alone is enough to rebuild the network.
    metadata = {"redub": json.dumps({"format": FORMAT, "recipe": recipe_to_dict(recipe), "step": state.step})}
    content = {
        "format": FORMAT,
        "step": state.step,
        "drawn": state.position,
        "held_out": held_out_loss,
        "digest": digest,
        "recipe": recipe_to_dict(recipe),
    }
    if held_out_loss is not None and held_out_size is not None:
        content |= {"held_out_frames": held_out_size.frames, "held_out_clips": held_out_size.clips}
    if start is not None:
        content["start"] = start.model_dump()
    with write_folder_atomically(path) as partial:
        try:
            save_file(get_tensors(state.network), partial / WEIGHTS, metadata)
            save_file(get_tensors(state.ema), partial / EMA, metadata)
            save_file(_get_moments(state), partial / OPTIMIZER)
        except safetensors.SafetensorError as err:  # the way in which it reports a full disk
            number = re.search(r"os error (\d+)", str(err))
            if number is None:
                raise
            raise WriteError(int(number[1]), os.strerror(int(number[1])), str(path)) from err
        (partial / STATE).write_text(json.dumps(content, indent=1) + "\n")
    return Checkpoint(path, state.step, state.position, held_out_loss, recipe, digest, start, held_out_size)


def prune_checkpoints(run: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best, by each way that it was measured."""
    checkpoints = list_checkpoints(run)
    best = [find_best(checkpoints)]
    for size in {item.held_out_size for item in checkpoints if item.held_out_loss is not None}:
        best.append(find_best([item for item in checkpoints if item.held_out_size == size]))
    for item in checkpoints[:-keep_last]:
        if item not in best:
            remove_atomically(item.path)


def check_resumable(
    checkpoint: Checkpoint, recipe: Recipe, digest: str, start: StartRecord | None = None
) -> None:
    """Raise ModelError unless ``checkpoint`` is of the same start, the same recipe and the same dataset."""
    _check_start(checkpoint, start)
    for name, new, old in compare_recipes(recipe, checkpoint.recipe):
        raise ModelError(
            f"{checkpoint.path} was trained with {name} {old!r}, not {new!r}; give this one another --run"
        )
    _check_decay(checkpoint, recipe)
    if checkpoint.digest != digest:
        raise ModelError(
            f"{checkpoint.path} was trained on the dataset {checkpoint.digest[:12]}, not {digest[:12]}; "
            f"give this one another --run"
        )


def _check_start(checkpoint: Checkpoint, start: StartRecord | None) -> None:
    """Raise ModelError unless a run started from these weights; their name may be another by now."""
    old = checkpoint.start
    if old is None and start is not None:
        raise ModelError(
            f"{checkpoint.path} started from nothing, not from {start}; give this one another --run"
        )
    if old is not None and start is None:
        raise ModelError(f"{checkpoint.path} started from {old}; resume it with --start-from {old.name}")
    if old is not None and start is not None and old.sha256 != start.sha256:
        raise ModelError(
            f"{checkpoint.path} started from {old}, not from {start}; give this one another --run"
        )


def _check_decay(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise ModelError where a changed decay would begin, or has begun, before the checkpoint's step."""
    ends = {(each.steps, each.optim.decay_steps) for each in (recipe, checkpoint.recipe)}
    start, decay_steps = min((steps - decay, decay) for steps, decay in ends)
    if len(ends) > 1 and decay_steps and checkpoint.step > start:
        raise ModelError(
            f"{checkpoint.path} is of step {checkpoint.step}, but the learning rate falls from step {start} "
            f"on; steps and optim.decay_steps can change only before that; give this one another --run"
        )


def restore_state(state: TrainState, checkpoint: Checkpoint) -> None:
    """Set ``state`` to what it was when ``checkpoint`` was written. Raises ModelError for a damaged file."""
    try:
        _restore_tensors(state, checkpoint)
    except ModelError as err:
        readable = list_checkpoints(checkpoint.path.parent.parent)
        raise ModelError(f"{err}{_advise_older(checkpoint.path, readable)}") from err
    state.step, state.position = checkpoint.step, checkpoint.position


def _restore_tensors(state: TrainState, checkpoint: Checkpoint) -> None:
    load_weights(state.network, checkpoint.path / WEIGHTS)
    load_weights(state.ema, checkpoint.path / EMA)
    parameters = dict(state.network.named_parameters()) if checkpoint.step else {}
    shapes = {
        f"{name}.{moment}": () if moment == "step" else tuple(parameter.shape)
        for name, parameter in parameters.items()
        for moment in MOMENTS
    }
    moments = read_tensors(checkpoint.path / OPTIMIZER, shapes, max_value=MAX_MOMENT)
    for name, parameter in parameters.items():
        parameter_state: dict[str, Tensor] = {}
        for moment in MOMENTS:
            value = moments[f"{name}.{moment}"]
            like = parameter if value.dim() else value.to(parameter.device)
            # in the memory layout of the parameter, as AdamW itself allocates it
            parameter_state[moment] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.optimizer.state[parameter] = parameter_state


def find_checkpoint(path: Path, *, which: Literal["best", "newest"] = "best") -> Checkpoint:
    """A checkpoint in ``path``, or ``path`` itself if it is one or a published file.

    Raises ModelError if there is none.
    """
    if is_published_file(path):
        _refuse_part(path)
        return _describe_published(path, read_published_info(path))
    if (path / STATE).is_file():
        return _read_state(path)
    checkpoints = list_checkpoints(path)
    newest = checkpoints[-1] if checkpoints else None
    checkpoint = find_best(checkpoints) if which == "best" else newest
    if checkpoint is None:
        raise ModelError(f"{path}: no checkpoint here; `pipeline train --run {path}` makes one")
    return checkpoint


def find_run(path: Path) -> Path:
    """What tells how a network's dataset was made: the folder of its run, or a published file itself.

    ``path`` is a run, a checkpoint or a published file. Raises ModelError if there is none.
    """
    checkpoint = find_checkpoint(path).path.absolute()
    return checkpoint if is_published_file(checkpoint) else checkpoint.parent.parent


def hash_weights(checkpoint: Checkpoint) -> str:
    """The sha256 of the file of the weights that sampling uses."""
    path = checkpoint.path
    return file_sha256(path if is_published_file(path) else path / EMA)


def load_network(
    path: Path, *, weights: Literal["ema", "trained"] = "ema", which: Literal["best", "newest"] = "best"
) -> tuple[UNet, Checkpoint]:
    """The network of a run, of one checkpoint or of a published file, on the CPU in evaluation mode.

    A published file has one network, whatever ``weights`` and ``which`` say. Raises ModelError.
    """
    if is_published_file(path):
        _refuse_part(path)
        network, info = load_published_network(path)
        return network, _describe_published(path, info)
    checkpoint = find_checkpoint(path, which=which)
    network = make_empty_network(checkpoint.recipe.network)
    load_weights(network, checkpoint.path / (EMA if weights == "ema" else WEIGHTS), assign=True)
    return network.eval(), checkpoint


def _describe_published(path: Path, info: PublishedInfo) -> Checkpoint:
    return Checkpoint(path, info.step, 0, None, info.recipe, info.digest, info.start)


def _refuse_part(path: Path) -> None:
    """Raise ModelError for a file of a checkpoint: it holds no published model."""
    if (path.parent / STATE).is_file():
        raise ModelError(f"{path}: is a part of a checkpoint; name its folder, {path.parent}")


def _get_moments(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}.{moment}": state.optimizer.state[parameter][moment].detach().cpu().contiguous()
        for name, parameter in state.network.named_parameters()
        if parameter in state.optimizer.state
        for moment in MOMENTS
    }


def _read_state(path: Path) -> Checkpoint:
    file = path / STATE
    try:
        data = read_file(file, MAX_STATE_BYTES, inside=path)
        content = StateFile.model_validate_json(data)
    except FileNotFoundError as err:
        raise ModelError(f"{file}: is missing, so {path} is not a complete checkpoint") from err
    except OSError as err:
        raise ModelError(f"{file}: cannot be read ({err.strerror})") from err
    except pydantic.ValidationError as err:
        raise ModelError(f"{file}: not a checkpoint's state: {describe_mismatch(err, StateFile)}") from err
    loss = content.held_out
    return Checkpoint(
        path=path,
        step=content.step,
        position=content.drawn,
        held_out_loss=loss if loss is not None and math.isfinite(loss) else None,
        recipe=content.recipe,
        digest=content.digest,
        start=content.start,
        held_out_size=HeldOutSize(content.held_out_frames, content.held_out_clips)
        if content.held_out_frames is not None and content.held_out_clips is not None
        else None,
    )
