"""Which sizes are measured, and the table at the end."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `peers`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sizes", default="S1,S2", help="of S1, S2, S3 and M, separated by commas (default: S1,S2)"
    )
    parser.addoption("--threads", type=int, default=2, help="for torch (default: 2)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", metafunc.config.getoption("--sizes").split(","))


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Time over floor, of medians, and memory."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    rows = [
        (bench.extra_info, bench.stats.median)
        for bench in (session.benchmarks if session else [])
        if not bench.has_error and bench.stats.rounds and "floor" in bench.extra_info
    ]
    if not rows:
        return
    terminalreporter.section("time over floor")
    for extra, median in sorted(rows, key=lambda row: (row[0]["size"], median_over_floor(row))):
        memory = extra["added_mib"]
        terminalreporter.write_line(
            f"{extra['size']:3} {extra['padding']:7} {extra['what']:34} {1e3 * median:10.1f} ms "
            f"{median / extra['floor']:8.2f} x floor {memory:8.0f} MiB"
        )


def median_over_floor(row: tuple[dict, float]) -> float:
    extra, median = row
    return median / extra["floor"]
