from __future__ import annotations

import math
import os
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import psutil
import pytest

from stages import clips, synth
from stages.engine.outcome import Drop
from stages.media.container import find_video_stream, open_media
from stages.media.presentation import TIME_TOLERANCE, StreamSpan, check_matrix
from stages.media.video import RgbConverter, count_frames_at_25fps, read_frames_at_25fps
from stages.synth import ClipSpec, Truth
from tests.barcode import read_counter
from tests.waiting import GUARD_SECONDS

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
STAMP_S = 0.001  # FLV and MKV stamp whole milliseconds


def ffmpeg(*args: object) -> None:
    command = [FFMPEG, "-nostdin", "-loglevel", "error", "-y", *map(str, args)]
    subprocess.run(command, check=True, timeout=GUARD_SECONDS)


def probe_clip(clip: Path) -> dict[str, float]:
    outcome = clips.probe_file(clip, "folder", clips.ClipsParams())
    return outcome.facts


@pytest.mark.parametrize(
    ("container", "fps"),
    [
        ("mpg", "25"),
        ("mpg", "29.97"),
        ("mpg", "50"),
        ("flv", "29.97"),
        ("flv", "12.5"),
        ("flv", "variable"),
        ("mp4", "variable"),
        ("mp4", "50"),
        ("mkv", "variable"),
        ("mkv", "24000/1001"),
    ],
)
def test_each_instant_shows_the_frame_that_a_player_shows(tmp_path: Path, container: str, fps: str) -> None:
    clip = tmp_path / f"clip.{container}"
    truth = synth.make_clip(clip, ClipSpec(seconds=1.2, fps=fps, size=(240, 192)))
    facts = probe_clip(clip)
    assert facts["video_start"] == pytest.approx(truth.times_s[0], abs=1e-5)
    frames = list(read_frames_at_25fps(clip, facts["video_start"], int(facts["frames"])))
    times = truth.times_s - truth.times_s[0]
    # T: every instant at which the clip still shows a frame, and no other.
    usual_step = float(np.median(np.diff(times)))
    assert len(frames) == pytest.approx((times[-1] + usual_step) * 25, abs=1)
    for k, frame in enumerate(frames):
        index = read_counter(frame.image, truth.frames[frame.source].corners_px)
        assert index == frame.source, f"instant {k} declares frame {frame.source}, but shows {index}"
        assert frame.seconds == pytest.approx(times[frame.source], abs=1e-5)
        assert frame.seconds <= k / 25 + float(TIME_TOLERANCE) + 1e-6
        following = times[frame.source + 1 :]
        assert not len(following) or following[0] > k / 25 + float(TIME_TOLERANCE) - 1e-6
        assert frame.image.shape == (192, 240, 3) and frame.image.flags.c_contiguous


def test_a_source_frame_shown_twice_is_one_object(tmp_path: Path) -> None:
    clip = tmp_path / "clip.flv"
    truth = synth.make_clip(clip, ClipSpec(seconds=0.8, fps="12.5", size=(160, 128)))
    frames = list(read_frames_at_25fps(clip, truth.times_s[0], 20))
    assert [frame.source for frame in frames] == [k // 2 for k in range(20)]
    assert all(frames[k] is frames[k + 1] for k in range(0, 20, 2))


def test_the_number_of_frames_is_exactly_the_requested_one(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(160, 128)))
    assert [frame.source for frame in read_frames_at_25fps(clip, 0.0, 14)] == [*range(10), 9, 9, 9, 9]
    assert [frame.source for frame in read_frames_at_25fps(clip, 0.0, 3)] == [0, 1, 2]
    assert [frame.source for frame in read_frames_at_25fps(clip, -0.08, 5)] == [0, 0, 0, 1, 2]


def test_rounding_adds_no_extra_frame_to_a_span() -> None:
    def count_frames(seconds: Fraction) -> int:
        return count_frames_at_25fps(StreamSpan(Fraction(1, 3), Fraction(1, 3) + seconds, 9))

    assert [count_frames(Fraction(n, 25)) for n in (1, 10, 75)] == [1, 10, 75]
    assert count_frames(3 + TIME_TOLERANCE) == count_frames(3 - TIME_TOLERANCE) == 75
    assert count_frames(Fraction(3001, 1000)) == 76
    assert count_frames(60 * Fraction(1001, 30000)) == math.ceil(60 * 1001 / 30000 * 25)


def write_video(path: Path, pictures: Iterator[np.ndarray], codec: str, **options: str) -> Path:
    with av.open(os.fspath(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        for k, pixels in enumerate(pictures):
            if k == 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """A frame of 640 x 480 is 0.9 MB; 300 of them would be 260."""
    grey = np.full((480, 640, 3), 120, np.uint8)
    clip = write_video(tmp_path / "long.mkv", (grey for _ in range(300)), "mpeg4", g="50")
    process = psutil.Process()
    n_frames, resident = 0, []
    tracemalloc.start()
    try:
        for _ in read_frames_at_25fps(clip, 0.0, 300):
            n_frames += 1
            if n_frames % 50 == 0:
                resident.append(process.memory_info().rss / 2**20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_frames == 300
    assert peak < 12 * 2**20
    assert resident[-1] - resident[0] < 40


def damage_packets(clip: Path, target: Path, change: Callable[[int, bytes], bytes]) -> Path:
    """Copy a clip's video packets, changed by ``change(index, data)``, with their time stamps."""
    with av.open(os.fspath(clip)) as source, av.open(os.fspath(target), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for k, packet in enumerate(source.demux(stream)):
            if packet.size:
                changed = av.Packet(change(k, bytes(packet)))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.duration = packet.is_keyframe, packet.duration
                changed.stream = copy
                out.mux(changed)
    return target


def test_a_damaged_packet_loses_its_own_frames_and_moves_no_other(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    truth = synth.make_clip(clip, ClipSpec(seconds=1.2, size=(240, 192)))
    rng = np.random.default_rng(0)
    intra = tmp_path / "intra.mkv"
    ffmpeg("-i", clip, "-an", "-c:v", "mjpeg", "-q:v", "2", intra)  # each packet stands alone

    def replace_some(k: int, data: bytes) -> bytes:
        return rng.bytes(len(data)) if 10 <= k < 13 else data

    damaged = damage_packets(intra, tmp_path / "damaged.mkv", replace_some)
    frames = list(read_frames_at_25fps(damaged, 0.0, 30))
    assert len(frames) == 30
    for k, frame in enumerate(frames):
        expected = 9 if 10 <= k < 13 else k
        assert read_counter(frame.image, truth.frames[expected].corners_px) == expected
        assert frame.seconds == pytest.approx(expected / 25, abs=STAMP_S)


def test_a_video_of_which_nothing_can_be_decoded_is_dropped(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(160, 128)))
    intra = tmp_path / "intra.mkv"
    ffmpeg("-i", clip, "-an", "-c:v", "mjpeg", intra)
    damaged = damage_packets(intra, tmp_path / "damaged.mkv", lambda _, data: bytes(len(data)))
    with pytest.raises(Drop, match="none of its video frames can be decoded") as caught:
        list(read_frames_at_25fps(damaged, 0.0, 10))
    assert caught.value.code == "no_video"


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotated_video_is_read_upright(tmp_path: Path, degrees: int) -> None:
    """As in ffmpeg, which rotates frames by the display matrix when it decodes."""
    clip, turned = tmp_path / "clip.mp4", tmp_path / "turned.mp4"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(192, 128)))
    ffmpeg("-display_rotation", degrees, "-i", clip, "-c", "copy", turned)
    raw = tmp_path / "raw.rgb"
    ffmpeg("-i", turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", raw)
    shape = (128, 192, 3) if degrees == 180 else (192, 128, 3)
    expected = np.frombuffer(raw.read_bytes(), np.uint8).reshape(-1, *shape)
    frames = [frame.image for frame in read_frames_at_25fps(turned, 0.0, 10)]
    assert len(expected) == 10
    assert all(frame.flags.c_contiguous for frame in frames)
    # Another FFmpeg rounds YUV to RGB differently; a wrong rotation differs by 50 levels.
    assert np.abs(np.stack(frames).astype(int) - expected).mean() < 1


def test_every_colour_matrix_is_converted_or_refused_by_its_name() -> None:
    """Also those of containers, which FFmpeg passes on as they are."""
    pixels, unspecified = np.full((16, 16, 3), (180, 90, 60), np.uint8), 2
    for matrix in range(30):
        for pix_fmt in ("yuv420p", "yuv444p10le", "gbrp"):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.colorspace = matrix
            if matrix in (8, *range(10, 18)) and pix_fmt != "gbrp":
                with pytest.raises(Drop, match=rf"colour matrix is {matrix} \(.*\), expected one of 0, 1, 2"):
                    check_matrix(frame)
                continue
            check_matrix(frame)
            image = RgbConverter()(frame)
            if matrix in (3, 18, 29) or pix_fmt == "gbrp":
                assert np.abs(image[8, 8].astype(int) - pixels[0, 0]).max() <= 3, (matrix, pix_fmt)
                assert pix_fmt == "gbrp" or frame.colorspace == unspecified


def test_a_cover_picture_is_not_video(tmp_path: Path) -> None:
    cover = tmp_path / "cover.png"
    song = tmp_path / "song.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64", "-frames:v", 1, cover)
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.5", "-i", cover, "-map", 0, "-map", 1, "-c:a", "aac",
           "-c:v", "png", "-disposition:v:0", "attached_pic", song)  # fmt: skip
    with open_media(song) as container, pytest.raises(Drop) as caught:
        find_video_stream(container)
    assert caught.value.code == "no_video"


def test_a_file_that_is_not_media_is_dropped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video " * 500)
    with pytest.raises(Drop, match="cannot be opened as video") as caught:
        open_media(tmp_path / "a.mp4")
    assert caught.value.code == "not_media"


def test_real_grid_frames_are_read_one_to_one(grid: Path) -> None:
    clip = sorted((grid / "s2").glob("*.mpg"))[0]
    facts = probe_clip(clip)
    assert (facts["frames"], facts["source_frames"], facts["video_seconds"]) == (75, 75, 3.0)
    sources = [frame.source for frame in read_frames_at_25fps(clip, facts["video_start"], 75)]
    assert sources == list(range(75))


def test_real_crema_d_frames_keep_their_times(crema_d: Path) -> None:
    clip = sorted((crema_d / "VideoFlash").glob("*.flv"))[0]
    facts = probe_clip(clip)
    with av.open(os.fspath(clip)) as container:
        times = np.array([float(frame.pts * frame.time_base) for frame in container.decode(video=0)])
    times -= times[0]
    frames = list(read_frames_at_25fps(clip, facts["video_start"], int(facts["frames"])))
    for k, frame in enumerate(frames):
        assert frame.source == np.flatnonzero(times <= float(Fraction(k, 25) + TIME_TOLERANCE))[-1]
    assert len(frames) / 25 == pytest.approx(times[-1] + 1001 / 30000, abs=0.04)


def test_truth_and_probe_agree_on_a_synthetic_clip(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mpg"
    synth.make_clip(clip, ClipSpec(seconds=0.8, fps="29.97", size=(160, 128)))
    facts, truth = probe_clip(clip), Truth.load(clip)
    assert facts["source_frames"] == len(truth.frames)
    assert facts["fps"] == pytest.approx(30000 / 1001, rel=1e-3)


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("short") / "clip.mp4"
    synth.make_clip(path, ClipSpec(seconds=2.0, fps="25", size=(160, 128)))
    return path


@pytest.mark.parametrize("container", ["mp4", "mkv", "flv", "mpg", "ts", "avi"])
def test_a_span_far_inside_a_video_shows_what_the_whole_video_shows_there(
    tmp_path: Path, short_clip: Path, container: str
) -> None:
    long = tmp_path / f"long.{container}"
    codec = {"mpg": "mpeg2video", "flv": "flv1", "avi": "mpeg4"}.get(container, "libx264")
    rate = ["-r", "25" if container == "mpg" else "30000/1001"]
    ffmpeg("-stream_loop", 13, "-i", short_clip, *rate, "-c:v", codec, "-q:v", 3, "-g", 40, long)
    start = probe_clip(long)["video_start"]
    whole = list(read_frames_at_25fps(long, start, 690))
    for first in (20, 333, 640):
        span = list(read_frames_at_25fps(long, start + first / 25, 50))
        for k, frame in enumerate(span):
            np.testing.assert_array_equal(frame.image, whole[first + k].image, err_msg=f"{first} + {k}")
            assert frame.seconds + first / 25 == pytest.approx(whole[first + k].seconds, abs=1e-6)
        if container != "avi":  # it stores no times: they are counted from its first frame on
            assert span[-1].source < 350, "what is far before the span was not decoded"
