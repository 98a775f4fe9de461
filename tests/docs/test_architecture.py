"""The page about the architecture names existing files, and its drawing agrees with the code."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
CHANGES = (
    "a pooling",
    "a step pattern",
    "a loss",
    "a modality",
    "a metric",
    "an option of the command line",
    "a data format",
    "a conformance check",
    "a kernel",
    "an augmentation",
)

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the tests were copied without the docs")


@pytest.fixture(scope="module")
def house():
    spec = importlib.util.spec_from_file_location("house", PAGE.parent / "_ext" / "house.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["house"]


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def section(page, title):
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_drawing_is_that_of_the_code(house, page):
    drawing = page.partition("```{house}\n")[2].partition("```")[0]
    assert not list(house.problems(house.read(drawing.splitlines()), house.imports()))


def test_what_is_not_so_in_the_code_is_found(house):
    graph = {"hall": {"cellar"}, "cellar": set(), "attic": set()}
    boxes = house.read(["cellar: wine", "hall: coats | kitchen: food"])
    assert list(house.problems(boxes, graph)) == [
        "the room attic is missing from the drawing",
        "the drawing has a room kitchen that does not exist",
        "hall imports cellar, which is not below it in the drawing",
    ]


def test_an_import_that_follows_from_others_gets_no_arrow(house):
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert house.essential(graph) == [("a", "b"), ("b", "c")]


def test_imports_in_functions_count_and_those_for_types_do_not(house):
    source = (
        "import clipseq.engine\nfrom clipseq import losses\n"
        "def f():\n    from clipseq.data.clip import Clip\n"
        "if TYPE_CHECKING:\n    from clipseq.model import CLIP\n"
    )
    assert set(house.imported_rooms(source)) == {"engine", "losses", "data"}


def test_every_file_on_the_page_exists(page):
    # A file beside another one is named without its folder.
    named = re.findall(r"`([\w/.-]+(?:\.py|/))`", page)
    assert len(named) > 20
    folders = [ROOT, ROOT / "clipseq"]
    for tree in ("clipseq", "plugins"):
        folders += [path for path in (ROOT / tree).rglob("*") if path.is_dir()]
    assert not [name for name in named if not any((folder / name).exists() for folder in folders)]


def test_ten_changes_each_have_their_file(page):
    rows = re.findall(
        r"^\| (.+?) \| `(.+?)` \| (.+) \|$", section(page, "Where to make a change"), re.M
    )
    assert len(rows) == len(CHANGES)
    for change, (wanted, path, how) in zip(CHANGES, rows, strict=True):
        assert wanted.startswith(change)
        assert (ROOT / path).is_file(), path
        # Constants, classes and functions that the row names are in that file.
        source = (ROOT / path).read_text(encoding="utf-8")
        names = re.findall(r"`([A-Z][A-Za-z_]+|augment_clip)[`(]", how)
        assert not [name for name in names if name not in source], change
