"""Licences go from a corpus to a dataset, to every run trained on it, and to every file that starts there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from model.published import FOLDER, read_catalogue
from model.published_file import read_published_info
from pipeline.main import cli
from shards.index import DATASET_NAME, read_manifest
from shards.schema import ShardError
from shards.sources import NOT_STATED, DataSource, read_sources
from stages.engine.outcome import StageError
from stages.shard import make_source
from stages.train.run_file import read_data_sources, read_run_file
from tests.model import worlds
from tests.model.test_start import train_from
from tests.model.worlds import TINY

# So that biases, which begin at 0, are of a size that float16 can tell apart.
LARGE_STEPS = replace(TINY.optim, learning_rate=0.02, ema_decay=0.5)


def state_sources(shards: Path, *sources: DataSource) -> Path:
    """Write the sources to a dataset's manifest, as ``finish_dataset`` does."""
    path = shards / DATASET_NAME
    content = json.loads(path.read_text()) | {"sources": [item.model_dump() for item in sources]}
    path.write_text(json.dumps(content))
    return shards


def test_a_corpus_states_its_licence_and_the_user_that_of_a_folder() -> None:
    assert make_source("grid", "").licence == "CC BY 4.0" and make_source("crema-d", "").licence == "ODbL 1.0"
    assert str(make_source("folder", "CC0, Jane Doe")) == "folder (CC0, Jane Doe)"
    assert make_source("folder", "").licence == NOT_STATED
    with pytest.raises(StageError, match=r"^--licence: the clips of grid are CC BY 4.0"):
        make_source("grid", "CC0")
    with pytest.raises(StageError, match=r"^--licence: .*, expected one printable line"):
        make_source("folder", "CC0\nand more")


def test_a_model_names_the_licences_of_its_data_and_of_what_it_started_from(tmp_path: Path) -> None:
    grid, own = make_source("grid", ""), make_source("folder", "CC0, Jane Doe")
    first = state_sources(worlds.make_dataset(tmp_path / "first"), grid)
    worlds.run_training(first, tmp_path / "base", replace(TINY, steps=4, optim=LARGE_STEPS))
    assert read_run_file(tmp_path / "base")["data"] == [grid.model_dump()]

    def export(run: Path, out: Path) -> list[DataSource]:
        result = CliRunner().invoke(cli, ["export", "--run", str(run), "-o", str(out)])
        assert result.exit_code == 0, result.output
        info = read_published_info(out)
        assert f"trained on {', '.join(map(str, info.data))}" in result.output
        return info.data

    assert export(tmp_path / "base", tmp_path / "base.safetensors") == [grid]
    second = state_sources(worlds.make_dataset(tmp_path / "second", (9, 12, 7), seed=1), own)
    train_from(tmp_path / "base.safetensors", second, tmp_path / "run", steps=1)
    assert export(tmp_path / "run", tmp_path / "run.safetensors") == [grid, own]
    # What an older redub wrote says nothing, which is not lost either.
    older = worlds.make_dataset(tmp_path / "older", (9, 12, 7), seed=2)
    train_from(tmp_path / "run", older, tmp_path / "last", steps=1)
    last = export(tmp_path / "last", tmp_path / "last.safetensors")
    assert last[:2] == [grid, own] and last[2].licence == NOT_STATED


def test_the_catalogue_says_what_a_packaged_model_was_trained_on() -> None:
    for model in read_catalogue():
        if (FOLDER / model.file).exists():
            sources = read_data_sources(FOLDER / model.file)
            assert [item.licence for item in sources] == [item.licence for item in model.data]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([{"name": "a" * 1001, "licence": "CC0"}], "sources.0.name is 'aaa"),
        ([{"name": "a", "licence": "CC0\x1b[31m"}], "sources.0.licence: 'CC0"),
        ([{"name": "a", "licence": "CC0"}] * 101, "sources is"),
        ({"name": "a"}, "sources is"),
    ],
)
def test_a_stranger_s_sources_are_short_lines_or_refused(
    tmp_path: Path, sources: object, expected: str
) -> None:
    shards = worlds.make_dataset(tmp_path / "shards", (3,))
    path = shards / DATASET_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sources": sources}))
    with pytest.raises(ShardError) as error:
        read_manifest(shards)
    assert expected in str(error.value) and str(error.value).isprintable()


def test_a_manifest_without_sources_is_of_a_licence_that_is_not_stated() -> None:
    assert [str(source) for source in read_sources({"dataset": "lrs3\n"})] == ["lrs3 (not stated)"]
