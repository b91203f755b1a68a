from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import psutil
import pytest

from sampler.rollout import CropFrame
from shards import atomic
from shards.atomic import WriteError
from stages import synth
from stages.align import AlignParams, align_clip
from stages.clips import ClipsParams, probe_file
from stages.edit import run as edit_module
from stages.edit.face_check import MisfitError
from stages.edit.run import EditParams, edit
from stages.edit.writer import VideoWriter
from stages.edit.yuv import YuvImage
from stages.engine.outcome import StageError
from stages.landmarks import LandmarksParams, find_points
from stages.media import crops, mark
from stages.media.audio import mix_to_mono, read_channels
from stages.media.faces import FaceFinder
from stages.media.video import read_frames_at_25fps
from stages.mels import MelsParams, compute_mel_rows, count_samples
from stages.speech import SpeechParams, compute_speech_rows, load_encoder
from stages.synth import ClipSpec, Truth
from tests.barcode import read_counter
from tests.media import (
    ffmpeg,
    measure_video_seconds,
    read_audio,
    read_audio_packets,
    read_rgb_frames,
    read_stamps,
    read_yuv_frames,
)
from tests.waiting import GUARD_SECONDS, is_gone, wait_until

ROOT = Path(__file__).parents[3]
# The painters below fit no face; those that look at the check say so.
QUICK = EditParams(preset="ultrafast", crf=12, any_face=True)
CHECKED = replace(QUICK, any_face=False)
SMALL = (240, 192)
COLOURS = 8  # green levels


@dataclass
class BoxPainter:
    """A MouthGenerator that paints boxes blue, green by the frame's index; it stores its input."""

    lag: int = 0  # frames that it reads beyond the one it yields
    size: int = 128
    inputs: list[CropFrame] = field(default_factory=list)
    mels: list[np.ndarray] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    speech: list[np.ndarray | None] = field(default_factory=list)
    takes_speech: bool = False
    flat_pauses: bool = False

    def __call__(
        self, frames: Iterator[CropFrame], mels: np.ndarray, offset: int, speech: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        self.mels.append(mels)
        self.speech.append(speech)
        self.offsets.append(offset)
        pending: list[CropFrame] = []
        k = 0
        for frame in frames:
            self.inputs.append(frame)
            pending.append(frame)
            if len(pending) > self.lag:
                yield self.paint(pending.pop(0), k)
                k += 1
        for frame in pending:
            yield self.paint(frame, k)
            k += 1

    def select_box(self, box: np.ndarray) -> np.ndarray:
        return box

    def paint(self, frame: CropFrame, k: int) -> np.ndarray:
        x0, y0, x1, y1 = frame.box
        pixels = frame.pixels.copy()
        pixels[y0:y1, x0:x1] = (0, 28 * (k % COLOURS), 255)
        return pixels


class Unchanged(BoxPainter):
    def paint(self, frame: CropFrame, k: int) -> np.ndarray:
        return frame.pixels


def find_blue(image: np.ndarray) -> np.ndarray:
    """Where the generator's blue is visible: (H, W)."""
    red, _, blue = np.moveaxis(image.astype(int), -1, 0)
    return (blue > 200) & (blue - red > 150)


def read_index(image: np.ndarray) -> int | None:
    """The frame's index, modulo COLOURS, in the generator's green level."""
    blue = find_blue(image)
    return round(float(np.median(image[..., 1][blue])) / 28) if blue.sum() > 100 else None


def find_nearest_instant(seconds: float, n_instants: int) -> int:
    return min(int(np.ceil(seconds * 25 - 0.5 - 1e-9)), n_instants - 1)


@pytest.fixture
def speech(tmp_path: Path) -> Callable[[float], Path]:
    """Synthetic speech of some length."""

    def make(seconds: float) -> Path:
        clip, path = tmp_path / "speech.mkv", tmp_path / f"speech-{seconds}.wav"
        synth.make_clip(clip, ClipSpec(seconds=max(seconds, 0.5), size=(128, 128)))
        ffmpeg("-i", clip, "-vn", "-t", seconds, path)
        clip.unlink()
        Truth.path_for(clip).unlink()
        return path

    return make


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[YuvImage]:
    """The images that are passed to the encoder."""
    images: list[YuvImage] = []

    class RecordingWriter(VideoWriter):
        def write(self, image: YuvImage, at: int, ticks: int) -> None:
            images.append(image)
            super().write(image, at, ticks)

    monkeypatch.setattr(edit_module, "VideoWriter", RecordingWriter)
    return images


# --- frames and their times -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "fps", "suffix"),
    [
        ("mp4", "25", ".mp4"),
        ("mpg", "29.97", ".mp4"),
        ("mp4", "50", ".mkv"),
        ("mkv", "variable", ".mp4"),
        ("flv", "12.5", ".mov"),
    ],
)
def test_each_frame_keeps_its_time_and_shows_the_crop_of_the_nearest_instant(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], source: str, fps: str, suffix: str
) -> None:
    clip, out = tmp_path / f"clip.{source}", tmp_path / f"out{suffix}"
    truth = synth.make_clip(clip, ClipSpec(seconds=1.2, fps=fps, size=SMALL))
    times = truth.times_s - truth.times_s[0]
    generator = BoxPainter(lag=9)
    edited = edit(clip, speech(2.0), out, generator, model=landmarker, params=QUICK)
    images = read_rgb_frames(out)
    assert len(images) == edited.frames == edited.redrawn == len(times)
    assert read_stamps(out) - read_stamps(out)[0] == pytest.approx(times, abs=1e-4)
    n_instants = len(generator.inputs)
    assert n_instants == len(generator.mels[0]) / 2 == pytest.approx(edited.seconds * 25, abs=1)
    for k, image in enumerate(images):
        assert read_counter(image, truth.frames[k].corners_px) == k
        instant = find_nearest_instant(times[k], n_instants)
        assert read_index(image) == instant % COLOURS, k
        assert abs(times[k] - instant / 25) <= 0.020 + 1e-6, "the mouth is at most half an instant off"
    # The network's input at an instant is a crop of the frame that is shown then.
    on_screen = [int(np.flatnonzero(times <= k / 25 + 5e-4)[-1]) for k in range(n_instants)]
    for k in range(1, n_instants):
        same = np.array_equal(generator.inputs[k].pixels, generator.inputs[k - 1].pixels)
        assert same == (on_screen[k] == on_screen[k - 1])


class Spot(BoxPainter):
    """Paints the same place of every crop, wherever the box is."""

    def paint(self, frame: CropFrame, k: int) -> np.ndarray:
        pixels = frame.pixels.copy()
        pixels[88:100, 52:76] = (0, 0, 255)
        return pixels


def test_the_painted_spot_moves_with_the_face_between_instants(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    """At 50 fps half of the frames are at no instant. They too have the matrix of their own time: the face
    moves two pixels to the left with each frame, and the spot with it."""
    clip, panned, out = (tmp_path / f"{name}.mp4" for name in ("clip", "panned", "out"))
    truth = synth.make_clip(clip, ClipSpec(seconds=1.0, fps="50", size=(480, 384), clip=3))
    ffmpeg("-i", clip, "-an", "-vf", "crop=380:384:x='2*n':y=0", "-crf", 8, panned)
    edit(panned, speech(1.0), out, Spot(), model=landmarker, params=QUICK)
    distance = []
    for k, (image, frame) in enumerate(zip(read_rgb_frames(out), truth.frames, strict=True)):
        rows, columns = np.nonzero(find_blue(image))
        brow = np.mean(frame.corners_px, axis=0) - (2 * k, 0)
        distance.append(np.array([columns.mean(), rows.mean()]) - brow)
    assert np.abs(np.diff(distance, axis=0)).max() < 0.8  # 2 if two frames shared a matrix


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_the_mouth_goes_on_speaking_while_a_picture_stands(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], suffix: str
) -> None:
    """One picture a second; an AVI of such counts whole seconds."""
    clip, slides, out = tmp_path / "clip.mp4", tmp_path / f"slides.{suffix}", tmp_path / "out.mp4"
    truth = synth.make_clip(clip, ClipSpec(seconds=2.0, size=SMALL))
    each_second = ("-vf", "select=not(mod(n\\,25)),setpts=N/TB", "-r", 1)
    ffmpeg("-i", clip, "-an", *each_second, "-c:v", "mpeg4", "-q:v", 2, slides)
    edited = edit(slides, speech(2.0), out, BoxPainter(), model=landmarker, params=QUICK)
    images = read_rgb_frames(out)
    assert len(images) == edited.frames == edited.redrawn == 50
    assert read_stamps(out) == pytest.approx(np.arange(50) / 25, abs=1e-3)
    for k, image in enumerate(images):
        assert read_counter(image, truth.frames[k // 25 * 25].corners_px) == k // 25 * 25
        assert read_index(image) == k % COLOURS


# --- pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "at"), [("30", 13), ("30", 14), ("30", 15), ("30", 16), ("50", 21), ("50", 22)]
)
def test_no_frame_beside_a_zoom_is_painted_where_the_face_was_on_the_other_side(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], fps: str, at: int
) -> None:
    """Whether an instant shows the first frame after it or not."""
    clip, zoomed, out = (tmp_path / f"{name}.mp4" for name in ("clip", "zoomed", "out"))
    truth = synth.make_clip(clip, ClipSpec(seconds=1.0, fps=fps, size=(480, 384), clip=3))
    graph = (
        f"[0:v]split[x][y];[x]trim=end_frame={at}[a];"
        f"[y]trim=start_frame={at},setpts=PTS-STARTPTS,scale=672:538,"
        "crop=480:384:48:77[b];[a][b]concat=n=2:v=1[v]"
    )
    ffmpeg("-i", clip, "-an", "-filter_complex", graph, "-map", "[v]", "-crf", 8, zoomed)
    edited = edit(zoomed, speech(1.0), out, Spot(), model=landmarker, params=QUICK)
    assert edited.redrawn == len(truth.frames)
    distance = []
    for k, (image, frame) in enumerate(zip(read_rgb_frames(out), truth.frames, strict=True)):
        rows, columns = np.nonzero(find_blue(image))
        zoom, origin = (1.4, (48, 77)) if k >= at else (1, (0, 0))
        brow = zoom * np.mean(frame.corners_px, axis=0) - origin
        distance.append((np.array([columns.mean(), rows.mean()]) - brow) / zoom)
    assert np.abs(np.diff(distance, axis=0)).max() < 3  # some 50 px from the other side's place


@dataclass(frozen=True)
class DatasetClip:
    """The results of the dataset's stages for a clip."""

    matrices: np.ndarray
    boxes: np.ndarray
    crops: list[np.ndarray]
    mels: np.ndarray


def build_dataset_clip(clip: Path, model: Path) -> DatasetClip:
    facts: dict[str, Any] = probe_file(clip, "folder", ClipsParams()).facts
    start, n_frames = facts["video_start"], int(facts["frames"])
    frames = list(read_frames_at_25fps(clip, start, n_frames))
    with FaceFinder(model, 4) as finder:
        points = find_points(frames, finder, LandmarksParams()).points
    matrices, boxes = align_clip(points, AlignParams())
    supersample = crops.compute_supersample(matrices, 16)
    images = list(crops.crop_frames(iter(frames), matrices, 128, supersample))
    sound, _ = mix_to_mono(read_channels(clip, facts["audio_start"], count_samples(n_frames)))
    return DatasetClip(matrices, boxes, images, compute_mel_rows(sound, MelsParams()))


def test_real_clips_are_cropped_as_for_a_dataset_and_nothing_outside_the_box_changes(
    tmp_path: Path, landmarker: Path, grid: Path, written: list[YuvImage]
) -> None:
    clip = sorted((grid / "s2").glob("*.mpg"))[0]
    expected, generator = build_dataset_clip(clip, landmarker), BoxPainter(lag=64)
    edited = edit(
        clip, clip, tmp_path / "out.mp4", generator, model=landmarker, params=replace(QUICK, fit="hold")
    )
    assert edited.frames == edited.redrawn == 75 and not edited.passed_through
    assert np.array_equal([frame.box for frame in generator.inputs], expected.boxes)
    assert np.array_equal([frame.pixels for frame in generator.inputs], expected.crops)
    assert generator.mels[0] == pytest.approx(expected.mels, abs=1e-4)  # BLAS's sums vary with its threads
    y, x = np.mgrid[:288, :360]
    for k, planes in enumerate(read_yuv_frames(clip)):
        u, v = (
            np.einsum("ij,jhw->ihw", expected.matrices[k, :, :2], np.stack([x, y]))
            + expected.matrices[k, :, 2, None, None]
        )
        x0, y0, x1, y1 = expected.boxes[k] - 0.5
        # Except for pixels on the border itself, which depend on the last bits of the matrices.
        outside = (u < x0 - 1e-3) | (u > x1 + 1e-3) | (v < y0 - 1e-3) | (v > y1 + 1e-3)
        assert 0.05 < 1 - outside.mean() < 0.2
        assert np.array_equal(written[k].y[outside], planes[:288][outside])
        chroma = planes[288:].reshape(2, 144, 180)
        touched = outside.reshape(144, 2, 180, 2).any(axis=(1, 3))
        for plane, before in zip((written[k].u, written[k].v), chroma, strict=True):
            assert np.array_equal(plane[touched], before[touched])
        in_face = (np.abs(u - (x0 + x1) / 2) < (x1 - x0) / 3) & (v > y0) & (v < y1 - (y1 - y0) / 3)
        assert (written[k].y != planes[:288])[in_face].mean() > 0.9


def test_a_network_that_takes_speech_features_gets_those_of_a_dataset(
    tmp_path: Path, landmarker: Path, speech_model: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    synth.make_clip(clip, ClipSpec(seconds=1.2, size=SMALL))
    params = replace(QUICK, speech=SpeechParams("whisper-tiny.en", str(speech_model)))
    plain, generator = BoxPainter(), BoxPainter(takes_speech=True)
    edit(clip, clip, tmp_path / "plain.mp4", plain, model=landmarker, params=params)
    assert plain.speech == [None], "not computed for a network that takes mels alone"
    with pytest.raises(StageError, match=r"takes speech features; speech.encoder is 'none'"):
        edit(clip, clip, tmp_path / "out.mp4", generator, model=landmarker, params=QUICK)
    edit(clip, clip, tmp_path / "out.mp4", generator, model=landmarker, params=params)
    sound, _ = mix_to_mono(read_channels(clip, 0.0, count_samples(len(generator.mels[0]) // 2)))
    expected = compute_speech_rows(sound, load_encoder(speech_model))
    assert len(expected) == len(generator.mels[0])
    np.testing.assert_array_equal(generator.speech, [expected])


def test_a_network_hears_the_mean_of_a_pause_within_it(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, sound, out = tmp_path / "clip.mp4", tmp_path / "sound.wav", tmp_path / "out.mp4"
    synth.make_clip(clip, ClipSpec(seconds=1.2, size=SMALL))
    noise = "anoisesrc=amplitude=0.0003:duration=0.8:seed=1"
    ffmpeg("-i", speech(0.4), "-f", "lavfi", "-i", noise, "-filter_complex", "concat=v=0:a=1", sound)
    heard = []
    for flat_pauses in (False, True):
        generator = BoxPainter(flat_pauses=flat_pauses)
        edit(clip, sound, out, generator, model=landmarker, params=QUICK)
        heard.append(generator.mels[0])
    as_it_is, flat = heard
    within = slice(30, 50)  # rows, of 60
    assert np.ptp(as_it_is[within], axis=0).max() > 1 and np.ptp(flat[within], axis=0).max() == 0
    assert np.array_equal(flat[:20], as_it_is[:20])


def test_the_summary_says_what_the_output_cannot_hold(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, deep, out = (tmp_path / f"{name}.mp4" for name in ("clip", "deep", "out"))
    synth.make_clip(clip, ClipSpec(seconds=0.6, size=SMALL))
    hlg = "setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc"
    ffmpeg("-i", clip, "-an", "-vf", f"format=yuv422p10le,{hlg}", "-c:v", "libx264", deep)
    lines = edit(deep, speech(0.6), out, BoxPainter(), model=landmarker, params=QUICK).summary_lines()
    assert "the source's pictures are 10 bit 4:2:2, written as 8 bit 4:2:0" in lines
    assert sum("HDR (HLG): the network gets them as they are coded" in line for line in lines) == 1
    assert (
        len(edit(clip, speech(0.6), out, BoxPainter(), model=landmarker, params=QUICK).summary_lines()) == 1
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_unchanged_crops_give_back_the_source_within_the_codec_s_loss(
    tmp_path: Path, landmarker: Path, grid: Path, crema_d: Path, written: list[YuvImage]
) -> None:
    """At 25 fps bit-identical before encoding; at 29.97 fps frames off the instants show another's mouth."""
    out = tmp_path / "out.mp4"
    clips = [sorted((grid / "s14").glob("*.mpg"))[0], sorted((crema_d / "VideoFlash").glob("*.flv"))[0]]
    for clip, loss in zip(clips, (42, 40), strict=True):
        written.clear()
        edited = edit(clip, clip, out, Unchanged(), model=landmarker, params=EditParams(preset="veryfast"))
        source = read_yuv_frames(clip)[: edited.frames]
        equal = [
            np.array_equal(ours.to_array(), theirs) for ours, theirs in zip(written, source, strict=True)
        ]
        assert all(equal) if clip.suffix == ".mpg" else equal[0] and not all(equal)
        assert psnr(np.stack(read_yuv_frames(out)), np.stack(source)) > loss
    assert edited.fps == pytest.approx(29.97, abs=0.05) and edited.size == (480, 360)


def test_a_large_frame_does_not_change_where_its_crops_come_back_unchanged(
    tmp_path: Path, landmarker: Path, grid: Path, written: list[YuvImage]
) -> None:
    """1920x1080, where a crop has a sixteenth of the face's pixels: bit-identical before encoding."""
    clip, large = sorted((grid / "s2").glob("*.mpg"))[0], tmp_path / "large.mkv"
    scale = "scale=1350:1080:flags=lanczos,pad=1920:1080:285:0,format=yuv420p"
    ffmpeg("-i", clip, "-t", 0.4, "-vf", scale, "-c:v", "ffv1", "-c:a", "flac", large)
    edited = edit(large, large, tmp_path / "out.mp4", Unchanged(), model=landmarker, params=QUICK)
    assert edited.size == (1920, 1080) and edited.redrawn == edited.frames == 10
    for ours, theirs in zip(written, read_yuv_frames(large), strict=True):
        assert np.array_equal(ours.to_array(), theirs)


def test_odd_sides_get_one_pixel_more(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], written: list[YuvImage]
) -> None:
    clip, odd = tmp_path / "clip.mp4", tmp_path / "odd.mkv"
    synth.make_clip(clip, ClipSpec(seconds=0.5, size=SMALL))
    ffmpeg("-i", clip, "-an", "-vf", "format=yuv444p,crop=239:191:0:0", "-c:v", "ffv1", odd)
    edited = edit(odd, speech(1), tmp_path / "out.mp4", BoxPainter(), model=landmarker, params=QUICK)
    assert (edited.source_size, edited.size) == ((239, 191), SMALL)
    assert read_rgb_frames(tmp_path / "out.mp4")[0].shape == (192, 240, 3)
    assert np.array_equal(written[3].y[:, 239], written[3].y[:, 238])
    assert read_index(read_rgb_frames(tmp_path / "out.mp4")[5]) == 5


def test_a_rotated_phone_video_is_written_upright(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    """Phones store pixels lying, and a display matrix in the file says so."""
    clip, lying, phone = (tmp_path / f"{name}.mp4" for name in ("clip", "lying", "phone"))
    truth = synth.make_clip(clip, ClipSpec(seconds=0.6, size=(192, 240)))
    ffmpeg("-i", clip, "-an", "-vf", "transpose=clock", "-c:v", "libx264", "-crf", 8, lying)
    ffmpeg("-display_rotation", 90, "-i", lying, "-c", "copy", phone)
    edited = edit(phone, speech(1), tmp_path / "out.mp4", BoxPainter(), model=landmarker, params=QUICK)
    assert edited.size == (192, 240) and edited.redrawn == 15
    for k, image in enumerate(read_rgb_frames(tmp_path / "out.mp4")):
        assert image.shape == (240, 192, 3)
        assert read_counter(image, truth.frames[k].corners_px) == k and read_index(image) == k % COLOURS


@pytest.mark.parametrize(("flip", "degrees"), [("hflip", 0), ("transpose=cclock_flip", 270)])
def test_a_video_that_is_shown_mirrored_is_written_as_it_is_shown(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], flip: str, degrees: int
) -> None:
    clip, stored, shown = (tmp_path / f"{name}.mp4" for name in ("clip", "stored", "shown"))
    truth = synth.make_clip(clip, ClipSpec(seconds=0.4, size=(192, 240)))
    ffmpeg("-i", clip, "-an", "-vf", flip, "-c:v", "libx264", "-crf", 8, stored)
    ffmpeg("-display_rotation", degrees, "-display_hflip", "-i", stored, "-c", "copy", shown)
    edited = edit(shown, speech(1), tmp_path / "out.mp4", BoxPainter(), model=landmarker, params=QUICK)
    assert edited.size == (192, 240) and edited.redrawn == 10
    for k, image in enumerate(read_rgb_frames(tmp_path / "out.mp4")):
        assert read_counter(image, truth.frames[k].corners_px) == k and read_index(image) == k % COLOURS


def test_pixels_that_are_not_square_stay_and_the_face_is_found_as_it_is_shown(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    """The same clip with half its columns, which a player widens: the same crops, the file's own pixels."""
    clip, narrow = tmp_path / "clip.mp4", tmp_path / "narrow.mp4"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(384, 480)))
    ffmpeg("-i", clip, "-an", "-vf", "scale=192:480:flags=area,setsar=2", "-c:v", "libx264", "-crf", 8,
           narrow)  # fmt: skip
    painters = BoxPainter(), BoxPainter()
    for source, painter in zip((clip, narrow), painters, strict=True):
        out = tmp_path / f"out-{source.name}"
        edited = edit(source, speech(1), out, painter, model=landmarker, params=QUICK)
        assert edited.redrawn == 10
    for wide, squeezed in zip(*(painter.inputs for painter in painters), strict=True):
        assert np.abs(wide.box - squeezed.box).max() <= 1
        assert np.abs(wide.pixels.astype(int) - squeezed.pixels).mean() < 4
    for wide_image, image in zip(
        *(read_rgb_frames(tmp_path / f"out-{name}.mp4") for name in ("clip", "narrow")), strict=True
    ):
        assert image.shape == (480, 192, 3)
        assert np.abs(find_blue(wide_image)[:, ::2] ^ find_blue(image)).mean() < 0.01
        assert find_blue(image).sum() > 1000


def test_the_edit_refuses_recordings_that_were_joined(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    first, second, joined = (tmp_path / f"{name}.mpg" for name in ("first", "second", "joined"))
    synth.make_clip(first, ClipSpec(seconds=0.8, size=(160, 128)))
    synth.make_clip(second, ClipSpec(seconds=0.8, size=(160, 128), speaker=2))
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    out = tmp_path / "out.mp4"
    with pytest.raises(StageError, match=r"joined.mpg: its video clock restarts: 0\.76 s is followed by 0"):
        edit(joined, speech(1), out, BoxPainter(), model=landmarker, params=QUICK)
    with pytest.raises(StageError, match=r"joined.mpg: its audio clock restarts"):
        edit(first, joined, out, BoxPainter(), model=landmarker, params=QUICK)
    assert not out.exists()


# --- faces ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people side by side, the right one larger."""
    folder = tmp_path_factory.mktemp("two")
    synth.make_clip(folder / "a.mp4", ClipSpec(speaker=1, seconds=0.4, size=(192, 240)))
    synth.make_clip(folder / "b.mp4", ClipSpec(speaker=2, seconds=0.4, size=(240, 240)))
    ffmpeg("-i", folder / "a.mp4", "-i", folder / "b.mp4", "-filter_complex", "hstack", "-an", "-crf", 10,
           folder / "two.mp4")  # fmt: skip
    return folder / "two.mp4"


def test_only_the_chosen_face_is_redrawn(
    tmp_path: Path, landmarker: Path, two_faces: Path, speech: Callable[[float], Path]
) -> None:
    sound, out = speech(0.5), tmp_path / "out.mp4"
    choices: list[tuple[Any, str]] = [("left", "left"), ("largest", "right"), (1, "right")]
    for choice, side in choices:
        edit(two_faces, sound, out, BoxPainter(), model=landmarker, params=replace(QUICK, face=choice))
        for image in read_rgb_frames(out):
            blue = find_blue(image)
            shares = {"left": blue[:, :192].sum(), "right": blue[:, 192:].sum()}
            assert shares[side] > 500 and shares["right" if side == "left" else "left"] == 0, choice
    with pytest.raises(StageError, match="--face 2: there is no such face"):
        edit(two_faces, sound, out, BoxPainter(), model=landmarker, params=replace(QUICK, face=2))


def test_frames_without_a_face_pass_through_and_are_counted(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], written: list[YuvImage]
) -> None:
    clip, gap = tmp_path / "clip.mp4", tmp_path / "gap.mp4"
    synth.make_clip(clip, ClipSpec(seconds=1.6, size=SMALL))
    ffmpeg("-i", clip, "-an", "-vf", "drawbox=c=gray:t=fill:enable='between(n,14,25)'", "-crf", 8, gap)
    generator = BoxPainter(lag=64)
    edited = edit(gap, speech(2), tmp_path / "out.mp4", generator, model=landmarker, params=QUICK)
    assert edited.frames == 40 and edited.redrawn == 28 and edited.passed_through == {"no_face": 12}
    source, result = read_yuv_frames(gap), read_rgb_frames(tmp_path / "out.mp4")
    assert all(np.array_equal(written[k].to_array(), source[k]) for k in range(14, 26))
    # Each segment is a clip of its own for the network, which hears the whole speech.
    assert [read_index(image) for image in result] == [
        *[k % COLOURS for k in range(14)], *[None] * 12, *[k % COLOURS for k in range(14)]
    ]  # fmt: skip
    assert [len(mels) for mels in generator.mels] == [80, 80] and generator.offsets == [0, 26]
    assert len(generator.inputs) == 28


def test_without_any_face_there_is_nothing_to_edit(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    grey = tmp_path / "grey.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=160x128:rate=25:duration=0.4", grey)
    with pytest.raises(StageError, match=r"grey\.mp4: no face in any of its 10 frames") as caught:
        edit(grey, speech(1), tmp_path / "out.mp4", BoxPainter(), model=landmarker, params=QUICK)
    assert "\n" not in str(caught.value) and not (tmp_path / "out.mp4").exists()


def test_two_faces_say_their_own_speech_and_their_sum_is_heard(
    tmp_path: Path, landmarker: Path, two_faces: Path, speech: Callable[[float], Path]
) -> None:
    short, long, out, painter = speech(0.2), speech(0.4), tmp_path / "out.mp4", BoxPainter(lag=3)
    edited = edit(two_faces, {"right": long, "left": short}, out, painter, model=landmarker, params=QUICK)
    assert edited.redrawn == edited.frames == 10 and edited.audio == "encoded"
    assert [(face.face, face.redrawn) for face in edited.faces] == [("right", 10), ("left", 10)]
    for k, image in enumerate(read_rgb_frames(out)):
        assert [read_index(image[:, :192]), read_index(image[:, 192:])] == [k % COLOURS] * 2
    quiet, loud = (mels[15:].max() for mels in reversed(painter.mels))
    assert loud > quiet + 20, "after its 0.2 s the left face's speech is silent"
    _, rate, sound = read_audio(out)
    total = np.zeros(len(sound))
    for path in (short, long):
        _, own_rate, part = read_audio(path)
        part = librosa.resample(part, orig_sr=own_rate, target_sr=rate)[: len(total)]
        total[: len(part)] += part
    assert np.corrcoef(sound, total)[0, 1] > 0.95


def test_recordings_of_several_faces_keep_their_common_clock(
    tmp_path: Path, landmarker: Path, two_faces: Path, speech: Callable[[float], Path]
) -> None:
    """The sound of one of two videos begins 0.2 s after its picture, as a player plays it."""
    sound, late, out = speech(0.4), tmp_path / "late.mov", tmp_path / "out.mp4"
    ffmpeg("-i", two_faces, "-itsoffset", 0.2, "-i", sound, "-c:v", "copy", "-c:a", "pcm_s16le", late)
    painter = BoxPainter()
    edit(two_faces, {"left": sound, "right": late}, out, painter, model=landmarker, params=QUICK)
    at_once, later = painter.mels
    assert (at_once[4:8] > -80).any() and (later[:8] == -80).all() and (later[14:] > -80).any()
    [_, rate, total], [_, own_rate, part] = read_audio(out), read_audio(sound)
    part = librosa.resample(part, orig_sr=own_rate, target_sr=rate)
    expected = np.zeros(len(total) + len(part))
    for at in (0, round(0.2 * rate)):
        expected[at : at + len(part)] += part
    assert np.corrcoef(total, expected[: len(total)])[0, 1] > 0.95
    edit(two_faces, late, out, painter, model=landmarker, params=QUICK)
    assert np.array_equal(painter.mels[2], at_once), "of one recording the speech starts at once"


def test_a_stem_that_is_silent_for_as_long_as_the_output_is_a_silent_mouth(
    tmp_path: Path, landmarker: Path, two_faces: Path, speech: Callable[[float], Path]
) -> None:
    """Of two recordings of one length, in one of which the first words come later."""
    talking, late, out, painter = speech(0.4), tmp_path / "late.wav", tmp_path / "out.mp4", BoxPainter()
    ffmpeg("-i", talking, "-af", "adelay=5s:all=1", late)
    edited = edit(two_faces, {"left": talking, "right": late}, out, painter, model=landmarker, params=QUICK)
    assert [(face.face, face.redrawn, face.is_silent) for face in edited.faces] == [
        ("left", 10, False),
        ("right", 10, True),
    ]
    assert (painter.mels[1] == -80).all() and (painter.mels[0] > -80).any()
    lines = [line for line in edited.summary_lines() if "silent" in line]
    assert lines == ["face right, speech silent: nothing is heard in its first 0.40 s"]


def test_choices_of_one_face_are_refused(
    tmp_path: Path, landmarker: Path, two_faces: Path, speech: Callable[[float], Path]
) -> None:
    sound, out = speech(0.2), tmp_path / "out.mp4"
    with pytest.raises(StageError, match="--face left and --face 0 are the same face"):
        edit(two_faces, {"left": sound, 0: sound}, out, BoxPainter(), model=landmarker, params=QUICK)


# --- mouths that are covered ------------------------------------------------------------------------


def cover_mouth(source: Path, out: Path, first: int, end: int, colour: str) -> None:
    """Draw a block over the mouth of a synthetic face of SMALL in some frames."""
    box = f"drawbox=x=80:y=112:w=80:h=60:t=fill:color={colour}:enable='between(n,{first},{end - 1})'"
    ffmpeg("-i", source, "-vf", box, "-c:a", "copy", "-crf", 10, out)


@pytest.mark.parametrize("colour", ["0x202020", "0xc89678"])
def test_a_covered_mouth_is_left_alone_and_counted(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], colour: str
) -> None:
    clip, covered, out = (tmp_path / f"{name}.mp4" for name in ("clip", "covered", "out"))
    synth.make_clip(clip, ClipSpec(seconds=2.0, size=SMALL))
    cover_mouth(clip, covered, 20, 32, colour)
    edited = edit(covered, speech(2.0), out, BoxPainter(), model=landmarker, params=QUICK)
    assert list(edited.passed_through) == ["mouth_covered"]
    is_drawn = [find_blue(image).sum() > 100 for image in read_rgb_frames(out)]
    assert not any(is_drawn[20:32]) and all(is_drawn[:14]) and all(is_drawn[38:])
    assert edited.passed_through["mouth_covered"] == is_drawn.count(False)


# --- speech and its length --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "speech_s", "seconds", "sources"),
    [
        ("trim", 0.6, 0.6, list(range(15))),
        ("trim", 2.0, 0.8, list(range(20))),
        ("hold", 0.5, 0.8, list(range(20))),
        ("hold", 1.2, 1.2, [*range(20), *[19] * 10]),
        ("silence", 0.5, 0.8, list(range(20))),
        ("silence", 1.2, 0.8, list(range(20))),
        ("bounce", 0.6, 0.6, list(range(15))),
        ("bounce", 2.0, 2.0, [*range(20), *range(18, -1, -1), *range(1, 12)]),
    ],
)
def test_different_lengths_are_fitted_as_the_option_says(
    tmp_path: Path,
    landmarker: Path,
    speech: Callable[[float], Path],
    fit: Any,
    speech_s: float,
    seconds: float,
    sources: list[int],
) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    truth = synth.make_clip(clip, ClipSpec(seconds=0.8, size=SMALL))
    generator = BoxPainter()
    edited = edit(clip, speech(speech_s), out, generator, model=landmarker, params=replace(QUICK, fit=fit))
    images = read_rgb_frames(out)
    assert edited.seconds == pytest.approx(seconds, abs=1e-3)
    assert measure_video_seconds(out) == pytest.approx(seconds, abs=1e-3)
    assert len(images) == len(sources) == edited.redrawn
    for k, (image, source) in enumerate(zip(images, sources, strict=True)):
        assert read_counter(image, truth.frames[source].corners_px) == source
        assert read_index(image) == k % COLOURS  # also where the video is held or plays backwards
    start, rate, sound = read_audio(out)
    assert start == 0 and len(sound) / rate == pytest.approx(min(speech_s, seconds), abs=0.025)
    silence = generator.mels[0][2 * int(25 * speech_s) + 2 :]
    assert (silence == -80).all() and len(generator.mels[0]) == 2 * len(sources)


def test_the_speech_is_copied_where_the_container_can_hold_it(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, aac = tmp_path / "clip.mp4", tmp_path / "speech.m4a"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=SMALL))
    ffmpeg("-i", speech(0.4), "-c:a", "aac", aac)
    edited = edit(clip, aac, tmp_path / "out.mp4", BoxPainter(), model=landmarker, params=QUICK)
    assert edited.audio == "copied" and read_audio_packets(tmp_path / "out.mp4") == read_audio_packets(aac)
    edited = edit(clip, speech(0.4), tmp_path / "out.mp4", BoxPainter(), model=landmarker, params=QUICK)
    assert edited.audio == "encoded"


# --- files ------------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes_and_a_preview_shows_both(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, sound = tmp_path / "clip.mp4", speech(0.5)
    synth.make_clip(clip, ClipSpec(seconds=0.5, size=SMALL))
    outputs = []
    for lag in (0, 64):
        calls: list[tuple[str, int, int]] = []
        out, preview = tmp_path / f"out-{lag}.mp4", tmp_path / f"preview-{lag}.mp4"
        edit(clip, sound, out, BoxPainter(lag), model=landmarker, params=QUICK, preview=preview,
             progress=lambda *args, calls=calls: calls.append(args))  # fmt: skip
        outputs.append((out.read_bytes(), preview.read_bytes()))
    assert outputs[0] == outputs[1]
    both, alone = read_rgb_frames(preview), read_rgb_frames(out)
    assert len(both) == len(alone) == 12 and both[0].shape == (192, 480, 3)
    assert not find_blue(both[5][:, :240]).any() and read_index(both[5][:, 240:]) == 5
    assert read_audio(preview)[2] == pytest.approx(read_audio(out)[2])
    # Progress of each pass never decreases, and ends with its total.
    for label in ("faces", "frames"):
        done = [(n, total) for name, n, total in calls if name == label]
        assert done == sorted(done) and done[-1] == (12, 12)


def test_an_error_is_one_line_and_leaves_no_file(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, sound = tmp_path / "clip.mp4", speech(0.5)
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=SMALL))
    noise, silence, mute = tmp_path / "noise.mp4", tmp_path / "silence.wav", tmp_path / "mute.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(20_000))
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000", "-t", 1, silence)
    ffmpeg("-i", clip, "-an", "-c", "copy", mute)
    link = tmp_path / "link.mp4"
    link.symlink_to(clip)
    (tmp_path / "pipe.mp4").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "pipe.mp4")
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    out = tmp_path / "out.mp4"
    cases: list[tuple[Path, Path, Path, dict[str, Any], str]] = [
        (tmp_path / "none.mp4", sound, out, {}, r"none\.mp4: there is no such file"),
        (tmp_path / "pipe.mp4", sound, out, {}, r"pipe\.mp4: there is no such file"),
        (clip, tmp_path / "none.wav", out, {}, r"none\.wav: there is no such file"),
        (clip, sound, clip, {}, r"clip\.mp4: is an input, which is never overwritten"),
        (clip, sound, link, {}, r"link\.mp4: is an input"),
        (
            clip,
            sound,
            out.with_suffix(".webm"),
            {},
            r"out\.webm: supported are \.mp4, \.mov, \.mkv",
        ),
        (clip, sound, tmp_path / "no" / "out.mp4", {}, "there is no folder .*no"),
        (clip, sound, folder, {}, r"folder\.mp4: is a folder; name a file in it"),
        (noise, sound, out, {}, r"noise\.mp4: cannot be opened as video"),
        (sound, sound, out, {}, r"cannot be opened as video"),
        (clip, noise, out, {}, r"noise\.mp4: cannot be opened as sound"),
        (clip, mute, out, {}, r"mute\.mp4: has no sound"),
        (clip, silence, out, {}, r"silence\.wav: its sound is silent"),
        (clip, sound, out, {"max_seconds": 0.3}, r"out\.mp4: would last 0\.4 s, expected at most 0\.3 s"),
        (clip, sound, out, {"max_pixels": 9999}, r"frames are 240x192, expected at most 9999 pixels"),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for video, audio, target, changes, message in cases:
        with pytest.raises(StageError, match=message) as caught:
            edit(video, audio, target, BoxPainter(), model=landmarker, params=replace(QUICK, **changes))
        assert "\n" not in str(caught.value)
    with pytest.raises(StageError, match="preview and output are the same file"):
        edit(clip, sound, out, BoxPainter(), model=landmarker, params=QUICK, preview=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["clip.mp4", "speech.m4a", "speech-0.5.wav"])
def test_an_input_that_is_gone_in_the_middle_of_an_edit_is_one_line_too(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], name: str
) -> None:
    """As on a drive that is unplugged. One of the sounds is copied, the other one encoded."""
    clip, out, wav, aac = tmp_path / "clip.mp4", tmp_path / "out.mp4", speech(0.5), tmp_path / "speech.m4a"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=SMALL))
    ffmpeg("-i", wav, "-c:a", "aac", aac)
    before = sorted(tmp_path.iterdir())

    def remove_after_trial(label: str, done: int, total: int) -> None:
        if label == "trial" and done == total:
            (tmp_path / name).unlink()

    with pytest.raises(StageError, match=rf"{name}: cannot be read \(No such file or directory\)$"):
        edit(clip, aac if name == aac.name else wav, out, Unchanged(), model=landmarker, params=CHECKED,
             progress=remove_after_trial)  # fmt: skip
    assert sorted(tmp_path.iterdir()) == [path for path in before if path.name != name]


@pytest.mark.parametrize("name", ["out.mp4", "preview.mp4"])
def test_a_folder_that_takes_no_file_is_refused_before_the_work(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], name: str
) -> None:
    clip, sound = tmp_path / "clip.mp4", speech(0.5)
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=SMALL))
    before = sorted(tmp_path.iterdir())
    paths = {each: tmp_path / each for each in ("out.mp4", "preview.mp4")}
    paths[name] = Path("/proc") / name  # where not even root can make a file
    with pytest.raises(WriteError, match=f"/proc/{name}"):
        edit(clip, sound, paths["out.mp4"], BoxPainter(), model=landmarker, params=QUICK,
             preview=paths["preview.mp4"], progress=lambda *_: pytest.fail("the work has begun"))  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before


class Failing(BoxPainter):
    def __call__(
        self, frames: Iterator[CropFrame], mels: np.ndarray, offset: int, speech: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        for k, crop in enumerate(super().__call__(frames, mels, offset, speech)):
            if k == 6:
                raise RuntimeError("the network has failed")
            yield crop


class Short(BoxPainter):
    def __call__(
        self, frames: Iterator[CropFrame], mels: np.ndarray, offset: int, speech: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        yield from list(super().__call__(frames, mels, offset, speech))[:-1]


class Large(BoxPainter):
    def paint(self, frame: CropFrame, k: int) -> np.ndarray:
        return np.zeros((256, 256, 3), np.uint8)


def test_a_network_that_fails_or_counts_wrongly_leaves_no_file(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, sound, out = tmp_path / "clip.mp4", speech(0.5), tmp_path / "out.mp4"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=SMALL))
    out.write_bytes(b"an earlier one")
    before = sorted(path.name for path in tmp_path.iterdir())
    cases: list[tuple[BoxPainter, type[Exception], str]] = [
        (Failing(), RuntimeError, "has failed"),
        (Short(), ValueError, "9 crops came back for 10 frames"),
        (Large(), ValueError, r"crop 1 of 10 is uint8 \(256, 256, 3\), expected uint8 \(128, 128, 3\)"),
    ]
    for generator, error, message in cases:
        with pytest.raises(error, match=message):
            edit(clip, sound, out, generator, model=landmarker, params=QUICK, preview=tmp_path / "p.mp4")
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert out.read_bytes() == b"an earlier one"


def test_a_preview_never_appears_without_its_video(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are completed one after the other; the disk is full at the first, or at the second."""
    clip, sound = tmp_path / "clip.mp4", speech(0.5)
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=SMALL))
    before = sorted(path.name for path in tmp_path.iterdir())
    out, preview, moves = tmp_path / "out.mp4", tmp_path / "preview.mp4", []

    def run_edit(*, n_complete: int) -> None:
        completed: list[Path] = []

        def append_mark(path: Path, muxer: str) -> None:
            completed.append(path)
            if len(completed) > n_complete:
                raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))

        monkeypatch.setattr(mark, "append_mark", append_mark)
        edit(clip, sound, out, BoxPainter(), model=landmarker, params=QUICK, preview=preview)

    for n_complete in (0, 1):
        with pytest.raises(WriteError, match="No space left"):
            run_edit(n_complete=n_complete)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    move = atomic.move_into_place
    monkeypatch.setattr(atomic, "move_into_place", lambda part, path: (moves.append(path), move(part, path)))
    run_edit(n_complete=2)
    assert moves == [out, preview] and preview.is_file()


def start_process(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SLOW = """
import signal, sys, time
from pathlib import Path
from pipeline import main
from tests.stages.edit.test_edit import BoxPainter, QUICK, edit

class Slow(BoxPainter):
    def paint(self, frame, k):
        if k == 8:
            print("generating", flush=True)
            time.sleep(3600)
        return super().paint(frame, k)

video, audio, out, model = map(Path, sys.argv[1:])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup does
main.cli = lambda prog_name: edit(video, audio, out, Slow(), model=model, params=QUICK)
main.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_edit_leaves_no_file_and_no_process(
    tmp_path: Path,
    landmarker: Path,
    speech: Callable[[float], Path],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    clip, sound, folder, scratch = tmp_path / "clip.mp4", speech(0.8), tmp_path / "out", tmp_path / "scratch"
    for made in (folder, scratch):
        made.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    synth.make_clip(clip, ClipSpec(seconds=0.8, size=SMALL))
    process = start_process(SLOW, clip, sound, folder / "out.mp4", landmarker)
    assert process.stdout is not None and process.stdout.readline() == "generating\n"
    assert wait_until(lambda: any(path.name.endswith(".partial") for path in folder.iterdir()))
    assert all(path.name.startswith("redub.") for path in scratch.iterdir())
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate(timeout=GUARD_SECONDS)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors and process.returncode != 0
    else:
        assert (process.returncode, errors) == (128 + number, "")
    assert list(folder.iterdir()) == [] == list(scratch.iterdir())
    assert wait_until(lambda: all(is_gone(child.pid) for child in children))


MEMORY = """
import sys
from dataclasses import replace
from pathlib import Path
import psutil
from tests.stages.edit.test_edit import BoxPainter, QUICK, edit

def peak_mb(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))

out, model, short, long = map(Path, sys.argv[1:])
# Mels are computed in blocks of 82 s, so a minute of sound takes 40 MB more than ten seconds of it, whatever
# the video: here it has been heard before the first measurement. Of two children, either may load more later.
one_child = {"model": model, "overlap": False}
edit(short, long, out, BoxPainter(lag=64), params=replace(QUICK, fit="hold"), **one_child)
for clip in (short, long):
    edited = edit(clip, clip, out, BoxPainter(lag=64), params=QUICK, **one_child)
    [child] = psutil.Process().children()
    print(edited.frames, peak_mb("self"), peak_mb(child.pid))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_video_s_length(tmp_path: Path, landmarker: Path) -> None:
    """Frames of 480 x 360 are 0.5 MB in RGB: a minute of them at 10 fps is 311 MB, of crops at 25 fps 74."""
    ten, minute = tmp_path / "ten.mp4", tmp_path / "minute.mp4"
    synth.make_clip(ten, ClipSpec(seconds=10, fps="10", size=(480, 360)))
    ffmpeg("-stream_loop", 5, "-i", ten, "-c", "copy", minute)
    process = start_process(MEMORY, tmp_path / "out.mp4", landmarker, ten, minute)
    output, errors = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 0, errors
    short, long = ([int(number) for number in line.split()] for line in output.splitlines())
    assert short[0] == 100 and long[0] == pytest.approx(600, abs=3)
    for process_name, before, after in zip(("the edit", "its child"), short[1:], long[1:], strict=True):
        assert after - before < 40, f"{process_name}: {before} MB for ten seconds, {after} for a minute"


# --- the check of the face --------------------------------------------------------------------------


def test_a_face_that_the_network_does_not_fit_is_refused_before_a_file_is_written(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    synth.make_clip(clip, ClipSpec(seconds=1.2, size=SMALL))
    generator, calls = BoxPainter(), []
    expected = (
        r"clip\.mp4: the network does not fit this face: its colours .* differ from the video's by "
        r"\d+\.\d \(CIE 1976\), expected at most 5$"
    )
    with pytest.raises(MisfitError, match=expected):
        edit(clip, speech(1.2), out, generator, model=landmarker, params=CHECKED,
             progress=lambda label, done, total: calls.append((label, done, total)))  # fmt: skip
    assert not out.exists()
    assert len(generator.inputs) == 15 and ("trial", 15, 15) in calls, "five places of three frames"
    assert edit(clip, speech(1.2), out, BoxPainter(), model=landmarker, params=QUICK).redrawn == 30


def test_the_check_changes_no_byte_of_a_face_that_fits(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, files = tmp_path / "clip.mp4", [tmp_path / "checked.mp4", tmp_path / "any.mp4"]
    synth.make_clip(clip, ClipSpec(seconds=1.2, size=SMALL))
    for out, params in zip(files, (CHECKED, QUICK), strict=True):
        edited = edit(clip, speech(1.2), out, Spot(lag=4), model=landmarker, params=params)
        assert edited.redrawn == edited.frames == 30 and not edited.passed_through
    assert files[0].read_bytes() == files[1].read_bytes()


class Misfit(Spot):
    """Fits the face but for some frames in the middle, as where the light changes."""

    def paint(self, frame: CropFrame, k: int) -> np.ndarray:
        return BoxPainter.paint(self, frame, k) if 30 <= k < 50 else super().paint(frame, k)


def test_a_stretch_that_leaves_the_fit_keeps_the_frames_of_the_source(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path], written: list[YuvImage]
) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    synth.make_clip(clip, ClipSpec(seconds=3.2, size=SMALL))
    edited = edit(clip, speech(3.2), out, Misfit(lag=3), model=landmarker, params=CHECKED)
    n_left = edited.passed_through["no_fit"]
    assert edited.redrawn + n_left == edited.frames == 80 and 20 <= n_left <= 20 + 24
    assert f"frames not changed: {n_left} no_fit" in edited.summary_lines()
    images, source = written, read_yuv_frames(clip)
    same = [np.array_equal(image.to_array(), truth) for image, truth in zip(images, source, strict=True)]
    assert sum(same) == n_left and all(same[30:50]) and not any(same[:15]) and not any(same[65:])


class Tinted(BoxPainter):
    """Shows what is there, some grey levels darker: another's skin, but not by much."""

    def paint(self, frame: CropFrame, k: int) -> np.ndarray:
        x0, y0, x1, y1 = frame.box
        pixels = frame.pixels.copy()
        pixels[y0:y1, x0:x1] -= np.minimum(pixels[y0:y1, x0:x1], 16)
        return pixels


@pytest.mark.parametrize(
    ("generator", "after", "n_redrawn"),
    [
        (Unchanged(), r"0\.0 after, expected at most 5", 30),
        (Tinted(), r"[567]\.\d after, expected at most 5; the network still does not fit this face", 30),
        (BoxPainter(), r"\d+\.\d after, expected at most 5; the network still does not fit this face", 0),
    ],
    ids=["fits", "nearly", "not at all"],
)
def test_an_adapted_network_draws_and_says_how_it_fits_now_and_did_before(
    tmp_path: Path,
    landmarker: Path,
    speech: Callable[[float], Path],
    generator: BoxPainter,
    after: str,
    n_redrawn: int,
) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    synth.make_clip(clip, ClipSpec(seconds=1.2, size=SMALL))
    before, passes = BoxPainter(), list[str]()
    edited = edit(clip, speech(1.2), out, generator, model=landmarker, params=CHECKED, adapted_from=before,
                  progress=lambda label, done, total: passes.append(label))  # fmt: skip
    expected = (
        r"colours at the mouth's border differ from the video's \(CIE 1976\) by \d+\.\d before adapting, "
    )
    [line] = [line for line in edited.summary_lines() if "border" in line]
    assert re.fullmatch(expected + after, line), line
    assert list(dict.fromkeys(passes)) == ["faces", "trial before", "trial", "frames"]
    assert len(before.inputs) == 15, "it draws the trial alone"
    assert edited.redrawn == n_redrawn and out.exists()
    assert edited.passed_through == ({} if n_redrawn else {"no_fit": 30})


def test_whoever_asks_for_any_face_gets_every_frame_of_an_adapted_network(
    tmp_path: Path, landmarker: Path, speech: Callable[[float], Path]
) -> None:
    clip, out, before = tmp_path / "clip.mp4", tmp_path / "out.mp4", BoxPainter()
    synth.make_clip(clip, ClipSpec(seconds=1.2, size=SMALL))
    edited = edit(clip, speech(1.2), out, BoxPainter(), model=landmarker, params=QUICK, adapted_from=before)
    assert edited.redrawn == 30 and not before.inputs and len(edited.summary_lines()) == 1
