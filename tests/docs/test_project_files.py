"""Facts that several top-level files of the project state agree."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import clipseq

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "CITATION.cff").exists(), reason="the tests were copied without the project"
)


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads(read("pyproject.toml"))


def test_the_citation_has_the_version_and_licence_of_the_project(project):
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == project["project"]["version"] == clipseq.__version__
    assert citation["license"] == project["project"]["license"]


def test_the_workflow_runs_the_script_on_the_lowest_and_the_newest_python(project):
    job = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["ci"]
    classified = [
        classifier.rpartition(" ")[2]
        for classifier in project["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d+$", classifier)
    ]
    classified.sort(key=lambda version: int(version.partition(".")[2]))
    assert job["strategy"]["matrix"]["python"] == [classified[0], classified[-1]]
    assert project["project"]["requires-python"] == f">={classified[0]}"
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_pre_commit_runs_make_lint_and_needs_no_network():
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    (hook,) = repository["hooks"]
    assert (hook["entry"], hook["language"]) == ("make lint", "system")
    assert not hook["pass_filenames"]


@pytest.mark.parametrize("name", ["bug", "similarity"])
def test_an_issue_form_is_complete(name):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert form["name"]
    assert form["description"]
    assert any(field["validations"]["required"] for field in form["body"] if "validations" in field)


@pytest.mark.parametrize(
    ("name", "valid"), [("7.fix.md", True), ("+masks.feature.md", True), ("masks.other.md", False)]
)
def test_a_badly_named_fragment_is_refused(name, valid, tmp_path):
    pytest.importorskip("towncrier", reason="the extra dev is not installed")
    for path in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / path, tmp_path)
    (tmp_path / "changes").mkdir()
    (tmp_path / "changes" / name).write_text("Masks may be sparse.\n", encoding="utf-8")
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (finished.returncode == 0) == valid, finished.stderr
    assert ("Masks may be sparse." in finished.stdout) == valid


def test_every_fragment_says_something():
    fragments = [p for p in (ROOT / "changes").glob("*.md") if p.name != "README.md"]
    assert not [path.name for path in fragments if not path.read_text(encoding="utf-8").strip()]


def test_make_lint_checks_code_english_and_fragments():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)[1]
    for program in (
        "ruff check",
        "ruff format --check",
        ".ci/english.py",
        "towncrier build --draft",
    ):
        assert program in recipe


def test_the_demo_installs_no_tools_of_developers(project):
    recipe = re.search(r"^\$\(DEMO_STAMP\):.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)[1]
    assert "'.[train,plot]'" in recipe
    assert {"train", "plot"} <= set(project["project"]["optional-dependencies"])
