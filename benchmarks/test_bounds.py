"""Promises at sizes that are too large for the tests. Nothing here is timed.

A check runs if its size is among --sizes.
"""

import pytest
import torch
from contenders import OURS
from memory import measured
from results import Results
from sizes import FEATURES, SIZES, Batch, batch, named
from torch.nn.functional import normalize

import clipseq

SIMILARITIES = [label for label in OURS if "loss" not in label]


def need(request: pytest.FixtureRequest, *sizes: str) -> None:
    """Skip unless all of these are among --sizes."""
    if not set(sizes) <= set(named(request.config.getoption("--sizes"))):
        pytest.skip(f"with --sizes {','.join(sizes)}")


def added(request: pytest.FixtureRequest, results: Results, label: str, size: str) -> int:
    """Return the bytes that a call adds to a fresh process, from an earlier measurement if any."""
    known = results.entries.get((label, size, "full"), {})
    if known.get("added_bytes") is None:
        known = measured(label, size, "full", request.config.getoption("--threads"), None)
    if known["added_bytes"] is None:
        pytest.skip("this system does not report the peak memory of a process")
    return known["added_bytes"]


@pytest.mark.parametrize("label", SIMILARITIES)
def test_256_mib_are_enough_at_s3(request, results, label):
    need(request, "S3")
    assert added(request, results, label, "S3") <= 256 * 2**20


COPIES = {
    "global": 1,
    "local window=1": 4,
    "local": 3,
    "attention": 4,
    "temporal": 3,
    "temporal band=0.1": 4,
    "combined": 5,
}
"""The number of tensors of the size of all steps that are alive at the peak of each similarity.

Such are unit vectors, the keys of heads, windows, and the gradients of these and of the steps.
"""


@pytest.mark.parametrize("label", SIMILARITIES)
def test_a_larger_batch_adds_its_scores_and_what_grows_as_its_inputs(request, results, label):
    need(request, "M128", "M512")

    def beside_inputs(size: str) -> int:
        own = 4 * SIZES[size].b * (SIZES[size].t + SIZES[size].length) * FEATURES
        return added(request, results, label, size) - COPIES[label] * own

    # 32 bytes per pair: scores, their gradients, counts in float64; a pair has 1240 cells.
    # And 2 MiB for tiles, which the smaller batch does not fill: here, 9 more bytes per pair.
    pairs = SIZES["M512"].b ** 2 - SIZES["M128"].b ** 2
    assert beside_inputs("M512") - beside_inputs("M128") <= 32 * pairs + 2**21


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("global", {}),
        ("local", {"window": 1}),
        ("local", {"window": 16, "stride": 16}),
        ("attention", {}),
        ("temporal", {}),
        ("temporal", {"band": 0.1}),
        (
            "combined",
            {"parts": {"global": {}, "local": {"stride": 16}, "attention": {}, "temporal": {}}},
        ),
    ],
    ids=str,
)
def test_float32_is_near_float64_at_s2(request, name, options):
    """Scores are within 1e-5, and gradients within 1e-4 of the largest.

    Windows do not overlap. If they did, thousands of maxima would differ from the next largest
    value by less than float32 resolves.
    """
    need(request, "S2")
    inputs = batch(SIZES["S2"], "ragged")
    exact_inputs = Batch(
        *(side.detach().double().requires_grad_() for side in inputs[:2]), *inputs[2:]
    )
    similarity = clipseq.get_similarity(name, **options)
    scores, gradients = scores_and_gradients(similarity, inputs)
    exact, exact_gradients = scores_and_gradients(similarity.double(), exact_inputs)
    assert (scores - exact).abs().max() <= 1e-5
    clear = [torch.ones(side.shape[:2], dtype=torch.bool) for side in inputs[:2]]
    if name in ("local", "combined"):
        clear = clear_steps(exact_inputs, options.get("window", 16))
        assert all(steps.float().mean() > 0.95 for steps in clear)
    for side, (gradient, other) in enumerate(zip(gradients, exact_gradients, strict=True)):
        wrong = (gradient - other).abs()
        if side < 2:
            wrong = wrong[clear[side]]
        assert wrong.max() <= 1e-4 * other.abs().max()


def scores_and_gradients(similarity, inputs):
    scores = similarity(*inputs)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(scores.shape, generator=generator, dtype=torch.float64).to(scores.dtype)
    wanted = [*inputs[:2], *similarity.parameters()]
    return scores.detach(), torch.autograd.grad((scores * weights).sum(), wanted)


def clear_steps(inputs: Batch, window: int) -> list[torch.Tensor]:
    """Return masks (B, T) and (C, L), False in windows where the two largest cosines are too close.

    Where they differ by less than 3e-7, rounding decides which of them gets the gradient. Windows
    do not overlap.
    """
    x, y = (side.detach() for side in inputs[:2])
    x_lengths, y_lengths = (mask.sum(1).tolist() for mask in inputs[2:])
    clear = [torch.ones(side.shape[:2], dtype=torch.bool) for side in (x, y)]

    def windows(values, steps):
        starts = range(0, max(1, steps), window)
        return normalize(torch.stack([values[s : min(steps, s + window)].mean(0) for s in starts]))

    us = [windows(item, steps) for item, steps in zip(x, x_lengths, strict=True)]
    vs = [windows(item, steps) for item, steps in zip(y, y_lengths, strict=True)]

    def unclear(side: int, item: int, window_indices: torch.Tensor) -> None:
        for k in set(window_indices.flatten().tolist()):
            clear[side][item, k * window : (k + 1) * window] = False

    for i, u in enumerate(us):
        for j, v in enumerate(vs):
            cosines = u @ v.T
            for side, table in ((0, cosines), (1, cosines.T)):
                if table.shape[1] < 2:
                    continue
                values, where = table.topk(2, dim=1)
                near = values[:, 0] - values[:, 1] < 3e-7
                if near.any():
                    own, other = ((i, j), (j, i))[side]
                    unclear(side, own, near.nonzero())
                    unclear(1 - side, other, where[near])
    return clear
