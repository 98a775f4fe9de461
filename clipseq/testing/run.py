"""A function that runs all checks on one similarity."""

from collections.abc import Mapping

from clipseq.errors import end_clause, suggest
from clipseq.testing.checks import CHECKS
from clipseq.testing.conformance import ConformanceError, Make, label_of


def check_similarity(
    make: Make,
    *,
    skip: Mapping[str, str] | None = None,
    features: int | None = None,
    max_examples: int = 20,
) -> None:
    """Check that a similarity keeps every promise in `CHECKS`.

    All checks run, even after a failure, unless `forward_and_backward` fails, which makes the
    others meaningless. The searches are the same in every run, and do not use the global random
    generators.

    Args:
        make: a registered name, a class, or a function without arguments that returns a fresh
            similarity, such as ``lambda: FooSimilarity(gamma=0.5)``.
        skip: names of checks -> reasons to leave them out.
        features: D of the examples. None: the `embed_dim` of the similarity, or else 4.
        max_examples: the largest number of examples that each search tries. More examples take
            longer and find more.

    Raises:
        ConformanceError: if promises are broken; the message lists all of them, or only that of
            `forward_and_backward`.
        TypeError: if `make` is something else, such as a similarity, or if `skip` is not a mapping.
        ValueError: if `skip` names an unknown check or gives an empty reason, or if
            `max_examples` is below 1.
    """
    __tracebackhide__ = True
    reasons = reasons_for_skipping(skip)
    broken: list[ConformanceError] = []
    for name, check in CHECKS.items():
        if name not in reasons:
            try:
                check.run(make, features=features, max_examples=max_examples)
            except ConformanceError as error:
                if check.after is None:
                    raise
                broken.append(error)
    if len(broken) == 1:
        raise broken[0]
    if broken:
        head = f"{label_of(make)} breaks {len(broken)} of the {len(CHECKS)} promises"
        raise ConformanceError("\n\n".join([head, *map(str, broken)]))


def reasons_for_skipping(skip: Mapping[str, str] | None) -> dict[str, str]:
    """Return `skip` as a dict.

    Raises:
        TypeError: if `skip` is not a mapping.
        ValueError: if it names an unknown check or gives an empty reason.
    """
    if not isinstance(skip, Mapping | None):
        raise TypeError(
            "skip must be a mapping from names of checks to reasons, such as "
            f"{{'compile': 'no compiler here'}}, got {skip!r}"
        )
    reasons = dict(skip or {})
    for name, reason in reasons.items():
        if name not in CHECKS:
            guess = end_clause(suggest(name, CHECKS)) + f" checks: {', '.join(CHECKS)}"
            raise ValueError(f"skip must name checks, got {name!r}{guess}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"skip[{name!r}] must be a reason, got {reason!r}")
    return reasons
