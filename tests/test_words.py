"""The product's names are plain words, and packages and sandbox jobs import without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "shards", "model", "sampler")
# Names that say what happened to a thing instead of what it is.
PARTICIPLES = frozenset(
    [
        "told", "said", "asked", "shown", "wanted", "seen", "heard", "dealt", "drawn", "kept",
        "hidden", "given", "spoiled", "noised", "found", "taken", "brought", "listed", "opened",
        "ended", "held", "known", "left", "waiting", "coming",
    ]
)  # fmt: skip
MAX_PARTICIPLES_PER_1000_BINDINGS = 3
MAX_OF_FUNCTIONS = 5
INITIALIZERS = sorted(
    path.relative_to(ROOT).parent for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")
)


def list_nodes() -> Iterator[tuple[Path, ast.AST]]:
    """Every syntax node of the product, with its file."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield path.relative_to(ROOT), node


def read_bound_name(node: ast.AST) -> str | None:
    """The name that a node binds: a variable, an argument or a function."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name
    return None


def test_few_names_are_bare_participles() -> None:
    names = [name for _, node in list_nodes() if (name := read_bound_name(node)) is not None]
    participles = Counter(name.strip("_") for name in names if name.strip("_") in PARTICIPLES)
    rate = 1000 * participles.total() / len(names)
    assert rate < MAX_PARTICIPLES_PER_1000_BINDINGS, participles.most_common()


def test_few_functions_end_in_of() -> None:
    functions = [
        f"{path}:{node.name}"
        for path, node in list_nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.endswith("_of")
    ]
    assert len(functions) < MAX_OF_FUNCTIONS, functions


def test_no_class_name_is_defined_twice() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path, node in list_nodes():
        if isinstance(node, ast.ClassDef):
            modules[node.name.lstrip("_")].append(str(path))
    assert not {name: paths for name, paths in modules.items() if len(paths) > 1}


def list_job_modules() -> list[str]:
    """Modules of the functions that sandboxed child processes run: the first arguments of ``ClipJob``."""
    modules = set()
    for path in {path for path, node in list_nodes() if isinstance(node, ast.ClassDef | ast.FunctionDef)}:
        nodes = list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
        imported = {
            alias.asname or alias.name: node.module
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ClipJob":
                function = node.args[0]
                assert isinstance(function, ast.Name), f"{path}: {ast.unparse(node)}"
                modules.add(imported.get(function.id) or ".".join(path.with_suffix("").parts))
    return sorted(modules)


@pytest.mark.parametrize("module", [".".join(folder.parts) for folder in INITIALIZERS] + list_job_modules())
def test_packages_and_sandbox_jobs_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr or f"{module} imports torch"
