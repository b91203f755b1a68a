"""Corpora whose folders say who speaks and which split a clip is of, on made trees."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from pipeline.params import Params
from shards.ledger import OK, read_ledger
from stages import clips, synth
from stages.clips import ClipsParams
from stages.corpora import get_corpus
from stages.corpora.corpus import BadName, Identity, split_by_speaker
from stages.engine.outcome import Outcome
from stages.engine.stage import Context, Work
from stages.synth import ClipSpec

TREES = {
    "lrs3": {
        "pretrain/0Fi83BHQsMA/00001.mp4": ("pretrain_0Fi83BHQsMA_00001", "0Fi83BHQsMA", "train"),
        "trainval/0Fi83BHQsMA/00001.mp4": ("trainval_0Fi83BHQsMA_00001", "0Fi83BHQsMA", "train"),
        "test/-aBcD_12345/00003.mp4": ("test_-aBcD_12345_00003", "-aBcD_12345", "test"),
        "other/0Fi83BHQsMA/00001.mp4": None,
    },
    "voxceleb2": {
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4": ("dev_id00012_21Uxsk56VDQ_00001", "id00012", "train"),
        "test/mp4/id00017/-aBcD_12345/00042.mp4": ("test_id00017_-aBcD_12345_00042", "id00017", "test"),
        "dev/mp4/id12/21Uxsk56VDQ/00001.mp4": None,
    },
}


@pytest.mark.parametrize("corpus", TREES)
def test_a_tree_as_its_archives_unpack_has_the_corpus_s_own_split(tmp_path: Path, corpus: str) -> None:
    synth.make_clip(tmp_path / "a.mp4", ClipSpec(speaker=1, seconds=0.6, size=(240, 192)))
    for name in TREES[corpus]:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(tmp_path / "a.mp4")
        path.with_suffix(".txt").write_text("Text:  words\n")
    work = Work(corpus, tmp_path / "raw", tmp_path / "work", tmp_path / "shards", tmp_path / "cache")
    clips.run(work, (), ClipsParams(), Context())
    rows = {row["path"]: row for row in read_ledger(work.ledger)}
    assert rows.keys() == TREES[corpus].keys()
    for name, expected in TREES[corpus].items():
        if expected is None:
            assert rows[name]["code"] == "bad_name" and name in rows[name]["reason"]
        else:
            assert rows[name]["status"] == OK, rows[name]["reason"]
            assert (rows[name]["clip_id"], rows[name]["speaker"], rows[name]["split"]) == expected


def test_a_subset_s_folder_may_be_the_raw_folder_itself() -> None:
    below = get_corpus("lrs3").identify(PurePosixPath("0Fi83BHQsMA/00001.mp4"), "test")
    assert below.clip_id == "test_0Fi83BHQsMA_00001"
    below = get_corpus("voxceleb2").identify(PurePosixPath("mp4/id00012/21Uxsk56VDQ/00001.mp4"), "dev")
    assert below.clip_id == "dev_id00012_21Uxsk56VDQ_00001"


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
