"""The new speech: what is to be known of it, and its packets for the output, untouched where that can be."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import av
import av.container
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from stages.engine.outcome import Outcome
from stages.media.audio import audio_stream, decode, laid_out, open_sound

AAC_RATE = 48_000  # Hz; see stages.media.encode for why not the speech's own
AAC_BITS_PER_CHANNEL = 96_000
AAC_FRAME = 1024  # samples


# Packets with the second of the output at which each is heard.
Packets: TypeAlias = "Generator[tuple[Fraction, av.Packet[AudioStream]], None, None]"


@dataclass(frozen=True, slots=True)
class Speech:
    """A recording, as a player plays it."""

    path: Path
    codec: str
    start: Fraction  # seconds on the container's clock at which its first sample is heard
    seconds: Fraction
    channels: int


def listen(path: str) -> Outcome:
    """Facts of a recording. All of it is decoded: headers tell lengths badly. Runs in the sandbox."""
    with open_sound(Path(path)) as container:
        codec = audio_stream(container).codec_context.codec.canonical_name
        blocks = decode(container)
        first = next(blocks)
        n_samples = max(block.at + block.samples.shape[1] for block in chain([first], blocks))
    facts = {
        "codec": codec,
        "start": str(first.start),
        "seconds": str(Fraction(n_samples, first.rate)),
        "channels": len(first.samples),
    }
    return Outcome(facts=facts)


def speech_of(path: Path, outcome: Outcome) -> Speech:
    """What ``listen`` has found."""
    facts = outcome.facts
    return Speech(
        path, facts["codec"], Fraction(facts["start"]), Fraction(facts["seconds"]), facts["channels"]
    )


def silent() -> Packets:
    """No packet, and no stream."""
    yield from ()


def copied(speech: Speech, out: av.container.OutputContainer, until: Fraction) -> Packets:
    """The recording's own packets, bit for bit.

    Its first sample is heard at 0, so what an encoder put before it comes earlier, as in the source.
    Packets end with the one that is heard at ``until``. The stream is added at once.
    """
    source = open_sound(speech.path)
    stream = audio_stream(source)
    assert stream.time_base is not None, "listen has decoded it"
    shift, tick = round(speech.start / stream.time_base), stream.time_base
    copy = out.add_stream_from_template(stream)

    def packets() -> Packets:
        with source:
            for packet in source.demux(stream):
                if not packet.size or packet.pts is None or packet.dts is None:
                    continue
                packet.pts -= shift
                packet.dts -= shift
                at = packet.pts * tick
                if at >= until:
                    return
                packet.stream = copy
                yield at, packet

    return packets()


def encoded(speech: Speech, out: av.container.OutputContainer, until: Fraction) -> Packets:
    """The recording as AAC, up to ``until`` seconds. The stream is added at once."""
    stream = out.add_stream("aac", rate=AAC_RATE, options={"flags": "+bitexact"})
    layout = "mono" if speech.channels == 1 else "stereo"
    stream.layout = layout
    stream.bit_rate = AAC_BITS_PER_CHANNEL * (1 if layout == "mono" else 2)

    def packets() -> Packets:
        for frame in chain(_frames(speech, layout, until), [None]):
            for packet in stream.encode(frame):
                assert packet.pts is not None, "an encoder stamps what it makes"
                yield packet.pts * packet.time_base, packet

    return packets()


def _frames(speech: Speech, layout: str, until: Fraction) -> Iterator[av.AudioFrame]:
    """The recording in frames as the AAC encoder takes them; gaps are silence."""
    resampler = AudioResampler("fltp", layout, AAC_RATE, AAC_FRAME)
    at, end = 0, round(until * AAC_RATE)  # samples
    with open_sound(speech.path) as source:
        own = audio_stream(source).codec_context
        own_layout, own_rate = own.layout.name, own.sample_rate
        pieces = (_frame(piece, own_layout, own_rate) for piece in laid_out(decode(source)))
        for piece in chain(pieces, [None]):
            for resampled in resampler.resample(piece):
                samples = resampled.to_ndarray().astype(np.float32, copy=False)[:, : end - at]
                if samples.size:
                    yield _frame(samples, layout, AAC_RATE, at)
                at += samples.shape[1]
            if at >= end:
                return


def _frame(samples: NDArray[np.float32], layout: str, rate: int, at: int | None = None) -> av.AudioFrame:
    """Samples (channels, n) as FFmpeg has them, the first of them being number ``at``."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), at
    return frame
