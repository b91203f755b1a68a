"""One process at a time writes to a folder, and its lock harms no other file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stages.engine.lock import LOCK_NAME, lock_folder
from stages.engine.outcome import StageError

HOLD = """
import sys
from pathlib import Path
from stages.engine.lock import lock_folder
with lock_folder(Path(sys.argv[1]), busy=""):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_busy_until_the_process_that_locked_it_has_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(StageError, match="is at work"), lock_folder(tmp_path, busy="another is at work"):
            pass
        process.kill()
        process.wait()
        with lock_folder(tmp_path, busy="another is at work"):
            pass


def test_a_lock_that_is_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    """A folder from elsewhere can hold one, to any file of this machine."""
    target, folder = tmp_path / "target", tmp_path / "folder"
    target.write_bytes(b"precious")
    folder.mkdir()
    (folder / LOCK_NAME).symlink_to(target)
    with pytest.raises(OSError, match=LOCK_NAME), lock_folder(folder, busy="another is at work"):
        pass
    assert target.read_bytes() == b"precious"
