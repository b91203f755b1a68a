"""The members of a tar that may come from anyone.

Python's tarfile follows a header's size wherever it leads: a negative one backwards, for ever, and one of
2**62 bytes forwards, through as many reads. So each size is compared with the file's before the next header
is looked for.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, Literal

# What tarfile raises for headers that are none, besides OSError: a row of headers of headers is read by
# recursion, and for a long name as much memory is asked for as its header declares.
TAR_ERRORS = (
    tarfile.TarError, ValueError, EOFError, OverflowError, IndexError, RecursionError, MemoryError,
)  # fmt: skip
FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)  # neither links, nor files with holes


def iterate_members(
    file: Any, n_bytes: int, mode: Literal["r:", "r|"] = "r:"
) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes] | None]]:
    """The members of an open tar of at most ``n_bytes``, in order, each with a function that reads it.

    A member that is no plain file has none. In the mode ``r|``, for streams, a member is read before the next
    one is asked for. Raises ValueError for what is no tar, OSError where the file cannot be read.
    """
    try:
        with tarfile.open(fileobj=file, mode=mode) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
                if not 0 <= member.size <= n_bytes - member.offset_data:
                    raise ValueError(f"a member claims {member.size} bytes of {n_bytes}")
                is_file = member.type in FILE_TYPES and not member.sparse
                yield member, functools.partial(_read_member, tar, member) if is_file else None
    except TAR_ERRORS as err:
        raise ValueError(str(err) or f"{type(err).__name__} in its headers") from err


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None, "it is a plain file"
    return stream.read()
