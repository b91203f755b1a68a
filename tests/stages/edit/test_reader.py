from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stages import synth
from stages.edit import reader
from stages.edit.reader import FrameReader, VideoFacts, decode_timed_frames, probe_video
from stages.edit.timing import compute_median_step
from stages.edit.yuv import YuvConverter
from stages.engine.outcome import Drop, StageError
from stages.media.container import open_media
from stages.synth import ClipSpec
from tests.media import ffmpeg, read_yuv_frames

MANY_PIXELS = 10**7


def read_facts(clip: Path) -> VideoFacts:
    return VideoFacts.from_json(probe_video(clip, MANY_PIXELS).facts)


def list_stamps(clip: Path, facts: VideoFacts) -> list[int]:
    with open_media(clip) as container:
        return [timed.ticks for timed in decode_timed_frames(container, facts)]


def is_same_frame(frame: object, planes: np.ndarray) -> bool:
    return np.array_equal(frame.to_ndarray(), planes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a.mpg", "a.flv", "a.mp4", "a.mkv", "one-keyframe.mp4"])
def test_frames_read_in_any_order_equal_those_read_in_sequence(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards, backwards and forwards again, a few frames at a time; some containers cannot seek."""
    clip = tmp_path / name
    source = clip if name.startswith("a.") else tmp_path / "a.mp4"
    synth.make_clip(source, ClipSpec(seconds=1.2, size=(160, 128)))
    if source != clip:
        ffmpeg("-i", source, "-an", "-c:v", "libx264", "-g", "999", "-bf", "3", clip)
    facts, expected = read_facts(clip), read_yuv_frames(clip)
    monkeypatch.setattr(reader, "BUFFER_BYTES", 7 * 160 * 128 * reader.BYTES_PER_PIXEL)
    n = len(expected)
    assert n == 30
    with FrameReader(clip, facts, list_stamps(clip, facts)) as frames:
        for k in [*range(n), *range(n - 2, -1, -1), *range(1, n), *range(n - 1, 0, -2), 5, 29, 0]:
            assert is_same_frame(frames[k], expected[k]), k
            assert len(frames._buffer) <= 7


@pytest.mark.parametrize(("n_frames", "interval"), [(120, 20), (400, 120)])
def test_frames_of_a_video_without_whole_keyframes_are_read_backwards_as_forwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_frames: int, interval: int
) -> None:
    """A stripe of each picture is refreshed, and a player that starts at a keyframe shows smeared ones."""
    clip, size = tmp_path / "clip.mp4", (96, 176)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    options = {"tune": "zerolatency", "x264-params": "intra-refresh=1:slices=4"}
    with av.open(os.fspath(clip), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = size
        stream.codec_context.gop_size = interval
        for k in range(n_frames):
            x, y = 2 * k % 400, k % 150
            pixels = np.ascontiguousarray(picture[y : y + size[0], x : x + size[1]])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    facts, expected = read_facts(clip), read_yuv_frames(clip)
    monkeypatch.setattr(reader, "BUFFER_BYTES", 7 * size[0] * size[1] * reader.BYTES_PER_PIXEL)
    with FrameReader(clip, facts, list_stamps(clip, facts)) as frames:
        for k in range(n_frames - 1, n_frames - 60, -1):
            assert is_same_frame(frames[k], expected[k]), k


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mpg", "a.ts"])
def test_a_frame_far_inside_a_video_is_read_without_all_that_come_before(tmp_path: Path, name: str) -> None:
    clip, size = tmp_path / name, (96, 80)
    codec = "mpeg2video" if name == "a.mpg" else "libx264"
    pictures = "testsrc2=size=96x80:rate=25:duration=8,hue=H=2.3*n"
    ffmpeg("-f", "lavfi", "-i", pictures, "-c:v", codec, "-g", 12, "-bf", 2, "-q:v", 2, clip)
    facts, expected = read_facts(clip), read_yuv_frames(clip)
    assert (facts.width, facts.height) == size
    n_opened = 0

    class CountingReader(FrameReader):
        def _open(self) -> None:
            nonlocal n_opened
            n_opened += 1
            super()._open()

    with CountingReader(clip, facts, list_stamps(clip, facts)) as frames:
        for k in (199, 120, 100, 99, 80, 20, 0):
            frames._buffer = {}
            assert is_same_frame(frames._read_range(k, k)[k], expected[k]), k
    assert name == "a.ts" or n_opened == 3, "at first, and for the frames of the first two seconds"


def test_facts_describe_the_upright_video(tmp_path: Path) -> None:
    clip, tagged, turned = (tmp_path / f"{name}.mp4" for name in ("clip", "tagged", "turned"))
    synth.make_clip(clip, ClipSpec(seconds=0.4, fps="29.97", size=(192, 128)))
    tags = [word for name in ("space", "_primaries", "_trc") for word in (f"-color{name}", "bt709")]
    ffmpeg("-i", clip, "-an", "-vf", "setsar=4/3", "-c:v", "libx264", *tags, "-color_range", "tv", tagged)
    ffmpeg("-display_rotation", 90, "-i", tagged, "-c", "copy", turned)
    lying, upright = read_facts(tagged), read_facts(turned)
    assert (lying.width, lying.height, lying.pixel_aspect) == (192, 128, Fraction(4, 3))
    assert (upright.width, upright.height, upright.pixel_aspect) == (128, 192, Fraction(3, 4))
    assert upright.colours.matrix == 1 and upright.colours.range == 1
    assert float(upright.fps) == pytest.approx(30000 / 1001, rel=2e-3)
    assert VideoFacts.from_json(upright.to_json()) == upright
    with FrameReader(turned, upright, list_stamps(turned, upright)) as frames:
        assert YuvConverter()(frames[0]).y.shape == (192, 128)


@pytest.mark.parametrize("n_frames", [1, 2])
def test_a_picture_of_an_hour_has_a_rate_and_a_step(tmp_path: Path, n_frames: int) -> None:
    clip = tmp_path / "slide.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=160x128:rate=1/3600", "-frames:v", n_frames, clip)
    facts = read_facts(clip)
    assert facts.seconds == 3600 * n_frames and facts.fps == Fraction(1, 1001)
    step = compute_median_step(list_stamps(clip, facts), facts.time_base, facts.fps)
    assert step * facts.time_base == (3600 if n_frames == 2 else 1001)


def test_a_frame_that_is_never_shown_has_no_stamp(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    synth.make_clip(clip, ClipSpec(seconds=0.8, fps="variable", size=(160, 128)))
    stamps = list_stamps(clip, read_facts(clip))
    assert all(np.diff(stamps) > 0) and stamps[0] == 0


def test_what_cannot_be_edited_is_dropped_with_the_reason(tmp_path: Path) -> None:
    clip, small = tmp_path / "clip.mkv", tmp_path / "small.mkv"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(160, 128)))
    with pytest.raises(Drop, match="are 160x128, expected at most 20000 pixels; --max-pixels allows more"):
        probe_video(clip, 20_000)
    # Two sizes in one stream: from a video conference, or from an attacker.
    ffmpeg("-i", clip, "-an", "-vf", "scale=128:96", "-c:v", "mjpeg", small)
    ffmpeg("-i", clip, "-an", "-c:v", "mjpeg", tmp_path / "large.mkv")
    ffmpeg("-i", tmp_path / "large.mkv", "-c", "copy", "-f", "avi", tmp_path / "large.avi")
    both = tmp_path / "both.mkv"
    (tmp_path / "list.txt").write_text(f"file '{tmp_path}/large.mkv'\nfile '{small}'\n")
    ffmpeg("-f", "concat", "-safe", "0", "-i", tmp_path / "list.txt", "-c", "copy", both)
    with pytest.raises(Drop, match=r"changes from 160x128 to 128x96 at 0\.4\d s"):
        list_stamps(both, read_facts(both))


def test_a_file_that_is_gone_is_one_line(tmp_path: Path) -> None:
    clip, gone = tmp_path / "clip.mp4", r"clip\.mp4: cannot be read \(No such file"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(160, 128)))
    facts = read_facts(clip)
    with FrameReader(clip, facts, list_stamps(clip, facts)) as frames:
        assert frames[5] is not None
        clip.unlink()
        with pytest.raises(StageError, match=gone):
            frames[0]  # the first frames are read from the beginning
    with pytest.raises(StageError, match=gone):
        frames.__enter__()


def test_a_file_that_has_changed_is_an_error(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(160, 128)))
    facts = read_facts(clip)
    stamps = list_stamps(clip, facts)
    with (
        FrameReader(clip, facts, [stamp + 7 for stamp in stamps]) as frames,
        pytest.raises(StageError, match=r"clip\.mp4: has changed while it was read"),
    ):
        frames[0]
