"""Every code block of the README and of the pages works, from top to bottom.

Python runs. Configurations are read, and their models built. Commands are parsed by the programs
that they call, and quick ones of clipseq run as well.
"""

import doctest
import importlib
import importlib.util
import json
import re
import shlex
import sys
import textwrap
import tomllib
import types
from importlib.metadata import requires
from pathlib import Path

import attrs
import pytest
from markdown_it import MarkdownIt

import clipseq

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if path.exists() and "_build" not in path.parts
)
QUICK = ("similarities", "doctor", "bench", "new-plugin")
SHELL = ("sh", "bash", "console")
PROGRAMS = ("clipseq", "torchrun", "pip", "pytest", "make", "python", "cd")

pytestmark = pytest.mark.skipif(len(PAGES) < 2, reason="the tests were copied without the docs")


@attrs.frozen
class Block:
    """A code block: its language ("" if it is indented), its text, and its first line."""

    language: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    return [
        Block(token.info.strip() if token.type == "fence" else "", token.content, token.map[0] + 1)
        for token in tokens
        if token.type in ("fence", "code_block")
    ]


def test_every_block_is_of_a_kind_that_is_tested():
    known = ("python", *SHELL, "toml", "json", "text")
    unknown = [
        f"{page}:{block.line}: {block.language or 'no language'}"
        for page in PAGES
        for block in blocks_of(page)
        # An indented block is text, commands or TOML, depending on its first word. {} is for
        # Sphinx.
        if block.language not in known
        and not block.language.startswith("{")
        and not (page == "README.md" and block.language == "")
    ]
    assert not unknown


@pytest.fixture
def namespace(request, monkeypatch, tmp_path, fresh_registry):
    """A module for the page's code, because classes must be importable to be pickled."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("a_page_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    page = ROOT / request.param
    if page.parent.parent == ROOT / "docs" / "examples":
        # An example is a distribution of its own, which is not installed here.
        name = page.parent.name.replace("-", "_")
        spec = importlib.util.spec_from_file_location(name, page.parent / f"{name}.py")
        plugin = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(plugin)
        for similarity, cls in plugin.clipseq_similarities().items():
            clipseq.register_similarity(similarity, cls)
    return module.__dict__


def with_python(page: str) -> bool:
    return any(block.language == "python" for block in blocks_of(page))


@pytest.mark.parametrize(
    ("page", "namespace"),
    [pytest.param(page, page, id=page) for page in PAGES if with_python(page)],
    indirect=["namespace"],
)
def test_the_python_runs_top_to_bottom(page, namespace):
    for block in blocks_of(page):
        if block.language == "python":
            # Empty lines make a traceback show the line numbers of the page.
            code = "\n" * block.line + block.text
            exec(compile(code, str(ROOT / page), "exec"), namespace)
    if page == "README.md":
        from clipseq.testing import CHECKS

        clipseq.register_similarity("mean", namespace["MeanSimilarity"])
        CHECKS["padding_content"].run("mean")
        CHECKS["range"].run("mean")


def test_json_is_json():
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "json":
                json.loads(block.text)


def test_there_is_python_to_run():
    guides = ["README.md", *(f"docs/{name}.md" for name in ("start", "similarities", "plugins"))]
    assert all(sum(b.language == "python" for b in blocks_of(page)) >= 2 for page in guides)


def tomls():
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "toml" or (not block.language and block.text.startswith("[")):
                yield pytest.param(block.text, id=f"{page}:{block.line}")
    for path in sorted((ROOT / "docs" / "configs").glob("*.toml")):
        yield pytest.param(path.read_text(encoding="utf-8"), id=path.name)


@pytest.mark.parametrize("text", list(tomls()))
def test_a_configuration_is_read_and_its_model_built(text, tmp_path, fresh_registry):
    from clipseq.training import read_config
    from clipseq.training.models import build_model, check_model_config

    table = tomllib.loads(text)
    if "project" in table:
        for name, module in table["project"]["entry-points"]["clipseq"].items():
            assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
            assert module == f"clipseq_{name}"
        return
    needed = {"data": '[data]\npath = "my-data"', "training": '[training]\nout = "run"\nepochs = 1'}
    lacking = [addition for name, addition in needed.items() if name not in table]
    path = tmp_path / "config.toml"
    path.write_text("\n".join([text, *lacking]), encoding="utf-8")
    config = read_config(path)
    check_model_config(config.model)
    build_model(config.model, {"range_time": 8}, None)


def commands():
    for page in PAGES:
        for block in blocks_of(page):
            if block.language not in (*SHELL, ""):
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                if block.language == "console" and not line.startswith("$ "):
                    continue  # output of the command
                words = shlex.split(line.removeprefix("$ "), comments=True)
                program = next((w for w in words if not re.match(r"[A-Z_]+=", w)), None)
                if program in PROGRAMS or (program and block.language):
                    yield pytest.param(words, id=f"{page}:{block.line}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_is_one(words, monkeypatch, tmp_path, fresh_registry):
    monkeypatch.chdir(tmp_path)
    while re.match(r"[A-Z_]+=", words[0]):
        variable, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(variable, value)
    program, *arguments = words
    assert program in PROGRAMS, f"no test for {program}"
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(arguments)
        rest = [parsed.training_script, *parsed.training_script_args]
        program, arguments = "python", ["-m", *rest] if parsed.module else rest
    if program == "python" and arguments[:2] == ["-m", "clipseq"]:
        program, arguments = "clipseq", arguments[2:]
    if program == "clipseq":
        run_or_parse(arguments)
    elif program == "pip":
        extras = [e for word in arguments for e in re.findall(r"^clipseq\[(.*)\]", word)]
        offered = {re.search(r"extra == ['\"](\w+)", r or "") for r in requires("clipseq")}
        known = {found[1] for found in offered if found}
        assert {name for extra in extras for name in extra.split(",")} <= known
    elif program == "python":
        assert all((ROOT / word).exists() for word in arguments if word.endswith(".py"))
    elif program == "pytest":
        plugin = (ROOT / "plugins" / "pytest_clipseq.py").read_text(encoding="utf-8")
        assert all(f'"{w}"' in plugin for w in arguments if w.startswith("--clipseq"))
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments)


def run_or_parse(arguments: list[str]) -> None:
    from typer.main import get_command
    from typer.testing import CliRunner

    from clipseq.cli.app import app

    if arguments[0] in QUICK:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return
    parsed = []
    group = get_command(app)
    for command in group.commands.values():
        command.callback = lambda **values: parsed.append(values)
    group.main(arguments, prog_name="clipseq", standalone_mode=False)
    assert len(parsed) == 1
    ours = [v for v in parsed[0].values() if isinstance(v, Path) and v.parts[0] == "docs"]
    assert all((ROOT / path).exists() for path in ours)


def mentioned():
    for page in PAGES:
        for span in re.findall(r"(?<!`)`(clipseq [^`]+)`", (ROOT / page).read_text("utf-8")):
            yield pytest.param(span.split()[1:], id=f"{page}: {span}")


@pytest.mark.parametrize("words", list(mentioned()))
def test_a_command_in_the_text_exists(words):
    from typer.main import get_command

    from clipseq.cli.app import app

    group = get_command(app)
    command = group.commands.get(words[0], group)
    if command is group:
        assert words[0].startswith("--"), f"no command {words[0]}"
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= flags


def docstring_examples():
    """Yield modules with an example in a docstring, except the kit, which tests its own."""
    for path in sorted((ROOT / "clipseq").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8") and "testing" not in path.parts:
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("module", list(docstring_examples()))
def test_the_examples_in_docstrings_run(module, fresh_registry):
    found = importlib.import_module(module)
    tested = 0
    for test in doctest.DocTestFinder().find(found, globs={**vars(found), "clipseq": clipseq}):
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0
        tested += result.attempted
    assert tested


def test_the_decorator_in_its_docstring_runs():
    from clipseq.testing import parametrize_with_checks

    docstring = textwrap.dedent(parametrize_with_checks.__doc__.partition("code-block:: python")[2])
    code = docstring.partition("\n\nArgs:")[0]
    foo = type(clipseq.get_similarity("temporal"))
    names = {"parametrize_with_checks": parametrize_with_checks, "FooSimilarity": foo}
    exec(textwrap.dedent(code.partition("Args:")[0]), names)
    assert len(names["test_contract"].pytestmark) == 1
