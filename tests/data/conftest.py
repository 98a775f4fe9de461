"""Real recordings, for the tests that need them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Function that finds a file in CLIPSEQ_DATA, or else in ../shared/data, or skips the test."""
    folder = os.environ.get("CLIPSEQ_DATA")
    root = Path(folder) if folder else Path(__file__).parents[3] / "shared" / "data"

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"no {name} in {root}; CLIPSEQ_DATA names the folder that has it")
        return path

    return find
