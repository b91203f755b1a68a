from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.commands.preview import command
from tests import datasets

N_FRAMES = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three clips."""
    folder = tmp_path_factory.mktemp("shards")
    frames = np.zeros((N_FRAMES, 32, 32, 3), np.uint8)
    mels = np.full((2 * N_FRAMES, 40), -20, np.float32)
    clips = [datasets.pack(key, frames, box=(4, 16, 28, 31), mels=mels) for key in ("s1_a", "s1_b", "s1_c")]
    return datasets.write(folder, clips, params={"mels": {"n_fft": 1024, "n_mels": 40}})


def call(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def test_a_sheet_and_a_video_are_written_and_told(shards: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    told = call(shards, "-o", sheet)
    assert told.exit_code == 0, told.output
    with Image.open(sheet) as image:
        assert told.output == f"{sheet}: 3 of 3 clips, {image.width}x{image.height} px\n"
    few = call(shards, "-o", sheet, "--clip", "s1_c", "--clip", "s1_a")
    assert "2 of 3 clips" in few.output
    clip = tmp_path / "clip.mp4"
    told = call(shards, "--video", "s1_b", "-o", clip)
    assert told.exit_code == 0, told.output
    assert told.output == f"{clip}: s1_b, 4 frames, 0.16 s\n"
    assert sorted(tmp_path.iterdir()) == [clip, sheet]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "OUT/a.png", "--clip", "s1_a", "--clip", "s9"], "holds no clip 's9'"),
        (["-o", "OUT/a.mp4", "--video", "s9"], "holds no clip 's9'"),
        (["-o", "OUT/a.png", "--split", "dev"], "has no split 'dev'; known are train"),
        (["-o", "OUT/a.jpg"], "a contact sheet is written as .png"),
        (["-o", "OUT/a.png", "--video", "s1_a"], "a video is written as .mp4"),
        (["-o", "OUT/nowhere/a.png"], "there is no folder OUT/nowhere"),
        (["-o", "OUT/a.mp4", "--video", "s1_a", "--clip", "s1_b"], "--video shows one clip"),
        (["-o", "OUT/a.png", "--clip", "s1_b", "--seed", "3"], "--seed: the clips to show are named"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(
    shards: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    words = [word.replace("OUT", str(tmp_path)) for word in words]
    result = call(shards, *words)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert told.replace("OUT", str(tmp_path)) in result.output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    result = call(tmp_path, "-o", tmp_path / "a.png")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path}: no dataset.json here")
