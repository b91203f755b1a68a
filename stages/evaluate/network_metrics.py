"""Figures that need networks others have trained: SyncNet's LSE, LPIPS, and Inception's FID.

Nothing is fetched here. Where a network's weights are not on this machine, its columns say why they are
not computed, and the others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.evaluate.metrics import inception, lse
from stages.evaluate.metrics.frechet import Moments, frechet_distance
from stages.evaluate.metrics.inception import Inception
from stages.evaluate.metrics.lpips import MIN_PX, AlexNet, Heads, Lpips
from stages.evaluate.metrics.lse import Skipped
from stages.evaluate.metrics.published import load_published
from stages.evaluate.metrics.syncnet import SyncNet
from stages.media.weights import NETWORKS, WeightsNotFound, find_here

LSE = ("lse_c", "lse_d", "lse_offset", "lse_d_at_zero")
LSE_REAL = tuple(f"{column}_real" for column in LSE)  # the same, by the protocol "real videos"
LPIPS = ("lpips_box", "lpips_frame")
FID = ("fid_box", "fid_frame")
NO_SOUND = "needs the raw clips' sound: --raw DIR"

Frames = NDArray[np.uint8]  # (T, H, W, 3), RGB
Boxes = NDArray[np.integer]  # (T, 4), x0 y0 x1 y1


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks that are here."""

    syncnet: SyncNet | None
    lpips: Lpips | None
    inception: Inception | None
    not_computed: dict[str, str]  # column -> why


def load_networks(folder: Path | None, *, with_sound: bool, device: str = "cpu") -> Networks:
    """What can be found in ``folder``, in $REDUB_WEIGHTS and in the user's cache.

    ``with_sound`` says whether ``clip_values`` will be given speech. On a core of a CPU a frame costs
    Inception 120 ms, whole or its box, SyncNet 32 ms by each protocol and LPIPS some 20 ms. Raises
    StageError or ModelError where a file is there and is not what it should be.
    """
    not_computed: dict[str, str] = {}

    def found(columns: Sequence[str], *names: str) -> list[Path]:
        try:
            return [find_here(NETWORKS[name], folder) for name in names]
        except WeightsNotFound as absent:
            not_computed.update(dict.fromkeys(columns, str(absent)))
            return []

    syncnet = lpips = eye = None
    if paths := found((*LSE, *LSE_REAL), "syncnet"):
        syncnet = load_published(SyncNet, *paths).to(device)
        if not with_sound:
            not_computed.update(dict.fromkeys((*LSE, *LSE_REAL), NO_SOUND))
    if paths := found(LPIPS, "alexnet", "lpips"):
        alexnet, heads = paths
        lpips = Lpips(
            load_published(AlexNet, alexnet, unused=("classifier.",)).to(device),
            load_published(Heads, heads).to(device),
        )
    if paths := found(FID, "inception"):
        eye = load_published(Inception, *paths, unused=("fc.",)).to(device)
    return Networks(syncnet, lpips, eye, not_computed)


@dataclass(frozen=True, slots=True)
class ClipValues:
    """One clip's figures; a column that is not here is not computed, or not defined for this clip."""

    values: dict[str, float]
    skipped: tuple[str, ...] = ()  # why LSE is not defined for it, by protocol


def clip_values(
    networks: Networks,
    drawn: Frames,
    truth: Frames | None,
    boxes: Boxes,
    speech: NDArray[np.int16] | None,
    squares: Frames | Skipped | None,
) -> ClipValues:
    """LPIPS of a clip's frames from the true ones, and LSE of them and the speech that they should say.

    No ``truth`` shows a clip that was drawn to another's speech. ``speech`` is at 16 kHz on the frames'
    clock, ``squares`` are those about the face in whole pictures, or why there are none. LPIPS of the box is
    the mean over frames whose box is large enough for AlexNet.
    """
    values: dict[str, float] = {}
    skipped = []
    if networks.lpips is not None and truth is not None:
        values["lpips_frame"] = float(networks.lpips(drawn, truth).mean())
        pairs = [pair for pair in zip(within(drawn, boxes), within(truth, boxes), strict=True)
                 if min(pair[0].shape[:2]) >= MIN_PX]  # fmt: skip
        if pairs:
            values["lpips_box"] = float(np.mean([networks.lpips(a[None], b[None])[0] for a, b in pairs]))
    if networks.syncnet is not None and speech is not None:
        for protocol, columns, pictures in (("crops", LSE, drawn), ("real videos", LSE_REAL, squares)):
            if pictures is None:
                continue
            told = (
                pictures
                if isinstance(pictures, Skipped)
                else lse.lse(pictures, speech, networks.syncnet.lips, networks.syncnet.speech)
            )
            if isinstance(told, Skipped):
                skipped.append(f"{protocol}: {told.reason}")
            else:
                figures = (told.confidence, told.distance, told.offset, told.distance_at_zero)
                values |= dict(zip(columns, figures, strict=True))
    return ClipValues(values, tuple(skipped))


class Fid:
    """What Inception has seen of one row's frames, whole and within their boxes."""

    def __init__(self, network: Inception) -> None:
        self._network = network
        self._seen = {column: Moments() for column in FID}

    @property
    def n(self) -> int:
        """Frames seen. Of fewer than 2048 the covariance lacks rank and the distance is too large."""
        return self._seen["fid_frame"].n

    def add(self, frames: Frames, boxes: Boxes) -> None:
        """See one clip."""
        for column, pictures in (("fid_frame", list(frames)), ("fid_box", within(frames, boxes))):
            self._seen[column].add(inception.features(self._network, pictures))

    def against(self, truth: Fid) -> dict[str, float]:
        """Frechet distance of this row's frames from the true ones, by column. Two frames or more of each."""
        return {
            column: frechet_distance(seen.gaussian(), truth._seen[column].gaussian())
            for column, seen in self._seen.items()
        }


def within(frames: Frames, boxes: Boxes) -> list[NDArray[np.uint8]]:
    """The box of each frame, as a picture."""
    return [frame[y0:y1, x0:x1] for frame, (x0, y0, x1, y1) in zip(frames, boxes, strict=True)]
