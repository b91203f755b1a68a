"""Corpora whose folders say who speaks and which split a clip is of, on made trees."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest
from click.testing import CliRunner

from pipeline import bucket_build
from pipeline.main import cli
from pipeline.params import Params
from pipeline.tools import list_tools
from shards.ledger import OK, read_ledger
from shards.storage import LocalStorage
from stages import clips, synth
from stages.clips import ClipsParams
from stages.corpora import get_corpus, lrs2
from stages.corpora.corpus import BadName, Identity, split_by_speaker
from stages.engine.outcome import Outcome, StageError
from stages.engine.stage import Context, Work
from stages.synth import ClipSpec

SPEAKER_SPLIT = "by speaker"
TREES = {
    "lrs3": {
        "pretrain/0Fi83BHQsMA/00001.mp4": ("pretrain_0Fi83BHQsMA_00001", "0Fi83BHQsMA", "train"),
        "trainval/0Fi83BHQsMA/00001.mp4": ("trainval_0Fi83BHQsMA_00001", "0Fi83BHQsMA", "train"),
        "test/-aBcD_12345/00003.mp4": ("test_-aBcD_12345_00003", "-aBcD_12345", "test"),
        "other/0Fi83BHQsMA/00001.mp4": None,
    },
    "lrs2": {
        "mvlrs_v1/main/6330311066473698535/00011.mp4": (
            "main_6330311066473698535_00011",
            "6330311066473698535",
            "train",
        ),
        "mvlrs_v1/main/6330311066473698535/00012.mp4": (
            "main_6330311066473698535_00012",
            "6330311066473698535",
            "val",
        ),
        "mvlrs_v1/main/6330311066473698536/00001.mp4": (
            "main_6330311066473698536_00001",
            "6330311066473698536",
            "test",
        ),
        "mvlrs_v1/main/6330311066473698536/00002.mp4": (
            "main_6330311066473698536_00002",
            "6330311066473698536",
            "unlisted",
        ),
        "mvlrs_v1/pretrain/6330311066473698535/00011.mp4": (
            "pretrain_6330311066473698535_00011",
            "6330311066473698535",
            "train",
        ),
        "mvlrs_v1/other/6330311066473698535/00011.mp4": None,
    },
    "hdtf": {
        "RD_Radio1_000.mp4": ("RD_Radio1_000", "Radio1", SPEAKER_SPLIT),
        "RD_Radio11_001.mp4": ("RD_Radio11_001", "Radio11", SPEAKER_SPLIT),
        "WDA_NancyPelosi0_000.mp4": ("WDA_NancyPelosi0_000", "NancyPelosi", SPEAKER_SPLIT),
        "cut/NancyPelosi3_12.mp4": ("NancyPelosi3_12", "NancyPelosi", SPEAKER_SPLIT),
        "WDA_WhipJimClyburn_000.mp4": ("WDA_WhipJimClyburn_000", "JamesClyburn", SPEAKER_SPLIT),
        "WDA_LucilleRoybal-Allard_000.mp4": (
            "WDA_LucilleRoybal-Allard_000",
            "LucilleRoybal-Allard",
            SPEAKER_SPLIT,
        ),
        "RD_Radio1.mp4": None,
    },
    "talkinghead1kh": {
        "train/cropped_clips/--Y9imYnfBw_0000_S1015_E1107_L488_T23_R824_B359.mp4": (
            "train_--Y9imYnfBw_0000_S1015_E1107_L488_T23_R824_B359",
            "--Y9imYnfBw",
            "train",
        ),
        "val/cropped_clips/A2800grpOzU_0002_S812_E1407_L227_T7_R1139_B919.mp4": (
            "val_A2800grpOzU_0002_S812_E1407_L227_T7_R1139_B919",
            "A2800grpOzU",
            "test",
        ),
        "train/A2800grpOzU_0002_S812_E1407_L227_T7_R1139_B919.mp4": None,
        "train/cropped_clips/A2800grpOzU_0002.mp4": None,
    },
    "voxceleb2": {
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4": ("dev_id00012_21Uxsk56VDQ_00001", "id00012", "train"),
        "test/mp4/id00017/-aBcD_12345/00042.mp4": ("test_id00017_-aBcD_12345_00042", "id00017", "test"),
        "dev/mp4/id12/21Uxsk56VDQ/00001.mp4": None,
    },
}


def write_lists(folder: Path, **lists: str) -> None:
    """LRS2's lists of splits, as they come: a flag after some clips for testing."""
    texts = {
        "train": "6330311066473698535/00011\n",
        "val": "6330311066473698535/00012\n",
        "test": "6330311066473698536/00001 NF\n6330311066473698536/00009 MV\n",
    }
    for name, text in (texts | lists).items():
        (folder / f"{name}.txt").write_text(text)


@pytest.mark.parametrize("corpus", TREES)
def test_a_tree_as_its_archives_unpack_has_the_corpus_s_own_split(tmp_path: Path, corpus: str) -> None:
    synth.make_clip(tmp_path / "a.mp4", ClipSpec(speaker=1, seconds=0.6, size=(240, 192)))
    for name in TREES[corpus]:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(tmp_path / "a.mp4")
        path.with_suffix(".txt").write_text("Text:  words\n")
    if corpus == "lrs2":
        write_lists(tmp_path / "raw")
    work = Work(corpus, tmp_path / "raw", tmp_path / "work", tmp_path / "shards", tmp_path / "cache")
    clips.run(work, (), ClipsParams(), Context())
    rows = {row["path"]: row for row in read_ledger(work.ledger)}
    assert rows.keys() == TREES[corpus].keys()
    for name, expected in TREES[corpus].items():
        if expected is None:
            assert rows[name]["code"] == "bad_name" and name in rows[name]["reason"]
        else:
            assert rows[name]["status"] == OK, rows[name]["reason"]
            clip_id, speaker, split = expected
            if split == SPEAKER_SPLIT:
                split = split_by_speaker(Identity(clip_id, speaker), ClipsParams().test_share)
            assert (rows[name]["clip_id"], rows[name]["speaker"], rows[name]["split"]) == (
                clip_id, speaker, split,
            )  # fmt: skip


def test_a_subset_s_folder_may_be_the_raw_folder_itself() -> None:
    below = get_corpus("lrs3").identify(PurePosixPath("0Fi83BHQsMA/00001.mp4"), "test")
    assert below.clip_id == "test_0Fi83BHQsMA_00001"
    below = get_corpus("voxceleb2").identify(PurePosixPath("mp4/id00012/21Uxsk56VDQ/00001.mp4"), "dev")
    assert below.clip_id == "dev_id00012_21Uxsk56VDQ_00001"
    below = get_corpus("lrs2").identify(PurePosixPath("6330311066473698535/00011.mp4"), "main")
    assert below.clip_id == "main_6330311066473698535_00011"
    below = get_corpus("talkinghead1kh").identify(
        PurePosixPath("cropped_clips/A2800grpOzU_0002_S812_E1407_L227_T7_R1139_B919.mp4"), "val"
    )
    assert below.clip_id.startswith("val_A2800grpOzU")


CLIP = "mvlrs_v1/main/6330311066473698535/00011.mp4"


@pytest.mark.parametrize(
    ("path", "raw_name", "place"),
    [
        (CLIP, "raw", "mvlrs_v1"),
        (CLIP, "raw", "mvlrs_v1/main"),
        ("6330311066473698535/00011.mp4", "main", "."),
    ],
)
def test_the_lists_of_lrs2_may_be_beside_or_in_the_folder_of_its_clips(
    tmp_path: Path, path: str, raw_name: str, place: str
) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    write_lists(tmp_path / place)
    splits = lrs2.read_splits([PurePosixPath(path)], raw_name, LocalStorage(tmp_path))
    assert splits["main_6330311066473698535_00011"] == "train"
    assert splits["main_6330311066473698536_00001"] == "test"


def test_the_lists_of_lrs2_are_not_needed_for_pretrain_alone(tmp_path: Path) -> None:
    paths = [PurePosixPath("6330311066473698535/00011.mp4")]
    assert lrs2.read_splits(paths, "pretrain", LocalStorage(tmp_path)) == {}


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"val": "../../etc/passwd\n"}, "val.txt: line 1 is '../../etc/passwd', expected e.g. '633031106"),
        ({"val": "x" * 99}, "line 1 is 'x{60}', expected"),
        ({"test": "6330311066473698535/00011 NF\n"}, "lists main_6330311066473698535_00011, which is in the"),
        ({"train": "\n" * (lrs2.MAX_LIST_BYTES + 1)}, "train.txt: has 16777217 bytes, expected at most 167"),
        ({}, r"^--raw .*raw: train.txt of LRS2, which say the split .* are not there; put them beside that"),
    ],
)
def test_a_list_of_lrs2_that_is_missing_or_no_list_is_one_line(
    tmp_path: Path, lists: dict[str, str], expected: str
) -> None:
    (tmp_path / "raw").mkdir()
    write_lists(tmp_path / "raw", **lists)
    if not lists:
        (tmp_path / "raw" / "train.txt").unlink()
        (tmp_path / "elsewhere").write_text("6330311066473698535/00011\n")
        (tmp_path / "raw" / "train.txt").symlink_to(tmp_path / "elsewhere")  # a link that leads out
    with pytest.raises(StageError, match=expected) as caught:
        clips.read_splits("lrs2", [PurePosixPath(CLIP)], "raw", LocalStorage(tmp_path / "raw"))
    assert "\n" not in str(caught.value)


def test_the_lists_of_lrs2_are_read_from_a_bucket_too(tmp_path: Path) -> None:
    path = tmp_path / "raw" / CLIP
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no video")
    write_lists(tmp_path / "raw")
    params = Params()
    job = bucket_build.BuildJob(
        "lrs2", str(tmp_path / "raw"), str(tmp_path / "bucket"), params, list_tools(params)
    )
    work = Work("lrs2", tmp_path / "raw", tmp_path / "work", tmp_path / "shards", tmp_path / "cache")
    bucket_build.probe_bucket(job, work, Context())
    (row,) = read_ledger(work.ledger)
    assert row["split"] == "train"


@pytest.mark.parametrize(
    ("corpus", "beside"),
    [("hdtf", "_videos_raw/RD_Radio1.mp4"), ("talkinghead1kh", "train/1min_clips/A2800grpOzU_0002.mp4")],
)
def test_what_a_corpus_s_scripts_leave_beside_its_clips_is_left_out(
    tmp_path: Path, corpus: str, beside: str
) -> None:
    for name in (beside, next(iter(TREES[corpus]))):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no video")
    words = ["clips", "--dataset", corpus, "--raw", str(tmp_path / "raw"), "--dry-run", "--json"]
    plan = json.loads(CliRunner().invoke(cli, words).output)
    assert (plan["files"], plan["files_that_cannot_be_opened"]) == (2, 1)
    files = clips.find_files(tmp_path / "raw", ClipsParams(**plan["params"]["clips"]))
    codes = {file.path: file.problem.code for file in files if file.problem is not None}
    assert codes == {PurePosixPath(beside).parent: "excluded"}


@pytest.mark.parametrize("corpus", TREES)
@pytest.mark.parametrize(
    "path", ["00001.mp4", "test/a b/00001.mp4", "test/../00001.mp4", "test/mp4/id00012/é/1.mp4"]
)
def test_a_name_that_is_not_the_corpus_s_is_refused(corpus: str, path: str) -> None:
    with pytest.raises(BadName, match=r"is no .* clip like"):
        get_corpus(corpus).identify(PurePosixPath(path), "raw")


def test_a_speaker_is_in_one_split_with_all_clips() -> None:
    speakers = [f"p{k}" for k in range(400)]
    split = {
        name: {split_by_speaker(Identity(f"{name}_{k}", name), 0.2) for k in range(3)} for name in speakers
    }
    assert all(len(names) == 1 for names in split.values())
    assert 0.12 < sum(names == {"test"} for names in split.values()) / len(speakers) < 0.28


def test_whole_speakers_of_a_folder_are_the_test_split_where_that_is_asked_for(tmp_path: Path) -> None:
    params = ClipsParams(folder_split="speaker", test_share=0.5)
    split: dict[str, set[str]] = {}
    for name in (f"p{who}/{k}.mp4" for who in range(12) for k in range(6)):
        file = clips.RawFile(PurePosixPath(name))
        row = clips.make_row(file, {}, Outcome(facts={"frames": 25}), "folder", "raw", params)
        split.setdefault(row["speaker"], set()).add(row["split"])
    assert {len(names) for names in split.values()} == {1}
    assert set.union(*split.values()) == {"train", "test"}


def test_a_dataset_that_does_not_ask_for_it_is_described_as_before() -> None:
    assert "folder_split" not in Params().describe_dataset()["clips"]
    assert "folder_split" not in ClipsParams().select_probe_params()
    asked = Params(clips=ClipsParams(folder_split="speaker"))
    assert asked.describe_dataset()["clips"]["folder_split"] == "speaker"
