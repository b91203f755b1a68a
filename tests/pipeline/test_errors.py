"""What a user can fix and what the machine refuses is one line in every command; a bug has a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from safetensors import SafetensorError

from model.recipe import ModelError
from pipeline.errors import describe_error
from pipeline.main import COMMANDS, cli
from shards.atomic import WriteError
from shards.errors import ShardError
from stages.engine.outcome import StageError
from stages.synth import SynthError
from tests.build import PIPELINE


def make_error(number: int, path: str | bytes | None = "/a/file") -> OSError:
    return OSError(number, os.strerror(number), path)


def chain(err: Exception, cause: Exception) -> Exception:
    err.__cause__ = cause
    return err


@pytest.mark.parametrize(
    ("err", "line"),
    [
        (make_error(errno.ENOSPC), "/a/file: No space left on device"),
        (make_error(errno.EACCES), "/a/file: Permission denied"),
        (make_error(errno.EROFS), "/a/file: Read-only file system"),
        (make_error(errno.EMFILE), "/a/file: Too many open files"),
        (make_error(errno.ENAMETOOLONG), "/a/file: File name too long"),
        (make_error(errno.EIO), "/a/file: Input/output error"),
        (make_error(errno.EISDIR), "/a/file: Is a directory"),
        (make_error(errno.EDQUOT), f"/a/file: {os.strerror(errno.EDQUOT)}"),
        (make_error(errno.ENOTDIR), "/a/file: Not a directory; a file is where a folder is expected"),
        (make_error(errno.ENOSPC, None), "No space left on device"),
        (make_error(errno.ENOSPC, b"/a/\xff"), "'/a/\\udcff': No space left on device"),
        (make_error(errno.ENOSPC, "/a/\n\x1b[2J"), "'/a/\\n\\x1b[2J': No space left on device"),
        (WriteError(errno.EFBIG, "Error writing bytes", "/a/file"), "/a/file: File too large"),
        (OSError("Couldn't deserialize\n  thrift: end"), "Couldn't deserialize thrift: end"),
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate\n3 GiB"), "out of memory: Unable to allocate 3 GiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 7 GiB"),
         "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (pa.ArrowInvalid("not\na table"), "ArrowInvalid: not a table"),
        (SafetensorError("Error while serializing"), "SafetensorError: Error while serializing"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"),
         "unable to write to file </torch_1>: No space left on device (28)"),
        (RuntimeError("Symlink loop from '/a/file'"), "Symlink loop from '/a/file'"),
        (ImportError("libcudart.so: cannot open shared object file: Too many open files"),
         "libcudart.so: cannot open shared object file: Too many open files"),
        (chain(RuntimeError("Cluster failed to start"), make_error(errno.EMFILE)),
         "/a/file: Too many open files"),
        (StageError("--raw /a/\n\x1b[2J\udcff: no such folder"), "--raw /a/ \\x1b[2J\\udcff: no such folder"),
        (ShardError("x.tar: is damaged"), "x.tar: is damaged"),
        (ModelError("no checkpoint here"), "no checkpoint here"),
        (SynthError("speaker 35 requested"), "speaker 35 requested"),
        (UnicodeEncodeError("utf-8", f"{'x' * 50}/b\udcff/{'y' * 50}", 52, 53, "surrogates not allowed"),
         f"'{'x' * 28}/b\\udcff/{'y' * 29}': it is not UTF-8"),
        (UnicodeEncodeError("ascii", "\u00fc", 0, 1, "ordinal not in range(128)"), None),
        (make_error(errno.EPIPE), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("a bug"), None),
        (KeyError("a bug"), None),
        (AssertionError("a bug"), None),
    ],
)  # fmt: skip
def test_an_error_of_the_user_or_the_machine_is_a_line_and_a_bug_is_none(
    err: Exception, line: str | None
) -> None:
    assert describe_error(err) == line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
@pytest.mark.parametrize("words", [["--help"], ["synth", "--help"], ["explain", "--help"]])
def test_a_full_disk_behind_the_output_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            [*PIPELINE, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (finished.returncode, finished.stderr) == (1, "Error: No space left on device\n")


def test_closed_standard_streams_are_no_error(tmp_path: Path) -> None:
    """As of a process that some schedulers start. A progress bar asks whether the stream is a terminal."""
    words = ["synth", "--to", str(tmp_path), "--speakers", "1", "--clips", "1", "--seconds", "1"]
    close = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    subprocess.run([*close, *PIPELINE, *words], check=True)
    assert len(list(tmp_path.rglob("*.mpg"))) == 1
    code = """if True:
        import os, sys
        from pipeline import main
        main.cli = lambda prog_name: open(sys.argv[1], "w").write(f"{os.open(os.devnull, 0)}")
        main.main()
        assert not sys.stderr.isatty() and not sys.stdout.isatty() and sys.stdin.read() == ""
    """
    subprocess.run([*close, sys.executable, "-c", code, str(tmp_path / "number")], check=True)
    assert int((tmp_path / "number").read_text()) > 2


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    code = """if True:
        import signal
        from pipeline import main
        for number in main.STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        main.cli = lambda prog_name: [signal.raise_signal(number) for number in main.STOP_SIGNALS]
        main.main()
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_is_forgotten(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    assert command is not None

    def invoke(err: Exception) -> tuple[int, str]:
        def fail() -> None:
            raise err

        monkeypatch.setattr(command, "callback", fail)
        monkeypatch.setattr(command, "params", [])
        result = CliRunner().invoke(cli, [name], catch_exceptions=False)
        return result.exit_code, result.output

    assert invoke(make_error(errno.ENOSPC)) == (1, "Error: /a/file: No space left on device\n")
    assert invoke(MemoryError()) == (1, "Error: out of memory\n")
    with pytest.raises(ZeroDivisionError):
        invoke(ZeroDivisionError())


def list_commands(place: Path) -> dict[str, list[str]]:
    """Options with which a command writes to ``place``. The rest of its input is not looked at before."""
    dataset = ["--dataset", "folder", "--raw", str(place.parent / "raw"), "--work", str(place)]
    shards = ["--shards", str(place.parent)]
    return {
        "synth": ["--to", str(place), "--speakers", "1", "--clips", "1", "--seconds", "1"],
        **dict.fromkeys(("clips", "landmarks", "align", "mels", "shard"), dataset),
        "train": [*shards, "--run", str(place), "--device", "cpu"],
        "sample": [*shards, "--run", str(place.parent), "-o", str(place), "--device", "cpu"],
        "evaluate": [*shards, "-o", str(place), "--device", "cpu"],
        "fetch": ["--dataset", "crema-d", "--to", str(place), "--only", "1001_DFA_*"],
    }


@pytest.mark.parametrize("name", sorted(list_commands(Path("/x")).keys() - {"synth"}))  # it writes there
def test_a_folder_whose_name_is_not_utf8_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    place = tmp_path / "b\udcffd"
    result = CliRunner().invoke(cli, [name, *list_commands(place)[name]], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert f"'{tmp_path}/b\\udcffd': the name is not UTF-8" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list_commands(Path("/x")))
@pytest.mark.parametrize(
    ("part", "said"), [("file/x", "a file is where a folder is expected"), ("x" * 256, "File name too long")]
)
def test_a_folder_that_cannot_be_made_is_one_line_that_names_it(
    name: str, part: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "raw").mkdir()
    options = list_commands(tmp_path / "x")[name]
    options = [str(tmp_path / part) if option == str(tmp_path / "x") else option for option in options]
    result = CliRunner().invoke(cli, [name, *options], catch_exceptions=False)
    assert result.exit_code == 1, result.output
    assert result.output.startswith(f"Error: {tmp_path / part.partition('/')[0]}")
    assert said in result.output and result.output.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "raw"]
