"""Every signature is checked while the tests run; every test starts from the same random state."""

import os
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import config, install_import_hook

# Before the first import of any of them; our own pytest plugin, loaded earlier, imports none.
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

# A run in CI is reproducible; a run by hand explores.
settings.register_profile(
    "default", deadline=None, print_blob=True, max_examples=40, derandomize="CI" in os.environ
)
settings.load_profile("default")
torch.set_num_threads(int(os.environ.get("CLIPSEQ_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked_signatures() -> Iterator[None]:
    """Signatures are not checked, as they are not for users: wrong types meet our own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that has read no entry point yet, put back as it was afterwards."""
    from clipseq.registry import lookup as registry

    monkeypatch.setattr(registry, "_registry", registry.Registry())
    monkeypatch.delenv("CLIPSEQ_DISABLE", raising=False)
    monkeypatch.delenv("CLIPSEQ_STRICT", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CLIPSEQ_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data not found: set CLIPSEQ_DATA to the folder that holds it")
    return folder
