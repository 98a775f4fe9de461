"""The signal tower, which encodes time-frequency maps as one pooled vector and a sequence."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipseq.encoders.config import SignalConfig
from clipseq.encoders.frames import frame_mask
from clipseq.encoders.fusion import FUSIONS
from clipseq.encoders.inputs import Inputs
from clipseq.encoders.tower import Tower
from clipseq.encoders.transformer import Transformer, insert_eot
from clipseq.engine.options import check_dense
from clipseq.errors import suggest
from clipseq.sequences import Sequences

Signal = Tensor | Mapping[str, Tensor]
"""A map (B, F, T) per view, by the view's name; or one tensor, if the tower has one view."""


class SignalTower(Tower):
    """A tower that cuts maps into patches of a few frames, one token each, for a transformer.

    Each view of a patch is embedded, a fusion combines the views into one token, and the output of
    the transformer at an EOT token is the pooled feature. The transformer sees how far two tokens
    are apart and not where in the clip they stand, since an action looks the same wherever it is.

    Token k covers the frames from k·patch_frames to (k+1)·patch_frames - 1, counted from the start
    of the tensor; it is real if any of its frames is. Padded frames count as zeros inside a real
    token and are ignored elsewhere, whatever they contain, so the amount of padding changes
    nothing. Before that, a share of each bin's mean over the real frames is subtracted from the bin
    (`SignalConfig.mean_subtraction`).

    Args:
        config: the side's name, its views and how they are fused.
        width: D of all outputs.
        layers: number of transformer blocks.
        heads: number of attention heads.
    """

    is_signal = True

    def __init__(self, config: SignalConfig, *, width: int, layers: int, heads: int):
        super().__init__(config.name)
        self.config = config
        self.transformer = Transformer(
            width,
            layers,
            heads,
            dropout=config.dropout,
            rotary=True,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        # A list in the order of config.views: a view may have any name, but the keys of a
        # ModuleDict may not. The norm lets a map in dB and one in metres start with equal weight.
        self.patch_embeddings = nn.ModuleList(
            nn.Sequential(nn.Linear(bins * config.patch_frames, width), nn.LayerNorm(width))
            for bins in config.views.values()
        )
        self.fusion = FUSIONS[config.fusion](len(config.views), width, heads)
        self.eot = nn.Parameter(width**-0.5 * torch.randn(width))
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def read(
        self, values: Signal | Any, *, lengths: Any = None, mask: Tensor | None = None
    ) -> Inputs:
        """Check a batch of recordings.

        Args:
            values: a map (B, F, T) for each view, any non-empty subset of the configured ones, all
                of the same B and T; or one tensor, if one view is configured. Floating point, on
                the tower's device; converted to the tower's dtype.
            lengths: (B,) whole numbers, the real frames of each recording.
            mask: (B, T) bool, True at a real frame, in any pattern. Pass at most one of lengths and
                mask; with neither, every frame is real.

        Raises:
            TypeError: not tensors, not floating point, lengths that are not whole numbers, a mask
                that is not bool.
            ValueError: an unknown view, a wrong rank, number of bins, B, T or device, lengths or
                a mask that do not fit, or an item without a real frame; it names the view or item.
        """
        maps = self._views(values)
        return Inputs(maps, frame_mask(maps, lengths, mask, name=self.name))

    def encode(
        self, inputs: Inputs, *, sequences: bool
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Encode checked recordings.

        Returns:
            The output at EOT, (B, D), and the outputs at the T / patch_frames (rounded up)
            patches, zero in padded ones; None instead of these without `sequences`.
        """
        maps, mask = inputs
        assert mask is not None
        present = [i for i, view in enumerate(self.config.views) if view in maps]
        names = list(self.config.views)
        embedded = torch.stack(
            [self.patch_embeddings[i](self._patches(maps[names[i]], mask)) for i in present]
        )  # (V, B, N, D): one token per patch for each view that is present
        x = self.fusion(embedded, present)  # (B, N, D)
        real = self._pad(mask).unflatten(1, (-1, self.config.patch_frames)).any(2)  # (B, N)
        x, attended, place = insert_eot(x, real, self.eot)
        x = self.transformer(F.dropout(x, self.config.dropout, self.training), attended)
        pooled = self.projection(x[torch.arange(len(x), device=x.device), place])
        if not sequences:
            return pooled, None
        return pooled, Sequences.from_tensor(self.projection(x[:, :-1]), real)

    def maps(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the maps by view."""
        return dict(inputs.values)

    def _patches(self, values: Tensor, mask: Tensor) -> Float[Tensor, "B N PF"]:
        real = mask[:, None, :]
        values = values.to(self.eot.dtype).masked_fill(~real, 0.0)
        if self.config.mean_subtraction:
            wide = torch.promote_types(values.dtype, torch.float32)  # a sum may overflow float16
            mean = values.sum(2, keepdim=True, dtype=wide) / real.sum(2, keepdim=True)  # (B, F, 1)
            share = (self.config.mean_subtraction * mean).to(values.dtype)
            values = torch.where(real, values - share, 0.0)
        patches = self._pad(values).unflatten(2, (-1, self.config.patch_frames))  # (B, F, N, P)
        return patches.permute(0, 2, 3, 1).flatten(2)

    def _pad(self, values: Tensor) -> Tensor:
        """Append zeros (or False) after the last frame, up to a whole number of patches."""
        return F.pad(values, (0, -values.shape[-1] % self.config.patch_frames))

    def _views(self, signal: Signal | Any) -> dict[str, Tensor]:
        known, listed = self.config.views, ", ".join(self.config.views)
        if isinstance(signal, Tensor):
            if len(known) > 1:
                raise ValueError(
                    f"{self.name} must be a dictionary of maps, as the model has {len(known)} "
                    f"views, got one tensor; name its view, which is one of {listed}"
                )
            signal = {next(iter(known)): signal}
        if not isinstance(signal, Mapping):
            raise TypeError(
                f"{self.name} must be a tensor (B, F, T) or a dictionary of them, "
                f"got {type(signal).__name__}"
            )
        if not signal:
            raise ValueError(f"{self.name} must have at least one of the views {listed}, got none")
        for view, values in signal.items():
            if view not in known:
                raise ValueError(
                    f"{self.name} views must be among {listed}, got {view!r}"
                    f"{suggest(str(view), known)}"
                )
            self._check_view(view, values)
        first, *others = signal
        for view in others:
            if signal[view].shape[::2] != signal[first].shape[::2]:
                raise ValueError(
                    f"{self.name} views must have the same B and T, got {first!r} "
                    f"{tuple(signal[first].shape)} and {view!r} {tuple(signal[view].shape)}"
                )
        return dict(signal)

    def _check_view(self, view: str, values: Any) -> None:
        bins, named = self.config.views[view], f"{self.name} view {view!r}"
        if not isinstance(values, Tensor):
            raise TypeError(f"{named} must be a tensor (B, {bins}, T), got {type(values).__name__}")
        check_dense(named, values, values=False)
        got = tuple(values.shape)
        if values.ndim != 3:
            hint = "; add a batch axis with [None]" if values.ndim == 2 else ""
            raise ValueError(f"{named} must be (B, {bins}, T), got {got}{hint}")
        if values.shape[1] != bins:
            hint = "; time comes last: transpose(1, 2)" if values.shape[2] == bins else ""
            raise ValueError(
                f"{named} must have {bins} bins, (B, {bins}, T), got {values.shape[1]}, {got}{hint}"
            )
        if 0 in got:
            raise ValueError(f"{named} must have at least one item and one frame, got {got}")
        if not values.is_floating_point():
            raise TypeError(f"{named} must be floating point, got {values.dtype}")
        if values.device != self.eot.device:
            raise ValueError(
                f"{named} must be on the model's device {self.eot.device}, got {values.device}; "
                f"move one of them with .to(...)"
            )
