"""A run that starts from another has its weights and its network, and its files say where it started."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from model import loop
from model.audio import AudioParams
from model.checkpoint import (
    EMA,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    find_checkpoint,
    list_checkpoints,
    load_network,
    save_checkpoint,
)
from model.execution import Execution
from model.published import read_catalogue
from model.published_file import PublishedInfo, write_published_file
from model.recipe import PRESETS, ModelError, Recipe, build_recipe
from model.sampling_advice import advise_by_recipe
from model.start import Start, find_start
from pipeline.export import export_network
from pipeline.main import cli
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator, override_params
from shards.checksum import file_sha256
from shards.schema import ShardError
from stages.engine.outcome import StageError
from stages.train import run as train
from stages.train import run_file
from stages.train.run import TrainRequest
from stages.train.run_file import RUN_FILE, advise_sampling, read_run_file
from tests.model import worlds
from tests.model.test_loop import start_command
from tests.model.worlds import CPU, N_MELS, SIZE, TINY

D = 6
SPEECH = AudioParams(n_mels=N_MELS, input="speech", speech_size=D, speech_rows_before=2, speech_rows_after=3)
QUICK: dict[str, Any] = {"batch": 4, "steps": 3, "optim": {"after_warmup": "constant"}}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset to train on; one clip more than the start's."""
    return worlds.make_dataset(tmp_path_factory.mktemp("other") / "shards", (9, 12, 7), seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on a dataset of its own."""
    folder = tmp_path_factory.mktemp("base")
    worlds.run_training(worlds.make_dataset(folder / "shards"), folder / "run", replace(TINY, steps=6))
    return folder / "run"


def make_recipe(start: Start, **changes: Any) -> Recipe:
    return build_recipe("own", {**QUICK, **changes}, start=start.recipe)


def train_from(path: Path, shards: Path, run: Path, **changes: Any) -> str:
    start = find_start(path)
    request = TrainRequest(str(shards), run, "own", device="cpu", start=start)
    return train.run(request, make_recipe(start, **changes))


def read_files(run: Path) -> list[bytes]:
    path = list_checkpoints(run)[-1].path
    return [(path / name).read_bytes() for name in (WEIGHTS, EMA, OPTIMIZER, STATE)]


# --- what is taken ----------------------------------------------------------------------------------


def test_a_run_starts_with_the_averaged_weights_and_no_memory_of_the_optimiser(base: Path) -> None:
    start = find_start(base)
    state = loop.create_state(make_recipe(start), CPU, start=start.load_network())
    averaged = load_network(base)[0].state_dict()
    trained = load_network(base, weights="trained")[0].state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in averaged.items())
    for network in (state.network, state.ema):
        for name, value in network.state_dict().items():
            assert torch.equal(value, averaged[name]), name
    assert (state.step, state.position, len(state.optimizer.state)) == (0, 0, 0)


def test_network_and_noise_are_the_starts_and_all_else_is_the_presets(base: Path) -> None:
    recipe, start = make_recipe(find_start(base)), find_start(base).recipe
    assert recipe.network == TINY.network and recipe.noise == TINY.noise
    assert recipe.frames.mask_region == start.frames.mask_region
    own = build_recipe("own")
    assert recipe.optim.ema_decay == own.optim.ema_decay != start.optim.ema_decay
    assert recipe.frames.previous_hidden == own.frames.previous_hidden != start.frames.previous_hidden
    masked = replace(start, frames=replace(start.frames, mask_region=(2, 4, 14, 16), audio_dropped=0.0))
    assert build_recipe("demo", start=masked).frames.mask_region == (2, 4, 14, 16)
    assert build_recipe("demo", start=masked).frames.audio_dropped == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"channels": 64}}, "network.channels is 64, expected 32 as in the run that this one"),
        ({"network": {"audio": {"rows_before": 4}}}, "network.audio.rows_before is 4, expected 2 as in"),
        ({"noise": {"target": "v", "schedule": "linear"}}, "noise.schedule is 'linear', expected 'cosine'"),
        ({"frames": {"mask_region": [2, 4, 14, 16]}}, "frames.mask_region is (2, 4, 14, 16), expected None"),
    ],
)
def test_no_change_may_differ_from_what_the_weights_are_for(
    base: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        make_recipe(find_start(base), **change)
    assert str(caught.value).startswith(message), str(caught.value)


def test_a_run_a_checkpoint_and_a_published_file_can_be_started_from(
    base: Path, other: Path, tmp_path: Path
) -> None:
    network, checkpoint = load_network(base)
    file = tmp_path / "base.safetensors"
    write_published_file(network, PublishedInfo(recipe=checkpoint.recipe, step=checkpoint.step), file)
    assert find_start(base).record.sha256 == find_start(checkpoint.path).record.sha256
    for number, path in enumerate((base, checkpoint.path, file)):
        run = tmp_path / f"run{number}"
        assert train_from(path, other, run) == "done"
        weights = file if path == file else checkpoint.path / EMA
        record = {"name": str(path), "sha256": file_sha256(weights), "step": 6}
        assert json.loads((find_checkpoint(run).path / STATE).read_text())["start"] == record
        assert json.loads((run / RUN_FILE).read_text())["start"] == record
        assert read_run_file(run)["digest"] == find_checkpoint(run).digest != checkpoint.digest
    assert read_files(tmp_path / "run0")[:3] == read_files(tmp_path / "run1")[:3]


def test_how_a_published_model_is_sampled_is_known_in_the_second_generation_too(
    base: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, first, second, again = (tmp_path / name for name in ("x.safetensors", "a", "b", "y.safetensors"))
    export_network(base, file)
    assert advise_sampling(file) == advise_sampling(base) == {}, "no model of the catalogue is behind it"
    size, sha256 = file.stat().st_size, file_sha256(file)
    model = read_catalogue()[0].model_copy(update={"bytes": size, "sha256": sha256})
    advice = model.sampling.model_dump(exclude_none=True)
    monkeypatch.setattr(run_file, "read_catalogue", lambda: [model])
    assert train_from(file, other, first) == train_from(first, other, second) == "done"
    export_network(second, again)
    paths = [first, second, find_checkpoint(second).path, again]
    assert [advise_sampling(path) for path in [file, *paths]] == [advice] * 5
    monkeypatch.setattr(run_file, "read_catalogue", list)  # of a redub that has other models
    assert [advise_sampling(path) for path in paths] == [advice] * 4

    monkeypatch.setattr(run_file, "read_catalogue", lambda: [model])
    for run, expected in ((first, advice), (second, {})):  # as an older redub wrote them
        content = json.loads((run / RUN_FILE).read_text())
        del content["sampling"]
        (run / RUN_FILE).write_text(json.dumps(content))
        assert advise_sampling(run) == expected
    (second / RUN_FILE).write_text(json.dumps(content | {"sampling": {"steps": 10**9}}))
    with pytest.raises(StageError, match=r"sampling\.steps is 1000000000, expected less than or equal"):
        read_run_file(second)
    (second / RUN_FILE).write_text(json.dumps(content | {"recipe": {"batch": 0}}))
    with pytest.raises(StageError, match=r"run\.json: recipe: batch is 0, expected greater than or equal"):
        read_run_file(second)


def test_a_network_of_the_papers_recipe_is_sampled_as_the_paper_does(tmp_path: Path) -> None:
    """Its noise level of the start has so little signal that a few steps of another sampler give noise."""
    advice = {
        "sampler": "ancestral",
        "steps": 100,
        "guidance": 1.0,
        "common_noise": 0.0,
        "flat_pauses": False,
    }
    for preset in PRESETS:
        expected = advice if preset.startswith("paper") else {}
        recipe = replace(build_recipe(preset), distill=False)
        assert advise_by_recipe(recipe).model_dump(exclude_none=True) == expected, preset
    audio = replace(TINY.network.audio, null=False)
    recipe = replace(
        TINY,
        network=replace(TINY.network, audio=audio),
        noise=replace(TINY.noise, target="epsilon"),
        frames=replace(TINY.frames, audio_dropped=0.0),
        steps=1,
    )
    worlds.run_training(worlds.make_dataset(tmp_path / "shards"), tmp_path / "run", recipe)
    network, checkpoint = load_network(tmp_path / "run")
    params = override_params(SampleParams(), **advise_sampling(tmp_path / "run"))
    assert len(FrameGenerator(network, checkpoint.recipe, params, CPU, Execution()).steps) == 100
    with pytest.raises(ModelError, match="guidance 2 needs a network that can run without audio"):
        FrameGenerator(network, checkpoint.recipe, SampleParams(), CPU, Execution())


def test_a_run_from_nothing_says_nothing_of_a_start(base: Path) -> None:
    assert "sampling" not in json.loads((base / RUN_FILE).read_text())
    assert "start" not in json.loads((base / RUN_FILE).read_text())
    assert "start" not in json.loads((find_checkpoint(base).path / STATE).read_text())


def test_one_clip_is_enough_and_none_of_it_is_held_out(base: Path, tmp_path: Path) -> None:
    shards = worlds.make_dataset(tmp_path / "shards", [5])
    assert train_from(base, shards, tmp_path / "run") == "done"
    assert find_checkpoint(tmp_path / "run").held_out_loss is None


def test_the_scale_of_speech_features_is_the_starts(tmp_path: Path) -> None:
    known = worlds.make_dataset(tmp_path / "known", (9, 12), speech_size=D)
    recipe = replace(TINY, steps=2, network=replace(TINY.network, audio=SPEECH))
    worlds.run_training(known, tmp_path / "base", recipe)
    unknown = worlds.make_dataset(tmp_path / "unknown", (8, 6), seed=3, speech_size=D)
    assert train_from(tmp_path / "base", unknown, tmp_path / "run") == "done"
    scales = [load_network(run)[0].embed_audio.speech.mean for run in (tmp_path / "base", tmp_path / "run")]
    assert torch.equal(*scales) and scales[0].any()


# --- what does not fit ------------------------------------------------------------------------------


def test_a_dataset_without_what_the_start_hears_is_refused(other: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=2, network=replace(TINY.network, audio=SPEECH))
    worlds.run_training(
        worlds.make_dataset(tmp_path / "shards", (9, 12), speech_size=D), tmp_path / "base", recipe
    )
    with pytest.raises(ShardError) as caught:
        train_from(tmp_path / "base", other, tmp_path / "run")
    assert str(caught.value).startswith(
        f"{other}: has no speech features (speech.npy), which the network takes"
    )
    wider = worlds.make_dataset(tmp_path / "wider", (9, 7), speech_size=D + 1)
    with pytest.raises(ShardError, match=f"holds {D + 1} speech features, the network takes {D}"):
        train_from(tmp_path / "base", wider, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("align", "size", 32, "holds 32 px crops, the network takes 16"),
        ("mels", "n_mels", 4, "has mels.n_mels 4, expected 8 as in the dataset of"),
        ("mels", "fmax", 4000.0, "has mels.fmax 4000.0, expected 8000.0 as in the dataset of"),
    ],
)
def test_a_dataset_made_otherwise_is_refused_in_one_line(
    base: Path, other: Path, tmp_path: Path, section: str, name: str, value: float, message: str
) -> None:
    start, shards = tmp_path / "base", tmp_path / "shards"
    shutil.copytree(base, start)
    shutil.copytree(other, shards)
    run_file = json.loads((start / RUN_FILE).read_text())
    run_file["mels"] |= {"fmax": 8000.0}
    (start / RUN_FILE).write_text(json.dumps(run_file))
    manifest = json.loads((shards / "dataset.json").read_text())
    manifest["params"][section] |= {name: value}
    (shards / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises((ShardError, StageError)) as caught:
        train_from(start, shards, tmp_path / "run")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "'nowhere': no published model has this name; known are "),
        ("./nowhere", "nowhere: no checkpoint here; `pipeline train --run nowhere` makes one"),
        ("none.safetensors", "none.safetensors: is missing"),
        ("text.safetensors", "text.safetensors: not a complete safetensors file"),
    ],
)
def test_what_is_no_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.safetensors").write_text("no tensors")
    result = CliRunner().invoke(cli, ["train", "--shards", "shards", "--start-from", name])
    assert result.exit_code == 1 and f"Error: {message}" in result.output
    assert len(result.output.splitlines()) == 1


# --- resuming ---------------------------------------------------------------------------------------


def test_a_run_that_started_from_another_is_resumed_bit_for_bit(
    base: Path, other: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    train_from(base, other, tmp_path / "whole", steps=7)
    train_from(base, other, tmp_path / "parts", steps=3)
    train_from(base, other, tmp_path / "parts", steps=7)
    assert read_files(tmp_path / "whole") == read_files(tmp_path / "parts")


def test_a_killed_run_that_started_from_another_is_resumed_bit_for_bit(
    base: Path, other: Path, tmp_path: Path
) -> None:
    endless = make_recipe(find_start(base), steps=10**6, watch={"log_every": 1, "save_every": 3})
    killed, whole, options = tmp_path / "killed", tmp_path / "whole", ("--start-from", str(base))
    process = start_command(other, killed, endless, until=7, options=options)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    steps = list_checkpoints(killed)[-1].step + 5
    until = replace(endless, steps=steps)
    for run in (killed, whole):
        worlds.run_command(worlds.make_command(other, run, until, *options))
    assert list_checkpoints(killed)[-1].step == steps
    assert read_files(killed) == read_files(whole)


def test_resuming_needs_the_same_start(base: Path, other: Path, tmp_path: Path) -> None:
    run, nothing, changed = tmp_path / "run", tmp_path / "nothing", tmp_path / "changed"
    train_from(base, other, run)
    recipe = make_recipe(find_start(base))
    with pytest.raises(ModelError, match=r"started from .*run of step 6, .*; resume it with --start-from"):
        worlds.run_training(other, run, recipe)
    state = loop.create_state(TINY, CPU)
    state.step = 6
    save_checkpoint(state, changed, TINY, "digest", None)
    with pytest.raises(ModelError, match=r"started from .*run of step 6, sha256 .*, not from .*changed of"):
        train_from(changed, other, run)
    moved = shutil.copytree(base, tmp_path / "moved")
    assert train_from(moved, other, run) == "done", "the same weights elsewhere are the same start"
    worlds.run_training(other, nothing, recipe)
    with pytest.raises(ModelError, match=r"started from nothing, not from .*run of step 6"):
        train_from(base, other, nothing)


def test_the_command_starts_from_a_run(base: Path, other: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--shards", other, "--run", run, "--preset", "own", "--start-from", base,
                 "--device", "cpu", "-s", "steps=2", "-s", "batch=4"]  # fmt: skip
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{run}: done\n"
    assert find_checkpoint(run).recipe.network.size == SIZE
