"""Spans of files that were cut: every second is accounted for, whoever reads the ledger."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.main import cli
from pipeline.timeline import describe_span, format_time, format_timeline
from shards.diff import diff
from shards.ledger import SPAN_FIELDS, SYNCNET_FIELDS, build_ledger, read_ledger
from shards.reader import open_dataset
from shards.spans import SPAN_TEXTS, check_spans, count_files, group_spans, list_unknown, sum_seconds
from shards.verify import verify
from stages.report.card import build_card
from stages.report.run import ReportRequest, write_report
from stages.report.seconds import account_for_seconds
from tests import datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write_cut(tmp_path_factory.mktemp("cut") / "shards")


def explain(folder: Path, *words: str) -> list[str]:
    """Lines of the command, which succeeds."""
    result = CliRunner().invoke(cli, ["explain", str(folder), *words])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_the_seconds_of_clips_and_reasons_add_up_to_those_of_the_files(folder: Path) -> None:
    ledger = read_ledger(folder / "ledger.parquet")
    sums = sum_seconds(ledger)
    assert sums == pytest.approx(
        {"ok": 0.48, "no_face": 45.52, "no_speech": 22.4, "truncated": 3.02, "silent_face": 1.6}
    )
    assert list(sums) == ["ok", "no_face", "no_speech", "truncated", "silent_face"]
    assert sum(sums.values()) == pytest.approx(500 / 25 + 1250 / 25 + 3.02)
    assert [row["path"] for row in list_unknown(ledger)] == ["tv/empty.mp4"]
    assert count_files(ledger) == 4 and list(check_spans(ledger)) == []


@pytest.mark.parametrize(
    ("number", "changes", "problem"),
    [
        (0, {"end_seconds": 0.36}, "no span from 0.36 s to 0.40 s"),
        (1, {"start_seconds": 0.36}, "two spans from 0.36 s to 0.40 s"),
        (1, {"frames": 6}, "a_000010-000015 has 6 frames from 0.40 s to 0.60 s, expected 5 and at least 1"),
        (
            1,
            {"frames": None},
            "a_000010-000015 has None frames from 0.40 s to 0.60 s, expected 5 and at least",
        ),
        (2, {"end_seconds": None}, "one of its 3 spans has no times"),
        (0, {"start_seconds": 0.04}, "its first span begins at 0.04 s, expected 0"),
        (0, {"source_frames": 27}, "its spans end at 1.00 s, its picture at 1.08 s"),
    ],
)
def test_a_gap_an_overlap_and_a_wrong_length_are_found(
    number: int, changes: dict[str, Any], problem: str
) -> None:
    rows = datasets.make_spans("a.mp4", (10, "no_face"), (5, ""), (10, "no_speech"))
    assert list(check_spans(build_ledger(rows))) == []
    rows[number] |= changes
    (line,) = check_spans(build_ledger(rows))
    assert line.startswith(f"a.mp4: {problem}")


def test_verify_accepts_a_cut_dataset_and_names_a_file_with_a_gap(folder: Path, tmp_path: Path) -> None:
    assert list(verify(folder, full=True)) == []
    ledger = list(read_ledger(folder / "ledger.parquet"))
    clip = next(row for row in ledger if row["status"] == "ok")
    clips = [
        datasets.make_noise_clip(row["clip_id"], row["frames"], 8, 4, seed=row["frames"])
        for row in ledger
        if row["status"] == "ok" and row is not clip
    ]
    remaining = [row for row in ledger if row is not clip]
    fields = {"codec": "raw", "size": 8, "n_mels": 4}
    other = datasets.write(tmp_path / "other", clips, ledger=remaining, **fields)
    assert list(verify(other, full=False)) == [
        f"{other}/ledger.parquet: tv/film.mp4: no span from 12.40 s to 12.60 s"
    ]
    difference = diff(folder, other)
    assert difference.removed == {clip["clip_id"]: "its file is cut at other places"}
    assert not difference.files and not difference.reasons
    changed = [row | {"status": "dropped", "code": "dark"} if row is clip else row for row in ledger]
    changed = [row | ({"reason": "x"} if row["code"] == "silent_face" else {}) for row in changed]
    third = datasets.write(tmp_path / "third", clips, ledger=changed, **fields)
    difference = diff(folder, third)
    assert difference.removed == {clip["clip_id"]: "cut: "} and len(difference.files) == 1
    assert difference.reasons == {"tv/film.mp4 12.60-14.20 s": "is none: silent_face -> x"}


def test_explain_draws_the_timeline_of_a_file_and_says_what_was_measured_of_a_clip(folder: Path) -> None:
    lines = explain(folder, "film.mp4")
    assert lines[0] == "tv/film.mp4  (5 spans, 00:20.00)" and max(map(len, lines)) <= 100
    strip = next(line for line in lines if line.startswith("  |"))
    assert re.fullmatch(r"  \|[.]{59}.s{6,8}#*-+\|", strip) and len(strip) == 100
    assert "  . 00:00.00-00:12.40    12.40  no_speech: is none: no_speech" in lines
    clip = "track  0  sync 0.83  lag  +2  sound -0.08 s  film_000310-000315"
    assert f"  # 00:12.40-00:12.60     0.20  {clip}" in lines
    assert lines[-5:] == [
        "  # ok               2       0.48 s    2.4%",
        "  . no_speech        1      12.40 s   62.0%",
        "  - no_face          1       5.52 s   27.6%",
        "  s silent_face      1       1.60 s    8.0%",
        "    in all           5      20.00 s",
    ]
    lines = explain(folder, "film_000310-000315")
    assert lines[0] == "film_000310-000315  (tv/film.mp4)" and "kept    5 frames" in lines[-1]
    assert "  span    00:12.40 to 00:12.60 of its file, track 0" in lines
    assert "  sync    confidence 0.83, the mouth is 2 frames late, its sound is read 0.08 s earlier" in lines
    assert "  face    142 px wide, yaw -12 degrees" in lines and "  sound   speech at -24.1 dB" in lines
    assert "  dropped in clips: has 0 bytes  [empty]" in explain(folder, "tv/empty.mp4")
    rows = [json.loads(line) for line in explain(folder, "film.mp4", "--json")]
    assert len(rows) == 5 and [row["clip_id"] for row in rows if row["index"]] == [
        "film_000310-000315", "film_000355-000362"
    ]  # fmt: skip
    assert format_time(7261.999) == "121:02.00" and format_time(59.996) == "01:00.00"


def test_the_report_counts_files_once_and_shares_add_up(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(folder)
    assert build_card(dataset).n_files == 4
    section = account_for_seconds(dataset)
    assert section is not None
    assert (section.n_files, section.n_unknown, section.n_broken) == (3, 1, 0)
    assert sum(row.share for row in section.reasons) == pytest.approx(1)
    assert sum(part.share for part in section.bar) == pytest.approx(1)
    hostile = f"tv/{datasets.HOSTILE}voice.mp4"
    assert [file.path for file in section.files] == [hostile, "tv/film.mp4", "tv/damaged.mp4"]
    assert section.files[1].description == (
        "2.4 % clips, 62.0 % no_speech, 27.6 % no_face, 8.0 % silent_face"
    )
    write_report(ReportRequest(shards=str(folder), out=tmp_path / "report.html"))
    html = (tmp_path / "report.html").read_text()
    assert "What became of every second" in html and "cut out of 4 files in the corpus" in html
    assert f'aria-label="tv/film.mp4: {section.files[1].description}"' in html and "<b onclick" not in html


@pytest.mark.parametrize("value", [None, -1e9, 1e9, 1e-300, 0.5])
def test_no_times_of_a_strangers_spans_end_in_a_traceback(value: float | None) -> None:
    good = datasets.make_spans("a.mp4", (10, "no_face"), (5, ""), (10, "no_speech"))
    for number, name in product(range(3), ("start_seconds", "end_seconds", "fps", "frames", "lag_frames")):
        is_count = name in ("frames", "lag_frames")
        rows = [dict(row) for row in good]
        rows[number] |= {name: int(value) if is_count and value is not None else value, "code": None}
        ledger = build_ledger(rows)
        for file in group_spans(ledger):
            assert len(list(format_timeline(file))) >= 1 + len(file.rows)
        assert all(list(describe_span(row)) for row in ledger)
        assert len(list(check_spans(ledger))) <= 1 and min(sum_seconds(ledger).values()) >= 0


def test_every_column_of_spans_is_described() -> None:
    assert list(SPAN_TEXTS) == [*SPAN_FIELDS, *SYNCNET_FIELDS]
