"""A dataset in memory equals its clips on disk; what cannot be loaded raises an error of one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards import resident
from shards.frames import BatchIndex, NetworkInput
from shards.index import DATASET_NAME, INDEX_NAME, INDEX_SCHEMA, LEDGER_NAME, write_index, write_manifest
from shards.ledger import write_ledger
from shards.reader import open_dataset, read_clip
from shards.resident import Resident, load_resident, split_held_out
from shards.schema import ShardError
from shards.table import Rows
from shards.writer import PackedClip
from tests import datasets

SIZE, N_MELS, PAD = 8, 3, 4
SILENCE_DB = -80.0
NETWORK_INPUT = NetworkInput(SIZE, N_MELS, SILENCE_DB)
CPU = torch.device("cpu")
PARAMS = {"align": {"size": SIZE}, "mels": {"n_mels": N_MELS, "top_db": 80.0}}


def make_clip(key: str, length: int, *, seed: int) -> PackedClip:
    rng = np.random.default_rng(seed)
    return datasets.pack(
        key,
        rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8),
        box=(1, 3, 6, 8),
        mels=rng.uniform(-79, 0, (2 * length, N_MELS)).astype(np.float32),
    )


CLIPS = [make_clip("s1_b", 5, seed=1), make_clip("s1_a", 3, seed=2), make_clip("s2_c", 1, seed=3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return datasets.write(tmp_path / "shards", CLIPS, params=PARAMS)


def load(folder: Path, *clip_ids: str, size: int = SIZE, n_mels: int = N_MELS, top: int = 0) -> Resident:
    dataset = open_dataset(folder)
    return load_resident(
        dataset,
        clip_ids or list(dataset.clips),
        NetworkInput(size, n_mels, SILENCE_DB, top, mel_pad=PAD),
        device=CPU,
        workers=2,
    )


def test_memory_contains_what_reading_the_clips_returns(folder: Path) -> None:
    data, dataset = load(folder), open_dataset(folder)
    assert data.clips.ids == ["s1_a", "s1_b", "s2_c"]
    clips = [read_clip(dataset, clip_id) for clip_id in data.clips.ids]
    assert len(data) == sum(len(clip.frames) for clip in clips)
    assert np.array_equal(data.frames.numpy(), np.concatenate([clip.frames for clip in clips]))
    assert np.array_equal(data.boxes.numpy(), np.concatenate([clip.boxes for clip in clips]))
    assert data.clips.starts.tolist() == [0, 3, 8, 9]


def test_the_mels_of_a_frame_are_from_its_clip_with_silence_beyond_its_ends(folder: Path) -> None:
    data, dataset = load(folder), open_dataset(folder)
    every = np.arange(len(data))
    windows = data.read_batch(BatchIndex(every, every, every, every, (4, 3))).mels
    assert windows.shape == (9, 8, N_MELS)
    frame = 0
    for clip_id in data.clips.ids:
        mels = read_clip(dataset, clip_id).mels
        padded = np.pad(mels, ((4, 4), (0, 0)), constant_values=SILENCE_DB)
        for i in range(len(mels) // 2):
            assert np.array_equal(windows[frame].numpy(), padded[2 * i : 2 * i + 8]), (clip_id, i)
            frame += 1


def test_a_batch_contains_the_frames_of_its_index_in_order(folder: Path) -> None:
    data = load(folder)
    target, previous, identity = np.array([8, 0, 4, 4]), np.array([8, 0, 3, 3]), np.array([8, 2, 7, 5])
    context = np.array([8, 1, 6, 7])
    batch = data.read_batch(BatchIndex(np.arange(4), target, previous, identity, (1, 2), context))
    assert batch.pixels.dtype == torch.uint8
    for pixels, index in zip(batch.pixels, (target, previous, identity, context), strict=True):
        assert torch.equal(pixels, data.frames[index])
    assert torch.equal(batch.boxes, torch.stack([data.boxes[target], data.boxes[previous]]))
    assert batch.mels.shape == (4, 4, N_MELS)


def test_frames_have_the_same_numbers_however_the_clips_were_sharded(folder: Path, tmp_path: Path) -> None:
    reversed_order = datasets.write(tmp_path / "reversed", CLIPS[::-1])
    parts = [datasets.write(tmp_path / f"part{i}", [clip]) for i, clip in enumerate(CLIPS)]
    merged = tmp_path / "spread"
    merged.mkdir()
    part_datasets = [open_dataset(part) for part in parts]
    entries = [entry for part in part_datasets for entry in part.shards.values()]
    for part, entry in zip(parts, entries, strict=True):
        (part / entry.name).rename(merged / entry.name)
    write_index(
        merged / INDEX_NAME, [Rows.from_rows(part.clips.values(), INDEX_SCHEMA) for part in part_datasets]
    )
    write_ledger(merged / LEDGER_NAME, [row for part in part_datasets for row in part.ledger()])
    write_manifest(merged / DATASET_NAME, entries)
    assert len(open_dataset(merged).shards) == 3
    one = load(folder)
    for other in (load(reversed_order), load(merged)):
        assert other.clips.ids == one.clips.ids
        for name in ("frames", "boxes", "mels", "mel_row"):
            assert torch.equal(getattr(other, name), getattr(one, name)), name


def test_only_the_selected_clips_are_loaded_and_each_is_reported(folder: Path) -> None:
    loaded: list[int] = []
    dataset = open_dataset(folder)
    data = load_resident(
        dataset,
        ["s2_c", "s1_b"],
        NETWORK_INPUT,
        device=CPU,
        workers=1,
        done=loaded.append,
    )
    assert data.clips.ids == ["s1_b", "s2_c"]
    assert loaded == [5, 1]


# --- what cannot be loaded ------------------------------------------------------------------------


def load_error(folder: Path, *clip_ids: str, **other: int) -> str:
    """The message of the ShardError that loading raises."""
    with pytest.raises(ShardError) as caught:
        load(folder, *clip_ids, **other)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_of_another_crop_size_or_other_mels_is_refused_before_loading(folder: Path) -> None:
    dataset = open_dataset(folder)
    NETWORK_INPUT.check_dataset(dataset.manifest, str(folder))
    for other, message in (
        ({"size": 16}, "holds 8 px crops, the network takes 16"),
        ({"n_mels": 256}, "holds 3 mel bins, the network takes 256"),
        ({"silence_db": -100.0}, "holds 80 dB of range, the network takes 100"),
    ):
        with pytest.raises(ShardError) as caught:
            replace(NETWORK_INPUT, **other).check_dataset(dataset.manifest, str(folder))
        assert str(caught.value) == f"{folder}: {message}"


def test_clips_that_are_not_what_the_manifest_says_are_refused(folder: Path) -> None:
    assert "s1_a holds frames (3, 8, 8, 3) and 3 mel bins, expected (3, 16, 16, 3)" in load_error(
        folder, size=16
    )
    assert "3 mel bins, expected (3, 8, 8, 3) and 5" in load_error(folder, n_mels=5)


def test_a_mask_box_above_the_first_row_of_the_network_is_refused(folder: Path) -> None:
    load(folder, top=3)
    assert "begins at row 3, the network looks at rows from 4 on" in load_error(folder, top=4)


@pytest.mark.parametrize("member", ["frames", "boxes", "mels", "affine", "json"])
def test_a_flipped_bit_is_refused_by_the_clips_name(folder: Path, member: str) -> None:
    row = open_dataset(folder).clips["s1_b"]
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row[f"{member}_offset"] + row[f"{member}_size"] // 2] ^= 1
    path.write_bytes(data)
    assert f"s1_b's {member} are not the bytes that the index names" in load_error(folder)
    load(folder, "s1_a", "s2_c")


def test_a_shard_that_was_cut_short_or_is_gone_is_refused(folder: Path) -> None:
    path = folder / open_dataset(folder).clips["s1_a"]["shard"]
    path.write_bytes(path.read_bytes()[:3000])
    assert "ends at byte 3000, expected" in load_error(folder)
    path.unlink()
    assert "cannot be read (No such file" in load_error(folder)


def test_an_index_without_a_column_is_refused(folder: Path) -> None:
    table = pq.read_table(folder / INDEX_NAME)
    pq.write_table(table.drop_columns(["mels_offset"]), folder / INDEX_NAME)
    with pytest.raises(ShardError, match=r"index lacks the columns \['mels_offset'\]"):
        open_dataset(folder)


def test_an_index_that_counts_other_frames_is_refused(folder: Path) -> None:
    table = pq.read_table(folder / INDEX_NAME)
    wrong = pa.array([n + 1 for n in table["frames"].to_pylist()], pa.int32())
    pq.write_table(table.set_column(table.column_names.index("frames"), "frames", wrong), folder / INDEX_NAME)
    assert "s1_a: its json has 3 frames, the index 4" in load_error(folder, "s1_a")


def test_an_empty_list_of_clips_is_refused(folder: Path) -> None:
    dataset = open_dataset(folder)
    with pytest.raises(ShardError, match="no clips to load"):
        load_resident(dataset, [], NETWORK_INPUT, device=CPU, workers=1)


def test_too_little_memory_is_an_error_before_anything_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 9 * SIZE * SIZE * 3
    free = int(needed / resident.MEMORY_SHARE) - 1
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(resident, "read_clip", None)
    message = load_error(folder)
    assert "9 frames take 0.0 GB, of 0.0 GB free on cpu 80% may be used" in message


# --- held-out clips -------------------------------------------------------------------------------

IDS = st.lists(st.text("abcdefgh_123", min_size=1, max_size=8), unique=True, min_size=1, max_size=60)


@given(ids=IDS, share=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_held_out_clips_are_whole_clips_and_no_others(ids: list[str], share: float, seed: int) -> None:
    trained, held_out = split_held_out(ids, share, seed=seed)
    assert sorted(trained + held_out) == sorted(ids)
    assert not set(trained) & set(held_out)
    assert trained, "some clips remain to train on"
    assert split_held_out(reversed(ids), share, seed=seed) == (trained, held_out)
    assert bool(held_out) == (len(ids) > 1 and share > 0)
    assert abs(len(held_out) - share * len(ids)) < 1 + 1e-9


@given(ids=IDS, share=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_a_new_clip_moves_at_most_one_other_across(ids: list[str], share: float, seed: int) -> None:
    _, before = split_held_out(ids, share, seed=seed)
    _, after = split_held_out([*ids, "new-clip"], share, seed=seed)
    assert len((set(before) ^ set(after)) - {"new-clip"}) <= 1


def test_another_seed_holds_out_other_clips() -> None:
    ids = [f"s1_clip{i}" for i in range(400)]
    held_out = [set(split_held_out(ids, 0.25, seed=seed)[1]) for seed in range(2)]
    assert len(held_out[0]) == len(held_out[1]) == 100
    assert 10 <= len(held_out[0] & held_out[1]) <= 40, "25 of 100 in common, by chance"
