"""`pipeline evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import params as params_file
from pipeline.options import FILE, FOLDER

if TYPE_CHECKING:
    from shards.table import Row
    from stages.evaluate.run import Evaluation

# What the terminal shows; the files have every column, with intervals.
SHOWN = (
    "psnr_box_db", "ssim_box", "lpips_box", "cpbd_box", "fid_box", "lse_c", "lse_d", "lse_c_real",
    "lse_d_real", "mouth_distance_pupils", "opening_correlation", "audio_obedience", "smoothness_box",
    "identity_drift",
)  # fmt: skip
GROUPED = ("psnr_box_db", "opening_correlation", "audio_obedience")


def _named(value: str) -> tuple[str, Path]:
    """``NAME=DIR`` or ``DIR``; a folder that is there may have = in its name."""
    name, equals, folder = value.partition("=")
    return (name, Path(folder)) if equals and not Path(value).is_dir() else ("", Path(value))


@click.command("evaluate")
@click.option("--shards", required=True, metavar="DIR|URL", help="The dataset whose clips were drawn.")
@click.option(
    "--generated",
    multiple=True,
    metavar="[NAME=]DIR",
    help="A folder of `pipeline sample`, or of videos CLIP.mp4, CLIP~SPEECH.mp4; may be repeated.",
)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--split", default="test", show_default=True, help="Which clips.")
@click.option("--clips", type=click.IntRange(1), help="Only the first so many, by name.")
@click.option("--cache", type=FOLDER, help="Results kept for reuse.  [default: .cache beside --out]")
@click.option(
    "--landmarks/--no-landmarks",
    default=True,
    show_default=True,
    help="Look at mouths: most of the time, and the only way to tell obedience.",
)
@click.option("--landmarker", default="", metavar="FILE", help="MediaPipe's face_landmarker.task.")
@click.option("--weights", type=FOLDER, help="Folder of others' networks: SyncNet, Inception, LPIPS.")
@click.option("--raw", type=FOLDER, help="The corpus's raw clips, whose sound SyncNet hears.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Of those networks.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="one per core",
    help="Processes on this machine.",
)
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="A Dask scheduler to use instead.")
@click.option("--params", type=FILE, help="Params file, for its limits.  [default: ./params.yaml]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    shards: str,
    generated: tuple[str, ...],
    out: Path,
    split: str,
    clips: int | None,
    cache: Path | None,
    landmarks: bool,
    landmarker: str,
    weights: Path | None,
    raw: Path | None,
    device: str,
    workers: int,
    scheduler: str | None,
    params: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Score what was drawn for the clips of a split, beside the truth and mouths that cost nothing.

    Run again to go on where it stopped; what has not changed is not measured again.
    """
    from model.execution import select_device
    from model.recipe import ModelError
    from pipeline.runner import DaskMapper
    from shards.ledger import OK
    from shards.schema import ShardError
    from stages.engine.outcome import StageError
    from stages.evaluate import run as evaluate
    from stages.evaluate.table import BASELINES

    try:
        request = evaluate.EvaluateRequest(
            shards=shards,
            out=out,
            cache=cache or out.parent / ".cache",
            generated=tuple(map(_named, generated)),
            split=split,
            clips=clips,
            landmarks=landmarks,
            landmarker=landmarker,
            weights=weights,
            raw=raw,
            device=str(select_device(device)),
        )
        limits = params_file.load(params).limits
        with DaskMapper(workers, scheduler, quiet=as_json) as mapper:
            found = evaluate.run(request, limits, mapper)
    except (StageError, ShardError, ModelError) as err:
        raise click.ClickException(str(err)) from err
    counts = _counts(found.rows)
    if as_json:
        click.echo(json.dumps({"out": str(out), "metrics": found.metrics, "clips": counts}))
    else:
        _print_table(found)
        _print_groups(found.rows)
        _print_lost(found, counts)
        click.echo(f"table    {out / evaluate.METRICS}\nclips    {out / evaluate.CLIPS}")
    lost = [name for name in counts if name not in BASELINES and not counts[name][OK]]
    if lost:
        raise click.ClickException(f"{', '.join(lost)}: no clip could be scored; see {out / evaluate.CLIPS}")


def _counts(rows: list[Row]) -> dict[str, dict[str, int]]:
    """Clips by what became of them, for each row of the table."""
    from shards.ledger import count_by_code

    names = dict.fromkeys(row["row"] for row in rows)
    return {name: count_by_code(row for row in rows if row["row"] == name) for name in names}


def _print_table(found: Evaluation) -> None:
    """Means of the columns that have one; then why others have none."""
    from stages.evaluate.columns import COLUMNS

    missing: dict[str, list[str]] = {}
    for column in SHOWN:
        cells = {name: cells[column] for name, cells in found.metrics.items()}
        told = {name: cell for name, cell in cells.items() if isinstance(cell, dict)}
        if not told:
            missing.setdefault(next(iter(cells.values())), []).append(column)
            continue
        about = COLUMNS[column]
        where = ", ".join(
            filter(None, (about.region, about.unit, about.better and f"{about.better} is better"))
        )
        click.echo(f"{about.label}" + (f" ({where})" if where else ""))
        for name, cell in told.items():
            click.echo(f"  {name:<28} {_told(cell)}")
    for why, columns in missing.items():
        click.echo(f"{', '.join(columns)}: {why}")


def _told(cell: dict[str, Any]) -> str:
    return f"{cell['mean']:8.3f}  [{cell['low']:.3f}, {cell['high']:.3f}], n = {cell['n']}"


def _print_groups(rows: list[Row]) -> None:
    """Means of the generated rows by emotion, level and speaker, where there are several of them."""
    from stages.evaluate.columns import GROUPS
    from stages.evaluate.scores import means_by
    from stages.evaluate.table import BASELINES

    drawn = [row for row in rows if row["row"] not in BASELINES]
    for field in GROUPS:
        if len({row[field] for row in drawn} - {None}) < 2:
            continue
        click.echo(f"{'by ' + field:<36}" + "".join(f"{column:>21}" for column in GROUPED))
        means = [means_by(drawn, column, ("row", field)) for column in GROUPED]
        for name, value in sorted(set().union(*means)):
            cells = [told.get((name, value)) for told in means]
            shown = "".join("-".rjust(21) if mean is None else f"{mean.value:21.3f}" for mean in cells)
            click.echo(f"  {name:<26}{value:<8}{shown}")


def _print_lost(found: Evaluation, counts: dict[str, dict[str, int]]) -> None:
    """Clips that could not be scored, by row and reason, with an example."""
    for name, of_row in counts.items():
        told = ", ".join(f"{count} {code}" for code, count in of_row.items() if count)
        click.echo(f"{name}: {told}")
        for code in of_row:
            example = next((row for row in found.rows if row["row"] == name and row["code"] == code), None)
            if example is not None and example["reason"]:
                click.echo(f"  {code:<12} e.g. {example['name']}: {example['reason']}")
    for name, files in found.unasked.items():
        click.echo(f"{name}: {len(files)} files name no clip that was asked for, e.g. {files[0]}")
