"""Each rule of `.ci/english.py` fires where it should, and only there."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "english.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the tests were copied without .ci")


@pytest.fixture(scope="module")
def english():
    spec = importlib.util.spec_from_file_location("english", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["english"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["english"]


def found(english, tmp_path, source, name="module.py"):
    path = tmp_path / name
    path.write_text(source, encoding="utf-8")
    return [(finding.line, finding.rule) for finding in english.check_file(path)]


BROKEN = {
    "noun phrase": ('def f():\n    """The mean of x."""\n', (2, 1)),
    "third person": ('def f():\n    """Returns the mean."""\n', (2, 1)),
    "method": ('class A:\n    """A mean."""\n    def f(self):\n        """Mean of x."""\n', (4, 1)),
    "module": ('"""How a batch is scored."""\n', (1, 1)),
    "class": ('class A:\n    """What scores a pair."""\n', (2, 1)),
    "constant": ('A = 1\n"""Whether x is counted."""\n', (2, 1)),
    "property": ('class A:\n    @property\n    def f(self):\n        """Whether."""\n', (4, 1)),
    "test": ('def test_f():\n    """That it holds."""\n', (2, 1)),
    "sentence": ('def f():\n    """Return x.\n\n    Of y, nothing.\n    """\n', (4, 2)),
    "argument": ('def f():\n    """Return x.\n\n    x: Of y.\n    """\n', (4, 2)),
    "comment": ("x = 1\n# Of two, the first.\n", (2, 2)),
    "help": ('Option(help="Of the data.")\n', (1, 2)),
    "none": ("# It is none of ours.\n", (1, 3)),
    "no": ("# Skip what is no tensor.\n", (1, 3)),
    "has none": ("# It has none.\n", (1, 3)),
    "wanted": ('raise ValueError("wanted a string")\n', (1, 5)),
    "f-string": ('raise ValueError(f"{name} beside {other}")\n', (1, 5)),
    "warning": ('warnings.warn("unless told otherwise")\n', (1, 5)),
    "but for": ("# All but for one.\n", (1, 6)),
    "to be had": ("# It is to be had.\n", (1, 6)),
    "as it is": ("# x stays as it is.\n", (1, 6)),
    "tells": ("# It tells how many.\n", (1, 6)),
    "per": ("# 32 bytes a pair.\n", (1, 6)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found_in_its_line(english, tmp_path, name):
    source, expected = BROKEN[name]
    found_here = found(english, tmp_path, source)
    assert expected in found_here


GOOD = [
    'def f():\n    """Return the mean, or None if there is none."""\n',
    'def test_f():\n    """A mask is ignored."""\n',
    'class A:\n    """A mean."""\n    @property\n    def f(self):\n        """The mean."""\n',
    "import pytest\n@pytest.fixture\ndef f():\n    '''A run.'''\n",
    'raise ValueError(f"x must be positive, got {x}; pass 1 or more")\n',
    "# The values are None, which is no longer allowed.\n",
    "# It tells orders apart, and tells one order from another.\n",
    "# Use `tell()` to find the position.\n",
    "# x is used as it is read.\n",
    "x = 'Of strings that are data nothing is said'\n",
]


@pytest.mark.parametrize("source", GOOD)
def test_good_english_passes(english, tmp_path, source):
    assert found(english, tmp_path, source) == []


def test_pages_and_comments_of_other_files_are_read(english, tmp_path):
    page = "# Title\n\n```\nOf code.\n```\n\nIt is `Of` use.\n\n- Of lists.\n\nEnd. Of it.\n"
    assert found(english, tmp_path, page, "page.md") == [(9, 2), (11, 2)]
    assert found(english, tmp_path, "a = 1  # but for b\n# Of c\n", "a.toml") == [(1, 6), (2, 2)]


def test_a_line_can_be_exempt(english, tmp_path):
    assert found(english, tmp_path, "# english: ok\n# Of mice and men.\n") == []


def test_it_prints_the_findings_and_exits_with_1(english, tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("Of it.\n", encoding="utf-8")
    assert english.main([str(tmp_path)]) == 1
    assert f"{path}:1: rule 2: Of it" in capsys.readouterr().out
    path.write_text("All of it.\n", encoding="utf-8")
    assert english.main([str(tmp_path)]) == 0
