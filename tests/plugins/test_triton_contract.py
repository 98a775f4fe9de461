"""Similarities computed by kernels keep the contract as well."""

import pytest

from clipseq.testing import check_similarity_with_kernels

SLOW = ("bounded_memory", "large_batches", "long_against_short", "two_processes")


@pytest.mark.parametrize("name", ["attention", "local", "temporal"])
def test_kernels_keep_the_contract(name):
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    check_similarity_with_kernels(name, skip=dict.fromkeys(SLOW, "it takes minutes interpreted"))
