"""`pipeline doctor` on this machine, and on odd ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pipeline import doctor
from shards import cgroups
from tests.build import PIPELINE

ROOT = Path(__file__).parents[2]


def examine(environment: dict[str, str], code: int) -> dict[str, dict[str, Any]]:
    """The findings by name, in a process with this environment besides PATH and PYTHONPATH."""
    path = os.pathsep.join([environment.get("PYTHONPATH", ""), os.fspath(ROOT)]).strip(os.pathsep)
    done = subprocess.run(
        [*PIPELINE, "doctor", "--json"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment, "PYTHONPATH": path},
        cwd="/",  # not a checkout, whose own metadata come first
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_ten_lines_say_what_there_is_and_load_no_torch(landmarker: Path) -> None:
    program = "import sys, pipeline.doctor as d; print(len(d.examine_machine()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "10 False\n"
    findings = examine({"REDUB_LANDMARKER": os.fspath(landmarker), "HOME": os.environ["HOME"]}, code=0)
    assert findings["face model"]["text"] == os.fspath(landmarker)
    for name in ("redub", "libraries", "processor", "ffmpeg", "disk"):
        assert findings[name]["status"] == "ok", findings[name]


def test_what_an_edit_needs_and_lacks_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder, no model, no ffmpeg")
    wrong = os.fspath(tmp_path / "file")
    odd = {"REDUB_LANDMARKER": wrong, "IMAGEIO_FFMPEG_EXE": wrong, "XDG_CACHE_HOME": "/proc/nowhere"}
    findings = examine(odd, code=1)
    assert {name for name, each in findings.items() if each["status"] == "MISSING"} == {
        "face model", "ffmpeg", "disk",
    }  # fmt: skip
    assert findings["face model"]["advice"][0].startswith("unset REDUB_LANDMARKER")
    assert "imageio-ffmpeg" in findings["ffmpeg"]["advice"][0]
    assert findings["disk"]["advice"] == ["set XDG_CACHE_HOME to a folder that can be written"]


def test_free_memory_is_what_the_container_has_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "groups").mkdir()
    for name, text in (("memory.max", "300000000"), ("memory.current", "100000000"), ("memory.stat", "")):
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "cgroup").write_text("0::/")
    monkeypatch.setattr(cgroups, "PROCESS_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "groups")
    (finding,) = [each for each in doctor.examine_machine() if each.name == "processor"]
    assert finding.text.endswith("0.2 GB of it free to redub")


def test_missing_libraries_and_extras_are_named_with_their_line_for_pip(tmp_path: Path) -> None:
    information = tmp_path / "redub-9.9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: redub\nVersion: 9.9\nProvides-Extra: app\nProvides-Extra: s3\n"
        "Requires-Dist: numpy>=999\nRequires-Dist: absent-library\n"
        'Requires-Dist: absent-page; extra == "app"\nRequires-Dist: numpy; extra == "s3"\n'
    )
    findings = examine({"PYTHONPATH": os.fspath(tmp_path), "HOME": os.environ["HOME"]}, code=1)
    assert "numpy>=999 is needed, " in findings["libraries"]["text"]
    assert "absent-library is not installed" in findings["libraries"]["text"]
    assert findings["extras"]["text"] == "s3"
    assert findings["extras"]["advice"] == [
        '`pipeline app`, the page in the browser: pip install "redub[app]"'
    ]


def test_a_gpu_that_pytorch_cannot_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if not metadata.version("torch").endswith("+cpu"):
        pytest.skip("this PyTorch may be able to use a GPU")
    monkeypatch.setattr(doctor, "GPU_SIGNS", ("/",))
    finding = doctor._examine_gpu("GPU")
    assert finding.status == "note"
    assert finding.text.startswith("there is one, and PyTorch")
    assert finding.text.endswith("is for processors alone")
    assert len(finding.advice) == 1
