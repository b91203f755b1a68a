"""Builds a dataset: runs the stages that a command asks for, prints their reports, chooses the exit code.

``pipeline.dataset_stages`` runs a stage on this machine's folders, ``pipeline.bucket_build`` on workers that
share nothing but buckets.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import click
import pydantic
import yaml

from pipeline import bucket_build, params
from pipeline.dataset_stages import STAGES, list_stages, run_stage
from pipeline.options import MEGABYTE, BuildRequest
from pipeline.params import Params
from pipeline.progress import ProgressBars
from pipeline.runner import DaskMapper
from pipeline.tools import check_tools, list_tools
from shards.index import DATASET_NAME, read_manifest
from shards.ledger import OK, has_spans, read_ledger
from shards.params import describe_mismatch
from shards.publish import publish
from shards.storage import MissingFileError, Storage, open_storage
from shards.table import Rows
from stages import clips, shard
from stages.corpora import BESIDE_CLIPS
from stages.corpora.leftovers import LEFT_OUT
from stages.engine.lock import lock_folder
from stages.engine.outcome import StageError
from stages.engine.stage import Context, Report, Work


def build_dataset(request: BuildRequest, stages: Sequence[str]) -> None:
    """Run ``stages`` in order and print. Exits with 1 when a stage drops everything or too much."""
    settings = _load_params(request)
    shard.make_source(request.dataset, request.licence)  # a licence that cannot be stated, now
    work = resolve_folders(request)
    stages = _select_stages(request, settings, stages)
    if request.dry_run:
        _print_plan(request, settings, stages)
        return
    storage = _open_destination(request)
    check_worker = functools.partial(check_tools, settings, list_tools(settings))
    busy = f"--work {work.root}: another pipeline command is at work there"
    with (
        lock_folder(work.root, work.out, busy=busy),
        DaskMapper(
            request.workers, request.scheduler, quiet=request.as_json, check_worker=check_worker
        ) as map_tasks,
    ):
        dataset_params = settings.describe_dataset()
        context = Context(map_tasks, settings.limits, request.workers, dataset_params, request.licence)
        reports, problem = _run_stages(request, stages, work, settings, context)
        n_bytes_sent = 0
        if storage is not None and reports[-1].stage == shard.STAGE and not problem:
            with ProgressBars("MB", scale=MEGABYTE, quiet=request.as_json) as bars:
                n_bytes_sent = publish(work.out, storage, progress=bars)
    if request.as_json:
        click.echo(json.dumps(_summarize(request, work, reports)))
    elif reports[-1].stage == shard.STAGE and reports[-1].n_usable:
        _print_dataset(work, request)
        if storage is not None and not problem:
            click.echo(f"bucket   {request.publish}, {n_bytes_sent / MEGABYTE:.1f} MB sent")
    if problem:
        raise click.ClickException(problem)


def resolve_folders(request: BuildRequest) -> Work:
    """The folders of a request, absolute: workers may have another working directory."""
    for name in ("work", "out", "cache"):
        if getattr(request, name).resolve().is_relative_to(request.raw.resolve()):
            raise StageError(
                f"--{name} {getattr(request, name)} is in --raw {request.raw}, which is never written to"
            )
    return Work(
        corpus=request.dataset,
        raw=request.raw.absolute(),
        root=request.work.absolute(),
        out=request.out.absolute(),
        cache=request.cache.absolute(),
    )


def _load_params(request: BuildRequest) -> Params:
    """The params file, with what the command line names, and without what lies beside the corpus's clips."""
    settings = params.load(request.params)
    exclude = [*settings.clips.exclude, *BESIDE_CLIPS.get(request.dataset, ())]
    clip_params = replace(settings.clips, exclude=exclude)
    landmarks = replace(settings.landmarks, model=request.landmarker or settings.landmarks.model)
    speech = replace(settings.speech, encoder=request.speech_encoder or settings.speech.encoder)
    cut = settings.cut if request.cut is None else replace(settings.cut, enabled=request.cut)
    try:
        crops = replace(settings.align, size=request.size or settings.align.size)
    except pydantic.ValidationError as err:
        raise StageError(f"--{describe_mismatch(err)}") from err
    return replace(settings, clips=clip_params, landmarks=landmarks, align=crops, speech=speech, cut=cut)


def _select_stages(request: BuildRequest, settings: Params, stages: Sequence[str]) -> Sequence[str]:
    """The stages to run. For clips in a bucket: their facts, then each part from raw clips to its shard."""
    if request.source is None:
        return list_stages(settings) if list(stages) == list(STAGES) else stages
    if settings.cut.enabled:
        raise StageError(
            f"--raw {request.source}: files in a bucket are not cut; download them, or share a folder and "
            "use --scheduler"
        )
    if list(stages) != list(STAGES):
        raise StageError(
            f"--raw {request.source}: clips in a bucket are built by `pipeline shard`, all stages at once"
        )
    return clips.STAGE, shard.STAGE


def _open_destination(request: BuildRequest) -> Storage | None:
    """The storage that the dataset is published to. Raises now, not after hours, when it cannot be read."""
    if request.publish is None:
        return None
    storage = open_storage(request.publish)
    with contextlib.suppress(MissingFileError):
        storage.read_all(DATASET_NAME)
    return storage


def _run_stages(
    request: BuildRequest, stages: Sequence[str], work: Work, settings: Params, context: Context
) -> tuple[list[Report], str]:
    """Reports of the stages up to the first that drops too much, and a sentence on that one, if any."""
    run = _choose_runner(request, work, settings, context)
    reports = []
    problem = ""
    for stage in stages:
        start = time.monotonic()
        report = run(stage)
        report.seconds = round(time.monotonic() - start, 2)
        reports.append(report)
        if not request.as_json:
            _print_report(report, read_ledger(work.ledger))
        problem = _check_drops(report, settings)
        if problem:
            break
    return reports, problem


def _choose_runner(
    request: BuildRequest, work: Work, settings: Params, context: Context
) -> Callable[[str], Report]:
    """What runs a stage by its name: on this machine's folders, or on workers that read a bucket."""
    if request.source is None:
        return lambda stage: run_stage(stage, work, settings, context)
    job = bucket_build.BuildJob(
        corpus=request.dataset,
        raw=request.source,
        out=str(request.publish),
        params=settings,
        tools=list_tools(settings),
    )
    runners = {clips.STAGE: bucket_build.probe_bucket, shard.STAGE: bucket_build.build_shards}
    return lambda stage: runners[stage](job, work, context)


def _check_drops(report: Report, settings: Params) -> str:
    """A sentence when so many clips were dropped that something must be wrong; else an empty string."""
    if not report.n_usable:
        return f"{report.stage}: no clip of {report.clips} is usable; see the reasons above"
    left_out = report.n_left_out + sum(report.counts.get(code, 0) for code in LEFT_OUT)
    n_clips = report.clips - left_out
    n_dropped = n_clips - report.n_usable
    share = n_dropped / n_clips
    if share > settings.limits.max_drop_fraction:
        return (f"{report.stage}: {n_dropped} of {n_clips} clips are lost ({share:.0%}), more than "
                f"limits.max_drop_fraction {settings.limits.max_drop_fraction:g} allows")  # fmt: skip
    return ""


def _print_plan(request: BuildRequest, settings: Params, stages: Sequence[str]) -> None:
    if request.source is None:
        files = list(clips.find_files(request.raw.absolute(), settings.clips))
        n_files, n_unreadable = len(files), sum(file.problem is not None for file in files)
    else:
        listed, left_out = bucket_build.list_clips(open_storage(request.source), settings.clips)
        n_files, n_unreadable = len(listed) + len(left_out), len(left_out)
    plan = {
        "stages": list(stages),
        "raw": request.source or str(request.raw),
        "files": n_files,
        "files_that_cannot_be_opened": n_unreadable,
        "work": str(request.work),
        "out": request.publish or str(request.out),
        "params": asdict(settings),
    }
    click.echo(json.dumps(plan) if request.as_json else yaml.safe_dump(plan, sort_keys=False).rstrip())


def _print_report(report: Report, ledger: Rows) -> None:
    parts = report.parts
    written = f", {parts['built']} of {parts['total']} parts written" if parts["total"] else ""
    share = f"clips of {report.clips} spans" if has_spans(ledger) else f"of {report.clips} clips"
    click.echo(
        f"{report.stage}: {report.n_usable} {share}, {report.frames} frames, "
        f"{report.clips_computed} computed{written}, {report.seconds:.1f} s"
    )
    reasons = ledger.select_columns("code", "path", "reason")
    for code, count in report.counts.items():
        if code != OK:
            example = next((row for row in reasons if row["code"] == code), None)
            text = f"  e.g. {example['path']}: {example['reason']}" if example else ""
            click.echo(f"  {code:<14} {count:>5}{text}")


def _print_dataset(work: Work, request: BuildRequest) -> None:
    dataset = read_manifest(work.out)
    for split, counts in dataset["splits"].items():
        clips_and_frames = f"{counts['clips']} clips, {counts['frames']} frames"
        click.echo(f"{split}: {clips_and_frames} in {counts['shards']} shards")
    click.echo(f"shards   {work.out if request.source is None else request.publish}\nledger   {work.ledger}")


def _summarize(request: BuildRequest, work: Work, reports: Sequence[Report]) -> dict[str, Any]:
    """What ``--json`` prints."""
    summary: dict[str, Any] = {
        "dataset": request.dataset,
        "stages": [asdict(report) for report in reports],
        "ledger": str(work.ledger),
    }
    if reports[-1].stage == shard.STAGE and (work.out / DATASET_NAME).is_file():
        dataset = read_manifest(work.out)
        summary |= {
            "out": request.publish or str(work.out),
            "digest": dataset["digest"],
            "splits": dataset["splits"],
        }
    return summary
