"""Cards of many systems side by side: a row for each, in groups of those that compare with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stages.engine.outcome import StageError
from stages.evaluate.columns import COLUMNS
from stages.evaluate.listening import OBEDIENCE
from stages.evaluate.system_card import (
    PICTURE,
    CardFigure,
    CardScores,
    SystemCard,
    find_cards,
    read_system_card,
)
from stages.evaluate.table import TRUTH
from stages.report.inputs import pick_best
from stages.report.paper_table import (
    LSE_COLUMNS,
    PRINTED_COLUMNS,
    TABLE_2,
    ComparedClips,
    find_obstacle,
)
from stages.report.strips import EmbeddedImage, embed_image, read_picture
from stages.sample.pairs import Audio, explain_other_splits

MAX_CARDS = 64  # on a page
MAX_PICTURE_PX = 2048  # per side; one has 778 x 388 px
ABSENT, NOTHING = "the card does not have it", "-"
OWN_COLUMNS = (
    *PRINTED_COLUMNS.values(), "lpips_box", "lse_c", "lse_d", "border_colour", "mouth_distance_pupils",
    "opening_correlation", "smoothness_box", "identity_drift",
)  # fmt: skip
SWAPPED_COLUMNS = (
    "audio_obedience", "audio_obedience_net", "opening_correlation", "silence_ratio", "closure",
)  # fmt: skip
COLUMN_NAMES: dict[Audio, tuple[str, ...]] = {"own": OWN_COLUMNS, "swapped": SWAPPED_COLUMNS}


@dataclass(frozen=True, slots=True)
class CardColumn:
    """A column of the table, of clips with their own speech or with another's."""

    name: str
    audio: Audio
    heading: str
    better: str
    about: str


@dataclass(frozen=True, slots=True)
class CardCell:
    """A figure, as text where it is a printed one, with the reason why it does not compare; or only that."""

    figure: CardFigure | None = None
    printed: str = ""
    reason: str = ""
    is_best: bool = False

    @property
    def competing_mean(self) -> float | None:
        return self.figure.mean if self.figure and not self.reason else None


@dataclass(frozen=True, slots=True)
class CardRow:
    """A system or a reference."""

    name: str
    details: str
    cells: tuple[CardCell, ...]
    is_reference: bool = False


@dataclass(frozen=True, slots=True)
class CardGroup:
    """Rows that compare with each other, and a line that says what they share."""

    title: str
    note: str
    rows: tuple[CardRow, ...]


@dataclass(frozen=True, slots=True)
class CardPanel:
    """A card by itself: its picture and its facts."""

    name: str
    image: EmbeddedImage
    caption: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CardsSection:
    """The section "Cards"."""

    columns: tuple[CardColumn, ...]
    groups: tuple[CardGroup, ...]
    paper: CardGroup
    panels: tuple[CardPanel, ...]
    reasons: Mapping[str, int]  # why a figure does not compare, or is missing -> its number on the page

    @property
    def has_intervals(self) -> bool:
        """Whether a figure has one."""
        cells = (cell for group in self.groups for row in group.rows for cell in row.cells)
        return any(cell.figure is not None and cell.figure.has_interval for cell in cells)


def build_cards_section(folders: Sequence[Path]) -> CardsSection:
    """Read the cards in these folders and lay them side by side. Raises StageError."""
    paths = list(dict.fromkeys(path for folder in folders for path in find_cards(folder)))
    if len(paths) > MAX_CARDS:
        raise StageError(f"--card: {len(paths)} cards, expected at most {MAX_CARDS} on a page")
    cards = [read_system_card(path) for path in paths]
    groups = _group_cards(cards)
    columns = _choose_columns(cards)
    card_groups = tuple(
        _build_group(number, group, groups[0], columns) for number, group in enumerate(groups, 1)
    )
    paper = _build_paper_group(columns, tuple(map(_describe_clips, groups)))
    reasons = dict.fromkeys(
        cell.reason
        for group in (*card_groups, paper)
        for row in group.rows
        for cell in row.cells
        if cell.reason
    )
    return CardsSection(
        columns,
        card_groups,
        paper,
        tuple(_build_panel(path, card) for path, card in zip(paths, cards, strict=True)),
        {reason: number for number, reason in enumerate(reasons, 1)},
    )


def _group_cards(cards: Sequence[SystemCard]) -> list[list[SystemCard]]:
    """Cards of the same clips of the same dataset, scored by the same version of the metrics."""
    groups: dict[tuple[str, ...], list[SystemCard]] = defaultdict(list)
    for card in cards:
        data = card.data
        groups[data.digest, data.split, data.clips_sha256, card.conditions.scoring].append(card)
    return list(groups.values())


def _choose_columns(cards: Sequence[SystemCard]) -> tuple[CardColumn, ...]:
    """Those in which a card has a figure, then the others of the paper's table; own speech first."""
    columns: list[CardColumn] = []
    for audio, names in COLUMN_NAMES.items():
        scores = [each for card in cards if (each := _get_scores(card, audio)) is not None]
        filled = [name for name in names if any(name in each.figures for each in scores)]
        printed = PRINTED_COLUMNS.values() if audio == "own" else ()
        for name in (*filled, *(name for name in printed if name not in filled)):
            column = COLUMNS[name]
            unit = f", {column.unit}" if column.unit else ""
            columns.append(CardColumn(name, audio, column.label + unit, column.better, column.about))
    return tuple(columns)


# --- groups -------------------------------------------------------------------------------------


def _build_group(
    number: int, cards: Sequence[SystemCard], first_group: Sequence[SystemCard], columns: Sequence[CardColumn]
) -> CardGroup:
    rows = [
        CardRow(
            card.system, _describe_system(card), tuple(_make_cell(card, column, cards) for column in columns)
        )
        for card in cards
    ]
    best = [
        pick_best({k: row.cells[i].competing_mean for k, row in enumerate(rows)}, column.better)
        for i, column in enumerate(columns)
    ]
    rows = [
        replace(row, cells=tuple(replace(cell, is_best=k in best[i]) for i, cell in enumerate(row.cells)))
        for k, row in enumerate(rows)
    ]
    return CardGroup(
        f"{number}. {_name_clips(cards[0])}",
        "" if number == 1 else f"Does not compare with group 1: {_explain_group(cards[0], first_group[0])}.",
        (*rows, *_build_references(cards, columns)),
    )


def _name_clips(card: SystemCard) -> str:
    data = card.data
    share = "all" if data.clips == data.split_clips else f"{data.clips} of"
    return f"{data.name}, split {data.split}, {share} {data.split_clips} clips, dataset {data.digest[:12]}"


def _explain_group(card: SystemCard, first: SystemCard) -> str:
    if card.data.digest != first.data.digest:
        return "another dataset, by its digest"
    if card.data.split != first.data.split:
        return "another split"
    if card.data.clips_sha256 != first.data.clips_sha256:
        return "other clips of the split"
    return (
        f"its metrics are of version {card.conditions.scoring}, not {first.conditions.scoring} "
        f"(redub {card.redub} and {first.redub})"
    )


def _describe_system(card: SystemCard) -> str:
    network = card.network
    if network is None:
        return "videos of a folder"
    step = "" if network.step is None else f", step {network.step:,}"
    weights = "" if network.weights_sha256 is None else f", {network.weights_sha256[:8]}"
    return f"{network.name}{step}{weights}"


def _make_cell(card: SystemCard, column: CardColumn, group: Sequence[SystemCard]) -> CardCell:
    """A card's figure, with the reason where it does not compare with the others of its group."""
    scores = _get_scores(card, column.audio)
    if scores is None:
        return CardCell(reason=f"no clip was generated with {_name_speech(column.audio)}")
    figure = scores.figures.get(column.name)
    if figure is None:
        return CardCell(reason=scores.not_computed.get(column.name) or ABSENT)
    first = next(
        (each, others)
        for each in group
        if (others := _get_scores(each, column.audio)) and column.name in others.figures
    )
    return CardCell(figure, reason=_explain_cell(card, scores, *first, column))


def _explain_cell(
    card: SystemCard, scores: CardScores, first: SystemCard, first_scores: CardScores, column: CardColumn
) -> str:
    if scores.scored < scores.clips:
        return f"of {scores.scored} of {scores.clips} clips: the others could not be scored"
    if scores.pairs_sha256 != first_scores.pairs_sha256:
        return f"the faces have the speech of other clips than those of {first.system}"
    figure, first_figure = scores.figures[column.name], first_scores.figures[column.name]
    if figure.n != first_figure.n:
        return f"of {figure.n} clips that have one; for {first.system} {first_figure.n} have"
    if column.name == "closure" and card.conditions.closures != first.conditions.closures:
        return (
            f"when p, b and m are said is known by {card.conditions.closures}, for {first.system} by "
            f"{first.conditions.closures}"
        )
    return ""


def _get_scores(card: SystemCard, audio: Audio) -> CardScores | None:
    return card.own if audio == "own" else card.swapped


def _name_speech(audio: Audio) -> str:
    return "its own speech" if audio == "own" else "another's speech"


def _build_references(cards: Sequence[SystemCard], columns: Sequence[CardColumn]) -> list[CardRow]:
    """The ground truth and the frozen mouth, which are the same for all cards of a group.

    With another's speech they are scored for obedience alone: their other figures are of their own.
    """
    rows: dict[str, dict[str, CardFigure]] = {}
    for card in cards:
        for row, figures in card.references.items():
            rows[row] = dict(figures) | rows.get(row, {})
    return [
        CardRow(
            row,
            "reference",
            tuple(
                CardCell(
                    figures.get(column.name) if column.audio == "own" or column.name in OBEDIENCE else None,
                    printed=NOTHING,
                )
                for column in columns
            ),
            is_reference=True,
        )
        for row, figures in rows.items()
    ]


def _describe_clips(cards: Sequence[SystemCard]) -> ComparedClips:
    data, references = cards[0].data, cards[0].references
    lse = {
        name: figure.mean
        for row, figures in references.items()
        for name, figure in figures.items()
        if row == TRUTH and name in LSE_COLUMNS
    }
    complete = {
        name
        for card in cards
        if card.own is not None
        for name, figure in card.own.figures.items()
        if figure.n == data.clips
    }
    return ComparedClips(data.name, data.split, data.clips, frozenset(complete), lse)


def _build_paper_group(columns: Sequence[CardColumn], groups: tuple[ComparedClips, ...]) -> CardGroup:
    rows = tuple(
        CardRow(
            row.name,
            "as printed",
            tuple(
                CardCell(printed=row.values[column.name], reason=find_obstacle(row, column.name, groups))
                if column.audio == "own" and column.name in row.values
                else CardCell(printed=NOTHING)
                for column in columns
            ),
        )
        for row in TABLE_2
    )
    n_figures = sum(cell.printed != NOTHING for row in rows for cell in row.cells)
    n_compared = sum(cell.printed != NOTHING and not cell.reason for row in rows for cell in row.cells)
    note = (
        f"{n_compared} of its {n_figures} figures compare with a card: same clips and, as far as the paper "
        "tells, same region. The code of its metrics was never published."
    )
    return CardGroup("Table 2 of the paper", note, rows)


# --- panels -------------------------------------------------------------------------------------


def _build_panel(path: Path, card: SystemCard) -> CardPanel:
    shown = card.picture
    speech = "its own speech" if shown.speech == shown.clip else f"the speech of {shown.speech}"
    truth = "the true clip" if shown.speech == shown.clip else "the clip of that speech"
    frames = ", ".join(map(str, shown.frames))
    caption = (
        f"{shown.clip} with {speech}, frames {frames}. From the top: the source with its mask box, "
        f"generated, {truth}."
    )
    description = f"{card.system}: {caption}"
    picture = read_picture(path / PICTURE, "JPEG", MAX_PICTURE_PX, inside=path, sha256=shown.sha256)
    return CardPanel(
        card.system,
        embed_image(picture, description),
        caption,
        tuple(_list_facts(card)),
    )


def _list_facts(card: SystemCard) -> list[tuple[str, str]]:
    network, data, conditions = card.network, card.data, card.conditions
    weights = network.weights_sha256 if network else None
    facts = [
        ("generated by", _describe_system(card)),
        ("sha256 of its weights", weights or ("not recorded" if network else "none: frames of a folder")),
        ("clips", _name_clips(card)),
        ("licences of the data", "; ".join(data.licences) or "not stated"),
    ]
    for audio, scores in (("own", card.own), ("swapped", card.swapped)):
        if scores is not None:
            note = explain_other_splits(scores.other_splits)
            sampling = ", ".join(f"{name} {value}" for name, value in scores.sampling.items())
            facts.append(
                (
                    f"{audio} audio",
                    f"{scores.scored} of {scores.clips} clips scored; {sampling or 'no record of sampling'}"
                    + (note and f"; {note}"),
                )
            )
    has_interval = any(
        figure.has_interval
        for scores in (card.own, card.swapped)
        if scores is not None
        for figure in scores.figures.values()
    )
    facts.append(
        (
            "scored by",
            f"redub {card.redub}, metrics {conditions.scoring}"
            + (", mouths only" if conditions.mouths_only else "")
            + (f"; p, b and m by {conditions.closures}" if conditions.closures else "")
            + (f"; {conditions.intervals}" if conditions.intervals and has_interval else ""),
        )
    )
    return facts
