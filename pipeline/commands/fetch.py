"""`pipeline fetch`."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import FOLDER

if TYPE_CHECKING:
    from stages.fetch.run import FetchResult

MEGABYTE = 10**6


@click.command("fetch")
@click.option("--dataset", type=click.Choice(["grid", "crema-d"]), help="The corpus.")
@click.option("--to", type=FOLDER, help="Where to.  [default: data/DATASET/raw]")
@click.option("--only", default="*", show_default=True,
              help="Pattern of paths or names; of GRID, names of archives: 's1', 's[2-9]'.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Downloads at a time.")
@click.option(
    "--weights", "network", metavar="NAME", help="A network of the evaluation, into the user's cache."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    dataset: str | None, to: Path | None, only: str, jobs: int, network: str | None, as_json: bool
) -> None:
    """Bring a corpus from its official address, each file checked by its digest, or a network's weights.

    GRID: 33 speakers and the word times from Zenodo, 13.6 GB. CREMA-D: 7,442 clips through Git LFS, 2.4 GB;
    `--only '1001_DFA_*'` are six that a Python package carries too, where only a package index is reached.

    Run again to go on at the byte where it stopped; what is there is checked and kept. Exits with 1 when
    some did not come.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    if (dataset is None) == (network is None):
        raise click.UsageError("either --dataset or --weights is needed")
    if network is not None:
        _bring_weights(network)
        return
    assert dataset is not None, "one of the two is given"
    _bring_corpus(dataset, to or Path("data", dataset, "raw"), only, jobs, as_json=as_json)


def _bring_weights(name: str) -> None:
    from stages.engine.outcome import StageError
    from stages.media.weights import NETWORKS, bring

    if name not in NETWORKS:
        raise click.BadParameter(
            f"{name!r} is not known; known are {', '.join(NETWORKS)}", param_hint="--weights"
        )
    try:
        click.echo(bring(NETWORKS[name]))
    except StageError as err:
        raise click.ClickException(str(err)) from err


def _bring_corpus(dataset: str, to: Path, only: str, jobs: int, *, as_json: bool) -> None:
    from pipeline.progress import ProgressBars
    from stages.engine.outcome import StageError
    from stages.fetch import run as fetch
    from stages.fetch.sources import SOURCES

    source = SOURCES[dataset]
    try:
        plan = fetch.plan(source, to, only, jobs)
        click.echo(
            f"{dataset}: {len(plan.coming)} files to come, {plan.coming_bytes / 1e9:.2f} GB; "
            f"they need {plan.needed_bytes / 1e9:.2f} GB of disk, {plan.free_bytes / 1e9:.1f} GB are free",
            err=True,
        )
        with ProgressBars("MB") as bars:
            total = plan.coming_bytes // MEGABYTE

            def progress(n_bytes: int) -> None:
                if not as_json:
                    bars("fetch", n_bytes // MEGABYTE, total)

            files = list(fetch.bring(plan, jobs, progress))
    except StageError as err:
        raise click.ClickException(str(err)) from err
    missing = [file for file in files if file.status == "missing"]
    if as_json:
        click.echo(json.dumps({"to": str(to), "files": [asdict(file) for file in files]}))
    else:
        _print_table(files)
        click.echo(f"{len(files) - len(missing)} of {len(files)} files in {to}; {source.licence}")
    if missing:
        raise click.ClickException(
            f"{len(missing)} of {len(files)} files did not come; run again to go on. Without a network, "
            "`pipeline synth` makes a corpus to try things on"
        )


def _print_table(files: list[FetchResult]) -> None:
    """What came and what did not, counted by reason, with an example of each."""
    counts = Counter((file.status, file.code) for file in files)
    for (status, code), count in sorted(counts.items()):
        some = [file for file in files if (file.status, file.code) == (status, code)]
        gigabytes = sum(file.bytes for file in some) / 1e9
        click.echo(
            f"{status:<8} {code:<12} {count:>6} {gigabytes:>8.2f} GB  e.g. {some[0].path}  ({some[0].told})"
        )
