"""The contract of the dataset stages: ``run(work, parts, params, context) -> Report``.

``work`` says where files are, ``parts`` which clips are written together, ``params`` are the stage's own
section of params.yaml, and ``context`` is what all stages share. The stages from which parts are planned,
``clips`` and ``cut``, get none, and ``cut`` gets three sections, those in ``stages.cut.run.CutSettings``.
``pipeline.dataset_stages`` calls the stages in order and carries the ledger from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from shards.ledger import OK, count_by_code
from stages.engine.sandbox import LimitParams

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Work:
    """The folders of one dataset that is being built."""

    corpus: str  # a name in stages.corpora.CORPORA
    raw: Path  # read, never written
    root: Path  # stage outputs: root/<stage>/<part>.parquet
    out: Path  # the finished shards
    cache: Path  # content-keyed results; outside every DVC out, safe to delete

    def stage_folder(self, stage: str) -> Path:
        """Folder of a stage's own output."""
        return self.root / stage

    def part_path(self, stage: str, part_name: str) -> Path:
        """A stage's output for one part."""
        return self.root / stage / f"{part_name}.parquet"

    @property
    def ledger(self) -> Path:
        """One row for every file in ``raw``, with its outcome so far."""
        return self.root / "clips.parquet"


class Mapper(Protocol):
    """Calls ``task`` on every item, somewhere, and yields the results in any order.

    ``sizes`` are the frames in each item; they drive the progress bar. ``pipeline.runner`` implements it
    with Dask; ``run_one_by_one`` runs in this process.
    """

    def __call__(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        label: str,
        sizes: Sequence[int] | None = None,
    ) -> Iterator[Result]: ...


def run_one_by_one(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    label: str,
    sizes: Sequence[int] | None = None,
) -> Iterator[Result]:
    """The simplest ``Mapper``: this process, in order."""
    return map(task, items)


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage shares."""

    map_tasks: Mapper = run_one_by_one
    limits: LimitParams = field(default_factory=LimitParams)  # on the work on one clip
    workers: int = 1  # threads for work that needs no sandbox, such as hashing
    dataset_params: Mapping[str, Any] = field(default_factory=dict)  # of all stages, for dataset.json
    licence: str = ""  # of the clips, where the corpus itself does not know; for dataset.json


@dataclass(slots=True)
class Report:
    """What a stage did, for people and for ``--json``."""

    stage: str
    clips: int = 0
    frames: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # rows by code, "ok" first
    n_left_out: int = 0  # of these clips: spans of files that are no clips, so that nothing is lost by them
    parts: dict[str, int] = field(default_factory=lambda: {"total": 0, "kept": 0, "built": 0})
    clips_computed: int = 0  # clips that were computed, not read from the cache
    seconds: float = 0.0

    @property
    def n_usable(self) -> int:
        """Clips that passed this stage."""
        return self.counts.get(OK, 0)

    def count_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Fill in the number of clips and their codes from ledger rows or outcomes."""
        self.clips = len(rows)
        self.counts = count_by_code(rows)
