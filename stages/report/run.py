"""Stage 9: one self-contained HTML page that shows the data, the training and the results.

``card``, ``motion`` and ``codecs`` measure the dataset, ``training`` and ``results`` read runs and
evaluations, ``cards`` reads cards of many systems, ``figures``, ``plots`` and ``strips`` draw, and ``page``
renders the HTML.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.atomic import write_atomically
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset
from stages.engine.outcome import StageError
from stages.evaluate.table import NOT_GENERATED
from stages.report.card import build_card
from stages.report.cards import CardsSection, build_cards_section
from stages.report.codecs import measure_codecs
from stages.report.figures import plot_dataset, plot_drift, plot_openings, plot_training
from stages.report.motion import measure_motion
from stages.report.page import (
    DataSection,
    Page,
    ResultsSection,
    TrainingSection,
    render_cards_page,
    render_page,
)
from stages.report.results import (
    EvaluationResults,
    build_group_tables,
    build_tables,
    explain_columns,
    read_evaluation,
)
from stages.report.seconds import account_for_seconds
from stages.report.strips import draw_clips, read_example_clips, read_generated_clips
from stages.report.training import read_run


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """Inputs and output of a page. A dataset or a card is required; all but the cards needs the dataset."""

    shards: str | None  # a folder or an address
    out: Path
    run: Path | None = None
    evaluation: Path | None = None
    generated: tuple[Path, ...] = ()
    cards: tuple[Path, ...] = ()  # folders of cards, or folders of such folders


def write_report(request: ReportRequest) -> int:
    """Write the page and return its size in bytes. The same inputs give the same bytes.

    Raises StageError or ShardError with a message of one line.
    """
    cards = build_cards_section(request.cards) if request.cards else None
    if request.shards is not None:
        html = render_page(_make_page(request, request.shards, cards)).encode()
    elif cards is not None:
        html = render_cards_page(cards).encode()
    else:
        raise StageError("--shards or --card is required: a dataset, or the cards of some systems")
    with write_atomically(request.out) as partial:
        partial.write_bytes(html)
    return len(html)


def _make_page(request: ReportRequest, shards: str, cards: CardsSection | None) -> Page:
    dataset = open_dataset(locate_dataset(shards))
    evaluation = read_evaluation(request.evaluation) if request.evaluation else None
    return Page(
        dataset,
        training=_make_training_section(request.run) if request.run else None,
        generated=tuple(read_generated_clips(folder, dataset) for folder in request.generated),
        results=_make_results_section(evaluation) if evaluation else None,
        data=_make_data_section(dataset, evaluation),
        cards=cards,
    )


def _make_data_section(dataset: Dataset, evaluation: EvaluationResults | None) -> DataSection:
    card, motion = build_card(dataset), measure_motion(dataset)
    clips = read_example_clips(dataset)
    codec = str(dataset.manifest.get("codec", clips[0].info["codec"]))
    return DataSection(
        card,
        motion,
        plot_dataset(dataset, card, motion, evaluation),
        codec,
        measure_codecs(codec, clips),
        draw_clips(clips),
        account_for_seconds(dataset),
    )


def _make_training_section(folder: Path) -> TrainingSection:
    run = read_run(folder)
    return TrainingSection(run, plot_training(run.records))


def _make_results_section(evaluation: EvaluationResults) -> ResultsSection:
    return ResultsSection(
        evaluation,
        build_tables(evaluation),
        build_group_tables(evaluation),
        NOT_GENERATED,
        explain_columns(evaluation),
        plot_drift(evaluation),
        plot_openings(evaluation),
    )
