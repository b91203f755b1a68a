"""Published models: their files, which strangers may have made, the catalogue, and the packaged ones."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import published
from model.audio import AudioParams
from model.checkpoint import EMA, find_checkpoint, find_run, list_checkpoints, load_network, save_checkpoint
from model.loop import create_state
from model.published import (
    CATALOGUE,
    FOLDER,
    MAX_CATALOGUE_BYTES,
    PublishedModel,
    find_packaged_file,
    read_catalogue,
    render_page,
)
from model.published_file import (
    MAX_ROUNDING,
    METADATA,
    PublishedInfo,
    load_published_network,
    read_published_info,
    write_published_file,
)
from model.recipe import ModelError, Recipe, recipe_to_dict
from model.start_record import StartRecord
from model.unet import UNet, count_parameters
from pipeline.export import export_network
from pipeline.one_clip import clip_from_file
from pipeline.params import Params
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator, override_params
from shards.checksum import file_sha256
from stages.media import networks, weights
from stages.media.networks import fetch_network, find_network, find_trainable, list_networks
from stages.train.run_file import advise_sampling
from tests.model.worlds import CPU, TINY

PACKAGED = [model for model in read_catalogue() if model.url is None]
MAX_PACKAGED_BYTES = 10_000_000
HEARS = {
    "mels": TINY,
    **{
        hears: replace(
            TINY, network=replace(TINY.network, audio=AudioParams(n_mels=8, input=hears, speech_size=5))
        )
        for hears in ("speech", "both")
    },
}
GREY_LEVELS = 2.0, 0.1  # how far float16 weights may move a pixel, at most and on average


def make_network(recipe: Recipe = TINY) -> UNet:
    """A network whose weights need all bits of float32, and so do the means of its features."""
    generator = torch.Generator().manual_seed(0)
    state = create_state(recipe, CPU)
    for parameter in state.ema.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in state.ema.named_buffers():
        if name.endswith(("mean", "std")):
            buffer.copy_(1e-5 + torch.rand(buffer.shape, generator=generator))
    return state.ema


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A published file of a tiny network."""
    path = tmp_path / "tiny.safetensors"
    write_published_file(make_network(), PublishedInfo(recipe=TINY, step=7, digest="d"), path)
    return path


def read_error(call: Callable[[], object]) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 800, message
    return message


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "/home/somebody/runs/small"])
def test_the_file_names_its_start_without_the_folders_of_the_machine(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    start = StartRecord(name=name, sha256="f" * 64, step=6)
    write_published_file(make_network(), PublishedInfo(recipe=TINY, step=7, start=start), path)
    assert read_published_info(path).start == StartRecord(name="small", sha256="f" * 64, step=6)
    assert b"somebody" not in path.read_bytes()


@pytest.mark.parametrize("hears", HEARS)
def test_a_network_is_read_back_as_float32_and_half_as_large(tmp_path: Path, hears: str) -> None:
    recipe, path = HEARS[hears], tmp_path / "x.safetensors"
    network, parameters = make_network(recipe), dict(make_network(recipe).named_parameters())
    rounding = write_published_file(network, PublishedInfo(recipe=recipe, step=3), path)
    assert 0 < rounding < 2**-11
    loaded, info = load_published_network(path)
    assert (info.recipe, info.step) == (recipe, 3)
    for name, value in loaded.state_dict().items():
        original = network.state_dict()[name]
        assert value.dtype == original.dtype == torch.float32
        assert torch.equal(value, original.half().float() if name in parameters else original), name
    assert path.stat().st_size < 2 * count_parameters(loaded) + 40_000
    assert not loaded.training


def test_a_published_file_takes_the_place_of_a_run(path: Path) -> None:
    network, checkpoint = load_network(path)
    assert (checkpoint.step, checkpoint.recipe, checkpoint.digest) == (7, TINY, "d")
    assert find_checkpoint(path) == checkpoint and find_run(path) == path
    again = path.with_name("again.safetensors")
    assert write_published_file(network, read_published_info(path), again) == 0
    assert again.read_bytes() == path.read_bytes(), "float16 of float16 is the same"


def test_a_link_to_a_published_file_is_followed(path: Path, tmp_path: Path) -> None:
    """Some installers link every file of a package from their own folder."""
    link = tmp_path / "package" / "tiny.safetensors"
    link.parent.mkdir()
    link.symlink_to(path)
    assert load_network(link)[1].step == 7


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7e4, "stem.weight has the value 70000, float16 holds none beyond 65504"),
        (float("inf"), "stem.weight has the value inf, float16 holds none"),
        (float("nan"), "stem.weight has the value nan, float16 holds none"),
        (1e-9, "stem.weight does not survive float16: it changes by 1 of its size, expected at most 0.001"),
        (3.1e-7, "stem.weight does not survive float16: it changes by 0.039 of its size"),
    ],
)
def test_weights_that_float16_does_not_hold_are_refused_and_nothing_is_written(
    tmp_path: Path, value: float, message: str
) -> None:
    network, path = make_network(), tmp_path / "x.safetensors"
    network.stem.weight.data.fill_(value)
    error = read_error(lambda: write_published_file(network, PublishedInfo(recipe=TINY, step=0), path))
    assert message in error
    assert not list(tmp_path.iterdir())


def change_metadata(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content | values


def change_recipe(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content | {"recipe": content["recipe"] | values}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_metadata(format=2), "is a published model of format 2, this redub reads format 1"),
        (change_metadata(format=None), "is a published model of format None"),
        (change_metadata(step=-1), "step is -1"),
        (change_metadata(step=10**30), "a number of 31 digits"),
        (change_metadata(extra=1), "not a published model: extra is not known; known are format, recipe"),
        (change_metadata(mels=[1]), "mels is [1], expected an object"),
        (change_metadata(mels={str(k): k for k in range(1000)}), "mels is {"),
        (change_metadata(recipe=None), "recipe is None"),
        (change_recipe(network={"blocks": 10**9}), "recipe.network.blocks is 1000000000"),
        (change_recipe(network={"channels": 64}), "does not fit its recipe: "),
        (change_recipe(bogus=1), "recipe.bogus is not known; known are network, "),
        (lambda content: [content], "JSON holds list, expected an object"),
        (lambda content: "x" * 10**5, "JSON holds str, expected an object"),
    ],
)
def test_metadata_of_a_stranger_are_refused_in_one_line(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    tensors = load_file(path)
    content = {"format": 1, "recipe": recipe_to_dict(TINY), "step": 7}
    save_file(tensors, path, {METADATA: json.dumps(content)})
    assert load_network(path)[1].step == 7, "what a checkpoint's files hold too is enough"
    save_file(tensors, path, {METADATA: json.dumps(change(json.loads(json.dumps(content))))})
    error = read_error(lambda: load_network(path))
    assert error.startswith(f"{path}: ") and message in error


def alter_tensors(change: Callable[[str, Tensor], Tensor | None]) -> Callable[[Path], object]:
    def alter(path: Path) -> None:
        text = json.dumps({"format": 1, "recipe": recipe_to_dict(TINY), "step": 7})
        altered = {name: change(name, value) for name, value in load_file(path).items()}
        save_file(
            {name: value for name, value in altered.items() if value is not None}, path, {METADATA: text}
        )

    return alter


def alter_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def replace_file(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def alter(path: Path) -> None:
        path.unlink()
        make(path)

    return alter


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (alter_tensors(lambda name, value: value.float()), "its recipe needs at most"),
        (alter_tensors(lambda name, value: value.bfloat16()), "expected F16"),
        (alter_tensors(lambda name, value: value * torch.nan), "has the value nan"),
        (alter_tensors(lambda name, value: value * 6e4), "expected none beyond 10000"),
        (alter_tensors(lambda name, value: value.reshape(-1)), "does not fit its recipe"),
        (alter_tensors(lambda name, value: None if "stem" in name else value), "is missing, expected F16"),
        (alter_bytes(lambda data: data[:-5]), "not a complete safetensors file"),
        (alter_bytes(lambda data: data + bytes(10**6)), "its recipe needs at most"),
        (alter_bytes(lambda data: data[:100]), "not a complete safetensors file"),
        (alter_bytes(lambda data: data[:5]), "it ends in its header"),
        (alter_bytes(lambda data: struct.pack("<Q", 2**62) + data[8:]), "its header claims"),
        (alter_bytes(lambda data: struct.pack("<Q", 10**5) + b"[" * 10**5), "not a complete safetensors"),
        (alter_bytes(lambda data: struct.pack("<Q", 2) + b"{}"), "not a published model of redub"),
        (
            alter_bytes(lambda data: struct.pack("<Q", 20) + b'{"__metadata__":[1]}'),
            "its metadata are not texts",
        ),
        (replace_file(os.mkfifo), "tiny.safetensors: cannot be read (is a pipe"),
        (replace_file(lambda path: path.symlink_to("/dev/zero")), "cannot be read (is a device"),
        (replace_file(lambda path: path.symlink_to(path.name)), "tiny.safetensors: cannot be read"),
        (replace_file(make_sparse), "tiny.safetensors: "),
        (replace_file(lambda path: path.write_bytes(b"")), "it ends in its header"),
        (Path.unlink, "tiny.safetensors: is missing"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_before_memory_is_taken(
    path: Path, alter: Callable[[Path], object], message: str
) -> None:
    alter(path)
    tracemalloc.start()
    error = read_error(lambda: load_network(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in error
    assert peak < 50_000_000


def test_a_file_of_a_checkpoint_is_refused_with_the_name_of_its_folder(tmp_path: Path) -> None:
    saved = save_checkpoint(create_state(TINY, CPU), tmp_path, TINY, "d", None)
    for read in (load_network, find_checkpoint):
        error = read_error(lambda read=read: read(saved.path / EMA))
        assert error == f"{saved.path / EMA}: is a part of a checkpoint; name its folder, {saved.path}"
    assert list_checkpoints(tmp_path) == [saved]


# --- the packaged models --------------------------------------------------------------------------


def test_two_models_are_packaged_and_the_package_holds_nothing_else() -> None:
    assert [model.name for model in PACKAGED] == ["small", "fast"]
    assert sum(model.bytes for model in PACKAGED) <= MAX_PACKAGED_BYTES
    names = {CATALOGUE} | {f"{model.name}{end}" for model in PACKAGED for end in (".safetensors", ".md")}
    assert {item.name for item in FOLDER.iterdir()} == names


@pytest.mark.parametrize("model", PACKAGED, ids=lambda model: model.name)
def test_a_packaged_model_is_what_the_catalogue_says(model: PublishedModel) -> None:
    path = find_packaged_file(model)
    assert path is not None and model.bytes == path.stat().st_size <= MAX_PACKAGED_BYTES
    assert model.sha256 == file_sha256(path)
    network, checkpoint = load_network(path)
    assert model.parameters == count_parameters(network)
    assert (model.audio_input, model.step) == (checkpoint.recipe.network.audio.input, checkpoint.step)
    info = read_published_info(path)
    assert info.mels is not None, "it is known how its mels are made"
    assert (info.speech is not None) == checkpoint.recipe.network.audio.takes_speech
    FrameGenerator(network, checkpoint.recipe, override_params(SampleParams(), **advise_sampling(path)), CPU)


@pytest.mark.parametrize("is_from_small", [True, False])
def test_a_network_that_was_trained_further_from_a_model_is_sampled_like_it(
    is_from_small: bool, tmp_path: Path
) -> None:
    small = find_network("small")
    sha256 = file_sha256(small) if is_from_small else "0" * 64
    record = StartRecord(name="small", sha256=sha256, step=6)
    checkpoint = save_checkpoint(create_state(TINY, CPU), tmp_path / "run", TINY, "d", None, record)
    file = tmp_path / "further.safetensors"
    export_network(tmp_path / "run", file)
    assert advise_sampling(small), "it is not sampled with the defaults"
    expected = advise_sampling(small) if is_from_small else {}
    for path in (tmp_path / "run", checkpoint.path, file):
        assert advise_sampling(path) == expected


@pytest.mark.parametrize("model", PACKAGED, ids=lambda model: model.name)
def test_the_page_of_a_model_says_what_the_catalogue_says(model: PublishedModel) -> None:
    page = (FOLDER / f"{model.name}.md").read_text(encoding="utf-8")
    assert page == render_page(model), "`python -m pipeline.export` writes both"
    for data in model.data:
        assert data.licence in " ".join(page.split()) and data.licence_url in page
        assert " ".join(data.citation.split()) in " ".join(page.split())
    assert all(text in " ".join(page.split()) for text in [*model.limits, *model.must_not, model.sha256])


def test_float16_weights_draw_the_mouth_of_float32_weights(grid: Path, landmarker: Path) -> None:
    """The packaged weights against weights of all bits of float32 that round to them."""
    path = find_network("small")
    network, checkpoint = load_network(path)
    params = Params()
    if checkpoint.recipe.network.audio.takes_speech:
        params = replace(params, speech=replace(params.speech, encoder="whisper-tiny.en"))
    clip = clip_from_file(sorted((grid / "s1").glob("*.mpg"))[0], params, corpus="grid", raw=grid)
    sampling = override_params(SampleParams(), **advise_sampling(path))

    def draw(network: UNet) -> np.ndarray:
        frames = (CropFrame(*pair) for pair in zip(clip.frames[:12], clip.boxes[:12], strict=True))
        request = ClipRequest("x", frames, clip.mels, speech=clip.speech)
        generator = FrameGenerator(network, checkpoint.recipe, sampling, CPU)
        return np.stack([frame.pixels for frame in generator.rollout([request], slots=1)]).astype(int)

    rounded = draw(network)
    random = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        steps = torch.rand(parameter.shape, generator=random) * 2 - 1
        half = parameter.half()
        parameter.data *= 1 + 2**-12 * steps
        assert torch.equal(parameter.half(), half)
    difference = np.abs(draw(network) - rounded)
    mouth = np.abs(rounded - clip.frames[:12]).max(axis=-1) > 0
    assert mouth.any() and difference[~mouth].max() <= GREY_LEVELS[0]
    assert difference.max() <= GREY_LEVELS[0] and difference[mouth].mean() < GREY_LEVELS[1]


# --- the catalogue --------------------------------------------------------------------------------


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of the packaged models in a folder of its own, without their files."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / CATALOGUE).write_bytes((FOLDER / CATALOGUE).read_bytes())
    for name in ("read_catalogue", "find_packaged_file"):
        monkeypatch.setattr(networks, name, functools.partial(getattr(published, name), folder=folder))
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    return folder


def change_catalogue(folder: Path, **values: Any) -> None:
    """Set fields of the first model; None removes one."""
    content = json.loads((folder / CATALOGUE).read_text())
    entry = {**content["models"][0], **values}
    content["models"][0] = {name: value for name, value in entry.items() if value is not None}
    (folder / CATALOGUE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "../small"}, "models.0.name is '../small', expected"),
        ({"name": ".small"}, "models.0.name is '.small'"),
        ({"name": "small\n"}, r"models.0.name is 'small\n'"),
        ({"file": "/etc/passwd"}, "models.0: file is '/etc/passwd', expected small.safetensors"),
        ({"sha256": "x" * 64}, ", expected pattern '^[0-9a-f]{64}$'"),
        ({"sha256": None}, "models.0 is" ),
        ({"bytes": 2**31}, "models.0.bytes is 2147483648"),
        ({"bytes": "5"}, "models.0.bytes is '5'"),
        ({"parameters": 0}, "models.0.parameters is 0"),
        ({"audio_input": "eyes"}, "models.0.audio_input is 'eyes', expected 'mels', 'speech' or 'both'"),
        ({"summary": "x" * 5000}, "models.0.summary is 'xxx"),
        ({"summary": "\x1b[31mred"}, r"models.0.summary: '\x1b[31mred', expected one printable line"),
        ({"licence": ""}, "models.0.licence is ''"),
        ({"sampling": {"guidance": 1000}}, "models.0.sampling.guidance is 1000"),
        ({"sampling": {"speed": 1}}, "models.0.sampling.speed is not known; known are sampler, "),
        ({"data": []}, "models.0.data is []"),
        ({"figures": [{"name": "a", "value": 1, "low": 2, "high": 3, "conditions": "b"}]}, "a is 1, exp"),
        ({"figures": [{"name": "a", "value": 1, "low": 0, "conditions": "b"}]}, "has one end of an interval"),
        ({"must_not": []}, "models.0.must_not is []"),
        ({"url": "http://example.com/x"}, "models.0.url is 'http://example.com/x'"),
        ({"url": "file:///etc/passwd"}, "models.0.url is 'file:///etc/passwd'"),
        ({"extra": 1}, "models.0.extra is not known; known are name, summary, file"),
    ],
)  # fmt: skip
def test_an_entry_that_is_none_is_refused_in_one_line(
    catalogue: Path, values: dict[str, Any], message: str
) -> None:
    change_catalogue(catalogue, **values)
    error = read_error(lambda: read_catalogue(catalogue))
    if values != {"sha256": None}:
        assert message in error
    assert error.startswith(f"{catalogue / CATALOGUE}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "JSON holds list, expected an object"),
        (b"[" * 10**5, "not JSON"),
        (b'{"format": 1, "format": 1, "models": []}', "the key 'format' is twice"),
        (b'{"format": 2, "models": []}', "has format 2, this redub reads format 1"),
        (b'{"format": 1, "models": {}}', "models is {}"),
        (b'{"format": 1, "models": [], "x": 1}', "x is not known; known are format, models"),
        (b"\xff", "not JSON"),
        (b" " * (MAX_CATALOGUE_BYTES + 1), "expected at most"),
    ],
)
def test_a_damaged_catalogue_is_refused_in_one_line(catalogue: Path, content: bytes, message: str) -> None:
    (catalogue / CATALOGUE).write_bytes(content)
    assert message in read_error(lambda: read_catalogue(catalogue))
    (catalogue / CATALOGUE).unlink()
    assert "No such file or directory); install redub again" in read_error(lambda: read_catalogue(catalogue))


def test_no_two_models_have_one_name(catalogue: Path) -> None:
    content = json.loads((catalogue / CATALOGUE).read_text())
    content["models"] *= 2
    (catalogue / CATALOGUE).write_text(json.dumps(content))
    assert "models has the name small twice" in read_error(lambda: read_catalogue(catalogue))


# --- names ----------------------------------------------------------------------------------------


def test_a_name_is_the_published_model_and_a_path_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_network("small") == FOLDER / "small.safetensors" and not caplog.messages
    for name in ("small", "mine"):
        (tmp_path / name).mkdir()
    assert find_network("small") == FOLDER / "small.safetensors", "wherever a command is run"
    assert caplog.messages == ["small is the published model; the folder of this name is ./small"]
    for text in ("./small", "mine", "runs/small", "step-00000010.old", "x.safetensors", "../Small"):
        assert find_network(text) == Path(text)


def test_a_name_that_is_not_known_lists_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = read_error(lambda: find_network("smal"))
    known = "no published model has this name; known are small, fast"
    assert error == f"'smal': {known}, and there is no such folder"
    error = read_error(lambda: fetch_network("large" * 1000))
    assert error.endswith(known)


def test_a_model_that_is_not_here_says_how_it_comes(catalogue: Path) -> None:
    assert all(network.path is None and not network.is_packaged for network in list_networks())
    message = "small: its file is missing from the package; install redub again"
    assert read_error(lambda: find_network("small")) == message
    assert read_error(lambda: fetch_network("small")) == message
    change_catalogue(catalogue, url="https://example.org/small.safetensors")
    message = "small: is not on this machine; `pipeline fetch --model small` downloads it"
    assert read_error(lambda: find_network("small")) == message


def test_a_packaged_file_with_other_contents_is_not_used(catalogue: Path) -> None:
    data = (FOLDER / "small.safetensors").read_bytes()
    file = catalogue / "small.safetensors"
    for other in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(other)
        error = read_error(lambda: find_network("small"))
        assert f"{file}: has other contents than models.json says" in error
        assert "install redub again" in error
    file.write_bytes(data)
    assert find_network("small") == file


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a folder's files."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Tests are silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def test_a_model_with_an_address_is_downloaded_once_checked_and_then_has_its_name(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_catalogue(catalogue)[0]
    data = (FOLDER / model.file).read_bytes()
    served = tmp_path / "served"
    served.mkdir()
    with serve(served) as address:
        # an address of a catalogue is https; of this server it cannot be
        away = model.model_copy(update={"url": address + model.file})
        monkeypatch.setattr(networks, "read_catalogue", lambda: [away])
        (served / model.file).write_bytes(data[:-1] + b"x")
        with pytest.raises(Exception, match=r"sha256.*say where by --run$"):
            fetch_network("small")
        assert list_networks()[0].path is None
        (served / model.file).write_bytes(data)
        network = fetch_network("small")
        assert network.path == tmp_path / "cache" / model.file and not network.is_packaged
    assert fetch_network("small") == network, "without the server: nothing is downloaded again"
    assert find_network("small") == network.path
    assert advise_sampling(find_network("small")) == model.sampling.model_dump(exclude_none=True)
    network.path.write_bytes(data[:-1])
    assert list_networks()[0].path is None, "a damaged download counts as none"


def test_what_a_distilled_model_was_made_from_is_trained_in_its_place(tmp_path: Path) -> None:
    assert find_trainable(find_network("fast")) == find_network("small")
    assert find_trainable(find_network("small")) == find_network("small")
    recipe, record = replace(TINY, distill=True), StartRecord(name="runs/mine", sha256="0" * 64, step=6)
    save_checkpoint(create_state(TINY, CPU), tmp_path / "run", recipe, "d", None, record)
    error = read_error(lambda: find_trainable(tmp_path / "run"))
    assert error.endswith("cannot be trained further, expected runs/mine, from which it was distilled")


def test_advice_is_for_the_bytes_of_a_model_wherever_they_are(path: Path, tmp_path: Path) -> None:
    assert advise_sampling(path) == {} == advise_sampling(tmp_path) == advise_sampling(tmp_path / "none")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((FOLDER / "small.safetensors").read_bytes())
    assert advise_sampling(copy) == advise_sampling(find_network("small")) != {}
    assert MAX_ROUNDING < 0.01
