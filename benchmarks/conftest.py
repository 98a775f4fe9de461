"""Options, the order of the measurements, and the tables at the end."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.utils import load_timer

sys.path.insert(0, str(Path(__file__).parent))

from contenders import CONTENDERS, OURS, PEERS
from results import Results, conditions
from sizes import PADDINGS, SIZES, named
from tables import line, tables

RESULTS = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clipseq's benchmarks")
    group.addoption(
        "--sizes",
        default="S1,S2,S3,M",
        help=f"names among {', '.join(SIZES)}, with commas; M for all M's (default: %(default)s)",
    )
    group.addoption("--threads", type=int, default=2, help="torch's threads (default: %(default)s)")
    group.addoption(
        "--results",
        type=Path,
        default=Path("benchmarks.json"),
        help="file that is written after every measurement; it keeps those from the same machine "
        "and versions (default: %(default)s)",
    )
    group.addoption("--resume", action="store_true", help="skip what --results holds already")
    group.addoption(
        "--budget", type=float, default=60.0, help="seconds for all rounds of a peer (default: 60)"
    )
    group.addoption(
        "--peer-memory", type=float, default=8.0, help="GiB that a peer may add (default: 8)"
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        named(config.getoption("--sizes"))
    except ValueError as error:
        raise pytest.UsageError(f"--sizes: {error}") from error
    timer = load_timer(config.getoption("benchmark_timer")).target
    common = conditions(config.getoption("--threads"), timer.__name__)
    config.stash[RESULTS] = Results(config.getoption("--results"), common)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes = named(metafunc.config.getoption("--sizes"))
    if {"label", "size", "padding"} <= set(metafunc.fixturenames):
        contenders = OURS if "similarity" in metafunc.function.__name__ else PEERS
        cases = [
            (label, size, padding)
            for size in sizes
            for label, contender in contenders.items()
            for padding in PADDINGS
            if padding == "full" or contender.masks
        ]
        ids = [_id(label, size, padding) for label, size, padding in cases]
        metafunc.parametrize(("label", "size", "padding"), cases, ids=ids)


def _id(label: str, size: str, padding: str) -> str:
    """Return an id that names the similarity a peer is compared with, so that -k finds both."""
    against = CONTENDERS[label].against
    parts = (size, against, label, padding) if against else (size, label, padding)
    return "-".join(parts).replace(" ", "_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Small sizes come first, so that there are results early.
    order = list(SIZES)

    def place(item: pytest.Item) -> int:
        callspec = getattr(item, "callspec", None)
        size = callspec.params.get("size") if callspec else None
        return order.index(size) if size in order else len(order)

    items.sort(key=place)


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Results:
    return request.config.stash[RESULTS]


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print each figure as soon as it is measured."""
    for name, entry in report.user_properties:
        if name == "entry" and report.when == "call" and _terminal is not None:
            _terminal.write_line(f"  {line(entry)}")


_terminal: Any = None


def pytest_sessionstart(session: pytest.Session) -> None:
    global _terminal
    _terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    put_aside = session.config.stash[RESULTS].put_aside
    if put_aside and _terminal:
        _terminal.write_line(f"the first new result moves those of other conditions to {put_aside}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    results = terminalreporter.config.stash[RESULTS]
    sizes = named(terminalreporter.config.getoption("--sizes"))
    for title, lines in tables(results, sizes):
        terminalreporter.section(title)
        for text in lines:
            terminalreporter.write_line(text)
