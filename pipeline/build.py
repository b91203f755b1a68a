"""From raw clips to shards: runs the stages asked for, prints what came of them, chooses the exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click
import yaml

from pipeline import bucket_build as cluster
from pipeline import params as params_file
from pipeline.options import Request
from pipeline.params import Params
from pipeline.progress import ProgressBars
from pipeline.runner import DaskMapper
from shards.address import open_storage
from shards.index import DATASET_NAME, read_dataset
from shards.ledger import OK, read_ledger
from shards.publish import publish
from shards.schema import ShardError
from shards.storage import MissingFileError, Storage
from shards.table import Rows
from stages import align, clips, landmarks, mels, shard
from stages.engine.lock import lock_folder
from stages.engine.outcome import Mapper, Report, StageError, Work
from stages.engine.parts import plan
from stages.media import weights

ROAD = (clips.STAGE, landmarks.STAGE, align.STAGE, mels.STAGE, shard.STAGE)


def go(request: Request, stages: Sequence[str]) -> None:
    """Run ``stages`` in order, print, and exit with 1 when a stage lost everything or too much."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        params = params_file.load(request.params)
        work = resolve_folders(request)
        stages = _stages(request, stages)
        if request.dry_run:
            _print_plan(request, params, stages)
            return
        place = None if request.publish is None else open_storage(request.publish)
        if place is not None:
            with contextlib.suppress(MissingFileError):
                place.whole(DATASET_NAME)  # a wrong bucket or key is said now, not after hours
        reports, sent = [], 0
        busy = f"--work {work.root}: another pipeline command is at work there"
        with (
            lock_folder(work.root, work.out, busy=busy),
            DaskMapper(request.workers, request.scheduler, quiet=request.as_json) as mapper,
        ):
            for stage in stages:
                started = time.monotonic()
                if request.source is None:
                    report = run_stage(stage, work, params, request, mapper)
                else:
                    report = run_far_stage(stage, work, params, request, mapper)
                report.seconds = round(time.monotonic() - started, 2)
                reports.append(report)
                if not request.as_json:
                    _print_report(report, read_ledger(work.ledger))
                lost = _too_much_lost(report, params)
                if lost:
                    break
            if place is not None and reports[-1].stage == shard.STAGE and not lost:
                sent = _publish(work, place, quiet=request.as_json)
    except (StageError, ShardError) as err:
        raise click.ClickException(str(err)) from err
    if request.as_json:
        click.echo(json.dumps(_summary(request, work, reports)))
    elif reports[-1].stage == shard.STAGE and reports[-1].kept:
        _print_dataset(work, request)
        if request.publish is not None and not lost:
            click.echo(f"bucket   {request.publish}, {sent / 1e6:.1f} MB sent")
    if lost:
        raise click.ClickException(lost)


def resolve_folders(request: Request) -> Work:
    """The folders of a request, absolute, since workers may stand elsewhere."""
    for name in ("work", "out", "cache"):
        if getattr(request, name).resolve().is_relative_to(request.raw.resolve()):
            raise StageError(
                f"--{name} {getattr(request, name)} lies in --raw {request.raw}, which is never written to"
            )
    return Work(
        corpus=request.dataset,
        raw=request.raw.absolute(),
        root=request.work.absolute(),
        out=request.out.absolute(),
        cache=request.cache.absolute(),
    )


def run_stage(stage: str, work: Work, params: Params, request: Request, mapper: Mapper) -> Report:
    """One stage, with the params it asks for."""
    if stage == clips.STAGE:
        return clips.run(work, params.clips, params.limits, mapper)
    parts = plan(clips.read_clips(work), params.parts)
    if stage == landmarks.STAGE:
        model = weights.find(weights.LANDMARKER, request.landmarker or params.landmarks.model)
        return landmarks.run(work, params.landmarks, parts, params.limits, model, mapper)
    if stage == align.STAGE:
        return align.run(work, params.align, parts, mapper)
    if stage == mels.STAGE:
        return mels.run(work, params.mels, parts, params.limits, mapper)
    assert stage == shard.STAGE, stage
    return shard.run(work, params.shard, params.align.size, parts, params.limits, params.described(), mapper)


def run_far_stage(stage: str, work: Work, params: Params, request: Request, mapper: Mapper) -> Report:
    """As ``run_stage``, where clips lie in a bucket and workers share no disk with this machine."""
    errand = cluster.BuildJob(
        corpus=request.dataset,
        raw=str(request.source),
        out=str(request.publish),
        clips=params.clips,
        landmarks=replace(params.landmarks, model=request.landmarker or params.landmarks.model),
        align=params.align,
        mels=params.mels,
        shard=params.shard,
        limits=params.limits,
        tools=cluster.tools(),
    )
    if stage == clips.STAGE:
        return cluster.look(errand, work, mapper)
    parts = plan(clips.read_clips(work), params.parts)
    return cluster.build(errand, work, parts, params.described(), mapper)


def _stages(request: Request, stages: Sequence[str]) -> Sequence[str]:
    """What is run: of clips in a bucket the facts first, and then each part's whole road at once."""
    if request.source is None:
        return stages
    if stages != ROAD:
        raise StageError(
            f"--raw {request.source}: of a bucket only `pipeline shard` makes something, as a whole"
        )
    return clips.STAGE, shard.STAGE


def _publish(work: Work, place: Storage, *, quiet: bool) -> int:
    """Send the finished dataset to a bucket; how many bytes were not there yet."""
    with ProgressBars("MB") as bars:

        def show(seen: int, total: int) -> None:
            if not quiet:
                bars("upload", seen // 10**6, total // 10**6)

        return publish(work.out, place, done=show)


def _too_much_lost(report: Report, params: Params) -> str:
    """A sentence when so many clips ended here that something must be wrong, else nothing."""
    lost = report.clips - report.kept
    if not report.kept:
        return f"{report.stage}: no clip of {report.clips} is usable; see the reasons above"
    share = lost / report.clips
    if share > params.limits.max_drop_fraction:
        return (f"{report.stage}: {lost} of {report.clips} clips are lost ({share:.0%}), more than "
                f"limits.max_drop_fraction {params.limits.max_drop_fraction:g} allows")  # fmt: skip
    return ""


def _print_plan(request: Request, params: Params, stages: Sequence[str]) -> None:
    if request.source is None:
        found = list(clips.find_files(request.raw.absolute(), params.clips))
        n_files, n_closed = len(found), sum(item.problem is not None for item in found)
    else:
        n_files, n_closed = len(cluster.clips_in(open_storage(request.source))), 0
    plan = {
        "stages": list(stages),
        "raw": request.source or str(request.raw),
        "files": n_files,
        "files_that_cannot_be_opened": n_closed,
        "work": str(request.work),
        "out": request.publish or str(request.out),
        "params": asdict(params),
    }
    click.echo(json.dumps(plan) if request.as_json else yaml.safe_dump(plan, sort_keys=False).rstrip())


def _print_report(report: Report, ledger: Rows) -> None:
    parts = report.parts
    built = f", {parts['built']} of {parts['total']} parts written" if parts["total"] else ""
    click.echo(
        f"{report.stage}: {report.kept} of {report.clips} clips, {report.frames} frames, "
        f"{report.clips_computed} computed{built}, {report.seconds:.1f} s"
    )
    told = ledger.only("code", "path", "reason")
    for code, count in report.counts.items():
        if code != OK:
            example = next((row for row in told if row["code"] == code), None)
            such = f"  e.g. {example['path']}: {example['reason']}" if example else ""
            click.echo(f"  {code:<14} {count:>5}{such}")


def _print_dataset(work: Work, request: Request) -> None:
    dataset = read_dataset(work.out)
    for split, counts in dataset["splits"].items():
        clips_and_frames = f"{counts['clips']} clips, {counts['frames']} frames"
        click.echo(f"{split}: {clips_and_frames} in {counts['shards']} shards")
    click.echo(f"shards   {work.out if request.source is None else request.publish}\nledger   {work.ledger}")


def _summary(request: Request, work: Work, reports: list[Report]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "dataset": request.dataset,
        "stages": [asdict(report) for report in reports],
        "ledger": str(work.ledger),
    }
    if reports[-1].stage == shard.STAGE and (work.out / DATASET_NAME).is_file():
        dataset = read_dataset(work.out)
        summary |= {
            "out": request.publish or str(work.out),
            "digest": dataset["digest"],
            "splits": dataset["splits"],
        }
    return summary
