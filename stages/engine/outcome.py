"""Where a dataset's files lie while it is built, and what a stage gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from shards.ledger import DROPPED, OK, Status

Item = TypeVar("Item")
Result = TypeVar("Result")


class StageError(Exception):
    """Something the user can mend; the command prints it as one line."""


class Drop(Exception):
    """A rule says that this clip cannot be used. Raised in the work on one clip."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Mapper(Protocol):
    """Calls ``task`` on every item, somewhere, and yields the results in any order.

    ``sizes`` are the frames that each item stands for; they drive the progress bar. ``pipeline.runner``
    does it with Dask; ``one_by_one`` does it here and now.
    """

    def __call__(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        label: str,
        sizes: Sequence[int] | None = None,
    ) -> Iterator[Result]: ...


def one_by_one(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    label: str,
    sizes: Sequence[int] | None = None,
) -> Iterator[Result]:
    """The simplest Mapper: this process, in order."""
    return map(task, items)


@dataclass(frozen=True, slots=True)
class Work:
    """The folders of one dataset under construction."""

    corpus: str  # grid, crema-d or folder
    raw: Path  # read, never written
    root: Path  # stage outputs: root/<stage>/<part>.parquet
    out: Path  # the finished shards
    cache: Path  # content-keyed results; outside every DVC out, safe to delete

    def stage(self, name: str) -> Path:
        """Folder of a stage's own output."""
        return self.root / name

    @property
    def ledger(self) -> Path:
        """One row for every file found, with what became of it so far."""
        return self.root / "clips.parquet"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one clip in one stage. ``facts`` are whatever the stage found out."""

    status: Status = OK
    code: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def dropped(cls, drop: Drop) -> Outcome:
        return cls(DROPPED, drop.code, drop.reason)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        return cls(**{**data, "notes": tuple(data["notes"])})


@dataclass(slots=True)
class Report:
    """What a stage did, for people and for ``--json``."""

    stage: str
    clips: int = 0
    frames: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # rows by code, "ok" first
    parts: dict[str, int] = field(default_factory=lambda: {"total": 0, "kept": 0, "built": 0})
    clips_computed: int = 0  # clips whose work was really done, not taken from the cache
    seconds: float = 0.0

    @property
    def kept(self) -> int:
        return self.counts.get(OK, 0)
