"""`pipeline edit --batch` as a user runs it: a table of edits in, their files and a ledger out."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from model import loop
from model.checkpoint import save_checkpoint
from model.execution import Execution
from pipeline.main import cli
from sampler.params import SampleParams
from stages import synth
from stages.edit.batch import (
    LEDGER_NAME,
    TRIES,
    BatchRequest,
    EditRow,
    EditTask,
    edit_pair,
    edit_pairs,
    format_table,
)
from stages.edit.pairs import name_output, read_pairs
from stages.edit.run import EditParams
from stages.engine.outcome import StageError
from stages.media import weights
from stages.mels import MelsParams
from stages.synth import ClipSpec
from tests.model.worlds import CPU, N_MELS, TINY


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run of a few channels, and two clips of half a second."""
    folder = tmp_path_factory.mktemp("world")
    recipe = replace(TINY, network=replace(TINY.network, size=32))
    save_checkpoint(loop.create_state(recipe, CPU), folder / "run", recipe, "digest", None)
    for speaker in (1, 2):
        synth.make_clip(folder / f"{speaker}.mp4", ClipSpec(speaker=speaker, seconds=0.4, size=(240, 192)))
    (folder / "params.yaml").write_text(f"mels: {{n_mels: {recipe.network.audio.n_mels}}}\n")
    return folder


def run_edit(world: Path, out: Path, *arguments: str | Path, code: int = 0) -> Result:
    options = ("--run", world / "run", "--params", world / "params.yaml", "--device", "cpu", "--steps", "2",
               "--preset", "ultrafast", "--any-face", "-o", out, *arguments)  # fmt: skip
    result = CliRunner().invoke(cli, ["edit", *map(str, options)])
    assert result.exit_code == code, result.output
    return result


def read_ledger(folder: Path) -> list[dict[str, str]]:
    with (folder / LEDGER_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(world: Path, *lines: str) -> Path:
    path = world / "pairs.csv"
    path.write_text("\n".join(("video,audio,face,out,preview,fit", *lines)))
    return path


@pytest.mark.usefixtures("landmarker")
def test_the_edits_of_a_table_are_those_of_single_commands_and_are_made_once(
    world: Path, tmp_path: Path
) -> None:
    lines = ["1.mp4,2.mp4,,,,", "none.mp4,2.mp4,,,,", "2.mp4,1.mp4,left,night/b.mkv,night/both.mp4,silence"]
    out = tmp_path / "edits"
    result = run_edit(world, out, "--batch", write_table(world, *lines), "--workers", "2", code=1)
    first, missing, second = read_ledger(out)
    assert [row["status"] for row in (first, missing, second)] == ["ok", "failed", "ok"]
    assert missing["reason"] == f"{world / 'none.mp4'}: there is no such file"
    assert result.stdout.splitlines()[-1] == f"3 edits: 2 ok, 1 failed; {out / LEDGER_NAME}"
    assert first["redrawn"] == first["frames"] == "10"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        LEDGER_NAME, ".lock", "1-2.mp4", "night/b.mkv", "night/both.mp4",
    }  # fmt: skip

    pairs = {"1-2.mp4": (1, 2), "night/b.mkv": (2, 1)}
    for name, (video, audio) in pairs.items():
        single = tmp_path / Path(name).name
        run_edit(world, single, "--video", world / f"{video}.mp4", "--audio", world / f"{audio}.mp4",
                 "--fit", "silence")  # fmt: skip
        assert single.read_bytes() == (out / name).read_bytes()

    # A changed file and a new line are made, the rest is kept.
    times = {name: (out / name).stat().st_mtime_ns for name in pairs}
    (out / "1-2.mp4").write_bytes(b"changed")
    again = write_table(world, "2.mp4,2.mp4,,,,", lines[0], lines[2])
    run_edit(world, out, "--batch", again, "--workers", "1")
    assert [row["sha256"] for row in read_ledger(out)][1:] == [first["sha256"], second["sha256"]]
    assert (out / "1-2.mp4").stat().st_mtime_ns > times["1-2.mp4"]
    assert (out / "night/b.mkv").stat().st_mtime_ns == times["night/b.mkv"]
    run_edit(world, out, "--batch", write_table(world, lines[0]))
    assert [row["out"] for row in read_ledger(out)] == ["1-2.mp4", "2-2.mp4", "night/b.mkv"]
    (out / LEDGER_NAME).write_text("a,b\n1,2\n")
    result = run_edit(world, out, "--batch", again, code=1)
    assert "edits.csv: is no ledger of edits of this version" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no column video"),
        (b"video,audio\n", "has no edit, expected lines with video and audio"),
        (b"video,audio,crf\n1.mp4,2.mp4,99\n", "line 2: crf is '99', expected less than or equal to 51"),
        (b"video,audio,speed\n1.mp4,2.mp4,2\n", "column 'speed' is not known, expected video, audio, face"),
        (b"video,audio\n1.mp4\n", "line 2: has more or fewer cells than there are columns"),
        (b"video,audio\n1.mp4,2.mp4,3.mp4\n", "line 2: has more or fewer cells"),
        (b"video,audio\n,2.mp4\n", "line 2: video is empty"),
        (b"video,audio\n1.mp4,\n", "line 2: face largest: there is no recording for it"),
        (b"video,audio,face\n1.mp4,,left=a.wav;left=b.wav\n", "face left: has two recordings"),
        (b"video,audio,face\n1.mp4,2.mp4,top\n", "line 2: top: expected largest, left, right or a number"),
        (b"video,audio,out\n1.mp4,2.mp4,../x.mp4\n", "line 2: output ../x.mp4: expected a name below"),
        (b"video,audio,out\n1.mp4,2.mp4,/x.mp4\n", "line 2: output /x.mp4: expected a name below"),
        (b"video,audio,out\n1.mp4,2.mp4,=x.mp4\n", "line 2: output =x.mp4: expected a name below"),
        (b"video,audio\n1.mp4,2.mp4\nb/1.mp4,2.mp4\n", "lines 2 and 3 both write 1-2.mp4"),
        (b"video,audio\n\xff,2.mp4\n", "is no CSV file in UTF-8"),
        (b'video,audio\n"1.mp4,2.mp4\n', "is no CSV file in UTF-8"),
        (b"video,audio\n1\0.mp4,2.mp4\n", "pairs.csv"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(StageError) as caught:
        read_pairs(tmp_path / "pairs.csv", EditParams())
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'pairs.csv'}: ") and problem in message and "\n" not in message


def test_a_row_overrides_the_options_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "video,audio,face,crf,any_face\na.mp4,b.wav,,20,yes\na.mp4,,left=b.wav;1=c.wav,,\n"
    )
    one, two = read_pairs(tmp_path / "pairs.csv", EditParams(face="right", crf=30, preset="fast"))
    assert (one.params.crf, one.params.any_face, one.params.preset) == (20, True, "fast")
    assert one.recordings == {"right": tmp_path / "b.wav"}
    assert two.params.crf == 30 and two.out == "a-b-c.mp4"
    assert two.recordings == {"left": tmp_path / "b.wav", 1: tmp_path / "c.wav"}


def test_a_name_made_of_long_names_is_one_that_a_file_can_have(tmp_path: Path) -> None:
    """Each has as many bytes as a file's name may have, most of them in letters of three bytes."""
    chinese, cyrillic = (letter * (251 // len(letter.encode())) for letter in ("\u5b57", "\u0436"))
    table = tmp_path / "pairs.csv"
    table.write_text(f"video,audio\n{chinese}.mp4,{cyrillic}.wav\na.mp4,b.wav\n")
    long, short = (pair.out for pair in read_pairs(table, EditParams()))
    assert short == "a-b.mp4" and long == f"{chinese[:41]}-{cyrillic[:62]}.mp4"
    page = name_output([Path(f"{chinese}.mov"), Path("b.wav")], " says ")
    assert page == f"{chinese[:40]} says b.mp4"
    for name in (long, page, name_output([Path(f"{'x' * 252}.ts")], "")):
        (tmp_path / name).touch()


def test_no_output_overwrites_an_input_of_another_edit_or_leaves_its_folder(
    world: Path, tmp_path: Path
) -> None:
    (tmp_path / "1-2.mp4").symlink_to(world / "2.mp4")
    result = run_edit(world, tmp_path, "--batch", write_table(world, "1.mp4,2.mp4,,,,"), code=1)
    assert f"{tmp_path / '1-2.mp4'}: is an input, which is never overwritten" in result.stderr
    (tmp_path / "away").symlink_to(world)
    run_edit(world, tmp_path, "--batch", write_table(world, "1.mp4,2.mp4,,away/x.mp4,,"), code=1)
    assert read_ledger(tmp_path)[0]["reason"] == f"{tmp_path / 'away/x.mp4'}: leads out of {tmp_path}"
    assert not (world / "x.mp4").exists()
    long = "x" * 300 + ".mp4"
    lines = ["1.mp4,2.mp4,,away/new/x.mp4,,", f"1.mp4,{long},,y.mp4,,"]
    run_edit(world, tmp_path, "--batch", write_table(world, *lines), code=1)
    outside, unreadable = read_ledger(tmp_path)
    assert outside["reason"].endswith(f"leads out of {tmp_path}") and not (world / "new").exists()
    assert "File name too long" in unreadable["reason"] and "bug" not in unreadable["reason"]


def test_an_edit_that_ends_its_worker_twice_is_not_tried_again(world: Path, tmp_path: Path) -> None:
    [pair] = read_pairs(write_table(world, "1.mp4,2.mp4,,,,"), EditParams())
    attempts = tmp_path / "attempts"
    attempts.write_bytes(b"." * TRIES)
    request = BatchRequest(world / "run", tmp_path, tmp_path / "no-model", SampleParams(), "cpu", Execution())
    row = edit_pair(EditTask(pair, EditRow(2, "1.mp4", "2.mp4", "1-2.mp4", "waiting"), request, attempts))
    assert row.status == "failed" and row.reason.startswith("its edit ended the process that made it 2 times")
    assert list(tmp_path.iterdir()) == [attempts]


@pytest.mark.usefixtures("landmarker")
def test_a_face_that_is_refused_is_a_row_that_names_the_column_which_draws_it(
    world: Path, tmp_path: Path
) -> None:
    table = world / "misfits.csv"
    table.write_text("video,audio,out,any_face\n1.mp4,2.mp4,no.mp4,\n1.mp4,2.mp4,yes.mp4,yes\n")
    refused, row = read_pairs(table, EditParams(preset="ultrafast", mels=MelsParams(n_mels=N_MELS)))
    landmarker = weights.find(weights.LANDMARKER)
    request = BatchRequest(world / "run", tmp_path, landmarker, SampleParams(steps=2), "cpu", Execution())
    first, second = edit_pairs([refused, row], request)
    assert first.status == "failed" and "the network does not fit this face: its colours" in first.reason
    assert first.reason.endswith("expected at most 5; yes in the column any_face draws all the same")
    assert (second.status, second.redrawn) == ("ok", 10)


def test_of_many_edits_the_table_shows_those_that_failed() -> None:
    rows = [EditRow(n, "a", "b", f"{n}.mp4", "ok" if n % 50 else "failed", "why") for n in range(1, 101)]
    lines = list(format_table(rows, Path("out")))
    assert lines == ["50.mp4   failed  why", "100.mp4  failed  why",
                     "100 edits: 98 ok, 2 failed; out/edits.csv"]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--batch", "pairs.csv", "--video", "1.mp4"), "--video is of one edit, and --batch makes many"),
        (("--batch", "pairs.csv", "--adapt"), "--adapt is of one edit, and --batch makes many"),
        (
            ("--batch", "pairs.csv", "--face", "left=a.wav"),
            "several faces have their recordings in the table",
        ),
        (("--video", "1.mp4", "--audio", "2.mp4", "--workers", "2"), "--workers needs --batch"),
        (
            ("--video", "1.mp4", "--audio", "2.mp4", "--face", "left=2.mp4"),
            "for several faces, each has its own",
        ),
        (("--video", "1.mp4", "--face", "left=2.mp4", "--face", "0=2.mp4", "--adapt"), "trains on one face"),
        (("--video", "1.mp4"), "Missing option '--audio'"),
        (("--audio", "1.mp4"), "Missing option '--video', or '--batch'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(world)
    assert problem in run_edit(world, tmp_path / "out", *arguments, code=2).stderr
