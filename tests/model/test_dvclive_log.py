"""The losses of a run for ``dvc exp show``, by dvclive, in a real DVC repository."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from model.dvclive_log import OFFLINE, check_dvclive
from model.recipe import ModelError
from model.run_log import open_run_log
from tests.build import dvc

pytest.importorskip("dvclive")
STEPS = "step\tloss\n1\t1.0\n2\t0.5\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository with DVC, in which commands are run."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    monkeypatch.chdir(tmp_path)
    subprocess.run([*git, "init", "--quiet"], check=True)
    dvc(tmp_path, "init", "--quiet")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
    return tmp_path


def test_a_resumed_run_repeats_no_step_and_dvc_lists_its_losses(project: Path) -> None:
    status = ["git", "status", "--short"]
    live, before = Path("live"), dict(os.environ)
    with open_run_log(project / "run", 0, live) as log:
        for step in (1, 2, 3):  # step 3 is after the last checkpoint: it is repeated below
            log.write_metrics(step, {"loss": 1 / step, "grad_norm": 0.1})
    with open_run_log(project / "run", 2, live) as log:
        assert (live / "plots" / "metrics" / "loss.tsv").read_text() == STEPS
        log.write_metrics(3, {"loss": 0.25, "listening_loss": 0.2, "deaf_loss": 0.3})
    assert (live / "plots" / "metrics" / "loss.tsv").read_text() == STEPS + "3\t0.25\n"
    shown = json.loads(dvc(project, "metrics", "show", "--json"))[""]["data"]
    losses = shown[os.path.join("live", "metrics.json")]["data"]  # noqa: PTH118
    assert losses.keys() == {"loss", "listening_loss", "deaf_loss", "listening_gap", "step"}
    assert losses["loss"] == 0.25 and losses["listening_gap"] == pytest.approx(0.1)
    changed = subprocess.run(status, check=True, capture_output=True, text=True).stdout.split("\n")
    assert sorted(filter(None, changed)) == ["?? live/", "?? run/"], "nothing was added to Git"
    refs = ["git", "for-each-ref", "refs/exps"]
    assert subprocess.run(refs, check=True, capture_output=True).stdout == b"", "no experiment was saved"
    assert {name: os.environ.get(name) for name in OFFLINE} == {name: before.get(name) for name in OFFLINE}


def test_a_folder_with_files_of_others_is_refused_before_dvclive_deletes_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").mkdir()
    Path("mine/dvc.yaml").write_text("stages: {}")
    with pytest.raises(ModelError, match=r"--dvclive mine: holds a dvc\.yaml that dvclive did not write"):
        check_dvclive(Path("mine"))
    with pytest.raises(ModelError, match=r"--dvclive \.: holds '\.dvc', expected a new folder"):
        check_dvclive(Path())
    assert Path("mine/dvc.yaml").exists()
    monkeypatch.chdir(project.parent)
    with pytest.raises(ModelError, match="is in no DVC repository; run `dvc init` first"):
        check_dvclive(project / "live")
