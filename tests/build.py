"""Running the whole road in tests: as a user does, by the command, and looking at what it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.dataset_stages import list_stages, run_stage
from pipeline.params import Params
from stages.engine.stage import Context, Work

PIPELINE = [sys.executable, "-m", "pipeline.main"]


def pipeline(*words: str | Path, cwd: Path | None = None, code: int = 0) -> str:
    """Standard output of a command that must end with ``code``."""
    done = subprocess.run([*PIPELINE, *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == code, f"{words} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(raw: Path, work: Path, *words: str | Path, dataset: str = "folder") -> dict[str, Any]:
    """``pipeline shard`` from raw to shards; its JSON summary. With one worker, unless the words say more.

    Each worker starts two processes, which load what they need for seconds.
    """
    if not {"--workers", "--scheduler"} & set(words):
        words = (*words, "--workers", "1")
    told = pipeline("shard", "--dataset", dataset, "--raw", raw, "--work", work, "--json", *words)
    summary: dict[str, Any] = json.loads(told)
    return summary


def build_in_process(raw: Path, work: Path, settings: Params | None = None, dataset: str = "folder") -> Work:
    """The stages of ``pipeline shard``, one after the other, without the command and its workers.

    For datasets of which the command is not the point. Files are still read in the sandbox, whose process
    stays warm from one test to the next.
    """
    settings = settings or Params()
    folders = Work(dataset, raw, work, work / "shards", work / ".cache")
    for name in list_stages(settings):
        run_stage(name, folders, settings, Context(dataset_params=settings.describe_dataset()))
    return folders


def dvc(project: Path, *words: str) -> str:
    """Standard output of a command of DVC, which finds `pipeline` beside this Python."""
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DVC_NO_ANALYTICS": "1",
    }
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_stage_summary(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """What a summary says of one stage."""
    return next(stage for stage in summary["stages"] if stage["stage"] == name)


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def snapshot_files(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Contents, mode and time of every file: what must not change in a raw folder."""
    return {
        name: (digest, (folder / name).stat().st_mode, (folder / name).stat().st_mtime_ns)
        for name, digest in hash_files(folder).items()
    }
