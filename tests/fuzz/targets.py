"""Every parser of ours, as a function of bytes from a stranger, and inputs that it accepts.

A parser may refuse its input by an error class that the commands print as one line, and in no other way.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model import published
from model.checkpoint import (
    CHECKPOINTS,
    EMA,
    STATE,
    find_checkpoint,
    load_network,
    save_checkpoint,
)
from model.loop import create_state
from model.published_file import PublishedInfo, write_published_file
from model.recipe import ModelError
from model.run_log import METRICS
from pipeline import params
from pipeline.app.models import describe_run
from pipeline.bucket_build import BuiltPart
from pipeline.main import COMMANDS, cli
from sampler.params import SampleParams
from shards import checksum
from shards.codec import CODECS, decode_frame, encode_frame
from shards.diff import diff
from shards.frames import NetworkInput
from shards.http import HttpTransport
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    MEMBERS,
    SPEECH,
    SPEECH_INDEX_SCHEMA,
    ShardEntry,
    make_shard_rows,
    write_index,
    write_manifest,
)
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.ledger import find_rows, write_ledger
from shards.reader import Dataset, decode_members, open_dataset, read_clip
from shards.retry import Retries, RetryPolicy
from shards.schema import (
    AFFINE_MEMBER,
    BOXES_MEMBER,
    JSON_MEMBER,
    MELS_MEMBER,
    SPEECH_MEMBER,
    ShardError,
    array_to_npy,
    get_frames_member,
    info_to_json,
    npy_to_array,
)
from shards.speech_scale import measure_speech_scale
from shards.storage import open_storage
from shards.table import PackedRows
from shards.transport import TransientError
from shards.verify import verify
from shards.webdataset_reader import from_webdataset
from stages.engine.cache import load_entry, save_entry
from stages.engine.outcome import Drop, Outcome, StageError
from stages.engine.parts import read_part, read_part_key
from stages.evaluate.predictions import find_systems
from stages.evaluate.system_card import CARD
from stages.evaluate.word_times import read_alignments
from stages.fetch.sources import LfsRepository, ZenodoRecord
from stages.fetch.unpack import UnpackError, unpack
from stages.media.download import DownloadError, RemoteFile
from stages.media.packages import PackagedFiles, open_archive
from stages.metrics.published import load_published
from stages.report.card import build_card
from stages.report.cards import build_cards_section
from stages.report.figures import plot_training
from stages.report.page import render_cards_page
from stages.report.results import build_group_tables, build_tables, read_evaluation
from stages.report.training import read_run
from stages.sample.pairs import CROPS, RUN_INFO, TABLE, make_pairs, read_crops, read_samples, write_crops
from stages.synth.spec import SynthError, Truth
from stages.train.run_file import RUN_FILE
from tests import datasets, reports
from tests.model import worlds

# What commands print as one line. TransientError: the retry policy turns it into a ShardError.
REFUSALS = (
    ShardError,
    StageError,
    ModelError,
    DownloadError,
    UnpackError,
    SynthError,
    Drop,
    TransientError,
    click.ClickException,
    click.exceptions.Exit,
)
ONE_TRY = RetryPolicy(
    first_pause_seconds=0.0, longest_pause_seconds=0.0, tries=1, connect_tries=1, silence_seconds=2.0
)

Parse = Callable[[bytes], object]
Prepare = Callable[[Path], "tuple[Parse, Sequence[bytes]]"]


@dataclass(frozen=True, slots=True)
class Parser:
    """One parser: ``prepare`` makes its function, with a folder of its own, and the inputs it accepts."""

    name: str
    prepare: Prepare
    max_bytes: int = 2**14
    seconds: float = 5.0  # of CPU time that one input may take


PARSERS: dict[str, Parser] = {}


def parser(**options: Any) -> Callable[[Prepare], Prepare]:
    """Add a parser under the name of the function that prepares it."""

    def add(prepare: Prepare) -> Prepare:
        PARSERS[prepare.__name__] = Parser(prepare.__name__, prepare, **options)
        return prepare

    return add


def call(parse: Parse, data: bytes) -> str:
    """Parse an input. Returns the refusal, "" if it was accepted; any other exception passes through."""
    try:
        parse(data)
    except REFUSALS as err:
        return f"{type(err).__name__}: {err}"
    return ""


# --- params and options ---------------------------------------------------------------------------


@parser()
def params_yaml(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    path = folder / "params.yaml"

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return params.load(path)

    root = Path(__file__).parents[2]
    return parse, [(root / "params.yaml").read_bytes(), b"align: {size: 96}\nlimits: {memory_mb: 2e3}\n"]


@parser(max_bytes=200)
def recipe_settings(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """``train -s NAME=VALUE``, one in each line."""

    def parse(data: bytes) -> object:
        lines = data.decode(errors="replace").splitlines()
        arguments = ["train", "--dry-run", *(word for line in lines for word in ("-s", line))]
        cli.main(arguments, standalone_mode=False)
        return None

    return parse, [
        b"batch=8\nnetwork.multiples=[1, 2]\noptim.betas=[0.9, 0.99]",
        b"frames.mask_region=[1,2,3,4]",
    ]


@parser(max_bytes=200)
def command_options(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """The first line is a command, each other line is a word of it. Nothing is run."""

    def parse(data: bytes) -> object:
        name, *words = data.decode(errors="replace").replace("\0", "").splitlines() or [""]
        if name not in COMMANDS:
            return None
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        options = command.make_context(name, words).params
        sections = params.Params()
        if name == "edit":
            edit = ("fit", "face", "crf", "preset", "max_seconds", "max_pixels", "any_face")
            sections.make_edit_params(**{key: options[key] for key in edit})
        if name in ("edit", "sample", "app"):
            from sampler.rollout import override_params

            names = SampleParams.__dataclass_fields__
            override_params(sections.sample, **{key: options[key] for key in names if key in options})
        return options

    edit = b"edit\n--video\na\n--audio\nb\n--run\nc\n-o\nd\n"
    seeds = [
        edit + b"--face\n1\n--crf\n20\n--max-seconds\n5\n--guidance\n1.5\n--common-noise\n0.5",
        edit + b"--face\nleft\n--steps\n3\n--sampler\nheun\n--seed\n4",
        b"sample\n--shards\na\n--run\nb\n-o\nc\n--reanchor-every\n3",
        b"shard\n--dataset\ngrid\n--raw\ns3://bucket/x\n--out\ns3://b/y\n--workers\n2",
        b"synth\n--to\nx\n--seconds\n1\n--fps\n25\n--offset-ms\n5",
        b"train\n--cache-gb\n3\n--window\n2\n--hold\nwindowed",
    ]
    return parse, [*seeds, *(name.encode() + b"\n" for name in COMMANDS)]


# --- datasets ---------------------------------------------------------------------------------------

SLOW_EVERY = 50  # calls of a parser; what takes long is done in the first and in each of these
SIZE, N_MELS, SPEECH_SIZE = worlds.SIZE, worlds.N_MELS, 4


SUFFIXES = {
    "frames": get_frames_member("webp"),
    "boxes": BOXES_MEMBER,
    "mels": MELS_MEMBER,
    "affine": AFFINE_MEMBER,
    "json": JSON_MEMBER,
    SPEECH: SPEECH_MEMBER,
}


def make_members(n_frames: int = 3, codec: str = "webp") -> dict[str, bytes]:
    """The members of a good clip, in bytes."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (n_frames, SIZE, SIZE, 3), dtype=np.uint8)
    mels = rng.uniform(-79, 0, (2 * n_frames, N_MELS)).astype(np.float32)
    speech = rng.normal(0, 3, (2 * n_frames, SPEECH_SIZE)).astype(np.float16)
    clip = datasets.pack("s1_a", frames, box=(4, 8, 12, 15), mels=mels, speech=speech, codec=codec)  # type: ignore[arg-type]
    return {
        "frames": clip.blob,
        "boxes": array_to_npy(clip.boxes),
        "mels": array_to_npy(clip.mels),
        "affine": array_to_npy(clip.affine),
        "json": info_to_json(clip.info),
        SPEECH: array_to_npy(speech),
    }


def write_one_clip(folder: Path, members: Mapping[str, bytes]) -> None:
    """A dataset of one clip with these bytes as members, in which every hash and offset is right."""
    row: dict[str, Any] = {"clip_id": "s1_a", "split": "train", "speaker": "s1", "frames": 3}
    path = folder / "train-00000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, suffix in SUFFIXES.items():
            header = tarfile.TarInfo(f"s1_a.{suffix}")
            header.size = len(members[name])
            row[f"{name}_offset"], row[f"{name}_size"] = tar.offset + tarfile.BLOCKSIZE, header.size
            row[f"{name}_crc32"] = zlib.crc32(members[name])
            tar.addfile(header, io.BytesIO(members[name]))
    sha256, size = checksum.file_sha256(path), path.stat().st_size
    row |= {"sha256": "0" * 64, "source_sha256": "00"}
    write_index(folder / INDEX_NAME, [make_shard_rows(path.name, [row])])
    labels = {"clip_id": "s1_a", "path": "a.mpg", "speaker": "s1", "split": "train", "stage": "shard"}
    outcome = {"status": "ok", "code": "", "reason": "", "notes": [], "frames": 3}
    write_ledger(folder / LEDGER_NAME, [make_row(LEDGER_SCHEMA) | labels | outcome])
    manifest_params = {
        "align": {"size": SIZE},
        "mels": {"n_mels": N_MELS, "top_db": 80.0},
        "speech": {"encoder": "made"},
    }
    write_manifest(
        folder / DATASET_NAME,
        [ShardEntry(path.name, "train", size, sha256, 1, 3)],
        dataset="made",
        params=manifest_params,
        files_found=1,
        dropped={},
        splits={"train": {"shards": 1, "clips": 1, "frames": 3}},
    )


def read_with_every_reader(folder: Path) -> None:
    """Read a dataset as sampling, training, `verify`, `diff` and `explain` do. Raises the first refusal."""
    refusals: list[Exception] = []

    def attempt(read: Callable[[], object]) -> None:
        try:
            read()
        except REFUSALS as err:
            refusals.append(err)

    dataset = open_dataset(folder)
    network_input = NetworkInput(SIZE, N_MELS, -80.0, speech_size=SPEECH_SIZE)
    network_input.check_dataset(dataset.manifest, "made")
    clip_ids = list(dataset.clips)[:4]
    for clip_id in clip_ids:
        attempt(lambda clip_id=clip_id: read_clip(dataset, clip_id))  # type: ignore[misc]
    attempt(lambda: worlds.load_dataset(folder, clip_ids))
    attempt(lambda: measure_speech_scale(dataset, clip_ids, network_input))
    attempt(lambda: list(verify(folder, full=True)))
    attempt(lambda: diff(folder, folder))
    attempt(lambda: make_pairs(dataset, "train", "own", seed=0))
    attempt(lambda: build_card(dataset))
    attempt(lambda: find_rows(dataset.ledger(), "s1_a"))
    if refusals:
        raise refusals[0]


def prepare_member(name: str) -> Prepare:
    def prepare(folder: Path) -> tuple[Parse, Sequence[bytes]]:
        good = make_members()

        n_calls = 0

        def parse(data: bytes) -> object:
            nonlocal n_calls
            n_calls += 1
            members = {**good, name: data}
            # Writing and reading a dataset takes 50 times as long: of refused clips, only the first and some.
            if call(lambda _: decode_members("s1_a", members), data) and n_calls % SLOW_EVERY != 1:
                return None
            write_one_clip(folder, members)
            return read_with_every_reader(folder)

        return parse, [good[name]]

    prepare.__name__ = f"member_{name}"
    return prepare


for member in (*MEMBERS, SPEECH):
    parser()(prepare_member(member))


@parser()
def npy(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    arrays = [np.zeros((3, 4), np.int16), np.ones((2, 5), np.float32), np.zeros((0, 2, 3)), np.array(1)]
    return lambda data: npy_to_array(data, "made"), [array_to_npy(array) for array in arrays]


@parser()
def frames(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """One encoded frame; the first byte selects the codec."""

    def parse(data: bytes) -> object:
        codec: Any = CODECS[data[0] % len(CODECS)] if data else "raw"
        return decode_frame(data[1:], codec, (16, 16))

    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return parse, [bytes([i]) + encode_frame(frame, codec) for i, codec in enumerate(CODECS)]  # type: ignore[arg-type]


def prepare_table(name: str) -> Prepare:
    """Parse a file of a dataset by every reader."""

    def prepare(folder: Path) -> tuple[Parse, Sequence[bytes]]:
        write_one_clip(folder, make_members())
        content = json.loads((folder / DATASET_NAME).read_text())
        del content["tables"]  # as in an older dataset, or every change would be refused by its sha256
        (folder / DATASET_NAME).write_text(json.dumps(content))

        def parse(data: bytes) -> object:
            (folder / name).write_bytes(data)
            return read_with_every_reader(folder)

        return parse, [(folder / name).read_bytes()]

    return prepare


def _add(name: str, prepare: Prepare, **options: Any) -> None:
    PARSERS[name] = Parser(name, prepare, **options)


_add("manifest", prepare_table(DATASET_NAME))
_add("index", prepare_table(INDEX_NAME))
_add("ledger", prepare_table(LEDGER_NAME))


def make_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table. A column whose values do not fit its type in the schema gets the type that fits."""
    columns = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values, schema.field(name).type)
        except (pa.ArrowException, KeyError, ValueError, TypeError, OverflowError):
            columns[name] = pa.array(values)
    return pa.table(columns)


def prepare_columns(name: str) -> Callable[[Path], tuple[Parse, Sequence[bytes]]]:
    """A table from JSON, {column: value}, so that mutations reach types and values of its columns."""

    def prepare(folder: Path) -> tuple[Parse, Sequence[bytes]]:
        parse_table, (good,) = prepare_table(name)(folder)
        schema, [row] = pq.read_schema(io.BytesIO(good)), pq.read_table(io.BytesIO(good)).to_pylist()

        def parse(data: bytes) -> object:
            try:
                content = json.loads(data)
                rows = content if isinstance(content, list) else [content]
                buffer = io.BytesIO()
                pq.write_table(make_table(rows, schema), buffer)
            except Exception:  # not a table that pyarrow writes: nothing to parse
                return None
            return parse_table(buffer.getvalue())

        return parse, [json.dumps(row).encode(), json.dumps([row, row | {"clip_id": "s1_b"}]).encode()]

    return prepare


_add("index_columns", prepare_columns(INDEX_NAME))
_add("ledger_columns", prepare_columns(LEDGER_NAME))


@parser()
def tar(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """A shard, by the stock WebDataset pipeline."""
    write_one_clip(folder, make_members(1))
    path = folder / "x.tar"

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return list(from_webdataset(path))

    return parse, [(folder / "train-00000.tar").read_bytes()]


@parser()
def align_file(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    path = folder / "s1" / "a.align"
    path.parent.mkdir()
    clips = {"s1_a": {"speaker": "s1"}}

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read_alignments(folder, clips)

    return parse, [b"0 23750 sil\n23750 29500 bin\n29500 34000 blue\n"]


# --- runs -------------------------------------------------------------------------------------------


# Half of TINY, whose weights take 2 MB.
SMALL = replace(worlds.TINY, network=replace(worlds.TINY.network, multiples=(1,), patch=4))


def write_run(folder: Path) -> Path:
    """A run with one checkpoint of a tiny network."""
    state = create_state(SMALL, worlds.CPU)
    checkpoint = save_checkpoint(state, folder, SMALL, "d" * 64, 0.5)
    info = {"shards": "data", "digest": "d" * 64, "preset": "demo", "recipe": asdict(SMALL)}
    (folder / RUN_FILE).write_text(json.dumps(info))
    lines = [{"step": 4, "loss": 0.5, "learning_rate": 1e-3}, {"step": 6, "held_out_loss": 0.4}]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return checkpoint.path


def prepare_run_file(relative: str, read: Callable[[Path], object]) -> Prepare:
    def prepare(folder: Path) -> tuple[Parse, Sequence[bytes]]:
        write_run(folder)
        path = folder / relative

        def parse(data: bytes) -> object:
            path.write_bytes(data)
            return read(folder)

        return parse, [path.read_bytes()]

    return prepare


def make_report_reader() -> Callable[[Path], object]:
    """Read a run as `report` does; of its plots, which take 0.3 s, the first and some are drawn."""
    n_calls = 0

    def read(folder: Path) -> object:
        nonlocal n_calls
        run = read_run(folder)
        n_calls += 1
        plots = plot_training(run.records) if n_calls % SLOW_EVERY == 1 else None
        return run.last_step, run.best, plots

    return read


def read_run_as_the_page_does(folder: Path) -> object:
    return describe_run("x", find_checkpoint(folder)), read_run(folder)


CHECKPOINT = f"{CHECKPOINTS}/step-00000000"
_add("state_json", prepare_run_file(f"{CHECKPOINT}/{STATE}", load_network))
_add("run_json", prepare_run_file(RUN_FILE, read_run_as_the_page_does))
_add("metrics_jsonl", prepare_run_file(METRICS, make_report_reader()))


@parser()
def edits_table(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """A table for `pipeline edit --batch`."""
    from stages.edit.pairs import read_pairs
    from stages.edit.run import EditParams

    path = folder / "pairs.csv"

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return [(str(pair.video), pair.out) for pair in read_pairs(path, EditParams())]

    header = b"video,audio,face,out,preview,fit,crf,preset,any_face\n"
    full = header + b"a.mp4,b.wav,0,c/d.mkv,e.mp4,hold,20,fast,yes\n"
    return parse, [full, b"video,audio,face\na.mp4,,left=b.wav;1=c.wav\n", b'audio,video\n"b","a""\n"\n']


@parser()
def edits_ledger(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    from stages.edit.batch import LEDGER_NAME, EditRow, read_ledger, write_ledger

    path = folder / LEDGER_NAME
    write_ledger(path, [EditRow(2, "a.mp4", "b.wav", "c.mp4", "ok", "", 75, 70, "5 no_face", 3.0, "0", "1")])
    seed = path.read_bytes()

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return [row.key for row in read_ledger(path)]

    return parse, [seed]


@parser()
def safetensors_header(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """The header alone; its length, and as many zero bytes as its good tensors need, are added."""
    path = write_run(folder) / EMA
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = data[8 + length :]

    def parse(header: bytes) -> object:
        path.write_bytes(struct.pack("<Q", len(header)) + header + tensors)
        return load_network(folder)

    small = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return parse, [data[8 : 8 + length], small]


@parser()
def published_header(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """The header of a published model, as that of a checkpoint above."""
    path = folder / "x.safetensors"
    network = create_state(SMALL, worlds.CPU).ema
    mels = {"n_mels": 8, "reference": "clip"}
    write_published_file(network, PublishedInfo(recipe=SMALL, step=1, mels=mels), path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, tensors = data[8 : 8 + length], data[8 + length :]

    def parse(header: bytes) -> object:
        path.write_bytes(struct.pack("<Q", len(header)) + header + tensors)
        return (
            params.Params().make_edit_params(path),
            load_network(path),
            describe_run("x", find_checkpoint(path)),
        )

    entries = json.loads(header)
    other = entries | {"__metadata__": {"redub": entries["__metadata__"]["redub"].replace("1", "2", 1)}}
    return parse, [header, json.dumps(other).encode()]


@parser()
def models_json(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """The catalogue of published models, and the page that is made from each entry."""
    good = (published.FOLDER / published.CATALOGUE).read_bytes()

    def parse(data: bytes) -> object:
        (folder / published.CATALOGUE).write_bytes(data)
        models = published.read_catalogue(folder)
        return [
            (published.render_page(model), published.find_packaged_file(model, folder)) for model in models
        ]

    return parse, [good, b'{"format": 1, "models": []}']


# --- samples and evaluations ------------------------------------------------------------------------


def make_row(schema: pa.Schema) -> dict[str, Any]:
    """A row with a value in each column."""
    values = {pa.string(): "a", pa.int64(): 1, pa.int32(): 1, pa.float64(): 0.5, pa.bool_(): True}
    return {field.name: values.get(field.type) for field in schema}


def write_samples(folder: Path) -> Dataset:
    write_one_clip(folder, make_members())
    dataset = open_dataset(folder)
    info = {"audio": "own", "params": {"seed": 0}, "dataset": dataset.manifest["digest"], "run": "x"}
    (folder / RUN_INFO).write_text(json.dumps(info))
    (folder / CROPS).mkdir()
    write_crops(folder / CROPS / "s1_a.tar", np.zeros((2, SIZE, SIZE, 3), np.uint8))
    return dataset


@parser()
def sample_json(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    dataset = write_samples(folder)
    _write_samples_table(folder)

    def parse(data: bytes) -> object:
        (folder / RUN_INFO).write_bytes(data)
        return find_systems("", folder, dataset, "train", None)

    return parse, [(folder / RUN_INFO).read_bytes()]


def _write_samples_table(folder: Path) -> None:
    from shards.table import write_rows
    from stages.sample.pairs import SCHEMA

    sha256 = checksum.file_sha256(folder / CROPS / "s1_a.tar")
    names = dict.fromkeys(("name", "clip_id", "audio_clip_id"), "s1_a")
    write_rows(
        folder / TABLE, [make_row(SCHEMA) | names | {"split": "train", "crops_sha256": sha256}], SCHEMA
    )


@parser()
def samples_table(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    dataset = write_samples(folder)
    _write_samples_table(folder)

    def parse(data: bytes) -> object:
        (folder / TABLE).write_bytes(data)
        return read_samples(folder), find_systems("", folder, dataset, "train", None)

    return parse, [(folder / TABLE).read_bytes()]


@parser()
def crops_tar(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    path = folder / "x.tar"
    write_crops(path, np.zeros((2, SIZE, SIZE, 3), np.uint8))

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read_crops(path, SIZE)

    return parse, [path.read_bytes()]


def prepare_evaluation(name: str) -> Prepare:
    def prepare(folder: Path) -> tuple[Parse, Sequence[bytes]]:
        from shards.table import write_rows
        from stages.evaluate.run import CLIPS, FRAMES
        from stages.evaluate.run import METRICS as SCORES
        from stages.evaluate.run import RUN_INFO as EVALUATION
        from stages.evaluate.scores import CLIPS_SCHEMA, FRAMES_SCHEMA

        cell = {"mean": 0.5, "low": 0.1, "high": 0.9, "n": 2}
        (folder / SCORES).write_text(json.dumps({"ours": {"psnr_box_db": cell, "fid": "not computed: no"}}))
        (folder / EVALUATION).write_text(json.dumps({"protocols": {}, "without_lse": {"x": 1}}))
        clip = make_row(CLIPS_SCHEMA) | {"row": "ours", "status": "ok", "code": "", "reason": ""}
        write_rows(folder / CLIPS, [clip], CLIPS_SCHEMA)
        frame = make_row(FRAMES_SCHEMA) | {"row": "ours"}
        write_rows(folder / FRAMES, [frame], FRAMES_SCHEMA)

        def parse(data: bytes) -> object:
            (folder / name).write_bytes(data)
            evaluation = read_evaluation(folder)
            return build_tables(evaluation), build_group_tables(evaluation), evaluation.unscored

        return parse, [(folder / name).read_bytes()]

    return prepare


_add("evaluation_json", prepare_evaluation("evaluation.json"))
_add("metrics_json", prepare_evaluation("metrics.json"))
_add("scored_clips", prepare_evaluation("clips.parquet"))
_add("scored_frames", prepare_evaluation("frames.parquet"))


@parser()
def system_card(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """A card that someone sent, and the page that lays it beside the paper's table."""
    path = reports.write_card(folder / "card", *reports.make_card()) / CARD

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return render_cards_page(build_cards_section([folder]))

    return parse, [path.read_bytes()]


# --- builds -----------------------------------------------------------------------------------------


@parser()
def receipt(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """A part's receipt in a bucket, which others may write to."""

    def parse(data: bytes) -> object:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as err:
            raise ShardError(str(err)) from err
        return BuiltPart.from_json(content, "receipt")

    write_one_clip(folder, make_members())
    dataset = open_dataset(folder)
    ledger = PackedRows.from_rows(dataset.ledger(), LEDGER_SCHEMA)
    entry = next(iter(dataset.shards.values()))
    from stages.shard import PackedShard

    index = PackedRows.from_rows(dataset.clips.values(), SPEECH_INDEX_SCHEMA)
    return parse, [
        json.dumps(BuiltPart(PackedShard(entry, index), ledger).to_json()).encode(),
        json.dumps(BuiltPart(None, ledger).to_json()).encode(),
    ]


@parser()
def part(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    from stages.engine.parts import write_part

    path = folder / "x.parquet"
    write_part(path, "key", [], [("s1_a", Outcome(), {})])

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read_part_key(path), read_part(path)

    return parse, [path.read_bytes()]


@parser()
def cache_entry(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    path = folder / "x.npz"
    save_entry(path, Outcome(notes=("a",)), {"x": np.zeros(3)})
    good = path.read_bytes()

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return load_entry(path)

    return parse, [good]


@parser()
def synth_truth(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    from stages.synth.corpus import _find_existing
    from stages.synth.spec import ClipSpec, FrameTruth

    clip = folder / "x.mp4"
    clip.write_bytes(b"x")
    frame = FrameTruth(0.0, 0.5, 0, [(0.0, 0.0)] * 4)
    truth = Truth(1, "s1", "mp4", "25", 0.0, 0, 44100, 1, "0" * 64, ClipSpec(), [frame])

    def parse(data: bytes) -> object:
        Truth.path_for(clip).write_bytes(data)
        return _find_existing(clip, ClipSpec())

    return parse, [truth.to_json().encode()]


# --- downloads --------------------------------------------------------------------------------------


@parser(max_bytes=2**16)
def published_weights(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """A file of torch.save, which is a zip of a pickle, loaded without running it."""
    path = folder / "x.pth"
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    good = path.read_bytes()

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return load_published(lambda: torch.nn.Linear(2, 3), path)

    return parse, [good]


def make_zip(**options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("s1/a.mpg", b"clip" * 20)
        archive.writestr("s1/b.txt", b"text")
    return buffer.getvalue()


@parser()
def zip_archive(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """An archive that `fetch` unpacks."""
    path, to = folder / "x.zip", folder / "to"
    to.mkdir()

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        before = {file for file in folder.rglob("*") if file.is_file()}
        try:
            return unpack(path, "s1", to, frozenset({".mpg"}))
        finally:
            new = {file for file in folder.rglob("*") if file.is_file()} - before
            assert all(file.is_relative_to(to / "s1") for file in new), f"written outside: {new}"
            for file in new:
                file.unlink()

    return parse, [make_zip(), make_zip(compression=zipfile.ZIP_DEFLATED)]


@parser()
def package_archive(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """A member of a package: the first byte chooses between a wheel and a source distribution."""
    path = folder / "x"

    def parse(data: bytes) -> object:
        package = PackagedFiles("x==1", "0" * 64, "s1/{name}", is_source=bool(data[:1] == b"s"))
        path.write_bytes(data[1:])
        with open_archive(package, path) as reader:
            return reader.read("a.mpg", 2**20)

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        header = tarfile.TarInfo("s1/a.mpg")
        header.size = 4
        archive.addfile(header, io.BytesIO(b"clip"))
    return parse, [b"w" + make_zip(), b"s" + buffer.getvalue()]


class OneAnswer:
    """A server on loopback that sends the bytes ``answer`` to every request, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        outer = self

        class Handler(StreamRequestHandler):
            timeout = 2

            def handle(self) -> None:
                length = 0
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                self.rfile.read(length)
                self.wfile.write(outer.answer)

        ThreadingTCPServer.allow_reuse_address = True
        self.server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def make_answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@parser()
def http_answer(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """All bytes that a server sends, from its status line on."""
    server = OneAnswer()
    source = HttpTransport(server.url, silence_seconds=2.0)

    def parse(data: bytes) -> object:
        server.answer = data
        if b"ocation" in data:
            return None  # it would be followed to another host
        source.stat("x")
        with source.open("x", 3, 9, version='"a"') as response:
            retries = Retries(source.address, ONE_TRY)
            return sum(len(block) for block in retries.read_blocks(response.body))

    ranged = make_answer(b"456789", "Content-Range: bytes 3-8/10", 'ETag: "a"', status="206 Partial Content")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"
    zipped = make_answer(zlib.compress(b"0123456789"), "Content-Encoding: deflate")
    return parse, [ranged, make_answer(b"0123456789"), chunked, zipped, make_answer(b"", status="404 Not")]


@parser(max_bytes=300)
def address(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """An address of a dataset. No request is sent."""

    def parse(data: bytes) -> object:
        text = data.decode(errors="replace")
        if text.startswith("s3://"):
            return None  # boto3's parser
        return open_storage(text).address if "://" in text else None

    return parse, [b"https://user:word@host:8/a/b?c=d", b"http://[::1]/x", b"file:///x", b"HTTP://a b/%zz"]


@parser()
def zenodo_listing(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    server = OneAnswer()
    record = ZenodoRecord(server.url, 1, r"s\d\.zip", 1, "", frozenset())

    def parse(data: bytes) -> object:
        server.answer = make_answer(data)
        return record.list_files(ONE_TRY)

    file = {"key": "s1.zip", "size": 3, "checksum": f"md5:{'0' * 32}"}
    return parse, [json.dumps({"files": [file]}).encode()]


def make_lfs(server: OneAnswer) -> LfsRepository:
    return LfsRepository(f"{server.url}/a.tar.gz", f"{server.url}/batch", r"VideoFlash/\w+\.flv", 1, "")


@parser()
def lfs_archive(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    """The first byte says whether the rest is compressed on its way."""
    import gzip

    server = OneAnswer()
    repository = make_lfs(server)

    def parse(data: bytes) -> object:
        server.answer = make_answer(data[1:] if data[:1] == b"z" else gzip.compress(data[1:], 1))
        return repository.list_files(ONE_TRY)

    buffer = io.BytesIO()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        header = tarfile.TarInfo("top/VideoFlash/a.flv")
        header.size = len(pointer)
        archive.addfile(header, io.BytesIO(pointer))
    return parse, [b"t" + buffer.getvalue(), b"z" + gzip.compress(buffer.getvalue())]


@parser()
def lfs_batch(folder: Path) -> tuple[Parse, Sequence[bytes]]:
    server = OneAnswer()
    repository = make_lfs(server)
    file = RemoteFile("VideoFlash/a.flv", 12, f"sha256:{'0' * 64}")

    def parse(data: bytes) -> object:
        server.answer = make_answer(data)
        return [str(item) for item in repository.locate(ONE_TRY, [file])]

    action = {"href": "https://host/x", "header": {"Authorization": "x"}}
    good = {"objects": [{"oid": "0" * 64, "size": 12, "actions": {"download": action}}]}
    bad = {"objects": [{"oid": "0" * 64, "error": {"code": 404, "message": "not there"}}]}
    return parse, [json.dumps(good).encode(), json.dumps(bad).encode()]
