"""A command line in a message works when it is copied."""

import shlex
import sys
from pathlib import Path

import pytest

from clipseq.cli.invocation import command_line


@pytest.fixture
def start(monkeypatch, tmp_path):
    """A function that sets the program that was started, the PATH and the current folder."""

    def start(program, path="", here=tmp_path):
        monkeypatch.setattr(sys, "argv", [str(program), "demo"])
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.chdir(here)

    return start


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / ".venv" / "bin" / "clipseq"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_program_on_the_path_is_named_alone(start, script):
    start(script, path=script.parent)
    assert command_line("demo") == "clipseq demo"
    start("clipseq")
    assert command_line("demo") == "clipseq demo"


def test_a_program_elsewhere_is_named_by_its_path(start, script, tmp_path):
    start(script)
    assert command_line("demo") == ".venv/bin/clipseq demo"
    start(".venv/bin/clipseq")
    assert command_line("demo") == ".venv/bin/clipseq demo"
    start(script, here=script.parent)
    assert command_line("demo") == "./clipseq demo"
    (tmp_path / "elsewhere").mkdir()
    start(script, here=tmp_path / "elsewhere")
    assert command_line("demo") == f"{script} demo"


def test_another_clipseq_on_the_path_is_not_named(start, script, tmp_path):
    other = tmp_path / "bin" / "clipseq"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    start(script, path=other.parent)
    assert command_line("demo") == ".venv/bin/clipseq demo"


def test_python_m_clipseq_is_named_so(start, monkeypatch, script):
    python = script.with_name("python")
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    start("/anywhere/clipseq/__main__.py")
    assert command_line("demo") == ".venv/bin/python -m clipseq demo"
    start("/anywhere/clipseq/__main__.py", path=python.parent)
    assert command_line("demo") == "python -m clipseq demo"


def test_a_program_that_embeds_clipseq_is_not_named(start):
    start("/somewhere/pytest")
    assert command_line("demo") == "clipseq demo"


def test_arguments_are_quoted_for_the_shell():
    words = ["demo", "--seed", 3, "--out", Path("my runs/demo")]
    assert shlex.split(command_line(*words))[-5:] == [str(word) for word in words]
