"""Read the new speech: its facts, and its packets for the output, copied unchanged where possible."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import av
import av.container
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from stages.engine.outcome import Drop, Outcome, name_file
from stages.media.audio import check_peak, decode_blocks, join_blocks, measure_peak
from stages.media.container import find_audio_stream, open_audio
from stages.media.presentation import DecodeReport, read_timeline

AAC_RATE = 48_000  # Hz; stages.media.encode says why not the speech's own
AAC_BITS_PER_CHANNEL = 96_000
AAC_FRAME = 1024  # samples


# Packets with the second of the output at which each one plays.
Packets: TypeAlias = "Generator[tuple[Fraction, av.Packet[AudioStream]], None, None]"


@dataclass(frozen=True, slots=True)
class Speech:
    """A recording, as a player plays it."""

    path: Path
    codec: str
    start: Fraction  # seconds on the container's clock at which its first sample plays
    seconds: Fraction
    channels: int
    lead_seconds: Fraction  # of packets that a player decodes before the first sample and does not play
    is_continuous: bool  # its other packets all play, one after the other without a gap
    late_seconds: Fraction = Fraction(0)  # of its picture, if it has one, before its first sample
    silent_seconds: Fraction = Fraction(0)  # before its first sample, which begins it otherwise

    @classmethod
    def from_facts(cls, path: Path, facts: dict[str, Any]) -> Speech:
        """Make one from the facts of ``probe_speech``."""
        names = ("start", "seconds", "lead_seconds", "late_seconds")
        return cls(path, **{**facts, **{name: Fraction(facts[name]) for name in names}})

    def begin_with_picture(self) -> Speech:
        """The same recording from where its picture begins, as recordings that were begun together do."""
        late = self.late_seconds
        return replace(self, start=self.start - late, seconds=self.seconds + late, silent_seconds=late)


def probe_speech(path: Path) -> Outcome:
    """Read the facts of a recording. Runs in the sandbox.

    Decodes all of it, because durations in headers are unreliable. Raises Drop when it cannot be played, or
    is silent from end to end.
    """
    with open_audio(path) as container:
        read_timeline(container, find_audio_stream(container))
    with open_audio(path) as container:
        lead_seconds, is_continuous = _check_packets(container)
    report = DecodeReport()
    with open_audio(path) as container:
        codec = find_audio_stream(container).codec_context.codec.canonical_name
        blocks = decode_blocks(container, report)
        first = next(blocks)
        late_seconds = max(Fraction(0), first.start - _find_picture_start(container, first.start))
        n_samples, peak = 0, 0.0
        for block in chain([first], blocks):
            is_continuous = is_continuous and block.at == n_samples
            n_samples = max(n_samples, block.at + block.samples.shape[1])
            peak = max(peak, measure_peak(block.samples))
    check_peak(peak)
    facts = {
        "codec": codec,
        "start": str(first.start),
        "seconds": str(Fraction(n_samples, first.rate)),
        "channels": len(first.samples),
        "lead_seconds": str(lead_seconds),
        "late_seconds": str(late_seconds),
        "is_continuous": is_continuous and not report.n_lost,
    }
    try:
        next(_read_frames(Speech.from_facts(path, facts), "stereo", Fraction(1, 10)), None)
    except av.FFmpegError as err:
        raise Drop("odd_channels", f"its {facts['channels']} channels cannot be mixed to stereo "
                   f"({err.strerror})") from err  # fmt: skip
    return Outcome(facts=facts)


def _find_picture_start(container: av.container.InputContainer, default: Fraction) -> Fraction:
    """Seconds on the container's clock at which its picture begins; ``default`` where it has none."""
    picture = container.streams.best("video")
    if picture is None or picture.disposition & av.stream.Disposition.attached_pic:
        return default
    if picture.start_time is None or picture.time_base is None:
        return default
    return picture.start_time * picture.time_base


def _check_packets(container: av.container.InputContainer) -> tuple[Fraction, bool]:
    """``lead_seconds``, and whether the packets after it all play and their times increase."""
    lead, is_continuous = Fraction(0), True
    last: int | None = None
    n_shown = n_discards = 0
    for packet in container.demux(find_audio_stream(container)):
        if not packet.size:
            continue
        if packet.pts is None or packet.dts is None or (last is not None and packet.dts <= last):
            is_continuous = False
        last = packet.dts if last is None or packet.dts is None else max(last, packet.dts)
        if not packet.is_discard:
            # Discarded packets at the end are not copied; those between others are.
            is_continuous = is_continuous and not n_discards
            n_shown += 1
        elif n_shown:
            n_discards += 1
        else:
            lead += (packet.duration or 0) * packet.time_base
    return lead, is_continuous


def copy_packets(speech: Speech, out: av.container.OutputContainer, until: Fraction) -> Packets:
    """The recording's own packets, bit for bit, up to ``until`` seconds. Adds the stream at once.

    The first sample plays at 0, so an encoder's padding has negative time stamps, as in the source. Raises
    StageError when the file cannot be read any more.
    """
    with name_file(speech.path):
        source = open_audio(speech.path)
        stream = find_audio_stream(source)
    assert stream.time_base is not None, "probe_speech has decoded it"
    shift, tick = round(speech.start / stream.time_base), stream.time_base
    copy = out.add_stream_from_template(stream)

    def iterate() -> Packets:
        with source:
            for packet in source.demux(stream):
                if not packet.size or packet.pts is None or packet.dts is None:
                    continue
                if packet.is_discard and packet.pts >= shift:  # an edit list cuts the end off
                    continue
                packet.pts -= shift
                packet.dts -= shift
                at = packet.pts * tick
                if at >= until:
                    return
                packet.stream = copy
                yield at, packet

    return iterate()


def encode_packets(speeches: Sequence[Speech], out: av.container.OutputContainer, until: Fraction) -> Packets:
    """The sum of recordings as AAC, up to ``until`` seconds. Adds the stream at once.

    Its packets raise StageError when a recording cannot be read any more.
    """
    stream = out.add_stream("aac", rate=AAC_RATE, options={"flags": "+bitexact"})
    layout = "mono" if all(speech.channels == 1 for speech in speeches) else "stereo"
    stream.layout = layout
    stream.bit_rate = AAC_BITS_PER_CHANNEL * (1 if layout == "mono" else 2)

    def iterate() -> Packets:
        for frame in chain(_mix_frames(speeches, layout, until), [None]):
            for packet in stream.encode(frame):
                assert packet.pts is not None, "an encoder sets time stamps"
                yield packet.pts * packet.time_base, packet

    return iterate()


def _mix_frames(speeches: Sequence[Speech], layout: str, until: Fraction) -> Iterator[av.AudioFrame]:
    """The sum of recordings in frames of the size that the AAC encoder needs, as long as the longest."""
    readers = [_read_frames(speech, layout, until) for speech in speeches]
    if len(readers) == 1:
        yield from readers[0]
        return
    at = 0
    for frames in zip_longest(*readers):
        parts = [frame.to_ndarray() for frame in frames if frame is not None]
        # All frames but a recording's last have one size.
        total = np.zeros((len(parts[0]), max(part.shape[1] for part in parts)), np.float32)
        for part in parts:
            total[:, : part.shape[1]] += part
        yield _make_frame(np.clip(total, -1, 1), "fltp", layout, AAC_RATE, at)
        at += total.shape[1]


def _read_frames(speech: Speech, layout: str, until: Fraction) -> Iterator[av.AudioFrame]:
    """The recording in frames of the size that the AAC encoder needs; gaps and its beginning are silence."""
    resampler = AudioResampler("fltp", layout, AAC_RATE, AAC_FRAME)
    at, end = 0, round(until * AAC_RATE)  # samples
    with name_file(speech.path), open_audio(speech.path) as source:
        codec = find_audio_stream(source).codec_context
        source_layout, source_rate = codec.layout.name, codec.sample_rate
        pieces = (
            # Not planar, as in stages.media.audio.
            _make_frame(piece.T.reshape(1, -1), "flt", source_layout, source_rate)
            for piece in chain(
                _make_silence(speech.channels, round(speech.silent_seconds * source_rate), source_rate),
                join_blocks(decode_blocks(source)),
            )
        )
        for piece in chain(pieces, [None]):
            for resampled in resampler.resample(piece):
                samples = resampled.to_ndarray().astype(np.float32, copy=False)[:, : end - at]
                if samples.size:
                    yield _make_frame(samples, "fltp", layout, AAC_RATE, at)
                at += samples.shape[1]
            if at >= end:
                return


def _make_silence(n_channels: int, n_samples: int, n_at_most: int) -> Iterator[NDArray[np.float32]]:
    """Silence as consecutive pieces (channels, n)."""
    for at in range(0, n_samples, n_at_most):
        yield np.zeros((n_channels, min(n_at_most, n_samples - at)), np.float32)


def _make_frame(
    samples: NDArray[np.float32], sample_format: str, layout: str, rate: int, at: int | None = None
) -> av.AudioFrame:
    """An FFmpeg frame of samples, packed or planar, whose first sample has index ``at``."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), sample_format, layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), at
    return frame
