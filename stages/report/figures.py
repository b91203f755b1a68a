"""Which plots the page shows, and the sentence below each that says how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.monitor import BAND_NAMES
from shards.reader import Dataset, read_members
from shards.schema import MELS_MEMBER, MELS_PER_FRAME, VIDEO_FPS, npy_to_array
from stages.evaluate.metrics.mouth import lag_frames
from stages.evaluate.table import BASELINES
from stages.report import results
from stages.report.card import Card
from stages.report.motion import Measured
from stages.report.plots import Line, Plot, histogram, lines
from stages.report.results import Evaluation

Record = dict[str, float]

DRIFT = {"psnr_box_db": "PSNR in the box, dB", "identity_distance": "Colour distance to the first frame"}
OPENINGS_SHOWN = 2  # clips of each row
FRAME_MS = 1000 / VIDEO_FPS


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot and what it says; or, without one, why there is none."""

    title: str
    caption: str
    plot: Plot | None = None


def of_data(dataset: Dataset, card: Card, told: Measured, evaluation: Evaluation | None) -> list[Figure]:
    """Distributions over clips."""
    figures = [
        Figure(
            "Length of clips",
            f"{_spread(card.seconds, 's')}.",
            histogram("seconds", card.seconds, x="seconds", step=0.1),
        ),
        Figure(
            "Crop motion",
            f"How far the crop's centre moves over the source from frame to frame: "
            f"{_spread(told.crop_motion_px, 'px')}. This is the head's own motion, which the crop follows.",
            histogram("motion", told.crop_motion_px, x="px of the source, mean of a clip", step=0.01),
        ),
        Figure(
            "Crop jitter",
            f"What trembles in that motion: {_spread(told.crop_jitter_px, 'px')}, the standard deviation of "
            f"white noise with as large second differences.",
            histogram("jitter", told.crop_jitter_px, x="px of the source", step=0.001),
        ),
        Figure(
            "Box jitter",
            f"The same of the mask box's centre in the crop: {_spread(told.box_jitter_px, 'px')}. Boxes lie "
            f"on whole pixels, and rounding alone makes up to 0.3.",
            histogram("box", told.box_jitter_px, x="px of the crop", step=0.01),
        ),
        Figure(
            "Detail in the source",
            f"{_spread(told.source_px, 'px')} of the source lie along one pixel of the crop. Below 1 the "
            f"crop is enlarged, and holds less detail than its size says.",
            histogram("source", told.source_px, x="source px per crop px", step=0.01),
        ),
    ]
    figures += _offsets(card)
    figures.append(_lag(dataset, evaluation))
    return figures


def _offsets(card: Card) -> list[Figure]:
    title = "Sound against picture, by the container"
    if not len(card.sound_starts_ms):
        return [Figure(title, "Not computed: the ledger tells no time stamps.")]
    starts, ends = _spread(card.sound_starts_ms, "ms"), _spread(card.sound_ends_ms, "ms")
    return [
        Figure(
            title,
            f"From the picture's start to the sound's: {starts}; from its end to the sound's: {ends}. The "
            f"shards have this mended: both are laid on one clock by their own time stamps.",
            histogram("starts", card.sound_starts_ms, x="ms from the picture's start to the sound's", step=1),
        )
    ]


def _lag(dataset: Dataset, evaluation: Evaluation | None) -> Figure:
    title = "Mouth against loudness"
    if evaluation is None:
        return Figure(title, "Not computed: mouth openings come with an evaluation; give --evaluation OUT.")
    lags = []
    for clip_id, opening in results.true_openings(evaluation).items():
        if clip_id in dataset.clips and dataset.clips[clip_id]["frames"] == len(opening):
            lags.append(lag_frames(_loudness(dataset, clip_id), opening))
    late = FRAME_MS * np.array([lag for lag in lags if np.isfinite(lag)])
    if not len(late):
        return Figure(title, "Not computed: the evaluation looked at no true mouth.")
    return Figure(
        title,
        f"In {len(late)} clips whose true mouths were looked at, loudness comes {_spread(late, 'ms')} after "
        f"the mouth's opening, where the two fit best. Mouths open before they are heard, so a few frames "
        f"are natural, and single clips scatter; a common shift would be a fault.",
        histogram("lag", late, x="ms that loudness comes after opening", step=FRAME_MS),
    )


def _loudness(dataset: Dataset, clip_id: str) -> NDArray[np.float64]:
    """Mean of the mels in dB, for each video frame."""
    mels = npy_to_array(read_members(dataset, clip_id, ("mels",))["mels"], f"{clip_id}.{MELS_MEMBER}")
    return np.asarray(mels.reshape(-1, MELS_PER_FRAME * mels.shape[1]).mean(axis=1, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Curves:
    """Columns of ``metrics.jsonl`` that belong into one plot."""

    title: str
    caption: str
    unit: str
    log: bool
    columns: Mapping[str, str]  # and how the legend calls them


BANDS = {name: f"log-SNR {name.replace('_', ' ')}" for name in BAND_NAMES}
TRAINING = (
    Curves(
        "Loss",
        "Of batches as they were trained on, and of held-out frames, always the same ones.",
        "loss",
        True,
        {"loss": "trained on", "held_out_loss": "held out"},
    ),
    Curves(
        "Loss by noise level",
        "By the log-SNR of the noisy mouth: below -4 it is nearly all noise, above 4 nearly clean.",
        "loss",
        True,
        {f"loss_log_snr/{name}": label for name, label in BANDS.items()},
    ),
    Curves(
        "Held-out loss by noise level",
        "The same frames and noise each time.",
        "loss",
        True,
        {f"held_out_log_snr/{name}": label for name, label in BANDS.items()},
    ),
    Curves("Learning rate", "As the recipe plans it.", "learning rate", False, {"learning_rate": ""}),
    Curves("Gradient", "Norm of the last gradient, before it is clipped.", "norm", True, {"grad_norm": ""}),
    Curves("Speed", "Frames trained on per second.", "frames/s", False, {"frames_per_second": ""}),
)


def of_training(records: Sequence[Record]) -> list[Figure]:
    """Curves of ``metrics.jsonl``, as far as it has them."""
    figures = []
    for curves in TRAINING:
        drawn = []
        for series, (column, label) in enumerate(curves.columns.items()):
            told = [(record["step"], record[column]) for record in records if column in record]
            if told:
                drawn.append(Line(label, series, *zip(*told, strict=True)))
        if drawn:
            plot = lines(curves.title, drawn, x="step", y=curves.unit, log=curves.log)
            figures.append(Figure(curves.title, curves.caption, plot))
    return figures


def of_drift(evaluation: Evaluation) -> list[Figure]:
    """Means over clips by frame index."""
    figures = []
    for name, label in DRIFT.items():
        curves = results.drift(evaluation, name)
        if not curves:
            figures.append(Figure(label, "Not computed: no row of the evaluation has it."))
            continue
        series = {row: place for place, row in enumerate(evaluation.means)}
        drawn = [Line(c.row, series[c.row], np.arange(len(c.mean)), c.mean, c.low, c.high) for c in curves]
        figures.append(
            Figure(
                label,
                "Mean over clips by frame index; the band is its bootstrap 95 % interval. What falls or "
                "rises along a clip is drift.",
                lines(name, drawn, x="frame", y=label, wide=True),
            )
        )
    return figures


def of_openings(evaluation: Evaluation) -> list[Figure]:
    """What drawn mouths do beside what the speech's own mouth did."""
    figures = []
    for row in evaluation.means:
        if row in BASELINES:
            continue
        for track in results.spoken(evaluation, row)[:OPENINGS_SHOWN]:
            frames = np.arange(len(track.values["opening"]))
            drawn = [
                Line("as drawn", 0, frames, track.values["opening"]),
                Line("of the speech's own clip", 1, frames, track.values["opening_speech"]),
            ]
            plot = lines(f"{row}/{track.name}", drawn, x="frame", y="mouth opening")
            figures.append(Figure(f"{row}: {track.name}", "", plot))
    return figures


def _spread(values: Any, unit: str) -> str:
    """The median, and where nine tenths lie."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), (0.05, 0.5, 0.95))
    if low == high:
        return f"{middle:.3g} {unit} in nine of ten clips or more"
    return f"{middle:.3g} {unit} ({low:.3g} to {high:.3g} in nine of ten clips)"
