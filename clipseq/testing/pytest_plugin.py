"""``pytest --clipseq-check NAME`` runs every check on a registered similarity.

`pytest_clipseq` declares the options, and registers this module if one of them is given.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from clipseq.testing.checks import CHECKS
from clipseq.testing.conformance import Check, ConformanceError, check_examples
from clipseq.testing.run import reasons_for_skipping


def pytest_configure(config: pytest.Config) -> None:
    """Run only the checks if the command line has no paths."""
    if config.getoption("clipseq_check") and config.args_source is not config.ArgsSource.ARGS:
        config.args[:] = []


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for every check and every name."""
    names = config.getoption("clipseq_check")
    if not names:
        return
    skip = _skip(config.getoption("clipseq_skip"))
    examples = _examples(config.getoption("clipseq_examples"))
    for name in names:
        _registered(name)
        parent = CheckedSimilarity.from_parent(session, name=f"clipseq[{name}]")
        items.extend(parent.checks(name, skip, examples))


def _skip(arguments: list[str]) -> dict[str, str]:
    try:
        return reasons_for_skipping(dict(text.partition("=")[::2] for text in arguments))
    except ValueError as error:
        raise pytest.UsageError(f"--clipseq-skip: {error}") from error


def _examples(number: int) -> int:
    try:
        check_examples(number)
    except ValueError as error:
        raise pytest.UsageError(f"--clipseq-examples: {error}") from error
    return number


def _registered(name: str) -> None:
    from clipseq.errors import ClipseqError
    from clipseq.registry import get_similarity

    try:
        get_similarity(name)
    except ClipseqError as error:
        raise pytest.UsageError(f"--clipseq-check: {error}") from error
    except Exception:
        pass  # the first check reports that it cannot be created


class CheckedSimilarity(pytest.Collector):
    """The checks of one registered similarity."""

    def collect(self) -> list[pytest.Item]:
        return []

    def checks(self, name: str, skip: Mapping[str, str], examples: int) -> list[pytest.Item]:
        """Create one item for each check."""
        items: list[pytest.Item] = []
        for check in CHECKS.values():
            item = CheckItem.from_parent(
                self, name=check.name, check=check, similarity=name, examples=examples
            )
            if check.name in skip:
                item.add_marker(pytest.mark.skip(reason=skip[check.name]))
            items.append(item)
        return items


class CheckItem(pytest.Item):
    """One check of one registered similarity."""

    def __init__(self, *, check: Check, similarity: str, examples: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check
        self.similarity = similarity
        self.examples = examples

    def runtest(self) -> None:
        self.check.run(self.similarity, max_examples=self.examples)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, ConformanceError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, 0, f"{self.similarity}: {self.check.promise}"
