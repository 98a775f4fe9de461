"""Similarities computed by kernels keep the contract as well."""

import pytest

from clipseq.testing import check_similarity_with_kernels

SKIP = dict.fromkeys(
    ("bounded_memory", "long_against_short"), "it takes minutes interpreted"
) | dict.fromkeys(
    ("options", "registered_tensors", "state_dict", "deepcopy", "pickle"),
    "it is about the module around the kernels: test_contract runs it",
)


@pytest.mark.parametrize("name", ["attention", "local", "temporal"])
def test_kernels_keep_the_contract(name):
    pytest.importorskip("triton", reason="the kernels cannot run without triton")
    check_similarity_with_kernels(name, skip=SKIP)
