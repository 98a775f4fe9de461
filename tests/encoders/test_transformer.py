"""The transformer equals torch's own, and the EOT token follows the last real token."""

import pytest
import torch
from torch import nn

from clipseq.encoders.transformer import Transformer, insert_eot, rotate, rotations


def reference(ours: Transformer, width, heads):
    """Return torch's encoder with the same weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerEncoder(
        layer, len(ours.blocks), norm=nn.LayerNorm(width), enable_nested_tensor=False
    ).double()
    for mine, his in zip(ours.blocks, theirs.layers, strict=True):
        his.self_attn.in_proj_weight.data = mine.qkv.weight.data
        his.self_attn.in_proj_bias.data = mine.qkv.bias.data
        for a, b in (
            (mine.attention_out, his.self_attn.out_proj),
            (mine.mlp_in, his.linear1),
            (mine.mlp_out, his.linear2),
            (mine.attention_norm, his.norm1),
            (mine.mlp_norm, his.norm2),
        ):
            b.load_state_dict(a.state_dict())
    theirs.norm.load_state_dict(ours.norm.state_dict())
    return theirs


def make(causal):
    torch.manual_seed(0)
    ours = Transformer(16, 3, 4, causal=causal).double()
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return ours, reference(ours, 16, 4)


def test_it_is_torchs_pre_norm_encoder():
    ours, theirs = make(causal=False)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask])


def test_causal_it_is_torchs_with_a_causal_mask():
    ours, theirs = make(causal=True)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    above = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    expected = theirs(x, mask=above, is_causal=True)
    torch.testing.assert_close(ours(x, torch.ones(2, 7, dtype=torch.bool)), expected)


def test_eot_comes_right_after_the_last_real_token():
    tokens = torch.arange(1.0, 13.0).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    out, attended, place = insert_eot(tokens, mask, torch.tensor([-1.0]))
    assert out[..., 0].tolist() == [[1, 2, 3, 4, -1], [5, 6, -1, 0, 0], [0, 10, -1, 0, 0]]
    assert attended.tolist() == [
        [True] * 5,
        [True, True, True, False, False],
        [False, True, True, False, False],
    ]
    assert place.tolist() == [4, 2, 2]


def test_rotate_turns_pairs_of_features():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)  # the seventh feature has no partner
    got = rotate(x, rotations(5, 7, x))
    for step in range(5):
        for k in range(3):
            angle = torch.tensor(step / 10000 ** (k / 3), dtype=torch.float64)
            turned = torch.complex(x[..., step, k], x[..., step, 3 + k]) * torch.exp(1j * angle)
            torch.testing.assert_close(got[..., step, k], turned.real)
            torch.testing.assert_close(got[..., step, 3 + k], turned.imag)
    assert torch.equal(got[..., 6], x[..., 6])


def test_rotary_it_equals_hugging_faces():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = torch.randn(2, 2, 3, 9, 8, dtype=torch.float64)
    angles = rotations(9, 8, q)
    twice = torch.cat([angles, angles], dim=1)[None]
    expected = llama.apply_rotary_pos_emb(q, k, twice.cos(), twice.sin())
    torch.testing.assert_close((rotate(q, angles), rotate(k, angles)), expected)


def test_rotary_it_sees_distances_and_no_places():
    torch.manual_seed(0)
    transformer = Transformer(16, 2, 4, rotary=True).double()
    tokens = torch.randn(1, 4, 16, dtype=torch.float64)
    early, late = torch.zeros(2, 1, 9, 16, dtype=torch.float64)
    early[:, :4], late[:, 3:7] = tokens, tokens
    mask = torch.zeros(2, 1, 9, dtype=torch.bool)
    mask[0, :, :4], mask[1, :, 3:7] = True, True
    got = transformer(early, mask[0])[:, :4]
    torch.testing.assert_close(transformer(late, mask[1])[:, 3:7], got)
    turned = transformer(tokens.flip(1), mask[0][:, :4]).flip(1)
    assert (turned - got).abs().max() > 1e-3


def test_gradient_checkpointing_keeps_less_for_backward():
    kept = []
    for checkpointing in (False, True):
        transformer = Transformer(16, 4, 2, gradient_checkpointing=checkpointing)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            transformer(torch.randn(3, 50, 16), torch.ones(3, 50, dtype=torch.bool))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4
