"""Where a run starts that does not start from nothing: the averaged weights of another run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint import EMA, StartRecord, find_checkpoint, load_averaged_weights
from model.model_file import read_model_header
from model.recipe import Recipe
from model.unet import UNet
from shards.checksum import file_sha256


@dataclass(frozen=True, slots=True)
class Start:
    """Averaged weights on disk, and the recipe that they were trained with."""

    weights: Path
    recipe: Recipe
    record: StartRecord  # what the files of a run that starts here say of it
    run: Path | None = None  # the folder of the run, which may say how its sound was made

    def load_network(self) -> UNet:
        """The network with these weights, on the CPU in evaluation mode. Raises ModelError."""
        with torch.device("meta"):  # without initial weights, which would advance the caller's generator
            network = UNet(self.recipe.network)
        load_averaged_weights(network, self.weights)
        return network.eval()


def find_start(name: str) -> Start:
    """The start that a user names: the folder of a run or of one checkpoint, or a model's file.

    Of a run it is the best checkpoint. Raises ModelError when there is none.
    """
    path = Path(name)
    if path.is_file():
        header = read_model_header(path)
        weights, recipe, step, run = path, header.recipe, header.step, None
    else:
        checkpoint = find_checkpoint(path)
        weights, recipe, step = checkpoint.path / EMA, checkpoint.recipe, checkpoint.step
        run = checkpoint.path.absolute().parent.parent
    return Start(weights, recipe, StartRecord(name=name, sha256=file_sha256(weights), step=step), run)
