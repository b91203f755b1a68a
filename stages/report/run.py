"""Stage 9: one page that shows the data, the training and the results. It asks nothing of the network.

``card``, ``motion`` and ``codecs`` look at the dataset, ``training`` and ``results`` at what runs and
evaluations left; ``figures``, ``plots`` and ``strips`` draw; ``page`` puts it together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.atomic import write_atomically
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset
from stages.evaluate.table import BASELINES
from stages.report import figures, strips
from stages.report.card import card_of
from stages.report.codecs import codec_rows
from stages.report.motion import measured
from stages.report.page import Data, Page, Results, Trained, render
from stages.report.results import Evaluation, meanings, read_evaluation, tables, tables_by_group
from stages.report.training import read_run


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What the page is made from; only the dataset is needed."""

    shards: str  # a folder, or an address
    out: Path
    run: Path | None = None
    evaluation: Path | None = None
    generated: tuple[Path, ...] = ()


def write(request: ReportRequest) -> int:
    """Write the page; returns its size in bytes. Same inputs, same bytes.

    Raises StageError or ShardError, each in one line.
    """
    dataset = open_dataset(locate_dataset(request.shards))
    evaluation = read_evaluation(request.evaluation) if request.evaluation else None
    trained = _trained(request.run) if request.run else None
    drawn = tuple(strips.samples(folder, dataset) for folder in request.generated)
    results = _results(evaluation) if evaluation else None
    html = render(Page(dataset, _data(dataset, evaluation), trained, drawn, results)).encode()
    with write_atomically(request.out) as partial:
        partial.write_bytes(html)
    return len(html)


def _data(dataset: Dataset, evaluation: Evaluation | None) -> Data:
    card, told = card_of(dataset), measured(dataset)
    shown = strips.clips_shown(dataset)
    codec = str(dataset.manifest.get("codec", shown[0].info["codec"]))
    return Data(
        card,
        told,
        figures.of_data(dataset, card, told, evaluation),
        codec,
        codec_rows(codec, shown),
        strips.sheet(shown),
    )


def _trained(folder: Path) -> Trained:
    run = read_run(folder)
    return Trained(run, figures.of_training(run.records))


def _results(evaluation: Evaluation) -> Results:
    return Results(
        evaluation,
        tables(evaluation),
        tables_by_group(evaluation),
        tuple(BASELINES),
        meanings(evaluation),
        figures.of_drift(evaluation),
        figures.of_openings(evaluation),
    )
