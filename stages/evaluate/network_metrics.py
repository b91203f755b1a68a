"""Metrics that need published networks: SyncNet's LSE, LPIPS, and FID by Inception.

Nothing is downloaded here. Where a network's weights are not on this machine, its columns say why they are
not computed, and the others are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.schema import Frames
from stages.media.weights import NETWORKS, WeightsNotFound, find_local
from stages.metrics.frechet import Moments, frechet_distance
from stages.metrics.inception import Inception, extract_features
from stages.metrics.lpips import MIN_PX, AlexNet, Heads, Lpips
from stages.metrics.lse import Skipped, compute_lse
from stages.metrics.pixels import Boxes, crop_boxes
from stages.metrics.published import load_published
from stages.metrics.syncnet import SyncNet

LSE = ("lse_c", "lse_d", "lse_offset", "lse_d_at_zero")
LSE_REAL = tuple(f"{column}_real" for column in LSE)  # the same, by the protocol "real videos"
LPIPS = ("lpips_box", "lpips_frame")
FID = ("fid_box", "fid_frame")
NO_SOUND = "needs the raw clips' sound: --raw DIR"


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks whose weights are on this machine."""

    syncnet: SyncNet | None
    lpips: Lpips | None
    inception: Inception | None
    not_computed: dict[str, str]  # column -> why


def load_networks(folder: Path | None, *, with_sound: bool, device: str = "cpu") -> Networks:
    """Load every network that is in ``folder``, in $REDUB_WEIGHTS or in the user's cache.

    ``with_sound`` says whether ``score_clip_by_networks`` will receive speech. On one CPU core a frame takes
    Inception 120 ms, whole or its box, SyncNet 32 ms by each protocol and LPIPS some 20 ms. Raises StageError
    when a file exists but is not what it should be.
    """
    not_computed: dict[str, str] = {}

    def find_paths(columns: Sequence[str], *names: str) -> list[Path]:
        try:
            return [find_local(NETWORKS[name], folder) for name in names]
        except WeightsNotFound as err:
            not_computed.update(dict.fromkeys(columns, str(err)))
            return []

    syncnet = lpips = inception = None
    if paths := find_paths((*LSE, *LSE_REAL), "syncnet"):
        syncnet = load_published(SyncNet, *paths).to(device)
        if not with_sound:
            not_computed.update(dict.fromkeys((*LSE, *LSE_REAL), NO_SOUND))
    if paths := find_paths(LPIPS, "alexnet", "lpips"):
        alexnet, heads = paths
        lpips = Lpips(
            load_published(AlexNet, alexnet, unused=("classifier.",)).to(device),
            load_published(Heads, heads).to(device),
        )
    if paths := find_paths(FID, "inception"):
        inception = load_published(Inception, *paths, unused=("fc.",)).to(device)
    return Networks(syncnet, lpips, inception, not_computed)


@dataclass(frozen=True, slots=True)
class ClipValues:
    """One clip's scores; an absent column is not computed, or not defined for this clip."""

    values: dict[str, float]
    skipped: tuple[str, ...] = ()  # why it has no LSE, by protocol


def score_clip_by_networks(
    networks: Networks,
    generated: Frames,
    truth: Frames | None,
    boxes: Boxes,
    speech: NDArray[np.int16] | None,
    squares: Frames | Skipped | None,
) -> ClipValues:
    """LPIPS of a clip's frames from the ground truth, and LSE of its frames and the speech they should match.

    ``truth`` is None for a clip with another's speech. ``speech`` is at 16 kHz on the frames' clock,
    ``squares`` are those around the face in full frames, or why there are none. LPIPS of the box is the mean
    over frames whose box is large enough for AlexNet.
    """
    values: dict[str, float] = {}
    skipped = []
    if networks.lpips is not None and truth is not None:
        values["lpips_frame"] = float(networks.lpips(generated, truth).mean())
        pairs = [pair for pair in zip(crop_boxes(generated, boxes), crop_boxes(truth, boxes), strict=True)
                 if min(pair[0].shape[:2]) >= MIN_PX]  # fmt: skip
        if pairs:
            values["lpips_box"] = float(np.mean([networks.lpips(a[None], b[None])[0] for a, b in pairs]))
    if networks.syncnet is not None and speech is not None:
        syncnet = networks.syncnet
        for protocol, columns, frames in (("crops", LSE, generated), ("real videos", LSE_REAL, squares)):
            if frames is None:
                continue
            result = (
                frames
                if isinstance(frames, Skipped)
                else compute_lse(frames, speech, syncnet.embed_lips, syncnet.embed_speech)
            )
            if isinstance(result, Skipped):
                skipped.append(f"{protocol}: {result.reason}")
            else:
                scores = (result.confidence, result.distance, result.offset, result.distance_at_zero)
                values |= dict(zip(columns, scores, strict=True))
    return ClipValues(values, tuple(skipped))


class Fid:
    """Running moments of Inception's features of one row's frames, whole and in their boxes."""

    def __init__(self, network: Inception) -> None:
        self._network = network
        self._moments = {column: Moments() for column in FID}

    @property
    def n(self) -> int:
        """Frames so far. With fewer than 2048 the covariance lacks rank and the distance is too large."""
        return self._moments["fid_frame"].n

    def add(self, frames: Frames, boxes: Boxes) -> None:
        """Add the frames of one clip."""
        for column, images in (("fid_frame", list(frames)), ("fid_box", list(crop_boxes(frames, boxes)))):
            self._moments[column].add(extract_features(self._network, images))

    def compute_distances(self, truth: Fid) -> dict[str, float]:
        """Fréchet distance of this row's frames from the ground truth's, by column. Both need two frames."""
        return {
            column: frechet_distance(moments.fit_gaussian(), truth._moments[column].fit_gaussian())
            for column, moments in self._moments.items()
        }
