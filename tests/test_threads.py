"""Tiles side by side: the plain loop's results, whatever runs them."""

import threading
import time

import pytest
import torch

from clipseq import in_threads


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items(three_threads):
    def later_first(item):
        time.sleep(0.02 * (4 - item))
        return item * item

    assert in_threads(later_first, range(5)) == [0, 1, 4, 9, 16]


def test_several_threads_work_and_share_the_cores(three_threads):
    # All three must be inside at once for any to come out.
    together = threading.Barrier(3, timeout=10)

    def work(item):
        together.wait()
        return torch.get_num_threads()

    assert in_threads(work, range(3)) == [1, 1, 1]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("items", [1, 4])
def test_nothing_is_recorded_for_autograd(three_threads, items):
    x = torch.ones(2, requires_grad=True)
    assert not any(y.requires_grad for y in in_threads(lambda item: x * item, range(items)))
    assert torch.is_grad_enabled()


def test_the_first_error_is_raised_and_the_rest_is_left_out(three_threads):
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.01)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        in_threads(work, range(1000))
    assert len(begun) < 1000
    assert torch.get_num_threads() == 3
