"""The log files of a training run: ``metrics.jsonl``, TensorBoard events and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import pydantic
import torch
from PIL import Image
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.dvclive_log import DvcliveLog, open_dvclive_log
from model.recipe import MAX_STEPS, ModelError
from shards.atomic import write_atomically
from shards.files import open_file
from shards.params import describe_mismatch

METRICS = "metrics.jsonl"
PICTURES = "pictures"
TENSORBOARD = "tensorboard"
# The column of metrics.jsonl that selects the best checkpoint, by the recipe's ``best_by``.
SELECTING_LOSSES = {"seeing": "held_out_loss", "listening": "listening_loss"}

MAX_LINE_BYTES = 2**16  # of metrics.jsonl; a line has 400 bytes
MAX_READ_BYTES = 2**26  # of metrics.jsonl in memory: 160,000 lines

Record = Mapping[str, float | int]
Number = Annotated[float, Field(ge=-1e38, le=1e38)] | Annotated[int, Field(ge=-(2**63), le=2**63)]


class MetricsLine(pydantic.BaseModel):
    """A line of ``metrics.jsonl``: numbers by name, and the step they were measured at."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[Annotated[str, Field(max_length=100)], Number]

    step: int = Field(ge=0, le=MAX_STEPS)


class RunLog:
    """Writes into a run's folder. Only the first rank has one."""

    def __init__(self, run: Path, writer: SummaryWriter, dvclive: DvcliveLog | None = None) -> None:
        self.run = run
        self.writer = writer
        self.dvclive = dvclive

    def write_metrics(self, step: int, values: Record) -> None:
        """Append a line to ``metrics.jsonl``, and write every number of it to TensorBoard and dvclive."""
        line = json.dumps({"step": step, **values}, allow_nan=False)
        with (self.run / METRICS).open("a") as file:
            file.write(line + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self.dvclive is not None:
            self.dvclive.write_metrics(step, values)

    def write_picture(self, step: int, name: str, image: Tensor) -> None:
        """Write an image (H, W, 3) uint8 as a PNG file and to TensorBoard."""
        pixels = image.cpu()
        (self.run / PICTURES).mkdir(exist_ok=True)
        with write_atomically(self.run / PICTURES / f"{name}-{step:08d}.png") as partial:
            Image.fromarray(pixels.numpy()).save(partial, "PNG")
        self.writer.add_image(name, pixels, step, dataformats="HWC")


@contextmanager
def open_run_log(run: Path, step: int, dvclive: Path | None = None) -> Iterator[RunLog]:
    """The log of a run that starts or resumes after ``step``; lines of later steps are removed.

    ``dvclive``: a folder for DVC's files too, see ``model.dvclive_log``.
    """
    run.mkdir(parents=True, exist_ok=True)
    _truncate_metrics(run / METRICS, step)
    writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)
    with ExitStack() as open_logs:
        open_logs.callback(writer.close)
        live = None
        if dvclive is not None:
            live = open_logs.enter_context(open_dvclive_log(dvclive, read_metrics(run / METRICS)))
        yield RunLog(run, writer, live)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``, without a last one that a killed run did not finish.

    Raises ModelError for a line that a run does not write, and for a file of more than MAX_READ_BYTES.
    """
    if path.exists() and path.stat().st_size > MAX_READ_BYTES:
        size = path.stat().st_size
        raise ModelError(f"{path}: has {size:,} bytes, expected at most {MAX_READ_BYTES:,}")
    return [json.loads(line) for _, line in _iterate_metrics(path)]


def _iterate_metrics(path: Path) -> Iterator[tuple[int, bytes]]:
    """(step, line) of each complete line, checked. Nothing if there is no file."""
    try:
        with open_file(path, inside=path.parent) as file:
            number = 0
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                number += 1
                yield MetricsLine.model_validate_json(line).step, line
            if len(line) == MAX_LINE_BYTES:
                raise ModelError(f"{path}: line {number + 1} has more than {MAX_LINE_BYTES:,} bytes")
    except FileNotFoundError:
        return
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err.strerror})") from err
    except pydantic.ValidationError as err:
        raise ModelError(f"{path}: line {number} is not a run's: {describe_mismatch(err)}") from err


def _truncate_metrics(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    with write_atomically(path) as partial, partial.open("wb") as file:
        file.writelines(line for step, line in _iterate_metrics(path) if step <= last_step)


def tile_images(rows: list[list[Tensor]], gap: int = 2) -> Tensor:
    """Rows of images (3, H, W) uint8 -> one image (H', W', 3), with a white gap after each."""
    strips = [
        torch.cat([torch.nn.functional.pad(image, (0, gap, 0, gap), value=255) for image in row], dim=2)
        for row in rows
    ]
    return torch.cat(strips, dim=1).permute(1, 2, 0).contiguous()


def draw_box(image: Tensor, box: Tensor) -> Tensor:
    """A copy of (3, H, W) uint8 with a yellow line just inside ``box`` (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (int(side) for side in box)
    result = image.clone()
    yellow = torch.tensor([255, 220, 0], dtype=torch.uint8, device=image.device)[:, None]
    for edge in (
        result[:, y0, x0:x1],
        result[:, y1 - 1, x0:x1],
        result[:, y0:y1, x0],
        result[:, y0:y1, x1 - 1],
    ):
        edge[:] = yellow
    return result
