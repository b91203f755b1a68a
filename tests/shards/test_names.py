"""What may be the name of a clip or of a file: never a path, never longer than a file system takes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import MAX_MESSAGE_LETTERS, ShardError
from shards.names import MAX_ID_BYTES, check_clip_id, is_file_name, is_id


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\0b", "a\nb", "a\x1bb", "a.b", "a~b", "a ", " a",
     "a\u00a0", "x" * 101, "é" * 51, "nul", "COM1", "\u202eabc", "\ud800", 3, None],
)  # fmt: skip
def test_a_name_that_is_not_plain_is_no_id(name: object) -> None:
    assert not is_id(name)
    with pytest.raises(ShardError, match="is not a plain name") as error:
        check_clip_id(name)
    assert len(str(error.value)) <= MAX_MESSAGE_LETTERS and str(error.value).isprintable()


@pytest.mark.parametrize("name", ["s1_bbaf2n", "1001_DFA_ANG_XX", "a b", "é", "x" * 100, "console", "-"])
def test_ids_of_our_corpora_are_ids(name: str) -> None:
    assert is_id(name)


@pytest.mark.parametrize("name", [".lock", "a/b.tar", "..", "con.tar", "a.tar ", ""])
def test_a_hidden_file_or_a_path_is_no_file_name(name: str) -> None:
    assert not is_file_name(name) and is_file_name("train-00000-0123456789ab.tar")


@given(st.text())
def test_an_id_stays_in_its_folder_and_fits_there_twice(name: str) -> None:
    if is_id(name):
        pair = f".{name}~{name}.tar.0123456789ab.partial"
        assert os.path.normpath(f"/folder/{pair}") == f"/folder/{pair}" and len(pair.encode()) <= 255
        assert len(name.encode()) <= MAX_ID_BYTES and name == name.strip() and "." not in name
