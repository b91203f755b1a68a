"""The report's parts: what it counts, what its cells say, and that names of strangers stay text."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.commands.report import command
from shards.ledger import read_ledger
from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import ShardError
from shards.table import write_rows
from stages.engine.outcome import StageError
from stages.evaluate.columns import COLUMNS
from stages.evaluate.table import FROZEN, TRUTH
from stages.report.card import card_of, leaks
from stages.report.codecs import codec_rows
from stages.report.figures import of_data
from stages.report.motion import jitter, measured
from stages.report.plots import Line, histogram, lines
from stages.report.results import Evaluation, Table, Track, curve, read_evaluation, tables, tables_by_group
from stages.report.run import ReportRequest, write
from stages.report.strips import MAX_VIDEO_BYTES, clips_shown, samples
from stages.sample.pairs import SCHEMA, read_samples
from tests import datasets, reports
from tests.reports import HOSTILE, OWN, SWAPPED
from tests.shards.test_publish import served

SECTIONS = ("data", "clips", "training", "samples", "results", "numbers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a page is made from, and the page."""
    made = tmp_path_factory.mktemp("report")
    reports.page(made)
    return made


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder / "shards")


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return read_evaluation(folder / "evaluation")


class Seen(HTMLParser):
    """Tags with their attributes, and all text that a reader sees or hears of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self) -> Counter[float]:
        """Numbers of all cells that have one."""
        told = (attributes.get("data-value") for tag, attributes in self.tags if tag == "td")
        return Counter(float(value) for value in told if value)


# --- the dataset's card -----------------------------------------------------------------------


def test_the_card_counts_what_the_ledger_and_the_index_count(dataset: Dataset, html: str) -> None:
    card = card_of(dataset)
    ledger = read_ledger(dataset.folder / "ledger.parquet")
    assert (card.found, card.kept) == (len(ledger), sum(row["status"] == "ok" for row in ledger))
    assert {reason.code: reason.clips for reason in card.reasons} == reports.LOST
    assert {split.name: split.clips for split in card.splits} == {"test": 3, "train": 2}
    assert card.people == 3 and sum(sum(share.clips.values()) for share in card.speakers) == card.kept
    assert card.cited == ("GRID, Cooke et al. 2006, CC BY 4.0: https://doi.org/10.5281/zenodo.3625687",)
    text = Seen(html).text
    assert f"of {card.found} files found" in text and "no_face" in text and "CC BY 4.0" in text


def test_what_two_splits_share_is_said_plainly() -> None:
    def clip(clip_id: str, speaker: str, split: str, sha: str) -> dict[str, str]:
        return {"clip_id": clip_id, "speaker": speaker, "split": split, "source_sha256": sha}

    train = [clip("a", "s1", "train", "1"), clip("b", "s2", "train", "2")]
    (apart,) = leaks([*train, clip("c", "s3", "test", "3")], {})
    assert apart == "No speaker of test is in train: figures tell of new people."
    test = [clip("c", "s1", "test", "3"), clip("d", "s3", "test", "2")]
    seen, said, twice = leaks([*train, *test], {"a": "IEO", "c": "IEO"})
    assert seen.startswith("1 of 2 test clips show a speaker who is also in train")
    assert said == "1 of 2 test clips say a sentence that is also in train."
    assert twice == "1 test clips are byte for byte files that are also in train."


def test_noise_has_its_own_spread_as_jitter_and_even_motion_has_none() -> None:
    noise = np.random.default_rng(0).normal(0, 0.25, (20_000, 2))
    even = np.arange(20_000)[:, None] * np.array([0.3, -1.2])
    assert jitter(noise) == pytest.approx(0.25, rel=0.02)
    assert jitter(noise + even) == pytest.approx(jitter(noise))
    assert jitter(even) == pytest.approx(0, abs=1e-9)


def test_the_crops_motion_is_told_in_pixels_of_the_source(tmp_path: Path) -> None:
    clip = datasets.pack(
        "s1_a", np.zeros((9, 16, 16, 3), np.uint8), box=(4, 8, 12, 16), mels=np.zeros((18, 8), np.float32)
    )
    for k in range(
        9
    ):  # twice as large as the source, in which the face goes 3 px right and 4 px down a frame
        clip.affine[k] = [[2, 0, -6 * k], [0, 2, -8 * k]]
    told = measured(open_dataset(datasets.write(tmp_path, [clip])))
    assert told.crop_motion_px == pytest.approx([5])
    assert told.crop_jitter_px == pytest.approx([0], abs=1e-5) and told.box_jitter_px.tolist() == [0]
    assert told.source_px == pytest.approx([0.5]) and told.box_share == pytest.approx([0.25])


def test_a_lossless_codec_is_exact_and_what_a_lossy_one_lost_is_not_guessed(dataset: Dataset) -> None:
    shown = clips_shown(dataset)
    rows = {row.name: row for row in codec_rows("webp", shown)}
    assert [name for name, row in rows.items() if row.psnr_db == float("inf")] == ["webp", "png", "raw"]
    assert [name for name, row in rows.items() if row.used] == ["webp"]
    assert 20 < rows["jpeg q95 4:4:4"].psnr_db < 50
    assert rows["raw"].bytes_per_frame == 3 * reports.SIZE**2
    assert codec_rows("jpeg", shown) == ()


# --- tables -----------------------------------------------------------------------------------


def column_of(found: list[Table], label: str, region: str = "") -> dict[str, tuple[float | None, bool]]:
    """Value and mark of each row's cell in a column."""
    for table in found:
        for i, column in enumerate(table.columns):
            if (column.label, column.region) == (label, region):
                return {keys[0]: (cells[i].value, cells[i].best) for keys, cells in table.rows}
    raise AssertionError(f"no column {label!r}")


def test_every_number_of_metrics_json_is_in_a_cell_as_it_is(folder: Path, html: str) -> None:
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    told = [cell["mean"] for cells in metrics.values() for cell in cells.values() if isinstance(cell, dict)]
    shown = Seen(html).values()
    assert len(told) == 4 * len(reports.TYPICAL) + 2
    assert not Counter(told) - shown


def test_the_best_is_marked_where_better_is_defined_and_never_the_truth(evaluation: Evaluation) -> None:
    found = tables(evaluation)
    psnr = column_of(found, "PSNR", "box")
    winner = max(
        (row for row in psnr if psnr[row][0] is not None and row != TRUTH), key=lambda row: psnr[row]
    )
    assert [row for row, (_, best) in psnr.items() if best] == [winner]
    distance = column_of(found, "mouth distance")
    assert sum(best for _, best in distance.values()) == 1
    assert not any(best for _, best in column_of(found, "flicker", "box").values()), "no way is better"
    assert column_of(found, "FID", "box")[OWN] == (31.4, False), "alone, it is not the best of any"
    assert column_of(found, "audio obedience")[SWAPPED][0] is not None


def test_an_empty_cell_says_why_on_hover_and_below_the_table(html: str) -> None:
    seen = Seen(html)
    why = reports.NOT_COMPUTED["lse_c"]
    titles = [attributes.get("title") for tag, attributes in seen.tags if tag == "td"]
    assert titles.count(f"not computed: {why}") == 5
    assert re.search(r'<li id="why-\d+">SyncNet weights not found', html)
    assert all(f'id="{anchor}"' in html for anchor in set(re.findall(r'href="#(why-\d+)"', html)))


def test_groups_have_their_own_means(evaluation: Evaluation) -> None:
    by_emotion, by_speaker = tables_by_group(evaluation)
    assert by_emotion.title == "By emotion" and by_speaker.title == "By speaker"
    clips = [row for row in evaluation.clips if (row["row"], row["emotion"]) == (FROZEN, "ANG")]
    cells = dict(by_emotion.rows)[FROZEN, "ANG"]
    place = by_emotion.columns.index(COLUMNS["psnr_box_db"])
    assert len(clips) == 2 and cells[place].n == 2
    assert cells[place].value == pytest.approx(np.mean([row["psnr_box_db"] for row in clips]))


def test_a_curves_interval_holds_its_mean_and_closes_where_clips_agree() -> None:
    rng = np.random.default_rng(0)
    differ = curve("row", [np.arange(5) + rng.normal() for _ in range(20)])
    assert ((differ.low < differ.mean) & (differ.mean < differ.high)).all()
    agree = curve("row", [np.arange(5.0), np.arange(8.0)])
    assert agree.mean.tolist() == agree.low.tolist() == agree.high.tolist() == list(range(8))
    gap = curve("row", [np.array([1, np.nan, 3.0]), np.array([3, np.nan, 5.0])])
    assert gap.mean[[0, 2]].tolist() == [2, 4] and np.isnan(gap.mean[1])


def test_a_planted_lag_of_the_sound_is_told(dataset: Dataset, evaluation: Evaluation) -> None:
    clip_id, late_frames = "s1_b", 2
    loudness = read_clip(dataset, clip_id).mels.reshape(reports.N_FRAMES, -1).mean(axis=1)
    opening = np.append(loudness[late_frames:], [np.nan] * late_frames)  # that early
    own = [row for row in evaluation.clips if row["clip_id"] == clip_id]
    planted = replace(evaluation, clips=tuple(own), tracks=(Track(TRUTH, clip_id, {"opening": opening}),))
    *_, figure = of_data(dataset, card_of(dataset), measured(dataset), planted)
    assert "loudness comes 80 ms" in figure.caption


# --- pictures and plots -----------------------------------------------------------------------


def test_a_strips_difference_is_black_outside_the_box(folder: Path, dataset: Dataset) -> None:
    found = samples(folder / "swapped", dataset)
    assert len(found.strips) == 3
    for strip in found.strips:
        assert [label for label, _ in strip.rows][1].startswith("who says it: ")
        label, picture = strip.rows[-1]
        assert label == "|drawn - source| x 4"
        image = Image.open(io.BytesIO(base64.b64decode(picture.address.partition(",")[2])))
        first = np.array(image)[:160, :160].astype(int)
        x0, y0, x1, y1 = (5 * side for side in reports.BOX)  # 32 px are shown as 160
        inside = first[y0:y1, x0:x1].mean()
        first[y0 - 10 : y1 + 10, x0 - 10 : x1 + 10] = 0  # the edge is blurred
        assert inside > 40 and first.max() < 10


def test_a_video_is_carried_unless_it_is_large_and_no_name_leaves_the_folder(
    dataset: Dataset, tmp_path: Path
) -> None:
    made = reports.samples(tmp_path / "samples", dataset, [("s1_a", "s1_a"), ("s1_b", "s1_b")])
    (made / "videos").mkdir()
    (made / "videos" / "s1_a.mp4").write_bytes(b"small")
    (made / "videos" / "s1_b.mp4").write_bytes(bytes(MAX_VIDEO_BYTES + 1))
    small, large = samples(made, dataset).strips
    assert small.video == f"data:video/mp4;base64,{base64.b64encode(b'small').decode()}" and large.video == ""
    rows = read_samples(made)
    write_rows(made / "samples.parquet", [rows[0] | {"name": "../videos/s1_a"}], SCHEMA)
    with pytest.raises(ShardError, match=r"'\.\./videos/s1_a' is not a plain file name"):
        samples(made, dataset)


def test_a_plots_text_is_text_and_its_colours_are_the_pages() -> None:
    drawn = [
        Line("a", 0, [0, 1, 2], [1.0, 10, 100], [0.5, 5, 50], [2.0, 20, 200]),
        Line("b", 1, [0, 1], [3, 4]),
    ]
    plot = lines("name", drawn, x="step", y="loss", log=True)
    assert ">step</text>" in plot.svg and ">100</text>" in plot.svg and "mathdefault" not in plot.svg
    assert [key.label for key in plot.legend] == ["a", "b"] and len(set(plot.legend)) == 2
    for svg in (plot.svg, histogram("other", [3.0, 3.0], x="s", step=0.1).svg):
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
        assert "var(--series-1)" in svg and "<style" not in svg and ' id="figure' not in svg


# --- the page ---------------------------------------------------------------------------------


def test_names_of_strangers_come_out_as_text(html: str) -> None:
    seen = Seen(html)
    assert not any("onerror" in attributes for _, attributes in seen.tags)
    assert {tag for tag, _ in seen.tags if tag in ("script", "iframe", "object", "embed", "base")} == {
        "script"
    }
    assert sum(tag == "script" for tag, _ in seen.tags) == 1
    assert seen.text.count(HOSTILE) > 10, "speaker, emotion, reasons, clip, row, param: all are told"


def test_nothing_is_asked_of_the_network(html: str) -> None:
    policies = [a["content"] for _, a in Seen(html).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and "default-src 'none'" in policies[0] and "script-src 'sha256-" in policies[0]
    sources = [a[name] for _, a in Seen(html).tags for name in ("src", "poster", "data") if name in a]
    assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "@import" not in html and "url(" not in html.replace("url(#", "")


def test_the_same_inputs_give_the_same_bytes_whatever_matplotlib_is_set_to(folder: Path, html: str) -> None:
    again = ReportRequest(
        str(folder / "shards"),
        folder / "again.html",
        folder / "run",
        folder / "evaluation",
        (folder / "own", folder / "swapped"),
    )
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.grid": False}):
        assert write(again) == len(html.encode())
    assert (folder / "again.html").read_text() == html


def test_a_dataset_elsewhere_is_shown_as_the_one_here(folder: Path, tmp_path: Path) -> None:
    write(ReportRequest(str(folder / "shards"), tmp_path / "near.html"))
    with served(folder / "shards") as (address, _):
        write(ReportRequest(address, tmp_path / "far.html"))
    assert (tmp_path / "far.html").read_bytes() == (tmp_path / "near.html").read_bytes()


def test_sections_without_inputs_say_what_to_give(folder: Path) -> None:
    told = CliRunner().invoke(command, ["--shards", str(folder / "shards"), "-o", str(folder / "bare.html")])
    assert told.exit_code == 0, told.output
    assert re.fullmatch(r".*bare\.html: \d+\.\d MB\n", told.output)
    bare = (folder / "bare.html").read_text()
    assert all(f'<section id="{name}">' in bare for name in SECTIONS)
    for option in ("--run DIR", "--generated DIR", "--evaluation DIR", "--evaluation OUT"):
        assert f"give <code>{option}</code>" in bare or f"give {option}" in bare


def test_figures_of_another_dataset_or_of_training_clips_are_called_so(
    folder: Path, tmp_path: Path, html: str
) -> None:
    made = open_dataset(folder / "shards")
    trained_on = reports.evaluation(tmp_path / "evaluation", made, ["s1_a", "s1_b"])
    other = reports.samples(tmp_path / "other", made, [("s1_a", "s1_a")])
    (other / "samples.json").write_text(json.dumps({"dataset": "f00"}))
    write(ReportRequest(str(made.folder), tmp_path / "a.html", evaluation=trained_on, generated=(other,)))
    warned = (tmp_path / "a.html").read_text()
    assert "Samples other: made from the dataset f00, not from this one." in warned
    assert "Evaluation: scores clips of the split train" in warned
    assert 'class="warn"' not in html


def test_what_cannot_be_read_is_one_line(folder: Path, tmp_path: Path) -> None:
    bare = ReportRequest(str(folder / "shards"), tmp_path / "a.html")
    with pytest.raises(StageError, match=r"no run\.json here; `pipeline train` writes it"):
        write(replace(bare, run=tmp_path))
    with pytest.raises(StageError, match=r"no evaluation\.json here; `pipeline evaluate` writes it"):
        write(replace(bare, evaluation=tmp_path))
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(StageError, match=r"run\.json: JSON holds list, expected an object"):
        write(replace(bare, run=tmp_path))
    wrong = CliRunner().invoke(command, ["--shards", str(folder / "shards"), "-o", str(tmp_path / "a.pdf")])
    assert wrong.exit_code == 2 and "the page is written as .html" in wrong.output
    none = CliRunner().invoke(command, ["--shards", str(tmp_path), "-o", str(tmp_path / "a.html")])
    assert none.exit_code == 1 and none.output.startswith(f"Error: {tmp_path}: no dataset.json here")
    assert not (tmp_path / "a.html").exists()
