"""`pipeline app` as a visitor uses it, in a real Chromium; and its parts that need no browser."""

from __future__ import annotations

import contextlib
import errno
import html
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from playwright.sync_api import Browser, BrowserContext, Page, expect

from model import loop
from model.checkpoint import save_checkpoint
from model.execution import Execution
from model.recipe import ModelError
from pipeline.app.models import ModelList, describe_run
from pipeline.app.sessions import Kind, Sessions
from pipeline.commands.app import is_loopback
from pipeline.main import cli
from pipeline.options import FAST_NETWORK
from sampler.params import SampleParams
from stages import synth
from stages.engine.outcome import StageError
from stages.media.networks import list_networks
from stages.synth import ClipSpec
from tests.browser import launch_browser
from tests.build import pipeline
from tests.changing import change_folders
from tests.media import ffmpeg, read_audio, read_rgb_frames, read_stamps
from tests.model.worlds import CPU, TINY
from tests.waiting import GUARD_SECONDS, wait_until

SECONDS = 0.8  # of the clip
MAX_SECONDS, MAX_MB = 3, 1
RECIPE = replace(TINY, network=replace(TINY.network, size=32))
MODEL = list_networks()[0].model  # the packaged one, which is chosen when the page is opened
PACKAGED, ADVICE = f"{MODEL.name} · published model · step {MODEL.step:,}", MODEL.sampling
TIMEOUT_MS = GUARD_SECONDS * 1000
FLAGS = (
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run, a clip that no browser plays, and files that the page refuses."""
    folder = tmp_path_factory.mktemp("world")
    save_checkpoint(loop.create_state(RECIPE, CPU), folder / "runs" / "tiny", RECIPE, "digest", None)
    synth.make_clip(folder / "clip.mpg", ClipSpec(seconds=SECONDS, size=(240, 192)))
    ffmpeg("-f", "lavfi", "-i", f"sine=duration={MAX_SECONDS + 1}", folder / "long.mp3")
    (folder / "large.mp4").write_bytes(bytes(MAX_MB * 10**6 + 1))
    (folder / "text.mp4").write_text("not a video")
    (folder / "params.yaml").write_text(
        f"mels: {{n_mels: {RECIPE.network.audio.n_mels}}}\n"
        "face_check: {max_difference: 0.001}\n"  # that nothing fits
    )
    return folder


@dataclass
class Server:
    """The page in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    scratch: Path  # the only place for its temporary files
    calls: list[str] = field(default_factory=list)  # requests to other hosts, by it or by the browser
    errors: list[str] = field(default_factory=list)  # on the browser's console

    def files(self) -> list[Path]:
        """The files of its visitors."""
        paths = (Path(folder, name) for folder, _, names in os.walk(self.scratch) for name in names)
        return [path for path in paths if path.is_file()]


@contextlib.contextmanager
def start_proxy(calls: list[str]) -> Iterator[str]:
    """The address of a proxy that forwards nothing and records every call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    caller, _ = listener.accept()
                    with caller:
                        calls.append(caller.recv(200).decode(errors="replace"))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(world: Path, landmarker: Path, speech_model: Path) -> Iterator[Server]:
    scratch = world / "scratch"
    scratch.mkdir()
    calls: list[str] = []
    command = [
        sys.executable, "-m", "pipeline.main", "app",
        "--runs", world / "runs", "--params", world / "params.yaml",
        "--max-seconds", str(MAX_SECONDS), "--max-upload-mb", str(MAX_MB), "--device", "cpu",
        "--landmarker", landmarker,
    ]  # fmt: skip
    with start_proxy(calls) as proxy:
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy)
        folders = {"TMPDIR": str(scratch), "XDG_CACHE_HOME": str(world / "cache")}
        folders |= {"REDUB_SPEECH_ENCODER": str(speech_model)}
        environment = os.environ | proxies | folders | {"NO_PROXY": "127.0.0.1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), "it prints its address once it is ready"
            yield Server(process, line.split()[0], scratch, calls)
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Requested before the page is served, since tests skip without a browser."""
    with launch_browser(*FLAGS) as browser:
        yield browser


@pytest.fixture(scope="module")
def chromium(browser: Browser, server: Server) -> BrowserContext:
    """One context for all tests; it records requests to other hosts than the page's."""
    expect.set_options(timeout=TIMEOUT_MS)
    context = browser.new_context(permissions=["microphone"])
    context.set_default_timeout(TIMEOUT_MS)
    own = (server.url, "data:", "blob:")
    context.on("request", lambda request: request.url.startswith(own) or server.calls.append(request.url))
    context.on("console", lambda line: line.type == "error" and server.errors.append(line.text))
    context.on("weberror", lambda event: server.errors.append(str(event.error)))
    return context


@pytest.fixture
def page(chromium: BrowserContext, server: Server) -> Iterator[Page]:
    page = chromium.new_page()
    page.goto(server.url)
    run, steps = page.locator("#run input"), page.locator("#steps input[type=number]")
    try:
        expect(run).to_have_value(PACKAGED, timeout=TIMEOUT_MS / 2)
    except AssertionError:
        # On a busy machine the page stayed empty once in some thirty starts; the cause is unknown.
        page.reload()
        expect(run).to_have_value(PACKAGED)
    expect(steps).to_have_value(str(ADVICE.steps or SampleParams().steps))
    run.click()
    page.get_by_role("option", name="tiny · step 0 · trained on dataset digest").click()
    expect(steps).to_have_value(str(SampleParams().steps))
    page.check("#any-face input")  # the run is untrained
    yield page
    page.close()
    assert wait_until(lambda: not server.files())  # the next test starts without files


def choose_file(page: Page, zone: str, file: Path) -> None:
    page.set_input_files(f"#{zone} input[type=file]", file)


def upload_clip(page: Page, world: Path, *, steps: int) -> None:
    """Upload the clip as video and as speech."""
    choose_file(page, "video", world / "clip.mpg")
    choose_file(page, "speech", world / "clip.mpg")
    expect(page.locator("#video-note")).to_have_text("0.80 s, 240x192 at 25 fps")
    expect(page.locator("#speech-note")).to_contain_text("0.8")
    page.fill("#steps input[type=number]", str(steps))
    page.keyboard.press("Tab")


def set_number(page: Page, name: str, value: float) -> None:
    """Set a number of a panel that was just opened: Gradio mounts it then, and sets what it had once more."""
    box = page.locator(f"#{name} input[type=number]")

    def fill() -> bool:
        box.fill(str(value))
        page.keyboard.press("Tab")
        page.wait_for_timeout(500)
        return box.input_value() == str(value)

    assert wait_until(fill)


def play_and_read_size(page: Page, player: str) -> list[int]:
    """Width and height of a player's video, once it has played a quarter of the clip."""
    page.eval_on_selector(f"#{player} video", "video => { video.currentTime = 0; video.play() }")
    page.wait_for_function(f"document.querySelector('#{player} video').currentTime > {SECONDS / 4}")
    return page.eval_on_selector(f"#{player} video", "video => [video.videoWidth, video.videoHeight]")


def test_a_clip_no_browser_plays_is_shown_edited_played_and_downloaded(
    page: Page, world: Path, server: Server, tmp_path: Path
) -> None:
    upload_clip(page, world, steps=2)
    assert play_and_read_size(page, "source") == [240, 192]
    page.click("#start")
    expect(page.locator("#note")).to_have_text(
        "20 of 20 frames re-drawn, 0.80 s, 240x192 at 25 fps, audio encoded"
    )
    assert play_and_read_size(page, "result") == [240, 192]
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "clip says clip.mp4"
    result = tmp_path / "result.mp4"
    download.value.save_as(result)
    output, source = (
        np.stack(read_rgb_frames(result)).astype(int),
        np.stack(read_rgb_frames(world / "clip.mpg")),
    )
    assert (np.abs(output - source).max(axis=-1) > 60).any(axis=0).sum() > 500, "noise where the mouth was"
    assert np.abs(read_stamps(result) - np.arange(20) / 25).max() < 1e-3
    start, rate, sound = read_audio(result)
    assert abs(start) < 0.05 and len(sound) / rate == pytest.approx(SECONDS, abs=0.05)
    assert np.abs(sound).max() > 0.05

    assert {path.name for path in server.files()} == {"clip.mpg", "clip.mp4", "clip says clip.mp4"}
    page.close()
    assert wait_until(lambda: not server.files())


def test_the_settings_reach_the_edit_which_is_the_file_that_the_command_writes(
    page: Page, world: Path, landmarker: Path, tmp_path: Path
) -> None:
    settings = {"steps": 2, "guidance": 2.5, "common-noise": 0.4}
    upload_clip(page, world, steps=settings["steps"])
    page.get_by_role("button", name="More").click()
    for name in ("guidance", "common-noise"):
        set_number(page, name, settings[name])
    page.click("#start")
    expect(page.locator("#note")).to_contain_text("20 of 20 frames re-drawn")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "page.mp4")
    clip, run = world / "clip.mpg", world / "runs" / "tiny"
    pipeline(
        "edit", "--video", clip, "--audio", clip, "--run", run, "-o", tmp_path / "command.mp4",
        "--params", world / "params.yaml", "--landmarker", landmarker, "--device", "cpu", "--any-face",
        *(f"--{name}={value}" for name, value in settings.items()),
    )  # fmt: skip
    assert (tmp_path / "page.mp4").read_bytes() == (tmp_path / "command.mp4").read_bytes()


def test_a_file_that_cannot_be_used_gives_one_line_and_is_deleted(
    page: Page, world: Path, server: Server
) -> None:
    page.click("#start")
    expect(page.locator("#note")).to_have_text("there is no video yet; choose one")
    choose_file(page, "video", world / "text.mp4")
    expect(page.locator("#video-note")).to_contain_text("text.mp4: cannot be opened as video")
    choose_file(page, "speech", world / "long.mp3")
    expect(page.locator("#speech-note")).to_have_text("long.mp3: lasts 4.0 s, expected at most 3 s")
    choose_file(page, "video", world / "large.mp4")
    expect(page.get_by_text("File(s) exceed the maximum allowed size")).to_contain_text("large.mp4")
    assert not server.files()


def test_the_server_serves_only_the_page(server: Server) -> None:
    def status(path: str) -> int:
        return httpx.get(f"{server.url}gradio_api/{path}").status_code

    assert status(f"file={__file__}") == status("file=/etc/hostname") == 403
    assert status("info") == 200 and httpx.get(f"{server.url}docs").status_code == 404
    assert httpx.get(f"{server.url}gradio_api/info").json()["named_endpoints"] == {}
    large = {"files": ("large.mp4", bytes(MAX_MB * 10**6 + 1))}
    assert httpx.post(f"{server.url}gradio_api/upload", files=large).status_code == 413
    assert not server.files()


def test_stopping_or_leaving_ends_an_edit_without_a_partial_file(
    page: Page, world: Path, server: Server
) -> None:
    upload_clip(page, world, steps=100)
    page.click("#start")
    expect(page.get_by_text("Generating the mouth, ").first).to_contain_text("s left")
    page.click("#stop")
    expect(page.locator("#note")).to_have_text("Stopped. No file was written.")
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    assert wait_until(lambda: {path.name for path in server.files()} == {"clip.mpg", "clip.mp4"})
    page.click("#start")
    expect(page.get_by_text("Generating the mouth, ").first).to_contain_text("s left")
    page.close()
    assert wait_until(lambda: not server.files())


def test_a_face_that_the_model_does_not_fit_is_refused_with_what_the_page_offers(
    page: Page, world: Path
) -> None:
    upload_clip(page, world, steps=1)
    page.uncheck("#any-face input")
    page.click("#start")
    note = page.locator("#note")
    expect(note).to_contain_text("clip.mpg: the network does not fit this face: its colours")
    offer = '"Make the model mine" trains it on this video, "Draw any face" draws all the same'
    expect(note).to_contain_text(f"expected at most 0.001; {offer}")
    assert "--" not in note.inner_text()


def test_the_example_is_edited_by_a_model_that_is_trained_once_and_deleted_with_its_video(
    page: Page, world: Path, server: Server
) -> None:
    def find_models() -> list[Path]:
        return [path for path in server.files() if path.suffix == ".safetensors"]

    page.uncheck("#any-face input")
    page.click("#example")
    expect(page.locator("#video-note")).to_contain_text('so "Draw any face" is ticked')
    expect(page.locator("#speech-player")).to_be_visible()
    expect(page.locator("#any-face input")).to_be_checked()
    uploads = {path.name for path in server.files()}
    assert uploads == {"example.mp4", "example speech.mp4"}
    page.fill("#steps input[type=number]", "1")
    page.check("#adapt input")

    page.click("#start")
    expect(page.get_by_text("Training the model").first).to_contain_text("s of the video: about ")
    page.click("#stop")
    expect(page.locator("#note")).to_have_text("Stopped. No file was written.")
    assert wait_until(lambda: {path.name for path in server.files()} == uploads)

    page.get_by_role("button", name="More").click()
    set_number(page, "adapt-minutes", 0.1)
    page.click("#start")
    expect(page.locator("#note")).to_contain_text("frames re-drawn")
    expect(page.locator("#note")).to_contain_text("adapted to 2.7 s of the face in ")
    [model] = find_models()
    page.click("#start")
    expect(page.locator("#note")).to_contain_text("adapted to this video before")
    expect(page.locator("#note")).not_to_contain_text("before adapting")
    page.uncheck("#any-face input")
    page.click("#start")
    expect(page.locator("#note")).to_contain_text(" before adapting, ")
    expect(page.locator("#note")).to_contain_text("after, expected at most 0.001; the network still does not")
    page.check("#any-face input")
    page.click("#start")
    expect(page.locator("#note")).to_contain_text("frames re-drawn")
    expect(page.locator("#note")).not_to_contain_text("no_fit")
    assert find_models() == [model] and not (world / "cache" / "redub" / "adapted").exists()

    page.locator("#run input").click()  # the model of one pass that is made from the packaged one
    page.get_by_role("option", name=f"{FAST_NETWORK} · published model").click()
    expect(page.locator("#steps input[type=number]")).to_have_value("1")
    page.click("#start")
    expect(page.locator("#note")).to_contain_text("frames re-drawn")
    expect(page.locator("#note")).to_contain_text("adapted to 2.7 s of the face in ")
    page.uncheck("#adapt input")
    page.click("#start")
    expect(page.locator("#note")).not_to_contain_text("adapted")
    expect(page.locator("#note")).to_contain_text("frames re-drawn")

    page.click("#both")
    read_state = """() => ["source", "result"].map(name => {
      const video = document.querySelector(`#${name} video`);
      return {seconds: Math.round(10 * video.currentTime) / 10, paused: video.paused};
    })"""
    page.wait_for_function("document.querySelector('#result video').currentTime > 0.2")
    page.eval_on_selector("#source video", "video => { video.pause(); video.currentTime = 1.5; }")
    in_step = [{"seconds": 1.5, "paused": True}] * 2
    assert wait_until(lambda: page.evaluate(read_state) == in_step)

    page.click("#other-video")
    expect(page.locator("#any-face input")).not_to_be_checked()
    assert not find_models()


def test_speech_can_be_recorded_and_discarded(page: Page, server: Server) -> None:
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(700)
    page.locator("#microphone").get_by_role("button", name="Stop").click()
    expect(page.locator("#speech-note")).to_contain_text(" s")
    expect(page.locator("#speech-player")).to_be_visible()
    assert {path.name for path in server.files()} == {"audio.wav", "audio.mp4"}
    page.click("#other-speech")
    expect(page.locator("#microphone")).to_be_visible()
    assert not server.files()


@pytest.mark.usefixtures("page")
def test_nothing_leaves_this_machine_and_the_console_is_clean(server: Server) -> None:
    assert server.calls == []
    assert server.errors == []


def test_ending_the_server_deletes_its_folder(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=GUARD_SECONDS) == 0
    assert not list(server.scratch.iterdir())


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(cli, ["app"])
    assert result.exit_code == 1
    assert result.stderr == 'Error: the page needs Gradio, which is not installed: pip install "redub[app]"\n'


@pytest.mark.parametrize(
    ("host", "is_private"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("studio.lan", False)],
)
def test_only_loopback_addresses_are_private(host: str, is_private: bool) -> None:
    assert is_loopback(host) == is_private


def test_the_best_checkpoint_of_each_run_is_offered_and_read_once(world: Path, tmp_path: Path) -> None:
    state = loop.create_state(RECIPE, CPU)
    for step, held_out in ((4, 0.2), (8, 0.5)):
        state.step = step
        save_checkpoint(state, tmp_path / "a" / "b", RECIPE, "digest", held_out)
    (tmp_path / "broken" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "a" / "b" / "run.json").write_text('{"shards": "data/grid/shards"}')
    models = ModelList(tmp_path, [world / "runs" / "tiny"], CPU, Execution())
    runs = models.find_runs()
    assert list(runs) == ["a/b", str(world / "runs" / "tiny")]
    assert describe_run("a/b", runs["a/b"]) == "a/b · step 4 · trained on data/grid/shards"
    first, second = (
        models.load_generator(models.get_checkpoint("a/b"), SampleParams(steps=steps)) for steps in (2, 3)
    )
    assert first.network is second.network and len(second.gammas) == 4
    with pytest.raises(ModelError, match=r"run '\.\./b': there is no such run; known are a/b"):
        models.get_checkpoint("../b")


def test_runs_are_listed_while_folders_beside_them_come_and_go(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "runs" / "tiny", tmp_path / "m" / "tiny")
    models = ModelList(tmp_path, [], CPU, Execution())
    with change_folders(tmp_path / "m" / "others"):
        for _ in range(100):
            assert list(models.find_runs()) == ["m/tiny"]


def test_a_session_s_files_are_deleted_when_it_has_ended_and_nothing_runs(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    session, other = sessions.get("../a"), sessions.get("b")
    assert sessions.get("../a") is session and session.folder.parent == tmp_path
    result = session.make_empty_folder("result")
    with session.keep_files():
        sessions.end("../a")
        assert session.stop.is_set() and result.is_dir()
        session.renew_stop()
        assert session.stop.is_set(), "nothing starts after a session has ended"
    other.make_empty_folder("result")
    sessions.end_all()
    assert not list(tmp_path.iterdir())


def test_a_file_that_two_sessions_uploaded_stays_until_both_have_ended(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    upload = tmp_path / "hash" / "me.mp4"
    upload.parent.mkdir()
    upload.write_bytes(b"video")
    for session_id, kind in (("a", "video"), ("a", "speech"), ("b", "video")):
        with sessions.get(session_id).check_upload(kind, upload, max_mb=1):
            pass
    sessions.get("b").remove_upload("video")
    with pytest.raises(StageError, match="there is no video yet"):
        sessions.get("b").get_upload("video")
    assert sessions.get("a").get_upload("video") == sessions.get("a").get_upload("speech") == upload
    sessions.end("a")
    assert not upload.parent.exists()


def test_a_model_of_a_visitor_s_face_goes_with_the_video(tmp_path: Path) -> None:
    session = Sessions(tmp_path).get("a")
    model = session.get_model_folder() / "key.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    session.remove_upload("speech")
    assert model.is_file()
    session.remove_upload("video")
    assert not model.exists()


def test_an_edit_stops_when_a_file_that_it_reads_is_removed(tmp_path: Path) -> None:
    session = Sessions(tmp_path).get("a")
    kinds: list[Kind] = ["video", "speech"]
    for kind in kinds:
        session.renew_stop()
        assert not session.stop.is_set()
        session.remove_upload(kind)
        assert session.stop.is_set()


@pytest.mark.parametrize(
    ("err", "message"),
    [
        (OSError(errno.ENOSPC, "full", "/srv/redub.x/a/b.mp4"), "b.mp4: No space left on device"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
         "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (StageError("the clip is odd"), "the clip is odd"),
        (ZeroDivisionError("a bug"), "This is a bug of redub. The server's log has the details."),
    ],
)  # fmt: skip
def test_whatever_ends_an_action_is_a_note_on_the_page_and_a_bug_is_logged(
    world: Path,
    tmp_path: Path,
    landmarker: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    err: Exception,
    message: str,
) -> None:
    pytest.importorskip("gradio")
    from pipeline.app.service import BUG, Service
    from tests.page import VISITOR, make_service

    def fail(*_: object, **__: object) -> None:
        raise err

    service = make_service(
        tmp_path, world / "runs", world / "params.yaml", landmarker, {}, max_seconds=MAX_SECONDS
    )
    monkeypatch.setattr(Service, "_copy_upload", fail)
    monkeypatch.setattr(Sessions, "check_space", fail)
    upload = {"path": str(tmp_path / "page" / "hash" / "me.mp4")}
    options: Any = ("tiny", 2, "trim", False, True, "largest", "ddim", 1.0, 0.0, 0, 0, 30, 0)
    notes = [
        service.add_video(upload, VISITOR)[2],
        service.add_speech(upload, VISITOR)[3],
        service.add_example(VISITOR)[2],
        service.edit(*options, VISITOR, lambda *_, **__: None)[3],
    ]
    assert notes == [f'<p class="redub-error" role="alert">{html.escape(message)}</p>'] * 4
    assert ("Traceback" in caplog.text) == (message == BUG)


@pytest.mark.parametrize(
    ("size", "message"), [(10**6 + 1, "me.mp4: has 1.0 MB, expected at most 1 MB"), (9, "me.mp4: is odd")]
)
def test_an_upload_that_cannot_be_used_is_deleted(tmp_path: Path, size: int, message: str) -> None:
    session = Sessions(tmp_path).get("a")
    upload = tmp_path / "hash" / "me.mp4"
    upload.parent.mkdir()
    upload.write_bytes(bytes(size))
    with pytest.raises(StageError) as error, session.check_upload("video", upload, max_mb=1) as path:
        raise StageError(f"{path}: is odd")
    assert session.shorten_paths(error.value) == message
    assert not upload.parent.exists()
