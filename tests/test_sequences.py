import pytest
import torch
from torch.autograd import forward_ad

import clipseq
from clipseq import Sequences

MASK = torch.tensor([[True, False, True], [False, True, True]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_padding_is_zero_whatever_was_there(dtype):
    values = torch.randn(2, 3, 4, dtype=dtype)
    dirty = values.masked_fill(~MASK[..., None], float("nan")).requires_grad_()
    clean = Sequences.from_tensor(dirty, MASK).values
    assert clean.equal(values * MASK[..., None])
    clean.backward(torch.full_like(clean, float("inf")).masked_fill(MASK[..., None], 2.0))
    assert dirty.grad.equal(2.0 * MASK[..., None].expand_as(values).to(dtype))


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match=r"mask must be bool.*got torch\.int64"):
        Sequences.from_tensor(torch.ones(2, 3, 4), MASK.long())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by what forward_ad loads
def test_zeroing_has_every_derivative():
    values = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def clean(values):
        return Sequences.from_tensor(values, MASK).values

    assert torch.autograd.gradcheck(clean, values)
    assert torch.autograd.gradgradcheck(clean, values)
    with forward_ad.dual_level():
        tangent = torch.randn_like(values)
        dual = clean(forward_ad.make_dual(values.detach(), tangent))
        assert forward_ad.unpack_dual(dual).tangent.equal(clean(tangent))
    many = torch.randn(5, 2, 3, 4)
    assert torch.func.vmap(clean)(many).equal(torch.stack([clean(values) for values in many]))


@pytest.mark.parametrize("name", ["global", "temporal", "attention"])
def test_gradients_of_many_scores_at_once_are_those_of_each(name):
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    similarity = clipseq.get_similarity(name).double()

    def scores(values):
        return similarity(values, x.flip(1), MASK, MASK)

    loop = torch.autograd.functional.jacobian(scores, x)
    at_once = torch.autograd.functional.jacobian(scores, x, vectorize=True)
    torch.testing.assert_close(at_once, loop)


def test_a_batch_has_its_own_device_whatever_the_default_is():
    x = torch.randn(2, 3, 4)
    similarity = clipseq.get_similarity("combined", parts={"temporal": {"band": 0.5}, "local": {}})
    with torch.device("meta"):
        scores = similarity(x, x, MASK, MASK)
    assert scores.equal(similarity(x, x, MASK, MASK))


def test_an_imaginary_part_is_as_good_as_its_copy():
    x = torch.randn(2, 3, 4, dtype=torch.complex64).conj().imag
    similarity = clipseq.get_similarity("global")
    assert x.is_neg()
    torch.testing.assert_close(similarity(x, x, MASK), similarity(x.clone(), x.clone(), MASK))


def test_pad_keeps_steps_and_gradients():
    items = [torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (2, 0, 3)]
    values, mask = clipseq.pad(items)
    assert mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert values[0].tolist() == [*items[0].tolist(), [0.0, 0.0]]
    assert not values[1].any()
    assert values[2].equal(items[2])
    (values * 2).sum().backward()
    assert items[0].grad.equal(torch.full((2, 2), 2.0, dtype=torch.float64))
    padded, mask = clipseq.pad([torch.ones(0, 2)])
    assert padded.shape == (1, 1, 2)
    assert not mask.any()


ITEM = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ValueError, "items must have at least one sequence, got an empty list"),
        (torch.ones(2, 3, 4), TypeError, "items must be a list of tensors .* got Tensor"),
        ([ITEM, [1.0]], TypeError, r"items\[1\] must be a tensor \(T, D\), got list"),
        ([ITEM[0]], ValueError, r"items\[0\] must have the shape \(T, D\), got \(3,\)"),
        ([ITEM.long()], TypeError, r"items\[0\] must be floating point, got torch.int64"),
        ([ITEM, torch.ones(2, 4)], ValueError, r"items\[1\] must have D=3 .* got D=4"),
        (
            [ITEM, ITEM.double()],
            TypeError,
            r"items\[1\] must be torch.float32, .* got torch.float64",
        ),
        ([ITEM, ITEM.to("meta")], ValueError, r"items\[1\] must be on cpu, .* got meta"),
    ],
)
def test_what_pad_refuses(items, error, message, unchecked_signatures):
    with pytest.raises(error, match=message):
        clipseq.pad(items)
