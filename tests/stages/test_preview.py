import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from shards.reader import Dataset, open_dataset
from shards.schema import ClipSample, ShardError
from stages.engine.outcome import StageError
from stages.media import encode
from stages.media.encode import AudioTrack, write_mp4
from stages.mels import MelsParams, compute_mel_rows
from stages.preview.drawing import BOX, INTERPOLATED, MARK, draw_mask_box, draw_mels
from stages.preview.selection import select_clips, spread_clips
from stages.preview.sheet import choose_style, draw_cell, draw_sheet, write_sheet
from stages.preview.sound import PEAK, synthesise_audio
from stages.preview.video import VIDEO_SPAN_SECONDS, draw_video_frames, write_video
from tests import datasets

SIZE = 64
MELS = {"n_fft": 1024, "n_mels": 40}


def make_sample(
    key: str,
    *,
    n_frames: int = 12,
    color: Sequence[int] = (90, 90, 90),
    box: Sequence[int] = (12, 40, 50, 62),
    **info: Any,
) -> ClipSample:
    """A clip of one color, with silent mels."""
    return ClipSample(
        key=key,
        frames=np.tile(np.array(color, np.uint8), (n_frames, SIZE, SIZE, 1)),
        boxes=np.tile(np.array(box, np.int16), (n_frames, 1)),
        mels=np.full((2 * n_frames, MELS["n_mels"]), -80, np.float32),
        affine=np.tile(np.eye(2, 3, dtype=np.float32), (n_frames, 1, 1)),
        info={"speaker": "s1", "split": "train", **info},
    )


def make_dataset(folder: Path, samples: Sequence[ClipSample], **described: Any) -> Dataset:
    """Write samples as a dataset of one shard."""
    packed = [
        datasets.pack(
            sample.key, sample.frames, box=sample.boxes[0].tolist(), mels=sample.mels, **dict(sample.info)
        )
        for sample in samples
    ]
    return open_dataset(datasets.write(folder, packed, **{"params": {"mels": MELS}, **described}))


def count_pixels(picture: np.ndarray, color: Sequence[int]) -> int:
    return int((np.asarray(picture) == color).all(-1).sum())


def decode(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Times and images of a video; samples and rate of its audio, whose first one is at 0 s.

    AAC is coded in blocks, and PyAV returns the last one whole; players stop at the end of the stream.
    """
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = np.array([frame.time for frame in frames])
        images = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
        assert blocks[0].time == 0
        samples = np.concatenate([block.to_ndarray() for block in blocks], axis=1)
        stream = container.streams.audio[0]
        end = round(stream.duration * stream.time_base * stream.rate)
        assert end <= samples.shape[1] < end + 1024
    return times, images, samples[:, :end], stream.rate


# --- selection --------------------------------------------------------------------------------


def make_corpus(folder: Path) -> Dataset:
    """Speakers s1 and s2 with 9 clips each, s3 to s6 with one; s1 has a test clip too."""
    counts = {"s1": 9, "s2": 9, "s3": 1, "s4": 1, "s5": 1, "s6": 1}
    samples = [
        make_sample(f"{speaker}_{i}", n_frames=2, speaker=speaker, split="train")
        for speaker, count in counts.items()
        for i in range(count)
    ]
    samples.append(make_sample("s1_test", n_frames=2, speaker="s1", split="test"))
    return make_dataset(folder, samples)


def test_clips_are_spread_over_splits_and_speakers(tmp_path: Path) -> None:
    dataset = make_corpus(tmp_path / "d")
    selection = spread_clips(dataset, 10, seed=0)
    speakers = Counter(clip_id.split("_")[0] for clip_id in selection)
    assert "s1_test" in selection
    assert set(speakers) == {"s1", "s2", "s3", "s4", "s5", "s6"} and speakers["s1"] == speakers["s2"] == 3
    assert selection == spread_clips(dataset, 10, seed=0)
    assert selection != spread_clips(dataset, 10, seed=1)
    assert set(spread_clips(dataset, 999, seed=0)) == set(dataset.clips)
    assert spread_clips(dataset, 5, seed=0, speaker="s1", split="test") == ["s1_test"]


def test_errors_name_what_the_dataset_does_not_hold(tmp_path: Path) -> None:
    dataset = make_corpus(tmp_path / "d")
    with pytest.raises(ShardError, match="holds no clip 'nobody', 's1'"):
        select_clips(dataset, ["nobody", "s1_0", "s1"])
    with pytest.raises(ShardError, match="no speaker 's9'; known are s1, s2, s3"):
        spread_clips(dataset, 1, seed=0, speaker="s9")
    with pytest.raises(ShardError, match="no clip of speaker 's2' in split 'test'"):
        spread_clips(dataset, 1, seed=0, speaker="s2", split="test")


# --- contact sheet ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_clips", [1, 5, 17])
def test_every_selected_clip_is_on_the_sheet(tmp_path: Path, n_clips: int) -> None:
    colors = [(10 * i, 250 - 10 * i, 77) for i in range(20)]
    samples = [make_sample(f"s1_{i}", color=color) for i, color in enumerate(colors)]
    dataset = make_dataset(tmp_path / "d", samples)
    sheet = np.asarray(draw_sheet(dataset, [f"s1_{i}" for i in range(n_clips)]))
    assert max(sheet.shape) < 4000
    packed, counts = np.unique(sheet @ np.array([1, 256, 65536]), return_counts=True)
    pixels_per_color = dict(zip(packed.tolist(), counts.tolist(), strict=True))
    style = choose_style(n_clips)
    n_crop_pixels, n_outline_pixels = 6 * style.crop**2, 6 * 4 * 3 * style.crop  # the second at most
    for i, (red, green, blue) in enumerate(colors):
        n_pixels = pixels_per_color.get(red + 256 * green + 65536 * blue, 0)
        if i < n_clips:
            assert n_crop_pixels - n_outline_pixels < n_pixels < n_crop_pixels
        else:
            assert n_pixels == 0


def test_the_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", [make_sample("s1_a")])
    write_sheet(dataset, ["s1_a"], tmp_path / "a.png")
    write_sheet(dataset, ["s1_a"], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_box_is_drawn_on_the_outermost_masked_pixels() -> None:
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    masked = np.zeros((SIZE, SIZE), bool)
    masked[40:62, 12:50] = True
    picture = draw_mask_box(frame, np.array([12, 40, 50, 62], np.int16), 2 * SIZE)
    large = masked.repeat(2, 0).repeat(2, 1)
    inner = np.zeros_like(large)
    inner[81:123, 25:99] = True
    assert ((picture == BOX).all(-1) == (large & ~inner)).all()


def test_a_loud_row_is_drawn_at_its_time_and_low_pitch_at_the_bottom() -> None:
    mels = np.full((100, 40), -80, np.float32)
    mels[60, :10] = 0  # at 1.2 s, the lowest quarter of the bands
    picture = draw_mels(mels, start=0, seconds=2, width=800, height=80).max(-1)
    loud = picture > 128
    ys, xs = np.nonzero(loud)
    assert (xs.min(), xs.max()) == (476, 483)  # 20 ms around 1.2 s
    assert (ys.min(), ys.max()) == (60, 79)


def test_interpolated_frames_and_notes_are_marked() -> None:
    style = choose_style(1)
    plain = draw_cell(make_sample("s1_a"), style)
    mended = draw_cell(make_sample("s1_a", interpolated_frames=[3, 4, 5]), style)
    assert count_pixels(plain, INTERPOLATED) == 0
    # A quarter of the band above the mels, and the outlines of interpolated frames.
    assert count_pixels(mended, INTERPOLATED) > style.cell // 4 * (style.crop // 32) + 4 * style.crop
    noted = draw_cell(make_sample("s1_a", notes=["antiphase sound"]), style)
    assert count_pixels(noted, INTERPOLATED) > 0 and noted.height > plain.height


@pytest.mark.parametrize("n_frames", [1, 2, 5, 700])
def test_labels_of_any_length_and_clips_of_any_length_can_be_drawn(n_frames: int) -> None:
    sample = make_sample("x" * 100, n_frames=n_frames, emotion="very\nangry " * 50, speaker="é" * 99)
    for n_clips in (1, 9, 99):
        style = choose_style(n_clips)
        assert draw_cell(sample, style).width == style.cell


# --- video ------------------------------------------------------------------------------------


def test_a_flash_and_a_click_at_the_same_time_are_synchronous_in_the_video(tmp_path: Path) -> None:
    at, n_frames = 20, 32
    sample = make_sample("s1_click", n_frames=n_frames)
    sample.frames[at] = 255
    sample.mels[2 * at] = 0
    dataset = make_dataset(tmp_path / "d", [sample])
    out = tmp_path / "click.mp4"
    assert write_video(dataset, "s1_click", out) == n_frames
    times, pictures, (sound,), rate = decode(out)
    assert times == pytest.approx(np.arange(n_frames) / 25)
    assert len(sound) == rate * n_frames / 25
    light = pictures[:, 40:300, 20:490].mean((1, 2, 3))
    assert times[light.argmax()] == at / 25 and np.delete(light, at).max() < light[at] / 2
    power = np.convolve(sound**2, np.ones(rate // 200), "same")  # over 5 ms
    assert power.argmax() / rate == pytest.approx(at / 25, abs=0.02)
    is_near = np.abs(np.arange(len(sound)) / rate - at / 25) < 0.03
    assert (sound[is_near] ** 2).sum() > 0.95 * (sound**2).sum()


def test_the_line_over_the_mels_is_at_the_time_of_the_frame() -> None:
    sample = make_sample("s1_a", n_frames=200)  # 8 s: longer than the visible span
    sample.mels[::2] = 0  # each frame's first row is bright
    for k, picture in enumerate(draw_video_frames(sample)):
        assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
        below = picture[28 + 512 :]
        marked = np.flatnonzero((below[:4] == MARK).all(-1).all(0))
        assert len(marked) in (1, 2)  # half of it is left of the edge in frame 0
        span = VIDEO_SPAN_SECONDS
        start = min(max(k / 25 - span / 2, 0), 8 - span)
        assert marked[0] == pytest.approx((k / 25 - start) / span * 512, abs=0.51)


def test_audio_made_from_mels_has_the_same_mels() -> None:
    n_frames = 20
    seconds = np.arange(640 * n_frames - 1) / 16000
    voice = sum(np.sin(2 * np.pi * 140 * k * seconds) / k for k in range(1, 9))
    voice = (voice * (1.1 + np.sin(2 * np.pi * 3 * seconds))).astype(np.float32)
    params = MelsParams(**MELS)
    mels = compute_mel_rows(voice, params)
    sound = synthesise_audio(mels, params)
    assert sound.shape == (640 * n_frames,) and np.abs(sound).max() == pytest.approx(PEAK)
    again = compute_mel_rows(sound[:-1], params)
    loud = mels > -40
    assert np.abs(again - mels)[loud].mean() < 3


def test_audio_can_be_made_for_a_clip_of_one_frame() -> None:
    assert synthesise_audio(make_sample("s1_a", n_frames=1).mels, MelsParams(**MELS)).shape == (640,)


def test_a_dataset_without_the_params_of_its_mels_is_an_error(tmp_path: Path) -> None:
    for i, (params, message) in enumerate(
        [({}, "has no params.mels"), ({"mels": {"n_fft": 8}}, "n_fft: Input should be")]
    ):
        dataset = make_dataset(tmp_path / str(i), [make_sample("s1_a")], params=params)
        with pytest.raises(ShardError, match=message):
            write_video(dataset, "s1_a", tmp_path / "a.mp4")


# --- encoding ---------------------------------------------------------------------------------


def test_colors_and_stereo_survive_the_encoding(tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    colors = np.array([(220, 30, 30), (30, 200, 40), (20, 40, 210), (128, 128, 128)], np.uint8)
    frame = np.repeat(np.repeat(colors[None], 32, 0), 16, 1)
    rate = 44_100
    channel = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    sound = AudioTrack(
        np.array_split(np.stack([channel, 0 * channel], 1).astype(np.float32), 7), rate, channels=2
    )
    fps = Fraction(30_000, 1001)
    assert write_mp4(out, [frame] * 60, fps=fps, audio=sound) == 60
    times, images, samples, decoded_rate = decode(out)
    assert times == pytest.approx(np.arange(60) * 1001 / 30_000, abs=1e-4)
    decoded_colors = images[30, 16, 8::16].astype(int)
    assert np.abs(decoded_colors - colors).max() < 8
    assert samples.shape == (2, 2 * decoded_rate)
    middle = samples[:, decoded_rate // 2 : -decoded_rate // 2]
    assert np.abs(middle[0]).max() == pytest.approx(0.5, abs=0.03) and np.abs(middle[1]).max() < 0.03
    with av.open(str(out)) as container:
        codec = container.streams.video[0].codec_context
        assert codec.pix_fmt == "yuv420p"
        assert codec.colorspace == codec.color_primaries == codec.color_trc == 1  # BT.709


def test_frames_are_streamed_and_not_stored(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        for k in range(300):
            yield np.full((256, 256, 3), k % 256, np.uint8)

    tracemalloc.start()
    try:
        assert write_mp4(tmp_path / "a.mp4", frames(), fps=Fraction(25)) == 300
        assert tracemalloc.get_traced_memory()[1] < 10 * 256 * 256 * 3
    finally:
        tracemalloc.stop()


def test_no_failure_leaves_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out" / "a.mp4"
    frame = np.zeros((256, 256, 3), np.uint8)

    def broken() -> Iterator[np.ndarray]:
        yield frame
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_mp4(out, broken(), fps=Fraction(25))
    with pytest.raises(StageError, match=r"a\.mp4: there is no frame"):
        write_mp4(out, [], fps=Fraction(25))
    with pytest.raises(StageError, match=r"frames are 255x256, H\.264 in yuv420p needs even sides"):
        write_mp4(out, [frame[:, 1:]], fps=Fraction(25))

    program = tmp_path / "ffmpeg"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    program.write_text("#!/bin/sh\necho first >&2\necho 'No space left on device' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(StageError, match=r"a\.mp4: ffmpeg failed at frame \d+: No space left on device"):
        write_mp4(out, [frame] * 9, fps=Fraction(25))
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(encode, "STALL_SECONDS", 0.2)
    with pytest.raises(StageError, match=r"ffmpeg stalled for 0\.2 s at frame 0"):
        write_mp4(out, [frame] * 9, fps=Fraction(25))
    program.unlink()
    with pytest.raises(StageError, match="ffmpeg: ffmpeg does not start"):
        write_mp4(out, [frame] * 9, fps=Fraction(25))
    assert list(out.parent.iterdir()) == []
