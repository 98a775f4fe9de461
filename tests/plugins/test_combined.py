import math
from types import MappingProxyType

import pytest
import torch
from ragged import ragged

import clipseq

PARTS = ("attention", "global", "local", "temporal")


class Constant(clipseq.Similarity):
    """A similarity that gives every pair the same score."""

    default_weight = 0.4

    def __init__(self, *, value=0.5):
        super().__init__()
        self.value = value

    def score(self, x, y):
        return x.values.new_full((len(x.values), len(y.values)), self.value)

    def align(self, x, y):
        return x.values.new_ones(len(x.values), x.values.shape[1], y.values.shape[1])


@pytest.fixture
def constant(fresh_registry):
    clipseq.register_similarity("constant", Constant)


def test_is_the_weighted_mean_of_its_parts():
    x, x_mask = ragged(3, 7, 8, seed=1)
    y, y_mask = ragged(4, 6, 8, seed=2)
    weights = {"attention": 0.3, "global": 0.1, "local": 0.5, "temporal": 1.0}
    options = {"local": {"window": (1 / 6, 1)}, "attention": {"num_heads": 2}}
    scores = {
        n: clipseq.get_similarity(n, **options.get(n, {}))(x, y, x_mask, y_mask) for n in PARTS
    }
    expected = sum(weights[n] * scores[n] for n in PARTS) / sum(weights.values())
    combined = clipseq.get_similarity("combined")
    torch.testing.assert_close(combined(x, y, x_mask, y_mask), expected, atol=1e-6, rtol=0)
    assert combined.weights == pytest.approx(weights)


def test_takes_parts_with_options_and_weights():
    x, y = torch.randn(3, 7, 8), torch.randn(4, 6, 8)
    combined = clipseq.get_similarity(
        "combined", parts={"local": {"window": 2}, "global": {}}, weights={"global": 3.0}
    )
    local = clipseq.get_similarity("local", window=2)(x, y)
    pooled = clipseq.get_similarity("global")(x, y)
    torch.testing.assert_close(combined(x, y), (0.5 * local + 3 * pooled) / 3.5)


class Suited(Constant):
    """A similarity with another option as a part of combined."""

    combined_options = MappingProxyType({"value": -0.25})


def test_a_part_that_combined_chooses_has_its_options_for_it(fresh_registry):
    clipseq.register_similarity("suited", Suited)
    assert clipseq.get_similarity("combined").parts["suited"].value == -0.25
    for options, value in (({}, 0.5), ({"value": 0.1}, 0.1)):
        combined = clipseq.get_similarity("combined", parts={"suited": options})
        assert combined.parts["suited"].value == value


@pytest.mark.parametrize(
    ("parts", "lengths", "found"),
    [
        (None, (36, 14), []),
        (None, (2, 2), []),
        ({"local": {"window": 16}}, (10, 12), ["x", "y"]),
        ({"local": {"window": 16}}, (17, 16), ["y"]),
        ({"temporal": {"band": 1.0}}, (10, 12), ["band of 1"]),
        ({"temporal": {"band": 0.9}, "local": {"window": (1, 3)}}, (10, 4), []),
    ],
)
def test_names_options_that_are_trivial_for_the_lengths(parts, lengths, found):
    reasons = clipseq.get_similarity("combined", parts=parts).degenerate(*lengths)
    assert len(reasons) == len(found)
    for reason, word in zip(reasons, found, strict=True):
        assert word in reason
        assert reason.startswith(f"has the part {next(iter(parts))!r}, which has a ")


def test_whatever_is_registered_joins(constant):
    combined = clipseq.get_similarity("combined")
    assert set(combined.parts) == {*PARTS, "constant"}
    assert combined.weights["constant"] == pytest.approx(0.4)


def test_no_composite_joins(constant):
    class Whole(Constant):
        composite = True

    clipseq.register_similarity("whole", Whole)
    assert "whole" not in clipseq.get_similarity("combined").parts


def test_weights_learn_and_stay_positive():
    x, y = torch.randn(4, 7, 8), torch.randn(4, 6, 8)
    combined = clipseq.get_similarity("combined")
    optimizer = torch.optim.SGD(combined.parameters(), lr=100.0)
    for _ in range(5):
        optimizer.zero_grad()
        combined(x, y).square().sum().backward()
        optimizer.step()
    assert combined.weights != pytest.approx(clipseq.get_similarity("combined").weights)
    assert all(weight > 0 for weight in combined.weights.values())


def test_gradient_of_the_weights():
    x, y = torch.randn(2, 5, 3).double(), torch.randn(2, 4, 3).double()
    combined = clipseq.get_similarity("combined").double()
    names = list(dict(combined.named_parameters()))

    def scores(*values):
        return torch.func.functional_call(combined, dict(zip(names, values, strict=True)), (x, y))

    inputs = [p.detach().clone().requires_grad_() for p in combined.parameters()]
    assert torch.autograd.gradcheck(scores, inputs)


def test_one_projection_serves_all_parts():
    x, y = torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    combined = clipseq.get_similarity("combined", embed_dim=6)
    torch.testing.assert_close(combined(x, y), clipseq.get_similarity("combined")(x, y))
    with torch.no_grad():
        combined.x_projection.weight.copy_(2 * torch.eye(6).flip(0))
    expected = clipseq.get_similarity("combined")(x.flip(2), y)
    torch.testing.assert_close(combined(x, y), expected)


def test_a_part_may_have_a_projection_of_its_own():
    x, y = torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    combined = clipseq.get_similarity("combined", parts={"global": {"embed_dim": 6}})
    with torch.no_grad():
        combined.parts["global"].x_projection.weight.copy_(torch.eye(6).flip(0))
    expected = clipseq.get_similarity("global")(x.flip(2), y)
    torch.testing.assert_close(combined(x, y), expected)


def test_a_part_missing_at_load_is_named(constant):
    saved = clipseq.get_similarity("combined").state_dict()
    fewer = clipseq.get_similarity("combined", parts={name: {} for name in PARTS})
    with pytest.raises(RuntimeError, match="has the part 'constant', which is not a part here"):
        fewer.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="constant"):
        fewer.load_state_dict(saved, strict=False)


def test_align_is_the_weighted_mean_of_shares():
    x, y = torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    combined = clipseq.get_similarity(
        "combined",
        parts={"temporal": {}, "attention": {}},
        weights={"temporal": 1.0, "attention": 3.0},
    )
    expected = 0
    for name, weight in (("temporal", 0.25), ("attention", 0.75)):
        weights = clipseq.get_similarity(name).explain(x, y).weights
        expected = expected + weight * weights / weights.sum((1, 2), keepdim=True)
    torch.testing.assert_close(combined.explain(x, y).weights, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parts": {}}, ValueError, "parts must name at least one similarity"),
        ({"parts": {"loca": {}}}, clipseq.UnknownSimilarityError, "did you mean 'local'"),
        ({"parts": {"local": {"windw": 2}}}, TypeError, "did you mean 'window'"),
        (
            {"weights": {"local": 0.0}},
            ValueError,
            "weight of 'local' must be positive and finite, got 0.0",
        ),
        ({"weights": {"local": math.inf}}, ValueError, "must be positive and finite, got inf"),
        ({"weights": {"local": math.nan}}, ValueError, "must be positive and finite, got nan"),
        ({"weights": {"local": "1"}}, TypeError, "weight of 'local' must be a number, got '1'"),
        ({"weights": {"local": True}}, TypeError, "weight of 'local' must be a number, got True"),
        (
            {"parts": {"local": {}}, "weights": {"global": 1.0}},
            ValueError,
            "parts .local., got glo",
        ),
        ({"parts": {"local": None}}, TypeError, "parts must map names to options"),
        ({"weights": 3}, TypeError, "weights must map names to numbers, got 3"),
    ],
)
def test_refuses_bad_options(options, error, message, unchecked_signatures):
    with pytest.raises(error, match=message):
        clipseq.get_similarity("combined", **options)


class Unlicensed(Constant):
    def __init__(self, *, value=0.5):
        raise RuntimeError("no licence")


def test_a_part_that_cannot_be_made_is_named(fresh_registry):
    clipseq.register_similarity("unlicensed", Unlicensed)
    with pytest.raises(clipseq.PluginError) as caught:
        clipseq.get_similarity("combined")
    assert str(caught.value) == (
        "the part 'unlicensed' of this process cannot be made: RuntimeError: no licence; to use "
        "combined without it, name the others in parts, or leave its plugin out with "
        "CLIPSEQ_DISABLE"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    # A part that was named may have been given bad options, so its own error is raised.
    with pytest.raises(RuntimeError, match="no licence") as caught:
        clipseq.get_similarity("combined", parts={"unlicensed": {}})
    assert str(caught.value) == "no licence"
    (note,) = caught.value.__notes__
    assert note.startswith("raised by the part 'unlicensed' of this process; to leave it out")


def test_parts_that_compare_the_steps_themselves_share_them():
    similarity = clipseq.get_similarity("combined")
    x, y = torch.randn(2, 5, 4), torch.randn(3, 4, 4)
    for side in similarity.prepare(x, y):
        assert side.tree["attention"].values is side.tree["temporal"].values
    # A part with a projection of its own compares other steps.
    parts = {"attention": {}, "temporal": {"embed_dim": 4}}
    for side in clipseq.get_similarity("combined", parts=parts).prepare(x, y):
        assert side.tree["attention"].values is not side.tree["temporal"].values


def test_weights_in_few_bits_or_of_any_size_make_a_mean():
    x = torch.randn(1, 1, 16)  # every part scores 1
    weights = {"global": 2.5488, "local": 2.2981, "attention": 1.3197, "temporal": 0.8509}
    rounded = clipseq.get_similarity("combined", weights=weights).bfloat16()
    assert rounded(x, x).item() == pytest.approx(1.0, abs=1e-6)
    exact = clipseq.get_similarity("combined")
    assert exact(x.double(), x.double()).item() == pytest.approx(1.0, abs=1e-14)
    extreme = clipseq.get_similarity("combined", weights={"global": 1e300, "local": 1e-300})
    assert extreme(x, x).item() == pytest.approx(1.0, abs=1e-6)
