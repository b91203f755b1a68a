"""Sound in: one track, mono, 16 kHz, on the clock of the video. Untrusted files; run it in the sandbox."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import av.container
import numpy as np
import soxr  # type: ignore[import-untyped]
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.engine.outcome import Drop
from stages.media.video import DEMUXERS, open_media

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // VIDEO_FPS
# Below this the loudest sample is silence: one step of 16 bit sound is -90 dB.
SILENCE_PEAK = 2**-15
# Channels whose mean keeps less of their power than this cancel each other.
ANTIPHASE_POWER = 0.05
# What holds sound alone. Like DEMUXERS, these read one file and nothing else.
SOUND_DEMUXERS = f"{DEMUXERS},wav,w64,aiff,caf,au,mp3,aac,ac3,eac3,flac,amr"
# A stamp this far from the end of the last block means that sound was lost; less is rounding.
GAP_SECONDS = 0.01
HELD_SECONDS = 10.0


def audio_stream(container: av.container.InputContainer) -> AudioStream:
    """The track a player plays. Raises Drop when there is none."""
    best = container.streams.best("audio")
    if not isinstance(best, AudioStream) or best.codec_context is None:
        raise Drop("no_audio", "has no sound")
    return best


def open_sound(path: Path) -> av.container.InputContainer:
    """Open a local file that may hold a picture too or not. Raises Drop when it is no media."""
    return open_media(path, demuxers=SOUND_DEMUXERS, kind="sound")


def read_channels(path: Path, start: float, n_samples: int) -> NDArray[np.float32]:
    """Sound from ``start`` seconds on the container's clock: (channels, n_samples) at 16 kHz.

    It lies where its own time stamps say: what comes before ``start`` is cut, what is missing, at the
    ends or in a gap, is silence. Raises Drop when nothing can be decoded.
    """
    with open_sound(path) as container:
        blocks = decode(container)
        first = next(blocks)
        sound = np.zeros((len(first.samples), n_samples), np.float32)
        at = round((float(first.start) - start) * SAMPLE_RATE)
        for piece in _at_our_rate(laid_out(chain([first], blocks)), first.rate):
            place(piece, at, sound)
            at += piece.shape[1]
    return sound


@dataclass(frozen=True, slots=True)
class Block:
    """Decoded sound, a few hundredths of a second of it."""

    start: Fraction  # of the track's first block, seconds on the container's clock
    rate: int  # Hz
    at: int  # sample of the track at which this block belongs
    samples: NDArray[np.float32]  # (channels, n)


def decode(container: av.container.InputContainer) -> Iterator[Block]:
    """The blocks of the track a player plays. Raises Drop where there is none, or it changes its form."""
    stream = audio_stream(container)
    to_float: AudioResampler | None = None
    first = Fraction(0)
    heard = False
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
                yield Block(first, to_float.rate, at, out.to_ndarray().astype(np.float32, copy=False))
                heard = True
                at += out.samples
            end = at
    if not heard:
        raise Drop("no_audio", "none of its sound can be decoded")


def laid_out(blocks: Iterable[Block]) -> Iterator[NDArray[np.float32]]:
    """The track from its first sample on, in pieces (channels, n) one after the other; gaps are silence.

    Where blocks overlap the later one is heard, if it goes back by no more than HELD_SECONDS: so much is
    held, however long the track is.
    """
    tape: NDArray[np.float32] | None = None
    given = end = 0  # samples of the track: handed out, and known
    for block in blocks:
        if tape is None:
            tape = np.zeros((len(block.samples), round(HELD_SECONDS * block.rate) + block.rate), np.float32)
        at, samples = block.at, block.samples
        while samples.shape[1]:
            room = given + tape.shape[1] - at
            if room <= 0:  # a second of the tape makes room
                yield tape[:, : block.rate].copy()
                tape[:, : -block.rate] = tape[:, block.rate :]
                tape[:, -block.rate :] = 0
                given += block.rate
                continue
            part, samples = samples[:, :room], samples[:, room:]
            place(part, at - given, tape)
            at += part.shape[1]
            end = max(end, at)
    if tape is not None:
        yield tape[:, : end - given]


def _at_our_rate(pieces: Iterable[NDArray[np.float32]], rate: int) -> Iterator[NDArray[np.float32]]:
    """Pieces of a track at SAMPLE_RATE: bit for bit what librosa.resample makes of the whole."""
    if rate == SAMPLE_RATE:
        yield from pieces
        return
    streams: list[soxr.ResampleStream] = []
    n_read = n_given = 0
    for piece in pieces:
        streams = streams or [soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="soxr_hq") for _ in piece]
        n_read += piece.shape[1]
        resampled = [stream.resample_chunk(channel) for stream, channel in zip(streams, piece, strict=True)]
        n_given += len(resampled[0])
        yield np.stack(resampled)
    nothing = np.zeros(0, np.float32)
    rest = [stream.resample_chunk(nothing, last=True) for stream in streams]
    yield np.stack(rest)[:, : max(0, math.ceil(n_read * SAMPLE_RATE / rate) - n_given)]


def place(sound: NDArray[np.float32], at: int, track: NDArray[np.float32]) -> None:
    """Lay ``sound`` (channels, n) at sample ``at`` of ``track`` (channels, N); what is beyond it is cut."""
    left, right = max(at, 0), min(at + sound.shape[1], track.shape[1])
    if left < right:
        track[:, left:right] = sound[:, left - at : right - at]


def to_mono(channels: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[str]]:
    """Mean of the channels, (n,), and notes. Raises Drop on silence.

    Where the channels are each other's opposite their mean is silence, although a listener hears
    speech: then the loudest channel stands for all.
    """
    if not np.isfinite(channels).all():
        raise Drop("damaged_audio", "its sound holds values that are not finite")
    peak = float(max(channels.max(initial=0), -channels.min(initial=0)))
    if peak < SILENCE_PEAK:
        raise Drop("silent", f"its sound is silent: peak {peak:.1e} of full scale, "
                   f"expected {SILENCE_PEAK:.1e} or more")  # fmt: skip
    mono: NDArray[np.float32] = channels.mean(axis=0, dtype=np.float32)
    # einsum, because an hour's squares do not fit in memory
    powers = np.einsum("cn,cn->c", channels, channels, dtype=np.float64)
    if np.einsum("n,n", mono, mono, dtype=np.float64) < ANTIPHASE_POWER * powers.mean():
        return channels[int(powers.argmax())], ["antiphase sound: one channel taken, not the mean"]
    return mono, []
