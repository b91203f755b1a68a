"""Published models as a user meets them: `models`, `export`, `fetch`, `--run`, the page, and the package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from model import loop, published
from model.checkpoint import load_network, save_checkpoint
from model.execution import Execution
from model.published_file import read_published_info
from model.recipe import ModelError
from model.start_record import StartRecord
from pipeline.app.models import ModelList, describe_run
from pipeline.export import publish_network
from pipeline.main import cli
from pipeline.options import DEFAULT_NETWORK, FAST_NETWORK
from stages import synth
from stages.engine.outcome import StageError
from stages.media import networks, weights
from stages.media.networks import list_networks
from stages.mels import MelsParams
from stages.synth import ClipSpec
from tests.conftest import ROOT
from tests.media import read_rgb_frames
from tests.model.worlds import CPU, TINY

RECIPE = replace(TINY, network=replace(TINY.network, size=32))
MELS = {"n_mels": 8, "reference": "clip"}
FACTS = json.loads((published.FOLDER / published.CATALOGUE).read_text())["models"][0]


def write_run(run: Path, steps: dict[int, float], **info: Any) -> Path:
    """An untrained run whose checkpoints have these held-out losses; the weights differ by step."""
    state = loop.create_state(RECIPE, CPU)
    for step, loss in steps.items():
        state.step = step
        state.ema.out.bias.data.fill_(step)
        save_checkpoint(state, run, RECIPE, "digest", loss)
    (run / "run.json").write_text(json.dumps({"shards": "data", **info}))
    return run


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


# --- models, fetch --------------------------------------------------------------------------------


def test_models_are_listed_with_size_figures_and_licences() -> None:
    text = call("models").stdout
    heads, first = (line.split() for line in text.splitlines()[:2])
    assert heads == ["name", "hears", "size", "parameters", "licence", "where"]
    assert (first[0], first[-1]) == (DEFAULT_NETWORK, "packaged")
    for network in list_networks():
        model = network.model
        assert f"{model.audio_input}  " in text and f"{model.parameters:,}" in text
        assert all(published.format_figure(figure) in text for figure in model.figures)
        assert model.licence in text and all(data.licence in text for data in model.data)
        assert all(f"limit: {limit}\n" in text for limit in model.limits)
        assert all(f"must not be used {use}\n" in text for use in model.must_not)
    [entry, *_] = json.loads(call("models", "--json").stdout)["models"]
    assert entry["name"] == DEFAULT_NETWORK and entry["packaged"]
    assert Path(entry["path"]).stat().st_size == entry["bytes"]
    assert entry["must_not"] == FACTS["must_not"]


def test_the_list_says_where_a_model_is_or_how_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = list_networks()[0].model
    away = model.model_copy(update={"name": "away", "url": "https://example.org/away.safetensors"})
    monkeypatch.setattr(networks, "read_catalogue", lambda: [model, away])
    monkeypatch.setattr(networks, "find_packaged_file", lambda _: None)
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path)
    lines = [line for line in call("models").stdout.splitlines() if line.startswith((model.name, "away"))]
    assert [line.split("  ")[-1] for line in lines] == ["missing", "fetch --model"]


def test_a_packaged_model_needs_no_download() -> None:
    path = published.FOLDER / f"{DEFAULT_NETWORK}.safetensors"
    line = f"{path}: it is in the package and needs no download\n"
    assert call("fetch", "--model", DEFAULT_NETWORK).stdout == line
    message = f"'huge': no published model has this name; known are {DEFAULT_NETWORK}, {FAST_NETWORK}"
    assert message in call("fetch", "--model", "huge", code=1).stderr
    message = "one of --dataset, --weights and --model is needed"
    assert message in call("fetch", "--model", "huge", "--weights", "lpips", code=2).stderr
    assert message in call("fetch", code=2).stderr


# --- export ---------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_exported_or_the_newest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {4: 0.2, 8: 0.5}, mels=MELS)
    out = tmp_path / "mine.safetensors"
    assert "parameters of step 4, 0." in call("export", "--run", run, "-o", out).stdout
    network, checkpoint = load_network(out)
    assert (checkpoint.step, checkpoint.digest, checkpoint.recipe) == (4, "digest", RECIPE)
    assert (network.out.bias == 4).all()
    info = read_published_info(out)
    assert info.mels == MELS and info.speech is None
    assert "of step 8" in call("export", "--run", run, "-o", out, "--newest").stdout
    assert load_network(out)[1].step == 8, "an existing file is replaced"
    again = tmp_path / "again.safetensors"
    call("export", "--run", out, "-o", again)
    assert again.read_bytes() == out.read_bytes()


def test_an_export_that_is_refused_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {4: 0.2}, mels=MELS)
    out = tmp_path / "mine.safetensors"
    out.write_text("before")
    state = loop.create_state(RECIPE, CPU)
    state.step = 9
    state.ema.out.weight.data.fill_(1e-9)
    save_checkpoint(state, run, RECIPE, "digest", 0.1)
    result = call("export", "--run", run, "-o", out, code=1)
    assert result.stderr.count("\n") == 1 and "out.weight does not survive float16" in result.stderr
    result = call("export", "--run", tmp_path / "none", "-o", out, code=1)
    assert "none: no checkpoint here" in result.stderr
    assert out.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    message = "mine.pt: expected a name that ends in .safetensors"
    assert message in call("export", "--run", run, "-o", tmp_path / "mine.pt", code=2).stderr


def test_an_export_without_a_run_file_says_what_its_user_needs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {4: 0.2})
    (run / "run.json").unlink()
    result = call("export", "--run", run, "-o", tmp_path / "x.safetensors")
    assert "has no run.json that says how its mels were made" in result.stderr
    with pytest.raises(ModelError, match=r"has no run\.json"):
        publish_network(run, FACTS, name="small", folder=make_folder(tmp_path / "published"))


# --- --run ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("landmarker")
def test_a_published_file_edits_as_its_run_does_and_knows_its_mels(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {4: 0.2}, mels=MELS)
    out = tmp_path / "mine.safetensors"
    call("export", "--run", run, "-o", out)
    clip = tmp_path / "clip.mp4"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(240, 192)))
    options = [
        "--video",
        clip,
        "--audio",
        clip,
        "--device",
        "cpu",
        "--steps",
        2,
        "--preset",
        "ultrafast",
        "--any-face",
    ]
    for name, network in (("run.mp4", run), ("file.mp4", out)):
        result = call("edit", *options, "--run", network, "-o", tmp_path / name)
        assert "10 of 10 frames re-drawn" in result.stdout
    one, other = (read_rgb_frames(tmp_path / name) for name in ("run.mp4", "file.mp4"))
    assert max(abs(a.astype(int) - b).max() for a, b in zip(one, other, strict=True)) <= 8, (
        "float16, and x264"
    )


@pytest.mark.usefixtures("landmarker")
def test_without_a_run_the_packaged_model_edits_as_it_is_meant_to_be_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without a params.yaml
    clip = tmp_path / "clip.mp4"
    synth.make_clip(clip, ClipSpec(seconds=0.4, size=(240, 192)))
    options = ["--video", clip, "--audio", clip, "--device", "cpu", "--preset", "ultrafast", "--any-face"]
    fast = next(network for network in list_networks() if network.model.name == FAST_NETWORK)
    advice = fast.model.sampling.model_dump(exclude_none=True)
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in advice.items()]
    call("edit", *options, "-o", tmp_path / "one.mp4")
    call("edit", *options, "-o", tmp_path / "two.mp4", "--run", FAST_NETWORK, *settings)
    call("edit", *options, "-o", tmp_path / "other.mp4", "--common-noise", 0)
    one, two, other = ((tmp_path / f"{name}.mp4").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other, "an option overrides what the catalogue advises"


def test_a_network_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        ["edit", "--video", "x.mp4", "--audio", "x.wav", "-o", "out.mp4"],
        ["sample", "--shards", "shards", "-o", "out"],
        ["export", "-o", "out.safetensors"],
        ["app"],
    ):
        result = call(*command, "--run", "smal", code=1)
        assert result.stderr == (
            f"Error: 'smal': no published model has this name; known are {DEFAULT_NETWORK}, {FAST_NETWORK}, "
            "and there is no such folder\n"
        )
        assert "not UTF-8" in call(*command, "--run", "a\udcffb", code=2).stderr
    assert not list(tmp_path.iterdir())


def test_mels_of_a_published_file_that_cannot_be_made_are_one_line(tmp_path: Path) -> None:
    from pipeline.params import Params

    run = write_run(tmp_path / "run", {4: 0.2}, mels={"n_mels": 40, "reference": "clip"})
    out = tmp_path / "x.safetensors"
    call("export", "--run", run, "-o", out)
    assert Params().make_edit_params(out).mels == MelsParams(n_mels=40, reference="clip")
    write_run(tmp_path / "run", {4: 0.2}, mels={"n_mels": 10**9})
    call("export", "--run", run, "-o", out)
    with pytest.raises(StageError, match=r"x\.safetensors: mels\.n_mels is 1000000000, expected"):
        Params().make_edit_params(out)


# --- the page -------------------------------------------------------------------------------------


def test_the_page_offers_published_models_first_and_a_run_of_that_name_by_its_path(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "a", {4: 0.2})
    write_run(runs / DEFAULT_NETWORK, {5: 0.2})
    networks = list_networks()
    packaged = networks[0].path
    assert packaged is not None
    models = ModelList(runs, [packaged], CPU, Execution(), published=networks)
    offers = models.find_runs()
    assert list(offers) == [DEFAULT_NETWORK, FAST_NETWORK, "a", str(runs / DEFAULT_NETWORK)]
    assert offers[DEFAULT_NETWORK].path == packaged, "--run NAME offers it once"
    description = describe_run(DEFAULT_NETWORK, offers[DEFAULT_NETWORK])
    assert description.startswith(f"{DEFAULT_NETWORK} · published model · step ")


# --- the package ----------------------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / published.CATALOGUE).write_text('{"format": 1, "models": []}')
    return folder


def test_a_run_becomes_a_packaged_model_and_replaces_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "published")
    run = write_run(tmp_path / "run", {4: 0.2, 8: 0.1}, mels=MELS)
    model = publish_network(run, FACTS, name="other", folder=folder)
    assert published.read_catalogue(folder) == [model]
    path = published.find_packaged_file(model, folder)
    assert path == folder / "other.safetensors" and model.step == 8
    assert (folder / "other.md").read_text() == published.render_page(model)
    again = publish_network(
        tmp_path / "run" / "checkpoints" / "step-00000004",
        {"summary": "Another."},
        name="other",
        folder=folder,
    )
    assert published.read_catalogue(folder) == [again]
    assert (again.summary, again.step, again.limits) == ("Another.", 4, model.limits)
    assert {item.name for item in folder.iterdir()} == {"models.json", "other.md", "other.safetensors"}


def test_a_model_that_was_trained_further_says_both_numbers_of_steps(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "published")
    run = tmp_path / "run"
    state = loop.create_state(RECIPE, CPU)
    state.step = 1500
    start = StartRecord(name="first", sha256="0" * 64, step=2500)
    save_checkpoint(state, run, RECIPE, "digest", 0.1, start)
    (run / "run.json").write_text(json.dumps({"shards": "data", "mels": MELS}))
    model = publish_network(run, FACTS, name="further", folder=folder)
    assert (model.step, model.start_step) == (1500, 2500)
    expected = "4,000 steps: 2,500 of the network that it started from, then 1,500"
    assert expected in (folder / "further.md").read_text()
    save_checkpoint(state, tmp_path / "last", RECIPE, "digest", 0.1,
                    StartRecord(name="further", sha256=model.sha256, step=1500))  # fmt: skip
    (tmp_path / "last" / "run.json").write_text(json.dumps({"shards": "data", "mels": MELS}))
    last = publish_network(tmp_path / "last", FACTS, name="last", folder=folder)
    assert (last.step, last.start_step) == (1500, 4000), "what its start had started from counts too"
    plain_run = write_run(tmp_path / "plain", {8: 0.1}, mels=MELS)
    plain = publish_network(plain_run, {}, name="further", folder=folder)
    assert plain.start_step == 0 and "| trained for | 8 steps |" in (folder / "further.md").read_text()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"limits": []}, r"the facts: limits is \[\], expected"),
        ({"note": 1}, "the facts: note is not known; known are name, "),
        ({"sampling": {"sampler": "euler"}}, "sampler is 'euler', expected"),
        ({"name": "x", "url": "ftp://x"}, "the facts: url is 'ftp://x'"),
    ],
)
def test_facts_that_are_none_replace_nothing(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    folder = make_folder(tmp_path / "published")
    run = write_run(tmp_path / "run", {4: 0.2}, mels=MELS)
    publish_network(run, FACTS, name="small", folder=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ModelError, match=message):
        publish_network(run, facts, name="small", folder=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_wheel_and_sdist_carry_the_packaged_models(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for name in ("pipeline", "stages", "sampler", "model", "shards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = (
        "from setuptools import build_meta as b; b.build_wheel('wheel'); "
        "import shutil; shutil.rmtree('build'); b.build_sdist('sdist')"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    [wheel], [sdist] = (source / "wheel").iterdir(), (source / "sdist").iterdir()
    names = {f"model/published/{path.name}" for path in published.FOLDER.iterdir()}
    assert {"model/published/models.json", f"model/published/{DEFAULT_NETWORK}.safetensors"} <= names
    with zipfile.ZipFile(wheel) as packed:
        assert names <= set(packed.namelist())
        path = f"model/published/{DEFAULT_NETWORK}.safetensors"
        assert packed.read(path) == (published.FOLDER / f"{DEFAULT_NETWORK}.safetensors").read_bytes()
    with tarfile.open(sdist) as archive:
        assert names <= {name.partition("/")[2] for name in archive.getnames()}
