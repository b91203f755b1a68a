"""The columns of the table: what each metric is, its unit and region, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Properties of a clip by which means are also reported.
GROUPS = ("emotion", "level", "speaker")


@dataclass(frozen=True, slots=True)
class Column:
    """One metric. docs/evaluation.md describes each in more detail."""

    label: str
    unit: str
    region: Literal["box", "frame", ""]
    better: Literal["higher", "lower", ""]
    about: str
    needs_truth: bool = False  # a clip with another's speech has no ground truth


COLUMNS: dict[str, Column] = {
    "psnr_box_db": Column(
        "PSNR",
        "dB",
        "box",
        "higher",
        "from the mean squared error of a clip's boxes, in float, 58.9 at most; with own speech it rewards "
        "copying: a network that copies the mouth from what is visible scores above one that follows the "
        "speech",
        True,
    ),
    "psnr_frame_db": Column(
        "PSNR",
        "dB",
        "frame",
        "higher",
        "from the mean squared error of a clip's whole frames, in float",
        True,
    ),
    "psnr_box_first_db": Column(
        "PSNR, first 5 frames", "dB", "box", "higher", "from the mean squared error of those boxes", True
    ),
    "psnr_box_last_db": Column(
        "PSNR, last 5 frames",
        "dB",
        "box",
        "higher",
        "the same at the end; lower than at the start also where the head moves away, as in the frozen "
        "mouth's row",
        True,
    ),
    "border_colour": Column(
        "colour at the border",
        "ΔE",
        "box",
        "lower",
        "median colour difference of the outermost 3 px of the box from the source's pixels in the same "
        "places: high for another person's skin",
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
        "CPBD", "", "box", "higher", "Narvekar and Karam 2011: share of edges without noticeable blur"
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
        "LSE-D, crops", "", "", "lower", "SyncNet's least distance over lags of up to 15 frames either way"
    ),
    "lse_offset": Column(
        "LSE offset, crops",
        "frames",
        "",
        "",
        "the lag of that least distance; positive: the sound is early",
    ),
    "lse_d_at_zero": Column("LSE-D at 0, crops", "", "", "lower", "SyncNet's distance without a lag"),
    "lse_c_real": Column(
        "LSE-C, real videos",
        "",
        "",
        "higher",
        "SyncNet's confidence on the square around the face in full frames",
    ),
    "lse_d_real": Column("LSE-D, real videos", "", "", "lower", "SyncNet's least distance on that square"),
    "lse_offset_real": Column("LSE offset, real videos", "frames", "", "", "the lag of that least distance"),
    "lse_d_at_zero_real": Column(
        "LSE-D at 0, real videos", "", "", "lower", "SyncNet's distance on that square without a lag"
    ),
    "mouth_distance_px": Column(
        "mouth distance", "px", "", "lower", "of 40 lip landmarks from the ground truth's, in the crop", True
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
        "Pearson, of the generated mouth opening with the speech's own; high for any clip with shared timing",
    ),
    "opening_lag_frames": Column(
        "opening lag",
        "frames",
        "",
        "",
        "the lag at which that correlation is greatest; positive: the generated mouth is late",
    ),
    "sync_confidence": Column(
        "sync confidence",
        "",
        "",
        "higher",
        "correlation of the mouth's opening, and of its change, with what a linear predictor hears in speech "
        "features: the greatest less the median over lags",
    ),
    "sync_lag": Column(
        "sync lag", "frames", "", "", "the lag of that greatest correlation; positive: the mouth is late"
    ),
    "audio_obedience": Column(
        "audio obedience",
        "",
        "",
        "higher",
        "whether the mouth follows another's speech (1), nothing (0) or the source (-1): "
        "partial correlations",
    ),
    "obedience_speech": Column(
        "obedience: speech",
        "",
        "",
        "higher",
        "its first term: partial correlation of the mouth opening with the speech's own, given the source's",
    ),
    "obedience_source": Column(
        "obedience: source",
        "",
        "",
        "",
        "its second term: partial correlation with the source's own opening, given the speech's; 0 is best",
    ),
    "audio_obedience_net": Column(
        "audio obedience, net",
        "",
        "",
        "higher",
        "the first term less the absolute value of the second: moving against the source is no merit",
    ),
    "silence_motion": Column(
        "motion in silence",
        "pupils' distance/s",
        "",
        "",
        "mean absolute change of the mouth opening while nothing is said",
    ),
    "silence_motion_truth": Column(
        "motion in silence, truth",
        "pupils' distance/s",
        "",
        "",
        "that of the speech's own clip in the same frames",
    ),
    "silence_ratio": Column(
        "motion in silence",
        "of the truth's",
        "",
        "",
        "the means over clips divided: 1 rests as the true mouth does, above 1 chatters",
    ),
    "closure": Column(
        "closed at p, b, m",
        "",
        "",
        "",
        "share of a clip's p, b and m with closed lips, by GRID's word times or a phoneme recogniser; half "
        "at random instants of speech, 1 for a mouth that never opens",
    ),
    "closure_truth": Column(
        "closed at p, b, m, truth", "", "", "", "that of the speech's own clip in the same frames"
    ),
    "smoothness_box": Column(
        "flicker",
        "of the ground truth's",
        "box",
        "",
        "second difference in time over the ground truth's: 1 is as smooth, above 1 flickers, "
        "near 0 stands still",
    ),
    "identity_drift": Column(
        "identity drift",
        "ΔE",
        "box",
        "",
        "how far the skin colour moves away from the first frame's between start and end: best as in the "
        "ground truth's row, whose light and head move too",
    ),
}
