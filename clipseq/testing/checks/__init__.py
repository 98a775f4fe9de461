"""All the checks, in the order in which an author wants to hear of them."""

from collections.abc import Mapping
from types import MappingProxyType

from clipseq.testing.checks import (
    alignment,
    batches,
    gradients,
    memory,
    modules,
    padding,
    precision,
    processes,
    scores,
)
from clipseq.testing.conformance import Check

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        check.name: check
        for part in (
            modules,
            scores,
            batches,
            padding,
            gradients,
            precision,
            alignment,
            processes,
            memory,
        )
        for check in part.CHECKS
    }
)
"""Name -> check, in order."""
