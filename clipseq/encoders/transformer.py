"""The pre-norm transformer that signal and text towers share, and their EOT token.

The code follows nanoGPT (https://github.com/karpathy/nanoGPT/blob/master/model.py), with CLIP's
initialisation (https://github.com/openai/CLIP/blob/main/clip/model.py, initialize_parameters).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A pre-norm block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        # Contributions to the residual stream shrink with depth, so that their sum does not grow.
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for linear, std in (
            (self.qkv, width**-0.5),
            (self.attention_out, residual_std),
            (self.mlp_in, (2 * width) ** -0.5),
            (self.mlp_out, residual_std),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        allowed: Bool[Tensor, "B 1 1 N"] | None,
        angles: Float[Tensor, "N R"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Transform tokens.

        Args:
            x: the tokens.
            allowed: the steps to attend to; None: causal attention.
            angles: the rotation of each step's queries and keys (see `rotate`); None: no rotation.
        """
        x = x + self._drop(self._attend(self.attention_norm(x), allowed, angles))
        return x + self._drop(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))

    def _attend(self, x: Tensor, allowed: Tensor | None, angles: Tensor | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, D/H)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=allowed is None,
        )
        return self.attention_out(y.transpose(1, 2).flatten(2))  # (B, N, D)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """A stack of blocks and a final norm; padding does not change its output at real steps.

    Args:
        width: D, a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads.
        dropout: probability, in training only.
        causal: True: a step attends only to itself and earlier steps. Padding must then come last.
        rotary: True: attention sees how far two steps are apart (see `rotate`); False: it sees no
            order but that of a causal mask, so positions must be added to the tokens.
        gradient_checkpointing: recompute each block in backward.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        dropout: float = 0.0,
        causal: bool = False,
        rotary: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        check_shape(width, layers, heads)
        self.causal = causal
        self.head_width = width // heads
        self.rotary = rotary
        self.gradient_checkpointing = gradient_checkpointing
        self.blocks = nn.ModuleList(Block(width, heads, layers, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        # A causal model needs no mask: padding comes last, where no real step attends.
        allowed = None if self.causal else mask[:, None, None, :]
        angles = rotations(x.shape[1], self.head_width, x) if self.rotary else None
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, allowed, angles, use_reentrant=False)
            else:
                x = block(x, allowed, angles)
        return self.norm(x)


def insert_eot(
    tokens: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], eot: Float[Tensor, "D"]
) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"], Int[Tensor, "B"]]:
    """Put the EOT token right after each sequence's last real token; M = N + 1.

    Its place then depends on the sequence alone, not on the amount of padding. The tokens of padded
    steps are set to zero.

    Returns:
        The tokens, the mask (EOT counts as real), and the place of EOT in each sequence.
    """
    steps = torch.arange(mask.shape[1] + 1, device=mask.device)
    place = (mask * steps[1:]).amax(1)  # 1 + index of the last real token
    is_eot = steps == place[:, None]  # (B, N + 1)
    tokens = F.pad(tokens.masked_fill(~mask[..., None], 0.0), (0, 0, 0, 1))
    return torch.where(is_eot[..., None], eot, tokens), F.pad(mask, (0, 1)) | is_eot, place


def rotations(steps: int, width: int, like: Tensor) -> Float[Tensor, "steps R"]:
    """Return the angles by which `rotate` turns the features of each step; R is `width` // 2.

    Angle k of step n is ``n / 10000**(k / R)``, so the wavelengths reach from 2π to almost 20000π
    steps. They need no table: a recording may have any length. They are computed in float32 or
    better.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    pairs = width // 2
    rate = torch.arange(pairs, device=like.device, dtype=dtype) / max(pairs, 1)
    return torch.arange(steps, device=like.device, dtype=dtype)[:, None] * 10000.0**-rate


def rotate(x: Float[Tensor, "B H N E"], angles: Float[Tensor, "N R"]) -> Float[Tensor, "B H N E"]:
    """Turn the features of each step by its angles (rotary positions, arXiv:2104.09864).

    Feature k and feature k + R are the coordinates of a point, which is turned by angle k. A
    feature without a partner stays. The product of a query and a key that are rotated so depends
    on the distance between their steps, and not on where in the sequence they stand.
    """
    pairs = angles.shape[1]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)


def check_shape(width: int, layers: int, heads: int) -> None:
    """Raise ValueError if no `Transformer` has this shape."""
    for name, value in (("width", width), ("layers", layers), ("heads", heads)):
        if value < 1:
            raise ValueError(f"transformer_{name} must be at least 1, got {value}")
    if width % heads or width % 2:
        raise ValueError(
            f"transformer_width must be even and a multiple of transformer_heads, "
            f"got width {width} and {heads} heads"
        )
