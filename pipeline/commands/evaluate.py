"""`pipeline evaluate`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import params as params_file
from pipeline.options import (
    FOLDER,
    add_endpoint_option,
    device_option,
    landmarker_option,
    params_option,
    scheduler_option,
    workers_option,
)

if TYPE_CHECKING:
    from shards.table import Row
    from stages.evaluate.run import EvaluationResult

# Columns that are printed; the files have all of them, with intervals.
PRINTED_COLUMNS = (
    "psnr_box_db", "psnr_box_first_db", "psnr_box_last_db", "border_colour", "ssim_box", "lpips_box",
    "cpbd_box", "fid_box", "lse_c", "lse_d", "lse_c_real", "lse_d_real", "mouth_distance_pupils",
    "opening_correlation", "sync_confidence", "audio_obedience", "obedience_speech", "obedience_source",
    "audio_obedience_net", "silence_ratio", "closure", "closure_truth", "smoothness_box", "identity_drift",
)  # fmt: skip
GROUP_COLUMNS = ("psnr_box_db", "opening_correlation", "audio_obedience")


def _parse_generated(value: str) -> tuple[str, Path]:
    """``NAME=DIR`` or ``DIR``; the name of an existing folder may contain =."""
    name, equals, folder = value.partition("=")
    return (name, Path(folder)) if equals and not Path(value).is_dir() else ("", Path(value))


@click.command("evaluate")
@click.option("--shards", required=True, metavar="DIR|URL", help="The dataset of the clips.")
@click.option(
    "--generated",
    multiple=True,
    metavar="[NAME=]DIR",
    help="A folder of `pipeline sample`, or of videos CLIP.mp4, CLIP~SPEECH.mp4; may be repeated.",
)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--card",
    type=FOLDER,
    help="Write a card of each generated system to this folder too: a small JSON file and a picture, for "
    "`pipeline report --card`, here or elsewhere.",
)
@click.option("--split", default="test", show_default=True, help="Split whose clips are scored.")
@click.option("--clips", type=click.IntRange(1), help="Score only the first so many clips, by name.")
@click.option("--cache", type=FOLDER, help="Cache of results.  [default: .cache beside --out]")
@click.option(
    "--landmarks/--no-landmarks",
    default=True,
    show_default=True,
    help="Compute the mouth metrics. They take most of the time; audio obedience is one of them.",
)
@click.option(
    "--mouths-only",
    is_flag=True,
    help="Leave out SSIM, CPBD and what needs other people's networks (LPIPS, FID, LSE).",
)
@click.option(
    "--alignments",
    type=FOLDER,
    help="GRID's word times, DIR/s1/bbaf2n.align, for the share of p, b and m with closed lips.",
)
@landmarker_option
@click.option("--weights", type=FOLDER, help="Folder of published networks: SyncNet, Inception, LPIPS.")
@click.option(
    "--raw",
    type=FOLDER,
    help="The corpus's raw clips, for their sound: of SyncNet, and of p, b and m where there are no word "
    "times (needs the extra `phonemes`).",
)
@device_option
@workers_option
@scheduler_option
@params_option
@add_endpoint_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    shards: str,
    generated: tuple[str, ...],
    out: Path,
    card: Path | None,
    split: str,
    clips: int | None,
    cache: Path | None,
    landmarks: bool,
    mouths_only: bool,
    alignments: Path | None,
    landmarker: str,
    weights: Path | None,
    raw: Path | None,
    device: str,
    workers: int,
    scheduler: str | None,
    params: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Score generated clips of a split beside the ground truth and baselines.

    Run again to continue after an interruption; what has not changed is read from the cache.
    """
    from model.execution import select_device
    from pipeline.progress import ProgressBars
    from pipeline.runner import DaskMapper
    from shards.ledger import OK
    from stages.evaluate import run as evaluate
    from stages.evaluate.table import NOT_GENERATED

    if mouths_only and not landmarks:
        raise click.UsageError("--mouths-only needs landmarks: leave out --no-landmarks")
    if mouths_only and weights is not None:
        raise click.UsageError("--mouths-only computes no network's scores: leave out --weights")
    request = evaluate.EvaluateRequest(
        shards=shards,
        out=out,
        cache=cache or out.parent / ".cache",
        generated=tuple(map(_parse_generated, generated)),
        split=split,
        clips=clips,
        landmarks=landmarks,
        mouths_only=mouths_only,
        alignments=alignments,
        landmarker=landmarker,
        weights=weights,
        raw=raw,
        device=str(select_device(device)),
        card=card,
    )
    limits = params_file.load(params).limits
    with (
        DaskMapper(workers, scheduler, quiet=as_json) as map_tasks,
        ProgressBars("clips", quiet=as_json) as progress,
    ):
        result = evaluate.run(request, limits, map_tasks, progress)
    counts = _count_by_row(result.rows)
    if as_json:
        click.echo(json.dumps({"out": str(out), "metrics": result.metrics, "clips": counts}))
    else:
        _print_table(result)
        _print_groups(result.rows)
        _print_counts(result, counts)
        click.echo(f"table    {out / evaluate.METRICS}\nclips    {out / evaluate.CLIPS}")
        for path in result.cards:
            click.echo(f"card     {path}")
    unscored = [name for name in counts if name not in NOT_GENERATED and not counts[name][OK]]
    if unscored:
        raise click.ClickException(
            f"{', '.join(unscored)}: no clip could be scored; see {out / evaluate.CLIPS}"
        )


def _count_by_row(rows: list[Row]) -> dict[str, dict[str, int]]:
    """Number of clips by code, for each row of the table."""
    from shards.ledger import count_by_code

    names = dict.fromkeys(row["row"] for row in rows)
    return {name: count_by_code(row for row in rows if row["row"] == name) for name in names}


def _print_table(result: EvaluationResult) -> None:
    """Print the columns that have a mean in some row, why the others have none, what intervals are over."""
    from stages.evaluate.columns import COLUMNS
    from stages.evaluate.scores import explain_intervals
    from stages.evaluate.table import NOT_GENERATED

    n_to_score = Counter(row["row"] for row in result.rows if row["row"] not in NOT_GENERATED)
    missing: dict[str, list[str]] = {}
    has_interval = False
    for name in PRINTED_COLUMNS:
        values = {row: columns[name] for row, columns in result.metrics.items()}
        means = {row: value for row, value in values.items() if isinstance(value, dict)}
        if not means:
            missing.setdefault(next(iter(values.values())), []).append(name)
            continue
        column = COLUMNS[name]
        details = ", ".join(
            filter(None, (column.region, column.unit, column.better and f"{column.better} is better"))
        )
        click.echo(f"{column.label}" + (f" ({details})" if details else ""))
        for row, mean in means.items():
            click.echo(f"  {row:<28} {_format_mean(mean, n_to_score[row])}")
            has_interval |= any(each["low"] is not None for each in (mean, mean.get("difference", mean)))
    for why, columns in missing.items():
        click.echo(f"{', '.join(columns)}: {why}")
    if has_interval:
        click.echo(explain_intervals(result.rows))


def _format_mean(mean: dict[str, Any], n_to_score: int) -> str:
    text = f"{mean['mean']:8.3f}  {_format_interval(mean)}, n = {mean['n']}"
    if mean["n"] < n_to_score:
        text += f" of {n_to_score} clips"
    less = mean.get("difference")
    if less and less["low"] is not None:  # of a few clips it tells nothing that the means do not
        text += f"; less {less['from']}: {less['mean']:+.3f} {_format_interval(less)}, n = {less['n']}"
    return text


def _format_interval(mean: dict[str, Any]) -> str:
    return "no interval" if mean["low"] is None else f"[{mean['low']:.3f}, {mean['high']:.3f}]"


def _print_groups(rows: list[Row]) -> None:
    """Print means of the generated rows by the speech's emotion, level and speaker, if it has several."""
    from stages.evaluate.columns import GROUPS
    from stages.evaluate.scores import group_means
    from stages.evaluate.table import NOT_GENERATED

    generated = [row for row in rows if row["row"] not in NOT_GENERATED]
    for field in GROUPS:
        means_by_column = [
            group_means(generated, column, ("row", f"audio_{field}")) for column in GROUP_COLUMNS
        ]
        keys = sorted(set().union(*means_by_column))
        if len({value for _, value in keys}) < 2:
            continue
        heading = f"by {field} of the speech"
        click.echo(f"{heading:<36}" + "".join(f"{column:>21}" for column in GROUP_COLUMNS))
        for name, value in keys:
            means = [column_means.get((name, value)) for column_means in means_by_column]
            line = "".join("-".rjust(21) if mean is None else f"{mean.value:21.3f}" for mean in means)
            click.echo(f"  {name:<26}{value:<8}{line}")


def _print_counts(result: EvaluationResult, counts: dict[str, dict[str, int]]) -> None:
    """Print the number of clips by row and code, with an example of each reason."""
    from stages.sample.pairs import explain_other_splits, list_other_splits

    for name, row_counts in counts.items():
        note = explain_other_splits(list_other_splits(row for row in result.rows if row["row"] == name))
        summary = ", ".join(f"{count} {code}" for code, count in row_counts.items() if count)
        click.echo(f"{name}: {summary}" + (note and f"; {note}"))
        for code in row_counts:
            example = next((row for row in result.rows if row["row"] == name and row["code"] == code), None)
            if example is not None and example["reason"]:
                click.echo(f"  {code:<12} e.g. {example['name']}: {example['reason']}")
    for clip_id, reason in list(result.unreadable.items())[:1]:
        n_clips = len(result.unreadable)
        click.echo(f"nearest mel: {n_clips} training clips are left out, e.g. {clip_id}: {reason}")
    for name, files in result.unmatched_files.items():
        click.echo(f"{name}: the names of {len(files)} files match no clip to score, e.g. {files[0]}")
