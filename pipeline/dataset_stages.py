"""The dataset stages in their order, how one of them is run, and the ledger that is carried along.

Each stage module has ``run(work, parts, params, context) -> Report`` (stages/engine/stage.py) and knows
nothing of the ledger. Here its parts are planned, and what it made of each clip is carried into
``clips.parquet``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from pipeline.params import Params
from shards.ledger import OK, build_ledger, select_unusable, write_ledger
from shards.table import Row, Rows
from stages import align, clips, landmarks, mels, shard, speech
from stages.cut import run as cut
from stages.engine.parts import Part, plan_parts, read_outcomes
from stages.engine.stage import Context, Report, Work


class DatasetStage(Protocol):
    """A module of ``stages`` with the dataset stages' contract."""

    STAGE: str
    VERSION: int

    def run(self, work: Work, parts: Any, params: Any, context: Context) -> Report: ...


STAGES: Mapping[str, DatasetStage] = {
    clips.STAGE: clips,
    cut.STAGE: cut,
    landmarks.STAGE: landmarks,
    align.STAGE: align,
    mels.STAGE: mels,
    speech.STAGE: speech,
    shard.STAGE: shard,
}


def list_stages(params: Params) -> tuple[str, ...]:
    """The stages that a dataset with these params needs: without an encoder, no speech features."""
    unneeded = set()
    if params.speech.encoder == speech.NO_ENCODER:
        unneeded.add(speech.STAGE)
    if not params.cut.enabled:
        unneeded.add(cut.STAGE)
    return tuple(name for name in STAGES if name not in unneeded)


def read_clips(work: Work, params: Params) -> Rows:
    """The rows that parts are planned from: of files, or of the spans into which they were cut.

    Raises StageError when files were cut, and these params would take them whole.
    """
    if params.cut.enabled:
        return cut.read_spans(work, choose_cut_settings(params))
    cut.check_uncut(work)
    return clips.read_clips(work)


def choose_cut_settings(params: Params) -> cut.CutSettings:
    """The sections that decide how files are cut."""
    return cut.CutSettings(params.cut, params.landmarks, params.speech)


def run_stage(name: str, work: Work, params: Params, context: Context) -> Report:
    """Run one stage, carry the ledger, and after the last stage write the tables of the dataset.

    The stage's params are the section of ``params`` that has its name; those of ``clips`` are relaxed where
    files are cut, and ``cut`` gets the sections of ``choose_cut_settings``.
    """
    if name == clips.STAGE:
        if not params.cut.enabled:
            cut.remove_spans(work)
        return clips.run(work, (), params.choose_clips_params(), context)
    if name == cut.STAGE:
        return cut.run(work, (), choose_cut_settings(params), context)
    parts = plan_parts(read_clips(work, params), params.parts)
    report = STAGES[name].run(work, parts, getattr(params, name), context)
    ledger = carry_ledger(work, name, parts, params)
    if name == shard.STAGE:
        shards = shard.read_packed(work, parts)
        report.count_rows(ledger)
        report.n_left_out = cut.count_left_out(ledger)
        report.frames = sum(packed.entry.frames for packed in shards)
        if shards:
            dataset_params, licence = context.dataset_params, context.licence
            shard.finish_dataset(work, params.shard, dataset_params, shards, ledger, licence=licence)
    return report


def carry_ledger(work: Work, last_stage: str, parts: Iterable[Part], params: Params) -> Rows:
    """Write ``clips.parquet``: the rows of stage 1 with the outcomes of all stages up to ``last_stage``."""
    names = list(STAGES)
    n_stages = names.index(last_stage) + 1
    stages = [name for name in names[names.index(cut.STAGE) + 1 : n_stages] if name in list_stages(params)]
    rows = (row for part in parts for row in _carry_part(work, stages, part))
    ledger = build_ledger(chain(rows, select_unusable(read_clips(work, params))))
    write_ledger(work.ledger, ledger)
    return ledger


def _carry_part(work: Work, stages: Sequence[str], part: Part) -> Iterator[Row]:
    by_id = {row["clip_id"]: row for row in part.rows}
    for stage in stages:
        for outcome in read_outcomes(work.stage_folder(stage), [part]):
            row = by_id.get(outcome["clip_id"])
            if row is None or row["status"] != OK:
                continue  # an earlier stage dropped it and gave the reason
            row["notes"] = [*row["notes"], *outcome["notes"]]
            row |= {name: outcome[name] for name in ("status", "code", "reason")} | {"stage": stage}
    yield from by_id.values()
