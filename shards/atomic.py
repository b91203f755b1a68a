"""Write files and folders that appear under their names complete or not at all, even after a power failure.

While it is written, a file has a partial name, ``.redub-MACHINE-PROCESS-TOKEN.partial``, that no other
program gives to a file. So what a killed process left behind is told apart from a user's own
``film.mp4.partial``, and from the partial files of a process that is still at work.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

PARTIAL_NAME = re.compile(r"\.redub-([0-9a-f]{8})-([0-9]{1,10})-[0-9a-f]{12}\.partial")
# Whether a process of another machine is alive is not known here. One that writes changes its file's time.
ABANDONED_SECONDS = 24 * 3600.0

_own_names: set[str] = set()  # of the partial files that this process is writing


class WriteError(OSError):
    """The system refuses to write a file or folder. ``filename`` is its final name, never the partial one."""


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path to write to. It becomes ``path`` when the block ends without an exception.

    An OSError that names no file or the partial one is raised as WriteError, which names ``path``.
    """
    with _reserve_partial(path) as partial:
        yield partial
        move_into_place(partial, path)


def check_writable(path: Path) -> None:
    """Raise WriteError unless a file can be made beside ``path``, as ``write_atomically`` makes one."""
    with _reserve_partial(path) as partial:
        partial.touch()


@contextlib.contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a folder to write files to. It becomes ``path``, and replaces it, as in ``write_atomically``."""
    with _reserve_partial(path) as partial:
        partial.mkdir()
        yield partial
        for written in (*partial.iterdir(), partial):
            sync_to_disk(written)
        with contextlib.ExitStack() as stack:
            if path.exists():
                path.rename(stack.enter_context(_reserve_partial(path)))
            partial.rename(path)
            sync_to_disk(path.parent)


def remove_atomically(path: Path) -> None:
    """Remove a folder. It loses its name first, so that a killed process leaves no half of it there."""
    with _reserve_partial(path) as partial:
        path.rename(partial)


@contextlib.contextmanager
def make_scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in ``parent``. It is removed afterwards."""
    with _reserve_partial(parent / "scratch") as partial:
        partial.mkdir()
        yield partial


def move_into_place(partial: Path, path: Path) -> None:
    """Flush ``partial`` to the disk and rename it to ``path``, which it replaces."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    if os.name == "posix":
        sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        # Network file systems, such as SMB, flush files alone.
        if err.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def remove_partials(folder: Path) -> None:
    """Remove the partial files and folders below ``folder`` that killed processes left there.

    Those of living processes stay, and so do files of any other name. A process of another machine counts as
    dead when its file has not changed for a day.
    """
    for parent, folder_names, file_names in os.walk(folder):
        for name in [*folder_names, *file_names]:
            path = Path(parent, name)
            if _is_abandoned(path):
                _remove(path)


@contextlib.contextmanager
def _reserve_partial(path: Path) -> Iterator[Path]:
    """Yield an unused partial name beside ``path``. What has this name at the end is removed."""
    name = f".redub-{_identify_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.partial"
    partial = path.with_name(name)  # of a fixed length: the longest file name leaves no room for a suffix
    _own_names.add(name)
    try:
        _make_folder(path.parent)
        _remove_partials_in(path.parent)
        yield partial
    except WriteError:
        raise
    except OSError as err:
        is_of_network = isinstance(err, ConnectionError | TimeoutError)
        # PyAV writes a protocol before the name
        names_another = err.filename is not None and not str(err.filename).endswith(name)
        if is_of_network or err.errno is None or names_another:
            raise
        raise WriteError(err.errno, os.strerror(err.errno), os.fspath(path)) from err
    finally:
        _remove(partial)
        _own_names.discard(name)


@functools.lru_cache(maxsize=1024)  # a process looks once at each folder that it writes to
def _remove_partials_in(folder: Path) -> None:
    """As ``remove_partials``, in the folder itself: an edit or a report writes to a folder of the user's."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry.path) for entry in entries if PARTIAL_NAME.fullmatch(entry.name)]:
            if _is_abandoned(path):
                _remove(path)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise WriteError(err.errno, err.strerror, err.filename) from err


def _is_abandoned(path: Path) -> bool:
    """Whether this is a partial file, and the process that wrote it is gone."""
    match = PARTIAL_NAME.fullmatch(path.name)
    if match is None:
        return False
    machine, process = match[1], int(match[2])
    if machine != _identify_machine():
        try:
            return time.time() - path.lstat().st_mtime > ABANDONED_SECONDS
        except OSError:
            return False
    if process == os.getpid():  # in a container, a killed process often had the same number
        return path.name not in _own_names
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return not _is_hidden(process)
    except psutil.Error:
        return False


def _is_hidden(process: int) -> bool:
    """Whether a process exists that /proc does not show, as on machines that hide those of other users."""
    if os.name != "posix":  # os.kill would end it there
        return False
    try:
        os.kill(process, 0)  # sends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


@functools.cache
def _identify_machine() -> str:
    """Eight letters for this machine, or for this container: the numbers of its processes are its own."""
    names = [platform.node()]  # many machines are called localhost, and containers lack the others
    with contextlib.suppress(OSError):
        names.append(Path("/etc/machine-id").read_text())
    with contextlib.suppress(OSError):
        names.append(os.fspath(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def _remove(path: Path) -> None:
    """Remove a partial file or folder as far as the system allows; what is left is in nobody's way."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
