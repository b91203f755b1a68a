"""Many machines make the bytes of one: hosts that share nothing but buckets, and what happens to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards.index import DATASET_NAME, INDEX_NAME, LEDGER_NAME, get_published_name
from stages.synth import SynthParams, make_corpus
from tests import s3
from tests.build import PIPELINE, build, hash_files, pipeline
from tests.faults import start_proxy
from tests.hosts import Hosts, end, hosts

PARAMS = "parts: {clips_per_part: 2}\nclips: {test_share: 0.3}\n"
PATIENT = os.environ.get("REDUB_PATIENT")  # set to wait for what takes minutes
PORT = "8786"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short clips, in two rates and containers; one twice under names of one id; one that is none."""
    folder = tmp_path_factory.mktemp("corpus") / "raw"
    make_corpus(folder, SynthParams(speakers=2, clips=2, seconds=0.8, style="folder"))
    make_corpus(folder / "flv", SynthParams(speakers=1, clips=2, seconds=0.8, style="crema-d", fps="29.97"))
    first = sorted(folder.rglob("*.mp4"))[0]
    shutil.copyfile(first, first.with_suffix(".mov"))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(PARAMS)
    return path


@pytest.fixture(scope="module")
def reference(raw: Path, params: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of what one worker on this machine makes, by their names in a bucket."""
    work = tmp_path_factory.mktemp("reference")
    build(raw, work, "--workers", "1", "--params", params)
    made = hash_files(work / "shards")
    return {get_published_name(n, h) if n in (INDEX_NAME, LEDGER_NAME) else n: h for n, h in made.items()}


@dataclass(frozen=True)
class ClusterBucket:
    """A bucket with the raw clips, as seen from all hosts."""

    name: str
    environment: dict[str, str]
    server: s3.Server

    def shards(self) -> dict[str, str]:
        """Hashes of all that was made but receipts, by name."""
        import hashlib

        client = self.server.client()
        hashes = {}
        for entry in client.list_objects_v2(Bucket=self.name, Prefix="shards/")["Contents"]:
            name = entry["Key"].removeprefix("shards/")
            if not name.startswith("receipts/"):
                body = client.get_object(Bucket=self.name, Key=entry["Key"])["Body"].read()
                hashes[name] = hashlib.sha256(body).hexdigest()
        return hashes


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts beside this one, which see nothing of what these tests write."""
    with hosts(3, tmp_path_factory.getbasetemp()) as made:
        yield made


@pytest.fixture
def bucket(raw: Path, cluster: Hosts, s3_server: s3.Server) -> Iterator[ClusterBucket]:
    name = s3_server.create_bucket()
    client = s3_server.client()
    for path in raw.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), name, f"raw/{path.relative_to(raw).as_posix()}")
    with start_proxy(s3_server.endpoint, host=cluster.address) as door:
        yield ClusterBucket(name, s3_server.environment(door.endpoint), s3_server)


def start_scheduler(cluster: Hosts) -> subprocess.Popen[bytes]:
    return cluster.start(0, *DASK, "scheduler", "--port", PORT, "--no-dashboard")


def start_workers(cluster: Hosts, host: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Two workers, and one that starts them again when they end, as SLURM or Kubernetes would."""
    again = 'while true; do "$@"; sleep 1; done'
    worker = [*DASK, "worker", f"tcp://{cluster.get_address(0)}:{PORT}", "--nworkers", "2", "--nthreads", "1",
              "--no-dashboard"]  # fmt: skip
    return cluster.start(host, "sh", "-c", again, "sh", *worker, **environment)


DASK = (sys.executable, "-m", "dask")


@dataclass(frozen=True)
class Run:
    """A run under way: what may be hit."""

    cluster: Hosts
    scheduler: subprocess.Popen[bytes]  # on host 0
    workers: list[subprocess.Popen[bytes]]  # on hosts 1 and 2
    command: subprocess.Popen[bytes]


def kill_a_host(run: Run) -> None:
    end(run.workers[0])


def kill_the_command(run: Run) -> None:
    run.command.kill()


def restart_the_scheduler(run: Run) -> None:
    end(run.scheduler)
    time.sleep(3)
    start_scheduler(run.cluster)


def cut_the_scheduler_off(run: Run) -> None:
    cut_off(run.cluster, 0)


def cut_two_workers_off(run: Run) -> None:
    cut_off(run.cluster, 1)


def cut_off(cluster: Hosts, host: int) -> None:
    cluster.cut(host)
    time.sleep(30)
    cluster.mend(host)


patient = pytest.mark.skipif(not PATIENT, reason="takes minutes; $REDUB_PATIENT=1 waits for it")


@pytest.mark.parametrize(
    "disturb",
    [
        kill_a_host,
        pytest.param(kill_the_command, marks=patient),
        pytest.param(restart_the_scheduler, marks=patient),
        pytest.param(cut_the_scheduler_off, marks=patient),
        pytest.param(cut_two_workers_off, marks=patient),
    ],
)
def test_four_workers_on_two_hosts_make_the_bytes_of_one_whatever_happens_to_them(
    disturb: Callable[[Run], None],
    reference: dict[str, str],
    params: Path,
    cluster: Hosts,
    bucket: ClusterBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    scheduler = start_scheduler(cluster)
    workers = [start_workers(cluster, host, bucket.environment) for host in (1, 2)]
    command = ["shard", "--dataset", "folder", "--raw", f"s3://{bucket.name}/raw", "--out",
               f"s3://{bucket.name}/shards", "--work", tmp_path, "--params", params,
               "--scheduler", f"tcp://{cluster.get_address(0)}:{PORT}"]  # fmt: skip
    process = subprocess.Popen(
        [*PIPELINE, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _wait_for_receipts(bucket, 2, process)
    disturb(Run(cluster, scheduler, workers, process))
    _, err = process.communicate(timeout=300)
    if disturb is kill_the_command:
        assert '"kept": 0' not in pipeline(*command, "--json").partition('"shard"')[2], "it goes on"
    else:
        assert process.returncode == 0, err.decode()
    assert bucket.shards() == reference
    assert DATASET_NAME in reference
    summary = pipeline(*command, "--json")
    assert '"built": 0' in summary, "a second run finds all receipts"
    assert not (tmp_path / "shards").exists() and not list(tmp_path.rglob("*.tar"))


def _wait_for_receipts(bucket: ClusterBucket, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until the run is well under way."""
    client = bucket.server.client()
    while client.list_objects_v2(Bucket=bucket.name, Prefix="shards/receipts/")["KeyCount"] < count:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.1)
