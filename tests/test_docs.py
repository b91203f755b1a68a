"""README and docs/: their links, options, names and snippets are valid, and so are those in the code."""

from __future__ import annotations

import functools
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np
import pytest

from model.recipe import PRESETS, Recipe
from pipeline.export import command as replace_packaged_model
from pipeline.main import COMMANDS, cli
from pipeline.params import Params
from stages.corpora.corpus import BadName, Corpus
from tests import datasets

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "sampler", "model", "shards")
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
# Dated notes: they may name modules and options that no longer exist.
HISTORY = {ROOT / "docs" / "decisions.md"}
CURRENT_PAGES = [page for page in PAGES if page not in HISTORY]
WIDTH = 110

# Options of other programs that the pages quote.
FOREIGN_OPTIONS = {
    "dask": {"--port", "--nworkers", "--nthreads", "--memory-limit", "--name", "--no-dashboard"},
    "dask-jobqueue": {"--lifetime", "--lifetime-stagger"},
    "dvc": {"--drop", "--keep", "--queue", "--targets", "--temp"},
    "hf": {"--delete", "--private", "--repo-type"},
    "docker": {
        "--build-arg",
        "--gpus",
        "--init",
        "--network",
        "--rm",
        "--shm-size",
        "--user",
        "-f",
        "-p",
        "-t",
        "-v",
    },
    "pip": {"--no-deps", "-c", "-q"},
    "helm": {"--repo", "--create-namespace", "--generate-name"},
    "slurm": {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task"},
    "tensorboard": {"--logdir"},
    "torchrun": {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"},
    "click": {"--help", "--version"},
}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|(?<=\n\n))((?: {4}.*\n(?:\n(?= {4}))?)+)")
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9]*(?:-[a-z0-9]+)*|-[a-z])(?![\w-])")
PIPELINE = re.compile(r"(?:^|[\s;(])pipeline(?:\.main)? +([a-z][a-z-]*)(.*)", re.DOTALL)
PATH = re.compile(r"(?<![\w/])(?:pipeline|stages|sampler|model|shards|tests|benchmarks|docs)/[\w/.-]+\.\w+")
MAKE = re.compile(r"make ([a-z]+)\b")
MODULE = re.compile(r"(\w+\.py)")
SETTING = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)(?:[:= ]|$)")
FILE_ENDINGS = (".py", ".md", ".json", ".npy", ".parquet", ".yaml")
DOTTED = re.compile(r"(?:pipeline|stages|sampler|model|shards)(?:\.\w+)+")


@dataclass(frozen=True)
class Page:
    """A page of Markdown, cut into its blocks of code and the prose between them."""

    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @functools.cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @functools.cached_property
    def code_blocks(self) -> list[tuple[str, str]]:
        """(language, code) of each fenced block."""
        return FENCE.findall(self.text)

    @functools.cached_property
    def prose(self) -> str:
        """The text without its code blocks, fenced or indented."""
        return INDENTED.sub("\n", FENCE.sub("", self.text))

    @functools.cached_property
    def code_lines(self) -> list[str]:
        """Lines of every block that is not Python, YAML or the like; continued lines are joined."""
        indented = INDENTED.findall(FENCE.sub("", self.text))
        blocks = [code for language, code in self.code_blocks if language in ("", "bash", "sh", "console")]
        code = "\n".join([*blocks, *indented]).replace("\\\n", " ")
        return [line.strip() for line in code.splitlines() if line.strip()]

    @functools.cached_property
    def spans(self) -> list[str]:
        """The code spans of the prose: what stands between backticks."""
        return [" ".join(span.split()) for span in SPAN.findall(self.prose)]


def make_anchor(heading: str) -> str:
    """The name that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def list_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {make_anchor(heading) for heading in headings}


@functools.cache
def list_options(name: str) -> frozenset[str]:
    """Options of a command, long and short."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = {"-h", "--help"}
    for param in command.params:
        if isinstance(param, click.Option):
            options.update(param.opts + param.secondary_opts)
    return frozenset(options)


@functools.cache
def list_known_options() -> frozenset[str]:
    """Options of any command, any benchmark, or another program that the pages name."""
    own = frozenset[str]().union(*(list_options(name) for name in COMMANDS))
    own |= {option for param in replace_packaged_model.params for option in param.opts}
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    benchmarks = (re.findall(r'"(--[a-z-]+)"', source) for source in sources)
    return own.union(*benchmarks, *FOREIGN_OPTIONS.values())


def find_unknown_options(text: str) -> list[str]:
    """The options of one quoted line that its program does not have, one message each."""
    text = text.split(" # ")[0]
    benchmark = re.search(r"python (benchmarks/\w+\.py)(.*)", text)
    if benchmark is not None:
        source = (ROOT / benchmark[1]).read_text(encoding="utf-8")
        missing = [option for option in OPTION.findall(benchmark[2]) if f'"{option}"' not in source]
        return [f"{benchmark[1]} has no {option}" for option in missing]
    call = PIPELINE.search(text)
    if call is not None and call[1] in COMMANDS:
        options = list_options(call[1])
        missing = [option for option in OPTION.findall(call[2]) if option not in options]
        return [f"pipeline {call[1]} has no {option}" for option in missing]
    long_options = [option for option in OPTION.findall(text) if option.startswith("--")]
    return [f"no program has {option}" for option in long_options if option not in list_known_options()]


def read_comments_and_strings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each comment and each piece of a string, docstrings included, of a Python file."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    with path.open("rb") as file:
        for token in tokenize.tokenize(io.BytesIO(file.read()).readline):
            if token.type in kinds:
                yield token.start[0], token.string


def list_product_texts() -> Iterator[tuple[str, str]]:
    """(place, text) of every comment, docstring and message in the product's code."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, text in read_comments_and_strings(path):
                yield f"{path.relative_to(ROOT)}:{line}", text


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request: pytest.FixtureRequest) -> Page:
    return Page(request.param)


@pytest.fixture(params=CURRENT_PAGES, ids=lambda path: path.name)
def current_page(request: pytest.FixtureRequest) -> Page:
    """A page that describes the code as it is; HISTORY does not."""
    return Page(request.param)


def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Page) -> None:
    broken = []
    for target in LINK.findall(page.prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.path.parent / name) if name else page.path
        if not file.is_file() or (anchor and anchor not in list_anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_reached_from_the_readme() -> None:
    targets = {target.partition("#")[0] for target in LINK.findall(Page(ROOT / "README.md").prose)}
    missing = [path.name for path in PAGES[1:] if path.relative_to(ROOT).as_posix() not in targets]
    assert not missing


def test_every_page_begins_with_a_title_and_a_paragraph_of_prose(page: Page) -> None:
    title, _, rest = page.text.partition("\n")
    assert title.startswith("# ")
    if page.path.name != "README.md":  # which begins with a picture
        assert re.match(r"\n[A-Z`*\[]", rest), f"{page}: expected prose after the title, got {rest[:60]!r}"


def test_every_page_wraps_at_110_columns(page: Page) -> None:
    # A table's row and a link's address cannot be wrapped.
    lines = re.sub(r"\]\([^)]*\)|https?://\S+", "", page.prose).splitlines()
    long = [line for line in lines if len(line) > WIDTH and not line.startswith("|")]
    assert not long, f"{len(long)} lines, first: {long[0]}"


def test_every_option_that_a_page_quotes_exists(current_page: Page) -> None:
    quotes = current_page.spans + current_page.code_lines
    problems = [problem for text in quotes for problem in find_unknown_options(text)]
    assert not problems


def test_every_command_that_a_page_quotes_exists(current_page: Page) -> None:
    quotes = [PIPELINE.search(text) for text in current_page.spans + current_page.code_lines]
    names = {match[1] for match in quotes if match is not None}
    assert names <= set(COMMANDS)


def test_programs_of_dask_that_a_page_starts_are_installed(current_page: Page) -> None:
    programs = set(re.findall(r"(?<![\w-])dask-(?:worker|scheduler)\b", current_page.text))
    assert programs <= {script.name for script in metadata.entry_points(group="console_scripts")}


def test_every_make_target_that_a_page_quotes_exists(current_page: Page) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    quotes = {
        match[1] for text in [*current_page.spans, *current_page.code_lines] if (match := MAKE.match(text))
    }
    assert not {name for name in quotes if not re.search(rf"^{name}:", makefile, re.MULTILINE)}


def test_every_file_of_ours_that_a_page_quotes_exists(current_page: Page) -> None:
    quotes = {path for text in current_page.spans + current_page.code_lines for path in PATH.findall(text)}
    missing = {path for path in quotes if not (ROOT / path).exists()}
    modules = {match[1] for text in current_page.spans if (match := MODULE.fullmatch(text))}
    missing |= {name for name in modules if not any(any((ROOT / top).rglob(name)) for top in PACKAGES)}
    assert not missing


def test_the_architecture_page_has_a_line_for_every_module() -> None:
    page = Page(ROOT / "docs" / "architecture.md")
    module_lines: set[str] = set()
    for package, section in re.findall(
        r"^### `(\w+)/`.*?\n(.*?)(?=^#|\Z)", page.text, re.MULTILINE | re.DOTALL
    ):
        first_cells = re.findall(r"^\| (`[^|]*)\|", section, re.MULTILINE)
        module_lines.update(f"{package}/{name}" for cell in first_cells for name in SPAN.findall(cell))
    paths = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    modules = {path.as_posix() for path in paths if path.name != "__init__.py"}
    commands = {name for name in modules if name.startswith("pipeline/commands/")}  # they share a line
    assert module_lines - {"pipeline/commands/"} == modules - commands


def resolve_name(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def test_every_dotted_name_of_ours_that_a_page_quotes_exists(current_page: Page) -> None:
    names = {match[0] for text in current_page.spans if (match := DOTTED.match(text))}
    # `model...` and `sample...` may also be a section of the settings.
    missing = {name for name in names if not has_setting(name) and not resolve_name(name)}
    assert not missing


def has_setting(dotted: str) -> bool:
    """Whether a dotted name is a number of params.yaml or of a recipe."""
    return any(_has_path(tree, dotted.split(".")) for tree in list_settings())


@functools.cache
def list_settings() -> tuple[dict[str, Any], ...]:
    return asdict(Params()), *(asdict(recipe) for recipe in PRESETS.values())


def _has_path(tree: Any, names: list[str]) -> bool:
    for name in names:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


def test_every_setting_that_a_page_quotes_exists(current_page: Page) -> None:
    sections = set(asdict(Params())) | set(asdict(Recipe()))
    matches = [SETTING.match(text) for text in current_page.spans]
    names = {match[1] for match in matches if match and not match[1].endswith(FILE_ENDINGS)}
    ours = {name for name in names if name.split(".")[0] in sections}
    assert not {name for name in ours if not has_setting(name) and not resolve_name(name)}


def test_python_snippets_compile(page: Page) -> None:
    for language, code in page.code_blocks:
        if language == "python":
            compile(code, str(page), "exec")


def test_the_corpus_module_of_the_docs_is_a_corpus() -> None:
    codes = [
        code for language, code in Page(ROOT / "docs" / "own-corpus.md").code_blocks if language == "python"
    ]
    module: dict[str, Any] = {}
    exec(compile(codes[0], "own-corpus.md", "exec"), module)
    members = {name for name in vars(Corpus) if not name.startswith("_")} | set(Corpus.__annotations__)
    assert members <= set(module)
    path = PurePosixPath("test/0Fi83BHQsMA/00002.mp4")
    identity = module["identify"](path, "lrs3")
    assert (identity.clip_id, identity.speaker) == ("test_0Fi83BHQsMA_00002", "0Fi83BHQsMA")
    assert module["choose_split"](identity, path, 0.0) == "test"
    with pytest.raises(BadName, match="no LRS3 clip"):
        module["identify"](PurePosixPath("readme.mp4"), "lrs3")


def test_the_makefile_calls_functions_that_exist() -> None:
    for code in re.findall(r"python -c '([^']*)'", (ROOT / "Makefile").read_text(encoding="utf-8")):
        for module, name in re.findall(r"from ([\w.]+) import (\w+)", code):
            calls = re.findall(rf"\b({name}(?:\.\w+)+)", code)
            assert all(resolve_name(f"{module}.{dotted}") for dotted in calls), code


def test_the_code_names_only_pages_that_exist() -> None:
    missing = []
    for place, text in list_product_texts():
        for name in re.findall(r"docs/[\w-]+\.md", text):
            if not (ROOT / name).is_file():
                missing.append(f"{place}: {name}")
    assert not missing


def test_the_code_quotes_only_options_that_exist() -> None:
    """In backticks, and at the start of a message: ``--raw DIR: no such folder``."""
    problems = []
    for place, text in list_product_texts():
        quotes = SPAN.findall(text.replace("``", "`"))
        quotes += re.findall(r"^[bfru]*[\"']?(--[a-z][a-z-]+)(?=[ :])", text)
        problems += [f"{place}: {problem}" for span in quotes for problem in find_unknown_options(span)]
    assert not problems


def test_the_help_of_train_names_every_preset() -> None:
    command = cli.get_command(click.Context(cli), "train")
    assert command is not None
    help_text = next(
        param.help for param in command.params if isinstance(param, click.Option) and param.name == "preset"
    )
    assert set(PRESETS) <= set(re.findall(r"[\w-]+", help_text or ""))


def test_every_command_that_reads_an_address_takes_the_address_of_the_server() -> None:
    commands = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
    readers = {
        name
        for name, command in commands.items()
        if command is not None
        and any("URL" in (param.metavar or "") for param in command.params if param.name == "shards")
    }
    assert {"train", "evaluate"} <= readers
    assert not {name for name in readers if "--endpoint-url" not in list_options(name)}


@pytest.fixture
def small_dataset(tmp_path: Path) -> Path:
    """A folder with the dataset that the README reads: four clips of noise."""
    rng = np.random.default_rng(0)
    clips = [
        datasets.pack(
            f"1001_{k}",
            rng.integers(0, 256, (12, 128, 128, 3)).astype(np.uint8),
            box=(30, 70, 100, 128),
            mels=rng.uniform(-80, 0, (24, 256)).astype(np.float32),
            codec="webp",
        )
        for k in range(4)
    ]
    datasets.write(tmp_path / "data" / "crema-d" / "shards", clips, per_shard=2)
    return tmp_path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_snippets_of_the_readme_read_a_dataset(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_dataset)
    section = Page(ROOT / "README.md").text.partition("## Use the shards")[2].partition("\n## ")[0]
    snippets = [code for language, code in FENCE.findall(section) if language == "python"]
    assert snippets
    for code in snippets:
        names: dict[str, Any] = {}
        exec(compile(code, "README.md", "exec"), names)  # what a reader pastes
        assert "sample" in names, "the snippet read no sample"
