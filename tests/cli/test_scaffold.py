"""The package that `new_plugin` writes works unchanged, and nothing is overwritten."""

import os
import subprocess
import sys

import pytest
from as_installed import environment, run_its_tests

from clipseq import Similarity, register_similarity
from clipseq import __main__ as entry
from clipseq.cli import scaffold
from clipseq.cli.scaffold import new_plugin


def test_the_generated_package_passes_its_tests(tmp_path):
    made = new_plugin("best_of_all", tmp_path)
    assert made == tmp_path / "clipseq-best-of-all"
    (tmp_path / "metadata").mkdir()
    finished = run_its_tests(made, tmp_path / "metadata")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " skipped" not in finished.stdout


def test_it_appears_in_the_list_of_similarities(tmp_path):
    pytest.importorskip("typer")
    made = new_plugin("mine", tmp_path)
    (tmp_path / "metadata").mkdir()
    listed = subprocess.run(
        [sys.executable, "-m", "clipseq", "similarities", "--json"],
        env=environment(made, tmp_path / "metadata"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"distribution": "clipseq-mine"' in listed.stdout


def test_it_writes_these_files_and_no_others(tmp_path):
    made = new_plugin("mine", str(tmp_path))
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "clipseq-mine/.gitignore",
        "clipseq-mine/README.md",
        "clipseq-mine/clipseq_mine.py",
        "clipseq-mine/pyproject.toml",
        "clipseq-mine/tests/test_mine.py",
    ]
    assert os.listdir(tmp_path) == ["clipseq-mine"]
    assert "class MineSimilarity(Similarity)" in (made / "clipseq_mine.py").read_text()
    for file in made.rglob("*.*"):
        assert file.is_dir() or "$" not in file.read_text()


def test_the_generated_code_passes_the_linter(tmp_path):
    pytest.importorskip("ruff")
    made = new_plugin("mine", tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    check = ["check", "--isolated", "--select", "E,F,W,I,B,UP,SIM", "--line-length", "100"]
    for command in (check, ["format", "--isolated", "--check", "--line-length", "100"]):
        finished = subprocess.run(
            [*ruff, *command, "."], cwd=made, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("name", ["", "Mine", "9a", "_a", "a_", "a__b", "a-b", "a b", "é", "../a"])
def test_a_bad_name_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"must match \[a-z\]\[a-z0-9_\]\*"):
        new_plugin(name, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lambda", "must not be a keyword of Python, got 'lambda'"),
        ("local", "'local' is taken: LocalSimilarity of clipseq 0"),
        ("combined", "'combined' is taken"),
    ],
)
def test_a_taken_name_is_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        new_plugin(name, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_name_registered_in_this_process_is_refused(tmp_path, fresh_registry):
    class Mine(Similarity):
        def score(self, x, y):
            return x.values.new_zeros(len(x.values), len(y.values))

        def align(self, x, y):
            return x.values.new_zeros(len(x.values), x.mask.shape[1], y.mask.shape[1])

    register_similarity("mine", Mine)
    with pytest.raises(ValueError, match="'mine' is taken: .*Mine of this process; choose"):
        new_plugin("mine", tmp_path)


def test_the_name_of_a_broken_or_disabled_plugin_is_refused(tmp_path, monkeypatch, fresh_registry):
    info = tmp_path / "clipseq_broken-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Name: clipseq-broken\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[clipseq]\nbroken = a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CLIPSEQ_DISABLE", "temporal")
    for name, owner in (("broken", "clipseq-broken"), ("temporal", "clipseq")):
        with pytest.raises(ValueError, match=f"'{name}' is taken by the plugin of {owner}; choose"):
            new_plugin(name, tmp_path)


def test_the_name_of_a_module_is_refused(tmp_path, monkeypatch):
    (tmp_path / "clipseq_notes.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="a module clipseq_notes is installed already"):
        new_plugin("notes", tmp_path)


@pytest.mark.parametrize("there", ["folder", "file", "dangling link"])
def test_it_never_overwrites(there, tmp_path):
    target = tmp_path / "clipseq-mine"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("kept")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="clipseq-mine exists already"):
        new_plugin("mine", tmp_path)
    assert os.listdir(tmp_path) == ["clipseq-mine"]
    assert there != "file" or target.read_text() == "kept"
    assert there != "folder" or os.listdir(target) == []


def test_a_folder_created_meanwhile_is_kept(tmp_path, monkeypatch):
    contents = scaffold._render_files

    def slow(names):
        (tmp_path / "clipseq-mine").mkdir()
        (tmp_path / "clipseq-mine" / "kept").write_text("kept")
        return contents(names)

    monkeypatch.setattr(scaffold, "_render_files", slow)
    with pytest.raises(OSError, match="clipseq-mine"):
        new_plugin("mine", tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["clipseq-mine", "kept"]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(names):
        raise KeyboardInterrupt

    monkeypatch.setattr(scaffold, "_render_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_plugin("mine", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match="existing folder, got .*nowhere; create it"):
        new_plugin("mine", tmp_path / "nowhere")


def test_it_is_a_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("typer")
    for status, output in ((0, "clipseq-mine: try it"), (2, "clipseq-mine exists already")):
        monkeypatch.setattr(
            sys, "argv", ["clipseq", "new-plugin", "mine", "--directory", str(tmp_path)]
        )
        with pytest.raises(SystemExit) as end:
            entry.main()
        assert end.value.code == status
        assert output in "".join(capsys.readouterr())
    assert (tmp_path / "clipseq-mine" / "pyproject.toml").exists()
