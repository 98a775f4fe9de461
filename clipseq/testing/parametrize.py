"""A pytest decorator that turns every check into a test."""

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
    """Return a pytest decorator that runs a test once for every check, its argument `check`.

    .. code-block:: python

        @parametrize_with_checks({"default": FooSimilarity, "soft": lambda: FooSimilarity(gamma=1)})
        def test_contract(check):
            check()

    Args:
        makes: a source of similarities, or a mapping from labels to several sources.
        skip: names of checks -> reasons to leave them out; pytest shows them as skipped.
        features: see `check_similarity`.
        max_examples: see `check_similarity`.

    Raises:
        ModuleNotFoundError: if pytest is not installed.
        TypeError: if `skip` is not a mapping.
        ValueError: if `skip` names an unknown check or gives an empty reason, or if
            `max_examples` is below 1.
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
