"""What ends a command with one line: what a user can fix, and what this machine refuses. The rest are bugs.

``pipeline.main`` asks here for every command, so that none of them needs to know which errors there are.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.errors import make_printable, shorten

# The errors of libraries that report what the system refused as a text.
SYSTEM_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG, errno.EIO,
    errno.EACCES,
)  # fmt: skip
SYSTEM_MESSAGES = (
    *map(os.strerror, SYSTEM_ERRORS), "can't start new thread", "bad_alloc", "can't allocate memory",
    "Symlink loop",  # pathlib's, up to Python 3.12
)  # fmt: skip
# Modules of errors are not imported here: a command that raises one has loaded its module.
LIBRARY_ERRORS = (("pyarrow", "ArrowException"), ("safetensors", "SafetensorError"))
OWN_ERRORS = (
    ("shards.errors", "ShardError"), ("stages.engine.outcome", "StageError"), ("model.recipe", "ModelError"),
    ("stages.synth.spec", "SynthError"),
)  # fmt: skip
# Of a GPU: its message has two sentences for the user, and advice for programmers after them.
GPU_MEMORY_ERRORS = (("torch", "OutOfMemoryError"),)
MAX_LETTERS = 500
CONTEXT = 30  # letters on each side of the one that is wrong


def describe_error(err: BaseException) -> str | None:
    """One line that names the path and what the system said; None when the error is a bug of ours."""
    if isinstance(err, _load_classes(OWN_ERRORS)):
        return make_printable(str(err))
    if isinstance(err, OSError):
        return None if err.errno == errno.EPIPE else _describe_os_error(err)  # click ends quietly at EPIPE
    if isinstance(err, MemoryError):
        return _join("out of memory", str(err))
    if isinstance(err, _load_classes(GPU_MEMORY_ERRORS)):
        return _join("", ". ".join(str(err).split(". ")[:2]))
    if isinstance(err, UnicodeEncodeError) and err.reason == "surrogates not allowed":
        return _join(shorten(err.object[max(0, err.start - CONTEXT) : err.end + CONTEXT]), "it is not UTF-8")
    if isinstance(err, _load_classes(LIBRARY_ERRORS)):
        return _join(type(err).__name__, str(err))
    if isinstance(err, RuntimeError | ImportError):
        if isinstance(err.__cause__, OSError | MemoryError):
            return describe_error(err.__cause__)
        if any(message in str(err) for message in SYSTEM_MESSAGES):
            return _join("", str(err))
    return None


def _describe_os_error(err: OSError) -> str:
    reason = os.strerror(err.errno) if err.errno else str(err)
    if err.filename is None:
        return _join("", err.strerror or reason)
    path = Path(os.fsdecode(err.filename) if isinstance(err.filename, bytes) else str(err.filename))
    if err.errno in (errno.EEXIST, errno.ENOTDIR):
        reason += "; a file is where a folder is expected"
    # as it is written in Python where a line cannot show it
    name = str(path) if str(path).isprintable() else ascii(str(path))
    return _join(name, reason)


def _load_classes(names: Sequence[tuple[str, str]]) -> tuple[type[BaseException], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def _join(name: str, reason: str) -> str:
    line = " ".join(reason.split())
    line = line if len(line) <= MAX_LETTERS else f"{line[:MAX_LETTERS]}..."
    return ": ".join(filter(None, (name, line)))
