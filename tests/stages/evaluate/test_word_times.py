"""Alignment files as GRID has them, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.engine.outcome import StageError
from stages.evaluate.word_times import parse_alignment, read_alignments
from stages.metrics.closure import Word

CLIPS = {"s1_bbaf2n": {"speaker": "s1"}, "s1_lrae3s": {"speaker": "s1"}}


def write_alignment(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_words_of_the_clips_that_have_a_file_are_read(tmp_path: Path) -> None:
    write_alignment(tmp_path, "s1/bbaf2n.align", "0 17500 sil\n17500 23000 bin\n\n23000 75000 sil\n")
    words = read_alignments(tmp_path, CLIPS)
    assert words == {"s1_bbaf2n": [Word(0, 0.7, "sil"), Word(0.7, 0.92, "bin"), Word(0.92, 3, "sil")]}


@pytest.mark.parametrize("line", ["0 sil", "0 x sil", "0 1 two words", "-1 5 sil", "0.5 1 sil"])
def test_a_line_that_is_no_word_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 is "):
        parse_alignment(["0 1000 sil", line])


def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"nowhere: no such folder"):
        read_alignments(tmp_path / "nowhere", CLIPS)
    with pytest.raises(StageError, match=r"no file for any of these clips, such as .*s1/bbaf2n\.align"):
        read_alignments(tmp_path, CLIPS)
    write_alignment(tmp_path, "s1/bbaf2n.align", "no times")
    with pytest.raises(StageError, match=r"s1/bbaf2n\.align: not an alignment \(line 1 is 'no times'"):
        read_alignments(tmp_path, CLIPS)


def test_names_in_a_dataset_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_alignment(tmp_path, "secret/a.align", "0 1000 sil")
    write_alignment(tmp_path, "words/s1/bbaf2n.align", "0 1000 sil")
    hostile = {"../secret_a": {"speaker": "../secret"}, **CLIPS}
    assert list(read_alignments(tmp_path / "words", hostile)) == ["s1_bbaf2n"]
