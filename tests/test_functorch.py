"""torch.func gives what autograd gives, for the pooled losses and the normalisation."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, vmap

import clipseq

X, Y = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("make", [clipseq.ClipLoss, clipseq.SigLipLoss])
@pytest.mark.parametrize("scale", [5.0, 99.999999])
def test_the_gradient_of_a_pooled_loss(make, scale, unchecked_signatures):
    loss = make(init_scale=scale).double()
    weights = dict(loss.named_parameters())
    expected = torch.autograd.grad(loss(X, Y), list(weights.values()))
    found = grad(lambda w: functional_call(loss, w, (X, Y)))(weights)
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_unit_vectors_of_a_batch_of_batches(unchecked_signatures):
    values = torch.randn(2, 3, 8, dtype=torch.double)
    torch.testing.assert_close(vmap(clipseq.unit)(values), clipseq.unit(values))
    found = vmap(jacrev(clipseq.unit))(values.flatten(0, 1))
    expected = torch.stack(
        [torch.autograd.functional.jacobian(clipseq.unit, v) for v in values.flatten(0, 1)]
    )
    torch.testing.assert_close(found, expected)


def test_ensembles_of_losses_by_vmap(unchecked_signatures):
    loss = clipseq.ClipLoss().double()
    scales = torch.tensor([[0.5], [1.5], [5.0]], dtype=torch.double)
    found = vmap(lambda s: functional_call(loss, {"log_scale": s}, (X, Y)))(scales)
    for scale, value in zip(scales, found, strict=True):
        with torch.no_grad():
            loss.log_scale.copy_(scale)
        torch.testing.assert_close(value, loss(X, Y).detach())
