"""Signed edits: by made certificates, verified by the library's own reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from model import loop
from model.checkpoint import save_checkpoint
from pipeline import params as params_file
from pipeline.app.service import UNSIGNED
from pipeline.main import cli
from shards.checksum import file_sha256
from stages import synth
from stages.edit.batch import BatchRequest, edit_pairs
from stages.edit.credentials import Credentials, make_signing
from stages.edit.pairs import read_pairs
from stages.media.mark import DIGITAL_SOURCE_TYPE
from stages.synth import ClipSpec
from tests.certificates import SERVER, make_credentials, read_manifests
from tests.model.worlds import CPU, TINY
from tests.page import VISITOR, make_service


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run of a few channels, a clip with its own speech, and made credentials."""
    folder = tmp_path_factory.mktemp("world")
    recipe = replace(TINY, network=replace(TINY.network, size=32))
    save_checkpoint(loop.create_state(recipe, CPU), folder / "runs" / "tiny", recipe, "digest", None)
    synth.make_clip(folder / "clip.mp4", ClipSpec(seconds=0.4, size=(240, 192)))
    (folder / "params.yaml").write_text(f"mels: {{n_mels: {recipe.network.audio.n_mels}}}\n")
    make_credentials(folder / "signer")
    return folder


def find_signer(world: Path) -> Credentials:
    return Credentials(world / "signer/chain.pem", world / "signer/key.pem")


def edit(world: Path, video: Path, out: Path, credentials: Credentials | None, *more: Any) -> Result:
    options = [
        "--video", video, "--audio", world / "clip.mp4", "--run", world / "runs" / "tiny", "-o", out,
        "--params", world / "params.yaml", "--device", "cpu", "--steps", "2", "--preset", "ultrafast",
        "--any-face", *more,
    ]  # fmt: skip
    if credentials is not None:
        options += ["--sign", credentials.certificates, "--sign-key", credentials.key]
    return CliRunner().invoke(cli, ["edit", *map(str, options)])


@pytest.mark.usefixtures("landmarker")
def test_a_signed_edit_is_valid_says_what_was_done_and_by_which_model_until_a_byte_changes(
    world: Path, tmp_path: Path
) -> None:
    credentials, root = (
        Credentials(world / "signer/chain.pem", world / "signer/key.pem"),
        world / "signer/root.pem",
    )
    clip, out, preview = world / "clip.mp4", tmp_path / "out.mp4", tmp_path / "both.mp4"
    result = edit(world, clip, out, credentials, "--preview", preview)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.mp4", "out.mp4"]
    for path in (out, preview):
        state, [manifest] = read_manifests(path, root)
        assert state == "Trusted" and manifest["signature_info"]["common_name"] == "A made signer"
        actions = manifest["assertions"][0]["data"]["actions"]
        assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.placed", "c2pa.edited"]
        redrawn = actions[-1]
        assert redrawn["digitalSourceType"] == DIGITAL_SOURCE_TYPE
        assert redrawn["softwareAgent"]["name"] == "redub"
        assert redrawn["parameters"]["model"] == "tiny" and len(redrawn["parameters"]["modelSha256"]) == 64
        sources = {item["relationship"]: item for item in manifest["ingredients"]}
        assert set(sources) == {"parentOf", "componentOf"} and sources["parentOf"]["title"] == "clip.mp4"
        assert sources["parentOf"]["description"] == f"sha256 {file_sha256(clip)}"
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    assert read_manifests(tmp_path / "changed.mp4", root)[0] == "Invalid"
    # What a signed source says of itself is carried along.
    assert edit(world, out, tmp_path / "again.mov", credentials).exit_code == 0
    state, manifests = read_manifests(tmp_path / "again.mov", root)
    assert state == "Trusted" and [manifest["title"] for manifest in manifests] == ["again.mov", "out.mp4"]


def test_credentials_that_cannot_sign_are_refused_in_one_line_before_anything_is_drawn(
    world: Path, tmp_path: Path
) -> None:
    good = find_signer(world)
    other = make_credentials(tmp_path / "other")
    text = tmp_path / "text.pem"
    text.write_text("no PEM")
    out = tmp_path / "out"
    for credentials, suffix, expected in [
        (Credentials(good.certificates, other.key), ".mp4", "other/key.pem: does not fit the certificate in"),
        (make_credentials(tmp_path / "old", days=(-9, -2)), ".mp4", "the first certificate is valid from 20"),
        (make_credentials(tmp_path / "new", days=(2, 9)), ".mp4", "the first certificate is valid from 20"),
        (make_credentials(tmp_path / "web", purpose=SERVER), ".mp4", "web/chain.pem: cannot sign ("),
        (
            make_credentials(tmp_path / "locked", passphrase=b"a"),
            ".mp4",
            "is encrypted, expected a key",
        ),
        (Credentials(text, good.key), ".mp4", "text.pem: has no certificate in PEM form"),
        (Credentials(good.certificates, text), ".mp4", "text.pem: has no private key in PEM form"),
        (Credentials(tmp_path / "none.pem", good.key), ".mp4", "none.pem: cannot be read (No such file"),
        (good, ".mkv", "out.mkv: content credentials can be in .mp4 and .mov only"),
    ]:
        result = edit(world, world / "clip.mp4", out.with_suffix(suffix), credentials)
        assert result.exit_code == 1 and result.stdout == "", expected
        [line] = result.stderr.splitlines()
        assert expected in line and good.key.read_text().splitlines()[1] not in line
        assert not out.with_suffix(suffix).exists()
    alone = edit(world, world / "clip.mp4", out.with_suffix(".mp4"), None, "--sign", good.certificates)
    assert alone.exit_code == 2 and "--sign and --sign-key need each other" in alone.stderr


def test_each_edit_of_a_batch_is_signed_and_another_certificate_makes_it_again(
    world: Path, landmarker: Path, tmp_path: Path
) -> None:
    (tmp_path / "table.csv").write_text(f"video,audio,out\n{world}/clip.mp4,{world}/clip.mp4,a.mp4\n")
    sections = params_file.load(world / "params.yaml")
    params = sections.make_edit_params(preset="ultrafast", any_face=True)
    run, sampling = world / "runs" / "tiny", replace(sections.sample, sampler="ddim", steps=2)

    def make(credentials: Credentials) -> str:
        signing = make_signing(credentials, run)
        request = BatchRequest(run, tmp_path, landmarker, sampling, device="cpu", signing=signing)
        [row] = edit_pairs(read_pairs(tmp_path / "table.csv", params), request)
        assert row.status == "ok", row.reason
        return row.sha256

    first = make(find_signer(world))
    assert read_manifests(tmp_path / "a.mp4", world / "signer/root.pem")[0] == "Trusted"
    assert make(find_signer(world)) == first, "it is kept"
    assert make(make_credentials(tmp_path / "other")) != first


def test_results_of_the_page_are_signed_and_a_visitor_learns_no_path_of_the_server(
    world: Path, landmarker: Path, tmp_path: Path
) -> None:
    clip, credentials = world / "clip.mp4", make_credentials(tmp_path / "server")
    service = make_service(
        tmp_path,
        world / "runs",
        world / "params.yaml",
        landmarker,
        {"video": clip, "speech": clip},
        max_seconds=9,
        credentials=credentials,
    )

    def start() -> tuple[Any, ...]:
        service.begin_edit(VISITOR)
        options = ("tiny", 2, "trim", False, True, "largest", "ddim", 1.0, 0.0, 0, 0, 30, 0)
        return service.edit(*options, VISITOR, lambda *_, **__: None)  # type: ignore[arg-type]

    out, *_, note = start()
    assert isinstance(out, Path), note
    state, [manifest] = read_manifests(out, tmp_path / "server/root.pem")
    assert state == "Trusted" and manifest["title"] == "clip says clip.mp4"
    (tmp_path / "server/key.pem").unlink()
    assert UNSIGNED.replace("'", "&#x27;") in start()[-1]
