"""Files appear complete or not at all; what a killed process left is removed, and nothing else ever is."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.atomic import (
    ABANDONED_SECONDS,
    PARTIAL_NAME,
    WriteError,
    _identify_machine,
    make_scratch_folder,
    remove_atomically,
    remove_partials,
    sync_to_disk,
    write_atomically,
    write_folder_atomically,
)
from tests.mounting import mount_before
from tests.waiting import wait_until

TOKEN = "0123456789ab"


def name_partial(process: int, machine: str = "") -> str:
    return f".redub-{machine or _identify_machine()}-{process}-{TOKEN}.partial"


@pytest.fixture
def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_user_s_files_stay_whatever_their_names(tmp_path: Path) -> None:
    files = ["film.mp4.partial", "x.partial", ".hidden.partial", ".partial", ".a.tar.0123456789ab.partial",
             ".redub.partial", f".redub-{TOKEN}.partial", f"redub-00000000-1-{TOKEN}.partial",
             f".redub-00000000-1-{TOKEN.upper()}.partial", f"{name_partial(1)}.mp4", "backup.partial/a.mp4",
             "backup.partial/deep/er", ".step-00000009.partial/weights.safetensors"]  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
        os.utime(tmp_path / name, (0, 0))
    remove_partials(tmp_path)
    assert all((tmp_path / name).read_bytes() == b"mine" for name in files)


def test_what_a_dead_process_left_is_removed_at_any_depth(tmp_path: Path, dead_process: int) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / name_partial(dead_process)).write_bytes(b"half")
    (tmp_path / "a" / name_partial(dead_process) / "deep").mkdir(parents=True)
    (tmp_path / name_partial(dead_process)).symlink_to("a")
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


def test_the_next_file_in_a_folder_removes_what_a_dead_process_left_beside_it_and_no_deeper(
    tmp_path: Path, dead_process: int
) -> None:
    """As an edit or a report does: its folder is the user's, and may hold anything."""
    for folder in (tmp_path, tmp_path / "deep"):
        folder.mkdir(exist_ok=True)
        (folder / name_partial(dead_process)).write_bytes(b"half")
        (folder / "film.mp4.partial").write_bytes(b"mine")
    with write_atomically(tmp_path / "out.mp4") as partial:
        partial.write_bytes(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "deep", "film.mp4.partial"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {
        name_partial(dead_process), "film.mp4.partial",
    }  # fmt: skip


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from shards.atomic import write_atomically, write_folder_atomically
        folder = Path(sys.argv[1])
        with write_atomically(folder / "a") as a, write_folder_atomically(folder / "b") as b:
            a.write_text("half")
            (b / "c").write_text("half")
            print("writing", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        before = sorted(tmp_path.rglob("*"))
        assert len(before) == 3
        remove_partials(tmp_path)
        assert sorted(tmp_path.rglob("*")) == before
        process.send_signal(signal.SIGKILL)

        def remove_all() -> bool:
            remove_partials(tmp_path)  # it is a zombie until it is waited for: dead as well
            return not list(tmp_path.iterdir())

        assert wait_until(remove_all)


HIDING = """
import os, sys
from pathlib import Path
from shards.atomic import _identify_machine, remove_partials
os.chdir(sys.argv[1])
path = Path(f".redub-{_identify_machine()}-{os.getppid()}-0123456789ab.partial")
path.write_bytes(b"half")
Path().chmod(0o777)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
remove_partials(Path())
print(path.exists())
"""


def test_what_another_user_s_living_process_writes_stays_where_proc_hides_it(tmp_path: Path) -> None:
    """As on the login nodes of clusters."""
    hide = mount_before("-t", "proc", "-o", "hidepid=2", "proc", "/proc")
    command = [*hide, sys.executable, "-c", HIDING, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout == "True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems /proc is no file system")
def test_a_folder_of_a_file_system_that_flushes_no_folders_is_no_error() -> None:
    sync_to_disk(Path("/proc/self"))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sync_to_disk(Path("/proc/self/stat"))


def test_this_process_s_own_number_is_no_proof_that_it_writes(tmp_path: Path) -> None:
    """In a container, a process that was killed had the same number as the one that resumes."""
    (tmp_path / name_partial(os.getpid())).write_bytes(b"half")
    with write_atomically(tmp_path / "x") as partial, make_scratch_folder(tmp_path) as scratch:
        partial.write_text("whole")
        remove_partials(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([partial, scratch])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_another_machine_s_process_counts_as_dead_after_a_day_without_change(tmp_path: Path) -> None:
    young, old = (tmp_path / name_partial(process, "00000000") for process in (1, 2))
    for path, age in ((young, ABANDONED_SECONDS - 60), (old, ABANDONED_SECONDS + 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == [young]


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with write_atomically(path) as partial:
        assert PARTIAL_NAME.fullmatch(partial.name)
        partial.write_text("whole")
    assert path.read_text() == "whole"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure leaves what was flushed. Recorded are the calls, for a test cannot cut the power."""
    flushes: list[tuple[int, bool]] = []  # inode, and whether the file or folder has its final name already
    flush = os.fsync

    def record(handle: int) -> None:
        flush(handle)
        flushes.append((os.fstat(handle).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", record)
    folder = tmp_path.stat().st_ino
    path = tmp_path / "file"
    with write_atomically(path) as partial:
        partial.write_text("whole")
    assert flushes == [(path.stat().st_ino, False), (folder, True)]
    flushes.clear()
    path = tmp_path / "folder"
    with write_folder_atomically(path) as partial:
        (partial / "a").write_text("whole")
    assert flushes == [((path / "a").stat().st_ino, False), (path.stat().st_ino, False), (folder, True)]


def test_a_folder_replaces_another_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str, *, fail: bool = False) -> None:
        with write_folder_atomically(tmp_path / "folder") as partial:
            (partial / text).write_text(text)
            if fail:
                raise KeyboardInterrupt

    write("first")
    with pytest.raises(KeyboardInterrupt):
        write("second", fail=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "first"]
    removed: list[str] = []
    remove = shutil.rmtree

    def record(path: Path, *, ignore_errors: bool) -> None:
        removed.append(path.name)
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", record)
    write("third")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "third"]
    remove_atomically(tmp_path / "folder")
    assert len(removed) == 2 and all(map(PARTIAL_NAME.fullmatch, removed)), "never under the name that counts"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "named", "number"),
    [("file/x", "file", errno.EEXIST), ("file/deep/x", "file", errno.ENOTDIR),
     ("folder", "folder", errno.EISDIR), ("x" * 256, "x" * 256, errno.ENAMETOOLONG)],
)  # fmt: skip
def test_an_error_names_the_file_and_never_the_partial_one(
    tmp_path: Path, place: str, named: str, number: int
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError) as caught, write_atomically(tmp_path / place) as partial:
        partial.write_text("x")
    assert str(caught.value.filename).startswith(str(tmp_path / named))
    assert caught.value.errno == number
    copy = pickle.loads(pickle.dumps(caught.value))  # as it comes back from a worker
    assert type(copy) is WriteError and str(copy) == str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


FILE_SIZE_LIMIT = """
import io, os, resource, sys, tarfile
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
from shards.atomic import write_atomically

data = os.urandom(3_000_000)

def write_tar(path):
    with tarfile.open(path, "w:") as tar:
        info = tarfile.TarInfo("a")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

writers = {
    "bytes": lambda path: path.write_bytes(data),
    "parquet": lambda path: pq.write_table(pa.table({"a": [data]}), path),
    "npz": lambda path: np.savez(path.open("wb"), a=np.frombuffer(data, np.uint8)),
    "png": lambda path: Image.frombytes("RGB", (1000, 1000), data).save(path, "PNG"),
    "tar": write_tar,
}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name, write in writers.items():
    try:
        with write_atomically(Path(sys.argv[1], name)) as partial:
            write(partial)
    except OSError as err:
        print(name, err.errno, err.filename)
"""


def test_whichever_library_writes_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """The limit on the size of a file makes the same system call fail as a full disk."""
    command = [sys.executable, "-c", FILE_SIZE_LIMIT, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [
        f"{name} {errno.EFBIG} {tmp_path / name}" for name in ("bytes", "parquet", "npz", "png", "tar")
    ]
    assert finished.stdout.splitlines() == expected
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_network_is_not_the_file_s(tmp_path: Path) -> None:
    """A download that is cut off is tried again; one that cannot be written is not."""
    with pytest.raises(ConnectionResetError) as caught, write_atomically(tmp_path / "out"):
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    assert caught.value.filename is None and list(tmp_path.iterdir()) == []


def test_an_input_that_is_missing_keeps_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, write_atomically(tmp_path / "out") as partial:
        partial.write_bytes((tmp_path / "input").read_bytes())
    assert caught.value.filename == str(tmp_path / "input") and list(tmp_path.iterdir()) == []
