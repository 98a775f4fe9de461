import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clipseq
from clipseq.losses import info_nce, sigmoid_loss


def info_nce_by_hand(logits, positives):
    """Compute the cross-entropy in both directions, with equal shares of the target on all
    positives."""
    total = 0.0
    for z, p in ((logits, positives), (logits.T, positives.T)):
        for row, mine in zip(z.tolist(), p.tolist(), strict=True):
            lse = math.log(sum(math.exp(value) for value in row))
            own = [value for value, positive in zip(row, mine, strict=True) if positive]
            total += sum(lse - value for value in own) / len(own)
    return total / 2 / len(logits)


def sigmoid_by_hand(logits, positives):
    total = 0.0
    for row, mine in zip(logits.tolist(), positives.tolist(), strict=True):
        for value, positive in zip(row, mine, strict=True):
            total += math.log1p(math.exp(-value if positive else value))
    return total / len(logits)


groups_of_captions = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(groups=groups_of_captions, seed=st.integers(0, 2**16))
def test_both_losses_are_their_formulas_in_float64(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(groups), len(groups), generator=generator, dtype=torch.float64)
    groups = torch.tensor(groups)
    positives = groups[:, None] == groups
    clip, siglip = clipseq.ClipLoss().double(), clipseq.SigLipLoss().double()
    assert clip.from_scores(scores, groups).item() == pytest.approx(
        info_nce_by_hand(scores / 0.07, positives), rel=1e-6
    )
    assert siglip.from_scores(scores, groups).item() == pytest.approx(
        sigmoid_by_hand(10 * scores - 10, positives), rel=1e-6
    )


def test_equals_open_clip():
    loss = pytest.importorskip("open_clip.loss", reason="open_clip is not installed")
    x = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    y = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    torch.testing.assert_close(
        clipseq.ClipLoss()(x, y), loss.ClipLoss()(x, y, torch.tensor(1 / 0.07))
    )
    expected = loss.SigLipLoss()(x, y, torch.tensor(10.0), torch.tensor(-10.0))
    torch.testing.assert_close(clipseq.SigLipLoss()(x, y), expected)


def test_pooled_features_are_compared_by_cosine():
    x, y = torch.randn(5, 8), torch.randn(5, 8)
    cosines = torch.cosine_similarity(x[:, None], y[None], dim=-1)
    loss = clipseq.ClipLoss()
    torch.testing.assert_close(loss(x, y), loss.from_scores(cosines))
    torch.testing.assert_close(loss(7 * x, y / 9), loss(x, y))


def test_items_of_one_caption_are_not_negatives_of_one_another():
    # Two of three items share their caption and every feature, so there is nothing to separate.
    x = torch.eye(2)[[0, 0, 1]]
    apart = clipseq.ClipLoss(init_scale=100.0)
    assert apart(x, x, groups=torch.tensor([4, 4, 7])).item() == pytest.approx(
        2 / 3 * math.log(2), abs=1e-5
    )
    siglip = clipseq.SigLipLoss(init_scale=50.0, init_bias=-25.0)
    assert siglip(x, x, groups=torch.tensor([4, 4, 7])).item() == pytest.approx(0.0, abs=1e-5)
    assert siglip(x, x).item() > 10


@pytest.mark.parametrize("loss", [clipseq.ClipLoss(), clipseq.SigLipLoss()])
def test_gradients_of_features_and_of_every_parameter(loss):
    loss = loss.double()
    names = [name for name, _ in loss.named_parameters()]

    def value(x, y, *parameters):
        chosen = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(loss, chosen, (x, y, torch.tensor([0, 1, 0])))

    inputs = [torch.randn(3, 4).double(), torch.randn(3, 4).double()]
    inputs += [p.detach().clone() for p in loss.parameters()]
    assert torch.autograd.gradcheck(value, [i.requires_grad_() for i in inputs])


def test_the_scale_is_clamped_and_can_come_back():
    loss = clipseq.ClipLoss(init_scale=100.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    agreeing, opposed = torch.eye(3) - 0.5, -torch.eye(3)
    with torch.no_grad():
        loss.log_scale += 1.0
    assert loss.scale.item() == pytest.approx(100.0)
    loss.from_scores(agreeing).backward()
    assert loss.log_scale.grad.item() == 0.0
    optimizer.zero_grad()
    loss.from_scores(opposed).backward()
    optimizer.step()
    assert loss.log_scale.item() < math.log(100.0) + 1.0


def test_the_bias_may_follow_the_batch():
    loss = clipseq.SigLipLoss(init_bias="batch_size")
    assert loss.bias(257).item() == pytest.approx(-math.log(256))
    assert loss.bias(1).item() == 0.0
    # The bias is the log-odds of a positive, so at equal scores the loss is at its minimum.
    scores = torch.zeros(64, 64)
    best = loss.from_scores(scores).item()
    for offset in (-0.5, 0.5):
        with torch.no_grad():
            loss.bias_offset.fill_(offset)
        assert loss.from_scores(scores).item() > best


def test_a_sequence_loss_is_the_loss_of_its_scores():
    x, y = torch.randn(4, 6, 8), torch.randn(4, 5, 8)
    x_mask, y_mask = torch.rand(4, 6) < 0.7, torch.rand(4, 5) < 0.7
    groups = torch.tensor([0, 1, 0, 2])
    for kind, plain in (("clip", clipseq.ClipLoss), ("siglip", clipseq.SigLipLoss)):
        similarity = clipseq.get_similarity("temporal")
        loss = clipseq.SequenceLoss(similarity, kind=kind, init_scale=5.0)
        expected = plain(init_scale=5.0).from_scores(similarity(x, y, x_mask, y_mask), groups)
        torch.testing.assert_close(loss(x, y, x_mask, y_mask, groups), expected)
        assert loss.similarity_fn is similarity


class Squared(clipseq.PairLoss):
    """Half the squared distance of every score from 1 (a positive) or 0."""

    def __init__(self, *, power=2.0, gather="ring"):
        super().__init__(init_scale=1.0, gather=gather)
        self.power = power

    def loss(self, scores, positives):
        apart = (self.scale * scores - positives.mask.to(scores.dtype)).abs()
        return positives.world.sum(apart.pow(self.power).sum() / 2) / positives.world.total


def test_a_loss_of_ones_own_is_one_method():
    loss = Squared()
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    cosines = torch.cosine_similarity(x[:, None], y[None], dim=-1)
    groups = torch.tensor([0, 1, 0])
    positives = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    expected = (cosines - positives).square().sum() / 6
    torch.testing.assert_close(loss(x, y, groups), expected)
    torch.testing.assert_close(loss.from_scores(cosines, groups), expected)
    # Over sequences of one step, "global" scores the same cosines.
    sequence_loss = clipseq.SequenceLoss(clipseq.get_similarity("global"), loss)
    assert sequence_loss.pair_loss is loss
    torch.testing.assert_close(sequence_loss(x[:, None], y[:, None], groups=groups), expected)
    assert {name for name, _ in loss.named_parameters()} == {"log_scale"}


def test_a_loss_is_abstract_and_its_other_methods_are_final(unchecked_signatures):
    with pytest.raises(TypeError, match="abstract method '?loss'?"):
        clipseq.PairLoss()

    class Many(clipseq.PairLoss):
        def loss(self, scores, positives):
            return scores.diagonal()

    for wrong, got in (
        (Many, r"\(3,\)"),
        (type("Float", (Many,), {"loss": lambda *_: 1.0}), "float"),
    ):
        with pytest.raises(
            TypeError, match=rf"{wrong.__name__}.loss must return one number .*{got}"
        ):
            wrong().from_scores(torch.eye(3))


def test_a_loss_reports_its_scale_and_bias():
    clip, siglip = clipseq.ClipLoss(init_scale=5.0), clipseq.SigLipLoss(init_bias="batch_size")
    metrics = {name: value.item() for name, value in clip.metrics(9).items()}
    assert metrics == pytest.approx({"scale": 5.0})
    metrics = {name: value.item() for name, value in siglip.metrics(9).items()}
    assert metrics == pytest.approx({"scale": 10.0, "bias": -math.log(8)})


def test_parameters_keep_their_names():
    assert list(clipseq.ClipLoss().state_dict()) == ["log_scale"]
    assert list(clipseq.SigLipLoss().state_dict()) == ["log_scale", "bias_offset"]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (clipseq.ClipLoss, {}, "kind must be the name of a loss or a PairLoss instance, got <clas"),
        (None, {}, "kind must be the name of a loss or a PairLoss instance, got None"),
        (
            Squared(),
            {"power": 3.0, "gather": None},
            "options must be passed to Squared itself when kind is an instance, got power, gather;",
        ),
    ],
)
def test_a_kind_is_a_name_or_a_loss(kind, options, message, unchecked_signatures):
    with pytest.raises(TypeError, match=message):
        clipseq.SequenceLoss(clipseq.get_similarity("global"), kind, **options)


def test_a_common_offset_of_the_logits_costs_no_precision():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(info_nce(logits + 1e4), info_nce(logits), atol=1e-3, rtol=0)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    for value in (info_nce(logits), sigmoid_loss(logits)):
        assert value.isfinite()
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clipseq.ClipLoss()(torch.ones(3, 4), torch.ones(2, 4)), "C >= B"),
        (lambda: clipseq.ClipLoss()(torch.ones(3), torch.ones(3)), r"\(B, D\) and y \(C, D\)"),
        (lambda: clipseq.ClipLoss().from_scores(torch.ones(3, 2)), r"\(B, C\) with C >= B >= 1"),
        (lambda: clipseq.ClipLoss().from_scores(torch.ones(0, 0)), r"\(B, C\) with C >= B >= 1"),
        (
            lambda: clipseq.ClipLoss()(torch.ones(3, 4), torch.ones(3, 4), torch.ones(2).long()),
            "groups must be 3 integers",
        ),
        (lambda: clipseq.ClipLoss()(torch.ones(0, 4), torch.ones(0, 4)), "at least one item"),
        (lambda: clipseq.ClipLoss(init_scale=0.0), "init_scale must lie in"),
        (lambda: clipseq.ClipLoss(init_scale=200.0), "init_scale must lie in"),
        (lambda: clipseq.SigLipLoss(init_bias="batch"), "must be a number or 'batch_size'"),
        (
            lambda: clipseq.SequenceLoss(clipseq.get_similarity("global"))(
                torch.ones(3, 4, 2), torch.ones(2, 4, 2)
            ),
            "got batches of 3 x and 2 y",
        ),
    ],
)
def test_bad_input_is_refused(call, message, unchecked_signatures):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (torch.ones(3, 4).numpy(), "a tensor, got ndarray"),
        ([[1.0, 2.0]], "a tensor, got list"),
        (torch.ones(3, 4).long(), "floating point, got torch.int64"),
    ],
    ids=["numpy", "list", "integers"],
)
def test_only_tensors_of_floats_are_accepted(given, got, unchecked_signatures):
    for loss in (
        clipseq.ClipLoss(),
        clipseq.SigLipLoss(),
        clipseq.SequenceLoss(clipseq.get_similarity("global")),
    ):
        with pytest.raises(TypeError, match=f"x must be {got}"):
            loss(given, torch.ones(3, 4))
        with pytest.raises(TypeError, match=f"y must be {got}"):
            loss(torch.ones(3, 4), given)
    with pytest.raises(TypeError, match=f"scores must be {got}"):
        clipseq.ClipLoss().from_scores(given)


@pytest.mark.parametrize(
    ("kind", "option", "value", "message"),
    [
        ("clip", "init_scal", 3.0, "no option 'init_scal': did you mean 'init_scale'? options: "),
        ("clip", "init_bias", -3.0, "'init_bias', which is an option of the loss 'siglip'; opt"),
        ("clip", "temperature", 0.07, "'temperature': init_scale is 1 / temperature; options"),
        ("siglip", "labels", 1, "'labels'; options: init_scale, init_bias, max_scale, gather"),
        ("clip", "init_scale", "x", "init_scale must be a number, got 'x'"),
        ("clip", "init_scale", None, "init_scale must be a number, got None"),
        ("siglip", "max_scale", "x", "max_scale must be a number, got 'x'"),
        ("siglip", "init_bias", None, "init_bias must be a number, got None"),
    ],
)
def test_an_option_that_a_loss_does_not_have(kind, option, value, message, unchecked_signatures):
    with pytest.raises(TypeError) as caught:
        clipseq.SequenceLoss(clipseq.get_similarity("global"), kind, **{option: value})
    assert message in str(caught.value)


def test_a_sequence_loss_accepts_only_similarities_compiled_or_not(unchecked_signatures):
    for wrong in (torch.nn.Linear(3, 3), torch.nn.CosineSimilarity(), clipseq.Similarity, "local"):
        with pytest.raises(TypeError, match="similarity must be a Similarity, got"):
            clipseq.SequenceLoss(wrong)
    compiled = torch.compile(clipseq.get_similarity("global"), backend="eager")
    assert clipseq.SequenceLoss(compiled).similarity_fn is compiled


def test_pooled_features_are_sent_to_the_losses_for_them(unchecked_signatures):
    loss = clipseq.SequenceLoss(clipseq.get_similarity("global"))
    with pytest.raises(ValueError, match="for pooled features use ClipLoss or SigLipLoss"):
        loss(torch.ones(3, 4), torch.ones(3, 4))


COMPILED = """
import torch, clipseq
torch.set_num_threads(1)
torch.manual_seed(0)
pooled = torch.randn(4, 8), torch.randn(4, 8)
steps = torch.randn(4, 5, 8), torch.randn(4, 6, 8)
groups = torch.tensor([0, 1, 0, 2])

def run(function, loss, inputs, **options):
    wanted = [part.clone().requires_grad_() for part in inputs]
    value = function(*wanted, **options)
    return [value, *torch.autograd.grad(value, [*wanted, *loss.parameters()])]

for loss, inputs in (
    (clipseq.ClipLoss(), pooled),
    (clipseq.SigLipLoss(init_bias="batch_size"), pooled),
    (clipseq.SequenceLoss(clipseq.get_similarity("local")), steps),
):
    for options in ({}, {"groups": groups}):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            run(compiled, loss, inputs, **options),
            run(loss, loss, inputs, **options),
            atol=1e-5, rtol=1e-4,
        )

clip = clipseq.CLIP(
    encoder_cfg={"views": {"map": 8}, "patch_frames": 4},
    transformer_width=16, transformer_layers=1, transformer_heads=2,
    sequence_similarity_type="global",
)
batch = {"radar": {"map": torch.randn(2, 8, 20)}, "text": ["a person walks", "a person sits"]}
step = torch.compile(clip.training_step, backend="aot_eager")
torch.testing.assert_close(step(batch), clip.training_step(batch), atol=1e-5, rtol=1e-4)
"""


@pytest.mark.slow
def test_losses_compile_whole_and_a_training_step_in_parts():
    # In a process of its own: a compiler cannot follow the signature checks of the other tests.
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def info_nce_with_extras_by_hand(logits, positives):
    """Compute InfoNCE whose rows see every column, and whose columns are the first, one per row."""
    items = len(logits)
    total = 0.0
    square = [row[:items] for row in logits.tolist()]
    for z, p in (
        (logits.tolist(), positives.tolist()),
        (list(zip(*square, strict=True)), positives[:, :items].T.tolist()),
    ):
        for row, mine in zip(z, p, strict=True):
            lse = math.log(sum(math.exp(value) for value in row))
            own = [value for value, positive in zip(row, mine, strict=True) if positive]
            total += sum(lse - value for value in own) / len(own)
    return total / 2 / items


@given(
    groups=groups_of_captions,
    extra=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    grouped=st.sampled_from(["no", "items", "all"]),
    seed=st.integers(0, 2**16),
)
def test_extra_negatives_are_columns_that_match_no_row(groups, extra, grouped, seed):
    items = len(groups)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(items, items + len(extra), generator=generator, dtype=torch.float64)
    whole = torch.tensor(groups + extra)
    given = {"no": None, "items": whole[:items], "all": whole}[grouped]
    positives = torch.zeros(scores.shape, dtype=torch.bool)
    positives[:, :items] = torch.eye(items, dtype=torch.bool)
    if given is not None:
        positives[:, : len(given)] = whole[:items, None] == given
    clip, siglip = clipseq.ClipLoss().double(), clipseq.SigLipLoss().double()
    assert clip.from_scores(scores, given).item() == pytest.approx(
        info_nce_with_extras_by_hand(scores / 0.07, positives), rel=1e-6
    )
    assert siglip.from_scores(scores, given).item() == pytest.approx(
        sigmoid_by_hand(10 * scores - 10, positives), rel=1e-6
    )


def test_extra_negatives_reach_pooled_and_sequence_losses():
    x, y = torch.randn(3, 5, 8), torch.randn(7, 4, 8)
    y_mask = torch.rand(7, 4) < 0.7
    y_mask[:, 0] = True
    clip = clipseq.ClipLoss()
    cosines = torch.cosine_similarity(x[:, None, 0], y[None, :, 0], dim=-1)
    torch.testing.assert_close(clip(x[:, 0], y[:, 0]), clip.from_scores(cosines))
    assert clip(x[:, 0], y[:, 0]) > clip(x[:, 0], y[:3, 0])
    similarity = clipseq.get_similarity("local", window=2)
    loss = clipseq.SequenceLoss(similarity, "siglip")
    expected = loss.pair_loss.from_scores(similarity(x, y, None, y_mask))
    torch.testing.assert_close(loss(x, y, None, y_mask), expected)


def test_gradients_reach_extra_negatives():
    loss = clipseq.ClipLoss().double()
    inputs = [torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (2, 5)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_a_loss_gets_extra_negatives_only_if_it_declares_so():
    x, y = torch.randn(3, 4), torch.randn(5, 4)
    with pytest.raises(
        ValueError, match="as x for Squared, which takes no extra .*got 5 y for 3 x"
    ):
        Squared()(x, y)

    class Wide(Squared):
        takes_extra_negatives = True

    cosines = torch.cosine_similarity(x[:, None], y[None], dim=-1)
    expected = (cosines - torch.eye(3, 5)).square().sum() / 6
    torch.testing.assert_close(Wide()(x, y), expected)


@pytest.mark.parametrize(
    ("x", "y", "groups", "said"),
    [
        ((3, 4), (2, 4), None, r"x \(B, D\) and y \(C, D\) with C >= B, got \(3, 4\) and \(2, 4\)"),
        ((2, 4), (3, 5), None, r"got \(2, 4\) and \(3, 5\)"),
        ((2, 4), (5, 4), 3, r"groups must be 2 or 5 integers, got torch.int64 \(3,\)"),
        ((2, 4), (2, 4), 3, r"groups must be 2 integers, got torch.int64 \(3,\)"),
    ],
)
def test_wrong_numbers_of_items_are_named(x, y, groups, said, unchecked_signatures):
    given = None if groups is None else torch.zeros(groups, dtype=torch.int64)
    with pytest.raises(ValueError, match=said):
        clipseq.ClipLoss()(torch.randn(x), torch.randn(y), given)


def test_the_bias_may_follow_the_number_of_candidates():
    loss = clipseq.SigLipLoss(init_bias="batch_size")
    scores = torch.zeros(4, 12)
    best = loss.from_scores(scores).item()  # log-odds of one positive among twelve
    for offset in (-0.3, 0.3):
        with torch.no_grad():
            loss.bias_offset.fill_(offset)
        assert loss.from_scores(scores).item() > best
