"""float32 agrees with float64, and nothing is computed in half precision."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import clipseq

CASES = [
    ("global", {}),
    ("local", {"window": 1}),
    ("local", {"window": 16, "stride": 16}),
    ("attention", {}),
    ("temporal", {}),
    ("temporal", {"gamma": 0.01, "band": 0.2}),
    ("temporal", {"gamma": 0.003}),
    ("temporal", {"gamma": 10.0, "band": 0.2}),
    (
        "combined",
        {"parts": {"global": {}, "local": {"stride": 16}, "attention": {}, "temporal": {}}},
    ),
]

# If windows overlap, the best match and the next one are similar. Among many pairs, some are too
# close for float32 to tell apart, and either of the two may then get the gradient.
OVERLAPPING = [("local", {}), ("combined", {})]

SEED = 3


def batch(dtype: torch.dtype, count: int = 6) -> list[torch.Tensor]:
    """Return signals of a minute and long sentences, half of them at random lengths."""
    generator = torch.Generator().manual_seed(SEED)
    common = torch.randn(1, 1, 256, generator=generator, dtype=torch.float64)
    x = torch.randn(count, 128, 256, generator=generator, dtype=torch.float64) + common
    y = torch.randn(count, 32, 256, generator=generator, dtype=torch.float64) + common
    # Matched pairs after training: each step of y is near some steps of x.
    y[: count // 2] = x[: count // 2, ::4] + 0.1 * y[: count // 2]
    x_lengths = torch.randint(1, 129, (count,), generator=generator)
    y_lengths = torch.randint(1, 33, (count,), generator=generator)
    x_lengths[::2], y_lengths[::2] = 128, 32
    x_mask = torch.arange(128) < x_lengths[:, None]
    y_mask = torch.arange(32) < y_lengths[:, None]
    return [x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_(), x_mask, y_mask]


def scores_and_gradients(similarity, inputs):
    scores = similarity(*inputs)
    generator = torch.Generator().manual_seed(SEED)
    weights = torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    wanted = [*inputs[:2], *similarity.parameters()]
    return scores, torch.autograd.grad((scores * weights.to(scores.dtype)).sum(), wanted)


def nearest_maxima(window: int, stride: int, count: int) -> float:
    """Return the smallest difference between a window's best match in a sequence and the next
    best."""
    x, y, x_mask, y_mask = batch(torch.float64, count)

    def windows(values, mask):
        for item, steps in zip(values.detach(), mask.sum(1).tolist(), strict=True):
            starts = range(0, max(1, steps - window + stride), stride)
            means = [item[start : min(steps, start + window)].mean(0) for start in starts]
            yield torch.nn.functional.normalize(torch.stack(means), dim=1)

    ours, others = list(windows(x, x_mask)), list(windows(y, y_mask))
    gaps = []
    for u in ours:
        for v in others:
            for cosines in (u @ v.T, v @ u.T):
                if cosines.shape[1] > 1:
                    best, runner_up = cosines.topk(2, dim=1).values.unbind(1)
                    gaps.append(float((best - runner_up).min()))
    return min(gaps)


@pytest.mark.parametrize(("window", "stride", "count"), [(1, 1, 24), (16, 16, 24), (16, 1, 6)])
def test_no_two_maxima_are_nearer_than_float32_can_tell(window, stride, count):
    # A property of the data below, not of the code: the gradient jumps where two maxima meet.
    assert nearest_maxima(window, stride, count) > 3e-7


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [*((*case, 24) for case in CASES), *((*case, 6) for case in OVERLAPPING)],
)
def test_float32_is_near_float64(name, options, count):
    similarity = clipseq.get_similarity(name, **options)
    scores, gradients = scores_and_gradients(similarity, batch(torch.float32, count))
    exact, exact_gradients = scores_and_gradients(similarity.double(), batch(torch.float64, count))
    assert scores.dtype == torch.float32
    assert (scores - exact).abs().max() <= 1e-5
    for gradient, other in zip(gradients, exact_gradients, strict=True):
        assert (gradient - other).abs().max() <= 1e-4 * other.abs().max()


class OnlyCastsFromHalf(TorchDispatchMode):
    """A mode that fails at operations in half precision, except conversions and rearrangements."""

    ALLOWED = ("_to_copy", "detach", "view", "expand", "clone", "slice", "alias", "t", "empty_like")

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.operations.add(name)
        halves = [
            leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
        ]
        assert not halves or name in self.ALLOWED, f"{name} in half precision"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "options"), [*CASES, *OVERLAPPING])
def test_under_autocast_nothing_is_computed_in_half_precision(name, options):
    x, y, x_mask, y_mask = batch(torch.float32)
    x, y = (value.detach().bfloat16().requires_grad_() for value in (x, y))
    similarity = clipseq.get_similarity(name, **options)
    with OnlyCastsFromHalf() as seen:
        with torch.autocast("cpu", torch.bfloat16):
            scores = similarity(x, y, x_mask, y_mask)
        gradients = torch.autograd.grad(scores.sum(), (x, y))
    assert seen.operations
    exact = gradients_of_sum(similarity, x.float(), y.float(), x_mask, y_mask)
    for gradient, other in zip(gradients, exact, strict=True):
        # The result is rounded once, at the end.
        torch.testing.assert_close(gradient, other.bfloat16())


def gradients_of_sum(similarity, x, y, x_mask, y_mask):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    return torch.autograd.grad(similarity(x, y, x_mask, y_mask).sum(), (x, y))


@pytest.mark.parametrize(("name", "options"), [*CASES, *OVERLAPPING])
def test_autocast_changes_nothing_but_the_inputs(name, options):
    x, y, x_mask, y_mask = batch(torch.float32)
    x, y = x.detach().bfloat16(), y.detach().bfloat16()
    similarity = clipseq.get_similarity(name, **options)
    with torch.autocast("cpu", torch.bfloat16):
        scores = similarity(x, y, x_mask, y_mask)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, similarity(x.float(), y.float(), x_mask, y_mask))


@pytest.mark.parametrize(("name", "options"), [*CASES, *OVERLAPPING])
def test_a_half_precision_model_computes_in_float32(name, options):
    x, y, x_mask, y_mask = batch(torch.float32)
    x, y = (value.detach().bfloat16().requires_grad_() for value in (x, y))
    similarity = clipseq.get_similarity(name, **options).bfloat16()
    scores = similarity(x, y, x_mask, y_mask)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("local", {"window": 1}),
        # With few features in many heads, logits are too large for one table of exponentials.
        ("attention", {"temperature": 0.01}),
        ("attention", {"temperature": 1.0}),
        ("temporal", {}),
        ("temporal", {"band": 0.2}),
    ],
)
def test_backward_within_autocast_is_that_without(name, options):
    x, y, x_mask, y_mask = batch(torch.float32)
    similarity = clipseq.get_similarity(name, **options)
    expected = gradients_of_sum(similarity, x, y, x_mask, y_mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients_of_sum(similarity, x, y, x_mask, y_mask)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize(
    ("name", "options"), [*CASES, ("attention", {"num_heads": 1, "temperature": 0.017})]
)
@pytest.mark.parametrize("factor", [2.0**-80, 2.0**80])
def test_gradients_are_linear_in_what_arrives_whatever_its_size(name, options, factor):
    x, y, x_mask, y_mask = batch(torch.float32)
    similarity = clipseq.get_similarity(name, **options)
    inputs = [x, y, *similarity.parameters()]
    scores = similarity(x, y, x_mask, y_mask)
    arriving = torch.randn(scores.shape, generator=torch.Generator().manual_seed(SEED))
    expected = torch.autograd.grad(scores, inputs, arriving, retain_graph=True)
    found = torch.autograd.grad(scores, inputs, arriving * factor)
    for gradient, other in zip(found, expected, strict=True):
        apart = (gradient / factor - other).abs().max()
        assert apart <= 1e-6 * other.abs().max()
