"""The card of a dataset: read by Hugging Face's `datasets` and by mlcroissant, safe with strangers' texts."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from pipeline.main import cli
from shards.codec import Codec
from shards.dataset_card import JSON_FIELDS, SPAN_JSON_FIELDS
from shards.ledger import read_ledger
from shards.reader import open_dataset, read_clip, read_members
from shards.schema import SampleInfo, npy_to_array
from tests import datasets
from tests.build import hash_files

SIZE, N_MELS = 16, 8
SIGNS = "a|b <script>x</script> [c](http://d) `e` *f*"
DROPPED = [
    {"path": "x/one.mpg", "status": "dropped", "code": "no_face", "reason": "no face in frames 0-7 of 75"},
    {"path": "x/two.mpg", "status": "dropped", "code": "no_face", "reason": "no face at all"},
    {"path": "x/3.mpg", "status": "failed", "code": "crash",
     "reason": f"/home/someone/raw/x/3.mpg:\n| {SIGNS}"},
]  # fmt: skip


def make_dataset(
    folder: Path, codec: Codec = "webp", splits: tuple[str, ...] = ("train", "train", "test")
) -> Path:
    """A clip for each split. Some lists of the first one are empty, but not those of the others."""
    rng = np.random.default_rng(0)
    clips = [
        datasets.pack(
            f"s1_{k}",
            rng.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8),
            box=(1, 2, 10, 12),
            mels=rng.uniform(-80, 0, (6, N_MELS)).astype(np.float32),
            speech=rng.normal(size=(6, 4)).astype(np.float16),
            codec=codec,
            split=split,
            interpolated_frames=[1] if k else [],
            notes=[SIGNS] if k else [],
            source_seconds=[0.0, 0.04, 0.08],
        )
        for k, split in enumerate(splits)
    ]
    sources = [
        {"name": "grid", "licence": "CC BY 4.0", "citation": "GRID, 2006: https://example.org/grid"},
        {"name": SIGNS, "licence": "not stated"},
    ]
    fields = {"codec": codec, "size": SIZE, "n_mels": N_MELS, "sources": sources, "files_found": 6}
    return datasets.write(folder, clips, per_shard=1, dropped=DROPPED, **fields)


def write_card(folder: Path, *words: str) -> str:
    """Output of the command, which succeeds."""
    result = CliRunner().invoke(cli, ["card", str(folder), *words])
    assert result.exit_code == 0, result.output
    return result.output


def read_front_matter(folder: Path) -> dict[str, Any]:
    """The YAML of a card."""
    _, text, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front_matter: dict[str, Any] = yaml.safe_load(text)
    return front_matter


@pytest.mark.parametrize("codec", ["webp", "raw"])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_load_dataset_gives_splits_with_the_values_of_our_reader(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))  # read when it is imported
    import datasets as hf

    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = make_dataset(tmp_path / "shards", codec)
    write_card(folder)
    splits = hf.load_dataset(str(folder))
    dataset = open_dataset(folder)
    assert {name: rows["__key__"][:] for name, rows in splits.items()} == {
        name: dataset.clips.ids_in_split(name) for name in ("train", "test")
    }
    for row in (row for rows in splits.values() for row in rows):
        clip, info = read_clip(dataset, row["__key__"]), row["json"]
        assert np.array_equal(np.array(row["boxes.npy"], np.int16), clip.boxes)
        assert np.array_equal(np.array(row["mels.npy"], np.float32), clip.mels)
        assert np.array_equal(np.array(row["affine.npy"], np.float32), clip.affine)
        assert np.array_equal(np.array(row["speech.npy"], np.float16), clip.speech)
        blob = row[f"frames.{codec}"]
        frames = [blob[start:end] for start, end in pairwise(info["frame_offsets"])]
        if codec == "raw":
            pictures = [np.frombuffer(frame, np.uint8).reshape(SIZE, SIZE, 3) for frame in frames]
        else:
            pictures = [np.array(Image.open(io.BytesIO(frame))) for frame in frames]
        assert np.array_equal(pictures, clip.frames)
        assert {key: info[key] for key in clip.info} == clip.info
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)), names)
    clip = read_clip(dataset, names["row"]["__key__"])
    assert np.array_equal(names["first_frame"], clip.frames[0]) and np.array_equal(names["mels"], clip.mels)


def test_every_key_of_the_json_member_has_a_type() -> None:
    assert set(JSON_FIELDS | SPAN_JSON_FIELDS) == set(SampleInfo.model_fields) - {"tools"}


# Of rdflib and pandas, from Python 3.12 on of tarfile; mlcroissant leaves files to the garbage collector.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_mlcroissant_finds_nothing_wrong_and_reads_tables_and_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROISSANT_CACHE", str(tmp_path / "cache"))  # read when it is imported
    mlcroissant = pytest.importorskip("mlcroissant")

    folder = make_dataset(tmp_path / "shards")
    words = ["--url", "https://example.org/d", "--creator", SIGNS, "--published", "2026-11-29"]
    assert "lacks" not in write_card(folder, *words)
    description = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    metadata, dataset = description.metadata, open_dataset(folder)
    assert not metadata.ctx.issues.errors and not metadata.ctx.issues.warnings
    assert metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    assert metadata.license == ["https://creativecommons.org/licenses/by/4.0/", f"{SIGNS}: not stated"]
    assert {item.id: item.sha256 for item in metadata.file_objects if item.id.endswith(".tar")} == {
        name: entry.sha256 for name, entry in dataset.shards.items()
    }
    records = {
        name: [
            {key.removeprefix(f"{name}/"): value for key, value in record.items()}
            for record in description.records(name)
        ]
        for name in ("clips", "files", "frames", "boxes", "mels", "affine", "speech", "json")
    }
    assert [record["clip_id"].decode() for record in records["clips"]] == list(dataset.clips)
    assert [record["mels_size"] for record in records["clips"]] == [
        row["mels_size"] for row in dataset.clips.values()
    ]
    assert [record["path"].decode() for record in records["files"]] == [
        row["path"] for row in read_ledger(folder / "ledger.parquet")
    ]
    for clip_id in dataset.clips:
        members = read_members(dataset, clip_id)
        for name, data in members.items():
            (content,) = [
                record["content"] for record in records[name] if record["clip_id"] == clip_id.encode()
            ]
            assert content == data
        assert np.array_equal(npy_to_array(members["boxes"], "boxes"), read_clip(dataset, clip_id).boxes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_card_of_files_that_were_cut_shows_seconds_and_describes_spans(tmp_path: Path) -> None:
    folder = datasets.write_cut(tmp_path / "shards")
    write_card(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "2 clips were cut out of 3 source files, which last 0:01:13." in text
    assert "| a clip | 2 | 0:00:00 | 0.7% |  |" in text
    assert "| no\\_speech | 2 | 0:00:22 | 30.7% | is none: no\\_speech |" in text
    assert "Not counted are files whose length could not be measured: empty (1)." in text
    assert "name: sound_shift" in text
    mlcroissant = pytest.importorskip("mlcroissant")
    metadata = mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).metadata
    assert not metadata.ctx.issues.errors
    (files,) = [records for records in metadata.record_sets if records.id == "files"]
    assert files.key == ["files/path", "files/start_seconds"]
    descriptions = {field.name: field.description for field in files.fields}
    assert descriptions["lag_frames"] == "by which the mouth is late in the file; negative: the sound is"


def test_a_card_shows_counts_and_reasons_and_no_texts_of_strangers_as_markup(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "shards")
    output = write_card(folder)
    assert (
        "croissant.json lacks what Croissant asks for and no dataset says: --url, --creator, --pub" in output
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| no\\_face | 2 | no face in frames 0-7 of 75 |" in text
    assert re.search(r"^\| crash \| 1 \| \.\.\. +\\\| a\\\|b \\<script\\>x", text, re.MULTILINE)
    assert "| train | 2 | 6 | 1 | 2 | 0.0 |" in text and "Of 6 source files 3 became clips." in text
    assert "| grid | CC BY 4.0 | GRID, 2006: https://example.org/grid |" in text
    assert "<script" not in re.sub(r"\\.", "", text) and "](http" not in re.sub(r"\\.", "", text)
    for name in ("README.md", "croissant.json"):
        assert not re.search(
            r"/home|" + re.escape(str(tmp_path)), (folder / name).read_text(encoding="utf-8")
        )
    front_matter = read_front_matter(folder)
    assert front_matter["license"] == ["cc-by-4.0", "unknown"]
    assert front_matter["configs"][0]["data_files"] == [
        {"split": "test", "path": "test-*.tar"},
        {"split": "train", "path": "train-*.tar"},
    ]


def test_a_card_changes_no_dataset_and_has_the_same_bytes_again(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "shards")
    before = hash_files(folder)
    write_card(folder)
    first = hash_files(folder)
    assert {name: first[name] for name in before} == before
    assert sorted(set(first) - set(before)) == ["README.md", "croissant.json"]
    write_card(folder)
    assert hash_files(folder) == first


@pytest.mark.parametrize("name", ["README.md", "croissant.json"])
def test_a_file_of_someone_else_is_not_replaced(name: str, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "shards")
    (folder / name).write_text("my own")
    before = hash_files(folder)
    result = CliRunner().invoke(cli, ["card", str(folder)])
    assert (result.exit_code, hash_files(folder)) == (1, before)
    reason = "is there already and was not written by `pipeline card`; rename or remove it"
    assert result.output == f"Error: {folder / name}: {reason}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "split 'a-*', expected letters of ASCII, digits and _, which is what Hugging Face takes as one"),
        (["--url", "javascript:x"], "'javascript:x': expected http:// or https:// and no spaces"),
        (["--creator", "a\nb"], "'a\\nb': expected one printable line"),
    ],
)
def test_what_others_cannot_read_is_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path
) -> None:
    folder = make_dataset(tmp_path / "shards", splits=("a-*",))
    result = CliRunner().invoke(cli, ["card", str(folder), *words])
    assert result.exit_code != 0 and result.output.strip().splitlines()[-1].endswith(message)
    assert not (folder / "README.md").exists()
