"""Where a run starts that does not start from nothing: the averaged weights of another run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import find_checkpoint, hash_weights, load_network
from model.recipe import Recipe
from model.start_record import StartRecord
from model.unet import UNet


@dataclass(frozen=True, slots=True)
class Start:
    """Averaged weights on disk, and the recipe that they were trained with."""

    path: Path  # a checkpoint's folder or a published file
    recipe: Recipe
    record: StartRecord  # what the files of a run that starts here say of it

    def load_network(self) -> UNet:
        """The network with these weights, on the CPU in evaluation mode. Raises ModelError."""
        return load_network(self.path)[0]


def find_start(path: Path) -> Start:
    """The start in the folder of a run (its best checkpoint) or of one checkpoint, or a published file.

    Raises ModelError when there is none.
    """
    checkpoint = find_checkpoint(path)
    record = StartRecord(name=str(path), sha256=hash_weights(checkpoint), step=checkpoint.step)
    return Start(checkpoint.path, checkpoint.recipe, record)
