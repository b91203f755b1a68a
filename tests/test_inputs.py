"""docs/inputs.md: every row is made and tried."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from shards.ledger import OK
from stages.clips import ClipsParams, probe_file
from stages.edit.reader import VideoFacts, decode_timed_frames, probe_video
from stages.edit.speech import probe_speech
from stages.engine.outcome import Drop, Outcome
from stages.media.container import open_media
from tests.media import ffmpeg
from tests.stages.media import odd_files, test_presentation
from tests.stages.media.odd_files import Oddities

PAGE = Path(__file__).parent.parent / "docs" / "inputs.md"
MAX_PIXELS = 10**7

ODDITIES = {
    "usual": Oddities("mp4"),
    "ntsc": Oddities("flv", fps="30000/1001"),
    "lost-frames": Oddities("mkv", lost_frames=(10, 24)),
    "late-last": Oddities("wmv", lost_frames=(20, 38)),
    "late-clock": Oddities("mkv", clock_start=1000.0),
    "wrapped-clock": Oddities("ts", clock_start=95443.0),
    "late-sound": Oddities("mp4", audio_delay=0.2),
    "early-sound": Oddities("flv", audio_delay=-0.3),
    "trimmed": Oddities("mp4", trim_start=0.8, keyframe_interval=250),
    "trimmed-end": Oddities("mov", trim_end=0.5, audio_seconds=1.2),
    "turned": Oddities("mp4", degrees=90.0),
    "mirrored": Oddities("mp4", is_mirrored=True),
    "transposed": Oddities("mov", degrees=90.0, is_mirrored=True),
    "anamorphic": Oddities("mkv", pixel_aspect=Fraction(2)),
    "side-stream": Oddities("mkv", subtitle_seconds=9.0),
    "damaged-frame": Oddities("flv", keyframe_interval=1, flipped_bits=1, seed=3),
    "joined-mpeg": Oddities("mpg", is_joined=True),
    "joined-ts": Oddities("ts", is_joined=True),
    "joined-mkv": Oddities("mkv", is_joined=True),
    "turned-by-5": Oddities("mp4", degrees=5.0),
    "changing-size": Oddities("webm", changes_size=True),
    "damaged": Oddities("flv", flipped_bits=30),
    "truncated": Oddities("flv", lost_bytes=0.5),
    "sound-stops": Oddities("mp4", audio_seconds=0.6),
}


def make_fragmented(folder: Path) -> Path:
    path = make_usual(folder)
    ffmpeg("-i", path, "-c", "copy", "-movflags", "frag_keyframe+empty_moov", folder / "fragmented.mp4")
    return folder / "fragmented.mp4"


def join_later(folder: Path, seconds: float) -> Path:
    """A transport stream, and itself so much later."""
    first = odd_files.make_odd_file(folder, Oddities("ts"))
    assert first is not None
    second = folder / "later.ts"
    ffmpeg("-i", first, "-c", "copy", "-output_ts_offset", seconds, second)
    (folder / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    return folder / "joined.ts"


def make_jumping_clock(folder: Path) -> Path:
    return join_later(folder, 3600)


def make_overlapping_clock(folder: Path) -> Path:
    return join_later(folder, odd_files.SECONDS - 0.06)


def make_film(folder: Path, name: str, pictures: str, sound_seconds: float) -> Path:
    sound = f"aevalsrc=sin(t*2000):duration={sound_seconds}"
    ffmpeg("-f", "lavfi", "-i", pictures, "-f", "lavfi", "-i", sound, "-fps_mode", "passthrough",
           "-c:v", "libx264", "-c:a", "aac", folder / name)  # fmt: skip
    return folder / name


def make_hole(folder: Path) -> Path:
    pictures = "testsrc2=size=160x128:rate=25:duration=5,select=not(between(n\\,20\\,95))"
    return make_film(folder, "hole.mp4", pictures, 5)


def make_photo_film(folder: Path) -> Path:
    pictures = "testsrc2=size=160x128:rate=25:duration=1,tpad=stop_mode=clone:stop_duration=3"
    return make_film(folder, "photo.mp4", pictures, 4)


def make_header_only(folder: Path) -> Path:
    path = odd_files.make_odd_file(folder, Oddities("mkv"))
    assert path is not None
    path.write_bytes(path.read_bytes()[:1200])
    return path


def make_one_packet(folder: Path) -> Path:
    path = odd_files.make_odd_file(folder, Oddities("mpg"))
    assert path is not None
    path.write_bytes(path.read_bytes()[:800])
    return path


def make_one_frame(folder: Path) -> Path:
    return make_film(folder, "short.mp4", "testsrc2=size=160x128:rate=25:duration=0.04", 0.04)


def make_no_sound(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-an", "-c", "copy", folder / "silent.mp4")
    return folder / "silent.mp4"


def make_sound_only(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-vn", "-c", "copy", folder / "sound.mp4")
    return folder / "sound.mp4"


def make_photo(folder: Path) -> Path:
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x128", "-frames:v", 1, folder / "photo.png")
    return folder / "photo.png"


def make_cover(folder: Path) -> Path:
    sound, photo, song = make_sound_only(folder), make_photo(folder), folder / "song.mp4"
    ffmpeg("-i", sound, "-i", photo, "-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", "attached_pic",
           song)  # fmt: skip
    return song


def make_text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("no video " * 500)
    return folder / "text.mp4"


def make_playlist(folder: Path) -> Path:
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{make_usual(folder)}\n")
    return folder / "list.mp4"


def make_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def make_avi(folder: Path) -> Path:
    make_film(folder, "film.mp4", "testsrc2=size=160x128:rate=25:duration=1.6,hue=H=2.3*n", 1.6)
    ffmpeg("-i", folder / "film.mp4", "-c:v", "copy", "-c:a", "libmp3lame", folder / "film.avi")
    return folder / "film.avi"


def make_truncated_avi(folder: Path) -> Path:
    path = make_avi(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def make_late_avi(folder: Path) -> Path:
    """The first picture lasts two ticks, as ffmpeg writes it beside the padding of MP3."""
    pictures = "testsrc2=size=160x128:rate=25:duration=1.6,hue=H=2.3*n"
    ffmpeg("-f", "lavfi", "-i", pictures, "-f", "lavfi", "-i", "aevalsrc=sin(t*2000):duration=1.6",
           "-c:v", "libx264", "-bf", 0, "-c:a", "libmp3lame", folder / "late.avi")  # fmt: skip
    return folder / "late.avi"


def write_edit_lists(path: Path, *edits: list[tuple[float, float]]) -> None:
    """Give each track of a mov parts to play, as pairs (seconds, start in its media; -1: nothing)."""
    data = path.read_bytes()
    begin = data.index(b"moov") - 4
    assert begin + int.from_bytes(data[begin : begin + 4], "big") == len(data), "the index is last"

    def read_boxes(body: bytes) -> Iterator[tuple[bytes, bytes]]:
        while body:
            size = int.from_bytes(body[:4], "big")
            yield body[4:8], body[8:size]
            body = body[size:]

    def make_box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    def make_list(parts: list[tuple[float, float]], track: bytes, per_second: int) -> bytes:
        at = track.index(b"mdhd") + 16
        ticks = int.from_bytes(track[at : at + 4], "big")
        rows = [(round(n * per_second), round(start * ticks) if start >= 0 else -1) for n, start in parts]
        body = b"".join(struct.pack(">iii", *row, 1 << 16) for row in rows)
        return make_box(b"edts", make_box(b"elst", struct.pack(">II", 0, len(rows)) + body))

    index, lists, per_second = b"", iter(edits), 0
    for kind, body in read_boxes(data[begin + 8 :]):
        if kind == b"mvhd":
            per_second = int.from_bytes(body[12:16], "big")
        if kind == b"trak":
            boxes = [make_box(*box) for box in read_boxes(body) if box[0] != b"edts"]
            body = boxes[0] + make_list(next(lists), body, per_second) + b"".join(boxes[1:])
        index += make_box(kind, body)
    path.write_bytes(data[:begin] + make_box(b"moov", index))


def make_mov(folder: Path) -> Path:
    path = folder / "edits.mov"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x128:rate=25:duration=1.6,hue=H=2.3*n",
           "-f", "lavfi", "-i", "aevalsrc=sin(2*PI*t*(300+400*t)):duration=1.6",
           "-c:v", "libx264", "-g", 10, "-c:a", "pcm_s16le", path)  # fmt: skip
    return path


def make_cut_middle(folder: Path) -> Path:
    path = make_mov(folder)
    write_edit_lists(path, *[[(0.4, 0.0), (0.6, 1.0)]] * 2)
    return path


def make_late_part(folder: Path) -> Path:
    path = make_mov(folder)
    write_edit_lists(path, [(0.3, -1), (1.2, 0.2)], [(1.6, 0.0)])
    return path


def make_flv(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-c", "copy", folder / "reordered.flv")
    return folder / "reordered.flv"


def make_negative_times(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-c", "copy", "-output_ts_offset", -0.7,
           "-avoid_negative_ts", "disabled", folder / "negative.mkv")  # fmt: skip
    return folder / "negative.mkv"


def make_coded_crop(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-c", "copy", "-bsf:v", "h264_metadata=crop_left=16:crop_top=8",
           folder / "crop.mp4")  # fmt: skip
    return folder / "crop.mp4"


def make_ycgco(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-c", "copy", "-bsf:v", "h264_metadata=matrix_coefficients=8",
           folder / "ycgco.mp4")  # fmt: skip
    return folder / "ycgco.mp4"


def make_mxf(folder: Path) -> Path:
    make_film(folder, "film.mp4", "testsrc2=size=160x128:rate=25:duration=1.6,hue=H=2.3*n", 1.6)
    ffmpeg("-i", folder / "film.mp4", "-c:v", "libx264", "-bf", 2, "-c:a", "pcm_s16le", "-ar", 48000,
           folder / "film.mxf")  # fmt: skip
    return folder / "film.mxf"


def make_ogg(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-c:v", "libtheora", "-b:v", "2M", "-c:a", "libvorbis",
           folder / "vorbis.ogv")  # fmt: skip
    return folder / "vorbis.ogv"


def make_surround(folder: Path) -> Path:
    ffmpeg("-i", make_usual(folder), "-c:v", "copy", "-af", "pan=7.1|FC=c0|FL=0.2*c0|FR=0.2*c0",
           "-c:a", "flac", folder / "surround.mkv")  # fmt: skip
    return folder / "surround.mkv"


def make_usual(folder: Path) -> Path:
    path = odd_files.make_odd_file(folder, Oddities("mp4"))
    assert path is not None
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "fragmented": make_fragmented,
    "jumping-clock": make_jumping_clock,
    "overlapping-clock": make_overlapping_clock,
    "hole": make_hole,
    "photo-film": make_photo_film,
    "header-only": make_header_only,
    "one-packet": make_one_packet,
    "short": make_one_frame,
    "no-sound": make_no_sound,
    "sound-only": make_sound_only,
    "photo": make_photo,
    "cover": make_cover,
    "text": make_text,
    "playlist": make_playlist,
    "pipe": make_pipe,
    "avi": make_avi,
    "late-avi": make_late_avi,
    "truncated-avi": make_truncated_avi,
    "reordered": make_flv,
    "negative-times": make_negative_times,
    "coded-crop": make_coded_crop,
    "ycgco": make_ycgco,
    "mxf": make_mxf,
    "ogg": make_ogg,
    "surround": make_surround,
    "cut-middle": make_cut_middle,
    "late-part": make_late_part,
}


def read_rows() -> dict[str, tuple[str, str, str]]:
    """The outcomes that the page promises for each file."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return {name: (dataset, video, audio) for name, _, dataset, video, audio in cells}


def probe(work: Callable[[], Outcome]) -> Outcome:
    try:
        return work()
    except Drop as drop:
        return Outcome.from_drop(drop)


def decode_for_edit(path: Path) -> Outcome:
    """As the edit does: the facts, then every frame."""
    outcome = probe_video(path, MAX_PIXELS)
    with open_media(path) as container:
        for _ in decode_timed_frames(container, VideoFacts.from_json(outcome.facts)):
            pass
    return outcome


def describe(outcome: Outcome) -> str:
    if outcome.status != OK:
        assert outcome.reason and "\n" not in outcome.reason and len(outcome.reason) < 200
        return outcome.code
    return "shown, noted" if outcome.notes else "shown"


def test_the_page_has_a_row_for_each_odd_file() -> None:
    assert set(read_rows()) == {*ODDITIES, *MAKERS}


@pytest.mark.parametrize("name", [*ODDITIES, *MAKERS])
def test_an_odd_file_has_the_outcome_that_the_page_promises(tmp_path: Path, name: str) -> None:
    if name in ODDITIES:
        made = odd_files.make_odd_file(tmp_path, ODDITIES[name])
        assert made is not None
        path = made
    else:
        path = MAKERS[name](tmp_path)
    outcomes = (
        probe(lambda: probe_file(path, "folder", ClipsParams())),
        probe(lambda: decode_for_edit(path)),
        probe(lambda: probe_speech(path)),
    )
    assert tuple(map(describe, outcomes)) == read_rows()[name]
    if outcomes[0].status == OK:
        test_presentation.compare_with_ffmpeg(path, outcomes[0])
