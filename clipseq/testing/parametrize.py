"""Every check as a test of its own."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from clipseq.testing.checks import CHECKS
from clipseq.testing.conformance import Make, check_examples, label_of
from clipseq.testing.run import reasons_for_skipping


def parametrize_with_checks(
    makes: Make | Mapping[str, Make],
    *,
    skip: Mapping[str, str] | None = None,
    features: int | None = None,
    max_examples: int = 20,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: the test runs once for every check, given as its argument `check`.

    .. code-block:: python

        @parametrize_with_checks({"default": FooSimilarity, "soft": lambda: FooSimilarity(gamma=1)})
        def test_contract(check):
            check()

    Args:
        makes: what to check, or several: label -> what to check.
        skip: name of a check -> why it is left out; it is shown as a skipped test.
        features: see `check_similarity`.
        max_examples: see `check_similarity`.

    Raises:
        ModuleNotFoundError: pytest is not installed.
        TypeError: `skip` is no mapping.
        ValueError: `skip` names no check, or gives no reason; `max_examples` is below 1.
    """
    try:
        import pytest
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'parametrize_with_checks needs pytest: pip install "clipseq[testing]"', name="pytest"
        ) from error

    reasons = reasons_for_skipping(skip)
    check_examples(max_examples)
    labelled = makes if isinstance(makes, Mapping) else {label_of(makes): makes}
    parameters = [
        pytest.param(
            partial(check.run, make, features=features, max_examples=max_examples),
            id=f"{label}-{name}",
            marks=[pytest.mark.skip(reason=reasons[name])] if name in reasons else [],
        )
        for label, make in labelled.items()
        for name, check in CHECKS.items()
    ]
    return pytest.mark.parametrize("check", parameters)
