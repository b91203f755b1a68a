"""What a run tells of itself: a line, ``metrics.jsonl``, TensorBoard, pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from shards.atomic import write_atomically

METRICS = "metrics.jsonl"
PICTURES = "pictures"
TENSORBOARD = "tensorboard"

log = logging.getLogger(__name__)
Record = Mapping[str, float | int | str | None]


class RunLog:
    """Writes below a run's folder. All but the first rank have none."""

    def __init__(self, run: Path, writer: SummaryWriter) -> None:
        self.run = run
        self.writer = writer

    def record(self, step: int, values: Record) -> None:
        """One line of ``metrics.jsonl``, and every number of it as a scalar."""
        line = json.dumps({"step": step, **values}, allow_nan=False)
        with (self.run / METRICS).open("a") as file:
            file.write(line + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """An image (H, W, 3) uint8, as a file and in TensorBoard."""
        pixels = image.cpu()
        (self.run / PICTURES).mkdir(exist_ok=True)
        with write_atomically(self.run / PICTURES / f"{name}-{step:08d}.png") as partial:
            Image.fromarray(pixels.numpy()).save(partial, "PNG")
        self.writer.add_image(name, pixels, step, dataformats="HWC")


@contextmanager
def opened(run: Path, step: int) -> Iterator[RunLog]:
    """The journal of a run that starts, or goes on, after ``step``: later lines were never so."""
    run.mkdir(parents=True, exist_ok=True)
    _cut_back(run / METRICS, step)
    writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)
    try:
        yield RunLog(run, writer)
    finally:
        writer.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Lines of ``metrics.jsonl``; a last one that a kill cut short is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _cut_back(path: Path, step: int) -> None:
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    if path.is_file():
        with write_atomically(path) as partial:
            partial.write_text("".join(json.dumps(record) + "\n" for record in kept))


def tile_images(rows: list[list[Tensor]], gap: int = 2) -> Tensor:
    """Images (3, H, W) uint8 in rows -> one picture (H', W', 3), with a gap between them."""
    lines = [
        torch.cat([torch.nn.functional.pad(image, (0, gap, 0, gap), value=255) for image in row], dim=2)
        for row in rows
    ]
    return torch.cat(lines, dim=1).permute(1, 2, 0).contiguous()


def framed(image: Tensor, box: Tensor) -> Tensor:
    """A copy of (3, H, W) uint8 with a yellow line just inside ``box`` (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (int(side) for side in box)
    drawn = image.clone()
    yellow = torch.tensor([255, 220, 0], dtype=torch.uint8, device=image.device)[:, None]
    for edge in (drawn[:, y0, x0:x1], drawn[:, y1 - 1, x0:x1], drawn[:, y0:y1, x0], drawn[:, y0:y1, x1 - 1]):
        edge[:] = yellow
    return drawn
