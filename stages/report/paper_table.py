"""Table 2 of the paper as printed, and which of its figures compare with those of a card.

Bigioi et al. 2024, "Speech driven video editing via an audio-conditioned diffusion model", Image and Vision
Computing. Most of its figures cannot be compared with anybody's, and the page says why for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Column of the printed table -> our column in whose place it is shown.
PRINTED_COLUMNS = {
    "LSE-C": "lse_c_real",
    "LSE-D": "lse_d_real",
    "FID": "fid_box",
    "SSIM": "ssim_box",
    "PSNR": "psnr_box_db",
    "CPBD": "cpbd_box",
}
LSE_COLUMNS = ("lse_c_real", "lse_d_real")
TRUE_LSE = {"lse_c_real": 5.45, "lse_d_real": 8.12}  # as printed, of CREMA-D's true clips
MAX_LSE_DIFFERENCE = 0.15  # of the true clips' LSE from the printed one, where the protocol is the same

# Of the ten actors that the paper kept for testing: 820 clips, of which a build drops a few that are damaged.
MIN_TEST_CLIPS = 800

COPIED_FID = (
    "computed on the full frame, of which three quarters of the pixels are copied from the source; ours is "
    "of the box that is drawn"
)
WHOLE_FRAME = (
    "of a system that draws the whole frame by its own alignment; the paper does not state the region that "
    "was compared"
)
FROM_ITS_PAPER = "taken by the paper from that system's own paper: other clips and another protocol"
UNKNOWN_CLIPS = "of 50 clips of GRID's speaker s1, and which they were is not published"
OTHER_CLIPS = "of other clips: the ten actors of CREMA-D that the paper kept for testing"
INCOMPLETE = "no card has this figure of all clips with their own speech"
OTHER_PROTOCOL = "the protocol of LSE is not named: with the same one, the true clips would have the same LSE"


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row as printed. ``values`` are by our column, see PRINTED_COLUMNS."""

    name: str
    kind: Literal["truth", "rival", "ours"]
    values: Mapping[str, str]
    test_set: Literal["crema-d", "grid"] = "crema-d"
    starred: tuple[str, ...] = ()  # columns marked *: results of that system's own paper


@dataclass(frozen=True, slots=True)
class ComparedClips:
    """What the cards of one group were scored on, and the LSE of the true clips there."""

    corpus: str
    split: str
    clips: int
    complete: frozenset[str]  # columns that a card has of all these clips with their own speech
    true_lse: Mapping[str, float] = field(default_factory=dict)


def _make_row(
    name: str,
    kind: Literal["truth", "rival", "ours"],
    printed: str,
    test_set: Literal["crema-d", "grid"] = "crema-d",
    starred: tuple[str, ...] = (),
) -> PaperRow:
    values = dict(zip(PRINTED_COLUMNS.values(), printed.split(), strict=True))
    return PaperRow(
        name, kind, {name: value for name, value in values.items() if value != "-"}, test_set, starred
    )


TABLE_2 = (
    _make_row("Ground truth, CREMA-D", "truth", "5.45 8.12 - - - -"),
    _make_row("EAMM (actual)", "rival", "3.98 8.92 22.52 0.74 29.43 0.1"),
    _make_row("EAMM (random)", "rival", "3.95 8.98 23.04 0.72 29.21 0.124"),
    _make_row("PC-AVS (actual)", "rival", "6.12 7.8 38.46 0.61 28.47 0.127"),
    _make_row("PC-AVS (random)", "rival", "6.07 7.82 40.05 0.59 28.42 0.11"),
    _make_row(
        "Speech Driven Animation", "rival", "- - 155.63 0.844 27.98 0.277",
        starred=("ssim_box", "psnr_box_db", "cpbd_box"),
    ),
    _make_row("Wav2Lip (actual)", "rival", "5.89 7.57 16.21 0.886 34.23 0.253"),
    _make_row("Wav2Lip (random)", "rival", "5.6 7.89 20.23 0.872 34.04 0.247"),
    _make_row("MakeItTalk", "rival", "3.5 9.71 27.35 0.75 31.37 0.152"),
    _make_row("The paper, multi-speaker, 100 steps", "ours", "3.53 9.74 2.362 0.893 34.32 0.26"),
    _make_row("The paper, multi-speaker, 500 steps", "ours", "3.5 9.68 2.13 0.902 34.4 0.26"),
    _make_row("The paper, multi-speaker, 1000 steps", "ours", "3.49 9.69 2.369 0.863 34.12 0.242"),
    _make_row("The paper, single speaker", "ours", "4.98 7.59 2.312 0.92 32.47 0.29", "grid"),
)  # fmt: skip


def find_obstacle(row: PaperRow, column: str, groups: tuple[ComparedClips, ...]) -> str:
    """Why a printed figure does not compare with that of any card; "" where it does.

    A figure compares where it is of the same clips and, as far as the paper tells, of the same region.
    """
    if column in row.starred:
        return FROM_ITS_PAPER
    if row.test_set == "grid":
        return UNKNOWN_CLIPS
    if column == "fid_box":
        return COPIED_FID if row.kind == "ours" else WHOLE_FRAME
    if column not in LSE_COLUMNS and row.kind == "rival":
        return WHOLE_FRAME
    same_clips = [
        group
        for group in groups
        if group.corpus == "crema-d" and group.split == "test" and group.clips >= MIN_TEST_CLIPS
    ]
    if not same_clips:
        return OTHER_CLIPS
    same_clips = [group for group in same_clips if column in group.complete]
    if not same_clips:
        return INCOMPLETE
    if column in LSE_COLUMNS and not any(map(_has_printed_lse, same_clips)):
        return OTHER_PROTOCOL
    return ""


def _has_printed_lse(group: ComparedClips) -> bool:
    return all(
        name in group.true_lse and abs(group.true_lse[name] - printed) <= MAX_LSE_DIFFERENCE
        for name, printed in TRUE_LSE.items()
    )
