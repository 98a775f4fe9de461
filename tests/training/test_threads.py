"""The number of threads holds for the block and no longer."""

import pytest
import torch

from clipseq.training.threads import SMALL, cpu_threads, default_threads


def test_threads_are_put_back_also_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with cpu_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before


def test_a_run_computes_with_the_threads_of_its_config(dataset, small_run):
    from clipseq.training import train

    seen = []
    before = torch.get_num_threads()
    train(
        small_run(max_steps=1, threads=3),
        dataset=dataset,
        progress=lambda *_: seen.append(torch.get_num_threads()),
    )
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_a_small_model_computes_with_one_thread_by_default(dataset, small_run):
    from clipseq.training import train

    seen = []
    train(
        small_run(max_steps=1, threads=None),
        dataset=dataset,
        progress=lambda *_: seen.append(torch.get_num_threads()),
    )
    assert seen == [1]
    with torch.device("meta"):
        assert default_threads(torch.nn.Linear(SMALL - 1, 1, bias=False)) == 1
        assert default_threads(torch.nn.Linear(SMALL, 1, bias=False)) is None
