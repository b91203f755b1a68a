"""The command group. A command is imported when it is called, so ``--help`` is quick."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from pipeline.errors import describe_error

# PyTorch's threads wait for each other in a busy loop, which takes the cores from those waited for as soon as
# anything else runs: drawing took five times as long. OpenMP reads this once, before PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

# name -> (module in pipeline.commands, its line in --help)
COMMANDS = {
    "fetch": ("fetch", "Download a corpus from its publisher, or a published model, each file checked."),
    "synth": ("synth", "Make a corpus of talking clips whose ground truth is known."),
    "clips": ("dataset_stages", "Stage 1: list every file and read its facts."),
    "cut": ("dataset_stages", "Beside stage 1: cut files into clips of one speaking face."),
    "landmarks": ("dataset_stages", "Stage 2: find 478 face points in every frame."),
    "align": ("dataset_stages", "Stage 3: compute crop matrices and mask boxes."),
    "mels": ("dataset_stages", "Stage 4: compute two mel rows for every frame."),
    "speech": ("dataset_stages", "Beside stage 4: compute two rows of speech features for every frame."),
    "shard": ("dataset_stages", "Stage 5, and whatever is missing before it: raw clips to shards."),
    "train": ("train", "Stage 6: train a network on shards, on one GPU or many."),
    "sample": ("sample", "Stage 7: generate a split's clips with their own or other speech."),
    "evaluate": ("evaluate", "Stage 8: score generated clips beside the ground truth and baselines."),
    "report": ("report", "Stage 9: write one page that shows the data, the training and the results."),
    "edit": ("edit", "Make the person in a video say what is heard in a recording."),
    "app": ("app", "Serve `edit` as a page for the browser."),
    "doctor": ("doctor", "Say what this machine has, and what to do about what is missing."),
    "models": ("models", "List the published models: what they hear, how large and how good they are."),
    "export": ("export", "Write the network of a run as one small file, to edit with elsewhere."),
    "verify": ("verify", "Check that a dataset is complete and intact."),
    "explain": ("explain", "Show what happened to a clip, at which stage, and why."),
    "diff": ("diff", "Compare two datasets."),
    "card": ("card", "Describe a dataset for others: a README for a hub, and Croissant."),
    "prune": ("prune", "Remove files of older datasets from a bucket."),
    "preview": ("preview", "Show a dataset: a contact sheet, or a clip as video."),
}


class LazyGroup(click.Group):
    """Lists the commands; imports a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, _ = COMMANDS[cmd_name]
        module = importlib.import_module(f"pipeline.commands.{module_name}")
        command: click.Command = getattr(module, "command", None) or getattr(module, cmd_name)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with print_errors():  # of --help and --version
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with print_errors():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redub", prog_name="pipeline")
def cli() -> None:
    """redub: from raw talking-face videos to shards, a trained network and edited video.

    `pipeline shard --dataset crema-d` runs all stages from raw clips to shards.
    """


@contextlib.contextmanager
def print_errors() -> Iterator[None]:
    """End with one line for what a user can fix and what the machine refuses, whichever command it is."""
    try:
        yield
    except Exception as err:
        line = describe_error(err)
        if line is None:
            raise
        raise click.ClickException(line) from err


def _open_standard_streams() -> None:
    """Give the null device to standard streams that are closed, as under some schedulers.

    Else the next file that is opened gets their number, and what libraries print is written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def exit_at_stop_signals() -> None:
    """Have SIGTERM and SIGHUP raise SystemExit here, as Ctrl-C raises KeyboardInterrupt.

    So a process that is stopped removes its scratch folders and partial files and ends its children; training
    and the page catch SIGTERM themselves meanwhile. A signal that is ignored, as under nohup, stays so. Only
    the main thread can set it.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def stop(number: int, _frame: object) -> NoReturn:
        for each in STOP_SIGNALS:  # `timeout` and a closed terminal send another one, amid the cleaning up
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)  # as a shell says of a process that a signal ended

    for each in STOP_SIGNALS:
        if signal.getsignal(each) == signal.SIG_DFL:
            signal.signal(each, stop)


def main() -> None:
    """The program `pipeline`."""
    exit_at_stop_signals()
    # Of the processes that are started, Dask's workers and pip: their imports are never from the user's
    # folder. Python 3.10 does not know it.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    _open_standard_streams()
    cli(prog_name="pipeline")


if __name__ == "__main__":
    main()
