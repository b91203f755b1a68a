"""The plots of the page, each with a caption that says how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.monitor import BAND_NAMES
from shards.reader import Dataset, read_members
from shards.schema import MELS_MEMBER, MELS_PER_FRAME, VIDEO_FPS, npy_to_array
from stages.evaluate.table import NOT_GENERATED, TRUTH
from stages.metrics.mouth import lag_frames
from stages.metrics.obedience import MIN_UNITS
from stages.report import results
from stages.report.card import DatasetCard
from stages.report.motion import MotionStats
from stages.report.plots import Line, Plot, plot_histogram, plot_lines
from stages.report.results import EvaluationResults

Record = dict[str, float]

DRIFT = {"psnr_box_db": "PSNR in the box, dB", "identity_distance": "Colour distance to the first frame"}
MAX_OPENING_PLOTS = 2  # per row
FRAME_MS = 1000 / VIDEO_FPS


@dataclass(frozen=True, slots=True)
class CaptionedPlot:
    """A plot with its caption; without a plot, the caption says why there is none."""

    title: str
    caption: str
    plot: Plot | None = None


def plot_dataset(
    dataset: Dataset, card: DatasetCard, motion: MotionStats, evaluation: EvaluationResults | None
) -> list[CaptionedPlot]:
    """Distributions over clips."""
    figures = [
        CaptionedPlot(
            "Clip length",
            f"{_describe_spread(card.seconds, 's')}.",
            plot_histogram("seconds", card.seconds, x="seconds", step=0.1),
        ),
        CaptionedPlot(
            "Crop motion",
            f"Distance that the crop's centre moves in the source from frame to frame: "
            f"{_describe_spread(motion.crop_motion_px, 'px')}. The crop follows the head, so this is head "
            f"motion.",
            plot_histogram("motion", motion.crop_motion_px, x="source px, mean of a clip", step=0.01),
        ),
        CaptionedPlot(
            "Crop jitter",
            f"Jitter of that motion: {_describe_spread(motion.crop_jitter_px, 'px')}. It is the standard "
            f"deviation of white noise with second differences of the same size.",
            plot_histogram("jitter", motion.crop_jitter_px, x="source px", step=0.001),
        ),
        CaptionedPlot(
            "Box jitter",
            f"Jitter of the mask box's centre in the crop: {_describe_spread(motion.box_jitter_px, 'px')}. "
            f"Boxes have integer coordinates; rounding alone gives up to 0.3.",
            plot_histogram("box", motion.box_jitter_px, x="crop px", step=0.01),
        ),
        CaptionedPlot(
            "Source resolution",
            f"Source pixels per crop pixel: {_describe_spread(motion.source_px, 'px')}. Below 1 the crop is "
            f"enlarged and has less detail than its size suggests.",
            plot_histogram("source", motion.source_px, x="source px per crop px", step=0.01),
        ),
    ]
    figures += _plot_audio_offsets(card)
    figures.append(_plot_mouth_lags(dataset, evaluation))
    return figures


def _plot_audio_offsets(card: DatasetCard) -> list[CaptionedPlot]:
    title = "Audio offset in the source files"
    if not len(card.audio_starts_ms):
        return [CaptionedPlot(title, "Not computed: no clip is a whole file with time stamps.")]
    starts = _describe_spread(card.audio_starts_ms, "ms")
    ends = _describe_spread(card.audio_ends_ms, "ms")
    return [
        CaptionedPlot(
            title,
            f"Audio start minus video start: {starts}; audio end minus video end: {ends}. In the shards this "
            f"is corrected: both streams are placed on one clock by their time stamps.",
            plot_histogram("starts", card.audio_starts_ms, x="audio start minus video start, ms", step=1),
        )
    ]


def _plot_mouth_lags(dataset: Dataset, evaluation: EvaluationResults | None) -> CaptionedPlot:
    title = "Lag of loudness behind mouth opening"
    if evaluation is None:
        return CaptionedPlot(
            title, "Not computed: mouth openings come from an evaluation; give --evaluation DIR."
        )
    lags = []
    for clip_id, opening in results.select_true_openings(evaluation).items():
        if clip_id in dataset.clips and dataset.clips[clip_id]["frames"] == len(opening):
            lags.append(lag_frames(_read_loudness(dataset, clip_id), opening))
    lags_ms = FRAME_MS * np.array([lag for lag in lags if np.isfinite(lag)])
    if not len(lags_ms):
        return CaptionedPlot(title, "Not computed: the evaluation measured no ground-truth mouth.")
    return CaptionedPlot(
        title,
        f"In {len(lags_ms)} clips with measured ground-truth mouths, loudness lags behind the mouth opening "
        f"by {_describe_spread(lags_ms, 'ms')}, at the lag with the highest correlation. Mouths open before "
        f"sound comes out, so a few frames are normal, and single clips vary; a common shift would be a "
        f"fault.",
        plot_histogram("lag", lags_ms, x="lag of loudness behind opening, ms", step=FRAME_MS),
    )


def _read_loudness(dataset: Dataset, clip_id: str) -> NDArray[np.float64]:
    """Mean of the mels in dB for each video frame: (T,)."""
    mels = npy_to_array(read_members(dataset, clip_id, ("mels",))["mels"], f"{clip_id}.{MELS_MEMBER}")
    return np.asarray(mels.reshape(-1, MELS_PER_FRAME * mels.shape[1]).mean(axis=1, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class MetricsPlot:
    """Columns of ``metrics.jsonl`` that share one plot."""

    title: str
    caption: str
    unit: str
    log: bool
    columns: Mapping[str, str]  # column -> label in the legend


BANDS = {name: f"log-SNR {name.replace('_', ' ')}" for name in BAND_NAMES}
TRAINING = (
    MetricsPlot(
        "Loss",
        "Of training batches, and of held-out frames, which are always the same: with the true surroundings, "
        "with others and the previous mouth hidden (listening), and then without the audio as well (deaf).",
        "loss",
        True,
        {
            "loss": "training",
            "held_out_loss": "held out",
            "listening_loss": "listening",
            "deaf_loss": "deaf",
        },
    ),
    MetricsPlot(
        "Loss by noise level",
        "By the log-SNR of the noisy mouth: below -4 it is nearly all noise, above 4 nearly clean.",
        "loss",
        True,
        {f"loss_log_snr/{name}": label for name, label in BANDS.items()},
    ),
    MetricsPlot(
        "Held-out loss by noise level",
        "With the same frames and noise each time.",
        "loss",
        True,
        {f"held_out_log_snr/{name}": label for name, label in BANDS.items()},
    ),
    MetricsPlot(
        "Learning rate", "The schedule of the recipe.", "learning rate", False, {"learning_rate": ""}
    ),
    MetricsPlot("Gradient norm", "Of the last step, before clipping.", "norm", True, {"grad_norm": ""}),
    MetricsPlot("Throughput", "Training frames per second.", "frames/s", False, {"frames_per_second": ""}),
)


def plot_training(records: Sequence[Record]) -> list[CaptionedPlot]:
    """Plot the columns of ``metrics.jsonl``. Plots without any value are skipped."""
    figures = []
    for spec in TRAINING:
        curves = []
        for series, (column, label) in enumerate(spec.columns.items()):
            points = [(record["step"], record[column]) for record in records if column in record]
            if points:
                curves.append(Line(label, series, *zip(*points, strict=True)))
        if curves:
            plot = plot_lines(spec.title, curves, x="step", y=spec.unit, log=spec.log)
            figures.append(CaptionedPlot(spec.title, spec.caption, plot))
    return figures


def plot_drift(evaluation: EvaluationResults) -> list[CaptionedPlot]:
    """Means over clips by frame index."""
    figures = []
    for name, label in DRIFT.items():
        # the ground truth's own PSNR is that of an exact copy, far above all others
        means = [
            mean
            for mean in results.average_rows(evaluation, name)
            if (name, mean.row) != ("psnr_box_db", TRUTH)
        ]
        if not means:
            figures.append(CaptionedPlot(label, "Not computed: no row of the evaluation has it."))
            continue
        series = {row: index for index, row in enumerate(evaluation.means)}
        curves = [Line(c.row, series[c.row], np.arange(len(c.mean)), c.mean, c.low, c.high) for c in means]
        band = (
            f"; the band is its bootstrap 95 % interval, which fewer than {MIN_UNITS} clips do not have"
            if any(mean.has_interval for mean in means)
            else ""
        )
        figures.append(
            CaptionedPlot(
                label,
                f"Mean over clips by frame index{band}. A trend along the clip that the ground truth and the "
                "frozen mouth do not have is drift.",
                plot_lines(name, curves, x="frame", y=label, wide=True),
            )
        )
    return figures


def plot_openings(evaluation: EvaluationResults) -> list[CaptionedPlot]:
    """Openings of generated mouths beside those of the audio clips."""
    figures = []
    for row in evaluation.means:
        if row in NOT_GENERATED:
            continue
        for clip in results.select_opening_curves(evaluation, row)[:MAX_OPENING_PLOTS]:
            frames = np.arange(len(clip.values["opening"]))
            curves = [
                Line("generated", 0, frames, clip.values["opening"]),
                Line("in the audio clip", 1, frames, clip.values["opening_speech"]),
            ]
            plot = plot_lines(f"{row}/{clip.name}", curves, x="frame", y="mouth opening")
            figures.append(CaptionedPlot(f"{row}: {clip.name}", "", plot))
    return figures


def _describe_spread(values: Any, unit: str) -> str:
    """The median, and the range of the middle nine tenths."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), (0.05, 0.5, 0.95))
    if low == high:
        return f"{middle:.3g} {unit} in at least 9 of 10 clips"
    return f"{middle:.3g} {unit} ({low:.3g} to {high:.3g} in 9 of 10 clips)"
