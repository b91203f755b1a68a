"""The package as others get it: what is in it, and that it works outside any checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any
from venv import EnvBuilder

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"pipeline", "stages", "sampler", "model", "shards"}
BUILD = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


def list_tracked_files() -> list[str]:
    """Files of the checkout, as paths from its root."""
    command = ["git", "-C", os.fspath(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def build_distribution(source: Path, kind: str, folder: Path) -> Path:
    """Build an sdist or a wheel of a source tree, as pip does without build isolation."""
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", os.fspath(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (path,) = folder.iterdir()
    return path


def read_members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel of this checkout, and the wheel of the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("package")
    checkout = folder / "checkout"
    for name in list_tracked_files():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    with tarfile.open(build_distribution(checkout, "sdist", folder / "sdist")) as sdist:
        # Python 3.11.2, as in Debian 12, has no filters; from 3.12 on one is expected.
        filters: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        sdist.extractall(folder / "unpacked", **filters)
    (unpacked,) = (folder / "unpacked").iterdir()
    return (
        build_distribution(checkout, "wheel", folder / "wheel"),
        build_distribution(unpacked, "wheel", folder / "wheel-of-sdist"),
    )


def test_the_wheel_has_every_file_of_the_packages_and_no_other(distributions: tuple[Path, Path]) -> None:
    members = [name for name in read_members(distributions[0]) if ".dist-info/" not in name]
    assert sorted(members) == sorted(
        name for name in list_tracked_files() if PurePosixPath(name).parts[0] in PACKAGES
    )


def test_the_sdist_builds_the_same_wheel(distributions: tuple[Path, Path]) -> None:
    first, second = map(read_members, distributions)
    assert first == second


def test_the_changelog_begins_with_the_version_of_the_package(distributions: tuple[Path, Path]) -> None:
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert distributions[0].name == f"redub-{heading[1]}-py3-none-any.whl"


def test_the_wheel_works_outside_a_checkout(
    distributions: tuple[Path, Path], landmarker: Path, speech_model: Path, tmp_path: Path
) -> None:
    EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / "venv")
    bin_folder = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", os.fspath(bin_folder / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", distributions[0]], check=True)
    # Libraries are those of this environment. Its own .pth files, and with them the checkout, are not read.
    folders = sysconfig.get_paths(vars={"base": os.fspath(tmp_path / "venv"), "platbase": ""})
    libraries = Path(folders["purelib"], "libraries.pth")
    libraries.write_text(f"{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")
    road = subprocess.run(
        ["bash", ROOT / ".ci" / "road", bin_folder], capture_output=True, text=True, check=False
    )
    assert road.returncode == 0, road.stdout + road.stderr
    assert "frames re-drawn" in road.stdout
