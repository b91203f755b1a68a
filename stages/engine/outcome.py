"""The outcomes of a clip, and the error that a user can fix."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from shards.errors import shorten, shorten_message
from shards.ledger import DROPPED, OK, Status
from shards.table import MAX_TEXT_BYTES

# The system's reasons that are no clip's fault: every other clip would fail in the same way.
MACHINE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})


class StageError(Exception):
    """Something the user can fix; the command prints it as one line."""


class Drop(Exception):
    """A rule says that this clip cannot be used. Raised in the work on one clip."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Turn a Drop into the StageError of a command that cannot do without this file."""
    try:
        yield
    except Drop as drop:
        raise StageError(f"{path}: {drop.reason}") from drop


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one stage for one clip. ``facts`` are whatever the stage measured.

    A reason or a note that is too long for a table is shortened: one clip would stop the whole build.
    """

    status: Status = OK
    code: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # ``from_json`` refuses other types afterwards
        if isinstance(self.reason, str):
            object.__setattr__(self, "reason", shorten_text(self.reason))
        notes = tuple(shorten_text(note) if isinstance(note, str) else note for note in self.notes)
        object.__setattr__(self, "notes", notes)

    @classmethod
    def from_drop(cls, drop: Drop) -> Outcome:
        return cls(DROPPED, drop.code, drop.reason)

    def to_columns(self) -> dict[str, str]:
        """The columns of tables that say whether a clip is used, and why not."""
        return {"status": self.status, "code": self.code, "reason": self.reason}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """What ``to_json`` made. Raises ValueError for values of other types."""
        outcome = cls(**{**data, "notes": tuple(data["notes"])})
        texts = (outcome.code, outcome.reason, *outcome.notes)
        is_plain = all(isinstance(text, str) for text in texts) and isinstance(outcome.facts, dict)
        if outcome.status not in get_args(Status) or not is_plain:
            raise ValueError(f"{shorten(data)} is no outcome")
        return outcome


def shorten_text(text: str) -> str:
    """A text of any length for a table: the text itself, or its beginning and end if it is too long."""
    is_long = len(text.encode(errors="replace")) > MAX_TEXT_BYTES
    return shorten_message(text) if is_long else text
