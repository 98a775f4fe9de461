"""One batch, whole or divided among ranks, and the losses and gradients computed from it.

`main` computes every case as one of several processes, and saves the outcomes in a folder.
"""

import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from processes import PATIENCE
from torch import Tensor, nn

import clipseq
from clipseq.distributed import count_traffic

FEATURES = 6

# Number of items of each rank, for 1, 2 and 4 ranks: unequal, and 9 in total.
SIZES = {1: (9,), 2: (5, 4), 4: (3, 1, 4, 1)}

# Number of extra negatives of each rank, 8 in total.
EXTRAS = {1: (8,), 2: (3, 5), 3: (0, 6, 2), 4: (2, 0, 5, 1)}

SIMILARITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "global": ("global", {"embed_dim": FEATURES}),
    "local": ("local", {"window": 2, "embed_dim": FEATURES}),
    "attention": ("attention", {"num_heads": 2}),
    "temporal": ("temporal", {"gamma": 0.2, "embed_dim": FEATURES}),
    "combined": ("combined", {}),
    "halves": ("halves", {"embed_dim": FEATURES}),
}


class Halves(clipseq.Similarity):
    """``global`` from two halves, whose gradients autograd hands out as one tensor."""

    def prepare_x(self, x: Any) -> dict[str, Tensor]:
        half = clipseq.unit(x.values.sum(1)) / 2
        return {"one": half, "other": half.clone()}

    def score(self, x: Any, y: Any) -> Tensor:
        return (x["one"] + x["other"]) @ (y["one"] + y["other"]).T

    def align(self, x: Any, y: Any) -> Tensor:
        raise NotImplementedError


class Focal(clipseq.PairLoss):
    """A loss as a third party would write it: sigmoid, with less weight on easy pairs."""

    def loss(self, scores: Tensor, positives: Any) -> Tensor:
        signed = torch.where(positives.mask, scores, -scores) * self.scale
        own = -((1 - signed.sigmoid()) * nn.functional.logsigmoid(signed)).sum()
        return positives.world.sum(own) / positives.world.total


def cases() -> dict[str, dict[str, Any]]:
    """Return the cases by name: each is a loss, and the kind of features it is computed from."""
    found: dict[str, dict[str, Any]] = {}
    for dtype in ("float64", "float32"):
        for gather in ("ring", "all"):
            for kind in ("clip", "siglip"):
                for of in ("pooled", *SIMILARITIES):
                    # Half of the cases of each kind have groups.
                    grouped = (len(found) // 2) % 2 == 0
                    name = f"{kind} of {of}, {gather}, {dtype}" + ", grouped" * grouped
                    found[name] = {
                        "kind": kind,
                        "of": of,
                        "gather": gather,
                        "dtype": getattr(torch, dtype),
                        "grouped": grouped,
                    }
    for kind in ("clip", "siglip"):
        for of in ("pooled", "local", "combined"):
            for gather in ("ring", "all"):
                # Whether groups are given: not at all, of the items alone, or of the extras too.
                grouped = ("", "items", "all")[len(found) % 3]
                found[f"{kind} of {of} with extra negatives, {gather}, grouped: {grouped}"] = {
                    "kind": kind,
                    "of": of,
                    "gather": gather,
                    "dtype": torch.float64,
                    "grouped": grouped,
                    "extras": True,
                }
    for of in ("pooled", "local"):
        found[f"a third party's loss of {of}"] = {
            "kind": "focal",
            "of": of,
            "gather": "ring",
            "dtype": torch.float64,
            "grouped": True,
        }
    return found


def batch(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return nine ragged items with repeated captions and masks that are not prefixes."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(9, 7, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randn(9, 5, FEATURES, generator=generator, dtype=torch.float64)
    x_mask = torch.rand(9, 7, generator=generator) < 0.7
    y_mask = torch.rand(9, 5, generator=generator) < 0.7
    x_mask[:, 2], y_mask[:, 1] = True, True
    # The first items are short and the last long, so the longest sequence differs between ranks.
    x_mask[:4, 4:], y_mask[:6, 3:] = False, False
    x_mask[8, 6], y_mask[7, 4] = True, True
    y_mask[3] = False  # a caption without a token
    extra = torch.randn(8, 5, FEATURES, generator=generator, dtype=torch.float64)
    return {
        "x": x.to(dtype),
        "y": y.to(dtype),
        "x_mask": x_mask,
        "y_mask": y_mask,
        "groups": torch.tensor([5, 8, 5, 2, -3, 8, 5, 1, 2]),
        "extra": extra.to(dtype),
        "extra_groups": torch.tensor([9, 8, 9, -3, 4, 5, 5, 7]),
    }


def part_of(whole: dict[str, Tensor], sizes: tuple[int, ...], rank: int) -> dict[str, Tensor]:
    """Return a rank's items, padded to the longest of them."""
    start = sum(sizes[:rank])
    part = {name: value[start : start + sizes[rank]] for name, value in whole.items()}
    extras = EXTRAS[len(sizes)]
    start = sum(extras[:rank])
    for name in ("extra", "extra_groups"):
        part[name] = whole[name][start : start + extras[rank]]
    for side in "xy":
        real = part[f"{side}_mask"].any(0).nonzero()
        steps = int(real.max()) + 1 if len(real) else 1
        part[side] = part[side][:, :steps]
        part[f"{side}_mask"] = part[f"{side}_mask"][:, :steps]
    part["groups"] = part["groups"].to((torch.int64, torch.int32, torch.int16)[rank % 3])
    return part


def loss_of(case: dict[str, Any]) -> nn.Module:
    """Return the loss module of a case, with its parameters moved away from their starting
    values."""
    torch.manual_seed(3)
    options = {"gather": case["gather"], "init_scale": 5.0}
    if case["kind"] == "siglip":
        options["init_bias"] = "batch_size"
    kinds = {"clip": clipseq.ClipLoss, "siglip": clipseq.SigLipLoss, "focal": Focal}
    loss: nn.Module
    if case["of"] == "pooled":
        loss = kinds[case["kind"]](**options)
    else:
        name, similarity_options = SIMILARITIES[case["of"]]
        make = Halves if name == "halves" else partial(clipseq.get_similarity, name)
        similarity = make(**similarity_options)
        loss = clipseq.SequenceLoss(similarity, kinds[case["kind"]](**options))
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return loss.to(case["dtype"])


def outcome(loss: nn.Module, case: dict[str, Any], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss, and the gradient of every parameter and input."""
    leaves = {side: part[side].clone().requires_grad_() for side in "xy"}
    (x, y), y_mask = leaves.values(), part["y_mask"]
    groups = part["groups"] if case["grouped"] else None
    if case.get("extras"):
        leaves["extra"] = part["extra"].clone().requires_grad_()
        steps = max(y.shape[1], leaves["extra"].shape[1])
        y = torch.cat([_padded(y, steps), leaves["extra"]])
        real = torch.ones(len(part["extra"]), steps, dtype=torch.bool)
        y_mask = torch.cat([_padded(y_mask, steps), real])
        if case["grouped"] == "all":
            groups = torch.cat([part["groups"], part["extra_groups"]])
    if case["of"] == "pooled":
        value = loss(x[:, 0], y[:, 0], groups)
    else:
        value = loss(x, y, part["x_mask"], y_mask, groups)
    value.backward()
    found = {"loss": value.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
    for name, parameter in loss.named_parameters():
        found[name.removeprefix("module.")] = parameter.grad
    return found


def _padded(values: Tensor, steps: int) -> Tensor:
    """Append steps of zeros."""
    return torch.cat(
        [values, values.new_zeros(len(values), steps - values.shape[1], *values.shape[2:])], 1
    )


CAPTIONS = [
    "sits, then walks",
    "waves",
    "sits, then walks",
    "jumps",
    "a",
    "waves",
    "bows",
    "a",
    "b",
]


def clip_batch(dtype: torch.dtype) -> dict[str, Any]:
    """Return nine recordings of different lengths with captions, some of them repeated."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([8, 12, 3, 5, 20, 17, 4, 9, 11])
    maps = torch.randn(9, 4, 20, generator=generator, dtype=torch.float64)
    maps = maps * (torch.arange(20) < lengths[:, None])[:, None]
    return {"radar": maps.to(dtype), "radar_lengths": lengths, "text": CAPTIONS}


def clip_part(whole: dict[str, Any], sizes: tuple[int, ...], rank: int) -> dict[str, Any]:
    """Return a rank's recordings, cut to the longest of them, and its captions."""
    start = sum(sizes[:rank])
    part = {name: value[start : start + sizes[rank]] for name, value in whole.items()}
    part["radar"] = part["radar"][:, :, : int(part["radar_lengths"].max())]
    return part


class TrainingStep(nn.Module):
    """A CLIP whose forward is its training step, as DDP requires."""

    def __init__(self, use_siglip: bool, dtype: torch.dtype, gather: str | None = "ring") -> None:
        super().__init__()
        torch.manual_seed(11)
        self.clip = clipseq.CLIP(
            {"views": {"map": 4}, "patch_frames": 3},
            transformer_width=8,
            transformer_layers=1,
            transformer_heads=2,
            context_length=20,
            use_siglip=use_siglip,
        ).to(dtype)
        self.clip.clip_loss_fn.gather = gather
        self.clip.sequence_loss_fn.pair_loss.gather = gather

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.clip.training_step(batch)


def clip_outcome(step: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the total loss and its parts, and the gradient of every parameter."""
    value = step(batch)
    value.backward()
    module = getattr(step, "module", step)
    found = {"loss": value.detach(), **module.clip.metrics}
    return found | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


CLIPS = [(siglip, dtype) for siglip in (False, True) for dtype in (torch.float64, torch.float32)]


class Counting(clipseq.Similarity):
    """The mean cosine of all pairs of steps, with a count of the pairs that were scored."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs_scored = 0

    def score(self, x: Any, y: Any) -> Tensor:
        self.pairs_scored += len(x.values) * len(y.values)
        return x.values.sum(1) @ y.values.sum(1).T / (x.lengths[:, None] * y.lengths)

    def align(self, x: Any, y: Any) -> Tensor:
        raise NotImplementedError


class Dropping(Counting):
    """The mean cosine with dropout, with a record of the number of features kept in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int] = []

    def score(self, x: Any, y: Any) -> Tensor:
        values = nn.functional.dropout(y.values, 0.5, self.training)
        self.kept.append(int(values.count_nonzero()))
        return super().score(x, y._replace(values=values / 2))


def dropouts(ranks: int, rank: int) -> list[int]:
    """List the number of features kept in each block, in forward and then in backward."""
    part = part_of(batch(torch.float32), SIZES[ranks], rank)
    similarity = Dropping()
    loss = clipseq.SequenceLoss(similarity)
    loss(part["x"].requires_grad_(), part["y"]).backward()
    return similarity.kept


def counts(ranks: int, rank: int, gather: str) -> dict[str, Any]:
    """Count the pairs scored and bytes sent for one loss, both in the similarity and by our
    counters."""
    part = part_of(batch(torch.float32), SIZES[ranks], rank)
    found: dict[str, Any] = {"items": SIZES[ranks][rank]}
    for name in ("counting", "global"):
        similarity = Counting() if name == "counting" else clipseq.get_similarity("global")
        loss = clipseq.SequenceLoss(similarity, gather=gather)
        x, y = (part[side].clone().requires_grad_() for side in "xy")
        with count_traffic() as traffic:
            value = loss(x, y, part["x_mask"], part["y_mask"])
            if name == "counting":
                found["scored"] = similarity.pairs_scored
            value.backward()
        found[name] = {key: getattr(traffic, key) for key in traffic.__slots__ if key[0] != "_"}
    return found


def disagreements() -> list[str]:
    """List the errors that a rank raises when the ranks make different calls."""
    messages = []
    x, y = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    name = ("global", "temporal")[dist.get_rank() % 2]
    groups = None if dist.get_rank() else torch.tensor([0, 1])
    for attempt in (
        lambda: clipseq.SequenceLoss(clipseq.get_similarity(name))(x, y),
        lambda: clipseq.ClipLoss()(x[:, 0], y[:, 0], groups),
        lambda: clipseq.ClipLoss()(x[: dist.get_rank(), 0], y[: dist.get_rank(), 0]),
    ):
        try:
            attempt()
        except clipseq.ClipseqError as error:
            messages.append(str(error))
    return messages


def main(folder: Path, rank: int, ranks: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )
    outcomes = {}
    for name, case in cases().items():
        loss = nn.parallel.DistributedDataParallel(loss_of(case))
        part = part_of(batch(case["dtype"]), SIZES[ranks], rank)
        outcomes[name] = outcome(loss, case, part)
    clips = []
    for siglip, dtype in CLIPS:
        step = nn.parallel.DistributedDataParallel(TrainingStep(siglip, dtype))
        clips.append(clip_outcome(step, clip_part(clip_batch(dtype), SIZES[ranks], rank)))
    torch.save(
        {
            "outcomes": outcomes,
            "clips": clips,
            "dropouts": dropouts(ranks, rank),
            "counts": {gather: counts(ranks, rank, gather) for gather in ("ring", "all")},
            "disagreements": disagreements() if ranks > 1 else [],
        },
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()
