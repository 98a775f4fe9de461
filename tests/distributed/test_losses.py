"""Processes that share a batch have the loss and gradients of one process with the whole batch."""

import functools

import one_batch
import pytest
import torch
from processes import run_ranks

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@pytest.fixture(scope="module", params=one_batch.SIZES)
def world(request, tmp_path_factory):
    """Return the outcomes of each rank, in a world of that size."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    run_ranks("one_batch", folder, request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@functools.cache
def by_one_process(name):
    case = one_batch.cases()[name]
    whole = one_batch.batch(case["dtype"])
    return one_batch.outcome(one_batch.loss_of(case | {"gather": None}), case, whole)


@pytest.mark.parametrize("of", ["pooled", *one_batch.SIMILARITIES])
def test_loss_and_gradients_are_those_of_one_process(world, of):
    sizes = one_batch.SIZES[len(world)]
    for name, case in one_batch.cases().items():
        if case["of"] != of:
            continue
        expected = by_one_process(name)
        tolerance = TOLERANCE[case["dtype"]]
        for rank, found in enumerate(world):
            found = found["outcomes"][name]
            assert found.keys() == expected.keys()
            for what, value in found.items():
                wanted = expected[what]
                if what in ("x", "y", "extra"):
                    # An input belongs to one rank only, so averaging divides its gradient.
                    value = value / len(world)
                    parts = one_batch.EXTRAS[len(world)] if what == "extra" else sizes
                    start = sum(parts[:rank])
                    wanted = wanted[start : start + parts[rank]]
                    assert wanted[:, value.shape[1] :].count_nonzero() == 0
                    wanted = wanted[:, : value.shape[1]]
                    if len(wanted) == 0:  # this rank has no extra negatives
                        assert len(value) == 0
                        continue
                scale = max(1.0, expected[what].abs().max().item())
                apart = (value - wanted).abs().max().item()
                assert apart <= tolerance * scale, f"{name}, rank {rank}: {what} is off by {apart}"


@functools.cache
def clip_by_one_process(which):
    siglip, dtype = one_batch.CLIPS[which]
    step = one_batch.TrainingStep(siglip, dtype, gather=None)
    return one_batch.clip_outcome(step, one_batch.clip_batch(dtype))


@pytest.mark.parametrize("which", range(len(one_batch.CLIPS)))
def test_so_are_the_total_loss_of_clip_and_every_gradient_of_it(world, which):
    _, dtype = one_batch.CLIPS[which]
    expected = clip_by_one_process(which)
    assert {"loss_clip", "loss_seq", "loss_total"} < expected.keys()
    for rank, found in enumerate(world):
        found = found["clips"][which]
        assert found.keys() == expected.keys()
        for name, value in found.items():
            scale = max(1.0, expected[name].abs().max().item())
            apart = (value - expected[name]).abs().max().item()
            assert apart <= TOLERANCE[dtype] * scale, f"rank {rank}: {name} is off by {apart}"


@pytest.mark.parametrize("gather", ["ring", "all"])
def test_every_pair_is_scored_once_in_the_world(world, gather):
    scored = [found["counts"][gather]["scored"] for found in world]
    total = sum(one_batch.SIZES[len(world)])
    assert sum(scored) == total * total
    for found in world:
        counts = found["counts"][gather]
        assert counts["scored"] == counts["items"] * total
        if len(world) > 1:
            assert counts["counting"]["pairs"] == counts["scored"]
            assert counts["counting"]["pairs_again"] == counts["scored"]


def test_no_process_of_a_ring_holds_all_sequences(world):
    if len(world) < 3:
        pytest.skip("with two processes, the two blocks that a process holds are all there are")
    sizes = one_batch.SIZES[len(world)]
    for rank, found in enumerate(world):
        # These are the block it works on, and the block that is arriving.
        most = max(sizes[k] + sizes[k - 1] for k in range(len(sizes)) if k - 1 != rank)
        held = found["counts"]["ring"]["counting"]["held"]
        assert held <= max(most, sizes[rank] + sizes[rank - 1]) < sum(sizes)
        assert found["counts"]["all"]["counting"]["held"] == sum(sizes)


def test_what_travels_is_what_was_prepared(world):
    """``global`` sends one vector and one flag per item, whatever the length of its sequence."""
    sizes = one_batch.SIZES[len(world)]
    for rank, found in enumerate(world):
        traffic = found["counts"]["ring"]["global"]
        # This rank passes on every block except the next rank's own.
        passing = [k for k in range(len(sizes)) if k != (rank + 1) % len(sizes)]
        if len(sizes) == 1:
            passing = []
        vectors = sum(_aligned(sizes[k] * one_batch.FEATURES * 4) for k in passing)
        flags = sum(_aligned(sizes[k]) for k in passing)
        assert traffic["blocks"] == 2 * (vectors + flags)  # in forward, and again in backward
        # It sends the gradients of every block except its own, after adding its part.
        others = [k for k in range(len(sizes)) if k != rank]
        assert traffic["gradients"] == sum(
            _aligned(sizes[k] * one_batch.FEATURES * 4) for k in others
        )


def _aligned(size):
    return -(-size // 64) * 64


def test_dropout_is_the_same_when_pairs_are_scored_again(world):
    if len(world) == 1:
        pytest.skip("a single process scores them once")
    for found in world:
        forward, backward = found["dropouts"][: len(world)], found["dropouts"][len(world) :]
        assert forward == backward
        assert len(set(forward)) > 1


def test_processes_that_make_different_calls_are_an_error(world):
    if len(world) == 1:
        pytest.skip("a single process agrees with itself")
    for found in world:
        structure, groups, items = found["disagreements"]
        assert "the processes must agree about the similarity, got GlobalSimilarity" in structure
        assert "the processes must agree about groups, passed (1) or not (0), got [1, 0" in groups
        assert "must have at least one item of its own, got [0, 1" in items


def test_ranks_that_disagree_end_at_once_with_what_differs(tmp_path):
    run_ranks("ranks_that_disagree", tmp_path, 2)
