"""All checks on one similarity, in one call."""

from collections.abc import Mapping

from clipseq.errors import nearest
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

    Runs all of them, also after a failure, unless the first breaks: `forward_and_backward`, without
    which the others say little. The searches are the same in every run, and nothing is
    drawn from the global generators.

    Args:
        make: a registered name, a class, or a function without arguments that returns a fresh
            similarity, such as ``lambda: FooSimilarity(gamma=0.5)``.
        skip: name of a check -> why it is left out.
        features: D of the examples; None: `embed_dim` of the similarity, or 4.
        max_examples: how many examples each search may try. More is slower and finds more.

    Raises:
        ConformanceError: promises are broken; the message has all of them, or the first alone.
        TypeError: `make` is none of these, such as a similarity; `skip` is no mapping.
        ValueError: `skip` names no check, or gives no reason; `max_examples` is below 1.
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
    """`skip` as a dict, checked.

    Raises:
        TypeError: it is no mapping.
        ValueError: it names no check, or gives no reason.
    """
    if not isinstance(skip, Mapping | None):
        raise TypeError(
            "skip maps the name of a check to why it is left out, such as "
            f"{{'compile': 'no compiler here'}}, got {skip!r}"
        )
    reasons = dict(skip or {})
    for name, reason in reasons.items():
        if name not in CHECKS:
            guess = nearest(name, CHECKS) or f"; checks: {', '.join(CHECKS)}"
            raise ValueError(f"no check named {name!r}{guess}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"skip[{name!r}] must say why, got {reason!r}")
    return reasons
