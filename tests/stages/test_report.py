"""The report: its counts, tables and plots, and the escaping of hostile names."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from model import loop
from model.checkpoint import CHECKPOINTS, HeldOutSize, find_checkpoint, save_checkpoint
from pipeline.main import cli
from shards.ledger import read_ledger
from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import ShardError
from shards.table import write_rows
from stages.engine.outcome import StageError
from stages.evaluate.columns import COLUMNS
from stages.evaluate.run import CLIPS
from stages.evaluate.scores import FIRST_CLIPS_SCHEMA
from stages.evaluate.table import FROZEN, TRUTH
from stages.metrics.obedience import MIN_UNITS
from stages.report.card import build_card, describe_overlaps
from stages.report.codecs import measure_codecs
from stages.report.figures import plot_dataset, plot_drift
from stages.report.motion import compute_jitter, measure_motion
from stages.report.plots import Line, plot_histogram, plot_lines
from stages.report.results import (
    ClipCurves,
    EvaluationResults,
    ResultTable,
    TableCell,
    average_curves,
    build_group_tables,
    build_tables,
    read_evaluation,
    read_scored_clips,
)
from stages.report.run import ReportRequest, write_report
from stages.report.strips import MAX_VIDEO_BYTES, read_example_clips, read_generated_clips
from stages.report.training import read_run
from stages.sample.pairs import SCHEMA, read_samples
from tests import datasets, reports
from tests.model.worlds import CPU, TINY
from tests.reports import HOSTILE, OWN, SWAPPED
from tests.shards.test_publish import serve

SECTIONS = ("data", "clips", "training", "samples", "results", "parameters")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All inputs of a page, and the page."""
    path = tmp_path_factory.mktemp("report")
    reports.write_page(path)
    return path


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder / "shards")


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> EvaluationResults:
    return read_evaluation(folder / "evaluation")


class ParsedPage(HTMLParser):
    """Tags with their attributes, and all text of the page."""

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
        values = (attributes.get("data-value") for tag, attributes in self.tags if tag == "td")
        return Counter(float(value) for value in values if value)


# --- the dataset's card -----------------------------------------------------------------------


def test_the_card_agrees_with_the_ledger_and_the_index(dataset: Dataset, html: str) -> None:
    card = build_card(dataset)
    ledger = read_ledger(dataset.folder / "ledger.parquet")
    assert (card.n_files, card.n_clips) == (len(ledger), sum(row["status"] == "ok" for row in ledger))
    assert {drop.code: drop.clips for drop in card.drops} == reports.DROPPED
    assert {split.name: split.clips for split in card.splits} == {"test": 3, "train": 2}
    assert card.n_speakers == 3
    assert sum(sum(counts.clips.values()) for counts in card.speakers) == card.n_clips
    assert card.citations == ("GRID, Cooke et al. 2006, CC BY 4.0: https://doi.org/10.5281/zenodo.3625687",)
    text = ParsedPage(html).text
    assert f"of {card.n_files} files in the corpus" in text and "no_face" in text and "CC BY 4.0" in text


def test_the_overlap_of_two_splits_is_described_in_full_sentences() -> None:
    def make_row(clip_id: str, speaker: str, split: str, sha: str) -> dict[str, str]:
        return {"clip_id": clip_id, "speaker": speaker, "split": split, "source_sha256": sha}

    train = [make_row("a", "s1", "train", "1"), make_row("b", "s2", "train", "2")]
    (disjoint,) = describe_overlaps([*train, make_row("c", "s3", "test", "3")], {})
    assert disjoint == "No speaker of test is in train: metrics on test are for unseen speakers."
    test = [make_row("c", "s1", "test", "3"), make_row("d", "s3", "test", "2")]
    speakers, sentences, files = describe_overlaps([*train, *test], {"a": "IEO", "c": "IEO"})
    assert speakers.startswith("1 of 2 test clips show a speaker who is also in train")
    assert sentences == "1 of 2 test clips use a sentence that is also in train."
    assert files == "1 test clips have the same source bytes as a file in train."


def test_jitter_of_noise_is_its_standard_deviation_and_of_uniform_motion_zero() -> None:
    noise = np.random.default_rng(0).normal(0, 0.25, (20_000, 2))
    uniform = np.arange(20_000)[:, None] * np.array([0.3, -1.2])
    assert compute_jitter(noise) == pytest.approx(0.25, rel=0.02)
    assert compute_jitter(noise + uniform) == pytest.approx(compute_jitter(noise))
    assert compute_jitter(uniform) == pytest.approx(0, abs=1e-9)


def test_crop_motion_is_in_pixels_of_the_source(tmp_path: Path) -> None:
    clip = datasets.pack(
        "s1_a", np.zeros((9, 16, 16, 3), np.uint8), box=(4, 8, 12, 16), mels=np.zeros((18, 8), np.float32)
    )
    # The crop is twice as large as the source, where the face moves 3 px right and 4 px down per frame.
    for k in range(9):
        clip.affine[k] = [[2, 0, -6 * k], [0, 2, -8 * k]]
    motion = measure_motion(open_dataset(datasets.write(tmp_path, [clip])))
    assert motion.crop_motion_px == pytest.approx([5])
    assert motion.crop_jitter_px == pytest.approx([0], abs=1e-5) and motion.box_jitter_px.tolist() == [0]
    assert motion.source_px == pytest.approx([0.5]) and motion.box_share == pytest.approx([0.25])


def test_a_lossless_codec_is_exact_and_lossy_shards_are_not_measured(dataset: Dataset) -> None:
    clips = read_example_clips(dataset)
    rows = {row.name: row for row in measure_codecs("webp", clips)}
    assert [name for name, row in rows.items() if row.psnr_db == float("inf")] == ["webp", "png", "raw"]
    assert [name for name, row in rows.items() if row.is_current] == ["webp"]
    assert 20 < rows["jpeg q95 4:4:4"].psnr_db < 50
    assert rows["raw"].bytes_per_frame == 3 * reports.SIZE**2
    assert measure_codecs("jpeg", clips) == ()


# --- tables -----------------------------------------------------------------------------------


def read_column(
    tables: list[ResultTable], label: str, region: str = ""
) -> dict[str, tuple[float | None, bool]]:
    """For each row, the value of its cell in a column and whether it is marked as best."""
    for table in tables:
        for i, column in enumerate(table.columns):
            if (column.label, column.region) == (label, region):
                return {keys[0]: (cells[i].value, cells[i].is_best) for keys, cells in table.rows}
    raise AssertionError(f"no column {label!r}")


def test_every_number_of_metrics_json_is_in_a_cell(folder: Path, html: str) -> None:
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    means = [cell["mean"] for cells in metrics.values() for cell in cells.values() if isinstance(cell, dict)]
    values = ParsedPage(html).values()
    assert len(means) == 4 * len(reports.TYPICAL) + 2
    assert not Counter(means) - values


def test_the_page_says_what_intervals_are_over_only_where_it_shows_one(
    folder: Path, html: str, tmp_path: Path
) -> None:
    text = ParsedPage(html).text
    assert f"less {OWN}: " in text and "Means over n clips. The best" in text
    assert "intervals are over" not in text and "their intervals overlap" not in text
    shutil.copytree(folder / "evaluation", tmp_path / "evaluation")
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    metrics[OWN]["psnr_box_db"] |= {"low": 20.0, "high": 30.0}
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    out = tmp_path / "report.html"
    write_report(ReportRequest(str(folder / "shards"), out, evaluation=tmp_path / "evaluation"))
    text = ParsedPage(out.read_text()).text
    assert "Means over n clips; 95 % intervals are over clips of 2 people alone. The best" in text
    assert "their intervals overlap" in text


def test_the_page_says_beside_the_table_that_psnr_rewards_copying(html: str) -> None:
    table = html.index('aria-label="In the masked box"')
    note = html.index("reward a network that copies the mouth from what is visible", table)
    assert note < html.index("sortable metrics", html.index("sortable metrics", table) + 1), (
        "before the next table"
    )
    listening = html.index('aria-label="Does the mouth follow the speech, by landmarks"')
    columns = html[listening : html.index("</thead>", listening)]
    assert "audio obedience, net" in columns and "closed at p, b, m" in columns


def test_the_best_mean_is_marked_but_never_the_ground_truth(evaluation: EvaluationResults) -> None:
    tables = build_tables(evaluation)
    psnr = read_column(tables, "PSNR", "box")
    winner = max(
        (row for row in psnr if psnr[row][0] is not None and row != TRUTH), key=lambda row: psnr[row]
    )
    assert [row for row, (_, best) in psnr.items() if best] == [winner]
    distance = read_column(tables, "mouth distance")
    assert sum(best for _, best in distance.values()) == 1
    assert not any(best for _, best in read_column(tables, "flicker", "box").values()), (
        "neither direction is better"
    )
    assert read_column(tables, "FID", "box")[OWN] == (31.4, False), "a single row is not marked"
    assert read_column(tables, "audio obedience")[SWAPPED][0] is not None


def test_the_best_is_marked_among_rows_of_the_same_clips(evaluation: EvaluationResults) -> None:
    """A row that lacks its hardest clip has the best mean, of other clips."""
    lost = next(row for row in evaluation.clips if row["row"] == OWN)
    clips = [row | {"psnr_box_db": None} if row is lost else row for row in evaluation.clips]
    means = {row: dict(cells) for row, cells in evaluation.means.items()}
    means[OWN]["psnr_box_db"] = TableCell(99.0, n=2)
    tables = build_tables(replace(evaluation, clips=tuple(clips), means=means))
    psnr = read_column(tables, "PSNR", "box")
    assert psnr[OWN] == (99.0, False) and sum(best for _, best in psnr.values()) == 1
    [cells] = [dict(table.rows)[OWN,] for table in tables if table.title == "In the masked box"]
    assert (cells[0].n, cells[0].n_to_score) == (2, 3)


def test_the_reason_of_an_empty_cell_is_its_tooltip_and_below_the_table(html: str) -> None:
    page = ParsedPage(html)
    reason = reports.NOT_COMPUTED["lse_c"]
    titles = [attributes.get("title") for tag, attributes in page.tags if tag == "td"]
    assert titles.count(f"not computed: {reason}") == 5
    assert re.search(r'<li id="reason-\d+">SyncNet weights not found', html)
    assert all(f'id="{anchor}"' in html for anchor in set(re.findall(r'href="#(reason-\d+)"', html)))


def test_group_tables_have_means_per_group(evaluation: EvaluationResults) -> None:
    by_emotion, by_speaker = build_group_tables(evaluation)
    assert by_emotion.title == "By emotion of the speech" and by_speaker.title == "By speaker of the speech"
    clips = [row for row in evaluation.clips if (row["row"], row["emotion"]) == (FROZEN, "ANG")]
    cells = dict(by_emotion.rows)[FROZEN, "ANG"]
    column = by_emotion.columns.index(COLUMNS["psnr_box_db"])
    assert len(clips) == 2 and cells[column].n == 2
    assert cells[column].value == pytest.approx(np.mean([row["psnr_box_db"] for row in clips]))


def test_clips_with_anothers_speech_are_grouped_by_that_speech(evaluation: EvaluationResults) -> None:
    clips = [row | {"emotion": "face"} for row in evaluation.clips]
    [by_emotion] = [
        table
        for table in build_group_tables(replace(evaluation, clips=tuple(clips)))
        if table.title.startswith("By emotion")
    ]
    assert {keys[1] for keys, _ in by_emotion.rows} == {"ANG", HOSTILE}
    alone = [row | {"audio_emotion": "ANG", "audio_speaker": "s1"} for row in evaluation.clips]
    assert build_group_tables(replace(evaluation, clips=tuple(alone))) == [], "one group is no table"


def test_an_older_table_is_read_with_what_other_rows_say_of_the_speech(
    evaluation: EvaluationResults, tmp_path: Path
) -> None:
    a, b, *_ = (row for row in evaluation.clips if row["row"] == TRUTH)
    swapped = a | {"audio_clip_id": b["clip_id"]}
    write_rows(tmp_path / CLIPS, [a, b, swapped], FIRST_CLIPS_SCHEMA)
    rows = read_scored_clips(tmp_path)
    assert [row["audio_emotion"] for row in rows] == ["ANG", HOSTILE, HOSTILE]


def test_a_curves_interval_contains_its_mean_and_has_no_width_where_clips_agree() -> None:
    rng = np.random.default_rng(0)
    differing = average_curves("row", [np.arange(5) + rng.normal() for _ in range(20)])
    assert ((differing.low < differing.mean) & (differing.mean < differing.high)).all()
    equal = average_curves("row", [np.arange(8.0)] * 5 + [np.arange(5.0)])
    assert equal.mean.tolist() == equal.low.tolist() == equal.high.tolist() == list(range(8))
    few = average_curves("row", [np.arange(8.0)] * 4 + [np.arange(5.0)])
    assert few.mean.tolist() == list(range(8)), "and no interval where four clips are left"
    assert np.isfinite(few.low[:5]).all() and np.isnan(few.low[5:]).all() and np.isnan(few.high[5:]).all()
    gap = average_curves("row", [np.array([1, np.nan, 3.0]), np.array([3, np.nan, 5.0])])
    assert gap.mean[[0, 2]].tolist() == [2, 4] and np.isnan(gap.mean[1])


@pytest.mark.parametrize("n_clips", [MIN_UNITS - 1, MIN_UNITS])
def test_the_caption_of_drift_explains_a_band_only_where_it_is_drawn(n_clips: int) -> None:
    rng = np.random.default_rng(0)
    curves = [
        ClipCurves("ours", f"{k}", {"psnr_box_db": rng.normal(30, 1, 8), "identity_distance": np.ones(8)})
        for k in range(n_clips)
    ]
    psnr, identity = plot_drift(EvaluationResults({}, {"ours": {}}, (), tuple(curves)))
    assert ("band" in psnr.caption) == (n_clips >= MIN_UNITS)
    assert "band" not in identity.caption, "all clips agree"
    assert identity.caption.startswith("Mean over clips by frame index. A trend")


def test_a_planted_lag_of_the_audio_is_reported(dataset: Dataset, evaluation: EvaluationResults) -> None:
    clip_id, late_frames = "s1_b", 2
    loudness = read_clip(dataset, clip_id).mels.reshape(reports.N_FRAMES, -1).mean(axis=1)
    opening = np.append(loudness[late_frames:], [np.nan] * late_frames)  # earlier by late_frames
    own = [row for row in evaluation.clips if row["clip_id"] == clip_id]
    planted = replace(
        evaluation, clips=tuple(own), curves=(ClipCurves(TRUTH, clip_id, {"opening": opening}),)
    )
    *_, figure = plot_dataset(dataset, build_card(dataset), measure_motion(dataset), planted)
    assert "loudness lags behind the mouth opening by 80 ms" in figure.caption


# --- images and plots -------------------------------------------------------------------------


def test_a_strips_difference_is_black_outside_the_box(folder: Path, dataset: Dataset) -> None:
    clips = read_generated_clips(folder / "swapped", dataset)
    assert len(clips.strips) == 3
    for strip in clips.strips:
        assert [label for label, _ in strip.rows][1].startswith("audio clip: ")
        label, embedded = strip.rows[-1]
        assert label == "|generated - source| x 4"
        image = Image.open(io.BytesIO(base64.b64decode(embedded.url.partition(",")[2])))
        first = np.array(image)[:160, :160].astype(int)
        x0, y0, x1, y1 = (5 * side for side in reports.BOX)  # 32 px are enlarged to 160
        inside = first[y0:y1, x0:x1].mean()
        first[y0 - 10 : y1 + 10, x0 - 10 : x1 + 10] = 0  # the edge is blurred
        assert inside > 40 and first.max() < 10


def test_a_video_is_embedded_unless_it_is_large_and_names_cannot_leave_the_folder(
    dataset: Dataset, tmp_path: Path
) -> None:
    generated = reports.write_samples(tmp_path / "samples", dataset, [("s1_a", "s1_a"), ("s1_b", "s1_b")])
    (generated / "videos").mkdir()
    (generated / "videos" / "s1_a.mp4").write_bytes(b"small")
    (generated / "videos" / "s1_b.mp4").write_bytes(bytes(MAX_VIDEO_BYTES + 1))
    small, large = read_generated_clips(generated, dataset).strips
    assert small.video == f"data:video/mp4;base64,{base64.b64encode(b'small').decode()}" and large.video == ""
    rows = read_samples(generated)
    write_rows(generated / "samples.parquet", [rows[0] | {"name": "../videos/s1_a"}], SCHEMA)
    with pytest.raises(ShardError, match=r"name is '\.\./videos/s1_a', expected a plain file name"):
        read_generated_clips(generated, dataset)


def test_nothing_outside_a_folder_of_samples_is_embedded(dataset: Dataset, tmp_path: Path) -> None:
    generated = reports.write_samples(tmp_path / "samples", dataset, [("s1_a", "s1_a")])
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (generated / "videos").mkdir()
    (generated / "videos" / "s1_a.mp4").symlink_to(secret)
    (strip,) = read_generated_clips(generated, dataset).strips
    assert strip.video == ""
    crops = generated / "crops" / "s1_a.tar"
    crops.rename(tmp_path / "crops.tar")
    crops.symlink_to(tmp_path / "crops.tar")
    with pytest.raises(ShardError, match=r"s1_a\.tar: no file in .*samples"):
        read_generated_clips(generated, dataset)
    crops.unlink()
    os.mkfifo(crops)
    with pytest.raises(ShardError, match=r"s1_a\.tar: no file in .*samples"):
        read_generated_clips(generated, dataset)


def test_a_plots_text_is_text_and_its_colours_are_css_variables() -> None:
    curves = [
        Line("a", 0, [0, 1, 2], [1.0, 10, 100], [0.5, 5, 50], [2.0, 20, 200]),
        Line("b", 1, [0, 1], [3, 4]),
    ]
    plot = plot_lines("name", curves, x="step", y="loss", log=True)
    assert ">step</text>" in plot.svg and ">100</text>" in plot.svg and "mathdefault" not in plot.svg
    assert [entry.label for entry in plot.legend] == ["a", "b"] and len(set(plot.legend)) == 2
    for svg in (plot.svg, plot_histogram("other", [3.0, 3.0], x="s", step=0.1).svg):
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
        assert "var(--series-1)" in svg and "<style" not in svg and ' id="figure' not in svg


# --- the page ---------------------------------------------------------------------------------


def test_hostile_names_are_escaped(html: str) -> None:
    page = ParsedPage(html)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert {tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "base")} == {
        "script"
    }
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert f"no LSE for 2: {HOSTILE}" in page.text and f"no closed lips for 3: {HOSTILE}" in page.text
    assert page.text.count(HOSTILE) > 10, "speaker, emotion, reasons, clip, row and param all appear"


def test_the_page_makes_no_requests(html: str) -> None:
    tags = [attributes for _, attributes in ParsedPage(html).tags]
    policies = [a["content"] for a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and "default-src 'none'" in policies[0] and "script-src 'sha256-" in policies[0]
    sources = [a[name] for a in tags for name in ("src", "poster", "data") if name in a]
    assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "@import" not in html and "url(" not in html.replace("url(#", "")


def test_the_same_inputs_give_the_same_bytes_with_any_matplotlib_settings(folder: Path, html: str) -> None:
    again = ReportRequest(
        str(folder / "shards"),
        folder / "again.html",
        folder / "run",
        folder / "evaluation",
        (folder / "own", folder / "swapped"),
        (folder / "cards",),
    )
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.grid": False}):
        assert write_report(again) == len(html.encode())
    assert (folder / "again.html").read_text() == html


def test_a_remote_dataset_gives_the_same_page_as_a_local_one(folder: Path, tmp_path: Path) -> None:
    write_report(ReportRequest(str(folder / "shards"), tmp_path / "local.html"))
    with serve(folder / "shards") as (address, _):
        write_report(ReportRequest(address, tmp_path / "remote.html"))
    assert (tmp_path / "remote.html").read_bytes() == (tmp_path / "local.html").read_bytes()


def test_sections_without_inputs_name_the_option_to_give(folder: Path) -> None:
    out = folder / "bare.html"
    result = CliRunner().invoke(cli, ["report", "--shards", str(folder / "shards"), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r".*bare\.html: \d+\.\d MB\n", result.output)
    html = out.read_text()
    assert all(f'<section id="{name}">' in html for name in SECTIONS)
    for option in ("--run DIR", "--generated DIR", "--evaluation DIR"):
        assert f"give <code>{option}</code>" in html
    assert "give --evaluation DIR" in html


def test_inputs_of_another_dataset_and_scores_of_training_clips_give_warnings(
    folder: Path, tmp_path: Path, html: str
) -> None:
    dataset = open_dataset(folder / "shards")
    of_training = reports.write_evaluation(tmp_path / "evaluation", dataset, ["s1_a", "s1_b"])
    other = reports.write_samples(tmp_path / "other", dataset, [("s1_a", "s1_a")])
    (other / "samples.json").write_text(json.dumps({"dataset": "f00", "audio": "own", "params": {"seed": 0}}))
    write_report(
        ReportRequest(str(dataset.folder), tmp_path / "a.html", evaluation=of_training, generated=(other,))
    )
    page = (tmp_path / "a.html").read_text()
    assert "Samples other: made from dataset f00, not from this one." in page
    assert "Evaluation: scores clips of the split train" in page
    assert 'class="warn"' not in html


def test_an_unreadable_input_gives_an_error_of_one_line(folder: Path, tmp_path: Path) -> None:
    bare = ReportRequest(str(folder / "shards"), tmp_path / "a.html")
    with pytest.raises(StageError, match=r"no run\.json here; `pipeline train` writes it"):
        write_report(replace(bare, run=tmp_path))
    with pytest.raises(StageError, match=r"no evaluation\.json here; `pipeline evaluate` writes it"):
        write_report(replace(bare, evaluation=tmp_path))
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(StageError, match=r"run\.json: JSON holds list, expected an object"):
        write_report(replace(bare, run=tmp_path))
    wrong = CliRunner().invoke(
        cli, ["report", "--shards", str(folder / "shards"), "-o", str(tmp_path / "a.pdf")]
    )
    assert wrong.exit_code == 2 and "the page is written as .html" in wrong.output
    missing = CliRunner().invoke(cli, ["report", "--shards", str(tmp_path), "-o", str(tmp_path / "a.html")])
    assert missing.exit_code == 1 and missing.output.startswith(f"Error: {tmp_path}: no dataset.json here")
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(("best_by", "label"), [("seeing", "held-out loss"), ("listening", "listening loss")])
def test_the_best_checkpoint_is_the_one_that_sampling_uses(
    dataset: Dataset, tmp_path: Path, best_by: Literal["seeing", "listening"], label: str
) -> None:
    run, recipe = reports.write_run(tmp_path / "run", dataset), replace(TINY, best_by=best_by)
    state = loop.create_state(recipe, CPU)
    few, many = HeldOutSize(8, 2), HeldOutSize(512, 2)
    for step, loss, size in ((10, 0.1, few), (15, 0.25, many), (20, 0.375, many)):
        state.step = step
        save_checkpoint(state, run, recipe, "digest", loss, held_out_size=size)
    assert read_run(run).best == find_checkpoint(run)
    write_report(ReportRequest(str(dataset.folder), tmp_path / "report.html", run))
    text = ParsedPage((tmp_path / "report.html").read_text()).text
    assert f"{label}0.250of the best checkpoint, step 15" in text
    shutil.rmtree(run / CHECKPOINTS / "step-00000015")
    best = read_run(run).best
    assert best is not None and best.step == 20


def test_a_run_without_checkpoints_has_no_best_one(html: str) -> None:
    assert "best checkpointnoneno checkpoint kept" in ParsedPage(html).text
