"""The radar tower: time-frequency maps in, one pooled vector and a sequence of tokens out."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipseq.encoders.config import Fusion, RadarConfig
from clipseq.encoders.transformer import Transformer, insert_eot, sinusoids
from clipseq.errors import nearest
from clipseq.sequences import Sequences

# A view (B, F, T) for each name, or a single one without a name.
Radar = Tensor | Mapping[str, Tensor]


class RadarTower(nn.Module):
    """Patches of a few frames, one embedding per view, a fusion, a transformer, an EOT token.

    Token k covers the frames from k·patch_frames to (k+1)·patch_frames - 1, counted from the start
    of the tensor; it is real when any of its frames is. Frames that are not real (NaN there too)
    count as zeros inside a real token and are never seen otherwise, so how far a batch was padded
    changes nothing.

    Args:
        config: the views and how they are fused.
        width: D of everything that comes out.
        layers: transformer blocks.
        heads: attention heads.
    """

    def __init__(self, config: RadarConfig, *, width: int, layers: int, heads: int):
        super().__init__()
        self.config = config
        self.transformer = Transformer(
            width,
            layers,
            heads,
            dropout=config.dropout,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        # In the order of config.views: a view may have any name, a ModuleDict's key may not.
        # The norm lets a map in dB and a map in metres start with the same say.
        self.patch_embeddings = nn.ModuleList(
            nn.Sequential(nn.Linear(bins * config.patch_frames, width), nn.LayerNorm(width))
            for bins in config.views.values()
        )
        self.fusion = _FUSIONS[config.fusion](len(config.views), width, heads)
        self.eot = nn.Parameter(width**-0.5 * torch.randn(width))
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(
        self,
        radar: Radar,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        sequences: bool = True,
    ) -> tuple[Float[Tensor, "B D"], Sequences | None]:
        """Encode a batch of recordings.

        Args:
            radar: a map (B, F, T) for each view, any non-empty subset of the configured ones, all
                of the same B and T; or one tensor, if one view is configured. Floating point, on
                the tower's device; converted to the tower's dtype.
            lengths: (B,) whole numbers, the real frames of each recording.
            mask: (B, T) bool, True at a real frame, in any pattern. At most one of the two;
                neither: every frame is real.
            sequences: whether to return the tokens too.

        Returns:
            the output at EOT, (B, D), and the outputs at the T / patch_frames (rounded up)
            patches, zero in padded ones; or None for the latter.

        Raises:
            TypeError: not tensors, not floating point, lengths that are not whole numbers, a mask
                that is not bool.
            ValueError: an unknown view, a wrong rank, number of bins, B, T or device, lengths or
                a mask that do not fit, or an item without a real frame; it names the view or item.
        """
        views = self.views(radar)
        mask = frame_mask(views, lengths, mask)
        present = [i for i, name in enumerate(self.config.views) if name in views]
        names = list(self.config.views)
        embedded = torch.stack(
            [self.patch_embeddings[i](self._patches(views[names[i]], mask)) for i in present]
        )  # (V, B, N, D): one token per patch for each view that is present
        x = self.fusion(embedded, present)  # (B, N, D)
        real = self._pad(mask).unflatten(1, (-1, self.config.patch_frames)).any(2)  # (B, N)
        x, attended, place = insert_eot(x, real, self.eot)
        x = x + sinusoids(x.shape[1], x.shape[2], x).to(x.dtype)
        x = self.transformer(F.dropout(x, self.config.dropout, self.training), attended)
        pooled = self.projection(x[torch.arange(len(x), device=x.device), place])
        if not sequences:
            return pooled, None
        return pooled, Sequences.from_tensor(self.projection(x[:, :-1]), real)

    def _patches(self, values: Tensor, mask: Tensor) -> Float[Tensor, "B N PF"]:
        values = values.to(self.eot.dtype).masked_fill(~mask[:, None, :], 0.0)
        patches = self._pad(values).unflatten(2, (-1, self.config.patch_frames))  # (B, F, N, P)
        return patches.permute(0, 2, 3, 1).flatten(2)

    def _pad(self, values: Tensor) -> Tensor:
        """Zeros (or False) after the last frame, up to a whole number of patches."""
        return F.pad(values, (0, -values.shape[-1] % self.config.patch_frames))

    def views(self, radar: Radar) -> dict[str, Tensor]:
        """The maps by the names of their views; the errors of `forward` if they do not fit."""
        wanted = self.config.views
        if isinstance(radar, Tensor):
            if len(wanted) > 1:
                raise ValueError(
                    f"one radar tensor was given, but the model has {len(wanted)} views: "
                    f"give a dictionary with some of {', '.join(wanted)}"
                )
            radar = {next(iter(wanted)): radar}
        if not isinstance(radar, Mapping):
            raise TypeError(
                f"radar must be a tensor (B, F, T) or a dictionary of them, "
                f"got {type(radar).__name__}"
            )
        if not radar:
            raise ValueError(f"radar holds no view: give at least one of {', '.join(wanted)}")
        for name, values in radar.items():
            if name not in wanted:
                raise ValueError(
                    f"unknown radar view {name!r}{nearest(str(name), wanted)} "
                    f"(the model has {', '.join(wanted)})"
                )
            self._check_view(name, values)
        first, *others = radar
        for name in others:
            if radar[name].shape[::2] != radar[first].shape[::2]:
                raise ValueError(
                    f"radar views must have the same B and T: {first!r} is "
                    f"{tuple(radar[first].shape)}, {name!r} is {tuple(radar[name].shape)}"
                )
        return dict(radar)

    def _check_view(self, name: str, values: Tensor) -> None:
        bins = self.config.views[name]
        if not isinstance(values, Tensor):
            raise TypeError(
                f"radar view {name!r} must be a tensor (B, {bins}, T), got {type(values).__name__}"
            )
        got = tuple(values.shape)
        if values.ndim != 3:
            hint = "; add a batch axis with [None]" if values.ndim == 2 else ""
            raise ValueError(f"radar view {name!r} must be (B, {bins}, T), got {got}{hint}")
        if values.shape[1] != bins:
            hint = "; time comes last: transpose(1, 2)" if values.shape[2] == bins else ""
            raise ValueError(
                f"radar view {name!r} must have {bins} bins, (B, {bins}, T), "
                f"got {values.shape[1]}, {got}{hint}"
            )
        if 0 in got:
            raise ValueError(f"radar view {name!r} is empty: got {got}")
        if not values.is_floating_point():
            raise TypeError(f"radar view {name!r} must be floating point, got {values.dtype}")
        if values.device != self.eot.device:
            raise ValueError(
                f"radar view {name!r} is on {values.device}, the model on {self.eot.device}: "
                f"move one of them with .to(...)"
            )


class _Concat(nn.Module):
    """The views side by side, then a linear layer.

    An absent view's slot is zero: what a normed embedding is on average, and never exactly.
    """

    def __init__(self, views: int, width: int, heads: int):
        super().__init__()
        self.views = views
        self.mix = nn.Linear(views * width, width)

    def forward(
        self, embedded: Float[Tensor, "V B N D"], present: list[int]
    ) -> Float[Tensor, "B N D"]:
        slots = [torch.zeros_like(embedded[0])] * self.views
        for view, values in zip(present, embedded, strict=True):
            slots[view] = values
        return self.mix(torch.cat(slots, dim=-1))


class _Add(nn.Module):
    """The mean of the views present: their sum, at a scale that does not tell how many came."""

    def __init__(self, views: int, width: int, heads: int):
        super().__init__()

    def forward(
        self, embedded: Float[Tensor, "V B N D"], present: list[int]
    ) -> Float[Tensor, "B N D"]:
        return embedded.mean(0)


class _Attention(nn.Module):
    """In every patch, a learned query attends over the views present, added to their mean."""

    def __init__(self, views: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(width**-0.5 * torch.randn(width))
        # each view's own, so that the query can tell them apart whatever they show
        self.view = nn.Parameter(width**-0.5 * torch.randn(views, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, embedded: Float[Tensor, "V B N D"], present: list[int]
    ) -> Float[Tensor, "B N D"]:
        x = embedded.permute(1, 2, 0, 3).flatten(0, 1)  # (B·N, V, D)
        keys = self.key_value(x + self.view[present]).unflatten(-1, (2, self.heads, -1))
        k, v = keys.permute(2, 0, 3, 1, 4)  # each (B·N, H, V, D/H)
        q = self.query.to(k.dtype).view(1, self.heads, 1, -1).expand(len(x), -1, -1, -1)
        y = F.scaled_dot_product_attention(q, k, v)  # (B·N, H, 1, D/H)
        return embedded.mean(0) + self.out(y.flatten(1)).view_as(embedded[0])


_FUSIONS: dict[Fusion, type[_Concat] | type[_Add] | type[_Attention]] = {
    "concat": _Concat,
    "add": _Add,
    "attention": _Attention,
}


def frame_mask(
    views: Mapping[str, Tensor], lengths: Tensor | None, mask: Tensor | None
) -> Bool[Tensor, "B T"]:
    """Which frames are real, from lengths or a mask (or neither: all), checked.

    Raises:
        TypeError: lengths that are not whole numbers, a mask that is not a bool tensor.
        ValueError: both given, a shape or value that does not fit, or an item with no real frame.
    """
    values = next(iter(views.values()))
    batch, frames = values.shape[0], values.shape[-1]
    if lengths is not None and mask is not None:
        raise ValueError("give radar_lengths or radar_mask, not both: each says which frames count")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"radar_mask must be a bool tensor, True at a real frame, got {kind}")
        if mask.shape != (batch, frames):
            raise ValueError(f"radar_mask must be {(batch, frames)}, (B, T), got {_shape(mask)}")
        mask = mask.to(values.device)
    elif lengths is not None:
        lengths = torch.as_tensor(lengths, device=values.device)
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise TypeError(f"radar_lengths must be whole numbers, got {lengths.dtype}")
        if lengths.shape != (batch,):
            raise ValueError(f"radar_lengths must be {(batch,)}, (B,), got {_shape(lengths)}")
        if bool((lengths > frames).any()):
            item = int((lengths > frames).nonzero()[0])
            raise ValueError(
                f"radar_lengths: item {item} has {int(lengths[item])} frames, "
                f"but the maps hold only {frames}"
            )
        mask = torch.arange(frames, device=values.device) < lengths[:, None]
    else:
        return torch.ones(batch, frames, dtype=torch.bool, device=values.device)
    if not bool(mask.any(1).all()):
        item = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"radar item {item} has no real frame: leave it out of the batch")
    return mask


def first_not_finite(
    views: Mapping[str, Tensor], mask: Bool[Tensor, "B T"] | None
) -> tuple[str, int] | None:
    """The view and the item of the first NaN or infinity in a real frame, or None.

    A view that is not (B, ..., T) with the mask's T is looked at whole.
    """
    bad = {}
    for view, values in views.items():
        if mask is not None and values.shape[-1] == mask.shape[1]:
            over_bins = mask.view(len(mask), *[1] * (values.ndim - 2), -1)
            values = values.masked_fill(~over_bins, 0.0)
        bad[view] = ~values.isfinite().flatten(1).all(1)
    if not bad or not bool(torch.cat(list(bad.values())).any()):
        return None
    view, items = next((view, items) for view, items in bad.items() if bool(items.any()))
    return view, int(items.nonzero()[0])


def _shape(values: Tensor) -> tuple[int, ...]:
    return tuple(values.shape)
