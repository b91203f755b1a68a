"""Sound in: one track, mono, 16 kHz, on the clock of the video. Untrusted files; run it in the sandbox."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import librosa
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from stages.video import open_media
from stages.work import Drop

SAMPLE_RATE = 16_000
# Below this the loudest sample is silence: one step of 16 bit sound is -90 dB.
SILENCE_PEAK = 2**-15
# Channels whose mean keeps less of their power than this cancel each other.
ANTIPHASE_POWER = 0.05
# A stamp this far from the end of the last block means that sound was lost; less is rounding.
GAP_SECONDS = 0.01


def audio_stream(container: av.container.InputContainer) -> AudioStream:
    """The track a player plays. Raises Drop when there is none."""
    best = container.streams.best("audio")
    if not isinstance(best, AudioStream) or best.codec_context is None:
        raise Drop("no_audio", "has no sound")
    return best


def read_channels(path: Path, start: float, n_samples: int) -> NDArray[np.float32]:
    """Sound from ``start`` seconds on the container's clock: (channels, n_samples) at 16 kHz.

    It lies where its own time stamps say: what comes before ``start`` is cut, what is missing, at the
    ends or in a gap, is silence. Raises Drop when nothing can be decoded.
    """
    with open_media(path) as container:
        first, rate, blocks = _decode(container)
    length = max(at + block.shape[1] for at, block in blocks)
    track = np.zeros((blocks[0][1].shape[0], length), np.float32)
    for at, block in blocks:
        track[:, at : at + block.shape[1]] = block
    sound = librosa.resample(track, orig_sr=rate, target_sr=SAMPLE_RATE)
    return place(sound, round((float(first) - start) * SAMPLE_RATE), n_samples)


def _decode(
    container: av.container.InputContainer,
) -> tuple[Fraction, int, list[tuple[int, NDArray[np.float32]]]]:
    """When the sound starts, its rate, and its blocks (channels, n) with the sample each starts at."""
    stream = audio_stream(container)
    to_float: AudioResampler | None = None
    first = Fraction(0)
    blocks: list[tuple[int, NDArray[np.float32]]] = []
    end = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # a damaged packet costs its own samples only; the next one's stamp is right again
        for frame in frames:
            assert isinstance(frame, av.AudioFrame), "only the audio stream is demuxed"
            if to_float is None:
                to_float = AudioResampler("fltp", frame.layout, frame.sample_rate)
                first = Fraction(frame.pts or 0) * (frame.time_base or 0)
            at = end  # where a block without a stamp belongs
            if frame.pts is not None and frame.time_base is not None:
                at = round((frame.pts * frame.time_base - first) * frame.sample_rate)
            # Stamps are rounded, the samples are not: only a real gap moves a block off the last one's end.
            at = end if abs(at - end) <= GAP_SECONDS * frame.sample_rate else max(at, 0)
            frame.pts = None
            try:
                converted = to_float.resample(frame)
            except ValueError as err:
                raise Drop("damaged_audio", f"its sound changes its form midway ({err})") from err
            for out in converted:
                blocks.append((at, out.to_ndarray().astype(np.float32, copy=False)))
                at += out.samples
            end = at
    if to_float is None or not blocks:
        raise Drop("no_audio", "none of its sound can be decoded")
    return first, to_float.rate, blocks


def place(sound: NDArray[np.float32], at: int, n_samples: int) -> NDArray[np.float32]:
    """Lay ``sound`` (channels, n) at sample ``at`` of a silent track of ``n_samples``; the rest is cut."""
    track = np.zeros((len(sound), n_samples), np.float32)
    left, right = max(at, 0), min(at + sound.shape[1], n_samples)
    if left < right:
        track[:, left:right] = sound[:, left - at : right - at]
    return track


def to_mono(channels: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[str]]:
    """Mean of the channels, (n,), and notes. Raises Drop on silence.

    Where the channels are each other's opposite their mean is silence, although a listener hears
    speech: then the loudest channel stands for all.
    """
    if not np.isfinite(channels).all():
        raise Drop("damaged_audio", "its sound holds values that are not finite")
    peak = float(np.abs(channels).max(initial=0))
    if peak < SILENCE_PEAK:
        raise Drop("silent", f"its sound is silent: peak {peak:.1e} of full scale, "
                   f"expected {SILENCE_PEAK:.1e} or more")  # fmt: skip
    mono: NDArray[np.float32] = channels.mean(axis=0, dtype=np.float32)
    powers = np.square(channels, dtype=np.float64).mean(axis=1)
    if np.square(mono, dtype=np.float64).mean() < ANTIPHASE_POWER * powers.mean():
        return channels[int(powers.argmax())], ["antiphase sound: one channel taken, not the mean"]
    return mono, []
