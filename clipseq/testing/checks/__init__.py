"""All the checks, in the order in which an author should read about failures."""

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from clipseq.testing.checks import (
    alignment,
    batches,
    gradients,
    memory,
    modules,
    padding,
    pairs,
    precision,
    processes,
    scores,
)
from clipseq.testing.checks.first import FIRST
from clipseq.testing.conformance import Check

CHECKS: Mapping[str, Check] = MappingProxyType(
    {FIRST.name: FIRST}
    | {
        check.name: attrs.evolve(check, after=FIRST)
        for part in (
            modules,
            scores,
            batches,
            padding,
            gradients,
            precision,
            pairs,
            alignment,
            processes,
            memory,
        )
        for check in part.CHECKS
    }
)
"""The checks by name, in the order in which `clipseq.testing.check_similarity` runs them."""
