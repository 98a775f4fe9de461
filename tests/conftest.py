"""Fixtures and settings of all tests.

Every signature is checked while the tests run, and every test starts from the same random state.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import config, install_import_hook

# This must precede the first import of these packages. pytest has loaded pytest_clipseq already,
# but that does not import any of them.
install_import_hook(
    [
        "clipseq",
        "clipseq_global",
        "clipseq_local",
        "clipseq_attention",
        "clipseq_temporal",
        "clipseq_combined",
    ],
    "beartype.beartype",
)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# A run in CI is reproducible; a run by hand tries new examples.
settings.register_profile(
    "default", deadline=None, print_blob=True, max_examples=40, derandomize="CI" in os.environ
)
settings.load_profile("default")
torch.set_num_threads(int(os.environ.get("CLIPSEQ_TEST_THREADS", "1")))


TESTS = Path(__file__).parent

SLOW = (
    "benchmarks",
    "cli/test_scaffold.py",
    "demo",
    "devices",
    "distributed",
    "docs",
    "examples",
    "fuzz",
    "plugins/test_compile.py",
    "plugins/test_contract.py",
    "plugins/test_fast_similarities_page.py",
    "plugins/test_memory.py",
    "plugins/test_subnormals.py",
    "plugins/test_temporal.py",
    "plugins/test_triton_*.py",
    "testing",
    "training/launch",
    "training/test_faults.py",
    "training/test_fit.py",
    "training/test_gradient_caching.py",
    "training/test_selection.py",
    "training/test_stopped_runs.py",
    "world",
)
"""Patterns of the slow folders and modules, which `make test` runs and `make check` skips.

A single test that takes over a second is marked where it stands.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of SLOW."""
    slow = {pattern: list(TESTS.glob(pattern)) for pattern in SLOW}
    gone = [pattern for pattern, paths in slow.items() if not paths]
    if gone:
        raise pytest.UsageError(f"SLOW in {__file__} must match files, got {gone}")
    for item in items:
        if any(item.path.is_relative_to(path) for paths in slow.values() for path in paths):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked_signatures() -> Iterator[None]:
    """Switch the checks of signatures off, as for users, so that our own errors are raised."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the registry, for one test, by one that has not read the entry points yet."""
    from clipseq.registry import lookup as registry

    monkeypatch.setattr(registry, "_registry", registry.Registry())
    monkeypatch.delenv("CLIPSEQ_DISABLE", raising=False)
    monkeypatch.delenv("CLIPSEQ_STRICT", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the real data sets; skip the test if it does not exist."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CLIPSEQ_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data not found; set CLIPSEQ_DATA to the folder that holds it")
    return folder
