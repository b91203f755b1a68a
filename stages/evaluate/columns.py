"""The table's columns: what each figure is, where it is taken, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Of a clip: what its figures are also told by.
GROUPS = ("emotion", "level", "speaker")


@dataclass(frozen=True, slots=True)
class Column:
    """One figure. docs/evaluation.md says more of each."""

    label: str
    unit: str
    region: Literal["box", "frame", ""]
    better: Literal["higher", "lower", ""]
    about: str
    needs_truth: bool = False  # no truth shows a clip that was drawn to another's speech


COLUMNS: dict[str, Column] = {
    "psnr_box_db": Column(
        "PSNR", "dB", "box", "higher", "from the mean squared error of a clip's boxes, in float", True
    ),
    "psnr_frame_db": Column(
        "PSNR",
        "dB",
        "frame",
        "higher",
        "from the mean squared error of a clip's whole frames, in float",
        True,
    ),
    "ssim_box": Column(
        "SSIM", "", "box", "higher", "Wang et al. 2004, Gaussian window of 11 px, mean of R, G and B", True
    ),
    "ssim_frame": Column(
        "SSIM", "", "frame", "higher", "the same on whole frames, of which most is copied", True
    ),
    "lpips_box": Column(
        "LPIPS", "", "box", "lower", "Zhang et al. 2018: distance of a network's features", True
    ),
    "lpips_frame": Column(
        "LPIPS", "", "frame", "lower", "the same on whole frames, of which most is copied", True
    ),
    "cpbd_box": Column(
        "CPBD", "", "box", "higher", "Narvekar and Karam 2011: share of edges whose blur is not seen"
    ),
    "cpbd_frame": Column("CPBD", "", "frame", "higher", "the same on whole frames, of which most is copied"),
    "fid_box": Column(
        "FID", "", "box", "lower", "Heusel et al. 2017: distance of Inception features of all boxes"
    ),
    "fid_frame": Column("FID", "", "frame", "lower", "the same on whole frames, of which most is copied"),
    "lse_c": Column(
        "LSE-C, crops", "", "", "higher", "SyncNet's confidence: median less least distance over lags"
    ),
    "lse_d": Column(
        "LSE-D, crops", "", "", "lower", "SyncNet's least distance over lags of 15 frames either way"
    ),
    "lse_offset": Column(
        "LSE offset, crops",
        "frames",
        "",
        "",
        "the lag of that least distance; positive: the sound comes early",
    ),
    "lse_d_at_zero": Column("LSE-D at 0, crops", "", "", "lower", "SyncNet's distance without any lag"),
    "lse_c_real": Column(
        "LSE-C, real videos",
        "",
        "",
        "higher",
        "SyncNet's confidence in the square about the face, of whole pictures",
    ),
    "lse_d_real": Column("LSE-D, real videos", "", "", "lower", "SyncNet's least distance in that square"),
    "lse_offset_real": Column("LSE offset, real videos", "frames", "", "", "the lag of that least distance"),
    "lse_d_at_zero_real": Column(
        "LSE-D at 0, real videos", "", "", "lower", "SyncNet's distance in that square without any lag"
    ),
    "mouth_distance_px": Column(
        "mouth distance", "px", "", "lower", "of 40 lip landmarks from the truth's, in the crop", True
    ),
    "mouth_distance_pupils": Column(
        "mouth distance",
        "pupils' distance",
        "",
        "lower",
        "the same, in units of the distance between the pupils",
        True,
    ),
    "opening_correlation": Column(
        "opening correlation",
        "",
        "",
        "higher",
        "Pearson's, of the drawn opening with that of the speech's own mouth; shared timing flatters it",
    ),
    "opening_lag_frames": Column(
        "opening lag",
        "frames",
        "",
        "",
        "where that correlation is greatest; positive: the drawn mouth comes late",
    ),
    "audio_obedience": Column(
        "audio obedience",
        "",
        "",
        "higher",
        "does the mouth follow another's speech (1), nothing (0) or the source (-1): partial correlations",
    ),
    "smoothness_box": Column(
        "unrest",
        "of the truth's",
        "box",
        "",
        "second difference in time over the truth's: 1 as smooth, above it flickers, near 0 stands still",
    ),
    "identity_drift": Column(
        "identity drift",
        "ΔE",
        "box",
        "",
        "how far the skin's colour moves away from the first frame's, from start to end: 0 is best",
    ),
}
