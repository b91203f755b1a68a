"""dvc.yaml names everything that a stage imports, or DVC would skip it when that code has changed.

`pipeline`, which only calls the stages, is not followed, but for what chooses the params of a dataset.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGES = ("stages", "shards", "model", "sampler")
DATASET_STAGES = ("clips", "cut", "landmarks", "align", "mels", "speech", "shard")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ENTRIES = {
    "synth": "stages.synth.corpus",
    "cut": "stages.cut.run",
    "train": "stages.train.run",
    "sample": "stages.sample.run",
    "evaluate": "stages.evaluate.run",
    "report": "stages.report.run",
}


def find_file(module: str) -> Path | None:
    """The file of a module or package of ours, relative to the root."""
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


def list_imports(path: Path) -> Iterator[str]:
    """Names that a file imports at any depth, in functions too; not what is for type checkers alone."""
    pending: list[ast.AST] = [ast.parse((ROOT / path).read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)


def find_closure(module: str, packages: Sequence[str] = PACKAGES) -> set[Path]:
    """Every file of some packages that a module may run: its imports, theirs, and what is around them."""
    files: set[Path] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name.split(".")[0] not in packages or (path := find_file(name)) is None or path in files:
            continue
        files.add(path)
        pending += [name.rpartition(".")[0], *list_imports(path)]
    return files


def list_code_deps(stage: str, packages: Sequence[str] = PACKAGES) -> set[Path]:
    deps = STAGES[stage].get("do", STAGES[stage])["deps"]
    return {Path(dep) for dep in deps if dep.split("/")[0] in packages}


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_cover_all_that_it_imports(stage: str) -> None:
    deps = list_code_deps(stage)
    files = find_closure(ENTRIES.get(stage, f"stages.{stage}"))
    assert len(files) > 3, "the stage's module was found"
    uncovered = {
        path
        for path in files
        if path not in deps and deps.isdisjoint(path.parents) and path.name != "__init__.py"
    }
    assert not uncovered, f"dvc.yaml: deps of {stage} lack {sorted(map(str, uncovered))}"


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_exist_and_are_all_used(stage: str) -> None:
    files = find_closure(ENTRIES.get(stage, f"stages.{stage}"))
    for dep in list_code_deps(stage):
        assert (ROOT / dep).exists(), dep
        assert dep in files or any(dep in path.parents for path in files), f"{stage} runs nothing of {dep}"


@pytest.mark.parametrize("stage", DATASET_STAGES)
def test_the_deps_of_a_dataset_stage_name_what_chooses_its_params(stage: str) -> None:
    """Which decide the bytes of dataset.json too: pipeline.build, and what runs a stage by its name."""
    files = find_closure("pipeline.dataset_stages", ["pipeline"])
    files = {path for path in files if path.name != "__init__.py"} | {Path("pipeline/build.py")}
    assert len(files) > 2, "its imports were followed"
    assert list_code_deps(stage, ["pipeline"]) == files


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "synth"])  # which has limits of its own
def test_a_stage_that_reads_files_within_limits_runs_again_when_they_change(stage: str) -> None:
    """So that the clips that failed by the old ones are tried again."""
    module = Path(*ENTRIES.get(stage, f"stages.{stage}").split(".")).with_suffix(".py")
    own_files = [module] if len(module.parts) == 2 else (ROOT / module.parent).glob("*.py")
    has_limits = any("ClipJob(" in (ROOT / path).read_text() for path in own_files)
    params = STAGES[stage].get("do", STAGES[stage]).get("params", [])
    assert ("limits" in params) == has_limits
