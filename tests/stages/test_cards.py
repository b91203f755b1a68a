"""Cards side by side: what compares with what, Table 2 of the paper, and cards that a stranger altered."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.main import cli
from stages.engine.outcome import StageError
from stages.evaluate.system_card import CARD, PICTURE, read_system_card
from stages.report.cards import MAX_PICTURE_PX, CardsSection, build_cards_section
from stages.report.page import render_cards_page
from stages.report.paper_table import OTHER_CLIPS, OTHER_PROTOCOL, TABLE_2, TRUE_LSE
from tests import reports
from tests.reports import make_card, write_card


def build(folder: Path, *cards: tuple[dict[str, Any], bytes]) -> CardsSection:
    for number, (card, picture) in enumerate(cards):
        write_card(folder / f"{number}", card, picture)
    return build_cards_section([folder])


def find_cell(section: CardsSection, group: int, row: int, column: str) -> Any:
    index = [each.name for each in section.columns].index(column)
    return section.groups[group].rows[row].cells[index]


def test_only_cards_of_the_same_clips_compare_and_the_page_says_why_others_do_not(tmp_path: Path) -> None:
    better = make_card("better")
    better[0]["own"]["figures"]["psnr_box_db"]["mean"] = 24.5
    best_of_fewer = make_card("best of fewer")
    best_of_fewer[0]["own"] |= {"scored": 1}
    best_of_fewer[0]["own"]["figures"]["psnr_box_db"]["mean"] = 24.9
    rescored = make_card("rescored")
    rescored[0]["conditions"]["scoring"] = "2.1"
    section = build(
        tmp_path,
        make_card("first"),
        better,
        best_of_fewer,
        make_card("of others", digest="d" * 64),
        make_card("of other clips", clips_sha256="d" * 64),
        rescored,
    )
    names = [[row.name for row in group.rows if not row.is_reference] for group in section.groups]
    assert names == [["first", "better", "best of fewer"], ["of others"], ["of other clips"], ["rescored"]]
    first, second, third = (find_cell(section, 0, row, "psnr_box_db") for row in range(3))
    assert (first.is_best, second.is_best, third.is_best) == (False, True, False)
    assert third.reason == "of 1 of 2 clips: the others could not be scored"
    notes = [group.note for group in section.groups]
    assert notes[0] == "" and "another dataset" in notes[1] and "other clips" in notes[2]
    assert "its metrics are of version 2.1, not 3.2" in notes[3]
    assert find_cell(section, 0, 0, "lse_c_real").reason == reports.HOSTILE, "why there is none"


def test_a_printed_figure_compares_only_on_the_papers_clips_by_its_protocol(tmp_path: Path) -> None:
    def list_compared(name: str, card: tuple[dict[str, Any], bytes]) -> set[tuple[str, str]]:
        section = build(tmp_path / name, card)
        return {
            (row.name, column.name)
            for row in section.paper.rows
            for column, cell in zip(section.columns, row.cells, strict=True)
            if cell.printed != "-" and not cell.reason
        }

    assert list_compared("grid", make_card()) == set()
    assert list_compared("part", make_card(name="crema-d")) == set()
    assert list_compared("small", make_card(name="crema-d", clips=4)) == set()
    whole = make_card(name="crema-d", clips=820, split_clips=820)
    scores = whole[0]["own"]
    scores["clips"] = scores["scored"] = 820
    figure = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 820}
    scores["not_computed"] = {}
    scores["figures"] = dict.fromkeys(("ssim_box", "psnr_box_db", "cpbd_box", *TRUE_LSE), figure)
    part = copy.deepcopy(whole)
    part[0]["own"]["figures"] = {"psnr_box_db": figure | {"n": 819}}
    assert list_compared("incomplete", part) == set()
    regions = {(row.name, column) for row in TABLE_2 for column in ("ssim_box", "psnr_box_db", "cpbd_box")
               if row.name.startswith("The paper, multi")}  # fmt: skip
    assert list_compared("whole", whole) == regions
    for shift, number in ((1.0, 9), (0.1, 9 + 22)):
        for column, printed in TRUE_LSE.items():
            truth = {"mean": printed + shift, "low": 1.0, "high": 9.0, "n": 820}
            whole[0]["references"]["ground truth"][column] = truth
        assert len(list_compared(f"{shift}", whole)) == number, (
            "LSE, where the true clips have the printed one"
        )
    reasons = build(tmp_path / "again", make_card()).reasons
    assert OTHER_CLIPS in reasons and OTHER_PROTOCOL not in reasons


def test_a_page_of_cards_alone_needs_no_dataset_and_is_the_same_each_time(tmp_path: Path) -> None:
    write_card(tmp_path / "cards" / "a", *make_card(reports.HOSTILE))
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        arguments = ["report", "--card", str(tmp_path / "cards"), "-o", str(page)]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
    html = pages[0].read_text()
    assert html == pages[1].read_text() and reports.HOSTILE not in html and "Table 2 of the paper" in html
    assert "means with bootstrap 95 % intervals. Rows" in html
    bare = CliRunner().invoke(cli, ["report", "-o", str(pages[0])])
    assert bare.exit_code == 2 and "--shards is required" in bare.output


def test_a_page_of_cards_without_intervals_does_not_say_what_they_are_over(tmp_path: Path) -> None:
    card, picture = make_card()
    card["version"], card["conditions"]["intervals"] = 2, "95 % intervals are over clips of 2 people alone"
    figure = card["own"]["figures"]["psnr_box_db"]  # the reference's too
    section = build(tmp_path / "with", (card, picture))
    assert section.has_intervals and "intervals are over" in dict(section.panels[0].facts)["scored by"]
    figure |= {"low": None, "high": None}
    section = build(tmp_path / "without", (card, picture))
    assert not section.has_intervals and "intervals" not in dict(section.panels[0].facts)["scored by"]
    assert "intervals" not in render_cards_page(section)


def test_references_have_only_obedience_in_the_columns_of_anothers_speech(tmp_path: Path) -> None:
    card, picture = make_card()
    figure = card["own"]["figures"]["psnr_box_db"]
    figures = {"audio_obedience": figure, "opening_correlation": figure}
    card["swapped"] = card["own"] | {"figures": figures}
    card["references"]["ground truth"] |= figures
    section = build(tmp_path, (card, picture))
    [truth] = [row for row in section.groups[0].rows if row.is_reference]
    shown = {
        (column.name, column.audio)
        for column, cell in zip(section.columns, truth.cells, strict=True)
        if cell.figure is not None
    }
    assert shown == {("psnr_box_db", "own"), ("audio_obedience", "swapped")}


def test_a_card_says_that_its_speech_is_of_another_split(tmp_path: Path) -> None:
    card, picture = make_card()
    assert "speech is of" not in str(build(tmp_path / "before", (card, picture)).panels[0].facts)
    card["version"] = 2
    card["own"]["other_splits"] = ["train"]
    [panel] = build(tmp_path / "now", (card, picture)).panels
    assert (
        "2 of 2 clips scored; steps 2; the speech is of the training split" in dict(panel.facts)["own audio"]
    )


def _make_large_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (MAX_PICTURE_PX + 1, 1)).save(buffer, "JPEG")
    return buffer.getvalue()


ALTERATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "version is 3, expected 1 or 2": lambda card: card.update(version=3),
    "system is missing": lambda card: card.pop("system"),
    "script is not known; known are format, ": lambda card: card.update(script="x"),
    "data.digest is '../x', expected": lambda card: card["data"].update(digest="../x"),
    "own.scored is -1, expected": lambda card: card["own"].update(scored=-1),
    "expected at most 262144": lambda card: card.update(system="x" * 300_000),
}


def test_a_card_that_a_stranger_altered_is_refused_in_one_line(tmp_path: Path) -> None:
    card, picture = make_card()
    for number, (message, alter) in enumerate(ALTERATIONS.items()):
        altered = copy.deepcopy(card)
        alter(altered)
        folder = write_card(tmp_path / f"{number}", altered, picture)
        with pytest.raises(StageError) as error:
            read_system_card(folder)
        assert message in str(error.value) and "\n" not in str(error.value)
    folder = write_card(tmp_path / "picture", card, picture)
    for data, message in ((b"<svg/>", "is not the picture with sha256"), (None, "No such file")):
        (folder / PICTURE).unlink()
        if data is not None:
            (folder / PICTURE).write_bytes(data)
        with pytest.raises(StageError, match=message):
            build_cards_section([folder])
    (folder / PICTURE).symlink_to(write_card(tmp_path / "other", card, picture) / PICTURE)
    with pytest.raises(StageError, match="leads out of its folder by a link"):
        build_cards_section([folder])
    for number, data in enumerate((b"<svg/>", _make_large_picture())):
        content = copy.deepcopy(card)
        content["picture"]["sha256"] = reports.hashlib.sha256(data).hexdigest()
        folder = write_card(tmp_path / f"own-picture-{number}", content, data)
        with pytest.raises(StageError, match=("not a picture", "2049x1 px, expected at most 2048")[number]):
            build_cards_section([folder])
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="holds no card"):
        build_cards_section([tmp_path / "empty"])
    assert not (tmp_path / "empty" / CARD).exists()
