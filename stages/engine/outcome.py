"""The outcomes of a clip, and the error that a user can fix."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from shards.errors import shorten
from shards.ledger import DROPPED, OK, Status

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one stage for one clip. ``facts`` are whatever the stage measured."""

    status: Status = OK
    code: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_drop(cls, drop: Drop) -> Outcome:
        return cls(DROPPED, drop.code, drop.reason)

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
