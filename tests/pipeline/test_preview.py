from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.main import cli
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


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["preview", *map(str, arguments)])


def test_a_sheet_and_a_video_are_written_and_reported(shards: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = invoke(shards, "-o", sheet)
    assert result.exit_code == 0, result.output
    with Image.open(sheet) as image:
        assert result.output == f"{sheet}: 3 of 3 clips, {image.width}x{image.height} px\n"
    few = invoke(shards, "-o", sheet, "--clip", "s1_c", "--clip", "s1_a")
    assert "2 of 3 clips" in few.output
    clip = tmp_path / "clip.mp4"
    result = invoke(shards, "--video", "s1_b", "-o", clip)
    assert result.exit_code == 0, result.output
    assert result.output == f"{clip}: s1_b, 4 frames, 0.16 s\n"
    assert sorted(tmp_path.iterdir()) == [clip, sheet]


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_invalid_options_are_reported_in_one_line(
    shards: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    arguments = [argument.replace("OUT", str(tmp_path)) for argument in arguments]
    result = invoke(shards, *arguments)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert message.replace("OUT", str(tmp_path)) in result.output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    result = invoke(tmp_path, "-o", tmp_path / "a.png")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path}: no dataset.json here")
