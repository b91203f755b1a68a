"""The place of this process among those that ``torchrun`` started, as its environment says it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from shards.errors import ShardError, shorten

MAX_RANKS = 2**20


@dataclass(frozen=True, slots=True)
class Place:
    """One process of ``world`` in all, and of ``local_world`` on this machine; alone where none are named."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def read_place() -> Place:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE. Raises ShardError for another value."""
    world = _read_number("WORLD_SIZE", default=1, low=1)
    return Place(
        rank=_read_number("RANK", default=0, high=world - 1),
        world=world,
        local_rank=_read_number("LOCAL_RANK", default=0),
        local_world=_read_number("LOCAL_WORLD_SIZE", default=1, low=1),
    )


def check_meeting_point(place: Place) -> None:
    """Raise ShardError unless the environment says where the processes meet."""
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if place.world > 1 and (missing := [name for name in names if not os.environ.get(name)]):
        raise ShardError(
            f"WORLD_SIZE is {place.world}, and {', '.join(missing)} not set; start with torchrun, which sets "
            "them, or unset WORLD_SIZE"
        )
    if place.world > 1:
        _read_number("MASTER_PORT", default=0, high=2**16 - 1)


def _read_number(name: str, *, default: int, low: int = 0, high: int = MAX_RANKS) -> int:
    text = os.environ.get(name) or str(default)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not low <= number <= high:
        raise ShardError(f"{name} is {shorten(text)}, expected a number from {low} to {high} as by torchrun")
    return number
