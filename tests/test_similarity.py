"""`Similarity.forward` prepares and checks what a plugin gets, and checks what it returns."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clipseq
from clipseq.engine import tile_shape
from clipseq.sequences import pack, unpack_pairs


class Recorder(clipseq.Similarity):
    """A similarity that records the x it is given."""

    def prepare_x(self, x):
        self.seen = x
        return super().prepare_x(x)

    def prepare_y(self, y):
        return super().prepare_x(y)

    def score(self, x, y):
        return torch.einsum("btd,cld->bc", x.values, y.values) / x.values.shape[1] / 50

    def align(self, x, y):
        return torch.bmm(x.values, y.values.mT).clamp(min=0)


@given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_pack_moves_the_real_steps_to_the_front_in_order(mask):
    mask = torch.tensor(mask)
    values = torch.arange(1.0, mask.numel() + 1).view(*mask.shape, 1)
    packed, order, occupied = pack(values, mask)
    for item, real in enumerate(mask):
        mine = values[item][real].flatten().tolist()
        length = max(len(mine), 1)
        assert packed.values[item].flatten().tolist()[: len(mine)] == mine
        assert not packed.values[item, len(mine) :].any()
        assert packed.mask[item].tolist() == [i < length for i in range(packed.mask.shape[1])]
        assert occupied[item] == bool(mine)
        assert sorted(order[item].tolist()) == list(range(5))


@given(seed=st.integers(0, 2**16))
def test_unpacked_weights_stand_where_their_steps_stood(seed):
    generator = torch.Generator().manual_seed(seed)
    x_mask = torch.rand(3, 6, generator=generator) < 0.5
    y_mask = torch.rand(3, 4, generator=generator) < 0.5
    full = torch.rand(3, 6, 4, generator=generator) * (x_mask[:, :, None] & y_mask[:, None])
    _, x_order, _ = pack(torch.zeros(3, 6, 1), x_mask)
    _, y_order, _ = pack(torch.zeros(3, 4, 1), y_mask)
    moved = full.gather(1, x_order[:, :, None].expand(-1, -1, 4))
    moved = moved.gather(2, y_order[:, None, :].expand(-1, 6, -1))
    moved = moved[:, : int(x_mask.sum(1).max()), : int(y_mask.sum(1).max())]
    assert torch.equal(unpack_pairs(moved, x_order, y_order), full)


def test_a_plugin_sees_clean_prefixes_in_float32_without_autocast():
    x = torch.randn(2, 4, 3, dtype=torch.bfloat16)
    mask = torch.tensor([[False, True, False, True], [False, False, False, False]])
    x[~mask] = float("nan")
    recorder = Recorder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = recorder(x, torch.randn(5, 2, 3), mask)
    assert scores.dtype == torch.float32
    assert recorder.seen.values.dtype == torch.float32
    assert recorder.seen.values.isfinite().all()
    assert recorder.seen.mask.tolist() == [[True, True], [True, False]]
    assert scores[1].tolist() == [-1.0] * 5


@given(batch=st.integers(1, 50), others=st.integers(1, 50), pairs=st.integers(0, 3000))
def test_a_tile_never_exceeds_its_pairs(batch, others, pairs):
    rows, columns = tile_shape(batch, others, pairs)
    assert 1 <= rows <= batch
    assert 1 <= columns <= others
    assert rows * columns <= max(pairs, 1)


def test_tiles_are_recomputed_in_backward_and_none_is_missed():
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True)
    whole, tiled = Recorder(), Recorder()
    tiled.tile_elements = 4 * 2 * 3
    calls = []
    score = tiled.score
    tiled.score = lambda a, b: calls.append((len(a.values), len(b.values))) or score(a, b)
    weights = torch.randn(5, 7, dtype=torch.float64)
    expected = torch.autograd.grad((whole(x, y) * weights).sum(), (x, y))
    scores = tiled(x, y)
    in_forward = len(calls)
    assert sum(b * c for b, c in calls) == 35
    assert max(b * c for b, c in calls) <= 3
    torch.testing.assert_close(torch.autograd.grad((scores * weights).sum(), (x, y)), expected)
    assert len(calls) == 2 * in_forward


def test_the_largest_tensor_of_a_tiled_score_is_a_tile():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.numel())
            return result

    class Naive(Recorder):
        def score(self, x, y):
            return torch.einsum("btd,cld->bctl", x.values, y.values).amax(3).mean(2)

    x = torch.randn(32, 16, 4, requires_grad=True)
    y = torch.randn(32, 16, 4, requires_grad=True)
    naive = Naive()
    naive.tile_elements = 2**12
    with Largest() as largest:
        naive(x, y).sum().backward()
    assert largest.size <= 2**12


def test_without_a_gradient_nothing_is_recomputed_and_no_graph_kept():
    recorder = Recorder()
    recorder.tile_elements = 8
    with torch.no_grad():
        scores = recorder(torch.randn(3, 4, 3), torch.randn(2, 2, 3))
    assert not scores.requires_grad


def test_a_projection_starts_as_the_identity_and_draws_nothing():
    before = torch.get_rng_state()
    similarity = clipseq.get_similarity("global", embed_dim=6)
    assert torch.equal(torch.get_rng_state(), before)
    x, y = torch.randn(3, 4, 6), torch.randn(2, 5, 6)
    torch.testing.assert_close(similarity(x, y), clipseq.get_similarity("global")(x, y))
    similarity(x, y).sum().backward()
    assert {name for name, p in similarity.named_parameters() if p.grad.any()} == {
        "x_projection.weight",
        "y_projection.weight",
    }


def test_zero_vectors_get_zero_gradient_and_any_scale_a_unit_vector():
    values = torch.tensor([[0.0, 0.0], [3e30, 4e30], [3e-30, 4e-30]], requires_grad=True)
    unit = clipseq.unit(values)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8]]))
    unit.sum().backward()
    assert values.grad.isfinite().all()
    assert not values.grad[0].any()


def ones(*shape, **options):
    return torch.ones(*shape, **options)


BAD_VALUES = {
    "rank": (
        (ones(3, 4), ones(2, 3, 4)),
        r"x must have the shape \(B, T, D\), got \(3, 4\); for one sequence add a batch axis with "
        r"\[None\], for pooled features use ClipLoss or SigLipLoss",
    ),
    "rank of y": ((ones(2, 3, 4), ones(1, 2, 3, 4)), r"y must have the shape \(C, L, D\)"),
    "features": ((ones(2, 3, 4), ones(2, 3, 5)), "got D=4 for x .* and D=5 for y"),
    "no item": ((ones(0, 3, 4), ones(2, 3, 4)), "at least one sequence"),
    "no step": ((ones(2, 3, 4), ones(2, 0, 4)), "y must have at least .* one step"),
    "no feature": ((ones(2, 3, 0), ones(2, 3, 0)), "one feature"),
    "mask shape": (
        (ones(2, 3, 4), ones(2, 3, 4), ones(2, 4).bool()),
        r"x_mask must have .*\(2, 3\)",
    ),
    "device": ((ones(2, 3, 4), ones(2, 3, 4, device="meta")), "on one device, got cpu and meta"),
    "mask device": (
        (ones(2, 3, 4), ones(2, 3, 4), None, ones(2, 3, dtype=torch.bool, device="meta")),
        "y_mask must be on the device of y, cpu, got meta",
    ),
}
BAD_TYPES = {
    "list": (([[1.0]], ones(2, 3, 4)), "x must be a tensor .* got list"),
    "integers": ((ones(2, 3, 4).long(), ones(2, 3, 4)), "floating point, got torch.int64"),
    "complex": ((ones(2, 3, 4), ones(2, 3, 4).cfloat()), "y must be floating point"),
    "mixed": (
        (ones(2, 3, 4).double(), ones(2, 3, 4)),
        "both be float64 or neither, got torch.float64 and torch.float32",
    ),
    "float mask": (
        (ones(2, 3, 4), ones(2, 3, 4), ones(2, 3)),
        r"x_mask must be a bool tensor, True at a real step, got torch.float32",
    ),
    "attention mask": (
        (ones(2, 3, 4), ones(2, 3, 4), None, ones(2, 3).long()),
        r"y_mask must be .* got torch.int64; convert zeros and ones with \.bool\(\), and lengths "
        r"with torch\.arange\(L\) < lengths\[:, None\]",
    ),
    "lengths": (
        (ones(2, 3, 4), ones(2, 3, 4), torch.tensor([3, 2])),
        r"x_mask .* lengths with torch\.arange\(T\) < lengths\[:, None\]",
    ),
    "list mask": (
        (ones(2, 3, 4), ones(2, 3, 4), [[True]]),
        "x_mask must be a bool tensor, True at a real step, got list",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values_are_named(arguments, message, unchecked_signatures):
    for call in (Recorder(), Recorder().explain):
        with pytest.raises(ValueError, match=message):
            call(*arguments)


@pytest.mark.parametrize(("arguments", "message"), BAD_TYPES.values(), ids=BAD_TYPES)
def test_bad_types_are_named(arguments, message, unchecked_signatures):
    with pytest.raises(TypeError, match=message):
        Recorder()(*arguments)


def test_a_projection_refuses_other_features():
    with pytest.raises(ValueError, match="D=6 features, the similarity's embed_dim, got D=4"):
        clipseq.get_similarity("global", embed_dim=6)(ones(2, 3, 4), ones(2, 3, 4))
    for size in (0, True):
        with pytest.raises(ValueError, match="embed_dim must be a positive integer or None, got"):
            clipseq.get_similarity("global", embed_dim=size)


@pytest.mark.parametrize("name", ["attention", "combined", "global", "local", "temporal"])
def test_a_projection_may_have_the_integers_of_numpy(name, unchecked_signatures):
    similarity = clipseq.get_similarity(name, embed_dim=np.int64(4))
    assert type(similarity.embed_dim) is int
    assert similarity(ones(2, 3, 4), ones(2, 3, 4)).shape == (2, 2)


def test_explain_takes_matched_pairs():
    with pytest.raises(ValueError, match="same batch size, .*got 2 and 3"):
        Recorder().explain(ones(2, 3, 4), ones(3, 3, 4))


def test_explain_keeps_the_callers_positions():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    x_mask = torch.tensor([[False, True, True, False, True], [False] * 5])
    y_mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    alignment = Recorder().explain(x, y, x_mask, y_mask)
    cosines = torch.cosine_similarity(x[0, :, None], y[0, None], dim=-1).clamp(min=0)
    expected = cosines * (x_mask[0, :, None] & y_mask[0])
    torch.testing.assert_close(alignment.weights[0], expected)
    assert not alignment.weights[1].any()
    assert alignment.score[1].item() == -1.0
    assert torch.equal(alignment.mask, x_mask[:, :, None] & y_mask[:, None])


class WrongShape(Recorder):
    def score(self, x, y):
        return super().score(x, y).T


class NoTensor(Recorder):
    def score(self, x, y):
        return super().score(x, y).tolist()


class WrongTree(Recorder):
    def prepare_x(self, x):
        return x.values.transpose(0, 1)


class NoTree(Recorder):
    def prepare_x(self, x):
        return {"steps": 3}


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            WrongShape,
            r"WrongShape.score must return a tensor with one score for each pair, \(2, 3\)",
        ),
        (NoTensor, r"NoTensor.score must return a tensor .* \(2, 3\), got list"),
        (WrongTree, "WrongTree.prepare_x must return tensors whose first axis is the batch of 2"),
        (NoTree, "NoTree.prepare_x must return a tree of tensors, got the leaf 3"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_named(plugin, message, unchecked_signatures):
    with pytest.raises(TypeError, match=message):
        plugin()(torch.randn(2, 4, 3), torch.randn(3, 5, 3))


def test_abstract_parts_must_be_written():
    class NoAlign(clipseq.Similarity):
        def score(self, x, y): ...

    with pytest.raises(TypeError, match="abstract"):
        NoAlign()


def test_deepcopy_scores_the_same():
    similarity = clipseq.get_similarity("combined", embed_dim=3)
    x, y = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    assert torch.equal(copy.deepcopy(similarity)(x, y), similarity(x, y))
