"""The same numbers as ``metrics.jsonl`` in DVC's own files, by dvclive, which is optional.

FOLDER/metrics.json            the last losses, a few of them: the columns of ``dvc exp show``
FOLDER/plots/metrics/*.tsv     every number by step: ``dvc plots``, DVC's extension for VS Code
FOLDER/dvc.yaml                says what these are; DVC finds it by itself

The folder is made anew from ``metrics.jsonl`` whenever a run starts or resumes, so no step is in it twice.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from model.recipe import ModelError
from shards.errors import shorten
from shards.files import is_inside

if TYPE_CHECKING:
    from dvclive.live import Live

DVC_FILE, SUMMARY, PLOTS = "dvc.yaml", "metrics.json", "plots"
# Of the numbers of a run, what a list of runs shows; the others are in the plots.
LISTED = ("loss", "held_out_loss", "listening_loss", "deaf_loss")
GAP = "listening_gap"  # how much higher the loss is without audio: what the network takes from the speech
OFFLINE = {"DVC_STUDIO_OFFLINE": "true", "DVC_NO_ANALYTICS": "true"}


class DvcliveLog:
    """Writes the numbers of a run for DVC. Made by ``open_dvclive_log``."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def write_metrics(self, step: int, values: Mapping[str, float | int]) -> None:
        """Add the numbers of a step to the plots, and the losses among them to the summary."""
        self._add(step, values)
        self._live.make_summary()

    def replay(self, records: Iterable[Mapping[str, float | int]]) -> None:
        """Add the numbers of earlier steps, as ``metrics.jsonl`` has them."""
        for record in records:
            self._add(int(record["step"]), {name: record[name] for name in record if name != "step"})
        self._live.make_summary()
        self._live.make_dvcyaml()

    def _add(self, step: int, values: Mapping[str, float | int]) -> None:
        self._live.step = step
        summary = dict(self._live.summary)
        for name, value in values.items():
            self._live.log_metric(name, value)
        summary |= {name: values[name] for name in LISTED if name in values}
        if "deaf_loss" in values and "listening_loss" in values:
            summary[GAP] = values["deaf_loss"] - values["listening_loss"]
        self._live.summary = summary


def check_dvclive(folder: Path) -> None:
    """Raise ModelError unless dvclive is installed and may write its files to ``folder``.

    dvclive deletes what it takes for its own files, a ``dvc.yaml`` among them.
    """
    if importlib.util.find_spec("dvclive") is None:
        raise ModelError("--dvclive needs dvclive: pip install 'redub[dvclive]'")
    here = Path.cwd()
    if not any((parent / ".dvc").is_dir() for parent in (here, *here.parents)):
        raise ModelError(f"--dvclive: {here} is in no DVC repository; run `dvc init` first")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if name not in (DVC_FILE, SUMMARY, PLOTS) or not is_inside(folder / name, folder):
            raise ModelError(
                f"--dvclive {folder}: holds {shorten(name)}, expected a new folder or one that dvclive wrote"
            )
    if DVC_FILE in names and SUMMARY not in names:
        raise ModelError(
            f"--dvclive {folder}: holds a {DVC_FILE} that dvclive did not write, and would delete it"
        )


@contextlib.contextmanager
def open_dvclive_log(folder: Path, records: Iterable[Mapping[str, float | int]]) -> Iterator[DvcliveLog]:
    """The log of a run with these lines of ``metrics.jsonl``. Raises ModelError as ``check_dvclive``.

    Nothing is sent anywhere and no experiment is saved. Git is not touched but within ``dvc exp run``, which
    commits an experiment of its own: there the folder is added to that.
    """
    check_dvclive(folder)
    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ |= OFFLINE
    try:
        from dvclive.live import Live

        logging.getLogger("dvclive").setLevel(logging.ERROR)
        live = Live(os.fspath(folder), save_dvc_exp=False, dvcyaml=os.fspath(folder / DVC_FILE), report=None)
        log = DvcliveLog(live)
        log.replay(records)
        yield log
        live.end()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
