"""Checks for authors of similarities: does a similarity keep the promises of the contract?

>>> from clipseq.testing import check_similarity
>>> check_similarity("local")  # a registered name, a class, or a function that creates one

Each check in `CHECKS` is a plain function with a name and a promise. `check_similarity` runs them
all, `parametrize_with_checks` turns each into a pytest test, and ``pytest --clipseq-check NAME``
needs no test file. This package needs the extra `testing`: ``pip install "clipseq[testing]"``.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'clipseq.testing needs hypothesis: pip install "clipseq[testing]"', name="hypothesis"
    ) from error

from clipseq.testing.checks import CHECKS
from clipseq.testing.conformance import Check, ConformanceError, Make, Subject
from clipseq.testing.kernels import (
    CompiledKernel,
    KernelCase,
    check_kernels,
    check_similarity_with_kernels,
    compile_kernels,
    peak_of_kernels,
    run_kernels,
)
from clipseq.testing.parametrize import parametrize_with_checks
from clipseq.testing.run import check_similarity
from clipseq.testing.strategies import sequence_pairs, sequences

__all__ = [
    "CHECKS",
    "Check",
    "CompiledKernel",
    "ConformanceError",
    "KernelCase",
    "Make",
    "Subject",
    "check_kernels",
    "check_similarity",
    "check_similarity_with_kernels",
    "compile_kernels",
    "parametrize_with_checks",
    "peak_of_kernels",
    "run_kernels",
    "sequence_pairs",
    "sequences",
]
