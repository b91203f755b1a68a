"""Clips with the same sound, found by fingerprints: of a film that was uploaded twice, or encoded again.

A fingerprint is a word of 32 bits for each frame, as in Haitsma and Kalker 2002, "A Highly Robust Audio
Fingerprinting System": in each bit, whether the difference of the energy of two neighbouring bands grows.
Encoding the sound again, or a frame's shift, changes few bits; other sound changes half of them, even if the
same person says the same words again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stages.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME

Words = NDArray[np.uint32]

N_BITS = 32
N_FFT = 6144  # samples, 0.38 s around a frame: long, or a shift by half a frame would change too many bits
STEP_FRAMES = 2  # between the two spectra that a word compares
LOWEST_HZ, HIGHEST_HZ = 200.0, 4000.0  # of the bands, which are equally wide in log frequency
SILENT_POWER = 1e-6  # -60 dB: frames that are less loud have the word 0, which equals none
FRAMES_AT_ONCE = 256

MAX_ERRORS = 0.25  # share of bits that may differ where two clips have the same sound; of other sound 0.5 do
MIN_WORDS = 20  # that are compared, 0.8 s
MIN_SHARE = 0.5  # of the words of a clip that are in an earlier one too
MAX_OCCURRENCES = 64  # of a word in all clips: a tone that lasts says nothing
MAX_POSTINGS = (
    8  # places that are looked up for one word; with MAX_CANDIDATES they bound the work on any input
)
MAX_CANDIDATES = 32  # pairs of clips, for one clip


def compute_prints(sound: NDArray[np.float32], at: int, n_frames: int) -> Words:
    """The words of frames, (n_frames,). Frame k has 640 samples from ``at + 640 k`` on, at 16 kHz, mono.

    A word hears 0.38 s around its frame and 80 ms before that; beyond the sound's ends is silence.
    """
    words = np.zeros(n_frames, np.uint32)
    bands, window = _make_bands(), np.hanning(N_FFT).astype(np.float32)
    for first in range(0, n_frames, FRAMES_AT_ONCE):
        n = min(FRAMES_AT_ONCE, n_frames - first) + STEP_FRAMES
        begin = at + (first - STEP_FRAMES) * SAMPLES_PER_FRAME + (SAMPLES_PER_FRAME - N_FFT) // 2
        end = begin + (n - 1) * SAMPLES_PER_FRAME + N_FFT
        samples = sound[min(max(begin, 0), len(sound)) : max(end, 0)]
        before = min(max(-begin, 0), end - begin)
        padded = np.pad(samples, (before, end - begin - before - len(samples)))
        views = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::SAMPLES_PER_FRAME] * window
        power = np.einsum("fn,fn->f", views, views) / np.square(window).sum()
        energies = np.square(np.abs(np.fft.rfft(views))) @ bands
        differences = energies[:, :-1] - energies[:, 1:]
        bits = differences[STEP_FRAMES:] > differences[:-STEP_FRAMES]
        packed = np.packbits(bits, axis=1, bitorder="little").view("<u4")[:, 0]
        words[first : first + n - STEP_FRAMES] = np.where(power[STEP_FRAMES:] < SILENT_POWER, 0, packed)
    return words


@functools.lru_cache(maxsize=1)
def _make_bands() -> NDArray[np.float32]:
    """Weights of 33 bands that overlap, (bins, 33)."""
    edges = np.geomspace(LOWEST_HZ, HIGHEST_HZ, N_BITS + 2)
    centres = np.sqrt(edges[:-1] * edges[1:])
    widths = np.maximum(np.diff(edges), SAMPLE_RATE / N_FFT)
    frequencies = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)[:, None]
    bands: NDArray[np.float32] = np.maximum(0, 1 - np.abs(frequencies - centres) / widths).astype(np.float32)
    return bands


def find_near_duplicates(prints: Mapping[str, Words]) -> dict[str, str]:
    """Words of clips by their ids -> for each clip that repeats an earlier one, the id of that one.

    Earlier is by the order of ids. A clip repeats an earlier one that has half of its sound, where three
    quarters of the bits agree. A clip is compared with those that repeat none, so every id on the
    right is that of a clip which is not on the left.
    """
    ids = sorted(prints)
    index = _Index([np.asarray(prints[clip_id], np.uint32) for clip_id in ids])
    originals = np.ones(len(ids), bool)
    repeats: dict[str, str] = {}
    for number, clip_id in enumerate(ids):
        original = index.find_original(number, originals)
        if original is not None:
            originals[number] = False
            repeats[clip_id] = ids[original]
    return repeats


class _Index:
    """Where each word occurs."""

    def __init__(self, clips: list[Words]) -> None:
        self.clips = clips
        lengths = np.array([len(words) for words in clips], np.int64)
        words = np.concatenate([np.zeros(0, np.uint32), *clips])
        order = np.argsort(words, kind="stable")  # so the places of a word are in the order of clips
        order = order[words[order] != 0]
        self.words, self.firsts, self.counts = np.unique(words[order], return_index=True, return_counts=True)
        self.clip_numbers = np.repeat(np.arange(len(clips)), lengths)[order]
        starts = np.cumsum(lengths) - lengths
        self.places = order - starts[self.clip_numbers]

    def find_original(self, number: int, originals: NDArray[np.bool_]) -> int | None:
        """The first clip before this one, of ``originals``, that it repeats; None if there is none."""
        numbers, offsets = self._list_candidates(number, originals)
        for other, offset in sorted(zip(numbers.tolist(), offsets.tolist(), strict=True)):
            if is_same_sound(self.clips[number], self.clips[other], offset):
                return int(other)
        return None

    def _list_candidates(
        self, number: int, originals: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(numbers of earlier clips, frames by which their sound is later) with the most equal words."""
        words = self.clips[number]
        places = np.flatnonzero(words)
        # Also words of which one bit differs: after a shift by half a frame few words are quite equal.
        flips = np.concatenate([np.zeros(1, np.uint32), np.uint32(1) << np.arange(N_BITS, dtype=np.uint32)])
        queries = (words[places][:, None] ^ flips).ravel()
        query_places = places.repeat(len(flips))
        slots = np.minimum(np.searchsorted(self.words, queries), max(len(self.words) - 1, 0))
        if not len(queries) or not len(self.words):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        is_hit = (self.words[slots] == queries) & (self.counts[slots] <= MAX_OCCURRENCES)
        slots, query_places = slots[is_hit], query_places[is_hit]
        steps = np.arange(MAX_POSTINGS)
        postings = self.firsts[slots][:, None] + steps
        is_posting = steps < self.counts[slots][:, None]
        postings = postings[is_posting]
        query_places = np.broadcast_to(query_places[:, None], is_posting.shape)[is_posting]
        others = self.clip_numbers[postings]
        is_earlier = (others < number) & originals[others]
        pairs = np.stack([others, self.places[postings] - query_places], axis=1)[is_earlier]
        if not len(pairs):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        candidates, votes = np.unique(pairs, axis=0, return_counts=True)
        best = candidates[np.argsort(-votes, kind="stable")[:MAX_CANDIDATES]]
        return best[:, 0], best[:, 1]


def is_same_sound(words: Words, others: Words, offset: int) -> bool:
    """Whether half of ``words`` agree with ``others`` from word ``offset`` on."""
    first, last = max(0, -offset), min(len(words), len(others) - offset)
    if last <= first:
        return False
    own, other = words[first:last], others[first + offset : last + offset]
    is_sound = (own != 0) & (other != 0)
    n_words = int(is_sound.sum())
    if n_words < max(MIN_WORDS, MIN_SHARE * np.count_nonzero(words)):
        return False
    n_errors = np.bitwise_count((own ^ other)[is_sound]).sum()
    return bool(n_errors <= MAX_ERRORS * N_BITS * n_words)
