"""A file that was cut into clips, as text: a strip of glyphs, a line for each span, and what adds up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from shards.ledger import OK, get_code
from shards.spans import FileSpans, find_problem, measure_seconds, sum_seconds
from shards.table import Row

COLUMNS = 100
MAX_CODE_LETTERS = 30
MIN_STEP_SECONDS = 1e-6  # that a glyph stands for; less is a stranger's
GLYPHS: Mapping[str, str] = {OK: "#", "no_speech": ".", "no_face": "-"}
SCORES = {
    "face": {
        "face_width": "{:.0f} px wide",
        "sharpness": "sharpness {:.3g}",
        "yaw": "yaw {:+.0f} degrees",
        "pitch": "pitch {:+.0f} degrees",
        "brightness": "brightness {:.0f}",
    },
    "sound": {
        "speech_level": "speech at {:.1f} dB",
        "speech_to_noise": "{:.1f} dB above the pauses",
        "near_duplicate": "the same as that of {}",
    },
}
OTHER = "?"  # where no letter of a code is free


def format_timeline(file: FileSpans) -> Iterator[str]:
    """Lines of at most COLUMNS letters, but for long paths and ids of clips."""
    sums = sum_seconds(file.rows)
    glyphs = choose_glyphs(list(sums))
    width = len(format_time(file.seconds))
    yield f"  |{draw_strip(file, glyphs, COLUMNS - 4)}|"
    for row in file.rows:
        seconds = measure_seconds(row)
        start, end = format_time(row["start_seconds"]), format_time(row["end_seconds"])
        length = "?" if seconds is None else f"{seconds:.2f}"
        line = f"  {glyphs.get(get_code(row), OTHER)} {start:>{width}}-{end:>{width}} {length:>8}  "
        room = COLUMNS - len(line)
        yield line + (_describe_clip(row) if row["status"] == OK else _describe_drop(row, room))
    yield from _format_sums(file, sums, glyphs)
    if problem := find_problem(file):
        yield f"  wrong: {problem}"


def choose_glyphs(codes: list[str]) -> dict[str, str]:
    """A glyph for each code: its first letter that no other code has."""
    glyphs = {code: GLYPHS[code] for code in codes if code in GLYPHS}
    for code in codes:
        if code not in glyphs:
            free = (letter for letter in code if letter.isascii() and letter.isalnum())
            glyphs[code] = next((letter for letter in free if letter not in glyphs.values()), OTHER)
    return glyphs


def draw_strip(file: FileSpans, glyphs: Mapping[str, str], width: int) -> str:
    """The whole file as ``width`` glyphs, each of what lasts longest in its part of the time."""
    step = file.seconds / width
    if step < MIN_STEP_SECONDS:
        return " " * width
    parts: list[dict[str, float]] = [defaultdict(float) for _ in range(width)]
    for row in file.rows:
        if measure_seconds(row) is None:
            continue
        start, end = max(0.0, row["start_seconds"]) / step, max(0.0, row["end_seconds"]) / step
        for k in range(min(int(start), width), min(int(end) + 1, width)):
            parts[k][get_code(row)] += min(end, k + 1) - max(start, k)
    return "".join(glyphs.get(max(part, key=part.__getitem__), OTHER) if part else " " for part in parts)


def format_time(seconds: float | None) -> str:
    """``mm:ss.ss``, to the nearest hundredth; minutes go on after an hour."""
    if seconds is None:
        return "?"
    hundredths = round(100 * seconds)
    minutes, rest = divmod(abs(hundredths), 6000)
    return f"{'-' * (hundredths < 0)}{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


def describe_span(row: Row) -> Iterator[str]:
    """What was measured of a clip that is a span of a file."""
    start, end = format_time(row["start_seconds"]), format_time(row["end_seconds"])
    track = "" if row["track"] is None else f", track {row['track']}"
    yield f"span    {start} to {end} of its file{track}"
    lag, shift = row["lag_frames"] or 0, row["sound_shift"] or 0.0
    if row["sync_confidence"] is not None:
        when = f"{abs(shift):.2f} s {'later' if shift > 0 else 'earlier'}"
        read = f", its sound is read {when}" if shift else ""
        yield f"sync    confidence {row['sync_confidence']:.2f}, {_describe_lag(lag)}{read}"
    if row.get("syncnet_confidence") is not None:
        yield f"syncnet confidence {row['syncnet_confidence']:.2f}, {_describe_lag(row['syncnet_lag'])}"
    for title, texts in SCORES.items():
        facts = [text.format(row[name]) for name, text in texts.items() if row[name] is not None]
        if facts:
            yield f"{title:<7} {', '.join(facts)}"


def _describe_lag(lag: int | None) -> str:
    return f"the {'mouth' if lag > 0 else 'sound'} is {abs(lag)} frames late" if lag else "no lag"


def _describe_clip(row: Row) -> str:
    track = "track  ?" if row["track"] is None else f"track {row['track']:>2}"
    confidence = "sync    ?" if row["sync_confidence"] is None else f"sync {row['sync_confidence']:4.2f}"
    lag, shift = row["lag_frames"] or 0, row["sound_shift"] or 0.0
    return f"{track}  {confidence}  lag {lag:+3d}  sound {shift:+.2f} s  {row['clip_id']}"


def _describe_drop(row: Row, width: int) -> str:
    text = f"{get_code(row)}: {row['reason']}" if row["reason"] else get_code(row)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _format_sums(file: FileSpans, sums: Mapping[str, float], glyphs: Mapping[str, str]) -> Iterator[str]:
    counts = Counter(get_code(row) for row in file.rows)
    width = min(MAX_CODE_LETTERS, max(len(code) for code in (*sums, "in all")))
    for code, seconds in sums.items():
        share = seconds / file.seconds if file.seconds else 0.0
        yield f"  {glyphs[code]} {code:<{width}} {counts[code]:>6} {seconds:>10.2f} s {share:>7.1%}"
    yield f"    {'in all':<{width}} {len(file.rows):>6} {file.seconds:>10.2f} s"
