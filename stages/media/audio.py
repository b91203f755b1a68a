"""Read audio: mono, 16 kHz, on the clock of the video. Files are untrusted: use the sandbox."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import av.container
import numpy as np
import soxr  # type: ignore[import-untyped]
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.engine.outcome import Drop
from stages.media.container import find_audio_stream, open_audio
from stages.media.presentation import DecodeReport

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // VIDEO_FPS
# A peak below this is silence: one step of 16 bit audio is -90 dB.
SILENCE_PEAK = 2**-15
# Channels cancel each other when their mean has less than this share of their power.
ANTIPHASE_POWER = 0.05
# A time stamp this far from the end of the last block means that audio was lost. Less is rounding, or Vorbis
# in Ogg, whose stamps are up to 14 ms wrong between long and short blocks. A packet of AAC lasts 21 ms.
GAP_SECONDS = 0.015
BUFFER_SECONDS = 10.0
# Decoding begins near the sound that is needed, not at the stream's start, where this is so many seconds
# away, in formats that store time stamps of the sound. Others, as MP3 alone, estimate them from a bit rate.
SEEK_AFTER_SECONDS = 10.0
SEEKABLE_FORMATS = frozenset(
    {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv", "mpegts", "mpeg", "wav", "w64"}
)
# Before the sound that is needed. The second try is for files that store sound far from its picture.
SEEK_SECONDS = (2.0, 12.0)
MARGIN_SECONDS = 1.0  # decoded before the sound that is needed: codecs and the resampler remember
VORBIS_STEP = 64  # samples: the long and the short blocks of usual encoders are multiples
N_STARTING_BLOCKS = 3  # after a seek: a codec lacks what came before, and the first may be a part of one


def read_channels(path: Path, start: float, n_samples: int) -> NDArray[np.float32]:
    """Audio from ``start`` seconds on the container's clock: (channels, n_samples) at 16 kHz.

    Samples are placed by their own time stamps: audio before ``start`` is cut, and what is missing, at
    either end or in a gap, is silence. Far inside a long file only what is near is decoded, if its stamps
    say where that is: the samples are those of a whole decode, but for noise that a codec makes up (AAC).
    Raises Drop when nothing can be decoded.
    """
    with open_audio(path) as container:
        blocks = decode_blocks(container)
        first = next(blocks)
        distance = start - float(first.start)
        if distance <= SEEK_AFTER_SECONDS or container.format.name not in SEEKABLE_FORMATS:
            return _place_blocks(chain([first], blocks), 0, start, n_samples)
        codec = find_audio_stream(container).codec_context.name
        step = VORBIS_STEP if codec == "vorbis" else next(blocks, first).samples.shape[1]
        origin = StreamOrigin(first.start, first.rate, first.samples.shape, step)
        blocks.close()
        for seconds in SEEK_SECONDS:
            near = _seek_blocks(container, origin, start, seconds)
            if near is not None:
                return _place_blocks(near.blocks, near.begin, start, n_samples)
    with open_audio(path) as container:
        return _place_blocks(decode_blocks(container), 0, start, n_samples)


def _place_blocks(
    blocks: Iterator[AudioBlock], begin: int, start: float, n_samples: int
) -> NDArray[np.float32]:
    """As ``read_channels``, of blocks of a stream. Samples before its sample ``begin`` are not needed."""
    first = next(blocks)
    audio = np.zeros((len(first.samples), n_samples), np.float32)
    at = round((float(first.start) - start) * SAMPLE_RATE) + begin * SAMPLE_RATE // first.rate
    for piece in _resample(join_blocks(chain([first], blocks), begin), first.rate):
        copy_samples(piece, at, audio)
        at += piece.shape[1]
        if at >= n_samples:  # the rest of a long recording, or of a gap of years, is not needed
            break
    return audio


@dataclass(frozen=True, slots=True)
class StreamOrigin:
    """How a stream begins: by this, blocks that are decoded after a seek have their places in it."""

    start: Fraction  # of the first block, seconds on the container's clock
    rate: int  # Hz
    shape: tuple[int, ...]  # of the first block, (channels, n): a codec's delay may be cut from it
    step: int  # samples of every later block, or what these are multiples of

    def find_sample(self, stamp: Fraction, unit: Fraction) -> int:
        """The sample of the stream at a time stamp, which is rounded to ``unit`` seconds.

        Where blocks follow each other without a gap, a block's place is exact although its stamp is not.
        """
        at = round((stamp - self.start) * self.rate)
        n_first = self.shape[1]
        exact = n_first + round((at - n_first) / self.step) * self.step
        return exact if abs(exact - at) <= 1 + unit * self.rate else at


@dataclass(frozen=True, slots=True)
class NearBlocks:
    """What is decoded after a seek."""

    begin: int  # sample of the stream from which on nothing is missing
    blocks: Iterator[AudioBlock]


def _seek_blocks(
    container: av.container.InputContainer, origin: StreamOrigin, start: float, seconds: float
) -> NearBlocks | None:
    """The blocks around ``start``, found by seeking to so many ``seconds`` before it.

    None when that fails: then only decoding from the beginning tells what is where.
    """
    # Resampled samples lie where they do in the whole stream.
    step = origin.rate // math.gcd(origin.rate, SAMPLE_RATE)
    begin = int((start - MARGIN_SECONDS - float(origin.start)) * origin.rate) // step * step
    try:
        container.seek(int((start - seconds) * av.time_base))
    except (av.FFmpegError, OverflowError):
        return None
    blocks = decode_blocks(container, origin=origin)
    try:
        first = next(blocks)
    except Drop:
        return None
    if (first.rate, len(first.samples)) != (origin.rate, origin.shape[0]) or first.at > begin:
        return None
    return NearBlocks(begin, chain([first], blocks))


def check_audio(path: Path) -> DecodeReport:
    """Decode all of a file's sound. Raises Drop when there is none or its format changes."""
    report = DecodeReport()
    with open_audio(path) as container:
        for _ in decode_blocks(container, report):
            pass
    return report


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """Decoded audio of a few hundredths of a second."""

    start: Fraction  # of the stream's first block, seconds on the container's clock
    rate: int  # Hz
    at: int  # index of its first sample in the stream
    samples: NDArray[np.float32]  # (channels, n)


def decode_blocks(
    container: av.container.InputContainer,
    report: DecodeReport | None = None,
    origin: StreamOrigin | None = None,
) -> Generator[AudioBlock]:
    """The blocks of the stream that a player plays. Raises Drop if there is none or its format changes.

    After a seek ``origin`` says how the stream begins; blocks without which no place is certain are left out.
    """
    report = DecodeReport() if report is None else report
    stream = find_audio_stream(container)
    to_float: AudioResampler | None = None
    first = Fraction(0)
    is_empty = True
    end = 0
    n_frames = 0
    is_placed = origin is None  # else by the first stamp that can be relied on
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            report.n_lost += 1  # a damaged packet loses its own samples only; the next stamp is right again
            continue
        for frame in frames:
            assert isinstance(frame, av.AudioFrame), "only the audio stream is demuxed"
            n_frames += 1
            if not is_placed and (n_frames <= N_STARTING_BLOCKS or frame.pts is None):
                continue
            if to_float is None:
                # Not planar: PyAV miscounts eight planes or more, and reads memory that is not theirs.
                to_float = AudioResampler("flt", frame.layout, frame.sample_rate)
                own = Fraction(frame.pts or 0) * (frame.time_base or 0)
                first = own if origin is None else origin.start
            at = end  # for a block without a time stamp
            if frame.pts is not None and frame.time_base is not None:
                stamp = frame.pts * frame.time_base
                at = round((stamp - first) * frame.sample_rate)
                if not is_placed and origin is not None:
                    end, is_placed = origin.find_sample(stamp, frame.time_base), True
            # Stamps are rounded, samples are not: only a real gap moves a block from the last one's end.
            at = end if abs(at - end) <= GAP_SECONDS * frame.sample_rate else max(at, 0)
            frame.pts = None
            try:
                converted = to_float.resample(frame)
            except ValueError as err:
                raise Drop("damaged_audio", f"its sound changes its form midway ({err})") from err
            for out in converted:
                samples = out.to_ndarray().reshape(out.samples, -1).T.astype(np.float32, copy=False)
                yield AudioBlock(first, to_float.rate, at, samples)
                is_empty = False
                at += out.samples
            end = at
    if is_empty:
        raise Drop("no_audio", "none of its sound can be decoded")


def join_blocks(blocks: Iterable[AudioBlock], begin: int = 0) -> Iterator[NDArray[np.float32]]:
    """The stream from its sample ``begin`` on, as consecutive pieces (channels, n); gaps are silence.

    Where blocks overlap the later one counts, if it goes back by no more than BUFFER_SECONDS: that much
    is in memory, however long the stream is.
    """
    buffer: NDArray[np.float32] | None = None
    n_yielded = end = begin  # samples of the stream
    for block in blocks:
        if buffer is None:
            n_buffer = round(BUFFER_SECONDS * block.rate) + block.rate
            buffer = np.zeros((len(block.samples), n_buffer), np.float32)
        at, samples = block.at, block.samples
        while samples.shape[1]:
            room = n_yielded + buffer.shape[1] - at
            if room <= 0:  # yield one second of the buffer
                yield buffer[:, : block.rate].copy()
                buffer[:, : -block.rate] = buffer[:, block.rate :]
                buffer[:, -block.rate :] = 0
                n_yielded += block.rate
                continue
            part, samples = samples[:, :room], samples[:, room:]
            copy_samples(part, at - n_yielded, buffer)
            at += part.shape[1]
            end = max(end, at)
    if buffer is not None:
        yield buffer[:, : end - n_yielded]


def _resample(pieces: Iterable[NDArray[np.float32]], rate: int) -> Iterator[NDArray[np.float32]]:
    """Resample consecutive pieces to SAMPLE_RATE; bit-identical to librosa.resample of the whole."""
    if rate == SAMPLE_RATE:
        yield from pieces
        return
    streams: list[soxr.ResampleStream] = []
    n_read = n_yielded = 0
    for piece in pieces:
        streams = streams or [soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="soxr_hq") for _ in piece]
        n_read += piece.shape[1]
        resampled = [stream.resample_chunk(channel) for stream, channel in zip(streams, piece, strict=True)]
        n_yielded += len(resampled[0])
        yield np.stack(resampled)
    nothing = np.zeros(0, np.float32)
    rest = [stream.resample_chunk(nothing, last=True) for stream in streams]
    yield np.stack(rest)[:, : max(0, math.ceil(n_read * SAMPLE_RATE / rate) - n_yielded)]


def copy_samples(samples: NDArray[np.float32], at: int, target: NDArray[np.float32]) -> None:
    """Copy ``samples`` (channels, n) to index ``at`` of ``target`` (channels, N); the excess is cut."""
    first, last = max(at, 0), min(at + samples.shape[1], target.shape[1])
    if first < last:
        target[:, first:last] = samples[:, first - at : last - at]


def measure_peak(channels: NDArray[np.float32]) -> float:
    """The loudest sample, as a share of full scale; what is not finite is louder than all."""
    peak = max(channels.max(initial=0), -channels.min(initial=0))
    return float(peak) if np.isfinite(peak) else np.inf


def check_peak(peak: float) -> None:
    """Raise Drop if sound with this peak is silence."""
    if peak < SILENCE_PEAK:
        raise Drop("silent", f"its sound is silent: peak {peak:.1e} of full scale, "
                   f"expected {SILENCE_PEAK:.1e} or more")  # fmt: skip


def mix_to_mono(channels: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[str]]:
    """Mean of the channels, (n,), and notes. Raises Drop on silence.

    Where the channels have opposite phase their mean is silence, although a listener hears speech: then
    the loudest channel is used instead.
    """
    if not np.isfinite(channels).all():
        raise Drop("damaged_audio", "its sound holds values that are not finite")
    check_peak(measure_peak(channels))
    mono: NDArray[np.float32] = channels.mean(axis=0, dtype=np.float32)
    # einsum, because the squares of an hour of audio do not fit in memory
    powers = np.einsum("cn,cn->c", channels, channels, dtype=np.float64)
    if np.einsum("n,n", mono, mono, dtype=np.float64) < ANTIPHASE_POWER * powers.mean():
        return channels[int(powers.argmax())], ["antiphase sound: one channel taken, not the mean"]
    return mono, []
