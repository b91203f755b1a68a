"""`pipeline fetch`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import FOLDER, MEGABYTE

if TYPE_CHECKING:
    from stages.fetch.run import FetchResult


@click.command("fetch")
@click.option("--dataset", type=click.Choice(["grid", "crema-d"]), help="Corpus to download.")
@click.option("--to", type=FOLDER, help="Folder for it.  [default: data/DATASET/raw]")
@click.option("--only", default="*", show_default=True,
              help="Pattern of paths or file names; for GRID of archives: 's1', 's[2-9]'.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True,
              help="Downloads at the same time.")  # fmt: skip
@click.option("--weights", "network", metavar="NAME",
              help="Model file to download to the user's cache: landmarker, whisper-tiny.en, silero-vad, or "
              "of the evaluation syncnet, inception, alexnet, lpips.")  # fmt: skip
@click.option("--model", metavar="NAME", help="Published model to download to the user's cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    dataset: str | None,
    to: Path | None,
    only: str,
    jobs: int,
    network: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Download a corpus from its publisher, each file checked by its digest, or a network's weights.

    GRID: 33 speakers and the word times from Zenodo, 13.6 GB. CREMA-D: 7,442 clips through Git LFS, 2.4 GB;
    `--only '1001_DFA_*'` selects six that a Python package contains too, for machines that reach only a
    package index.

    Run it again to resume at the byte where it stopped; files that are there are checked and kept. Exits with
    1 when a file could not be downloaded.
    """
    if sum(choice is not None for choice in (dataset, network, model)) != 1:
        raise click.UsageError("one of --dataset, --weights and --model is needed")
    if model is not None:
        _fetch_model(model)
        return
    if network is not None:
        _fetch_weights(network)
        return
    assert dataset is not None, "one of the three is set"
    _fetch_corpus(dataset, to or Path("data", dataset, "raw"), only, jobs, as_json=as_json)


def _fetch_weights(name: str) -> None:
    from stages.media.weights import BASIC, NETWORKS, fetch

    known = {**NETWORKS, **BASIC}
    if name not in known:
        raise click.BadParameter(
            f"{name!r} is not known; known are {', '.join(known)}", param_hint="--weights"
        )
    click.echo(fetch(known[name]))


def _fetch_model(name: str) -> None:
    from stages.media.networks import fetch_network

    network = fetch_network(name)
    note = ": it is in the package and needs no download" if network.is_packaged else ""
    click.echo(f"{network.path}{note}")


def _fetch_corpus(dataset: str, to: Path, only: str, jobs: int, *, as_json: bool) -> None:
    from pipeline.progress import ProgressBars
    from stages.fetch import run as fetch
    from stages.fetch.sources import SOURCES

    source = SOURCES[dataset]
    plan = fetch.plan_fetch(source, to, only, jobs)
    click.echo(
        f"{dataset}: {len(plan.absent)} files to download, {plan.download_bytes / 1e9:.2f} GB; "
        f"they need {plan.needed_bytes / 1e9:.2f} GB of disk, {plan.free_bytes / 1e9:.1f} GB are free",
        err=True,
    )
    with ProgressBars("MB", scale=MEGABYTE, quiet=as_json) as bars:
        files = list(fetch.fetch_files(plan, jobs, bars))
    missing = [file for file in files if file.status == "missing"]
    if as_json:
        click.echo(json.dumps({"to": str(to), "files": [file.to_json() for file in files]}))
    else:
        _print_table(files)
        click.echo(f"{len(files) - len(missing)} of {len(files)} files in {to}; {source.citation}")
    if missing:
        raise click.ClickException(
            f"{len(missing)} of {len(files)} files are missing; run again to resume. Without a network, "
            "`pipeline synth` makes a corpus to try things on"
        )


def _print_table(files: list[FetchResult]) -> None:
    """Counts of files by status and reason, with an example of each."""
    counts = Counter((file.status, file.code) for file in files)
    for (status, code), count in sorted(counts.items()):
        group = [file for file in files if (file.status, file.code) == (status, code)]
        gigabytes = sum(file.bytes for file in group) / 1e9
        example = f"e.g. {group[0].path}  ({group[0].detail})"
        click.echo(f"{status:<8} {code:<12} {count:>6} {gigabytes:>8.2f} GB  {example}")
