"""A module of the user's own as a tower: its calls, and the checks of its output."""

import pytest
import torch
from torch import nn

from clipseq import Sequences
from clipseq.encoders import ModuleTower


class Own(nn.Module):
    """Returns the output it was given, and keeps the arguments of its last call."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, values, mask=None):
        self.called_with = (values, mask)
        return self.output


VALUES = torch.arange(24.0).view(2, 3, 4)
MASK = torch.tensor([[True, True, False], [False, True, False]])


def tower(output):
    return ModuleTower(Own(output), width=4, name="radar")


def test_pooled_is_the_masked_mean_and_padding_is_zero():
    values = VALUES.masked_fill(~MASK[..., None], float("nan"))
    pooled, tokens = tower(Sequences(values, MASK))(torch.zeros(2, 7))
    assert torch.equal(pooled, torch.stack([VALUES[0, :2].mean(0), VALUES[1, 1]]))
    assert torch.equal(tokens.values, VALUES.masked_fill(~MASK[..., None], 0.0))


def test_it_may_pool_by_itself():
    own = torch.ones(2, 4)
    pooled, tokens = tower((own, Sequences(VALUES, MASK)))(torch.zeros(2, 7))
    assert pooled is own
    assert tower((own, tokens))(torch.zeros(2, 7), sequences=False)[1] is None


def test_it_gets_the_mask_only_where_there_is_one():
    own = tower(Sequences(VALUES, MASK))
    radar = {"a": torch.zeros(2, 5, 7)}
    own(radar)
    assert own.module.called_with == (radar, None)
    own(radar, lengths=torch.tensor([7, 3]))
    assert own.module.called_with[1].sum(1).tolist() == [7, 3]
    own(radar, mask=MASK)
    assert own.module.called_with[1] is MASK


@pytest.mark.parametrize(
    ("output", "error", "match"),
    [
        (VALUES, TypeError, r"tower Own must return clipseq\.Sequences.*got Tensor"),
        ((VALUES, MASK), TypeError, "got tuple"),
        (Sequences(VALUES[..., :3], MASK), ValueError, r"\(B, T, 4\).*got \(2, 3, 3\)"),
        (Sequences(VALUES, MASK[:, :2]), ValueError, r"bool mask \(2, 3\)"),
        (Sequences(VALUES, MASK.float()), ValueError, "bool mask"),
        (
            Sequences(VALUES, MASK & False),
            ValueError,
            "at least one real step.*item 0",
        ),
        ((torch.ones(2, 3), Sequences(VALUES, MASK)), ValueError, r"\(2, 4\).*got \(2, 3\)"),
    ],
)
def test_what_is_wrong_with_its_output_is_said(output, error, match):
    with pytest.raises(error, match=match):
        tower(output)(torch.zeros(2, 7))
