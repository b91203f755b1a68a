"""Shards depend on the clips and the params: not on workers, engines, kills or what was there before."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shards.index import DATASET_NAME
from shards.reader import open_dataset
from shards.verify import verify
from stages.synth import SynthParams, make_corpus
from tests.build import PIPELINE, build, dvc, find_stage_summary, hash_files, pipeline
from tests.waiting import GUARD_SECONDS, is_gone, wait_until

ROOT = Path(__file__).parent.parent
KILLS = 10
PARAMS = "parts: {clips_per_part: 4}\n"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short clips, in two rates and containers."""
    folder = tmp_path_factory.mktemp("made")
    make_corpus(folder, SynthParams(speakers=2, clips=4, seconds=0.8, style="folder"))
    make_corpus(folder / "flv", SynthParams(speakers=2, clips=2, seconds=0.8, style="crema-d", fps="29.97"))
    return folder


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(PARAMS)
    return path


@pytest.fixture(scope="module")
def built(raw: Path, params: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of one worker, undisturbed: to be read and copied alone."""
    work = tmp_path_factory.mktemp("reference")
    summary = build(raw, work, "--workers", "1", "--params", params)
    assert find_stage_summary(summary, "shard")["counts"] == {"ok": 12}
    assert find_stage_summary(summary, "landmarks")["parts"]["total"] >= 4
    return work


@pytest.fixture(scope="module")
def reference(built: Path) -> dict[str, str]:
    """Hashes of what one worker makes."""
    return hash_files(built / "shards")


def copy_work(built: Path, work: Path) -> None:
    """A work folder as the command left it: with its times, and the names that share their bytes."""
    subprocess.run(["cp", "-a", f"{built}/.", work], check=True)


def test_two_workers_make_the_bytes_of_one(
    raw: Path, params: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    build(raw, tmp_path, "--workers", "2", "--params", params)
    assert hash_files(tmp_path / "shards") == reference


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """A Dask scheduler with two workers, as a cluster would run them."""
    address = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen(
            [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--scheduler-file", str(address)], **quiet,
        )
    ]  # fmt: skip
    try:
        assert wait_until(lambda: address.is_file() and address.read_text().rstrip().endswith("}"))
        processes += [
            subprocess.Popen(
                [*dask, "worker", "--scheduler-file", str(address), "--nthreads", "1", "--no-dashboard",
                 "--local-directory", str(tmp_path / name)], **quiet,
            )
            for name in ("one", "two")
        ]  # fmt: skip
        import json

        yield json.loads(address.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            process.wait(timeout=GUARD_SECONDS)


def test_a_dask_cluster_makes_the_bytes_of_one_worker(
    raw: Path, params: Path, reference: dict[str, str], tmp_path: Path, scheduler: str
) -> None:
    build(raw, tmp_path / "work", "--scheduler", scheduler, "--params", params)
    assert hash_files(tmp_path / "work" / "shards") == reference


def test_a_run_killed_ten_times_ends_with_the_bytes_of_an_unbroken_one(
    raw: Path, params: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    command = [*PIPELINE, "shard", "--dataset", "folder", "--raw", raw, "--work", work,
               "--workers", "2", "--params", params, "--json"]  # fmt: skip
    moments = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moments.uniform(0.3, 9.0))
            shutil.rmtree(work)  # it was done first: begin again
        except subprocess.TimeoutExpired:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            # Its workers end by themselves. One that is still at work owns its partial file.
            assert wait_until(lambda family=family: all(is_gone(child.pid) for child in family))
            if (work / "shards" / DATASET_NAME).exists():
                assert list(verify(work / "shards", full=False)) == []
    build(raw, work, "--workers", "2", "--params", params)
    assert hash_files(work / "shards") == reference
    assert not list(work.rglob("*.partial")), "half files are cleared away"


def test_what_is_there_is_left_alone_and_what_is_damaged_is_made_again(
    raw: Path, params: Path, built: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    copy_work(built, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    again = build(raw, tmp_path, "--params", params)
    assert all(stage["clips_computed"] == 0 for stage in again["stages"])
    assert {path: path.stat().st_mtime_ns for path in times} == times
    first, second, third, *_ = sorted(times)
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])  # shares its bytes with the cache's copy
    altered, status = bytearray(third.read_bytes()), third.stat()
    altered[len(altered) // 2] ^= 1
    third.write_bytes(altered)
    os.utime(third, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does that fails
    (tmp_path / "shards" / "index.parquet").unlink()
    build(raw, tmp_path, "--params", params)
    assert hash_files(tmp_path / "shards") == reference
    assert list(verify(tmp_path / "shards", full=True)) == []


def test_one_more_clip_rebuilds_at_most_one_part_of_each_stage(
    raw: Path, params: Path, tmp_path: Path
) -> None:
    some, work = tmp_path / "raw", tmp_path / "work"
    shutil.copytree(raw, some)
    late = some / "speaker-1" / "clip-001.mp4"
    late.rename(tmp_path / "late.mp4")
    build(some, work, "--params", params)
    (tmp_path / "late.mp4").rename(late)
    summary = build(some, work, "--params", params)
    for stage in summary["stages"]:
        assert stage["parts"]["built"] <= 1, stage
    assert [
        find_stage_summary(summary, name)["clips_computed"] for name in ("clips", "landmarks", "mels")
    ] == [1, 1, 1]


def test_a_changed_param_or_size_redoes_only_what_depends_on_it(
    raw: Path, params: Path, built: Path, tmp_path: Path
) -> None:
    copy_work(built, tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(PARAMS + "mels: {n_mels: 80}\n")
    summary = build(raw, tmp_path, "--params", other)
    computed = {stage["stage"]: stage["clips_computed"] for stage in summary["stages"]}
    assert computed == {"clips": 0, "landmarks": 0, "align": 0, "mels": 12, "shard": 0}
    assert find_stage_summary(summary, "align")["parts"]["built"] == 0
    told = pipeline("diff", tmp_path / "shards", tmp_path / "shards")
    assert "same clips" in told

    large = tmp_path / "large"
    options = ["--params", params, "--cache", tmp_path / ".cache", "--size", "256"]
    summary = build(raw, large, *options)
    computed = {stage["stage"]: stage["clips_computed"] for stage in summary["stages"]}
    assert computed == {"clips": 0, "landmarks": 0, "align": 12, "mels": 0, "shard": 0}
    dataset = open_dataset(large / "shards")
    assert dataset.manifest["size"] == dataset.manifest["params"]["align"]["size"] == 256
    only = ["shard", "--only", "--dataset", "folder", "--raw", raw, "--work", large, "--params", params]
    error = subprocess.run([*PIPELINE, *map(str, only)], capture_output=True, text=True, check=False)
    assert error.returncode == 1
    assert "was made with another align.size than 128" in error.stderr and error.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def dvc_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project's dvc.yaml in a folder of its own, building the made corpus alone."""
    project = tmp_path_factory.mktemp("dvc")
    for name in ("stages", "shards", "pipeline"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    text, n_commands = re.subn("(pipeline synth .*)", r"\1 --seconds 1", (ROOT / "dvc.yaml").read_text())
    assert n_commands == 1
    (project / "dvc.yaml").write_text(text)
    text = (ROOT / "params.yaml").read_text()
    text, n_datasets = re.subn(r"\n  demo: \{corpus.*", "", text)
    text, n_encoders = re.subn(
        "  made: .*", "  made: {corpus: folder, cut: false, size: 128, speech: none, licence: ''}", text
    )
    assert n_datasets == n_encoders == 1
    text = text.replace("clips_per_part: 64", "clips_per_part: 2")
    (project / "params.yaml").write_text(text)
    dvc(project, "init", "--no-scm", "--quiet")
    shutil.copyfile(ROOT / ".dvcignore", project / ".dvcignore")
    return project


def test_dvc_repro_makes_the_bytes_of_the_command_and_runs_only_what_changed(dvc_project: Path) -> None:
    told = dvc(dvc_project, "repro", "shard@made")
    assert "Running stage 'shard@made'" in told
    made = dvc_project / "data" / "made"
    build(made / "raw", dvc_project / "plain", "--params", dvc_project / "params.yaml")
    assert hash_files(made / "shards") == hash_files(dvc_project / "plain" / "shards")

    compiled = dvc_project / "stages" / "corpora" / "__pycache__" / "grid.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"what Python leaves beside any module")
    assert "up to date" in dvc(dvc_project, "repro", "shard@made")

    text = (dvc_project / "params.yaml").read_text()
    (dvc_project / "params.yaml").write_text(text.replace("n_mels: 256", "n_mels: 80"))
    told = dvc(dvc_project, "repro", "shard@made")
    assert "Running stage 'mels@made'" in told
    assert "Running stage 'shard@made'" in told
    assert "Running stage 'landmarks@made'" not in told
    (dvc_project / "params.yaml").write_text(text)
    told = dvc(dvc_project, "repro", "shard@made")
    assert "Stage 'mels@made' is cached - skipping run" in told, "the run-cache is on"
    assert hash_files(made / "shards") == hash_files(dvc_project / "plain" / "shards")


def test_dvc_repro_adds_speech_features_and_takes_them_away_again(
    dvc_project: Path, speech_model: Path
) -> None:
    dvc(dvc_project, "repro", "shard@made")
    made, file = dvc_project / "data" / "made", dvc_project / "params.yaml"
    text, before = file.read_text(), hash_files(made / "shards")
    assert list((made / "speech").iterdir()) == []
    file.write_text(text.replace("speech: none", "speech: whisper-tiny.en"))
    told = dvc(dvc_project, "repro", "shard@made")
    assert re.findall("Running stage '(.*)@made'", told) == ["speech", "shard"]
    build(made / "raw", dvc_project / "heard", "--params", file, "--speech-encoder", "whisper-tiny.en")
    assert hash_files(made / "shards") == hash_files(dvc_project / "heard" / "shards") != before
    file.write_text(text)
    dvc(dvc_project, "repro", "shard@made")
    assert list((made / "speech").iterdir()) == []
    assert hash_files(made / "shards") == before
